"""The two things that travel: a `Plan` down to one client, an `Update` up from it. Rounds count from 0.

Both are plain values; `fedft.wire.messages` turns them into bytes and back. A run's constants (strategy, local step,
model, data format) are agreed once, in a `Job`; a plan says only what changes from round to round, so that a method
which sends a few kilobytes is not drowned in repetition.

Names of tensors are canonical: a LoRA pair of a module is `<module>.lora_A` and `<module>.lora_B`, **in unit-scale
form** (`lora_B` carries the factor alpha/r, so the change of the module's weight is exactly `lora_B @ lora_A`); any
other parameter goes under its own name.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fedft.arithmetic.tensors import Tensors

Scalar = float | int | str | bool
MEMORY_LOST = "memory_lost"
"""Metric of an update whose client did not find what it had kept after its last one that counted: it began anew."""
BITS = "bits"
"""Metric of an update or an evaluation whose client has the base in another precision than the run says: its bits."""
PROFILE = "profile."
"""Beginning of names of metrics of an enrolment: what the client says of its machine."""
PREDICTED = "predicted_s"
"""In `Plan.extra` and `Work.extra`: the seconds that the turn is expected to take, from the letter to the answer."""
BLOCK, SLOT = "block", "slot"
"""In `Plan.extra`: whose one-time masks hide the answer to the plan."""
MEMBERS = "members"
"""In `Plan.extra`: how many clients there are whose shares of noise make up that of a sum."""
CUT = "cut"
"""In `Plan.extra` and `Work.extra`: the share of heads and channels, by weights, that is cut away during the turn."""
ROWS_AT_ONCE = "rows_at_once"
"""In `Plan.extra` and `Work.extra`: records of a step that are in memory at once at most, as `[local] micro_batch`."""
VERSION = re.compile(r"0|[1-9][0-9]{0,15}")


def rows_at_once(extra: Mapping[str, Scalar]) -> int | None:
    """What `extra` says of ROWS_AT_ONCE; None where that is nothing, or no number from 1 on."""
    said = extra.get(ROWS_AT_ONCE)
    return said if type(said) is int and said > 0 else None


@dataclass(frozen=True)
class TensorSpec:
    """What a tensor on the wire must be.

    `shape` is exact, except that with `at_most` its first dimension is an upper bound (a list of seeds). `dtype` is
    what the decoded tensor has: "float32", "int32" or "uint16".
    """

    shape: tuple[int, ...]
    dtype: str = "float32"
    at_most: bool = False


Spec = Mapping[str, TensorSpec]
Download = Callable[[str], "TensorSpec | None"]
"""What may come down with a plan: a tensor's name -> what it must be, or at most (no dimension longer) where that is
`at_most`; None where no tensor of this name comes."""


@dataclass(frozen=True)
class Shape:
    """How large one client's adapter is, and which part of it learns.

    `rank` holds in every module but those that `ranks` gives a rank of their own.
    """

    rank: int = 0
    """0 where the kind of adapter has no ranks."""
    ranks: Mapping[str, int] = field(default_factory=dict)
    """Rank by module; a module of rank 0 has no adapter."""
    chosen: tuple[str, ...] = ()
    """What learns and is sent, of modules with an adapter (of full fine-tuning: of parameters): names, or whole dotted
    parts of names as "q_proj" and "layers.3"; empty: everything. The rest is in every forward pass, and stays."""

    def of(self, module: str) -> int:
        """The adapter's rank in the module of this name."""
        return self.ranks.get(module, self.rank)

    def learns(self, name: str) -> bool:
        """Whether the adapter of the module of this name, or a tensor of it, is among those that learn.

        >>> Shape(8, chosen=("layers.3", "q_proj")).learns("model.layers.30.self_attn.v_proj.lora_A")
        False
        """
        return not self.chosen or any(f".{text}." in f".{name}." for text in self.chosen)

    @property
    def without(self) -> tuple[str, ...]:
        """Modules that get no adapter, of those in `ranks`."""
        return tuple(m for m, r in self.ranks.items() if r == 0)

    @property
    def largest(self) -> int:
        """The largest rank that the adapter has in any module."""
        return max(self.rank, *self.ranks.values()) if self.ranks else self.rank

    @property
    def key(self) -> str:
        """A short text, equal for equal ranks and no others, whichever modules learn.

        >>> Shape(8).key, Shape(8, {"q_proj": 4}).key
        ('r8', 'r8-4014af53e880')
        """
        if not self.ranks:
            return f"r{self.rank}"
        table = json.dumps([self.rank, sorted(self.ranks.items())])
        return f"r{self.rank}-{hashlib.sha256(table.encode()).hexdigest()[:12]}"


