"""Every kind of folder that `fedft export` and a run's end write, loaded by what it is for: the loss is the run's.

peft loads adapters, of a lower rank too; transformers whole models; `delta` and `values` are tensors by name, put into
transformers' model here by hand.
"""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from exported_models import loss_of
from safetensors.torch import load_file
from typer.testing import CliRunner

import fedft
from fedft import allowed_code, run_file
from fedft.cli.main import app
from fedft.errors import ConfigError
from fedft.models import model_card
from fedft.simulations import finished_run, workplace

CLOSE = 1e-4


@pytest.fixture
def settings(tiny_base: Path, tmp_path: Path) -> dict[str, Any]:
    """A run file of two clients on the tiny base, without its strategy."""
    rows = [{"client": "xy"[i % 2], "prompt": f"a{i % 5}", "response": f"b{i % 7}"} for i in range(24)]
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    data = {"train": str(tmp_path / "rows.jsonl"), "max_length": 16, "holdout": 0.25}
    tables: dict[str, Any] = {"model": {"id": str(tiny_base)}, "data": data, "local": {"steps": 4, "batch_size": 4}}
    return tables | {"server": {"rounds": 2, "loggers": []}, "clients": {"rank": 4}}


def a_run(settings: dict[str, Any], folder: Path, strategy: str, **more: Any) -> Any:
    """A finished run that has learned something, its folder and its loss."""
    run = fedft.simulate(run_file.from_dict({**settings, "strategy": {"name": strategy}, **more}), out=folder)
    assert run.summary["final"]["loss"] < run.summary["initial"]["loss"] - 10 * CLOSE
    return run


def loss(model: Any, folder: Path) -> float:
    """Mean over clients of a model's loss on the held-out rows of the run in a folder."""
    place, _ = workplace.reopen(folder)
    found = [loss_of(model, list(client.test_rows)) for client in place.clients.values()]
    return sum(found) / len(found)


def base_of(run: Any) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(run.summary["base"])


def front_matter(folder: Path) -> dict[str, Any]:
    """The facts between the dashes of a card, as the hub reads them."""
    dashes, facts, _ = (folder / "README.md").read_text().split("---\n", 2)
    assert dashes == ""
    found: dict[str, Any] = yaml.safe_load(facts)
    return found


def test_an_adapter_is_loaded_by_peft_from_the_run_and_from_an_export(settings, tmp_path: Path) -> None:
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoTokenizer

    run = a_run(settings, tmp_path / "run", "flora")
    run.export(tmp_path / "out")
    for folder in (run.model, tmp_path / "out"):
        model = AutoPeftModelForCausalLM.from_pretrained(folder)
        assert loss(model, run.folder) == pytest.approx(run.summary["final"]["loss"], abs=CLOSE)
        assert AutoTokenizer.from_pretrained(folder)("a b").input_ids
    same = [p.name for p in run.model.iterdir() if (tmp_path / "out" / p.name).read_bytes() != p.read_bytes()]
    assert same == [], "what a run leaves is what an export writes"


def test_a_lower_rank_is_loaded_by_peft_and_costs_what_is_said(settings, tmp_path: Path) -> None:
    """FLoRA's exported rank grows with rounds and clients: 16 of two rounds, two clients of rank 4."""
    from peft import AutoPeftModelForCausalLM

    run = a_run(settings, tmp_path / "run", "flora")
    run.export(tmp_path / "whole")
    said = json.loads((tmp_path / "whole" / "adapter_config.json").read_text())
    assert said["r"] == 16
    before = load_file(tmp_path / "whole" / "adapter_model.safetensors")
    for rank, least in ((16, 0.0), (2, 1e-3)):
        run.export(to := tmp_path / str(rank), rank=rank)
        facts = json.loads((to / "base.json").read_text())["lower_rank"]
        assert least <= facts["error"] <= (1e-6 if rank == 16 else 1.0)
        config = json.loads((to / "adapter_config.json").read_text())
        assert (config["r"], config["lora_alpha"], config["rank_pattern"]) == (rank, rank, {})
        after = load_file(to / "adapter_model.safetensors")
        for m, error in facts["errors"].items():
            n = f"base_model.model.{m}.lora_"
            old, new = (x[f"{n}B.weight"].double() @ x[f"{n}A.weight"].double() for x in (before, after))
            assert float((old - new).norm() / old.norm()) == pytest.approx(error, abs=1e-6)
            assert f"| `{m}` | {error:.3g} |" in (to / "README.md").read_text()
        found = loss(AutoPeftModelForCausalLM.from_pretrained(to), run.folder)
        assert (found == pytest.approx(run.summary["final"]["loss"], abs=CLOSE)) == (rank == 16)


def test_a_client_s_own_model_has_a_lower_rank_of_its_own(settings, tmp_path: Path) -> None:
    """Of what it shares and what it keeps: each client's error is its own."""
    run = a_run(settings, tmp_path / "run", "fedsa_lora")
    errors = set()
    for client in "xy":
        for rank in (4, 2):
            run.export(tmp_path / f"{client}{rank}", client=client, rank=rank)
        whole, low = (load_file(tmp_path / f"{client}{r}" / "adapter_model.safetensors") for r in (4, 2))
        facts = json.loads((tmp_path / f"{client}2" / "base.json").read_text())["lower_rank"]
        for m, error in facts["errors"].items():
            n = f"base_model.model.{m}.lora_"
            old, new = (x[f"{n}B.weight"].double() @ x[f"{n}A.weight"].double() for x in (whole, low))
            assert float((old - new).norm() / old.norm()) == pytest.approx(error, abs=1e-6)
        errors.add(facts["error"])
    assert len(errors) == 2


