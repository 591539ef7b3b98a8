"""The server's part in secure sums under masks: blocks of one-time secrets, a slot for each round, and its opening.

    block    open -> keys, book -> shares, deliver -> ready          once in SLOTS rounds, or when members change
    round    plans name block and slot -> masked updates             who answers in time, of those in the block
    opening  unmask -> opened                                        t of those whose update counts, who are fixed

    state/secagg/block.fedft    the block: who deals, and by slot whose updates count, before they are asked to open it
    state/secagg/slot.fedft     the next slot, before plans name one
    state/secagg/number         the last block's number; every new one is above

A slot is for one round; whose updates count in it stands for ever, since a second sum over others would give away those
by which the two differ. So where too few open it the run pauses, and asks the same ones again. What is lost of these
files costs a block: a new one is begun.
"""

import json
import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fedft import durable
from fedft.carriers.interface import Letter
from fedft.errors import RejectedUpdate, RunPaused
from fedft.privacy.secure_sum import collector, context
from fedft.privacy.secure_sum.collector import Block
from fedft.privacy.secure_sum.context import SLOTS
from fedft.privacy.secure_sum.integer_uploads import Integers
from fedft.privacy.secure_sum.messages import bytes_of_a_sum
from fedft.server.attempt_numbers import AttemptNumbers
from fedft.server.exchange import Exchange
from fedft.server.federation import Federation
from fedft.server.guard import SumLost
from fedft.server.sending import Came
from fedft.server.traffic import Traffic, Until
from fedft.update import BLOCK, SLOT, Plan

log = logging.getLogger(__name__)

LONGEST = 1 << 18  # bytes of an answer: boxes for the most members that there may be


