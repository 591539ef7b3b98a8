"""Clients that share a pass of the model get what each gets alone; what cannot be shared is done one at a time."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from client_turns import (
    PLAIN,
    SPACE,
    UNLIKE,
    alone,
    batch_of,
    classifier,
    gpt2,
    handle_on,
    llama,
    poisoned,
    shared,
    start,
    turn_of,
)
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    BertConfig,
    BertForSequenceClassification,
)

from fedft import strategies
from fedft.adapters.lora import LoRA
from fedft.arithmetic import tensors
from fedft.arithmetic.lowrank import LowRank
from fedft.arithmetic.named_pairs import A_SUFFIX, B_SUFFIX
from fedft.config import Local
from fedft.contract import Course, Learning, Turn
from fedft.models import layout, load, quantized_base
from fedft.models.handle import ModelHandle
from fedft.training import batched_clients
from fedft.training.batched_forward import Unlike
from fedft.training.first_order import FirstOrder

CLOSE = 1e-4


def on_four_bits(net: Any) -> ModelHandle:
    base = quantized_base.packed(load.Base(net, None, "causal-lm", "", ""), 4)
    return ModelHandle(net, layout.layout_of(base, "all-linear"), SPACE)


def far(x: Any, y: Any) -> float:
    """Distance of two updates, relative."""
    return tensors.norm(tensors.sub(x.delta, y.delta)) / tensors.norm(y.delta)


def assert_same(found: list[Any], wanted: list[Any], most: float = CLOSE) -> None:
    for x, y in zip(found, wanted, strict=True):
        assert x.delta.keys() == y.delta.keys()
        assert far(x, y) < most
        assert x.metrics["steps"] == y.metrics["steps"]
        assert x.metrics["loss"] == pytest.approx(y.metrics["loss"], rel=max(most, 1e-5))


OPTIMIZERS = {
    "adamw": {"weight_decay": 0.1},
    "sgd": {"optimizer": "sgd", "momentum": 0.9, "weight_decay": 0.1, "max_grad_norm": None},
    "clipped": {"optimizer": "sgd", "max_grad_norm": 0.05},
}


@pytest.mark.parametrize("send", ["delta", "value"])
@pytest.mark.parametrize("local", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_unlike_ranks_lengths_batches_steps_and_rates_are_as_alone(local: dict[str, Any], send: Any) -> None:
    work = [(replace(t, local=Local(**local)), batches) for t, batches in UNLIKE]
    handle, step = handle_on(llama()), FirstOrder(send=send)
    assert_same(shared(handle, work, step), alone(handle, work, step))


MODELS: dict[str, Callable[[], Any]] = {
    "several heads share a key": lambda: llama(tie_word_embeddings=True),
    "weights that lie across": gpt2,
    "a classifier with its head": classifier,
}


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_other_models_are_as_alone(make: Callable[[], Any]) -> None:
    handle = handle_on(make())
    classes = 3 if handle.layout.head else 0
    work = [
        (turn_of(k, rank=r), [batch_of(9 * k + i, k, 9 - k, classes) for i in range(4)]) for k, r in ((1, 4), (3, 2))
    ]
    found = shared(handle, work)
    assert_same(found, alone(handle, work, PLAIN))
    assert not handle.layout.head or all(x.delta["score.weight"].any() for x in found)


@pytest.mark.parametrize("problem", ["multi_label_classification", "regression"])
def test_several_labels_and_numbers_to_fit_are_as_alone(problem: str) -> None:
    handle = handle_on(classifier())
    handle.model.config.problem_type = problem  # type: ignore[union-attr]
    work = []
    for k, rank in ((1, 4), (3, 2)):  # one row beside three: two are padding
        batches = [batch_of(9 * k + i, k, 9 - k, classes=3) for i in range(4)]
        fit = [torch.randn(k, 3, generator=torch.Generator().manual_seed(9 * k + i)) for i in range(4)]
        labels = [x > 0 if problem == "multi_label_classification" else x for x in fit]
        work.append((turn_of(k, rank=rank), [{**b, "labels": x} for b, x in zip(batches, labels, strict=True)]))
    found = shared(handle, work)
    assert_same(found, alone(handle, work, PLAIN))
    assert all(x.delta["score.weight"].any() for x in found)


def test_a_base_in_half_precision_is_as_alone_to_its_precision() -> None:
    handle = handle_on(llama().bfloat16())
    work = [(turn_of(k, optimizer="sgd"), [batch_of(9 * k + i) for i in range(4)]) for k in (1, 2)]
    assert_same(shared(handle, work), alone(handle, work, PLAIN), most=5e-2)


def test_a_factor_that_stands_still_does() -> None:
    """FFA-LoRA's A is no parameter that learns; RoLoRA's is one that does not in this round."""
    for space, trains in ((LoRA(learns=(B_SUFFIX,)), lambda plan: ("",)), (SPACE, lambda plan: (B_SUFFIX,))):
        handle, step = handle_on(llama(), space), FirstOrder(trains=trains)
        found = shared(handle, UNLIKE, step)
        assert_same(found, alone(handle, UNLIKE, step))
        assert all(n.endswith(B_SUFFIX) for x in found for n in x.delta)


def test_gradients_are_adjusted_for_each_client_with_its_own_tensors() -> None:
    seen: list[tuple[int, list[torch.Size]]] = []

    class Pulled(Course):
        def __init__(self, live: Any, alpha: int) -> None:
            self.live, self.alpha = live, alpha
            self.x = {n: p.detach().clone() for n, p in live.items()}

        def step(self) -> None:
            for n, p in self.live.items():
                p.grad.add_(p.detach() - self.x[n], alpha=self.alpha)

    class Pull:
        def begin(self, learning: Learning, turn: Turn) -> Course:
            seen.append((turn.seed, [p.shape for p in learning.live.values()]))
            return Pulled(learning.live, turn.seed)

    handle, step = handle_on(llama()), FirstOrder(terms=(Pull(),))
    assert_same(shared(handle, UNLIKE, step), alone(handle, UNLIKE, step))
    assert sorted(seen[:3], key=str) == sorted(seen[3:], key=str)


# What happens to one is nothing to the others


def test_a_step_that_is_left_out_is_left_out_for_one_client_only() -> None:
    handle = handle_on(llama())
    clean = shared(handle, UNLIKE)
    bad = [(t, poisoned(b, 0, 2) if t.seed == 2 else b) for t, b in UNLIKE]
    found = shared(handle, bad)
    assert_same(found, alone(handle, bad, PLAIN))
    assert [x.metrics["steps"] for x in found] == [3, 3, 4]
    for k in (0, 2):
        assert tensors.digest(found[k].delta) == tensors.digest(clean[k].delta)


def test_a_client_without_any_finite_loss_fails_alone() -> None:
    handle = handle_on(llama())
    bad = [(t, poisoned(b, *range(5)) if t.seed == 2 else b) for t, b in UNLIKE]
    found = shared(handle, bad)
    assert isinstance(found[1], FloatingPointError)
    assert "non-finite" in str(found[1])
    wanted = alone(handle, bad, PLAIN)
    assert_same([found[0], found[2]], [wanted[0], wanted[2]])


def test_what_fills_a_rank_up_stays_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Any] = []

    class Watched(batched_clients.ClientStack):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            kept.append(self)

    monkeypatch.setattr(batched_clients, "ClientStack", Watched)
    handle = handle_on(llama())
    shared(handle, UNLIKE)
    (stack,) = kept
    m = next(iter(handle.layout.modules))
    a, b = (stack.leaves(3)[m + s].detach() for s in (A_SUFFIX, B_SUFFIX))  # most steps first: ranks 8, 4, 2
    assert a.shape[1] == b.shape[2] == 8
    for k, rank in enumerate((8, 4, 2)):
        assert a[k, :rank].any(1).all()
        assert not a[k, rank:].any()
        assert not b[k, :, rank:].any()


def test_the_model_is_as_before() -> None:
    net = llama()
    shared(handle_on(net), UNLIKE)
    assert all("forward" not in vars(m) for m in net.modules())
    assert not net.get_output_embeddings()._forward_pre_hooks
    now = {n.replace(".base_layer", ""): p for n, p in net.named_parameters() if ".lora_" not in n}
    assert all(torch.equal(now[n], p) for n, p in llama().named_parameters())


def test_the_same_work_gives_the_same_bytes() -> None:
    first, again = (shared(handle_on(llama()), UNLIKE) for _ in range(2))
    assert [tensors.digest(x.delta) for x in first] == [tensors.digest(x.delta) for x in again]


@pytest.mark.parametrize("put", [handle_on, on_four_bits])
def test_who_stands_on_another_base_is_not_let_in(put: Callable[[Any], ModelHandle]) -> None:
    handle, seats = put(llama()), []
    base = batched_clients.common(handle)
    for turn, batches in UNLIKE:
        start(handle, turn)
        if turn.seed == 3:
            m, (o, i) = next(iter(handle.layout.modules.items()))
            handle.set_base_change({m: LowRank(torch.ones(1, i), torch.ones(o, 1))}, key="moved")
        seats.append(batched_clients.seat(handle, PLAIN, turn, iter(batches), base))
    with pytest.raises(Unlike, match="unlike base weights"):
        batched_clients.train(handle, PLAIN, seats, 0)


def test_on_a_packed_base_clients_are_as_alone_wherever_it_stands() -> None:
    work = [(turn_of(k, rank=4 + k), [batch_of(10 * k + s) for s in range(4)]) for k in range(3)]
    found = []
    for go in (shared, alone):
        handle = on_four_bits(llama())
        moved = {
            m: LowRank(torch.full((1, i), 0.1), torch.full((o, 1), 0.1)) for m, (o, i) in handle.layout.modules.items()
        }
        handle.set_base_change(moved, "moved")
        found.append(go(handle, work, PLAIN))
    assert_same(*found)


def test_a_loss_that_differs_from_the_ordinary_one_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    handle = handle_on(llama())
    ordinary = handle.loss
    monkeypatch.setattr(handle, "loss", lambda batch: ordinary(batch) + 0.01)
    with pytest.raises(Unlike, match="alone"):
        shared(handle, UNLIKE)


class Products(TorchDispatchMode):
    """Counts matrix products with weights of the base."""

    def __init__(self, handle: ModelHandle) -> None:
        super().__init__()
        self.count = 0
        self._base = {p.data_ptr() for p in batched_clients.common(handle)}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.bmm):
            self.count += any(isinstance(x, torch.Tensor) and x.data_ptr() in self._base for x in args)
        return func(*args, **(kwargs or {}))


def test_a_shared_step_reads_the_base_as_often_as_one_client_does() -> None:
    handle, work = handle_on(llama()), [(turn_of(k, steps=1), [batch_of(k)]) for k in range(3)]
    with Products(handle) as one:
        alone(handle, work[:1], PLAIN)
    seats, base = [], batched_clients.common(handle)
    for turn, batches in work:
        start(handle, turn)
        seats.append(batched_clients.seat(handle, PLAIN, turn, iter(batches), base))
    with Products(handle) as three:
        batched_clients.train(handle, PLAIN, seats, 0)
    assert three.count == one.count > 0


@pytest.mark.parametrize("train", [alone, shared])
def test_a_local_step_walks_over_no_modules_and_looks_none_up(train: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Either costs as much as a layer of a small model; what there is of it is done once for a turn."""
    seen: list[str] = []
    ordinary = torch.nn.Module.train, torch.nn.Module.get_submodule
    monkeypatch.setattr(torch.nn.Module, "train", lambda *args: seen.append("train") or ordinary[0](*args))
    monkeypatch.setattr(torch.nn.Module, "get_submodule", lambda *args: seen.append("found") or ordinary[1](*args))
    handle = handle_on(llama())

    def counted(steps: int) -> int:
        before = len(seen)
        train(handle, [(turn_of(k, steps=steps), [batch_of(k)] * steps) for k in range(2)], PLAIN)
        return len(seen) - before

    counted(1)  # adapters are made
    assert counted(5) == counted(1)


def test_dropout_and_other_local_steps_are_not_shared() -> None:
    def unfit(name: str, net: Any) -> str:
        recipe = strategies.make(name, {})
        return batched_clients.unfit(recipe, handle_on(net, recipe.space), Local())

    assert unfit("fedit", llama()) == ""
    assert "dropout" in unfit("fedit", llama(attention_dropout=0.1))
    assert "dropout" in unfit("fedit", gpt2(0.1))
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    assert "dropout" in unfit("fedit", BertForSequenceClassification(BertConfig(vocab_size=97, **sizes)))
    for whole, why in (("lm_head", "the output, is trained whole"), ("norm", "is trained whole and no linear layer")):
        net = llama()
        chosen = layout.layout_of(load.Base(net, None, "causal-lm", "", ""), ["q_proj"], modules_to_save=[whole])
        assert why in batched_clients.unfit(strategies.make("fedit", {}), ModelHandle(net, chosen, SPACE), Local())
    assert "not plain back-propagation" in unfit("fedkseed", llama())
    assert "'full'" in unfit("fedavg", llama())
