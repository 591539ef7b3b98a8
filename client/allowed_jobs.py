"""What the site's operator allows, checked before any model is loaded; the site's file outranks the server.

    config = run_config(job, site)      the job's tables and the site's own, once
    check_plan(plan, size, site.policy) every round, before its tensors are decoded

Whatever a server says, the outcome is work that the policy allows, or PlanRefused(code, one line):

    policy_strategy        a strategy that the site does not list, by exactly this name
    policy_base            a base model that the site does not list
    policy_bits            a base in a precision that the site does not list
    base_precision         the site has chosen another precision than the run's, which the strategy does not allow
    policy_targets         layers that the site does not list
    policy_rank, policy_steps, policy_learning_rate, policy_batch_size, policy_tokens       above the site's limit
    policy_work            a round of more tokens than the site allows, see `work_limit`
    policy_download        tensors of a plan, with what they are added to, that take more memory than the site allows
    policy_memory          work that is foreseen to take more memory than the site allows, see `memory_limit`
    policy_metrics         a metric that the site does not list
    policy_privacy         less privacy than the site requires, or a table [privacy] that makes no sense
    policy_options         anything else: an unknown key, a wrong type, an option that the strategy does not take

The lines quote what the server said and the site's limits, never a record.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, get_type_hints

from fedft import check, config, registry, run_file, strategies
from fedft.client import work_limit
from fedft.client.base_precision import own_model
from fedft.client.job_limits import at_most, check_limits, check_privacy
from fedft.client.site_settings import Policy, SiteConfig
from fedft.compression import codec_names
from fedft.config import ALL, LOCAL, RunConfig
from fedft.data import template_checks
from fedft.errors import FedftError, PlanRefused, in_one_line
from fedft.training.metrics import interface as metrics
from fedft.update import Job, Plan
from fedft.wire.frame import MAX_MESSAGE_BYTES
from fedft.wire.table import MAX_TENSORS, max_table_bytes

LOOKED_AT = {
    "data": {*template_checks.TEMPLATES, "label", "messages", "tokens", "chat_template"},
    "model": {"targets", "layers", "modules_to_save", "labels", "problem_type"},
    "codec": {"up", "down"},
    "eval": {"metrics"},
}
"""Keys by table whose texts name nothing that is imported, or have a check of their own. All other texts of a job,
those of tables and options yet to come too, are held against what is built in and what the policy lists."""
MIB = 2**20

RUN = re.compile(r"[0-9a-f]{16}")
DIGEST = re.compile(r"[0-9a-f]{64}")


def check_job(job: Job, policy: Policy) -> None:
    """Return None if the policy allows the run; the strategy's module is loaded only if the policy lists its name.

    Raises PlanRefused and nothing else, whatever is in the job.
    """
    with _refusing():
        _check_job(job, policy)


def check_plan(plan: Plan, size: int, policy: Policy) -> None:
    """Return None if the policy allows the round's work, and `size` bytes of tensors from the server in memory.

    The plan's own tensors are not looked at. Raises PlanRefused and nothing else, whatever is in the plan.
    """
    with _refusing():
        if size > policy.max_download_mib * MIB:
            said = f"{size / MIB:.1f} MiB of tensors, [policy] max_download_mib = {policy.max_download_mib}"
            raise PlanRefused("policy_download", said)
        at_most("policy_rank", "rank", plan.shape.largest, policy.max_rank)
        at_most("policy_steps", "steps", plan.steps, policy.max_steps)
        at_most("policy_batch_size", "batch", plan.batch, policy.max_batch_size)
        if plan.bits and plan.bits not in policy.bits:
            raise PlanRefused("policy_bits", f"a base of {plan.bits} bits; allowed here: {policy.bits}")
        if plan.steps < 1 and not plan.evaluate:
            raise PlanRefused("policy_steps", f"steps = {plan.steps}: there is nothing to train")
        at_most("policy_learning_rate", "learning_rate", plan.learning_rate, policy.max_learning_rate, (int, float))
        if not (isinstance(plan.evaluate, bool) and isinstance(plan.extra, Mapping)):
            raise PlanRefused("policy_options", "malformed plan: evaluate or extra is of a wrong type")


def longest_message(policy: Policy) -> int:
    """Bytes of the longest message of a server that is taken in: the tensors that may come, their table, a seal."""
    return min(policy.max_download_mib * MIB + max_table_bytes(MAX_TENSORS) + MIB, MAX_MESSAGE_BYTES)


def run_config(job: Job, site: SiteConfig) -> RunConfig:
    """The run as this site carries it out: the job's tables, with the site's paths, device, memory and record format.

    The strategy's options are checked: `strategies.make` takes them. Raises PlanRefused as `check_job` does.
    """
    with _refusing():
        said = _check_job(job, site.policy)
        return carried_out(said, site)


def carried_out(said: RunConfig, site: SiteConfig) -> RunConfig:
    """A run as this site carries it out; raises PlanRefused for a chat template that is not the site's own."""
    own = {k: v for k, v in vars(site.data).items() if k not in ("client", "value")}
    form = {k: v for k, v in own.items() if v is not None}
    if form.keys() & {"prompt", "response", "messages", "tokens", "encode"}:  # another form here is not this site's
        form = {"messages": None, "tokens": None} | form
    if form.get("messages", said.data.messages) is None and not said.local.pairs:
        form["chat_template"] = None
    elif (theirs := said.data.chat_template) is not None and theirs != site.data.chat_template:
        why = "a program, which runs only where [data] of the site's own file says the same"
        raise PlanRefused("policy_options", f"[data] chat_template: {why}")
    return replace(
        said,
        model=own_model(said, site),
        data=replace(said.data, **form),
        local=replace(said.local, **{k: v for k, v in vars(site.local).items() if k in LOCAL["local"]}),
    )


