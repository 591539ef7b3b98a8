"""Local training of several clients in one forward and backward pass of the resident base model.

    y_k = W x_k + s_k B_k (A_k x_k)        W is read once for the tokens of all k; B_k A_k by batched products
    L   = sum_k L_k                        L_k the mean loss of client k, so grad_k L = grad_k L_k

Nothing of one client reaches another: each has its own row in the matrices of values and of gradients, its own norm to
clip and its own optimiser, and a step whose loss or gradient is not finite is left out for it alone. Clients with fewer
steps leave when they are done. A smaller rank is padded with zeros (`client_stack`), shorter and fewer rows of text
with masked ones (`batched_forward`). A client gets what it would get alone but for the rounding of sums: the shapes
that the sums run over are others.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedft.config import Local
from fedft.contract import Batch, Course, Trained, Turn
from fedft.models.device_arithmetic import rounding
from fedft.models.handle import ModelHandle
from fedft.recipe import Recipe
from fedft.training import schedules
from fedft.training.batched_forward import Unlike, client_forwards, client_losses, unfit_head
from fedft.training.client_stack import ClientStack
from fedft.training.first_order import FirstOrder, gradient_steps, set_rate
from fedft.training.objectives import OfLogits
from fedft.training.optimizers import elementwise, optimizer_of


@dataclass(frozen=True, eq=False)
class Seat:
    """One client of a shared pass: where it starts, and what it trains on."""

    turn: Turn
    batches: Iterator[Batch]
    received: dict[str, Tensor]
    """`handle.read()` at the client's start: the trained tensors in unit scale."""
    values: dict[str, Tensor]
    """Every tensor of the adapter and of the head at the client's start, in own scale."""
    learns: tuple[str, ...]
    """Names of the tensors that learn in this turn."""
    scales: Mapping[str, float]
    """Unit-scale value per own value of each of `values`."""
    base: tuple[str | int, ...]
    """The key of the base's change, and how often each weight had been written to: equal ones mean equal weights."""


def unfit(recipe: Recipe, handle: ModelHandle, local: Local) -> str:
    """Why turns of this recipe cannot share passes, in one line; "" where they can.

    Args:
        recipe: the strategy's.
        handle: on the model that the clients train.
        local: the run's `[local]` table.
    """
    if gradient_steps(recipe.local) is None:
        return f"the local steps of {recipe.name} are not plain back-propagation"
    if recipe.space.several(handle.model, handle.layout) is None:
        where = " on experts" if handle.layout.experts else ""
        return f"adapters of kind {recipe.space.name!r}{where} have no form for several clients"
    if why := unfit_head(handle):
        return why
    if not isinstance(handle.objective, OfLogits):
        return "the objective is no mean of terms, one for each learned place"
    if handle.two_sided and not hasattr(handle.model, "prepare_decoder_input_ids_from_labels"):
        return "the model alone knows how its decoder's inputs are made of labels"
    if local.micro_batch is not None or local.checkpointing:
        return "[local] micro_batch and checkpointing are for one client at a time"
    if local.neftune_alpha:
        return "[local] neftune_alpha draws noise for each client apart"
    if local.trainer:
        return "[local] trainer has a loop of its own for each client"
    if local.compile:
        return "[local] compile makes a program of layers that read one client's factors"
    if local.keep_optimizer:
        return "[local] keep_optimizer: every client goes on with moments of its own"
    if local.packing:
        return "[local] packing lays rows of a client one behind the other"
    if not elementwise(local):
        return f"optimizer {local.optimizer!r} does not work entry by entry"
    if any(map(_drops, handle.model.modules())):
        return "the model has dropout, whose draws would be other ones"
    return ""


def _drops(module: nn.Module) -> bool:
    """Whether a layer draws random numbers in training; attention layers keep the rate as a plain number."""
    rates = [v for k, v in vars(module).items() if "drop" in k and isinstance(v, float)]
    return any(rates) or (isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0)


def common(handle: ModelHandle) -> list[nn.Parameter]:
    """The weights that all clients of a shared pass read: the base without its head, in canonical order."""
    return [p for n, p in handle.base().items() if n not in handle.layout.head]


def seat(
    handle: ModelHandle, local: FirstOrder, turn: Turn, batches: Iterator[Batch], base: Sequence[nn.Parameter]
) -> Seat:
    """The seat of the client whose turn it is, from the model as `recipe.start` left it for this client.

    Args:
        handle: on the model; only read, and the next client may be installed afterwards.
        local: the recipe's local steps.
        turn: the client's turn.
        batches: at least `turn.plan.steps` of the client's batches.
        base: the weights in `common`.
    """
    values = {n: p.detach().clone() for n, p in (dict(handle.adapter()) | dict(handle.parameters())).items()}
    scales = {n: handle.scale(n) for n in values}
    learns = local.learns(handle, turn)
    stands: tuple[str | int, ...] = (handle.base_change_key, *(p._version for p in base))
    return Seat(turn, batches, handle.read(), values, learns, scales, stands)


