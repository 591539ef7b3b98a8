"""A resident model under a handle: unit scale, orientation, ties, perturbation and the way back, bit for bit."""

import copy
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
import transformers
from torch import nn

from fedft.adapters.full import Full
from fedft.adapters.lora import LoRA
from fedft.arithmetic.lowrank import A_SUFFIX, B_SUFFIX, LowRank, zero
from fedft.contract import Layout
from fedft.data.examples import IGNORED
from fedft.errors import DataError
from fedft.models import load
from fedft.models.handle import ModelHandle
from fedft.models.layout import layout_of
from fedft.randomness import families
from fedft.randomness.independent import Table
from fedft.strategies.fedit import fedit
from fedft.testing import ToyModel
from fedft.update import Plan, Update

SEED = 5
TOKENS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6], [5, 3, 5, 8, 9, 7, 9, 3]])


def toy_model() -> nn.Module:
    return ToyModel()


def gpt2() -> nn.Module:
    """Conv1D layers: weights are stored [in, out]; input and output embeddings are tied."""
    config = transformers.GPT2Config(
        n_embd=16, n_layer=2, n_head=2, vocab_size=20, n_positions=16, bos_token_id=0, eos_token_id=0, pad_token_id=0
    )
    return transformers.GPT2LMHeadModel(config)


def llama(tied: bool = True) -> nn.Module:
    config = transformers.LlamaConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        vocab_size=20,
        tie_word_embeddings=tied,
        pad_token_id=0,
    )
    return transformers.LlamaForCausalLM(config)


def bert() -> nn.Module:
    config = transformers.BertConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        vocab_size=20,
        max_position_embeddings=16,
        num_labels=3,
    )
    return transformers.BertForSequenceClassification(config)


@dataclass(frozen=True)
class Small:
    """A model of random weights, its layout, and a batch."""

    model: nn.Module
    layout: Layout
    batch: dict[str, torch.Tensor]

    def handle(self, space=None) -> ModelHandle:
        return ModelHandle(self.model, self.layout, space or LoRA())


def base_of(m: nn.Module, task: str = "causal-lm") -> load.Base:
    return load.Base(m, None, task, "random", "")


def small(name: str, dtype: torch.dtype = torch.float32) -> Small:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        m = {"toy": toy_model, "gpt2": gpt2, "llama": llama, "bert": bert}[name]().to(dtype).eval()
    if name == "toy":
        shapes = {n: tuple(p.shape) for n, p in sorted(m.named_parameters())}
        layout = Layout(modules={"first": (6, 8), "second": (4, 6)}, parameters=shapes)
        x = torch.linspace(-1, 1, 40, dtype=dtype).reshape(5, 8)
        return Small(m, layout, {"x": x, "labels": torch.linspace(1, -1, 20, dtype=dtype).reshape(5, 4)})
    task = "sequence-classification" if name == "bert" else "causal-lm"
    with torch.no_grad():  # the usual 0.02 makes logits so flat that a lost perturbation would not show
        for p in m.parameters():
            p.mul_(4 if p.ndim == 2 else 1)
    labels = torch.tensor([0, 2]) if name == "bert" else TOKENS
    batch = {"input_ids": TOKENS, "attention_mask": torch.ones_like(TOKENS), "labels": labels}
    return Small(m, layout_of(base_of(m, task), "all-linear"), batch)


MODELS = ("toy", "gpt2", "llama", "bert")
every_model = pytest.mark.parametrize("name", MODELS)
transformer = pytest.mark.parametrize("name", MODELS[1:])


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def factors(layout: Layout, rank: int, seed: int = 1) -> dict[str, torch.Tensor]:
    """Unit-scale factors and head changes large enough to be seen."""
    found = {n: 0.1 * normal(seed, *s) for n, s in layout.head.items()}
    for k, (m, (o, i)) in enumerate(layout.modules.items()):
        found[m + A_SUFFIX] = normal(seed + k, rank, i) / i**0.5
        found[m + B_SUFFIX] = normal(seed + k + 99, o, rank) / 4
    return found


def changes(layout: Layout, rank: int, seed: int = 1) -> dict[str, LowRank]:
    return {m: LowRank(f[0], f[1]) for m, f in pairs_of(factors(layout, rank, seed), layout).items()}


