"""Built-in optimisers keep their contract; one that breaks a promise is told which."""

import sys
from collections.abc import Callable

import pytest
import torch

from fedft import registry, run_file, strategies
from fedft.config import Local
from fedft.errors import ConfigError
from fedft.suites.optimizers import PROMISES, optimizer_contract
from fedft.training import first_order, optimizers

BITSANDBYTES = ("adamw_8bit", "paged_adamw", "paged_adamw_8bit", "lion_8bit", "paged_lion_8bit")


@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
@pytest.mark.parametrize("promise", PROMISES)
@pytest.mark.parametrize("name", registry.optimizers.built_in)
def test_every_built_in_one_keeps_its_promises(name: str, promise: str) -> None:
    factory = registry.optimizers.load(name)
    if name in BITSANDBYTES:
        pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: pip install 'fedft[optimizers]'")
    PROMISES[promise](factory)


class Wrong(torch.optim.SGD):
    """SGD with one thing wrong."""

    def __init__(self, parameters, lr, wrong):
        super().__init__(parameters, lr=lr)
        self.wrong = wrong

    @torch.no_grad()
    def step(self, closure=None):
        for p in (p for g in self.param_groups for p in g["params"]):
            if self.wrong == "drifts":
                p.add_(1e-3)
            if p.grad is None:
                continue
            if self.wrong == "noisy":
                p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(id(p) % 2**31)), alpha=1e-4)
            step = p.grad / p.grad.norm() if self.wrong == "normed" else p.grad
            p.sub_(step, alpha=self.param_groups[0]["lr"] * (-1 if self.wrong == "climbs" else 1))


@pytest.mark.parametrize(
    ("wrong", "promise"),
    [
        ("climbs", "it descends"),
        ("drifts", "a learning rate of zero moves nothing"),
        ("drifts", "what has no gradient stays"),
        ("noisy", "the same start gives the same end"),
        ("normed", "it works entry by entry, where it says so"),
    ],
)
def test_a_broken_promise_is_named(wrong: str, promise: str) -> None:
    def factory(parameters, lr, local):
        return Wrong(parameters, lr, wrong)

    factory.elementwise = True
    assert optimizer_contract(factory, stop=False)[promise]


def test_who_works_on_tensors_as_a_whole_must_not_say_entry_by_entry(allow: Callable[..., None]) -> None:
    allow("torch.optim:Adafactor")

    def factory(parameters, lr, local):
        return Wrong(parameters, lr, "normed")

    promise = "it works entry by entry, where it says so"
    assert not optimizer_contract(factory, stop=False)[promise]
    assert not optimizers.elementwise(Local(optimizer="torch.optim:Adafactor"))
    assert all(optimizers.elementwise(Local(optimizer=name)) for name in ("adamw", "sgd"))


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_the_run_s_table_is_what_the_optimizer_gets(name: str) -> None:
    local = Local(optimizer=name, momentum=0.5, weight_decay=0.25)
    (group,) = optimizers.optimizer_of([torch.nn.Parameter(torch.ones(2))], 0.125, local).param_groups
    assert (group["lr"], group["weight_decay"]) == (0.125, 0.25)
    assert group.get("momentum", 0.5) == 0.5


def test_an_option_of_the_class_behind_a_name_is_an_option_here() -> None:
    local = Local(optimizer={"name": "adam", "betas": [0.5, 0.9]}, weight_decay=0.1)
    made = optimizers.optimizer_of([torch.nn.Parameter(torch.zeros(2, 2))], 0.3, local)
    group = made.param_groups[0]
    assert (type(made), group["betas"], group["lr"], group["weight_decay"]) == (torch.optim.Adam, (0.5, 0.9), 0.3, 0.1)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("adafactor", {"momentun": 1}, "momentun"),
        ("adamw", {"fused": True}, "fused"),
        ("adam", {"lr": 10.0}, r"lr is what \[local\] learning_rate says"),  # and a site's policy bounds
        ("muon", {"weight_decay": 0.5}, "weight_decay is what"),
    ],
)
def test_a_wrong_option_is_one_line_before_the_run(name: str, options: dict[str, object], said: str) -> None:
    config = run_file.from_dict({"local": {"optimizer": {"name": name, **options}}})
    with pytest.raises(ConfigError, match=rf"\[local\] optimizer '{name}': .*{said}"):
        strategies.of(config)


def test_a_package_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "schedulefree", None)
    with pytest.raises(ConfigError, match="schedulefree has no AdamWScheduleFree here; pip install schedulefree"):
        optimizers.check_optimizer(Local(optimizer="schedule_free_adamw"))


def test_muon_moves_matrices_and_adamw_the_rest() -> None:
    both = [torch.nn.Parameter(torch.ones(4, 3)), torch.nn.Parameter(torch.ones(5))]
    made = optimizers.optimizer_of(both, 0.1, Local(optimizer="muon"))
    for p in both:
        p.grad = torch.ones_like(p)
    made.step()
    assert [len(g["params"]) for g in made.param_groups] == [1, 1]
    assert all(float((p.detach() - 1).abs().max()) > 1e-3 for p in both)


def test_what_averages_its_iterates_ends_at_the_average() -> None:
    """The loss at the end of a round is taken where schedulefree wants the model to be."""
    pytest.importorskip("schedulefree")
    p = torch.nn.Parameter(torch.ones(3))
    made = optimizers.optimizer_of([p], 0.1, Local(optimizer="schedule_free_sgd"))
    for _ in range(3):
        p.grad = torch.ones(3)
        made.step()
    learning = p.detach().clone()
    first_order.settle(made)
    assert not torch.equal(learning, p.detach())
    plain = torch.optim.SGD([p], lr=0.1)
    first_order.settle(plain)
