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
    tasks: Annotated[
        str | None, typer.Option(metavar="NAMES", help="Instead: tasks of lm-evaluation-harness, as arc_easy,piqa.")
    ] = None,
    include: Annotated[
        Path | None, typer.Option(help="Folder of YAML files with tasks of your own, for --tasks.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Rows of each of --tasks; left out: all.")] = None,
    allow: Allow = None,
    as_json: AsJson = False,
) -> None:
    """Loss, accuracy and other metrics of a run's newest state on every client's held-out rows."""
    from fedft.reports.terminal import table
    from fedft.simulations import compeft_choice, finished_run

    if tasks is not None:
        if rouge or metric or compeft:
            raise ConfigError("--tasks measures the harness's tasks alone; leave --rouge, --metric and --compeft out")
        _tasks(folder, tasks, include, limit, as_json)
        return
    if include is not None or limit is not None:
        raise ConfigError("--include and --limit are for --tasks, which is left out")
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
    by_client, mean, texts = finished_run.evaluated(folder, rouge=rouge, more=metric or ())
    if as_json:
        written = {"generations": texts} if texts else {}
        typer.echo(json.dumps({"mean": mean, "clients": by_client, **written}, sort_keys=True))
    else:
        over_tokens = {"loss": mean.pop("token_loss")} if "token_loss" in mean else {}
        over_tokens |= {"perplexity": mean.pop("perplexity")} if "perplexity" in mean else {}
        rows = [{"client": c, **m} for c, m in by_client.items()]
        rows += [{"client": "mean over clients", **mean}, {"client": "over all held out", **over_tokens}]
        table(rows, tuple(dict.fromkeys(name for row in rows for name in row)))
        for prompt, text in texts.items():
            typer.echo(f"prompt   {prompt}\nwritten  {text}\n")


def _tasks(folder: Path, tasks: str, include: Path | None, limit: int | None, as_json: bool) -> None:
    """Print what tasks of lm-evaluation-harness, names with commas between, find of a run's model."""
    from fedft.reports.terminal import table
    from fedft.simulations import harness_tasks

    names = [name.strip() for name in tasks.split(",") if name.strip()]
    found = harness_tasks.evaluate(folder, names, include=include, limit=limit)
    if as_json:
        typer.echo(json.dumps(found, sort_keys=True, default=str))
    else:
        table(harness_tasks.table(found), ("task", "measure", "value", "std. error"))
        typer.echo(f"written to {folder / harness_tasks.FILE}")


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
