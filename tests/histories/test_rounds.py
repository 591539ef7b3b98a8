"""Histories: mappings whose rounds are shared, with the digest of a plain mapping, and no work for what is old."""

import copy
import random

import pytest
import torch

from fedft.arithmetic import tensors
from fedft.histories.rounds import History, named


def told(version: int, of: str = "") -> dict[str, torch.Tensor]:
    return {"x": torch.tensor([float(version)]), "y.z": torch.tensor([[len(of), version]])}


def grown(count: int, start: History | None = None, of: str = "") -> History:
    history = start or History()
    for version in range(len(history.rounds), count):
        history = history.followed_by(version, told(version, of))
    return history


def test_a_history_is_a_mapping_of_all_its_tensors():
    history = grown(12)
    assert len(history) == len(dict(history)) == 24
    assert {"0.x", "11.x", "11.y.z"} <= history.keys()
    assert history["10.x"].item() == 10
    for strange in ("12.x", "x", "1", "01.x", "-1.x", ".x", "1.z", ""):
        assert strange not in history, strange


@pytest.mark.parametrize("most", [1, 9, 10, 11, 100, 123])
def test_its_digest_is_that_of_a_plain_mapping_asked_after_every_round_or_only_now_and_then(most):
    asked_always, asked_seldom = History(), History()
    for version in range(most):
        asked_always = asked_always.followed_by(version, told(version))
        asked_seldom = asked_seldom.followed_by(version, told(version))
        plain = tensors.digest(dict(asked_always))
        assert tensors.digest(asked_always) == plain
        if version % 7 == 3 or version == most - 1:
            assert tensors.digest(asked_seldom) == plain


def test_a_history_of_before_stays_and_has_its_digest_when_others_have_gone_on():
    first = grown(5)
    digest, names = tensors.digest(first), list(first)
    one, other = grown(8, first), grown(8, first, of="another past")
    assert tensors.digest(one) != tensors.digest(other)
    assert [tensors.digest(h) == tensors.digest(dict(h)) for h in (one, other, first)] == [True] * 3
    assert (tensors.digest(first), list(first)) == (digest, names)
    assert other.follows(5, first.rounds[-1])
    assert not other.follows(6, one.rounds[5])


def test_two_that_are_brought_the_same_share_their_rounds():
    first = grown(3)
    one, other = first.followed_by(3, told(3)), first.followed_by(3, told(3))
    assert other.rounds[3] is one.rounds[3]
    assert first.followed_by(3, told(3, of="others")).rounds[3] is not one.rounds[3]


def test_a_hundredth_round_is_hashed_with_few_others():
    """Those whose number has fewer digits: they come behind it."""
    history = grown(150)
    history.digest()

    hashed = []

    class Counted:
        def __init__(self, h):
            self.h = h

        def update(self, data):
            if data[-1:] == b"\0" and b"torch." in data:
                hashed.append(bytes(data).partition(b"\0")[0].decode())
            self.h.update(data)

        def copy(self):
            return Counted(self.h.copy())

        def hexdigest(self):
            return self.h.hexdigest()

    history._log.hashed[:] = map(Counted, history._log.hashed)
    history = history.followed_by(150, told(150))
    assert history.digest() == tensors.digest(dict(history))
    again = set(hashed)
    assert {"150.x", "150.y.z", "16.x", "2.x"} <= again
    assert all(name.startswith("150.") or int(name.partition(".")[0]) < 100 for name in again)
    assert len(hashed) == len(again)


def test_it_is_made_of_tensors_in_any_order_and_goes_on_from_there():
    history = grown(23)
    shuffled = list(history.items())
    random.Random(1).shuffle(shuffled)
    made = History.of(dict(shuffled))
    assert [r.version for r in made.rounds] == list(range(23))
    assert grown(25, made).digest() == grown(25, history).digest()
    assert History.of(made) is made
    with pytest.raises(ValueError, match="invalid literal"):
        History.of({"layer.weight": torch.ones(1)})


def test_what_comes_since_a_version_and_what_was_before_it():
    history = grown(12)
    assert list(named(history.since(10))) == ["10.x", "10.y.z", "11.x", "11.y.z"]
    assert not history.since(12)
    assert history.before(12) is history
    assert history.before(4).digest() == grown(4).digest()
    with pytest.raises(ValueError, match="round 11 cannot follow round 11"):
        history.followed_by(11, told(11))


def test_a_copy_is_a_history_of_its_own():
    history = grown(3)
    history.digest()
    made = copy.deepcopy(history)
    assert isinstance(made, History)
    assert made.digest() == history.digest()
    assert made["1.x"] is not history["1.x"]
