"""Memory of a client's turn as `fedft plan` foresees it, and as a process that does it is measured to take.

    measured   peak of resident memory over building the model, two rounds of two steps and an evaluation, less what the
               process had after the same on a tiny model (libraries and compiled kernels)
    forecast   `fedft.forecast` of the same run file, less what it takes for a process

`--forced` has every turn done with less than it is foreseen to take: `fedft plan` is asked with a limit of 0.8 of its
own forecast beside the process, has to refuse, and the turn is done all the same, on rows as long as the run allows, as
`plan` counts them.

Models of random weights, a few million parameters: a Llama whose heads share keys and values, a GPT-2, a BERT with a
classifier. malloc maps each large block by itself, as it does those of real models. Linux only. By itself:
`python -m fedft.benchmarks.forecast`.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import tomli_w
import torch
import transformers

from fedft import strategies
from fedft.benchmarks import peak_memory
from fedft.client.train import Client
from fedft.config import RunConfig
from fedft.contract import Work
from fedft.data.examples import IGNORED, Example
from fedft.forecast.anatomy import anatomy_of
from fedft.forecast.memory import Memory
from fedft.forecast.rows import Rows
from fedft.forecast.work import Forecaster
from fedft.models import checkpointing, layout, load, quantized_base
from fedft.models.handle import ModelHandle
from fedft.run_file import from_dict
from fedft.server.job import job_of
from fedft.training import objectives
from fedft.update import Plan

ROUNDS, STEPS, ROWS, RANK = 2, 2, 16, 8
TARGETS = {"llama": ["q_proj", "v_proj"], "gpt2": ["c_attn"], "bert": ["query", "value"]}


@dataclass(frozen=True)
class Setting:
    """One line of the table."""

    model: Literal["llama", "gpt2", "bert"]
    trains: Literal["all", "qv", "full"]
    tokens: int
    checkpointing: bool = False
    batch: int = 8
    micro_batch: int = 0
    """0: none."""
    base_bits: int = 0
    """0: float32."""
    private: bool = False
    """[privacy] mode = "example-dp"."""
    whole: bool = False
    """Every row is as long as `tokens` allows, and all of it is learned."""
    hidden: int = 256
    layers: int = 6

    def tables(self) -> dict[str, Any]:
        """Its run file, as plain tables."""
        model: dict[str, Any] = {"targets": "all-linear" if self.trains == "all" else TARGETS[self.model]}
        model |= {"base_bits": self.base_bits} if self.base_bits else {}
        model |= {"task": "sequence-classification", "labels": list("abc")} if self.model == "bert" else {}
        local: dict[str, Any] = {"steps": STEPS, "batch_size": self.batch, "checkpointing": self.checkpointing}
        local |= {"micro_batch": self.micro_batch} if self.micro_batch else {}
        tables = {
            "model": {**model, "dtype": "float32"}, "data": {"max_length": self.tokens}, "local": local,
            "strategy": {"name": "fedavg" if self.trains == "full" else "fedit"}, "clients": {"rank": RANK},
        }  # fmt: skip
        if self.trains == "full":
            del tables["model"]["targets"], tables["clients"]
        if self.private:
            noise: dict[str, Any] = {"clip": 1.0, "noise_multiplier": 1.0, "delta": 1e-5, "noise": "seeded"}
            tables["privacy"] = {"mode": "example-dp", **noise}
        return tables

    def config(self) -> RunConfig:
        """Its run file."""
        return from_dict(self.tables())


SETTINGS: Sequence[Setting] = (
    Setting("llama", "all", 256),
    Setting("llama", "all", 256, checkpointing=True),
    Setting("llama", "qv", 256),
    Setting("llama", "full", 128),
    Setting("llama", "all", 512, micro_batch=2, base_bits=4),
    Setting("llama", "all", 256, micro_batch=4, private=True),
    Setting("gpt2", "all", 256),
    Setting("gpt2", "qv", 128),
    Setting("gpt2", "full", 256),
    Setting("gpt2", "all", 256, checkpointing=True),
    Setting("bert", "all", 256),
    Setting("bert", "qv", 128),
    Setting("bert", "full", 256),
)


def base_of(setting: Setting) -> load.Base:
    """A model of random weights."""
    h, n = setting.hidden, setting.layers
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if setting.model == "llama":
            net: Any = transformers.LlamaForCausalLM(
                transformers.LlamaConfig(
                    hidden_size=h, intermediate_size=h * 11 // 4, num_hidden_layers=n, num_attention_heads=8,
                    num_key_value_heads=2, vocab_size=4000, max_position_embeddings=512, pad_token_id=0,
                )
            )  # fmt: skip
        elif setting.model == "gpt2":
            ends: dict[str, Any] = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
            net = transformers.GPT2LMHeadModel(
                transformers.GPT2Config(n_embd=h, n_layer=n, n_head=8, vocab_size=4000, n_positions=512, **ends)
            )
        else:
            classes: dict[str, Any] = {"num_labels": 3}
            net = transformers.BertForSequenceClassification(
                transformers.BertConfig(
                    hidden_size=h, intermediate_size=4 * h, num_hidden_layers=n, num_attention_heads=8, vocab_size=4000,
                    **classes,
                )
            )  # fmt: skip
    task = "sequence-classification" if setting.model == "bert" else "causal-lm"
    drawn = frozenset(n for n, _ in net.named_parameters() if n.startswith("classifier"))
    base = load.Base(net, None, task, "made up", "", drawn=drawn)
    return quantized_base.packed(base, setting.base_bits) if setting.base_bits else base  # type: ignore[arg-type]


def rows_of(setting: Setting) -> list[Any]:
    """Rows of unlike length, of which half is learned."""
    g = torch.Generator().manual_seed(0)
    found = []
    for k in range(ROWS):
        length = setting.tokens - (not setting.whole) * (setting.tokens // 3) * (k % 4) // 4
        ids = torch.randint(1, 4000, (length,), generator=g).tolist()
        half = 0 if setting.whole else length // 2
        labels: Any = k % 3 if setting.model == "bert" else [IGNORED] * half + ids[half:]
        found.append(Example(ids, labels, 0 if setting.model == "bert" else half))
    return found


def known(setting: Setting) -> Rows:
    """What is known of these rows."""
    sizes = [(len(r.input_ids), r.learned) for r in rows_of(setting)]
    return Rows.of(sizes, sizes, setting.batch)


def turn(setting: Setting) -> Memory:
    """Do what a client does, and give what is foreseen of it."""
    config = setting.config()
    recipe, base, rows = strategies.of(config), base_of(setting), rows_of(setting)
    whole = [] if setting.trains == "full" else config.model.targets
    handle = ModelHandle(base.model, layout.layout_of(base, whole), recipe.space, objective=objectives.of(config))
    of = Forecaster(anatomy_of(base), handle.layout, config, recipe, known(setting))
    found = of.memory(Work())
    if setting.checkpointing:
        checkpointing.switch_on(base.model, base.source)
    client = Client("a", rows, rows, base, handle, recipe, config)
    if setting.private:
        client.privacy.begin(client.name, job_of(config, "0" * 64, ()), config, len(rows))
    rank = 0 if recipe.space.rank_free else RANK
    state = recipe.first_state(handle.layout, rank, 0)
    for number in range(ROUNDS + 1):
        plan = Plan("", number, 0, rank=rank, steps=STEPS, learning_rate=1e-3, evaluate=number == ROUNDS)
        client.carry_out(replace(plan, tensors=recipe.downlink(state, None, plan)))
    return found


def peak_of(setting: Setting) -> dict[str, float | str]:
    """Bytes measured and foreseen; called in a process of its own."""
    peak_memory.begin()
    turn(Setting(**{**asdict(setting), "hidden": 32, "layers": 1, "tokens": 16}))
    said, beside = peak_memory.beside(partial(turn, setting))
    return {"measured_mb": beside / 1e6, "forecast_mb": (said.peak - said.process) / 1e6, "where": said.where}


def compare(settings: Sequence[Setting]) -> list[dict[str, Any]]:
    """A row for each setting, each in a process of its own."""
    said = ((s, peak_memory.in_process("fedft.benchmarks.forecast", json.dumps(asdict(s)))) for s in settings)
    return [{**asdict(setting), **found} for setting, found in said]


def forced(setting: Setting) -> dict[str, Any]:
    """A row of a setting that `fedft plan` refuses: what it says, and whether the turn takes more than the limit."""
    setting = replace(setting, whole=True)
    fits = planned(setting, None)
    (client,) = json.loads(fits.stdout)["clients"]
    process = client["memory"]["process"]
    limit = int((process + 0.8 * (client["memory"]["peak"] - process)) / 2**20)
    refused = planned(setting, limit)
    if (fits.returncode, refused.returncode) != (0, 2):
        raise RuntimeError(f"fedft plan: exit codes {fits.returncode} and {refused.returncode}, wanted 0 and 2")
    (row,) = compare([setting])
    there = (limit * 2**20 - process) / 1e6
    above = row["measured_mb"] > there
    return {**row, "limit_mb": there, "above_limit": above, "said": refused.stderr.strip().splitlines()[-1]}


def planned(setting: Setting, limit_mib: int | None) -> subprocess.CompletedProcess[str]:
    """`fedft plan --json` of a site that trains in this setting and allows so much memory; None: any."""
    with TemporaryDirectory() as place:
        folder = Path(place)
        base_of(setting).model.config.save_pretrained(folder / "model")
        (folder / "rows.jsonl").write_text('{"q": "?", "a": "!"}\n' * ROWS, encoding="utf-8")
        tables = setting.tables()
        form = {"prompt": "{q}", "response": "{a}"} if setting.model != "bert" else {"text": "{q}", "label": "a"}
        data = {**tables["data"], "train": "rows.jsonl", **form}
        run = {**tables, "model": {**tables["model"], "id": "model"}, "data": data}
        strategy = [tables["strategy"]["name"]]
        policy = {"strategies": strategy} | ({} if limit_mib is None else {"max_memory_mib": limit_mib})
        site: dict[str, Any] = {
            "site": {"name": "a"}, "server": {"address": "localhost:1"}, "model": {"id": "model", "dtype": "float32"},
            "data": {"train": "rows.jsonl", "test": "rows.jsonl", **form}, "policy": policy,
            "local": {k: x for k, x in tables["local"].items() if k in ("micro_batch", "checkpointing")},
        }  # fmt: skip
        if setting.base_bits:
            site["model"]["base_bits"] = setting.base_bits
        for name, said in (("run.toml", run), ("site.toml", site)):
            (folder / name).write_text(tomli_w.dumps(said), encoding="utf-8")
        (folder / "keys").mkdir()
        for name in ("ca.pem", "server.pub", "signing.key", "node.key"):
            (folder / "keys" / name).write_text("-", encoding="utf-8")
        command = [sys.executable, "-m", "fedft", "plan", "run.toml", "site.toml", "--json"]
        return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def main() -> None:
    """Print, as JSON, what is measured and foreseen of each setting, or of the one that is named; see `--forced`."""
    if sys.argv[1:] == ["--forced"]:
        for setting in SETTINGS:
            print(json.dumps(forced(setting)), flush=True)  # noqa: T201
    elif len(sys.argv) > 1:
        print(json.dumps(peak_of(Setting(**json.loads(sys.argv[1])))))  # noqa: T201
    else:
        for row in compare(SETTINGS):
            print(json.dumps(row))  # noqa: T201


if __name__ == "__main__":
    main()
