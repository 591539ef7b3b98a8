"""Whole runs on a base of 4 or 8 bits: what they leave gives their loss again, and the base takes no more memory."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from fedft import run_file
from fedft.errors import DataError
from fedft.models.packed_linear import PackedLinear
from fedft.simulations import finished_run, workplace
from fedft.simulations import run as runs
from fedft.training import evaluate
from fedft.training.metrics.loss import over_clients


def settings(base: Path | str, bits: int | None, strategy: str, *more: str) -> Any:
    small = ["local.batch_size=4", "data.max_length=64", "data.clients=2", "eval.max_rows=4", "server.loggers=[]"]
    tables = ["local.steps=2", "server.rounds=2", "eval.every=99", "clients.rank=4", *small]
    own = [f"model.id='{base}'", f"strategy.name={strategy}", *([f"model.base_bits={bits}"] if bits else [])]
    return run_file.load(runs.QUICKSTART, [*own, *tables, *more])


def loss_of(model: Path, bits: int | None) -> float:
    """The loss of a folder as a base, over the same rows."""
    place = workplace.workplace(settings(model, bits, "fedit"))
    place.stand(place.recipe.first_state(place.layout, 4, 0))
    each = [
        evaluate.measure(place.handle, place.base, c.test_rows[:4], place.config.eval) for c in place.clients.values()
    ]
    return over_clients(each)["loss"]


@pytest.mark.parametrize(
    ("strategy", "bits"),
    [
        ("flora", 4),
        ("fedex_lora", 8),
        *(pytest.param(*more, marks=pytest.mark.slow) for more in (("fedex_lora", 4), ("fedit", 4), ("flora", 8))),
    ],
)
def test_what_a_run_leaves_has_its_loss_on_a_base_of_as_many_bits(tiny_base, tmp_path, strategy, bits, caplog):
    run = runs.simulate(settings(tiny_base, bits, strategy), out=tmp_path / "run")
    final = run.summary["final"]["loss"]
    assert final < run.summary["initial"]["loss"]
    said = json.loads((tmp_path / "run" / "model" / "base.json").read_text())
    assert (said["base_bits"], said["base_digest"]) == (bits, run.summary["base_digest"])
    assert loss_of(tmp_path / "run" / "model", bits) == pytest.approx(final, abs=1e-4)
    if bits == 4:
        assert abs(loss_of(tmp_path / "run" / "model", None) - final) > 1e-4
    with caplog.at_level(logging.WARNING):
        finished_run.export_run(tmp_path / "run", tmp_path / "whole", merged=True)
    assert f"the base of {bits} bits stands for" in caplog.text
    assert loss_of(tmp_path / "whole", None) == pytest.approx(final, abs=1e-4)


def test_downloads_of_changes_bring_clients_where_the_server_is_on_a_packed_base_too(tiny_base, tmp_path):
    """One of two is asked in a round, so one lacks changes; it is as near as with whole downloads, resumed too."""
    more = ("server.rounds=3", "clients.per_round=1", "codec.down='delta | int4'")
    whole = runs.simulate(settings(tiny_base, 4, "fedit", *more[:2]), out=tmp_path / "whole").summary
    changes = runs.simulate(settings(tiny_base, 4, "fedit", *more), out=tmp_path / "changes").summary
    assert changes["state_digest"] != whole["state_digest"]
    assert changes["bytes_down"] < whole["bytes_down"]
    assert changes["final"]["loss"] == pytest.approx(whole["final"]["loss"], abs=0.02)
    assert loss_of(tmp_path / "changes" / "model", 4) == pytest.approx(changes["final"]["loss"], abs=1e-4)
    half = runs.simulate(settings(tiny_base, 4, "fedit", *more, "server.rounds=2"), out=tmp_path / "half")
    rest = runs.simulate(settings(tiny_base, 4, "fedit", *more), out=half.folder, resume=True).summary
    assert rest["state_digest"] == changes["state_digest"]


@pytest.mark.slow
def test_a_run_goes_on_from_the_model_of_another_one(tiny_base, tmp_path):
    first = runs.simulate(settings(tiny_base, 4, "flora"), out=tmp_path / "first")
    second = runs.simulate(settings(tmp_path / "first" / "model", 4, "flora"), out=tmp_path / "second")
    assert second.summary["initial"]["loss"] == pytest.approx(first.summary["final"]["loss"], abs=1e-4)
    assert loss_of(tmp_path / "second" / "model", 4) == pytest.approx(second.summary["final"]["loss"], abs=1e-4)


def test_a_repaired_base_is_nearer_and_its_repair_is_in_what_the_run_leaves(tiny_base, tmp_path, caplog):
    initial = {}
    for rank in (None, 32):
        more = [f"model.repair_rank={rank}"] if rank else []
        place = workplace.workplace(settings(tiny_base, 4, "flora", *more))
        plain = workplace.workplace(settings(tiny_base, None, "flora"))
        for p in (place, plain):
            p.stand(p.recipe.first_state(p.layout, 4, 0))
        batch = place.base.tokenizer(["def f(x): return x + 1", "import os"], padding=True, return_tensors="pt")
        ids = {k: batch[k] for k in ("input_ids", "attention_mask")}
        with torch.no_grad():
            initial[rank] = float((place.base.model(**ids).logits - plain.base.model(**ids).logits).norm())
    assert 0 < initial[32] < 0.9 * initial[None]

    run = runs.simulate(settings(tiny_base, 4, "flora", "model.repair_rank=16"), out=tmp_path / "run")
    final, model = run.summary["final"]["loss"], tmp_path / "run" / "model"
    assert json.loads((model / "base.json").read_text())["repair_rank"] == 16
    assert loss_of(model, 4) == pytest.approx(final, abs=1e-4)
    finished_run.export_run(tmp_path / "run", tmp_path / "whole", merged=True)
    assert loss_of(tmp_path / "whole", None) == pytest.approx(final, abs=1e-4)
    with pytest.raises(DataError, match=r"repair_rank: the adapter in .* holds the repair of its base already"):
        workplace.workplace(settings(model, 4, "flora", "model.repair_rank=16"), data=False)
    with caplog.at_level(logging.WARNING):
        workplace.workplace(settings(model, 8, "flora"), data=False)
    assert "it was trained on a base in 4 bits, this one is in 8 bits" in caplog.text


def held(x: Any, seen: set[int] | None = None) -> int:
    """Bytes of all tensors that can be reached from a value, each memory counted once."""
    seen = set() if seen is None else seen
    if id(x) in seen or isinstance(x, type | str | bytes):
        return 0
    seen.add(id(x))
    if isinstance(x, torch.Tensor):
        storage = x.untyped_storage()
        counted, _ = storage.data_ptr() in seen, seen.add(storage.data_ptr())
        return (0 if counted else storage.nbytes()) + (held(x.grad, seen) if x.is_leaf else 0)
    if isinstance(x, dict):
        return sum(held(v, seen) for v in x.values())
    if isinstance(x, list | tuple | set | frozenset):
        return sum(held(v, seen) for v in x)
    inside = isinstance(x, torch.nn.Module) or (hasattr(x, "__dict__") and not callable(x))
    return held(vars(x), seen) if inside else 0


def test_twelve_rounds_of_flora_on_four_bits_grow_by_factors_only(tiny_base, tmp_path):
    config = settings(tiny_base, 4, "flora", "server.rounds=12", "local.learning_rate=3e-3")
    run = runs.simulate(config, out=tmp_path / "run")
    final = run.summary["final"]["loss"]
    assert final < run.summary["initial"]["loss"]
    assert loss_of(tmp_path / "run" / "model", 4) == pytest.approx(final, abs=1e-4)

    place = workplace.workplace(config)
    place.stand(place.recipe.first_state(place.layout, 4, 0))
    before = held(place.handle)
    codes = {n: m.packed for n, m in place.base.model.named_modules() if isinstance(m, PackedLinear)}
    _, state = workplace.reopen(tmp_path / "run", data=False)
    place.stand(state)
    grown = held(place.handle) - before
    factors = held(place.handle.change()[0])
    assert 0 < grown <= factors * 1.01
    for n, m in place.base.model.named_modules():
        assert n not in codes or all(a is b for a, b in zip(m.packed, codes[n], strict=True))