def pairs_of(values, layout: Layout) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    return {m: (values[m + A_SUFFIX], values[m + B_SUFFIX]) for m in layout.modules}


def logits(m: nn.Module, batch) -> torch.Tensor:
    m.eval()
    with torch.no_grad():
        return m(**batch).logits


def is_conv1d(module: nn.Module) -> bool:
    return type(module).__name__ == "Conv1D"


def shifted(original: nn.Module, values, layout: Layout) -> nn.Module:
    """A copy whose weights are moved by hand: by B A in the weight's own orientation, and heads by their change."""
    other = copy.deepcopy(original)
    with torch.no_grad():
        for m, (a, b) in pairs_of(values, layout).items():
            module = other.get_submodule(m)
            module.weight.add_((b @ a).T if is_conv1d(module) else b @ a)
        for n in layout.head:
            other.get_parameter(n).add_(values[n])
    return other


def distance(x: torch.Tensor, y: torch.Tensor) -> float:
    return float((x - y).abs().max())


# -- adapters


@every_model
@pytest.mark.parametrize("alpha", [None, 1.0, 7.0])
def test_factors_come_back_in_unit_scale(name, alpha):
    s = small(name)
    handle = ModelHandle(s.model, s.layout, LoRA(), lora_alpha=alpha)
    values = factors(s.layout, 3)
    handle.write(values)
    got = handle.read()
    assert list(got) == sorted(values, key=str.encode)
    for n, x in got.items():
        assert x.dtype == torch.float32
        assert torch.allclose(x, values[n], rtol=2e-7, atol=2e-8)  # x / s * s, or w0 + change - w0


@every_model
@pytest.mark.parametrize("alpha", [None, 1.0, 7.0])
def test_a_written_pair_changes_the_function_by_b_a_whatever_alpha(name, alpha):
    """In the orientation of the layer: a GPT-2 Conv1D stores its weight transposed."""
    s = small(name)
    untouched, values = copy.deepcopy(s.model), factors(s.layout, 3)
    handle = ModelHandle(s.model, s.layout, LoRA(), lora_alpha=alpha)
    handle.write(values)
    want = logits(shifted(untouched, values, s.layout), s.batch)
    assert distance(logits(handle.model, s.batch), want) < 1e-5
    assert distance(want, logits(untouched, s.batch)) > 1e-2


def test_what_is_read_is_a_copy():
    handle = small("toy").handle()
    handle.write(factors(handle.layout, 2))
    got = handle.read()
    before = {n: x.clone() for n, x in got.items()}
    for x in got.values():
        x.zero_()
    assert all(torch.equal(x, before[n]) for n, x in handle.read().items())


@every_model
def test_a_fresh_a_with_b_zero_leaves_the_outputs_bit_for_bit(name):
    s = small(name)
    before = logits(s.model, s.batch)
    handle = s.handle()
    for seed in (1, 2):
        handle.write(LoRA().initial(s.layout, 2, seed))
        assert torch.equal(logits(handle.model, s.batch), before)


@every_model
def test_two_ranks_alternate_without_seeing_each_other(name):
    s = small(name)
    untouched, handle = copy.deepcopy(s.model), s.handle()
    by_rank = {r: factors(s.layout, r, seed=10 * r) for r in (2, 3)}
    for rank in (2, 3, 2, 3):
        handle.write(by_rank[rank])
        assert (
            distance(logits(handle.model, s.batch), logits(shifted(untouched, by_rank[rank], s.layout), s.batch)) < 1e-5
        )
        assert all(x.shape == by_rank[rank][n].shape for n, x in handle.read().items())


@every_model
@pytest.mark.parametrize("trained", [(A_SUFFIX, B_SUFFIX), (B_SUFFIX,), (A_SUFFIX,)], ids=["both", "B", "A"])
def test_exactly_what_is_trained_asks_for_gradients(name, trained):
    """Also after a second rank, and back: peft switches gradients of a whole adapter on."""
    s = small(name)
    handle = s.handle(LoRA(learns=trained))
    for rank in (2, 3, 2):
        handle.write(factors(s.layout, rank))
        wanting = {id(p) for p in handle.model.parameters() if p.requires_grad}
        assert wanting == {id(p) for p in handle.parameters().values()}
        modules = {m + t for m in s.layout.modules for t in trained}
        assert set(handle.parameters()) == modules | set(s.layout.head)
        assert handle.read().keys() == handle.parameters().keys()
        handle.loss(s.batch).backward()
        assert {id(p) for p in handle.model.parameters() if p.grad is not None} <= wanting
        handle.model.zero_grad()


