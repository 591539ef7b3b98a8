"""Clients that train side by side: their letters are opened in turn, their steps taken in shared passes of the model.

Everything around the steps is each client's own: what it refuses, what it holds and keeps, its answer. Turns that
cannot share a pass (`fedft.training.batched_clients`) are taken one at a time, as if nobody had tried.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, NoReturn, cast

from torch import nn

from fedft.carriers.interface import MAX_REASON, Refused
from fedft.carriers.local import Asked, Begin, Finish
from fedft.client.train import Client
from fedft.contract import Data, Handle, LocalStep, Trained, Turn
from fedft.errors import PlanRefused, RejectedUpdate
from fedft.models import device_arithmetic, free_memory
from fedft.training import batched_clients
from fedft.training.batched_clients import Seat
from fedft.training.batched_forward import Unlike
from fedft.training.first_order import FirstOrder

log = logging.getLogger(__name__)

Outcome = Trained | FloatingPointError | None
"""Of a seat; None: it trains alone."""


class Seated(Exception):
    """Raised in place of a client's local steps, with the seat that the client takes in a shared pass."""

    def __init__(self, seat: Seat) -> None:
        self.seat = seat


PAYS = {"cpu": 256, "other": 1024}
"""Tokens of a client's batch up to which sharing pays: on one core 1.1 times at 256 and 3 to 4 times at 16; on an
accelerator as long as launches and reading the weights take longer than arithmetic (estimated)."""
ROOM = {"cpu": 2048, "other": 16384}
"""Tokens of a pass: more of them gain nothing further, and every one costs memory of activations."""


def starter(clients: Mapping[str, Client]) -> tuple[Begin | None, int]:
    """(function that begins the training of several clients at once, how many at most); (None, 1): one at a time."""
    first = next(iter(clients.values()), None)
    if first is None:
        return None, 1
    wanted = _wanted(first)
    why = batched_clients.unfit(first.recipe, first.handle, first.config.local)
    if first.config.model.lora_dropout:
        why = "[model] lora_dropout draws other ones in a shared pass"
    if why or not all(c.handle is first.handle and c.recipe is first.recipe for c in clients.values()):
        if wanted != 1:
            say = log.info if first.config.server.together is None else log.warning
            say("[server] together = %r: clients train one at a time: %s", wanted, why or "they have unlike models")
        return None, 1
    most = wanted if isinstance(wanted, int) and wanted > 1 else worthwhile(list(clients.values()))
    if wanted == "auto":
        most = as_memory_allows(list(clients.values()), most)
    if wanted == 1 < most:
        log.info(
            "[server] together = %d would train faster: updates agree to 1e-4, digests are not those of a deployment",
            most,
        )
    if wanted == 1 or most == 1:
        return None, 1
    return SharedPasses(clients, batched_clients.common(first.handle)).begin, most


def _wanted(client: Client) -> int | Literal["auto"]:
    """`[server] together`, where it is left out by the device: 1 on a CPU, else "auto"."""
    said = client.config.server.together
    if said is not None:
        return said
    return 1 if next(client.base.model.parameters()).device.type == "cpu" else "auto"


