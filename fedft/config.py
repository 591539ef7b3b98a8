"""A run file (TOML) becomes a frozen, checked `RunConfig`: one dataclass per table, one checker for all of them.

Unknown tables and keys are refused with the nearest known one; "off" is a key left out, never -1. Any table may hold
sub-tables named after strategies, whose keys win when that strategy runs:

    [local]                      [local.fedkseed]           [clients.fedit]
    learning_rate = 1e-2         learning_rate = 1e-4       rank = 8

so one file compares methods that need different steps or ranks on the same data.
"""

import math
import os
import re
import tomllib
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from fedft import check, codec_name
from fedft.errors import ConfigError

BUILT_IN = ("stdlib-base", "stdlib-docstrings")
BUDGETS = ("bytes", "steps", "seconds")


@dataclass(frozen=True)
class Model:
    """[model]: what is fine-tuned, and which of its layers."""

    id: str = "stdlib-base"
    """Model folder, hub id, or "stdlib-base" (the small built-in base)."""
    task: str = "causal-lm"
    """"causal-lm" or "sequence-classification"."""
    targets: str | list[str] = "all-linear"
    """Layers that get an adapter: "all-linear" or name endings such as ["q_proj", "v_proj"]."""
    lora_alpha: float | None = None
    """LoRA scale is lora_alpha / rank; left out: alpha = 2 rank."""
    lora_dropout: float = 0.0
    """Dropout before the LoRA factors, in training."""
    dtype: str = "float32"
    """Resident base weights: float32, bfloat16 or float16 (adapters are float32)."""
    device: str = "cpu"
    """torch device of the base model."""
    labels: list[str] = field(default_factory=list)
    """Classification: the label values, in order."""


@dataclass(frozen=True)
class Data:
    """[data]: records, how they become text, and whose they are."""

    train: str = "stdlib-docstrings"
    """JSON lines, JSON or CSV file, hub id, or "stdlib-docstrings" (built in)."""
    test: str | None = None
    """Held-out records of the same form; left out: `holdout` of each client's own rows."""
    holdout: float = 0.2
    """Fraction of each client's rows held out when there is no `test`."""
    prompt: str = "{prompt}"
    """Template of what is given; its tokens are masked out of the loss. "" learns on all tokens."""
    response: str = "{response}"
    """Template of what is learned."""
    text: str = "{text}"
    """Classification: template of the input."""
    label: str = "label"
    """Classification: field of the label."""
    partition: str = "natural"
    """"natural" (by `client`), "iid" or "dirichlet"."""
    client: str = "client"
    """Field that names the owner of a record (natural), or that is skewed (dirichlet)."""
    clients: int | None = None
    """Number of clients; natural: keep the first so many in order of name."""
    alpha: float = 0.5
    """Dirichlet concentration; small is more skewed."""
    max_length: int = 96
    """Tokens per record; longer ones are cut."""
    max_prompt: int | None = None
    """Tokens of the prompt, cut from the left."""


@dataclass(frozen=True)
class Strategy:
    """[strategy]: name and the factory's own options."""

    name: str = "flora"
    """A built-in or installed strategy, or "package.module:factory"."""
    options: dict[str, Any] = field(default_factory=dict)
    """All other keys of the table; see the factory's docstring."""


@dataclass(frozen=True)
class Local:
    """[local]: what a client does in one round."""

    steps: int = 40
    """Optimiser steps."""
    batch_size: int = 8
    """Records per step."""
    learning_rate: float = 1e-2
    """Of the local optimiser; zeroth-order methods need much smaller ones."""
    learning_rate_decay: float = 1.0
    """Factor on the learning rate from one round to the next."""
    optimizer: str = "adamw"
    """"adamw" or "sgd", fresh in every round."""
    momentum: float = 0.0
    """Of "sgd"."""
    weight_decay: float = 0.0
    """Of the first-order optimisers; FedKSeed has its own."""
    max_grad_norm: float | None = 1.0
    """Clip of the gradient's L2 norm per step."""
    threads: int = 1
    """torch threads; one is never far from best for small models and does not collapse on a busy machine."""


@dataclass(frozen=True)
class Codec:
    """[codec]: how tensors are written on the wire."""

    up: str = "fp32"
    """Client to server: fp32, fp16, bf16, int8, int4, "ternary:0.5", "topk:0.1 | int8"...; see fedft/codec_name.py."""
    down: str = "fp32"
    """Server to client: the state in fp32, fp16, bf16, int8, or one of them behind "topk:1 |" where most numbers are
    zero. Or what each round changed in it, in any codec behind "delta |": "delta | int8", "delta | int4"..."""
    error_feedback: bool | None = None
    """Clients add what the codec left out to their next update; not said: where it leaves out much and they can."""

    @property
    def plans(self) -> str:
        """The codec of the messages that go down."""
        return codec_name.downloads(self.down)[0]

    @property
    def changes(self) -> str:
        """The codec of the changes that they bring; "" where they bring the state itself."""
        return codec_name.downloads(self.down)[1]


