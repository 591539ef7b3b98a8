"""The log of the services, `fedft server` and `fedft client`: its form, and the engine's events as its lines."""

import json
import logging
import sys
import time
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import typer

log = logging.getLogger("fedft")

LogForm = Annotated[Literal["lines", "json"], typer.Option("--log", help="Form of the log on stdout.")]


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created)), "level": record.levelname}
        line |= {"logger": record.name, "message": record.getMessage()}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


def start(form: str) -> None:
    """Send the log to stdout, in lines or, where `form` is "json", as an object a line."""
    handler = logging.StreamHandler(sys.stdout)
    lines = logging.Formatter("%(asctime)s %(levelname)-7s %(message)s", "%Y-%m-%dT%H:%M:%SZ")
    lines.converter = time.gmtime
    handler.setFormatter(_Json() if form == "json" else lines)
    logging.basicConfig(handlers=[handler], level=logging.INFO, force=True)
    for noisy in ("httpx", "flwr", "transformers", "datasets"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def say(kind: str, info: Mapping[str, Any]) -> None:
    """The engine's events as log lines; refusals are logged where they happen."""
    if kind == "preparing":
        log.info("loading the base model; run folder %s", info["folder"])
    elif kind == "enrolling":
        log.info("waiting for %s", ", ".join(info["clients"]))
    elif kind == "enrolled":
        log.info("%s has joined", info["client"])
    elif kind == "round":
        log.info("round %d: asking %s", info["round"], ", ".join(info["asked"]))
    elif kind == "progress" and {"step", "steps"} <= info.keys():
        left = f", about {info['left_s']:.0f} s left" if "left_s" in info else ""
        log.info("round %d: %s at step %d of %d%s", info["round"], info["client"], info["step"], info["steps"], left)
    elif kind == "progress":
        log.info("round %d: %s: %s", info["round"], info["client"], info["doing"])
    elif kind == "admitted":
        loss = info["metrics"].get("loss")
        log.info("round %d: %s admitted%s", info["round"], info["client"], f", loss {loss:.4f}" if loss else "")
    elif kind == "line":
        from fedft.reports import columns

        looks = [columns.of(name) for name in columns.measured(info)]
        measured = "".join(f", {c.heading} {c.text(info[c.name])}" for c in looks)
        seconds = sum(info["seconds"].values())
        log.info(
            "state %d%s; %d bytes up, %d down; %.2f s; %d refused",
            info["version"], measured, info["bytes_up"], info["bytes_down"], seconds, len(info["refused"]),
        )  # fmt: skip
