"""What no message can carry is refused before any work, with both sizes and what to do."""

import math
from pathlib import Path

import pytest

from fedft import run_file, strategies, testing
from fedft.errors import ConfigError
from fedft.forecast.messages import message_bytes
from fedft.server import app, message_sizes
from fedft.simulations import run as runs
from fedft.update import TensorSpec
from fedft.wire import messages


def check(name: str, most: int, monkeypatch: pytest.MonkeyPatch, clients: int = 3, **codec: str) -> None:
    monkeypatch.setattr(message_sizes, "MAX_MESSAGE_BYTES", most)
    toy = testing.toy(strategies.make(name, {}))
    config = run_file.from_dict({"strategy": {"name": name}, "codec": codec, "clients": {"rank": 4}})
    message_sizes.check_sizes(config, toy.recipe, toy.layout, clients)


def test_a_stack_of_matrices_is_refused_by_its_name() -> None:
    """Experts that lie in one parameter, under full fine-tuning."""
    spec = {"mlp.weight": TensorSpec((3, 4), "float32"), "mlp.experts.down_proj": TensorSpec((2, 3, 4), "float32")}
    with pytest.raises(ConfigError, match=r"^mlp.experts.down_proj has 3 dimensions, messages carry up to 2; wanted"):
        message_bytes(spec, "fp32")
    assert message_bytes({"mlp.weight": spec["mlp.weight"]}, "fp32") > 48


@pytest.mark.parametrize("name", ["fedit", "flora"])
def test_the_limit_is_where_the_message_of_the_first_plan_and_update_ends(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy = testing.toy(strategies.make(name, {}))
    plan = message_sizes.first_round(
        run_file.from_dict({"strategy": {"name": name}, "clients": {"rank": 4}}), toy.recipe, toy.layout, 1
    )[1][0]
    body = sum(4 * math.prod(t.shape) for t in toy.recipe.spec(toy.layout, plan).values())
    with pytest.raises(ConfigError, match=r"\[codec\] (up|down), \[clients\] rank, fewer \[model\] targets") as e:
        check(name, body - 1, monkeypatch, clients=1)
    assert "a message carries at most" in str(e.value)
    check(name, 2 * body + 10_000, monkeypatch, clients=1)


def test_a_shorter_codec_makes_it_fit_and_more_clients_make_stacks_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = {c: message_bytes({"x": TensorSpec((1000,))}, c) for c in ("fp32", "fp16")}
    assert lengths["fp32"] - lengths["fp16"] == pytest.approx(2000, abs=1)
    toy = testing.toy(strategies.make("fedit", {}))
    for up, down in (("fp32", "fp16"), ("fp16", "fp32")):
        key = "up" if up == "fp32" else "down"
        with pytest.raises(ConfigError, match=rf"smaller: \[codec\] {key}"):
            check("fedit", _bytes(toy, "fp32") - 1, monkeypatch, up=up, down=down)
    check("fedit", _bytes(toy, "fp16"), monkeypatch, up="fp16", down="fp16")
    check("flora", 20 * _bytes(toy, "fp32"), monkeypatch, clients=3)
    with pytest.raises(ConfigError, match="a state of flora"):
        check("flora", 20 * _bytes(toy, "fp32"), monkeypatch, clients=300)


def _bytes(toy: testing.Toy, codec: str) -> int:
    config = run_file.from_dict({"strategy": {"name": "fedit"}, "clients": {"rank": 4}})
    state, (plan, *_) = message_sizes.first_round(config, toy.recipe, toy.layout, 3)
    return message_bytes(message_sizes.sent_down(toy.recipe, state, plan), codec)


def test_the_limit_is_the_carrier_s() -> None:
    """Protobuf's: signed 32-bit lengths."""
    assert message_sizes.MAX_MESSAGE_BYTES == messages.MAX_MESSAGE_BYTES == 2**31 - 1


def test_a_simulation_and_a_server_are_refused_before_there_is_a_run(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fedft.security import new_keys
    from fedft.security import roster as keys

    monkeypatch.setattr(message_sizes, "MAX_MESSAGE_BYTES", 1000)
    config = run_file.load(runs.QUICKSTART, [f"model.id='{tiny_base}'", "data.clients=2", "strategy.name=fedit"])
    with pytest.raises(ConfigError, match=r"at most 1\.0 kB; smaller: "):
        runs.simulate(config, out=tmp_path / "simulated")
    new_keys.make_server(tmp_path / "keys", ["localhost"], 30)
    keys.enrol(tmp_path / "keys" / "roster.toml", new_keys.make_site(tmp_path / "anna", "anna"))
    with pytest.raises(ConfigError, match=r"at most 1\.0 kB; smaller: "):
        app.serve(config, app.Place(tmp_path / "keys", superlink="localhost:1"), tmp_path / "served")
    for folder in ("simulated", "served"):
        assert not (tmp_path / folder / "config.toml").exists()


def test_what_a_later_round_may_plan_counts_though_the_first_one_sends_little(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """FedPipe's first round sends scores alone; half of the modules learn by `halves`, another half at each client."""
    toy = testing.toy(strategies.make("fedpipe", {}))
    with pytest.raises(ConfigError, match="an update of fedpipe"):
        check("fedpipe", _bytes(toy, "fp32") - 1, monkeypatch)
    check("fedpipe", _bytes(toy, "fp32") + 10_000, monkeypatch)
    config = run_file.from_dict({"strategy": {"name": "fedit"}, "clients": {"rank": 4, "plan": "halves"}})
    recipe = strategies.of(config)
    plans = message_sizes.first_round(config, recipe, toy.layout, 2)[1]
    assert all(p.chosen for p in plans)
    whole = message_sizes.largest_plans(config, recipe, plans)
    assert [(p.rank, p.ranks, p.chosen) for p in whole] == [(4, {}, ())] * 2
