"""A run file (TOML) becomes a checked `RunConfig`."""

import tomllib
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import Any

from fedft import check, registry
from fedft.compression import codec_names
from fedft.config import DTYPE_ALIASES, DTYPES, RunConfig, Strategy, budget_of
from fedft.data import labels, source_paths, template_checks
from fedft.errors import ConfigError
from fedft.models import tasks


def load(path: Path | None = None, overrides: Sequence[str] = (), *, where: str = "") -> RunConfig:
    """The checked config of the run file at `path` (None: defaults), with `table.key=value` overrides on top.

    Paths of data and model may use `$VARIABLES` and `~`; relative ones mean relative to the file where there is such a
    file, else to the working folder; those that are there become absolute. Raises ConfigError in one line.
    """
    tables: dict[str, Any] = {}
    if path is not None:
        where = where or path.name
        tables = read(path, "no such run file; `fedft simulate` without one runs the quickstart")
    for override in overrides:
        if override.startswith("strategy.name="):
            _apply(tables, override)
    tables = _for_strategy(tables, where or "run")
    for override in overrides:  # behind the strategy's own tables: what is said on the command line wins
        _apply(tables, override)
    _resolve_paths(tables, path.parent if path else Path(), where or "run")
    return from_dict(tables, where=where or "run")


def read(path: Path, missing: str) -> dict[str, Any]:
    """The tables of the TOML file at `path`. Raises ConfigError in one line; `missing` says that there is no file."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as e:
        raise ConfigError(f"{path}: {missing}") from e
    except (OSError, UnicodeDecodeError) as e:
        raise ConfigError(f"{path}: cannot be read: {e}") from e
    except tomllib.TOMLDecodeError as e:
        raise ConfigError(f"{path}: not valid TOML: {e}") from e


def _resolve_paths(tables: dict[str, Any], folder: Path, where: str) -> None:
    for table, key in (("data", "train"), ("data", "test"), ("model", "id")):
        if isinstance(found := tables.get(table), dict) and key in found:
            said = f"{where}: [{table}] {key}"
            found[key] = source_paths.resolved(found[key], folder, said, patterns=table == "data")
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
            built[name] = checked_table(kind, table, f"{where}: [{name}]")
    model = built["model"]
    outputs = model.labels or (["value"] if model.problem_type == labels.REGRESSION else [])
    built["model"] = replace(model, dtype=DTYPE_ALIASES.get(model.dtype, model.dtype), labels=outputs)
    config = RunConfig(**built)
    _check(config, where)
    return config


def _for_strategy(tables: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The tables with the chosen strategy's sub-tables merged in and those of other strategies left out."""
    known, strategies = {f.name for f in fields(RunConfig)}, registry.strategies.names()
    for name, table in tables.items():
        if name not in known:
            raise ConfigError(f"{where}: no table [{name}]{check.nearest(name, known)}")
        if not isinstance(table, Mapping):
            raise ConfigError(f"{where}: {name} is a value, wanted a table [{name}]")
    chosen = tables.get("strategy", {}).get("name", Strategy.name)
    if isinstance(chosen, str) and chosen not in strategies and ":" not in chosen:
        raise ConfigError(
            f"{where}: [strategy] name: no strategy {chosen!r}; there are {', '.join(strategies)}"
            f"{check.nearest(chosen, strategies)}"
        )
    merged: dict[str, Any] = {}
    for name, table in tables.items():
        own = {k: v for k, v in table.items() if k in strategies and isinstance(v, Mapping)}
        merged[name] = {k: v for k, v in table.items() if k not in own} | dict(own.get(chosen, {}))
    return merged


def checked_table(kind: type, table: Mapping[str, Any], where: str) -> Any:
    """The dataclass `kind` made of a table: types checked, defaults filled in.

    Raises ConfigError, beginning with `where`, for a key that is unknown or missing, or a value of another type.
    """
    hints = typing.get_type_hints(kind)
    for key in table:
        if key not in hints:
            raise ConfigError(f"{where} has no {key!r}{check.nearest(key, hints)}")
    values = {k: _typed(hints[k], v, f"{where} {k}") for k, v in table.items()}
    missing = [f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING]
    for key in missing:
        if key not in values:
            raise ConfigError(f"{where} needs {key!r}")
    return kind(**values)


def _typed(hint: Any, value: Any, where: str) -> Any:
    try:
        return check.typed(hint, value, where)
    except ValueError as e:
        raise ConfigError(str(e)) from e