def test_making_an_adapter_does_not_touch_the_global_random_numbers():
    torch.manual_seed(1)
    want = torch.rand(3)
    torch.manual_seed(1)
    s = small("llama")
    s.handle().write(factors(s.layout, 2))
    assert torch.equal(torch.rand(3), want)


# -- moving the base


@every_model
def test_standing_moves_the_weights_by_the_dense_change_in_their_orientation(name):
    s = small(name)
    w0 = {m: s.model.get_submodule(m).weight.detach().clone() for m in s.layout.modules}
    change, handle = changes(s.layout, 3), s.handle()
    handle.set_base_change(change, "a")
    for m, d in change.items():
        module = handle.model.get_submodule(m)
        assert torch.equal(module.weight, w0[m] + (d.dense().T if is_conv1d(module) else d.dense()))


@every_model
@pytest.mark.parametrize(
    "empty",
    [lambda layout: {}, lambda layout: {m: zero(*s) for m, s in layout.modules.items()}],
    ids=["no modules", "zeros"],
)
def test_standing_at_nothing_is_w0_bit_for_bit(name, empty):
    s = small(name)
    w0 = {n: p.detach().clone() for n, p in s.model.named_parameters()}
    handle = s.handle()
    for k in range(3):
        handle.set_base_change(changes(s.layout, k + 1, seed=k), f"round {k}")
    handle.set_base_change(empty(s.layout), "none")
    assert all(torch.equal(p, w0[n]) for n, p in handle.model.named_parameters())


def test_modules_left_out_of_a_change_stand_at_w0():
    s = small("llama")
    w0 = {m: s.model.get_submodule(m).weight.detach().clone() for m in s.layout.modules}
    change, handle = changes(s.layout, 2), s.handle()
    handle.set_base_change(change, "all")
    first = next(iter(change))
    handle.set_base_change({first: change[first]}, "first")
    for m, w in w0.items():
        assert torch.equal(handle.model.get_submodule(m).weight, w) == (m != first)


@every_model
def test_standing_does_not_depend_on_where_the_model_stood(name):
    s, other = small(name), small(name)
    handle, fresh = s.handle(), other.handle()
    for k in range(5):
        handle.set_base_change(changes(s.layout, 2, seed=k), str(k))
    fresh.set_base_change(changes(s.layout, 2, seed=4), "4")
    assert torch.equal(logits(handle.model, s.batch), logits(fresh.model, s.batch))


def test_a_known_key_is_not_computed_again():
    s = small("toy")
    handle = s.handle()
    handle.set_base_change(changes(s.layout, 2), "key")
    moved = handle.model.first.weight.detach().clone()
    handle.set_base_change(changes(s.layout, 2, seed=9), "key")
    assert torch.equal(handle.model.first.weight, moved)


