"""The house: who imports whom, what is packaged, what the front door costs, and that run files explain their keys."""

import ast
import inspect
import re
import shutil
import subprocess
import sys
import tokenize
import tomllib
import zipfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import get_type_hints

import pytest

from fedft import registry, run_file, strategies
from fedft.config import RunConfig

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("fedft", "server", "client", "strategies", "simulations", "benchmarks")
NOT_SHIPPED = ROOT / "benchmarks" / "deployment"  # scripts of a checkout
FILES = sorted(p for room in ROOMS for p in (ROOT / room).rglob("*.py") if NOT_SHIPPED not in p.parents)
RUN_FILES = sorted((ROOT / "simulations").rglob("*.toml"))

MAY_IMPORT = {
    "fedft": {"fedft"},
    "strategies": {"fedft", "strategies"},
    "client": {"fedft", "strategies", "client"},
    "server": {"fedft", "strategies", "server"},
    "simulations": set(ROOMS) - {"benchmarks"},
    "benchmarks": set(ROOMS),
}
# The front door may import every room, what measures by `bench` only; all of it late.
ROOMS_TOO = {
    "fedft/cli/admin.py": {"server"},
    "fedft/cli/audit.py": {"simulations"},
    "fedft/cli/main.py": set(ROOMS) - {"benchmarks"},
    "fedft/cli/bench.py": {"benchmarks"},
    "fedft/cli/checks_privacy.py": {"client", "server"},
    "fedft/cli/checks_site.py": {"client"},
    "fedft/cli/deploy.py": set(ROOMS) - {"benchmarks"},
    "fedft/cli/doctor.py": set(ROOMS) - {"benchmarks"},
    "fedft/cli/explain.py": {"client"},
    "fedft/cli/finished.py": {"simulations"},
    "fedft/cli/keys.py": {"client"},
    "fedft/cli/kinds.py": {"strategies"},
    "fedft/cli/planned.py": set(ROOMS) - {"benchmarks"},
    "fedft/cli/probe.py": {"client"},
    "fedft/cli/race.py": {"simulations"},
    "fedft/cli/records.py": {"client", "server"},
    "fedft/cli/site.py": {"client"},
}
# Packages whose __init__ is imported for what it holds.
GIVE_NAMES = {"fedft.contract", "fedft.quickstart", "fedft.strategies"}
FLAT = 14  # files that may lie flat in fedft/: the nouns that everybody shares

# Heavy libraries and the folders or files that may import them; benches import what the published ways use.
DOORS = {
    "flwr": {"fedft/carriers/flower/"},
    "transformers": {"fedft/models/", "fedft/quickstart/", "fedft/training/trainer_turns.py"},
    "ray": {"fedft/carriers/fleet/actors.py"},
    "peft": {"fedft/models/", "fedft/adapters/"},
    "dp_accounting": {"fedft/privacy/accountant.py"},
    "datasets": {"fedft/data/", "fedft/training/trainer_turns.py"},
    "flwr_datasets": {"fedft/data/"},
    "lm_eval": {"simulations/harness_tasks.py"},
    "matplotlib": {"fedft/reports/plots.py"},
    "numba": {
        "fedft/arithmetic/",
        "fedft/compression/rans_numba.py",
        "fedft/randomness/hadamard_numba.py",
        "fedft/randomness/hadamard_numba_copies.py",
    },
    "huggingface_hub": {"fedft/models/"},
    "mlflow": {"fedft/reports/loggers/mlflow.py"},
    "opentelemetry": {"fedft/reports/loggers/otel.py"},
    "trackio": {"fedft/reports/loggers/trackio.py"},
    "triton": {"fedft/randomness/hadamard_triton.py"},
    "wandb": {"fedft/reports/loggers/wandb.py"},
}

# Modules that run what they read, and calls that do.
UNSAFE_MODULES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "yaml"}
UNSAFE_CALLS = {"eval", "exec", "torch.load", "yaml.load", "numpy.load", "np.load", "pandas.read_pickle", "os.system"}

