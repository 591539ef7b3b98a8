"""Which robust rules a strategy can have, and what of a run file does not go with one."""

import logging
from math import ceil

from fedft.arithmetic.named_pairs import A_SUFFIX, B_SUFFIX
from fedft.config import RunConfig
from fedft.contract import Layout
from fedft.errors import ConfigError
from fedft.recipe import LoRA, Recipe, as_it_is
from fedft.update import Plan

log = logging.getLogger(__name__)

BY_WEIGHT = ("norm_clip", "multi_krum", "geometric_median", "fltrust")
"""Rules that weigh clients by distances between their changes."""
BY_ENTRY = ("median", "trimmed_mean")


def rules_for(recipe: Recipe) -> tuple[str, ...]:
    """The names of the rules that can take the place of the strategy's mean; none where there is no such mean.

    Entry by entry only where one factor of a pair is sent at a time, or no pairs are: what an entry of one factor means
    depends on the other. Of strategies that weigh clients by other things than examples only the rule that chooses.
    """
    if recipe.upload_kind == "numbers":
        if not recipe.linear:
            return ()
        dense = recipe.summand is not as_it_is  # lists of scalars of one pool, whose places mean the same for all
        return ("norm_clip", *BY_ENTRY) if dense else ("norm_clip",)
    pairs, rules = _sends_pairs(recipe), tuple[str, ...]()
    if recipe.linear:
        rules = BY_WEIGHT if pairs else (*BY_WEIGHT, *BY_ENTRY)
    elif recipe.upload_kind == "values" and pairs and type(recipe.space) is LoRA and not recipe.personal:
        rules = BY_WEIGHT if recipe.weighs_by_examples else ("multi_krum",)
    return tuple(r for r in rules if r != "fltrust" or not recipe.keeps)


def check(config: RunConfig, recipe: Recipe, deployed: bool) -> None:
    """Raise ConfigError, in one line, where a robust sum is asked for and cannot be had."""
    robust, rule = config.robust, config.robust.rule
    for key, of in (("f", "multi_krum"), ("root", "fltrust")):
        if getattr(robust, key) is not None and rule != of:
            raise ConfigError(f"[robust] {key} is of rule = {of!r}, found rule = {rule!r}; leave it out")
    if rule == "none":
        return
    where = f"[robust] rule = {rule!r}"
    if rule not in (can := rules_for(recipe)):
        others = f"it can have {', '.join(can)}" if can else "it can have none; PRIVACY.md says which strategies can"
        raise ConfigError(f"{where}: {recipe.name} cannot have it as it is set; {others}")
    if rule == "fltrust" and robust.root is None:
        raise ConfigError(f"{where} needs [robust] root: records that the server trains on itself, as [data] train")
    if config.privacy.on:
        mode = f"[privacy] mode = {config.privacy.mode!r}"
        if rule == "fltrust":
            raise ConfigError(f"{where}: the server's own turn takes no part in {mode}")
        log.warning("%s, %s: noise brings honest updates apart, and dishonest ones hide in it", where, mode)
    if config.server.buffer is not None:
        raise ConfigError(f"{where}: updates of [server] buffer began at unlike states, which no distance compares")
    if rule == "trimmed_mean" and not robust.trim < 0.5:
        raise ConfigError(f"[robust] trim = {robust.trim:g} leaves nothing over; wanted below 0.5")
    asked = config.clients.per_round or (None if deployed else config.data.clients)
    if asked is not None:
        check_clients(config, asked)
        if (
            robust.f is not None
            and deployed
            and (least := ceil(config.server.quorum * asked - 1e-9)) < 2 * robust.f + 3
        ):
            said = "%s: f = %d needs %d answers, and [server] quorum ends rounds at %d of %d: such a round pauses"
            log.warning(said, where, robust.f, 2 * robust.f + 3, least, asked)


def check_clients(config: RunConfig, clients: int) -> None:
    """Raise ConfigError, in one line, where a round of so many clients, or of those asked, has too few for the rule."""
    robust, asked = config.robust, min(config.clients.per_round or clients, clients)
    if robust.rule != "multi_krum":
        return
    from fedft.aggregation import robust_weights

    f = max(0, robust_weights.most_dishonest(asked)) if robust.f is None else robust.f
    if asked < (need := 2 * f + 3):
        raise ConfigError(
            f"[robust] rule = 'multi_krum': f = {f} needs {need} clients in a round, and {asked} are asked"
        )


def _sends_pairs(recipe: Recipe) -> bool:
    """Whether a client sends both factors of a pair in one round."""
    layout = Layout(modules={"m": (2, 2)}, parameters={"m.weight": (2, 2)})
    specs = (recipe.spec(layout, Plan("", r, r, rank=1)) for r in (0, 1))  # a strategy may change factors by turns
    return any({"m" + A_SUFFIX, "m" + B_SUFFIX} <= spec.keys() for spec in specs)
