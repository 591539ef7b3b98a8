"""Records -> token examples with masked labels -> batches.

    encode = partial(encode_generation, prompt="Q: {question}\\nA: ", response="{answer}", tokenizer=tokenizer, ...)
    examples = encode_all(rows, encode, "train.jsonl.gz", counts := RowCounts())
    for batch in batches(examples, batch_size=8, steps=40, seed=7, pad_id=0): ...

What is wrong with a user's records is a DataError of one line that says where. No global random state is used.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from fedft import check
from fedft.data.row_counts import RowCounts
from fedft.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100
"""The label of a token that is not learned; torch's cross entropy leaves it out (`ignore_index`)."""
BLOCK = re.compile(r"\[\[(.*?)\]\]", re.DOTALL)
FIELD = re.compile(r"\{\{|\}\}|\{([^{}\n]+)\}")


def fill(template: str, row: Mapping[str, Any], where: str) -> str:
    """`template` with every "{field}" replaced by that field of `row` as text; null becomes nothing.

    Between the braces stands a field's name and nothing else; "{{" and "}}" are literal braces, and values are taken as
    they are, whatever they hold. A block in "[[" and "]]" is left out when a field in it is empty or missing; brackets
    around no field are text, and blocks do not nest.

    Raises DataError, beginning with `where`, for a missing field outside a block, a value that is a list or an object,
    and a brace without its other.

    >>> fill("{q}[[ ({hint})]]?", {"q": "2 + 2"}, "row 1")
    '2 + 2?'
    >>> fill("{q}[[ ({hint})]]?", {"q": "Why", "hint": "so"}, "row 2")
    'Why (so)?'
    """
    text = []
    for i, piece in enumerate(BLOCK.split(template)):  # odd ones were in brackets
        if set("{}") & set(FIELD.sub("", piece).replace("{}", "")):
            raise DataError(f"{where}: template {template!r} has a brace without its other; a literal one is doubled")
        names = [name for name in FIELD.findall(piece) if name]
        if i % 2 and not names:
            piece = f"[[{piece}]]"
        elif i % 2 and any(row.get(name) in (None, "") for name in names):
            continue
        text.append(FIELD.sub(lambda m: _value(row, m[1], where) if m[1] else m[0][0], piece))
    return "".join(text)


def _value(row: Mapping[str, Any], name: str, where: str) -> str:
    if name not in row:
        raise DataError(f"{where}: no field {name!r}; there are {', '.join(map(str, row)) or 'none'}")
    if isinstance(row[name], list | dict):
        raise DataError(f"{where}: field {name!r} is a {type(row[name]).__name__}, wanted text or a number")
    return "" if row[name] is None else str(row[name])


