"""Encoded rows that stay on the disk of whoever simulates, so that the next run on the same rows begins at once.

    tokens/<key>    SHA-256 of the rest, then a safetensors body: ids and labels one behind the other, their lengths

The key is a digest of the rows, of all that a run file says of how they are encoded, of the tokenizer and of this form:
with anything else there is another file. Only rows of tokens are kept, and only where they are many.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from fedft import durable
from fedft.config import RunConfig
from fedft.data.encoder_decoder import TwoSided
from fedft.data.examples import Example
from fedft.errors import FedftError

log = logging.getLogger(__name__)

FORM = 1  # of the files and of what encoding gives; a change of either needs another number
FEWEST = 4096  # rows; below, tokenizing them takes a second or two
MOST_BYTES = 2 * 2**30  # of all files; beyond, the oldest are removed
KINDS = {"one side": Example, "two sides": TwoSided}


class TokenCache:
    """The encoded rows of one run: found, or gathered to be kept."""

    def __init__(self, folder: Path, rows: Iterable[Mapping[str, Any]], config: RunConfig, tokenizer: str) -> None:
        """Look for the rows, which are all that will be encoded.

        Args:
            folder: of all such files; made when something is kept.
            rows: in order.
            config: the run's.
            tokenizer: its digest.
        """
        self._path = folder / _key(rows, config, tokenizer)
        body = durable.verified(self._path) if self._path.exists() else None
        self._found: Iterator[Example] | None = None if body is None else iter(_read(body))
        self._made: list[Any] = []

    @property
    def found(self) -> bool:
        """Whether the rows were found: then nothing is tokenized."""
        return self._found is not None

    def of(self, encode: Callable[[], Any]) -> Any:
        """The next row's example: the one that was kept, or what `encode` makes of it."""
        if self._found is not None:
            return next(self._found)
        self._made.append(encode())
        return self._made[-1]

    def keep(self) -> None:
        """Write what was gathered, if it is of tokens; where the disk does not take it, that is said and no more."""
        kind = next((k for k, of in KINDS.items() if all(type(e) is of for e in self._made)), "")
        if self._found is not None or not kind or not all(isinstance(e.labels, list) for e in self._made):
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            durable.commit(self._path, _written(self._made, kind))
            log.info("%d rows are kept as tokens in %s, for the next run on them", len(self._made), self._path)
            _thin(self._path.parent)
        except (FedftError, OSError) as e:
            log.warning("encoded rows are not kept: %s", e)


def _key(rows: Iterable[Mapping[str, Any]], config: RunConfig, tokenizer: str) -> str:
    d, m = config.data, config.model
    said = (
        FORM, tokenizer, m.task, d.prompt, d.response, d.messages, d.chat_template, d.tokens, d.max_length,
        d.max_prompt,
    )  # fmt: skip
    whole = hashlib.sha256(json.dumps(said, default=str).encode())
    for row in rows:
        whole.update(json.dumps(row, default=repr).encode() + b"\n")
    return whole.hexdigest()


def _written(examples: Sequence[Any], kind: str) -> bytes:
    def joined(lists: Iterable[list[int]]) -> Tensor:
        return torch.tensor([x for some in lists for x in some], dtype=torch.int32)

    counts = [
        (len(e.input_ids), len(e.labels), e.prompt_length, e.lost, e.prompt_lost) for e in examples
    ]  # fmt: skip
    body = {
        "ids": joined(e.input_ids for e in examples),
        "labels": joined(e.labels for e in examples),
        "counts": torch.tensor(counts, dtype=torch.int32).reshape(-1, 5),
    }
    return save_tensors(body, {"kind": kind})


def _read(body: bytes) -> list[Example]:
    tensors, of = load_tensors(body), KINDS[durable.metadata(body)["kind"]]
    counts = tensors["counts"].tolist()
    ids, labels = tensors["ids"].tolist(), tensors["labels"].tolist()
    at = pairwise(accumulate((c[0] for c in counts), initial=0))
    at_labels = pairwise(accumulate((c[1] for c in counts), initial=0))
    return [
        of(ids[a:b], labels[p:q], *c[2:]) for c, (a, b), (p, q) in zip(counts, at, at_labels, strict=True)
    ]  # fmt: skip


def _thin(folder: Path) -> None:
    """Remove the oldest files beyond MOST_BYTES."""
    files = sorted(((s.st_mtime, s.st_size, p) for p in folder.iterdir() if (s := p.stat())), reverse=True)
    total = 0
    for _, size, path in files:
        total += size
        if total > MOST_BYTES:
            log.info("encoded rows in %s are removed: they were written longest ago", path)
            path.unlink(missing_ok=True)
