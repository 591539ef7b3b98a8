"""Several processes of one site that share the batches of a turn, one for each device: data-parallel local steps.

A launcher (`torchrun`, or `accelerate launch` on GPUs) starts `fedft client site.toml` as many times as there are
devices. The first process is the site: it alone has a connection, a state folder and a voice. The others do as it tells
them, over torch.distributed, on the same machine:

    job     make a client of this job, on the site's own rows                   no answer
    turn    stand where the turn begins; are you ready for just this turn?      a digest of job, turn and rows
            then take the same steps: of every batch each differentiates its share of the pieces, gradients are summed

So a step is that of the whole batch, token by token, but for the rounding of sums; everything that follows from the
gradients (terms, clipping, optimiser) is done alike by all.
"""

import hashlib
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from fedft import durable
from fedft.arithmetic import tensors
from fedft.client.site_settings import SiteConfig
from fedft.client.train import MAX_PLAN_BYTES, Client
from fedft.contract import Trained, Turn
from fedft.data import micro_batches
from fedft.errors import ConfigError, FedftError, PlanRefused
from fedft.privacy.tables import OF_RECORDS
from fedft.training.first_order import gradient_steps
from fedft.update import Job
from fedft.wire import messages

log = logging.getLogger(__name__)

WAITS = timedelta(days=3650)  # for the next turn, which may be long in coming
NOT_READY = bytes(32)


def launched() -> int:
    """How many processes a launcher has started for this site; 1 without a launcher. Raises ConfigError."""
    said = os.environ.get("WORLD_SIZE", "1")
    if not said.isdecimal() or not int(said):
        raise ConfigError(f"WORLD_SIZE = {said!r}, wanted the number of processes that a launcher has started")
    return int(said)


def on_own_device(site: SiteConfig) -> SiteConfig:
    """The site's file as this process takes it: `[model] device = "cuda"` stands for one device to each process."""
    if site.model.device != "cuda":
        return site
    return replace(site, model=replace(site.model, device=f"cuda:{os.environ.get('LOCAL_RANK', '0')}"))


@dataclass(frozen=True)
class Companions:
    """The processes of a site, of which this is number `rank` of `count`."""

    rank: int
    count: int
    talk: Any
    """The process group for messages, which waits as long as it takes."""

    @classmethod
    def joined(cls, device: str) -> "Companions":
        """Meet the others, as the launcher's environment says. Raises ConfigError where they cannot be met."""
        if os.environ.get("MASTER_ADDR", "127.0.0.1") in ("127.0.0.1", "localhost", "::1"):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # nothing listens where others could reach it
        try:
            dist.init_process_group("cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo")
            return cls(dist.get_rank(), dist.get_world_size(), dist.new_group(backend="gloo", timeout=WAITS))
        except (RuntimeError, ValueError) as e:
            raise ConfigError(
                f"WORLD_SIZE = {launched()}: the processes of this site do not find each other: {e}"
            ) from e

    def tell(self, *parts: bytes) -> None:
        """Send a message to the other processes: of the first one."""
        sizes = torch.tensor([len(p) for p in parts] + [0] * (3 - len(parts)))
        dist.broadcast(sizes, 0, group=self.talk)
        if whole := b"".join(parts):
            dist.broadcast(torch.frombuffer(bytearray(whole), dtype=torch.uint8), 0, group=self.talk)

    def hear(self) -> tuple[bytes, bytes, bytes]:
        """The next message of the first process: three parts, the last ones empty where it had fewer."""
        sizes = torch.zeros(3, dtype=torch.int64)
        dist.broadcast(sizes, 0, group=self.talk)
        whole = torch.empty(int(sizes.sum()), dtype=torch.uint8)
        if len(whole):
            dist.broadcast(whole, 0, group=self.talk)
        data, (a, b, _) = whole.numpy().tobytes(), sizes.tolist()
        return data[:a], data[a : a + b], data[a + b :]

    def agree(self, on: bytes) -> bool:
        """Whether all processes say these 32 bytes, and none `NOT_READY`; all are asked at the same place."""
        mine = torch.frombuffer(bytearray(on), dtype=torch.uint8)
        said = [torch.empty_like(mine) for _ in range(self.count)]
        dist.all_gather(said, mine, group=self.talk)
        return bool(mine.any()) and all(torch.equal(x, mine) for x in said)

    def add(self, parts: list[Tensor]) -> None:
        """Sum tensors of one dtype over the processes, in place."""
        flat = torch.cat([p.flatten() for p in parts])
        dist.all_reduce(flat)
        for part, whole in zip(parts, flat.split([p.numel() for p in parts]), strict=True):
            part.copy_(whole.view_as(part))


