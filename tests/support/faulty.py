"""The network and the sites of a world in which everything fails: they do all but forge a signature.

Network        a `Link`: drops, delays, repeats, reorders, crosses, replays and damages messages; nodes come and go
FaultySite     a site's process, killed and started again on the disk that is there
FaultyClient   computes its update from the bytes of the state in a hash: any other state gives another update
"""

import hashlib
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from cryptography.exceptions import InvalidSignature
from deployed import Site, ToyClient
from faults import SERVER, Disk, Killed, World

from fedft.arithmetic import tensors
from fedft.carriers.interface import LinkLost, Refused
from fedft.config import RunConfig
from fedft.contract import Layout, Trained, Turn
from fedft.errors import RejectedUpdate
from fedft.recipe import Recipe
from fedft.update import Job, Update
from fedft.wire import versions


@dataclass(frozen=True)
class FastKey:
    """As much of a signing key as seals ask for, in a microsecond; it is its own public half."""

    name: str

    def sign(self, data: bytes) -> bytes:
        """64 bytes that nobody else in this world makes."""
        return hashlib.blake2b(data, key=self.name.encode()).digest()

    def verify(self, signature: bytes, data: bytes) -> None:
        """Raises InvalidSignature."""
        if signature != self.sign(data):
            raise InvalidSignature

    def public_key(self) -> "FastKey":
        """Itself."""
        return self


def key_of(site: str) -> FastKey:
    """A site's key, as a roster gives it."""
    return FastKey(site)


class Network:
    """The sites, and a `Link` to them that does everything but forge a signature."""

    keeps_answers = False
    """Whether what a site says while it cannot be reached is sent later."""

    def __init__(self, world: World, sites: Mapping[str, "FaultySite"]) -> None:
        self._world, self._sites = world, sites
        self._first = 0
        """Node id of the first site; ids change when the SuperLink dies."""
        self._epoch, self._count, self._down_until = 0, 0, 0.0
        self._sent: dict[str, str] = {}
        self._replies: list[tuple[str, bytes | Refused]] = []
        self._seen: dict[str, deque[tuple[str, bytes]]] = {n: deque(maxlen=12) for n in sites}
        for site in sites.values():
            site.network = self

    def lose(self, down_s: float = 0.0) -> None:
        """The SuperLink dies: all that was on its way is gone, nodes get new ids."""
        self._epoch += 1
        self._first += len(self._sites)
        self._down_until = self._world.now + down_s
        self._sent.clear()
        self._replies.clear()

    def started(self, site: "FaultySite") -> None:
        """A site's process begins."""

    def died(self, site: "FaultySite") -> None:
        """A site's process has ended."""

    def _call(self) -> None:
        w = self._world
        w.live(w.now + 0.001)
        w.risk()
        if w.chance("link_lost"):
            self.lose(10 * w.rng.random() ** 2)
            raise LinkLost("the SuperLink has died")
        if w.now < self._down_until and not w.calm:
            raise LinkLost("no SuperLink there")
        for site in self._sites.values():
            if site.up and w.chance("offline"):
                site.offline_until = w.now + w.rng.choice([1, 10, 60]) * w.rng.random()
                w.at(site.offline_until - w.now, site.deliver)

    def nodes(self) -> Mapping[str, int]:
        """Those there, and for a while those that have gone."""
        self._call()
        seen = (site for site in self._sites.values() if site.reachable() or self._world.now < site.seen_until)
        return {site.name: self._first + site.index for site in seen}

    def speaks(self, node: int) -> int:
        """The newest."""
        return versions.newest()

    def push(self, node: int, kind: str, payload: Sequence[bytes], group: str) -> str:
        """Send, as far as it goes."""
        self._call()
        whole = b"".join(payload)
        w = self._world
        self._count += 1
        mid = str(self._count)
        if not 0 <= node - self._first < len(self._sites):
            return mid
        site = list(self._sites.values())[node - self._first]
        self._sent[mid] = site.name
        copies = [whole] * (1 + w.chance("duplicate"))
        if w.chance("drop"):
            del copies[0]
            if w.rng.random() < 0.3:
                w.at(3.0, self._guard(lambda: self._replies.append((mid, Refused("client_error", "lost")))))
        if w.chance("replay") and self._seen[site.name]:
            way, old = w.rng.choice(self._seen[site.name])
            if way == "up":
                w.at(self._delay(), self._guard(lambda: self._replies.append((mid, old))))
            else:
                copies.append(old)
        self._seen[site.name].append(("down", whole))
        for data in copies:
            data = self._damaged(data)
            w.at(self._delay(), self._guard(lambda d=data: site.arrive(mid, d)))  # type: ignore[misc]
        return mid

    def pull(self, ids: Collection[str], max_bytes: int) -> Iterator[tuple[str, bytes | Refused | RejectedUpdate]]:
        """What has come, in any order."""
        self._call()
        for mid in ids:
            if mid not in self._sent:
                yield mid, Refused("client_error", "the message was lost on its way")
        asked = set(ids)
        due = [(mid, data) for mid, data in self._replies if mid in asked]
        self._world.rng.shuffle(due)
        epoch = self._epoch
        for reply in due:
            if self._world.chance("link_lost"):
                self.lose()
            if epoch != self._epoch:
                raise LinkLost("the SuperLink has died under our hands")
            if reply not in self._replies:
                continue
            self._replies.remove(reply)
            mid, data = reply
            if isinstance(data, bytes) and len(data) > max_bytes:
                yield mid, RejectedUpdate("too_large", f"{len(data)} bytes")
            else:
                yield mid, data

    def route(self, site: str, mid: str) -> Callable[[bytes], None]:
        """How to answer a message; it leads nowhere once the SuperLink that brought it is dead."""
        epoch = self._epoch
        return lambda data: self._answer(site, mid, data) if epoch == self._epoch else None

    def _answer(self, site: str, mid: str, data: bytes) -> None:
        w = self._world
        self._seen[site].append(("up", data))
        if w.chance("drop"):
            return
        if w.chance("cross") and self._sent:
            mid = w.rng.choice(list(self._sent)[-8:])
        for _ in range(1 + w.chance("duplicate")):
            damaged = self._damaged(data)
            w.at(self._delay(), self._guard(lambda d=damaged: self._replies.append((mid, d))))  # type: ignore[misc]

    def forget(self, ids: Collection[str]) -> None:
        """What nobody waits for any more."""
        self._call()
        for mid in ids:
            self._sent.pop(mid, None)
        self._replies = [r for r in self._replies if r[0] not in set(ids)]

    def close(self) -> None:
        """Nothing to leave."""

    def _guard(self, act: Callable[[], None]) -> Callable[[], None]:
        """`act`, unless the SuperLink that it goes through has died by then."""
        epoch = self._epoch
        return lambda: act() if epoch == self._epoch else None

    def _delay(self) -> float:
        rng = self._world.rng
        return 30 * rng.random() if self._world.chance("slow") else 0.1 * rng.random()

    def _damaged(self, data: bytes) -> bytes:
        w = self._world
        if not w.chance("corrupt"):
            return data
        cut = w.rng.randrange(len(data))
        flipped = data[:cut] + bytes([data[cut] ^ 1 << w.rng.randrange(8)]) + data[cut + 1 :]
        return w.rng.choice([flipped, flipped, data[:cut], data + data[:cut]])


