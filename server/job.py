"""What a run is, said once to every client: the parts of the run file it needs, and the run's identifier."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from fedft.config import ALL, LOCAL, RunConfig
from fedft.models.load import Base
from fedft.privacy.tables import unlike_default
from fedft.update import Job


def job_of(config: RunConfig, base_digest: str, who: Iterable[bytes], tokenizer_digest: str = "") -> Job:
    """The job of a run: what its clients are told, and the run's identifier.

    The identifier changes with the config (tables `server`, `eval`, `limits` and `audit` apart, but for the seed, and
    `[privacy] max_epsilon`), the base and `who`. Keys that are nobody else's business (`fedft.config.LOCAL`) are not in
    the job.

    Args:
        config: the run file.
        base_digest: SHA-256 of the base model that everybody must have, 64 hexadecimal digits.
        who: bytes that tell the run from others of this config: the rows in a simulation, a salt in a deployment.
        tokenizer_digest: SHA-256 of the tokenizer that everybody must have, likewise; no part of the identifier. "":
            any.
    """
    tables = config.to_dict()
    fixed = {t: v for t, v in tables.items() if t not in ("server", "eval", "limits", "robust", "audit")}
    fixed["privacy"] = {"mode": config.privacy.mode, **unlike_default(replace(config.privacy, max_epsilon=None))}
    if said := unlike_default(config.robust):  # what is not said changes no identifier, so runs of before keep theirs
        fixed["robust"] = said
    h = hashlib.sha256(json.dumps([fixed, config.server.seed, base_digest], sort_keys=True).encode())
    for part in who:
        h.update(part)
    return Job(h.hexdigest()[:16], config.server.seed, base_digest, told(config), tokenizer_digest)


def job_on(config: RunConfig, base: Base, who: Iterable[bytes], begun: str = "") -> Job:
    """The job of a run on a loaded base, whose digest it holds.

    A run that was `begun` under an identifier of before, when digests were of weights as loaded, keeps it and that
    digest, which sites of either kind know; the base is loaded once more to find that out.
    """
    who = list(who) if begun else who  # else they need not be in memory at once
    job = job_of(config, base.digest, who, base.tokenizer_digest)
    if begun in ("", job.run):
        return job
    old = job_of(config, base.earlier(config.model.dtype), who, base.tokenizer_digest)
    return old if old.run == begun else job


def told(config: RunConfig) -> dict[str, dict[str, Any]]:
    """The tables of a run file that its clients are told."""
    said = {t: {k: v for k, v in keys.items() if k not in LOCAL.get(t, ())} for t, keys in config.to_dict().items()}
    if not unlike_default(config.privacy):  # an older site knows no such table
        del said["privacy"]
    elif config.privacy.at_clients and config.privacy.epsilon is not None:  # each finds the noise that it needs
        said["privacy"]["rounds"] = config.privacy.rounds or config.server.rounds
    return {t: v for t, v in said.items() if LOCAL.get(t) != ALL}
