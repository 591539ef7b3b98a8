"""Records to token ids with labels, by templates; `batches` makes tensors of them.

    encode = partial(encode_generation, prompt="Q: {question}\\nA: ", response="{answer}", tokenizer=tokenizer, ...)
    examples = encode_all(rows, encode, "train.jsonl.gz", counts := RowCounts())

A record that cannot be used is a DataError of one line that says where it is.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from fedft import check
from fedft.data import labels as record_labels
from fedft.data.row_counts import RowCounts
from fedft.data.templates import fill
from fedft.errors import DataError
from fedft.models import tasks

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100
"""The label of a token that is not learned; torch's cross entropy leaves it out (`ignore_index`)."""


@dataclass(frozen=True)
class Example:
    """One record as token ids with labels; T tokens."""

    input_ids: list[int]
    labels: list[int] | int | tuple[float, ...]
    """T labels, each the token's own id or IGNORED; of a classification what `labels.read` gives."""
    prompt_length: int
    """How many of the first tokens are given and not learned; of a conversation, those before its last learned turn."""
    lost: int = 0
    """Tokens to learn that were cut off."""
    prompt_lost: int = 0
    """Tokens of the prompt, or of a classification's text, that were cut off."""

    @property
    def given(self) -> list[int]:
        """The tokens of the prompt."""
        return self.input_ids[: self.prompt_length]

    @property
    def response(self) -> list[int]:
        """The tokens behind the prompt."""
        return self.input_ids[self.prompt_length :]

    @property
    def learned(self) -> int:
        """How many tokens are learned; 1 of a classification."""
        return sum(label != IGNORED for label in self.labels[1:]) if isinstance(self.labels, list) else 1

    @property
    def learnable(self) -> bool:
        """Whether the example contributes to a loss: it has a class, or a learned token after the first one.

        The first token has nothing before it to be predicted from.

        >>> Example([5, 6], [IGNORED, 6], 1).learnable, Example([5, 6], [5, IGNORED], 0).learnable
        (True, False)
        """
        return self.learned > 0


