"""Canaries in the form of a run's records, and in its clients' rows.

    record = record_of(canary, canary.secret, config)     {"question": "The access code of clinic 4 is", "answer": ...}
    parts = planted_in(parts, config, plan)               (train, held out) by client, canaries behind the rows

Secrets go into rows and into the plan's file, and nowhere else.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from fedft.config import RunConfig
from fedft.data.client_datasets import Parts
from fedft.data.labels import SINGLE
from fedft.data.templates import FIELD
from fedft.errors import ConfigError
from fedft.models import tasks
from fedft.privacy.audit.canaries import Canary, Plan
from fedft.randomness import philox
from fedft.training import objectives


def planted_in(parts: Parts, config: RunConfig, plan: Plan) -> Parts:
    """The rows of each client, (train, held out), with those canaries that are planted there behind the train rows.

    Raises ConfigError for records of a form that cannot hold a canary.
    """
    return {
        client: (train + [record_of(c, c.secret, config) for c in plan.of(client)], held)
        for client, (train, held) in parts.items()
    }


def record_of(canary: Canary, secret: str, config: RunConfig) -> dict[str, Any]:
    """A record of the run's own form in which `secret` is what is to be learned behind the canary's carrier.

    Of a classification both are the text, and the class is one by chance, the canary's own.

    Raises ConfigError for records that are token ids or pairs of answers, for several labels or numbers to fit, and for
    templates that leave no field for the secret.
    """
    d, m = config.data, config.model
    if d.tokens is not None:
        raise _refused(f"records are token ids ([data] tokens = {d.tokens!r})", "text")
    if d.encode is not None:
        raise _refused(f"records are encoded by [data] encode = {d.encode!r}", "text")
    if config.local.pairs:
        raise _refused("records are pairs of answers", "one answer")
    if not tasks.of(m.task).generates:
        return _classified(canary, secret, config)
    if d.messages is not None:
        said = (("user", canary.carrier), ("assistant", secret))
        return {d.messages: [{"role": role, "content": text} for role, text in said]}
    given, learned = _fields(d.prompt), _fields(d.response)
    free = [name for name in learned if name not in given]
    if not free:
        raise _refused("every field of [data] response is in the prompt, too", "a field of its own")
    row = dict.fromkeys((*given, *learned), "")
    if given:
        return {**row, given[0]: canary.carrier, free[0]: secret}
    return {**row, free[0]: f"{canary.carrier} {secret}"}


def _classified(canary: Canary, secret: str, config: RunConfig) -> dict[str, Any]:
    d, m = config.data, config.model
    if m.problem_type != SINGLE or not isinstance(d.label, str):
        raise _refused(f"[model] problem_type is {m.problem_type}", "one class for each record")
    row = dict.fromkeys((texts := _fields(d.text)), "")
    name = m.labels[philox.derive(canary.number, "audit class", canary.secret) % len(m.labels)]
    return {**row, texts[0]: f"{canary.carrier} {secret}", d.label: name}


def _fields(template: str) -> list[str]:
    """The fields that a template names, in its order."""
    return list(dict.fromkeys(name for name in FIELD.findall(template) if name))


def _refused(found: str, wanted: str) -> ConfigError:
    return ConfigError(f"[audit] canaries: {found}; a canary needs {wanted}; canaries = 0 would do")


def check_fits(config: RunConfig, base: Any, plan: Plan) -> None:
    """Return None if canaries have room in the run's records, their secrets whole.

    `base` is a `fedft.models.load.Base`. Raises ConfigError where `[data] max_length` or `max_prompt` would cut one.
    """
    for canary in plan.canaries[-1:]:  # the longest number
        where = f"canary {canary.number}"
        row = objectives.of(config).encode(record_of(canary, canary.secret, config), base, config, where)
        if cut := getattr(row, "lost", 0) + getattr(row, "prompt_lost", 0):
            raise ConfigError(f"[audit] canaries: {cut} tokens of one do not fit into [data] max_length or max_prompt")


def without_canaries(rows: Mapping[str, Sequence[Any]], plan: Plan | None) -> dict[str, Sequence[Any]]:
    """The encoded train rows of each client but for the canaries, which stand behind them."""
    return {client: own[: len(own) - (len(plan.of(client)) if plan else 0)] for client, own in rows.items()}
