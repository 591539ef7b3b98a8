"""A status (`run_status`, `run_folders`) as lines of plain text, for a terminal, a pipe or a mail."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from fedft.board.run_status import shown_state
from fedft.carriers.interface import printable
from fedft.reports.quantities import duration, size
from fedft.training.metrics.loss import LOSS

MAX_NAMES = 8  # in a line; the table has all
MAX_SITES = 40  # rows of the table
MAX_REFUSALS = 5
OUT = ("barred", "left")
"""States of sites that nobody waits for any more."""


def lines(status: Mapping[str, Any], now: float | None = None) -> list[str]:
    """The lines that say how a run, or a folder of runs, stands. Names and reasons are others' text: made printable.

    `now` is the time, seconds since 1970, from which deadlines are counted; None: this machine's.
    """
    now = time.time() if now is None else now
    if "runs" in status:
        return _many(status)
    told = [f"{head:<9}{printable(text)}" for head, text in facts(status, now)]
    return [*told, *_sites(status["sites"]), *_refusals(status)]


def state_line(s: Mapping[str, Any], now: float) -> str:
    """What a run is doing, in a sentence: how many rounds are done, and at what it works."""
    done = f"{s['round']} of {s['rounds']} rounds done"
    if s["state"] == "silent":
        return f"{done}; nothing heard of it for {duration(now - s['updated'])}: killed, or its machine stands still"
    if s["state"] != "running":
        return f"{done}; {s['state']}"
    if shown_state(s) == "paused":
        return f"{done}; paused by its operator"
    if s["phase"] == "enrolling":
        return f"{done}; waiting for clients"
    pause = "; then it pauses" if s["steered"].get("paused") else ""
    enough = f", {s['need']} are enough" if s["need"] and s["need"] < len(s["asked"]) else ""
    told = f"{len(s['answered'])} of {len(s['asked'])} have answered{enough}"
    if s["phase"] == "training":
        return f"{done}; round {s['at_work']} is being trained: {told}{pause}"
    if s["phase"] == "evaluating":
        return f"{done}; the state of round {s['at_work']} is being evaluated: {told}{pause}"
    return f"{done}; {'between two rounds' if s['phase'] in (None, 'between') else s['phase']}"


def facts(s: Mapping[str, Any], now: float) -> list[tuple[str, str]]:
    """(what it is, text) of the facts about a run that are no table; the text not made printable."""
    seed = "" if s["seed"] is None else f", seed {s['seed']}"
    told = [("run", f"{s['name']}: {s['strategy']} on {s['model']}{seed}"), ("state", state_line(s, now))]
    if s["missing"]:
        told.append(("waiting", _few(_with_time(s, name) for name in s["missing"])))
    if s["deadline"] is not None:
        at = time.strftime("%H:%M:%S UTC", time.gmtime(s["deadline"]))
        told.append(("deadline", f"{at}, in {duration(max(0.0, s['deadline'] - now))}"))
    if pace := _pace(s["sites"]):
        told.append(("pace", pace))
    if s["loss"] is not None:
        trained = "" if s["train_loss"] is None else f"; while training {LOSS.text(s['train_loss'])}"
        told.append(("loss", f"{LOSS.text(s['first_loss'])} -> {LOSS.text(s['loss'])} held out{trained}"))
    if s.get("privacy"):  # not there in the status of a server of before
        told.append(("privacy", _privacy(s["epsilon"], s["privacy"])))
    told.append(("bytes", f"{size(s['bytes_up'])} up, {size(s['bytes_down'])} down"))
    told.append(("disk", f"{size(s['disk_bytes'])} used, {size(s['disk_free'])} free"))
    if s["memory_bytes"] is not None:
        told.append(("memory", size(s["memory_bytes"])))
    left = "" if s["left_s"] is None else f"; about {duration(s['left_s'])} more"
    told.append(("time", f"{duration(s['seconds'])} of rounds{left}"))
    told += [("barred", f"{name}: {why}") for name, why in list(s["barred"].items())[:MAX_NAMES]]
    if len(s["barred"]) > MAX_NAMES:
        told.append(("barred", f"and {len(s['barred']) - MAX_NAMES} more"))
    if changed := s["steered"].get("changed"):
        told.append(("changed", _few(f"{key} = {value}" for key, value in changed.items())))
    if s["adapter"]:
        told.append(("adapter", "in model/"))
    if s["written_by"]:
        told.append(("state of", s["written_by"]))
    return told


def _with_time(s: Mapping[str, Any], name: str) -> str:
    """A client's name, with what is known of when it will answer."""
    site = next((x for x in s["sites"] if x["name"] == name), {"doing": None, "left_s": None})
    left = None if not site["left_s"] else f"about {duration(site['left_s'])} left"
    known = [x for x in (site["doing"], left) if x]
    return f"{name} ({', '.join(known)})" if known else name


