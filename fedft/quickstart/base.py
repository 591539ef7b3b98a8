"""The quickstart's base model in its cache folder: trained on first use, found there ever after.

    folder = ensure()          AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)

The folder's name has a digest of everything that decides the model's bytes: text, settings, versions of Python and of
libraries. The same settings give the same bytes on one machine. Another Python has another text, and another processor
rounds differently, so sites of a real deployment must receive one base: compare the `digest` in `fedft-base.json`.
"""

import hashlib
import json
import os
import platform
import shutil
import sys
import tempfile
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from fedft.errors import ConfigError
from fedft.quickstart import pretraining
from fedft.quickstart.pretraining import END, PAD, Settings

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import LlamaForCausalLM

RECORD = "fedft-base.json"  # its presence says that the folder is whole: the folder is renamed into place with it


def cache_folder() -> Path:
    """The folder for what fedft can make again: FEDFT_CACHE, or `fedft` in the user's cache folder."""
    if own := os.environ.get("FEDFT_CACHE"):
        return Path(own)
    if xdg := os.environ.get("XDG_CACHE_HOME"):
        return Path(xdg) / "fedft"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "fedft" / "cache"
    return Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache") / "fedft"


def ensure(
    cache: Path | None = None, progress: bool | None = None, *, settings: Settings | None = None, threads: int = 1
) -> Path:
    """The folder of the built-in base model, for AutoModelForCausalLM and AutoTokenizer; trained if it is not there.

    Args:
        cache: folder to keep it in; None is `cache_folder()`.
        progress: show a bar on stderr while training; None: only where stderr is a terminal.
        settings: None is the quickstart's model; `pretraining.TINY` is one for tests.
        threads: torch threads to train with. One is the default because it is never slow: a second one halves the
            time on an idle machine and can make it twenty times longer on a busy one.
    Raises:
        ConfigError: the cache cannot be written.

    Guarantees: the folder returned is whole and its bytes are those recorded in its `fedft-base.json`; a build that is
    interrupted leaves no folder of that name, two at a time leave one. Torch's global random state and its number of
    threads are as before.
    """
    settings = settings or Settings()
    cache, text = cache or cache_folder(), pretraining.training_text()
    folder = cache / f"base-{_key(text, settings)}"
    if intact(folder):
        return folder
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".building-", dir=cache) as building:
            _build(made := Path(building) / "base", text, settings, threads, progress)
            _move(made, folder)
    except OSError as e:
        raise ConfigError(f"cannot keep the base model in {cache}: {e}; FEDFT_CACHE names another folder") from e
    return folder


def intact(folder: Path) -> bool:
    """Whether `folder` holds a finished base model whose weights and tokenizer have the digest of its record."""
    try:
        return bool(json.loads((folder / RECORD).read_text())["digest"] == _digest(folder))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _digest(folder: Path) -> str:
    """SHA-256 over the bytes of weights and tokenizer; configs are left out, they name library versions."""
    h = hashlib.sha256()
    for name in ("model.safetensors", "tokenizer.json"):
        h.update(hashlib.sha256((folder / name).read_bytes()).digest())
    return h.hexdigest()


def _key(text: str, settings: Settings) -> str:
    """16 hexadecimal digits that name a base model: a digest of all that decides its bytes."""
    versions = [platform.python_version(), *(version(name) for name in ("torch", "transformers", "tokenizers"))]
    return hashlib.sha256(json.dumps([text, asdict(settings), versions]).encode()).hexdigest()[:16]


def _build(folder: Path, text: str, settings: Settings, threads: int, progress: bool | None) -> None:
    """Train a tokenizer and a model on `text` and write them, with their record, into `folder`."""
    with _bar(progress, settings.steps) as bar, pretraining.own_torch(settings.seed, threads):
        tokenizer = pretraining.trained_tokenizer(text, settings)
        tokens = torch.tensor(tokenizer.encode(text).ids)  # (about 150,000,)
        model = pretraining.new_model(tokenizer, settings)
        losses = []
        for loss in pretraining.training_losses(model, tokens, settings):
            losses.append(loss)
            bar.advance(bar.task_ids[0])
    _save(folder, model, tokenizer, settings, losses)


def _bar(progress: bool | None, steps: int) -> Progress:
    """A progress bar on stderr with one task of so many steps; see `ensure` for `progress`."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:.0f} %"),
        TimeElapsedColumn(),
    )
    bar = Progress(*columns, console=console, disable=not (console.is_terminal if progress is None else progress))
    bar.add_task("Training the quickstart's base model (only once; kept for later runs)", total=steps)
    return bar


def _save(
    folder: Path, model: "LlamaForCausalLM", tokenizer: "Tokenizer", settings: Settings, losses: list[float]
) -> None:
    """Write model, tokenizer and the record of both; the record last, for it says that the folder is whole."""
    from safetensors.torch import save_file
    from transformers import PreTrainedTokenizerFast

    model.config.save_pretrained(folder)
    # What save_pretrained would write, without its progress bar; the tied head is one of the parameters only once.
    weights = {name: p.detach() for name, p in model.named_parameters()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        model_max_length=settings.context,
    )
    wrapped.save_pretrained(folder)
    record: dict[str, Any] = {
        "digest": _digest(folder),
        "parameters": sum(p.numel() for p in weights.values()),
        "loss": {"first": losses[0], "last": losses[-1]},
        "settings": asdict(settings),
    }
    (folder / RECORD).write_text(json.dumps(record, indent=2) + "\n")


def _move(made: Path, folder: Path) -> None:
    """Give the finished folder `made` its name, unless another process has put an intact one there."""
    try:
        made.rename(folder)
    except OSError:  # there is one: another process finished first, with the same bytes, or it is damaged
        if not intact(folder):
            shutil.rmtree(folder)
            made.rename(folder)
