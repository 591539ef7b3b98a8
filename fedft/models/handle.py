"""A resident model as strategies see it: read, write, reset and probe what is trained (`fedft.contract.Handle`).

The base model is loaded once and stays; a turn of another client only copies its few trained tensors in. The kind of
adapter (`fedft.contract.Kind`) puts itself into the model, one for each shape that is written.

What is kept beside the live model: the float32 originals of the adapted weights once a merge has moved them (FLoRA),
or of all parameters in the full space (replay starts from w0). Weights in half precision are thus always
w0 + change, summed in float32 and rounded once, never a running sum of roundings.
"""

import inspect
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from fedft.arithmetic import lowrank
from fedft.arithmetic.lowrank import LowRank
from fedft.arithmetic.tensors import Tensors
from fedft.contract import Batch, Kind, Layout, Mounted, Objective, Settings
from fedft.models.base_change import BaseChange
from fedft.models.perturbation import Offset, Probe
from fedft.randomness.directions import Directions
from fedft.training.objectives import Likelihood, next_tokens
from fedft.update import Shape

SHAPES = 4  # adapters of unlike shapes that stay in the model; the one used longest ago goes


def parameters_of(model: nn.Module) -> dict[str, nn.Parameter]:
    """The distinct parameters in canonical order (bytewise by name); tied ones under the first of their names."""
    every = sorted(model.named_parameters(remove_duplicate=False), key=lambda item: item[0].encode())
    first = {p: n for n, p in reversed(every)}
    return {n: p for n, p in every if first[p] == n}


