"""NEFTune: noise of the right size, in training alone."""

import pytest
import torch
from small_models import small

from fedft.errors import ConfigError
from fedft.models import noisy_embeddings

ALPHA = 5.0


def embedded(name: str = "llama") -> tuple[torch.Tensor, torch.Tensor]:
    """Embeddings of one batch in training and in evaluation, with the noise switched on."""
    s = small(name)
    noisy_embeddings.switch_on(s.model, ALPHA)
    layer = s.model.get_input_embeddings()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return layer.train()(s.batch["input_ids"]), layer.eval()(s.batch["input_ids"])


def test_noise_fills_its_bound_and_is_gone_in_evaluation() -> None:
    noisy, plain = embedded()
    most = ALPHA / (plain.shape[1] * plain.shape[2]) ** 0.5
    noise = (noisy - plain).detach().abs()
    most *= 1 + 1e-5  # of sums in float32
    assert 0.9 * most < float(noise.max()) <= most
    assert float(noise.mean()) == pytest.approx(most / 2, rel=0.2)
    assert torch.equal(plain, small("llama").model.get_input_embeddings()(small("llama").batch["input_ids"]))


def test_the_state_of_torch_decides_the_noise() -> None:
    assert torch.equal(embedded()[0], embedded()[0])


def test_a_model_without_embeddings_is_refused_in_one_line() -> None:
    with pytest.raises(ConfigError, match="a ToyModel does not say which its embeddings are"):
        noisy_embeddings.switch_on(small("toy").model, ALPHA)