@every_model
def test_adapter_and_base_change_add_and_are_reported_as_one(name):
    s = small(name)
    untouched, handle = copy.deepcopy(s.model), s.handle()
    values, under = factors(s.layout, 2), changes(s.layout, 3, seed=7)
    handle.set_base_change(under, "under")
    handle.write(values)
    pairs, whole = handle.change()
    for m, (a, b) in pairs_of(values, s.layout).items():
        assert distance(pairs[m].dense(), under[m].dense() + b @ a) < 1e-5
    assert whole.keys() == s.layout.head.keys()
    both = {n: values[n] for n in s.layout.head}
    both |= {m + x: t for m, d in pairs.items() for x, t in ((A_SUFFIX, d.A), (B_SUFFIX, d.B))}
    assert distance(logits(handle.model, s.batch), logits(shifted(untouched, both, s.layout), s.batch)) < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_half_precision_base_is_w0_plus_change_with_one_rounding(name, dtype):
    """A running sum would round once per round; here round 50 is as near as round 1."""
    s = small(name, dtype)
    w0 = {m: s.model.get_submodule(m).weight.detach().clone() for m in s.layout.modules}
    handle = s.handle()
    for k in range(50):
        change = {m: LowRank(d.A, (k + 1) * 1e-3 * d.B) for m, d in changes(s.layout, 2).items()}
        handle.set_base_change(change, str(k))
    for m, d in change.items():
        module = handle.model.get_submodule(m)
        assert module.weight.dtype == dtype
        assert torch.equal(module.weight, (w0[m].float() + (d.dense().T if is_conv1d(module) else d.dense())).to(dtype))
    handle.set_base_change({m: zero(*x) for m, x in s.layout.modules.items()}, "none")
    assert all(torch.equal(handle.model.get_submodule(m).weight, w) for m, w in w0.items())


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert"])
def test_adapters_on_a_half_precision_base_are_float32(name):
    """In bfloat16 a step below 2^-9 of the value is lost, and what is read is not what was written."""
    s = small(name, torch.bfloat16)
    handle, values = s.handle(), factors(s.layout, 2)
    handle.write(values)
    adapter = {n: p for n, p in handle.parameters().items() if n not in s.layout.head}
    assert {p.dtype for p in adapter.values()} == {torch.float32}
    assert all(torch.allclose(handle.read()[n], values[n], rtol=2e-7) for n in adapter)
    assert torch.isfinite(handle.loss(s.batch))


# -- perturbation


def trained_by_hand(handle: ModelHandle, s: Small, z, index: int, epsilon: float) -> torch.Tensor:
    """Logits of a deep copy whose trained parameters are moved by epsilon z, tied uses together."""
    other = copy.deepcopy(handle)
    with torch.no_grad():
        for n, p in other.parameters().items():
            p.add_(epsilon * z.direction(n, index, p.shape))
    return logits(other.model, s.batch)


@every_model
@pytest.mark.parametrize("space", [LoRA(), LoRA(learns=(B_SUFFIX,)), Full()], ids=["lora", "B", "full"])
def test_a_perturbed_forward_is_the_forward_of_a_moved_copy(name, space):
    s = small(name)
    handle = s.handle(space)
    if not space.of_base:
        handle.write(factors(s.layout, 2))
    z = families.make("hadamard", SEED, 16)
    plain = logits(handle.model, s.batch)
    for index, epsilon in ((3, 0.05), (7, -0.05)):
        want = trained_by_hand(handle, s, z, index, epsilon)
        with handle.perturbed(z, index, epsilon):
            got = logits(handle.model, s.batch)
        assert distance(got, want) < 1e-5
        assert distance(got, plain) > 1e-3
    assert torch.equal(logits(handle.model, s.batch), plain)


@every_model
def test_every_trained_parameter_feels_its_own_perturbation(name):
    """With z zero but for one parameter the output still moves, unless that parameter has no gradient at all."""
    s = small(name)
    handle = s.handle(Full())
    handle.loss(s.batch).backward()
    felt = {n for n, p in handle.parameters().items() if p.grad.abs().max() > 1e-4}
    assert len(felt) > len(handle.parameters()) // 2
    plain = logits(handle.model, s.batch)
    shapes = {n: p.numel() for n, p in handle.parameters().items()}
    for chosen in felt:
        signs = torch.where(torch.arange(shapes[chosen]) % 3 == 0, 1.0, -1.0)
        table = {n: signs[None] if n == chosen else torch.zeros(1, k) for n, k in shapes.items()}
        with handle.perturbed(Table(table), 0, 0.1):
            assert distance(logits(handle.model, s.batch), plain) > 0, chosen


