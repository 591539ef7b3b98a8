"""What the rows of a site have cost in privacy so far, over all runs: for its operator alone, see `fedft site runs`."""

from pathlib import Path
from typing import Any

from fedft.client.privacy_ledger import Ledger
from fedft.client.site_settings import SiteConfig
from fedft.privacy import accountant


def spent(site: SiteConfig) -> dict[str, Any] | None:
    """epsilon at `[policy] delta` of one record, in how many runs, and what the policy allows; None before the first.

    A server never hears it: it tells how many rows there are. Raises StateDamaged where the ledger was lost.
    """
    book, policy = Ledger(Path(site.site.state)).read(), site.policy
    if not book.runs:
        return None
    epsilon = accountant.epsilon(book.releases, policy.delta)
    promised = sum(not c.key for c in book.charges)
    return {
        "epsilon": epsilon,
        "delta": policy.delta,
        "max_epsilon": policy.max_epsilon,
        "runs": len(book.runs),
        "turns": len(book.charges),
        "promised": promised,
    }


def in_words(said: dict[str, Any]) -> str:
    """What `spent` gives, in a line."""
    promised = f", {said['promised']} of them with a server's promise of noise" if said["promised"] else ""
    most = "no most is set" if said["max_epsilon"] is None else f"[policy] max_epsilon = {said['max_epsilon']:g}"
    turns = f"{said['turns']} turns in {said['runs']} run{'s' * (said['runs'] != 1)}{promised}"
    return f"epsilon {said['epsilon']:.4g} at delta {said['delta']:g}, of {turns}; {most}"
