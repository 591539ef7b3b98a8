"""Records that are token ids already, made by the base model's own tokenizer.

example = encode(row, field="input_ids", ids=base.ids, max_length=1024, where="row 1")
"""

from collections.abc import Mapping
from typing import Any

from fedft import check
from fedft.data.examples import IGNORED, Example
from fedft.data.records import value_of
from fedft.errors import DataError


def encode(row: Mapping[str, Any], *, field: str, ids: int, max_length: int, where: str) -> Example:
    """A record's token ids as they are; all are learned, or those whose label in the field `labels` is not IGNORED.

    Args:
        row: the record, fields by name. Tokens whose `attention_mask` is 0, if it has such a field, are padding and
            left out.
        field: the one that holds the ids, a list of integers; of null nothing is learned.
        ids: how many token ids the model has an embedding for.
        max_length: tokens at most; cut from the right.
        where: name of the row in error messages.
    Raises:
        DataError: no such field, no list of token ids of the model, `labels` or `attention_mask` of another length, or
            a label that is not its place's token.

    >>> encode({"t": [5, 6, 7], "labels": [-100, 6, 7]}, field="t", ids=8, max_length=2, where="row 1")
    Example(input_ids=[5, 6], labels=[-100, 6], prompt_length=1, lost=1, prompt_lost=0)
    """
    if value_of(row, field, where) is None:
        return Example([], [], 0)
    tokens = _integers(row, field, where)
    if outside := [n for n in tokens if not 0 <= n < ids]:
        raise DataError(f"{where}: field {field!r} has token id {outside[0]}, the model has embeddings of {ids} ids")
    labels, mask = (_beside(row, name, field, len(tokens), where) for name in ("labels", "attention_mask"))
    labels = tokens if labels is None else labels
    for at, (token, label) in enumerate(zip(tokens, labels, strict=True)):
        if label not in (token, IGNORED):
            raise DataError(
                f"{where}: field 'labels' has {label} at place {at}, wanted {IGNORED} or the token there, {token}; "
                f"labels are not shifted, the model does that"
            )
    if mask is not None:
        tokens, labels = ([n for n, on in zip(numbers, mask, strict=True) if on] for numbers in (tokens, labels))
    kept = min(max_length, len(tokens))
    lost = sum(label != IGNORED for label in labels[kept:])
    begins = [n for n in range(kept) if labels[n] != IGNORED and (n == 0 or labels[n - 1] == IGNORED)]
    return Example(tokens[:kept], labels[:kept], begins[-1] if begins else kept, lost, len(tokens) - kept - lost)


def _integers(row: Mapping[str, Any], field: str, where: str) -> list[int]:
    found = value_of(row, field, where)
    if not (isinstance(found, list) and all(type(n) is int for n in found)):
        raise DataError(f"{where}: field {field!r} is {check.quoted(found)}, wanted a list of integers")
    return found


def _beside(row: Mapping[str, Any], name: str, field: str, length: int, where: str) -> list[int] | None:
    """The record's field `name`, an integer for each token; None where it has none."""
    if row.get(name) is None:
        return None
    if len(found := _integers(row, name, where)) != length:
        raise DataError(f"{where}: field {name!r} has {len(found)} entries, {field!r} has {length}")
    return found