# Keys whose name says all there is to say.
PLAIN_KEYS: set[str] = set()


def _of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def _imports(path: Path) -> tuple[tuple[str, bool], ...]:
    """(dotted name, whether it is inside a function) of all that a file imports when it runs."""
    package = _module(path).split(".")[: None if path.name == "__init__.py" else -1]

    def walk(node: ast.AST, late: bool) -> Iterator[tuple[str, bool]]:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            return
        if isinstance(node, ast.Import):
            yield from ((alias.name, late) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            start = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((f"{start}.{alias.name}", late) for alias in node.names)
        for child in ast.iter_child_nodes(node):
            yield from walk(child, late or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))

    return tuple(walk(_tree(path), False))


def _module(path: Path) -> str:
    """The dotted name of a file, which does not depend on whether the rooms stand beside fedft/ or inside it."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts if parts[0] == "fedft" else ("fedft", *parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _room(name: str) -> str | None:
    """The room that `fedft.<...>` belongs to; None for other people's packages."""
    first, _, rest = name.partition(".")
    if first != "fedft":
        return None
    second = rest.partition(".")[0]
    return second if second in ROOMS else "fedft"


def test_imports_flow_one_way() -> None:
    """fedft <- strategies <- client, server <- simulations <- benchmarks; client and server never meet; nobody imports
    the door."""
    for path in FILES:
        allowed = MAY_IMPORT[path.relative_to(ROOT).parts[0]] | ROOMS_TOO.get(_of(path), set())
        wrong = [name for name, _ in _imports(path) if (room := _room(name)) and room not in allowed]
        assert not wrong, f"{_of(path)} imports {wrong}; it may import {sorted(allowed)}"
        door = any(f"{name}.".startswith("fedft.cli.") for name, _ in _imports(path))
        inside = _of(path) == "fedft/__main__.py" or path.parent.name == "cli"
        assert inside or not door, f"{_of(path)} imports the front door, which nobody does"


def test_no_circle() -> None:
    """No file needs itself to be imported, by whatever way, late imports included."""
    files = {_module(p): p for p in FILES}
    needs = {}
    for name, path in files.items():
        found = {n if n in files else n.rpartition(".")[0] for n, _ in _imports(path)} & files.keys()
        # a package's own docstring is not what is needed of it, except where a package gives names
        needs[name] = {n for n in found - {name} if files[n].name != "__init__.py" or n in GIVE_NAMES}
    while leaves := {n for n, wanted in needs.items() if not wanted & needs.keys()}:
        needs = {n: wanted for n, wanted in needs.items() if n not in leaves}
    assert not needs, f"a circle among {sorted(needs)}"


def test_few_files_lie_flat() -> None:
    flat = sorted(p.name for p in (ROOT / "fedft").glob("*.py"))
    assert len(flat) <= FLAT, f"{len(flat)} files lie flat in fedft/: {flat}; each belongs into a room"


def test_every_room_says_what_is_in_it() -> None:
    silent = [_of(p) for p in FILES if p.name == "__init__.py" and len(ast.get_docstring(_tree(p)) or "") <= 40]
    assert not silent


def test_the_tests_mirror_the_rooms() -> None:
    """`tests/wire/test_messages.py` tests `fedft/wire/messages.py`; what crosses rooms has rooms of its own."""
    rooms = {p.parent.relative_to(ROOT).as_posix().removeprefix("fedft/") for p in FILES}
    # docs/ is no room: it is no code of fedft's, but its pages are run
    crossing = {"house", "faults", "attack", "cases", "fixtures", "support", "plugin_example", "shipping", "docs"}
    folders = {p.parent.relative_to(ROOT / "tests").as_posix() for p in (ROOT / "tests").rglob("test_*.py")}
    strange = {f for f in folders - rooms - crossing - {"."} if not f.startswith("plugin_example")}
    assert not strange, f"{sorted(strange)} under tests/ are no rooms"


