"""What the clients of one process hold between rounds: equal states once, and none that nobody holds."""

import pytest
import torch

from fedft.arithmetic import tensor_file
from fedft.arithmetic.tensors_in_file import TensorsInFile
from fedft.client.received_state import CohortCache, Memory
from fedft.contract import State
from fedft.update import Plan


def test_clients_that_hold_equal_tensors_share_one_state_and_the_last_to_leave_it_takes_it_along():
    cache = CohortCache()
    anna, bert = cache.members = [Memory(cache), Memory(cache)]
    anna.hold(1, "one", {"w": torch.ones(2)})
    bert.hold(1, "one", {"w": torch.ones(2)})
    assert anna.held is bert.held is not None
    anna.hold(2, "two", {"w": torch.zeros(2)})
    assert sorted(s.version for s in cache.states.values()) == [1, 2]
    bert.hold(2, "two", {"w": torch.zeros(2)})
    assert [s.version for s in cache.states.values()] == [2]
    anna.held = bert.held = None
    assert not cache.states


def test_holding_costs_the_same_however_many_clients_there_are(monkeypatch):
    looked = []
    monkeypatch.setattr(State, "digest", property(lambda state: looked.append(state) or f"digest {state.version}"))
    cache = CohortCache()
    cache.members = [Memory(cache) for _ in range(100)]
    for version in (0, 1):
        held = {"w": torch.full((2,), float(version))}
        for member in cache.members:
            member.hold(version, "", held)
    assert len(looked) == 200


@pytest.mark.parametrize("clients", [1, 2])
def test_a_plan_has_the_tensors_that_the_server_has_in_a_file_where_they_are_its_own_to_the_bit(tmp_path, clients):
    path, w = tmp_path / "state", {"w": torch.tensor([0.0, 1.0])}
    path.write_bytes(b"".join(tensor_file.parts(w, {})))
    with path.open("rb") as f:
        there = TensorsInFile(path, tensor_file.places(f, 0))
    cache = CohortCache()
    cache.members = [Memory(cache) for _ in range(clients)]

    def read(sent):
        plan = Plan("run", 0, 0, tensors=sent)
        found = [cache.plan(str(sent).encode(), lambda data: plan, there).tensors for _ in range(clients)]
        assert all(x is found[0] for x in found)
        return found[0]

    assert read({"w": w["w"].clone()}) is there
    for other in ({"w": -w["w"].clone()}, {"w": torch.tensor([-0.0, 1.0])}, {}, {"w": w["w"].clone(), "v": w["w"]}):
        assert read(other) is other
