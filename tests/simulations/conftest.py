"""Runs of a second that several files here begin with, and what takes longer than they do."""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from fedft import run_file
from fedft.reports import plots
from fedft.simulations import run as runs


@pytest.fixture(scope="module")
def without_plots() -> Iterator[None]:
    """A race's page has its own tests; drawing takes longer than small runs."""
    with pytest.MonkeyPatch.context() as m:
        m.setattr(plots, "available", lambda: False)
        yield


@pytest.fixture(scope="module")
def overrides(tiny_base: Path) -> list[str]:
    """One round of two steps for two clients on a Llama with two layers of 64."""
    small = ["local.steps=2", "local.batch_size=2", "server.rounds=1", "data.clients=2", "eval.max_rows=4"]
    return [f"model.id='{tiny_base}'", "clients.rank=4", *small]


@pytest.fixture(scope="module")
def on_rows(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Callable[..., runs.Run]]:
    """Gives a function that runs the quickstart on so many rows of two clients, with these overrides and more."""

    def begun(count: int, sets: Sequence[str]) -> Callable[..., runs.Run]:
        rows = tmp_path_factory.mktemp("rows") / "rows.jsonl"
        said = [{"client": "ab"[n % 2], "prompt": f"def f{n}(x):", "response": f"Return x plus {n}."}
                for n in range(count)]  # fmt: skip
        rows.write_text("".join(json.dumps(row) + "\n" for row in said))

        def run(*more: str, strategy: str = "fedit") -> runs.Run:
            own = [f"model.id='{tiny_base}'", f"strategy.name={strategy}", f"data.train='{rows}'"]
            config = run_file.load(runs.QUICKSTART, [*own, *sets, *more])
            return runs.simulate(config, out=tmp_path_factory.mktemp("run") / "run")

        return run

    return begun
