"""Every public function, class and method says what it is, without its class or its caller beside it."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("fedft", "server", "client", "strategies", "simulations", "benchmarks")
FILES = sorted(p for room in ROOMS for p in (ROOT / room).rglob("*.py"))


def _of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _undocumented(source: str) -> Iterator[str]:
    """`line name` of every public class, function and method without a docstring.

    What is inside a function, or in a class whose name begins with an underscore, is nobody else's to call.
    """

    def walk(body: list[ast.stmt], prefix: str) -> Iterator[str]:
        for node in body:
            named = isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            if not named or node.name.startswith("_"):
                continue
            if not ast.get_docstring(node):
                yield f"{node.lineno} {prefix}{node.name}"
            if isinstance(node, ast.ClassDef):
                yield from walk(node.body, f"{node.name}.")

    yield from walk(ast.parse(source).body, "")


def test_every_public_name_has_a_docstring() -> None:
    for path in FILES:
        missing = list(_undocumented(path.read_text(encoding="utf-8")))
        assert not missing, f"{_of(path)}: no docstring at lines {missing}"


def test_what_has_no_docstring_is_found() -> None:
    source = """
class A:
    def f(self): pass
    def _g(self): pass
def h():
    "Says what it returns."
    def inside(): pass
class _B:
    def f(self): pass
async def k(): pass
"""
    assert list(_undocumented(source)) == ["2 A", "3 A.f", "10 k"]
