"""An encoder-decoder is loaded whole, bounded on both sides, adapted on both, and learns what transformers says."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch.nn import functional

from fedft import run_file, strategies
from fedft.adapters.full import Full
from fedft.adapters.lora import LoRA
from fedft.data import client_datasets
from fedft.data.batches import collate
from fedft.data.encoder_decoder import TwoSided
from fedft.data.examples import IGNORED
from fedft.data.row_counts import RowCounts
from fedft.errors import DataError
from fedft.models import load, resident, targets
from fedft.models.handle import ModelHandle
from fedft.models.layout import layout_of
from fedft.randomness import families
from fedft.simulations import finished_run, workplace
from fedft.simulations import run as runs
from fedft.training.evaluate import Measured, evaluate
from fedft.training.metrics.exact_match import exact_match
from tests.support import encoder_decoders as tiny

both = pytest.mark.parametrize("kind", ["t5", "bart"])
ROWS = [TwoSided([9, 8, 7, 6, 2], [11, 12, 2], 5), TwoSided([14, 2], [20, 21, 22, 23, 2], 2)]
TASK = "seq2seq-lm"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The folder of a saved model by its kind."""
    at = tmp_path_factory.mktemp("models")
    return {kind: tiny.save(at / kind, kind) for kind in tiny.KINDS}


def handle_of(folder, kind=None, **how):
    base = load.load(str(folder), TASK, **how)
    return base, ModelHandle(base.model, layout_of(base, "all-linear"), kind or LoRA())


def config_of(folder, **more):
    return run_file.from_dict(tiny.tables(folder, folder / "none.jsonl", "fedit", **more))


@both
def test_the_loss_of_a_batch_is_the_one_worked_out_by_hand(folders, kind):
    """One row at a time, no padding: the decoder is given its start token and the labels but the last."""
    _, handle = handle_of(folders[kind])
    handle.write(handle.kind.initial(handle.layout, 2, 7))
    model, total, right = tiny.model(kind), 0.0, 0
    for row in ROWS:
        ids = torch.tensor([row.input_ids])
        with torch.no_grad():
            logits = model(input_ids=ids, decoder_input_ids=torch.tensor([[tiny.PAD, *row.labels[:-1]]])).logits[0]
        total += float(functional.cross_entropy(logits, torch.tensor(row.labels), reduction="sum"))
        right += int((logits.argmax(-1) == torch.tensor(row.labels)).sum())
    batch = collate(ROWS, pad_id=0)
    assert float(handle.loss(batch).detach()) == pytest.approx(total / 8, rel=1e-5)
    found = evaluate(handle, ROWS, batch_size=1, pad_id=0)
    assert (found["loss"], found["accuracy"], found["count"]) == (pytest.approx(total / 8, rel=1e-5), right / 8, 8)
    theirs = model(**batch).loss
    assert float(theirs.detach()) == pytest.approx(total / 8, rel=1e-5)


@both
def test_padding_changes_nothing_whatever_fills_it_up(folders, kind):
    _, handle = handle_of(folders[kind])
    handle.write(handle.kind.initial(handle.layout, 2, 7))
    alone = [float(handle.loss(collate([row], 0)).detach()) for row in ROWS]
    mean = (3 * alone[0] + 5 * alone[1]) / 8
    for pad in (0, 77):
        assert float(handle.loss(collate(ROWS, pad)).detach()) == pytest.approx(mean, rel=1e-5)
    with torch.no_grad():
        guesses, wanted = handle.predictions(collate(ROWS, 0))
    assert guesses.shape == wanted.shape == (2, 5)
    assert wanted[0].tolist() == [11, 12, 2, IGNORED, IGNORED]


