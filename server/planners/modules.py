"""The modules that a state's tensors belong to, as planners choose among them."""

from fedft.contract import State


def modules_of(state: State) -> tuple[str, ...]:
    """Names of the modules whose tensors the state has, bytewise: a tensor is called `<module>.<part>`."""
    return tuple(sorted({name.rpartition(".")[0] for name in state.tensors}, key=str.encode))
