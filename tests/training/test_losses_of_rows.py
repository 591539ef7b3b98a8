"""The loss of every row by itself: what it is alone, whatever stands beside it; the mean where rows count alike."""

import pytest
import torch
from transformers import T5Config, T5ForConditionalGeneration

from fedft.adapters.lora import LoRA
from fedft.contract import Layout
from fedft.data import batches, micro_batches
from fedft.data.examples import IGNORED, Example
from fedft.data.micro_batches import InPieces
from fedft.data.preferences import Pair
from fedft.errors import ConfigError
from fedft.models import layout, load
from fedft.models.handle import ModelHandle
from fedft.suites import objectives as suite
from fedft.suites.toy import ToyTokens
from fedft.training.objectives import Likelihood
from fedft.training.preferences import DPO, ORPO


def example(learned: int, given: int = 2, start: int = 1) -> Example:
    """Of so many tokens that are given and learned; tokens 1 to 11."""
    ids = [1 + (start + n) % 11 for n in range(given + learned)]
    return Example(ids, [IGNORED] * given + ids[given:], given)


def tokens(objective=None) -> ModelHandle:
    model = ToyTokens()
    parameters = {n: tuple(p.shape) for n, p in sorted(model.named_parameters())}
    handle = ModelHandle(model, Layout({"first": (6, 8), "second": (12, 6)}, parameters=parameters), LoRA(),
                         objective=objective)  # fmt: skip
    handle.write({n: x + 0.05 for n, x in handle.kind.initial(handle.layout, 2, 7).items()})
    return handle


def encoder_decoder() -> ModelHandle:
    sizes = {"vocab_size": 12, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = T5ForConditionalGeneration(T5Config(**sizes, pad_token_id=0, decoder_start_token_id=0)).eval()
    base = load.Base(model, None, "seq2seq-lm", "", "")
    handle = ModelHandle(model, layout.layout_of(base, "all-linear"), LoRA())
    handle.write(handle.kind.initial(handle.layout, 2, 7))
    return handle


def compared(handle: ModelHandle, rows: list) -> tuple[list[float], list[float]]:
    """(losses in one batch, the loss of each row's own batch)."""
    with torch.no_grad():
        together = handle.losses(handle.objective.collate(rows, 0))
        return together.tolist(), [float(handle.loss(handle.objective.collate([row], 0))) for row in rows]


def pair(chosen: int, rejected: int, start: int) -> Pair:
    return Pair(example(chosen, start=start), example(rejected, start=start + 3))


@pytest.mark.parametrize("unlike", [False, True])
def test_of_tokens_it_is_the_mean_of_a_rows_own_tokens(unlike: bool) -> None:
    """And their mean is the batch's loss where all rows learn equally many tokens, but not elsewhere."""
    handle = tokens()
    rows = [example(n if unlike else 4, start=n) for n in (10, 1, 4)]
    together, alone = compared(handle, rows)
    assert together == pytest.approx(alone, rel=1e-6)
    with torch.no_grad():
        whole = float(handle.loss(handle.objective.collate(rows, 0)))
    assert (abs(sum(together) / 3 - whole) < 1e-6) is not unlike


def test_a_long_neighbour_does_not_move_a_row() -> None:
    """The loss trap: of a mean over the batch's tokens the other rows' gradients would shrink to 0.57."""
    handle = tokens()
    first = example(10, start=0)

    def gradients(second: Example, of_rows: bool) -> torch.Tensor:
        batch = batches.collate([first, second], 0)
        part = handle.losses(batch)[0] if of_rows else handle.loss(batch)
        found = torch.autograd.grad(part, list(handle.parameters().values()))
        return torch.cat([g.flatten() for g in found])

    short, long = example(10, start=5), example(40, start=5)
    assert torch.allclose(gradients(short, True), gradients(long, True), rtol=1e-5, atol=1e-7)
    assert not torch.allclose(gradients(short, False), gradients(long, False), rtol=1e-2)


def test_of_an_encoder_decoder_it_is_the_mean_of_a_rows_own_labels() -> None:
    rows = [Example([2, 3, 4], [5, 6, 1], 3), Example([7, 8], [9, 1], 2), Example([3, 3, 3, 9], [4, 5, 6, 7, 1], 4)]
    together, alone = compared(encoder_decoder(), rows)
    assert together == pytest.approx(alone, rel=1e-5)


@pytest.mark.parametrize("objective", [DPO(), ORPO()])
def test_of_pairs_there_is_one_for_each_pair(objective) -> None:
    together, alone = compared(tokens(objective), [pair(4, 2, 0), pair(1, 6, 2), pair(3, 3, 7)])
    assert together == pytest.approx(alone, rel=1e-5)
    assert len({round(x, 6) for x in together}) == 3


def test_a_row_of_which_nothing_is_learned_has_none() -> None:
    handle = tokens()
    rows = [example(3), Example([1, 2, 3], [IGNORED] * 3, 3)]
    with torch.no_grad():
        found = handle.losses(batches.collate(rows, 0)).tolist()
    assert found[0] > 0
    assert found[1] == 0


def test_pieces_of_a_batch_give_the_rows_in_order() -> None:
    handle = tokens()
    rows = [example(n, start=n) for n in (2, 9, 5, 1)]
    pieces = InPieces(rows, lambda some: batches.collate(some, 0), micro_batches.MicroBatch(3))
    with torch.no_grad():
        assert handle.losses(pieces).tolist() == pytest.approx(compared(handle, rows)[0], rel=1e-6)


def test_dropout_is_off_where_it_is_not_wanted() -> None:
    handle = tokens()
    batch = batches.collate([example(3), example(2)], 0)
    handle.losses(batch, dropout=False)
    assert not handle.model.training
    handle.losses(batch)
    assert handle.model.training


def test_an_objective_that_does_not_say_it_is_named() -> None:
    class Silent:
        def loss(self, handle, batch):
            return Likelihood().loss(handle, batch)

    with pytest.raises(ConfigError, match="objective Silent does not say the loss of every record"):
        tokens(Silent()).losses(batches.collate([example(3)], 0))


def test_the_suite_finds_a_loss_that_depends_on_the_other_rows() -> None:
    class Coupled(Likelihood):
        def losses(self, handle, batch):
            return self.loss(handle, batch).expand(len(batch["labels"]))

    found = suite.objective_contract(Coupled(), stop=False)
    assert "beside others" in found["a row has the loss that it has alone"]
