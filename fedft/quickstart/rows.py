"""The quickstart's task: write the docstring of a function or class of Python's standard library, given its signature.

    prompt      the line `def get_event_loop()`, then three double quotes on a line of their own
    response    `Return an asyncio event loop.` and the closing quotes

One client per package. The rows are read from the running interpreter's own source files with `ast`, so nothing is
downloaded, nothing is shipped and no module is imported. They differ a little from one Python version to the next.
"""

import ast
import sysconfig
import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from fedft.errors import DataError

DEFAULT = ("asyncio", "email", "unittest", "logging")  # packages that even slim builds of Python carry
MAX_RESPONSE_CHARACTERS = 160  # of the paragraph, before the closing quotes
MIN_RESPONSE_CHARACTERS = 15  # shorter ones are stubs such as "See RFC."
QUOTES = '"""'

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def rows(packages: Sequence[str] = DEFAULT) -> list[dict[str, Any]]:
    """The quickstart's records: one for each documented class and function of some standard-library packages.

    A record has `client` (the package), `prompt` (signature and opening quotes) and `response` (the first paragraph of
    the docstring and closing quotes). The order is that of `packages`, then of file paths, then of lines: the same in
    every call on one Python. Test folders, docstrings of less than 15 characters and repetitions of a row within its
    package are left out. Raises DataError for a package of which no source file is there.
    """
    found = ((package, *row) for package in packages for path in _sources(package) for row in _documented(path))
    return [dict(zip(("client", "prompt", "response"), row, strict=True)) for row in dict.fromkeys(found)]


def prose() -> str:
    """All docstrings of the standard library's single-file modules: running text for interpreters without pydoc_data.

    The packages are left out, so that no client's rows are among it.
    """
    texts = []
    for path in sorted(_library().glob("[a-z]*.py")):
        tree = _parsed(path)
        nodes = [tree, *_definitions(tree)]
        texts += [text for node in nodes if (text := ast.get_docstring(node))]
    return "\n\n".join(texts)


def _library() -> Path:
    """The folder of the running interpreter's standard library."""
    return Path(sysconfig.get_path("stdlib"))


def _sources(package: str) -> list[Path]:
    """The source files of a package in the order of their paths, without its tests; DataError if there is none."""
    if not package.isidentifier():
        raise DataError(f"{package!r} is not the name of a package of the standard library")
    folder = _library() / package
    files = [path for path in folder.rglob("*.py") if not {"test", "tests"} & set(path.relative_to(folder).parts)]
    if not files and folder.with_suffix(".py").is_file():
        files = [folder.with_suffix(".py")]
    if not files:
        raise DataError(f"this Python's standard library has no source files of {package!r} ({_library()})")
    return sorted(files, key=lambda path: path.as_posix())


@cache  # parsing takes a second for the default packages; a race reads them once for each of its runs
def _documented(path: Path) -> tuple[tuple[str, str], ...]:
    """(prompt, response) of every documented class and function of a source file."""
    found = []
    for node in _definitions(_parsed(path)):
        paragraph = _first_paragraph(ast.get_docstring(node) or "")
        if len(paragraph) >= MIN_RESPONSE_CHARACTERS:
            found.append((f"{_signature(node)}\n{QUOTES}", paragraph + QUOTES))
    return tuple(found)


def _parsed(path: Path) -> ast.Module:
    """The syntax tree of a source file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an invalid escape in somebody's string is not for our users to hear about
        return ast.parse(path.read_bytes())


def _definitions(tree: ast.Module) -> list[Definition]:
    """The classes and functions of a syntax tree, at any depth, in the order of their lines."""
    found = [node for node in ast.walk(tree) if isinstance(node, Definition)]
    return sorted(found, key=lambda node: (node.lineno, node.col_offset))


def _signature(node: Definition) -> str:
    """The first line of a definition, without its colon and its annotation of a result."""
    if isinstance(node, ast.ClassDef):
        return f"class {node.name}"
    keyword = "async def" if isinstance(node, ast.AsyncFunctionDef) else "def"
    return f"{keyword} {node.name}({ast.unparse(node.args)})"


def _first_paragraph(docstring: str) -> str:
    """The first paragraph of a docstring as one line, cut behind a whole word at MAX_RESPONSE_CHARACTERS."""
    line = " ".join(docstring.split("\n\n", 1)[0].split())
    if len(line) <= MAX_RESPONSE_CHARACTERS:
        return line
    return line[: MAX_RESPONSE_CHARACTERS + 1].rpartition(" ")[0] or line[:MAX_RESPONSE_CHARACTERS]
