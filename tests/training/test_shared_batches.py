"""Processes that share every batch take the step of the whole batch, also with rows of unlike length."""

import threading
from dataclasses import dataclass, field

import pytest
import torch
from small_models import factors, small
from unlike_rows import pairs, rows

from fedft.adapters.lora import LoRA
from fedft.data import batches
from fedft.data.micro_batches import InPieces, MicroBatch
from fedft.models.handle import ModelHandle
from fedft.training import first_order
from fedft.training.preferences import DPO


@dataclass
class Threads:
    """Stands for processes: `add` waits until all are there."""

    count: int
    parts: dict[int, list[torch.Tensor]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.all = threading.Barrier(self.count)

    def add(self, rank: int, parts: list[torch.Tensor]) -> None:
        self.parts[rank] = [p.clone() for p in parts]
        self.all.wait(timeout=30)
        for n, part in enumerate(parts):
            part.copy_(torch.stack([self.parts[r][n] for r in sorted(self.parts)]).sum(0))
        self.all.wait(timeout=30)


@dataclass
class One:
    """One of them."""

    threads: Threads
    rank: int

    @property
    def count(self) -> int:
        return self.threads.count

    def add(self, parts: list[torch.Tensor]) -> None:
        self.threads.add(self.rank, parts)


@dataclass
class Process:
    """One process's model, in float64, and what it finds."""

    objective: DPO | None
    loss: float = 0.0
    gradients: list[torch.Tensor] = field(default_factory=list)
    rows: int = 0
    """That went through the model for gradients."""

    def __post_init__(self) -> None:
        s = small("llama", torch.float64)
        self.handle = ModelHandle(s.model, s.layout, LoRA(), objective=self.objective)
        self.handle.write({n: x.double() for n, x in factors(s.layout, 2).items()})
        for parameter in self.handle.parameters().values():
            parameter.data = parameter.data.double()
        s.model.register_forward_pre_hook(self.count, with_kwargs=True)

    def count(self, model, args, kwargs) -> None:
        self.rows += len(kwargs["input_ids"]) if torch.is_grad_enabled() else 0

    def work(self, items, size: int | None = None, among: One | None = None) -> None:
        live = list(self.handle.parameters().values())
        collate = (lambda of: self.objective.collate(of, 0)) if self.objective else (lambda of: batches.collate(of, 0))
        batch = InPieces(items, collate, MicroBatch(size, among=among))
        self.loss = float(first_order.differentiate(self.handle, batch, live))
        self.gradients = [p.grad for p in live]


def shared(count: int, objective, items, size: int | None = None) -> tuple[Process, list[Process]]:
    """(one that sees the whole batch, as many as share it)."""
    whole, threads = Process(objective), Threads(count)
    whole.work(items)
    found = [Process(objective) for _ in range(count)]
    work = [threading.Thread(target=p.work, args=[items, size, One(threads, r)]) for r, p in enumerate(found)]
    for thread in work:
        thread.start()
    for thread in work:
        thread.join()
    return whole, found


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize(("objective", "size"), [(None, None), (None, 2), (DPO(0.3), None)])
def test_the_step_is_that_of_the_whole_batch(count: int, objective, size: int | None) -> None:
    whole, found = shared(count, objective, pairs(7) if objective else rows(7), size)
    for process in found:
        assert process.loss == pytest.approx(whole.loss, rel=1e-10)
        for a, b in zip(process.gradients, whole.gradients, strict=True):
            assert float((a - b).abs().max()) <= 1e-10 * max(1.0, float(b.abs().max()))
    assert max(p.rows for p in found) < whole.rows, "nobody sees the whole batch"
    assert sum(p.rows for p in found) <= whole.rows


def test_one_row_is_for_one_of_them() -> None:
    whole, found = shared(2, None, rows(1))
    assert [p.rows for p in found] == [1, 0]
    assert found[0].loss == found[1].loss == pytest.approx(whole.loss)
    assert all(torch.equal(a, b) for a, b in zip(found[1].gradients, whole.gradients, strict=True))
