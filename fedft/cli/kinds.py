"""`fedft codecs`, `fedft adapters`, ...: what can be named in a run file; `fedft check KIND NAME`: a contract suite."""

import inspect
import json
import sys
from importlib import import_module
from typing import Annotated, Any

import typer

from fedft.cli.options import named
from fedft.errors import ConfigError

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]
KINDS = {
    "adapters": "adapter", "objectives": "objective", "optimizers": "optimizer", "transforms": "transform",
    "planners": "planner", "gates": "gate", "partitioners": "partitioner", "codecs": "codec", "metrics": "metric",
    "loggers": "logger",
}  # fmt: skip
"""Command -> kind; the strategies have a command of their own."""


DECLARED = ("linear", "ring_summable", "reveals_clients", "unlike_ranks")
"""What the list of strategies says of each."""


def register(app: typer.Typer) -> None:
    """Give the app a command for every kind of value, and `check`."""
    app.command()(strategies)
    for command, kind in KINDS.items():
        app.command(name=command, help=f"List the {command} that a run file can name.")(_lister(kind))
    app.command()(check)


def strategies(as_json: AsJson = False) -> None:
    """List the installed strategies with what each declares."""
    from fedft import registry
    from fedft import strategies as known

    rows = []
    for name, where in registry.strategies.names().items():
        recipe = known.make(name, {})
        module = sys.modules.get(where.partition(":")[0])
        what = ((module.__doc__ if module else "") or "").strip().split("\n")[0]
        declared = {d: getattr(recipe, d) for d in DECLARED}
        declared["any_base"] = recipe.bases == "any"
        rows.append({"name": name, "what": what, "space": recipe.space.name, **declared, "from": where})
    if as_json:
        typer.echo(json.dumps(rows))
        return
    for row in rows:
        said = ", ".join([row["space"], *(d.replace("_", " ") for d in (*DECLARED, "any_base") if row[d])])
        typer.echo(f"{row['name']:<10} {row['what']}\n{'':<10} {said}")


def _lister(kind: str) -> Any:
    def show(as_json: AsJson = False) -> None:
        from fedft import registry
        from fedft.compression import codec_names

        known = registry.REGISTRIES[kind]
        if kind == "codec":
            rows = [
                {"name": n, "what": what, "from": known.names().get(n, "")} for n, what in codec_names.codecs().items()
            ]
        else:
            rows = [{"name": n, "what": _headline(kind, n), "from": where} for n, where in known.names().items()]
        if as_json:
            typer.echo(json.dumps(rows))
            return
        for row in rows:
            typer.echo(f"{row['name']:<14} {row['what']}")
            if row["from"]:
                typer.echo(f"{'':<14} {row['from']}")
        if not rows:
            typer.echo(f"none is built in; a package brings one by the entry point group {known.group}")

    return show


def _headline(kind: str, name: str) -> str:
    """First line of a value's docstring; what went wrong where it cannot be imported."""
    from fedft import registry

    try:
        doc = inspect.getdoc(registry.REGISTRIES[kind].load(name)) or ""
    except ConfigError as e:
        return str(e)
    return doc.strip().split("\n")[0]


def _codec(name: str) -> str:
    """The name, if it is one. Raises ConfigError."""
    from fedft.compression import codec_names

    try:
        codec_names.parse(name)
    except ValueError as e:
        raise ConfigError(str(e)) from e
    return name


def check(
    kind: Annotated[str, typer.Argument(help="strategy, adapter, codec, objective, optimizer, partitioner...")],
    name: Annotated[str, typer.Argument(callback=named, help='A name, or "package.module:factory".')],
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="OPTION=VALUE", help="A factory option.")] = None,
    clients: Annotated[int | None, typer.Option(help="Clients that take part, for strategies that need more.")] = None,
    as_json: AsJson = False,
) -> None:
    """Run the contract suite of a kind on one value: what the engine relies on. Exit code 1: something is broken."""
    from fedft import check as checks
    from fedft import registry
    from fedft.run_file import load_options

    try:
        checks.one_of(registry.REGISTRIES, kind=kind)
    except ValueError as e:
        raise ConfigError(str(e)) from e
    if kind not in registry.SUITES:
        raise ConfigError(f"there is no contract suite of kind {kind} yet; there are {', '.join(registry.SUITES)}")
    known, options = registry.REGISTRIES[kind], load_options(set_ or ())
    takes_none = kind == "codec" or not known.called
    if options and takes_none:
        how = "what follows a colon in its name is its option" if kind == "codec" else "its name stands for the value"
        raise ConfigError(f"--set {next(iter(options))}: {kind} {name} takes no options, {how}")
    if clients is not None and kind != "strategy":
        raise ConfigError(f"--clients {clients}: only strategies are checked with clients, {name} is of kind {kind}")
    if kind == "codec":
        value: Any = _codec(name)
    else:
        value = known.make(name, options) if known.called else known.load(name)
    module, _, suite = registry.SUITES[kind].partition(":")
    more = {} if clients is None else {"clients": clients}
    results = getattr(import_module(module), suite)(value, stop=False, **more)
    if as_json:
        typer.echo(json.dumps({kind: name, "failed": {k: v for k, v in results.items() if v}}))
    else:
        for promise, failure in results.items():
            typer.echo(f"{'FAIL' if failure else 'ok  '}  {promise}{': ' + failure if failure else ''}")
    if any(results.values()):
        raise typer.Exit(1)
