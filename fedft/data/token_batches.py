"""Texts of many records tokenized in one call, which fast tokenizers share among the machine's cores.

    for rows, tokenizer in ahead(records, config, base.tokenizer):
        ...                                   each of `rows` as ever; the tokenizer knows its texts already

A tokenizer gives a text the same ids in a call of its own and among others, so examples are the same.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from fedft.config import RunConfig
from fedft.data import examples
from fedft.data.row_counts import RowCounts
from fedft.data.templates import fill
from fedft.data.token_cache import TokenCache
from fedft.errors import DataError
from fedft.models import tasks

AT_ONCE = 1024
"""Records whose ids are in memory beside their examples."""


class Ahead:
    """A tokenizer that has tokenized some texts; it hands other calls and attributes on to the one it stands for."""

    def __init__(self, tokenizer: Any, texts: Sequence[str], how: Mapping[str, Any]) -> None:
        """Tokenize `texts` in one call, with the keyword arguments `how`."""
        self._tokenizer, self._how = tokenizer, dict(how)
        new = list(dict.fromkeys(texts))
        told = {"return_attention_mask": False, "return_token_type_ids": False}  # nobody reads them
        ids = tokenizer(new, **self._how, **told)["input_ids"] if new else []
        self._ids: dict[str, list[int]] = dict(zip(new, ids, strict=True))

    def __call__(self, *args: Any, **how: Any) -> Any:
        """As the tokenizer: {"input_ids": ...} of a text that it was made for, in a list of its own."""
        if len(args) == 1 and how == self._how and isinstance(args[0], str) and args[0] in self._ids:
            return {"input_ids": list(self._ids[args[0]])}
        return self._tokenizer(*args, **how)

    def __getattr__(self, name: str) -> Any:
        """The tokenizer's own."""
        return getattr(self._tokenizer, name)


class WithTokenizer:
    """A base with another tokenizer; everything else is the base's own."""

    def __init__(self, base: Any, tokenizer: Any) -> None:
        self._base, self.tokenizer = base, tokenizer

    def __getattr__(self, name: str) -> Any:
        """The base's own."""
        return getattr(self._base, name)


def ahead(rows: Sequence[Mapping[str, Any]], config: RunConfig, tokenizer: Any) -> Iterator[tuple[Sequence[Any], Any]]:
    """The rows in order, some at a time, each time with a tokenizer that knows the texts which templates make of them.

    Conversations and rows that are tokens already get the tokenizer itself, and so do all where it is a slow one, which
    gains nothing by this.
    """
    templates = _templates(config) if getattr(tokenizer, "is_fast", False) else ()
    how: dict[str, Any] = {"verbose": False}
    task = tasks.of(config.model.task)
    if task.generates and not task.two_sides:
        how["add_special_tokens"] = False
    for at in range(0, len(rows), AT_ONCE):
        some = rows[at : at + AT_ONCE]
        texts = [text for row in some for text in _filled(templates, row)]
        yield some, Ahead(tokenizer, texts, how) if texts else tokenizer


@dataclass
class Encoder:
    """Encodes the rows of clients, one part of a client after the other, as the run's objective trains on them."""

    objective: Any
    config: RunConfig
    base: Any
    """A `fedft.models.load.Base`."""
    counts: RowCounts
    """What is cut or left out is added to it."""
    kept: TokenCache | None
    """What keeps or has the examples of all parts, in their order; None: they are made here."""

    def __call__(self, rows: Sequence[Any], where: str) -> list[Any]:
        """The examples of these rows; errors as of `examples.encode_all`."""
        made: list[Any] = []
        first, too_long = 1, self.config.data.too_long
        for some, base in self._some_at_a_time(rows):
            encode = partial(self.objective.encode, base=base, config=self.config)
            if self.kept is not None:
                encode = partial(self._kept, encode)
            made += examples.encode_all(some, encode, where, self.counts, too_long, first=first)
            first += len(some)
        return made

    def _some_at_a_time(self, rows: Sequence[Any]) -> Iterator[tuple[Sequence[Any], Any]]:
        if self.kept is not None and self.kept.found:
            yield rows, self.base
            return
        for some, tokenizer in ahead(rows, self.config, self.base.tokenizer):
            yield some, WithTokenizer(self.base, tokenizer)

    def _kept(self, encode: Callable[..., Any], row: Any, where: str) -> Any:
        assert self.kept is not None
        return self.kept.of(partial(encode, row, where=where))


def _templates(config: RunConfig) -> tuple[str, ...]:
    d, task = config.data, tasks.of(config.model.task)
    if not task.generates:
        return (d.text,)
    if d.encode is not None or d.tokens is not None or d.messages is not None:
        return ()
    if config.local.pairs:
        return d.prompt, d.chosen, d.rejected
    return (d.prompt,) if task.two_sides else (d.prompt, d.response)


def _filled(templates: Sequence[str], row: Mapping[str, Any]) -> list[str]:
    """The texts of a row; none of one that its encoding will refuse or reads in another way."""
    try:
        return [fill(template, row, "") for template in templates]
    except DataError:
        return []
