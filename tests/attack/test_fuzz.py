"""Few fuzzed inputs for every decoder that a peer reaches; `fuzz_decoders.py` says how to run a million."""

import importlib
import random
import ssl
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from fedft.carriers.stream import tls
from fedft.security.private_keys import node_bytes


@pytest.fixture
def fuzz(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(Path(__file__).parent)
    return importlib.import_module("fuzz_decoders")


@pytest.mark.parametrize("part", range(4))
def test_whatever_the_bytes_every_decoder_answers_as_it_promises(fuzz: Any, part: int) -> None:
    rng, told = random.Random(part), fuzz.Told()
    found = fuzz.targets(rng)
    for name, target in found.items():
        for data in target.corpus[:2]:
            fuzz.tried(name, target, data, told)
    spoilt = {o for o in told.outcomes if not o.endswith("/ok")}
    assert spoilt <= {"stream/malformed", "report/malformed"}, "good input is good"
    for name in rng.choices(list(found), [t.weight for t in found.values()], k=250):
        fuzz.tried(name, found[name], fuzz.mutated(rng, found[name]), told)
    assert not told.bad, told.bad[0]
    kinds = Counter(o.split("/")[0] for o in told.outcomes.elements())
    assert kinds.keys() == {n.split()[0] for n in found}


def test_a_fault_is_found(fuzz: Any) -> None:
    """A decoder that raises what it must not is counted, and its input is kept."""
    told = fuzz.Told()
    fuzz.tried("broken", fuzz.Target(lambda data: data[99], [b""], 1), b"abc", told)
    assert told.outcomes == {"broken/!!IndexError": 1}
    assert told.bad[0]["hex"] == b"abc".hex()


def test_a_certificate_of_a_version_that_there_is_not_is_nobody_s() -> None:
    """Whoever likes can sign one: the authority's key is known to all. It raised in the network's thread."""
    key = ec.derive_private_key(7, ec.SECP384R1()).public_key()
    good = ssl.PEM_cert_to_DER_cert(tls._certificate(key).decode())
    odd = good.replace(b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x09", 1)
    assert tls.key_of(good) == node_bytes(key)
    assert odd != good
    assert tls.key_of(odd) is None
    assert tls.key_of(b"") is tls.key_of(None) is None
