"""Experts that lie in one parameter are `target_parameters` to peft: written, read, and the same by whatever way."""

import copy
import json
import warnings

import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from small_experts import KINDS, TINY, drawn, every_kind, logits, unlike

import fedft
from fedft import run_file
from fedft.adapters.lora import LoRA
from fedft.arithmetic.lowrank import LowRank
from fedft.models import adapter_folder, export, lower_rank, peft_names
from fedft.models.handle import ModelHandle
from fedft.models.layout import layout_of
from fedft.simulations import finished_run


@every_kind
@pytest.mark.parametrize("chosen", ["all-linear", ["gate_up_proj"], ["down_proj"]])
def test_peft_computes_with_the_exported_folder_what_we_do(kind, chosen, tmp_path):
    base = drawn(kind)
    plain, layout = copy.deepcopy(base.model), layout_of(base, chosen)
    handle = ModelHandle(base.model, layout, LoRA())
    handle.write(unlike(layout))
    assert export.save_adapter(tmp_path, handle, base, "some/base") == "adapter"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        theirs = PeftModel.from_pretrained(plain, tmp_path).eval()
    torch.testing.assert_close(logits(theirs), logits(base.model), atol=1e-5, rtol=0)
    torch.testing.assert_close(logits(theirs.merge_and_unload()), logits(base.model), atol=1e-5, rtol=0)


def test_experts_are_lowered_each_by_itself(tmp_path):
    base = drawn("mixtral")
    plain, layout = copy.deepcopy(base.model), layout_of(base, "all-linear")
    handle = ModelHandle(base.model, layout, LoRA())
    handle.write(unlike(layout))
    whole = export.pairs_of(handle, base)
    pairs, facts = lower_rank.lowered(whole, 1)
    assert {m for m in facts["errors"] if m[-1].isdigit()}, "or there are no experts"
    assert facts["error"] > 0.01
    export.save_adapter(tmp_path, handle, base, "some/base", pairs)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        theirs = PeftModel.from_pretrained(plain, tmp_path).eval()
    found = peft_names.changes_of(theirs)
    for m, error in facts["errors"].items():
        dense = whole[m].double().dense()
        distance = (found[m].double().dense() - dense).norm() / max(float(dense.norm()), 1e-30)
        assert float(distance) == pytest.approx(error, abs=1e-6)


@every_kind
def test_a_base_change_that_is_multiplied_out_is_exported_to_the_bit(kind, tmp_path):
    """Beside the identity it is a pair: no decomposition, and nothing is rounded."""
    base = drawn(kind)
    plain, layout = copy.deepcopy(base.model), layout_of(base, "all-linear")
    handle, rng = ModelHandle(base.model, layout, LoRA()), torch.Generator().manual_seed(1)
    handle.set_base_change({m: torch.randn(s, generator=rng) / 8 for m, s in [*layout.modules.items()][::2]}, "dense")
    assert export.save_adapter(tmp_path, handle, base, "some/base") == "adapter"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        warnings.filterwarnings("ignore", message=".*_pattern keys did not match", category=RuntimeWarning)  # they do
        theirs = PeftModel.from_pretrained(plain, tmp_path).eval()
    torch.testing.assert_close(logits(theirs), logits(base.model), atol=1e-5, rtol=0)
    found = peft_names.changes_of(theirs)
    assert all(torch.equal(found[m].dense(), d) for m, d in handle.change()[0].items())


def test_what_peft_trained_on_experts_is_read_as_a_change_of_each():
    """The way back: peft's own adapter, of both parameters, on a base of ours."""
    base = drawn("mixtral")
    config = LoraConfig(r=2, target_modules=["q_proj"], target_parameters=["gate_up_proj", "down_proj"])
    theirs = get_peft_model(copy.deepcopy(base.model), config).eval()
    with torch.no_grad():
        for n, p in theirs.named_parameters():
            if "lora_" in n:
                p.normal_(0, 0.3, generator=torch.Generator().manual_seed(len(n)))
    found = peft_names.changes_of(theirs)
    layout = layout_of(base, ["q_proj", "gate_up_proj", "down_proj"])
    assert found.keys() == layout.modules.keys()
    ModelHandle(base.model, layout, LoRA()).set_base_change(found, "theirs")
    torch.testing.assert_close(logits(theirs), logits(base.model), atol=1e-5, rtol=0)


