"""A site goes over to its server's new keys by the old ones' signature, in time, for good, and loses no round."""

import logging
from collections.abc import Collection, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization as pem
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from deployed import SERVER_KEY, SITES, Deployment, Direct, Site

from fedft.carriers.interface import Refused
from fedft.client.server_trust import ServerTrust
from fedft.errors import ConfigError, RejectedUpdate
from fedft.security import new_keys, private_keys, roster, rotation, successions
from fedft.server.app import Office, Place
from fedft.server.succession_link import SuccessionLink, announced
from fedft.server.succession_link import front as front_of

NEW = Ed25519PrivateKey.from_private_bytes(b"n" * 32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A server's key folder, for its authority."""
    folder = tmp_path_factory.mktemp("keys") / "server"
    new_keys.make_server(folder, ["localhost"])
    return folder


def trust(place: Path, folder: Path, key: Ed25519PublicKey | None = None) -> ServerTrust:
    """A start of a site whose server.pub is `key`, and whose state is in `place`."""
    (place / "state").mkdir(parents=True, exist_ok=True)
    public = (key or SERVER_KEY.public_key()).public_bytes(pem.Encoding.PEM, pem.PublicFormat.SubjectPublicKeyInfo)
    (place / "server.pub").write_bytes(public)
    return ServerTrust(place / "server.pub", folder / "ca.pem", place / "state")


def front(folder: Path, days: float = 1, old: Ed25519PrivateKey = SERVER_KEY) -> bytes:
    ends = datetime.now(UTC) + timedelta(days=days)
    return successions.signed(old, NEW.public_key(), ends, (folder / "ca.pem").read_bytes())


class Trusting(Direct):
    """Sites that read what is in front of a message, as `fedft client` does."""

    def __init__(self, sites: dict[str, Site], trusts: dict[str, ServerTrust]) -> None:
        super().__init__(sites)
        self.trusts = trusts

    def answers(self, site: Site, payload: bytes) -> list[bytes]:
        def go_over(key: Ed25519PublicKey, authority: bytes) -> None:
            site.responder.server = key

        return super().answers(site, self.trusts[site.name].message(payload, go_over))


def test_a_server_s_new_key_in_the_middle_of_a_run_changes_no_byte(tmp_path: Path, folder: Path) -> None:
    Deployment(tmp_path, "scaffold", rounds=2).run()
    trusts = {name: trust(tmp_path / name, folder) for name in SITES}
    run = Deployment(tmp_path, "scaffold")
    run.link = run.post.link = SuccessionLink(Trusting(run.sites, trusts), front(folder))  # type: ignore[assignment]
    run.post.key = NEW
    assert run.digest() == Deployment(tmp_path / "simulated", "scaffold").simulated()
    assert all(s.responder.server == NEW.public_key() for s in run.sites.values())
    assert [line["participants"] for line in run.metrics.lines[1:]] == [list(SITES)] * 4
    assert {s.trained for s in run.sites.values()} == {2}, "of the last two rounds, each once"
    again = [trust(tmp_path / name, folder).key for name in SITES]
    assert again == [NEW.public_key()] * len(SITES), "also after a restart"


def test_without_the_succession_the_new_key_is_nobody_s(tmp_path: Path, folder: Path) -> None:
    """So the test above would fail if sites took whatever comes."""
    run = Deployment(tmp_path, rounds=1)
    letter: list[bytes] = []

    class Deaf(Trusting):
        def pull(self, ids: Collection[str], max_bytes: int) -> Iterator[tuple[str, bytes | Refused | RejectedUpdate]]:
            for mid in list(ids):
                if mid in self._sent:
                    letter.extend(self.answers(*self._sent.pop(mid)))
            raise KeyboardInterrupt
            yield

    run.link = run.post.link = Deaf(run.sites, {name: trust(tmp_path / name, folder) for name in SITES})
    run.post.key = NEW
    with pytest.raises(KeyboardInterrupt):
        run.run()
    assert letter == []


def test_only_the_trusted_key_names_the_next_and_only_in_time(
    tmp_path: Path, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    went: list[Ed25519PublicKey] = []
    site = trust(tmp_path, folder)
    stranger = Ed25519PrivateKey.generate()
    whole = front(folder)
    forged = whole[:16] + whole[16:48] + stranger.public_key().public_bytes_raw() + whole[80:]
    with caplog.at_level(logging.WARNING):
        for data in (front(folder, old=stranger), front(folder, days=-1), forged):
            for _ in range(3):
                assert site.message(data + b"rest", lambda key, ca: went.append(key)) == b"rest"
    assert not went
    assert site.key == SERVER_KEY.public_key()
    assert len(caplog.messages) == 3, "each is said once"
    assert "keys that are not those in server.pub; take a new kit" in caplog.messages[0]
    assert "this site was away until 20" in caplog.messages[1]
    assert "fedft keys unpack KIT keys --replace" in caplog.messages[1]
    site.message(whole, lambda key, ca: went.append(key))
    assert went == [NEW.public_key()]
    site.message(front(folder, days=2), lambda key, ca: went.append(key))
    assert len(went) == 1


def test_what_was_accepted_holds_until_another_server_pub_is_there(tmp_path: Path, folder: Path) -> None:
    site = trust(tmp_path, folder)
    site.message(front(folder), lambda key, ca: None)
    assert trust(tmp_path, folder).ca.count(b"BEGIN CERTIFICATE") == 2
    other = Ed25519PrivateKey.generate().public_key()
    assert trust(tmp_path, folder, other).key == other, "a new kit outranks it"
    assert trust(tmp_path, folder).key == NEW.public_key()
    path = tmp_path / "state" / "server.trust"
    path.write_bytes(path.read_bytes()[:-1])
    assert trust(tmp_path, folder).key == SERVER_KEY.public_key(), "damaged, it counts as absent"


def test_a_site_that_restarts_in_a_second_rotation_still_reaches_the_server(tmp_path: Path, folder: Path) -> None:
    """Its certificate is by the authority of the first rotation then, which is in no ca.pem of the site."""
    first, second = tmp_path / "first", tmp_path / "second"
    for made in (first, second):
        new_keys.make_server(made, ["localhost"])
    site = trust(tmp_path, folder)
    site.message(front(first), lambda key, ca: None)
    for restarted in (False, True):
        site = trust(tmp_path, folder) if restarted else site
        ends, then = datetime.now(UTC) + timedelta(days=1), Ed25519PrivateKey.generate()
        site.message(
            successions.signed(NEW, then.public_key(), ends, (second / "ca.pem").read_bytes()), lambda *_: None
        )
        assert site.key != NEW.public_key()
        again = trust(tmp_path, folder)
        assert again.key == site.key
        for place in (folder, first, second):
            assert (place / "ca.pem").read_bytes() in again.ca
        (tmp_path / "state" / "server.trust").unlink()
        trust(tmp_path, folder).message(front(first), lambda key, ca: None)


def test_what_cannot_be_kept_is_not_acted_on(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    went: list[Ed25519PublicKey] = []
    site = trust(tmp_path, folder)
    (tmp_path / "state" / "server.trust.tmp").mkdir()
    site.message(front(folder), lambda key, ca: went.append(key))
    assert not went
    assert site.key == SERVER_KEY.public_key()
    (tmp_path / "state" / "server.trust.tmp").rmdir()
    site.message(front(folder), lambda key, ca: went.append(key))
    assert went == [NEW.public_key()]


def test_a_server_announces_the_key_that_it_signs_with(tmp_path: Path) -> None:
    """One that was started before the rotation goes on with the old key, and says nothing of the new one."""
    keys, link = tmp_path / "server", Direct({})
    new_keys.make_server(keys, ["localhost"])
    roster.enrol(keys / "roster.toml", new_keys.make_site(tmp_path / "north", "north"))
    place, before = Place(keys, ("127.0.0.1", 0)), private_keys.load_public(keys / "server.pub")
    running = Office.at(place)
    rotation.rotate_server(keys)
    assert announced(link, running.front) is link
    found = announced(link, Office.at(place).front)
    assert isinstance(found, SuccessionLink)
    assert successions.opened(found.front).old == before.public_bytes_raw()
    with pytest.raises(ConfigError, match="was broken off; `fedft keys rotate"):
        front_of(keys, running.key)
    rotation.finish_server(keys, early=True)
    assert announced(link, Office.at(place).front) is link