class ModelHandle:
    """`fedft.contract.Handle` on a torch model that returns an output with `.loss` (transformers' convention)."""

    def __init__(
        self,
        model: nn.Module,
        layout: Layout,
        kind: Kind,
        *,
        lora_alpha: float | None = None,
        dropout: float = 0.0,
        objective: Objective | None = None,
    ) -> None:
        """Take over `model`: freezes what `kind` does not train.

        Args:
            model: on its device, in its dtype; its base weights are changed in place from now on.
            layout: of this model, see `fedft.models.layout`.
            kind: of adapter, or all parameters.
            lora_alpha: an adapter's scale is lora_alpha / rank; None: alpha = 2 rank, scale 2 at every rank.
            dropout: of the adapter, in training.
            objective: what is learned; None: the likelihood of tokens or classes.
        """
        self.layout, self.kind = kind.layout(layout), kind
        self.objective: Objective = objective or Likelihood()
        self._model, self._settings = model, Settings(lora_alpha, dropout)
        half = any(p.dtype != torch.float32 for p in model.parameters())
        self._fixed = half and getattr(kind, "along_directions", False)
        if kind.of_base and not self._fixed:
            model.float()  # small steps must not be lost
        self._w0: dict[str, Tensor] = {}
        self._parameters = parameters_of(model)
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        self._base = BaseChange(model, self.layout, self._w0)
        self._mounted: dict[str, Mounted] = {}
        self._shape: Shape | None = None
        self._live: dict[str, nn.Parameter] = {}
        known = inspect.signature(model.forward).parameters
        self._always = {"use_cache": False} if "use_cache" in known else {}  # nobody asks for a next token
        self._probe = Probe(model)
        if kind.rank_free:
            self._switch(Shape())

    @property
    def weights_fixed(self) -> bool:
        """Whether parameters stay at w0 and forward passes add the summed offset (half precision, full space)."""
        return self._fixed

    def scale(self, name: str) -> float:
        """Unit-scale value of the tensor `name` per value that the adapter holds."""
        return self._adapter.scale(name)

    def parameters(self) -> Mapping[str, nn.Parameter]:
        """The live trained parameters by canonical name, in canonical order."""
        return self._live

    def adapter(self) -> Mapping[str, nn.Parameter]:
        """Every tensor of the adapter that is switched on, trained or frozen; none before the first is written."""
        return self._adapter.parameters

    @property
    def _adapter(self) -> Mounted:
        return Mounted({}) if self._shape is None else self._mounted[self._shape.key]

    def base(self) -> Mapping[str, nn.Parameter]:
        """The base's own parameters by canonical name, whatever has been put around them."""
        return self._parameters

    def read(self) -> dict[str, Tensor]:
        """Copies of the trained tensors on the CPU in float32: unit scale, or change since w0."""
        return {n: self._value(n, p).contiguous() for n, p in self._live.items()}

    def _value(self, name: str, parameter: Tensor) -> Tensor:
        if self._fixed:
            seen = self._probe.seen(name, parameter, torch.empty_like(parameter, dtype=torch.float32))
            return (seen - parameter.detach().float()).cpu()
        if name in self._parameters:
            now = parameter.detach().to("cpu", torch.float32)
            return now - self._w0[name].to("cpu", torch.float32) if name in self._w0 else torch.zeros_like(now)
        x = parameter.detach().to("cpu", torch.float32, copy=True)
        scale = self.scale(name)
        return x if scale == 1.0 else x * scale

    def write(self, values: Tensors) -> None:
        """Set tensors of the adapter (unit scale, all of one shape) and changes of parameters since w0."""
        if (shape := self.kind.shape_of(values)) is not None:
            self._switch(shape)
        adapter = self.adapter() if not self.kind.of_base else {}
        with torch.no_grad():
            for name, x in values.items():
                if name in adapter:
                    scale = self.scale(name)
                    adapter[name].copy_(x if scale == 1.0 else x / scale)
                else:
                    self._set(name, self._parameters[name], x)

    def _set(self, name: str, parameter: Tensor, change: Tensor) -> None:
        """parameter := w0 + change, summed in float32."""
        w0 = self._w0.setdefault(name, parameter.detach().float().clone())
        parameter.copy_(w0 + change.to(w0.device))

    def reset(self) -> None:
        """Put every parameter that is trained itself back to w0, bit for bit."""
        if self._fixed:
            self._probe.undo()  # of a pass that failed
            self._probe.offset = None
            return
        for name in self._live.keys() & self._parameters.keys():
            if name in self._w0:
                self._parameters[name].data.copy_(self._w0[name])
            else:
                self._w0[name] = self._parameters[name].detach().float().clone()

    def shift_along(self, z: Directions, coefficients: Tensor, keep: float = 1.0) -> None:
        """Move the offset that forward passes add to fixed weights; see `fedft.contract.Handle`."""
        if not self._fixed:
            raise ValueError("weights in float32 are moved by writing them")
        self._probe.watch(self._live)
        before = self._probe.offset or Offset(z, torch.zeros(z.count, dtype=torch.float64))
        self._probe.offset = before.moved(z, coefficients, keep)

    def set_base_change(self, change: Mapping[str, LowRank], key: str) -> None:
        """Make adapted base weights act as w0 + change; returns at once if `key` names the last change."""
        self._base.set(change, key)

    def change(self) -> tuple[dict[str, LowRank | Tensor], dict[str, Tensor]]:
        """(what the model differs from w0 by, by adapted module; changes of whole parameters by name)."""
        found: dict[str, LowRank | Tensor] = dict(self._base.change)
        unit = {} if self.kind.of_base else {n: self._value(n, p) for n, p in self.adapter().items()}
        for m in self.layout.modules if unit else ():
            d = self.kind.change(m, unit)
            if d is None or (isinstance(d, LowRank) and not d.B.any()):
                continue
            found[m] = lowrank.plus(found[m], d) if m in found else d
        whole = {n: self._value(n, p) for n, p in self._live.items() if n in self._parameters}
        return found, whole

    def values(self) -> dict[str, Tensor]:
        """Copies of every tensor of the adapter in unit scale, trained or frozen, and changes of a head since w0."""
        return {n: self._value(n, p).contiguous() for n, p in {**self.adapter(), **self._live}.items()}

    def loss(self, batch: Batch) -> Tensor:
        """The objective on one batch, float32; dropout is on only while gradients are."""
        self.training(torch.is_grad_enabled())
        return self.objective.loss(self, batch).float()

    def training(self, on: bool) -> None:
        """Put the model in training mode, or out of it; its walk over all modules takes as long as one of its layers.

        Whoever sets the mode of single modules sets all of them.
        """
        if self._model.training != on:
            self._model.train(on)

    def forward(self, batch: Batch) -> Any:
        """The model's own output on one batch."""
        device = next(self._model.parameters()).device
        with self._probe.watching_reads():
            return self._model(**{k: v.to(device) for k, v in batch.items()}, **self._always)

    @contextmanager
    def without_adapter(self) -> Iterator[None]:
        """Inside, forward passes are the base's own, as a reference model; what is trained keeps its gradients."""
        if self.kind.of_base:
            raise ValueError("all parameters are trained: there is no adapter that could be switched off")
        adapter = self._adapter
        adapter.switch(False)
        try:
            yield
        finally:
            adapter.switch(True)
            self._trainable()

    @property
    def model(self) -> nn.Module:
        """The live model, standing where the last write and base change left it."""
        return self._model

    def predictions(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(most likely class of every row or token of every place, what should be there), on the CPU."""
        labels = batch["labels"]
        if labels.is_floating_point():
            raise ValueError("expected labels that are numbers of classes or tokens, got numbers to fit")
        self.training(False)
        with torch.no_grad():
            logits = self.forward({k: v for k, v in batch.items() if k != "labels"}).logits
        return logits.argmax(-1).cpu(), (next_tokens(labels) if labels.ndim == 2 else labels).cpu()

    @contextmanager
    def perturbed(
        self, directions: Directions, index: int, epsilon: float, *, only: Collection[str] | None = None
    ) -> Iterator[None]:
        """Forward passes inside see trained + epsilon z_index; one module's perturbed weights exist at a time."""
        with self._probe.swapping(self._live, only) as probe:
            probe.shift = (directions, index, epsilon)
            yield

    def directional_derivative(
        self, batch: Batch, directions: Directions, index: int, *, only: Collection[str] | None = None
    ) -> tuple[float, float]:
        """(<gradient, z_index>, loss) from one forward pass; one module's tangents of weights exist at a time.

        Attention runs in its explicit form: the fused kernels have no forward-mode rules. Raises NotImplementedError
        for a model with another operation that has none.
        """
        try:
            probing = self._probe.swapping(self._live, only)
            with torch.no_grad(), forward_ad.dual_level(), sdpa_kernel(SDPBackend.MATH), probing as probe:
                probe.tangent = (directions, index)
                loss = forward_ad.unpack_dual(self.loss(batch))
        except (NotImplementedError, RuntimeError) as e:
            if "forward AD" not in str(e) and "jvp" not in str(e):
                raise
            reason = str(e).splitlines()[0]
            raise NotImplementedError(f"this model has no forward-mode derivative; use two_sided: {reason}") from e
        if loss.tangent is None:
            raise NotImplementedError("this model's loss lost its forward-mode derivative; use two_sided")
        return float(loss.tangent), float(loss.primal)

    def _switch(self, shape: Shape) -> None:
        """Make the adapter of this shape the live one, putting it into the model the first time."""
        if self._shape is not None and shape.key == self._shape.key:
            return
        before, self._shape = self._shape, shape
        if before is not None:
            self._mounted[before.key].switch(False)
        mounted = self._mounted.pop(shape.key, None) or self.kind.mount(self._model, self.layout, shape, self._settings)
        mounted.switch(True)
        self._mounted[shape.key] = mounted  # the last one used is the last of the dict
        for unused in list(self._mounted)[:-SHAPES]:
            self._mounted.pop(unused).remove()
        learns = {**self.kind.trained(self.layout, shape), **self.layout.head}
        live = {n: mounted.parameters.get(n, self._parameters.get(n)) for n in sorted(learns, key=str.encode)}
        self._live = {n: p for n, p in live.items() if p is not None}
        self._trainable()

    def _trainable(self) -> None:
        """Exactly what is trained asks for gradients."""
        for parameter in self._model.parameters():
            parameter.requires_grad_(False)
        for parameter in self._live.values():
            parameter.requires_grad_(True)
