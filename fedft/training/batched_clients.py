"""Local training of several clients in one forward and backward pass of the resident base model.

    y_k = W x_k + s_k B_k (A_k x_k)        W is read once for the tokens of all k; B_k A_k by batched products
    L   = sum_k L_k                        L_k the mean loss of client k, so grad_k L = grad_k L_k

Nothing of one client reaches another: each has its own row in the matrices of values and of gradients, its own norm to
clip and its own optimiser, and a step whose loss or gradient is not finite is left out for it alone. Clients with fewer
steps leave when they are done. A smaller rank is filled up with zero rows of A and zero columns of B, whose gradients
are zero; shorter and fewer rows of text with masked ones. What a client gets is what it would get alone but for the
rounding of sums: the shapes that the sums run over are others.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedft.arithmetic.tensors import Tensors
from fedft.config import Local
from fedft.contract import Batch, Course, Learning, Trained, Turn
from fedft.data.examples import IGNORED
from fedft.models.handle import ModelHandle
from fedft.recipe import Recipe
from fedft.training.first_order import FirstOrder, gradient_steps
from fedft.training.objectives import OfLogits, next_tokens
from fedft.training.optimizers import elementwise, optimizer_of

CLOSE = {torch.float32: 1e-4, torch.float64: 1e-4}  # of losses found both ways, relative; of coarser dtypes:
COARSE = 2e-2


class Unlike(Exception):
    """These turns cannot share a pass."""


@dataclass(frozen=True, eq=False)
class Seat:
    """One client of a shared pass: where it starts, and what it trains on."""

    turn: Turn
    batches: Iterator[Batch]
    received: dict[str, Tensor]
    """`handle.read()` at the start."""
    values: dict[str, Tensor]
    """Every factor and every other trained tensor as the model holds them."""
    learns: tuple[str, ...]
    """Names that are trained in this turn."""
    scales: Mapping[str, float]
    """Unit-scale value per own value of each."""
    base: tuple[int, ...]
    """How often each of the weights that all have in common had been written to."""


def unfit(recipe: Recipe, handle: ModelHandle, local: Local) -> str:
    """Why turns of this recipe cannot share passes, in one line; "" where they can."""
    if gradient_steps(recipe.local) is None:
        return f"the local steps of {recipe.name} are not plain back-propagation"
    if recipe.space.several(handle.model, handle.layout) is None:
        return f"adapters of kind {recipe.space.name!r} have no form for several clients"
    if not isinstance(handle.objective, OfLogits):
        return "the objective is no mean of terms, one for each learned place"
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
    """The weights that no client has for itself."""
    return [p for n, p in handle.base().items() if n not in handle.layout.head]


def seat(
    handle: ModelHandle, local: FirstOrder, turn: Turn, batches: Iterator[Batch], base: Sequence[nn.Parameter]
) -> Seat:
    """The seat of a client at whose start `handle` stands; `base`: what is `common`."""
    values = {n: p.detach().clone() for n, p in (dict(handle.adapter()) | dict(handle.parameters())).items()}
    scales = {n: handle.scale(n) for n in values}
    learns = local.learns(handle, turn)
    return Seat(turn, batches, handle.read(), values, learns, scales, tuple(p._version for p in base))


def train(
    handle: ModelHandle, local: FirstOrder, seats: Sequence[Seat], pad_id: int, *, check: bool = False
) -> list[Trained | FloatingPointError]:
    """What `local` gives each client; FloatingPointError for one whose every step had a non-finite loss.

    Args:
        handle: stands at the start of the last of the seats; afterwards at its end.
        local: the recipe's local step.
        seats: of those who train.
        pad_id: token that fills rows up.
        check: find the first loss of the last seat in the ordinary way too, and compare.
    Raises:
        Unlike: these turns cannot share a pass, or the losses differ; nothing can be said of the handle then.
    """
    if len({(s.base, s.learns) for s in seats}) > 1:
        raise Unlike("they stand on unlike base weights, or learn unlike tensors")
    last = seats[-1]
    rows = sorted(seats, key=lambda s: -s.turn.plan.steps)  # those who are done leave at the end
    steps = [s.turn.plan.steps for s in rows]
    values = _Stack(rows, last.learns)
    optimizers = _optimizers(rows, values.rows)
    most = [s.turn.local.max_grad_norm or math.inf for s in rows]
    limits = torch.tensor(most, device=values.grads.device)
    courses = [[term.begin(values.learning(k, s.scales), s.turn) for term in local.terms] for k, s in enumerate(rows)]
    losses: list[list[float]] = [[] for _ in rows]
    forwards = _forwards(handle)
    for step in range(max(steps)):
        here = sum(n > step for n in steps)
        batches = [next(s.batches) for s in rows[:here]]
        if check and step == 0:
            with torch.no_grad():
                alone = float(handle.loss(batches[rows.index(last)]))
        found = _losses(handle, forwards, values, here, batches, pad_id)
        values.differentiate(found)
        said = found.tolist()
        if check and step == 0 and not _close(said[rows.index(last)], alone, handle):
            raise Unlike(f"a loss is {said[rows.index(last)]:g} among others and {alone:g} alone")
        grads = values.grads[:here]
        for k, of_client in enumerate(courses[:here]):
            if of_client and math.isfinite(said[k]) and bool(torch.isfinite(grads[k]).all()):
                for course in of_client:
                    course.step()
        norms = torch.linalg.vector_norm(grads, dim=1)
        grads.mul_((limits[:here] / (norms + 1e-6)).clamp(max=1.0)[:, None])  # as clip_grad_norm_ does it
        for k, (p, norm) in enumerate(zip(values.rows, norms.tolist() + [math.nan] * (len(rows) - here), strict=True)):
            left_out = k >= here or not (math.isfinite(said[k]) and math.isfinite(norm))
            p.grad = None if left_out else grads[k]  # the optimiser passes over those without
            losses[k] += [] if left_out else [said[k]]
        for optimizer in optimizers:
            optimizer.step()
    done = {}
    for k, s in sorted(enumerate(rows), key=lambda pair: pair[1] is last):  # the handle ends where the last one does
        done[id(s)] = _trained(handle, local, s, values.of(k), losses[k], courses[k])
    return [done[id(s)] for s in seats]


def _optimizers(seats: Sequence[Seat], parameters: Sequence[nn.Parameter]) -> list[torch.optim.Optimizer]:
    """One for all clients of the same learning rate and `[local]` table."""
    alike: list[tuple[tuple[float, Local], list[nn.Parameter]]] = []  # tables of a run file have no hash
    for s, p in zip(seats, parameters, strict=True):
        how = s.turn.plan.learning_rate, s.turn.local
        of = next((of for known, of in alike if known == how), None)
        if of is None:
            alike.append((how, of := []))
        of.append(p)
    return [optimizer_of(of, *how) for how, of in alike]


def _close(a: float, b: float, handle: ModelHandle) -> bool:
    dtype = next(iter(handle.base().values())).dtype
    return abs(a - b) <= CLOSE.get(dtype, COARSE) * max(1.0, abs(b)) or not (math.isfinite(a) or math.isfinite(b))


def _trained(
    handle: ModelHandle, local: FirstOrder, seat: Seat, values: dict[str, Tensor], losses: list[float],
    courses: Sequence[Course],
) -> Trained | FloatingPointError:  # fmt: skip
    """As `FirstOrder` says it."""
    if not losses:
        return FloatingPointError("every local step had a non-finite loss; nothing was trained")
    handle.write(seat.received)  # its rank
    with torch.no_grad():
        for n, p in handle.parameters().items():
            if n in seat.learns:
                p.copy_(values[n])
    metrics = {"loss": sum(losses) / len(losses), "steps": float(len(losses))}
    return local.result(handle, seat.received, seat.learns, metrics, courses)


class _Stack:
    """The tensors of G clients, filled up with zeros to the largest: those that learn as G rows of all numbers."""

    def __init__(self, seats: Sequence[Seat], learns: tuple[str, ...]) -> None:
        self._own = [{n: x.shape for n, x in s.values.items()} for s in seats]
        self._shapes = {
            n: torch.Size(max(sizes) for sizes in zip(*(own[n] for own in self._own), strict=True))
            for n in seats[0].values
        }
        self._at: dict[str, int] = {}
        total = 0
        for n in learns:
            self._at[n] = total
            total += self._shapes[n].numel()
        like = next(iter(seats[0].values.values()))
        self._values, self.grads = (torch.zeros(len(seats), total, device=like.device) for _ in range(2))
        still = {n: shape for n, shape in self._shapes.items() if n not in self._at}
        self._still = {n: torch.zeros(len(seats), *shape, device=like.device) for n, shape in still.items()}
        for k, s in enumerate(seats):
            views = self.of(k) | {n: self._cut(x[k], self._own[k][n]) for n, x in self._still.items()}
            for n, x in s.values.items():
                views[n].copy_(x)
        self.rows = [nn.Parameter(row) for row in self._values]
        """What learns, of each client; in the same memory as all else here."""
        self._scales = {n: torch.tensor([s.scales[n] for s in seats], device=like.device) for n in self._shapes}
        self._leaves: dict[str, Tensor] = {}

    def _view(self, of: Tensor, n: str, here: int) -> Tensor:
        shape = self._shapes[n]
        return of[:here, self._at[n] : self._at[n] + shape.numel()].view(here, *shape)

    @staticmethod
    def _cut(x: Tensor, shape: torch.Size) -> Tensor:
        return x[tuple(slice(size) for size in shape)]

    def of(self, k: int) -> dict[str, Tensor]:
        """What learns of client k, without what fills it up."""
        return {n: self._cut(self._view(self._values, n, k + 1)[k], self._own[k][n]) for n in self._at}

    def live(self, k: int) -> dict[str, nn.Parameter]:
        """The same as parameters with gradients, for who changes those."""
        found = {n: nn.Parameter(x) for n, x in self.of(k).items()}
        for n, p in found.items():
            p.grad = self._cut(self._view(self.grads, n, k + 1)[k], self._own[k][n])
        return found

    def learning(self, k: int, scales: Mapping[str, float]) -> Learning:
        """The tensors of client k, for terms."""
        frozen = {n: self._cut(x[k], self._own[k][n]) for n, x in self._still.items()}
        return Learning(self.live(k), frozen, lambda n: scales[n])

    def scales(self, here: int) -> dict[str, Tensor]:
        """Unit-scale value per own value of every tensor, [here, 1, 1], of the first clients."""
        return {n: x[:here, None, None] for n, x in self._scales.items()}

    def leaves(self, here: int) -> dict[str, Tensor]:
        """All tensors [here, ...] of the first clients."""
        if not self._leaves or len(next(iter(self._leaves.values()))) != here:
            self._leaves = {n: x[:here] for n, x in self._still.items()}
            self._leaves |= {n: self._view(self._values, n, here).requires_grad_() for n in self._at}
        return self._leaves

    def differentiate(self, losses: Tensor) -> None:
        """`grads` := the gradient of the losses' sum by the leaves they were found with."""
        found = torch.autograd.grad(losses, [self._leaves[n] for n in self._at], torch.ones_like(losses))
        torch.cat([grad.reshape(len(losses), -1) for grad in found], dim=1, out=self.grads[: len(losses)])


