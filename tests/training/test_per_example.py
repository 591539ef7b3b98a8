"""Gradients of single records: those of one pass for each, of every kind of layer that is trained; clipped sums."""

import pytest
import torch
from small_models import base_of, factors, llama, small
from torch import nn
from unlike_rows import pairs, rows

from fedft.adapters.lora import LoRA
from fedft.contract import Layout
from fedft.data.batches import ClientRows
from fedft.data.examples import Example
from fedft.errors import ConfigError, PlanRefused
from fedft.models.handle import ModelHandle
from fedft.models.layout import layout_of
from fedft.suites.toy import ToyModel
from fedft.training import objectives, per_example
from fedft.training.linear_owners import linear_owners
from fedft.training.per_example import Watch, clipped_sum, norms
from fedft.training.preferences import DPO, ORPO

EVERY = ("llama", "gpt2", "bert", "ffa", "ffa on gpt2", "dpo", "orpo")
every_kind = pytest.mark.parametrize("name", EVERY)


def handle_of(name: str, dropout: float = 0.0) -> tuple[ModelHandle, list]:
    """A model with factors and heads that are not 0, and its rows, of unlike lengths."""
    model, objective = {"ffa": "llama", "ffa on gpt2": "gpt2", "dpo": "llama", "orpo": "llama"}.get(name, name), None
    objective = {"dpo": DPO(0.3), "orpo": ORPO(0.3)}.get(name)
    s = small(model)
    handle = ModelHandle(s.model, s.layout, LoRA((".lora_B",)) if "ffa" in name else LoRA(), objective=objective,
                         dropout=dropout)  # fmt: skip
    handle.write(factors(s.layout, 2))
    for layer in handle.model.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = dropout
    of = pairs() if objective else rows()
    if model == "bert":
        of = [Example(row.input_ids, n % 3, 1) for n, row in enumerate(of)]
    return handle, of


def batch_of(handle: ModelHandle, of: list):
    return handle.objective.collate(of, 0)


def row_by_row(handle: ModelHandle, of: list) -> dict[str, torch.Tensor]:
    """Gradients of a batch of each row alone."""
    live = handle.parameters()
    found = [torch.autograd.grad(handle.losses(batch_of(handle, [row]))[0], [*live.values()]) for row in of]
    return {n: torch.stack([g[k] for g in found]) for k, n in enumerate(live)}


def apart(x, y) -> float:
    """The largest difference of any row's gradient, relative to the largest gradient."""
    return float(norms({n: x[n] - y[n] for n in y}).max() / norms(y).max())


@every_kind
def test_gradients_of_rows_are_those_of_one_pass_for_each(name: str) -> None:
    handle, of = handle_of(name)
    with Watch(handle, handle.parameters()) as watch:
        found = watch.gradients(batch_of(handle, of))
    assert list(found) == list(handle.parameters())
    assert apart(found, row_by_row(handle, of)) < 1e-5
    assert all(p.grad is None and p.requires_grad for p in handle.parameters().values())


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert"])
def test_they_add_up_to_what_back_propagation_gives_with_dropout(name: str) -> None:
    """One draw of dropout for both; of a row, what of the pass's loss is its own."""
    handle, of = handle_of(name, dropout=0.3)
    batch, live = batch_of(handle, of), handle.parameters()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        with Watch(handle, live) as watch:
            found = watch.gradients(batch)
        torch.manual_seed(3)
        losses = handle.losses(batch)
    wanted = [torch.autograd.grad(x, [*live.values()], retain_graph=True) for x in losses]
    assert apart(found, {n: torch.stack([g[k] for g in wanted]) for k, n in enumerate(live)}) < 1e-5
    assert apart(found, row_by_row(handle, of)) > 1e-2, "nothing was dropped"