def _check_names(c: RunConfig) -> None:
    """Raise ValueError where a name is neither known nor "module:name"; nothing is imported."""
    chosen: list[tuple[str, registry.Registry, registry.Choice]] = [
        ("partition", registry.partitioners, c.data.partition),
        ("optimizer", registry.optimizers, c.local.optimizer),
        ("adapter", registry.adapters, c.model.adapter),
        ("objective", registry.objectives, c.local.objective),
        *(("transforms", registry.transforms, choice) for choice in c.local.transforms),
        *(("gates", registry.gates, choice) for choice in c.server.gates),
        *(("[eval] metrics", registry.metrics, choice) for choice in c.eval.metrics),
        *(("[server] loggers", registry.loggers, choice) for choice in c.server.loggers),
        *(("plan", registry.planners, choice) for choice in (c.clients.plan,) if choice is not None),
    ]
    for key, known, choice in chosen:
        name = registry.named(choice, key)[0]
        if ":" in name or name in known:
            continue
        names = known.names()
        if key.startswith("["):
            there = f"no {known.kind} {name!r:.80}; there are {', '.join(names)}"
            raise ValueError(f"{key}: {there}{check.nearest(name, names)}")
        check.one_of(names, **{key: name})


def _check(c: RunConfig, where: str) -> None:
    try:
        task = tasks.of(c.model.task)
        check.one_of(DTYPES, dtype=c.model.dtype)
        _check_names(c)
        for way, read, name in (("up", codec_names.parse, c.codec.up), ("down", codec_names.downloads, c.codec.down)):
            try:
                read(name)
            except ValueError as e:
                raise ValueError(f"[codec] {way}: {e}") from e
        check.one_of(("none",), privacy_mode=c.privacy.mode)
        check.one_of(("local", "ray"), mode=c.server.mode)
        check.at_least(1, steps=c.local.steps, batch_size=c.local.batch_size, threads=c.local.threads)
        check.at_least(1, rounds=c.server.rounds, attempts=c.server.attempts, every=c.eval.every)
        if c.server.together != "auto":
            check.at_least(1, together=c.server.together)
        if c.server.budget is not None:
            budget_of(c.server.budget)
        check.at_least(1, eval_batch_size=c.eval.batch_size, generate_tokens=c.eval.generate_tokens)
        check.at_least(1, max_num_examples=c.limits.max_num_examples, quarantine_after=c.limits.quarantine_after)
        check.at_least(1, min_rows=c.data.min_rows)
        if c.data.max_length != "auto":
            check.at_least(2, max_length=c.data.max_length)  # the first token is never learned
        check.at_least(0, learning_rate=c.local.learning_rate, weight_decay=c.local.weight_decay)
        check.above(0, learning_rate_decay=c.local.learning_rate_decay)
        check.at_least(0, momentum=c.local.momentum, grace_s=c.server.grace_s)
        check.between(0, 2**53 - 1, seed=c.server.seed)  # what JSON keeps exactly
        check.between(0, 1, quorum=c.server.quorum, holdout=c.data.holdout, lora_dropout=c.model.lora_dropout)
        check.above(0, alpha=c.data.alpha, norm_factor=c.limits.norm_factor)
        if c.limits.max_share is not None:
            check.between(0.5, 1, max_share=c.limits.max_share)
        counts = {"per_round": c.clients.per_round, "clients": c.data.clients, "eval": c.eval.clients}
        counts |= {"max_prompt": c.data.max_prompt, "max_bytes": c.limits.max_bytes, "max_rows": c.eval.max_rows}
        check.at_least(1, **{name: value for name, value in counts.items() if value is not None})
        sizes = {"lora_alpha": c.model.lora_alpha, "max_grad_norm": c.local.max_grad_norm}
        sizes |= {"deadline_s": c.server.deadline_s, "max_norm": c.limits.max_norm}
        check.above(0, **{name: value for name, value in sizes.items() if value is not None})
        if not c.model.targets or (isinstance(c.model.targets, list) and "" in c.model.targets):
            raise ValueError(f"targets is {c.model.targets!r}, wanted 'all-linear' or name endings")
        for target in [c.model.targets] if isinstance(c.model.targets, str) else c.model.targets:
            if target.startswith("re:"):
                check.expression("targets", target.removeprefix("re:"))
        if c.model.layers is not None:
            check.number_ranges("layers", c.model.layers)
        if any(not n or n.startswith("re:") for n in c.model.modules_to_save):
            raise ValueError(f"modules_to_save is {c.model.modules_to_save!r}, wanted names or endings of names")
        template_checks.check_forms(c.data, c.model.task, registry.named(c.local.objective, "objective")[0])
        labels.check_names(c.model, c.data)
        if not c.ranks():
            raise ValueError("expected at least one rank, got an empty list")
        for rank in c.ranks():
            check.at_least(1, rank=rank)
        if not task.generates and c.eval.rouge:
            raise ValueError("[eval] rouge compares generated text; task sequence-classification generates none")
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
        _apply(tables, f"options.{override}")
    return tables.get("options", {})
