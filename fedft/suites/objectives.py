"""The contract of an objective (`fedft.contract.Objective`), on a model of a few thousand numbers that reads tokens."""

import math
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch

from fedft.adapters.lora import LoRA
from fedft.arithmetic import tensors
from fedft.config import Data, Model, RunConfig
from fedft.contract import Layout, Objective
from fedft.models.handle import ModelHandle
from fedft.suites.promises import kept
from fedft.suites.toy import SEED, ToyTokens

RECORD = {
    "prompt": "a b c", "response": "d e", "chosen": "d e f", "rejected": "g", "text": "a b c", "label": "1",
}  # fmt: skip


class _Tokenizer:
    """One token per letter; enough of transformers' interface to encode a template."""

    bos_token_id, eos_token_id, pad_token_id = None, 11, 0

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": [1 + ord(c) % 10 for c in text]}


def _examples(objective: Objective, records: Sequence[Mapping[str, Any]] = (RECORD,)) -> list[Any]:
    base = SimpleNamespace(tokenizer=_Tokenizer(), pad_id=0)
    config = RunConfig(model=Model(labels=["0", "1"]), data=Data(max_length=24))
    return [objective.encode(record, base, config, f"row {n}") for n, record in enumerate(records, 1)]


def _records() -> list[dict[str, Any]]:
    return [RECORD, {**RECORD, "response": "h", "chosen": "h i", "rejected": "d e f"}, {**RECORD, "prompt": "b"}]


def _handle(objective: Objective) -> ModelHandle:
    model = ToyTokens()
    layers = {"first": (6, 8), "second": (12, 6)}
    layout = Layout(layers, parameters={n: tuple(p.shape) for n, p in sorted(model.named_parameters())})
    handle = ModelHandle(model, layout, LoRA(), objective=objective)
    start = handle.kind.initial(layout, 2, SEED)
    handle.write({n: x + 0.05 if n.endswith("B") else x for n, x in start.items()})
    return handle


def _rows_become_one_batch_of_tensors(objective: Objective) -> None:
    batch = objective.collate(_examples(objective, _records()), 0)
    assert batch, "an empty batch"
    assert all(isinstance(x, torch.Tensor) for x in batch.values()), "a batch holds something else than tensors"


def _the_loss_is_a_finite_scalar_with_a_gradient(objective: Objective) -> None:
    handle = _handle(objective)
    loss = handle.loss(objective.collate(_examples(objective, _records()), 0))
    assert loss.shape == (), f"the loss has shape {tuple(loss.shape)}"
    assert math.isfinite(float(loss.detach())), "the loss is not finite"
    loss.backward()
    grads = [p.grad for p in handle.parameters().values()]
    assert any(g is not None and bool(g.any()) for g in grads), "nothing that is trained has a gradient"


def _measuring_agrees_with_the_loss_and_changes_nothing(objective: Objective) -> None:
    handle = _handle(objective)
    before, batch = tensors.digest(handle.read()), objective.collate(_examples(objective, _records()), 0)
    with torch.no_grad():
        loss = float(handle.loss(batch))
        total, weight = objective.measure(handle, batch)["loss"]
    assert weight > 0, "the weight of a batch is not above 0"
    assert abs(total / weight - loss) <= 1e-4 * (1 + abs(loss)), f"measured {total / weight:g}, trained on {loss:g}"
    assert tensors.digest(handle.read()) == before, "measuring changed the model"


def _a_row_has_the_loss_that_it_has_alone(objective: Objective) -> None:
    """Whatever rows stand beside it; of an objective that says the losses of rows at all."""
    if not hasattr(objective, "losses"):
        return
    handle, rows = _handle(objective), _examples(objective, _records())
    with torch.no_grad():
        together = handle.losses(objective.collate(rows, 0)).tolist()
        alone = [float(handle.loss(objective.collate([row], 0))) for row in rows]
    assert len(together) == len(rows), f"{len(together)} losses of {len(rows)} rows"
    for row, (x, y) in enumerate(zip(together, alone, strict=True), 1):
        assert abs(x - y) <= 1e-5 * (1 + abs(y)), f"row {row} has {x:g} beside others, {y:g} alone"


def _it_works_without_gradients(objective: Objective) -> None:
    """Zeroth-order steps see nothing else."""
    handle = _handle(objective)
    with torch.no_grad():
        loss = handle.loss(objective.collate(_examples(objective), 0))
    assert not loss.requires_grad, "a graph where gradients are off"


def _steps_lower_it(objective: Objective) -> None:
    handle = _handle(objective)
    batch = objective.collate(_examples(objective, _records()), 0)
    optimizer = torch.optim.Adam(handle.parameters().values(), lr=0.02)
    first = None
    for _ in range(30):
        loss = handle.loss(batch)
        first = float(loss.detach()) if first is None else first
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert first is not None
    assert float(loss.detach()) < first, f"from {first:g} to {float(loss.detach()):g} in 30 steps"


PROMISES = {
    "rows become one batch of tensors": _rows_become_one_batch_of_tensors,
    "the loss is a finite scalar with a gradient": _the_loss_is_a_finite_scalar_with_a_gradient,
    "measuring agrees with the loss and changes nothing": _measuring_agrees_with_the_loss_and_changes_nothing,
    "a row has the loss that it has alone": _a_row_has_the_loss_that_it_has_alone,
    "it works without gradients": _it_works_without_gradients,
    "steps lower it": _steps_lower_it,
}


def objective_contract(objective: Objective, *, stop: bool = True) -> dict[str, str]:
    """Check every promise on `objective`; returns {promise: "" or what broke it}; with `stop` raises the first one."""
    return kept(PROMISES, objective, type(objective).__name__, stop=stop)
