"""What a run does with damaged files and a full disk: a toy deployment, all in one process, beside its simulation.

    PYTHONPATH=tests/support python tests/attack/state_faults.py [--small FOLDER]

Every file of a run that stopped in the middle is damaged in turn, a bit flipped, truncated, emptied or deleted, and the
run goes on: its final digest must be that of the simulation, or the run must refuse to go on, or say whose loss of
memory made it another one. With --small, a folder on
a file system of about 1 MB (a mounted tmpfs), the disk is filled as well. Prints one line of JSON.
"""

import argparse
import json
import logging
import os
import random
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from deployed import Deployment

from fedft.errors import FedftError, RunPaused
from fedft.update import MEMORY_LOST

DAMAGES = ("flip", "truncate", "empty", "delete")
LEFT = (
    200_000,
    60_000,
    20_000,
    8_000,
    4_096,
    0,
)  # bytes of the small disk that are left to the run, one after the other


def fresh() -> Path:
    """A new folder."""
    return Path(tempfile.mkdtemp())


def damage(file: Path, how: str, draw: random.Random) -> None:
    """Damage a file in place, in one of the ways of DAMAGES."""
    data = bytearray(file.read_bytes())
    if how == "flip" and data:
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        file.write_bytes(data)
    elif how == "truncate":
        file.write_bytes(data[: draw.randrange(len(data) + 1)])
    elif how == "empty":
        file.write_bytes(b"")
    elif how == "delete":
        file.unlink()


def outcome(folder: Path, name: str, wanted: str) -> str:
    """What going on in `folder` comes to: "equal", "refused", "crash", or another digest, "told" in metrics.jsonl by
    whom (a site that lost what it keeps begins anew), or else "WRONG".
    """
    try:
        d = Deployment(folder, name)
        if d.digest() == wanted:
            return "equal"
        return "told" if any(line.get(MEMORY_LOST) for line in d.metrics.lines) else "WRONG"
    except FedftError:
        return "refused"
    except Exception:
        return "crash"


def damaged(name: str, wanted: str) -> dict[str, Any]:
    """The outcomes over all files of a run of two rounds and all DAMAGES: how many, and which are wrong."""
    whole, draw = fresh(), random.Random(7)
    Deployment(whole, name, rounds=2).run()
    found: dict[str, Any] = {"equal": 0, "refused": 0, "told": [], "WRONG": [], "crash": []}
    for file in sorted(p for p in whole.rglob("*") if p.is_file() and p.name != "lock"):
        for how in DAMAGES:
            copy = fresh() / "copy"
            shutil.copytree(whole, copy)
            damage(copy / file.relative_to(whole), how, draw)
            came = outcome(copy, name, wanted)
            if came in ("equal", "refused"):
                found[came] += 1
            else:
                found[came].append(f"{file.relative_to(whole)} {how}")
            shutil.rmtree(copy.parent)
    return found


def fill(file: Path, left: int) -> None:
    """Let `file` take all of its file system but `left` bytes."""
    disk = os.statvfs(file.parent)
    with open(file, "ab") as f:
        try:
            f.write(bytes(max(0, disk.f_bavail * disk.f_frsize - left)))
        except OSError:
            return  # it is as full as it gets


def full_disk(small: Path, name: str, wanted: str) -> dict[str, Any]:
    """A run on a disk that is full, again and again; how often it paused, and what it comes to with room."""
    shutil.rmtree(small / "run", ignore_errors=True)
    paused, failed, ballast = 0, [], small / "ballast"
    for left in LEFT:
        ballast.unlink(missing_ok=True)
        fill(ballast, left)
        try:
            Deployment(small / "run", name).run()
            break
        except RunPaused:
            paused += 1
        except Exception as e:
            failed.append(f"{left} bytes left: {type(e).__name__}: {e}"[:160])
    ballast.unlink(missing_ok=True)
    return {"paused": paused, "failed": failed, "with room": outcome(small / "run", name, wanted)}


def main() -> None:
    """Do all of it and print what came of it."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--small", type=Path)
    a = p.parse_args()
    torch.set_num_threads(1)
    logging.disable()
    wanted = {name: Deployment(fresh(), name).simulated() for name in ("fedit", "scaffold")}
    out: dict[str, Any] = {f"{name} undisturbed": outcome(fresh(), name, wanted[name]) for name in wanted}
    out["scaffold damaged"] = damaged("scaffold", wanted["scaffold"])
    if a.small:
        out |= {f"{name} full disk": full_disk(a.small, name, wanted[name]) for name in wanted}
    sys.stdout.write(json.dumps(out) + "\n")


if __name__ == "__main__":
    main()
