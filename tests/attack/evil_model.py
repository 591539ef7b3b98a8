"""Does a hostile model folder run code in `fedft.models.load.load`? Variants of a copied model folder; a marker tells.

    python tests/attack/evil_model.py MODEL_FOLDER [--tty]

Prints a line of JSON for each variant: whether its code ran, and what came of it. With --tty, whatever asks a question
is answered "y", as an operator in a hurry would.
"""

import argparse
import builtins
import json
import os
import pickle
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fedft.errors import FedftError
from fedft.models import load

MARK = Path(tempfile.mkdtemp()) / "ran"
EVIL = f"""
import os
open({str(MARK)!r}, "a").write(__name__ + "\\n")
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
class EvilConfig(LlamaConfig):
    model_type = "evil"
class EvilModel(LlamaForCausalLM):
    config_class = EvilConfig
class EvilTokenizer(PreTrainedTokenizerFast):
    pass
"""
AUTO_MAP = {"AutoConfig": "evil.EvilConfig", "AutoModelForCausalLM": "evil.EvilModel"}


class Boom:
    """Runs a shell command where it is unpickled: one that leaves the marker."""

    def __reduce__(self) -> Any:
        return (os.system, (f"echo pickle >> {MARK}",))


def edit(path: Path, **more: Any) -> None:
    """Set keys of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **more}))


def unknown_type(to: Path) -> None:
    """A type of model that only the folder's own code knows."""
    (to / "evil.py").write_text(EVIL)
    edit(to / "config.json", model_type="evil", auto_map=AUTO_MAP, architectures=["EvilModel"])


def known_type(to: Path) -> None:
    """A known type whose config points at the folder's code all the same."""
    (to / "evil.py").write_text(EVIL)
    edit(to / "config.json", auto_map=AUTO_MAP)


def tokenizer(to: Path) -> None:
    """A tokenizer that only the folder's own code knows."""
    (to / "evil.py").write_text(EVIL)
    auto_map = {"AutoTokenizer": ["evil.EvilTokenizer", "evil.EvilTokenizer"]}
    edit(to / "tokenizer_config.json", tokenizer_class="EvilTokenizer", auto_map=auto_map)


def pickle_bin(to: Path) -> None:
    """Weights as a bare pickle."""
    (to / "model.safetensors").unlink()
    (to / "pytorch_model.bin").write_bytes(pickle.dumps(Boom()))


def torch_bin(to: Path) -> None:
    """Weights as torch saves them, with a pickle inside."""
    import torch

    (to / "model.safetensors").unlink()
    torch.save({"x": Boom()}, to / "pytorch_model.bin")


def pickle_tokenizer(to: Path) -> None:
    """A tokenizer's file that is a pickle."""
    (to / "tokenizer.json").unlink()
    (to / "tokenizer.model").write_bytes(pickle.dumps(Boom()))
    edit(to / "tokenizer_config.json", tokenizer_class="LlamaTokenizer")


def adapter_config(to: Path) -> None:
    """An adapter in the folder, which transformers loads by itself, and its base from anywhere."""
    (to / "evil.py").write_text(EVIL)
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": f"{to}/../elsewhere",
        "r": 1,
        "target_modules": ["q_proj"],
    }
    (to / "adapter_config.json").write_text(json.dumps(config))


def quantizer(to: Path) -> None:
    """A config that asks for a library of quantisation."""
    edit(to / "config.json", quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})


def kernels(to: Path) -> None:
    """A config that asks for attention kernels from the hub."""
    edit(to / "config.json", _attn_implementation="kernels-community/flash-attn", attn_implementation="evil/kernel")


def chat(to: Path) -> None:
    """A chat template that climbs to Python's classes."""
    (to / "chat_template.jinja").write_text("{{ ''.__class__.__mro__[1].__subclasses__() }}")


def deep(to: Path) -> None:
    """A config of brackets, deeper than any parser goes."""
    (to / "config.json").write_text("[" * 100000)


def index_path(to: Path) -> None:
    """An index of shards that points out of the folder, at a file that is there."""
    (to / "model.safetensors").unlink()
    (to.parent / "outside").write_text("none of the model's business")
    index = {"metadata": {}, "weight_map": {"a": "../outside"}}
    (to / "model.safetensors.index.json").write_text(json.dumps(index))


VARIANTS: tuple[Callable[[Path], None], ...] = (
    unknown_type, known_type, tokenizer, pickle_bin, torch_bin, pickle_tokenizer, adapter_config, quantizer, kernels,
    chat, deep, index_path,
)  # fmt: skip


def outcome(source: Path, change: Callable[[Path], None]) -> str:
    """What loading a changed copy of the folder comes to: "loaded", "refused: ..." or "UNCAUGHT ..."."""
    to = Path(tempfile.mkdtemp()) / "m"
    shutil.copytree(source, to, copy_function=shutil.copyfile)
    to.chmod(0o755)
    change(to)
    try:
        load.load(str(to), "causal-lm")
    except FedftError as e:
        return f"refused: {e}"[:230]
    except BaseException as e:
        return f"UNCAUGHT {type(e).__name__}: {e}"[:230]
    return "loaded"


def main() -> None:
    """Try all variants."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("model", type=Path)
    p.add_argument("--tty", action="store_true")
    a = p.parse_args()
    asked: list[str] = []

    def yes(prompt: object = "") -> str:
        asked.append(str(prompt).strip()[-160:])
        return "y"

    if a.tty:
        builtins.input = yes
    for change in VARIANTS:
        MARK.unlink(missing_ok=True)
        asked.clear()
        began = time.monotonic()
        said = {"case": change.__name__, "outcome": outcome(a.model, change)}
        said |= {"code_ran": MARK.read_text().split() if MARK.exists() else [], "asked": asked[:1]}
        line = json.dumps({**said, "s": round(time.monotonic() - began, 1)})
        sys.stdout.write(f"\n{line}\n")  # a question that was asked has left its line open
        sys.stdout.flush()


if __name__ == "__main__":
    main()
