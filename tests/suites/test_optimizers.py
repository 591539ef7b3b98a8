"""Built-in optimisers keep their contract; one that breaks a promise is told which."""

from collections.abc import Callable

import pytest
import torch

from fedft import registry
from fedft.config import Local
from fedft.suites.optimizers import PROMISES, optimizer_contract
from fedft.training import optimizers


@pytest.mark.parametrize("promise", PROMISES)
@pytest.mark.parametrize("name", registry.optimizers.built_in)
def test_every_built_in_one_keeps_its_promises(name: str, promise: str) -> None:
    PROMISES[promise](registry.optimizers.load(name))


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
