"""Forward passes of a resident model on batches that are on the CPU, and the mode in which they run."""

import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from fedft.contract import Batch
from fedft.errors import DataError
from fedft.models import tasks
from fedft.models.transfers import sent
from fedft.training.objectives import predicted


class ForwardPasses:
    """A model's forward passes; called with a batch they give the model's own output."""

    def __init__(
        self, model: nn.Module, watching: Callable[[], AbstractContextManager[Any]], *, autocast: bool = False
    ) -> None:
        """Passes of `model`, each inside of `watching()`.

        autocast: whether they multiply matrices in bfloat16, whatever the parameters are in.
        """
        self.two_sided = tasks.two_sided(model)
        """Whether labels are what a decoder writes, beside an encoder that reads the rest of a batch."""
        self._model, self._watching, self._autocast = model, watching, autocast
        known = inspect.signature(model.forward).parameters
        self._always = {"use_cache": False} if "use_cache" in known else {}  # nobody asks for a next token
        self._one = next(model.parameters())

    def training(self, on: bool) -> None:
        """Put the model and all its modules in training mode, or out of it."""
        if self._model.training != on:  # visiting all modules takes as long as a layer: no code sets single ones
            self._model.train(on)

    def casting(self) -> AbstractContextManager[Any]:
        """Inside, matrices are multiplied in bfloat16 if the run wants that; else nothing changes."""
        return torch.autocast(self._one.device.type, torch.bfloat16) if self._autocast else nullcontext()

    def __call__(self, batch: Batch) -> Any:
        """The model's own output on one batch; what `watching` raises, and DataError as `ModelHandle.forward` says."""
        if self.two_sided and not batch.keys() & {"labels", "decoder_input_ids"}:
            raise DataError(
                "[local] objective: its batches are for models that continue text; those of an encoder-decoder have "
                "labels or decoder_input_ids"
            )
        with self._watching(), self.casting():
            return self._model(**{k: sent(v, self._one.device) for k, v in batch.items()}, **self._always)

    def logits(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(logits, what each of them is to predict) of one batch; see `ModelHandle.logits`."""
        inputs = batch if self.two_sided else {k: v for k, v in batch.items() if k != "labels"}
        found = self(inputs).logits
        labels = batch["labels"].to(found.device)
        return found, predicted(labels, self.two_sided)

    def predictions(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(most likely, wanted) on the CPU, without gradients; see `ModelHandle.predictions`."""
        if batch["labels"].is_floating_point():
            raise DataError("labels are numbers to fit: a regression has no classes to predict, and no accuracy or F1")
        self.training(False)
        with torch.no_grad():
            logits, wanted = self.logits(batch)
        return (logits > 0 if wanted.dtype == torch.bool else logits.argmax(-1)).cpu(), wanted.cpu()
