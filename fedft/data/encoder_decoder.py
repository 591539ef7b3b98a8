"""Records to tokens for an encoder-decoder (T5, BART): the encoder reads the prompt, the decoder writes the response.

    example = encode(row, prompt="summarize: {text}", response="{summary}", tokenizer=tokenizer, ...)

The decoder's own inputs are no part of an example: the model makes them of the labels, moved by one place.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fedft import check
from fedft.data.examples import IGNORED, Example
from fedft.data.templates import fill

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class TwoSided(Example):
    """One record: `input_ids` are all that the encoder reads, `labels` all that the decoder writes, of any lengths."""

    @property
    def given(self) -> list[int]:
        """What the encoder reads."""
        return self.input_ids

    @property
    def response(self) -> list[int]:
        """What the decoder writes, its end token among it."""
        return self.labels if isinstance(self.labels, list) else []

    @property
    def learned(self) -> int:
        """How many tokens are learned: the first too, which is written after the decoder's start token.

        >>> TwoSided([5, 6], [7, 2], 2).learned
        2
        """
        return sum(label != IGNORED for label in self.response)


def encode(
    row: Mapping[str, Any],
    *,
    prompt: str,
    response: str,
    tokenizer: "PreTrainedTokenizerBase",
    max_length: int,
    max_prompt: int | None,
    where: str,
) -> TwoSided:
    """A record as the encoder's tokens and the decoder's, each with the tokenizer's own special tokens.

    Args:
        row: the record, fields by name.
        prompt: template (see `templates.fill`) of the text that is given.
        response: template of the text that is learned, which the tokenizer writes as a target text.
        tokenizer: the base model's.
        max_length: tokens of either side at most; the response is cut from the right, and its end token goes first.
        max_prompt: tokens of the prompt at most, special ones among them; None: max_length.
        where: name of the row in error messages.
    Raises:
        DataError: as `templates.fill` does.

    A long prompt is cut as the tokenizer cuts (from the right, unless its folder says otherwise) and keeps its special
    tokens: what models of this kind were told to do stands first. An end token comes last in the response, also where
    the tokenizer writes none; an empty prompt is that token alone. Of an empty response nothing is learned.
    """
    room = max_length if max_prompt is None else max_prompt
    check.at_least(1, max_length=max_length, max_prompt=room)
    text, eos = fill(prompt, row, where), tokenizer.eos_token_id
    given = full = tokenizer(text, verbose=False)["input_ids"]
    if len(full) > room:  # only here: the tokenizer knows which special tokens a cut text keeps
        given = tokenizer(text, truncation=True, max_length=room)["input_ids"][:room]
    if not given and eos is not None:
        given = full = [eos]
    learned = _target(fill(response, row, where), tokenizer)
    kept = learned[:max_length]
    return TwoSided(given, kept, len(given), len(learned) - len(kept), len(full) - len(given))


def _target(text: str, tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """The tokens of a text that is learned, with an end token; none of an empty text."""
    plain = tokenizer(text_target=text, add_special_tokens=False, verbose=False)["input_ids"]
    if not plain:
        return []
    whole, eos = tokenizer(text_target=text, verbose=False)["input_ids"], tokenizer.eos_token_id
    ends = eos is None or eos in whole[len(plain) :]
    return [*whole] if ends else [*whole, eos]
