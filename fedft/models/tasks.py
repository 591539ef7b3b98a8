"""What a model can be fine-tuned for, `[model] task`: one place that says what follows from each.

if tasks.of(config.model.task).generates: ...
"""

from dataclasses import dataclass

from fedft import check


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
    check.one_of(tuple(TASKS), task=name)
    return TASKS[name]
