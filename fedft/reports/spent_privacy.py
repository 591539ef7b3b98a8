"""What a run has spent of privacy: facts for summary.json and the folder of its model, and a sentence of them."""

from collections.abc import Mapping, Sequence
from typing import Any

from fedft.privacy.tables import OF_RECORDS, Privacy

NONE = "no differential privacy"
NOBODY = "no line of the run says it"


def spent(privacy: Privacy, lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The facts of a run, finished or not, from the lines of its metrics.jsonl.

    epsilon          as the last line says it; None: there is none
    epsilon_why      then, why
    delta, privacy   with a mode: of the run file, `privacy` is the mode
    colluding        of noise in shares: how many clients may tell the server theirs
    epsilon_colluding    what then holds
    """
    if not privacy.on:
        return {"epsilon": None, "epsilon_why": NONE}
    last: Mapping[str, Any] = next((line for line in reversed(lines) if "epsilon" in line), {})
    found = {"epsilon": last.get("epsilon"), "delta": privacy.delta, "privacy": privacy.mode}
    if found["epsilon"] is None:
        found["epsilon_why"] = str(last.get("epsilon_why") or NOBODY)
    return found | {k: last[k] for k in ("colluding", "epsilon_colluding") if k in last}


def sentence(facts: Mapping[str, Any]) -> str:
    """As "epsilon 7.97 at delta 0.001, of one client (central-dp)", or "epsilon none: seeded noise"."""
    if facts.get("epsilon") is None:
        return f"epsilon none: {facts.get('epsilon_why', NOBODY)}"
    mode = str(facts["privacy"])
    unit = "record" if mode in OF_RECORDS else "client"
    told = f"epsilon {facts['epsilon']:.3g} at delta {facts['delta']:g}, of one {unit} ({mode})"
    if not facts.get("colluding"):
        return told
    return f"{told}; {facts['epsilon_colluding']:.3g} against the server and {facts['colluding']} clients"
