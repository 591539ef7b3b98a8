"""Runs whose clients share passes of the model: each client's update is the one that it has alone."""

from pathlib import Path
from typing import Any

import pytest

from fedft import config, run_file
from fedft.arithmetic import tensors
from fedft.carriers.interface import Kind as LetterKind
from fedft.carriers.interface import Letter
from fedft.carriers.local import Asked, Finish, LocalPost
from fedft.errors import ClientFailed
from fedft.reports.metric_log import MetricsFile
from fedft.server.checkpoint import Store
from fedft.server.federation import Federation
from fedft.server.job import job_of
from fedft.server.loop import Loop
from fedft.simulations import run as runs
from fedft.simulations import workplace
from fedft.training import batched_clients
from fedft.update import Plan, Update
from fedft.wire import messages as codec

CLOSE = 1e-4


def far(x: Any, y: Any) -> float:
    """Distance of two updates, relative."""
    return tensors.norm(tensors.sub(x.delta, y.delta)) / tensors.norm(y.delta)


def test_a_post_begins_training_together_and_gives_one_reply_per_pull() -> None:
    begun: list[int] = []

    def begin(asked: list[Asked]) -> list[Finish]:
        begun.append(len(asked))

        def finish(a: Asked) -> bytes:
            if a.client == "2":
                raise ValueError("broken")
            return b"together"

        return [lambda a=a: finish(a) for a in asked]  # type: ignore[misc]

    kinds: list[LetterKind] = ["train", "train", "evaluate", "train", "train"]
    post = LocalPost({str(i): lambda kind, payload: b"alone" for i in range(1, 6)}, begin, 3)
    tickets = [post.push(Letter(str(i), kind, lambda: b"x"))[0] for i, kind in enumerate(kinds, 1)]
    said = []
    for i, _ in enumerate(tickets):
        if i == 1:
            with pytest.raises(ClientFailed, match="'2' failed: broken"):
                list(post.pull(tickets))
            continue
        (reply,) = post.pull(tickets)
        said.append(reply.answer)
    assert list(post.pull(tickets)) == []
    assert begun == [3]
    assert said == [b"together", b"alone", b"together", b"alone"]


@pytest.fixture(scope="session")
def base(tiny_base: Path) -> Path:
    """A Llama with two layers of 64, trained for two seconds."""
    return tiny_base


RANKS = dict.fromkeys(("flora", "flexlora", "hetlora"), "[2, 4, 8]")


def settings(base: Path, strategy: str, at_once: int | str, *more: str) -> config.RunConfig:
    small = ["local.batch_size=4", "data.max_length=64", "data.clients=3", "eval.max_rows=4"]
    tables = ["local.steps=4", "server.rounds=2", "eval.every=9", *small]
    own = [f"model.id='{base}'", f"strategy.name={strategy}", f"clients.rank={RANKS.get(strategy, '4')}"]
    return run_file.load(runs.QUICKSTART, [*own, *tables, f"server.together={at_once}", *more])


class Kept(Store):
    """Remembers what was journalled."""

    def journal(self, version: int, client: str, payload: bytes, sha256: str = "") -> None:
        self.__dict__.setdefault("seen", {})[version, client] = payload
        super().journal(version, client, payload, sha256)


def updates(c: config.RunConfig, folder: Path) -> dict[tuple[int, str], Update]:
    """All updates of a run."""
    place = workplace.workplace(c)
    job = job_of(c, place.base.digest, workplace.whose(place.clients))
    store, metrics = Kept(folder / "state"), MetricsFile(folder / "metrics.jsonl", -1)
    post = workplace.local_post(place.clients)
    Loop(Federation(post, place.recipe, place.layout, c, job, store), metrics).run(place.clients)
    ranks = dict(zip(sorted(place.clients, key=str.encode), c.ranks() * 3, strict=False))

    def decoded(version: int, client: str, payload: bytes) -> Update:
        spec = place.recipe.spec(place.layout, Plan(job.run, version, version, rank=ranks[client]))
        return codec.decode_update(payload, spec, c.codec.up)

    return {(v, name): decoded(v, name, payload) for (v, name), payload in vars(store)["seen"].items()}


