"""What a server cannot do beside noise on its sums, found before there is a folder; see `fedft.privacy.unfit`, too."""

import logging

from fedft.config import Limits, RunConfig, budget_of
from fedft.errors import ConfigError
from fedft.privacy import accountant
from fedft.privacy.accountant import Release

log = logging.getLogger(__name__)


def check(config: RunConfig, deployed: bool) -> None:
    """Raise ConfigError, in one line, where `[privacy] mode = "central-dp"` is asked for and cannot be had."""
    said = config.privacy
    if said.mode != "central-dp":
        return
    where = '[privacy] mode = "central-dp"'
    for key, why in _refused(config, deployed).items():
        raise ConfigError(f"{where} and {key}: {why}")
    if config.limits.norm_factor != Limits().norm_factor:
        log.warning("[limits] norm_factor has no effect under %s: norms of others decide about nobody", where)
    if said.evaluate == "noisy" and not deployed:
        log.warning('[privacy] evaluate = "noisy" is of deployments: a simulation measures as ever, outside of epsilon')
    most = said.max_epsilon
    if deployed and not said.shared and said.epsilon is not None and most is not None and most > said.epsilon:
        raise ConfigError(
            f"[privacy] max_epsilon = {most:g} is above epsilon = {said.epsilon:g}, which is what the sites have "
            "booked for the run; wanted at most that, or noise_multiplier, of which they book each round"
        )
    if said.noise == "os" or said.epsilon is not None or said.max_epsilon is not None:
        accountant.epsilon([Release(1.0)], 0.1)  # or the first round would find out that there is no accountant


def _refused(config: RunConfig, deployed: bool) -> dict[str, str]:
    """Why it cannot be had with a key of the run file, by key."""
    server, found = config.server, dict[str, str]()
    if server.archive:
        found["[server] archive"] = "it keeps the updates, and noise whose sum is known hides nothing; leave it out"
    if server.budget is not None and budget_of(server.budget)[0] == "bytes":
        found["[server] budget"] = "bytes of single clients are not written down; wanted steps or seconds"
    if server.budget is not None and config.privacy.cohort == "poisson" and budget_of(server.budget)[0] == "seconds":
        found["[server] budget"] = "with secret coins seconds, which tell how many are in a round, are not said"
    if config.clients.devices is not None and not deployed:
        found["[clients.devices]"] = "their seconds go by bytes of single clients, which are not written down"
    return found
