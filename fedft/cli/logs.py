"""The log of the services, `fedft server` and `fedft client`: its form, and the engine's events as its lines."""

import logging
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Annotated, Any, Literal

import typer

from fedft.cli import json_log

log = logging.getLogger("fedft")

LogForm = Annotated[Literal["lines", "json"], typer.Option("--log", help="Form of the log on stdout.")]


def start(form: str) -> None:
    """Send the log to stdout, in lines or, where `form` is "json", as `json_log` says."""
    if form == "json":
        json_log.begin()
    else:
        handler = logging.StreamHandler(sys.stdout)
        lines = logging.Formatter("%(asctime)s %(levelname)-7s %(message)s", "%Y-%m-%dT%H:%M:%SZ")
        lines.converter = time.gmtime
        handler.setFormatter(lines)
        logging.basicConfig(handlers=[handler], level=logging.INFO, force=True)
    for noisy in ("httpx", "flwr", "transformers", "datasets"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def start_early(arguments: Sequence[str]) -> None:
    """Begin with JSON where a command line asks for it, before it is read: what is wrong with it is an object, too."""
    if "--log=json" in arguments or ("--log", "json") in pairwise(arguments):
        start("json")


def fail(said: str, cause: BaseException | None = None) -> None:
    """Say on stderr, in a line, what ends the command; a `cause` is a bug, ours or a plug-in's: its traceback, too."""
    if json_log.said_last(said, cause):
        return
    if cause is not None:
        traceback.print_exception(cause)
    typer.echo(f"fedft: {said}", err=True)


def say(kind: str, info: Mapping[str, Any]) -> None:
    """The engine's events as log lines; refusals are logged where they happen."""
    _know(kind, info)
    of = {"site": info.get("client"), "round": info.get("round")}
    if kind == "preparing":
        log.info("loading the base model; run folder %s", info["folder"])
    elif kind == "enrolling":
        log.info("waiting for %s", ", ".join(info["clients"]))
    elif kind == "enrolled":
        log.info("%s has joined", info["client"], extra=of)
    elif kind == "round":
        log.info("round %d: asking %s", info["round"], ", ".join(info["asked"]))
    elif kind == "progress" and {"step", "steps"} <= info.keys():
        left = f", about {info['left_s']:.0f} s left" if "left_s" in info else ""
        said = "round %d: %s at step %d of %d%s"
        log.info(said, info["round"], info["client"], info["step"], info["steps"], left, extra=of)
    elif kind == "progress":
        log.info("round %d: %s: %s", info["round"], info["client"], info["doing"], extra=of)
    elif kind == "admitted":
        loss = info["metrics"].get("loss")
        told = f", loss {loss:.4f}" if loss else ""
        log.info("round %d: %s admitted%s", info["round"], info["client"], told, extra=of)
    elif kind == "line":
        _say_line(info)


def _say_line(info: Mapping[str, Any]) -> None:
    """A new state, with what was measured of it."""
    from fedft.reports import columns, metric_log

    looks = [columns.of(name) for name in columns.measured(info)]
    measured = "".join(f", {c.heading} {c.text(info[c.name])}" for c in looks)
    seconds = metric_log.wall_seconds(info)
    log.info(
        "state %d%s; %d bytes up, %d down; %.2f s; %d refused",
        info["version"], measured, info["bytes_up"], info["bytes_down"], seconds, len(info["refused"]),
        extra={"round": info.get("round")},
    )  # fmt: skip


def _know(kind: str, info: Mapping[str, Any]) -> None:
    """What this event says of the lines that follow it."""
    if kind == "enrolling":
        json_log.know(run=info.get("run"))
    elif kind == "round":
        json_log.know(round=info["round"])
    elif kind in ("line", "evaluating", "ended"):
        json_log.know(round=None)
