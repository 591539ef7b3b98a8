"""A server's key folder and a site's card, made as `fedft keys` makes them."""

from pathlib import Path

import pytest

from fedft.security import new_keys


@pytest.fixture
def hosts() -> list[str]:
    """Names and addresses that the server's certificate is for."""
    return ["localhost", "127.0.0.1", "::1", "*.fl.example.org"]


@pytest.fixture
def server(tmp_path: Path, hosts: list[str]) -> Path:
    """The server's folder."""
    new_keys.make_server(tmp_path / "server", hosts, 30)
    return tmp_path / "server"


@pytest.fixture
def card(tmp_path: Path) -> Path:
    """The card of site clinic-1, in the site's folder."""
    return new_keys.make_site(tmp_path / "clinic-1", "clinic-1")
