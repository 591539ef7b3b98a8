"""Sealed messages: what opens is what was sent, by whom and about what; all else is refused, whatever the bytes."""

import hashlib
import random
import time
from collections.abc import Callable
from dataclasses import FrozenInstanceError, fields, replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from hypothesis import given, settings
from hypothesis import strategies as st

from fedft.errors import RejectedUpdate
from fedft.security import sealed
from fedft.security.sealed import OVERHEAD, About, Kind, Opened, open_sealed, seal

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
OTHER = Ed25519PrivateKey.from_private_bytes(bytes(32))
PAYLOAD = b"what the server asks" * 3
ABOUT = About("0123456789abcdef", 7, 1, "clinic-1", sealed.digest(b"a plan"))
MESSAGE = seal(Kind.ANSWER, ABOUT, PAYLOAD, KEY)
FROZEN = (
    "1c2f36f55608795cb53af6a4bafda3a34229ceeff61443685acb99268c20df78"
    "43c545578a08ca742e330246d536683f4d2b1cf97703e4e7211c91a2714d280b"
)
CODES = {"bad_magic", "version", "malformed", "bad_signature", "unknown_client", "revoked"}


def anybody(name: str) -> Ed25519PublicKey:
    """The worst case: every name has this key, so that nothing but the signature can refuse."""
    return KEY.public_key()


def only(site: str) -> Callable[[str], Ed25519PublicKey]:
    def key_of(name: str) -> Ed25519PublicKey:
        if name != site:
            raise RejectedUpdate("unknown_client", name)
        return KEY.public_key()

    return key_of


def refusal(data: bytes, key_of: Callable[[str], Ed25519PublicKey] = anybody) -> str:
    with pytest.raises(RejectedUpdate) as caught:
        open_sealed(data, key_of)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
    return caught.value.code


def test_the_format_is_frozen() -> None:
    """Ed25519 is deterministic: these bytes were written by protocol 1 and must open for as long as it is spoken."""
    fields_ = "4644534501000b080123456789abcdef0700000001000000" + hashlib.sha256(b"a plan").hexdigest()
    name, payload = b"clinic-1".ljust(64, b"\0").hex(), PAYLOAD.hex()
    signature = MESSAGE[56:120].hex()
    assert MESSAGE.hex() == fields_ + signature + name + payload
    assert signature == FROZEN
    signed = b"fedft sealed 1\0" + bytes.fromhex(fields_) + b"clinic-1" + hashlib.sha256(PAYLOAD).digest()
    KEY.public_key().verify(bytes.fromhex(signature), signed)


def allowed(name: str) -> bool:
    try:
        return sealed.site_name(name) == name
    except ValueError:
        return False


@given(
    st.sampled_from(Kind),
    st.builds(
        About,
        st.text("0123456789abcdef", min_size=16, max_size=16),
        st.integers(0, 2**32 - 1),
        st.integers(0, 2**32 - 1),
        st.text(min_size=1, max_size=20).filter(allowed),
        st.binary(min_size=32, max_size=32),
    ),
    st.binary(max_size=200),
)
@settings(deadline=None, max_examples=200)
def test_what_was_sealed_opens_as_it_was(kind: Kind, about: About, payload: bytes) -> None:
    data = seal(kind, about, payload, KEY)
    assert open_sealed(data, only(about.site)) == Opened(kind, about, payload, sealed.digest(payload), 1)
    assert len(data) == len(payload) + OVERHEAD
    assert data[OVERHEAD:] == payload, "at the same place, whatever the name"


def test_the_longest_name_takes_all_of_the_overhead() -> None:
    about = replace(ABOUT, site="é" * 32)
    data = seal(Kind.JOB, about, b"", KEY)
    assert len(data) == OVERHEAD
    assert open_sealed(data, anybody) == Opened(Kind.JOB, about, b"", sealed.digest(b""), 1)