@dataclass
class MaskedRounds:
    """The blocks of one run, and the slot of the round at work. Used by one thread."""

    integers: Integers
    cards: Callable[[], Mapping[str, bytes]]
    """Gives the Ed25519 public keys, 32 raw bytes each, of all members by name, as they are now."""
    folder: Path
    traffic: Traffic = field(default_factory=Traffic)
    """Of the round at work, of these messages alone."""
    _block: Block | None = None
    _slot: int = SLOTS
    """Of the round at work."""
    _spent: int = -1
    """The round at work, if a slot of it was given up since too few could mask their updates in it."""

    def __post_init__(self) -> None:
        if (body := durable.verified(self._file("block"))) is not None:
            self._block = collector.from_bytes(body)
        self._numbers = AttemptNumbers(self.folder / "number", durable.commit)

    def begin(self, exchange: Exchange, allowed: Collection[str]) -> tuple[dict[str, Any], list[str]]:
        """(what the plans of a new round say of its slot, who of the `allowed` can be asked); durable.

        Begins a new block where this one is used up, or its members are others by now. Raises RunPaused where too few
        take part in it.
        """
        run, self.traffic = exchange.federation, Traffic()
        slot, block = self._next(), self._block
        here = [c for c in allowed if block is not None and c in block.ready]
        stands = block is not None and dict(block.cards) == dict(self.cards()) and slot < SLOTS
        if block is None or not stands or len(here) < block.context.t:
            slot, block = 0, self._begun(exchange, allowed)
            here = [c for c in allowed if c in block.ready]
        said = {BLOCK: block.context.block, SLOT: slot}
        durable.commit(self._file("slot"), json.dumps({**said, SLOT: slot + 1}).encode())
        log.debug("round %d: block %d, slot %d", run.number, block.context.block, slot)
        return said, here

    def take_up(self, run: Federation, plans: Mapping[str, Plan]) -> None:
        """Go on with the slot that the plans of a round name. Raises SumLost where its block is not here any more."""
        extra = next(iter(plans.values())).extra
        if self._block is None or extra.get(BLOCK) != self._block.context.block:
            raise SumLost(f"block {extra.get(BLOCK)} of its secure sum is lost")
        self._slot, self._spent = int(extra[SLOT]), self._spent if self._spent == run.number else -1
        run.fewest = self._block.context.t

    def give_up(self, number: int, refused: Collection[Mapping[str, str]]) -> None:
        """Give up the slot of a round, and its block, where members have none to mask an update in.

        As after a restore of an earlier state: they have used their slots for other rounds. Raises SumLost the first
        time in a round, so that it begins anew in another block.
        """
        codes = {r["code"] for r in refused}
        if self.survivors is None and codes & {"secagg_slot_used", "secagg_context"} and self._spent != number:
            self._spent, self._block = number, None
            raise SumLost(f"round {number}: too few have secrets left for its slot")

    @property
    def survivors(self) -> Collection[str] | None:
        """Whose updates count in the round at work, once that is fixed; None before."""
        block = self._block
        if block is None or self._slot not in block.survivors:
            return None
        names = context.members(block.cards)
        return [names[i - 1] for i in block.survivors[self._slot]]

    def open(
        self, exchange: Exchange, weights: Mapping[str, int], fixed: Callable[[Collection[str]], None]
    ) -> dict[str, int]:
        """The weights of those whose updates count, once t of them have opened the slot of the round.

        `weights` are of those admitted; `fixed` is called with those who count before anybody is asked to open their
        sum. Raises RunPaused where too few open it, SumLost where an update is lost.
        """
        run, block, slot = exchange.federation, self._held, self._slot
        counted = self.survivors
        if counted is None:
            counted = [c for c in weights if c in block.dealers]
            _paused(run, partial(block.unmask, slot, counted))
            self._keep()
        message = block.unmask(slot, counted)
        if missing := [c for c in counted if c not in weights]:
            raise SumLost(f"the update of {missing[0]}, which was to be in the sum, is lost")
        fixed(counted)
        for _ in range(run.config.server.attempts if run.deployed else 1):
            if block.enough(slot):
                break
            took = partial(block.took_opening, slot)
            self._ask(exchange, dict.fromkeys(self._still_to_open(counted), message), took)
        if not block.enough(slot):
            opened, t = len(block.openings.get(slot, ())), block.context.t
            raise RunPaused(
                f"round {run.number}: {opened} of {len(counted)} clients have opened their secure sum, {t} are needed, "
                "and nobody else can; run again to ask them once more"
            )
        return {c: weights[c] for c in counted}

    def total(self, masked: Mapping[str, np.ndarray]) -> np.ndarray:
        """The sum of the integers under the masks, int64; beyond all bounds where what was opened is no sum."""
        try:
            return self._held.sum(self._slot, masked)
        except RejectedUpdate:
            return np.full(self._held.spec.length, np.iinfo(np.int64).max)

    def record(self, refused: list[dict[str, str]]) -> dict[str, Any]:
        """What the round's line says of these messages: bytes by client, and who was refused beside those `refused`.

        "secagg_training": up and down of all dealers as `bytes_of_a_sum` has it, whatever was sent anew after a kill.
        """
        of, block = self.traffic, self._held
        up, down = bytes_of_a_sum(block.context.n, count := len(block.dealers), len(block.spec.json()))
        return {
            "secagg_bytes": {"up": of.up, "down": of.down, "needed": of.needed},
            "secagg_training": {"up": count * up, "down": count * down},
            "refused": [*refused, *of.refused],
        }

    @property
    def members(self) -> int:
        """n, how many members the block at work has."""
        return self._held.context.n

    @property
    def _held(self) -> Block:
        assert self._block is not None, "a round without a slot"
        return self._block

    def _still_to_open(self, counted: Collection[str]) -> list[str]:
        names, opened = context.members(self._held.cards), self._held.openings.get(self._slot, {})
        return [c for c in counted if names.index(c) + 1 not in opened]

    def _next(self) -> int:
        """The next slot of the block; SLOTS where that is not known."""
        body = durable.verified(self._file("slot"))
        said = json.loads(body) if body is not None else {}
        known = self._block is not None and said.get(BLOCK) == self._block.context.block
        return said[SLOT] if known else SLOTS

    def _begun(self, exchange: Exchange, allowed: Collection[str]) -> Block:
        """A new block, of which t members at least are ready; durable. Raises RunPaused."""
        run = exchange.federation
        begun = run.number > 0 or (self.folder.parent / "attempt").exists()
        block = self._opened(exchange, allowed, self._numbers.next(begun=begun))
        known = {r["client"] for r in self.traffic.refused if r["code"] == "secagg_context"}
        if len(block.entries) < block.context.t <= len(block.entries) + len(known) and self._numbers.jump():
            block = self._opened(exchange, allowed, self._numbers.next(begun=True))  # they know later blocks than we do
        book, names = _paused(run, block.book), context.members(block.cards)
        self._ask(exchange, dict.fromkeys([names[i - 1] for i in block.entries], book), block.took_shares)
        dealers = [names[i - 1] for i in block.boxes]
        boxes = {c: _paused(run, partial(block.deliver, c)) for c in dealers}
        self._ask(exchange, boxes, block.took_ready)
        if len(block.ready) < block.context.t:
            ready = f"{len(block.ready)} of {block.context.n} clients are ready"
            raise _too_few(run, f"{ready}, {block.context.t} needed")
        self._block = block
        self._keep()
        return block

    def _opened(self, exchange: Exchange, allowed: Collection[str], number: int) -> Block:
        """A block of this number whose members have been asked for their keys."""
        run, cards = exchange.federation, dict(self.cards())
        plan = Plan(run.job.run, 0, 0, rank=run.rank, steps=run.config.local.steps)
        spec = self.integers.spec(run.layout, plan)
        block = Block(context.context_of(run.job.run, number, cards, spec), cards, spec)
        log.info("round %d: block %d of secure sums, %d members", run.number, number, len(cards))
        self._ask(exchange, dict.fromkeys([c for c in cards if c in allowed], block.open()), block.took_keys)
        return block

    def _ask(self, exchange: Exchange, payloads: Mapping[str, bytes], took: Callable[[str, bytes], None]) -> None:
        """Send each client its message and take the answers, until all have come or time is up."""
        run = exchange.federation

        def accept(came: Came) -> None:
            took(came.client, came.payload)

        def until() -> Until:
            return run.until(run.still(payloads))

        letters = [
            Letter(c, "secagg", partial(bytes, payload), run.number, max_bytes=LONGEST)
            for c, payload in payloads.items()
        ]
        if letters:
            exchange.send(letters, accept, self.traffic, until, lambda client, reason: None)

    def _keep(self) -> None:
        durable.commit(self._file("block"), self._held.to_bytes())

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.fedft"


def _too_few(run: Federation, why: str) -> RunPaused:
    return RunPaused(f"round {run.number}: secure sum: {why}; run again to continue")


def _paused(run: Federation, act: Callable[[], bytes]) -> bytes:
    """What `act` gives; RunPaused where too few take part for it."""
    try:
        return act()
    except RejectedUpdate as e:
        raise _too_few(run, str(e)) from e
