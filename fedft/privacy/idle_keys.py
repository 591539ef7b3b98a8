"""Keys of `[privacy]` that are said and count for nothing beside the others: the likely reason is a mode left out."""

from fedft.privacy.tables import Privacy, unlike_default

CENTRAL = ("cohort", "adaptive_quantile", "clip_learning_rate", "balance")
SECURE = ("value_bits", "ring_bits", "range", "min_cohort")
ANYWHERE = ("mode", "secagg", "noise")


def lines(privacy: Privacy) -> list[str]:
    """One line for each such key: its value, and what would give it a meaning.

    >>> lines(Privacy(epsilon=8.0))
    ["[privacy] epsilon = 8.0 has no effect: mode = 'none', nothing is hidden"]
    """
    found = []
    for key, value in unlike_default(privacy).items():
        why = ""
        if key == "range" and privacy.shared:
            why = "clip says how far a number of an update may go"
        elif key in SECURE:
            why = "secagg = 'off', there are no secure sums" if privacy.secagg == "off" else ""
        elif key not in ANYWHERE and not privacy.on and value != "summed":
            why = "mode = 'none', nothing is hidden"
        elif key in CENTRAL and privacy.mode != "central-dp":
            why = f"it is of mode = 'central-dp', this is {privacy.mode!r}"
        elif key == "clip_learning_rate" and privacy.adaptive_quantile is None:
            why = "the clip follows nothing without adaptive_quantile"
        if why:
            found.append(f"[privacy] {key} = {value!r} has no effect: {why}")
    return found