@every_model
@pytest.mark.parametrize("space", [LoRA(), Full()], ids=["lora", "full"])
@pytest.mark.parametrize("where", ["before", "inside"])
def test_bits_are_restored_even_when_the_forward_raises(name, space, where):
    s = small(name)
    handle = s.handle(space)
    if not space.of_base:
        handle.write(factors(s.layout, 2))
    before = {n: (p.detach().clone(), p.data_ptr()) for n, p in handle.model.named_parameters()}
    module = handle.model if where == "before" else handle.model.get_submodule(list(s.layout.modules)[-1])
    if where == "inside" and not space.of_base:
        module = module.lora_B["r2"]

    def fail(*_):
        raise RuntimeError("the batch did not fit in memory")

    hook = module.register_forward_hook(fail)
    z = families.make("hadamard", SEED, 16)
    with pytest.raises(RuntimeError, match="memory"), handle.perturbed(z, 1, 0.1):
        logits(handle.model, s.batch)
    hook.remove()
    for n, p in handle.model.named_parameters():
        assert torch.equal(p, before[n][0])
        assert p.data_ptr() == before[n][1]
    with handle.perturbed(z, 1, 0.1):
        again = logits(handle.model, s.batch)
    assert distance(again, trained_by_hand(handle, s, z, 1, 0.1)) < 1e-5


def test_perturbation_follows_the_adapter_that_is_switched_on():
    s = small("gpt2")
    handle, z = s.handle(), families.make("hadamard", SEED, 16)
    for rank in (2, 3, 2):
        handle.write(factors(s.layout, rank))
        with handle.perturbed(z, 2, 0.1):
            got = logits(handle.model, s.batch)
        assert distance(got, trained_by_hand(handle, s, z, 2, 0.1)) < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_precision_model_is_trained_and_perturbed_in_float32_and_restored(dtype):
    s = small("llama", dtype)
    handle, z = s.handle(Full()), families.make("hadamard", SEED, 16)
    before = {n: p.detach().clone() for n, p in handle.parameters().items()}
    seen = {}
    module = handle.model.model.layers[0].mlp.up_proj
    hook = module.register_forward_hook(lambda m, a, o: seen.update(w=m.weight.detach().clone()))
    with handle.perturbed(z, 4, 0.01):
        logits(handle.model, s.batch)
    hook.remove()
    name = "model.layers.0.mlp.up_proj.weight"
    want = before[name] + 0.01 * z.direction(name, 4, before[name].shape)
    assert before[name].dtype == torch.float32
    assert torch.equal(seen["w"], want)
    assert not torch.equal(before[name], want)
    assert all(torch.equal(p, before[n]) for n, p in handle.parameters().items())


@every_model
@pytest.mark.parametrize("space", [LoRA(), Full()], ids=["lora", "full"])
def test_a_part_is_perturbed_and_the_rest_stays(name, space):
    s = small(name)
    handle = s.handle(space)
    if not space.of_base:
        handle.write(factors(s.layout, 2))
    z = families.make("hadamard", SEED, 16)
    some = list(handle.parameters())[::2]
    other = copy.deepcopy(handle)
    with torch.no_grad():
        for n in some:
            p = other.parameters()[n]
            p.add_(0.05 * z.direction(n, 3, p.shape))
    plain, want = logits(handle.model, s.batch), logits(other.model, s.batch)
    with handle.perturbed(z, 3, 0.05, only=some):
        assert distance(logits(handle.model, s.batch), want) < 1e-5
    assert distance(want, plain) > 1e-3
    assert torch.equal(logits(handle.model, s.batch), plain)
    with handle.perturbed(z, 3, 0.05, only=[]):
        assert torch.equal(logits(handle.model, s.batch), plain)


# -- forward-mode slopes


def by_backpropagation(handle: ModelHandle, s: Small, z, index: int, only=None) -> float:
    """<gradient, z_index>, dropout off, tied uses together."""
    names = list(only or handle.parameters())
    handle.model.eval()
    loss = handle.forward(s.batch).loss.float()
    found = torch.autograd.grad(loss, [handle.parameters()[n] for n in names], allow_unused=True)
    pairs = [(g, n) for g, n in zip(found, names, strict=True) if g is not None]
    return sum(float((g.double() * z.direction(n, index, g.shape).double()).sum()) for g, n in pairs)


