"""The quickstart's base model: a small Llama, trained on Python's own language reference.

The text is `pydoc_data.topics`, what `help("while")` shows: part of every installation, so nothing is downloaded. A
byte-level BPE of 1,024 tokens and 935,040 parameters come of it in about half a minute; a first fine-tuning round then
starts from a model that knows words and layout instead of noise.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fedft.quickstart import rows

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import LlamaForCausalLM

END, PAD = "<|end|>", "<|pad|>"
"""The special tokens: the end of a text, and what fills up short rows."""


@dataclass(frozen=True)
class Settings:
    """Shape and training of the base model: with the text and the libraries' versions, all that decides its bytes."""

    vocabulary: int = 1024
    """Tokens of the tokenizer, the special ones and 256 bytes among them."""
    hidden: int = 128
    """Width of the residual stream."""
    layers: int = 4
    heads: int = 4
    """Attention heads of a layer."""
    mlp: int = 352
    """Width of the feed-forward part."""
    context: int = 512
    """Longest sequence in tokens; the weights do not depend on it."""
    steps: int = 150
    """Optimiser steps."""
    batch: int = 16
    """Sequences of a step."""
    length: int = 128
    """Tokens of a training sequence."""
    muon_lr: float = 0.03
    """Learning rate of Muon, for the matrices of the layers."""
    adamw_lr: float = 6e-3
    """Learning rate of AdamW, for embeddings and norms."""
    warmup_steps: int = 10
    """Steps over which both learning rates rise."""
    decay: float = 0.6
    """The last share of the steps, 0 to 1, over which both learning rates fall to zero in a line."""
    seed: int = 0
    """Of the first weights and of the order of the sequences."""


TINY = Settings(vocabulary=512, hidden=64, layers=2, heads=2, mlp=176, steps=30, batch=8, length=64, warmup_steps=5)
"""A smaller model of fewer steps, for tests."""


def training_text() -> str:
    """The text to train on: Python's language reference, its topics sorted by name and joined by END.

    Where an interpreter has no reference, docstrings of the standard library (`rows.prose`).
    """
    try:
        from pydoc_data.topics import topics
    except ImportError:  # some distributions leave the reference out; docstrings read much the same
        return rows.prose()
    return END.join(topics[name] for name in sorted(topics))


@contextmanager
def own_torch(seed: int, threads: int) -> Iterator[None]:
    """Inside, torch has this seed and `threads` threads; afterwards both are what they were."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the GPUs as well
            yield
    finally:
        torch.set_num_threads(before)


def trained_tokenizer(text: str, settings: Settings) -> "Tokenizer":
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


def new_model(tokenizer: "Tokenizer", settings: Settings) -> "LlamaForCausalLM":
    """An untrained Llama of these settings; its weights are drawn from torch's global generator, see `own_torch`."""
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


def training_losses(model: "LlamaForCausalLM", tokens: Tensor, settings: Settings) -> Iterator[float]:
    """Train `model` in place; yields the loss of every step, in nats per token.

    `tokens` is int64 [N]; a batch is of windows at random places in it, drawn from torch's global generator.
    """
    # Muon keeps the updates of a matrix well conditioned: AdamW alone ends at 4.9 where this ends at 3.6.
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
    """The factor of both learning rates at a step, 0 to 1: up over the warm-up, then 1, then down to zero."""
    left = (settings.steps - step) / (settings.decay * settings.steps)
    return min(1.0, (step + 1) / settings.warmup_steps, left)
