"""A planner: clients with few rows train smaller adapters and take fewer steps."""

from fedft.contract import Work
from fedft.update import Shape


def by_rows(*, few: int = 20, rank: int = 1, small: str = "q_proj", steps: int = 1):
    """Who has at most `few` rows: `rank` in modules whose name ends in `small`, and `steps` steps."""

    def plan(state, roster):
        """Work of those who have few rows; everybody else does what the run file says."""
        modules = sorted({n.rpartition(".")[0] for n in state.tensors})
        ranks = {m: rank for m in modules if m.endswith(small)}
        poor = {c: member for c, member in roster.items() if member.profile.get("rows", few + 1) <= few}
        return {c: Work(shape=Shape(member.rank, ranks), steps=steps) for c, member in poor.items()}

    return plan
