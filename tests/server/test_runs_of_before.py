"""A run that was begun when digests were of weights as loaded goes on under that name, and sites know it by either."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

import fedft
from fedft import run_file
from fedft.config import RunConfig
from fedft.errors import ConfigError, PlanRefused
from fedft.models import adapter_folder
from fedft.models.parameters import digest_of
from fedft.server.job import job_of, job_on
from fedft.simulations import workplace


@pytest.fixture
def config(tiny_base: Path, tmp_path: Path) -> RunConfig:
    """A run in float32 on a base that is stored in bfloat16."""
    folder = Path(shutil.copytree(tiny_base, tmp_path / "model"))
    weights = load_file(folder / "model.safetensors")
    save_file({n: x.bfloat16() for n, x in weights.items()}, folder / "model.safetensors", {"format": "pt"})
    rows = [{"client": "xy"[i % 2], "prompt": f"a{i}", "response": f"b{i}"} for i in range(12)]
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    tables = {"model": {"id": str(folder)}, "data": {"train": str(tmp_path / "rows.jsonl"), "max_length": 16}}
    tables |= {"strategy": {"name": "fedit"}, "local": {"steps": 1}, "server": {"rounds": 1, "loggers": []}}
    return run_file.from_dict(tables)


def test_a_site_takes_a_job_by_either_digest_and_by_no_other(config: RunConfig) -> None:
    place = workplace.workplace(config)
    client, base = place.clients["x"], place.base
    earlier = digest_of(adapter_folder.load(config.model.id, "causal-lm").model)
    job = job_of(place.config, base.digest, [], base.tokenizer_digest)
    assert base.digest != earlier == base.earlier("float32")
    client.join(job)
    client.join(replace(job, base=earlier))
    half = digest_of(adapter_folder.load(config.model.id, "causal-lm", dtype="bfloat16").model)
    for other in (half, "0" * 64):
        with pytest.raises(PlanRefused) as e:
            client.join(replace(job, base=other))
        assert e.value.code == "base_mismatch"
    client.join(replace(job, base=half, tables={**job.tables, "model": {"dtype": "bfloat16"}}))
    assert base.earlier("auto") == base.earlier("module:name") == ""


def test_a_run_keeps_the_name_under_which_it_was_begun(config: RunConfig) -> None:
    base = workplace.workplace(config, data=False).base
    now = job_on(config, base, [b"who"])
    assert (now.base, job_on(config, base, [b"who"], now.run)) == (base.digest, now)
    config = replace(config, model=replace(config.model, dtype="float32"))
    begun = job_of(config, base.earlier("float32"), [b"who"], base.tokenizer_digest)
    assert job_on(config, base, iter([b"who"]), begun.run) == begun
    assert job_on(config, base, [b"other"], begun.run).base == base.digest, "a run of other rows is not that one"


def test_a_run_of_before_is_resumed_and_ends_as_it_would_have(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    longer = replace(config, server=replace(config.server, rounds=2))
    whole = fedft.simulate(longer, out=tmp_path / "whole").summary
    with monkeypatch.context() as m:
        m.setattr("fedft.server.open_run.job_on", lambda c, base, who, begun: job_of(c, base.earlier("float32"), who))
        fedft.simulate(config, out=tmp_path / "run")
    resumed = fedft.simulate(longer, out=tmp_path / "run", resume=True).summary
    assert resumed["rounds"] == 2
    assert resumed["state_digest"] == whole["state_digest"]


def test_a_run_of_another_base_is_refused_in_one_line(config: RunConfig, tmp_path: Path) -> None:
    fedft.simulate(config, out=tmp_path / "run")
    file = Path(config.model.id) / "model.safetensors"
    save_file({n: x + 1 for n, x in load_file(file).items()}, file, {"format": "pt"})
    with pytest.raises(ConfigError, match="its config, base model or data have changed since"):
        fedft.simulate(config, out=tmp_path / "run", resume=True)
