"""A status (`run_status`, `run_folders`) as an HTML page that renews itself every two seconds.

All that is shown is written here, by Python, and escaped here; the page's script only fetches the page again and puts
the parts that changed into place, so without scripts it is whole, too. Nothing is loaded from elsewhere.
"""

import time
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any
from urllib.parse import urlencode

from fedft.board import curve, status_text
from fedft.board.page_style import SCRIPT, STYLE
from fedft.reports.quantities import duration, size
from fedft.training.metrics.loss import LOSS

MAX_SITES = 500  # rows of the table; those who are waited for come first
FIRST = ("working", "waiting", "held", "refused", "barred", "absent", "answered", "idle", "left")


def page(status: Mapping[str, Any], nonce: str, token: str = "", run: str = "", now: float | None = None) -> str:
    """The page of a run, or of a folder of runs.

    Args:
        status: of the run or the folder.
        nonce: that the answer's Content-Security-Policy names.
        token: that links have to carry; "" for none.
        run: name of the run in its folder, as links have to name it; "" where the folder is the run.
        now: seconds since 1970 from which deadlines are counted; None: this machine's.
    """
    now = time.time() if now is None else now

    def link(path: str, **more: str) -> str:
        query = urlencode({k: v for k, v in ({"run": run, "token": token} | more).items() if v})
        return escape(f"{path}?{query}" if query else path)

    if "runs" in status:
        head, parts = f"{len(status['runs'])} runs", {"runs": _runs(status, link)}
    else:
        head, parts = status_text.state_line(status, now), _parts(status, link, now, many=bool(run))
    return _whole(status["name"], head, parts, nonce)


def message(name: str, said: str, nonce: str) -> str:
    """The page of a folder with nothing to show yet: its name, and why."""
    return _whole(name, said, {}, nonce)


def _whole(name: str, head: str, parts: Mapping[str, str], nonce: str) -> str:
    sections = "\n".join(f'<section id="{key}">{html}</section>' for key, html in parts.items())
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="referrer" content="no-referrer"><title>{escape(name)}: {escape(head)}</title>
<style nonce="{nonce}">{STYLE}</style></head><body>
<header><h1>{escape(name)}</h1><p id="head" role="status">{escape(head)}</p></header>
<p id="lost" role="alert" hidden>No answer: what is shown is what was last heard.</p>
<main id="parts">{sections}</main>
<script nonce="{nonce}">{SCRIPT}</script></body></html>
"""


def _parts(s: Mapping[str, Any], link: Any, now: float, *, many: bool) -> dict[str, str]:
    """The sections of a run's page by their id; `many`: it is one of several, which a link leads back to."""
    back = f'<p><a href="{link("/", run="")}">All runs</a></p>' if many else ""
    told = [(head, text) for head, text in status_text.facts(s, now) if head != "state"]
    rows = "".join(f"<dt>{escape(head)}</dt><dd>{escape(text)}</dd>" for head, text in told)
    done = f'<progress max="{max(1, s["rounds"])}" value="{s["round"]}" aria-label="rounds done"></progress>'
    files = f'<a href="{link("/status.json")}">status.json</a> · <a href="{link("/metrics")}">metrics</a>'
    if s["adapter"]:
        files = f'<a href="{link("/adapter.zip")}" download>Download the adapter</a> (zip) · {files}'
    return {
        "facts": f"{back}{done}<dl>{rows}</dl>",
        "curves": _curves(s["curve"]),
        "sites": _sites(s["sites"]),
        "refusals": _refusals(s),
        "files": f"<p>{files}</p>",
    }


def _curves(points: Sequence[Mapping[str, Any]]) -> str:
    def of(key: str) -> list[tuple[float, float]]:
        return [(p["round"], p[key]) for p in points if p[key] is not None]

    loss = curve.figure("Loss by round", [("held out", of("loss")), ("training", of("train_loss"))], LOSS.text)
    sent = [("down", of("bytes_down")), ("up", of("bytes_up"))]
    traffic = curve.figure("Bytes so far", sent, lambda n: size(round(max(0.0, n))))
    return f'<h2>Curves</h2><div class="plots">{loss}{traffic}</div>' if loss or traffic else ""


def _sites(sites: Sequence[Mapping[str, Any]]) -> str:
    if not sites:
        return ""
    shown = sorted(sites, key=lambda s: FIRST.index(s["state"]))[:MAX_SITES] if len(sites) > MAX_SITES else sites
    heads = ("site", "state", "loss", "rounds counted", "refused", "up", "down", "answers in", "left")
    rows = [
        (
            s["name"], status_text.site_state(s), LOSS.text(s["loss"]), str(s["counted"]),
            str(s["refused"]), size(s["up"]), size(s["down"]), _time(s["took_s"]), _time(s["left_s"]),
        )
        for s in shown
    ]  # fmt: skip
    more = f"<p>{len(sites) - len(shown)} more sites are in status.json.</p>" if len(sites) > len(shown) else ""
    return f"<h2>Sites</h2>{_table('Every site, what it does, and what it has done', heads, rows, text=2)}{more}"


def _refusals(s: Mapping[str, Any]) -> str:
    if not s["refusals"]:
        return ""
    counts = ", ".join(f"{code} {n}" for code, n in sorted(s["refused"].items()))
    rows = [
        (
            "-" if r["time"] is None else time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(r["time"])),
            "-" if r["round"] is None else str(r["round"]), r["client"], r["code"], r["reason"],
        )
        for r in s["refusals"]
    ]  # fmt: skip
    total = f"<p>In all: {escape(counts)}</p>" if counts else ""
    heads = ("time, UTC", "round", "site", "code", "reason")
    return f"<h2>Refused</h2>{total}{_table('What was refused, newest first', heads, rows, text=5)}"


def _runs(status: Mapping[str, Any], link: Any) -> str:
    """The table of a folder's runs; each name leads to the run's page."""
    heads = ("run", "state", "round", "loss before", "loss", "bytes", "left")
    rows, names = [], []
    for r in status["runs"]:
        known = r["round"] is not None
        names.append(f'<a href="{link("/", run=r["name"])}">{escape(r["name"])}</a>')
        rows.append(
            (
                r["name"], r["state"], f"{r['round']} of {r['rounds']}" if known else "-", LOSS.text(r["first_loss"]),
                LOSS.text(r["loss"]), size(round(r["bytes_up"] + r["bytes_down"])) if known else "-",
                _time(r["left_s"]),
            )
        )  # fmt: skip
    more = f"<p>{status['left_out']} more runs are left out.</p>" if status["left_out"] else ""
    return f"<h2>Runs</h2>{_table('Every run in the folder', heads, rows, text=2, first=names)}{more}"


def _table(
    caption: str, heads: Sequence[str], rows: Sequence[Sequence[str]], *, text: int, first: Sequence[str] = ()
) -> str:
    """A table of cells, escaped; its first `text` columns begin at the left. `first`: HTML in place of first cells."""
    head = "".join(f'<th scope="col"{_left(i < text)}>{escape(h)}</th>' for i, h in enumerate(heads))
    body = ""
    for n, row in enumerate(rows):
        name = first[n] if first else escape(row[0])
        cells = "".join(f"<td{_left(i < text)}>{escape(c)}</td>" for i, c in enumerate(row) if i)
        body += f'<tr><th scope="row"{_left(True)}>{name}</th>{cells}</tr>\n'
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="{escape(caption)}"><table><caption>{escape(caption)}'
        f"</caption><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table></div>"
    )


def _left(left: bool) -> str:
    return ' class="text"' if left else ""


def _time(seconds: float | None) -> str:
    return "-" if seconds is None else duration(seconds)