@dataclass(frozen=True)
class Example:
    """One record as token ids with labels."""

    input_ids: list[int]
    labels: list[int] | int
    """One label for each token, the token's own id or IGNORED; for a classification, the number of the class."""
    prompt_length: int
    """How many tokens at the beginning are given and not learned."""
    lost: int = 0
    """Tokens to learn that were cut off; of a classification, tokens of the text."""
    prompt_lost: int = 0
    """Tokens of the prompt that were cut off."""

    @property
    def learned(self) -> int:
        """How many tokens are learned; 1 for a class."""
        return 1 if isinstance(self.labels, int) else sum(label != IGNORED for label in self.labels[1:])

    @property
    def learnable(self) -> bool:
        """Whether the example contributes to a loss: a class, or a learned token behind the first.

        The first token has nothing before it to be predicted from.
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
        prompt: template of what is given; "" learns all of the response, which is plain language modelling.
        response: template of what is learned.
        tokenizer: of the base model.
        max_length: tokens at most; the response is cut from the right.
        max_prompt: tokens of the prompt at most, cut from the left; None: what the response leaves, or half of
            max_length where that is more.
        where: what an error message calls this row.
    Raises:
        DataError: as `fill`.

    A beginning-of-sequence token, if the tokenizer has one, stands first, survives the cut and counts as prompt. Of an
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
    label_field: str,
    labels: Sequence[str],
    tokenizer: "PreTrainedTokenizerBase",
    max_length: int,
    where: str,
) -> Example:
    """A record as a text of at most `max_length` tokens and a class, whose number is its place in `labels`.

    Args:
        row: the record, fields by name.
        text: template of the text.
        label_field: the field that holds the class: one of `labels`, or its number (as the hub's class labels are).
        labels: names of the classes.
        tokenizer: of the base model.
        where: what an error message calls this row.
    Raises:
        DataError: the class is not one of `labels`, or as `fill`.
    """
    found = _value(row, label_field, where)  # a field's name, never a template
    if found in labels:
        label = labels.index(found)
    elif type(value := row[label_field]) is int and 0 <= value < len(labels):
        label = value
    else:
        raise DataError(f"{where}: {label_field!r} is {found!r}, not a label{check.nearest(found, labels)}")
    full = tokenizer(fill(text, row, where), verbose=False)["input_ids"]
    ids = full
    if len(full) > max_length:  # only here: the tokenizer knows which special tokens a cut text ends with
        ids = tokenizer(fill(text, row, where), truncation=True, max_length=max_length)["input_ids"]
    return Example(ids, label, len(ids), prompt_lost=len(full) - len(ids))


def encode(row: Mapping[str, Any], base: Any, config: Any, where: str) -> Example:
    """One record in tokens, by the templates of the run's `[data]` and the task of its `[model]`. Raises DataError."""
    d = config.data
    if config.model.task == "causal-lm":
        return encode_generation(
            row, prompt=d.prompt, response=d.response, tokenizer=base.tokenizer, max_length=d.max_length,
            max_prompt=d.max_prompt, where=where,
        )  # fmt: skip
    return encode_label(
        row, text=d.text, label_field=d.label, labels=config.model.labels, tokenizer=base.tokenizer,
        max_length=d.max_length, where=where,
    )  # fmt: skip


def encode_all(
    rows: Iterable[Mapping[str, Any]],
    encode: Callable[..., Any],
    where: str,
    counts: RowCounts,
    too_long: Literal["cut", "drop", "refuse"] = "cut",
) -> list[Any]:
    """`encode(row, where=...)` of every row but those that are left out, which are counted.

    Args:
        rows: records.
        encode: one record -> an example, or whatever the objective trains on.
        where: what an error message calls these rows.
        counts: added to.
        too_long: what becomes of a row of which something had to be cut off.
    Raises:
        DataError: such a row where they are refused, or as `encode`.
    """
    found = []
    for number, row in enumerate(rows, 1):
        example = encode(row, where=f"{where}, row {number}")
        counts.encoded(example)
        lost, prompt = getattr(example, "lost", 0), getattr(example, "prompt_lost", 0)
        if (lost or prompt) and too_long == "refuse":
            raise DataError(
                f"{where}, row {number}: {lost + prompt} tokens more than [data] max_length or max_prompt allow; "
                f"too_long = 'cut' or 'drop' would do"
            )
        if (lost or prompt) and too_long == "drop":
            counts.dropped += 1
        elif not getattr(example, "learnable", True):
            counts.empty += 1
        else:
            found.append(example)
    return found


def collate(examples: Sequence[Example], pad_id: int) -> dict[str, Tensor]:
    """One batch of examples, padded on the right to the longest of them.

    `pad_id` is the token id to fill up with; it is masked, so its value does not matter.

    Returns:
        input_ids, attention_mask: int64 (B, T); labels: int64 (B, T), IGNORED on padding, or (B,) for classes.
    """
    longest = max(len(e.input_ids) for e in examples)

    def padded(lists: Iterable[list[int]], value: int) -> Tensor:
        return torch.tensor([ids + [value] * (longest - len(ids)) for ids in lists])

    classes = [e.labels for e in examples if isinstance(e.labels, int)]
    sequences = [e.labels for e in examples if not isinstance(e.labels, int)]
    return {
        "input_ids": padded((e.input_ids for e in examples), pad_id),
        "attention_mask": padded(([1] * len(e.input_ids) for e in examples), 0),
        "labels": padded(sequences, IGNORED) if sequences else torch.tensor(classes),
    }


def drawn(rows: Sequence[Any], *, batch_size: int, steps: int, seed: int) -> Iterator[list[Any]]:
    """Exactly `steps` lists of rows, drawn without replacement, one shuffle after the other.

    A list that an epoch's end leaves short is filled up from the next shuffle, so no row waits longer than two epochs
    and none is dropped. Fewer rows than `batch_size`: every list is all of them. The same seed gives the same lists.
    No row raises DataError.
    """
    if not rows:
        raise DataError("there is no example to train on")
    check.at_least(1, batch_size=batch_size)
    order, size = _shuffles(len(rows), seed), min(batch_size, len(rows))
    for _ in range(steps):
        yield [rows[i] for i in islice(order, size)]


def batches(
    examples: Sequence[Example], *, batch_size: int, steps: int, seed: int, pad_id: int
) -> Iterator[dict[str, Tensor]]:
    """Exactly `steps` batches of examples, see `drawn` and `collate`."""
    for rows in drawn(examples, batch_size=batch_size, steps=steps, seed=seed):
        yield collate(rows, pad_id)


@dataclass(frozen=True)
class ClientRows:
    """A client's own training rows, and how batches are made of them (`fedft.contract.Data`)."""

    rows: Sequence[Any]
    batch_size: int
    collate: Callable[[Sequence[Any]], Mapping[str, Tensor]]
    begun: Callable[[int], None] = lambda step: None
    """Hears the number of every batch, from 1, when it is asked for."""

    def batch(self, rows: Sequence[Any]) -> Mapping[str, Tensor]:
        """These rows as one batch."""
        return self.collate(rows)

    def batches(self, turn: Any) -> Iterator[Mapping[str, Tensor]]:
        """`turn.plan.steps` batches, in an order drawn from the turn's seed; see `drawn`."""
        lists = drawn(self.rows, batch_size=self.batch_size, steps=turn.plan.steps, seed=turn.seed)
        for step, rows in enumerate(lists, 1):
            self.begun(step)
            yield self.batch(rows)


def _shuffles(n: int, seed: int) -> Iterator[int]:
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield from torch.randperm(n, generator=generator).tolist()
