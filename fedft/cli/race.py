"""`fedft race` and `fedft report`: methods side by side, as a table on the terminal and as a page."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

import fedft
from fedft.cli import completion
from fedft.cli.options import Allow, AsJson, SetKeys, named
from fedft.errors import Interrupted, RunPaused

Against = Annotated[
    str | None, typer.Option(metavar="NAME", help="Whom the others are compared with in pairs (default: the best).")
]
Watts = Annotated[
    float | None,
    typer.Option(help="Of the machine at work, to estimate energy (default: 65, of a GPU 350; assumed, not measured)."),
]

Strategies = Annotated[
    str,
    typer.Option(
        callback=named,
        autocompletion=completion.contenders,
        help="Comma-separated: strategies, and the baselines `local` and `central`.",
    ),
]
Variants = Annotated[
    list[str] | None,
    typer.Option(metavar="'LABEL: KEY=VALUE ...'", callback=named, help="One more contender, made by overrides."),
]
Budget = Annotated[
    str | None, typer.Option(metavar="bytes=N|steps=N|seconds=N", help="Each run ends at its last round within it.")
]
Grid = Annotated[
    list[str] | None,
    typer.Option(metavar="KEY=VALUE,VALUE", callback=named, help="Values that are tried for each contender before."),
]


def race(
    run: Annotated[Path, typer.Argument(metavar="RUN.toml", help="Run file that all contenders share.")],
    strategies: Strategies = "fedit,flora,ffa_lora,local,central",
    variant: Variants = None,
    budget: Budget = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs per contender, seeds 0, 1, ...")] = 3,
    grid: Grid = None,
    against: Against = None,
    jobs: Annotated[int, typer.Option(min=1, help="Runs side by side, each in a process.")] = 1,
    watts: Watts = None,
    set_: SetKeys = None,
    allow: Allow = None,
    out: Annotated[Path, typer.Option(help="Folder of the runs; finished ones in it are not run again.")] = Path(
        "fedft-runs/race"
    ),
    as_json: AsJson = False,
) -> None:
    """Methods side by side: same data, clients and budget, several seeds; a table, learning curves and a page.

    With --grid each contender is tried before with every combination of values, on rows and a seed that are not
    compared, and runs with what was best for it.
    """
    from fedft.reports.race_progress import RaceProgress

    with RaceProgress() as progress:
        fedft.starting()
        from fedft.simulations import race as races
        from fedft.simulations.contenders import contender

        contenders = [contender(s.strip()) for s in strategies.split(",") if s.strip()]
        contenders += [contender(v) for v in variant or ()]
        try:
            done = races.race(
                run,
                contenders,
                seeds,
                out,
                budget=budget,
                overrides=set_ or (),
                observe=progress.observe,
                grid=grid or (),
                jobs=jobs,
                against=against,
                watts=watts,
            )
        except KeyboardInterrupt as e:
            raise Interrupted("interrupted; nothing is lost: the same command continues the race") from e
    if as_json:
        typer.echo(json.dumps(done))
    else:
        _say(done)
        typer.echo(
            f"{out / races.PAGE}  (the same with learning curves; {races.TABLE}, {races.CSV}, {races.LATEX} beside it)"
        )
    if stopped := done["stopped"]:
        raise RunPaused(f"stopped, and without a row: {', '.join(stopped)}; the same command tries again")


def report(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Folders of finished runs and of races.")],
    to: Annotated[
        Path | None, typer.Option(help="File (default: report.html in the folder, or here if there are several).")
    ] = None,
    against: Against = None,
    watts: Watts = None,
    as_json: AsJson = False,
) -> None:
    """One page that compares runs and races: table, learning curves, bytes; a single file to open, mail and print."""
    from fedft.reports import html_report as reports

    file = to or (folders[0] if len(folders) == 1 else Path()) / "report.html"
    done = reports.write(folders, file, watts=watts, against=against)
    if as_json:
        typer.echo(json.dumps(done))
    else:
        _say(done)
        typer.echo(f"page   {file}")


def _say(done: Mapping[str, Any]) -> None:
    """Print a comparison: chosen settings, the table, paired differences."""
    from fedft.reports import comparison_sections, paired, per_client
    from fedft.reports.comparison import LEGEND, readable, shown_columns, spare_columns
    from fedft.reports.terminal import table

    if tuning := done["tuning"]:
        chosen = [
            {"method": m, "chosen setting": t["chosen"] or "-", "trials": str(t["trials"])}
            for m, t in tuning["contenders"].items()
        ]
        table(chosen, ["method", "chosen setting", "trials"])
        typer.echo(f"tuned with {tuning['rows']}")
        if ends := comparison_sections.at_an_end(tuning):
            typer.echo(ends)
    table(readable(done), shown_columns(done["rows"]), spare_columns(done["rows"]))
    typer.echo(LEGEND)
    if done["paired"]:
        differences = [
            {"method": r["method"], "over seeds": paired.said(r["seeds"]), "over clients": paired.said(r["clients"])}
            for r in done["paired"]
        ]
        table(differences, ["method", "over seeds", "over clients"])
        typer.echo(f"loss after less that of {done['against']}, in pairs: mean ± standard error, 95 % interval")
        if per_client.ALONE in done["results"]:
            typer.echo("of local, over clients: each one's model on its own rows; over seeds, as above, on everybody's")
