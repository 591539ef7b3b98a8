"""The commands on a finished run: `fedft eval` and `fedft export`."""

import json
import logging
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from fedft.cli.options import Allow, AsJson, named
from fedft.errors import ConfigError

log = logging.getLogger(__name__)

RunFolder = Annotated[Path, typer.Argument(metavar="DIR", help="A run folder, as `fedft simulate` leaves it.")]


def evaluate(
    folder: RunFolder,
    rouge: Annotated[bool, typer.Option("--rouge", help="Also ROUGE-L of greedy generations (causal LM).")] = False,
    metric: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", callback=named, help="Also this one, e.g. exact_match; can be repeated."),
    ] = None,
    compeft: Annotated[
        bool, typer.Option("--compeft", help="Instead: which density and scale of the codec compeft to take.")
    ] = False,
    allow: Allow = None,
    as_json: AsJson = False,
) -> None:
    """Loss, accuracy and other metrics of a run's newest state on every client's held-out rows."""
    from fedft.reports.terminal import table
    from fedft.simulations import compeft_choice, finished_run

    if compeft:
        if rouge or metric:
            raise ConfigError("--compeft goes by the loss alone; leave --rouge and --metric out")
        best, tried = compeft_choice.choose(folder)
        if as_json:
            typer.echo(json.dumps({"best": best, "tried": tried}))
        else:
            table(compeft_choice.of_each_density(tried), tuple(tried[0]))
            typer.echo(f'the least loss, of {len(tried) - 1} pairs tried:  [codec] up = "{best}"')
        return
    by_client, mean = finished_run.evaluate_run(folder, rouge=rouge, more=metric or ())
    if as_json:
        typer.echo(json.dumps({"mean": mean, "clients": by_client}, sort_keys=True))
    else:
        over_tokens = {"loss": mean.pop("token_loss")} if "token_loss" in mean else {}
        rows = [{"client": c, **m} for c, m in by_client.items()]
        rows += [{"client": "mean over clients", **mean}, {"client": "over all held out", **over_tokens}]
        table(rows, tuple(dict.fromkeys(name for row in rows for name in row)))


def export(
    folder: RunFolder,
    to: Annotated[Path | None, typer.Option(help="Folder to write; must not exist or be empty.")] = None,
    merged: Annotated[bool, typer.Option("--merged", help="The whole model with the change merged in.")] = False,
    rank: Annotated[
        int | None, typer.Option(metavar="N", help="The best adapter of this rank, and how far it is off.")
    ] = None,
    client: Annotated[str | None, typer.Option(help="This client's own model, where clients have such.")] = None,
    push: Annotated[
        str | None, typer.Option(metavar="OWNER/NAME", help="Send it to this repository of the hub; needs a token.")
    ] = None,
    allow: Allow = None,
    as_json: AsJson = False,
) -> None:
    """Write a run's model as a PEFT adapter folder, or merged with its base for transformers and vLLM."""
    from fedft import run_file as configs
    from fedft.models import base_note, hub_upload, lower_rank, other_tools
    from fedft.simulations import finished_run as measure

    if to is None and push is None:
        raise ConfigError("Missing option '--to'; see fedft export --help")
    if push is not None:
        hub_upload.check(push)
    with tempfile.TemporaryDirectory() as own:
        at = to or Path(own) / "model"
        kind = measure.export_run(folder, at, merged=merged, client=client, rank=rank)
        lower = base_note.read(at).get("lower_rank")
        lines = other_tools.lines(at, kind, configs.load(folder / "config.toml").model.task)
        base = other_tools.adapter_config(at).get("base_model_name_or_path", "")
        if push is not None and base and Path(base).exists():
            log.warning("--push: the adapter names as its base %s, a folder that nobody else has", base)
        address = None if push is None else hub_upload.upload(at, push)
    if as_json:
        facts = {"lower_rank": lower, "lines": lines, "pushed": address}
        typer.echo(json.dumps({"kind": kind, "folder": None if to is None else str(to), **facts}))
        return
    if to is not None:
        typer.echo(f"{kind} written to {to}")
    if lower:
        typer.echo(f"rank   {lower_rank.sentence(lower)}")
    if to is not None:
        for name, line in lines.items():
            typer.echo(f"{name:7}{line}")
    if address is not None:
        typer.echo(f"pushed {address}")