@every_model
@pytest.mark.parametrize("space", [LoRA(), LoRA(learns=(B_SUFFIX,)), Full()], ids=["lora", "B", "full"])
@pytest.mark.parametrize("family", ["hadamard", "gaussian"])
def test_a_forward_mode_slope_is_the_product_of_gradient_and_direction(name, space, family):
    s = small(name)
    handle = s.handle(space)
    if not space.of_base:
        handle.write(factors(s.layout, 2))
    z = families.make(family, SEED, 8)
    for index in (1, 6):
        got, loss = handle.directional_derivative(s.batch, z, index)
        want = by_backpropagation(handle, s, z, index)
        assert got == pytest.approx(want, rel=1e-5, abs=2e-6)
        with torch.no_grad():
            assert loss == pytest.approx(float(handle.loss(s.batch)), rel=1e-6)


def test_a_slope_of_a_part_is_the_product_of_its_entries():
    s = small("llama")
    handle, z = s.handle(Full()), families.make("hadamard", SEED, 4)
    parts = [[n for n in handle.parameters() if f".layers.{k}." in n] for k in range(2)]
    parts.append([n for n in handle.parameters() if ".layers." not in n])
    slopes = [handle.directional_derivative(s.batch, z, 2, only=part)[0] for part in parts]
    for got, part in zip(slopes, parts, strict=True):
        assert got == pytest.approx(by_backpropagation(handle, s, z, 2, part), rel=1e-5, abs=2e-6)
    assert sum(slopes) == pytest.approx(handle.directional_derivative(s.batch, z, 2)[0], rel=1e-4)


def test_a_slope_follows_the_adapter_that_is_switched_on():
    s = small("gpt2")
    handle, z = s.handle(), families.make("hadamard", SEED, 4)
    for rank in (2, 3, 2):
        handle.write(factors(s.layout, rank))
        want = by_backpropagation(handle, s, z, 1)
        assert handle.directional_derivative(s.batch, z, 1)[0] == pytest.approx(want, rel=1e-5, abs=2e-6)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_slope_of_adapters_on_a_half_precision_base_is_near(name):
    s = small(name, torch.bfloat16)
    handle, z = s.handle(), families.make("hadamard", SEED, 4)
    handle.write(factors(s.layout, 2))
    assert handle.directional_derivative(s.batch, z, 1)[0] == pytest.approx(
        by_backpropagation(handle, s, z, 1), rel=0.1, abs=0.05
    )


@every_model
def test_a_slope_leaves_every_parameter_as_it_was_and_no_graph(name):
    s = small(name)
    handle, z = s.handle(Full()), families.make("hadamard", SEED, 4)
    before = {n: (p, p.detach().clone(), p.data_ptr()) for n, p in handle.model.named_parameters()}
    plain = logits(handle.model, s.batch)
    handle.directional_derivative(s.batch, z, 0)
    for n, p in handle.model.named_parameters():
        assert p is before[n][0]
        assert torch.equal(p, before[n][1])
        assert p.data_ptr() == before[n][2]
        assert p.grad is None
    assert torch.equal(logits(handle.model, s.batch), plain)
    assert handle.loss(s.batch).requires_grad


def test_a_slope_whose_forward_raises_leaves_every_parameter_as_it_was():
    s = small("llama")
    handle, z = s.handle(Full()), families.make("hadamard", SEED, 4)
    before = {n: (p, p.detach().clone()) for n, p in handle.model.named_parameters()}

    def fail(*_):
        raise RuntimeError("the batch did not fit in memory")

    handle.model.model.layers[1].mlp.act_fn.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="memory"):
        handle.directional_derivative(s.batch, z, 0)
    for n, p in handle.model.named_parameters():
        assert p is before[n][0]
        assert torch.equal(p, before[n][1])


