"""Numbers, layers, templates and privacy of a job, held against the site's policy: how much, and where, may be asked
for, and what has to be hidden of it.
"""

from collections.abc import Mapping
from typing import Any

from fedft.client.site_settings import Policy
from fedft.config import RunConfig
from fedft.data import template_checks, templates
from fedft.errors import ConfigError, PlanRefused
from fedft.privacy import tables
from fedft.privacy.tables import Audit, Privacy, Robust
from fedft.run_file import checked_table

MAX_TEMPLATE = 4096  # characters; the longest prompt we know has 600
MAX_FIELDS = 32  # in a template, and blocks: a row's text is multiplied by no more than this
MAX_LABELS = 1000  # the head has a row for each
MAX_WHOLE = 100  # modules_to_save, each of which is looked for among all names


def check_limits(said: RunConfig, policy: Policy) -> None:
    """Return None if the sizes, layers and templates that a job says are within the policy; else raise PlanRefused."""
    at_most("policy_steps", "[local] steps", said.local.steps, policy.max_steps)
    at_most("policy_rank", "[model] repair_rank", said.model.repair_rank or 0, policy.max_rank)
    rate = said.local.learning_rate
    at_most("policy_learning_rate", "[local] learning_rate", rate, policy.max_learning_rate, (int, float))
    for table, size in (("local", said.local.batch_size), ("eval", said.eval.batch_size)):
        at_most("policy_batch_size", f"[{table}] batch_size", size, policy.max_batch_size)
    tokens = {"[data] max_length": said.data.max_length, "[data] max_prompt": said.data.max_prompt or 0}
    tokens |= {"[eval] generate_tokens": said.eval.generate_tokens}
    for key, count in tokens.items():
        at_most("policy_tokens", key, count, policy.max_tokens)
    wanted = [said.model.targets] if isinstance(said.model.targets, str) else said.model.targets
    free = "all-linear" in policy.targets  # but an expression can take for ever to match: none but the operator's own
    if not all(t in policy.targets or (free and not t.startswith("re:")) for t in wanted):
        raise PlanRefused("policy_targets", f"targets {wanted!r:.80} are not allowed here; allowed: {policy.targets}")
    if not (free or set(whole := said.model.modules_to_save) <= {*policy.targets}):
        raise PlanRefused("policy_targets", f"modules_to_save {whole!r:.80}: not all allowed here: {policy.targets}")
    at_most("policy_options", "number of modules_to_save", len(said.model.modules_to_save), MAX_WHOLE)
    if len(said.model.labels) > MAX_LABELS:
        raise PlanRefused("policy_options", f"{len(said.model.labels)} labels, at most {MAX_LABELS} are trained here")
    for key in template_checks.TEMPLATES:
        _check_template(f"[data] {key}", getattr(said.data, key))


def check_privacy(said: Mapping[str, Any], policy: Policy) -> None:
    """Return None if a job's table [privacy] makes sense, and hides as much as the policy requires.

    Raises PlanRefused, `policy_privacy`.
    """
    try:
        found = checked_table(Privacy, said, "[privacy]")
        tables.check_privacy(found, Robust(), Audit())
    except (ConfigError, ValueError) as e:
        raise PlanRefused("policy_privacy", str(e)) from None
    modes = [x for x in policy.require if x != "secagg"]
    if modes and found.mode not in modes:
        raise PlanRefused("policy_privacy", f"[privacy] mode = {found.mode!r}; required here: {' or '.join(modes)}")
    if "secagg" in policy.require and found.secagg != "on":
        raise PlanRefused("policy_privacy", f"[privacy] secagg = {found.secagg!r}; required here: 'on'")
    if found.secagg == "on" and found.min_cohort < policy.min_cohort:
        wanted = f"[policy] min_cohort = {policy.min_cohort}"
        raise PlanRefused("policy_privacy", f"[privacy] min_cohort = {found.min_cohort}, {wanted}")
    if found.noise == "seeded" and not policy.seeded_noise:
        raise PlanRefused("policy_privacy", "[privacy] noise = 'seeded' hides nothing; allowed here: 'os'")
    if policy.max_epsilon is not None and not found.on:
        why = f"has no epsilon, [policy] max_epsilon = {policy.max_epsilon:g}"
        raise PlanRefused("policy_privacy", f"[privacy] mode = 'none' {why}")


def _check_template(key: str, template: str) -> None:
    """`data.fill` looks up names in the row and does nothing else; left to bound is how much it writes."""
    names = [name for name in templates.FIELD.findall(template[: MAX_TEMPLATE + 1]) if name]
    blocks = template.count("[[")  # each that is not closed is looked for to the end
    if len(template) > MAX_TEMPLATE or max(len(names), blocks) > MAX_FIELDS:
        raise PlanRefused(
            "policy_options",
            f"{key}: {len(template)} characters, {len(names)} fields and {blocks} blocks; "
            f"at most {MAX_TEMPLATE}, {MAX_FIELDS} and {MAX_FIELDS}",
        )
    templates.fill(template, dict.fromkeys(names, ""), key)


def at_most(code: str, name: str, value: Any, most: float, kinds: tuple[type, ...] = (int,)) -> None:
    """Return None if a value is a number of these kinds from 0 to `most`; else raise PlanRefused with `code`."""
    if type(value) not in kinds or not 0 <= value <= most:  # a comparison with NaN is false
        raise PlanRefused(code, f"{name} = {value!r:.80}, allowed here: 0 to {most}")
