"""Downloads as changes of the last state, in a codec that may leave out much: `[codec] down = "delta | int4"`.

    wanted = server(state, change) + lost             where the wrapped recipe would go, and what has not arrived so far
    x     := x + d,   d = what is decoded of the codec's bytes of wanted - x
    lost  := wanted - x

The server's own x moves by what its clients decode, in the same additions, so whoever applies the bytes of a round to
the x before it holds the server's x, bit for bit. With x + lost the sum of all changes, nothing that the codec leaves
out is lost, only late; and clients train from the x that everybody holds. Bytes are kept because not every codec makes
the same ones of what it decoded (`Codec.idempotent`).

state      x and all else of the wrapped recipe's, and in a drawer of the server's own
           `lost.<name>`    what has not arrived yet; never travels
           `delta.sent.<v>` an encoded plan in the codec, from version v to v + 1: its bytes, a 1, zeros; int32
downlink   the messages from the client's version on; the whole of x, in fp32, to one who is new or lacks too many: as
           many are kept as together are shorter than x
receive    x after those messages, or what came

What is not changed in a round (one factor of RoLoRA's) is not in its message. A change that no message can bring (of
names, shapes or integers; numbers that are not finite) is no message: x is what was wanted then, and all are sent it.
SCAFFOLD's c needs no exception: its clients send changes of their own c_k, whatever c they received, so c + lost stays
the mean of all c_k, and what a round leaves out of c is late and does not add up.

Tang, Yu, Lian, Zhang, Liu, "DoubleSqueeze: Parallel Stochastic Gradient Descent with Double-pass Error-Compensated
Compression", ICML 2019, arXiv:1905.05957, whose server compresses so.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from fedft.arithmetic.tensors import Tensors
from fedft.contract import Layout, Next, State
from fedft.errors import RejectedUpdate
from fedft.recipe import Recipe
from fedft.update import Download, Plan, TensorSpec
from fedft.wire import messages
from fedft.wire.body import MAX_ENTRIES
from fedft.wire.table import Entry, check_download

OWNER, LOST, SENT = "delta_downloads", "lost.", "delta.sent."
NO_RUN = "0" * 16


def unfit(recipe: Recipe) -> str:
    """Why downloads of this recipe cannot be changes of one x; "" where they can."""
    if recipe.downlink_is_increment:
        return f"clients of {recipe.name} add up what they receive: it brings changes already"
    if recipe.upload_kind == "numbers" or recipe.evaluation_has_own_state:
        return f"what {recipe.name} sends down is no model that changes a little from round to round"
    if recipe.unlike_ranks:
        return f"{recipe.name} cuts factors to each client's rank: no change fits all clients"
    if recipe.upload_kind == "values":  # the error of x would be added to a value that does not have it
        return f"{recipe.name} replaces what it has in every round, it does not change it"
    return ""


def wrapped(recipe: Recipe, changes: str) -> Recipe:
    """The recipe, which must not be `unfit`, with downloads that bring changes of its state in the codec `changes`."""
    d = Deltas(recipe, changes)
    return replace(
        recipe, initial=d.initial, server=d.server, downlink=d.downlink, receive=d.receive, download=d.download,
        takes_stale=recipe.allows_stale,
    )  # fmt: skip


@dataclass(frozen=True)
class Deltas:
    """The parts of a recipe whose downloads are changes, around those of the recipe that it wraps."""

    inner: Recipe
    changes: str

    def initial(self, layout: Layout, rank: int, seed: int) -> Next:
        """The wrapped recipe's version 0. Raises ValueError where a name in it would be taken for a message."""
        first = self.inner.first_state(layout, rank, seed)
        if any(n.startswith(SENT) for n in first.tensors):
            raise ValueError(f"names of the model begin with {SENT!r}, which is what messages are called")
        return Next(first.tensors, first.own)

    def server(self, state: State, change: Tensors) -> Next:
        """The next state: one step of the wrapped server, of which x takes what every client decodes."""
        new, mine = self.inner.next_state(state, change), state.drawer(OWNER)
        lost = {n.removeprefix(LOST): t for n, t in mine.items() if n.startswith(LOST)}
        late = {n: t for n, t in lost.items() if n in new.tensors and new.tensors[n].shape == t.shape}
        wanted = {**new.tensors, **{n: new.tensors[n] + t for n, t in late.items()}}
        x, goal = self._shared(state), self._shared(new)
        whole_again = Next(wanted, {**new.own, OWNER: {}})
        if x is None or goal is None or not _alike(x, goal):
            return whole_again
        moved = {n: wanted[n] for n, t in goal.items() if not torch.equal(t, x[n])}
        news = {n: t - x[n] for n, t in moved.items()}
        data = messages.encode_plan(Plan(NO_RUN, state.version, new.version, state.version, tensors=news), self.changes)
        try:
            after = _after(x, data, state.version, self.changes)
        except RejectedUpdate:  # not finite, or beyond what a message may bring: it is for the engine to say so
            return whole_again
        lost |= {n: t - after[n] for n, t in moved.items()}
        sent = {n: t for n, t in mine.items() if n.startswith(SENT)}
        sent[f"{SENT}{state.version}"] = _packed(data)
        whole = sum(t.numel() for t in x.values())
        for oldest in sorted(sent, key=_version):
            if sum(t.numel() for t in sent.values()) < whole:
                break
            del sent[oldest]
        return Next({**new.tensors, **after}, {**new.own, OWNER: {**{LOST + n: t for n, t in lost.items()}, **sent}})

    def downlink(self, state: State, have: int | None, plan: Plan) -> Tensors:
        """What a client at version `have` is sent: the messages of changes that it lacks, or the whole of x."""
        if have is not None and have < state.version:
            mine = state.drawer(OWNER)
            lacking = {n: t for n, t in mine.items() if n.startswith(SENT) and _version(n) >= have}
            if len(lacking) == state.version - have:
                return lacking
        return self.inner.downlink(state, have if have == state.version else None, plan)

    def download(self, layout: Layout, plan: Plan) -> Download | None:
        """The tensors of x, or encoded plans from the client's version on: int32, as long in memory as on the wire."""
        if (of_x := self.inner.downloads(layout, plan)) is None:
            return None

        def wanted(name: str) -> TensorSpec | None:
            if not name.startswith(SENT):
                return of_x(name)
            return TensorSpec((MAX_ENTRIES,), "int32", True) if plan.leads_from(name.removeprefix(SENT)) else None

        return wanted

    def receive(self, held: State | None, plan: Plan) -> Tensors:
        """x after the messages that came.

        Raises RejectedUpdate where they do not lead from what is held to the plan's version. Nothing larger than x is
        allocated for what they say.
        """
        sent = {n: t for n, t in plan.tensors.items() if n.startswith(SENT)}
        if not sent:
            return self.inner.receive(held, plan)
        if held is None or plan.have is None or len(sent) != len(plan.tensors) or len(sent) != plan.version - plan.have:
            raise RejectedUpdate("malformed", f"malformed plan: {len(sent)} changes from {plan.have} to {plan.version}")
        x = held.tensors
        for version in range(plan.have, plan.version):
            packed = sent.get(f"{SENT}{version}")
            if packed is None or packed.dtype != torch.int32:
                raise RejectedUpdate("malformed", f"malformed plan: no change from version {version}")
            x = _after(x, _unpacked(packed), version, self.changes)
        return x

    def _shared(self, state: State) -> Tensors | None:
        """What a newcomer holds of the state; None if it is not just tensors of the state."""
        plan = Plan(NO_RUN, state.version, state.version)
        plan = replace(plan, tensors=self.inner.downlink(state, None, plan))
        held = self.inner.receive(None, plan)
        return held if all(state.tensors.get(n) is t for n, t in held.items()) else None


