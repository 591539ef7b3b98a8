"""A site that lost what it keeps between rounds is named by the run; nobody else is."""

import logging
import shutil
from pathlib import Path

import pytest
from deployed import SITES, Deployment

from fedft.update import MEMORY_LOST


def lost(d: Deployment) -> dict[int, list[str]]:
    """Who began anew, by round."""
    return {line["round"]: line[MEMORY_LOST] for line in d.metrics.lines if MEMORY_LOST in line}


def half(folder: Path, name: str) -> None:
    """A run that stopped after two of its rounds."""
    Deployment(folder, name, rounds=2).run()


@pytest.mark.parametrize("how", ["deleted", "altered", "the whole folder"])
def test_a_site_that_lost_its_memory_is_named_once(tmp_path: Path, how: str, caplog: pytest.LogCaptureFixture) -> None:
    half(tmp_path, "scaffold")
    kept = tmp_path / "sites" / "bert" / "kept" / "kept-1.fedft"
    if how == "deleted":
        kept.unlink()
    elif how == "altered":
        kept.write_bytes(kept.read_bytes()[:-1])
    else:
        shutil.rmtree(tmp_path / "sites" / "bert")
    with caplog.at_level(logging.WARNING):
        went_on = Deployment(tmp_path, "scaffold")
        digest = went_on.digest()
    assert lost(went_on) == {2: ["bert"]}
    assert "round 2: bert lost what it had kept, and began anew" in caplog.messages
    assert "what was kept after round 1 is lost; this client begins anew and tells the server" in caplog.messages
    assert digest != Deployment(tmp_path / "simulated", "scaffold").simulated()


@pytest.mark.parametrize("name", ["scaffold", "fedit", "fedsa_lora"])
def test_who_has_lost_nothing_that_counts_is_not_named(name: str, tmp_path: Path) -> None:
    """A method that keeps nothing has nothing to lose; what came before the last round that counted is not needed."""
    half(tmp_path, name)
    for site in SITES:
        if name == "fedit":
            shutil.rmtree(tmp_path / "sites" / site)
        else:
            (tmp_path / "sites" / site / "kept" / "kept-0.fedft").unlink()
    went_on = Deployment(tmp_path, name)
    assert went_on.digest() == Deployment(tmp_path / "simulated", name).simulated()
    assert lost(went_on) == {}


def test_an_update_that_was_journalled_before_a_restart_still_names_its_site(tmp_path: Path) -> None:
    """The server is killed with the update on its disk: the round's line is written by the process after it."""
    half(tmp_path, "scaffold")
    (tmp_path / "sites" / "bert" / "kept" / "kept-1.fedft").unlink()
    dying = Deployment(tmp_path, "scaffold")

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    dying.store.save = killed  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        dying.run()
    went_on = Deployment(tmp_path, "scaffold")
    went_on.run()
    assert lost(went_on) == {2: ["bert"]}
