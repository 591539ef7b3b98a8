"""What a run's lines say of the noise that its clients add: epsilon of the client that has paid most, or why not.

In a simulation the clients' own accounts are at hand. To the server of a deployment they are not, and it says what is
public: of noise on whole updates the rounds and z are, of noise on records the probability is not, which tells how many
rows a site has.
"""

import logging
from typing import Any

from fedft.privacy import accountant
from fedft.privacy.tables import SEEDED, Privacy

log = logging.getLogger(__name__)

BEYOND = "epsilon {:g} was for {} rounds, and more of them cost more; each site keeps its own account"
OWN = "each site keeps its own account, which depends on how many rows it has"


def say_what_is_not_measured(privacy: Privacy) -> None:
    """Log, at the server of a deployment, that no line of its run will have a loss; `[eval]` asks nobody."""
    if privacy.at_clients:
        said = "[privacy] mode = %r: sites measure nothing for a server; `fedft eval` measures the model on public rows"
        log.warning(said, privacy.mode)
    elif privacy.secagg != "off" and privacy.evaluate == "none":
        measured = "`fedft eval` measures the model on public rows"
        if not privacy.on:
            measured += ", and [privacy] evaluate = 'summed' the mean of all sites"
        log.warning("[privacy] secagg = %r: sites measure nothing for a server; %s", privacy.secagg, measured)


def said(privacy: Privacy, rounds: int, largest: float | None, planned: int) -> dict[str, Any]:
    """The keys "epsilon" and "delta" of a line, or "epsilon_why" where epsilon is None.

    Args:
        privacy: the run's; its mode has noise at clients.
        rounds: that are over.
        largest: what the client that has spent most has spent in this run; None: its clients alone know.
        planned: rounds that its epsilon is for.
    """
    if privacy.noise == "seeded":
        return {"epsilon": None, "epsilon_why": SEEDED}
    delta = privacy.delta or 0.0
    if largest is not None:
        return {"epsilon": largest, "delta": delta}
    if privacy.mode == "local-dp" and privacy.noise_multiplier is not None:
        spent = accountant.epsilon([accountant.of_whole_updates(privacy.noise_multiplier, rounds)], delta)
        return {"epsilon": spent, "delta": delta}
    if privacy.epsilon is not None and rounds > planned:
        return {"epsilon": None, "epsilon_why": BEYOND.format(privacy.epsilon, planned)}
    if privacy.epsilon is not None:  # whatever its rows, each site has the noise that all rounds need
        return {"epsilon": privacy.epsilon, "delta": delta}
    return {"epsilon": None, "epsilon_why": OWN}
