"""Room for messages on their way in: bounded, in order, and any message finds some in the end."""

import random

from fedft.carriers.stream.room import Room


def test_places_are_given_in_order_and_stay_within_the_bound_beside_the_largest() -> None:
    rng, given = random.Random(3), list[int]()
    sizes = [rng.choice([1, 10, 60, 500]) for _ in range(300)]
    room, held = Room(100), dict[int, int]()

    def take(key: int) -> None:
        given.append(key)
        held[key] = sizes[key]
        assert sum(held.values()) - max(held.values()) <= 100

    for key, size in enumerate(sizes):
        room.ask(key, size, lambda key=key: take(key))  # type: ignore[misc]
        while len(held) > rng.randrange(1, 5):
            done = rng.choice(list(held))
            del held[done]
            room.free(done)
    while held:
        done, _ = held.popitem()
        room.free(done)
    assert given == list(range(300))
    assert not room.crowded()


def test_who_no_longer_waits_is_passed_over() -> None:
    room, given = Room(10), list[str]()
    for key in ("a", "b", "c"):
        room.ask(key, 11, lambda key=key: given.append(key))  # type: ignore[misc]
    assert given == ["a"]
    assert room.crowded()
    room.free("b")
    room.free("a")
    assert given == ["a", "c"]


def test_who_has_a_place_gets_it_again() -> None:
    room, given = Room(10), list[str]()
    for _ in range(3):
        room.ask("a", 11, lambda: given.append("a"))
    room.free("a")
    room.ask("b", 12, lambda: given.append("b"))
    assert given == ["a", "a", "a", "b"]
