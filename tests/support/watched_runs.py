"""Run folders for whoever looks at runs: made up, without a run, and the facts that every status has."""

import json
from pathlib import Path
from typing import Any

KEYS: dict[str, Any] = {
    "form": int, "name": str, "state": str, "strategy": str, "model": str, "seed": int | None, "phase": str | None,
    "at_work": int | None, "asked": list, "answered": list, "missing": list, "need": int | None,
    "deadline": float | None, "updated": float | None, "round": int, "rounds": int, "barred": dict, "steered": dict,
    "loss": float | None, "first_loss": float | None, "train_loss": float | None, "bytes_up": int, "bytes_down": int,
    "seconds": float, "left_s": float | None, "round_s": float | None, "disk_bytes": int, "disk_free": int,
    "memory_bytes": int | None, "floor": dict | None, "adapter": bool, "sites": list,
    "refusals": list, "refused": dict, "curve": list,
    "written_by": str | None, "epsilon": float | None, "privacy": dict | None,
}  # fmt: skip
SITE: dict[str, Any] = {
    "name": str, "state": str, "doing": str | None, "loss": float | None, "counted": int, "refused": int, "up": int,
    "down": int, "took_s": float | None, "left_s": float | None, "bits": int | None,
}  # fmt: skip
REFUSAL: dict[str, Any] = {"time": float | None, "round": int | None, "client": str, "code": str, "reason": str}
POINT: dict[str, Any] = {
    "round": int, "loss": float | None, "train_loss": float | None, "bytes_up": int, "bytes_down": int, "seconds": float
}  # fmt: skip


def check(status: dict[str, Any]) -> dict[str, Any]:
    """`status`, which has every key of a run's status, each of its type, also in its lists, and nothing else."""
    status = json.loads(json.dumps(status))
    rows = [(s, SITE) for s in status["sites"]] + [(r, REFUSAL) for r in status["refusals"]]
    for found, wanted in [(status, KEYS), *rows, *((p, POINT) for p in status["curve"])]:
        assert found.keys() == wanted.keys()
        wrong = {k: v for k, v in found.items() if not isinstance(v, wanted[k])}
        assert not wrong
    return status


def line(version: int, **more: Any) -> dict[str, Any]:
    """A line of metrics.jsonl in which `north` and `south` took part, and `north` was refused in round 0."""
    if not version:
        return {"version": 0, "loss": 3.0, "bytes_up": 5, "bytes_down": 7, "seconds": {"evaluate": 1.0}, "refused": []}
    refused = [{"client": "north", "code": "norm", "reason": "norm 9 is above 5"}] if version == 1 else []
    return {
        "version": version, "round": version - 1, "loss": 3.0 - version / 4, "train_loss": 2.0, "bytes_up": 100,
        "bytes_down": 300, "seconds": {"train": 2.0, "aggregate": 0.5}, "refused": refused,
        "participants": ["south"] if refused else ["north", "south"],
        "bytes": {c: {"up": 50, "down": 150, "needed": 150} for c in ("north", "south")},
        "evaluation": {"north": {"loss": 2.5}, "south": {"loss": 1.5}}, **more,
    }  # fmt: skip


def folder(at: Path, *, versions: int = 3, rounds: int = 6, strategy: str = "fedit", finished: bool = False) -> Path:
    """A run folder with the lines of so many states, as a run of an earlier version without status.json left it."""
    at.mkdir(parents=True, exist_ok=True)
    named = f"[model]\nid = 'base'\n[strategy]\nname = '{strategy}'\n[server]\nrounds = {rounds}\nseed = 0\n"
    (at / "config.toml").write_text(named)
    lines = [line(v) for v in range(versions + 1)]
    (at / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    if finished:
        (at / "summary.json").write_text("{}")
        (at / "model").mkdir()
        (at / "model" / "adapter.safetensors").write_bytes(bytes(range(256)) * 40)
        (at / "model" / "adapter_config.json").write_text("{}")
    return at
