"""A run file (TOML) becomes a checked `RunConfig`."""

import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from fedft import check, registry
from fedft.compression import codec_names
from fedft.config import DTYPE_ALIASES, DTYPES, RunConfig, Strategy, budget_of, instead_of
from fedft.data import labels, source_paths, template_checks
from fedft.errors import ConfigError
from fedft.models import tasks
from fedft.privacy.tables import check_privacy


def load(
    path: Path | None = None,
    overrides: Sequence[str] = (),
    *,
    tables: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
    where: str = "",
) -> RunConfig:
    """The checked config of the run file at `path` (None: defaults), with `table.key=value` overrides on top.

    `tables`, whose paths are as in the working folder, are laid over the file's first, key by key. Paths of data and
    model may use `$VARIABLES` and `~`; relative ones mean relative to the file where there is such a file, else to the
    working folder; those that are there become absolute. Raises ConfigError in one line.
    """
    found: dict[str, Any] = {}
    if path is not None:
        where = where or path.name
        found = read(path, "no such run file; `fedft simulate` without one runs the quickstart")
    over = {name: dict(table) for name, table in tables.items()}
    check_tables(RunConfig, over, where or "run", "a run file")
    _resolve_paths(over, Path(), where or "run")
    if "name" in (strategy := over.get("strategy", {})):
        found["strategy"] = strategy  # the options of another one are none of its
    for override in overrides:
        if override.startswith("strategy.name="):
            _apply(found, override)
    found = _for_strategy(found, where or "run")
    for name, table in over.items():  # behind the strategy's own tables, as what is said on the command line: it wins
        found[name] = {**found.get(name, {}), **table}
    for override in overrides:
        _apply(found, override)
    _resolve_paths(found, path.parent if path else Path(), where or "run")
    return from_dict(found, where=where or "run")


def read(path: Path, missing: str) -> dict[str, Any]:
    """The tables of the TOML file at `path`. Raises ConfigError in one line; `missing` says that there is no file."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))  # editors of Windows begin files with a mark
    except FileNotFoundError as e:
        raise ConfigError(f"{path}: {missing}") from e
    except IsADirectoryError as e:
        raise ConfigError(f"{path}: cannot be read: is a folder, wanted a TOML file") from e
    except OSError as e:
        raise ConfigError(f"{path}: cannot be read: {e.strerror}") from e
    except UnicodeDecodeError as e:
        raise ConfigError(f"{path}: cannot be read: not UTF-8 text, byte {e.start}: {e.reason}") from e
    except tomllib.TOMLDecodeError as e:
        raise ConfigError(f"{path}: not valid TOML: {e}") from e


def _resolve_paths(tables: dict[str, Any], folder: Path, where: str) -> None:
    for table, key in (("data", "train"), ("data", "test"), ("model", "id"), ("robust", "root")):
        if isinstance(found := tables.get(table), dict) and key in found:
            said = f"{where}: [{table}] {key}"
            found[key] = source_paths.resolved(found[key], folder, said, patterns=table != "model")
    clients = tables.get("clients")
    if isinstance(clients, dict) and isinstance(devices := clients.get("devices"), dict):
        said, traces = f"{where}: [clients.devices] availability", devices.get("availability")
        if isinstance(traces, str):
            devices["availability"] = source_paths.resolved(traces, folder, said, patterns=False)
    data = tables.get("data")
    if isinstance(data, dict) and isinstance(template := data.get("chat_template"), str):
        try:  # its text is the run's own from here on
            data["chat_template"] = template_checks.chat_template(template, folder)
        except ValueError as e:
            raise ConfigError(f"{where}: {e}") from e


def _apply(tables: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    *parents, last = key.strip().split(".")
    if not (equals and parents and last):
        raise ConfigError(f"--set {override!r}: wanted table.key=value, for instance local.steps=20")
    try:
        value = tomllib.loads(f"v = {text}")["v"]
    except tomllib.TOMLDecodeError:
        value = text  # a bare word is a string: strategy.name=fedit
    at = tables
    for p in parents:
        at = at.setdefault(p, {})
        if not isinstance(at, dict):
            raise ConfigError(f"--set {override!r}: {p!r} is not a table")
    at[last] = value


def from_dict(tables: Mapping[str, Any], *, where: str = "run") -> RunConfig:
    """The checked config of plain tables, which `where` calls. Raises ConfigError naming `where`, table and key."""
    tables = _for_strategy(tables, where)
    built: dict[str, Any] = {}
    for name, kind in typing.get_type_hints(RunConfig).items():
        table = tables.get(name, {})
        if name == "strategy":
            options = {k: v for k, v in table.items() if k != "name"}
            built[name] = Strategy(_typed(str, table.get("name", Strategy.name), f"{where}: [strategy] name"), options)
        else:
            built[name] = checked_table(kind, _of_before(name, table, where), f"{where}: [{name}]")
    model = built["model"]
    outputs = model.labels or (["value"] if model.problem_type == labels.REGRESSION else [])
    device = workers[0] if isinstance(workers := built["server"].workers, list) and workers else model.device
    dtype = DTYPE_ALIASES.get(model.dtype, model.dtype)
    built["model"] = replace(model, dtype=dtype, labels=outputs, device=device)
    config = RunConfig(**built)
    _check(config, where)
    return config


def _of_before(name: str, table: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    """A table without what run files of before had in it and is so now without being said."""
    if name != "server" or "mode" not in table:
        return table
    if table["mode"] != "local":
        wanted = 'workers = 2 (processes), with ray = "auto" beside it on a cluster of Ray'
        raise ConfigError(f"{where}: [server] mode = {check.quoted(table['mode'])} is no more; wanted {wanted}")
    return {key: value for key, value in table.items() if key != "mode"}


def _for_strategy(tables: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The tables with the chosen strategy's sub-tables merged in and those of other strategies left out."""
    check_tables(RunConfig, tables, where, "a run file")
    strategies = registry.strategies.names()
    chosen = tables.get("strategy", {}).get("name", Strategy.name)
    if isinstance(chosen, str) and chosen not in strategies and ":" not in chosen:
        raise ConfigError(f"{where}: [strategy] name: {registry.strategies.unknown(chosen)}")
    merged: dict[str, Any] = {}
    for name, table in tables.items():
        own = {k: v for k, v in table.items() if k in strategies and isinstance(v, Mapping)}
        merged[name] = {k: v for k, v in table.items() if k not in own} | dict(own.get(chosen, {}))
    return merged


