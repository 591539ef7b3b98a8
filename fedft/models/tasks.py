"""What a model can be fine-tuned for, `[model] task`: one place that says what follows from each.

if tasks.of(config.model.task).generates: ...
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedft import check
from fedft.errors import DataError


@dataclass(frozen=True)
class Task:
    """One value of `[model] task`."""

    name: str
    """As a run file writes it."""
    model: str
    """What transformers calls a model for it, behind "Auto", and peft behind "AutoPeft"."""
    peft: str
    """peft's name of it, an adapter's `task_type`."""
    generates: bool
    """True: the model writes text; tokens are learned, and its output layer is over them. False: it has a head, which
    is trained and saved, and classes are learned."""
    two_sides: bool = False
    """True: an encoder reads what is given and a decoder writes what is learned, each with positions of its own."""


CAUSAL = Task("causal-lm", "ModelForCausalLM", "CAUSAL_LM", generates=True)
SEQ2SEQ = Task("seq2seq-lm", "ModelForSeq2SeqLM", "SEQ_2_SEQ_LM", generates=True, two_sides=True)
CLASSES = Task("sequence-classification", "ModelForSequenceClassification", "SEQ_CLS", generates=False)

TASKS = {t.name: t for t in (CAUSAL, SEQ2SEQ, CLASSES)}
"""Every task by name."""
WRITING = tuple(t.name for t in TASKS.values() if t.generates)
"""The names of those whose models write text."""


def of(name: str) -> Task:
    """The task of this name. Raises ValueError, which names those that there are, for another one."""
    check.one_of(tuple(TASKS), **{"[model] task": name})
    return TASKS[name]


def two_sided(model: Any) -> bool:
    """Whether a loaded model is an encoder-decoder that writes text: its labels are what the decoder writes."""
    return bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False)) and hasattr(model, "generate")


def misfit(config: Any, task: Task) -> str:
    """Why a checkpoint cannot be loaded for a task, and what would do; "" where it can.

    `config`: transformers' own of the checkpoint. An encoder whose type could be a causal model's is none.
    """
    from transformers.models.auto import modeling_auto as known

    named, kind = " ".join(config.architectures or ()), config.model_type
    two_sided = getattr(config, "is_encoder_decoder", False)
    writes = not any(w in named for w in ("BertModel", "MaskedLM", "SequenceClass"))
    if task.two_sides:
        if two_sided and kind in known.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES and writes:
            return ""
        return (
            f"which is no encoder-decoder that writes text; wanted one, as T5 and BART are, or task = {CAUSAL.name!r}"
        )
    if not task.generates or (kind in known.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and not two_sided and writes):
        return ""
    if two_sided and writes:
        return f"an encoder-decoder; wanted a causal language model, or task = {SEQ2SEQ.name!r}"
    return f"which does not generate text; wanted a causal language model, or task = {CLASSES.name!r}"


def config_in(folder: str | Path, source: str, task: Task) -> Any:
    """transformers' config of the model in a folder; no code of the folder is run.

    Raises DataError, which calls the model `source`, for one of another task, and what transformers raises.
    """
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    if why := misfit(config, task):
        raise DataError(f"[model] id: {source!r} is a {config.model_type} model, {why}")
    return config
