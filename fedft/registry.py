"""What can be named in a run file: built in, declared by installed packages as entry points, or "package.module:name".

A run file or run folder may be somebody else's, and importing a module already runs it. So a "module:name" is imported
only where the operator has allowed it (`fedft.allowed_code`), and never because a file or a message says it. What a
server says is held against `Registry.listed` first (`fedft.client.allowed_jobs`).
"""

import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from fedft import allowed_code, check
from fedft.compression import codec_names
from fedft.errors import ConfigError, in_one_line

Choice = str | dict[str, Any]
"""A name, or a table of a name and its options: "lion", or { name = "dpo", beta = 0.2 }."""


@dataclass(frozen=True)
class Registry:
    """The values of one kind that can be named: built-in ones, and those that installed packages declare."""

    kind: str
    """In the singular, as error messages call it."""
    group: str
    """Entry point group of other packages."""
    built_in: Mapping[str, str]
    """Name -> "module:attribute"."""
    called: bool = True
    """Whether a name stands for a factory whose keyword arguments are options; else for the value itself."""
    makes: str = ""
    """The type that a factory named as "module:name" has to be annotated with, or it is not called."""

    def names(self) -> dict[str, str]:
        """{name: "module:attribute"} of every value, built in or installed, in order of name."""
        found = dict(self.built_in)
        for point in entry_points(group=self.group):
            found.setdefault(point.name, point.value)
        return dict(sorted(found.items()))

    def __contains__(self, name: str) -> bool:
        """Whether a built-in or an installed value has this name; packages are looked through for the latter only."""
        return name in self.built_in or any(entry_points(group=self.group, name=name))

    def unknown(self, name: str) -> str:
        """What there is in place of a name that there is not, in one line; the nearest one is suggested."""
        known = self.names()
        there = f"there are {', '.join(known)}, or" if known else "none is built in; wanted"
        return f'no {self.kind} {check.quoted(name)}; {there} "package.module:name"{check.nearest(name, known)}'

    def load(self, name: str) -> Callable[..., Any]:
        """The factory, or the value, that has this name, or that "package.module:attribute" leads to.

        Raises ConfigError: no such name (the nearest one is suggested), it cannot be imported, or it is a "module:name"
        that nobody allowed.
        """
        where = self.built_in.get(name) or self.names().get(name, name)
        module, colon, attribute = where.partition(":")
        if not colon:
            raise ConfigError(self.unknown(name))
        if where == name and not allowed_code.allows(name):
            raise ConfigError(
                f"{self.kind} {check.quoted(name)} is code outside fedft, which a run file alone does not run; "
                f"--allow {name}, or fedft.simulate(..., allow=[{name!r}]), if you trust it"
            )
        try:
            imported = import_module(module)
            if not hasattr(imported, attribute):
                raise ImportError(f"it has no {attribute!r}{check.nearest(attribute, dir(imported))}")
            found: Callable[..., Any] = getattr(imported, attribute)
        except Exception as e:  # a plug-in's module runs when it is imported, and may raise what it likes
            raise ConfigError(f"{self.kind} {name!r}: cannot load {where}: {in_one_line(e)}") from e
        return found

    def options(self, name: str) -> dict[str, inspect.Parameter]:
        """The keyword arguments of the factory of this name. Raises ConfigError where the factory does not say them."""
        factory = self.load(name)
        if not callable(factory):
            wanted = f"a factory that returns a {self.kind}"
            raise ConfigError(f"[{self.kind}] {name} is a {type(factory).__name__}, wanted {wanted}")
        try:
            parameters = inspect.signature(factory, eval_str=True).parameters
        except NameError:  # types that are imported for type checkers only
            parameters = inspect.signature(factory).parameters
        except (TypeError, ValueError) as e:
            raise ConfigError(f"[{self.kind}] {name}: the factory does not say its options: {in_one_line(e)}") from e
        return dict(parameters)

    def make(self, name: str, options: Mapping[str, Any], **given: Any) -> Any:
        """The value that the factory of this name makes of a run file's options. Raises ConfigError naming the option.

        Args:
            options: checked against the factory's annotations.
            given: values that no run file can hold, passed on as they are.
        """
        known, checked = self.options(name), dict(given)
        for option, value in options.items():
            if option not in known:
                raise ConfigError(
                    f"[{self.kind}] {name} has no option {check.quoted(option)}; it has {', '.join(known) or 'none'}"
                    f"{check.nearest(option, known)}"
                )
            try:
                checked[option] = check.typed(_hint(known[option]), value, option)
            except ValueError as e:
                raise ConfigError(f"[{self.kind}] {name}: {e}") from e
        factory = self.load(name)
        if self.makes and ":" in name and (said := _returns(factory)) != self.makes:
            raise ConfigError(
                f"[{self.kind}] {name} is not called: it says that it returns {said or 'nothing'}, wanted {self.makes}"
            )
        try:
            return factory(**checked)
        except Exception as e:  # the factory may be another package's
            raise ConfigError(f"[{self.kind}] {name}: {in_one_line(e)}") from e

    def chosen(self, choice: Choice) -> Any:
        """The value that a choice of a run file makes, by its name and its options. Raises ConfigError."""
        name, options = named(choice, self.kind)
        return self.make(name, options)

    def listed(self, choice: Choice, also: Collection[str] = ()) -> bool:
        """Whether a choice names what is built in, or what is installed and among the names `also`.

        Looking such a choice up imports nothing but what this package or the caller meant; "module:name" never is one.
        """
        try:
            name = named(choice, self.kind)[0]
        except ConfigError:
            return False
        return name in self.built_in or (name in also and name in self)


