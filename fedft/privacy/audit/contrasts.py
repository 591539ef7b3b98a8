"""What an audit generates: from which starts, and what of the data is in it."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle, islice
from statistics import fmean
from typing import Any

import torch

from fedft.config import RunConfig
from fedft.models import tasks
from fedft.privacy.audit import contrastive
from fedft.privacy.audit.canaries import Canary, Plan
from fedft.privacy.audit.contrastive import Learner, Sample, Tokens
from fedft.privacy.audit.planted_records import record_of
from fedft.privacy.audit.two_models import TwoModels
from fedft.randomness import philox

SHOWN = 10
"""Samples that are shown where somebody asks for them, the most contrasting ones."""


@dataclass(frozen=True)
class Wanted:
    """How much is generated."""

    samples: int = 64
    """Dealt out to the kinds of starts, besides one from each canary's carrier; 0: nothing is generated."""
    texts: tuple[str, ...] = ()
    """Texts to start from, besides the first token and held-out prompts."""
    new_tokens: int = contrastive.NEW_TOKENS
    copy: Callable[[], Learner] | None = None
    """Gives a copy of the base that learns each sample before the next (iterative); None: the base stays as it is."""


@dataclass(frozen=True)
class Found:
    """What was generated and what is to say of it."""

    figures: dict[str, Any]
    """Numbers without any text."""
    texts: list[tuple[float, str, str]] = field(default_factory=list, repr=False)
    """(score, given, written) of the SHOWN most contrasting samples. They may be somebody's text: never written down
    unless the operator asks for them."""


def contrasts(
    two: TwoModels,
    config: RunConfig,
    plan: Plan | None,
    held_out: Sequence[Any],
    trained: Mapping[str, Sequence[Any]],
    wanted: Wanted,
) -> Found:
    """Samples of a run's model that its base would not have written, and figures of them.

    `iterative` says of which form they are. `score` is their mean log p - log b per token, in all and by kind of start;
    `distinct_4_grams` the share of unlike ones; `own_8_grams` the share that stands in rows which were trained on,
    where there are such; `verbatim` and `verbatim_left_out` the share of the secrets, planted and left out, that were
    written behind their own carrier.

    Args:
        two: the models.
        config: the run file.
        plan: of the run's canaries; None: there are none.
        held_out: encoded rows whose prompts are starts.
        trained: encoded train rows by client.
        wanted: how much.
    """
    if not wanted.samples or (why := unfit(config)):
        return Found({"samples": 0, "why": why if wanted.samples else "no samples were asked for"})
    starts = _starts(two, config, plan, held_out, wanted)
    if not starts:
        return Found({"samples": 0, "why": "the tokenizer has no token to begin with; --start says a text"})
    tokenizer = two.base.tokenizer
    tokens = Tokens(tokenizer.eos_token_id, frozenset(tokenizer.all_special_ids))
    generator = torch.Generator().manual_seed(philox.derive(config.audit.seed, "audit samples"))
    samples = _generated(two, starts, tokens, generator, wanted)
    decode = partial(tokenizer.decode, skip_special_tokens=True)
    texts = [(s.score, str(decode(s.given)), str(decode(s.written))) for s in samples]
    figures = {
        "iterative": wanted.copy is not None,
        **_of_samples(samples, trained),
        **_of_secrets(plan, [f"{g}{w}" for _, g, w in texts]),
    }
    return Found(figures, sorted(texts, reverse=True)[:SHOWN])


def _generated(
    two: TwoModels, starts: list[tuple[str, list[int]]], tokens: Tokens, generator: torch.Generator, wanted: Wanted
) -> list[Sample]:
    two.handle.training(False)
    if wanted.copy is not None:
        return contrastive.generate_anew(
            two.next_logits, wanted.copy(), starts, tokens, generator, new_tokens=wanted.new_tokens
        )

    def base(ids: torch.Tensor) -> torch.Tensor:
        with two.as_base():
            return two.next_logits(ids)

    return contrastive.generate(
        two.next_logits, base, starts, tokens, generator, new_tokens=wanted.new_tokens, batch_size=two.batch_size
    )


def unfit(config: RunConfig) -> str:
    """Why nothing can be generated with the models of a run; "" where it can."""
    task = tasks.of(config.model.task)
    return "" if task is tasks.CAUSAL else f"task {task.name} does not continue text"


def _starts(
    two: TwoModels, config: RunConfig, plan: Plan | None, held_out: Sequence[Any], wanted: Wanted
) -> list[tuple[str, list[int]]]:
    """(kind, token ids): as many as are wanted, of each kind in turn over and over; and each canary's carrier once."""
    tokenizer = two.base.tokenizer
    first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    begin = [] if first is None else [first]
    encode = partial(two.handle.objective.encode, base=two.base, config=config)

    def carrier(canary: Canary) -> list[int]:
        given = list(encode(record_of(canary, canary.secret, config), where=f"canary {canary.number}").given)
        return given if len(given) > len(begin) else begin + _ids(tokenizer, canary.carrier)

    kinds: dict[str, list[list[int]]] = {
        "first token": [begin],
        "held-out prompts": [list(row.given) for row in held_out if len(getattr(row, "given", ())) > len(begin)],
        "texts": [begin + _ids(tokenizer, text) for text in wanted.texts],
    }
    there = {kind: cycle(found) for kind, ids in kinds.items() if (found := [i for i in ids if i])}
    dealt = islice(((kind, next(there[kind])) for kind in cycle(there)), wanted.samples)
    return [*dealt, *(("carriers", carrier(c)) for c in (plan.canaries if plan else ()))]


def _ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def _of_samples(samples: Sequence[Sample], trained: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    kinds = list(dict.fromkeys(s.start for s in samples))
    written = [s.written for s in samples]
    known = {
        g for rows in trained.values() for row in rows for g in contrastive.grams(getattr(row, "input_ids", []), 8)
    }
    figures: dict[str, Any] = {
        "samples": len(samples),
        "score": fmean(s.score for s in samples),
        "score_by_start": {kind: fmean(s.score for s in samples if s.start == kind) for kind in kinds},
        "distinct_4_grams": contrastive.distinct(written),
    }
    if known:
        figures["own_8_grams"] = contrastive.occurring(written, known)
    return {name: x for name, x in figures.items() if not (isinstance(x, float) and math.isnan(x))}


def _of_secrets(plan: Plan | None, texts: Sequence[str]) -> dict[str, float]:
    """The shares of secrets that stand in a text behind their own carrier."""
    if plan is None:
        return {}
    found = {}
    for name, planted in (("verbatim", True), ("verbatim_left_out", False)):
        own = [c for c in plan.canaries if c.planted is planted]
        if own:
            found[name] = fmean(any(_tells(text, c) for text in texts) for c in own)
    return found


def _tells(text: str, canary: Canary) -> bool:
    """Whether a text has the canary's carrier, and its secret somewhere behind it."""
    _, carrier, rest = text.partition(canary.carrier)
    return bool(carrier) and canary.secret in rest
