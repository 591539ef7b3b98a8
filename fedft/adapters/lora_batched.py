"""One LoRA layer for the tokens of several clients at once.

y_k = W x_k + s_k B_k (A_k x_k)        W is read once for the tokens of all k; B_k A_k by batched products
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

Forward = Callable[[Tensor], Tensor]


def adapted(base: Any, a: Tensor, b: Tensor, scales: Tensor, x: Tensor) -> Tensor:
    """The layer's output [clients x rows, ..., out] on x, each client's rows by that client's own factors.

    Args:
        base: the layer without its adapter.
        a, b: the factors of all clients, float32 [clients, rank, in] and [clients, out, rank].
        scales: alpha / rank of each client, float32 [clients, 1, 1].
        x: [clients x rows, ..., in], the clients' rows one client after the other; the output has this dtype.
    """
    if type(base) is nn.Linear and base.weight.dtype == x.dtype == a.dtype and not torch.is_autocast_enabled():
        return _Adapted.apply(x, a, b, scales, base.weight, base.bias)
    y = base(x)
    down = torch.bmm(x.reshape(len(b), -1, x.shape[-1]).to(a.dtype), a.mT) * scales
    up = torch.baddbmm(y.reshape(len(b), -1, y.shape[-1]).to(a.dtype), down, b.mT)
    return up.view(y.shape).to(y.dtype)


class _Adapted(torch.autograd.Function):
    """`adapted` on a plain linear layer without gradient of its own, in one node of the graph.

    Sums are made in place: out of place they would take half of the time beside the products.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, a: Tensor, b: Tensor, scales: Tensor, weight: Tensor, bias: Tensor | None
    ) -> Tensor:
        rows = x.reshape(len(a), -1, x.shape[-1])
        down = torch.bmm(rows, a.mT).mul_(scales)
        y = functional.linear(x, weight, bias)
        y.view(len(a), -1, y.shape[-1]).baddbmm_(down, b.mT)
        ctx.save_for_backward(rows, a, b, scales, weight, down)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        rows, a, b, scales, weight, down = ctx.saved_tensors
        (grad,) = grads
        of_x, of_a, of_b = ctx.needs_input_grad[:3]
        by_client = grad.reshape(len(a), -1, grad.shape[-1])
        grad_x = grad_a = None
        if of_x or of_a:
            of_down = torch.bmm(by_client, b).mul_(scales)
            grad_a = torch.bmm(of_down.mT, rows) if of_a else None
        if of_x:
            grad_x = torch.mm(grad.reshape(-1, grad.shape[-1]), weight)
            grad_x.view(rows.shape).baddbmm_(of_down, a)
            grad_x = grad_x.view(*grad.shape[:-1], -1)
        grad_b = torch.bmm(by_client.mT, down) if of_b else None
        return grad_x, grad_a, grad_b, None, None, None
