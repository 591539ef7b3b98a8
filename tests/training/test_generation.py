"""Texts that are generated together are those that are generated one at a time, for models that heed a padded mask."""

import pytest
import torch
from encoder_decoders import model as encoder_decoder
from small_models import base_of, factors, small

from fedft.adapters.lora import LoRA
from fedft.data.examples import IGNORED, Example
from fedft.models.handle import ModelHandle
from fedft.models.layout import layout_of
from fedft.suites import metrics as toys
from fedft.training import generation
from fedft.training.evaluate import Measured

LENGTHS = [5, 2, 7, 3, 3, 1, 6]


class Numbers:
    """A tokenizer whose texts are the ids, without those of padding."""

    pad_token_id = eos_token_id = bos_token_id = 0

    def decode(self, ids, skip_special_tokens: bool) -> str:
        return " ".join(str(i) for i in torch.as_tensor(ids).tolist() if i)


def rows() -> list[Example]:
    g = torch.Generator().manual_seed(2)
    prompts = [torch.randint(1, 20, (n,), generator=g).tolist() for n in LENGTHS]
    return [Example([*p, 4, 0], [IGNORED] * len(p) + [4, 0], len(p)) for p in prompts]


def handle_on(name: str) -> ModelHandle:
    if name in ("t5", "bart"):
        model = encoder_decoder(name)
        layout = layout_of(base_of(model, "seq2seq-lm"), "all-linear")
    else:
        s = small(name)
        model, layout = s.model, s.layout
    handle = ModelHandle(model, layout, LoRA())
    handle.write(factors(layout, 2))
    return handle


def calls(handle: ModelHandle, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows each call of the model's `generate` has, from now on."""
    seen: list[int] = []
    own = handle.model.generate

    def counted(ids, **how):
        seen.append(len(ids))
        return own(ids, **how)

    monkeypatch.setattr(handle.model, "generate", counted)
    return seen


@pytest.mark.parametrize("name", ["llama", "gpt2", "t5", "bart"])
def test_texts_of_a_batch_are_those_of_each_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    handle = handle_on(name)
    alone = [Measured(handle, Numbers(), new_tokens=5).generate(row) for row in rows()]
    assert len(set(alone)) > 1
    seen = calls(handle, monkeypatch)
    together = Measured(handle, Numbers(), 4, 5, rows())
    assert [together.generate(row) for row in rows()] == alone
    assert seen == [1, 2, 4, 3], "a trial on the shortest prompt of the first four, then four and three"
    again = Measured(handle, Numbers(), 4, 5, rows())
    assert [again.generate(row) for row in rows()] == alone
    assert seen[4:] == [4, 3], "a model is tried once"


def test_a_model_that_does_not_heed_the_mask_generates_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    toy = toys.toy("causal-lm")
    items = toys.rows("causal-lm", 5)
    alone = [Measured(toy.handle, toy.tokenizer, new_tokens=6).generate(row) for row in items]
    seen = calls(toy.handle, monkeypatch)
    together = Measured(toy.handle, toy.tokenizer, 5, 6, items)
    assert [together.generate(row) for row in items] == alone
    assert seen == [1, 2, 1, 1, 1, 1, 1]


def test_a_prompt_that_is_not_among_the_rows_is_generated_too() -> None:
    handle = handle_on("llama")
    one = Measured(handle, Numbers(), 4, 5, rows()[:3])
    assert one.generate(rows()[5]) == Measured(handle, Numbers(), new_tokens=5).generate(rows()[5])


def test_prompts_of_one_length_need_no_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    handle = handle_on("gpt2")
    seen = calls(handle, monkeypatch)
    assert len(generation.continued(handle, Numbers(), [[3, 4], [5, 6]], 3, 0)) == 2
    assert seen == [2]
