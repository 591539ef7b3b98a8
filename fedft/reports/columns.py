"""How each metric of an evaluation is shown: one `Column` per metric, declared where the metric is computed.

    LOSS = declare(Column("loss", "loss", better="lower"))      beside what computes the loss
    columns.of("loss").text(3.30281)                            "3.3028", wherever it is shown

`metrics.jsonl`, the terminal, tables, plots, pages and loggers ask `measured(line)` which numbers a line has and `of`
how they look; none of them names a metric. A metric that nobody declared is averaged, written and shown all the same,
under its own name.
"""

import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any, Literal

NAME = re.compile(r"[a-z0-9_.]{1,64}")  # names that messages may have
FORM = re.compile(r"\+?,?(?:\.(\d))?([efg%])")
MAX_UNDECLARED = 16  # metrics in a line that nobody declared: clients name them, and a table has only so much width
RESERVED = frozenset(
    {
        # of a line of metrics.jsonl
        *("version", "round", "refused", "seconds", "state_digest", "bytes", "training_bytes", "evaluation"),
        *(
            "evaluation_bytes",
            "secagg_bytes",
            "secagg_training",
            "sum_refused",
            "bytes_up",
            "bytes_down",
            "participants",
            "weights",
            "cut_weights",
            "memory_lost",
            "bits",
            "train_loss",
            "aggregation_error",
        ),
        *("epsilon", "epsilon_why", "delta", "rounds_left", "privacy", "hidden", "outside_epsilon"),
        *("colluding", "epsilon_colluding"),
        # of a client's evaluation: how many tokens or rows it was
        "count",
        # of a result, a row of a table and a point of a curve
        *("method", "seeds", "before", "after", "gain", "rounds", "up", "down", "steps", "error", "curve", "config"),
        *("work", "clients", "seed", "jobs", "stopped", "difference"),
    }
)
"""Names with another meaning where metrics are written; no metric may have one of them."""
OWN = frozenset({"epsilon"})
"""Of these, numbers of a line of its own that are shown as metrics are, behind them. No client can name one."""


@dataclass(frozen=True)
class Column:
    """The name of one metric, and how its numbers are shown. Raises ValueError for a field that cannot be used.

    >>> f1 = Column("f1", "F1", better="higher", form=".2%")
    >>> f1.text(0.5), f1.text(None), f1.short(0.5), f1.label
    ('50.00%', '-', '50.0%', 'F1')
    """

    name: str
    """The key in `metrics.jsonl`: lower case letters, digits, "_" and ".", at most 64."""
    heading: str
    """The words above a column and beside an axis, 1 to 40 characters."""
    unit: str = ""
    """"s", "%"...; "" for a plain number."""
    better: Literal["lower", "higher", ""] = ""
    """Whether lower or higher numbers are better; "": neither."""
    form: str = ".4f"
    """Python's format of a number, such as ".4f", ".1e" or ".2%"."""

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name) or self.name in RESERVED - OWN or self.name.endswith("_sd"):
            raise ValueError(f"a metric cannot be called {self.name!r:.80}: wanted [a-z0-9_.], no name of a line's own")
        if self.better not in ("lower", "higher", ""):
            raise ValueError(f"metric {self.name}: better is {self.better!r}, wanted 'lower', 'higher' or ''")
        if not FORM.fullmatch(self.form):
            raise ValueError(f"metric {self.name}: form is {self.form!r:.80}, wanted one such as '.4f', '.1e' or '.2%'")
        if not (0 < len(self.heading) <= 40 and self.heading.isprintable() and self.unit.isprintable()):
            raise ValueError(
                f"metric {self.name}: heading is {self.heading!r:.80}, wanted 1 to 40 printable characters"
            )

    def text(self, value: float | None) -> str:
        """`value` in the column's form; "-" for None."""
        return "-" if value is None else format(value, self.form)

    def short(self, value: float) -> str:
        """`value` with one digit less than `text`, for tables that show a standard deviation beside it."""
        return format(value, FORM.sub(lambda m: f".{max(1, int(m[1]) - 1)}{m[2]}" if m[1] else m[0], self.form))

    @property
    def label(self) -> str:
        """Heading and unit, for an axis."""
        return f"{self.heading}, {self.unit}" if self.unit else self.heading


_declared: dict[str, Column] = {}


def declare(column: Column) -> Column:
    """Show the metric of this name by `column` from now on, in this process; returns `column`.

    Raises ValueError if an unlike column of this name is declared: two metrics would be taken for one.
    """
    if (before := _declared.setdefault(column.name, column)) != column:
        raise ValueError(f"metric {column.name!r} is declared twice: as {before.heading!r} and as {column.heading!r}")
    return column


EPSILON = declare(Column("epsilon", "epsilon", better="lower", form=".3g"))
"""What was spent of privacy so far."""


def of(name: str, said: Mapping[str, Any] | None = None) -> Column:
    """The column of the metric `name`: from `said` if it is there, else as declared, else one with four digits.

    `said`: columns as a file has them, name -> fields; see `fields`.
    """
    try:
        return Column(**{**(said or {})[name], "name": name})
    except (KeyError, TypeError, ValueError):  # a file of another version, or somebody wrote into it
        return _declared.get(name) or Column(name, name[:40], form=".4g")


def fields(names: Iterable[str], said: Mapping[str, Any] | None = None) -> dict[str, dict[str, str]]:
    """Name -> fields of the metric's column: for files, so that they can be shown where the metric is not installed."""
    return {name: {k: v for k, v in asdict(of(name, said)).items() if k != "name"} for name in names}


def measured(line: Mapping[str, Any]) -> list[str]:
    """Names of the metrics in a line of metrics.jsonl: the declared ones first, in order, then the others by name.

    Behind them are `OWN` numbers of the line.
    """
    return _in_order(k for k, v in line.items() if (_is_metric(k) or k in OWN) and _is_number(v))


def occurring(lines: Iterable[Mapping[str, Any]]) -> list[str]:
    """Names of the metrics in any of the lines, in the order of `measured`."""
    return _in_order({name for line in lines for name in measured(line)})


def averaged(found: Collection[Mapping[str, float]]) -> dict[str, float]:
    """Mean of every metric over the clients that reported it.

    Args:
        found: metrics by name, one mapping per client, every number finite.
    Returns:
        name -> mean. `RESERVED` names are left out, and so are undeclared ones beyond the `MAX_UNDECLARED` that most
        clients report: no client can write over another number of the line, or flood a table.

    >>> averaged([{"f1": 0.5}, {"f1": 1.0, "round": 9.0}])
    {'f1': 0.75}
    """
    times = Counter(name for metrics in found for name in metrics if _is_metric(name))
    unknown = sorted((name for name in times if name not in _declared), key=lambda name: (-times[name], name))
    names = _in_order(times.keys() - set(unknown[MAX_UNDECLARED:]))
    return {name: fmean(m[name] for m in found if name in m) for name in names}


def _in_order(names: Iterable[str]) -> list[str]:
    """The names, the declared ones first in order of declaration, then the others sorted, then those in `OWN`."""
    place = {name: i for i, name in enumerate(_declared)}
    return sorted(names, key=lambda name: (name in OWN, place.get(name, len(place)), name))


def _is_metric(name: str) -> bool:
    """Whether a metric may have this name; "_sd" is the ending of standard deviations."""
    return name not in RESERVED and not name.endswith("_sd") and NAME.fullmatch(name) is not None


def _is_number(value: Any) -> bool:
    """Whether a value of a line is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
