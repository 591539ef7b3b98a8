"""Tiny models built on the spot, run files, the fedft command in a process of its own, and a line for each check.

The other files here are cases: what goes wrong for people who fine-tune federated or LoRA models, as the smallest input
that shows it in fedft. Own code and made-up data only; the reports are named by repository and number. A case prints
PASS or FAIL per check and exits 1 on a FAIL:

    python tests/cases/<name>.py        # Python of an environment with fedft installed; 5 to 60 s each

Each case stands for a kind: close the kind, not the input.

    case                            kind                                     rule that closes it
    weights_missing                 weights that nobody trained or saves     every parameter is from the file, tied to
                                                                             one that is, or of a head that is trained
    token_outside_embedding         ids and positions the model lacks        bounded before training, from the encoded
                                                                             rows and the model's own tables
    rows_cut_in_silence,            data that is dropped or cut in silence   one line on stderr per kind with counts,
    unmatched_test_file                                                      and the counts in summary.json
    nan_in_json                     values that pass as other values         parse strictly, refuse at the row
    client_names                    users' text as paths                     one injective, bounded mapping from names
                                                                             to folders, used everywhere

`typical_mistakes.py` is a table of another kind: what is typed wrong, over every command, and the line that answers.

Nothing is downloaded. A tokenizer of 256 bytes and a few special tokens stands in for real ones.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "support"))

import warm_processes

for name, value in {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",
}.items():
    os.environ.setdefault(name, value)

TEXT = "red green blue warm cold north south river stone bread light paper glass table music"
WORDS = TEXT.split()


def folder(name: str) -> Path:
    """A fresh folder for one case."""
    return Path(tempfile.mkdtemp(prefix=f"fedft-{name}-"))


def tokenizer(to: Path, *, bos: str | None = "<s>", eos: str | None = "</s>", pad: str | None = "<pad>", extra=()):
    """A byte-level tokenizer: the special tokens first, then 256 bytes, then `extra` added behind them."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = [t for t in dict.fromkeys((pad, bos, eos)) if t]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {t: i for i, t in enumerate([*special, *alphabet])}
    inner = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token=bos, eos_token=eos, pad_token=pad, clean_up_tokenization_spaces=False
    )
    if extra:
        made.add_tokens(list(extra))
    made.save_pretrained(str(to))
    return made


def causal(to: Path, *, tied: bool = True, vocab: int = 264, positions: int = 256, seed: int = 0, dtype=None, **tok):
    """A tiny Llama with random weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    t = tokenizer(to, **tok)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=positions,
        tie_word_embeddings=tied,
        bos_token_id=t.bos_token_id,
        eos_token_id=t.eos_token_id,
        pad_token_id=None,
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 2:
                p.mul_(4)  # logits that differ, so that a wrong model shows
    (model.to(dtype) if dtype else model).save_pretrained(str(to))
    return to


def gpt2(to: Path, *, positions: int = 128, seed: int = 0, **tok):
    """A tiny GPT-2: Conv1D layers, learned positions, tied embeddings."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    t = tokenizer(to, **{"bos": "<|endoftext|>", "eos": "<|endoftext|>", "pad": None, **tok})
    torch.manual_seed(seed)
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=264,
            n_embd=32,
            n_layer=2,
            n_head=4,
            n_positions=positions,
            bos_token_id=t.bos_token_id,
            eos_token_id=t.eos_token_id,
        )
    )
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim == 2:
                p.mul_(4)
    model.save_pretrained(str(to))
    return to


def rows(clients, n: int = 12):
    """Prompt and response rows; what is asked is the last word of the prompt."""
    made = []
    for k, c in enumerate(clients):
        for i in range(n):
            w = [WORDS[(i * 3 + k + j) % len(WORDS)] for j in range(3)]
            made.append({"client": c, "prompt": " ".join(w) + " =", "response": " " + w[-1]})
    return made


def jsonl(path: Path, made) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in made), encoding="utf-8")
    return path


def run_file(at: Path, tables: dict) -> Path:
    """A small run; `tables` are laid over it key by key."""
    import tomli_w

    base = {
        "model": {},
        "data": {"max_length": 64},
        "strategy": {"name": "fedit"},
        "local": {"steps": 3, "batch_size": 4, "learning_rate": 5e-3},
        "server": {"rounds": 2},
        "clients": {"rank": 4},
    }
    for t, keys in tables.items():
        base[t] = {**base.get(t, {}), **keys}
    path = at / "run.toml"
    path.write_text(tomli_w.dumps(base), encoding="utf-8")
    return path


class Done:
    """What a command left: code, out, err."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def traceback(self) -> bool:
        return "Traceback (most recent call last)" in self.err + self.out

    @property
    def said(self) -> str:
        return (self.out + "\n" + self.err).strip()

    def last(self) -> str:
        lines = [x for x in self.err.strip().splitlines() if x.strip()]
        return lines[-1][:400] if lines else ""


def fedft(*args, cwd=None, env=None, timeout=300) -> Done:
    """The fedft command, in a process of its own."""
    own = {**os.environ, **(env or {})}
    done = warm_processes.run(["-m", "fedft", *map(str, args)], cwd=cwd, env=own, timeout=timeout)
    return Done(done.returncode, done.stdout, done.stderr)


def simulate(at: Path, tables: dict, *more, out: str = "run", **kw) -> Done:
    """`fedft simulate` of a small run in the folder `at`."""
    return fedft("simulate", run_file(at, tables), "--out", at / out, *more, cwd=at, **kw)


def summary(at: Path, out: str = "run") -> dict:
    return json.loads((at / out / "summary.json").read_text())


def lines(at: Path, out: str = "run") -> list[dict]:
    return [json.loads(x) for x in (at / out / "metrics.jsonl").read_text().splitlines()]


def loss_of(model, tok, made, *, max_length: int = 64) -> float:
    """Our own token-mean loss on the responses, one row at a time: BOS, prompt, response, EOS."""
    import torch

    total = count = 0.0
    model.eval()
    for r in made:
        given = ([tok.bos_token_id] if tok.bos_token_id is not None else []) + tok(
            r["prompt"], add_special_tokens=False
        )["input_ids"]
        learned = tok(r["response"], add_special_tokens=False)["input_ids"] + [tok.eos_token_id]
        ids = torch.tensor([(given + learned)[:max_length]])
        with torch.no_grad():
            logits = model(input_ids=ids).logits.float()
        at = torch.arange(len(given), ids.shape[1])
        total += float(torch.nn.functional.cross_entropy(logits[0, at - 1], ids[0, at], reduction="sum"))
        count += len(at)
    return total / count


_failed: list[str] = []


def check(what: str, ok: bool, note: str = "") -> None:
    """One line per check."""
    sys.stdout.write(f"{'PASS' if ok else 'FAIL'}  {what}{'' if ok or not note else ': ' + note}\n")
    sys.stdout.flush()
    if not ok:
        _failed.append(what)


def finish() -> None:
    """Exit 1 if anything failed."""
    sys.exit(1 if _failed else 0)