@dataclass(frozen=True)
class Privacy:
    """[privacy]: protection beyond TLS and signatures."""

    mode: str = "none"
    """"none" is what there is so far."""


@dataclass(frozen=True)
class Server:
    """[server]: rounds and when one ends."""

    rounds: int = 5
    """Rounds of the run; a finished run may be resumed with more."""
    budget: str | None = None
    """End at the last round that fits "bytes=2e7" (training traffic of all clients, both ways), "steps=400" (rounds x
    [local] steps) or "seconds=60" (training and aggregation); left out: all rounds."""
    seed: int = 0
    """Everything random that must be repeatable derives from it."""
    mode: str = "local"
    """"local" (this process) or "ray" (Flower's simulation engine)."""
    together: int | Literal["auto"] = 1
    """Mode "local": clients that train in one pass of the base model, where the strategy and the model allow it (plain
    back-propagation on adapters, no dropout); memory of activations grows with it. 1 is exactly what a deployment does.
    "auto": as many as pay, by the tokens of a batch and the device, never by the clock. Several times as fast where
    batches are short. The same run gives the same bytes again, but they differ from those of 1 in the rounding of sums
    (updates by less than 1e-4 of themselves), and those of a run that was interrupted inside a round may."""
    quorum: float = 2 / 3
    """Share of those asked that must be admitted, rounded up."""
    deadline_s: float | None = None
    """A round closes after so many seconds if quorum is met."""
    grace_s: float = 30.0
    """Seconds to wait for the rest once quorum is met and a deadline is set."""
    attempts: int = 3
    """Tries per round below quorum before the run pauses."""


@dataclass(frozen=True)
class Clients:
    """[clients]: who takes part, with what."""

    per_round: int | None = None
    """Clients asked per round, drawn from the seed; left out: all."""
    rank: int | list[int] = 8
    """LoRA rank of all clients, or a list dealt out in order of name."""


@dataclass(frozen=True)
class Limits:
    """[limits]: what one client's update may be."""

    max_norm: float | None = None
    """Refuse updates whose norm (of the product, for pairs) is larger."""
    norm_factor: float = 100.0
    """Refuse norms above so many times the median of those admitted lately."""
    max_num_examples: int = 1_000_000
    """Refuse updates that claim more rows."""
    max_share: float = 0.5
    """Largest weight of one client among three or more; what is above is cut, and said. 1.0: no such limit."""
    max_bytes: int | None = None
    """Refuse larger messages; left out: 1.05 x the largest legal one + 64 KiB."""
    quarantine_after: int = 3
    """Refusals in 10 rounds after which a client is not asked any more."""


@dataclass(frozen=True)
class Eval:
    """[eval]: what is measured on held-out rows."""

    every: int = 1
    """Rounds between evaluations; the last state is always evaluated."""
    clients: int | None = None
    """Evaluate on so many clients, the same ones every time; left out: all."""
    max_rows: int | None = None
    """Held-out rows per client, the first so many."""
    batch_size: int = 16
    """Rows per forward pass."""
    exactness: bool = True
    """Measure every round how far the aggregate of LoRA pairs is from the mean of their products."""
    rouge: bool = False
    """ROUGE-L of greedy generations (causal LM) at the last state and the first."""
    generate_tokens: int = 48
    """Tokens generated per row for ROUGE-L."""


@dataclass(frozen=True)
class RunConfig:
    """A whole run; see the tables."""

    model: Model = Model()
    data: Data = Data()
    strategy: Strategy = Strategy()
    local: Local = Local()
    codec: Codec = Codec()
    privacy: Privacy = Privacy()
    server: Server = Server()
    clients: Clients = Clients()
    limits: Limits = Limits()
    eval: Eval = Eval()

    def ranks(self) -> list[int]:
        """LoRA ranks to deal out in order of client name."""
        return [self.clients.rank] if isinstance(self.clients.rank, int) else list(self.clients.rank)

    def to_dict(self) -> dict[str, Any]:
        """Plain tables, keys that are off left out; `from_dict` reads it back."""
        tables = {t: {k: v for k, v in values.items() if v is not None} for t, values in asdict(self).items()}
        tables["strategy"] = {"name": self.strategy.name, **self.strategy.options}
        return tables