@pytest.mark.parametrize("name", ["llama", "ffa", "gpt2", "bert"])
@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
def test_they_are_those_of_opacus(name: str) -> None:
    grad_sample = pytest.importorskip("opacus.grad_sample", reason="opacus, an independent implementation")
    handle, of = handle_of(name)
    batch, live = batch_of(handle, of), handle.parameters()
    with Watch(handle, live) as watch:
        ours = watch.gradients(batch)
    opacus = grad_sample.GradSampleModule(handle.model, loss_reduction="sum")
    handle.losses(batch).sum().backward()
    theirs = {n: p.grad_sample for n, p in live.items()}
    opacus.remove_hooks()
    assert apart(ours, theirs) < 1e-5


@pytest.mark.parametrize("clip", [1e-3, 0.5, 1e9])
def test_a_clipped_sum_is_the_sum_of_rows_scaled_down_to_the_clip(clip: float) -> None:
    handle, of = handle_of("llama")
    own = row_by_row(handle, of)
    lengths = norms(own).clamp(min=1e-12)
    wanted = {n: sum(g[i] * min(1.0, clip / float(lengths[i])) for i in range(len(of))) for n, g in own.items()}
    found = clipped_sum(own, clip)
    assert apart({n: x[None] for n, x in found.items()}, {n: x[None] for n, x in wanted.items()}) < 1e-5


def test_no_clipped_row_is_longer_than_the_clip() -> None:
    """Of any size of float32, 0 and subnormal numbers among them."""
    draws = torch.Generator().manual_seed(1)
    for k in range(2000):
        x = {n: torch.randn(1, 7, generator=draws) * 10.0 ** (k % 76 - 44) for n in "ab"}
        x["b"][0, :3] = 0
        assert float(norms({n: t[None] for n, t in clipped_sum(x, 0.3).items()})) <= 0.3


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_row_that_is_not_finite_counts_as_0(bad: float) -> None:
    x = {"a": torch.ones(3, 2), "b": torch.ones(3, 4)}
    x["b"][1, 2] = bad
    found = clipped_sum(x, 100.0)
    assert found["a"].tolist() == pytest.approx([2, 2], rel=1e-6)
    assert found["b"].tolist() == pytest.approx([2] * 4, rel=1e-6)


def test_rows_of_zeros_divide_nothing() -> None:
    assert clipped_sum({"a": torch.zeros(3, 2)}, 0.5)["a"].tolist() == [0, 0]


def test_a_layer_that_is_called_twice_has_the_sum_of_both_calls() -> None:
    class Twice(ToyModel):
        def forward(self, x, labels=None):
            return super().forward(x + torch.nn.functional.pad(self.first(x), (0, 2)), labels)

    torch.manual_seed(0)
    layout = Layout(modules={"first": (6, 8), "second": (4, 6)})
    handle = ModelHandle(Twice(), layout, LoRA())
    handle.write(factors(layout, 2))
    x = torch.randn(5, 8)
    batch = {"x": x, "labels": torch.randn(5, 4)}
    with Watch(handle, handle.parameters()) as watch:
        found = watch.gradients(batch)
    live = handle.parameters()
    own = [torch.autograd.grad(handle.losses({n: t[i : i + 1] for n, t in batch.items()})[0], [*live.values()])
           for i in range(5)]  # fmt: skip
    assert apart(found, {n: torch.stack([g[k] for g in own]) for k, n in enumerate(live)}) < 1e-5


def test_known_answer_of_a_row() -> None:
    """privacy.md 12: X = ((1, 2), (0, 1)), G = ((1), (2)): g = (1, 4), of squared norm 17."""
    layer = nn.Linear(2, 1, bias=False)

    class Weighed:
        model = layer

        def losses(self, batch, dropout=True):
            return (layer(batch["x"])[..., 0] * torch.tensor([[1.0, 2.0]])).sum(1)

    with Watch(Weighed(), {"w": layer.weight}) as watch:
        found = watch.gradients({"x": torch.tensor([[[1.0, 2.0], [0.0, 1.0]]])})
    assert found["w"].tolist() == [[[1, 4]]]
    assert float(norms(found)) ** 2 == pytest.approx(17)


def refused(handle: ModelHandle, live=None) -> str:
    with pytest.raises(ConfigError) as e:
        linear_owners(handle, live or handle.parameters())
    return str(e.value)


