"""Error feedback: nothing that a codec leaves out is lost, and strategies refuse codecs that would ruin them."""

from dataclasses import replace

import pytest
import torch

from fedft import run_file, strategies, testing
from fedft.compression.error_feedback import OWNER, ByCodec, ErrorFeedback
from fedft.contract import Trained
from fedft.errors import ConfigError
from fedft.wire import messages


def of(name: str, up: str, feedback: bool | None = None):
    tables = {"strategy": {"name": name}, "codec": {"up": up}}
    if feedback is not None:
        tables["codec"]["error_feedback"] = feedback
    return strategies.of(run_file.from_dict(tables))


@pytest.mark.parametrize("up", ["ternary:0.2", "topk:0.1 | fp16", "int4"])
def test_what_was_sent_and_what_is_unsent_add_up_to_what_was_meant(up: str) -> None:
    """sum of decoded + the last residual = sum of all deltas, over five turns."""
    rng = torch.Generator().manual_seed(1)
    deltas = [{"m.lora_A": torch.randn(4, 30, generator=rng)} for _ in range(5)]
    t, kept, sent = testing.toy(of("fedit", "fp32")), {}, torch.zeros(4, 30)
    for delta in deltas:
        turn = replace(t.turn(t.plan(t.state(), 0), 0), kept=kept)
        trained = ErrorFeedback(ByCodec(up)).apply(Trained(delta, {"loss": 1.0}), turn, t.handle)
        kept = trained.kept
        sent += messages.roundtrip(trained.delta, up, turn.seed)["m.lora_A"]
    wanted = sum(d["m.lora_A"] for d in deltas)
    assert torch.allclose(sent + kept[OWNER]["m.lora_A"], wanted, atol=1e-5)
    assert kept[OWNER]["m.lora_A"].norm() > 0.05 * wanted.norm()  # it did leave something out


def test_feedback_is_on_where_much_is_left_out() -> None:
    for up, on in (("fp32", False), ("int8", False), ("int4", True), ("ternary:0.5", True), ("topk:0.1 | int8", True)):
        assert of("fedit", up).keeps == on, up
    assert not of("fedit", "int4", feedback=False).keeps


def test_a_residual_of_another_rank_is_dropped() -> None:
    t = testing.toy(of("fedit", "fp32"))
    turn = replace(t.turn(t.plan(t.state(), 0), 0), kept={OWNER: {"x": torch.ones(3)}})
    trained = ErrorFeedback(ByCodec("int8")).apply(Trained({"x": torch.zeros(2)}, {}), turn, t.handle)
    assert torch.equal(trained.delta["x"], torch.zeros(2))


@pytest.mark.parametrize(
    ("name", "up", "said"),
    [
        ("flora", "ternary:0.2", "sends whole factors, not changes"),
        ("flexlora", "int4", "sends whole factors, not changes"),
        ("fedkseed", "randk:0.5 | fp32", "a few numbers that all count"),
    ],
)
def test_a_codec_that_would_leave_out_what_was_learned_is_refused(name: str, up: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        of(name, up)


@pytest.mark.parametrize(("name", "up"), [("fedit", "fp32"), ("flora", "fp16"), ("fedkseed", "int8")])
def test_feedback_is_refused_where_nothing_is_left_out_that_could_be_kept(name: str, up: str) -> None:
    with pytest.raises(ConfigError, match="error_feedback"):
        of(name, up, feedback=True)


def test_a_download_that_leaves_out_much_of_a_state_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"down: 'ternary:0.5' blurs or leaves out"):
        run_file.from_dict({"codec": {"down": "ternary:0.5"}})
