"""What can be asked of a run folder afterwards: evaluate its newest state, export its model."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from fedft import check
from fedft.data.examples import Example
from fedft.data.templates import fill
from fedft.errors import ConfigError
from fedft.models import base_note, model_folder, tasks
from fedft.privacy.audit import gate
from fedft.reports import metric_log, summary_file
from fedft.server import run_outputs
from fedft.simulations import workplace as runs
from fedft.training import evaluate, prompts
from fedft.training.metrics import interface
from fedft.training.metrics.loss import of_tokens, over_clients

log = logging.getLogger(__name__)

Metrics = dict[str, float]


def evaluate_run(folder: Path, *, rouge: bool = False, more: Sequence[str] = ()) -> tuple[dict[str, Metrics], Metrics]:
    """The first two of what `evaluated` gives, of the same arguments."""
    return evaluated(folder, rouge=rouge, more=more)[:2]


def evaluated(
    folder: Path, *, rouge: bool = False, more: Sequence[str] = ()
) -> tuple[dict[str, Metrics], Metrics, dict[str, str]]:
    """(metrics by client, their means with `token_loss` and `perplexity`, text by prompt) of the newest state.

    Measured on the held-out rows; the prompts are those of the run's `[eval] prompts`, none where it has none.

    Warns where it is measured on another base, or another precision of it, than the run's clients had.

    Args:
        folder: of the run.
        rouge: "rouge_l" as well.
        more: names of other metrics beside those of the run's `[eval] metrics`.
    Raises:
        ConfigError: a metric that there is not or that is not for the run's task, or no held-out rows.
    """
    place, state = runs.reopen(folder)
    for line in base_note.differences(folder / "model", place.config.model, place.base):
        log.warning("%s: %s", folder, line)
    c = place.config.eval
    if rouge and not tasks.of(place.config.model.task).generates:
        raise ConfigError(f"--rouge compares generated text; {folder} is a run of task {place.config.model.task}")
    more = [*more, *(["rouge_l"] if rouge else [])]
    interface.load([*c.metrics, *more], place.config.model)
    found: dict[str, Metrics] = {}
    for name, client in place.clients.items():
        rows = client.test_rows[: c.max_rows]
        if not rows:
            continue
        if place.recipe.personal:
            place.stand(state, name)
        found[name] = evaluate.measure(place.handle, place.base, rows, c, more)
    if not found:
        raise ConfigError(f"{folder}: no client has held-out rows; see [data] holdout and test")
    counts = {"count": fmean(m["count"] for m in found.values())}
    texts: list[str] = []
    if c.prompts:
        place.stand(state)
        asked = prompts.examples(place.config, place.base, place.handle)
        texts = prompts.written(place.config, place.base, place.handle, asked)
    means = over_clients(found.values(), of_tokens(place.config)) | counts
    return found, means, dict(zip(c.prompts, texts, strict=True))


def written(folder: Path, records: Sequence[str | Mapping[str, Any]], new_tokens: int = 48) -> list[str]:
    """What the newest state's model writes, greedily, behind each text or each record's prompt.

    Args:
        folder: of the run.
        records: texts that are taken as they are, or records whose prompt the run's template makes.
        new_tokens: at most so many each.
    Raises:
        DataError: a record without a field of the template, or a model that writes no text.
    """
    place, _ = runs.reopen(folder, data=False)
    tokenizer = place.base.tokenizer
    model = evaluate.Measured(place.handle, tokenizer, new_tokens=new_tokens)
    place.handle.training(False)
    said = []
    for number, record in enumerate(records, 1):
        text = record if isinstance(record, str) else fill(place.config.data.prompt, record, f"record {number}")
        ids = prompts.ids_of(text, tokenizer, two_sided=place.handle.two_sided)
        said.append(model.generate(Example(ids, [], len(ids))))
    return said


def export_run(
    folder: Path, to: Path, *, merged: bool = False, client: str | None = None, rank: int | None = None
) -> str:
    """Write the newest state's model to `to`, or that of `client` where clients keep models of their own.

    `merged` and `rank` are those of `model_folder.write`, and so is what is returned.
    """
    model_folder.check_free(to)
    if why := gate.held_back(folder):
        raise ConfigError(f"{folder}: its model is held back: {why}; `fedft audit {folder} --release` lets it out")
    # before --to is made: a run that cannot be read leaves nothing there
    place, state = runs.reopen(folder, data=client is not None)
    if client is not None:
        if not place.recipe.personal:
            raise ConfigError(f"--client {client}: all clients of {place.recipe.name} have one model")
        if client not in place.clients:
            raise ConfigError(f"--client {client!r}: no such client{check.nearest(client, place.clients)}")
        place.stand(state, client)
    lines = metric_log.read(folder / "metrics.jsonl")
    summary = {**summary_file.read(folder), "rounds": state.version, "state_digest": state.digest}
    facts = run_outputs.facts_of(place.config, lines, summary)
    return model_folder.write(to, place.config, place.base, place.handle, merged=merged, rank=rank, run=facts)
