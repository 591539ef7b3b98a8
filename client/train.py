"""One client: answers a server's messages with its own rows on the resident base model.

query      Job      -> how many rows there are                    (once)
train      Plan     -> Update: what the local steps changed
evaluate   Plan     -> Update without tensors: metrics on the held-out rows
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch

from fedft.arithmetic import tensors
from fedft.carriers import interface
from fedft.carriers.flower import grid
from fedft.client.private_state import Kept
from fedft.client.received_state import Memory
from fedft.config import RunConfig
from fedft.contract import Batch, Turn
from fedft.data import examples
from fedft.data.examples import Example
from fedft.errors import PlanRefused, RejectedUpdate
from fedft.models.handle import ModelHandle
from fedft.models.load import Base
from fedft.randomness import philox
from fedft.recipe import Recipe
from fedft.training import evaluate
from fedft.update import Job, Plan, Update
from fedft.wire import messages

MAX_PLAN_BYTES = 2**31 - 1


@dataclass
class Client:
    """A site's rows, and what it shares with the other clients of its process: the resident model.

    The strategy and the settings come from the local config, never from a message; the job only has to agree.
    """

    name: str
    train_rows: Sequence[Example]
    test_rows: Sequence[Example]
    base: Base
    handle: ModelHandle
    recipe: Recipe
    config: RunConfig
    memory: Memory = field(default_factory=Memory)
    kept: Kept = field(default_factory=Kept)
    step: int = 0
    """Local steps begun in the round at hand, for those who wait."""
    _run: str = ""
    _run_seed: int = 0

    def answer(self, message: grid.Message) -> grid.Message:
        """The reply to any message of the server's; what we will not do is a refusal with a code."""
        try:
            payload = grid.unpack(message, MAX_PLAN_BYTES)
            if isinstance(payload, interface.Refused):
                raise PlanRefused("malformed", "a server's message is never a refusal")
            if message.metadata.message_type == "query":
                return grid.pack_reply(message, self.enrol(messages.decode_job(payload)))
            plan = self.memory.pool.plan(payload, partial(messages.decode_plan, max_bytes=MAX_PLAN_BYTES))
            return grid.pack_reply(message, self.carry_out(plan))
        except (PlanRefused, RejectedUpdate) as e:
            return grid.pack_refusal(message, e.code, str(e))

    def carry_out(self, plan: Plan) -> bytes:
        """Train or evaluate as the plan says; the encoded update. Raises PlanRefused."""
        turn = self.install(plan)
        return self.encode(self.evaluate(turn) if plan.evaluate else self.train(turn), turn)

    def encode(self, update: Update, turn: Turn) -> bytes:
        """The turn's update as it travels."""
        return messages.encode_update(update, self.config.codec.up, turn.seed)

    def enrol(self, job: Job) -> bytes:
        """Agree on the run; answers with the numbers of rows to train on and held out. Raises PlanRefused."""
        self.join(job)
        said = {"held_out": float(len(self.test_rows))}
        return messages.encode_update(Update({}, max(1, len(self.train_rows)), run=job.run, metrics=said), "fp32")

    def join(self, job: Job) -> None:
        """Take part in `job` if it is what the local config says. Raises PlanRefused."""
        ours = self.config.to_dict()
        for table, said in (("strategy", job.strategy), ("local", job.local), ("codec", job.codec)):
            theirs = dict(said) | ({"threads": self.config.local.threads} if table == "local" else {})
            if theirs != ours[table]:
                raise PlanRefused("job_mismatch", f"the server's [{table}] is {theirs}, ours is {ours[table]}")
        if job.model["digest"] != self.base.digest:
            raise PlanRefused(
                "base_mismatch", f"base model {self.base.digest[:12]}, the server's {job.model['digest'][:12]}"
            )
        self._run, self._run_seed = job.run, job.seed
        self.kept.open(job.run)

    def train(self, turn: Turn) -> Update:
        """Take the local steps from the installed state; what changed. What stays here is on the disk then."""
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(turn.seed)  # dropout
                delta, metrics, kept = self.recipe.local(self.handle, self._batches(turn), turn)
        except FloatingPointError as e:
            raise PlanRefused("nonfinite", str(e)) from e
        if self.recipe.keeps:
            self.kept.keep(turn.plan.round, kept, turn.plan.counted)
        return self._update(turn.plan, delta, len(self.train_rows), metrics)

    def _batches(self, turn: Turn) -> Iterator[Batch]:
        rows = examples.batches(
            self.train_rows,
            batch_size=self.config.local.batch_size,
            steps=turn.plan.steps,
            seed=turn.seed,
            pad_id=self.base.pad_id,
        )
        for self.step, batch in enumerate(rows, 1):
            yield batch

    def evaluate(self, turn: Turn) -> Update:
        """Metrics of the installed state on the held-out rows, and ROUGE-L when the plan asks for it."""
        more = ["rouge_l"] if turn.plan.extra.get("rouge") else []
        found = evaluate.measure(self.handle, self.base, self.test_rows, self.config.eval, more)
        rows = len(self.test_rows[: self.config.eval.max_rows])
        return self._update(turn.plan, {}, max(1, rows), found)

    def install(self, plan: Plan) -> Turn:
        """Bring the model to the plan's state. Raises PlanRefused, `behind` with the version held if that fails."""
        if plan.run != self._run:
            raise PlanRefused("wrong_run", f"plan of run {plan.run}, enrolled in {self._run or 'none'}")
        if plan.evaluate and not self.test_rows:
            raise PlanRefused("no_rows", "there are no held-out rows here")
        had = self.memory.held
        if plan.have is not None and (had is None or (had.version, self.memory.label) != (plan.have, plan.have_label)):
            raise PlanRefused("behind", f"{had.version} {self.memory.label}" if had else "none")
        held = self.memory.pool.received(had, plan, self.recipe.receive)
        if plan.evaluate and self.recipe.evaluates_apart:
            digest = tensors.digest(held)
        else:
            self.memory.hold(plan.version, plan.label, held)
            assert self.memory.held is not None
            held, digest = self.memory.held.tensors, self.memory.held.digest
        own = philox.derive(self._run_seed, "client", self.name, plan.round)
        kept = self.kept.after(plan.counted)
        turn = Turn(plan, held, digest, self.config.local, self._run_seed, own, kept)
        self.recipe.start(self.handle, turn)
        return turn

    def _update(self, plan: Plan, delta: dict[str, torch.Tensor], n: int, metrics: dict[str, float]) -> Update:
        return Update(delta, n, plan.round, plan.run, plan.attempt, metrics=metrics)
