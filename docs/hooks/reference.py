"""Pages made of the code's own words, at every build: keys, strategies, commands and what Python callers import.

They say what `fedft explain`, `fedft COMMAND --help` and `help(fedft.simulate)` say, because they are read from the
same places. Texts are Markdown already: an indented block of a docstring is a block of code.
"""

import inspect
import re
import textwrap
import typing
from collections.abc import Iterator
from importlib import import_module
from typing import Any

FOR_PLUG_INS = {
    "fedft.recipe": "What a strategy is made of",
    "fedft.contract": "What plug-ins and the engine agree on",
    "fedft.testing": "Contracts to run in your own tests",
}


def on_files(files: Any, config: Any) -> Any:
    """The site's files, and a page for each of `PAGES`."""
    from mkdocs.structure.files import File

    for name, write in PAGES.items():
        files.append(File.generated(config, f"reference/{name}.md", content=write()))
    return files


def keys() -> str:
    """Every table and key of a run file."""
    from fedft.config import RunConfig

    said = "`fedft explain local.steps` says the same. Unknown keys are refused with the nearest known one."
    return f"# Keys of a run file\n\n{said}\n\n{_tables(RunConfig)}"


def site_keys() -> str:
    """Every table and key of a site file."""
    from fedft.client.site_settings import SiteConfig

    return "# Keys of a site file\n\nOn the command line: `fedft explain --site policy`.\n\n" + _tables(SiteConfig)


def strategies() -> str:
    """Every built-in strategy: its formulas and paper, and its options."""
    from fedft import registry
    from fedft.cli import key_texts

    said = ["# Every strategy\n", "The formulas are those of the files in `strategies/`; `STRATEGIES.md` compares.\n"]
    for name in registry.BUILT_IN:
        headline, options = key_texts.of_strategy(name)
        module = inspect.getmodule(registry.strategies.load(name))
        said += [
            f"## `{name}` {{ #{name} }}\n",
            _shifted(inspect.getdoc(module) or ""),
            f"\n**As a factory.** {headline}\n",
        ]
        said += [_listing(name, options) if options else "It has no options.\n"]
    return "\n".join(said)


def commands() -> str:
    """Every command and its options."""
    from typer.main import get_command

    from fedft.cli import main

    said = ["# Commands\n", "`fedft COMMAND --help` says the same, with the defaults of your version.\n"]
    for name, command in _leaves("fedft", get_command(main.app)):
        said += [f"## `{name}`\n", inspect.cleandoc(command.help or "") + "\n"]
        rows = [_parameter(p) for p in command.params if p.name != "help"]
        if rows:
            said += ["| given | is |\n|---|---|", *rows, ""]
    return "\n".join(said)


def python() -> str:
    """What `import fedft` gives, and the modules that plug-ins are written with."""
    import fedft

    said = ["# Python\n", "`import fedft` is quick: what is heavy comes in with the first call that needs it.\n"]
    for name in sorted(fedft.__all__):
        value = getattr(fedft, name)
        said += _entry(f"fedft.{name}", value, level=2)
    for module, title in FOR_PLUG_INS.items():
        found = import_module(module)
        said += [f"## {title}: `{module}`\n", _shifted(inspect.getdoc(found) or "") + "\n"]
        said += [line for name in _public(found) for line in _entry(f"{module}.{name}", getattr(found, name), level=3)]
    return "\n".join(said)


PAGES = {"keys": keys, "site-keys": site_keys, "strategies": strategies, "commands": commands, "python": python}


def _tables(config: type) -> str:
    """A heading, what it says of itself, and the keys, for each table of a run file or a site file."""
    from fedft.cli import key_texts

    said = []
    for table, kind in typing.get_type_hints(config).items():
        said += [
            f"## [{table}] {{ #{table} }}\n",
            _shifted(inspect.getdoc(kind) or "") + "\n",
            _listing(table, key_texts.of_table(kind)),
        ]
    return "\n".join(said)


def _listing(owner: str, keys: list[Any]) -> str:
    """Each key with its type, its default and what it does; `owner.key` is a place that can be linked to."""
    return "\n".join(f"`{k.name}`{{ #{owner}.{k.name} }} {k.type}; {_default(k)}\n:   {_plain(k.what)}\n" for k in keys)


def _default(key: Any) -> str:
    return key.default if key.default in ("needed", "left out") else f"default `{key.default}`"


