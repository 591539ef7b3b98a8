"""Gates: what has to agree before a new state is committed.

    gate(state, candidate, measured) -> candidate, another state of its version, or GateRefused with the reason

`measured` is what is known of the round: train_loss, the updates' norms by client, aggregation_error if it was
measured; under `[privacy] mode = "central-dp"` there are no norms, and no loss. A refusal commits nothing: the round's
updates are dropped and the run pauses, to ask everybody anew.
"""

from dataclasses import dataclass, replace

from fedft.arithmetic import tensors
from fedft.contract import Gate, Measured, State
from fedft.errors import GateRefused
from fedft.recipe import Recipe
from fedft.update import Plan
from fedft.wire import messages
from fedft.wire.body import largest_entry


def largest_norm(*, most: float) -> Gate:
    """A gate that refuses a state whose shared floats, taken as one vector, have an L2 norm above `most`, or a NaN."""

    def gate(state: State, candidate: State, measured: Measured) -> State:
        norm = tensors.norm(tensors.floats(candidate.tensors))
        if not norm <= most:
            raise GateRefused(f"the norm of the state would be {norm:.4g}, at most {most:g} is allowed")
        return candidate

    return gate


@dataclass(frozen=True)
class Travels:
    """The gate of every run: no state is committed that a client could not decode, or the run could never go on."""

    recipe: Recipe
    rank: int
    """The state's."""

    def __call__(self, state: State, candidate: State, measured: Measured) -> State:
        """The candidate, if all floats that would travel from it are finite and within `fedft.wire.body.MAX_ABS`.

        Looks at what a newcomer is sent and at what a client at `state` is, but for the very tensors that `state` has:
        they were looked at then. Raises GateRefused.
        """
        plan = Plan("", candidate.version, candidate.version, rank=self.rank)
        travels = [*self.recipe.downlink(candidate, None, plan).items()]
        travels += self.recipe.downlink(candidate, state.version, replace(plan, have=state.version)).items()
        known = state.tensors if state.version else {}
        news = {id(x): (name, x) for name, x in travels if known.get(name) is not x}  # many travel both ways
        for name, x in news.values():
            if x.is_floating_point() and x.numel() and not largest_entry(x) <= messages.MAX_ABS:
                norms = measured["norms"]  # none where they are private
                largest = max(norms, key=lambda c: norms[c], default="")
                whose = f"; the largest update was {largest}'s, norm {norms[largest]:.3g}" if largest else ""
                raise GateRefused(
                    f"{name} would go beyond {messages.MAX_ABS:g} or is no number{whose}. Lower the learning rate or "
                    f"set [limits] max_norm"
                )
        return candidate