def test_rooms_are_never_imported_as_top_level_packages() -> None:
    """Their names begin with `fedft.`."""
    wrong = [(_of(p), name) for p in FILES for name, _ in _imports(p) if name.partition(".")[0] in ROOMS[1:]]
    assert not wrong


def test_the_shared_room_reaches_other_rooms_only_late() -> None:
    early = [(file, n) for file in ROOMS_TOO for n, late in _imports(ROOT / file) if not late and _room(n) in ROOMS[1:]]
    assert not early, f"{early}: import it where it is used"


@pytest.mark.parametrize("library", DOORS)
def test_heavy_libraries_enter_by_their_doors(library: str) -> None:
    shared = [p for p in FILES if p.parent != ROOT / "benchmarks"]
    users = {_of(p) for p in shared if any(name.partition(".")[0] == library for name, _ in _imports(p))}
    wrong = sorted(u for u in users if not any(u == d or (d.endswith("/") and u.startswith(d)) for d in DOORS[library]))
    assert not wrong, f"{library} is imported by {wrong}, not only by its doors {sorted(DOORS[library])}"
    unused = sorted(d for d in DOORS[library] if not any(u.startswith(d) for u in users))
    assert not unused, f"{library}: nobody uses the doors {unused}"


def test_nothing_runs_what_it_reads() -> None:
    """No pickle in any form, no eval: what comes from a peer or a disk is parsed, never executed."""
    for path in FILES:
        imported = {name.partition(".")[0] for name, _ in _imports(path)} & UNSAFE_MODULES
        assert not imported, f"{_of(path)} imports {imported}"
        calls = [node for node in ast.walk(_tree(path)) if isinstance(node, ast.Call)]
        unsafe = [f"{_of(path)}:{c.lineno} {ast.unparse(c.func)}" for c in calls if ast.unparse(c.func) in UNSAFE_CALLS]
        assert not unsafe


def _loaded_by(code: str, tmp_path: Path) -> tuple[set[str], float]:
    """(heavy modules in memory after `code` ran in a fresh Python, its seconds without Python's own start)."""
    before = "import sys, time; began = time.perf_counter()"
    after = """took = time.perf_counter() - began
sys.stderr.write(" ".join({name.partition(".")[0] for name in sys.modules}) + "\\n" + str(took))"""
    timed = "\n".join((before, code, after))
    done = subprocess.run([sys.executable, "-c", timed], cwd=tmp_path, capture_output=True, text=True, check=True)
    modules, seconds = done.stderr.strip().splitlines()[-2:]
    heavy = {"torch", "transformers", "peft", "flwr", "datasets", "numpy", "pandas", "numba", "tensorboard", "ray"}
    return set(modules.split()) & heavy, float(seconds)


def test_import_is_cheap(tmp_path: Path) -> None:
    heavy, seconds = _loaded_by("import fedft", tmp_path)
    assert not heavy
    assert seconds < 1


def test_help_is_cheap(tmp_path: Path) -> None:
    """Half a second is the aim; the bound leaves room for a busy machine."""
    heavy, seconds = _loaded_by(
        "import sys; sys.argv = ['fedft', '--help']\nfrom fedft.cli.main import main\n"
        "try: main()\nexcept SystemExit: pass",
        tmp_path,
    )
    assert not heavy
    assert seconds < 3


def test_the_wheel_holds_the_package_and_nothing_else(tmp_path: Path) -> None:
    source, out = tmp_path / "source", tmp_path / "wheels"
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        source.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, source)
    for name in (*ROOMS, "tests"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--no-build-isolation", "--wheel-dir", str(out), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = out.glob("fedft-*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name.partition("/")[0] for name in names} == {
        "fedft",
        wheel.name.removesuffix("-py3-none-any.whl") + ".dist-info",
    }
    inside = {_of(p) if p.is_relative_to(ROOT / "fedft") else f"fedft/{_of(p)}" for p in (*FILES, *RUN_FILES)}
    assert {n for n in names if n.startswith("fedft/")} == inside | {"fedft/py.typed", "fedft/client/site.toml"}
    assert "fedft/simulations/quickstart.toml" in names


