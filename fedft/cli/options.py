"""Options that many commands have. Which code outside fedft one may import: what stands on the command line itself."""

from typing import Annotated

import typer

from fedft.cli import completion


def named(value: str | list[str] | None) -> str | list[str] | None:
    """Callback of an option or argument in which "module:name" may stand: whoever types one wants it to run."""
    if value:
        from fedft import allowed_code

        allowed_code.allow([value] if isinstance(value, str) else value)
    return value


Allow = Annotated[
    list[str] | None,
    typer.Option(
        "--allow", metavar="MODULE:NAME", callback=named, help="Code that the run file names and you trust; repeatable."
    ),
]
SetKeys = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        callback=named,
        autocompletion=completion.set_key,
        help="Override, e.g. strategy.name=ffa_lora.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]