RUNS_AT_ONCE = 8  # of one server that a site takes part in, each with rows, a state and a file of its last answer


@dataclass(frozen=True)
class Job:
    """What server and clients agree on once, before the first round; all of it JSON."""

    run: str
    """Identifier of the run, 16 hexadecimal digits."""
    seed: int
    """The run's seed: everything that must be random and equal on all machines derives from it."""
    base: str
    """SHA-256 of the base model's weights, hexadecimal."""
    tables: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """The run file's tables by name, as resolved, less what is local (`fedft.config.LOCAL`)."""
    tokenizer: str = ""
    """SHA-256 of the base model's tokenizer, hexadecimal; "": the server does not say."""

    def table(self, name: str) -> Mapping[str, Any]:
        """The run file's table of this name; empty if the job has none."""
        return self.tables.get(name, {})


@dataclass(frozen=True)
class Plan:
    """Server -> one client, one round.

    `tensors` takes the client from version `have` of the state (None: from nothing) to version `version`. The labels
    beside the versions tell states of one number apart, see `State.label`.
    """

    run: str
    """Identifier of the run, `Job.run`."""
    round: int
    version: int
    """Of the state that the client is brought to."""
    have: int | None = None
    """Of the state that the client must hold already; None: it needs none."""
    label: str = ""
    have_label: str = ""
    attempt: int = 0
    """Greater than that of any earlier request of the run: no two share one."""
    evaluate: bool = False
    """True: the client measures the state on its held-out rows and trains nothing."""
    rank: int = 0
    """Rank of this client's adapter; 0 where its kind has none."""
    ranks: Mapping[str, int] = field(default_factory=dict)
    """Rank by module, for those where it is not `rank`; 0: no adapter there."""
    chosen: tuple[str, ...] = ()
    """What of the adapter learns and is sent, see `Shape.chosen`; empty: all of it."""
    steps: int = 0
    """Local optimiser steps."""
    batch: int = 0
    """Records per step; 0: `[local] batch_size`."""
    bits: int = 0
    """Precision of the base that is asked for, in bits of each frozen weight; 0: the client's own."""
    learning_rate: float = 0.0
    """Of the local optimiser in this round."""
    counted: int | None = None
    """The last round in which this client's update counted, where clients keep something; None: none did yet."""
    extra: Mapping[str, Scalar] = field(default_factory=dict)
    """Numbers and texts that a strategy says to its own client side."""
    tensors: Tensors = field(default_factory=dict)

    def leads_from(self, version: str) -> bool:
        """Whether this, in decimal digits, is a version whose change the plan may bring: `have`, or 0, or a later one.

        >>> plan = Plan("", round=9, version=9, have=7)
        >>> [v for v in ("6", "7", "8", "08", "9") if plan.leads_from(v)]
        ['7', '8']
        """
        return VERSION.fullmatch(version) is not None and (self.have or 0) <= int(version) < self.version

    @property
    def shape(self) -> Shape:
        """The adapter of the plan's client: `rank`, `ranks` and `chosen` as one value."""
        return Shape(self.rank, self.ranks, self.chosen)


@dataclass(frozen=True)
class Update:
    """Client -> server: what a client's local steps changed.

    `delta` is trained minus received, in unit-scale form, float32 (a strategy whose client starts from something the
    server did not send says what it puts here instead: its docstring does). A strategy's `aggregate` needs only
    `delta` and `num_examples`, so updates can be made by hand from plain tensors.
    """

    delta: Tensors
    num_examples: int
    """Rows that the client trained on: its weight in a mean."""
    round: int = 0
    run: str = ""
    attempt: int = 0
    client: str = ""
    """Filled in by the server from who sent it, never read from the message."""
    roster: int = 0
    """How many clients the run has, asked or not; filled in by the server. 0: as many as there are updates."""
    cohort: int = 0
    """How many updates make the round's aggregate, so that room is made once; filled in by the server. 0: not said."""
    metrics: Mapping[str, float] = field(default_factory=dict)
