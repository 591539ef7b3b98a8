"""Whether a job is about the same run as a client's own config, on the same base model: nothing else is taken up."""

from fedft.client.base_precision import precision_of
from fedft.config import LOCAL, RunConfig
from fedft.errors import PlanRefused
from fedft.models.load import Base
from fedft.update import Job


def check(job: Job, config: RunConfig, base: Base) -> int:
    """The bits of the base's weights that the job's run has, for a job that is what the client's config says.

    Raises PlanRefused: `job_mismatch`, `base_mismatch`, `tokenizer_mismatch`. Models and data are the client's own, in
    other words than the server's; what [privacy] says is compared by `own_privacy`.
    """
    ours = config.to_dict()
    for table in ("strategy", "local", "codec"):
        mine = {k: v for k, v in ours[table].items() if k not in LOCAL.get(table, ())}
        if (theirs := dict(job.table(table))) != mine:
            raise PlanRefused("job_mismatch", f"the server's [{table}] is {theirs}, ours is {mine}")
    if job.base != base.digest and job.base != base.earlier(str(job.table("model").get("dtype"))):
        raise PlanRefused("base_mismatch", f"base model {base.digest[:12]}, the server's {job.base[:12]}")
    if job.tokenizer and job.tokenizer != (own := base.tokenizer_digest):
        raise PlanRefused(
            "tokenizer_mismatch",
            f"tokenizer {own[:12]}, the server's {job.tokenizer[:12]}: another vocabulary, other merges, special "
            "tokens or chat template",
        )
    return precision_of(job).bits