@both
def test_all_linear_is_both_sides_and_the_attention_between_them_but_not_the_output(folders, kind):
    """q, k, v, o and two of the MLP in each layer; a decoder's attends twice. The body is what is no embedding."""
    base = load.load(str(folders[kind]), TASK)
    layout = layout_of(base, "all-linear")
    every = {n for n, m in base.model.named_modules() if isinstance(m, torch.nn.Linear)}
    assert set(layout.modules) == every - {"lm_head"}
    assert sum("encoder." in n for n in layout.modules) == 2 * 6
    assert sum("decoder." in n for n in layout.modules) == 2 * 10
    assert not layout.head
    tables = ("shared", "embed_tokens", "embed_positions", "relative_attention_bias", "lm_head")
    body = {n: p.numel() for n, p in base.model.named_parameters() if not any(t in n for t in tables)}
    inside = sum(x for n, x in body.items() if n.removesuffix(".weight") in every)
    covered = targets.coverage(base, layout)
    assert (covered.layers, covered.share) == (32, pytest.approx(inside / sum(body.values())))
    assert 0.8 < covered.share < 1


@both
def test_shared_embeddings_are_one_parameter_and_nothing_is_drawn(folders, kind):
    base = load.load(str(folders[kind]), TASK)
    assert not base.drawn
    assert base.model.lm_head.weight is base.model.get_input_embeddings().weight
    assert base.ids == 264


def test_an_output_of_its_own_survives_loading(tmp_path):
    """Flan-T5 and T5 1.1: `tie_word_embeddings` is false, and the file has an output beside the embeddings."""
    folder = tiny.save(tmp_path / "t5", "t5", feed_forward_proj="gated-gelu")
    file, config = folder / "model.safetensors", json.loads((folder / "config.json").read_text())
    own = torch.randn(264, 16, generator=torch.Generator().manual_seed(1))
    save_file({**load_file(file), "lm_head.weight": own}, file, {"format": "pt"})
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    base = load.load(str(folder), TASK)
    assert torch.equal(base.model.lm_head.weight, own)
    assert not torch.equal(base.model.shared.weight, own)
    assert "lm_head.weight" in layout_of(base, []).parameters


@both
def test_weights_that_the_file_lacks_are_refused(folders, kind, tmp_path):
    folder = tiny.save(tmp_path / kind, kind)
    file = folder / "model.safetensors"
    lost = {"t5": "EncDecAttention.k", "bart": "encoder_attn.k_proj.weight"}[kind]
    save_file({n: x for n, x in load_file(file).items() if lost not in n}, file, {"format": "pt"})
    with pytest.raises(DataError, match=r"lacks 2 of the .*random numbers"):
        load.load(str(folder), TASK)


@both
def test_an_encoder_decoder_is_no_causal_model(folders, kind):
    with pytest.raises(DataError, match=f"is a {kind} model, an encoder-decoder; .*task = 'seq2seq-lm'") as e:
        load.load(str(folders[kind]), "causal-lm")
    assert "\n" not in str(e.value)


def test_a_decoder_that_is_given_something_else_than_labels_is_refused(tmp_path):
    """FSMT moves what the encoder reads to its decoder's inputs, labels or not."""
    config = transformers.FSMTConfig(
        langs=["a", "b"], src_vocab_size=264, tgt_vocab_size=264, d_model=16, encoder_layers=1, decoder_layers=1,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=24, decoder_ffn_dim=24,
    )  # fmt: skip
    transformers.AutoModelForSeq2SeqLM.from_config(config).save_pretrained(tmp_path)
    tiny.tokenizer("t5").save_pretrained(tmp_path)
    with pytest.raises(DataError, match="is a fsmt model, which gives its decoder no labels"):
        load.load(str(tmp_path), TASK)


def test_a_model_that_only_continues_text_is_no_encoder_decoder(tiny_base):
    with pytest.raises(DataError, match=r"is a llama model, which is no encoder-decoder .*task = 'causal-lm'") as e:
        load.load(str(tiny_base), TASK)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("start", [None, 999])
def test_a_decoder_without_a_token_to_begin_with_is_refused(tmp_path, start):
    folder = tiny.save(tmp_path / "t5", "t5")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "decoder_start_token_id": start}))
    with pytest.raises(DataError, match=f"decoder_start_token_id = {start}; wanted, in its config.json, the id"):
        load.load(str(folder), TASK)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"data": {"max_length": 97}}, r"max_length or max_prompt = 97, but the encoder of .* has 96 positions"),
        ({"data": {"max_length": 9, "max_prompt": 97}}, "max_prompt = 97, but the encoder"),
        ({"data": {"max_length": 97, "max_prompt": 9}}, "max_length = 97, but the decoder of .* has 96 positions"),
        (
            {"data": {"max_length": 9}, "eval": {"generate_tokens": 97, "metrics": ["exact_match"]}},
            "generate_tokens = 97, but the decoder",
        ),
    ],
)
@pytest.mark.parametrize("kind", ["bart", "marian"])
def test_positions_of_a_table_bound_either_side(folders, kind, more, said):
    config = config_of(folders[kind], **more)
    with pytest.raises(DataError, match=said):
        resident.load(config, strategies.of(config))


