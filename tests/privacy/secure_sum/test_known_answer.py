"""fedft-secagg/1: the known answers of its definition, value by value."""

import numpy as np
import pytest
from secure_blocks import RUN

from fedft.privacy.secure_sum import derived_keys, ring, shamir
from fedft.privacy.secure_sum.context import Context, Spec, context_of, members, roster_digest, spec_of, threshold

KEYS = (
    "ffe42279f3bd068366a852c1bb9651f3cd18ec08f6a4e724d26facd2aeb0daf2",
    "a972cd3fa02fd44f487078de451f5f6c246dee453351e4d3ca3aca414c46c168",
    "2afad1a4022cb28c6202f315321d0e07353297dd2e3ce6c0a49c7fd69ac2c389",
    "48994ad13a4c69540ad5e273a876d6c94519b91f242d9e4d2e0cda1f0c701874",
    "0b8216fa818e50225db52062a5693267552564e784a41534ecfd938092f72643",
)
CARDS = {f"site-{i}": bytes.fromhex(key) for i, key in enumerate(KEYS, 1)}
SPEC = Spec(24, 1.0, 32, (("w", (4,)),))
CONTEXT = context_of(RUN, 3, CARDS, SPEC)
A1 = bytes.fromhex("b071525847190ce5ca8503ccda2c376c3a2057936d9be9965c9e10e4620545")
A2 = bytes.fromhex("3fbd79b61a30d4982c036c5738e1edeaaa3109fb139a8bb0d8bcaf5bea5b17")
B1 = bytes.fromhex("86b1c212db0c0da91e36a2446d83dc3e5e76f2adb087bdc4dd2573e3e05030")
SLOT = 1


def test_context() -> None:
    assert SPEC.json() == b'{"bits":24,"clip":1.0,"ring":32,"tensors":[["w",[4]]],"weights":"uniform"}'
    assert SPEC.digest.hex() == "24de98f9dcf524e54b36664e4fb8a204adacde36ec0c2759970edf9f28fded5b"
    assert roster_digest(CARDS).hex() == "84a7976ca3a6d1812ff1b9e851fe733af44377828964266853bbccd88d82bb59"
    assert Context(RUN, 3, roster_digest(CARDS), 5, 4, SPEC.digest, 32) == CONTEXT
    assert CONTEXT.digest.hex() == "6a89878a3c163395324995b3696c056c7240670f02308930e4188566ef740b11"


def test_the_key_and_the_mask_of_a_pair_are_the_same_at_both() -> None:
    assert derived_keys.public(A1).hex() == "e651f58e2209b939d06df3e96ecb208029abe3a570e6a473c0a175edf292c445"
    for mine, others in ((A1, A2), (A2, A1)):
        shared = derived_keys.agreed(derived_keys.exchange_key(mine), derived_keys.public(others))
        key = derived_keys.mask_key(shared, CONTEXT.digest, SLOT)
        assert key.hex() == "26e2cb94872cc387dabd108ba0bc911b8f9b52b0af809bc8248365f0a63bdbc3"
        words = np.zeros(4, np.uint32)
        ring.add_masks(words, [(key, False)])
        assert words.tolist() == [3750609495, 1727647244, 2097040722, 2287148240]
        halves = np.zeros(8, np.uint16)
        ring.add_masks(halves, [(key, True)])
        assert (-halves).view(np.uint32).tolist() == words.tolist(), "of a ring of 16 bits the same stream"


def test_the_key_of_a_self_mask_and_of_a_box() -> None:
    key = derived_keys.self_key(B1, CONTEXT.digest, SLOT)
    assert key.hex() == "42b7015ddb6d7eac4244cb4e0ee55900f70f8ec7006769b8ebb077212b5508f3"
    one, two = bytes(range(31)), bytes(range(1, 32))
    shared = derived_keys.agreed(derived_keys.exchange_key(one), derived_keys.public(two))
    key = derived_keys.box_key(shared, CONTEXT.digest, 1, 2)
    assert key.hex() == "7fc1cd2dd37d4cb4f914e6a7cc6bd46702cedcefbc44bac339f7ced7272dcbbd"
    assert derived_keys.box_key(shared, CONTEXT.digest, 2, 1) != key


def test_weak_keys_are_those_that_agree_on_zero_with_everybody() -> None:
    key, high = derived_keys.exchange_key(A1), 1 << 255
    for u in derived_keys._SMALL_ORDER:
        for point in {u, u | high, *({u + shamir.P} if u + shamir.P < high else ())}:
            said = point.to_bytes(32, "little")
            assert derived_keys.weak(said)
            with pytest.raises(ValueError, match="shared key"):
                derived_keys.agreed(key, said)
    assert not any(derived_keys.weak(derived_keys.public(bytes((i,)) * 31)) for i in range(50))


def test_fixed_point() -> None:
    x, v = np.array([0.3, 0.3, 5.0, -5.0]), np.array([0.5, 0.95, 0.5, 0.5])
    q, cut = ring.rounded(x, 1.0, 4, v)
    assert (q.tolist(), cut) == ([2, 3, 7, -7], 2)


def test_small_shares() -> None:
    assert shamir.shares(7, [3, 5], 3) == [15, 33, 61]
    assert shamir.at_zero([1, 2, 3]) == [3, shamir.P - 3, 1]
    assert shamir.rebuilt([15, 33, 61], [3, shamir.P - 3, 1]) == 7


def test_names_go_by_their_bytes() -> None:
    assert members({"b": b"", "a": b"", "é": b"", "z": b"", "B": b""}) == ("B", "a", "b", "z", "é")


def test_a_spec_is_read_back_and_room_is_what_the_ring_has() -> None:
    several = Spec(11, (0.5, 2.0), 16, (("a", (2, 3)), ("b", ())))
    assert spec_of(several.json()) == several
    assert (several.length, several.largest, several.clips) == (7, 1023, (0.5, 2.0))
    for wanted, most in ((SPEC, 255), (several, 31)):
        wanted.check_fits(most)
        with pytest.raises(ValueError, match=f"room for {most} clients"):
            wanted.check_fits(most + 1)
    for n in range(3, 129):
        assert 3 * threshold(n) > 2 * n >= 3 * (threshold(n) - 1)


@pytest.mark.parametrize(
    "broken",
    [
        {"bits": 25}, {"bits": 1}, {"clip": 0.0}, {"clip": float("nan")}, {"clip": (1.0, 1.0)}, {"ring": 64},
        {"tensors": ()}, {"tensors": (("w", (0,)),)}, {"tensors": (("w", (-2, -2)),)}, {"weights": "counted"},
    ],
)  # fmt: skip
def test_what_is_no_vector_is_refused(broken: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"expected|wanted|no entry"):
        Spec(**{**vars(SPEC), **broken})  # type: ignore[arg-type]


@pytest.mark.parametrize("broken", [{"run": "xy"}, {"n": 2, "t": 2}, {"n": 129, "t": 87}, {"t": 3}, {"block": -1}])
def test_what_is_no_block_is_refused(broken: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="expected"):
        Context(**{**vars(CONTEXT), **broken})  # type: ignore[arg-type]
