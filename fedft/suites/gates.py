"""The contract of a gate: (state, candidate, measured) -> candidate or another state, or GateRefused with a reason."""

import torch

from fedft.adapters.lora import LoRA
from fedft.contract import Gate, Measured, State
from fedft.errors import GateRefused
from fedft.recipe import Recipe
from fedft.suites.promises import kept
from fedft.suites.toy import toy

MEASURED: Measured = {"train_loss": 1.0, "norms": {"a": 0.5, "b": 0.7}}


def _states(by: float = 0.01) -> tuple[State, State]:
    state = toy(Recipe("plain", LoRA())).state()
    return state, State(1, {n: x + by for n, x in state.tensors.items()})


def _asked(gate: Gate, state: State, candidate: State) -> tuple[State | None, str]:
    """(what the gate gives, ""), or (None, why it refuses)."""
    try:
        return gate(state, candidate, MEASURED), ""
    except GateRefused as e:
        return None, str(e)


def _a_state_of_the_candidate_s_version(gate: Gate) -> None:
    state, candidate = _states()
    passed, why = _asked(gate, state, candidate)
    if passed is None:
        assert why.strip(), "it refuses without a reason"
        return
    assert isinstance(passed, State), f"it gives a {type(passed).__name__}"
    assert passed.version == candidate.version, f"version {passed.version}, wanted {candidate.version}"
    assert passed.tensors.keys() == candidate.tensors.keys(), "names of tensors differ"


def _it_does_not_change_what_it_is_shown(gate: Gate) -> None:
    state, candidate = _states()
    before = state.digest, candidate.digest
    _asked(gate, state, candidate)
    fresh = State(0, state.tensors), State(1, candidate.tensors)
    assert (fresh[0].digest, fresh[1].digest) == before, "a state has changed in place"


def _what_is_not_finite_is_no_crash(gate: Gate) -> None:
    state, candidate = _states()
    poisoned = State(1, {n: torch.full_like(x, float("nan")) for n, x in candidate.tensors.items()})
    _asked(gate, state, poisoned)


PROMISES = {
    "it gives a state of the candidate's version, or refuses with a reason": _a_state_of_the_candidate_s_version,
    "it does not change what it is shown": _it_does_not_change_what_it_is_shown,
    "a candidate that is not finite is no crash": _what_is_not_finite_is_no_crash,
}


def gate_contract(gate: Gate, *, stop: bool = True) -> dict[str, str]:
    """Check every promise on `gate`; returns {promise: "" or what broke it}; with `stop` raises the first one."""
    return kept(PROMISES, gate, getattr(gate, "__name__", "gate"), stop=stop)
