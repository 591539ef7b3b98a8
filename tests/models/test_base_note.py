"""An exported adapter says which base it needs, and where it is used on another one that is said."""

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

import fedft
from fedft import run_file
from fedft.config import RunConfig
from fedft.models import adapter_folder, base_note
from fedft.privacy.tables import Privacy
from fedft.simulations import finished_run


@pytest.fixture
def config(tiny_base: Path, tmp_path: Path) -> RunConfig:
    folder = shutil.copytree(tiny_base, tmp_path / "model")
    rows = [{"client": "xy"[i % 2], "prompt": f"a{i}", "response": f"b{i}"} for i in range(12)]
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    tables = {"model": {"id": str(folder)}, "data": {"train": str(tmp_path / "rows.jsonl"), "max_length": 16}}
    tables |= {"strategy": {"name": "fedit"}, "local": {"steps": 1}, "server": {"rounds": 1, "loggers": []}}
    return run_file.from_dict(tables | {"clients": {"rank": 2}})


def said(folder: Path) -> dict:
    return json.loads((folder / base_note.NAME).read_text())


def test_a_run_s_model_and_its_export_say_their_base_and_its_precision(config, tmp_path, caplog) -> None:
    config = replace(config, model=replace(config.model, dtype="bfloat16"))
    found = fedft.simulate(config, out=tmp_path / "run").summary
    note = {"base": config.model.id, "base_digest": found["base_digest"], "dtype": "bfloat16", "bits": 16}
    note |= {"epsilon": None, "epsilon_why": "no differential privacy"}
    finished_run.export_run(tmp_path / "run", tmp_path / "out")
    for folder in (tmp_path / "run/model", tmp_path / "out"):
        assert said(folder) == note
        card = (folder / "README.md").read_text()
        assert f"on the base `{config.model.id}` in bfloat16." in card
        assert f"`{found['base_digest']}`" in card
        assert "whose records it learned: epsilon none: no differential privacy.\n" in card
    finished_run.export_run(tmp_path / "run", tmp_path / "merged", merged=True)
    assert not (tmp_path / "merged" / base_note.NAME).exists()
    caplog.clear()
    finished_run.evaluate_run(tmp_path / "run")
    assert "trained on" not in caplog.text


def test_what_a_run_spent_of_privacy_goes_with_its_model_wherever_it_is_exported(config, tmp_path) -> None:
    pytest.importorskip("dp_accounting", reason="pip install 'fedft[dp]'")
    private = Privacy("example-dp", clip=1.0, noise_multiplier=3.0, delta=1e-2)
    found = fedft.simulate(replace(config, privacy=private), out=tmp_path / "run").summary
    finished_run.export_run(tmp_path / "run", tmp_path / "out")
    assert found["epsilon"] > 0
    for folder in (tmp_path / "run/model", tmp_path / "out"):
        note = {k: said(folder)[k] for k in ("epsilon", "delta", "privacy")}
        assert note == {"epsilon": found["epsilon"], "delta": 1e-2, "privacy": "example-dp"}
        shown = f"epsilon {found['epsilon']:.3g} at delta 0.01, of one record (example-dp)."
        assert shown in (folder / "README.md").read_text()


def test_another_precision_and_other_weights_are_said_where_a_run_is_measured(config, tmp_path, caplog) -> None:
    fedft.simulate(config, out=tmp_path / "run")
    note = tmp_path / "run/model" / base_note.NAME
    note.write_text(json.dumps(said(note.parent) | {"bits": 4, "clients": {"4": 1, "32": 2}}))
    file = Path(config.model.id) / "model.safetensors"
    save_file({n: x + 1e-3 for n, x in load_file(file).items()}, file, {"format": "pt"})
    with caplog.at_level(logging.WARNING):
        finished_run.evaluate_run(tmp_path / "run")
    assert "it was trained on other weights of the base" in caplog.text
    assert "it was trained on a base in 4 bits, this one is in float32: its loss differs" in caplog.text
    assert "its clients had the base in 4 (1 of 3) and 32 (2 of 3) bits, this one is in 32" in caplog.text


def test_who_goes_on_from_an_adapter_on_another_precision_is_told(config, tmp_path, caplog) -> None:
    first = fedft.simulate(config, out=tmp_path / "one").summary
    below = replace(config, model=replace(config.model, id=str(tmp_path / "one/model")))
    with caplog.at_level(logging.WARNING):
        second = fedft.simulate(below, out=tmp_path / "two").summary
        assert "was trained on" not in caplog.text
        fedft.simulate(replace(below, model=replace(below.model, dtype="bfloat16")), out=tmp_path / "three")
    assert "one/model: it was trained on a base in float32, this one is in bfloat16" in caplog.text
    assert second["base_digest"] != first["base_digest"]
    assert said(tmp_path / "two/model")["base_digest"] == first["base_digest"], "peft loads it on the base below"
    base = adapter_folder.load(str(tmp_path / "two/model"), "causal-lm")
    assert base.lowest == first["base_digest"]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"base_digest": "0", "dtype": 1, "bits": "x"}', '{"bits": null}'])
def test_a_folder_without_a_note_that_can_be_read_says_nothing(config, tmp_path, tiny_base, text) -> None:
    base = adapter_folder.load(str(tiny_base), "causal-lm")
    assert base_note.differences(tmp_path, config.model, base) == []
    (tmp_path / base_note.NAME).write_text(text)
    assert base_note.differences(tmp_path, config.model, base) == []
