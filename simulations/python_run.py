"""A finished run, for those who go on with it in Python."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedft.errors import ConfigError
from fedft.reports import columns, metric_log, summary_file

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True, repr=False)
class Run:
    """A finished run: its folder, its summary and its metrics lines."""

    folder: Path
    summary: dict[str, Any]
    lines: list[dict[str, Any]]

    @property
    def model(self) -> Path:
        """Folder of the trained adapter (or of the changes, in the full space)."""
        return self.folder / "model"

    @property
    def best(self) -> Path | None:
        """Folder of the best state's model; None where the run has kept none, see `[eval] best`."""
        name = self.summary.get("best", {}).get("model")
        return self.folder / name if name else None

    def __repr__(self) -> str:
        """Strategy, rounds, first and last held-out loss, and the folder."""
        s, losses = self.summary, [line["loss"] for line in self.lines if "loss" in line]
        learned = f"held-out loss {losses[0]:.4f} -> {losses[-1]:.4f}" if losses else "no held-out rows"
        return f"{s['strategy']}: {learned} in {s['rounds']} rounds of {s['clients']} clients; {self.folder}"

    def _repr_html_(self) -> str:
        return f"<p>{escape(repr(self))}</p>{self.frame()._repr_html_()}"

    def frame(self) -> "pandas.DataFrame":
        """The metrics of every version of the state, a row each: all numbers of its line that are of the whole run."""
        import pandas

        plain = ({k: v for k, v in line.items() if isinstance(v, int | float)} for line in self.lines)
        return pandas.DataFrame(plain).set_index("version")

    def clients(self) -> "pandas.DataFrame":
        """What each client's held-out rows said of the last state that was measured, a row each."""
        import pandas

        measured = [line["evaluation"] for line in self.lines if "evaluation" in line]
        return pandas.DataFrame.from_dict(measured[-1] if measured else {}, orient="index")

    def plot(self, metric: str = "loss") -> Any:
        """A figure of matplotlib: the metric over versions of the state. Raises ConfigError where there is neither."""
        found = self.frame()
        if metric not in found:
            raise ConfigError(f"no metric {metric!r}; the run has {', '.join(found)}")
        from fedft.reports import plots

        if not plots.available():
            raise ConfigError("plots are drawn by matplotlib; pip install 'fedft[report]'")
        return plots.over_rounds(found[metric].dropna().to_dict(), columns.of(metric).heading)

    def evaluate(self, *, rouge: bool = False, metrics: Sequence[str] = ()) -> dict[str, float]:
        """Loss, accuracy and other metrics of the newest state, mean over clients, as `fedft eval` measures them."""
        from fedft.simulations.finished_run import evaluate_run

        return evaluate_run(self.folder, rouge=rouge, more=metrics)[1]

    def generate(self, *records: str | Mapping[str, Any], new_tokens: int = 48) -> list[str]:
        """What the trained model writes, greedily: behind a text, or a record's prompt as the run's template makes it.

        Raises DataError where the model writes no text.
        """
        from fedft.simulations.finished_run import written

        return written(self.folder, records, new_tokens)

    def export(
        self, to: str | Path, *, merged: bool = False, client: str | None = None, rank: int | None = None
    ) -> Path:
        """Write the model to an empty folder as `fedft export` does; returns that folder."""
        from fedft.simulations.finished_run import export_run

        export_run(self.folder, Path(to), merged=merged, client=client, rank=rank)
        return Path(to)

    def compare(self, *others: "Run", against: str | None = None) -> "pandas.DataFrame":
        """This run and others as the table of `fedft report` has them: a row per method, runs of several seeds as one.

        Beside its numbers a method has the paired differences of its loss to that of the method `against` (None: the
        best): `difference_mean`, `_se`, `_low` and `_high` (a 95 % interval) and `_n` over seeds, and over clients the
        same behind `client_`. Raises ConfigError where there is no method `against`.
        """
        import pandas

        from fedft.reports import tables
        from fedft.reports.finished_runs import gather

        done = gather([run.folder for run in (self, *others)], against=against)
        return pandas.DataFrame(tables.numbers(done))


def load(folder: str | Path) -> Run:
    """The finished run in a folder, as `simulate` returned it. Raises ConfigError where there is none."""
    folder = Path(folder)
    return Run(folder, summary_file.of_ended(folder), metric_log.read(folder / "metrics.jsonl"))