def as_memory_allows(clients: Sequence[Client], most: int) -> int:
    """How many of at most `most` clients to train in one pass: as many as half of the free memory holds, at least 1.

    By what a pass on the longest rows of all clients keeps, which is measured, and six numbers for each that learns:
    its value, gradient and two moments, and where the client started from, twice. Fewer than `most` are said.
    """
    if most == 1:
        return 1
    first = clients[0]
    handle, device = first.handle, next(first.base.model.parameters()).device
    rows = sorted((row for c in clients for row in c.train_rows), key=lambda row: -len(row.given) - len(row.response))
    rank = max(first.config.ranks())
    handle.write(handle.kind.initial(handle.layout, rank, first.config.server.seed))
    batch = handle.objective.collate(rows[: first.config.local.batch_size], first.base.pad_id)
    numbers = sum(p.numel() for p in handle.parameters().values())
    each, free = free_memory.kept_bytes(handle, batch) + 24 * numbers, free_memory.free_bytes(device)
    if free is None or (fit := max(1, free // 2 // each)) >= most:
        return most
    log.warning(
        '[server] together = "auto": %d in place of %d clients a pass: each takes %.1f MiB, half of the free memory '
        "of %s is %.1f MiB",
        fit, most, each / 2**20, device, free / 2**21,
    )  # fmt: skip
    return fit


def worthwhile(clients: Sequence[Client]) -> int:
    """How many of these clients to train in one pass, at least 1: by their rows and the device, never by the clock."""
    config = clients[0].config
    device = next(clients[0].base.model.parameters()).device.type
    kind = device if device in PAYS else "other"
    rows = [len(row.given) + len(row.response) for c in clients for row in c.train_rows]
    tokens = config.local.batch_size * sum(rows) / max(1, len(rows))
    if not rows or tokens > PAYS[kind]:
        return 1
    asked = min(config.clients.per_round or len(clients), len(clients))
    return max(1, min(asked, int(ROOM[kind] / tokens)))


@dataclass
class SharedPasses:
    """The clients of this process, by name, who train in passes of the base that they share."""

    clients: Mapping[str, Client]
    base: Sequence[nn.Parameter]
    checked: bool = False
    """Whether a pass has given the loss that a client has alone."""
    alone: bool = False
    """Whether this model cannot be shared: then nobody tries again."""

    def begin(self, asked: list[Asked]) -> list[Finish]:
        """Train all who are asked to; returns a function for each, in their order, that makes the client's answer."""
        clients = [self.clients[a.client] for a in asked]
        opened = [_open(client, a, self.base) for client, a in zip(clients, asked, strict=True)]
        seats = [o for o in opened if isinstance(o, Seat)]
        one_model = all(c.handle is clients[0].handle for c in clients)  # plans may have asked for unlike bases
        trained = iter(self._train(seats, clients[0]) if one_model else [None] * len(seats))
        pairs = zip(clients, opened, strict=True)
        return [partial(_finish, c, o, next(trained)) if isinstance(o, Seat) else o for c, o in pairs]

    def _train(self, seats: list[Seat], anyone: Client) -> list[Outcome]:
        """What the seats' turns give on the model of `anyone` of their clients."""
        if len(seats) > 1 and not self.alone:
            local, pad_id = cast(FirstOrder, anyone.recipe.local), anyone.base.pad_id
            try:
                with device_arithmetic.in_one_order(anyone.config.local):
                    found = batched_clients.train(anyone.handle, local, seats, pad_id, check=not self.checked)
            except Exception as e:  # a model that we do not know may do anything; each alone says what is wrong
                self.alone = not self.checked
                why = str(e) if isinstance(e, Unlike) else f"{type(e).__name__}: {e}"
                log.warning("[server] together: clients train one at a time: %s", why)
            else:
                self.checked = True
                return list(found)
        return [None] * len(seats)


def _open(client: Client, asked: Asked, base: Sequence[nn.Parameter]) -> Seat | Finish:
    """The client's seat, taken when the model stood at its start; or its answer, where it does not come to train."""

    def sit(handle: Handle, data: Data, turn: Turn) -> Trained:
        steps = cast(FirstOrder, client.recipe.local)
        if handle is not client.handle:  # the plan asks for a base in other bits than the client stands at
            return steps(handle, data, turn)
        raise Seated(batched_clients.seat(client.handle, steps, turn, data.batches(turn), base))

    try:
        answer = _instead(client, sit).answer(asked.kind, asked.payload)
    except Seated as s:
        return s.seat
    except Exception as e:
        return partial(_raise, e)
    return lambda: answer


def _finish(client: Client, seat: Seat, outcome: Outcome) -> bytes | Refused:
    """The answer of a client that has trained; it trains now if it has not."""

    def said(handle: Handle, data: Data, turn: Turn) -> Trained:
        if isinstance(outcome, Trained):
            return outcome
        raise FloatingPointError(str(outcome))

    if outcome is None:
        client.recipe.start(client.handle, seat.turn)
    else:
        client = _instead(client, said)
    try:
        return client.encode(client.train(seat.turn), seat.turn)
    except (PlanRefused, RejectedUpdate) as e:
        return Refused(e.code, str(e)[:MAX_REASON])


def _instead(client: Client, local: LocalStep) -> Client:
    """The client with other local steps; what it holds and keeps is the same."""
    return replace(client, recipe=replace(client.recipe, local=local))


def _raise(e: Exception) -> NoReturn:
    raise e
