"""The pages as they are built (`make site`): links lead somewhere, and nothing comes from another host."""

import os
import re
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).resolve().parents[2]
REQUIREMENTS = ROOT / "docs" / "requirements.txt"
LOADS = {"script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src", "link": "href"}


class Page(HTMLParser):
    """What a page links to, what it loads, and the places in it that can be linked to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.places: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Sort an element's addresses; a `rel` that only names the page itself loads nothing."""
        found = {name: value or "" for name, value in attrs}
        self.places |= {found[key] for key in ("id", "name") if key in found}
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        if tag in LOADS and LOADS[tag] in found and found.get("rel") not in ("canonical", "prev", "next"):
            self.loads.append(found[LOADS[tag]])


@cache
def read(file: Path) -> Page:
    return Page(file.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def site() -> Path:
    """The folder of the built pages."""
    folder = os.environ.get("FEDFT_SITE")
    if not folder:
        pytest.skip("no built pages: `make site` builds them, in an environment of their own, and runs this")
    assert len(list(Path(folder).rglob("*.html"))) > 10
    return Path(folder)


def test_every_link_leads_to_a_page_and_a_place_on_it(site: Path) -> None:
    lost, followed = [], 0
    for page in sorted(site.rglob("*.html")):
        for link in read(page).links:
            to = urlsplit(link)
            if to.scheme in ("http", "https", "mailto") or page.name == "404.html":
                continue
            there = page.parent / unquote(to.path) if to.path else page
            there = there / "index.html" if there.is_dir() else there
            followed += 1
            if not there.is_file() or (to.fragment and unquote(to.fragment) not in {"", *read(there).places}):
                lost.append(f"{page.relative_to(site)}: {link}")
    assert not lost
    assert followed > 500


def test_pages_load_nothing_from_another_host(site: Path) -> None:
    foreign = [
        f"{page.relative_to(site)}: {address}"
        for page in site.rglob("*.html")
        for address in read(page).loads
        if urlsplit(address).netloc or address.startswith("//")
    ]
    assert not foreign
    imported = [
        f.name for f in site.rglob("*.css") if re.search(r"""(url\(|@import )["']?(https?:)?//""", f.read_text())
    ]
    assert not imported
    assert not list(site.rglob("*.woff*")), "fonts are the reader's own"


def test_every_document_of_the_root_and_every_page_is_in_the_site(site: Path) -> None:
    for name in (path.stem for path in ROOT.glob("*.md")):
        at = site / "documents" / ("index.html" if name == "README" else f"{name}/index.html")
        assert at.is_file(), name
    assert not list(site.rglob("*.ipynb")) or all(f.stat().st_size for f in site.rglob("*.ipynb"))


def test_what_the_site_needs_is_pinned_once() -> None:
    """Exactly, and not here where constraints.txt does."""
    pins = [line for line in REQUIREMENTS.read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9.\-]+==[\w.]+", pin) for pin in pins)
    names = [pin.partition("==")[0] for pin in pins]
    others = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert pins == sorted(set(pins))
    assert not set(names) & {line.partition("==")[0] for line in others}
