"""What can be asked of a run folder afterwards: evaluate its newest state, export its model."""

import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from torch import Tensor

from fedft import check
from fedft.arithmetic.lowrank import LowRank
from fedft.errors import ConfigError
from fedft.models import adapter_folder, export, tasks
from fedft.models.parameters import parameters_of, shared_names
from fedft.server import run_outputs
from fedft.simulations import workplace as runs
from fedft.training import evaluate
from fedft.training.metrics import interface
from fedft.training.metrics.loss import over_clients

Metrics = dict[str, float]


def evaluate_run(folder: Path, *, rouge: bool = False, more: Sequence[str] = ()) -> tuple[dict[str, Metrics], Metrics]:
    """(metrics by client, their mean over clients and `token_loss`) of the newest state on the held-out rows.

    Args:
        folder: of the run.
        rouge: "rouge_l" as well.
        more: names of other metrics beside those of the run's `[eval] metrics`.
    Raises:
        ConfigError: a metric that there is not or that is not for the run's task, or no held-out rows.
    """
    place, state = runs.reopen(folder)
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
    return found, over_clients(found.values()) | counts


def export_run(folder: Path, to: Path, *, merged: bool = False, client: str | None = None) -> str:
    """Write the newest state's model to `to`, or that of `client` where clients keep models of their own.

    Returns "adapter", "delta" or "merged model".
    """
    try:
        if to.exists() and any(to.iterdir()):
            raise ConfigError(f"--to {to}: is not empty")
    except OSError as e:
        raise ConfigError(f"--to {to}: cannot be written: {e.strerror}") from e
    # before --to is made: a run that cannot be read leaves nothing there
    place, state = runs.reopen(folder, data=client is not None)
    if client is not None:
        if not place.recipe.personal:
            raise ConfigError(f"--client {client}: all clients of {place.recipe.name} have one model")
        if client not in place.clients:
            raise ConfigError(f"--client {client!r}: no such client{check.nearest(client, place.clients)}")
        place.stand(state, client)
    try:
        to.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise ConfigError(f"--to {to}: cannot be written: {e.strerror}") from e
    kind = export.save_adapter(to, place.handle, place.base, run_outputs.base_name(place.base))
    _tokenizer(place, place.base.tokenizer).save_pretrained(to)
    if not merged:
        return kind
    return _merge(to, place)


def _merge(to: Path, place: runs.Workplace) -> str:
    m, seed = place.config.model, place.config.server.seed
    adapter = (to / "adapter_config.json").exists()
    # an adapter on an adapter has been exported as one, of the base below both
    source = run_outputs.base_name(place.base) if adapter and place.base.merged else m.id
    how = {"labels": m.labels, "problem_type": m.problem_type, "dtype": m.dtype, "seed": seed}
    fresh = adapter_folder.load(source, m.task, **how)  # rounded as it was in the run
    if not place.handle.weights_fixed:
        fresh.model.float()  # what is added to it was in float32, too
    if adapter:
        from peft import PeftModel

        with warnings.catch_warnings():
            # peft asks transformers for a name that is being renamed
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
            warnings.filterwarnings("ignore", message=".*ensure_weight_tying")  # those of an encoder-decoder: export.py
            shared = shared_names(fresh.model)
            whole = adapter_folder.in_its_weights(PeftModel.from_pretrained(fresh.model, str(to)), shared)
    else:
        whole = fresh.model
        own = parameters_of(whole)
        for name, change in _whole_changes(place, to).items():
            own[name].data.add_(change)
    for file in to.iterdir():
        shutil.rmtree(file) if file.is_dir() else file.unlink()
    whole.save_pretrained(str(to))
    _tokenizer(place, fresh.tokenizer).save_pretrained(str(to))
    return "merged model"


def _tokenizer(place: runs.Workplace, tokenizer: Any) -> Any:
    """The tokenizer, with the chat template that the run learned: what is served is written as it was."""
    if place.config.data.chat_template is not None:
        tokenizer.chat_template = place.config.data.chat_template
    return tokenizer


def _whole_changes(place: runs.Workplace, to: Path) -> dict[str, Tensor]:
    """What each parameter differs from the base by. Raises ConfigError for a kind whose change is no matrix."""
    from safetensors.torch import load_file

    if (to / "delta.safetensors").exists():
        return load_file(to / "delta.safetensors")
    handle = place.handle
    changes, whole = handle.change()
    if not changes and handle.layout.modules:
        raise ConfigError(f"--merged: what adapters of kind {handle.kind.name!r} change is no matrix of a weight")
    for m, d in changes.items():
        dense = d.dense() if isinstance(d, LowRank) else d
        weight = handle.base()[f"{m}.weight"]
        whole[f"{m}.weight"] = dense if weight.shape == dense.shape else dense.T
    return whole
