"""How far one number of an update can go, which everybody must know before any is sent: R of a secure sum's integers.

    [privacy] clip                                  where clients add noise in shares: no number is above the norm
    [privacy] range                                 where the run file says it
    Recipe.reach                                    where the strategy knows: pools of scalars, zeroth-order steps
    adamw    2 eta tau                              eta the learning rate, tau the steps of a round
    sgd      eta tau c / (1 - mu)                   c the clip of the gradient's norm, mu the momentum

times alpha / rank for the factor B of LoRA, which travels in unit scale. What is beyond R is cut, and counted at the
client. AdamW can move a number by 7.3 eta in one step (Cauchy-Schwarz), but over many fresh ones by little more than
eta each.
"""

from fedft.arithmetic.named_pairs import B_SUFFIX
from fedft.config import RunConfig
from fedft.recipe import Recipe
from fedft.training.first_order import steps_within
from fedft.training.optimizers import named_in

LOSS = "train loss"
"""The last tensor of every vector: the client's loss in units of MOST_LOSS, or 0 where it is nobody's business."""
MOST_LOSS = 20.0


def reach(config: RunConfig, recipe: Recipe, name: str, rank: int = 1) -> float:
    """R of the tensor `name` of a summand.

    `rank`: of the adapter; raises ValueError, in one line, where only `[privacy] range` could say it.
    """
    if name == LOSS and not config.privacy.shared:
        return 1.0
    if config.privacy.shared and config.privacy.clip is not None:
        return config.privacy.clip
    if config.privacy.range is not None:
        return config.privacy.range
    if config.privacy.on:
        raise ValueError(f"mode = {config.privacy.mode!r} adds noise: range has to say how far a number may go")
    if recipe.reach is not None:
        return recipe.reach(config, name)
    return of_optimizer(config, recipe) * _per_value(config, recipe, name, rank)


def of_optimizer(config: RunConfig, recipe: Recipe) -> float:
    """How far the local optimiser can move a number in a round, in the number's own scale. Raises ValueError."""
    local, name = config.local, named_in(config.local)
    if local.learning_rate_decay > 1:
        raise ValueError("[local] learning_rate_decay is above 1: range has to say how far a number may go")
    if recipe.upload_kind == "changes" and steps_within(recipe.local) is not None and local.trainer is None:
        rate = local.learning_rate * local.steps
        if name in ("adamw", "adam"):
            return 2 * rate
        if name == "sgd" and local.max_grad_norm is not None:
            return rate * local.max_grad_norm / (1 - local.momentum)
    raise ValueError(f"how far {recipe.name} with {name!r} moves a number is not known: range has to say it")


def _per_value(config: RunConfig, recipe: Recipe, name: str, rank: int) -> float:
    """What a number that travels is, in units of the optimiser's: alpha / rank for LoRA's B."""
    if not (recipe.space.name == "lora" and name.endswith(B_SUFFIX)):
        return 1.0
    return 2.0 if config.model.lora_alpha is None else config.model.lora_alpha / rank
