"""A resident model as strategies see it: read, write, reset and probe the trained tensors (`fedft.contract.Handle`).

The base model is loaded once and stays; a turn of another client only copies its few trained tensors in. The kind of
adapter (`fedft.contract.Kind`) puts itself into the model, one for each shape that is written (`mounted_adapters`).

Beside the live model, originals w0 are known as they were loaded (`originals`): of adapted weights once a merge has
moved them, and of all parameters in full fine-tuning. A weight in half precision is thus always w0 + change, rounded
once.
"""

from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fedft.arithmetic.tensors import Tensors
from fedft.arithmetic.weight_changes import Change
from fedft.contract import NOTHING, Batch, Kind, Layout, Objective, Settings
from fedft.data import micro_batches
from fedft.data.micro_batches import InPieces
from fedft.models import learned_places
from fedft.models.base_change import BaseChange
from fedft.models.forward_passes import ForwardPasses
from fedft.models.mounted_adapters import MountedAdapters
from fedft.models.originals import Originals
from fedft.models.parameters import parameters_of
from fedft.models.perturbation import Probe
from fedft.models.starting_values import StartingValues
from fedft.models.trained_values import TrainedValues
from fedft.randomness.directions import Directions
from fedft.randomness.moved_copies import Offset
from fedft.training.objectives import Likelihood, loss_of_rows, widened
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
        stored: Mapping[str, Tensors] = NOTHING,
    ) -> None:
        """Take over `model`: its parameters stop asking for gradients, and those that `kind` trains ask for them again.

        Args:
            model: on its device, in its dtype; base weights are changed in place.
            layout: the model's trainable parts, see `fedft.models.layout`.
            kind: the kind of adapter, or `adapters.full.Full` for all parameters.
            lora_alpha: an adapter's scale is lora_alpha / rank; None: alpha = 2 rank, scale 2 at every rank.
            dropout: rate before the adapter in training, 0 to 1.
            objective: gives the loss; None: the likelihood of tokens or classes.
            autocast: whether forward passes multiply matrices in bfloat16, whatever the parameters are in.
            stored: see `Originals`; left out, w0 of what is moved is copied.
        """
        self.layout, self.kind = kind.layout(layout), kind
        self.objective: Objective = objective or Likelihood()
        self._model, self._probe, self._live = model, Probe(model), dict[str, nn.Parameter]()
        self._passes = ForwardPasses(model, self._probe.watching_reads, autocast=autocast)
        self.two_sided = self._passes.two_sided
        """Whether labels are what a decoder writes, beside an encoder that reads the rest of a batch."""
        half = any(p.dtype != torch.float32 for p in model.parameters())
        self._fixed = half and getattr(kind, "along_directions", False)
        if kind.of_base and not self._fixed:
            model.float()  # small steps must not be lost
        self._originals = Originals(stored)
        self._parameters = parameters_of(model)
        model.requires_grad_(False)
        self._base = BaseChange(model, self.layout, self._originals)
        self._adapters = MountedAdapters(model, self.layout, kind, Settings(lora_alpha, dropout))
        self._values = TrainedValues(kind, self._parameters, self._originals, self._adapters)
        if kind.rank_free:
            self._switch(Shape())

    @property
    def weights_fixed(self) -> bool:
        """Whether parameters stay at w0 (full fine-tuning in half precision), see `fedft.contract.Handle`."""
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
        if self._fixed:
            return {n: self._moved(n, p) for n, p in self._live.items()}
        return self._values.read(self._live)

    def start(self) -> StartingValues:
        """What `read` gives at this moment, for when a turn has ended; see `StartingValues`."""
        if self._fixed:
            return StartingValues(self.read())
        own = self._parameters
        read = self._values.read({n: p for n, p in self._live.items() if n not in own})
        return StartingValues({n: self._originals.start(n, p) if n in own else read[n] for n, p in self._live.items()})

    def _moved(self, name: str, parameter: Tensor) -> Tensor:
        """How far a forward pass sees a parameter from w0, where weights are fixed; float32 on the CPU."""
        seen = self._probe.seen(name, parameter, torch.empty_like(parameter, dtype=torch.float32))
        return (seen - parameter.detach().float()).cpu().contiguous()

    def write(self, values: Tensors, without: Collection[str] | None = None) -> None:
        """Set tensors of the adapter (unit scale) and parameters (as change since w0); others stay as they are.

        The adapter of the values' shape becomes the live one, which the modules `without` have no part in; None: those
        without one in the live adapter, where the values are of its shape. Raises KeyError for a name that the model
        does not have.
        """
        if (shape := self.kind.shape_of(values)) is not None:
            self._switch(self._adapters.completed(shape, without))
        self._values.write(values)

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

    @property
    def base_change_key(self) -> str:
        """The key of the last `set_base_change`; "" before the first."""
        return self._base.key

    def change(self) -> tuple[dict[str, Change], dict[str, Tensor]]:
        """(change [out, in] of each adapted weight, change of each trained parameter of the base) since w0, by name.

        The first is base change and adapter together, without modules whose change is none, or no matrix.
        """
        whole = {n: p for n, p in self._live.items() if n in self._parameters}
        read = self.read() if self.kind.of_base else self._values.read(whole)
        return self._values.change(self._base.change, self.layout), read

    def values(self) -> dict[str, Tensor]:
        """Copies as in `read`, of every tensor of the adapter, trained or frozen, and of the head."""
        return self.read() if self.kind.of_base else self._values.read({**self.adapter(), **self._live})

    def loss(self, batch: Batch) -> Tensor:
        """The objective's mean loss on one batch, a float32 scalar; dropout is on only while gradients are.

        Of a model in float64 it is one of float64.
        """
        self.training(torch.is_grad_enabled())
        if isinstance(batch, InPieces):
            return torch.stack([self.loss(piece) * share for piece, share in self.shares(batch)]).sum()
        return widened(self.objective.loss(self, batch))

    def losses(self, batch: Batch, *, dropout: bool = True) -> Tensor:
        """The objective's loss of every row of a batch, float32 [rows]; see `fedft.contract.Handle`."""
        self.training(dropout and torch.is_grad_enabled())
        if isinstance(batch, InPieces):
            return torch.cat([self.losses(piece, dropout=dropout) for piece in batch.pieces()])
        return widened(loss_of_rows(self.objective)(self, batch))

    def shares(self, batch: InPieces) -> list[tuple[Batch, float]]:
        """The pieces of a batch, each with its share of the batch's mean; see `micro_batches.shares`."""
        return micro_batches.shares(batch, partial(self.objective.weight, self))  # type: ignore[attr-defined]

    def training(self, on: bool) -> None:
        """Put the model and all its modules in training mode, or out of it."""
        self._passes.training(on)

    def forward(self, batch: Batch) -> Any:
        """The model's own output on one batch. NotImplementedError as `Probe.watching_reads` raises it, DataError for
        a batch that tells the decoder of an encoder-decoder nothing.
        """
        return self._passes(batch)

    def casting(self) -> AbstractContextManager[Any]:
        """Inside, matrices are multiplied in bfloat16 if the run wants that; else nothing changes."""
        return self._passes.casting()

    def logits(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(logits, what each of them is to predict) of one batch, both on the model's device; errors as of `forward`.

        The second: what a classification learns of its rows; or tokens int64 [rows, length], IGNORED where nothing is
        learned: at place t token t + 1 (see `next_tokens`), of an encoder-decoder, which moves them itself, label t.
        """
        return self._passes.logits(batch)

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
        return self._passes.predictions(batch)

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

        NotImplementedError for a model without forward-mode derivatives.
        """
        derived = self._probe.directional_derivative(lambda: self.loss(batch), self._live, only, directions, index)
        return float(derived[0]), float(derived[1])

    def directional_derivatives(
        self, batch: Batch, directions: Directions, index: int, *, only: Collection[str] | None = None
    ) -> tuple[Tensor, Tensor]:
        """(<gradient of each row's loss, z_index>, those losses), float [rows]; see `directional_derivative`."""
        return self._probe.directional_derivative(lambda: self.losses(batch), self._live, only, directions, index)

    def _switch(self, shape: Shape) -> None:
        """Make the adapter of this shape the live one; exactly what is trained asks for gradients then."""
        if not self._adapters.switch_to(shape):
            return
        learns = {**self.kind.trained(self.layout, shape), **self.layout.head}
        there = {**self._parameters, **self.adapter()}
        self._live = {n: there[n] for n in sorted(learns, key=str.encode) if n in there}
        self._model.requires_grad_(False)
        for parameter in self._live.values():
            parameter.requires_grad_(True)