def test_what_has_no_gradients_of_rows_is_named() -> None:
    handle, _ = handle_of("llama")
    body, tied = handle.model.model, handle.model.lm_head.weight
    assert "model.norm.weight has none of: it is of a LlamaRMSNorm" in refused(
        handle, {"model.norm.weight": body.norm.weight}
    )
    assert "it is of a Embedding" in refused(handle, {"lm_head.weight": tied})
    assert "no layer owns it" in refused(handle, {"w": nn.Parameter(torch.zeros(3))})
    one, two = body.layers[0].mlp, body.layers[1].mlp
    two.up_proj.base_layer.weight = one.up_proj.base_layer.weight
    assert "two layers share it" in refused(handle, {"up": one.up_proj.base_layer.weight})
    untied = llama(tied=False)
    whole = ModelHandle(untied, layout_of(base_of(untied), "all-linear"), LoRA())
    assert "output layer sees learned tokens" in refused(whole, {"lm_head.weight": untied.lm_head.weight})


def written(model: nn.Module, layout) -> ModelHandle:
    handle = ModelHandle(model, layout, LoRA())
    handle.write(factors(layout, 2))
    return handle


def test_batch_normalisation_is_refused() -> None:
    handle, _ = handle_of("llama")
    handle.model.add_module("norm_of_batch", nn.BatchNorm1d(3))
    assert "norm_of_batch" in refused(handle)


def test_a_layer_that_sees_flattened_tokens_is_refused() -> None:
    handle, of = handle_of("llama")
    layer = handle.model.model.layers[0].mlp
    ran = layer.forward
    layer.forward = lambda x: ran(x.reshape(-1, x.shape[-1])).view(x.shape)
    with Watch(handle, handle.parameters()) as watch, pytest.raises(ConfigError, match="row by row"):
        watch.gradients(batch_of(handle, of))


def data_of(handle: ModelHandle, of: list) -> ClientRows:
    return ClientRows(of, 4, lambda some: handle.objective.collate(some, 0))


@every_kind
def test_the_self_test_passes_and_leaves_the_model_as_it_was(name: str) -> None:
    handle, of = handle_of(name)
    before = {n: p.detach().clone() for n, p in handle.parameters().items()}
    per_example.self_test(handle, of, data_of(handle, of))
    assert all(torch.equal(before[n], p) for n, p in handle.parameters().items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_self_test_passes_in_half_precision(dtype: torch.dtype) -> None:
    s = small("llama", dtype)
    handle = written(s.model, s.layout)
    per_example.self_test(handle, rows(), data_of(handle, rows()))


def test_the_self_test_finds_rows_that_see_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    handle, of = handle_of("llama")
    layer = handle.model.model.layers[0].mlp
    ran = layer.forward
    monkeypatch.setattr(layer, "forward", lambda x: ran(x) + 0.1 * x.mean(0, keepdim=True))
    with pytest.raises(PlanRefused, match="a record's loss") as e:
        per_example.self_test(handle, of, data_of(handle, of))
    assert e.value.code == "dp_selftest"


def test_the_self_test_finds_hooks_that_miss_something(monkeypatch: pytest.MonkeyPatch) -> None:
    handle, of = handle_of("llama")
    add = Watch._add
    monkeypatch.setattr(Watch, "_add", lambda self, module, x, g: add(self, module, x[..., 1:2] * 0 + x, g * 1.01))
    with pytest.raises(PlanRefused, match="a record's gradient"):
        per_example.self_test(handle, of, data_of(handle, of))


def test_an_objective_whose_losses_are_not_its_loss_is_found() -> None:
    class Other(objectives.Likelihood):
        def losses(self, handle, batch):
            return 1.1 * super().losses(handle, batch)

    s = small("llama")
    handle = ModelHandle(s.model, s.layout, LoRA(), objective=Other())
    handle.write(factors(s.layout, 2))
    with pytest.raises(PlanRefused, match="a record's loss"):
        per_example.self_test(handle, rows(), data_of(handle, rows()))
