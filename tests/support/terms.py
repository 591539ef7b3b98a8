"""Terms of gradient steps (`fedft.contract.Term`) that tests give to strategies."""

from fedft.contract import Course, Learning, Turn


class WithoutGradient:
    """A term that leaves nothing to step along."""

    def begin(self, learning: Learning, turn: Turn) -> Course:
        """Every gradient becomes zero."""
        return _Still(learning)


class _Still(Course):
    def __init__(self, learning: Learning) -> None:
        self._live = learning.live

    def step(self) -> None:
        for p in self._live.values():
            assert p.grad is not None
            p.grad.zero_()