def _alike(x: Tensors, y: Tensors) -> bool:
    """Whether y - x takes x to y: same names and shapes, and what is no float has not changed."""
    return x.keys() == y.keys() and all(
        t.shape == y[n].shape and (t.dtype == y[n].dtype == torch.float32 or torch.equal(t, y[n])) for n, t in x.items()
    )


def _after(x: Tensors, data: bytes, version: int, changes: str) -> dict[str, Tensor]:
    """x moved by the message from `version` on, in the codec `changes`. Same code, hence same bits, on both sides.

    Raises RejectedUpdate.
    """
    wanted = {n: TensorSpec(tuple(t.shape)) for n, t in x.items() if t.dtype == torch.float32}

    def fits(plan: Plan, entries: Mapping[str, Entry]) -> None:
        check_download(entries, wanted.get, changes)

    said = messages.decode_plan(data, max_bytes=len(data), check=fits)
    if (said.have, said.version) != (version, version + 1) or any(
        t.dtype != torch.float32 for t in said.tensors.values()
    ):
        raise RejectedUpdate("malformed", f"malformed plan: what came is no change from version {version}")
    return {**x, **{n: x[n] + d for n, d in said.tensors.items()}}


def _packed(data: bytes) -> Tensor:
    """int32; the last byte that is not zero ends them."""
    return torch.from_numpy(np.frombuffer(data + b"\1" + bytes(-(len(data) + 1) % 4), "<i4").astype(np.int32))


def _unpacked(x: Tensor) -> bytes:
    return x.numpy().astype("<i4").tobytes().rstrip(b"\0")[:-1]


def _version(name: str) -> int:
    return int(name.removeprefix(SENT))
