"""The iterative form of contrastive generation: the base learns what was said, so that something else is said next."""

import torch
from torch import Tensor

from fedft.privacy.audit import contrastive
from fedft.privacy.audit.contrastive import Sample, Tokens

TOPICS = torch.tensor([0.0, 0.0, 0.4, 0.35, 0.25])
"""What the tuned model writes: three topics of one token each; the base knows none of them."""
ALL = Tokens(None, frozenset())


def tuned(ids: Tensor) -> Tensor:
    return TOPICS.log().expand(len(ids), -1)


class Table:
    """A base of one row of logits that learns a token at once and for good."""

    def __init__(self) -> None:
        self.logits = torch.zeros(len(TOPICS))
        self.heard: list[Sample] = []

    def next_logits(self, ids: Tensor) -> Tensor:
        return self.logits.expand(len(ids), -1)

    def learn(self, sample: Sample) -> None:
        self.heard.append(sample)
        self.logits[list(sample.written)] += 12


def _written(*, iterative: bool, seed: int) -> list[int]:
    starts = [("first token", [0])] * 3
    rng, base = torch.Generator().manual_seed(seed), Table()
    if iterative:
        samples = contrastive.generate_anew(tuned, base, starts, ALL, rng, new_tokens=1)
        assert base.heard == samples
    else:
        samples = contrastive.generate(tuned, base.next_logits, starts, ALL, rng, new_tokens=1)
    return [token for s in samples for token in s.written]


def test_three_texts_say_three_topics_and_each_of_them_once() -> None:
    """Without learning a topic comes twice in most of the draws."""
    assert all(sorted(_written(iterative=True, seed=seed)) == [2, 3, 4] for seed in range(20))
    assert sum(len(set(_written(iterative=False, seed=seed))) < 3 for seed in range(20)) > 10


def test_the_score_is_against_the_copy_as_it_stood_and_not_as_it_has_learned() -> None:
    rng = torch.Generator().manual_seed(0)
    (sample,) = contrastive.generate_anew(tuned, Table(), [("first token", [0])], ALL, rng, new_tokens=1)
    (token,) = sample.written
    assert abs(sample.score - float((TOPICS[token] * len(TOPICS)).log())) < 1e-6
