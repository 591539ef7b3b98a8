"""Simulations with workers: the bytes of one process, whoever trains, and mistakes in one line before any training."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from inline_crew import InlineCrew
from one_line import one_line

from fedft import run_file
from fedft.errors import ConfigError
from fedft.simulations import fleet, fleet_worker
from fedft.simulations import run as runs

RUNS = {
    "fedit": ["codec.up=int4", "codec.down='delta | int4'", "clients.per_round=3"],  # keeps what was left out
    "fedsa_lora": [],  # personal: a factor of each client's own
    "flora": ["clients.rank=[2, 4, 8]"],  # adds up what comes down; messages of unlike ranks
    "fedkseed": ["strategy.K=256", "local.learning_rate=1e-3"],
}
SAME = ("state_digest", "final", "initial", "bytes_up", "bytes_down")


@pytest.fixture(scope="session")
def sets(tiny_base: Path) -> Callable[..., list[str]]:
    def of(strategy: str, *more: str) -> list[str]:
        small = ["local.steps=2", "local.batch_size=2", "data.max_length=48", "eval.max_rows=4", "server.rounds=3"]
        own = [f"model.id='{tiny_base}'", f"strategy.name={strategy}", "clients.rank=4", "server.loggers=[]"]
        return [*own, *small, *RUNS[strategy], *more]

    return of


@pytest.fixture
def inline(monkeypatch: pytest.MonkeyPatch) -> list[InlineCrew]:
    """Workers are begun as ever, but in this process; the crews of all runs."""
    crews: list[InlineCrew] = []

    def begun(config: Any, chosen: list[str], worker_of: dict[str, int], mark: Path) -> InlineCrew:
        told = [
            {"config": config.to_dict(), "device": d, "clients": fleet._whose(worker_of, n), "mark": str(mark)}
            for n, d in enumerate(chosen)
        ]
        posts, facts = zip(*(fleet_worker.begin({**t, "allow": ""}) for t in told), strict=True)
        crews.append(InlineCrew(posts, facts))
        return crews[-1]

    monkeypatch.setattr(fleet, "_crew", begun)
    return crews


def kept(folder: Path) -> dict[str, bytes]:
    """Every file that a client keeps, by its path."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.glob("clients/*/*"))}


@pytest.mark.parametrize("strategy", RUNS)
def test_workers_give_the_bytes_of_one_process(
    sets: Callable[..., list[str]], inline: list[InlineCrew], tmp_path: Path, strategy: str
) -> None:
    """Digests, losses, bytes on the wire (nobody is behind) and what clients keep."""
    one = runs.simulate(run_file.load(runs.QUICKSTART, sets(strategy)), out=tmp_path / "one")
    two = runs.simulate(run_file.load(runs.QUICKSTART, sets(strategy, "server.workers=2")), out=tmp_path / "two")
    assert {k: one.summary[k] for k in SAME} == {k: two.summary[k] for k in SAME}
    assert kept(one.folder) == kept(two.folder)
    assert bool(kept(one.folder)) == (strategy in ("fedit", "fedsa_lora"))
    (crew,) = inline
    trained = 3 * (3 if strategy == "fedit" else 4)
    assert sum(letters for _, letters, _ in crew.calls) == 4 + trained + 4 * 4  # jobs, plans, evaluations: none twice
    assert len(crew.calls) <= 2 * (1 + 3 + 4)
    if strategy == "fedsa_lora":
        assert all(payloads == 1 for _, _, payloads in crew.calls)
    assert [*two.folder.glob(".fleet-*")] == []


def test_a_run_goes_on_with_another_number_of_workers(
    sets: Callable[..., list[str]], inline: list[InlineCrew], tmp_path: Path
) -> None:
    whole = runs.simulate(run_file.load(runs.QUICKSTART, sets("fedsa_lora")), out=tmp_path / "whole")
    for rounds, workers in ((1, 3), (2, 2)):
        more = [f"server.rounds={rounds}", f"server.workers={workers}"]
        config = run_file.load(runs.QUICKSTART, sets("fedsa_lora", *more))
        runs.simulate(config, out=tmp_path / "run", resume=rounds > 1)
    done = runs.simulate(run_file.load(runs.QUICKSTART, sets("fedsa_lora")), out=tmp_path / "run", resume=True)
    assert [len(crew.posts) for crew in inline] == [3, 2]
    assert done.summary["state_digest"] == whole.summary["state_digest"]


def test_clients_of_a_worker_share_its_passes(
    sets: Callable[..., list[str]], inline: list[InlineCrew], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The same workers give the same bytes again; that their number matters is said."""
    exact = sets("fedit", "server.workers=2", "codec.up=fp32", "codec.down=fp32")
    together = [*exact, "server.together=2"]
    found = [runs.simulate(run_file.load(runs.QUICKSTART, together), out=tmp_path / str(n)).summary for n in (0, 1)]
    alone = runs.simulate(run_file.load(runs.QUICKSTART, exact), out=tmp_path / "alone")
    assert found[0]["state_digest"] == found[1]["state_digest"] != alone.summary["state_digest"]
    assert found[0]["final"]["loss"] == pytest.approx(alone.summary["final"]["loss"], rel=1e-3)
    header = found[0]["header"]
    assert (header["together"], header["depends"]) == (2, ["2 clients a pass, 2 workers"])
    assert alone.summary["header"]["together"] == 1
    assert sum("another number of workers than 2 gives other last bits" in m for m in caplog.messages) == 2


def test_a_worker_that_has_another_model_other_rows_or_another_folder_is_told_before_any_training(
    sets: Callable[..., list[str]], inline: list[InlineCrew], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = fleet_worker.begin
    for key, said in (("base", "its base model"), ("rows", "its rows of stdlib-docstrings are others than here")):

        def other(told: Any, key: str = key) -> Any:
            post, facts = begin(told)
            return post, {**facts, key: "0" * 64}

        monkeypatch.setattr(fleet_worker, "begin", other)
        with pytest.raises(ConfigError) as e:
            runs.simulate(run_file.load(runs.QUICKSTART, sets("fedit", "server.workers=2")), out=tmp_path / key)
        assert one_line(e).startswith(f"worker 1 of 2 (cpu): {said}")
        assert not [*(tmp_path / key / "state").glob("gen-*")]
    with pytest.raises(ConfigError, match=r"is not the run's folder; --out has to be a shared one"):
        begin({"mark": str(tmp_path / "nowhere" / "mark")})


@pytest.mark.parametrize("workers", ["none", "2"])
def test_what_a_start_that_was_killed_left_is_gone_at_the_next(
    sets: Callable[..., list[str]], inline: list[InlineCrew], tmp_path: Path, workers: str
) -> None:
    done = runs.simulate(run_file.load(runs.QUICKSTART, sets("fedit", "server.rounds=1")), out=tmp_path / "run")
    (done.folder / ".fleet-0123456789abcdef").touch()
    more = ("server.rounds=2", *([f"server.workers={workers}"] if workers != "none" else []))
    runs.simulate(run_file.load(runs.QUICKSTART, sets("fedit", *more)), out=done.folder, resume=True)
    assert [*done.folder.glob(".fleet-*")] == []


@pytest.mark.parametrize(
    ("tables", "said"),
    [
        ({"workers": 0}, "run: expected [server] workers >= 1, got 0"),
        ({"workers": []}, "run: [server] workers is [], wanted a number or devices, as ['cuda:0', 'cuda:1']"),
        ({"workers": ["cpu", ""]}, "run: [server] workers is ['cpu', ''], wanted a number or devices"),
        ({"ray": "auto"}, "run: [server] ray: workers says how many there are, or their devices; it is left out"),
        ({"mode": "ray"}, "run: [server] mode = 'ray' is no more; wanted workers = 2 (processes), with ray = \"auto\""),
    ],
)
def test_a_mistake_in_the_run_file_is_one_line(tables: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as e:
        run_file.from_dict({"server": tables})
    assert one_line(e).startswith(said)


def test_a_device_or_a_library_that_is_not_there_is_told_before_there_is_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet, "_cards", lambda: 2)
    monkeypatch.setattr(fleet, "find_spec", lambda name: None)
    for more, said in (
        ("server.workers=['cuda:1', 'cuda:2']", "[server] workers: cuda:2: there are 2 CUDA devices here"),
        ("server.ray=auto", '[server] ray: Ray is not installed here; pip install "fedft[ray]"'),
    ):
        config = run_file.load(runs.QUICKSTART, ["server.workers=2", more])
        with pytest.raises(ConfigError) as e:
            runs.simulate(config, out=tmp_path / "run")
        assert one_line(e) == said
        assert not (tmp_path / "run").exists()


def test_run_files_of_before_that_say_the_default_mode_are_read() -> None:
    assert run_file.from_dict({"server": {"mode": "local", "rounds": 2}}).server.rounds == 2


def test_each_worker_has_its_device_and_the_first_is_the_model_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet, "_cards", lambda: 2)

    def found(clients: int = 9, **tables: Any) -> tuple[list[str], str]:
        device = tables.pop("device", "cpu")
        config = run_file.from_dict({"server": tables, "model": {"device": device}})
        return fleet.devices(config, clients), config.model.device

    assert found() == ([], "cpu")
    assert found(workers=2) == (["cpu", "cpu"], "cpu")
    assert found(workers=3, device="cuda") == (["cuda:0", "cuda:1", "cuda:0"], "cuda")
    assert found(workers=2, device="cuda:1") == (["cuda:1", "cuda:1"], "cuda:1")
    assert found(workers=["cuda:1", "cuda:0"]) == (["cuda:1", "cuda:0"], "cuda:1")
    assert found(workers=4, clients=3) == (["cpu"] * 3, "cpu")
    assert found(workers=2, ray="auto", device="cuda") == (["cuda", "cuda"], "cuda")


def test_a_worker_is_left_no_other_card() -> None:
    assert fleet.pinned("cuda:1", None) == ("cuda:0", {"CUDA_VISIBLE_DEVICES": "1"})
    assert fleet.pinned("cuda:1", "4,6") == ("cuda:0", {"CUDA_VISIBLE_DEVICES": "6"})
    assert fleet.pinned("cuda", "GPU-a,GPU-b") == ("cuda:0", {"CUDA_VISIBLE_DEVICES": "GPU-a"})
    assert fleet.pinned("cpu", "0") == ("cpu", {})
