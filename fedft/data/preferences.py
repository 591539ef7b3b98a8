"""Records with two answers to one prompt, the chosen and the rejected one, to token ids: texts or conversations.

    pair = encode({"prompt": "2 + 2 = ", "chosen": "4", "rejected": "5"}, base, config, "row 1")

Both answers stand behind the same tokens of the prompt, however much of it had to be cut off.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedft.data import chat, conversations
from fedft.data.conversations import Message
from fedft.data.examples import Example, encode_generation
from fedft.data.templates import FIELD, fill
from fedft.errors import DataError

SIDES = ("chosen", "rejected")
ROLES = ("role", "from")
"""Keys one of which every message has."""


@dataclass(frozen=True)
class Pair:
    """One record as two examples with the same prompt. What is generated for it is compared with the chosen one."""

    chosen: Example
    rejected: Example

    @property
    def both(self) -> tuple[Example, Example]:
        """The chosen and the rejected example."""
        return self.chosen, self.rejected

    @property
    def input_ids(self) -> list[int]:
        """The token ids of the chosen example."""
        return self.chosen.input_ids

    @property
    def given(self) -> list[int]:
        """The tokens of the prompt, up to the last turn that is learned."""
        return self.chosen.given

    @property
    def response(self) -> list[int]:
        """The tokens of the chosen answer."""
        return self.chosen.response

    @property
    def learned(self) -> int:
        """How many tokens of both answers are learned."""
        return self.chosen.learned + self.rejected.learned

    @property
    def lost(self) -> int:
        """Tokens of both answers that were cut off."""
        return self.chosen.lost + self.rejected.lost

    @property
    def prompt_lost(self) -> int:
        """Tokens of the prompt that were cut off."""
        return max(self.chosen.prompt_lost, self.rejected.prompt_lost)

    @property
    def learnable(self) -> bool:
        """Whether there is something to prefer: two answers, neither of them empty, that differ within the length."""
        unlike = self.chosen.input_ids != self.rejected.input_ids
        return unlike and self.chosen.learnable and self.rejected.learnable


def encode(row: Mapping[str, Any], base: Any, config: Any, where: str) -> Pair:
    """A record as a pair, by `[data]` prompt, chosen and rejected.

    Args:
        row: the record, fields by name.
        base: a `fedft.models.load.Base`, for its tokenizer.
        config: the run's `RunConfig`.
        where: name of the row in error messages.
    Raises:
        DataError: as `examples.encode_generation` and `chat.encode` do; one answer is a conversation and the other is
            not; the two conversations are no answers to one prompt.
    """
    fields = [conversation(row, getattr(config.data, side)) for side in SIDES]
    idle = "chat_template" if not any(fields) else "max_prompt"
    if getattr(config.data, idle) is not None:
        form = "lists of messages, which are cut from the right" if any(fields) else "texts, no lists of messages"
        raise DataError(f"{where}: the answers are {form}: [data] {idle} has no effect; leave it out")
    if not any(fields):
        return _of_texts(row, base, config, where)
    if not all(fields):
        odd = SIDES[fields.index("")]
        if row.get(_field(getattr(config.data, odd)), "") is None:
            return Pair(Example([], [], 0), Example([], [], 0))
        raise DataError(f"{where}: one answer is a list of messages and {odd!r} is not; wanted both, or neither")
    given = _given(row, config.data.prompt, where)
    talks = [_messages(row, field, given, where) for field in fields]
    found = (
        chat.encode(
            {**row, field: talk}, field=field, template=config.data.chat_template, tokenizer=base.tokenizer,
            max_length=config.data.max_length, where=where,
        )
        for field, talk in zip(fields, _only_answers_learned(talks[0], talks[1], where), strict=True)
    )  # fmt: skip
    return Pair(*found)


def _of_texts(row: Mapping[str, Any], base: Any, config: Any, where: str) -> Pair:
    """The pair of two texts behind the prompt; the longer answer says how much of the prompt there is room for."""

    def both(max_prompt: int | None) -> Pair:
        d = config.data
        return Pair(
            *(
                encode_generation(
                    row, prompt=d.prompt, response=answer, tokenizer=base.tokenizer, max_length=d.max_length,
                    max_prompt=max_prompt, where=where,
                )
                for answer in (d.chosen, d.rejected)
            )
        )  # fmt: skip

    pair = both(config.data.max_prompt)
    lengths = sorted(e.prompt_length for e in pair.both)
    return pair if lengths[0] == lengths[1] else both(lengths[0])


def _field(template: str) -> str:
    """The field that a template is and nothing else; "" where it is more."""
    field = FIELD.fullmatch(template)
    return field[1] or "" if field else ""


def conversation(row: Mapping[str, Any], template: str) -> str:
    """The field that a template is, if the record has a conversation in it, a list or its JSON; else ""."""
    value = row.get(name := _field(template))
    turns = conversations.parsed(value)
    said = isinstance(turns, list) and all(isinstance(m, dict) and not m.keys().isdisjoint(ROLES) for m in turns)
    return name if said and (turns or isinstance(value, list)) else ""


def _given(row: Mapping[str, Any], template: str, where: str) -> list[Any]:
    """The messages before the answers, where the record says them by themselves: a list, or the user's text."""
    if (name := _field(template)) and row.get(name) is None:
        return []
    if name := conversation(row, template):
        return list(conversations.parsed(row[name]))
    return [{"role": "user", "content": text}] if (text := fill(template, row, where)) else []


def _messages(row: Mapping[str, Any], field: str, given: Sequence[Any], where: str) -> list[Message]:
    """The whole conversation of one side; one that begins with a turn of the assistant stands behind what is given."""
    said = conversations.parsed(row[field])
    answers = bool(said) and said[0].get("role", said[0].get("from")) in ("assistant", "gpt")
    return conversations.messages({**row, field: [*given, *said] if answers else said}, field, where)


def _only_answers_learned(chosen: list[Message], rejected: list[Message], where: str) -> tuple[list[Message], ...]:
    """Both conversations, with turns of the assistant before they part marked as not learned (`weight` 0).

    Raises DataError where they part at another turn than one of the assistant's. Equal ones have nothing to learn.
    """
    pairs = zip(chosen, rejected, strict=False)
    common = next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(chosen), len(rejected)))
    for side, talk in zip(SIDES, (chosen, rejected), strict=True):
        if len(talk) > common and talk[common]["role"] != "assistant" and common < min(len(chosen), len(rejected)):
            raise DataError(
                f"{where}: the conversations part at message {common + 1}, which in {side!r} is of role "
                f"{talk[common]['role']!r}; wanted two answers of the assistant to one prompt"
            )
    return tuple([*({**m, "weight": 0} for m in talk[:common]), *talk[common:]] for talk in (chosen, rejected))
