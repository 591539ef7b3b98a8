"""What a site says of itself: what its file allows, and nothing else."""

from pathlib import Path

import pytest
import torch

from fedft.client import own_profile, site_file
from fedft.client.site_settings import SiteConfig, SiteProfile
from tests.support import asked_site


def site(tmp_path: Path, share: list[str], memory: str = "max_memory_mib = 8000") -> SiteConfig:
    """A site with a limit of memory and a slow line, which shares so much."""
    shares = ", ".join(f'"{name}"' for name in share)
    more = f"max_mbit_s = 5\n[policy]\n{memory}\n[profile]\nshare = [{shares}]\n"
    return site_file.load(asked_site.site_file(tmp_path, more))


@pytest.mark.parametrize(
    ("share", "said"),
    [
        ([], {}),
        (["memory"], {"memory": 8000 * 2**20}),
        (["link"], {"up": 625_000, "down": 625_000}),
        (["memory", "link", "speed"], {"memory": 8000 * 2**20, "up": 625_000, "down": 625_000}),
    ],
)
def test_what_is_shared_is_said_and_nothing_else(tmp_path: Path, share: list[str], said: dict[str, float]) -> None:
    assert own_profile.of(site(tmp_path, share)) == said


def test_what_the_file_does_not_say_is_not_shared(tmp_path: Path) -> None:
    assert own_profile.of(site(tmp_path, ["memory"], memory="")) == {}
    assert SiteProfile().share == ["memory"]


def test_a_turn_tells_its_seconds_and_the_memory_of_the_process() -> None:
    told = own_profile.begun(torch.device("cpu"))
    first, then = told(), told()
    assert 0 <= first["seconds.train"] <= then["seconds.train"] < 60
    assert first["memory.peak"] > 2**20
