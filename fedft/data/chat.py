"""Conversations to token ids by a chat template; all turns of the assistant are learned, and nothing else.

    example = encode(row, field="messages", template=None, tokenizer=base.tokenizer, max_length=1024, where="row 1")

The template writes every special token, those that begin and end a text too: ids are what the tokenizer makes of its
text, as where the model is served. Which of them the assistant says is told by the template's `{% generation %}` marks.
One without marks is asked for the text before each turn, as when the model is to answer, and for the text with it.
A template that writes the day's date is given one and the same: rows would have other tokens every day.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from itertools import groupby
from typing import TYPE_CHECKING, Any

from fedft.data import conversations
from fedft.data.conversations import Message
from fedft.data.examples import IGNORED, Example
from fedft.data.records import value_of
from fedft.errors import ConfigError, DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MARK = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
DATE = datetime(2024, 7, 26)
"""What `strftime_now` of every template gives: the day that Llama 3's own template falls back to."""
NOW = re.compile(r"""strftime_now\(\s*(["'])((?:(?!\1).)*)\1\s*\)""")
STILL_NOW = re.compile(r"strftime_now(?!\s+is\s)")
Span = tuple[int, int]
"""From the first token of a learned turn to behind its last one."""


def encode(
    row: Mapping[str, Any],
    *,
    field: str,
    template: str | None,
    tokenizer: "PreTrainedTokenizerBase",
    max_length: int,
    where: str,
) -> Example:
    """A record's conversation as token ids; labels are IGNORED but in turns of the assistant and their end tokens.

    Args:
        row: the record, fields by name; `tools`, if it has such a field, is passed to the template.
        field: the one that holds the conversation, see `conversations.messages`.
        template: Jinja text; None: the tokenizer's own.
        tokenizer: the base model's.
        max_length: tokens at most; the conversation is cut from the right. What follows the last learned token is not
            kept in any case, since it changes no loss.
        where: name of the row in error messages.
    Returns:
        The example, whose `prompt_length` reaches to its last learned turn. Empty where no turn is to be learned, and
        where the field is null or empty.
    Raises:
        ConfigError: there is no template.
        DataError: no conversation; the template refuses it, or does not tell what the assistant says.
    """
    if template is None and not getattr(tokenizer, "chat_template", None):
        raise ConfigError(
            f"[data] messages = {field!r}: the model's tokenizer has no chat template; a line "
            f"chat_template = 'chat.jinja' in [data] names a file with one (DATA.md shows one)"
        )
    if value_of(row, field, where) in (None, "", []):
        return Example([], [], 0)
    said, tools = conversations.messages(row, field, where), conversations.tools(row, where)
    if not any(conversations.taught(m) for m in said):
        return Example([], [], 0)
    writer = Writer(tokenizer, template, tools, where)
    ids, spans = writer.marked(said) if writer.has_marks() else writer.by_prefixes(said)
    labels = [IGNORED] * spans[-1][1]
    for start, end in spans:
        labels[start:end] = ids[start:end]
    kept = min(max_length, len(labels))
    lost = sum(label != IGNORED for label in labels[kept:])
    given = max((start for start, _ in spans if start < kept), default=kept)
    return Example(ids[:kept], labels[:kept], given, lost, len(labels) - kept - lost)