class FaultySite(Site):
    """A site's process and disk. It is killed, and started again after a while."""

    network: Any
    """A `Network`, or one of `wires`."""

    def __init__(
        self,
        name: str,
        index: int,
        folder: Path,
        configured: RunConfig,
        world: World,
        disk: Disk,
        join: Callable[["FaultySite"], "FaultyClient"],
        signed: Callable[[str, bytes], None],
        inline_bytes: int,
    ) -> None:
        self._world, self._disk, self._make, self._signed = world, disk, join, signed
        self._inline_bytes = inline_bytes
        self.offline_until = self.seen_until = 0.0
        self.up, self.slowness, self.starts = True, 0.2, 0
        self._inbox: list[tuple[str, bytes]] = []
        super().__init__(name, index, folder, configured)

    def start(self) -> None:
        """A fresh process on the disk that is there."""
        with self._world.acting(self.name):
            super().start()
        self.responder.key = FastKey(self.name)  # type: ignore[assignment]
        self.responder.server = FastKey(SERVER)  # type: ignore[assignment]
        self.responder.inline_bytes = self._inline_bytes
        self.up, self.starts = True, self.starts + 1
        if self.starts > 1:
            self.network.started(self)
        self.deliver()

    def _join(self, job: Job) -> ToyClient:
        client = self._make(self)
        client.meanwhile = self._meanwhile
        return client

    def reachable(self) -> bool:
        return self.up and (self._world.calm or self._world.now >= self.offline_until)

    def arrive(self, mid: str, data: bytes) -> None:
        """A message for this site; it waits while nobody is there to take it."""
        self._inbox.append((mid, data))
        self.deliver()

    def deliver(self) -> None:
        """Take what waits, and work on it later."""
        if not self.reachable():
            return
        while self._inbox:
            mid, data = self._inbox.pop(0)
            self.responder.take(data, self._reply(mid))
            self._world.at(self.slowness * self._world.rng.random(), self._work(self.starts))

    def recover(self) -> None:
        """Be there, and deal at once with what waits."""
        if not self.up:
            self.start()
        self.deliver()
        for _ in range(10):
            self._world.at(0.0, self._work(self.starts))

    def _reply(self, mid: str) -> Callable[[bytes], None]:
        life = self.starts
        send = self.network.route(self.name, mid)

        def reply(data: bytes) -> None:
            self._signed(self.name, data)
            if life == self.starts and (self.network.keeps_answers or self.reachable()):
                send(data)

        return reply

    def _work(self, life: int) -> Callable[[], None]:
        def work() -> None:
            if life != self.starts or not self.up:
                return
            try:
                with self._world.acting(self.name):
                    self.responder.work(0)
            except Killed:
                self.die()

        return work

    def _meanwhile(self) -> None:
        """In the middle of training: messages come, and so may the end."""
        if self._world.chance("kill_site"):
            raise Killed
        for mid, data in self._inbox[:1]:
            self.responder.take(data, self._reply(mid))
            del self._inbox[0]

    def die(self) -> None:
        """The process ends where it is; the next one starts in a while."""
        w = self._world
        w.counts["crashes of sites"] += 1
        self.up = False
        self.network.died(self)
        self._disk.crashed(self.name)
        if w.rng.random() < 0.5:
            self.seen_until = w.now + 20 * w.rng.random()
        life = self.starts
        w.at(0.2 + w.rng.choice([1, 1, 20]) * w.rng.random(), lambda: self.start() if life == self.starts else None)


