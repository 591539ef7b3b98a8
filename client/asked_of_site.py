"""What a job asks of a site, in words that its operator can judge, before anything is loaded: for `fedft site runs`."""

import json
from typing import Any

from fedft import registry, strategies
from fedft.client import allowed_jobs
from fedft.client.site_settings import SiteConfig
from fedft.config import RunConfig
from fedft.models import tasks
from fedft.privacy.tables import unlike_default
from fedft.training.metrics import interface as metrics
from fedft.update import Job


def asked(job: Job, site: SiteConfig) -> dict[str, str]:
    """What it is -> text, of all that a run does here, as the site would carry it out; no model is loaded.

    Texts are the server's: whoever shows them makes them printable. Raises PlanRefused for what the policy forbids.
    """
    config = allowed_jobs.run_config(job, site)
    m, local, d, p = config.model, config.local, config.data, site.policy
    space = strategies.make(config.strategy.name, config.strategy.options).space
    whole = f", and whole: {', '.join(m.modules_to_save)}" if m.modules_to_save else ""
    layers = _text(m.targets) + ("" if m.layers is None else f", layers {_text(m.layers)}")
    rank = f"as the plan of each round says, at most {p.max_rank} here"
    measured = metrics.asked(config.eval)
    generated = f", {config.eval.generate_tokens} generated" if measured else ""
    prompts = "" if d.max_prompt is None else f", of a prompt {d.max_prompt}"
    decay = "" if local.learning_rate_decay == 1 else f", times {local.learning_rate_decay:g} each round"
    return {
        "strategy": _choice({"name": config.strategy.name, **config.strategy.options}),
        "base": f"{job.base[:12]}, tokenizer {job.tokenizer[:12] or 'not said'}; here {m.id}",
        "targets": "all parameters" if space.of_base else f"{_text(m.adapter)} on {layers}{whole}",
        "rank": "none" if space.rank_free else rank,
        "steps": f"{local.steps} a round, of {local.batch_size} rows; a plan may say others, at most {p.max_steps}",
        "rate": f"{local.learning_rate:g}{decay}, {local.optimizer}; a plan may say up to {p.max_learning_rate:g}",
        "tokens": f"{d.max_length} a row{prompts}{generated}",
        "learns by": ", ".join([_choice(local.objective), *map(_choice, local.transforms)]),
        "codecs": f"up {config.codec.up}, down {config.codec.down}",
        "measures": ", ".join(["loss", "accuracy", *measured]),
        "privacy": _hidden(config),
        "code": _code(config),
        **_forms(config, site),
    }


def _hidden(config: RunConfig) -> str:
    """What a run hides of this site, by the keys of [privacy] that are not at their defaults."""
    said = unlike_default(config.privacy)
    if config.privacy.secagg != "on" and not config.privacy.on:
        return "the server sees each update, and the model may tell of rows"
    return ", ".join(f"{key} = {_text(value)}" for key, value in said.items())


def _code(config: RunConfig) -> str:
    """What of installed packages the run uses; everything else is this package's own."""
    used = [(registry.strategies, name) for name, _ in registry.tower(config.strategy.name, config.strategy.options)]
    used += [(known, registry.named(choice, known.kind)[0]) for known, choice in config.in_job()]
    used += [(registry.metrics, name) for name in metrics.asked(config.eval)]
    others = [f"{known.kind} {name}" for known, name in used if name not in known.built_in]
    parts = [
        part.strip().partition(":")[0] for said in (config.codec.up, config.codec.down) for part in said.split("|")
    ]
    installed = registry.codecs.names().keys() - registry.codecs.built_in
    others += [f"codec {name}" for name in dict.fromkeys(parts) if name in installed]
    return f"of installed packages: {', '.join(others)}" if others else "built in"


def _forms(config: RunConfig, site: SiteConfig) -> dict[str, str]:
    """Which fields of a row are read, and whose template says so."""
    d = config.data
    keys: tuple[str, ...] = ("prompt", "response")
    if config.local.pairs:
        keys = ("prompt", "chosen", "rejected", "chat_template")
    elif not tasks.of(config.model.task).generates:
        keys = ("text", "label")
    elif d.encode is not None:
        keys = ("encode",)
    elif d.messages is not None:
        keys = ("messages", "chat_template")
    elif d.tokens is not None:
        keys = ("tokens",)
    said = {key: value for key in keys if (value := getattr(d, key)) is not None}
    whose = {key: "this site's" if getattr(site.data, key) is not None else "the server's" for key in said}
    return {key: f"{json.dumps(value, ensure_ascii=False)} ({whose[key]})" for key, value in said.items()}


def _choice(said: Any) -> str:
    """A name, and its options behind it."""
    name, options = registry.named(said, "choice")
    return name + "".join(f", {key} = {_text(value)}" for key, value in options.items())


def _text(said: Any) -> str:
    return said if isinstance(said, str) else json.dumps(said, ensure_ascii=False, default=str)
