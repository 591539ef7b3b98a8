"""Letters over a network that is not trusted: signed, delivered again, answered once."""

from pathlib import Path

import pytest
from deployed import SITES, Deployment

from fedft import strategies


@pytest.mark.parametrize("name", strategies.BUILT_IN)
def test_a_deployment_ends_with_the_bytes_of_the_simulation(tmp_path: Path, name: str) -> None:
    deployed = Deployment(tmp_path / "a", name)
    assert deployed.digest() == Deployment(tmp_path / "b", name).simulated()
    assert [line["version"] for line in deployed.metrics.lines] == [0, 1, 2, 3, 4]
    assert all(line["participants"] == list(SITES) for line in deployed.metrics.lines[1:])
    assert {s.trained for s in deployed.sites.values()} == {4}
