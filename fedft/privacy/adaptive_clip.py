"""A clip that follows the norms of updates, seen through noise.

    b_k   = 1 if |u_k| <= C else 0                                 1: not clipped
    bt    = (sum_k (b_k - 1/2) + sigma_b xi) / m + 1/2             m: how many are expected
    C'    = C exp(-eta (bt - gamma))                               all clipped: bt near 0, and C rises
    z_D   = (z^-2 - (2 sigma_b)^-2)^(-1/2)                         on the updates' sum: the two together cost exactly z
    sigma_b = max(m / 20, 1.64 z)                                  m / 20 alone has no solution for small cohorts

Andrew, Thakkar, McMahan, Ramaswamy, "Differentially Private Learning with Adaptive Clipping", NeurIPS 2021,
arXiv:1905.03871. The second term of sigma_b is ours; it bounds the price to 5 % of noise.
"""

import math
from dataclasses import dataclass

from fedft.privacy import integer_noise
from fedft.privacy.keyed_stream import Stream

PURPOSE = "clip"


@dataclass(frozen=True)
class AdaptiveClip:
    """How a run's clip follows; fixed for a round."""

    quantile: float
    """gamma: the share of clients that is to stay below the clip."""
    rate: float
    """eta."""
    noise_multiplier: float
    """z: of the two releases together."""
    expected: float
    """m: clients that are expected in a round, not those who answered."""

    @property
    def count_deviation(self) -> float:
        """sigma_b: standard deviation of the noise on the count."""
        return max(self.expected / 20, 1.64 * self.noise_multiplier)

    @property
    def sum_multiplier(self) -> float:
        """z_D: noise multiplier of the sum of updates."""
        return float((self.noise_multiplier**-2 - (2 * self.count_deviation) ** -2) ** -0.5)

    def after(self, clip: float, within: int, clipped: int, stream: Stream) -> float:
        """The clip of the next round: `within` clients of this one had a norm of at most `clip`, `clipped` had more."""
        count = integer_noise.noisy(stream, PURPOSE, (within - clipped) / 2, self.count_deviation)
        share = count / self.expected + 0.5
        return clip * math.exp(-self.rate * (share - self.quantile))
