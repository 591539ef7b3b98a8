"""`fedft init`: five questions, a look at the records, and a run file with comments that `fedft plan` takes."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from fedft.cli.options import AsJson
from fedft.errors import ConfigError, Interrupted

QUESTIONS = {
    "model": "Which model? A folder, a hub id, or stdlib-base (small, built in)",
    "data": "Which records? A file, a folder, or a hub data set",
    "client": "Whose is a record? A field that says so, or a number of clients to deal them out to",
    "device": "Where does it train? cpu, cuda, mps",
    "size": "How large a run? try, usual, large",
}
SIZES: Mapping[str, Mapping[str, int]] = {
    "try": {"rounds": 3, "steps": 10, "batch_size": 4, "rank": 8},
    "usual": {"rounds": 10, "steps": 20, "batch_size": 8, "rank": 16},
    "large": {"rounds": 50, "steps": 50, "batch_size": 16, "rank": 32},
}
TOKEN = 3  # characters of a token, about: fewer than usual, so that little is cut
BASE = "stdlib-base"


@dataclass(frozen=True)
class Answers:
    """What the five questions were answered with."""

    model: str
    data: str
    client: str
    device: str
    size: str


def init(
    run: Annotated[Path, typer.Argument(metavar="[RUN.toml]", help="The run file to write, a new one.")] = Path(
        "run.toml"
    ),
    model: Annotated[str | None, typer.Option(help=QUESTIONS["model"])] = None,
    data: Annotated[str | None, typer.Option(help=QUESTIONS["data"])] = None,
    client: Annotated[str | None, typer.Option(help=QUESTIONS["client"])] = None,
    device: Annotated[str | None, typer.Option(help=QUESTIONS["device"])] = None,
    size: Annotated[str | None, typer.Option(help=QUESTIONS["size"])] = None,
    yes: Annotated[
        bool, typer.Option("--yes", help="Ask nothing: what is not given is as it would be proposed.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write a run file for your model and records: five questions, or as many options."""
    from fedft.data import record_forms
    from fedft.data.records import read_rows

    if run.exists():
        raise ConfigError(f"{run}: is there already; wanted a new file, as in: fedft init other.toml")
    given = {"model": model, "data": data, "client": client, "device": device, "size": size}
    asks = not yes and sys.stdin.isatty()
    if not yes and not asks and (missing := [f"--{name}" for name, said in given.items() if said is None]):
        raise ConfigError(f"nobody to ask here: say {', '.join(missing)}, or --yes for what would be proposed")
    name = _answer("model", model, BASE, asks)
    source = _answer("data", data, None, asks)
    rows = read_rows(source)
    whose = _answer("client", client, record_forms.owner_of(rows) or "4", asks)
    where = _answer("device", device, "cpu", asks)
    answers = Answers(name, source, whose, where, _answer("size", size, "try", asks))
    text, said = written(answers, rows)
    run.parent.mkdir(parents=True, exist_ok=True)
    with run.open("x", encoding="utf-8") as file:
        file.write(text)
    then = [f"fedft plan {run}", f"fedft simulate {run} --out {run.with_suffix('')}-1"]
    if as_json:
        typer.echo(json.dumps({"file": str(run), "records": len(rows), "form": said, "then": then}))
        return
    typer.echo(f"{run}: {len(rows)} records; {said}\n")
    typer.echo(f"{then[0]:<44} what it takes\n{then[1]:<44} a run")


def _answer(name: str, given: str | None, proposed: str | None, asks: bool) -> str:
    """What was given, else what the user says, else what is proposed. Raises ConfigError where that is nothing,
    and Interrupted where the user leaves."""
    if given is None and asks:
        try:
            given = typer.prompt(QUESTIONS[name], default=proposed)
        except typer.Abort:
            raise Interrupted("interrupted; nothing is written") from None
    found = given if given is not None else proposed
    if not found:
        raise ConfigError(f"--{name} is needed: {QUESTIONS[name][:1].lower()}{QUESTIONS[name][1:]}")
    return found.strip()


def written(answers: Answers, rows: Sequence[dict[str, Any]]) -> tuple[str, str]:
    """(the run file's text, what is learned, in words) for these answers and records.

    Raises ConfigError or DataError: an answer that is none, or records of no form that is known.
    """
    import tomllib

    from fedft import check, run_file
    from fedft.data import record_forms

    if answers.size not in SIZES:
        raise ConfigError(f"--size is {answers.size!r}, wanted one of {', '.join(SIZES)}")
    owner = None if answers.client.isdecimal() else answers.client
    if owner and owner not in rows[0]:
        raise ConfigError(
            f"--client {owner!r} is no field of the records, which have {check.few(list(rows[0]), 12)}, and no number"
        )
    form = record_forms.form_of(rows, owner)
    lengths = record_forms.characters(rows, form)
    usual = lengths[len(lengths) * 95 // 100]
    tokens = usual if "tokens" in form.keys else usual // TOKEN
    text = _text(answers, form, min(max(64, -(-tokens // 64) * 64), 4096), lengths[-1])
    run_file.from_dict(tomllib.loads(text))
    return text, form.said


def _text(answers: Answers, form: Any, max_length: int, longest: int) -> str:
    """The run file, a comment on every key."""
    at = SIZES[answers.size]
    whose = (
        [('partition = "iid"', "nobody's: dealt out"), (f"clients = {int(answers.client)}", "to so many")]
        if answers.client.isdecimal()
        else [(f"client = {_toml(answers.client)}", "the field that says whose a record is")]
    )
    what = {
        "prompt": "given, not learned; \\n is a new line" if form.keys.get("prompt") else "nothing is given",
        "response": "learned, with an end token",
        "messages": "the field of the conversation; the model's chat template writes it",
        "tokens": "the field of the token ids",
        "chosen": "the better answer",
        "rejected": "the other one",
    }
    unit = "tokens" if "tokens" in form.keys else "characters"
    tables = {
        "model": [
            (f"id = {_toml(answers.model)}", "a folder or a hub id"),
            (f"device = {_toml(answers.device)}", "where it trains"),
        ],
        "data": [
            (f"train = {_toml(answers.data)}", "one in five of each client's records is held out, to measure"),
            *whose,
            *((f"{key} = {_toml(value)}", what[key]) for key, value in form.keys.items()),
            (f"max_length = {max_length}", f"tokens; the longest record has {longest} {unit}. What is cut is counted"),
        ],
        "strategy": [('name = "fedit"', "plain averaging of LoRA factors; others: fedft strategies")],
        "local": [
            (f"steps = {at['steps']}", "of each client in each round"),
            (f"batch_size = {at['batch_size']}", "records a step"),
            (f"learning_rate = {'1e-2' if answers.model == BASE else '2e-4'}", "the first one to tune"),
            *([(f"objective = {_toml(form.objective)}", "to prefer the chosen answer")] if form.objective else []),
        ],
        "clients": [(f"rank = {at['rank']}", "of LoRA; more is more to learn with, and more to send")],
        "server": [(f"rounds = {at['rounds']}", "a finished run goes on with more: --resume --set server.rounds=...")],
    }
    parts = []
    for table, lines in tables.items():
        wide = max(len(line) for line, _ in lines)
        parts.append(f"[{table}]\n" + "".join(f"{line:<{wide}}  # {said}\n" for line, said in lines))
    return "# Written by fedft init; `fedft explain TABLE.KEY` says what a key does.\n\n" + "\n".join(parts)


def _toml(value: str) -> str:
    return json.dumps(value, ensure_ascii=False)
