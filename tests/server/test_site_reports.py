"""What a site says about itself: bounded, printable, and never an error of ours."""

import json
from typing import Any

import pytest

from fedft.errors import RejectedUpdate
from fedft.server import site_reports


def said(**words: Any) -> bytes:
    return json.dumps(words).encode()


def test_progress_is_a_known_word_and_plain_numbers() -> None:
    payload = said(doing="training", step=12, steps=40, left_s=3.5, more="x")
    assert site_reports.progress(payload) == ("training", {"step": 12, "steps": 40, "left_s": 3.5})


@pytest.mark.parametrize("number", [-1, 1e10, True, "7", None, [1], float("nan"), float("inf")])
def test_a_number_that_cannot_be_shown_is_left_out(number: Any) -> None:
    assert site_reports.progress(said(doing="queued", step=number)) == ("queued", {})


@pytest.mark.parametrize(
    "payload", [b"", b"\xff", b"[]", b"7", b"{", b"[" * 4000, said(doing="x" * 5000), said(doing=[1])]
)
def test_other_bytes_are_no_progress_and_no_error(payload: bytes) -> None:
    assert site_reports.progress(payload) == ("?", {})


def test_a_refusal_is_one_short_printable_line() -> None:
    refused = site_reports.refusal(said(code="no_data", reason="a\nb\x1b" + "c" * 1000))
    assert refused.code == "no_data"
    assert len(refused.reason) <= 300
    assert refused.reason.isprintable()


@pytest.mark.parametrize("payload", [b"", said(code="deadline"), said(code="client_error"), said(code="\x1b[31m")])
def test_a_code_that_is_no_client_s_is_rejected(payload: bytes) -> None:
    with pytest.raises(RejectedUpdate) as e:
        site_reports.refusal(payload)
    assert e.value.code == "malformed"
