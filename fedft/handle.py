"""A resident model as strategies see it: read, write, reset and probe the trained parameters (`recipe.Handle`).

The base model is loaded once and stays; a turn of another client only copies its few trained tensors in. LoRA layers
are peft's own, one adapter per rank ("r8"), switched on by the rank that is written.

What is kept beside the live model: the float32 originals of the adapted weights once a merge has moved them (FLoRA),
or of all parameters in the full space (replay starts from w0). Weights in half precision are thus always
w0 + change, summed in float32 and rounded once, never a running sum of roundings.
"""

import warnings
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from fedft import lowrank
from fedft.directions import Directions
from fedft.lowrank import A_SUFFIX, B_SUFFIX, LowRank
from fedft.recipe import Batch, Layout, Space
from fedft.tensors import Tensors


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
        self._change: dict[str, LowRank] = {}
        self._stands_at = ""
        self._w0: dict[str, Tensor] = {}
        if space.kind == "full":
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
        self._probe = _Probe(model)

    def scale(self) -> float:
        """alpha / rank of the adapter that is switched on."""
        return (2.0 if self._alpha is None else self._alpha / self._rank) if self._rank else 1.0

    def parameters(self) -> Mapping[str, nn.Parameter]:
        """The live trained parameters by canonical name, in canonical order."""
        return self._live

    def read(self) -> dict[str, Tensor]:
        """The trained tensors; see `recipe.Handle`."""
        return {n: self._value(n, p).contiguous() for n, p in self._live.items()}

    def _value(self, name: str, parameter: Tensor) -> Tensor:
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
        adapter = self._adapter() if self._rank else {}
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
        for name in self._live.keys() & self._parameters.keys():
            if name in self._w0:
                self._parameters[name].data.copy_(self._w0[name])
            else:
                self._w0[name] = self._parameters[name].detach().float().clone()

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
            unit = {n: x.detach().to("cpu", torch.float32) for n, x in self._adapter().items()}
            for m in self.layout.modules:
                b = unit[m + B_SUFFIX] * self.scale()
                if b.any():
                    d = LowRank(unit[m + A_SUFFIX], b)
                    pairs[m] = pairs[m] + d if m in pairs else d
        whole = {n: self._value(n, p) for n, p in self._live.items() if n in self._parameters}
        return pairs, whole

    def loss(self, batch: Batch) -> Tensor:
        """Mean loss in float32; dropout is on only while gradients are."""
        self._model.train(torch.is_grad_enabled())
        return self.forward(batch).loss.float()

    def forward(self, batch: Batch) -> Any:
        """The model's own output on one batch."""
        device = next(self._model.parameters()).device
        return self._model(**{k: v.to(device) for k, v in batch.items()})

    @property
    def model(self) -> nn.Module:
        """The live model, standing where the last write and stand left it."""
        return self._model

    def predictions(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """What the model says and should say; see `recipe.Handle`."""
        labels = batch["labels"]
        if labels.is_floating_point():
            raise ValueError("expected labels that are numbers of classes or tokens, got numbers to fit")
        self._model.eval()
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
        first = self._model.get_submodule(next(iter(self.layout.modules)))
        if name not in getattr(first, "lora_A", {}):
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
        for m in self.layout.modules:
            layer: Any = self._model.get_submodule(m)
            layer.set_adapter(name)
        self._rank = rank
        adapter = self._adapter()
        for parameter in adapter.values():
            parameter.data = parameter.data.float()  # whatever the base is in: small steps must not be lost
        for parameter in self._model.parameters():
            parameter.requires_grad_(False)
        live = {n: adapter[n] for n in adapter if n.endswith(self._space.trained)}
        live |= {n: self._parameters[n] for n in self.layout.head}
        self._live = {n: live[n] for n in sorted(live, key=str.encode)}
        for parameter in self._live.values():
            parameter.requires_grad_(True)

    def _adapter(self) -> dict[str, nn.Parameter]:
        name, found = f"r{self._rank}", {}
        for m in self.layout.modules:
            layer: Any = self._model.get_submodule(m)
            found[m + A_SUFFIX] = layer.lora_A[name].weight
            found[m + B_SUFFIX] = layer.lora_B[name].weight
        return found


class _Probe:
    """Swaps perturbed copies of chosen parameters in while their own module runs, and out again behind it.

    A parameter that another module reads past its owner's forward would not be seen perturbed.
    """

    def __init__(self, model: nn.Module) -> None:
        self.shift: tuple[Directions, int, float] | None = None
        """Copies are p + epsilon z."""
        self.tangent: tuple[Directions, int] | None = None
        """Copies are dual numbers (p, z)."""
        self._model = model
        self._chosen: Collection[str] = ()
        self._watched: Mapping[str, nn.Parameter] | None = None
        self._hooks: list[Any] = []
        self._real: dict[nn.Parameter, Tensor] = {}
        self._inside: Counter[nn.Parameter] = Counter()
        self._slots: dict[tuple[nn.Module, str], nn.Parameter] = {}
        self._spare: dict[torch.Size, list[Tensor]] = defaultdict(list)
        """Copies out of use: fresh memory costs more than the arithmetic."""

    @contextmanager
    def swapping(self, live: Mapping[str, nn.Parameter], only: Collection[str] | None) -> Iterator["_Probe"]:
        """Inside, set `shift` or `tangent`; whatever a failed forward pass left swapped in is undone at the end."""
        self._watch(live)
        self._chosen = set(live if only is None else only)
        try:
            yield self
        finally:
            self.shift = self.tangent = None
            for parameter, data in self._real.items():
                parameter.data = data
            for (module, slot), parameter in self._slots.items():
                module._parameters[slot] = parameter
            self._real, self._slots = {}, {}
            self._inside.clear()

    def _watch(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Hook the modules that own these parameters; tied ones are hooked wherever they are used."""
        if parameters is self._watched:
            return
        for hook in self._hooks:
            hook.remove()
        names = {p: n for n, p in parameters.items()}
        self._hooks = []
        for module in self._model.modules():
            slots = module.named_parameters(recurse=False, remove_duplicate=False)
            own = [(slot, names[p], p) for slot, p in slots if p in names]
            if own:
                self._hooks.append(module.register_forward_pre_hook(lambda m, _a, own=own: self._in(m, own)))
                self._hooks.append(module.register_forward_hook(lambda m, _a, _o, own=own: self._out(m, own)))
        self._watched = parameters

    def _in(self, module: nn.Module, own: list[tuple[str, str, nn.Parameter]]) -> None:
        for slot, name, parameter in own:
            if name not in self._chosen:
                continue
            if self.tangent is not None:
                z, index = self.tangent
                direction = z.direction(name, index, parameter.shape, device=parameter.device)
                self._slots[module, slot] = parameter
                # the slot takes any tensor; only assignment by attribute insists on a Parameter, which has no tangent
                module._parameters[slot] = forward_ad.make_dual(parameter.detach(), direction)
            elif self.shift is not None:
                self._inside[parameter] += 1
                if parameter not in self._real:  # a tied one may run inside another of its owners
                    z, index, epsilon = self.shift
                    self._real[parameter] = parameter.data
                    spare = [] if torch.is_grad_enabled() else self._spare[parameter.shape]  # autograd may keep its own
                    moved = spare.pop() if spare else torch.empty_like(parameter.data)
                    z.add_into(moved, parameter.data, name, index, epsilon)
                    parameter.data = moved

    def _out(self, module: nn.Module, own: list[tuple[str, str, nn.Parameter]]) -> None:
        for slot, name, parameter in own:
            if name not in self._chosen:
                continue
            if self.tangent is not None:
                module._parameters[slot] = self._slots.pop((module, slot))
            elif self.shift is not None:
                self._inside[parameter] -= 1
                if not self._inside[parameter]:
                    if not torch.is_grad_enabled():
                        self._spare[parameter.shape].append(parameter.data)
                    parameter.data = self._real.pop(parameter)
