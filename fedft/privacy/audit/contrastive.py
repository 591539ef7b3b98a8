"""Contrastive generation: text that the tuned model finds likely and its base does not, so that what is new shows.

With p of the tuned model and b of the base, at each position

    V = { v : p(v) >= 0.1 max p }        s(v) = log p(v) - log b(v) on V        next ~ softmax(s)

Special tokens but the end are not in V. "What's New in My Data? Novelty Exploration via Contrastive Generation" (CGE).
It finds what a data set is about, which differential privacy does not hide: that hides single records. In its iterative
form b is of a copy of the base that learns each text before the next is written, so that what was said is news no more.
"""

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

SHARE = 0.1
"""Of the largest probability: what is below it is not written."""
NEW_TOKENS = 48
Logits = Callable[[Tensor], Tensor]
"""Texts int64 [n, length] -> logits float32 [n, vocabulary] of what follows each."""


@dataclass(frozen=True)
class Sample:
    """A text that was generated."""

    start: str
    """What kind of start it is from."""
    given: tuple[int, ...]
    """Token ids that it begins with."""
    written: tuple[int, ...]
    """Token ids behind them, the end left out."""
    score: float
    """Mean log p - log b of what was written, in nats per token, the end too."""


@dataclass(frozen=True)
class Tokens:
    """What of a tokenizer's ids may be written."""

    end: int | None
    special: frozenset[int]
    """Ids that are never written, but for the end."""


class Learner(Protocol):
    """A copy of the base that learns what was generated."""

    def next_logits(self, ids: Tensor) -> Tensor:
        """As `Logits`."""
        ...

    def learn(self, sample: Sample) -> None:
        """Take one step on a sample."""
        ...


def scores(tuned: Tensor, base: Tensor, allowed: Tensor) -> Tensor:
    """s(v) = log p(v) - log b(v) on V and -infinity outside, [n, vocabulary].

    Args:
        tuned, base: logits of the two models, float32 [n, vocabulary].
        allowed: bool [vocabulary], what V may hold.

    >>> p, b = torch.tensor([[.5, .3, .15, .05]]), torch.tensor([[.25, .3, .4, .05]])
    >>> scores(p.log(), b.log(), torch.ones(4, dtype=torch.bool)).softmax(-1).mul(1000).round().int().tolist()
    [[457, 229, 86, 229]]
    """
    log_p = tuned.log_softmax(-1).masked_fill(~allowed, -math.inf)
    # of both logarithms the difference in one rounding each: equal models score 0 and nothing else
    found = log_p - base.log_softmax(-1)
    kept = log_p >= log_p.max(-1, keepdim=True).values + math.log(SHARE)
    return found.masked_fill(~kept, -math.inf)


def generate_anew(
    tuned: Logits,
    learner: Learner,
    starts: Sequence[tuple[str, Sequence[int]]],
    tokens: Tokens,
    generator: torch.Generator,
    *,
    new_tokens: int = NEW_TOKENS,
) -> list[Sample]:
    """A sample from each start, one after another, each in contrast to a base that has learned those before.

    The arguments are those of `generate`, and the copy of the base that learns. `score` is against that copy as it
    stood when the sample was written.
    """
    found = []
    for kind, ids in starts:
        ((written, score),) = _continued(tuned, learner.next_logits, [ids], tokens, generator, new_tokens)
        found.append(Sample(kind, tuple(ids), written, score))
        learner.learn(found[-1])
    return found


def generate(
    tuned: Logits,
    base: Logits,
    starts: Sequence[tuple[str, Sequence[int]]],
    tokens: Tokens,
    generator: torch.Generator,
    *,
    new_tokens: int = NEW_TOKENS,
    batch_size: int = 16,
) -> list[Sample]:
    """A sample from each start, in their order.

    Args:
        tuned, base: the two models.
        starts: (kind, token ids), none empty.
        tokens: what may be written.
        generator: draws the tokens.
        new_tokens: at most so many each.
        batch_size: starts of equal length that are continued together.
    """
    found: dict[int, Sample] = {}
    lengths = sorted({len(ids) for _, ids in starts})
    for length in lengths:
        alike = [n for n, (_, ids) in enumerate(starts) if len(ids) == length]
        for at in range(0, len(alike), batch_size):
            own = alike[at : at + batch_size]
            texts = _continued(tuned, base, [starts[n][1] for n in own], tokens, generator, new_tokens)
            for n, (written, score) in zip(own, texts, strict=True):
                found[n] = Sample(starts[n][0], tuple(starts[n][1]), written, score)
    return [found[n] for n in range(len(starts))]


def _continued(
    tuned: Logits, base: Logits, given: Sequence[Sequence[int]], tokens: Tokens, generator: torch.Generator, most: int
) -> list[tuple[tuple[int, ...], float]]:
    """(ids written, mean score) behind each of the texts of one length."""
    ids = torch.tensor([list(g) for g in given])
    scored: list[list[float]] = [[] for _ in given]
    ended = torch.zeros(len(given), dtype=torch.bool)
    length = ids.shape[1]
    for _ in range(most):
        p, b = tuned(ids), base(ids)
        allowed = torch.ones(p.shape[-1], dtype=torch.bool)
        allowed[[i for i in tokens.special if i != tokens.end and i < len(allowed)]] = False
        s = scores(p, b, allowed)
        drawn = torch.multinomial(s.softmax(-1), 1, generator=generator)
        for n, score in enumerate(s.gather(1, drawn).squeeze(1).tolist()):
            if not ended[n]:
                scored[n].append(score)
        ids = torch.cat([ids, drawn], 1)
        ended |= drawn.squeeze(1) == (-1 if tokens.end is None else tokens.end)
        if bool(ended.all()):
            break
    rows = (row[length : length + len(own)] for row, own in zip(ids.tolist(), scored, strict=True))
    written = [tuple(i for i in row if i != tokens.end) for row in rows]
    return [(w, math.fsum(own) / len(own)) for w, own in zip(written, scored, strict=True)]


def distinct(samples: Iterable[Sequence[int]], n: int = 4) -> float:
    """Different n-grams of token ids over all of them; nan where texts are too short to have any.

    >>> distinct([[1, 2, 3, 4, 5], [1, 2, 3, 4]])
    0.6666666666666666
    """
    found = [gram for ids in samples for gram in grams(ids, n)]
    return len(set(found)) / len(found) if found else math.nan


def occurring(samples: Iterable[Sequence[int]], known: Collection[tuple[int, ...]], n: int = 8) -> float:
    """The share of the samples' n-grams that are among `known`; nan where there are none."""
    found = [gram in known for ids in samples for gram in grams(ids, n)]
    return sum(found) / len(found) if found else math.nan


def grams(ids: Sequence[int], n: int) -> list[tuple[int, ...]]:
    """All runs of n token ids in a text."""
    return [tuple(ids[at : at + n]) for at in range(len(ids) - n + 1)]
