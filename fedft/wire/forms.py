"""The fields of the messages' headers, by version of the protocol; the docstring of `messages` says what they are.

Each check returns the value to use or raises ValueError; the same ones serve writing and reading.
"""

from dataclasses import dataclass
from functools import partial

from fedft.wire.frame import MessageKind
from fedft.wire.header import (
    Field,
    as_count,
    as_digest,
    as_extra,
    as_flag,
    as_label,
    as_metrics,
    as_names,
    as_ranks,
    as_rate,
    as_run,
    as_tables,
)

_UPDATE_FIELDS = (
    Field("r", "run", as_run, ""),
    Field("t", "round", as_count, 0),
    Field("a", "attempt", as_count, 0),
    Field("n", "num_examples", partial(as_count, least=1), code="weight"),
    Field("m", "metrics", as_metrics, {}),
)
_PLAN_FIELDS = (
    Field("r", "run", as_run),
    Field("t", "round", as_count),
    Field("v", "version", as_count),
    Field("h", "have", as_count, None),
    Field("y", "label", as_label, ""),
    Field("z", "have_label", as_label, ""),
    Field("a", "attempt", as_count, 0),
    Field("e", "evaluate", as_flag, False),
    Field("k", "rank", as_count, 0),
    Field("q", "ranks", as_ranks, {}),
    Field("o", "chosen", as_names, ()),
    Field("b", "batch", as_count, 0),
    Field("i", "bits", as_count, 0),
    Field("s", "steps", as_count, 0),
    Field("l", "learning_rate", as_rate, 0.0),
    Field("c", "counted", as_count, None),
    Field("x", "extra", as_extra, {}),
)
_JOB_FIELDS = (
    Field("r", "run", as_run),
    Field("s", "seed", as_count),
    Field("b", "base", as_digest),
    Field("k", "tokenizer", as_digest, ""),
)
JOB_TABLE = (Field("t", "tables", as_tables),)


@dataclass(frozen=True)
class Forms:
    """The fields of the messages' headers in one version of the protocol."""

    update: tuple[Field, ...]
    plan: tuple[Field, ...]
    job: tuple[Field, ...]

    def of(self, kind: MessageKind) -> tuple[Field, ...]:
        """The fields of the header of a kind of message."""
        return {MessageKind.UPDATE: self.update, MessageKind.PLAN: self.plan, MessageKind.JOB: self.job}[kind]


FORMS = {2: Forms(_UPDATE_FIELDS, _PLAN_FIELDS, _JOB_FIELDS)}
"""By version of the protocol: those that are read and written, the same as in `fedft.wire.versions.SEALS`."""
