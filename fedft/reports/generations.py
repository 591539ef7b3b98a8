"""What runs wrote behind their fixed prompts: generations.jsonl of a run folder, and its part of a page."""

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

FILE = "generations.jsonl"
MOST = 5  # rounds of a prompt that a page shows: the first, the last, and some between
NOTE = (
    "Greedy continuations of the prompts in [eval] prompts, by the state of each round; all are in generations.jsonl."
)
PLAIN = 'style="white-space: pre-wrap"'  # line breaks as they were written
Written = Mapping[str, Any]
"""`round`, `prompt` and `text` of one generation."""


def read(folder: Path) -> list[dict[str, Any]]:
    """The lines of the generations.jsonl of a run folder, up to the first that is not whole; none without the file."""
    path, found = folder / FILE, list[dict[str, Any]]()
    for raw in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            line = json.loads(raw)
            found.append({"round": int(line["round"]), "prompt": str(line["prompt"]), "text": str(line["text"])})
        except (ValueError, TypeError, KeyError):
            break
    return found


def section(folders: Sequence[Path]) -> str:
    """The HTML of the part, "" where no run in these folders has such a file; of a race, each method's first seed."""
    parts = []
    for folder in folders:
        for run in sorted(folder.glob("*/seed-0")) if (folder / "race.json").exists() else [folder]:
            label = folder.resolve().name if run is folder else run.parent.name
            if found := read(run):
                parts.append(f"<h3>{escape(label)}</h3>\n{_table(found)}")
    return f'<h2>What the model writes</h2>\n{"".join(parts)}<p class="note">{escape(NOTE)}</p>' if parts else ""


def _table(found: Sequence[Written]) -> str:
    """Each prompt with its texts, in order of rounds."""
    of_prompt: dict[str, list[Written]] = {}
    for one in found:
        of_prompt.setdefault(one["prompt"], []).append(one)
    said = ""
    for prompt, all_ in of_prompt.items():
        said += f"<dt>prompt</dt><dd {PLAIN}><b>{escape(prompt)}</b></dd>"
        said += "".join(f"<dt>round {one['round']}</dt><dd {PLAIN}>{escape(one['text'])}</dd>" for one in _some(all_))
    return f"<dl>{said}</dl>\n"


def _some(found: Sequence[Written]) -> list[Written]:
    """At most MOST of them, evenly from the first to the last.

    >>> [one["round"] for one in _some([{"round": n} for n in range(9)])]
    [0, 2, 4, 6, 8]
    """
    last = len(found) - 1
    places = sorted({round(n * last / (MOST - 1)) for n in range(MOST)})
    return [found[n] for n in places]