def _plain(text: str) -> str:
    """A text on one line; outside of backticks its stars and angle brackets are only signs."""
    parts = " ".join(text.split()).split("`")
    return "`".join(re.sub(r"([*<])", r"\\\1", part) if n % 2 == 0 else part for n, part in enumerate(parts))


def _cell(text: str) -> str:
    """A text inside a table: its bars end no cell."""
    return _plain(text).replace("|", "\\|")


def _leaves(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    """(words, command) of all commands below one, in order of names."""
    below = getattr(command, "commands", None)
    if below is None:
        yield name, command
        return
    for word in sorted(below):
        if not below[word].hidden:
            yield from _leaves(f"{name} {word}", below[word])


def _parameter(parameter: Any) -> str:
    """A row: an argument by its name, an option by its words and what stands behind them."""
    given = parameter.human_readable_name
    if parameter.param_type_name == "option":
        value = "" if parameter.is_flag else f" {parameter.metavar or parameter.type.name.upper()}"
        given = ", ".join(parameter.opts) + value
    return f"| `{_cell(given)}` | {_cell(parameter.help or '')} |"


def _public(module: Any) -> list[str]:
    """What a module gives: its `__all__`, else its own classes and functions."""
    if names := getattr(module, "__all__", None):
        return sorted(names)
    own = {n: v for n, v in vars(module).items() if getattr(v, "__module__", None) == module.__name__}
    return sorted(n for n, v in own.items() if not n.startswith("_") and (inspect.isclass(v) or inspect.isfunction(v)))


def _entry(name: str, value: Any, *, level: int) -> list[str]:
    """A heading, the signature, the docstring, and of a class its public methods and properties."""
    short = name.rpartition(".")[2]
    said = [f"{'#' * level} `{name}` {{ #{name} }}\n"]
    if callable(value):
        said += [f"```text\n{_signature(short, value)}\n```\n"]
    said += [_prose(inspect.getdoc(value) or "") + "\n"]
    if inspect.isclass(value):
        for member, of in vars(value).items():
            doc = inspect.getdoc(of) if inspect.isfunction(of) or isinstance(of, property) else None
            if doc and not member.startswith("_"):
                sign = member if isinstance(of, property) else _signature(member, of)
                said += [f"```text\n{sign}\n```\n", _prose(doc) + "\n"]
    return said


def _signature(name: str, value: Any) -> str:
    """How it is called, on one line where it fits; its name alone where Python does not say."""
    try:
        found = inspect.signature(value)
    except (ValueError, TypeError):
        return name
    parts = [re.sub(r"\b(?:\w+\.)+(?=[A-Za-z])", "", str(p)) for p in found.parameters.values() if p.name != "self"]
    whole = f"{name}({', '.join(parts)})"
    return whole if len(whole) <= 88 else f"{name}(\n" + "".join(f"    {p},\n" for p in parts) + ")"


def _prose(doc: str) -> str:
    """A docstring in Google's style as Markdown: sections in bold, their entries as a list."""
    text = re.sub(r"^(Args|Raises|Returns|Guarantees|Attributes): *\n?", r"\n**\1**\n\n", doc, flags=re.MULTILINE)
    before, *sections = re.split(r"(?=^\*\*(?:Args|Raises|Attributes)\*\*$)", text, flags=re.MULTILINE)
    return _shifted(before) + "".join(_listed(section) for section in sections)


def _listed(section: str) -> str:
    """`    name: text` as entries of a list; what follows an entry further in is of it."""
    heading, _, body = section.partition("\n")
    lines = []
    for line in textwrap.dedent(body.strip("\n")).splitlines():
        entry = re.match(r"(\*{0,2}[\w, ]+): (.*)", line)
        lines += [f"- `{entry[1]}`: {entry[2]}"] if entry else [f"  {line.strip()}" if line.startswith(" ") else line]
    return f"\n{heading}\n\n" + "\n".join(lines) + "\n"


def _shifted(doc: str) -> str:
    """A docstring whose indented blocks are fenced, so that Markdown leaves their signs alone."""
    lines, inside = [], False
    for line in doc.splitlines():
        indented = line.startswith("    ")
        if indented and not inside and (not lines or not lines[-1].strip()):
            lines.append("```text")
            inside = True
        elif inside and line.strip() and not indented:
            while not lines[-1].strip():
                lines.pop()
            lines += ["```", ""]
            inside = False
        lines.append(line[4:] if inside else line)
    return "\n".join([*lines, "```"] if inside else lines)
