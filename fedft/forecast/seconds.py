"""Operations of a local step, and how long a round takes.

With N tokens, T of them a row, n learned places, and of a layer w weights, P numbers of adapters, queries of width q:

    forward    2 N w + 2 N P + 4 N T q per layer;  2 n h V for the output
    backward   2 N w + 8 N T q above the lowest stage in which something learns, 4 N P;  2 n h V
               and 2 N w for each weight that learns itself;  2 n h V for the output's
    again      the forward pass of the layers that pass gradients, with checkpointing

    step       operations / speed + overhead
    round      down / link + steps step + up / link;  the slowest client that the quorum needs ends it

An addition and a multiplication are two operations. Speed and overhead come from a probe or a declaration.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedft.forecast.activations import Learning, Pass, lowest
from fedft.forecast.anatomy import STAGES, Anatomy


def pass_flops(
    of: Anatomy, learning: Learning, given: Pass, adapters: float, *, backward: bool = True, left: float = 1.0
) -> float:
    """Operations of one pass forward and, unless it is without gradients, backward.

    `adapters`: numbers of adapters in the layers, learned or not. `left`: share of the layers' heads and channels that
    is left, where a client has cut away what it pruned.
    """
    n, places = given.places, given.learned
    weights = [0.0] * of.layers
    for part in of.parts.values():
        if part.layer >= 0:
            weights[part.layer] += part.weights
    weights, adapters = [left * w for w in weights], left * adapters
    attention = left * 4.0 * n * given.tokens * of.queries
    output = 2.0 * places * of.hidden * of.vocabulary
    forward = 2.0 * n * sum(weights) + of.layers * attention + output + 2.0 * n * adapters
    if not backward:
        return forward
    low = lowest(of, learning)
    back = output
    if low is not None:
        layer, stage = low
        through = sum(weights[layer + 1 :]) + left * sum(
            p.weights
            for p in of.parts.values()
            if p.layer == layer and p.role in STAGES and STAGES.index(p.role) > stage
        )
        inner = of.layers - layer - (stage > 0)
        back += 2.0 * n * through + 2.0 * inner * attention + 4.0 * n * adapters
        if given.checkpointing:
            back += 2.0 * n * sum(weights[layer:]) + (of.layers - layer) * attention + 2.0 * n * adapters
    if learning.full:
        back += 2.0 * n * sum(weights) + output
    else:
        back += 2.0 * n * sum(of.parts[m].weights for m, r in learning.ranks.items() if r == 0 and m in of.parts)
    return forward + back


@dataclass(frozen=True)
class Device:
    """What a client computes and sends with; None: nobody has measured or declared it."""

    flops: float | None = None
    """Operations a second."""
    overhead: float = 0.0
    """Seconds of a step that do not depend on its operations."""
    up: float | None = None
    """Bytes a second to the server."""
    down: float | None = None
    """Bytes a second from the server."""

    def seconds(self, flops: float, steps: int, up: int, down: int) -> float | None:
        """Seconds of a round of so many operations in all, steps, and bytes each way; None where no speed is known.

        A link that nobody knows takes no time.
        """
        if self.flops is None:
            return None
        links = sum(size / speed for size, speed in ((up, self.up), (down, self.down)) if speed)
        return flops / self.flops + steps * self.overhead + links


def round_seconds(clients: Mapping[str, float], needed: int, grace: float = 0.0) -> tuple[float, str]:
    """(seconds until so many clients have answered and those of grace, or all have answered; the last one by name).

    >>> round_seconds({"a": 3.0, "b": 9.0, "c": 4.0}, 2), round_seconds({"a": 3.0, "b": 9.0, "c": 4.0}, 2, grace=30.0)
    ((4.0, 'c'), (9.0, 'b'))
    """
    order: Sequence[tuple[float, str]] = sorted((s, name) for name, s in clients.items())
    closes = order[min(needed, len(order)) - 1][0] + grace
    return min(closes, order[-1][0]), max(pair for pair in order if pair[0] <= closes)[1]


def version_seconds(clients: Mapping[str, float], at_work: int, buffer: int) -> float:
    """Seconds until `buffer` answers have come where so many clients, the mean of these, are always at work.

    >>> version_seconds({"a": 1.0, "b": 4.0}, 2, 1)  # 1.25 answers a second
    0.8
    """
    return min(buffer, at_work) / (at_work * sum(1 / max(s, 1e-9) for s in clients.values()) / len(clients))