def check_tables(kind: type, tables: Mapping[str, Any], where: str, what: str) -> None:
    """Return None if every one of the tables is a field of the dataclass `kind`, which is `what`, and a table.

    Raises ConfigError, beginning with `where`.
    """
    known = [f.name for f in fields(kind)]
    for name, table in tables.items():
        if name not in known:
            there = check.nearest(name, known) or f"; {what} has {', '.join(known)}"
            raise ConfigError(f"{where}: no table [{name}]{there}")
        if not isinstance(table, Mapping):
            raise ConfigError(f"{where}: {name} is a value, wanted a table [{name}]")


def checked_table(kind: type, table: Mapping[str, Any], where: str) -> Any:
    """The dataclass `kind` made of a table: types checked, defaults filled in.

    Raises ConfigError, beginning with `where`, for a key that is unknown or missing, or a value of another type.
    """
    hints = typing.get_type_hints(kind)
    for key in table:
        if key not in hints:
            raise ConfigError(f"{where} has no {key!r}{instead_of(key, kind)}")
    values = {k: _typed(hints[k], v, f"{where} {k}") for k, v in table.items()}
    missing = [f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING]
    for key in missing:
        if key not in values:
            raise ConfigError(f"{where} needs {key!r}")
    return kind(**values)


def _typed(hint: Any, value: Any, where: str) -> Any:
    """`value` as `check.typed` gives it; where the hint is a dataclass of ours, or a list of them, made of tables."""
    optional = typing.get_origin(hint) in (typing.Union, types.UnionType)
    for option in typing.get_args(hint) if optional else (hint,):
        if is_dataclass(option) and isinstance(option, type):
            return _inner_table(option, value, where)
        of = typing.get_args(option)
        if typing.get_origin(option) is list and is_dataclass(of[0]) and isinstance(value, list):
            return [_inner_table(of[0], one, f"{where}[{n}]") for n, one in enumerate(value)]
    try:
        return check.typed(hint, value, where)
    except ValueError as e:
        raise ConfigError(str(e)) from e


def _inner_table(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where} is {check.quoted(value)}, wanted a table")
    return checked_table(kind, value, where)


def _check_names(c: RunConfig) -> None:
    """Raise ValueError where a name is neither known nor "module:name"; nothing is imported."""
    chosen: list[tuple[str, registry.Registry, registry.Choice]] = [
        ("[data] partition", registry.partitioners, c.data.partition),
        ("[local] optimizer", registry.optimizers, c.local.optimizer),
        ("[model] adapter", registry.adapters, c.model.adapter),
        ("[local] objective", registry.objectives, c.local.objective),
        *(("[local] transforms", registry.transforms, choice) for choice in c.local.transforms),
        *(("[server] gates", registry.gates, choice) for choice in c.server.gates),
        *(("[eval] metrics", registry.metrics, choice) for choice in c.eval.metrics),
        *(("[server] loggers", registry.loggers, choice) for choice in c.server.loggers),
        *(("[clients] plan", registry.planners, choice) for choice in (c.clients.plan,) if choice is not None),
    ]
    for key, known, choice in chosen:
        name = registry.named(choice, key)[0]
        if ":" not in name and name not in known:
            raise ValueError(f"{key}: {known.unknown(name)}")


