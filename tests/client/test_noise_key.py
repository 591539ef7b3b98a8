"""The key of a client's noise: made once, kept from others, never the same for two clients."""

import os
from pathlib import Path

import pytest

from fedft.client import noise_key
from fedft.errors import KeyFault
from fedft.privacy.keyed_stream import KEY_BYTES, seeded_key


def test_it_is_made_once_and_nobody_else_may_read_it(tmp_path: Path) -> None:
    key = noise_key.of_run(tmp_path / "a")
    assert len(key) == KEY_BYTES
    assert noise_key.of_run(tmp_path / "a") == key
    assert noise_key.of_run(tmp_path / "b") != key
    file = tmp_path / "a" / noise_key.FILE
    assert file.stat().st_mode & 0o777 == 0o600
    if hasattr(os, "geteuid"):
        file.chmod(0o640)
        with pytest.raises(KeyFault, match=r"privacy\.key: mode 0640 opens a private key to others"):
            noise_key.of_run(tmp_path / "a")


def test_a_torn_key_is_made_anew(tmp_path: Path) -> None:
    key = noise_key.of_run(tmp_path)
    file = tmp_path / noise_key.FILE
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    again = noise_key.of_run(tmp_path)
    assert again != key
    assert noise_key.of_run(tmp_path) == again


def test_a_seeded_key_follows_from_seed_and_name_alone() -> None:
    keys = {seeded_key(seed, "privacy", name) for seed in (1, 2) for name in ("anna", "bert")}
    assert len(keys) == 4
    assert all(len(k) == KEY_BYTES for k in keys)
    assert seeded_key(1, "privacy", "anna") in keys
