"""Control variates: what a turn's gradients become, what is sent and kept of them, and how large an upload counts."""

import logging

import pytest
import torch
from torch import nn

from fedft.config import Local
from fedft.contract import Learning, Trained, Turn
from fedft.training.control_variates import (
    CONTROL,
    OWNER,
    Corrected,
    as_controls,
    controls,
    norm,
    warn_unless_exact,
    without_controls,
)
from fedft.update import Plan


def test_gradients_are_corrected_and_their_mean_is_what_they_were_by_hand():
    """c = 1, c_k = 3; gradients 4 and 8 become 2 and 6; c_k' = 6, so 3 is sent, 6 kept."""
    w = nn.Parameter(torch.zeros(1))
    held, kept = {"w": torch.zeros(1), CONTROL + "w": torch.ones(1)}, {OWNER: {"w": torch.tensor([3.0])}}
    turn = Turn(Plan("", 0, 0), held, "", Local(), 0, 0, kept)
    course = Corrected().begin(Learning({"w": w}, {}, lambda name: 1.0), turn)
    for gradient, corrected in ((4.0, 2.0), (8.0, 6.0)):
        w.grad = torch.tensor([gradient])
        course.step()
        assert w.grad.item() == corrected
    done = course.finish(Trained({"w": torch.tensor([0.5])}, {}, {"other": held}), handle=None)
    assert {n: x.item() for n, x in done.delta.items()} == {"w": 0.5, CONTROL + "w": 3.0}
    assert done.kept[OWNER]["w"].item() == 6.0
    assert done.kept["other"] is held


def test_controls_and_the_rest_are_everything():
    values = {"a": torch.zeros(1), "b": torch.ones(1), CONTROL + "a": torch.ones(1)}
    assert {**without_controls(values), **as_controls(controls(values))} == values


def test_a_control_counts_by_how_far_its_steps_go_by_hand():
    """|change| = 3; ten steps of 0.1 along a control of norm 4 go 4 far: 5 together."""
    plan = Plan("", 0, 0, steps=10, learning_rate=0.1)
    assert norm({"w": torch.tensor([3.0]), CONTROL + "w": torch.tensor([4.0])}, plan) == pytest.approx(5.0)


@pytest.mark.parametrize(
    ("local", "warned"),
    [
        (Local(optimizer="sgd"), False),
        (Local(optimizer="adamw"), True),
        (Local(optimizer="sgd", momentum=0.9), True),
        (Local(optimizer="sgd", weight_decay=0.1), True),
    ],
)
def test_steps_that_are_not_plain_sgd_are_warned_of(local, warned, caplog):
    with caplog.at_level(logging.WARNING):
        warn_unless_exact(local)
    assert ("mean gradients" in caplog.text) == warned


@pytest.mark.parametrize(("max_grad_norm", "warned"), [(1.0, True), (100.0, True), (1e9, False), (None, False)])
def test_a_clip_of_corrected_gradients_is_warned_of(max_grad_norm, warned, caplog):
    with caplog.at_level(logging.WARNING):
        warn_unless_exact(Local(optimizer="sgd", max_grad_norm=max_grad_norm))
    assert [r.message.count("\n") for r in caplog.records] == [0] * warned
    assert ("max_grad_norm = 1e9 is no clip" in caplog.text) == warned