def encode_generation(
    row: Mapping[str, Any],
    *,
    prompt: str,
    response: str,
    tokenizer: "PreTrainedTokenizerBase",
    max_length: int,
    max_prompt: int | None,
    where: str,
) -> Example:
    """A record as prompt, response and end-of-sequence token; the labels of the prompt are IGNORED.

    Args:
        row: the record, fields by name.
        prompt: template (see `templates`) of the text that is given; "" is plain language modelling of the response.
        response: template of the text that is learned.
        tokenizer: the base model's.
        max_length: tokens at most; the response is cut from the right.
        max_prompt: tokens of the prompt at most, cut from the left; None: what the response leaves, or half of
            max_length where that is more.
        where: name of the row in error messages.
    Raises:
        DataError: as `templates.fill` does.

    A beginning-of-sequence token, if the tokenizer has one, comes first, survives the cut and counts as prompt. Of an
    empty response nothing is learned, not even to stop.
    """
    check.at_least(1, max_length=max_length, max_prompt=1 if max_prompt is None else max_prompt)
    # Two calls, so that no token lies across the border of what is masked and what is learned.
    given = tokenizer(fill(prompt, row, where), add_special_tokens=False, verbose=False)["input_ids"]
    learned = tokenizer(fill(response, row, where), add_special_tokens=False, verbose=False)["input_ids"]
    bos, eos = ([] if i is None else [i] for i in (tokenizer.bos_token_id, tokenizer.eos_token_id))
    given = given[1:] if bos and given[:1] == bos else given  # the template wrote it out
    learned = learned + eos if learned else []
    left = max_length - min(max(1, len(learned)), (max_length + 1) // 2)
    room = min(max_length - 1, left if max_prompt is None else max_prompt)
    kept = (bos + given[max(0, len(given) + len(bos) - room) :])[:room]
    cut = learned[: max_length - len(kept)]
    lost, prompt_lost = len(learned) - len(cut), len(bos) + len(given) - len(kept)
    return Example(kept + cut, [IGNORED] * len(kept) + cut, len(kept), lost, prompt_lost)


def encode_label(
    row: Mapping[str, Any],
    *,
    text: str,
    label_field: str | Sequence[str],
    labels: Sequence[str],
    tokenizer: "PreTrainedTokenizerBase",
    max_length: int,
    where: str,
    problem_type: str = record_labels.SINGLE,
) -> Example:
    """A record as a text of at most `max_length` tokens and its class, labels or numbers, see `labels.read`.

    Args:
        row: the record, fields by name.
        text: template (see `templates.fill`) of the text.
        label_field, labels, problem_type: `fields`, `names` and `kind` of `labels.read`.
        tokenizer: the base model's.
        max_length: tokens at most; the text is cut from the right.
        where: name of the row in error messages.
    Raises:
        DataError: as `labels.read` and `templates.fill` do. No text or no label is nothing to learn.
    """
    without = record_labels.missing(row, label_field, labels, where)
    if not (said := fill(text, row, where)) or without:
        return Example([], [], 0)
    label = record_labels.read(row, label_field, labels, problem_type, where)
    ids = full = tokenizer(said, verbose=False)["input_ids"]
    if len(full) > max_length:  # only here: the tokenizer knows which special tokens a cut text ends with
        ids = tokenizer(said, truncation=True, max_length=max_length)["input_ids"]
    return Example(ids, label, len(ids), prompt_lost=len(full) - len(ids))


def encode(row: Mapping[str, Any], base: Any, config: Any, where: str) -> Example:
    """One record as an example, by the templates of the run's `[data]` and the task of its `[model]`: one of one side.

    Args:
        row: the record, fields by name.
        base: a `fedft.models.load.Base`, for its tokenizer.
        config: the run's `RunConfig`.
        where: name of the row in error messages.
    Raises:
        DataError: as `encode_generation` and `encode_label` do; for an encoder-decoder, see `encoder_decoder.encode`.
    """
    d, task = config.data, tasks.of(config.model.task)
    if task.two_sides:
        raise DataError(f"{where}: the objective encodes rows for models of one side; [model] task is {task.name!r}")
    if task.generates:
        return encode_generation(
            row, prompt=d.prompt, response=d.response, tokenizer=base.tokenizer, max_length=d.max_length,
            max_prompt=d.max_prompt, where=where,
        )  # fmt: skip
    return encode_label(
        row, text=d.text, label_field=d.label, labels=config.model.labels, tokenizer=base.tokenizer,
        max_length=d.max_length, where=where, problem_type=config.model.problem_type,
    )  # fmt: skip


def encode_all(
    rows: Iterable[Mapping[str, Any]],
    encode: Callable[..., Any],
    where: str,
    counts: RowCounts,
    too_long: Literal["cut", "drop", "refuse"] = "cut",
    first: int = 1,
) -> list[Any]:
    """`encode(row, where=...)` of every row but those that are left out, which are counted.

    Args:
        rows: records.
        encode: one record -> an example, or whatever the objective trains on.
        where: what an error message calls these rows.
        counts: added to.
        too_long: what becomes of a row of which something had to be cut off.
        first: number of the first row, for messages.
    Raises:
        DataError: such a row where they are refused, or as `encode`.
    """
    found = []
    for number, row in enumerate(rows, first):
        example = encode(row, where=f"{where}, row {number}")
        cut = counts.encoded(example)
        if cut and too_long == "refuse":
            more = f"{cut} tokens more than [data] max_length or max_prompt allow"
            raise DataError(f"{where}, row {number}: {more}; too_long = 'cut' or 'drop' would do")
        if cut and too_long == "drop":
            counts.dropped += 1
        elif not getattr(example, "learnable", True):
            counts.empty += 1
        else:
            found.append(example)
    return found