def test_any_flipped_bit_is_refused() -> None:
    for i in range(len(MESSAGE)):
        for bit in range(8):
            changed = bytearray(MESSAGE)
            changed[i] ^= 1 << bit
            assert refusal(bytes(changed)) in CODES - {"unknown_client", "revoked"}


def test_any_byte_in_place_of_another_is_refused() -> None:
    """All 255 others at the places where a message says how it is read."""
    for i in range(8):
        for value in set(range(256)) - {MESSAGE[i]}:
            refusal(MESSAGE[:i] + bytes([value]) + MESSAGE[i + 1 :])


def test_any_truncation_or_addition_is_refused() -> None:
    for n in range(len(MESSAGE)):
        refusal(MESSAGE[:n])
        refusal(MESSAGE[n + 1 :])
    refusal(MESSAGE + b"\0")
    refusal(b"\0" + MESSAGE)


def test_mutated_messages_are_refused() -> None:
    """10,000 of them: up to four times some bytes replaced by others, not necessarily as many."""
    draw = random.Random(0)
    for _ in range(10_000):
        changed = bytearray(MESSAGE)
        for _ in range(draw.randint(1, 4)):
            at = draw.randint(0, len(changed))
            changed[at : at + draw.choice((0, 1, 1, 2, 8, 64))] = draw.randbytes(draw.choice((0, 1, 1, 2, 8, 64)))
        if changed != MESSAGE:
            assert refusal(bytes(changed)) in CODES


@given(st.binary(max_size=300), st.booleans())
@settings(deadline=None, max_examples=1000)
def test_strangers_bytes_are_refused_and_nothing_else_happens(data: bytes, magic: bool) -> None:
    assert refusal(b"FDSE\1\0" + data if magic else data) in CODES


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda m: b"", "bad_magic"),
        (lambda m: b"FDSF" + m[4:], "bad_magic"),
        (lambda m: m[:4], "malformed"),
        (lambda m: m[:4] + b"\2\0" + m[6:], "version"),
        (lambda m: m[:4] + b"\0\0" + m[6:], "version"),
        (lambda m: m[:4] + b"\2\0", "version"),  # said also by what is too short for protocol 1
        (lambda m: m[:119], "malformed"),
        (lambda m: m[:120], "malformed"),  # no name
        (lambda m: m[:6] + b"\7" + m[7:], "malformed"),  # no such kind
        (lambda m: m[:7] + b"\0" + m[8:], "malformed"),  # a name of no bytes
        (lambda m: m[:7] + b"\x41" + m[8:] + bytes(64), "malformed"),  # a name of 65
        (lambda m: m[:120] + b"\xff" + m[121:], "malformed"),  # not UTF-8
        (lambda m: m[:120] + b"../clini" + m[128:], "malformed"),
        (lambda m: m[:120] + b"\x1b[2Jclin" + m[128:], "malformed"),  # a name that would act on a terminal
        (lambda m: m[:60] + bytes([m[60] ^ 1]) + m[61:], "bad_signature"),
        (lambda m: m[:56] + bytes(64) + m[120:], "bad_signature"),
        (lambda m: m[:-1], "bad_signature"),
        (lambda m: m[:120] + b"clinic-2" + m[128:], "bad_signature"),
    ],
)
def test_a_refusal_carries_its_code(change: Callable[[bytes], bytes], code: str) -> None:
    assert refusal(change(MESSAGE)) == code


OTHERS: dict[str, Any] = {
    "run": "0123456789abcdee",
    "round": 8,
    "attempt": 2,
    "site": "clinic-2",
    "plan": sealed.digest(b"another plan"),
}


def _with_signature_of(message: bytes) -> Callable[[bytes], bytes]:
    return lambda other: other[:56] + message[56:120] + other[120:]


def test_others_cover_all_that_a_message_is_about() -> None:
    assert set(OTHERS) == {f.name for f in fields(About)}


