"""Sites that lie: the server refuses each lie by its code, and goes on with the others; or there is no sum."""

from collections.abc import Callable

import numpy as np
import pytest
from secure_blocks import begun, copied, set_up, signed, spec, vectors

from fedft.errors import RejectedUpdate
from fedft.privacy.secure_sum import messages
from fedft.privacy.secure_sum.messages import Step

SPEC = spec(4)
FRAME = messages.FRAME_BYTES
Act = Callable[[], object]


def refused(code: str, act: Act) -> None:
    """The act is refused by its code."""
    with pytest.raises(RejectedUpdate) as found:
        act()
    assert found.value.code == code, found.value


def test_keys_that_do_not_fit() -> None:
    sites = begun(5, SPEC)
    block, m = sites.block, sites.members
    theirs = m["site-4"].entry.keys
    doubled = messages.write(
        Step.KEYS, block.context, signed(block, 4, (m["site-1"].entry.keys[3], *theirs[1:])).body()
    )
    weak = messages.write(Step.KEYS, block.context, signed(block, 4, ((1).to_bytes(32, "little"), *theirs[1:])).body())
    block.took_keys("site-1", m["site-1"].keys())
    block.took_keys("site-1", m["site-1"].keys())
    lies: list[tuple[str, Act]] = [
        ("secagg_roster", lambda: block.took_keys("site-4", m["site-5"].keys())),
        ("secagg_roster", lambda: block.took_keys("nobody", m["site-5"].keys())),
        ("secagg_context", lambda: block.took_keys("site-4", doubled)),
        ("secagg_context", lambda: block.took_keys("site-4", weak)),
        ("secagg_context", lambda: block.took_keys("site-4", begun(5, SPEC, 4).members["site-4"].keys())),
        ("equivocation", lambda: block.took_keys("site-1", begun(5, SPEC).members["site-1"].keys())),
        ("secagg_threshold", block.book),
    ]
    for code, act in lies:
        refused(code, act)
    for name in ("site-2", "site-3", "site-4"):
        block.took_keys(name, m[name].keys())
    block.book()
    refused("late", lambda: block.took_keys("site-5", m["site-5"].keys()))
    block.took_keys("site-1", m["site-1"].keys())


def test_shares_and_readiness_at_the_wrong_time() -> None:
    sites = begun(5, SPEC)
    block, m = sites.block, sites.members
    for name in ("site-1", "site-2", "site-3", "site-4"):
        block.took_keys(name, m[name].keys())
    shares = {name: m[name].shares(block.book())[1] for name in [*m][:4]}
    refused("secagg_context", lambda: block.took_shares("site-5", shares["site-1"]))
    refused("malformed", lambda: block.took_shares("site-1", shares["site-1"][:-1]))
    refused("secagg_threshold", lambda: block.deliver("site-1"))
    for name, said in shares.items():
        block.took_shares(name, said)
    refused("equivocation", lambda: block.took_shares("site-1", shares["site-2"]))
    refused("late", lambda: block.deliver("site-5"))
    ready = messages.write(Step.READY, block.context)
    refused("secagg_context", lambda: block.took_ready("site-5", ready))
    refused("malformed", lambda: block.took_ready("site-1", ready + b"!"))
    block.took_shares("site-1", shares["site-1"])
    assert block.ready == ()
    block.took_ready("site-1", ready)
    assert block.ready == ("site-1",)


def test_openings_of_those_who_were_not_asked() -> None:
    sites = set_up(begun(5, SPEC))
    y = sites.masked(3, vectors(sites.members, SPEC))
    four = [n for n in y if n != "site-5"]
    said = sites.members["site-1"].opened(sites.block.unmask(3, four))[1]
    refused("secagg_context", lambda: sites.block.took_opening(3, "site-5", said))
    refused("secagg_context", lambda: sites.block.took_opening(4, "site-1", said))
    refused("malformed", lambda: sites.block.took_opening(3, "site-1", said[:-32] + bytes(32)))
    sites.block.took_opening(3, "site-1", said)
    with pytest.raises(ValueError, match="has the survivors"):
        sites.block.unmask(3, y)
    with pytest.raises(ValueError, match="of the dealers"):
        sites.block.unmask(16, four)


def test_shares_that_do_not_fit_together_are_out_of_range() -> None:
    """A survivor that opens rubbish ruins the sum, and nothing is committed."""
    sent = set_up(begun(5, SPEC))
    q = {n: x for n, x in vectors(sent.members, SPEC).items() if n != "site-5"}
    for at, lie in ((0, 7), (4, 7)):
        sites = copied(sent)
        y = sites.masked(6, q)
        sites.opened(6, q, ["site-1", "site-2", "site-3"])
        _, said = sites.members["site-4"].opened(sites.block.unmask(6, q))
        start = FRAME + 32 * at
        sites.block.took_opening(6, "site-4", said[:start] + lie.to_bytes(32, "little") + said[start + 32 :])
        with pytest.raises(RejectedUpdate) as found:
            sites.block.sum(6, y)
        assert found.value.code == "secagg_out_of_range"
        with pytest.raises(RejectedUpdate, match="something else before"):
            sites.block.took_opening(6, "site-4", said)


def test_a_vector_out_of_range_is_found() -> None:
    """With few entries by its size; nobody can say whose it was."""
    sites = set_up(begun(5, SPEC))
    y = sites.masked(0, vectors(sites.members, SPEC))
    sites.opened(0, y, y)
    y["site-1"] = y["site-1"] + np.uint32(2**30)
    with pytest.raises(RejectedUpdate, match="no sum of integers") as found:
        sites.block.sum(0, y)
    assert found.value.code == "secagg_out_of_range"
