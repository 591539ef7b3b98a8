"""Deployments of other tasks than plain text: processes on loopback end with the bytes of their simulation."""

import json
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from processes import Deployment
from transformers import AutoTokenizer, BertConfig, BertModel

from fedft import run_file
from fedft.simulations import run as runs
from tests.support import encoder_decoders

pytestmark = pytest.mark.slow  # processes that import for seconds
LABELS = ["odd", "large"]


def seq2seq(folder: Path, tiny_base: Path) -> dict[str, Any]:
    """A BART of random weights, all of whose tied embeddings are trained whole."""
    base = encoder_decoders.save(folder / "base", "bart")
    whole = ["shared", "encoder.embed_tokens", "decoder.embed_tokens", "lm_head"]
    return encoder_decoders.tables(
        base, encoder_decoders.rows(folder / "rows.jsonl"), "fedit", model={"modules_to_save": whole, "layers": "0"}
    )


def several_labels(folder: Path, tiny_base: Path) -> dict[str, Any]:
    """An encoder without a head, and a CSV with a cell for each label."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    BertModel(BertConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    rows = [f"c{n % 2},number {n},{n % 2},{int(n > 9)}\n" for n in range(20)]
    (folder / "rows.csv").write_text("client,text,odd,large\n" + "".join(rows))
    model = {"task": "sequence-classification", "problem_type": "multi_label_classification", "labels": LABELS}
    return {
        "model": {"id": str(folder / "base"), **model},
        "data": {"train": str(folder / "rows.csv"), "label": LABELS, "max_length": 16},
        "strategy": {"name": "fedit"},
        "eval": {"metrics": ["macro_f1"]},
    }


def dpo(folder: Path, tiny_base: Path) -> dict[str, Any]:
    """Pairs of answers, by a strategy that changes the base between rounds."""
    rows = [{"client": f"c{n % 2}", "prompt": f"{n} is", "chosen": " right", "rejected": " no"} for n in range(20)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "model": {"id": str(tiny_base)},
        "data": {"train": str(folder / "rows.jsonl"), "max_length": 24},
        "strategy": {"name": "flora"},
        "local": {"objective": {"name": "dpo", "beta": 0.3}},
        "clients": {"rank": [2, 4]},
    }


def prompted(folder: Path, tiny_base: Path) -> dict[str, Any]:
    """Plain text: the server writes behind prompts and keeps the best state; patience ends the run."""
    rows = [{"client": f"c{n % 2}", "prompt": f"{n} is", "response": " right"} for n in range(20)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "model": {"id": str(tiny_base)},
        "data": {"train": str(folder / "rows.jsonl"), "max_length": 24},
        "strategy": {"name": "fedit"},
        "server": {"rounds": 5, "patience": 2, "min_delta": 99.0},  # nothing is so much better than the first state
        "eval": {"best": "loss", "prompts": ["3 is", "4 is"], "generate_tokens": 3},
    }


@pytest.mark.parametrize("task", [seq2seq, several_labels, dpo, prompted])
def test_a_deployment_ends_with_the_bytes_of_its_simulation(task: Any, tiny_base: Path, tmp_path: Path) -> None:
    tables = task(tmp_path, tiny_base)
    tables["local"] = {"steps": 3, "batch_size": 4, "learning_rate": 5e-3, **tables.get("local", {})}
    tables["server"] = {"rounds": 2, "loggers": [], **tables.get("server", {})}
    (tmp_path / "run.toml").write_text(tomli_w.dumps(tables))
    with Deployment(tmp_path, tmp_path / "run.toml") as d:
        sites = d.rehearse()
        server = d.server()
        for name in sites:
            d.client(name)
        simulated = runs.simulate(run_file.load(d.run), out=tmp_path / "simulated")
        assert server.ended(120) == 0, server.said()
        assert len(sites) == 2
        summary = json.loads((d.out / "summary.json").read_text())
        for key in ("state_digest", "base_digest", "initial", "final", "refused"):
            assert summary[key] == simulated.summary[key]
        assert summary["initial"]["loss"] != summary["final"]["loss"]
        weights = Path("model") / "adapter_model.safetensors"
        assert (d.out / weights).read_bytes() == (simulated.folder / weights).read_bytes()
        assert summary["rounds"] == simulated.summary["rounds"] == 2
        if task is prompted:
            assert summary["ended"] == "patience"
            assert summary["best"] == simulated.summary["best"]
            best = Path("model-best") / "adapter_model.safetensors"
            for file in (best, "generations.jsonl"):
                assert (d.out / file).read_bytes() == (simulated.folder / file).read_bytes()
            assert len((d.out / "generations.jsonl").read_text().splitlines()) == 3 * 2
