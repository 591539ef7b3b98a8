"""Which model architectures fedft runs: one line per architecture and strategy.

    python tests/cases/arch_matrix.py                     all of `architectures.py`, in a temporary folder
    python tests/cases/arch_matrix.py --only llama,gpt2 --strategies fedit,fedkseed --keep DIR
    python tests/cases/arch_matrix.py --quick             twelve architectures, two strategies
    python tests/cases/arch_matrix.py --json FILE         the same as JSON lines

Exits 1 if something that must work does not, unless it is in KNOWN, or if something that must be refused is refused by
a traceback instead of one line. Every model is a random one of some ten thousand parameters with a byte-level
tokenizer, saved by `save_pretrained` and given to `fedft.simulate` for one round of two clients. The exported PEFT
folder, loaded by peft, must have the loss that fedft said. A process per architecture: a crash costs only its lines.
"""

import argparse
import contextlib
import json
import logging
import math
import multiprocessing
import os
import queue
import random
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")

import torch
import transformers
from architectures import ARCHS, TWELVE, V

import fedft
from fedft import run_file
from fedft.errors import FedftError
from fedft.models import tasks
from fedft.simulations import finished_run

STRATEGIES = ("fedit", "flora", "ffa_lora", "fedkseed")
QUICK = ("fedit", "fedkseed")
TASKS = ("causal-lm", "sequence-classification", "seq2seq-lm")  # in the order of what is expected in `ARCHS`
ENCODERS = {"bert", "roberta", "xlm_roberta", "distilbert", "albert", "electra", "deberta_v2", "mpnet", "modernbert"}
# (architecture, strategy) that fail today and do not count as regressions. Take off what works again.
KNOWN: set[tuple[str, str]] = set()
TEXT = "the cat sat on a mat and saw red blue green birds who sing at noon or dusk near old stone walls"
WORDS = TEXT.split()

Line = tuple[str, str, str, str, str, float]
"""Architecture, task, strategy, status, what was said, seconds."""