def _losses(
    handle: ModelHandle, forwards: "Forwards", values: _Stack, here: int, batches: list[Batch], pad_id: int
) -> Tensor:
    """The mean loss of each client on its batch, [here]."""
    handle.training(True)
    model: Any = handle.model
    batch: dict[str, Any] = {k: x.to(values.grads.device) for k, x in side_by_side(batches, pad_id).items()}
    labels = batch.pop("labels")
    output = None
    if labels.ndim == 2:
        labels = next_tokens(labels)
        output, batch["use_cache"] = model.get_output_embeddings(), False
    learnt = labels != IGNORED
    with _instead(forwards(values.leaves(here), values.scales(here))):
        # logits only where something is learned: neither prompts nor what fills up need them
        hook = output and output.register_forward_pre_hook(lambda _, x: (x[0][learnt], *x[1:]))
        try:
            logits = model(**batch).logits.float()
        finally:
            if hook:
                hook.remove()
    wanted = labels[learnt]
    terms = cast(OfLogits, handle.objective).terms(logits if output else logits[learnt], wanted)
    places = torch.zeros(learnt.shape, device=terms.device).masked_scatter(learnt, terms)
    return places.view(here, -1).sum(1) / learnt.view(here, -1).sum(1)


def side_by_side(batches: Sequence[Batch], pad_id: int) -> dict[str, Tensor]:
    """One batch of as many rows of the same length of each; nothing is learned from those that fill up."""
    if any(b.keys() != {"input_ids", "attention_mask", "labels"} or b["labels"].is_floating_point() for b in batches):
        raise Unlike("their batches hold more than tokens and classes")
    size = max(len(b["labels"]) for b in batches)
    longest = max(b["input_ids"].shape[1] for b in batches)
    fill = {"input_ids": pad_id, "attention_mask": 0, "labels": IGNORED}
    found: dict[str, list[Tensor]] = {name: [] for name in fill}
    for b in batches:
        more = size - len(b["labels"])
        for name, x in b.items():
            if x.ndim == 2:
                x = functional.pad(x, (0, longest - x.shape[1]), value=fill[name])
            if more:  # its own first row again: a row that is masked throughout has no attention to give
                first = torch.full_like(x[:1], IGNORED) if name == "labels" else x[:1]
                x = torch.cat([x, first.expand(more, *first.shape[1:])])
            found[name].append(x)
    return {name: torch.cat(xs) for name, xs in found.items()}


