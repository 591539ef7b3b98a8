"""How the page looks, light and dark, from a phone's width on; and its script, which fetches the page anew."""

STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #222; --quiet: #666; --rule: #e4e4e4; --one: #0067a3;
  --two: #b34700 }
@media (prefers-color-scheme: dark) { :root { --paper: #16181b; --ink: #e4e4e4; --quiet: #a0a4a8; --rule: #33373b;
  --one: #6cb8ee; --two: #f0a060 } }
* { box-sizing: border-box }
body { font: 15px/1.5 system-ui, -apple-system, "Segoe UI", "Helvetica Neue", Arial, sans-serif; color: var(--ink);
  background: var(--paper); max-width: 76rem; margin: 0 auto; padding: 1.2rem }
h1 { font-size: 1.5rem; font-weight: 400; margin: 0; overflow-wrap: anywhere }
h2 { font-size: 1.1rem; font-weight: 500; margin: 1.6rem 0 .5rem }
#head { margin: .2rem 0 .8rem; font-size: 1.05rem }
#lost { border: 1px solid var(--two); padding: .4rem .7rem }
a { color: var(--one) }
progress { width: 100%; height: .7rem; accent-color: var(--one) }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem; margin: .6rem 0 0 }
dt { color: var(--quiet) } dd { margin: 0; overflow-wrap: anywhere }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(22rem, 100%), 1fr)); gap: 1.2rem }
figure { margin: 0 } figcaption { color: var(--quiet); font-size: .87rem }
svg { width: 100%; height: auto; display: block } svg text { fill: var(--quiet); font-size: 12px }
polyline { fill: none; stroke-width: 2 } .grid { stroke: var(--rule) }
polyline.line0 { stroke: var(--one) } polyline.line1 { stroke: var(--two); stroke-dasharray: 6 4 }
.dot0 { fill: var(--one) } .dot1 { fill: var(--two) }
span.line0 { color: var(--one); text-decoration: underline } span.line1 { color: var(--two);
  text-decoration: underline dashed }
.wide { overflow-x: auto } .wide:focus-visible { outline: 2px solid var(--one) }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; min-width: 100% }
caption { text-align: left; color: var(--quiet); font-size: .87rem }
th, td { padding: .3rem .6rem; text-align: right; border-bottom: 1px solid var(--rule); vertical-align: top;
  white-space: nowrap }
thead th { font-weight: 400; color: var(--quiet) } tbody th { font-weight: 500 }
th.text, td.text { text-align: left; white-space: normal; overflow-wrap: anywhere; min-width: 6rem }
td.text:nth-child(2) { min-width: 9.5rem } td.text:last-child { min-width: 14rem } th:first-child { padding-left: 0 }
@media (max-width: 30rem) { body { padding: .8rem; font-size: 14px } dl { grid-template-columns: 1fr }
  dt { margin-top: .3rem } svg text { font-size: 16px } }
@media print { .wide { overflow: visible } }
"""

SCRIPT = """
(() => {
  const place = (fresh, id) => {
    const old = document.getElementById(id), now = fresh.getElementById(id);
    if (!old || !now || old.innerHTML === now.innerHTML) return;
    const scrolled = [...old.querySelectorAll(".wide")].map((x) => x.scrollLeft);
    old.replaceChildren(...now.childNodes);
    old.querySelectorAll(".wide").forEach((x, i) => { x.scrollLeft = scrolled[i] || 0; });
  };
  const renew = async () => {
    let heard = false;
    try {
      const answer = await fetch(location.href, { cache: "no-store", credentials: "omit" });
      if (answer.ok) {
        const text = await answer.text();  // without its head: another style would break this page's policy
        const fresh = new DOMParser().parseFromString(text.slice(text.indexOf("<header>")), "text/html");
        const ids = (page) => [...page.querySelectorAll("section")].map((x) => x.id);
        const same = ids(document).join() === ids(fresh).join();
        for (const id of same ? ["head", ...ids(fresh)] : ["head", "parts"]) place(fresh, id);
        document.title = ["h1", "#head"].map((x) => document.querySelector(x).textContent).join(": ");
        heard = true;
      }
    } catch (e) { heard = false; }
    document.getElementById("lost").hidden = heard;
    setTimeout(renew, document.hidden ? 15000 : 2000);
  };
  setTimeout(renew, 2000);
})();
"""