def save_tokenizer(folder: Path, encoder: bool) -> None:
    """Write a byte-level tokenizer of V tokens; those of encoders put `<s>` and `</s>` around a text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    t = Tokenizer(models.BPE(unk_token=None))
    t.pre_tokenizer, t.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    trainer = trainers.BpeTrainer(
        vocab_size=V,
        special_tokens=["<pad>", "<s>", "</s>", "<unk>", "<mask>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    t.train_from_iterator([TEXT] * 4, trainer)
    if encoder:
        special |= {"cls_token": "<s>", "sep_token": "</s>", "mask_token": "<mask>"}
        t.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    transformers.PreTrainedTokenizerFast(tokenizer_object=t, **special).save_pretrained(folder)


def build(name: str, task: str, folder: Path) -> None:
    """Write a tiny random model of an architecture and its tokenizer, as `save_pretrained` leaves them."""
    cls, arguments, *_ = ARCHS[name]
    config = getattr(transformers, cls)(**arguments)
    torch.manual_seed(0)
    if task == "sequence-classification":
        config.num_labels = 3
        kind = transformers.AutoModelForSequenceClassification
    elif name in ENCODERS:
        kind = transformers.AutoModelForMaskedLM
    elif config.is_encoder_decoder:
        kind = transformers.AutoModelForSeq2SeqLM
    else:
        kind = transformers.AutoModelForCausalLM
    kind.from_config(config).save_pretrained(folder)
    save_tokenizer(folder, name in ENCODERS or config.is_encoder_decoder)  # those of T5 and BART append </s>, too


def write_rows(folder: Path) -> Path:
    """Write 48 rows of two clients, for either task; returns the file."""
    draw, file = random.Random(0), folder / "rows.jsonl"
    with file.open("w") as f:
        for i in range(48):
            q = " ".join(draw.choices(WORDS, k=6))
            f.write(json.dumps({"client": f"c{i % 2}", "q": q, "a": q.split()[0], "label": "xyz"[i % 3]}) + "\n")
    return file


def tables(folder: Path, data: Path, task: str, strategy: str) -> dict[str, Any]:
    """The run file of one round on the model in `folder`."""
    labels = {"labels": ["x", "y", "z"]} if task == "sequence-classification" else {}
    rate = 1e-4 if strategy == "fedkseed" else 5e-3
    return {
        "model": {"id": str(folder), "task": task, **labels},
        "data": {"train": str(data), "prompt": "{q} : ", "response": "{a}", "text": "{q}", "max_length": 48},
        "strategy": {"name": strategy},
        "server": {"rounds": 1},
        "clients": {"rank": 2},
        "local": {"steps": 3, "batch_size": 4, "learning_rate": rate},
    }


def judged(folder: Path, data: Path, task: str, strategy: str, out: Path) -> tuple[str, str]:
    """(status, what was said) of one run: "ok", or "WRONG" where the loss stood still or the export is not it."""
    run = fedft.simulate(run_file.from_dict(tables(folder, data, task, strategy)), out=out)
    first, last = run.lines[0]["loss"], run.summary["final"]["loss"]
    said, ok = f"{first:.4f} -> {last:.4f}", math.isfinite(last) and last != first
    if ok and strategy != "fedkseed":
        off = drift(run, folder, task, last)
        said, ok = f"{said}, by peft {off:+.1e}", abs(off) < 1e-3
    return "ok" if ok else "WRONG", said


def drift(run: Any, base: Path, task: str, said: float) -> float:
    """The larger of two differences: `evaluate_run`'s loss from the run's; peft's logits from the merged export's."""
    from peft import PeftModel

    _, mean = finished_run.evaluate_run(run.folder)  # of the saved state
    kind = getattr(transformers, f"Auto{tasks.of(task).model}")
    torch.manual_seed(0)
    extra = {"num_labels": 3} if task == "sequence-classification" else {}
    plain = kind.from_pretrained(base, dtype=torch.float32, **extra).eval()
    ids = torch.randint(5, 200, (2, 12), generator=torch.Generator().manual_seed(1))
    if plain.config.is_encoder_decoder:
        ids[:, -1] = 2
    inputs = {"input_ids": ids, **({"labels": ids[:, 3:].clone()} if tasks.of(task).two_sides else {})}
    tuned = PeftModel.from_pretrained(plain, run.model).eval()
    with torch.no_grad():
        theirs = tuned(**inputs).logits
    finished_run.export_run(run.folder, run.folder / "merged", merged=True)
    ours = kind.from_pretrained(run.folder / "merged", dtype=torch.float32, **extra).eval()
    with torch.no_grad():
        mine = ours(**inputs).logits
    return max(abs(mean["loss"] - said), float((theirs - mine).abs().max()))


def one(name: str, task: str, strategies: list[str], root: Path, out: Any) -> None:
    """Build an architecture and try all strategies on it; a `Line` for each goes to the queue `out`."""
    warnings.filterwarnings("ignore")
    folder = root / f"{name}-{task}"
    try:
        build(name, task, folder)
    except Exception as e:
        for s in strategies:
            out.put((name, task, s, "unbuilt", f"{type(e).__name__}: {str(e).splitlines()[0][:150]}", 0.0))
        return
    data, heard = write_rows(folder), list[str]()
    listener = logging.Handler()
    listener.emit = lambda record: heard.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("fedft").addHandler(listener)
    for s in strategies:
        began = time.monotonic()
        heard.clear()
        try:
            status, said = judged(folder, data, task, s, root / f"run-{name}-{task}-{s}")
        except FedftError as e:
            status, said = "refused", f"{str(e)[:160]}{' <- ' + heard[-1][:160] if heard else ''}"
        except Exception as e:
            at = traceback.extract_tb(e.__traceback__)[-1]
            line = (str(e).strip().splitlines() or [""])[0][:160]
            status, said = "CRASH", f"{type(e).__name__}: {line} ({Path(at.filename).name}:{at.lineno})"
        out.put((name, task, s, status, said, time.monotonic() - began))


def lines_of(name: str, task: str, strategies: list[str], root: Path) -> list[Line]:
    """What `one` says of an architecture, in a process of its own; "DIED" for what a crash of the process left out."""
    context = multiprocessing.get_context("fork")
    said = context.Queue()
    child = context.Process(target=one, args=(name, task, strategies, root, said))
    child.start()
    got: list[Line] = []
    while len(got) < len(strategies) and (child.is_alive() or not said.empty()):
        with contextlib.suppress(queue.Empty):
            got.append(said.get(timeout=1))
    child.join()
    return got + [(name, task, s, "DIED", f"exit code {child.exitcode}", 0.0) for s in strategies[len(got) :]]


def wanted(a: argparse.Namespace) -> list[tuple[str, str]]:
    """(architecture, task) of all that were asked for and of which something is expected, by task."""
    only = a.only.split(",") if a.only else ARCHS
    every = [(name, task) for task in a.tasks.split(",") for name in ARCHS if name in only and expected(name, task)]
    return [pair for pair in every if not a.quick or pair in TWELVE.items()]


def expected(name: str, task: str) -> str:
    """What fedft does with an architecture: "ok", "refuse" or "" (not asked)."""
    said = ARCHS[name][2:]
    return str(said[TASKS.index(task)]) if TASKS.index(task) < len(said) else ""


def options() -> argparse.Namespace:
    """What the command line says; `--quick` is of two strategies unless it says which."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for option in ("--only", "--strategies"):
        p.add_argument(option, default="")
    p.add_argument("--tasks", default=",".join(TASKS))
    p.add_argument("--quick", action="store_true")
    for option in ("--keep", "--json"):
        p.add_argument(option, type=Path)
    a = p.parse_args()
    for word, known in [(n, ARCHS) for n in a.only.split(",") if n] + [(t, TASKS) for t in a.tasks.split(",")]:
        if word not in known:
            p.error(f"{word!r} is none of {', '.join(known)}")
    a.strategies = (a.strategies or ",".join(QUICK if a.quick else STRATEGIES)).split(",")
    return a


def main() -> int:
    """Print a line for each architecture and strategy; returns the exit code."""
    a = options()
    root = a.keep or Path(tempfile.mkdtemp(prefix="arch-"))
    root.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    bad, lines = 0, []
    sys.stdout.write(f"transformers {transformers.__version__}, torch {torch.__version__}\n")
    for name, task in wanted(a):
        want = expected(name, task)
        for _, _, s, status, said, seconds in lines_of(name, task, a.strategies, root):
            fine = status == {"ok": "ok", "refuse": "refused"}[want]
            known = want == "ok" and (name, s) in KNOWN
            bad += not fine and not known
            note = (" (known)" if not fine else " (KNOWN to fail, works: take it off)") if known else ""
            mark = "   " if fine else "!! "
            sys.stdout.write(f"{mark}{name:<13}{task[:8]:<10}{s:<10}{status:<8}{seconds:6.1f} s  {said}{note}\n")
            sys.stdout.flush()
            line = {"arch": name, "task": task, "strategy": s, "status": status, "expected": want, "said": said}
            lines.append(json.dumps(line) + "\n")
    if a.json:
        a.json.write_text("".join(lines))
    sys.stdout.write(f"{len(lines) - bad} of {len(lines)} as they should be\n")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
