"""Rows that are tokenized many at a time, or were kept by an earlier run, are those that are encoded one by one."""

import logging
from dataclasses import replace
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from fedft import run_file
from fedft.data import client_datasets, token_batches, token_cache
from fedft.data.row_counts import RowCounts
from fedft.errors import DataError
from fedft.models import load

ROWS = [
    {"prompt": f"what is {n} + {n}?\n" * (1 + n % 3), "response": f"it is {2 * n}" * (n % 4)}
    for n in range(40)
]  # fmt: skip


@pytest.fixture(scope="module")
def base(tiny_base: Path) -> load.Base:
    return load.load(str(tiny_base), "causal-lm")


def config_of(folder: Path, **data):
    return run_file.from_dict(
        {"model": {"id": str(folder)}, "data": {"train": "rows.jsonl", "max_length": 24, **data}}
    )  # fmt: skip


def encoded(base, config, cache=None, rows=ROWS):
    counts = RowCounts()
    found = client_datasets.encode({"c": (rows[:30], rows[30:])}, config, base, counts, cache)
    return found, counts


@pytest.fixture(autouse=True)
def few_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_cache, "FEWEST", 10)
    monkeypatch.setattr(token_batches, "AT_ONCE", 7)


@pytest.mark.parametrize("data", [{}, {"prompt": ""}, {"max_prompt": 5}, {"too_long": "drop"}])
def test_many_at_a_time_is_one_by_one(base, tiny_base: Path, monkeypatch: pytest.MonkeyPatch, data) -> None:
    config = config_of(tiny_base, **data)
    found = encoded(base, config)
    monkeypatch.setattr(token_batches, "ahead", lambda rows, config, tokenizer: [(rows, tokenizer)])
    assert found == encoded(base, config)


def test_a_text_is_tokenized_once_for_many_rows(base, tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    class Counting(token_batches.Ahead):
        def __init__(self, tokenizer, texts, how) -> None:
            calls.append(len(texts))
            super().__init__(tokenizer, texts, how)

        def __call__(self, *args, **how):
            assert args[0] in self._ids, "every text of a template is known"
            return super().__call__(*args, **how)

    monkeypatch.setattr(token_batches, "Ahead", Counting)
    encoded(base, config_of(tiny_base))
    assert calls == [14, 14, 14, 14, 4, 14, 6]


def test_ids_that_were_made_ahead_are_nobody_else_s(base, tiny_base: Path) -> None:
    tokenizer = token_batches.Ahead(base.tokenizer, ["so it is"], {"verbose": False})
    tokenizer("so it is", verbose=False)["input_ids"].clear()
    assert tokenizer("so it is", verbose=False)["input_ids"] == base.tokenizer("so it is")["input_ids"]


def test_kept_rows_are_the_same_and_nothing_is_tokenized(
    base, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = config_of(tiny_base)
    plain = encoded(base, config)
    with caplog.at_level(logging.INFO):
        assert encoded(base, config, tmp_path) == plain
    assert "40 rows are kept as tokens in" in caplog.text
    (file,) = tmp_path.iterdir()
    assert file.stat().st_mode & 0o077 == 0
    monkeypatch.setattr(token_batches, "ahead", None)
    assert encoded(base, config, tmp_path) == plain


def test_anything_else_has_another_file(base, tiny_base: Path, tmp_path: Path) -> None:
    encoded(base, config_of(tiny_base), tmp_path)
    encoded(base, config_of(tiny_base, max_length=25), tmp_path)
    encoded(base, config_of(tiny_base, prompt="{prompt} "), tmp_path)
    encoded(base, config_of(tiny_base), tmp_path, [*ROWS[1:], ROWS[0]])
    other = replace(base, tokenizer=AutoTokenizer.from_pretrained(tiny_base))
    other.tokenizer.eos_token = "!"
    encoded(other, config_of(tiny_base), tmp_path)
    assert len(list(tmp_path.iterdir())) == 5


def test_a_torn_file_is_made_anew(base, tiny_base: Path, tmp_path: Path) -> None:
    config = config_of(tiny_base)
    plain = encoded(base, config, tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-1])
    assert encoded(base, config, tmp_path) == plain
    assert encoded(base, config, tmp_path) == plain


def test_a_disk_that_takes_nothing_is_said(base, tiny_base: Path, tmp_path: Path, caplog) -> None:
    (tmp_path / "file").touch()
    assert encoded(base, config_of(tiny_base), tmp_path / "file") == encoded(base, config_of(tiny_base))
    assert "encoded rows are not kept" in caplog.text


def test_the_oldest_are_removed(base, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded(base, config_of(tiny_base), tmp_path)
    (first,) = tmp_path.iterdir()
    monkeypatch.setattr(token_cache, "MOST_BYTES", first.stat().st_size * 3 // 2)
    encoded(base, config_of(tiny_base, prompt="{prompt}!"), tmp_path)
    (left,) = tmp_path.iterdir()
    assert left != first


def test_a_row_that_cannot_be_encoded_is_named_by_its_number(base, tiny_base: Path, tmp_path: Path) -> None:
    rows = [*ROWS[:20], {"response": "no prompt"}, *ROWS[21:]]
    with pytest.raises(DataError, match="row 21: no field 'prompt'"):
        encoded(base, config_of(tiny_base), tmp_path, rows)
    assert not list(tmp_path.iterdir())
