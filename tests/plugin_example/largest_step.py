"""A gate that refuses a new state which is too far from the last one."""

from fedft.arithmetic import tensors
from fedft.errors import GateRefused


def largest_step(*, most: float = 10.0):
    """No committed state is further than `most` (L2 norm, all shared tensors) from the one before."""

    def gate(state, candidate, measured):
        """The candidate, or GateRefused."""
        moved = {n: x - state.tensors[n] for n, x in candidate.tensors.items() if x.is_floating_point()}
        if (norm := tensors.norm(moved)) > most:
            raise GateRefused(f"the state would move by {norm:.4g}, at most {most:g} allowed")
        return candidate

    return gate
