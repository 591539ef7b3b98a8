"""DPO and ORPO: what they compute, by hand in float64; the reference is the model as the run began."""

import json
import math
from types import SimpleNamespace

import pytest
import torch
from small_models import changes, factors, gpt2, small
from transformers import GPT2Config, GPT2LMHeadModel

import fedft
from fedft import registry, run_file, strategies
from fedft.adapters.full import Full
from fedft.adapters.lora import LoRA
from fedft.contract import Layout
from fedft.data.examples import IGNORED, Example
from fedft.data.preferences import Pair
from fedft.errors import ConfigError
from fedft.models.handle import ModelHandle
from fedft.randomness.families import make
from fedft.suites.objectives import objective_contract
from fedft.training.preferences import DPO, ORPO

both = pytest.mark.parametrize("objective", [DPO(0.3), ORPO(0.3)], ids=["dpo", "orpo"])
LOG_2 = float(-torch.nn.functional.logsigmoid(torch.zeros(())))


def pairs(seed=1, n=3, length=9):
    """Answers of unlike lengths behind prompts of unlike lengths; chosen rows before rejected ones."""
    g = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, 20, (2 * n, length), generator=g)
    begins = torch.randint(2, 5, (n,), generator=g).repeat(2)
    ends = torch.randint(6, length + 1, (2 * n,), generator=g)
    at = torch.arange(length)[None]
    there = at < ends[:, None]
    labels = torch.where(there & (at >= begins[:, None]), ids, IGNORED)
    return {"input_ids": torch.where(there, ids, 0), "attention_mask": there.long(), "labels": labels}


def log_p(model, batch):
    """[(sum of log-probabilities of an answer, its tokens)] row by row and token by token, in float64."""
    model.eval()
    found = []
    for row in range(len(batch["labels"])):
        length = int(batch["attention_mask"][row].sum())
        with torch.no_grad():
            logits = model(input_ids=batch["input_ids"][row : row + 1, :length]).logits[0].double()
        labels = batch["labels"][row].tolist()
        terms = []
        for t in range(1, length):
            if labels[t] != IGNORED:
                x = logits[t - 1] - logits[t - 1].max()
                terms.append(float(x[labels[t]]) - math.log(float(x.exp().sum())))
        found.append((sum(terms), len(terms)))
    return found


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def moved(name="llama"):
    """(handle whose adapter and base have moved, log-probabilities at w0 and now)."""
    s = small(name, torch.float64)
    at_first = log_p(s.model, pairs())
    handle = s.handle()
    handle.write(factors(s.layout, 2))
    handle.set_base_change(changes(s.layout, 3, seed=4), "a round")
    return handle, at_first, log_p(s.model, pairs())


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_dpo_is_what_it_says_and_its_reference_is_w0(name):
    """r = beta (log p - log p0), L = -log sigmoid(r_c - r_r), p0 from before a strategy moved the base."""
    handle, before, now = moved(name)
    rewards = [0.3 * (p - p0) for (p, _), (p0, _) in zip(now, before, strict=True)]
    margins = [c - r for c, r in zip(rewards[:3], rewards[3:], strict=True)]
    losses = [-math.log(sigmoid(m)) for m in margins]
    assert max(abs(m) for m in margins) > 0.1
    assert float(handle_loss(handle, DPO(0.3))) == pytest.approx(sum(losses) / 3, rel=1e-5)
    with torch.no_grad():
        found = DPO(0.3).measure(handle, pairs())
    assert found["loss"] == (pytest.approx(sum(losses), rel=1e-5), 3)
    assert found["margin"] == (pytest.approx(sum(margins), rel=1e-5), 3)
    assert found["accuracy"] == (sum(m > 0 for m in margins), 3)


def handle_loss(handle, objective):
    """Without gradients, so without dropout."""
    handle.objective = objective
    with torch.no_grad():
        return handle.loss(pairs())


