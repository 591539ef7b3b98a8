"""The adapter tensors of several clients in one piece of memory, so that one forward pass reads them all.

    values, gradients     float32 [clients, N]     a row per client; N numbers are all tensors that learn, one after the
                                                   other, each in the largest shape that any client has
    a tensor of the row   view [clients, *shape]   what the forward pass reads, and what autograd differentiates by

A client of smaller rank is padded with zero rows of A and zero columns of B. Their gradients are zero too, so an
optimiser that works entry by entry leaves them zero. Nothing of one client is in another's row.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from fedft.contract import Learning


class ClientStack:
    """The values and gradients of G clients: those that learn as rows of one matrix, the frozen ones padded apart.

    Everywhere below `k` numbers a client, in the order given, and `here` says that only the first `here` clients take
    part in the step at hand: clients are sorted so that those who are done come last.
    """

    def __init__(
        self, values: Sequence[Mapping[str, Tensor]], scales: Sequence[Mapping[str, float]], learns: Sequence[str]
    ) -> None:
        """Copy the clients' tensors in.

        Args:
            values: every tensor by name, one mapping per client, in own scale; the same names in all, shapes that
                differ in size only; not modified.
            scales: unit-scale value per own value, by name, one mapping per client.
            learns: names of the tensors that learn; the others stay as they are.
        """
        self._own = [{n: x.shape for n, x in of.items()} for of in values]
        self._shapes = {
            n: torch.Size(max(sizes) for sizes in zip(*(own[n] for own in self._own), strict=True)) for n in values[0]
        }
        self._at: dict[str, int] = {}
        total = 0
        for n in learns:
            self._at[n] = total
            total += self._shapes[n].numel()
        device = next(iter(values[0].values())).device
        self._values, self.grads = (torch.zeros(len(values), total, device=device) for _ in range(2))
        frozen = {n: shape for n, shape in self._shapes.items() if n not in self._at}
        self._frozen = {n: torch.zeros(len(values), *shape, device=device) for n, shape in frozen.items()}
        for k, of in enumerate(values):
            views = self.learned(k) | {n: self._cut(x[k], self._own[k][n]) for n, x in self._frozen.items()}
            for n, x in of.items():
                views[n].copy_(x)
        self.rows = [nn.Parameter(row) for row in self._values]
        """All numbers that learn of each client, [N] each, for its optimiser; views of the values read elsewhere."""
        self._scales = {n: torch.tensor([of[n] for of in scales], device=device) for n in self._shapes}
        self._leaves: dict[str, Tensor] = {}

    def _view(self, of: Tensor, n: str, here: int) -> Tensor:
        """The tensor `n` of the first clients, [here, *shape], as a view of the matrix `of`."""
        shape = self._shapes[n]
        return of[:here, self._at[n] : self._at[n] + shape.numel()].view(here, *shape)

    @staticmethod
    def _cut(x: Tensor, shape: torch.Size) -> Tensor:
        """A view of `x` without its padding."""
        return x[tuple(slice(size) for size in shape)]

    def learned(self, k: int) -> dict[str, Tensor]:
        """The tensors of client `k` that learn, by name, in the client's own shapes; views."""
        return {n: self._cut(self._view(self._values, n, k + 1)[k], self._own[k][n]) for n in self._at}

    def learning(self, k: int, scales: Mapping[str, float]) -> Learning:
        """The tensors of client `k` as terms of the gradient see them: views, `.grad` among them."""
        live = {n: nn.Parameter(x) for n, x in self.learned(k).items()}
        for n, p in live.items():
            p.grad = self._cut(self._view(self.grads, n, k + 1)[k], self._own[k][n])
        frozen = {n: self._cut(x[k], self._own[k][n]) for n, x in self._frozen.items()}
        return Learning(live, frozen, lambda n: scales[n])

    def scales(self, here: int) -> dict[str, Tensor]:
        """Unit-scale value per own value of every tensor, float32 [here, 1, 1]."""
        return {n: x[:here, None, None] for n, x in self._scales.items()}

    def leaves(self, here: int) -> dict[str, Tensor]:
        """Every tensor [here, ...]: views with padding; those that learn are leaves of the graph."""
        if not self._leaves or len(next(iter(self._leaves.values()))) != here:
            self._leaves = {n: x[:here] for n, x in self._frozen.items()}
            self._leaves |= {n: self._view(self._values, n, here).requires_grad_() for n in self._at}
        return self._leaves

    def differentiate(self, losses: Tensor) -> None:
        """Set `grads[:here]` to the gradients of `losses` [here], which were computed with `leaves(here)`.

        The sum of the losses is differentiated once; since no loss depends on another client's row, a row of the
        result is the gradient of that client's loss alone.
        """
        found = torch.autograd.grad(losses, [self._leaves[n] for n in self._at], torch.ones_like(losses))
        torch.cat([grad.reshape(len(losses), -1) for grad in found], dim=1, out=self.grads[: len(losses)])