def load(path: Path | None = None, overrides: Sequence[str] = (), *, where: str = "") -> RunConfig:
    """The run file at `path` (None: defaults), with `table.key=value` overrides on top.

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
    """The TOML file at `path`. Raises ConfigError in one line; `missing` is what it says if there is no such file."""
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
        value = tables.get(table, {}).get(key) if isinstance(tables.get(table), dict) else None
        if not isinstance(value, str):
            continue
        value = os.path.expanduser(os.path.expandvars(value))
        if left := re.search(r"\$\{?(\w+)", value):
            raise ConfigError(f"{where}: [{table}] {key} = {value!r}: the variable {left[1]} is not set")
        if value and value not in BUILT_IN and not Path(value).is_absolute():
            # absolute in the run's own config.toml, so that the run can be evaluated from any working folder
            there = next((p for p in (folder / value, Path(value)) if p.exists()), None)
            value = str(there.resolve()) if there else value
        tables[table][key] = value


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
    """A checked RunConfig from plain tables. Raises ConfigError naming file, table and key."""
    tables = _for_strategy(tables, where)
    built: dict[str, Any] = {}
    for name, kind in typing.get_type_hints(RunConfig).items():
        table = tables.get(name, {})
        if name == "strategy":
            options = {k: v for k, v in table.items() if k != "name"}
            built[name] = Strategy(_typed(str, table.get("name", Strategy.name), f"{where}: [strategy] name"), options)
        else:
            built[name] = checked_table(kind, table, f"{where}: [{name}]")
    config = RunConfig(**built)
    _check(config, where)
    return config


def _for_strategy(tables: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The tables with the chosen strategy's sub-tables merged in and those of other strategies left out."""
    from fedft.strategies import installed

    known, strategies = {f.name for f in fields(RunConfig)}, installed()
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
    """The dataclass `kind` from a table: unknown keys refused, types checked, defaults filled in."""
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


def _check(c: RunConfig, where: str) -> None:
    try:
        check.one_of(("causal-lm", "sequence-classification"), task=c.model.task)
        check.one_of(("float32", "bfloat16", "float16"), dtype=c.model.dtype)
        check.one_of(("natural", "iid", "dirichlet"), partition=c.data.partition)
        check.one_of(("adamw", "sgd"), optimizer=c.local.optimizer)
        for way, read, name in (("up", codec_name.parse, c.codec.up), ("down", codec_name.downloads, c.codec.down)):
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
        check.at_least(2, max_length=c.data.max_length)  # the first token is never learned
        check.at_least(0, learning_rate=c.local.learning_rate, weight_decay=c.local.weight_decay)
        check.above(0, learning_rate_decay=c.local.learning_rate_decay)
        check.at_least(0, momentum=c.local.momentum, grace_s=c.server.grace_s)
        check.between(0, 2**53 - 1, seed=c.server.seed)  # what JSON keeps exactly
        check.between(0, 1, quorum=c.server.quorum, holdout=c.data.holdout, lora_dropout=c.model.lora_dropout)
        check.above(0, alpha=c.data.alpha, norm_factor=c.limits.norm_factor)
        check.between(0.5, 1, max_share=c.limits.max_share)
        counts = {"per_round": c.clients.per_round, "clients": c.data.clients, "eval": c.eval.clients}
        counts |= {"max_prompt": c.data.max_prompt, "max_bytes": c.limits.max_bytes, "max_rows": c.eval.max_rows}
        check.at_least(1, **{name: value for name, value in counts.items() if value is not None})
        sizes = {"lora_alpha": c.model.lora_alpha, "max_grad_norm": c.local.max_grad_norm}
        sizes |= {"deadline_s": c.server.deadline_s, "max_norm": c.limits.max_norm}
        check.above(0, **{name: value for name, value in sizes.items() if value is not None})
        if not c.model.targets or (isinstance(c.model.targets, list) and "" in c.model.targets):
            raise ValueError(f"targets is {c.model.targets!r}, wanted 'all-linear' or name endings")
        if len(set(c.model.labels)) < len(c.model.labels):
            raise ValueError(f"expected labels that are distinct, got {c.model.labels}")
        if not c.ranks():
            raise ValueError("expected at least one rank, got an empty list")
        for rank in c.ranks():
            check.at_least(1, rank=rank)
        if c.model.task == "sequence-classification" and len(c.model.labels) < 2:
            raise ValueError("task sequence-classification needs [model] labels, at least two")
        if c.model.task == "sequence-classification" and c.eval.rouge:
            raise ValueError("[eval] rouge compares generated text; task sequence-classification generates none")
        if c.model.task == "sequence-classification" and c.model.dtype != "float32":
            raise ValueError(
                f"a classification head is trained in float32; wanted dtype 'float32', got {c.model.dtype!r}"
            )
    except ValueError as e:
        raise ConfigError(f"{where}: {e}") from e


def budget_of(text: str) -> tuple[str, float]:
    """("bytes", "steps" or "seconds", how many) of a `[server] budget`. Raises ValueError."""
    kind, equals, number = text.partition("=")
    try:
        most = float(number) if equals and kind in BUDGETS else math.nan
    except ValueError:
        most = math.nan
    if not 0 < most < math.inf:
        raise ValueError(f"budget is {text!r}, wanted bytes=NUMBER, steps=NUMBER or seconds=NUMBER, as in 'bytes=2e7'")
    return kind, most


def load_options(overrides: Sequence[str]) -> dict[str, Any]:
    """`option=value` pairs of a strategy's factory, values read as TOML."""
    tables: dict[str, Any] = {}
    for override in overrides:
        _apply(tables, f"options.{override}")
    return tables.get("options", {})