def test_orpo_is_what_it_says():
    """l = log p / tokens, L = -l_c - beta log sigmoid(log(odds_c / odds_r)), odds = e^l / (1 - e^l)."""
    handle, _, now = moved()
    means = [p / n for p, n in now]
    odds = [math.exp(x) / (1 - math.exp(x)) for x in means]
    wanted = [-c - 0.3 * math.log(sigmoid(math.log(o / u))) for c, o, u in zip(means, odds, odds[3:], strict=False)]
    margins = [0.3 * (c - r) for c, r in zip(means, means[3:], strict=False)]
    assert float(handle_loss(handle, ORPO(0.3))) == pytest.approx(sum(wanted) / 3, rel=1e-5)
    with torch.no_grad():
        found = ORPO(0.3).measure(handle, pairs())
    assert found["margin"][0] == pytest.approx(sum(margins), rel=1e-5)
    assert found["accuracy"] == (sum(m > 0 for m in margins), 3)


def test_orpo_is_finite_where_an_answer_is_certain():
    class Certain(torch.nn.Module):
        """Says the right next token, whatever it is, with probability 1."""

        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(1, 1, bias=False)

        def forward(self, input_ids, attention_mask):
            right = torch.nn.functional.one_hot(input_ids.roll(-1, 1), 20).float()
            return SimpleNamespace(logits=1e4 * right + self.layer(right[..., :1]))

    model = Certain()
    handle = ModelHandle(model, Layout(modules={"layer": (1, 1)}), LoRA(), objective=ORPO())
    handle.write(handle.kind.initial(handle.layout, 1, 0))
    loss = handle.loss(pairs())
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in handle.parameters().values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_run_begins_at_log_2_exactly(dtype):
    s = small("llama", dtype)
    handle = s.handle()
    handle.write(handle.kind.initial(s.layout, 4, 7))
    assert float(handle_loss(handle, DPO())) == LOG_2
    with torch.no_grad():
        found = DPO().measure(handle, pairs())
    assert (found["margin"][0], found["accuracy"][0]) == (0, 0)


def test_a_reference_drops_nothing():
    """In training the base may have dropout; what it is compared with does not."""
    config = GPT2Config(**{**gpt2().config.to_dict(), "resid_pdrop": 0.5, "embd_pdrop": 0.0, "attn_pdrop": 0.0})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = GPT2LMHeadModel(config)
    s = small("gpt2")
    handle = ModelHandle(model, s.layout, LoRA(), objective=DPO(0.3))
    handle.write(factors(s.layout, 2))
    with handle.without_adapter():
        before = [p for p, _ in log_p(model, pairs())]
    handle.training(True)
    torch.manual_seed(3)
    _, margins = handle.objective.of_pairs(handle, pairs())
    torch.manual_seed(3)
    assert model.training
    logits = model(**{k: x for k, x in pairs().items() if k != "labels"}, use_cache=False).logits
    assert not torch.equal(logits, model.eval()(**{k: x for k, x in pairs().items() if k != "labels"}).logits)
    wanted = torch.nn.functional.pad(pairs()["labels"][:, 1:], (0, 1), value=IGNORED)
    now = -torch.nn.functional.cross_entropy(logits.mT, wanted, reduction="none", ignore_index=IGNORED).sum(1)
    gains = (0.3 * (now.detach().double() - torch.tensor(before))).chunk(2)
    assert torch.allclose(margins.detach().double(), gains[0] - gains[1], atol=1e-5)


@both
def test_the_contract_of_objectives_holds(objective):
    objective_contract(objective)


@both
def test_derivatives_along_directions_are_those_of_the_gradient(objective):
    """Zeroth-order methods see nothing else: by forward differentiation, and by two perturbed passes."""
    s = small("llama")
    handle = s.handle()
    handle.objective = objective
    handle.write(factors(s.layout, 2))
    handle.set_base_change(changes(s.layout, 3, seed=4), "a round")
    z = make("hadamard", 3, 2)
    handle.loss(pairs()).backward()
    live = {n: p for n, p in handle.parameters().items() if p.grad is not None}
    assert live.keys() == handle.parameters().keys()
    along = sum(float((z.direction(n, 1, tuple(p.shape)) * p.grad).sum()) for n, p in live.items())
    found, loss = handle.directional_derivative(pairs(), z, 1)
    assert found == pytest.approx(along, rel=2e-3)
    with torch.no_grad():
        assert loss == pytest.approx(float(handle.loss(pairs())), rel=1e-5)
        sides = []
        for epsilon in (1e-3, -1e-3):
            with handle.perturbed(z, 1, epsilon):
                sides.append(float(handle.loss(pairs())))
    assert (sides[0] - sides[1]) / 2e-3 == pytest.approx(along, rel=0.05, abs=0.02)


