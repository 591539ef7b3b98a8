"""`fedft explain`: every table and key of a run file or a site file, with its type, its default and what it does."""

import inspect
import json
import textwrap
import typing
from typing import Annotated

import typer

from fedft import check
from fedft.cli import completion
from fedft.cli.options import AsJson, named
from fedft.errors import ConfigError

WIDTH = 100  # of a paragraph, in characters


def explain(
    what: Annotated[
        str | None,
        typer.Argument(
            metavar="[TABLE[.KEY]]",
            callback=named,
            autocompletion=completion.explained,
            help="As local, local.steps or strategy.flora.",
        ),
    ] = None,
    site: Annotated[bool, typer.Option("--site", help="Of a site file, in place of a run file.")] = False,
    as_json: AsJson = False,
) -> None:
    """What a table or a key says: `fedft explain local.steps`; of a strategy its options: `fedft explain
    strategy.flora`.
    """
    from fedft.cli import key_texts

    tables = _tables(site=site)
    table, _, key = (what or "").strip("[]").partition(".")
    if not table:
        said = {
            name: (inspect.getdoc(kind) or "").partition("\n")[0].partition(": ")[2] for name, kind in tables.items()
        }
        typer.echo(json.dumps(said) if as_json else "\n".join(f"[{n}]{'':<{10 - len(n)}} {s}" for n, s in said.items()))
        return
    if table not in tables:
        raise ConfigError(f"no table [{table}]{_instead(table, tables)}")
    if table == "strategy" and key not in ("", "name") and not site:
        head, found = key_texts.of_strategy(key)
        head, whole = f'[strategy] name = "{key}": {head}', False
    else:
        head, found, whole = (
            (inspect.getdoc(tables[table]) or "").partition("\n")[0],
            key_texts.of_table(tables[table]),
            bool(key),
        )
    if whole:
        names = [k.name for k in found]
        found = [k for k in found if k.name == key]
        if not found:
            raise ConfigError(f"[{table}] has no {key!r}{check.nearest(key, names) or '; it has ' + ', '.join(names)}")
    if as_json:
        typer.echo(json.dumps({k.name: {"type": k.type, "default": k.default, "what": k.what} for k in found}))
        return
    typer.echo(head)
    for k in found:
        if whole:
            typer.echo(f"\n{k.name}: {k.type}; default: {k.default}\n{textwrap.fill(k.what, WIDTH)}")
        else:
            typer.echo(f"  {k.name:<20} {k.default:<16} {textwrap.shorten(k.headline, WIDTH, placeholder=' ...')}")


def _tables(*, site: bool) -> dict[str, type]:
    """The class of each table by its name."""
    from fedft.client.site_settings import SiteConfig
    from fedft.config import RunConfig

    return dict(typing.get_type_hints(SiteConfig if site else RunConfig))


def _instead(word: str, tables: typing.Mapping[str, type]) -> str:
    """The end of a message on a table that there is not: the key of that name, or what is near."""
    from fedft.cli import key_texts
    from fedft.config import OTHER_TOOLS

    if holders := [t for t, kind in tables.items() if word in {k.name for k in key_texts.of_table(kind)}]:
        return f"; {word} is a key: fedft explain {holders[0]}.{word}"
    if word in OTHER_TOOLS:
        return f"; another tool's {word} is {OTHER_TOOLS[word]} here"
    return check.nearest(word, tables) or f"; there are {', '.join(tables)}"
