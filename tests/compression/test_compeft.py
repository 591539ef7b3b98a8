"""ComPEFT as published: one selection and one magnitude over all tensors of a message."""

import numpy as np
import pytest
import torch

from fedft.compression.codec_names import parse
from fedft.update import TensorSpec, Update
from fedft.wire import messages

RUN = "0123456789abcdef"


def drawn() -> dict[str, torch.Tensor]:
    """Entries of A ten times those of B, as in an adapter that has just begun."""
    rng = torch.Generator().manual_seed(3)
    return {"m.lora_A": torch.randn(4, 60, generator=rng), "m.lora_B": 0.1 * torch.randn(50, 4, generator=rng)}


def published(update: dict[str, torch.Tensor], density: float, scale: float) -> dict[str, np.ndarray]:
    """In numpy, as the paper's code does: names sorted, the k-th smallest magnitude is a threshold that is kept."""
    u = np.concatenate([update[n].numpy().ravel() for n in sorted(update)])
    threshold = np.sort(np.abs(u))[len(u) - int(density * len(u)) - 1]
    sent = np.where(np.abs(u) >= threshold, np.sign(u), 0) * u.std(ddof=1, dtype=np.float64) * scale
    ends = np.cumsum([update[n].numel() for n in sorted(update)])[:-1]
    return {n: x.reshape(update[n].shape) for n, x in zip(sorted(update), np.split(sent, ends), strict=True)}


@pytest.mark.parametrize(("density", "scale"), [(0.05, 1), (0.1, 2), (0.3, 0.5), (0.5, 10)])
def test_what_arrives_is_what_the_published_code_makes(density, scale):
    update, codec = drawn(), f"compeft:{density},{scale}"
    wanted = published(update, density, scale)
    spec = {n: TensorSpec(tuple(x.shape)) for n, x in update.items()}
    sent = messages.decode_update(messages.encode_update(Update(update, 1, run=RUN), codec), spec, codec).delta
    for n, x in messages.roundtrip(update, codec).items():
        assert torch.equal(x, sent[n])
        np.testing.assert_allclose(x.numpy(), wanted[n], rtol=2**-8)  # the magnitude is sent in bf16
    assert sum(int(x.count_nonzero()) for x in sent.values()) == int(density * 440) + 1


def test_a_factor_of_small_entries_loses_them_all_and_not_by_tensor():
    """The selection is one over all tensors: of B, whose entries are a tenth, nothing is left at 5 %."""
    assert not messages.roundtrip(drawn(), "compeft:0.05,1")["m.lora_B"].any()
    assert messages.roundtrip(drawn(), "ternary:0.05")["m.lora_B"].any()


@pytest.mark.parametrize(
    ("entries", "wanted"),
    [
        ([0.0, 0.0, 0.0], [0, 0, 0]),
        ([1.0, -1.0, 0.0], [1, -1, 0]),  # a tie with the smallest that is kept is kept
        ([2.0, 2.0, 2.0], [0, 0, 0]),  # no deviation, no magnitude
        ([5.0], [0]),
    ],
)
def test_ties_zeros_and_no_deviation(entries, wanted):
    got = messages.roundtrip({"w": torch.tensor(entries)}, "compeft:0.1,1")["w"]
    assert got.sign().tolist() == wanted


def test_everything_is_kept_at_a_density_of_one():
    assert all(x.all() for x in messages.roundtrip(drawn(), "compeft:1,1").values())


def test_integers_pass_and_what_diverged_is_for_the_receiver_to_refuse():
    update = {"n": torch.arange(3, dtype=torch.int32), "w": torch.tensor([1.0, float("nan"), 2.0])}
    got = messages.roundtrip(update, "compeft:0.5,1")
    assert got["n"].tolist() == [0, 1, 2]
    assert not torch.isfinite(got["w"]).all()


@pytest.mark.parametrize(
    "name", ["compeft", "compeft:0,1", "compeft:2,1", "compeft:0.1,", "compeft:0.1,0", "compeft:x"]
)
def test_names_that_make_no_sense_are_refused_in_one_line(name):
    with pytest.raises(ValueError, match="wanted compeft:DENSITY,SCALE with 0 < DENSITY <= 1") as refusal:
        parse(name)
    assert "\n" not in str(refusal.value)


def test_the_scale_may_be_left_out():
    assert parse(" compeft:1e-1 ").name == parse("compeft:0.1, 1").name == "compeft:0.1,1"