def test_all_positions_of_a_table_can_be_used_and_relative_ones_have_no_end(folders):
    more = {"data": {"max_length": 96}, "eval": {"generate_tokens": 96, "rouge": True}}
    config = config_of(folders["bart"], **more)
    here = resident.load(config, strategies.of(config))
    here.handle.write(here.handle.kind.initial(here.layout, 2, 7))
    row = TwoSided([9] * 96, [11] * 96, 96)
    assert float(here.handle.loss(collate([row], 0)).detach()) > 0
    Measured(here.handle, here.base.tokenizer).generate(row, 96)
    longer = {"data": {"max_length": 4000}, "eval": {"generate_tokens": 4000, "rouge": True}}
    config = config_of(folders["t5"], **longer)
    resident.load(config, strategies.of(config))


def test_a_token_of_a_response_that_the_model_lacks_is_refused(folders, tmp_path):
    folder = tiny.save(tmp_path / "t5", "t5", vocab_size=100)
    config = config_of(folder)
    base = load.load(str(folder), TASK)
    parts = {"c": ([{"prompt": "!", "response": "!"}], [])}
    client_datasets.encode(parts, config, base)
    parts = {"c": ([{"prompt": "!", "response": "\N{SNOWMAN}"}], [])}
    with pytest.raises(DataError, match=r"token id .* whose model has embeddings of 100 ids"):
        client_datasets.encode(parts, config, base)


@both
def test_generation_is_greedy_and_a_match_is_exact(folders, kind):
    """Token by token with plain transformers, until the end token; then the metric on rows that say that and not."""
    base, handle = handle_of(folders[kind])
    handle.write(handle.kind.initial(handle.layout, 2, 7))
    model, said = tiny.model(kind), [tiny.PAD]
    ids = torch.tensor([[*base.tokenizer("red green")["input_ids"]]])
    for _ in range(7):
        with torch.no_grad():
            said.append(int(model(input_ids=ids, decoder_input_ids=torch.tensor([said])).logits[0, -1].argmax()))
        if said[-1] == tiny.END:
            break
    written = Measured(handle, base.tokenizer, new_tokens=7)
    row = TwoSided(ids[0].tolist(), said[1:], ids.shape[1])
    text = base.tokenizer.decode(said[1:], skip_special_tokens=True)
    assert written.generate(row) == text == written.response(row)
    other = TwoSided(row.input_ids, [11, 2], row.prompt_length)
    assert exact_match.measure(written, [row, other]) == {"exact_match": 0.5}


def test_t5_in_float16_keeps_in_float32_what_it_must(folders):
    """transformers keeps `wo` in float32, because it overflows; the adapter changes nothing of that."""
    base, handle = handle_of(folders["t5"], dtype="float16")
    wo = base.model.encoder.block[0].layer[1].DenseReluDense.wo
    assert (wo.weight.dtype, base.model.shared.weight.dtype) == (torch.float32, torch.float16)
    handle.write({n: x + 0.01 for n, x in handle.kind.initial(handle.layout, 2, 7).items()})
    wo = base.model.encoder.block[0].layer[1].DenseReluDense.wo
    assert wo.weight.dtype == torch.float32
    loss = handle.loss(collate(ROWS, 0))
    loss.backward()
    assert torch.isfinite(loss)
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in handle.parameters().values())


def test_positions_by_formula_are_no_parameters_to_train(folders):
    """No file keeps Marian's: a change of them would be lost at the next loading."""
    _, handle = handle_of(folders["marian"], Full())
    assert not [n for n in handle.layout.parameters if "embed_positions" in n]
    assert "lm_head.weight" in handle.layout.parameters
    _, bart = handle_of(folders["bart"], Full())
    assert [n for n in bart.layout.parameters if "embed_positions" in n]


