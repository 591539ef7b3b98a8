"""The quickstart's base model: a small Llama, trained once on Python's own language reference and kept in a cache.

The text is `pydoc_data.topics`, what `help("while")` shows: part of every installation, so nothing is downloaded. A
byte-level BPE of 1,024 tokens and 935,040 parameters come of it in about half a minute; a first fine-tuning round then
starts from a model that knows words and layout instead of noise.

The same settings give the same bytes on one machine. Another Python has another text, and another processor rounds
differently, so sites of a real deployment must receive one base: compare the `digest` in `fedft-base.json`.
"""

import hashlib
import json
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor

from fedft.errors import ConfigError
from fedft.quickstart import rows

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import LlamaForCausalLM

RECORD = "fedft-base.json"  # its presence says that the folder is whole: the folder is renamed into place with it
END, PAD = "<|end|>", "<|pad|>"


@dataclass(frozen=True)
class Settings:
    """Shape and training of the base model: with the text and the libraries' versions, all that decides its bytes."""

    vocabulary: int = 1024
    hidden: int = 128
    layers: int = 4
    heads: int = 4
    mlp: int = 352
    context: int = 512
    """Longest sequence in tokens; the weights do not depend on it."""
    steps: int = 150
    batch: int = 16
    length: int = 128
    """Tokens of a training sequence."""
    muon_lr: float = 0.03
    """Learning rate of Muon, for the matrices of the layers."""
    adamw_lr: float = 6e-3
    """Learning rate of AdamW, for embeddings and norms."""
    warmup_steps: int = 10
    decay: float = 0.6
    """The last part of the steps, in 0 .. 1, over which both learning rates fall to zero in a line."""
    seed: int = 0


TINY = Settings(vocabulary=512, hidden=64, layers=2, heads=2, mlp=176, steps=30, batch=8, length=64, warmup_steps=5)


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
        progress: show a bar on stderr while training; None does where stderr is a terminal.
        settings: None is the quickstart's model; TINY is one for tests.
        threads: torch threads to train with. One is the default because it is never slow: a second one halves the
            time on an idle machine and can make it twenty times longer on a busy one.
    Guarantees: the folder returned is whole and its bytes are those recorded in its `fedft-base.json`; a build that is
    interrupted leaves no folder of that name, two at a time leave one. Torch's global random state and its number of
    threads are as before. A cache that cannot be written raises ConfigError.
    """
    settings = settings or Settings()
    cache, text = cache or cache_folder(), _text()
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


def _text() -> str:
    """The training text: Python's language reference, topics apart by END."""
    try:
        from pydoc_data.topics import topics
    except ImportError:  # some distributions leave the reference out; docstrings read much the same
        return rows.prose()
    return END.join(topics[name] for name in sorted(topics))


def _build(folder: Path, text: str, settings: Settings, threads: int, progress: bool | None) -> None:
    with _bar(progress, settings.steps) as bar, _own_torch(settings.seed, threads):
        tokenizer = _tokenizer(text, settings)
        tokens = torch.tensor(tokenizer.encode(text).ids)  # (about 150,000,)
        model = _model(tokenizer, settings)
        losses = []
        for loss in _training(model, tokens, settings):
            losses.append(loss)
            bar.advance(bar.task_ids[0])
    _save(folder, model, tokenizer, settings, losses)


@contextmanager
def _own_torch(seed: int, threads: int) -> Iterator[None]:
    """Inside, torch has this seed and `threads` threads; afterwards both are what they were."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the GPUs as well
            yield
    finally:
        torch.set_num_threads(before)


def _bar(progress: bool | None, steps: int) -> Progress:
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


def _tokenizer(text: str, settings: Settings) -> "Tokenizer":
    """A byte-level BPE tokenizer trained on `text`: every text has tokens, none is unknown."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=settings.vocabulary, special_tokens=[PAD, END], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(text.split(END), trainer)
    return tokenizer


def _model(tokenizer: "Tokenizer", settings: Settings) -> "LlamaForCausalLM":
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=settings.vocabulary,
        hidden_size=settings.hidden,
        intermediate_size=settings.mlp,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        max_position_embeddings=settings.context,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.token_to_id(END),
        pad_token_id=tokenizer.token_to_id(PAD),
    )
    return LlamaForCausalLM(config)


def _training(model: "LlamaForCausalLM", tokens: Tensor, settings: Settings) -> Iterator[float]:
    """Train `model` in place on windows of `tokens` (N,); yields the loss of every step, in nats per token."""
    # Muon keeps the updates of a matrix well conditioned: AdamW alone stands at 4.9 where this reaches 3.6.
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed_tokens" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed_tokens" in name]
    optimizers = [
        torch.optim.Muon(matrices, lr=settings.muon_lr),
        torch.optim.AdamW(others, lr=settings.adamw_lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    schedules = [torch.optim.lr_scheduler.LambdaLR(o, lambda step: _rate(step, settings)) for o in optimizers]
    window = torch.arange(settings.length)
    for _ in range(settings.steps):
        starts = torch.randint(len(tokens) - settings.length, (settings.batch, 1))
        inputs = tokens[starts + window]  # (batch, length)
        loss = model(input_ids=inputs, labels=inputs).loss
        loss.backward()
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        yield loss.item()
    model.eval()


def _rate(step: int, settings: Settings) -> float:
    """The factor of both learning rates at a step: up over the warm-up, then 1, then down to zero."""
    left = (settings.steps - step) / (settings.decay * settings.steps)
    return min(1.0, (step + 1) / settings.warmup_steps, left)


def _save(
    folder: Path, model: "LlamaForCausalLM", tokenizer: "Tokenizer", settings: Settings, losses: list[float]
) -> None:
    from safetensors.torch import save_file
    from transformers import PreTrainedTokenizerFast

    model.config.save_pretrained(folder)
    # What save_pretrained would write, without its progress bar; the tied head is one of the parameters only once.
    weights = {name: p.detach() for name, p in model.named_parameters()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, pad_token=PAD, model_max_length=settings.context
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
    try:
        made.rename(folder)
    except OSError:  # there is one: another process finished first, with the same bytes, or it is damaged
        if not intact(folder):
            shutil.rmtree(folder)
            made.rename(folder)