@pytest.mark.parametrize("field", OTHERS)
def test_the_signature_of_one_message_is_none_for_another(field: str) -> None:
    """A message that differs in one field, with the genuine signature of its twin."""
    other = seal(Kind.ANSWER, replace(ABOUT, **{field: OTHERS[field]}), PAYLOAD, KEY)
    assert open_sealed(other, anybody).about != ABOUT
    assert refusal(_with_signature_of(MESSAGE)(other)) == "bad_signature"


@pytest.mark.parametrize("kind", [k for k in Kind if k is not Kind.ANSWER])
def test_the_signature_binds_the_kind(kind: Kind) -> None:
    other = seal(kind, ABOUT, PAYLOAD, KEY)
    assert refusal(_with_signature_of(MESSAGE)(other)) == "bad_signature"


def test_the_signature_binds_the_payload() -> None:
    other = seal(Kind.ANSWER, ABOUT, PAYLOAD[::-1], KEY)
    assert refusal(_with_signature_of(MESSAGE)(other)) == "bad_signature"


def test_the_line_between_name_and_payload_cannot_move() -> None:
    """The same bytes, read as a shorter or longer name."""
    assert refusal(MESSAGE[:7] + bytes([MESSAGE[7] - 1]) + MESSAGE[8:]) == "malformed"
    assert refusal(MESSAGE[:7] + bytes([MESSAGE[7] + 1]) + MESSAGE[8:]) in ("malformed", "bad_signature")


def test_a_message_for_one_site_does_not_open_as_another_s() -> None:
    assert refusal(MESSAGE, only("clinic-2")) == "unknown_client"
    assert refusal(MESSAGE[:120] + b"clinic-2" + MESSAGE[128:], only("clinic-2")) == "bad_signature"


def test_a_message_opens_with_its_sender_s_key_only() -> None:
    assert refusal(seal(Kind.ANSWER, ABOUT, PAYLOAD, OTHER)) == "bad_signature"


def test_what_a_roster_refuses_stays_as_the_roster_said() -> None:
    def revoked(name: str) -> Ed25519PublicKey:
        raise RejectedUpdate("revoked", name)

    assert refusal(MESSAGE, revoked) == "revoked"


def test_nobody_is_looked_up_for_what_is_no_message() -> None:
    def never(name: str) -> Ed25519PublicKey:
        raise AssertionError(name)

    for data in (b"", MESSAGE[:119], b"x" + MESSAGE, MESSAGE[:120] + b"\0" * 8 + MESSAGE[128:]):
        refusal(data, never)


@pytest.mark.parametrize(
    "wrong",
    [
        {"run": "0123456789abcde"},
        {"run": "0123456789abcdef0"},
        {"run": "0123456789ABCDEF"},
        {"run": "0123456789abcde\n"},
        {"round": -1},
        {"round": 2**32},
        {"round": True},
        {"round": 1.0},
        {"attempt": -1},
        {"attempt": 2**32},
        {"site": ""},
        {"site": "é" * 33},
        {"site": "a/b"},
        {"site": "a\\b"},
        {"site": ".."},
        {"site": " a"},
        {"site": "a\n"},
        {"site": "\ud800"},
        {"site": "a\u202eb"},  # would be shown from right to left
        {"plan": b""},
        {"plan": bytes(33)},
        {"plan": "0" * 32},
    ],
    ids=repr,
)
def test_what_has_no_place_in_the_format_is_our_own_mistake(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected") as caught:
        replace(ABOUT, **wrong)
    str(caught.value).encode()


def test_an_opened_message_does_not_change() -> None:
    with pytest.raises(FrozenInstanceError):
        open_sealed(MESSAGE, anybody).about.round = 8  # type: ignore[misc]


def test_100_megabytes_take_less_than_a_second_each_way() -> None:
    """SHA-256 and one copy; the bound leaves room for a machine without instructions for SHA."""
    payload = bytes(100_000_000)
    began = time.process_time()
    data = seal(Kind.ANSWER, ABOUT, payload, KEY)
    between = time.process_time()
    assert open_sealed(data, anybody).payload == payload
    assert between - began < 1
    assert time.process_time() - between < 1
