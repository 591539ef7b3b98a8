"""Local steps taken by a Trainer of transformers or of TRL: its loop, its loss, its optimisers and schedules.

The rows, their order, the number of steps and all that `[local]` says stay the run's own; a table `[local.trainer]`
says whose Trainer it is and what else it is told. The Trainer works on a shallow copy of the resident model: tensors
and layers are the model's, what is set on the copy (another `forward`, say) is gone with it.
"""

import copy
import random
import tempfile
import types
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import nn

from fedft.contract import Batch, Course, Metrics, Turn
from fedft.data.micro_batches import InPieces
from fedft.errors import ConfigError
from fedft.training import schedules
from fedft.training.trainer_names import Known, arguments_of, trainer_of


def descend(
    handle: Any,
    live: Mapping[str, nn.Parameter],
    batches: Iterator[Batch],
    turn: Turn,
    courses: Sequence[Course],
    optimizer: torch.optim.Optimizer,
) -> Metrics:
    """`turn.plan.steps` steps on `live` by the Trainer of the run; `loss`, the mean of the steps' losses, and `steps`.

    Args:
        handle: a `fedft.models.handle.ModelHandle`, with the values to begin from; it ends at those of the last step.
        live: the parameters that learn, by name; no other one asks for gradients.
        batches: of the client's rows, whole or in pieces, as many as there are steps.
        turn: the client's turn in this round.
        courses: terms; each changes the gradients before they are clipped.
        optimizer: the run's, for a Trainer that is told no other one.
    Raises:
        FloatingPointError: a loss was not finite, or what was trained is not.
        ConfigError: a schedule of the Trainer's own goes above the run's learning rate.
    """
    _, options, known = trainer_of(turn.local)
    device = next(handle.model.parameters()).device
    first = next(batches)
    read = Pieces(chain([first], batches), turn.plan.steps, len(_pieces(first)))
    modes = [(module, module.training) for module in handle.model.modules()]
    with tempfile.TemporaryDirectory(prefix="fedft-trainer-") as folder, _global_draws():
        arguments = arguments_of(
            turn.local, turn.seed % 2**31, read.steps, turn.plan.learning_rate, read.each, device, folder
        )
        rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: schedules.of_step(turn.local, k, read.steps))
        own = {"optim", "lr_scheduler_type", "warmup_steps"} & options.keys()
        given = (None if "optim" in own else optimizer, None if own else rate)
        losses: list[torch.Tensor] = []
        kind = _turned(known, read, courses, losses, device, turn.plan.learning_rate)
        trainer = kind(**_rows(known, handle), model=_view(handle.model), args=arguments, optimizers=given)
        trainer.remove_callback(import_module("transformers").PrinterCallback)  # into the table of the rounds
        _reference(trainer, handle)
        trainer.train()
    for module, training in modes:
        module.training = training
    loss = float(torch.stack(losses).sum()) / read.steps
    if not np.isfinite(loss) or not all(bool(torch.isfinite(p).all()) for p in live.values()):
        raise FloatingPointError(f"the steps of {known.trainer} were not finite: mean loss {loss}")
    return {"loss": loss, "steps": float(read.steps)}


@dataclass(frozen=True)
class Pieces:
    """The batches of a turn as a Trainer reads them: a piece is what it sums gradients of, `each` of them a step."""

    batches: Iterator[Batch]
    steps: int
    each: int

    def __len__(self) -> int:
        """How many pieces there are."""
        return self.steps * self.each

    def __iter__(self) -> Iterator[Batch]:
        """The pieces in order, once."""
        for batch in self.batches:
            yield from _pieces(batch)


def _pieces(batch: Batch) -> list[Batch]:
    """The parts of a batch that the model sees one after the other."""
    return batch.pieces() if isinstance(batch, InPieces) else [batch]


def _turned(
    known: Known,
    read: "Pieces",
    courses: Sequence[Course],
    losses: list[torch.Tensor],
    device: torch.device,
    most: float,
) -> Any:
    """The Trainer's class, which reads these batches, lets the terms take part and tells nobody of it.

    `most` is the largest learning rate: a site's policy bounds it, whatever a schedule of the Trainer's own is told.
    """
    above: Any = getattr(import_module(known.module), known.trainer)

    class Turned(above):
        def get_train_dataloader(self) -> Pieces:
            return read

        def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
            return dataset

        def _prepare_inputs(self, inputs: Batch) -> dict[str, torch.Tensor]:
            return {n: x.to(device) for n, x in (_pairs(inputs) if known.objective == "dpo" else inputs).items()}

        def _send_telemetry(self) -> None:
            """TRL would tell its makers that it is used."""

        def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
            if (rate := max(float(g["lr"] or 0.0) for g in self.optimizer.param_groups)) > most * (1 + 1e-6):
                raise ConfigError(
                    f"[local] trainer: its schedule takes steps of {rate:g}, above learning_rate {most:g}"
                )
            loss: torch.Tensor = super().training_step(*args, **kwargs)
            losses.append(loss.detach())
            if self.accelerator.sync_gradients:  # the last piece of a batch
                for course in courses:
                    course.step()
            return loss

    return Turned


def _view(model: nn.Module) -> nn.Module:
    """The model once more, on the same layers and tensors, with configurations of its own.

    It does not say that its files hold packed weights: a Trainer would refuse it, which knows no adapters but peft's.
    """
    found: Any = copy.copy(model)
    found.is_quantized = False
    for name in ("config", "generation_config"):
        if hasattr(model, name):
            setattr(found, name, copy.deepcopy(getattr(model, name)))
    return found


def _rows(known: Known, handle: Any) -> dict[str, Any]:
    """What a Trainer asks for in its constructor beside the model; the batches come by another way."""
    if known.module == "transformers":
        return {"train_dataset": [{}], "data_collator": dict}
    from datasets import Dataset

    row = {"input_ids": [0], "labels": [0], "prompt": "", "chosen": "", "rejected": ""}
    found = {"train_dataset": Dataset.from_list([row]), "data_collator": dict, "processing_class": _padding(handle)}
    return {**found, "ref_model": _view(handle.model)} if known.objective == "dpo" else found


def _padding(handle: Any) -> Any:
    """A tokenizer that knows the padding token alone: rows are tokens already, and TRL reads no more of it."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    config: Any = handle.model.config
    words = Tokenizer(WordLevel({"<pad>": config.get_text_config().pad_token_id or 0}, unk_token="<pad>"))
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<pad>")


def _pairs(batch: Batch) -> dict[str, torch.Tensor]:
    """A batch of pairs as TRL reads it: which tokens are of an answer, in place of labels."""
    return {
        "input_ids": batch["input_ids"],
        "attention_mask": batch["attention_mask"],
        "completion_mask": (batch["labels"] >= 0).long(),
    }


def _reference(trainer: Any, handle: Any) -> None:
    """Let the Trainer's reference model, if it has one, be the model as the run began, which drops nothing."""
    reference = getattr(trainer, "ref_model", None)
    if reference is None:
        return
    forward = reference.forward

    def original(_: nn.Module, *args: Any, **kwargs: Any) -> Any:
        trainer.model.eval()
        try:
            with handle.without_adapter():
                return forward(*args, **kwargs)
        finally:
            trainer.model.train()

    reference.forward = types.MethodType(original, reference)


@contextmanager
def _global_draws() -> Iterator[None]:
    """Inside, Python's and numpy's global generators may be seeded, as Trainers do; behind it they go on as before."""
    before = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