@pytest.mark.parametrize(
    ("name", "optimizer"),
    [
        ("flora", "adamw"),
        ("ffa_lora", "sgd"),
        ("rolora", "adamw"),
        ("fedsa_lora", "adamw"),
        ("hetlora", "sgd"),
        *(pytest.param(name, "adamw", marks=pytest.mark.slow) for name in ("fedit", "fedex_lora", "flexlora")),
        pytest.param("fedprox", "sgd", marks=pytest.mark.slow),
    ],
)
def test_updates_of_a_run_are_those_of_one_at_a_time(
    base: Path, tmp_path: Path, name: str, optimizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[int] = []
    train = batched_clients.train

    def counted(handle: Any, local: Any, seats: Any, *args: Any, **more: Any) -> Any:
        passes.append(len(seats))
        return train(handle, local, seats, *args, **more)

    rounds = 2 if name == "rolora" else 1  # what a later round starts from differs already
    more = [f"local.optimizer={optimizer}", f"server.rounds={rounds}"]
    wanted = updates(settings(base, name, 1, *more), tmp_path / "alone")
    monkeypatch.setattr(batched_clients, "train", counted)
    found = updates(settings(base, name, 3, *more), tmp_path / "together")
    assert passes == [3] * rounds
    assert found.keys() == wanted.keys()
    for k in wanted:
        assert far(found[k], wanted[k]) < CLOSE
        assert found[k].metrics == pytest.approx(wanted[k].metrics, rel=1e-5)
        assert (found[k].num_examples, found[k].round) == (wanted[k].num_examples, wanted[k].round)


def test_the_same_run_twice_gives_the_same_bytes_also_where_groups_are_smaller(base: Path, tmp_path: Path) -> None:
    one, two = (
        runs.simulate(settings(base, "flora", 2), out=tmp_path / name).summary["state_digest"] for name in ("a", "b")
    )
    assert one == two


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("fedit", ["model.lora_dropout=0.1"]),
        pytest.param("fedkseed", ["local.learning_rate=1e-4"], marks=pytest.mark.slow),
    ],
)
def test_what_cannot_be_shared_is_done_one_at_a_time_with_the_same_bytes(
    base: Path, tmp_path: Path, name: str, more: list[str]
) -> None:
    one, many = (
        runs.simulate(settings(base, name, n, *more), out=tmp_path / str(n)).summary["state_digest"] for n in (1, 3)
    )
    assert one == many


def test_a_model_that_behaves_otherwise_together_is_trained_one_at_a_time(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    wanted = runs.simulate(settings(base, "flora", 1), out=tmp_path / "1").summary["state_digest"]
    losses = batched_clients.client_losses
    monkeypatch.setattr(batched_clients, "client_losses", lambda *args: losses(*args) * 1.01)
    found = runs.simulate(settings(base, "flora", 3), out=tmp_path / "3").summary["state_digest"]
    assert found == wanted
    assert caplog.text.count("train one at a time") == 1  # then nobody tries again


def test_a_state_is_hashed_and_a_plan_is_read_once_a_round_not_once_a_client(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the server, by one of the clients for all three, and once more for the summary."""
    hashed, read = [], []
    digest, decode = tensors.digest, codec.decode_plan
    monkeypatch.setattr(tensors, "digest", lambda x: hashed.append(1) or digest(x))
    monkeypatch.setattr(codec, "decode_plan", lambda *args, **more: read.append(1) or decode(*args, **more))
    runs.simulate(settings(base, "flora", 1, "clients.rank=4", "local.steps=1"), out=tmp_path)
    versions = 3  # of two rounds
    assert len(hashed) <= 2 * versions + 1
    assert len(read) <= 2 * versions


def test_a_client_that_forgot_is_helped_and_the_others_are_not_held_up(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    c = settings(base, "fedit", 3)
    place = workplace.workplace(c)
    job = job_of(c, place.base.digest, workplace.whose(place.clients))

    def forget(kind: str, info: Any) -> None:
        if kind == "round" and info["round"] == 1:
            list(place.clients.values())[1].memory.held = None

    store, metrics = Store(tmp_path / "state"), MetricsFile(tmp_path / "metrics.jsonl", -1)
    post = workplace.local_post(place.clients)
    state = Loop(Federation(post, place.recipe, place.layout, c, job, store, forget), metrics).run(place.clients)
    wanted = runs.simulate(settings(base, "fedit", 1), out=tmp_path / "run")
    found = Store(wanted.folder / "state").latest()
    assert found is not None
    assert tensors.norm(tensors.sub(state.tensors, found[0].tensors)) < 1e-3 * tensors.norm(found[0].tensors)
    assert not metrics.lines[-1]["refused"]