@pytest.mark.parametrize("path", RUN_FILES, ids=_of)
def test_every_run_file_loads(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in re.findall(r"\$\{(\w+)\}", path.read_text(encoding="utf-8")):
        monkeypatch.setenv(variable, str(tmp_path))
    run_file.load(path)


def _documented_keys() -> set[str]:
    """`table.key` of every field that a docstring follows."""
    found, tables = set(), {kind.__name__: table for table, kind in get_type_hints(RunConfig).items()}
    for node in ast.parse((ROOT / "fedft" / "config.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef) and node.name in tables:
            for line, following in zip(node.body, node.body[1:], strict=False):
                if isinstance(line, ast.AnnAssign) and isinstance(following, ast.Expr):
                    found.add(f"{tables[node.name]}.{ast.unparse(line.target)}")
    return found


def _documented_options() -> set[str]:
    """`strategy.option` of every option in the docstring of a built-in factory."""
    docs = [inspect.getdoc(strategies.load(name)) or "" for name in registry.BUILT_IN]
    return {f"strategy.{option}" for doc in docs for option in re.findall(r"^    (\w+): ", doc, re.MULTILINE)}


@pytest.mark.parametrize("path", RUN_FILES, ids=_of)
def test_every_key_of_a_run_file_is_explained(path: Path) -> None:
    """By a comment on its line, above it, or on its table; else where it is declared, in config.py or the strategy."""
    explained = _documented_keys() | _documented_options() | PLAIN_KEYS
    table, table_commented, above, missing = "", False, False, []
    on_one_line = re.sub(r'""".*?"""', '""', path.read_text(encoding="utf-8"), flags=re.DOTALL)
    for line in on_one_line.splitlines():
        code, commented = _split_comment(line)
        if head := re.fullmatch(r"\[([\w.\-\"]+)\]", code):
            table, table_commented = head[1], commented or above
        elif key := re.match(r"([\w\-]+)\s*=", code):
            name = f"{table.partition('.')[0]}.{key[1]}"
            if not (commented or above or table_commented or name in explained):
                missing.append(f"[{table}] {key[1]}")
        above = commented and not code
    assert not missing, f"nothing explains {missing} of {path.name}"


def _split_comment(line: str) -> tuple[str, bool]:
    """(what stands before the comment, whether there is one); a # inside quotes is none."""
    found = re.match(r"""((?:[^"'#]|"(?:\\.|[^"\\])*"|'[^']*')*)(#.*)?$""", line)
    assert found, f"not a line of TOML that this test reads: {line}"
    return found[1].strip(), bool(found[2])


def test_every_dependency_is_pinned() -> None:
    """In constraints.txt, exactly and without an address: also those of the optional extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *(d for extra in project["optional-dependencies"].values() for d in extra)]
    names = {_canonical(re.split(r"[\[<>=!~; ]", d)[0]) for d in wanted}
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9.\-]+==[\w.]+", pin) for pin in pins)
    assert names <= {_canonical(pin.partition("==")[0]) for pin in pins}


def test_the_pins_of_the_loggers_are_those_of_everything() -> None:
    constraints = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = (ROOT / "tests/reports/loggers-requirements.txt").read_text(encoding="utf-8").splitlines()
    own = {pin for pin in pins if not pin.startswith("#")}
    assert {_canonical(pin.partition("==")[0]) for pin in own} >= {"wandb", "mlflow-skinny", "trackio"}
    assert own <= set(constraints)


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_file_is_text_in_utf8() -> None:
    for path in FILES:
        with tokenize.open(path) as file:
            assert file.encoding == "utf-8"
