"""The front door: every command of `fedft`. Those of a deployment are in `deploy`, `keys`, `admin`, `records`, `site`,
`probe` and `backup`, those on a run in `finished` and `watch`, on several in `race`, the benches in `bench`.

Imports what a command needs when it runs, so that `fedft --help` answers at once. A user's mistake is one line on
stderr and a non-zero exit code; a traceback is a bug of ours.
"""

import json
import logging
import os
import re
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

import fedft
from fedft.cli import (
    admin,
    audit,
    backup,
    bench,
    completion,
    deploy,
    doctor,
    explain,
    finished,
    init,
    keys,
    kinds,
    logs,
    new,
    plan,
    probe,
    race,
    records,
    site,
    watch,
)
from fedft.cli.options import Allow, AsJson, SetKeys, named
from fedft.errors import EXIT_INTERRUPTED, ClientFailed, FedftError, Interrupted

app = typer.Typer(
    name="fedft",
    help="Federated fine-tuning of language models: simulate many clients, compare methods, export adapters.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _say_version(asked: bool) -> None:
    if asked:
        typer.echo(f"fedft {fedft.__version__}")
        raise typer.Exit()


@app.callback()
def front(
    version: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Say which fedft this is.")
    ] = False,
) -> None:
    """Federated fine-tuning of language models: simulate many clients, compare methods, export adapters."""


@app.command()
def simulate(
    run: Annotated[
        Path | None, typer.Argument(metavar="[RUN.toml]", help="Run file; none: the built-in quickstart.")
    ] = None,
    set_: SetKeys = None,
    allow: Allow = None,
    out: Annotated[Path | None, typer.Option(help="Run folder (default: a new one under fedft-runs/).")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in the folder.")] = False,
    as_json: AsJson = False,
) -> None:
    """Run many clients on this machine, with the engine, the codec and the strategies of a deployment.

    The quickstart as it is ends with what each client comes to alone, and all rows in one place; a race does so for any
    run file.
    """
    from fedft import run_file as configs
    from fedft.reports.terminal import Progress

    # the config is checked before transformers and Flower are loaded: a typing mistake answers soon
    file = run or _quickstart()
    config = configs.load(file, set_ or ())
    with Progress(quiet=as_json, rounds=config.server.rounds) as progress:
        fedft.starting()
        from fedft.simulations import run as runs

        name = f"{file.stem}-{config.strategy.name}"
        folder = runs.choose_folder(name, out, resume)
        try:
            done = runs.simulate(config, out=folder, resume=resume, observe=progress.observe)
        except KeyboardInterrupt as e:
            if not (folder / "config.toml").exists():
                raise  # before the first file: there is nothing to resume
            raise Interrupted(f"interrupted; nothing is lost: add --resume --out {folder} to the same command") from e
        if as_json:
            typer.echo(json.dumps({**done.summary, "folder": str(done.folder)}, sort_keys=True))
            return
        progress.finish(done.summary, done.folder)
        if run is None and not set_:
            from fedft.simulations import alone_and_central

            try:
                progress.at_work("compare", "each client alone, all rows in one place")
                progress.compare(alone_and_central.losses(config), done.summary)
            except KeyboardInterrupt as e:
                raise Interrupted(f"interrupted in the comparison; the run in {done.folder} is whole") from e


def _quickstart() -> Path:
    """The run file of the quickstart: beside fedft/ in a checkout, inside it in a wheel."""
    package = Path(__file__).parents[1]
    places = [folder / "simulations" / "quickstart.toml" for folder in (package.parent, package)]
    return next((file for file in places if file.exists()), places[-1])


@app.command(name="check-strategy")
def check_strategy(
    name: Annotated[
        str,
        typer.Argument(
            callback=named, autocompletion=completion.strategy, help='An installed name, or "package.module:factory".'
        ),
    ],
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="OPTION=VALUE", help="A factory option.")] = None,
    as_json: AsJson = False,
) -> None:
    """Run the contract suite on one strategy: `fedft check strategy NAME`."""
    kinds.check("strategy", name, set_, None, as_json)


app.command()(race.race)
app.command()(race.report)
app.command(name="eval")(finished.evaluate)
app.command()(finished.export)
app.command()(audit.audit)
app.command()(bench.bench)
app.command()(deploy.split)
app.add_typer(keys.app, name="keys")
app.add_typer(records.app, name="records")
app.add_typer(site.app, name="site")
app.add_typer(admin.app, name="admin")
app.command()(deploy.server)
app.command()(deploy.queue)
app.command()(deploy.client)
app.command()(doctor.doctor)
app.command()(plan.plan)
app.command()(explain.explain)
app.command()(init.init)
app.command()(new.new)
app.command()(probe.probe)
app.command()(watch.status)
app.command()(watch.board)
app.command()(backup.backup)
app.command()(backup.restore)


kinds.register(app)


def main() -> None:
    """Entry point of the `fedft` command."""
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    logs.start_early(sys.argv[1:])
    try:
        code = app(
            standalone_mode=False, prog_name="fedft"
        )  # typer returns the code of an Exit, and 130 for a KeyboardInterrupt
    except FedftError as e:
        logs.fail(str(e), e.__cause__ if isinstance(e, ClientFailed) else None)
        sys.exit(e.exit_code)
    except Exception as e:
        if hasattr(e, "format_message") and hasattr(e, "exit_code"):  # of typer and click
            logs.fail(_usage(e))
            sys.exit(2)
        raise
    if code == EXIT_INTERRUPTED:
        logs.fail("interrupted")
    sys.exit(code if isinstance(code, int) else 0)


def _usage(e: Any) -> str:
    """What is wrong with a command line, and where its help is."""
    said = e.format_message().strip().rstrip(".") or "no command given"
    said = re.sub(r"( Did you mean [^?]*\?)\1", r"\1", said)  # typer and click both suggest
    return f"{said}; see {e.ctx.command_path if e.ctx else 'fedft'} --help"
