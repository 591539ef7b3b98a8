"""A site leaves the roster with a trace; a kit brings a site what it needs of its server, and can do nothing else."""

import json
import random
import tomllib
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from cards import new_card
from one_line import one_line
from typer.testing import CliRunner

from fedft.cli.keys import app
from fedft.client import site_file
from fedft.errors import ConfigError, FedftError
from fedft.security import kits, new_keys, private_keys, roster


def command(*args: object, code: int = 0) -> str:
    done = CliRunner().invoke(app, [str(a) for a in args])
    assert done.exit_code == code, (done.output, done.exception)
    return done.output


# -- remove ------------------------------------------------------------------------------------------------------------


def test_a_removed_site_leaves_its_table_in_the_log_and_the_rest_as_it_was(server: Path, tmp_path: Path) -> None:
    path = server / "roster.toml"
    roster.enrol_all(path, [new_card(tmp_path, n) for n in ("a", "b", "c", "d")])
    text = path.read_text().replace('[[site]]\nname = "b"', '# the clinic on the hill\n[[site]]  # b\nname = "b"')
    text = text.replace('\n[[site]]\nname = "c"', '\n# about c\n\n[[site]]\nname = "c"\nmax_examples = 7  # few')
    path.write_text(text)
    assert "removed c" in command("remove", server, "d", "c")
    left = path.read_text()
    assert list(roster.load_roster(path).members) == ["a", "b"]
    assert left.rstrip() == text[: text.index('[[site]]\nname = "c"')].rstrip(), "comments outside a table stay"
    first, second = (json.loads(line) for line in (server / "roster.log").read_text().splitlines())
    assert (first["act"], first["site"], second["site"]) == ("removed", "c", "d")
    assert tomllib.loads(first["table"])["site"] == [tomllib.loads(text)["site"][2]]
    assert "# few" in first["table"]
    path.write_text(left + "\n" + first["table"])
    assert roster.load_roster(path).members["c"].max_examples == 7, "put back by hand, it is the site again"


def test_sites_are_removed_however_their_tables_are_written(server: Path, tmp_path: Path) -> None:
    path = server / "roster.toml"
    roster.enrol_all(path, [new_card(tmp_path, n) for n in ("a", "b")])
    tables = tomllib.loads(path.read_text())["site"]
    inline = ", ".join("{" + ", ".join(f"{k} = {json.dumps(v)}" for k, v in t.items()) + "}" for t in tables)
    path.write_text(f"site = [{inline}]")
    roster.remove(path, ["a"])
    assert list(roster.load_roster(path).members) == ["b"]
    roster.remove(path, ["b"])
    assert not roster.load_roster(path).members
    assert len((server / "roster.log").read_text().splitlines()) == 2


def test_a_name_that_is_not_there_removes_nobody(server: Path, tmp_path: Path) -> None:
    path = server / "roster.toml"
    roster.enrol(path, new_card(tmp_path, "north"))
    before = path.read_bytes()
    with pytest.raises(ConfigError, match=r"no site 'nort'; did you mean 'north'\?"):
        roster.remove(path, ["north", "nort"])
    assert path.read_bytes() == before
    assert not (server / "roster.log").exists()


# -- kits --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def kit(server: Path, card: Path, tmp_path: Path) -> Path:
    """The kit of clinic-1, whose card is enrolled."""
    roster.enrol(server / "roster.toml", card)
    command("kit", server, "clinic-1", "--to", tmp_path / "x.kit.toml", "--address", "site.fl.example.org:9443")
    return tmp_path / "x.kit.toml"


