"""A resident model as strategies see it: read, write, reset and probe the trained parameters (`recipe.Handle`).

The base model is loaded once and stays; a turn of another client only copies its few trained tensors in. LoRA layers
are peft's own, one adapter per rank ("r8"), switched on by the rank that is written.

What is kept beside the live model: the float32 originals of the adapted weights once a merge has moved them (FLoRA),
or of all parameters in the full space (replay starts from w0). Weights in half precision are thus always
w0 + change, summed in float32 and rounded once, never a running sum of roundings.
"""

import inspect
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from fedft.adapters.full import Full
from fedft.arithmetic import lowrank
from fedft.arithmetic.lowrank import A_SUFFIX, B_SUFFIX, LowRank
from fedft.arithmetic.tensors import Tensors
from fedft.contract import Batch, Layout, Space
from fedft.models.perturbation import Offset, Probe
from fedft.randomness.directions import Directions


def parameters_of(model: nn.Module) -> dict[str, nn.Parameter]:
    """The distinct parameters in canonical order (bytewise by name); tied ones under the first of their names."""
    every = sorted(model.named_parameters(remove_duplicate=False), key=lambda item: item[0].encode())
    first = {p: n for n, p in reversed(every)}
    return {n: p for n, p in every if first[p] == n}


class ModelHandle:
    """`recipe.Handle` on a torch model that returns an output with `.loss` (transformers' convention)."""

    def __init__(
        self, model: nn.Module, layout: Layout, space: Space, *, lora_alpha: float | None = None, dropout: float = 0.0
    ) -> None:
        """Take over `model`: freezes what `space` does not train.

        Args:
            model: on its device, in its dtype; its base weights are changed in place from now on.
            layout: of this model, see `model.layout_of`.
            space: what is trained.
            lora_alpha: LoRA scale is lora_alpha / rank; None: alpha = 2 rank, scale 2 at every rank.
            dropout: LoRA dropout in training.
        """
        self.layout = layout
        self._model, self._space, self._alpha, self._dropout = model, space, lora_alpha, dropout
        self._rank = 0
        self._layers: dict[str, Any] = {}
        self._change: dict[str, LowRank] = {}
        self._stands_at = ""
        self._w0: dict[str, Tensor] = {}
        half = any(p.dtype != torch.float32 for p in model.parameters())
        self.still = isinstance(space, Full) and space.still and half
        if space.kind == "full" and not self.still:
            model.float()  # small steps must not be lost
        self._parameters = parameters_of(model)
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        self._live: dict[str, nn.Parameter] = {}
        if space.kind == "full":
            self._live = {n: self._parameters[n] for n in layout.parameters}
        for parameter in self._live.values():
            parameter.requires_grad_(True)
        self._weights: dict[str, Any] = {m: model.get_submodule(m).weight for m in layout.modules}
        self._transposed = {m: type(model.get_submodule(m)).__name__ == "Conv1D" for m in layout.modules}
        self._adapters: dict[int, dict[str, nn.Parameter]] = {}
        """Both factors of every module by name, for each rank there has been."""
        known = inspect.signature(model.forward).parameters
        self._always = {"use_cache": False} if "use_cache" in known else {}  # nobody asks for a next token
        self._probe = Probe(model)

    def scale(self) -> float:
        """alpha / rank of the adapter that is switched on."""
        return (2.0 if self._alpha is None else self._alpha / self._rank) if self._rank else 1.0

    def parameters(self) -> Mapping[str, nn.Parameter]:
        """The live trained parameters by canonical name, in canonical order."""
        return self._live

    def factors(self) -> Mapping[str, nn.Parameter]:
        """Both factors of every adapted module, as the adapter that is switched on holds them."""
        return self._adapters.get(self._rank, {})

    def adapted(self) -> Mapping[str, Any]:
        """peft's layers by module; none before the first factors are written."""
        return self._layers

    def read(self) -> dict[str, Tensor]:
        """The trained tensors; see `recipe.Handle`."""
        return {n: self._value(n, p).contiguous() for n, p in self._live.items()}

    def _value(self, name: str, parameter: Tensor) -> Tensor:
        if self.still:
            seen = self._probe.seen(name, parameter, torch.empty_like(parameter, dtype=torch.float32))
            return (seen - parameter.detach().float()).cpu()
        if name in self._parameters:
            now = parameter.detach().to("cpu", torch.float32)
            return now - self._w0[name].to("cpu", torch.float32) if name in self._w0 else torch.zeros_like(now)
        x = parameter.detach().to("cpu", torch.float32, copy=True)
        return x * self.scale() if name.endswith(B_SUFFIX) else x

    def write(self, values: Tensors) -> None:
        """Set unit-scale factors (of any one rank) and changes since w0."""
        rank = next((x.shape[0] for n, x in values.items() if n.endswith(A_SUFFIX)), None)
        rank = rank or next((x.shape[1] for n, x in values.items() if n.endswith(B_SUFFIX)), None)
        if rank:
            self._switch(rank)
        adapter = self.factors()
        with torch.no_grad():
            for name, x in values.items():
                if name in adapter:
                    adapter[name].copy_(x / self.scale() if name.endswith(B_SUFFIX) else x)
                else:
                    self._set(name, self._parameters[name], x)

    def _set(self, name: str, parameter: Tensor, change: Tensor) -> None:
        """parameter := w0 + change, summed in float32."""
        w0 = self._w0.setdefault(name, parameter.detach().float().clone())
        parameter.copy_(w0 + change.to(w0.device))

    def reset(self) -> None:
        """Every parameter of the full space back to w0, bit for bit."""
        if self.still:
            self._probe.undo()  # of a pass that failed
            self._probe.offset = None
            return
        for name in self._live.keys() & self._parameters.keys():
            if name in self._w0:
                self._parameters[name].data.copy_(self._w0[name])
            else:
                self._w0[name] = self._parameters[name].detach().float().clone()

    def move(self, z: Directions, coefficients: Tensor, keep: float = 1.0) -> None:
        """Where weights stand still: move what is seen of them; see `recipe.Handle`."""
        if not self.still:
            raise ValueError("weights in float32 are moved by writing them")
        self._probe.watch(self._live)
        before = self._probe.offset or Offset(z, torch.zeros(z.count, dtype=torch.float64))
        self._probe.offset = before.moved(z, coefficients, keep)

    def stand(self, change: Mapping[str, LowRank], key: str) -> None:
        """Adapted base weights := w0 + change; nothing is done when they stand at `key` already."""
        if key == self._stands_at:
            return
        with torch.no_grad():
            for m in change.keys() | self._change.keys():
                if (m in change and change[m].rank) or m in self._change:
                    dense = (change.get(m) or lowrank.zero(*self.layout.modules[m])).dense()
                    self._set(m + ".weight", self._weights[m], dense.T if self._transposed[m] else dense)
        self._change = {m: d for m, d in change.items() if d.rank}
        self._stands_at = key

    def change(self) -> tuple[dict[str, LowRank], dict[str, Tensor]]:
        """(what the model differs from w0 by, as factors per adapted module; changes of whole parameters by name)."""
        pairs = dict(self._change)
        if self._rank:
            unit = {n: x.detach().to("cpu", torch.float32) for n, x in self.factors().items()}
            for m in self.layout.modules:
                b = unit[m + B_SUFFIX] * self.scale()
                if b.any():
                    d = LowRank(unit[m + A_SUFFIX], b)
                    pairs[m] = pairs[m] + d if m in pairs else d
        whole = {n: self._value(n, p) for n, p in self._live.items() if n in self._parameters}
        return pairs, whole

    def loss(self, batch: Batch) -> Tensor:
        """Mean loss in float32; dropout is on only while gradients are."""
        self.training(torch.is_grad_enabled())
        return self.forward(batch).loss.float()

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

    @property
    def model(self) -> nn.Module:
        """The live model, standing where the last write and stand left it."""
        return self._model

    def predictions(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """What the model says and should say; see `recipe.Handle`."""
        labels = batch["labels"]
        if labels.is_floating_point():
            raise ValueError("expected labels that are numbers of classes or tokens, got numbers to fit")
        self.training(False)
        with torch.no_grad():
            logits = self.forward({k: v for k, v in batch.items() if k != "labels"}).logits
        if labels.ndim == 2:  # (B, T): token t + 1 is predicted at t
            logits, labels = logits[:, :-1], labels[:, 1:]
        return logits.argmax(-1).cpu(), labels.cpu()

    @contextmanager
    def perturbed(
        self, directions: Directions, index: int, epsilon: float, *, only: Collection[str] | None = None
    ) -> Iterator[None]:
        """Forward passes inside see trained + epsilon z_index; one module's perturbed weights exist at a time."""
        with self._probe.swapping(self._live, only) as probe:
            probe.shift = (directions, index, epsilon)
            yield

    def slope(
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

    def _switch(self, rank: int) -> None:
        """Make the adapter of this rank the live one, creating it the first time."""
        if rank == self._rank:
            return
        name = f"r{rank}"
        if rank not in self._adapters:
            self._adapters[rank] = self._adapter(rank, name)
        for layer in self._layers.values():
            layer.set_adapter(name)
        self._rank, adapter = rank, self._adapters[rank]
        for parameter in self._model.parameters():
            parameter.requires_grad_(False)
        live = {n: adapter[n] for n in adapter if n.endswith(self._space.trained)}
        live |= {n: self._parameters[n] for n in self.layout.head}
        self._live = {n: live[n] for n in sorted(live, key=str.encode)}
        for parameter in self._live.values():
            parameter.requires_grad_(True)

    def _adapter(self, rank: int, name: str) -> dict[str, nn.Parameter]:
        """Both factors of every module, put into the model the first time."""
        if name not in getattr(self._model.get_submodule(next(iter(self.layout.modules))), "lora_A", {}):
            config = LoraConfig(
                r=rank,
                lora_alpha=2 * rank if self._alpha is None else self._alpha,  # type: ignore[arg-type]
                lora_dropout=self._dropout,
                target_modules=list(self.layout.modules),
                fan_in_fan_out=any(self._transposed.values()),
            )
            with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
                # peft draws initial values, which are overwritten, and warns of a second adapter, which we want
                warnings.filterwarnings("ignore", message="Already found a `peft_config`")
                # where Conv1D and Linear are mixed: peft corrects it for each layer
                warnings.filterwarnings("ignore", message="fan_in_fan_out is set to True")
                inject_adapter_in_model(config, self._model, name)
            self._model.train(self._model.training)  # the new layers too
        self._layers = {m: self._model.get_submodule(m) for m in self.layout.modules}
        found = {}
        for m, layer in self._layers.items():
            found[m + A_SUFFIX], found[m + B_SUFFIX] = layer.lora_A[name].weight, layer.lora_B[name].weight
        for parameter in found.values():
            parameter.data = parameter.data.float()  # whatever the base is in: small steps must not be lost
        return found