class FaultyClient(ToyClient):
    """A client that computes its update from the bytes of the state in a hash, or trains the toy model."""

    meanwhile: Callable[[], None] = staticmethod(lambda: None)
    exact = True
    """Training twice gives the same bytes."""
    trainings = 0

    def train(self, turn: Turn) -> Update:
        """See `Client`."""
        self.meanwhile()
        FaultyClient.trainings += 1
        if not isinstance(self.recipe.local, Hashed):
            return super().train(turn)
        delta, metrics, kept = self.recipe.local(self.handle, None, turn)
        if not self.exact:
            noise = 1 + FaultyClient.trainings % 1000 / 1e6
            delta = {n: x * noise if x.is_floating_point() else x for n, x in delta.items()}
        self.meanwhile()
        self.kept.keep(turn.plan.round, kept, turn.plan.counted)
        return self._update(turn.plan, delta, len(self.train_rows), metrics)

    def evaluate(self, turn: Turn) -> Update:
        """See `Client`."""
        if not isinstance(self.recipe.local, Hashed):
            return super().evaluate(turn)
        return self._update(turn.plan, {}, 1, {"loss": hashed_loss(turn.held_digest, self.name)})


def hashed_loss(held_digest: str, name: str) -> float:
    """What a client measures that does not train: a number that no other state gives."""
    return int.from_bytes(hashlib.sha256(f"{held_digest} {name}".encode()).digest()[:4], "little") / 2**32


@dataclass(frozen=True)
class Hashed:
    """A local step in microseconds: the update follows from the state's digest and the client's seed, and fits."""

    recipe: Recipe
    layout: Layout

    def __call__(self, handle: Any, data: Any, turn: Turn) -> Trained:
        """See `LocalStep`."""
        spec = self.recipe.spec(self.layout, turn.plan)
        kept = tensors.digest(tensors.in_one(turn.kept))
        seed = f"{turn.held_digest} {turn.seed} {turn.plan.steps} {kept}".encode()
        sizes = {n: max(1, int(torch.Size(s.shape).numel())) for n, s in spec.items()}
        raw = torch.frombuffer(bytearray(hashlib.shake_128(seed).digest(4 * sum(sizes.values()))), dtype=torch.int32)
        delta, start = {}, 0
        for name, s in spec.items():
            words = raw[start : start + sizes[name]]
            start += sizes[name]
            if name == "index":  # distinct numbers of the pool, rising
                delta[name] = (words.abs() % 16 + 16 * torch.arange(len(words))).reshape(s.shape).to(torch.uint16)
            elif s.dtype == "int32":  # a seed
                delta[name] = words.reshape(s.shape).clone()
            else:
                delta[name] = (words.float() * (0.01 / 2**31)).reshape(s.shape)
        return Trained(delta, {"loss": 0.5}, {"hashed": {"own": raw[:4].clone()}})


def hashed(recipe: Recipe, layout: Layout) -> Recipe:
    """The recipe with a local step that costs nothing; all else is as it is."""
    return replace(recipe, local=Hashed(recipe, layout), uploads=(), start=lambda handle, turn: None, keeps=True)
