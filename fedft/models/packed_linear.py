"""A frozen linear layer whose weight is kept in 4 or 8 bits.

    forward     y = x W^T + b           W is read for this product alone, in the dtype that it is computed in
    backward    dL/dx = dL/dy W         W is read again: the graph keeps its packed form, never the matrix

So a pass has one matrix at a time beside the packed ones, and values and gradients are those of a float layer with the
weights that the packed ones stand for, bit for bit. Packed weights never move. What an adapter below has changed in
them stands beside them, as factors: y + B (A x); what a strategy changes does so too, see `base_change`.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedft.arithmetic.lowrank import LowRank
from fedft.models import int8_blocks, nf4

Bits = Literal[4, 8]
Read = Callable[..., Tensor]
"""(packed tensors) -> the matrix [out, in] in the wanted dtype."""


class Form(NamedTuple):
    """How matrices are kept in a number of bits."""

    packed: Any
    """The named tuple of tensors that a matrix becomes."""
    pack: Callable[[Tensor], Any]
    unpack: Callable[[Any, int], Tensor]
    part: Callable[[Any, int, int], Any]
    """(packed matrix, start, end) -> the packed form of these weights, as views."""
    step: int
    """Where a part may start: at multiples of it."""


FORMS: dict[int, Form] = {
    4: Form(nf4.Packed4, nf4.pack, nf4.unpack, nf4.part, nf4.BLOCK * nf4.BLOCKS),
    8: Form(int8_blocks.Packed8, int8_blocks.pack, int8_blocks.unpack, int8_blocks.part, int8_blocks.BLOCK),
}


class PackedLinear(nn.Linear):
    """A linear layer on a packed weight. Its tensors are buffers, so they move and are saved with the model."""

    def __init__(self, weight: Tensor, bias: nn.Parameter | None, bits: Bits, dtype: torch.dtype | None = None) -> None:
        """Pack a weight [out, in], which is not modified; the layer has no part of it. `bias` is taken as it is.

        `dtype`: of the weight when it is read as a whole; None: that of the given one.
        """
        nn.Module.__init__(self)  # nn.Linear would make a matrix
        self.out_features, self.in_features = weight.shape
        self.bits, self.dtype = bits, dtype or weight.dtype
        self.register_parameter("bias", bias)
        for name, tensor in FORMS[bits].pack(weight)._asdict().items():
            self.register_buffer(name, tensor)
        self.beside_A: Tensor | None
        self.beside_B: Tensor | None
        self.register_buffer("beside_A", None)
        self.register_buffer("beside_B", None)

    @property
    def packed(self) -> Any:
        """The tensors that stand for the weight."""
        kept = FORMS[self.bits].packed
        return kept(*(getattr(self, name) for name in kept._fields))

    def stand_beside(self, change: LowRank) -> None:
        """Let the weight act as itself plus `change` [out, in] from now on: a part of the base, frozen, in float32."""
        device = self.packed[0].device
        a, b = change.A.to(device), change.B.to(device)
        if self.beside_A is not None and self.beside_B is not None:
            a, b = torch.cat([self.beside_A, a]), torch.cat([self.beside_B, b], dim=1)
        self.beside_A, self.beside_B = a.contiguous(), b.contiguous()

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The weight [out, in] as it acts, in the layer's dtype, made anew at each reading; what is written is lost."""
        weight = self._read(torch.float32, *self.packed)
        if self.beside_A is not None and self.beside_B is not None:
            weight += self.beside_B @ self.beside_A
        return weight.to(self.dtype)

    def rows(self, start: int, end: int) -> Tensor:
        """Rows `start` to `end` - 1 of `weight`; the others are not unpacked, but for a few beside them."""
        form, first, last = FORMS[self.bits], start * self.in_features, end * self.in_features
        at = first - first % form.step
        rows = form.unpack(form.part(self.packed, at, last), last - at)[first - at :].view(-1, self.in_features)
        if self.beside_A is not None and self.beside_B is not None:
            rows = rows + self.beside_B[start:end] @ self.beside_A
        return rows.to(self.dtype)

    def _read(self, dtype: torch.dtype, *packed: Tensor) -> Tensor:
        """The weight that packed tensors stand for, [out, in]."""
        form = FORMS[self.bits]
        flat = form.unpack(form.packed(*packed), self.out_features * self.in_features)
        return flat.view(self.out_features, self.in_features).to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        """x W^T + b [..., out] in the dtype of x [..., in], or in autocast's where that is on."""
        kind = x.device.type
        if torch.is_autocast_enabled(kind):
            x = x.to(torch.get_autocast_dtype(kind))
        bias = None if self.bias is None else self.bias.to(x.dtype)
        y = _Product.apply(x, bias, self._read, *self.packed)
        if self.beside_A is not None and self.beside_B is not None:
            y = y + ((x.to(self.beside_A.dtype) @ self.beside_A.T) @ self.beside_B.T).to(y.dtype)
        return y

    def extra_repr(self) -> str:
        """What `print` shows of the layer."""
        return f"{super().extra_repr()}, bits={self.bits}"


class _Product(torch.autograd.Function):
    """x W^T + b with W read from packed tensors, which are all that is kept for the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, read: Read, *packed: Tensor) -> Tensor:
        ctx.read, ctx.dtype = read, x.dtype
        ctx.save_for_backward(*packed)
        ctx.save_for_forward(*packed)
        with torch.autocast(x.device.type, enabled=False):
            return functional.linear(x, read(x.dtype, *packed), bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        rows = grad.reshape(-1, grad.shape[-1])
        of_x, of_bias = ctx.needs_input_grad[:2]
        grad_x = grad_bias = None
        if of_x:
            weight = ctx.read(ctx.dtype, *ctx.saved_tensors)
            grad_x = torch.mm(rows, weight).view(*grad.shape[:-1], -1)
        if of_bias:
            grad_bias = rows.sum(0)
        return grad_x, grad_bias, *(None for _ in ctx.needs_input_grad[2:])

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> Tensor | None:
        x, bias = tangents[:2]
        if x is None:
            return bias
        return functional.linear(x, ctx.read(ctx.dtype, *ctx.saved_for_forward), bias)