@dataclass
class LeadingClient(Client):
    """The client of a site's first process: it has the others take its turns with it."""

    job: bytes = b""
    """The job, encoded."""

    def steps(self, turn: Turn) -> Trained:
        """As of `Client`, in all processes. Raises PlanRefused, `site_unfit`, where another is not ready for it."""
        assert isinstance(self.among, Companions)
        told = _written(turn)
        self.among.tell(b"turn", *told)
        if not self.among.agree(_agreed(self, self.job, told)):
            log.error("the processes of this site do not agree on job, rows or turn; the others' logs say why")
            raise PlanRefused("site_unfit", "the processes of this site do not agree; their logs say why")
        return super().steps(turn)


def leading(client: Client, job: Job, companions: Companions) -> LeadingClient:
    """The first process's client; the others are told of its job. Raises PlanRefused for what cannot be shared."""
    local, mode = client.config.local, client.config.privacy.mode
    if mode in OF_RECORDS:  # who is in a batch, and its noise, are one process's secret
        raise PlanRefused("site_unfit", f"[privacy] mode = {mode!r} is for sites of one process")
    if local.trainer or local.micro_batch == "auto" or not micro_batches.possible(client.handle.objective):
        raise PlanRefused("site_unfit", "[local] trainer, micro_batch = 'auto' and objectives that do not weigh their "
                          "pieces are for sites of one process")  # fmt: skip
    if gradient_steps(client.recipe.local) is None:
        log.warning("%s does not back-propagate: each of the %d processes takes every step whole", client.recipe.name,
                    companions.count)  # fmt: skip
    data = messages.encode_job(job)
    companions.tell(b"job", data)
    own = {name: getattr(client, name) for name in client.__dataclass_fields__ if not name.startswith("_")}
    return LeadingClient(**{**own, "among": companions}, job=data)


@dataclass
class Follower:
    """One of the other processes: takes the turns that it is told of, and keeps nothing."""

    companions: Companions
    make: Callable[[Job], Client]
    """Makes the client of a job on the site's own rows and model, or raises PlanRefused."""
    _clients: dict[str, tuple[Client, bytes]] = field(default_factory=dict)
    """Client and encoded job, by run."""

    def let_go(self, run: str) -> None:
        """Forget the client of a run, whose model is to make room."""
        self._clients.pop(run, None)

    def follow(self) -> None:
        """Do as the first process says until it is gone."""
        while True:
            try:
                kind, *parts = self.companions.hear()
            except RuntimeError:  # torch's, of a connection that is closed
                log.info("the first process of this site is gone")
                return
            if kind == b"job":
                self._take(parts[0])
            else:
                self._turn((parts[0], parts[1]))

    def _take(self, data: bytes) -> None:
        job = messages.decode_job(data)
        self.let_go(job.run)
        try:
            client = self.make(job)
            client.join(job)
            self._clients[job.run] = replace(client, among=self.companions), data
        except FedftError as e:
            log.error("run %s: %s", job.run, e)

    def _turn(self, told: tuple[bytes, bytes]) -> None:
        client, turn, on = None, None, NOT_READY
        try:
            turn = _read(told)
            client, job = self._clients.get(turn.plan.run, (None, b""))
            if client is not None:
                client.renew_rows()
                turn = replace(turn, local=client.local_of(turn.plan))
                client.ready()
                client.recipe.start(client.handle, turn)
                on = _agreed(client, job, told)
        except (FedftError, ValueError) as e:
            log.error("this turn cannot be taken: %s", e)
        if not self.companions.agree(on) or client is None or turn is None:
            return
        try:
            client.steps(turn)
        except FloatingPointError as e:  # the first process has the same, and says it
            log.warning("%s", e)


def _written(turn: Turn) -> tuple[bytes, bytes]:
    """(the turn's plan with its tensors, the other tensors and numbers of the turn)."""
    meta = {"digest": turn.held_digest, "run_seed": str(turn.run_seed), "seed": str(turn.seed)}
    drawers = {"held": turn.held, **{f"kept:{owner}": drawer for owner, drawer in turn.kept.items()}}
    return messages.encode_plan(turn.plan, "fp32"), save_tensors(tensors.in_one(drawers), meta)


def _read(told: tuple[bytes, bytes]) -> Turn:
    """The inverse of `_written`, but for the `[local]` table. Raises a FedftError or ValueError."""
    plan = messages.decode_plan(told[0], max_bytes=MAX_PLAN_BYTES)
    drawers, meta = tensors.drawers_of(load_tensors(told[1])), durable.metadata(told[1])
    held = drawers.pop("held", {})
    kept = {owner.removeprefix("kept:"): drawer for owner, drawer in drawers.items()}
    return Turn(plan, held, meta["digest"], None, int(meta["run_seed"]), int(meta["seed"]), kept)  # type: ignore[arg-type]


def _agreed(client: Client, job: bytes, told: tuple[bytes, bytes]) -> bytes:
    """What the processes must have in common before a turn: 32 bytes."""
    rows = f"{len(client.train_rows)} {client.rows_digest}".encode()
    return hashlib.sha256(b"|".join(hashlib.sha256(x).digest() for x in (job, *told, rows))).digest()
