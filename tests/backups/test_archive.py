"""A backup comes back as it was, or not at all; what it says about itself is believed only within bounds."""

import io
import json
import random
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from one_line import one_line

from fedft.backups import archive
from fedft.backups.archive import Part
from fedft.errors import ConfigError, FedftError

FILES = {
    "config.toml": b"x = 1\n",
    "state/gen-00000002.fedft": bytes(1000),
    "state/journal/00000002/plans": b"",
    "a": b"12",
}


def made(path: Path, files: dict[str, bytes] | None = None, kind: archive.Kind = "run") -> Path:
    parts = [Part(name, io.BytesIO(data), len(data)) for name, data in (FILES if files is None else files).items()]
    archive.write(path, kind, parts)
    return path


def found(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("kind", ["run", "site"])
def test_what_is_put_back_is_what_was_there(tmp_path: Path, kind: archive.Kind) -> None:
    path = made(tmp_path / "b.tar", kind=kind)
    archive.restore(path, tmp_path / "to")
    assert found(tmp_path / "to") == FILES | ({"state/attempt": b""} if kind == "run" else {})
    assert path.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "to").stat().st_mode & 0o077 == 0
    with tarfile.open(path) as tar:  # a tar as any other
        assert tar.getnames() == ["backup.json", *FILES]
        assert tar.extractfile("config.toml").read() == FILES["config.toml"]  # type: ignore[union-attr]


def test_nothing_that_is_there_is_overwritten(tmp_path: Path) -> None:
    path = made(tmp_path / "b.tar")
    (tmp_path / "to").mkdir()
    archive.restore(path, tmp_path / "to")
    before = found(tmp_path / "to")
    with pytest.raises(ConfigError, match="is there already, and not empty") as e:
        archive.restore(path, tmp_path / "to")
    one_line(e)
    assert found(tmp_path / "to") == before
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="is there already"):
        archive.restore(path, tmp_path / "file")
    with pytest.raises(ConfigError, match="No such file"):
        archive.restore(tmp_path / "none.tar", tmp_path / "other")


def rebuilt(
    path: Path, names: Callable[[str], str], change: Callable[[tarfile.TarInfo], None], said: Any = None
) -> None:
    """The backup with other names in the tar, and in what it says of itself, as an attacker would make it."""
    with tarfile.open(path) as tar:
        members = {m.name: tar.extractfile(m).read() for m in tar.getmembers()}  # type: ignore[union-attr]
    head = json.loads(members.pop("backup.json"))
    head["files"] = {names(n): facts for n, facts in head["files"].items()}
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for name, data in [("backup.json", json.dumps(head | (said or {})).encode()), *members.items()]:
            info = tarfile.TarInfo(names(name) if name != "backup.json" else name)
            info.size = len(data)
            if name == "a":
                change(info)
            tar.addfile(info, io.BytesIO(data) if info.isreg() else None)
    raw = path.read_bytes().rstrip(b"\0")
    path.write_bytes(raw + bytes(-len(raw) % 512) + bytes(1024))


@pytest.mark.parametrize(
    "name", ["../a", "/tmp/a", "x/../../a", "a/./b", ".ssh/keys", "a\\b", "a//b", "backup.json", "ä", "x" * 90]
)
def test_no_member_lies_outside(tmp_path: Path, name: str) -> None:
    path = made(tmp_path / "in" / "b.tar")
    rebuilt(path, lambda n: name if n == "a" else n, lambda info: None)
    with pytest.raises(ConfigError) as e:
        archive.restore(path, tmp_path / "in" / "to")
    one_line(e)
    assert {p.name for p in tmp_path.rglob("*")} == {"in", "b.tar"}


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE])
def test_no_member_is_anything_but_a_file(tmp_path: Path, kind: bytes) -> None:
    path = made(tmp_path / "b.tar")

    def change(info: tarfile.TarInfo) -> None:
        info.type, info.linkname, info.size = kind, "/etc/passwd", 0

    rebuilt(path, lambda n: n, change)
    with pytest.raises(ConfigError):
        archive.restore(path, tmp_path / "to")
    assert {p.name for p in tmp_path.iterdir()} == {"b.tar"}


@pytest.mark.parametrize(
    ("said", "text"),
    [
        ({"form": 2}, "of another version"),
        ({"kind": "keys"}, "is not one that `fedft backup` writes"),
        ({"files": []}, "is not one that"),
        ({"files": {"a": {"size": 2**60, "sha256": "0" * 64}}}, "is not one that"),
        ({"files": {"a": {"size": 2**40, "sha256": "0" * 64}}}, "cut off, or not what"),
        ({"files": {"a": {"size": True, "sha256": "0" * 64}}}, "is not one that"),
        ({"files": {}}, "cut off, or not what"),
    ],
)
def test_what_it_says_of_itself_is_bounded(tmp_path: Path, said: dict[str, Any], text: str) -> None:
    path = made(tmp_path / "b.tar", {"a": b"12"})
    rebuilt(path, lambda n: n, lambda info: None, said)
    with pytest.raises(ConfigError, match=text) as e:
        archive.restore(path, tmp_path / "to")
    one_line(e)


def test_whatever_the_bytes_nothing_is_left_of_a_bad_one(tmp_path: Path) -> None:
    """Every byte that counts is covered: of what was changed, only fields that nobody reads go unseen."""
    path = made(tmp_path / "b.tar")
    whole, rng, refused = path.read_bytes(), random.Random(3), 0
    for again in range(300):
        data = bytearray(whole)
        for _ in range(rng.choice((1, 2, 30))):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        path.write_bytes(data if again % 3 else whole[: rng.randrange(len(whole))])
        to = tmp_path / f"to{again}"
        try:
            archive.restore(path, to)
        except FedftError:
            refused += 1
        if to.exists():
            assert found(to) == FILES | {"state/attempt": b""}
    assert refused > 250
    assert not list(tmp_path.glob("*.restoring"))
