"""From a reply's bytes to an update that counts: the checks behind the codec's.

codec       too_large, bad_magic, version, malformed, spec_mismatch, nonfinite, out_of_bounds
here        wrong_run, wrong_round, late, norm, weight, and the strategy's own codes
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import median

from fedft.config import Limits
from fedft.contract import Layout
from fedft.errors import RejectedUpdate
from fedft.recipe import Recipe
from fedft.update import Plan, Spec, Update
from fedft.wire import messages


def admit(
    payload: bytes,
    client: str,
    plan: Plan,
    recipe: Recipe,
    layout: Layout,
    up: str,
    limits: Limits,
    norms: Sequence[float],
    *,
    recovered: bool = False,
) -> tuple[Update, float]:
    """(the update, its norm) if the update may count. Nothing is kept; journalling it is the caller's.

    Large tensors of the update may lie in the payload, see `messages.decode_update`.

    Args:
        payload: bytes as received from `client`.
        plan: that this client was sent.
        recipe: of the run; its own rule is applied too.
        layout: of the base model.
        up: name of the codec of uploads.
        limits: of the run: `max_bytes` bounds memory, `max_num_examples` one client's weight, `max_norm` and
            `norm_factor` (times the median of `norms`) how far one client can move the state.
        norms: of updates admitted in the last rounds; the first round has none and is not bounded by them. Zeros, as of
            a strategy's rounds that only measure, say nothing of what is usual.
        recovered: whether the update was admitted before a restart, in whichever attempt.
    Raises:
        RejectedUpdate: the update must not count, with a code of the module's table.
    """
    spec = recipe.spec(layout, plan)
    most = longest(spec, up, limits)
    update = replace(messages.decode_update(payload, spec, up, max_bytes=most, apart=True), client=client)
    if update.run != plan.run:
        raise RejectedUpdate("wrong_run", f"update of run {update.run}, this is run {plan.run}")
    if update.round != plan.round:
        code = "late" if update.round < plan.round else "wrong_round"
        raise RejectedUpdate(code, f"update of round {update.round}, open is {plan.round}")
    if update.attempt != plan.attempt and not recovered:
        raise RejectedUpdate("late", f"update of attempt {update.attempt}, open is {plan.attempt}")
    if update.num_examples > limits.max_num_examples:
        raise RejectedUpdate("weight", f"num_examples is {update.num_examples}, at most {limits.max_num_examples}")
    recipe.admit(update.delta, plan)
    norm = recipe.norm(update.delta, plan)
    usual = median(moved) if (moved := [n for n in norms if n > 0]) else 0.0
    bound = min(limits.norm_factor * usual or float("inf"), limits.max_norm or float("inf"))
    if norm > bound:
        raise RejectedUpdate("norm", f"norm {norm:.4g}, at most {bound:.4g} allowed; see [limits]")
    return update, norm


def longest(spec: Spec, up: str, limits: Limits) -> int:
    """Bytes of the longest update of this spec in codec `up` that is read: `[limits] max_bytes`, or the largest."""
    return limits.max_bytes or messages.max_update_bytes(spec, up)


def cut_shares(examples: Mapping[str, int], weights: Mapping[str, int]) -> dict[str, list[float]]:
    """[share by its examples, share that counts] of each client whose weight was cut; `weights` are those of `capped`.

    >>> cut_shares({"a": 90, "b": 6, "c": 4}, {"a": 10, "b": 6, "c": 4})
    {'a': [0.9, 0.5]}
    """
    whole, left = sum(examples[c] for c in weights), sum(weights.values())
    return {c: [examples[c] / whole, w / left] for c, w in weights.items() if w != examples[c]}


def capped(examples: Mapping[str, int], max_share: float) -> dict[str, int]:
    """Weights by client in which none of three or more has a share above `max_share`; the others' stay as they are.

    At a limit of 0.5 or more only one can be above it; it is cut to max_share / (1 - max_share) of the others' sum.
    """
    weights = dict(examples)
    if len(weights) >= 3 and max_share < 1:
        largest = max(sorted(weights), key=lambda c: weights[c])
        others = sum(weights.values()) - weights[largest]
        weights[largest] = min(weights[largest], max(1, int(others * max_share / (1 - max_share))))
    return weights
