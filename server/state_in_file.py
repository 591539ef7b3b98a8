"""A state whose shared tensors are read from the generation that it was saved as, and not held."""

import sys
from pathlib import Path

from fedft import durable
from fedft.arithmetic import tensor_file, tensors
from fedft.arithmetic.tensors import Digested
from fedft.arithmetic.tensors_in_file import LARGE, DigestedInFile
from fedft.contract import State


def resting(state: State, path: Path) -> State:
    """The state, which was saved as the file `path`: the same values under the same names.

    Its shared tensors are a `DigestedInFile` where they are LARGE; the file is then open as long as somebody has the
    state, also where the next generations have taken its place. Elsewhere it is `state` itself.
    """
    shared = state.tensors
    if sys.platform == "win32" or isinstance(shared, Digested) or sum(x.nbytes for x in shared.values()) < LARGE:
        return state  # Windows deletes no file that is open
    with path.open("rb") as f:
        places = tensor_file.places(f, durable.DIGEST_BYTES)
    own = {n: places[f"/{n}"] for n in shared}
    digest = tensors.digest(shared) if any(state.own.values()) else state.digest  # which is found once
    return State(state.version, DigestedInFile(path, own, digest), state.own)