def train(
    handle: ModelHandle, local: FirstOrder, seats: Sequence[Seat], pad_id: int, *, check: bool = False
) -> list[Trained | FloatingPointError]:
    """What `local` gives each client, in the order of `seats`; FloatingPointError where every loss was non-finite.

    Args:
        handle: on the model as it is at the start of the last of the seats; afterwards as it is at that one's end.
        local: the recipe's local steps.
        seats: one per client; all read the same base weights and learn the same names.
        pad_id: the token id that fills up shorter rows.
        check: compute the first loss of the last seat alone as well, and compare.
    Raises:
        Unlike: these turns cannot share a pass, or the two losses differ; the model may have any values then.
    """
    if len({(s.base, s.learns) for s in seats}) > 1:
        raise Unlike("they have unlike base weights, or learn unlike tensors")
    last = seats[-1]
    rows = sorted(seats, key=lambda s: -s.turn.plan.steps)  # those who are done leave at the end
    stack = ClientStack([s.values for s in rows], [s.scales for s in rows], last.learns)
    optimizers = _optimizers(rows, stack.rows)
    norms_allowed = [s.turn.local.max_grad_norm or math.inf for s in rows]
    limits = torch.tensor(norms_allowed, device=stack.grads.device)
    courses = [[term.begin(stack.learning(k, s.scales), s.turn) for term in local.terms] for k, s in enumerate(rows)]
    losses: list[list[float]] = [[] for _ in rows]
    forwards = client_forwards(handle)
    for step in range(rows[0].turn.plan.steps):
        here = sum(s.turn.plan.steps > step for s in rows)
        batches = [next(s.batches) for s in rows[:here]]
        checked = rows.index(last) if check and step == 0 else None
        alone = math.nan if checked is None else _loss_alone(handle, batches[checked])
        found = client_losses(handle, forwards, stack, batches, pad_id)
        stack.differentiate(found)
        if checked is not None and not _close(said := float(found[checked].detach()), alone, handle):
            raise Unlike(f"a loss is {said:g} among others and {alone:g} alone")
        for k, loss in enumerate(_clipped(stack.grads[:here], limits, courses, found.detach())):
            stack.rows[k].grad = stack.grads[k] if loss is not None else None
            losses[k] += [] if loss is None else [loss]
        for parameter in stack.rows[here:]:
            parameter.grad = None  # the optimiser passes over those without
        for turn, optimizer in optimizers:
            set_rate(optimizer, turn, step)
            optimizer.step()
    done = {}
    for k, s in sorted(enumerate(rows), key=lambda pair: pair[1] is last):  # the handle ends where the last one does
        done[id(s)] = _trained(handle, local, s, stack.learned(k), losses[k], courses[k])
    return [done[id(s)] for s in seats]


def _clipped(grads: Tensor, limits: Tensor, courses: Sequence[Sequence[Course]], losses: Tensor) -> list[float | None]:
    """The losses of clients that take this step, None of one whose loss or gradient is not finite.

    Terms change `grads`, then it is clipped. The device is waited for once, and once more where there are terms.

    Args:
        grads: [clients, N]; changed in place.
        limits: largest norm of a row, [at least clients].
        courses: the terms of each client, at least one list per client.
        losses: of each client, [clients].
    """
    if any(courses):
        fine = (torch.isfinite(losses) & torch.isfinite(grads).all(1)).tolist()
        for course in (c for of, goes_on in zip(courses, fine, strict=False) if goes_on for c in of):
            course.step()
    norms = torch.linalg.vector_norm(grads, dim=1)
    grads.mul_((limits[: len(grads)] / (norms + 1e-6)).clamp(max=1.0)[:, None])  # as clip_grad_norm_ does it
    found = torch.where(torch.isfinite(losses) & torch.isfinite(norms), losses, math.nan).tolist()
    return [loss if math.isfinite(loss) else None for loss in found]


def _optimizers(seats: Sequence[Seat], parameters: Sequence[nn.Parameter]) -> list[tuple[Turn, torch.optim.Optimizer]]:
    """One optimiser for all clients of the same learning rate and `[local]` table, and the turn of one of them.

    Where the rate moves within a round it depends on the number of steps too.
    """
    alike: list[tuple[tuple[float, Local, int], Turn, list[nn.Parameter]]] = []  # tables of a run file have no hash
    for s, p in zip(seats, parameters, strict=True):
        long = s.turn.plan.steps if schedules.moves_in_rounds(s.turn.local) else 0
        how = s.turn.plan.learning_rate, s.turn.local, long
        of = next((of for known, _, of in alike if known == how), None)
        if of is None:
            alike.append((how, s.turn, of := []))
        of.append(p)
    return [(turn, optimizer_of(of, how[0], how[1])) for how, turn, of in alike]


def _loss_alone(handle: ModelHandle, batch: Batch) -> float:
    """The loss as `handle` computes it for one client."""
    with torch.no_grad():
        return float(handle.loss(batch))


def _close(a: float, b: float, handle: ModelHandle) -> bool:
    """Whether two losses differ by no more than rounding, or neither is finite."""
    most = rounding(next(iter(handle.base().values())))
    return abs(a - b) <= most * max(1.0, abs(b)) or not (math.isfinite(a) or math.isfinite(b))


def _trained(
    handle: ModelHandle, local: FirstOrder, seat: Seat, values: dict[str, Tensor], losses: list[float],
    courses: Sequence[Course],
) -> Trained | FloatingPointError:  # fmt: skip
    """The client's result as `FirstOrder.result` makes it; the model ends with `values` in it."""
    if not losses:
        return FloatingPointError("every local step had a non-finite loss; nothing was trained")
    handle.write(seat.received)  # makes the adapter of the client's rank the live one
    with torch.no_grad():
        for n, p in handle.parameters().items():
            if n in seat.learns:
                p.copy_(values[n])
    metrics = {"loss": sum(losses) / len(losses), "steps": float(len(losses))}
    return local.result(handle, seat.received, seat.learns, metrics, courses)