def test_full_fine_tuning_has_no_reference_and_orpo_needs_none():
    for name in ("fedavg", "fedkseed", "mezo", "ferret"):
        with pytest.raises(ConfigError, match=r"'dpo' compares with the model without its adapter, but \w+ trains all"):
            strategies.of(run_file.from_dict({"strategy": {"name": name}, "local": {"objective": "dpo"}}))
        strategies.of(run_file.from_dict({"strategy": {"name": name}, "local": {"objective": "orpo"}}))
    s = small("llama")
    handle = s.handle(Full())
    assert torch.isfinite(handle_loss(handle, ORPO()))


@pytest.mark.parametrize("objective", [{"name": "dpo", "beta": 0.0}, {"name": "orpo", "bet": 1.0}])
def test_options_that_make_no_sense_are_refused(objective):
    with pytest.raises(ConfigError, match="objective"):
        registry.objectives.chosen(objective)


# -- runs


def simulated(tmp_path, base, strategy, objective="dpo", rounds=3, eval=None, **local):
    """Two clients, who prefer the right sum to the wrong one."""
    rows = [
        {
            "client": "ab"[n % 2],
            "prompt": f"{n % 5} + {n % 3} is",
            "chosen": f" {n % 5 + n % 3}",
            "rejected": " no, " * 2,
        }
        for n in range(40)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tables = {
        "model": {"id": str(base)}, "data": {"train": str(tmp_path / "rows.jsonl"), "max_length": 24},
        "strategy": strategy, "server": {"rounds": rounds}, "clients": {"rank": 2}, "eval": eval or {},
        "local": {"steps": 3, "batch_size": 4, "learning_rate": 2e-3, "objective": objective, **local},
    }  # fmt: skip
    return fedft.simulate(run_file.from_dict(tables), out=tmp_path / "run")


LORA = ["fedit", "ffa_lora", "rolora", "fedex_lora", "flexlora", "lora_fair", "hetlora", "fedsa_lora", "flasc", "flora"]
OTHERS = ["fedprox", "scaffold", "fedopt", "zo_fedavg"]


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n == "flora" else pytest.mark.slow) for n in (*LORA, *OTHERS)]
)
def test_every_method_with_adapters_learns_a_preference_from_log_2_on(tmp_path, tiny_base, name):
    rate = {"learning_rate": 1e-3} if name == "zo_fedavg" else {}
    run = simulated(tmp_path, tiny_base, {"name": name}, {"name": "dpo", "beta": 0.5}, **rate)
    first, last = run.lines[0], run.lines[-1]
    assert first["loss"] == pytest.approx(LOG_2, abs=1e-7)
    assert (first["accuracy"], first["margin"]) == (0, 0)
    assert math.isfinite(last["loss"])
    if name != "zo_fedavg":
        assert last["loss"] < LOG_2 - 0.01
        assert last["margin"] > 0.01
        assert last["accuracy"] == 1


def test_what_is_generated_is_compared_with_the_chosen_answer(tmp_path, tiny_base, caplog):
    measured = {"metrics": ["exact_match"], "rouge": True, "generate_tokens": 4}
    run = simulated(tmp_path, tiny_base, {"name": "fedit"}, rounds=1, eval=measured)
    assert "left out" not in caplog.text
    assert run.summary["final"].keys() >= {"exact_match", "rouge_l"}
    answers = Example([5, 6, 7], [-100, 6, 7], 1), Example([5, 8], [-100, 8], 1)
    assert (Pair(*answers).given, Pair(*answers).response) == ([5], [6, 7])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fedit", "fedkseed"])
def test_orpo_runs_also_where_all_parameters_are_trained(tmp_path, tiny_base, name):
    run = simulated(tmp_path, tiny_base, {"name": name}, "orpo", learning_rate=1e-3 if name == "fedit" else 1e-5)
    assert math.isfinite(run.summary["final"]["loss"])
    if name == "fedit":
        assert run.summary["final"]["loss"] < run.lines[0]["loss"]
