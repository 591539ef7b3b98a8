"""`fedft doctor` on privacy: the accountant, what a run will cost, what a site's rows have cost, and its roster."""

from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from asked_site import SITE

from fedft import run_file
from fedft.cli import checks_machine, checks_privacy
from fedft.cli.checks_machine import FAIL, OK, WARN, findings_of
from fedft.client.privacy_ledger import FILE, Charge, Ledger, Terms
from fedft.client.site_settings import SiteConfig
from fedft.errors import PlanRefused
from fedft.privacy.tables import Privacy
from fedft.security import new_keys, roster
from fedft.training import per_example

pytest.importorskip("dp_accounting", reason="pip install 'fedft[dp]'")

CENTRAL = Privacy("central-dp", clip=1.0, noise_multiplier=2.0, delta=1e-2)


def site_at(folder: Path, **policy: Any) -> SiteConfig:
    """The site of other tests, with its state in a folder."""
    return replace(SITE, site=replace(SITE.site, state=str(folder)), policy=replace(SITE.policy, **policy))


@pytest.fixture(scope="module")
def cards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A roster of four sites, ours among them."""
    there = tmp_path_factory.mktemp("cards")
    new_keys.make_server(there / "server", ["localhost"])
    for name in (SITE.site.name, "b", "c", "d"):
        roster.enrol(there / "server" / "roster.toml", new_keys.make_site(there / name, name))
    return there / "server" / "roster.toml"


def run_of(privacy: Privacy, **tables: Any) -> Any:
    return replace(run_file.from_dict({"strategy": {"name": "ffa_lora"}, **tables}), privacy=privacy)


def test_without_an_accountant_only_who_needs_one_is_told_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert checks_privacy.accountant(needed=True).state == OK

    def none(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", none)
    assert (checks_privacy.accountant(needed=False).state, checks_privacy.accountant(needed=False).remedy) == (OK, "")
    found = checks_privacy.accountant(needed=True)
    assert (found.state, found.remedy) == (FAIL, "pip install 'fedft[dp]'")


def test_a_server_says_what_its_run_will_cost_with_the_sites_that_are_enrolled(cards: Path) -> None:
    assert list(checks_privacy.of_run(run_of(Privacy()), cards)) == []
    rows = [r for r in checks_privacy.of_run(run_of(CENTRAL), cards) if r.check == "privacy"]
    assert rows[0].found.startswith("central-dp, of one client: epsilon ")
    assert {r.state for r in rows} == {OK}
    *_, last = checks_privacy.of_run(run_of(replace(CENTRAL, noise_multiplier=0.3)), cards)
    assert (last.state, bool(last.remedy)) == (WARN, True)
    faults = list(findings_of("privacy", lambda: checks_privacy.of_run(run_of(replace(CENTRAL, delta=0.4)), cards)))
    assert faults[-1].state == FAIL
    assert "above 1 / 4" in faults[-1].found


def test_a_secure_sum_of_too_few_sites_is_told(cards: Path) -> None:
    (row,) = checks_privacy.of_run(run_of(Privacy(secagg="on")), cards)  # five by default
    assert (row.state, row.found) == (FAIL, "4 sites are enrolled, a secure sum wants 5")
    assert list(checks_privacy.of_run(run_of(Privacy(secagg="on", min_cohort=4)), cards)) == []


def test_a_site_says_what_its_rows_have_cost_and_when_that_is_nearly_all(tmp_path: Path) -> None:
    def budget(site: SiteConfig) -> Any:
        (row,) = (r for r in checks_privacy.of_site(site) if r.check == "privacy")
        return row

    assert budget(site_at(tmp_path)).found == "nothing is booked on these rows; no bound"
    ledger = Ledger(tmp_path)
    ledger.begin(Terms("a" * 16, "example-dp", 100, 1.0))
    ledger.charge(Charge("a" * 16, 0, "b" * 64, "c" * 16, "example-dp", 1.0, 0.1, 40))
    for most, state in ((None, OK), (100.0, OK), (3.0, WARN)):
        row = budget(site_at(tmp_path, max_epsilon=most))
        assert (row.state, bool(row.remedy)) == (state, state == WARN), row
    (tmp_path / FILE).unlink()
    (row,) = findings_of("privacy", lambda: checks_privacy.of_site(site_at(tmp_path)))
    assert row.state == FAIL
    assert "is gone" in row.found


def test_a_site_without_a_roster_of_its_own_takes_part_in_no_secure_sum(tmp_path: Path, cards: Path) -> None:
    def sums(site: SiteConfig) -> Any:
        (row,) = (r for r in checks_privacy.of_site(site) if r.check == "secure sums")
        return row

    alone = site_at(tmp_path)
    assert (sums(alone).state, "no secure sum" in sums(alone).found) == (OK, True)
    assert sums(site_at(tmp_path, require=["secagg"])).state == FAIL
    known = replace(alone, keys=replace(alone.keys, roster=str(cards)))
    assert sums(known).found == f"4 sites in {cards}"
    assert sums(replace(known, policy=replace(known.policy, min_cohort=5))).state == FAIL
    assert "has no site" in sums(replace(known, site=replace(known.site, name="stranger"))).found


def test_gradients_of_records_are_tried_on_the_sites_own_model(
    tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tried(required: bool) -> Any:
        (row,) = checks_privacy.self_test(checks_machine.site_base(str(tiny_base), "cpu"), required)
        return row

    assert (tried(required=True).state, tried(required=True).remedy) == (OK, "")

    def wrong(handle: Any, rows: Any, data: Any) -> None:
        raise PlanRefused("dp_selftest", "the gradient of a record is off")

    monkeypatch.setattr(per_example, "self_test", wrong)
    for required, state in ((True, FAIL), (False, WARN)):
        assert (tried(required).state, tried(required).found) == (state, "the gradient of a record is off")
