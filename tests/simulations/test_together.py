"""`[server] together`: how many clients share a pass, by what is said, by the device and by its memory."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fedft import config, run_file
from fedft.errors import ConfigError
from fedft.simulations import batched_turns, workplace
from fedft.simulations import run as runs


def settings(base: Path, at_once: int | str, *more: str) -> config.RunConfig:
    small = ["local.batch_size=4", "local.steps=4", "data.max_length=64", "data.clients=3", "eval.max_rows=4"]
    own = [f"model.id='{base}'", "strategy.name=fedit", "clients.rank=4", "server.rounds=2", "eval.every=9"]
    return run_file.load(runs.QUICKSTART, [*own, *small, f"server.together={at_once}", *more])


def test_one_at_a_time_is_what_is_configured_unless_said(tiny_base: Path) -> None:
    assert config.RunConfig().server.together is None
    place = workplace.workplace(settings(tiny_base, 1))
    assert batched_turns.starter(place.clients) == (None, 1)
    for client in place.clients.values():
        client.config = replace(client.config, server=replace(client.config.server, together=None))
    assert batched_turns.starter(place.clients) == (None, 1), "a CPU"
    with pytest.raises(ConfigError, match="together >= 1"):
        settings(tiny_base, 0)


def test_auto_takes_as_many_as_half_of_the_free_memory_holds_and_says_so(
    tiny_base: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """By what a pass on the longest rows is measured to keep: longer rows, fewer clients."""
    place = workplace.workplace(settings(tiny_base, "auto", "local.batch_size=2", "data.max_length=32"))
    measured: list[int] = []
    kept = batched_turns.free_memory.kept_bytes
    monkeypatch.setattr(batched_turns.free_memory, "kept_bytes", lambda *a: measured.append(kept(*a)) or measured[-1])

    def most(free: int | None) -> int:
        monkeypatch.setattr(batched_turns.free_memory, "free_bytes", lambda device: free)
        return batched_turns.starter(place.clients)[1]

    assert most(None) == most(10**12) == 3
    assert not [r for r in caplog.records if r.name == batched_turns.log.name]
    place.handle.write(place.handle.kind.initial(place.layout, 4, 0))
    numbers = 24 * sum(p.numel() for p in place.handle.parameters().values())
    one = measured[0] + numbers
    assert most(2 * one * 2 + 100) == 2
    assert "2 in place of 3 clients a pass" in caplog.text
    assert most(one) == 1
    assert measured[0] > 10**5
    assert len(set(measured)) == 1


def test_left_out_it_is_auto_on_an_accelerator(tiny_base: Path) -> None:
    place = workplace.workplace(settings(tiny_base, "auto"))
    client = next(iter(place.clients.values()))
    client.config = replace(client.config, server=replace(client.config.server, together=None))
    assert batched_turns._wanted(client) == 1

    class There:
        def parameters(self) -> Any:
            yield torch.zeros(1, device="meta")

    client.base = replace(client.base, model=There())
    assert batched_turns._wanted(client) == "auto"
    client.config = replace(client.config, server=replace(client.config.server, together=1))
    assert batched_turns._wanted(client) == 1


def test_the_header_says_how_many_share_a_pass(tiny_base: Path, tmp_path: Path) -> None:
    more = ["local.steps=1", "server.rounds=1", "local.batch_size=2", "data.max_length=32"]
    for at_once, number, depends in (("1", 1, []), ("2", 2, ["2 clients a pass"])):
        run = runs.simulate(settings(tiny_base, at_once, *more), out=tmp_path / at_once)
        header = json.loads((run.folder / "summary.json").read_text())["header"]
        assert (header["together"], header["depends"]) == (number, depends)


def test_auto_shares_where_batches_are_short_and_one_at_a_time_says_what_it_would_give(
    tiny_base: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Decided by tokens per batch and how many are asked; nothing else is looked at."""
    short = ["local.batch_size=2", "data.max_length=32"]

    def most(at_once: str, *more: str) -> int:
        place = workplace.workplace(settings(tiny_base, at_once, *more))
        return batched_turns.starter(place.clients)[1]

    with caplog.at_level("INFO"):
        assert most("auto", *short) == 3
        assert not caplog.text
        assert most("1", *short) == 1
    assert caplog.text.count("together = 3 would train faster") == 1
    assert most("auto", *short, "clients.per_round=2") == 2
    assert most("auto", "local.batch_size=32", "data.max_length=32") == 1
    with pytest.raises(ConfigError, match="together is 'many', wanted int or 'auto'"):
        settings(tiny_base, "many")
