"""A resident model as strategies see it: read, write, reset and probe the trained tensors (`fedft.contract.Handle`).

The base model is loaded once and stays; a turn of another client only copies its few trained tensors in. The kind of
adapter (`fedft.contract.Kind`) puts itself into the model, one for each shape that is written (`mounted_adapters`).

Beside the live model, originals w0 are kept as they were loaded: of adapted weights once a merge has moved them, and of
all parameters in full fine-tuning. A weight in half precision is thus always w0 + change, summed and rounded once.
"""

import inspect
from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fedft.arithmetic import weight_changes
from fedft.arithmetic.lowrank import LowRank
from fedft.arithmetic.tensors import Tensors
from fedft.arithmetic.weight_changes import Change
from fedft.contract import Batch, Kind, Layout, Objective, Settings
from fedft.data import micro_batches
from fedft.data.micro_batches import InPieces
from fedft.errors import DataError
from fedft.models import learned_places, tasks
from fedft.models.base_change import BaseChange, Originals
from fedft.models.mounted_adapters import MountedAdapters
from fedft.models.parameters import parameters_of
from fedft.models.perturbation import Offset, Probe
from fedft.models.starting_values import StartingValues
from fedft.randomness.directions import Directions
from fedft.training.objectives import Likelihood, predicted, widened
from fedft.update import Shape


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
        autocast: bool = False,
    ) -> None:
        """Take over `model`: its parameters stop asking for gradients, and those that `kind` trains ask for them again.

        Args:
            model: on its device, in its dtype; its base weights are changed in place from now on.
            layout: the model's trainable parts, see `fedft.models.layout`.
            kind: the kind of adapter, or `adapters.full.Full` for all parameters.
            lora_alpha: an adapter's scale is lora_alpha / rank; None: alpha = 2 rank, scale 2 at every rank.
            dropout: rate before the adapter in training, 0 to 1.
            objective: gives the loss; None: the likelihood of tokens or classes.
            autocast: whether forward passes multiply matrices in bfloat16, whatever the parameters are in.
        """
        self.layout, self.kind = kind.layout(layout), kind
        self.objective: Objective = objective or Likelihood()
        self._model, self._autocast = model, autocast
        half = any(p.dtype != torch.float32 for p in model.parameters())
        self._fixed = half and getattr(kind, "along_directions", False)
        if kind.of_base and not self._fixed:
            model.float()  # small steps must not be lost
        self.two_sided = tasks.two_sided(model)
        """Whether labels are what a decoder writes, beside an encoder that reads the rest of a batch."""
        self._originals = Originals()
        self._parameters = parameters_of(model)
        model.requires_grad_(False)
        self._base = BaseChange(model, self.layout, self._originals)
        self._adapters = MountedAdapters(model, self.layout, kind, Settings(lora_alpha, dropout))
        self._live: dict[str, nn.Parameter] = {}
        known = inspect.signature(model.forward).parameters
        self._always = {"use_cache": False} if "use_cache" in known else {}  # nobody asks for a next token
        self._probe = Probe(model)
        if kind.rank_free:
            self._switch(Shape())

    @property
    def weights_fixed(self) -> bool:
        """True for full fine-tuning in half precision: parameters stay at w0, forward passes add the summed offset.

        Steps go through `shift_along`; writing `parameter.data` is an error.
        """
        return self._fixed

    def scale(self, name: str) -> float:
        """Unit-scale value of the tensor `name` per value that the adapter holds: alpha / rank for LoRA's B, else 1."""
        return self._adapters.live.scale(name)

    def parameters(self) -> Mapping[str, nn.Parameter]:
        """The live parameters that are trained, by canonical name, in canonical order (see `parameters_of`)."""
        return self._live

    def adapter(self) -> Mapping[str, nn.Parameter]:
        """Every tensor of the live adapter, trained or frozen, by name; none before the first `write`."""
        return self._adapters.live.parameters

    def base(self) -> Mapping[str, nn.Parameter]:
        """Every parameter of the base by canonical name, the one that it had before an adapter was mounted."""
        return self._parameters

    def read(self) -> dict[str, Tensor]:
        """Copies of the trained tensors: float32 on the CPU, in unit scale, or as change of a parameter since w0."""
        return {n: self._value(n, p).contiguous() for n, p in self._live.items()}

    def start(self) -> StartingValues:
        """What `read` gives at this moment, for when a turn has ended; see `StartingValues`."""
        if self._fixed:
            return StartingValues(self.read())
        own = self._parameters
        return StartingValues(
            {
                n: self._originals.start(n, p) if n in own else self._value(n, p).contiguous()
                for n, p in self._live.items()
            }
        )

    def _value(self, name: str, parameter: Tensor) -> Tensor:
        """The tensor `name` as it travels: in unit scale, or as change since w0; float32 on the CPU."""
        if self._fixed:
            seen = self._probe.seen(name, parameter, torch.empty_like(parameter, dtype=torch.float32))
            return (seen - parameter.detach().float()).cpu()
        if name in self._parameters:
            return self._originals.change(name, parameter)
        x = parameter.detach().to("cpu", torch.float32, copy=True)
        scale = self.scale(name)
        return x if scale == 1.0 else x * scale

    def write(self, values: Tensors) -> None:
        """Set tensors of the adapter (unit scale) and parameters (as change since w0); others stay as they are.

        The adapter of the values' shape becomes the live one. Raises KeyError for a name that the model does not have.
        """
        if (shape := self.kind.shape_of(values)) is not None:
            self._switch(shape)
        adapter = {} if self.kind.of_base else self.adapter()
        with torch.no_grad():
            for name, x in values.items():
                if name in adapter:
                    scale = self.scale(name)
                    adapter[name].copy_(x if scale == 1.0 else x / scale)
                else:
                    self._originals.move(name, self._parameters[name], x)

    def reset(self) -> None:
        """Put every trained parameter of the base back to w0, bit for bit; the adapter's tensors are left alone."""
        if self._fixed:
            self._probe.undo()  # of a pass that failed
            self._probe.offset = None
            return
        for name in self._live.keys() & self._parameters.keys():
            self._originals.restore(name, self._parameters[name].data)

    def shift_along(self, z: Directions, coefficients: Tensor, keep: float = 1.0) -> None:
        """Set the offset to keep (w0 + offset) - w0 + sum_j coefficients[j] z_j; forward passes do the sum.

        coefficients: float64 [K]. Raises ValueError for directions unlike the last ones, or weights that are not fixed.
        """
        if not self._fixed:
            raise ValueError("weights in float32 are moved by writing them")
        self._probe.watch(self._live)
        before = self._probe.offset or Offset(z, torch.zeros(z.count, dtype=torch.float64))
        self._probe.offset = before.moved(z, coefficients, keep)

    def set_base_change(self, change: Mapping[str, Change], key: str) -> None:
        """Make every adapted weight act as w0 + change; returns at once if `key` equals the last call's."""
        self._base.set(change, key)

    def change(self) -> tuple[dict[str, Change], dict[str, Tensor]]:
        """(change [out, in] of each adapted weight, change of each trained parameter of the base) since w0, by name.

        The first is base change and adapter together, without modules whose change is none, or no matrix.
        """
        found: dict[str, Change] = dict(self._base.change)
        unit = {} if self.kind.of_base else {n: self._value(n, p) for n, p in self.adapter().items()}
        for m in self.layout.modules if unit else ():
            d = self.kind.change(m, unit)
            if d is None or (isinstance(d, LowRank) and not d.B.any()):
                continue
            found[m] = weight_changes.plus(found[m], d) if m in found else d
        whole = {n: self._value(n, p) for n, p in self._live.items() if n in self._parameters}
        return found, whole

    def values(self) -> dict[str, Tensor]:
        """Copies as in `read`, of every tensor of the adapter, trained or frozen, and of the head."""
        return {n: self._value(n, p).contiguous() for n, p in {**self.adapter(), **self._live}.items()}

    def loss(self, batch: Batch) -> Tensor:
        """The objective's mean loss on one batch, a float32 scalar; dropout is on only while gradients are.

        Of a model in float64 it is one of float64.
        """
        self.training(torch.is_grad_enabled())
        if isinstance(batch, InPieces):
            return torch.stack([self.loss(piece) * share for piece, share in self.shares(batch)]).sum()
        return widened(self.objective.loss(self, batch))

    def shares(self, batch: InPieces) -> list[tuple[Batch, float]]:
        """The pieces of a batch, each with its share of the batch's mean; see `micro_batches.shares`."""
        weight = partial(self.objective.weight, self)  # type: ignore[attr-defined]
        return micro_batches.shares(batch, weight)

    def training(self, on: bool) -> None:
        """Put the model and all its modules in training mode, or out of it."""
        if self._model.training != on:  # visiting all modules takes as long as a layer: no code sets single ones
            self._model.train(on)

    def forward(self, batch: Batch) -> Any:
        """The model's own output on one batch. Raises NotImplementedError as `Probe.watching_reads` does.

        DataError for a batch that tells the decoder of an encoder-decoder nothing.
        """
        if self.two_sided and not batch.keys() & {"labels", "decoder_input_ids"}:
            raise DataError(
                "[local] objective: its batches are for models that continue text; those of an encoder-decoder have "
                "labels or decoder_input_ids"
            )
        device = next(self._model.parameters()).device
        with self._probe.watching_reads(), self.casting():
            return self._model(**{k: v.to(device) for k, v in batch.items()}, **self._always)

    def casting(self) -> AbstractContextManager[Any]:
        """Inside, matrices are multiplied in bfloat16 if the run wants that; else nothing changes."""
        device = next(self._model.parameters()).device.type
        return torch.autocast(device, torch.bfloat16) if self._autocast else nullcontext()

    def logits(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(logits, what each of them is to predict) of one batch, both on the model's device; errors as of `forward`.

        The second: what a classification learns of its rows, as it is; or tokens int64 [rows, length], IGNORED where
        nothing is learned. At place t that is token t + 1 (see `next_tokens`), of an encoder-decoder label t: it moves
        the labels itself, to its decoder's inputs.
        """
        inputs = batch if self.two_sided else {k: v for k, v in batch.items() if k != "labels"}
        found = self.forward(inputs).logits
        labels = batch["labels"].to(found.device)
        return found, predicted(labels, self.two_sided)

    def learned_logits(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(logits, what each is to predict) of the n learned places of a batch, on the model's device.

        [n, vocabulary] and int64 [n] for tokens; [n, classes] and int64 [n], or as in `logits`, for rows. Errors as of
        `forward`. Logits of places where nothing is learned are not computed, where the model allows it.
        """
        return learned_places.logits(self, batch)

    @contextmanager
    def without_adapter(self) -> Iterator[None]:
        """Inside, forward passes are those of w0, as of a reference model.

        No adapter, no change of base weights, and what is trained whole beside them as it was. Raises ValueError in
        full fine-tuning.
        """
        if self.kind.of_base:
            raise ValueError("all parameters are trained: there is no adapter that could be switched off")
        whole = {n: self._parameters[n] for n in self.layout.head}
        with self._base.undone(), self._adapters.off(), self._originals.instead(whole):
            yield

    @property
    def model(self) -> nn.Module:
        """The live torch model, with the values of the last `write` and `set_base_change` in it."""
        return self._model

    def predictions(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(most likely, wanted) on the CPU, as `fedft.contract.Handle` says. DataError for labels that are floats."""
        if batch["labels"].is_floating_point():
            raise DataError("labels are numbers to fit: a regression has no classes to predict, and no accuracy or F1")
        self.training(False)
        with torch.no_grad():
            logits, wanted = self.logits(batch)
        return (logits > 0 if wanted.dtype == torch.bool else logits.argmax(-1)).cpu(), wanted.cpu()

    @contextmanager
    def perturbed(
        self, directions: Directions, index: int, epsilon: float, *, only: Collection[str] | None = None
    ) -> Iterator[None]:
        """Inside, forward passes see trained + epsilon z_index; one module's perturbed weights exist at a time."""
        with self._probe.swapping(self._live, only) as probe:
            probe.shift = (directions, index, epsilon)
            yield

    def directional_derivative(
        self, batch: Batch, directions: Directions, index: int, *, only: Collection[str] | None = None
    ) -> tuple[float, float]:
        """(<gradient of the loss, z_index>, loss) from one forward pass; one module's tangents exist at a time.

        Raises NotImplementedError for a model without forward-mode derivatives.
        """
        return self._probe.directional_derivative(lambda: self.loss(batch), self._live, only, directions, index)

    def _switch(self, shape: Shape) -> None:
        """Make the adapter of this shape the live one."""
        if not self._adapters.switch_to(shape):
            return
        learns = {**self.kind.trained(self.layout, shape), **self.layout.head}
        there = {**self._parameters, **self.adapter()}
        self._live = {n: there[n] for n in sorted(learns, key=str.encode) if n in there}
        self._trainable()

    def _trainable(self) -> None:
        """Let exactly the trained parameters ask for gradients."""
        self._model.requires_grad_(False)
        for parameter in self._live.values():
            parameter.requires_grad_(True)