def _check_job(job: Job, policy: Policy) -> RunConfig:
    """The job's tables, checked: what the site adds is at its defaults."""
    name = job.table("strategy").get("name")
    if not (isinstance(name, str) and name in policy.strategies):
        allowed = ", ".join(policy.strategies) or "none"
        raise PlanRefused("policy_strategy", f"strategy {name!r:.80} is not allowed here; allowed: {allowed}")
    if not (isinstance(job.base, str) and DIGEST.fullmatch(job.base)):
        raise PlanRefused("policy_options", "base: wanted 64 hexadecimal digits")
    if not (isinstance(job.tokenizer, str) and (not job.tokenizer or DIGEST.fullmatch(job.tokenizer))):
        raise PlanRefused("policy_options", "tokenizer: wanted 64 hexadecimal digits, or none")
    if policy.base is not None and not job.base.startswith(tuple(policy.base)):
        raise PlanRefused("policy_base", f"base model {job.base[:12]} is not allowed here")
    if not (isinstance(job.run, str) and RUN.fullmatch(job.run)):
        raise PlanRefused("policy_options", "run: wanted 16 hexadecimal digits")
    _check_codecs(job.table("codec"))
    tables = _tables(job)
    check_privacy(job.table("privacy"), policy)
    said = run_file.from_dict(tables, where="job")
    # Not through from_dict: an option that is called like a strategy would be taken for that strategy's own table.
    options = {k: v for k, v in job.table("strategy").items() if k != "name"}
    said = replace(said, strategy=config.Strategy(name, options))
    _check_names(said, policy)
    _check_texts(job.tables, policy)
    check_limits(said, policy)
    for metric in metrics.asked(said.eval):
        if metric not in policy.metrics:
            allowed = ", ".join(policy.metrics) or "none"
            raise PlanRefused("policy_metrics", f"metric {metric!r:.80} is not allowed here; allowed: {allowed}")
    metrics.chosen(said.eval, said.model)  # listed here, and installed
    space = strategies.make(name, options).space  # its options are of their types from here on
    for _, own in registry.tower(name, options):
        passes = said.local.steps * own.get("samples", 1)
        at_most("policy_steps", "[local] steps x samples", passes, policy.max_steps)
        factor = own.get("first_order_factor", 1.0) * said.local.learning_rate
        at_most(
            "policy_learning_rate", "learning_rate x first_order_factor", factor, policy.max_learning_rate, (int, float)
        )
    work_limit.check_run(said, policy)
    if space.of_base and "all-linear" not in policy.targets:
        raise PlanRefused("policy_targets", f"strategy {name!r} trains all parameters; allowed: {policy.targets}")
    return said


