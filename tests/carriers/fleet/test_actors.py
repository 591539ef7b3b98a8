"""Workers that are actors of Ray, on a cluster that is begun for the tests; skipped where Ray is not installed."""

import platform
from collections.abc import Iterator
from typing import Any

import pytest
from fleet_answers import said
from one_line import one_line

import fedft
from fedft.carriers.fleet.post import FleetPost
from fedft.carriers.fleet.processes import Start
from fedft.errors import ClientFailed, ConfigError, RunPaused

ray = pytest.importorskip("ray", reason="the extra `ray` is not installed")

from fedft.carriers.fleet.actors import Actors  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
WORKERS = {"anna": 0, "bert": 1, "carl": 0}


def actors(devices: tuple[str, ...] = ("cpu", "cpu"), address: str = "local", **more: Any) -> Actors:
    names = [[c for c, at in WORKERS.items() if at == n] for n in (0, 1)]
    starts = [Start(f"worker {n + 1} of 2 (cpu)", {"clients": names[n], **more}, {}) for n in (0, 1)]
    return Actors(address, "echo_worker", starts, devices, 1)


@pytest.fixture
def crew() -> Iterator[Actors]:
    with actors() as found:
        yield found


def test_clients_answer_in_their_actor_and_a_payload_is_stored_once(
    crew: Actors, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored, put = [], ray.put
    monkeypatch.setattr(ray, "put", lambda value: (stored.append(value), put(value))[1])
    post, pids = FleetPost(crew, WORKERS), [facts["pid"] for facts in crew.facts]
    for payload in ("a", "b" * 1_000_000, "c"):
        wanted = {c: f"{pids[w]} {c} train {payload}".encode() for c, w in WORKERS.items()}
        assert said(post, *((c, payload) for c in WORKERS)) == wanted
    assert stored == [b"a", b"b" * 1_000_000, b"c"]


def test_what_a_client_fails_with_and_an_actor_that_dies_are_told_in_one_line(crew: Actors) -> None:
    post = FleetPost(crew, WORKERS)
    with pytest.raises(ClientFailed, match="client 'bert' failed: KeyError: 'rank'"):
        said(post, ("bert", "bug"))
    with pytest.raises(RunPaused) as e:
        said(FleetPost(crew, WORKERS), ("anna", "kill"))
    assert one_line(e).startswith("worker 1 of 2 (cpu) died")


def test_what_is_not_there_is_told_before_any_work() -> None:
    for more, why in (
        ({"wrong": True}, f"worker 1 of 2 (cpu) on {platform.node()}: no such model"),
        ({"devices": ("cuda", "cuda")}, "[server] workers: 2 CPUs and 2 GPUs are wanted, Ray's cluster has 2 and 0"),
        ({"address": "auto"}, "[server] ray = 'auto': Could not find any running Ray instance"),
    ):
        with pytest.raises(ConfigError) as e:
            actors(**more)  # type: ignore[arg-type]
        assert one_line(e).startswith(why)
        assert not ray.is_initialized()


def test_a_machine_with_other_versions_is_told_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the bytes of a run are those of one torch, and the engines of two fedfts need not agree."""
    monkeypatch.setattr("fedft.carriers.fleet.actors.__version__", "0.0.9")  # of this process; actors have their own
    with pytest.raises(ConfigError) as e:
        actors()
    assert one_line(e).startswith(f"worker 1 of 2 (cpu) on {platform.node()}: has fedft {fedft.__version__}, the run ")
