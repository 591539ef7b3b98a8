"""The versions of the protocol that are spoken here, and the one that two ends agree on.

A version is a number. It covers what comes after HELLO on our carrier (`fedft.carriers.stream.frames`), the seals
(`fedft.security.sealed`, which count on their own) and the messages (`fedft.wire.messages`, whose frame says it). Only
the versions in `SEALS` are read; HELLO, WELCOME and REFUSE have one form in all of them.

    server      2 to 3        site 1 to 2: they speak 2      site 3 to 4: 3      site 4 to 5: refused, update the server

A server speaks with each site the newest version that both know, so sites of unlike versions take part in one run, and
either side may be updated first, one step at a time. Where nobody says HELLO (a SuperLink), the server asks in its
oldest version, and a site answers in that of the question.

The next version, with what has to be touched:

1. here: a line in `SEALS`; the line of the version before the last one goes, so that there are two at most;
2. `fedft.wire.forms`: a line in `FORMS`, the header's fields in that version; a sentence in `fedft.wire.messages`;
3. what else is new in it (a seal, a frame, bytes of a codec), where that is read and written, by the version's number;
4. `tests/fixtures/write.py`, run once more: what this version wrote is read for as long as it is spoken;
5. a line in `CHANGELOG.md`, and the vectors of `tests/wire` and `tests/security` as they are.

`tests/support/next_version.py` is such a version, installed in one of two ends by the tests.
"""

SEALS = {2: 1}
"""Version of the seals by version of the protocol; the newest two versions at most, oldest first."""


def oldest() -> int:
    """The oldest version that is spoken here."""
    return min(SEALS)


def newest() -> int:
    """The newest version that is spoken here, in which everything is written unless a peer is older."""
    return max(SEALS)


def common(from_: int, to: int) -> int | None:
    """The newest version that is spoken here and by a peer who speaks `from_` to `to`; None if there is none."""
    return max((v for v in SEALS if from_ <= v <= to), default=None)


def told(from_: int, to: int) -> str:
    """Versions in words.

    >>> told(2, 3), told(2, 2)
    ('protocol 2 to 3', 'protocol 2')
    """
    return f"protocol {from_}" if from_ == to else f"protocol {from_} to {to}"


def here() -> str:
    """The versions that are spoken here, in words."""
    return told(oldest(), newest())


def older(theirs: int, ours: str, peer: str) -> str:
    """Which side has to be updated: `ours` where `theirs`, a version of the peer's, is newer than all of ours."""
    return ours if theirs > newest() else peer
