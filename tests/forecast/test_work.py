"""A work's forecast as a whole: what moves it, and by how much."""

import math
import time
from dataclasses import replace
from typing import Any

import pytest
import torch

from fedft import run_file, strategies
from fedft.config import RunConfig
from fedft.contract import Forecast, Layout, Work
from fedft.forecast.anatomy import anatomy_of
from fedft.forecast.rows import Rows
from fedft.forecast.work import Forecaster, forecaster
from fedft.models.layout import layout_of
from fedft.update import Plan, Shape, Update
from fedft.wire import messages
from tests.support.small_models import base_of, llama


def config(strategy: str = "fedit", **tables: dict[str, Any]) -> RunConfig:
    said: dict[str, Any] = {"strategy": {"name": strategy}, "data": {"max_length": 64, "clients": 3}}
    said |= {"clients": {"rank": 8}} if strategy not in ("fedavg", "mezo") else {}
    for name, table in tables.items():
        said[name] = {**said.get(name, {}), **table}
    return run_file.from_dict(said)


def of(
    strategy: str = "fedit", rows: Rows | None = None, model: Any = llama, base: dict[str, Any] | None = None,
    **tables: dict[str, Any],
) -> Forecaster:  # fmt: skip
    found = config(strategy, model={"dtype": "float32", **(base or {})}, **tables)
    here, recipe = base_of(model()), strategies.of(found)
    layout = layout_of(here, [] if recipe.space.of_base else found.model.targets)
    return Forecaster(anatomy_of(here), recipe.space.layout(layout), found, recipe, rows or Rows())


def test_a_forecast_is_pure_fast_and_a_plain_value() -> None:
    f = of()
    call = forecaster(f.anatomy, f.layout, f.config, f.recipe)
    work = Work(Shape(4), steps=3)
    first = call(work)
    assert first == call(work) == Forecast(*first)
    began = time.process_time()
    for _ in range(20):
        call(work)
    assert (time.process_time() - began) / 20 < 0.02


def test_more_rank_more_steps_and_more_modules_take_more() -> None:
    f = of()
    small, large = (f.forecast(Work(Shape(r))) for r in (2, 16))
    assert small.memory < large.memory
    assert small.flops < large.flops
    assert 7 * small.up > large.up > 4 * small.up
    assert f.flops(Work(steps=6)) == pytest.approx(2 * f.flops(Work(steps=3)))
    some = {m: 8 if m.endswith("layers.1.mlp.down_proj") else 1 for m in f.layout.modules}
    assert f.up(Work(Shape(1, some))) < f.up(Work(Shape(8)))


@pytest.mark.parametrize("codec", ["fp32", "int8", "topk:0.1 | int8"])
def test_the_bytes_up_are_those_of_the_encoder(codec: str) -> None:
    f = of(codec={"up": codec})
    f = replace(f, layout=Layout({f"layers.{n}.q": (200, 160) for n in range(6)}))
    spec, g = f.recipe.spec(f.layout, Plan("", 0, 0, rank=32)), torch.Generator().manual_seed(5)
    delta = {n: 1e-3 * torch.randn(t.shape, generator=g) for n, t in spec.items()}
    sent = len(messages.encode_update(Update(delta, 1), codec))
    assert f.up(Work(Shape(32))) == pytest.approx(sent, rel=0.05)


def test_what_saves_memory_saves_it() -> None:
    tables = {"local": {"batch_size": 32}, "data": {"max_length": 512}}
    plain = of(**tables).forecast(Work()).memory
    for less in ({"checkpointing": True}, {"micro_batch": 4}):
        assert of(**{**tables, "local": {"batch_size": 32, **less}}).forecast(Work()).memory < plain
    packed = of(**tables, base={"base_bits": 4})
    assert packed.memory(Work()).base < 0.7 * of(**tables).memory(Work()).base


def test_gradients_of_single_records_are_kept_row_by_row() -> None:
    """Of a turn that hides records: each row's own numbers beside their sum, and batches larger by chance."""
    noise = {"mode": "example-dp", "clip": 1.0, "noise_multiplier": 1.0, "delta": 1e-5}
    few_tokens: dict[str, Any] = {"data": {"max_length": 4}, "eval": {"batch_size": 1}, "clients": {"rank": 64}}
    tables = {"local": {"batch_size": 64, "micro_batch": 16}, **few_tokens}
    plain, private = of("ffa_lora", **tables), of("ffa_lora", **tables, privacy=noise)
    learned = sum(math.prod(t.shape) for t in private.recipe.spec(private.layout, Plan("", 0, 0, rank=64)).values())
    assert private.memory(Work()).optimizer - plain.memory(Work()).optimizer >= 4 * 16 * learned
    whole = [of("ffa_lora", local={"batch_size": n}, **few_tokens, privacy=noise) for n in (16, 64)]
    few, many = (f.memory(Work()) for f in whole)
    assert many.optimizer - few.optimizer >= 4 * 48 * learned
    assert private.flops(Work()) == plain.flops(Work())


def test_what_a_term_of_a_step_keeps_counts() -> None:
    """FedPipe's scores: two float32 for every number that learns."""
    tables: dict[str, Any] = {"local": {"batch_size": 1}, "data": {"max_length": 2}, "eval": {"batch_size": 1}}
    with_scores, without = of("fedpipe", **tables), of("flexlora", **tables)
    learned = 8 * sum(map(sum, without.layout.modules.values()))
    more = with_scores.memory(Work(Shape(8))).optimizer - without.memory(Work(Shape(8))).optimizer
    assert more == 8 * learned


def test_forward_passes_alone_keep_nothing() -> None:
    backward, forward = of("fedavg"), of("mezo")
    assert forward.memory(Work()).optimizer == 0
    assert forward.forecast(Work()).memory < backward.forecast(Work()).memory
    assert forward.up(Work()) < backward.up(Work()) / 20


def test_rows_that_are_known_make_it_less() -> None:
    known = Rows.of([(16, 4), (20, 6), (40, 10)], [(30, 5)], batch=2)
    assert (known.longest, known.learned, known.train, known.held_out, known.padded) == (40, 10, 3, 1, True)
    assert known.usual == pytest.approx(16 * 1 / 9 + 20 * 3 / 9 + 40 * 5 / 9)
    f = of(rows=known)
    assert f.forecast(Work()).memory < of().forecast(Work()).memory
    assert f.forecast(Work()).flops < of().forecast(Work()).flops
    assert replace(f, rows=replace(known, train=800), config=config(local={"epochs": 1})).steps(Work()) == 100
