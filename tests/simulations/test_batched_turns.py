"""Runs whose clients share passes of the model: each client's update is the one that it has alone."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fedft import config, run_file
from fedft.arithmetic import tensors
from fedft.carriers.interface import Kind as LetterKind
from fedft.carriers.interface import Letter
from fedft.carriers.local import Asked, Finish, LocalPost
from fedft.errors import ClientFailed, ConfigError
from fedft.reports.metric_log import MetricsFile
from fedft.server.checkpoint import Store
from fedft.server.federation import Federation
from fedft.server.job import job_of
from fedft.server.loop import Loop
from fedft.simulations import batched_turns, workplace
from fedft.simulations import run as runs
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


def test_one_at_a_time_is_what_is_configured_unless_said(base: Path) -> None:
    assert config.RunConfig().server.together is None
    place = workplace.workplace(settings(base, "fedit", 1))
    assert batched_turns.starter(place.clients) == (None, 1)
    for client in place.clients.values():
        client.config = replace(client.config, server=replace(client.config.server, together=None))
    assert batched_turns.starter(place.clients) == (None, 1), "a CPU"
    with pytest.raises(ConfigError, match="together >= 1"):
        settings(base, "fedit", 0)


def test_auto_takes_as_many_as_half_of_the_free_memory_holds_and_says_so(
    base: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """By what a pass on the longest rows is measured to keep: longer rows, fewer clients."""
    place = workplace.workplace(settings(base, "fedit", "auto", "local.batch_size=2", "data.max_length=32"))
    measured: list[int] = []
    kept = batched_turns.free_memory.kept_bytes
    monkeypatch.setattr(batched_turns.free_memory, "kept_bytes", lambda *a: measured.append(kept(*a)) or measured[-1])

    def most(free: int | None) -> int:
        monkeypatch.setattr(batched_turns.free_memory, "free_bytes", lambda device: free)
        return batched_turns.starter(place.clients)[1]

    assert most(None) == most(10**12) == 3
    assert not caplog.text
    place.handle.write(place.handle.kind.initial(place.layout, 4, 0))
    numbers = 24 * sum(p.numel() for p in place.handle.parameters().values())
    one = measured[0] + numbers
    assert most(2 * one * 2 + 100) == 2
    assert "2 in place of 3 clients a pass" in caplog.text
    assert most(one) == 1
    assert measured[0] > 10**5
    assert len(set(measured)) == 1


def test_left_out_it_is_auto_on_an_accelerator(base: Path) -> None:
    place = workplace.workplace(settings(base, "fedit", "auto"))
    client = next(iter(place.clients.values()))
    client.config = replace(client.config, server=replace(client.config.server, together=None))
    assert batched_turns._wanted(client) == 1

    class There:
        def parameters(self) -> Any:
            yield torch.zeros(1, device="meta")

    client.base = replace(client.base, model=There())
    assert batched_turns._wanted(client) == "auto"
    client.config = replace(client.config, server=replace(client.config.server, together=1))
    assert batched_turns._wanted(client) == 1


def test_the_header_says_how_many_share_a_pass(base: Path, tmp_path: Path) -> None:
    more = ["local.steps=1", "server.rounds=1", "local.batch_size=2", "data.max_length=32"]
    for at_once, number, depends in (("1", 1, []), ("2", 2, ["2 clients a pass"])):
        run = runs.simulate(settings(base, "fedit", at_once, *more), out=tmp_path / at_once)
        header = json.loads((run.folder / "summary.json").read_text())["header"]
        assert (header["together"], header["depends"]) == (number, depends)


def test_auto_shares_where_batches_are_short_and_one_at_a_time_says_what_it_would_give(
    base: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Decided by tokens per batch and how many are asked; nothing else is looked at."""
    short = ["local.batch_size=2", "data.max_length=32"]

    def most(at_once: str, *more: str) -> int:
        place = workplace.workplace(settings(base, "fedit", at_once, *more))
        return batched_turns.starter(place.clients)[1]

    with caplog.at_level("INFO"):
        assert most("auto", *short) == 3
        assert not caplog.text
        assert most("1", *short) == 1
    assert caplog.text.count("together = 3 would train faster") == 1
    assert most("auto", *short, "clients.per_round=2") == 2
    assert most("auto", "local.batch_size=32", "data.max_length=32") == 1
    with pytest.raises(ConfigError, match="together is 'many', wanted int or 'auto'"):
        settings(base, "fedit", "many")