def test_stacks_and_their_parts_are_each_others_inverse():
    stacks = peft_names.stacks_of(drawn("gpt_oss").model, frozenset(layout_of(drawn("gpt_oss"), ["down_proj"]).modules))
    parameter, of = next(iter(stacks.items()))
    d = {m: LowRank(torch.randn(2, o), torch.randn(i, 2)) for m, (o, i) in ((m, e.out_in[::-1]) for m, e in of.items())}
    whole = peft_names.stacked(d, stacks)[parameter]
    assert whole.A.shape[0] == whole.B.shape[1] == 2 * 3
    for m, part in peft_names.unstacked(parameter, whole.A, whole.B, 3):
        assert torch.equal(part.A, d[m].A)
        assert torch.equal(part.B, d[m].B)


@pytest.fixture(scope="module", params=["mixtral", "qwen3_moe"])
def folder(request, tmp_path_factory, tiny_base):
    to = tmp_path_factory.mktemp("moe")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_base)
    config = KINDS[request.param](**{**TINY, "vocab_size": len(tokenizer)})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformers.AutoModelForCausalLM.from_config(config).save_pretrained(to)
    tokenizer.save_pretrained(to)
    return to


@pytest.mark.parametrize("strategy", ["fedit", "flora", "flexlora", "ffa_lora"])
def test_a_round_ends_with_one_loss_by_whatever_way(folder, tmp_path, strategy):
    """Summary, `evaluate_run`, peft on the folder, the merged export, and a run that goes on from the folder."""
    rows = [{"client": "ab"[i % 2], "prompt": f"say {i % 5}", "response": "one two"} for i in range(16)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tables = {
        "model": {"id": str(folder)},
        "data": {"train": str(tmp_path / "rows.jsonl"), "max_length": 32},
        "strategy": {"name": strategy},
        "local": {"steps": 2},
        "server": {"rounds": 1, "loggers": []},
        "clients": {"rank": 2 if strategy in ("fedit", "ffa_lora") else [1, 3]},
    }
    run = fedft.simulate(run_file.from_dict(tables), out=tmp_path / "run")
    first, last = run.summary["initial"]["loss"], run.summary["final"]["loss"]
    assert last < first - 1e-3
    _, mean = finished_run.evaluate_run(run.folder)
    assert mean["loss"] == pytest.approx(last, abs=1e-5)
    moved = json.loads((run.model / "adapter_config.json").read_text())["target_parameters"]
    assert len(moved) == 4
    finished_run.export_run(run.folder, tmp_path / "merged", merged=True)
    plain, whole = (transformers.AutoModelForCausalLM.from_pretrained(f).eval() for f in (folder, tmp_path / "merged"))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
        theirs = PeftModel.from_pretrained(plain, run.model).eval()
    torch.testing.assert_close(logits(theirs), logits(whole), atol=1e-5, rtol=0)
    on = adapter_folder.load(str(run.model), "causal-lm")
    torch.testing.assert_close(logits(on.model), logits(whole), atol=1e-5, rtol=0)
    assert sum(".experts." in m for m in on.merged) == 12
    tables["model"]["id"] = str(run.model)
    second = fedft.simulate(run_file.from_dict(tables), out=tmp_path / "two")
    assert second.summary["initial"]["loss"] == pytest.approx(last, abs=1e-5)
    both = adapter_folder.load(str(second.model), "causal-lm")
    assert (
        both.merged["model.layers.0.mlp.experts.down_proj.1"].rank
        > on.merged["model.layers.0.mlp.experts.down_proj.1"].rank
    )