class NoForwardMode(torch.autograd.Function):
    """The identity, without a forward-mode rule."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad


@pytest.mark.parametrize("loses", [NoForwardMode.apply, lambda x: torch.tensor(x.tolist())], ids=["no rule", "lost"])
def test_a_model_without_forward_mode_is_an_error_that_says_what_to_do(loses):
    class Opaque(ToyModel):
        def forward(self, x, labels=None):
            found = super().forward(x, labels)
            return SimpleNamespace(loss=loses(found.loss))

    handle = ModelHandle(Opaque(), Layout(parameters={"second.weight": (4, 6)}), Full())
    with pytest.raises(NotImplementedError, match="two_sided"):
        handle.directional_derivative(small("toy").batch, families.make("hadamard", SEED, 4), 0)


# -- predictions


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_causal_model_predicts_every_next_token(name):
    s = small(name)
    labels = TOKENS.clone()
    labels[:, :3] = IGNORED
    guess, wanted = s.handle().predictions({**s.batch, "labels": labels})
    assert torch.equal(wanted[:, :-1], labels[:, 1:])
    assert (wanted[:, -1] == IGNORED).all()  # no token comes after the last: nothing is learned there
    assert torch.equal(guess, logits(s.model, s.batch).argmax(-1))


def test_a_classifier_predicts_a_class_per_row():
    s = small("bert")
    guess, wanted = s.handle().predictions(s.batch)
    assert torch.equal(wanted, s.batch["labels"])
    assert torch.equal(guess, logits(s.model, s.batch).argmax(-1))


def test_numbers_to_fit_have_no_predictions():
    s = small("toy")
    with pytest.raises(ValueError, match="numbers to fit"):
        s.handle().predictions(s.batch)


# -- tied weights


@pytest.mark.parametrize(("name", "ends"), [("gpt2", ("lm_head", "wte")), ("llama", ("lm_head", "embed_tokens"))])
def test_a_tied_weight_is_one_parameter_under_its_first_name_in_canonical_order(name, ends):
    s = small(name)
    assert s.model.get_input_embeddings().weight is s.model.get_output_embeddings().weight
    found = [n for n in s.layout.parameters if n.split(".")[-2] in ends]
    assert found == ["lm_head.weight"]  # bytewise before "model." and "transformer."
    assert [n for n in s.handle(Full()).parameters() if n.split(".")[-2] in ends] == found


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_tied_weight_is_perturbed_alike_in_both_uses(name):
    s = small(name)
    handle = s.handle(Full())
    rows = s.model.get_input_embeddings().weight
    used = []
    for module in (s.model.get_input_embeddings(), s.model.get_output_embeddings()):
        module.register_forward_pre_hook(lambda m, a: None)
        original = module.forward
        module.forward = lambda x, m=module, f=original: (used.append(m.weight.detach().clone()), f(x))[1]
    name_of = next(n for n, p in handle.parameters().items() if p is rows)
    z = families.make("hadamard", SEED, 16)
    want = rows.detach() + 0.1 * z.direction(name_of, 1, rows.shape)
    with handle.perturbed(z, 1, 0.1):
        logits(handle.model, s.batch)
    assert len(used) == 2
    assert all(distance(w, want) < 1e-6 for w in used)


# -- the full space


@every_model
def test_the_full_space_reads_and_writes_changes_since_w0(name):
    s = small(name)
    w0 = {n: p.detach().clone() for n, p in s.model.named_parameters(remove_duplicate=False)}
    handle = s.handle(Full())
    assert list(handle.parameters()) == sorted(s.layout.parameters, key=str.encode)
    assert not any(x.any() for x in handle.read().values())
    change = {n: 0.01 * normal(k, *shape) for k, (n, shape) in enumerate(s.layout.parameters.items())}
    handle.write(change)
    assert all(torch.equal(p, w0[n] + change[n]) for n, p in handle.parameters().items())
    assert all(distance(x, change[n]) < 1e-6 for n, x in handle.read().items())
    handle.write({n: -x for n, x in change.items()})  # since w0, not since the last write
    assert all(torch.equal(p, w0[n] - change[n]) for n, p in handle.parameters().items())
    handle.reset()
    assert all(torch.equal(p, w0[n]) for n, p in handle.model.named_parameters())


def test_reset_comes_back_from_steps_that_no_write_preceded():
    s = small("toy")
    handle = s.handle(Full())
    w0 = {n: p.detach().clone() for n, p in handle.parameters().items()}
    handle.reset()
    for p in handle.parameters().values():
        p.data.add_(0.3)
    handle.reset()
    assert all(torch.equal(p, w0[n]) for n, p in handle.parameters().items())


# -- a head beside the adapter


def test_a_classification_head_is_trained_counted_and_averaged():
    s = small("bert")
    assert s.layout.head == {"classifier.bias": (3,), "classifier.weight": (3, 16)}
    recipe = fedit()
    spec = recipe.spec(s.layout, Plan("", 0, 0, rank=2))
    assert {n: spec[n].shape for n in s.layout.head} == s.layout.head
    handle = s.handle()
    handle.write(LoRA().initial(s.layout, 2, SEED))
    assert set(s.layout.head) <= handle.parameters().keys()
    assert not any(handle.read()[n].any() for n in s.layout.head)
    updates = [Update({n: normal(k, *x.shape) for n, x in spec.items()}, 3 * k + 1) for k in range(2)]
    mean = recipe.aggregate(updates)
    for n in s.layout.head:
        assert distance(mean[n], (updates[0].delta[n] + 4 * updates[1].delta[n]) / 5) < 1e-6


# -- loss and layout


def test_dropout_is_on_only_while_gradients_are():
    seen = []

    class Watching(ToyModel):
        def forward(self, x, labels=None):
            seen.append(self.training)
            return super().forward(x, labels)

    handle = ModelHandle(Watching(), Layout(parameters={"second.weight": (4, 6)}), Full())
    batch = small("toy").batch
    assert handle.loss(batch).requires_grad
    with torch.no_grad():
        assert not handle.loss(batch).requires_grad
    assert seen == [True, False]


def test_the_loss_is_float32_even_of_a_half_precision_model():
    s = small("llama", torch.bfloat16)
    assert s.handle(Full()).loss(s.batch).dtype == torch.float32


@pytest.mark.parametrize(("name", "linear"), [("gpt2", 2 * 4), ("llama", 2 * 7), ("bert", 2 * 6 + 1)])
def test_all_linear_is_every_linear_layer_but_output_and_head(name, linear):
    """GPT-2: c_attn, c_proj, c_fc, c_proj; LLaMA: q k v o gate up down; BERT: q k v, three dense, and the pooler."""
    layout = small(name).layout
    assert len(layout.modules) == linear
    assert not any(n.split(".")[0] in ("lm_head", "classifier", "score") for n in layout.modules)
    assert list(layout.modules) == sorted(layout.modules, key=str.encode)


def test_an_untied_output_layer_is_left_out_too():
    with torch.random.fork_rng(devices=[]):
        untied = llama(tied=False)
    layout = layout_of(base_of(untied), "all-linear")
    assert "lm_head" not in layout.modules
    assert "lm_head.weight" in layout.parameters


def test_shapes_are_out_and_in_whatever_the_orientation_in_memory():
    assert small("gpt2").layout.modules["transformer.h.0.attn.c_attn"] == (48, 16)
    assert small("llama").layout.modules["model.layers.0.mlp.down_proj"] == (16, 24)


def test_targets_choose_by_ending():
    base = base_of(small("llama").model)
    assert len(layout_of(base, ["q_proj", "v_proj"]).modules) == 4
    assert list(layout_of(base, "layers.1.self_attn.q_proj").modules) == ["model.layers.1.self_attn.q_proj"]


@pytest.mark.parametrize("targets", ["query", ["q_proj", "query"], "lm_head", "proj"])
def test_an_unknown_target_is_one_line_that_names_the_endings(targets):
    base = base_of(small("llama").model)
    with pytest.raises(DataError) as error:
        layout_of(base, targets)
    wanted = targets if isinstance(targets, str) else targets[-1]
    assert repr(wanted) in str(error.value)
    assert "down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_weight_tied_between_a_module_and_its_own_child_stays_perturbed_in_both():
    """BERT's prediction head owns a bias and so does its decoder: the child's return must not undo the parent's."""

    class Parent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.child = nn.Linear(1, 1)
            self.bias = self.child.bias

        def forward(self, x: torch.Tensor) -> SimpleNamespace:
            return SimpleNamespace(loss=(self.child(x) + self.bias).sum())

    handle = ModelHandle(Parent(), Layout(parameters={"bias": (1,), "child.weight": (1, 1)}), Full())
    batch, before = {"x": torch.zeros(1)}, handle.model.bias.detach().clone()
    z = Table({"bias": torch.ones(1, 1), "child.weight": torch.ones(1, 1)})
    with torch.no_grad(), handle.perturbed(z, 0, 0.5):
        assert handle.loss(batch).item() == pytest.approx(2 * (before.item() + 0.5), rel=1e-6)
    assert torch.equal(handle.model.bias, before)
