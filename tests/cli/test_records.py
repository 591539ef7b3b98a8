"""`fedft records verify`: a line and 0, or the line that breaks the chain and 1."""

import json
import sys
from pathlib import Path

import pytest

from fedft.cli import main
from fedft.client.sent_records import FILE, SentRecords


def fedft(monkeypatch: pytest.MonkeyPatch, *args: str) -> int:
    monkeypatch.setattr(sys, "argv", ["fedft", *args])
    with pytest.raises(SystemExit) as e:
        main.main()
    return int(e.value.code or 0)


def test_a_record_is_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / FILE
    sent = SentRecords(path)
    for n in range(3):
        sent.add("train", "0" * 16, n, n, "a" * 64, b"x" * n, 1)
    assert fedft(monkeypatch, "records", "verify", str(tmp_path)) == 0
    assert capsys.readouterr().out.startswith("3 lines hold together, the last is ")
    assert fedft(monkeypatch, "records", "verify", str(path), "--json") == 0
    assert json.loads(capsys.readouterr().out)["lines"] == 3
    path.write_bytes(path.read_bytes().replace(b'"rows": 1', b'"rows": 9', 1))
    assert fedft(monkeypatch, "records", "verify", str(tmp_path)) == 1
    err = capsys.readouterr().err
    assert f"{FILE}, line 2: before is " in err
    assert err.count("\n") == 1
    assert fedft(monkeypatch, "records", "verify", str(tmp_path / "none")) == 2
    assert "wanted a site's state folder" in capsys.readouterr().err