def dated(template: str | None, tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Whether a chat template writes the day's date. Raises ConfigError where there are several, none the default."""
    return "strftime_now" in Writer(tokenizer, template, None, "").text()


def ends(template: str | None, tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Whether more than space is learned behind what the assistant says; True for a template that fails on a small
    conversation, which real ones may suit."""
    said = [{"role": "user", "content": "Go?"}, {"role": "assistant", "content": "Yes"}]
    try:
        example = encode(
            {"said": said}, field="said", template=template, tokenizer=tokenizer, max_length=9999, where=""
        )
    except DataError:
        return True
    assert isinstance(example.labels, list)
    learned = str(tokenizer.decode([label for label in example.labels if label != IGNORED]))
    return not learned.rstrip().endswith("Yes")


@dataclass(frozen=True)
class Writer:
    """A chat template at work on one record."""

    tokenizer: "PreTrainedTokenizerBase"
    template: str | None
    tools: list[Any] | None
    where: str

    def has_marks(self) -> bool:
        """Whether the template marks what the assistant says."""
        return bool(MARK.search(self.text()))

    def text(self) -> str:
        """The template's own text. Raises ConfigError where the tokenizer has several, none of them the default."""
        try:
            found: str = self.tokenizer.get_chat_template(self.template, self.tools)
            return found
        except ValueError as e:  # several templates, none of them the default
            raise ConfigError(f"[data] messages: {_line(e)}") from e

    def asked(self, said: Sequence[Message]) -> list[int]:
        """The ids of a conversation up to where the assistant is to answer. Raises DataError as the template does."""
        return self._ids(self._text(said, answer=True))

    def marked(self, said: Sequence[Message]) -> tuple[list[int], list[Span]]:
        """(ids, learned spans) by the template's marks. Raises DataError where they are not one for each turn."""
        out = self._applied(said, tokenize=True, return_assistant_tokens_mask=True, tokenizer_kwargs={"verbose": False})
        ids, mask = out["input_ids"][0], out["assistant_masks"][0]
        spans, at = [], 0
        for inside, run in groupby(mask):
            end = at + len(list(run))
            spans += [(at, end)] if inside else []
            at = end
        turns = [conversations.taught(m) for m in said if m["role"] == "assistant"]
        if len(spans) == len(turns):
            return ids, [span for span, learned in zip(spans, turns, strict=True) if learned]
        if len(spans) == sum(turns) or (all(turns) and len(spans) > len(turns)):
            return ids, spans
        raise DataError(
            f"{self.where}: the {{% generation %}} marks of the chat template cover {len(spans)} stretches, the "
            f"conversation has {len(turns)} turns of the assistant; wanted one mark for each"
        )

    def by_prefixes(self, said: Sequence[Message]) -> tuple[list[int], list[Span]]:
        """(ids up to the last learned turn, learned spans), by what the template writes before and with each turn.

        No token lies across the border of what is given and what is learned: at serving the model is given exactly
        the tokens before it. Raises DataError where one text does not begin with the other.
        """
        ids: list[int] = []
        spans: list[Span] = []
        whole, done = self._text(said), 0
        for n, message in enumerate(said):
            if not conversations.taught(message):
                continue
            before, through = self._text(said[:n], answer=True), self._text(said[: n + 1])
            if not (whole.startswith(through) and through.startswith(before)):
                raise DataError(
                    f"{self.where}: message {n + 1}: the chat template writes a turn of the assistant differently "
                    f"when it is asked to answer or when others follow, so what is learned cannot be told; a [data] "
                    f"chat_template with {{% generation %}} marks around turns of the assistant would do"
                )
            end = len(before) + len(_closed(through[len(before) :], message["content"].strip()))
            ids = self._grown(ids, whole, done, len(before))
            start = len(ids)
            ids, done = self._grown(ids, whole, len(before), end), end
            spans.append((start, len(ids)))
        return ids, spans

    def _grown(self, ids: list[int], text: str, done: int, to: int) -> list[int]:
        """The ids of `text[:to]` where they begin with `ids`, those of `text[:done]`; else the rest is told apart."""
        longer = self._ids(text[:to])
        return longer if longer[: len(ids)] == ids else ids + self._ids(text[done:to])

    def _ids(self, text: str) -> list[int]:
        found: list[int] = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return found

    def _text(self, said: Sequence[Message], *, answer: bool = False) -> str:
        """What the template writes; `answer`: up to where the assistant is to go on."""
        text: str = self._applied(said, tokenize=False, add_generation_prompt=answer)[0]
        return text

    def _applied(self, said: Sequence[Message], **how: Any) -> Any:
        template = _undated(self.text())
        try:  # a list of conversations, since an empty one alone is refused
            return self.tokenizer.apply_chat_template([list(said)], tools=self.tools, chat_template=template, **how)
        except Exception as e:  # Jinja's, the template's own, and those of Python inside it
            raise DataError(f"{self.where}: the chat template fails: {_line(e)}") from e


@cache
def _undated(template: str) -> str:
    """A chat template whose calls of `strftime_now` give DATE. Raises ConfigError for one that is not by a plain text.

    >>> _undated("Today is {{ strftime_now('%d %b %Y') }}")
    "Today is {{ '26 Jul 2024' }}"
    """
    fixed = NOW.sub(lambda m: repr(DATE.strftime(m[2])), template)
    if STILL_NOW.search(fixed):
        raise ConfigError(
            "[data] messages: the chat template asks for the day's date other than by strftime_now('...'), so rows "
            "would have other tokens every day; a [data] chat_template without it would do"
        )
    return fixed


def _closed(written: str, content: str) -> str:
    """A turn as written, without the space behind its end token; space right behind the content is its end.

    >>> _closed("4<|end|>\\n", "4"), _closed("4\\n", "4")
    ('4<|end|>', '4\\n')
    """
    closed = written.rstrip()
    return written if content and closed.endswith(content) else closed


def _line(e: Exception) -> str:
    return f"{type(e).__name__}: {' '.join(str(e).split()) or 'no reason given'}"[:300]