def _check_values(c: RunConfig) -> None:
    """Raise ValueError where a value is none that its key may have, whatever the others are."""

    def of(table: str, *keys: str) -> dict[str, Any]:
        """Those values of a table that are said, under the names that a message gives them."""
        values = {f"[{table}] {key}": getattr(getattr(c, table), key) for key in keys}
        return {name: value for name, value in values.items() if value is not None}

    check_privacy(c.privacy, c.robust, c.audit)
    if isinstance(c.server.workers, int):
        check.at_least(1, **of("server", "workers"))
    elif c.server.workers is not None and not all(c.server.workers or [""]):
        raise ValueError(f"[server] workers is {c.server.workers}, wanted a number or devices, as ['cuda:0', 'cuda:1']")
    if c.server.ray is not None and c.server.workers is None:
        raise ValueError("[server] ray: workers says how many there are, or their devices; it is left out")
    if isinstance(c.server.together, int):
        check.at_least(1, **of("server", "together"))
    if c.local.micro_batch != "auto":
        check.at_least(1, **of("local", "micro_batch"))
    if c.server.budget is not None:
        budget_of(c.server.budget)
    check.at_least(1, **of("local", "steps", "batch_size", "threads"), **of("server", "rounds", "attempts"))
    check.at_least(1, **of("eval", "every", "batch_size", "generate_tokens", "clients", "max_rows"))
    check.at_least(1, **of("model", "repair_rank"))
    check.at_least(1, **of("server", "patience"))
    check.at_least(0, **of("server", "min_delta"))
    check.at_least(1, **of("limits", "max_num_examples", "quarantine_after", "max_bytes"))
    check.at_least(1, **of("data", "min_rows", "clients", "max_prompt"), **of("clients", "per_round"))
    if c.data.max_length != "auto":
        check.at_least(2, **of("data", "max_length"))  # the first token is never learned
    check.at_least(0, **of("local", "learning_rate", "weight_decay", "momentum"), **of("server", "grace_s"))
    check.between(0, 2**53 - 1, **of("server", "seed"))  # what JSON keeps exactly
    check.between(0, 1, **of("server", "quorum"), **of("data", "holdout"), **of("model", "lora_dropout"))
    check.between(0, 1, **of("local", "warmup"))
    check.above(0, **of("local", "learning_rate_decay", "max_grad_norm"), **of("server", "deadline_s"))
    check.above(0, **of("data", "alpha"), **of("limits", "norm_factor", "max_norm"), **of("model", "lora_alpha"))
    check.above(0, **of("local", "neftune_alpha", "epochs"))
    check.between(0.5, 1, **of("limits", "max_share"))


def _check(c: RunConfig, where: str) -> None:
    try:
        task = tasks.of(c.model.task)
        check.one_of(DTYPES, **{"[model] dtype": c.model.dtype})
        _check_names(c)
        for way, read, name in (("up", codec_names.parse, c.codec.up), ("down", codec_names.downloads, c.codec.down)):
            try:
                read(name)
            except ValueError as e:
                raise ValueError(f"[codec] {way}: {e}") from e
        _check_values(c)
        if c.local.epochs is not None and (c.server.budget or "").startswith("steps"):
            raise ValueError("[server] budget: steps are unlike from client to client where [local] epochs says them")
        if not c.model.targets or (isinstance(c.model.targets, list) and "" in c.model.targets):
            raise ValueError(f"[model] targets is {c.model.targets!r}, wanted 'all-linear' or name endings")
        for target in [c.model.targets] if isinstance(c.model.targets, str) else c.model.targets:
            if target.startswith("re:"):
                check.expression("[model] targets", target.removeprefix("re:"))
        if c.model.layers is not None:
            check.number_ranges("[model] layers", c.model.layers)
        if any(not n or n.startswith("re:") for n in c.model.modules_to_save):
            raise ValueError(
                f"[model] modules_to_save is {c.model.modules_to_save!r}, wanted names or endings of names"
            )
        template_checks.check_forms(c.data, c.model.task, registry.named(c.local.objective, "objective")[0])
        labels.check_names(c.model, c.data)
        if not c.ranks():
            raise ValueError("[clients] rank: expected at least one rank, got an empty list")
        for rank in c.ranks():
            check.at_least(1, **{"[clients] rank": rank})
        if not task.generates and c.eval.rouge:
            raise ValueError("[eval] rouge compares generated text; task sequence-classification generates none")
        if c.eval.prompts and (not task.generates or "" in c.eval.prompts):
            wanted = "texts that are not empty" if task.generates else "none: sequence-classification generates no text"
            raise ValueError(f"[eval] prompts is {check.quoted(c.eval.prompts)}, wanted {wanted}")
        whole = "modules_to_save" if c.model.modules_to_save else "classifiers' heads"
        if (c.model.modules_to_save or not task.generates) and c.model.dtype not in ("auto", "float32"):
            raise ValueError(f"{whole} are trained in float32; got dtype {c.model.dtype!r}")
    except ValueError as e:
        raise ConfigError(f"{where}: {e}") from e


def load_options(overrides: Sequence[str]) -> dict[str, Any]:
    """{option: value} of `option=value` texts, values read as TOML. Raises ConfigError for a text of another form.

    >>> load_options(["mu=0.1", "on=fedit", "ranks=[4, 8]"])
    {'mu': 0.1, 'on': 'fedit', 'ranks': [4, 8]}
    """
    tables: dict[str, Any] = {}
    for override in overrides:
        if "=" not in override:
            raise ConfigError(f"--set {override!r}: wanted option=value")
        _apply(tables, f"options.{override}")
    return tables.get("options", {})
