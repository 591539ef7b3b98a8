"""Keyed numbers: the known answer, moments, and that salts, purposes and names keep streams apart."""

import hashlib

import torch

from fedft.privacy.keyed_stream import KEY_BYTES, Stream, new_key

SALT = hashlib.sha256(b"set").digest()
STREAM = Stream(bytes(range(32)), SALT)


def test_known_answer() -> None:
    """Of privacy.md, section 0."""
    assert STREAM.bits("central", "layer.lora_B", 3).tolist() == [1595675528225293, 4255171987978201, 7856514594930941]
    found = STREAM.gaussians("central", "layer.lora_B", 3)
    wanted = torch.tensor([-0.9262594914, -0.0691905024, 1.1370836441], dtype=torch.float64)
    assert torch.allclose(found, wanted, rtol=0, atol=1e-10)


def test_a_million_are_standard_gaussians() -> None:
    x = STREAM.gaussians("central", "w", 1_000_000)
    assert abs(float(x.std()) - 1) < 0.003
    assert abs(float(x.mean())) < 0.004
    ranks = torch.special.ndtr(x.sort().values)
    even = (torch.arange(len(x), dtype=torch.float64) + 0.5) / len(x)
    assert float((ranks - even).abs().max()) < 1.63 / 1000, "Kolmogorov-Smirnov at the level 0.01"


def test_every_salt_purpose_name_and_key_has_numbers_of_its_own() -> None:
    others = [
        Stream(STREAM.key, hashlib.sha256(b"another set").digest()).gaussians("central", "w", 100_000),
        STREAM.gaussians("local", "w", 100_000),
        STREAM.gaussians("central", "v", 100_000),
        Stream(new_key(), SALT).gaussians("central", "w", 100_000),
    ]
    x = STREAM.gaussians("central", "w", 100_000)
    for y in others:
        assert abs(float(torch.corrcoef(torch.stack([x, y]))[0, 1])) < 0.015


def test_a_longer_stream_begins_with_the_shorter_one() -> None:
    assert torch.equal(STREAM.uniforms("p", "n", 10), STREAM.uniforms("p", "n", 1000)[:10])
    assert STREAM.uniforms("p", "n", 0).shape == (0,)
    assert float(STREAM.uniforms("p", "n", 1000).max()) < 1


def test_keys_are_fresh() -> None:
    assert len(new_key()) == KEY_BYTES
    assert new_key() != new_key()