def test_a_kit_makes_a_site_complete_but_for_its_rows_and_its_policy(server: Path, card: Path, kit: Path) -> None:
    folder = card.parent
    said = command("kit", server, "clinic-1", "--to", kit, "--address", "site.fl.example.org:9443")
    unpacked = command("unpack", kit, folder)
    assert said.partition("fingerprint ")[2].splitlines()[0] in unpacked, "the same on both sides"
    for name in ("ca.pem", "server.pub"):
        assert (folder / name).read_bytes() == (server / name).read_bytes()
    path = folder.parent / "site.toml"
    (folder.parent / "train.jsonl").write_text("{}\n")
    config = site_file.load(path)
    assert (config.site.name, config.server.address) == ("clinic-1", "site.fl.example.org:9443")
    assert config.policy.strategies == []
    assert Path(config.keys.folder) == folder
    assert Path(config.server.ca) == folder / "ca.pem"
    path.write_text(path.read_text() + "# mine\n")
    assert "nothing new" in command("unpack", kit, folder)
    assert path.read_text().endswith("# mine\n"), "a site file that is there stays"
    private = {p.name: p.read_bytes() for p in server.iterdir() if p.suffix == ".key"}
    assert private
    assert not any(key.splitlines()[1] in kit.read_bytes() for key in private.values())


def test_a_kit_is_for_the_keys_of_its_site_only(kit: Path, tmp_path: Path) -> None:
    new_keys.make_site(tmp_path / "two", "clinic-1")
    with pytest.raises(ConfigError, match="whose keys these are not") as e:
        kits.unpack(kits.read(kit), tmp_path / "two")
    one_line(e)
    assert not (tmp_path / "two" / "ca.pem").exists()


def test_another_server_is_trusted_only_on_purpose(kit: Path, card: Path, tmp_path: Path, hosts: list[str]) -> None:
    folder = card.parent
    kits.unpack(kits.read(kit), folder)
    before = (folder / "server.pub").read_bytes()
    new_keys.make_server(tmp_path / "other", hosts)
    roster.enrol(tmp_path / "other" / "roster.toml", card)
    other = kits.made(tmp_path / "other", "clinic-1")
    with pytest.raises(ConfigError, match="--replace takes the kit's"):
        kits.unpack(other, folder)
    assert (folder / "server.pub").read_bytes() == before
    assert kits.unpack(other, folder, replace=True) == ["ca.pem", "server.pub"]
    assert private_keys.load_public(folder / "server.pub") == other.server


def test_a_kit_s_address_is_one_that_the_certificate_is_for(server: Path, kit: Path) -> None:
    assert kits.made(server, "clinic-1").address == "localhost:9443"
    for address, said in (("example.net:1", "not example.net; `fedft keys renew"), ("x", "wanted host:port")):
        with pytest.raises(ConfigError, match=said) as e:
            kits.made(server, "clinic-1", address)
        one_line(e)
    with pytest.raises(ConfigError, match="no site 'clinic'; did you mean"):
        kits.made(server, "clinic")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"form": 2}, "another version of fedft"),
        ({"form": True}, "form is True"),
        ({"site": "../../etc"}, "expected a site's name"),
        ({"site": None}, "[kit] needs 'site'"),
        ({"file": "/etc/passwd"}, "[kit] has no 'file'"),
        ({"card": "x"}, "wanted a fingerprint"),
        ({"address": "a:1\n[policy]"}, "wanted host:port"),
        ({"address": "a:99999"}, "wanted host:port"),
        ({"server": "x"}, "no Ed25519 public key"),
        ({"ca": ""}, "ca has 0 certificates"),
        ({"ca": 3}, "ca is 3, wanted str"),
    ],
)
def test_a_kit_that_is_none_is_one_line(kit: Path, change: dict[str, Any], said: str) -> None:
    tables = tomllib.loads(kit.read_text())
    table = {k: v for k, v in (tables["kit"] | change).items() if v is not None}
    kit.write_text(tomli_w.dumps({"kit": table}))
    with pytest.raises(ConfigError) as e:
        kits.read(kit)
    assert one_line(e).startswith(f"{kit}: ")
    assert said in str(e.value)


def test_whatever_a_kit_is_it_is_read_or_refused_in_one_line(kit: Path) -> None:
    whole, rng = kit.read_bytes(), random.Random(1)
    assert kits.read(kit)
    refused: list[str] = []
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(rng.choice((1, 1, 3, 20))):
            data[rng.randrange(len(data))] = rng.randrange(256)
        kit.write_bytes(bytes(data[: rng.choice((len(data), len(data), rng.randrange(len(data))))]))
        try:
            kits.read(kit)
        except FedftError as e:
            refused.append(str(e))
    assert len(refused) > 200
    assert not [text for text in refused if "\n" in text]
