"""The commands on a finished run: `fedft eval` and `fedft export`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from fedft.cli.options import Allow, AsJson, named
from fedft.errors import ConfigError

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


def export(
    folder: RunFolder,
    to: Annotated[Path, typer.Option(help="Folder to write; must not exist or be empty.")],
    merged: Annotated[bool, typer.Option("--merged", help="The whole model with the change merged in.")] = False,
    client: Annotated[str | None, typer.Option(help="This client's own model, where clients have such.")] = None,
    allow: Allow = None,
    as_json: AsJson = False,
) -> None:
    """Write a run's model as a PEFT adapter folder, or merged with its base for transformers and vLLM."""
    from fedft.simulations import finished_run as measure

    kind = measure.export_run(folder, to, merged=merged, client=client)
    typer.echo(json.dumps({"kind": kind, "folder": str(to)}) if as_json else f"{kind} written to {to}")
