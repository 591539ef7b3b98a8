"""The part "Audits" of a page, and the table of `fedft audit`: what could be taken from the models of runs.

All of it is read from `audit.json`, which has numbers and no text of any record.
"""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from fedft.privacy.audit import verdict

NOTE = (
    "A lower bound on what an outsider could take from the model, never a proof that there is no more. Exposure is in "
    "bits, 0 to 8: about 1.44 of a secret that the model knows nothing of. AUC is 0.5 where nothing tells the rows "
    "that were trained on from others, 1 where all do; the calibrated one, on the loss less that of the base, is the "
    "one to quote. Membership of ordinary rows says little of rare ones: that is what planted secrets are for. "
    "Contrastive generation finds what the data is about, under differential privacy too, which hides single records "
    "and not topics."
)
HEADS = ("figure", "of", "found", "to compare with")


def rows(said: Mapping[str, Any]) -> list[dict[str, str]]:
    """The figures of an audit, a row for each, as texts by the names in HEADS."""
    found: list[tuple[str, str, str, str]] = []
    for g in said.get("canaries", {}).get("groups", ()):
        before, outside = g.get("base_exposure"), g.get("left_out_exposure")
        told = [f"{x:.2f} {of}" for x, of in ((before, "under the base"), (outside, "left out")) if x is not None]
        found.append(("exposure, bits", _secrets(g), _number(g.get("exposure"), ".2f"), ", ".join(told)))
    if m := said.get("membership"):
        of = f"{m['members']} rows, {m['others']} others"
        for score in ("calibrated", "loss"):
            found += _of_rows(score, of, m[score])
    if bound := said.get("epsilon_lower"):
        of = f"{bound['right']} of {bound['guesses']} guesses right"
        spent = said.get("run", {}).get("epsilon")
        reported = f"{spent:.3g} reported" if spent is not None else "none reported"
        found.append(("epsilon, at least", of, f"{bound['epsilon']:.3f}", reported))
    found += _attacked(said.get("shadows", {}))
    found += _generated(said.get("generated", {}))
    return [dict(zip(HEADS, row, strict=True)) for row in found]


def _attacked(attack: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """What shadow runs have found."""
    of_runs, found = f"{attack.get('shadows', 0)} shadow runs", list[tuple[str, str, str, str]]()
    if own := attack.get("rows"):
        of = f"{own['members']} rows, {own['others']} others"
        found += _of_rows(of_runs, of, own)
    for g in attack.get("canaries", ()):
        outside = f"{g['found_left_out']:.0%} of {g['left_out']} left out" if "found_left_out" in g else ""
        found.append((f"secrets found, {of_runs}", _secrets(g), _number(g.get("found"), ".0%"), outside))
    return found


def _of_rows(score: str, of: str, figures: Mapping[str, float]) -> list[tuple[str, str, str, str]]:
    """What one score tells of rows."""
    return [(f"membership AUC, {score}", of, f"{figures['auc']:.3f}", "0.5")] + [
        (f"found at {rate} % false positives, {score}", of, f"{figures[key]:.3f}", f"{rate / 100:g}")
        for rate in (1, 5)
        if (key := f"tpr_at_{rate}") in figures
    ]


def _secrets(g: Mapping[str, Any]) -> str:
    """How many secrets of a group are planted, and how often."""
    return f"{g['planted']} secrets, each {'once' if g['repeats'] == 1 else str(g['repeats']) + ' times'}"


def _generated(g: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    of = f"{g.get('samples', 0)} samples" + (", each learned by the base" if g.get("iterative") else "")
    found = [
        (f"contrast from {kind}, nats per token", of, f"{score:.2f}", "0")
        for kind, score in g.get("score_by_start", {}).items()
    ]
    if "verbatim" in g:
        outside = _number(g.get("verbatim_left_out"), ".0%")
        found.append(("secrets written verbatim", of, f"{g['verbatim']:.0%}", f"{outside} left out" if outside else ""))
    if "own_8_grams" in g:
        found.append(("8-grams of the clients' rows", of, f"{g['own_8_grams']:.1%}", ""))
    if "distinct_4_grams" in g:
        found.append(("distinct 4-grams", of, f"{g['distinct_4_grams']:.0%}", ""))
    return found


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def section(folders: Sequence[Path]) -> str:
    """The HTML of the part, "" where no run in these folders was audited."""
    parts = [f"<h3>{escape(label)}</h3>\n{_of_run(said)}" for label, said in _audits(folders)]
    return f'<h2>Audits</h2>\n{"".join(parts)}<p class="note">{escape(NOTE)}</p>' if parts else ""


def _audits(folders: Sequence[Path]) -> list[tuple[str, Mapping[str, Any]]]:
    """(label, content of audit.json) of the runs in these folders, of a race those of each method's seeds."""
    found: list[tuple[str, Mapping[str, Any]]] = []
    for folder in folders:
        races = sorted(folder.glob("*/seed-*")) if (folder / "race.json").exists() else [folder]
        for run in races:
            if said := verdict.read(run):
                label = f"{run.parent.name}, {run.name}" if run is not folder else folder.resolve().name
                found.append((label, said))
    return found


def _of_run(said: Mapping[str, Any]) -> str:
    gate = said.get("gate", {})
    by_hand = ", and released by hand" if gate.get("released") else ""
    held = f"<p><b>Held back: {escape(gate['held_back'])}{by_hand}.</b></p>\n" if gate.get("held_back") else ""
    head = "".join(f"<th>{h}</th>" for h in HEADS)
    body = "".join("<tr>" + "".join(f"<td>{escape(row[h])}</td>" for h in HEADS) + "</tr>\n" for row in rows(said))
    table = f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table></div>\n'
    return held + table + "".join(f'<p class="note">{escape(line)}</p>\n' for line in said.get("missing", ()))
