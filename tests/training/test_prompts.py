"""Fixed prompts become tokens as a user would have them, and what cannot is one line before anything is trained."""

from types import SimpleNamespace
from typing import Any

import pytest

from fedft.config import Data, Eval, RunConfig
from fedft.errors import DataError
from fedft.training import prompts


class Letters:
    """A token for each letter; 1 comes first."""

    bos_token_id: int | None = 1
    chat_template = "{{ messages[0]['content'] }}!"

    def __call__(self, text: str, **how: Any) -> dict[str, list[int]]:
        return {"input_ids": [ord(c) for c in text]}

    def get_chat_template(self, template: str | None, tools: Any) -> str:
        return template or self.chat_template

    def apply_chat_template(self, said: Any, chat_template: str, add_generation_prompt: bool, **how: Any) -> list[str]:
        assert add_generation_prompt, "the assistant is to answer"
        return [chat_template.replace("{{ messages[0]['content'] }}", said[0][0]["content"])]


BASE: Any = SimpleNamespace(tokenizer=Letters(), ids=128)
ONE_SIDE: Any = SimpleNamespace(two_sided=False)


def ids(text: str, **data: Any) -> list[int]:
    config = RunConfig(data=Data(**{"max_length": 4, **data}), eval=Eval(prompts=[text]))
    (found,) = prompts.examples(config, BASE, ONE_SIDE)
    assert found.given == found.input_ids
    return found.input_ids


def test_a_prompt_stands_as_it_is_behind_the_first_token() -> None:
    assert ids("ab") == [1, ord("a"), ord("b")]


def test_in_a_chat_it_is_what_the_user_says() -> None:
    assert ids("ab", messages="m") == [ord("a"), ord("b"), ord("!")]


def test_what_is_too_long_is_cut_at_its_beginning_and_counted() -> None:
    config = RunConfig(data=Data(max_length=4), eval=Eval(prompts=["abcdef"]))
    (found,) = prompts.examples(config, BASE, ONE_SIDE)
    assert found.input_ids == [ord(c) for c in "cdef"]
    assert found.prompt_lost == 3


@pytest.mark.parametrize(("text", "why"), [("é", "token id 233.*128 ids"), ("", "no tokens")])
def test_what_the_model_has_no_token_for_is_refused(text: str, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Letters, "bos_token_id", None)
    with pytest.raises(DataError, match=f"prompt 1 is {why}") as refused:
        ids(text)
    assert "\n" not in str(refused.value)
