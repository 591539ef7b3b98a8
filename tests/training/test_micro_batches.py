"""A batch taken in pieces gives the loss and the gradients of the whole, also where rows are of unlike length."""

import dataclasses
from functools import partial

import pytest
import torch
from encoder_decoders import model as encoder_decoder
from small_models import base_of, factors, small
from unlike_rows import pairs, rows

from fedft import run_file
from fedft.adapters.lora import LoRA
from fedft.data import batches, packing
from fedft.data.examples import IGNORED, Example
from fedft.data.micro_batches import InPieces, MicroBatch
from fedft.errors import ConfigError
from fedft.models import checkpointing
from fedft.models.handle import ModelHandle
from fedft.models.layout import layout_of
from fedft.simulations import run as runs
from fedft.training import first_order, objectives
from fedft.training.preferences import DPO, ORPO


def handle_on(name: str, objective=None, dropout: float = 0.0) -> ModelHandle:
    if name in ("t5", "bart"):
        model = encoder_decoder(name).double()
        layout = layout_of(base_of(model, "seq2seq-lm"), "all-linear")
    else:
        s = small(name, torch.float64)
        model, layout = s.model, s.layout
    handle = ModelHandle(model, layout, LoRA(), objective=objective)
    handle.write({n: x.double() for n, x in factors(layout, 2).items()})
    for parameter in handle.parameters().values():
        parameter.data = parameter.data.double()
    for layer in model.modules():
        if isinstance(layer, torch.nn.Dropout):
            layer.p = dropout
    return handle


