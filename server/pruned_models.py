"""How large the models of clients are that prune: in a round's line, and beside their losses in the summary.

A line of metrics.jsonl has then, for example,

    "models": {"north": {"sparsity": 0.31, "parameters": 812032.0}, "south": ...}

summary.json the newest of them with the client's last held-out loss.
"""

from collections.abc import Iterable, Mapping
from typing import Any

MODELS = "models"
SAID = ("sparsity", "parameters")
"""Metrics of an update: the share of heads and channels that is pruned, by weights; numbers that are left of them and
of the adapter."""


def trained(metrics: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """{"models": what each client says of its own} of a round, from the metrics of each update; or {}.

    >>> trained({"north": {"loss": 1.0, "sparsity": 0.5, "parameters": 9.0}, "south": {"loss": 2.0}})
    {'models': {'north': {'sparsity': 0.5, 'parameters': 9.0}}}
    """
    found = {c: {n: said[n] for n in SAID} for c, said in metrics.items() if said.keys() >= {*SAID}}
    return {MODELS: found} if found else {}


def summary(lines: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """{"models": the newest size and the last held-out loss of each client}, from the lines of metrics.jsonl; or {}.

    >>> lines = [trained({"north": {"sparsity": 0.5, "parameters": 9.0}}), {"evaluation": {"north": {"loss": 2.0}}}]
    >>> summary(lines)
    {'models': {'north': {'sparsity': 0.5, 'parameters': 9.0, 'loss': 2.0}}}
    """
    sizes, losses = dict[str, dict[str, float]](), dict[str, float]()
    for line in lines:
        sizes |= line.get(MODELS, {})
        losses |= {c: m["loss"] for c, m in line.get("evaluation", {}).items() if "loss" in m}
    found = {c: {**size, **({"loss": losses[c]} if c in losses else {})} for c, size in sizes.items()}
    return {MODELS: found} if found else {}
