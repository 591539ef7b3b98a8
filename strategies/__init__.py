"""Strategies by name: built in, from other packages (entry points), or `"package.module:factory"` from local config.

A name comes from the operator's own file or command line, never from a message.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from fedft import registry
from fedft.compression import codec_names, delta_downloads
from fedft.compression.error_feedback import ByCodec, ErrorFeedback
from fedft.config import Local, RunConfig
from fedft.contract import Kind, Roster, State, Work
from fedft.errors import ConfigError
from fedft.recipe import Recipe
from fedft.training import objectives, schedules
from fedft.training.first_order import steps_within
from fedft.training.optimizers import check_optimizer, named_in
from fedft.training.trainer_names import check_trainer

log = logging.getLogger(__name__)

GIVES = {"unlike_ranks": "gives modules ranks of their own", "unlike_modules": "chooses which modules learn"}
"""Attributes of planners, each by the name of what a recipe must declare for them."""


def load(name: str) -> Callable[..., Recipe]:
    """The factory of a strategy; its keyword arguments are the strategy's options.

    Raises ConfigError: no such strategy (the nearest one is suggested), or it cannot be imported.
    """
    return registry.strategies.load(name)


def make(name: str, options: Mapping[str, Any], **given: Any) -> Recipe:
    """The recipe of a strategy with the options of a `[strategy]` table; errors name the option.

    `given`: values that no run file can hold, as a recipe that is wrapped or a table of directions.
    """
    recipe = registry.strategies.make(name, options, **given)
    if not isinstance(recipe, Recipe):
        raise ConfigError(f"[strategy] {name}: the factory returned {type(recipe).__name__}, wanted a fedft.Recipe")
    return recipe


def of(config: RunConfig) -> Recipe:
    """The recipe of a run file. Raises ConfigError, with the reason, where the run file makes no sense with it."""
    name, options = config.strategy.name, config.strategy.options
    lora = registry.named(config.model.adapter, "adapter")[0] == "lora"
    recipe = make(name, options) if lora else _on_kind(name, options, registry.adapters.chosen(config.model.adapter))
    recipe = _stepping(recipe, name, config.local)
    check_trainer(config)
    for below, said in registry.tower(name, options):
        if config.model.problem_type == "regression" and (what := said.get("objective")) in ("accuracy", "f1"):
            raise ConfigError(f"[strategy] {below}: objective = {what!r} is of classes; a regression has 'loss'")
    name, ranks = recipe.name, sorted(set(config.ranks()))
    if len(ranks) > 1 and not (recipe.space.rank_free or recipe.unlike_ranks):
        raise ConfigError(f"[clients] rank: {name} needs one rank for all clients, got {ranks}")
    if config.codec.changes and (why := delta_downloads.unfit(recipe)):
        raise ConfigError(f"[codec] down = {config.codec.down!r}: {why}; wanted 'fp32'")
    if recipe.downlink_is_increment and config.codec.down != "fp32":
        raise ConfigError(
            f"[codec] down: clients of {name} add up what they receive; wanted 'fp32', got {config.codec.down!r}"
        )
    if config.model.base_bits is not None and recipe.space.of_base:
        raise ConfigError(
            f"[model] base_bits = {config.model.base_bits}: {name} writes all weights of the base, and packed ones "
            f"stand still; leave it out, or take a strategy with adapters"
        )
    if getattr(objectives.of(config), "needs_reference", False) and recipe.space.of_base:
        objective = registry.named(config.local.objective, "objective")[0]
        raise ConfigError(
            f"[local] objective = {objective!r} compares with the model without its adapter, but {name} trains all "
            f"parameters; wanted a strategy with adapters, or 'orpo'"
        )
    try:
        recipe.check(config)
    except ValueError as e:
        raise ConfigError(f"{name}: {e}") from e
    if config.privacy.on or config.privacy.secagg != "off" or config.robust.rule != "none":
        recipe = _guarded(recipe, config)
    recipe = _planned(_transformed(_coded(_noisy(recipe, config), config), config), config)
    recipe = _secured(recipe, config)
    return delta_downloads.wrapped(recipe, config.codec.changes) if config.codec.changes else recipe


def _stepping(recipe: Recipe, name: str, local: Local) -> Recipe:
    """The recipe of this name with local steps as `[local]` wants them; ConfigError where they cannot be taken so."""
    check_optimizer(local)
    steps = steps_within(recipe.local)
    if steps is None:
        no = f"{name} does not back-propagate"
        if schedules.moves_in_rounds(local):
            raise ConfigError(f"[local] schedule_over = 'round': {no}; 'run' would do")
        if local.keep_optimizer:
            raise ConfigError(f"[local] keep_optimizer: {no}; leave it out")
        if local.trainer:
            raise ConfigError(f"[local] trainer: {no}, which is all that a Trainer does")
        if local.epochs is not None:
            raise ConfigError(f"[local] epochs: {no}, and counts directions; wanted steps")
    if not local.keep_optimizer or steps is None:
        return recipe
    if steps.send == "value":
        raise ConfigError(f"[local] keep_optimizer: clients of {name} begin each round from a draw; leave it out")
    if (own := named_in(local)).startswith("schedule_free"):
        why = "would begin each round at the iterates of its last one, not at what it received"
        raise ConfigError(f"[local] keep_optimizer: {own} {why}; leave it out")
    return replace(recipe, keeps=True)


def _guarded(recipe: Recipe, config: RunConfig) -> Recipe:
    """The recipe with local steps as `[privacy] mode` wants them; ConfigError where they cannot be taken so, or what
    [privacy] and [robust] ask for cannot be with the rest of the run file."""
    from fedft.privacy import unfit
    from fedft.training import private_steps, private_walks

    if why := unfit.unfit(recipe, config):
        raise ConfigError(why)
    by_mode = {"example-dp": private_steps.private, "zo-dp": private_walks.private}
    return by_mode[mode](recipe, config) if (mode := config.privacy.mode) in by_mode else recipe


def _on_kind(name: str, options: Mapping[str, Any], kind: Kind) -> Recipe:
    """The strategy with another kind of adapter at the bottom of all that it wraps."""
    known = registry.strategies.options(name)
    if "on" not in known:
        recipe = make(name, options)
        if not recipe.any_kind:
            raise ConfigError(f"[model] adapter: {name} works on pairs of LoRA factors, not on {kind.name!r}")
        return replace(recipe, space=kind)
    below = registry.named(options.get("on", known["on"].default), "strategy")
    rest = {option: value for option, value in options.items() if option != "on"}
    return make(name, rest, on=_on_kind(*below, kind))


def _transformed(recipe: Recipe, config: RunConfig) -> Recipe:
    """The recipe with the run file's own transforms of uploads in front of its."""
    if not config.local.transforms:
        return recipe
    if recipe.upload_kind != "changes" and not recipe.uploads:
        raise ConfigError(
            f"[local] transforms: {recipe.name} sends {recipe.upload_kind}; wanted one that sends changes"
        )
    extra = tuple(map(registry.transforms.chosen, config.local.transforms))
    return replace(recipe, uploads=(*extra, *recipe.uploads), keeps=recipe.keeps or any(t.keeps for t in extra))