def named(choice: Choice, kind: str) -> tuple[str, dict[str, Any]]:
    """(name, options) of a choice. Raises ConfigError, which speaks of `kind`, where the choice names nothing.

    >>> named("lion", "optimizer")
    ('lion', {})
    >>> named({"name": "dpo", "beta": 0.2}, "objective")
    ('dpo', {'beta': 0.2})
    """
    table = {"name": choice} if isinstance(choice, str) else dict(choice)
    if not isinstance(name := table.pop("name", None), str):
        raise ConfigError(f"{kind} is {choice!r:.80}, wanted a name, or a table with a name and options")
    return name, table


def tower(name: str, options: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(name, options) of a strategy, of the one that it is `on`, and so on; what is no choice has the name "".

    >>> list(tower("fedprox", {"mu": 0.1, "on": "fedit"}))
    [('fedprox', {'mu': 0.1, 'on': 'fedit'}), ('fedit', {})]
    """
    yield name, options
    while (on := options.get("on")) is not None:
        name, options = named(on, "strategy") if isinstance(on, str | dict) else ("", {})
        yield name, options


def _returns(factory: Callable[..., Any]) -> str:
    """The name of the type that a function is annotated to return, or ""."""
    annotation = getattr(factory, "__annotations__", {}).get("return", "")
    return str(getattr(annotation, "__name__", annotation)).rpartition(".")[2]


def _hint(parameter: inspect.Parameter) -> Any:
    hint = parameter.annotation
    return Any if hint is inspect.Parameter.empty or isinstance(hint, str) else hint


BUILT_IN = (
    "fedavg",
    "fedex_lora",
    "fedit",
    "fedkseed",
    "fedopt",
    "fedpipe",
    "fedprox",
    "fedsa_lora",
    "fedspine",
    "ferret",
    "ffa_lora",
    "flasc",
    "flexlora",
    "flora",
    "hetlora",
    "lora_fair",
    "mezo",
    "rolora",
    "scaffold",
    "zo_fedavg",
)
"""The strategies of this package."""
MORE_OPTIMIZERS = (
    "adafactor", "adagrad", "adam", "adamax", "nadam", "radam", "rmsprop", "muon", "adamw_8bit", "paged_adamw",
    "paged_adamw_8bit", "lion_8bit", "paged_lion_8bit", "schedule_free_adamw", "schedule_free_sgd",
)  # fmt: skip
"""The optimisers of other libraries that have a name here."""
PLANNERS = ("flops_budget", "halves", "important_layers", "rank_budget")
"""The planners of this package."""
PREFERENCES = ("dpo", "orpo")
"""The objectives of this package that learn from pairs of answers."""

strategies = Registry(
    "strategy", "fedft.strategies", {n: f"fedft.strategies.{n}:{n}" for n in BUILT_IN}, makes="Recipe"
)
adapters = Registry("adapter", "fedft.adapters", {"lora": "fedft.adapters.lora:LoRA"})
objectives = Registry(
    "objective",
    "fedft.objectives",
    {
        "likelihood": "fedft.training.objectives:Likelihood",
        **{n: f"fedft.training.preferences:{n.upper()}" for n in PREFERENCES},
    },
)
optimizers = Registry(
    "optimizer",
    "fedft.optimizers",
    {
        **{n: f"fedft.training.optimizers:{n}" for n in ("adamw", "sgd")},
        **{n: f"fedft.training.more_optimizers:{n}" for n in MORE_OPTIMIZERS},
    },
    called=False,
)
transforms = Registry("transform", "fedft.transforms", {})
planners = Registry("planner", "fedft.planners", {n: f"fedft.server.planners.{n}:{n}" for n in PLANNERS})
gates = Registry("gate", "fedft.gates", {"largest_norm": "fedft.server.candidate_gates:largest_norm"})
partitioners = Registry(
    "partitioner",
    "fedft.partitioners",
    {
        **{n: f"fedft.data.partition:{n}" for n in ("natural", "iid")},
        **{n: f"fedft.data.flower_partitioners:{n}" for n in ("dirichlet", "flwr")},
    },
)
codecs = Registry("codec", codec_names.GROUP, {n: f"fedft.compression.{at}" for n, at in codec_names.MODULES.items()})
metrics = Registry(
    "metric",
    "fedft.metrics",
    {n: f"fedft.training.metrics.{n}:{n}" for n in ("bleu", "exact_match", "macro_f1", "rouge_l", "token_f1")},
    called=False,
)
loggers = Registry(
    "logger",
    "fedft.loggers",
    {n: f"fedft.reports.loggers.{n}:{n}" for n in ("mlflow", "otel", "tensorboard", "trackio", "wandb")},
    called=False,
)

encoders = Registry("encode", "fedft.encoders", {}, called=False)
"""Functions that make a record token ids; each side's own, so that no message and no site's policy names one."""

IN_JOBS = (adapters, objectives, optimizers, transforms)
"""Whose values a server's job names for its clients, beside strategies, codecs and metrics."""

REGISTRIES = {
    r.kind: r
    for r in (
        strategies, adapters, objectives, optimizers, transforms, planners, gates, partitioners, codecs, metrics,
        loggers,
    )
}  # fmt: skip
SUITES = {
    "strategy": "fedft.suites.strategies:strategy_contract",
    "adapter": "fedft.suites.adapters:adapter_contract",
    "objective": "fedft.suites.objectives:objective_contract",
    "optimizer": "fedft.suites.optimizers:optimizer_contract",
    "transform": "fedft.suites.transforms:transform_contract",
    "planner": "fedft.suites.planners:planner_contract",
    "gate": "fedft.suites.gates:gate_contract",
    "partitioner": "fedft.suites.partitioners:partitioner_contract",
    "codec": "fedft.suites.codecs:codec_contract",
    "metric": "fedft.suites.metrics:metric_contract",
    "logger": "fedft.suites.loggers:logger_contract",
}
"""The contract suite of each kind."""