def _check_codecs(said: Mapping[str, Any]) -> None:
    """Built-in codecs, and those that the site's file names: what a job says imports nothing."""
    if isinstance(up := said.get("up"), str):
        codec_names.received(up)
    if isinstance(down := said.get("down"), str):
        codec_names.downloads(down, codec_names.received)


def _tables(job: Job) -> dict[str, Any]:
    """The job's tables in the form of a run file, without what the site decides."""
    known = get_type_hints(RunConfig)
    tables: dict[str, Any] = {"server": {"seed": job.seed}}
    for table, said in job.tables.items():
        if table not in known or LOCAL.get(table) == ALL:
            raise PlanRefused("policy_options", f"table [{table:.80}]: not for a server to say")
        if table != "strategy":
            for key in said:
                if key not in get_type_hints(known[table]) or key in LOCAL.get(table, ()):
                    raise PlanRefused("policy_options", f"[{table}] {key!r:.80}: not for a server to say")
        tables[table] = said
    return tables


def _check_names(said: RunConfig, policy: Policy) -> None:
    """Where a job names a value of a known kind: one that is built in, or one that the policy lists for that kind.

    The name of an optimizer allows no strategy; nothing is imported to find out.
    """
    for name, _ in registry.tower(said.strategy.name, said.strategy.options):
        if name not in registry.strategies.built_in and name not in policy.strategies:
            raise PlanRefused("policy_strategy", f"strategy {name!r:.80} is not allowed here, nor built in")
    for what, choice in said.in_job():
        if not what.listed(choice, policy.plugins):
            why = "is not built in, nor installed here and allowed"
            raise PlanRefused("policy_options", f"{what.kind} {choice!r:.80} {why}")


def _check_texts(tables: Mapping[str, Mapping[str, Any]], policy: Policy) -> None:
    """Where nobody knows whether a text is a name, in the options of what is named: no text, however deep, is a
    "module:name" or an installed name that the policy does not list for any kind.
    """
    listed = {*policy.strategies, *policy.plugins, *policy.codecs, *policy.metrics}
    known = registry.REGISTRIES.values()
    foreign = {n for r in known for n in r.names()} - {n for r in known for n in r.built_in} - listed
    for table, said in tables.items():
        for key, value in said.items():
            for text in check.texts(value) if key not in LOOKED_AT.get(table, ()) else ():
                if text not in listed and (":" in text or text in foreign):
                    raise PlanRefused("policy_options", f"[{table}] {key!s:.80} says {text!r:.80}: not allowed here")


@contextmanager
def _refusing() -> Iterator[None]:
    """What a hostile job can provoke becomes `policy_options`, and every refusal one line of printable text."""
    try:
        yield
    except PlanRefused as e:
        raise PlanRefused(e.code, _line(e)) from e
    except (FedftError, ValueError, TypeError, LookupError, AttributeError) as e:
        raise PlanRefused("policy_options", _line(e)) from e
    except (ArithmeticError, RuntimeError, MemoryError) as e:  # numbers too large, brackets too deep
        raise PlanRefused("policy_options", f"malformed job: {type(e).__name__}") from e


def _line(e: Exception) -> str:
    return "".join(c if c.isprintable() else "?" for c in in_one_line(e))[:300]