def test_a_tokenizer_without_an_end_token_is_said(folders):
    base = load.load(str(folders["t5"]), TASK)
    base.tokenizer.eos_token = None
    parts = {"c": ([{"prompt": "!", "response": "!"}], [])}
    client_datasets.encode(parts, config_of(folders["t5"]), base, counts := RowCounts())
    assert "no end token" in counts.never_stops


@pytest.mark.parametrize("objective", ["label_smoothing:label_smoothing", "thumbs:Thumbs"])
def test_an_objective_works_on_both_sides_or_one_line_says_that_it_does_not(
    folders, tmp_path, allow, monkeypatch, objective
):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "plugin_example")
    allow(objective)
    rows = tmp_path / "rows.jsonl"
    line = {"client": "a", "prompt": "x y", "response": "y", "chosen": "y", "rejected": "x"}
    rows.write_text((json.dumps(line) + "\n") * 6)
    config = run_file.from_dict(tiny.tables(folders["t5"], rows, "fedit", local={"objective": objective, "steps": 2}))
    if objective.startswith("label"):
        summary = runs.simulate(config, out=tmp_path / "run").summary
        assert summary["final"]["loss"] < summary["initial"]["loss"]
        return
    with pytest.raises(DataError, match="the objective encodes rows for models of one side"):
        runs.simulate(config, out=tmp_path / "run")
    _, handle = handle_of(folders["t5"], LoRA())
    with pytest.raises(DataError, match=r"\[local\] objective: its batches are for models that continue text"):
        handle.forward({name: x for name, x in collate(ROWS, 0).items() if name != "labels"})


@both
@pytest.mark.parametrize("kind_of", [LoRA(), Full()], ids=["lora", "full"])
def test_zeroth_order_steps_see_every_weight_moved(folders, kind, kind_of):
    """The derivative along a direction, exact, is what two passes measure: no weight is read past its owner."""
    _, handle = handle_of(folders[kind], kind_of)
    if not kind_of.of_base:
        handle.write({n: x + 0.02 for n, x in kind_of.initial(handle.layout, 2, 7).items()})
    z, batch, epsilon = families.make("hadamard", 5, 16), collate(ROWS, 0), 1e-3
    with torch.no_grad():
        with handle.perturbed(z, 0, epsilon):
            more = float(handle.loss(batch))
        with handle.perturbed(z, 0, -epsilon):
            less = float(handle.loss(batch))
    exact, _ = handle.directional_derivative(batch, z, 0)
    assert abs(exact) > 0.01
    assert exact == pytest.approx((more - less) / (2 * epsilon), rel=0.02, abs=2e-3)


def test_a_merged_export_loads_where_the_output_is_tied_to_the_decoder_alone(tmp_path):
    """T5Gemma's encoder has embeddings of its own: peft would write into the config that the output is tied to none."""
    side = {
        "vocab_size": 264, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "head_dim": 8,
        "num_attention_heads": 2, "num_key_value_heads": 1, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    config = transformers.T5GemmaConfig(
        encoder=side, decoder=side, vocab_size=264, pad_token_id=0, bos_token_id=1, eos_token_id=2
    )
    config.decoder_start_token_id = 1
    transformers.AutoModelForSeq2SeqLM.from_config(config).save_pretrained(tmp_path / "base")
    tiny.tokenizer("t5").save_pretrained(tmp_path / "base")
    run = runs.simulate(
        run_file.from_dict(tiny.tables(tmp_path / "base", tiny.rows(tmp_path / "rows.jsonl"), "fedit")),
        out=tmp_path / "run",
    )
    finished_run.export_run(run.folder, tmp_path / "merged", merged=True)
    merged = load.load(str(tmp_path / "merged"), TASK)
    assert merged.model.config.tie_word_embeddings
    place, _ = workplace.reopen(run.folder)
    batch = collate(ROWS, 0)
    with torch.no_grad():
        assert float(merged.model(**batch).loss) == pytest.approx(float(place.handle.loss(batch)), abs=1e-5)
