"""Who gains and who loses by a federation: each client's loss on its own held-out rows, beside training alone."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from fedft.reports import paired
from fedft.reports.run_result import Result

ALONE = "local"
"""The method in which every client trains alone."""
WORST = 3  # clients of each method that are named


def against_alone(results: Mapping[str, Sequence[Result]]) -> dict[str, dict[str, float]]:
    """By method and client how much higher the client's loss on its own rows is than where it trains alone.

    Below 0 it gains. {} where nobody trained alone; methods that say nothing of single clients are left out.
    """
    if ALONE not in results:
        return {}
    found = {m: paired.by_client(of, results[ALONE]) for m, of in results.items() if m != ALONE}
    return {m: differences for m, differences in found.items() if differences}


def rows(results: Mapping[str, Sequence[Result]]) -> list[dict[str, Any]]:
    """A row per method: `method`, `clients`, the share that `gain`, the `mean` difference to alone, and the `worst`.

    `worst` names the clients that lose most, or gain least, the worst first: `client`, `alone` and `with`, its losses,
    means over seeds.
    """
    found = []
    for method, differences in against_alone(results).items():
        last = sorted(differences, key=lambda c: (-differences[c], c))[:WORST]
        alone = {c: _mean_loss(results[ALONE], c) for c in last}
        found.append(
            {
                "method": method,
                "clients": len(differences),
                "gain": sum(d < 0 for d in differences.values()) / len(differences),
                "mean": fmean(differences.values()),
                "worst": [{"client": c, "alone": alone[c], "with": alone[c] + differences[c]} for c in last],
            }
        )
    return found


def _mean_loss(results: Sequence[Result], client: str) -> float:
    return fmean(r["clients"][client] for r in results if client in r.get("clients", {}))
