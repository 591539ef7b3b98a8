"""Bytes, counts and durations as short text."""


def size(n: int) -> str:
    """A number of bytes as text, in powers of ten.

    >>> size(17_300), size(999)
    ('17.3 kB', '999 B')
    """
    value, unit = float(n), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"


def count(n: int) -> str:
    """A number of things as text, from a million on in powers of ten.

    >>> count(112_640), count(1_240_000), count(7_000_000_000)
    ('112,640', '1.2 M', '7.0 G')
    """
    return f"{n:,}" if n < 10**6 else f"{n / 1e6:.1f} M" if n < 10**9 else f"{n / 1e9:.1f} G"


def duration(seconds: float) -> str:
    """Seconds as text, in the unit that a person would say.

    >>> duration(8.4), duration(400), duration(9000)
    ('8 s', '7 min', '2.5 h')
    """
    return (
        f"{seconds:.0f} s"
        if seconds < 120
        else f"{seconds / 60:.0f} min"
        if seconds < 7200
        else f"{seconds / 3600:.1f} h"
    )