def _privacy(epsilon: float | None, said: Mapping[str, Any]) -> str:
    """What was spent, or why nobody can say it, and what is left."""
    if epsilon is None:
        return f"{said['mode']}: epsilon none ({said['epsilon_why'] or 'nothing is spent yet'})"
    left = "" if said["rounds_left"] is None else f", {said['rounds_left']} rounds left"
    return f"{said['mode']}: epsilon {epsilon:.3g} at delta {said['delta']:g}{left}"


def _pace(sites: Sequence[Mapping[str, Any]]) -> str:
    """Who takes longest to answer, and how much longer than the one in the middle; "" of fewer than two sites."""
    took = sorted((s["took_s"], s["name"]) for s in sites if s["took_s"] is not None and s["state"] not in OUT)
    if len(took) < 2:
        return ""
    slowest, middle = took[-1], took[(len(took) - 1) // 2]
    return f"{slowest[1]} answers last, in {duration(slowest[0])}; the site in the middle in {duration(middle[0])}"


def _few(names: Any) -> str:
    """The first of these names, and how many more there are."""
    all_ = list(names)
    more = len(all_) - MAX_NAMES
    return ", ".join(all_[:MAX_NAMES]) + (f" and {more} more" if more > 0 else "")


def _sites(sites: Sequence[Mapping[str, Any]]) -> list[str]:
    if not sites:
        return []
    heads = ("site", "state", "loss", "counted", "refused", "up", "down", "answers in", "left")
    rows = [
        (
            printable(s["name"])[:32], printable(site_state(s))[:60], LOSS.text(s["loss"]), str(s["counted"]),
            str(s["refused"]), size(s["up"]), size(s["down"]), _time(s["took_s"]), _time(s["left_s"]),
        )
        for s in sites[:MAX_SITES]
    ]  # fmt: skip
    more = [f"{len(sites) - MAX_SITES} more sites; --json has all"] if len(sites) > MAX_SITES else []
    return ["", *_table([heads, *rows], left=2), *more]


def site_state(site: Mapping[str, Any]) -> str:
    """What a site is, what it does, and the bits of its base where they are not the run's; not made printable."""
    bits = f", base of {site['bits']} bits" if site.get("bits") else ""
    return site["state"] + (f": {site['doing']}" if site["doing"] else "") + bits


def _time(seconds: float | None) -> str:
    return "-" if seconds is None else duration(seconds)


def _refusals(s: Mapping[str, Any]) -> list[str]:
    found = s["refusals"][:MAX_REFUSALS]
    if not found:
        return []
    total = sum(s["refused"].values())
    head = f"refused, the last {len(found)}" + (f" of {total}" if total > len(found) else "")
    said = [printable(f"  {_when(r['round'])}  {r['client']}  {r['code']}: {r['reason']}") for r in found]
    return ["", head, *said]


def _when(number: int | None) -> str:
    return "enrolment" if number is None else f"round {number}"


def _many(status: Mapping[str, Any]) -> list[str]:
    heads = ("run", "state", "round", "loss before", "loss", "bytes", "more")
    rows = []
    for r in status["runs"]:
        known = r["round"] is not None
        rows.append(
            (
                printable(r["name"]), printable(r["state"]), f"{r['round']}/{r['rounds']}" if known else "-",
                LOSS.text(r["first_loss"]), LOSS.text(r["loss"]),
                size(round(r["bytes_up"] + r["bytes_down"])) if known else "-",
                _time(r["left_s"]),
            )
        )  # fmt: skip
    more = [f"{status['left_out']} more runs are left out"] if status["left_out"] else []
    return [*_table([heads, *rows], left=2), *more]


def _table(rows: Sequence[Sequence[str]], left: int) -> list[str]:
    """Rows of cells as lines, columns in line; the first `left` of them begin at the left."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    cells = [
        [c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
        for row in rows
    ]
    return ["  ".join(row).rstrip() for row in cells]