Forward = Callable[[Tensor], Tensor]
Forwards = Callable[[Tensors, Tensors], Mapping[nn.Module, Forward]]


def _forwards(handle: ModelHandle) -> Forwards:
    """What adapted layers and those of the head do meanwhile, by all tensors and their scales; layers are looked up
    here, once for all steps."""
    several = handle.kind.several(handle.model, handle.layout)
    assert several is not None, "a kind without this form does not come here"
    head = {m: handle.model.get_submodule(m) for m in {n.rpartition(".")[0] for n in handle.layout.head}}

    def forwards(leaves: Tensors, scales: Tensors) -> dict[nn.Module, Forward]:
        found: dict[nn.Module, Forward] = dict(several(leaves, scales))
        for m, layer in head.items():
            if type(layer) is not nn.Linear or m + ".weight" not in leaves:
                raise Unlike(f"{m} of the head is more than a linear layer")
            found[layer] = partial(_own, leaves[m + ".weight"], leaves.get(m + ".bias"))
        return found

    return forwards


def _own(weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    y = torch.bmm(x.reshape(weight.shape[0], -1, x.shape[-1]).to(weight.dtype), weight.mT)
    return (y if bias is None else y + bias[:, None]).view(*x.shape[:-1], weight.shape[1])


@contextmanager
def _instead(forwards: Mapping[nn.Module, Forward]) -> Iterator[None]:
    """Inside, these modules do that."""
    before = {m: m.__dict__.get("forward") for m in forwards}
    try:
        for m, f in forwards.items():
            m.__dict__["forward"] = f
        yield
    finally:
        for m, own in before.items():
            m.__dict__.pop("forward")
            if own is not None:
                m.__dict__["forward"] = own