def step(handle: ModelHandle, items, collate, size: int | None) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss, and gradient of every trained tensor, of one step in pieces of `size` rows."""
    trained = list(handle.parameters().values())
    batch = collate(items) if size is None else InPieces(items, collate, MicroBatch(size))
    loss = first_order.differentiate(handle, batch, trained)
    found = {n: p.grad.clone() for n, p in handle.parameters().items() if p.grad is not None}
    for p in trained:
        p.grad = None
    return float(loss), found


FORMS = {
    "causal": ("llama", objectives.Likelihood(), rows, lambda o: partial(o.collate, pad_id=0)),
    "conv1d": ("gpt2", objectives.Likelihood(), rows, lambda o: partial(o.collate, pad_id=0)),
    "packed": ("llama", objectives.Likelihood(), rows, lambda o: partial(packing.collate, pad_id=0, max_length=16)),
    "dpo": ("llama", DPO(0.3), pairs, lambda o: partial(o.collate, pad_id=0)),
    "orpo": ("llama", ORPO(0.3), pairs, lambda o: partial(o.collate, pad_id=0)),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_pieces_add_up_to_the_whole(form: str, size: int) -> None:
    name, objective, made, collate_of = FORMS[form]
    handle, items = handle_on(name, objective), made()
    collate = collate_of(objective)
    loss, whole = step(handle, items, collate, None)
    again, summed = step(handle, items, collate, size)
    assert again == pytest.approx(loss, rel=1e-6)
    assert max(float(x.abs().max()) for x in whole.values()) > 1e-4
    for n, x in whole.items():
        assert float((summed[n] - x).norm() / x.norm().clamp(min=1e-300)) < 1e-10, n


def test_an_encoder_decoder_and_a_classifier_too() -> None:
    labelled = [Example(r.input_ids, k % 3, len(r.input_ids)) for k, r in enumerate(rows())]
    both = [Example(r.input_ids, other.input_ids, 0) for r, other in zip(rows(), rows(seed=4), strict=True)]
    for name, items, most in (("t5", both, 1e-10), ("bart", both, 1e-10), ("bert", labelled, 1e-5)):
        handle = handle_on(name)
        _, whole = step(handle, items, partial(batches.collate, pad_id=0), None)
        _, summed = step(handle, items, partial(batches.collate, pad_id=0), 3)
        for n, x in whole.items():
            assert float((summed[n] - x).norm() / x.norm().clamp(min=1e-300)) < most, (name, n)


def test_a_batch_of_which_nothing_is_learned_has_no_loss_in_pieces_either() -> None:
    handle = handle_on("llama")
    nothing = [dataclasses.replace(r, labels=[IGNORED] * len(r.labels)) for r in rows()]
    loss, _ = step(handle, nothing, partial(handle.objective.collate, pad_id=0), 2)
    assert loss != loss


def test_forward_passes_see_the_mean_of_the_whole_batch() -> None:
    handle, items = handle_on("llama"), rows()
    collate = partial(handle.objective.collate, pad_id=0)
    with torch.no_grad():
        whole, pieces = handle.loss(collate(items)), handle.loss(InPieces(items, collate, MicroBatch(3)))
    assert float(pieces) == pytest.approx(float(whole), rel=1e-6)


def test_auto_takes_fewer_rows_each_time_that_memory_is_not_enough(monkeypatch, caplog) -> None:
    handle, items = handle_on("llama"), rows()
    collate, room = partial(handle.objective.collate, pad_id=0), MicroBatch(may_shrink=True)
    _, whole = step(handle, items, collate, None)
    loss_of, sizes = handle.loss, []

    def loss(batch):
        sizes.append(len(batch["input_ids"]))
        if sizes[-1] > 3:
            raise torch.OutOfMemoryError("as on a device")
        return loss_of(batch)

    monkeypatch.setattr(handle, "loss", loss)
    trained = list(handle.parameters().values())
    first_order.differentiate(handle, InPieces(items, collate, room), trained)
    assert sizes[:2] == [8, 4]
    assert set(sizes[2:]) == {2}
    assert room.rows == 2
    assert "2 records at a time" in caplog.text
    for n, p in handle.parameters().items():
        assert torch.allclose(p.grad, whole[n], rtol=1e-9, atol=1e-12)
    with pytest.raises(torch.OutOfMemoryError):
        first_order.differentiate(handle, InPieces(items, collate, MicroBatch(8)), trained)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_checkpointing_changes_no_bit_and_keeps_less(name: str) -> None:
    items = rows()
    plain, checkpointed = handle_on(name, dropout=0.1), handle_on(name, dropout=0.1)
    checkpointing.switch_on(checkpointed.model, name)
    collate = partial(plain.objective.collate, pad_id=0)
    kept = []
    for handle in (plain, checkpointed):
        held = 0

        def count(x: torch.Tensor) -> torch.Tensor:
            nonlocal held
            held += x.numel()
            return x

        with torch.autograd.graph.saved_tensors_hooks(count, lambda x: x):
            handle.loss(collate(items))
        kept.append(held)
    assert kept[1] < kept[0] / 2
    found = []
    for handle in (plain, checkpointed):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)  # dropout draws the same again
            found.append(step(handle, items, collate, None))
    (loss, grads), (again, same) = found
    assert loss == again
    assert all(torch.equal(grads[n], same[n]) for n in grads)


def test_a_model_without_checkpoints_is_refused_in_one_line() -> None:
    with pytest.raises(ConfigError, match="checkpointing: toy, a ToyModel, cannot compute its layers again"):
        checkpointing.switch_on(small("toy").model, "toy")


def test_a_run_in_pieces_is_the_run_but_for_rounding(tiny_base, tmp_path) -> None:
    sets = [f"model.id='{tiny_base}'", "data.clients=2", "local.steps=2", "server.rounds=2", "server.loggers=[]"]
    sets += ["strategy.name=fedit", "eval.max_rows=4", "local.batch_size=4"]
    losses = []
    for k, more in enumerate(([], ["local.micro_batch=1"], ["local.checkpointing=true", "local.micro_batch='auto'"])):
        config = run_file.load(runs.QUICKSTART, [*sets, *more])
        losses.append(runs.simulate(config, out=tmp_path / str(k)).summary["final"]["loss"])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert losses[2] == losses[0]


def test_an_objective_that_cannot_weigh_its_pieces_is_refused(monkeypatch) -> None:
    monkeypatch.delattr(objectives.OfLogits, "weight")
    config = run_file.load(None, ["local.micro_batch=2"])
    with pytest.raises(ConfigError, match="does not say what a piece of a batch counts"):
        objectives.of(config)
