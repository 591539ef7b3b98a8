"""Trainers of transformers and TRL that a run file can name in `[local] trainer`, and what it may tell them.

A Trainer gets all that `[local]` says under the names of its own arguments; what the table adds is arithmetic alone. A
job of a server may name one, so no option reaches a folder, the hub or anybody to report to.
"""

import tempfile
import warnings
from collections.abc import Mapping
from importlib import import_module
from typing import Any, NamedTuple

import torch

from fedft import check
from fedft.config import Local, RunConfig
from fedft.errors import ConfigError, in_one_line
from fedft.registry import named


class Known(NamedTuple):
    """A Trainer that a run file can name."""

    module: str
    trainer: str
    arguments: str
    objective: str
    """The value of `[local] objective` whose loss is the Trainer's; the Trainer computes it."""
    options: frozenset[str]
    """What a run file may tell it: arithmetic alone, no folders, no hub, nobody to report to."""
    fixed: Mapping[str, Any] = {}
    """What it is told besides: what it would do by default and the run file says elsewhere."""


OPTIONS = frozenset({
    "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "optim", "optim_args", "adam_beta1", "adam_beta2",
    "adam_epsilon", "label_smoothing_factor", "neftune_noise_alpha", "average_tokens_across_devices", "tf32",
})  # fmt: skip
OF_TRL = (OPTIONS - {"label_smoothing_factor"}) | {"loss_type", "activation_offloading"}
OF_DPO = frozenset({
    "beta", "label_smoothing", "loss_weights", "ld_alpha", "f_divergence_type", "f_alpha_divergence_coef",
    "use_weighting",
})  # fmt: skip
PLAIN = {"gradient_checkpointing": False}
TRAINERS = {
    "transformers": Known("transformers", "Trainer", "TrainingArguments", "likelihood", OPTIONS),
    "trl_sft": Known("trl", "SFTTrainer", "SFTConfig", "likelihood", OF_TRL, PLAIN),
    "trl_dpo": Known("trl", "DPOTrainer", "DPOConfig", "dpo", OF_TRL | OF_DPO, {**PLAIN, "disable_dropout": False}),
}
OF_THE_TABLE = {
    "learning_rate": "learning_rate", "max_steps": "steps", "num_train_epochs": "epochs", "seed": "[server] seed",
    "per_device_train_batch_size": "batch_size", "gradient_accumulation_steps": "micro_batch", "packing": "packing",
    "weight_decay": "weight_decay", "max_grad_norm": "max_grad_norm", "gradient_checkpointing": "checkpointing",
    "bf16": "autocast",
}  # fmt: skip
"""Arguments of Trainers that a run file says elsewhere, and the keys."""


def check_trainer(config: RunConfig) -> None:
    """Return None if the Trainer that `[local] trainer` names, if any, is installed and takes what it is told.

    Raises ConfigError otherwise, and where the run's rows or its objective are not what that Trainer works on.
    """
    local = config.local
    if local.trainer is None:
        return
    name, options, known = trainer_of(local)
    if config.model.task != "causal-lm" and known.module == "trl":
        raise ConfigError(f"[local] trainer = {name!r} continues text, [model] task is {config.model.task!r}")
    if (said := named(local.objective, "objective")[0]) != known.objective:
        raise ConfigError(
            f"[local] trainer = {name!r} computes its own loss, for which rows are read as of objective = "
            f"{known.objective!r}; found {said!r}"
        )
    if local.packing and known.module == "trl":
        raise ConfigError(f"[local] packing: {name!r} is given padded batches; leave one of the two out")
    if local.micro_batch == "auto":
        raise ConfigError(f"[local] micro_batch = 'auto': {name!r} counts them before it begins; wanted a number")
    if local.keep_optimizer and "optim" in options:
        raise ConfigError(f"[local] keep_optimizer: the optimiser is {name!r}'s own; leave optim or this out")
    with tempfile.TemporaryDirectory() as folder:
        arguments_of(local, config.server.seed, 1, local.learning_rate, 1, torch.device("cpu"), folder)


def trainer_of(local: Local) -> tuple[str, dict[str, Any], Known]:
    """(name, options, what is known of it) of the run's Trainer. Raises ConfigError for another name or option."""
    name, options = named(local.trainer or "", "trainer")
    if (known := TRAINERS.get(name)) is None:
        raise ConfigError(f"[local] trainer is {check.quoted(name)}, wanted one of {', '.join(TRAINERS)}")
    for option in options:
        if (elsewhere := OF_THE_TABLE.get(option)) is not None:
            raise ConfigError(f"[local] trainer: {option} is what [local] {elsewhere} says".replace("[local] [", "["))
        if option not in known.options:
            near = check.nearest(option, known.options)
            raise ConfigError(
                f"[local] trainer: {name} takes no {check.quoted(option)} here; it takes "
                f"{', '.join(sorted(known.options))}{near}"
            )
    return name, options, known


def arguments_of(
    local: Local, seed: int, steps: int, rate: float, pieces: int, device: torch.device, folder: str
) -> Any:  # fmt: skip
    """The arguments of the run's Trainer for one turn. Raises ConfigError for values that it does not take.

    Args:
        local: the `[local]` table.
        seed: of draws of its own.
        steps: optimiser steps.
        rate: learning rate at the first of them.
        pieces: parts of a batch, whose gradients are summed to one step.
        device: where the model is.
        folder: it exists, and may hold what the Trainer writes; nothing is read from it.
    """
    name, options, known = trainer_of(local)
    told = {
        "output_dir": folder, "max_steps": steps, "learning_rate": rate, "seed": seed, "bf16": local.autocast,
        "per_device_train_batch_size": local.batch_size, "gradient_accumulation_steps": pieces,
        "weight_decay": local.weight_decay, "max_grad_norm": local.max_grad_norm or 0.0, "save_strategy": "no",
        "eval_strategy": "no", "logging_strategy": "no", "report_to": [], "disable_tqdm": True, "push_to_hub": False,
        "use_cpu": device.type == "cpu", "remove_unused_columns": False, **known.fixed, **options,
    }  # fmt: skip
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of names that will change with the package's next version
            made = getattr(import_module(known.module), known.arguments)(**told)
    except ImportError as e:
        raise ConfigError(f'[local] trainer = {name!r}: {in_one_line(e)}; pip install "fedft[trainers]"') from e
    except Exception as e:  # of another package, about a run file's values
        raise ConfigError(f"[local] trainer = {name!r}: {in_one_line(e)}") from e
    if made.n_gpu > 1:
        made._n_gpu = 1  # it would deal a batch out to all devices that it sees
    if device.type == "cuda" and made.device != device:
        vars(made)["_setup_devices"] = device  # it would move the model to the first device that it sees
        torch.cuda.set_device(device)
    return made
