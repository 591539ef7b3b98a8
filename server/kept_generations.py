"""Which generations of a run's state stay on its disk."""

KEEP_LAST = 3  # generations: the newest may turn out to be damaged, and the one before


def kept(version: int, newest: int) -> bool:
    """Whether a generation stays on the disk: the last KEEP_LAST, and of older ones fewer the older they are.

    Of those 2^k to 2^(k + 1) rounds old one stays, which is a multiple of 2^k: a run of 1,000 rounds has twelve
    at most. The first state stays for ever.

    >>> [v for v in range(501) if kept(v, 500)]
    [0, 256, 384, 448, 480, 488, 496, 498, 499, 500]
    """
    age = newest - version
    return age < KEEP_LAST or version % 2 ** (age.bit_length() - 1) == 0