def test_an_adapter_on_an_adapter_is_lowered_with_it(settings, tmp_path: Path) -> None:
    """What is exported is one adapter of the base below, of both changes: so is what is cut."""
    from peft import AutoPeftModelForCausalLM

    first = a_run(settings, tmp_path / "first", "fedit")
    then = {**settings, "model": {"id": str(first.model)}, "strategy": {"name": "fedit"}}
    run = fedft.simulate(run_file.from_dict(then), out=tmp_path / "then")
    run.export(tmp_path / "out", rank=8)
    assert json.loads((tmp_path / "out" / "base.json").read_text())["lower_rank"]["from"] == 8
    found = loss(AutoPeftModelForCausalLM.from_pretrained(tmp_path / "out"), run.folder)
    assert found == pytest.approx(run.summary["final"]["loss"], abs=CLOSE)


def test_a_whole_model_is_loaded_by_transformers(settings, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    run = a_run(settings, tmp_path / "run", "fedit")
    run.export(tmp_path / "out", merged=True)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert loss(model, run.folder) == pytest.approx(run.summary["final"]["loss"], abs=CLOSE)
    assert front_matter(tmp_path / "out")["library_name"] == "transformers"


def test_changes_of_all_parameters_are_added_to_the_base_s(settings, tmp_path: Path) -> None:
    run = a_run(settings, tmp_path / "run", "fedavg", local={"steps": 4, "learning_rate": 1e-3, "batch_size": 4})
    model, change = base_of(run), load_file(run.model / "delta.safetensors")
    for name, x in change.items():
        model.get_parameter(name).data.add_(x)
    assert loss(model, run.folder) == pytest.approx(run.summary["final"]["loss"], abs=CLOSE)
    assert "library_name" not in front_matter(run.model)
    assert "transformers reads no folder of kind 'delta'" in (run.model / "README.md").read_text()
    with pytest.raises(ConfigError, match="--rank 2: what adapters of kind 'full' train is no pair of factors"):
        run.export(tmp_path / "out", rank=2)
    assert not (tmp_path / "out").exists()


def test_values_of_another_kind_of_adapter_are_put_into_the_base(
    settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path, str(Path(__file__).parents[1] / "plugin_example")])
    allowed_code.allow(["ia3:IA3"])
    model = {**settings["model"], "adapter": "ia3:IA3"}
    run = a_run(settings, tmp_path / "run", "fedit", model=model)
    base, values = base_of(run), load_file(run.model / "values.safetensors")
    for name, v in values.items():
        layer = base.get_submodule(name.removesuffix(".ia3"))
        layer.register_forward_hook(lambda layer, x, y, v=v: y * v)
    assert loss(base, run.folder) == pytest.approx(run.summary["final"]["loss"], abs=CLOSE)
    with pytest.raises(ConfigError, match="--rank 2: what adapters of kind 'ia3' train is no pair of factors"):
        run.export(tmp_path / "out", rank=2)


def test_the_card_says_who_where_how_and_what_to_type(settings, tmp_path: Path) -> None:
    run = a_run(settings, tmp_path / "run", "fedit")
    header, card = run.summary["header"], (run.model / "README.md").read_text()
    assert front_matter(run.model) == {"library_name": "peft", "tags": ["fedft", "federated-learning", "lora"]}
    for name, value in {
        "strategy": "fedit, with its defaults",
        "rounds": 2,
        "clients": 2,
        "rows learned": header["train_rows"],
        "rows held out": header["held_out_rows"],
        "SHA-256 of the state": run.summary["state_digest"],
    }.items():
        assert f"| {name} | {value} |" in card
    assert "epsilon none: no differential privacy." in card
    for line in (
        "AutoPeftModelForCausalLM.from_pretrained('FOLDER')",
        "fedft eval RUN",
        "vllm serve ",
        "convert_lora_",
    ):
        assert line in card
    assert str(tmp_path) not in card.replace(run.summary["base"], "")
    assert not {"x", "y"} & {word.strip("|` ") for word in card.split()}, "no client is named"


@pytest.mark.parametrize(("base", "known"), [("owner/name", True), ("gpt2", True), ("/tmp/x", False), ("a/b/c", False)])
def test_a_card_names_a_base_that_the_hub_knows(base: str, known: bool) -> None:
    facts = yaml.safe_load(model_card.front_matter("adapter", base).strip("-\n"))
    assert facts.get("base_model") == (base if known else None)


def test_the_command_prints_the_error_and_the_lines_for_other_tools(settings, tmp_path: Path) -> None:
    run = a_run(settings, tmp_path / "run", "flora")
    args = ["export", str(run.folder), "--rank", "2", "--to"]
    told = CliRunner().invoke(app, [*args, str(tmp_path / "a")]).output.splitlines()
    assert [line.split()[0] for line in told] == ["adapter", "rank", "vllm", "gguf"]
    assert "the best of rank 2 of an adapter of rank 16: relative error 0." in told[1]
    assert f"--max-lora-rank 8 --lora-modules fedft={tmp_path / 'a'}" in told[2]
    found = json.loads(CliRunner().invoke(app, [*args, str(tmp_path / "b"), "--json"]).output)
    assert found["lower_rank"]["rank"] == 2
    assert found["lines"].keys() == {"vllm", "gguf"}
    with pytest.raises(ConfigError, match="--rank 2: a merged model has no rank"):
        finished_run.export_run(run.folder, tmp_path / "c", merged=True, rank=2)
    with pytest.raises(ConfigError, match="--rank 17: wanted 1 to 16"):
        finished_run.export_run(run.folder, tmp_path / "c", rank=17)
    assert not (tmp_path / "c").exists(), "nothing is left of what was refused"
