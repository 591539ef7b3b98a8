"""How the page of a comparison looks: light, dark, on a phone and in print."""

STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1d1d1d; --quiet: #595959; --rule: #dedede; --accent: #0067a3 }
@media (prefers-color-scheme: dark) { :root { --paper: #16181b; --ink: #e6e6e6; --quiet: #a9adb2; --rule: #383c41;
  --accent: #6cb8ee } figure img, .swatch { filter: invert(1) hue-rotate(180deg) brightness(1.25) } }
* { box-sizing: border-box }
body { font: 400 15px/1.5 system-ui, -apple-system, "Segoe UI", "Helvetica Neue", Arial, sans-serif; color: var(--ink);
  background: var(--paper); max-width: 76rem; margin: 2.5rem auto; padding: 0 1.5rem }
h1 { font-size: 1.7rem; font-weight: 500; line-height: 1.25; margin: 0 0 1rem }
h2 { font-size: 1.15rem; font-weight: 600; margin: 2rem 0 .6rem }
h3 { font-size: 1rem; font-weight: 600; margin: 1.4rem 0 .3rem }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1.2rem; margin: 0 } dt { color: var(--quiet) }
dd { margin: 0; overflow-wrap: anywhere }
.wide { overflow-x: auto } .wide:focus-visible { outline: 2px solid var(--accent) }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .87rem }
th, td { padding: .3rem .5rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--rule) }
th { font-weight: 500; color: var(--quiet); vertical-align: bottom; white-space: normal; border-color: var(--quiet) }
th:first-child, td:first-child { text-align: left; padding-left: 0; white-space: normal; min-width: 7rem;
  max-width: 13rem; overflow-wrap: anywhere }
th.text, td.text { text-align: left; white-space: normal; overflow-wrap: anywhere; min-width: 12rem }
td.best { font-weight: 700 }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(22rem, 100%), 1fr)); gap: 1.2rem }
.maps { display: flex; flex-wrap: wrap; gap: 1.2rem 2.5rem; margin: .6rem 0 1.2rem }
.maps img { width: auto; max-width: 100% }
figure { margin: 0; break-inside: avoid } figure img { width: 100%; height: auto }
figcaption { font-weight: 500 } figcaption small { display: block; font-weight: 400; color: var(--quiet);
  font-size: .87rem }
figure.one { max-width: 44rem; margin: .6rem 0 1.2rem }
.pick { margin: .4rem 0 1.2rem } .pick input { accent-color: var(--accent); margin: 0 .35rem 0 0 }
.pick label { display: inline-block; margin-right: 1.2rem; padding: .25rem 0; white-space: nowrap }
@supports selector(:has(a)) { @media screen { .pick figure { display: none; max-width: 44rem }
  .pick:has(#x-round:checked) .x-round, .pick:has(#x-bytes:checked) .x-bytes, .pick:has(#x-time:checked) .x-time,
  .pick:has(#x-energy:checked) .x-energy { display: block } } }
ul.key { list-style: none; margin: 0 0 1rem; padding: 0; display: flex; flex-wrap: wrap; gap: .2rem 1.4rem }
.swatch { width: 42px; height: 14px; vertical-align: middle; margin-right: .5rem }
p.note { color: var(--quiet); font-size: .87rem; max-width: 46rem } code { font-size: .9em }
@media (max-width: 36rem) { body { margin: 1.2rem auto; padding: 0 .9rem; font-size: 14px } h1 { font-size: 1.35rem }
  dl { grid-template-columns: 1fr } dt { margin-top: .3rem } .pick label { padding: .5rem 0 }
  th, td { padding: .3rem .45rem } th:first-child, td:first-child { position: sticky; left: 0; min-width: 5.2rem;
  max-width: 6.5rem; background: var(--paper) } }
@page { margin: 12mm }
@media print { :root { --paper: #fff; --ink: #000; --quiet: #444; --rule: #bbb } figure img, .swatch { filter: none }
  body { margin: 0; padding: 0; max-width: none; font-size: 10px } h1 { font-size: 20px }
  .wide { overflow: visible } table { font-size: 7.5px } p.note, figcaption small { font-size: 9px }
  th, td { padding: 2px 4px; white-space: normal } .pick label { display: none }
  .plots, .pick { display: grid; grid-template-columns: 1fr 1fr; gap: 1rem } h2, h3 { break-after: avoid }
  tr { break-inside: avoid } }
"""
