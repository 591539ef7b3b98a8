"""Runs of FedSpine: pruning goes on where it was after a kill, and sites end where one process does."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import deployed
import pytest
import torch

import fedft
from fedft import run_file
from fedft.server.checkpoint import Store
from fedft.simulations import finished_run, workplace
from fedft.simulations import run as runs
from fedft.strategies.parts import pruned_clients, ratio_and_rank
from fedft.strategies.parts.pruned_clients import OWNER
from fedft.strategies.parts.ratio_and_rank import RATIO


@pytest.fixture
def sets(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Settings of a short run that prunes from its second round on."""
    monkeypatch.setattr(ratio_and_rank, "WARM", 4)

    def of(*more: str) -> list[str]:
        small = ["local.steps=4", "local.batch_size=2", "data.max_length=48", "eval.max_rows=4", "server.rounds=4"]
        own = [f"model.id='{tiny_base}'", "strategy.name=fedspine", "clients.rank=[4, 8]", "server.loggers=[]"]
        return [*own, *small, "data.clients=3", *more]

    return of


def ratios(folder: Path) -> dict[str, float]:
    """The share that each client of a run has pruned."""
    found = Store(folder / "state").latest(recover=False)
    assert found is not None
    return pruned_clients.ratios(found[0].drawer(OWNER))


def test_a_run_prunes_to_its_ratios_and_its_models_are_measured_as_they_are(
    sets: Callable[..., list[str]], tmp_path: Path
) -> None:
    """Within one group of what was asked for; a run folder's models are the clients' own."""
    done = runs.simulate(run_file.load(runs.QUICKSTART, sets()), out=tmp_path)
    asked = {c: float(plan["extra"][RATIO]) for c, plan in done.lines[-1]["plans"].items()}
    found = ratios(tmp_path)
    assert len(asked) == 3
    assert max(asked.values()) > 0.02
    for client, ratio in asked.items():
        assert ratio - 1e-9 <= found.get(client, 0.0) <= ratio + 0.06
    evaluated, mean = finished_run.evaluate_run(tmp_path)
    assert mean["loss"] == pytest.approx(done.summary["final"]["loss"], abs=1e-4)
    assert len({m["loss"] for m in evaluated.values()}) == 3
    for client, said in done.summary["models"].items():
        assert said["sparsity"] == pytest.approx(found.get(client, 0.0), abs=1e-6)
        assert said["loss"] == pytest.approx(evaluated[client]["loss"], abs=1e-4)
        assert said["parameters"] > 0
    place, state = workplace.reopen(tmp_path)
    most, batch = max(found, key=lambda c: found[c]), torch.arange(40)[None]
    place.stand(state, most)
    place.handle.training(False)
    with torch.no_grad():
        wanted = place.handle.model(input_ids=batch).logits
        for merged in (False, True):
            to = tmp_path / f"exported-{merged}"
            finished_run.export_run(tmp_path, to, merged=merged, client=most)
            assert torch.allclose(fedft.load_sliced(to)(input_ids=batch).logits, wanted, atol=1e-4)


@pytest.fixture
def whole(sets: Callable[..., list[str]], tmp_path: Path) -> dict[str, Any]:
    """The summary of a run that nobody disturbed."""
    return dict(runs.simulate(run_file.load(runs.QUICKSTART, sets()), out=tmp_path / "whole").summary)


def test_a_run_that_was_interrupted_goes_on_to_the_same_bytes(
    sets: Callable[..., list[str]], tmp_path: Path, whole: dict[str, Any]
) -> None:
    """Between two updates of the third round, in which everybody prunes, and again behind that round."""
    config, folder = run_file.load(runs.QUICKSTART, sets()), tmp_path / "run"
    for kind, number in (("admitted", 8), ("line", 2)):
        seen: list[str] = []

        def stop(what: str, info: Any, kind: str = kind, number: int = number, seen: list[str] = seen) -> None:
            seen.append(what)
            if what == kind and seen.count(kind) == number:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            runs.simulate(config, out=folder, observe=stop, resume=folder.exists())
    again = runs.simulate(config, out=folder, resume=True)
    assert again.summary["state_digest"] == whole["state_digest"]
    assert again.summary["final"] == whole["final"]
    assert max(ratios(folder).values()) > 0


def test_a_deployment_ends_with_the_bytes_of_the_simulation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Arms that do not follow measured times; the toy model's sites prune from their second round on."""
    monkeypatch.setattr(ratio_and_rank, "WARM", 3)
    monkeypatch.setitem(deployed.OPTIONS, "fedspine", {"variant": "random", "most": 0.4})
    run = deployed.Deployment(tmp_path / "a", "fedspine")
    state = run.run()
    assert state.digest == deployed.Deployment(tmp_path / "b", "fedspine").simulated()
    assert max(pruned_clients.ratios(state.drawer(OWNER)).values()) > 0


def test_a_server_killed_while_sites_prune_goes_on_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ratio_and_rank, "WARM", 3)
    monkeypatch.setitem(deployed.OPTIONS, "fedspine", {"variant": "random", "most": 0.4})
    wanted = deployed.Deployment(tmp_path / "a", "fedspine").digest()
    run = deployed.Deployment(tmp_path / "b", "fedspine")
    deployed.kill_at(run, "admitted", 2)
    with pytest.raises(deployed.Killed):
        run.run()
    assert deployed.Deployment(tmp_path / "b", "fedspine", sites=run.sites).digest() == wanted
