"""The contract of a local optimiser: a factory (parameters, learning rate, the `[local]` table) -> torch optimiser."""

from typing import Any

import torch
from torch import nn

from fedft.config import Local
from fedft.suites.promises import kept


def _parameters() -> list[nn.Parameter]:
    rng = torch.Generator().manual_seed(3)
    return [nn.Parameter(torch.randn(4, 3, generator=rng)), nn.Parameter(torch.randn(5, generator=rng))]


def _loss(parameters: list[nn.Parameter]) -> torch.Tensor:
    return torch.stack([((p - 0.5) ** 2).sum() for p in parameters]).sum()


def _run(factory: Any, parameters: list[nn.Parameter], lr: float = 0.02, steps: int = 40) -> None:
    optimizer = factory(parameters, lr, Local())
    assert isinstance(optimizer, torch.optim.Optimizer), f"the factory gave a {type(optimizer).__name__}"
    for _ in range(steps):
        optimizer.zero_grad(set_to_none=True)
        _loss(parameters).backward()
        optimizer.step()


def _it_descends(factory: Any) -> None:
    parameters = _parameters()
    before = float(_loss(parameters).detach())
    _run(factory, parameters)
    after = float(_loss(parameters).detach())
    assert after < before, f"from {before:g} to {after:g} in 40 steps on a quadratic"


def _the_same_start_gives_the_same_end(factory: Any) -> None:
    a, b = _parameters(), _parameters()
    _run(factory, a)
    _run(factory, b)
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True)), "two runs differ"


def _a_learning_rate_of_zero_moves_nothing(factory: Any) -> None:
    parameters, before = _parameters(), _parameters()
    _run(factory, parameters, lr=0.0, steps=3)
    assert all(torch.equal(x, y) for x, y in zip(parameters, before, strict=True)), "parameters moved"


def _what_has_no_gradient_stays(factory: Any) -> None:
    parameters = _parameters()
    still = parameters[1].detach().clone()
    optimizer = factory(parameters, 0.1, Local())
    (parameters[0] ** 2).sum().backward()
    optimizer.step()
    assert torch.equal(parameters[1], still), "a parameter without a gradient moved"


def _entry_by_entry_where_it_says_so(factory: Any) -> None:
    """Clients that share passes have all their tensors in one row, filled up with zeros."""
    if not getattr(factory, "elementwise", False):
        return
    apart = _parameters()
    row = nn.Parameter(torch.cat([*(p.detach().reshape(-1) for p in apart), torch.zeros(3)]))
    sizes = [p.numel() for p in apart]
    alone, together = factory(apart, 0.05, Local()), factory([row], 0.05, Local())
    for _ in range(5):
        for p in apart:
            p.grad = p.detach() - 0.5
        row.grad = torch.cat([*(p.grad.reshape(-1) for p in apart if p.grad is not None), torch.zeros(3)])
        alone.step()
        together.step()
    pieces = row.detach().split([*sizes, 3])
    for p, piece in zip(apart, pieces, strict=False):
        assert torch.allclose(p.detach().reshape(-1), piece, atol=1e-6), "one row of all numbers moves differently"
    assert not pieces[-1].any(), "zeros with gradients of zero moved"


PROMISES = {
    "it descends": _it_descends,
    "the same start gives the same end": _the_same_start_gives_the_same_end,
    "a learning rate of zero moves nothing": _a_learning_rate_of_zero_moves_nothing,
    "what has no gradient stays": _what_has_no_gradient_stays,
    "it works entry by entry, where it says so": _entry_by_entry_where_it_says_so,
}


def optimizer_contract(factory: Any, *, stop: bool = True) -> dict[str, str]:
    """Check every promise on `factory`; returns {promise: "" or what broke it}; with `stop` raises the first one."""
    return kept(PROMISES, factory, getattr(factory, "__name__", "optimizer"), stop=stop)
