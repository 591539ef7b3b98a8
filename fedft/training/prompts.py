"""Fixed prompts, `[eval] prompts`, and what a model writes behind them."""

from collections.abc import Sequence
from typing import Any

from fedft.config import RunConfig
from fedft.data.chat import Writer
from fedft.data.examples import Example
from fedft.errors import DataError
from fedft.models.handle import ModelHandle
from fedft.models.load import Base
from fedft.training.evaluate import Measured


def ids_of(text: str, tokenizer: Any, *, two_sided: bool) -> list[int]:
    """The token ids of a text that stands before a model as it is, behind the first token where there is such.

    `two_sided`: it is what an encoder reads, with the special tokens that its tokenizer adds.
    """
    ids: list[int] = tokenizer(text, add_special_tokens=two_sided, verbose=False)["input_ids"]
    first = [] if two_sided or tokenizer.bos_token_id in (None, *ids[:1]) else [tokenizer.bos_token_id]
    return [*first, *ids]


def examples(config: RunConfig, base: Base, handle: ModelHandle) -> list[Example]:
    """The prompts of a run as rows without a response; `prompt_lost` are tokens beyond `[data] max_length`.

    Where the run's records are conversations a prompt is what the user says, by the run's chat template; it is cut from
    the left. Raises ConfigError and DataError for a template that fails, or a text that is no tokens of the model.
    """
    found = []
    for number, text in enumerate(config.eval.prompts, 1):
        if config.data.messages is None:
            ids = ids_of(text, base.tokenizer, two_sided=handle.two_sided)
        else:
            writer = Writer(base.tokenizer, config.data.chat_template, None, f"[eval] prompts: prompt {number}")
            ids = writer.asked([{"role": "user", "content": text}])
        if not ids or max(ids) >= base.ids:
            why = f"token id {max(ids)}, the model has embeddings of {base.ids} ids" if ids else "no tokens"
            raise DataError(f"[eval] prompts: prompt {number} is {why}")
        kept = ids[-config.data.length :]
        found.append(Example(kept, [], len(kept), prompt_lost=len(ids) - len(kept)))
    return found


def written(config: RunConfig, base: Base, handle: ModelHandle, asked: Sequence[Example]) -> list[str]:
    """The greedy continuation of each prompt by the model as it stands, `[eval] generate_tokens` at most."""
    handle.training(False)
    size, new_tokens = config.eval.batch_size, config.eval.generate_tokens
    model = Measured(handle, base.tokenizer, size, new_tokens, asked, base.pad_id)
    return [model.generate(one) for one in asked]