def _noisy(recipe: Recipe, config: RunConfig) -> Recipe:
    """The recipe with each client's own noise on its update, where the run file's mode wants it."""
    if config.privacy.mode != "local-dp":
        return recipe
    from fedft.privacy import site_noise

    if (z := config.privacy.noise_multiplier) is not None and z < site_noise.LEAST:
        said = "[privacy] noise_multiplier = %g: below %g a site's noise hides next to nothing of its data"
        log.warning(said, z, site_noise.LEAST)
    return site_noise.noisy(recipe)


def _secured(recipe: Recipe, config: RunConfig) -> Recipe:
    """The recipe whose uploads are integers, where the run file wants secure sums; else itself."""
    if config.privacy.secagg == "off":
        return recipe
    from fedft.privacy.secure_sum import integer_uploads

    return integer_uploads.secured(recipe, config)


def _planned(recipe: Recipe, config: RunConfig) -> Recipe:
    """The recipe with the run file's planner; what the recipe itself plans for a client wins.

    Raises ConfigError where the planner says that it gives what the recipe cannot mix.
    """
    if config.clients.plan is None:
        return recipe
    planner = registry.planners.chosen(config.clients.plan)
    name = registry.named(config.clients.plan, "planner")[0]
    if recipe.plans_work:
        said = "[clients] plan = %r counts only for clients and rounds of which %s plans nothing itself"
        log.warning(said, config.clients.plan, recipe.name)
    elif lacking := [key for key in GIVES if getattr(planner, key, False) and not getattr(recipe, key)]:
        able = f"{recipe.name} cannot mix; STRATEGIES.md says which strategies can"
        raise ConfigError(f"[clients] plan = {name!r} {GIVES[lacking[0]]}, which {able}")

    own = recipe.plan

    def plan(state: State, roster: Roster) -> Mapping[str, Work]:
        return {**planner(state, roster), **own(state, roster)}

    reported = getattr(planner, "reported", None)  # (recipe, config) -> the recipe whose clients report what it reads
    try:
        return replace(recipe if reported is None else reported(recipe, config), plan=plan)
    except ValueError as e:
        raise ConfigError(f"[clients] plan = {name!r}: {e}") from e


def _coded(recipe: Recipe, config: RunConfig) -> Recipe:
    """The recipe with error feedback where the run file's codec wants it; ConfigError where the two do not fit."""
    up, wanted, name = codec_names.parse(config.codec.up), config.codec.error_feedback, recipe.name
    said = f"[codec] up = {config.codec.up!r}"
    # of random starting values the largest are all of A: what was learned, in B, would be left out
    if recipe.upload_kind == "values" and not (up.plain or (up.linear and up.idempotent and not up.ring_summable)):
        raise ConfigError(f"{said}: {name} sends whole factors, not changes; wanted fp32, fp16, bf16 or int8")
    changes = recipe.upload_kind == "changes"
    if not changes and (up.coarse or up.drawn):
        raise ConfigError(f"{said}: {name} sends a few numbers that all count; wanted 8 bits or more of each of them")
    if wanted and (not changes or up.exact or up.drawn):
        raise ConfigError(
            f"[codec] error_feedback: with {name} and {config.codec.up!r} nothing is left out that could be"
        )
    if wanted or (wanted is None and up.coarse and changes):
        feedback = ErrorFeedback(ByCodec(config.codec.up))
        return replace(recipe, uploads=(*recipe.uploads, feedback), keeps=True)
    return recipe
