"""What the first process of a site tells the others of a turn, and when they are ready for it."""

from dataclasses import dataclass, field, replace

import pytest
import torch
from deployed import Deployment

from fedft import strategies, testing
from fedft.client import companions
from fedft.client.companions import NOT_READY, Follower, LeadingClient
from fedft.client.train import Client
from fedft.config import Local
from fedft.contract import Turn
from fedft.errors import ConfigError, PlanRefused
from fedft.update import Plan
from fedft.wire import messages

PLAN = Plan("a" * 16, 3, 2, steps=4, learning_rate=0.25, rank=2, counted=1, extra={"pool": 3})


def turn() -> Turn:
    held = {"x.lora_A": torch.arange(6.0).reshape(2, 3), "x.lora_B": torch.ones(3, 2)}
    kept = {"scaffold": {"x.lora_A": torch.full((2, 3), 0.5)}, "optimizer": {"step": torch.tensor([3.0])}}
    return Turn(replace(PLAN, tensors={"x.lora_A": held["x.lora_A"]}), held, "d" * 64, Local(), 7, 2**60 + 1, kept)


def test_a_turn_is_read_as_it_was_written() -> None:
    told = turn()
    found = companions._read(companions._written(told))
    assert (found.held_digest, found.run_seed, found.seed) == (told.held_digest, told.run_seed, told.seed)
    assert replace(found.plan, tensors={}) == replace(told.plan, tensors={})
    for a, b in [(found.plan.tensors, told.plan.tensors), (found.held, told.held), *zip_drawers(found.kept, told.kept)]:
        assert a.keys() == b.keys()
        assert all(torch.equal(x, b[n]) for n, x in a.items())


def zip_drawers(some, other):
    assert some.keys() == other.keys()
    return [(some[owner], other[owner]) for owner in some]


@dataclass
class Talk:
    """Stands for the other processes: what they are told, and whether they agree."""

    agrees: bool
    told: list[tuple[bytes, ...]] = field(default_factory=list)
    said: list[bytes] = field(default_factory=list)
    rank: int = 0
    count: int = 2

    def tell(self, *parts: bytes) -> None:
        self.told.append(parts)

    def hear(self) -> tuple[bytes, bytes, bytes]:
        if not self.told:
            raise RuntimeError("Connection closed by peer")
        return (*self.told.pop(0), b"", b"")[:3]

    def agree(self, on: bytes) -> bool:
        self.said.append(on)
        return self.agrees and on != NOT_READY

    def add(self, parts: list[torch.Tensor]) -> None: ...


def test_a_turn_is_not_taken_where_another_process_is_not_ready(tmp_path, monkeypatch) -> None:
    d = Deployment(tmp_path, "fedit")
    toy, recipe = testing.toy(strategies.make("fedit", {})), strategies.make("fedit", {})
    monkeypatch.setattr(companions, "Companions", Talk)
    leading = LeadingClient("anna", [1, 2], [], toy, toy.handle, recipe, d.config, among=Talk(agrees=False), job=b"job")
    with pytest.raises(PlanRefused, match="do not agree"):
        leading.steps(turn())


def test_a_follower_is_not_ready_for_a_run_that_it_could_not_join(tmp_path, caplog) -> None:
    d = Deployment(tmp_path, "fedit")

    def make(job):
        raise PlanRefused("site_unfit", "no such rows here")

    talk = Talk(True, [(b"job", messages.encode_job(d.job)), (b"turn", *companions._written(turn()))])
    Follower(talk, make).follow()
    assert talk.said == [NOT_READY]
    assert "no such rows here" in caplog.text
    assert not talk.told


def test_a_follower_has_batches_of_the_plan_s_size_as_the_first_process_has(tmp_path) -> None:
    d, toy, recipe = (
        Deployment(tmp_path, "fedit"),
        testing.toy(strategies.make("fedit", {})),
        strategies.make("fedit", {}),
    )
    taken: list[Local] = []

    class Stub(Client):
        def join(self, job):
            pass

        def steps(self, turn):
            taken.append(turn.local)
            raise FloatingPointError

    def make(job):
        none = replace(recipe, start=lambda handle, turn: None)
        return Stub("anna", [1, 2], [], toy, toy.handle, none, d.config)

    plans = [replace(PLAN, run=d.job.run, batch=batch) for batch in (0, 3)]
    told = [(b"turn", *companions._written(replace(turn(), plan=plan))) for plan in plans]
    Follower(Talk(True, [(b"job", messages.encode_job(d.job)), *told]), make).follow()
    assert taken == [d.config.local, replace(d.config.local, batch_size=3)]


@pytest.mark.parametrize("mode", ["example-dp", "zo-dp"])
def test_secret_batches_are_of_one_process(tmp_path, mode) -> None:
    d = Deployment(tmp_path, privacy={"mode": mode, "clip": 1.0, "noise_multiplier": 1.0, "delta": 1e-3})
    client = d.sites["anna"]._join(d.job)
    with pytest.raises(PlanRefused, match="for sites of one process"):
        companions.leading(client, d.job, Talk(agrees=True))


@pytest.mark.parametrize("said", ["", "two", "0", "-1"])
def test_a_number_of_processes_that_is_none_is_one_line(monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    monkeypatch.setenv("WORLD_SIZE", said)
    with pytest.raises(ConfigError, match="WORLD_SIZE"):
        companions.launched()
