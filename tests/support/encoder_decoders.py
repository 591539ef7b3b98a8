"""Encoder-decoders of random weights (T5, BART, Marian), saved with a byte-level tokenizer, and rows for them."""

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

PAD, START, END, OFFSET = 0, 1, 2, 4
"""Ids of the special tokens; OFFSET is the one of the first byte."""
WORDS = ("red", "green", "blue", "warm", "cold", "north", "south", "river", "stone", "bread")
SIZES: dict[str, Any] = {
    "vocab_size": 264, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2, "dropout_rate": 0.0,
    "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "dropout": 0.0, "pad_token_id": PAD, "bos_token_id": START,
    "eos_token_id": END, "decoder_start_token_id": PAD, "forced_eos_token_id": None,
}  # fmt: skip
KINDS = {"t5": transformers.T5Config, "bart": transformers.BartConfig, "marian": transformers.MarianConfig}


def tokenizer(kind: str) -> Any:
    """256 bytes behind four special tokens. A text gets `</s>`, and of BART `<s>` before it; of "plain" nothing."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {t: i for i, t in enumerate(["<pad>", "<s>", "</s>", "<unk>", *alphabet])}
    inner = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    if kind != "plain":
        single = "<s> $A </s>" if kind == "bart" else "$A </s>"
        inner.post_processor = processors.TemplateProcessing(
            single=single, special_tokens=[("<s>", START), ("</s>", END)]
        )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )


def model(kind: str, positions: int = 96, **more: Any) -> Any:
    """Two layers of 16 a side, without dropout, with logits that differ; `positions` are of those with a table."""
    table = {} if kind == "t5" else {"max_position_embeddings": positions}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        made = transformers.AutoModelForSeq2SeqLM.from_config(KINDS[kind](**{**SIZES, **table, **more}))
    with torch.no_grad():
        for name, p in made.named_parameters():
            if p.ndim == 2 and kind != "t5" and "embed_positions" not in name:
                p.mul_(6)  # the usual 0.02 makes logits so flat that a wrong model would not show
    return made.eval()


def save(folder: Path, kind: str, **more: Any) -> Path:
    """A model's folder, as `save_pretrained` leaves it; returns it."""
    model(kind, **more).save_pretrained(folder)
    tokenizer(kind).save_pretrained(folder)
    return folder


def rows(file: Path, clients: int = 2, each: int = 10) -> Path:
    """Prompts of three words, whose response is the first of them or the first two; returns the file."""
    said = []
    for n in range(clients * each):
        words = [WORDS[(3 * n + k * k) % len(WORDS)] for k in range(3)]
        said.append({"client": f"c{n % clients}", "prompt": " ".join(words), "response": " ".join(words[: 1 + n % 2])})
    file.write_text("".join(json.dumps(row) + "\n" for row in said))
    return file


def tables(base: Path, records: Path, name: str, **more: Any) -> dict[str, Any]:
    """The run file of a small run by the strategy of this name; `more` has tables whose keys win."""
    found: dict[str, dict[str, Any]] = {
        "model": {"id": str(base), "task": "seq2seq-lm"},
        "data": {"train": str(records), "max_length": 32},
        "strategy": {"name": name},
        "local": {"steps": 3, "batch_size": 4, "learning_rate": 1e-2},
        "server": {"rounds": 2, "loggers": []},
        "clients": {"rank": 4},
    }
    return {table: {**found.get(table, {}), **more.get(table, {})} for table in {**found, **more}}
