"""One client: answers a server's messages with its own rows on the resident base model.

query      Job      -> how many rows there are                    (once)
train      Plan     -> Update: what the local steps changed
evaluate   Plan     -> Update without tensors: metrics on the held-out rows
secagg     message of a secure sum -> the next one
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

import torch

from fedft.arithmetic import tensors
from fedft.arithmetic.tensors import Tensors
from fedft.carriers.interface import MAX_REASON, Kind, Refused
from fedft.client import agreed_job, own_profile
from fedft.client.base_precision import with_bits
from fedft.client.own_privacy import OwnPrivacy
from fedft.client.own_rows import OwnRows
from fedft.client.private_state import Kept
from fedft.client.received_state import Memory
from fedft.config import Local, RunConfig
from fedft.contract import NOTHING, Trained, Turn
from fedft.data import micro_batches, packing
from fedft.data.batches import ClientRows
from fedft.data.examples import Example
from fedft.data.micro_batches import Among, MicroBatch
from fedft.errors import PlanRefused, RejectedUpdate
from fedft.models import device_arithmetic, own_draws
from fedft.models.handle import ModelHandle
from fedft.models.load import Base
from fedft.privacy.secure_sum.integer_uploads import integers_of
from fedft.randomness import philox
from fedft.recipe import Recipe
from fedft.training import evaluate
from fedft.update import BITS, MEMORY_LOST, PROFILE, Job, Plan, Update, rows_at_once
from fedft.wire import messages
from fedft.wire.table import Entry, check_download

if TYPE_CHECKING:
    from fedft.client.secure_sums import SecureSums

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
    privacy: OwnPrivacy = field(default_factory=OwnPrivacy)
    """Key and account of the client's own noise; left out: in memory only."""
    ready: Callable[[], None] = lambda: None
    """Called before the client's turn on the model, which others may have had turns on."""
    among: Among | None = None
    """The processes that share this client's batches; None: there is this one only."""
    rows: OwnRows | None = None
    """Where the rows come from, if their files are looked at again; None: they never change."""
    secure: "SecureSums | None" = None
    """The client's part in masked sums; None where nothing is masked, or nobody has given it the others' keys."""
    profile: Mapping[str, float] = field(default_factory=dict)
    """What the client says of its machine when it enrols, by the names of `fedft.contract.Member.profile`."""
    tells: bool = False
    """Whether updates say how long local steps took, and the memory that they had."""
    limits: Sequence[Callable[[Plan], None]] = ()
    """Each raises PlanRefused for a plan that asks for more than the site allows."""
    at: Plan | None = None
    """The plan that brought the client to the state that it holds; without tensors."""
    step: int = 0
    """Local steps begun in the round at hand, for those who wait."""
    _micro_batch: MicroBatch | None = field(init=False)
    """Stays between rounds: what memory has shown to be enough for."""
    in_bits: Callable[[int], tuple[Base, ModelHandle]] | None = None
    """Gives the base in so many bits, where a plan may ask for another precision; None: there is this one only."""
    _own_bits: int = 0
    _run_bits: int = 0
    _run: str = ""
    _run_seed: int = 0

    def __post_init__(self) -> None:
        self._micro_batch = micro_batches.wanted(self.config.local.micro_batch, self.among)

    def answer(self, kind: Kind, payload: bytes | Plan) -> bytes | Refused:
        """The client's answer to a message of the server's; what it will not do is a refusal with a code.

        `payload`: the message, or the plan that `read` has found in it.
        """
        try:
            if isinstance(payload, Plan):
                return self.carry_out(payload)
            if kind == "query":
                return self.enrol(messages.decode_job(payload))
            if kind == "secagg":
                return self.sum_securely(payload)
            return self.carry_out(self.read(payload))
        except (PlanRefused, RejectedUpdate) as e:
            return Refused(e.code, str(e)[:MAX_REASON])

    def read(self, payload: bytes, shared: Tensors = NOTHING) -> Plan:
        """The plan in a message, with the tensors `shared` in the place of equal ones. Raises RejectedUpdate."""
        read = partial(messages.decode_plan, max_bytes=MAX_PLAN_BYTES, check=self.check_download)
        return self.memory.cache.plan(payload, read, shared)

    @property
    def rows_digest(self) -> str:
        """SHA-256 over the files of the rows in use; "" where nobody looks at them."""
        return self.rows.digest if self.rows is not None else ""

    def renew_rows(self) -> None:
        """Take up the rows anew if their files hold something else by now.

        Raises PlanRefused, `site_unfit`, while they cannot be read.
        """
        if self.rows is not None and (found := self.rows.renewed(self.base)) is not None:
            self.train_rows, self.test_rows = found

    def check_download(self, plan: Plan, entries: Mapping[str, Entry]) -> None:
        """Raise RejectedUpdate where a plan's table has other tensors than the recipe sends, or in another codec."""
        check_download(entries, self.recipe.downloads(self.handle.layout, plan), self.config.codec.plans)

    def carry_out(self, plan: Plan) -> bytes:
        """Train or evaluate as the plan says; returns the encoded update. Raises PlanRefused."""
        turn = self.install(plan)
        return self.encode(self.evaluate(turn) if plan.evaluate else self.train(turn), turn)

    def encode(self, update: Update, turn: Turn) -> bytes:
        """The bytes of the turn's update, in the codec of `[codec] up`, or masked. Raises PlanRefused.

        A share of the sum's noise is of one slot, and so is what it costs: charged before there is anything to send.
        """
        integers = integers_of(self.recipe)
        if integers is not None and turn.plan.evaluate and self.privacy.sums_measures:
            update = integers.of_measures(update, turn.plan, self.handle.layout)
        if integers is not None and self.config.privacy.shared and not turn.plan.evaluate:
            self.privacy.charge(turn)
            update = integers.share(update, turn, self.handle.layout)
        if self.config.privacy.secagg == "on":
            from fedft.client import secure_sums

            update = secure_sums.of(self.secure).masked(update, turn, self.handle.layout, self.rows_digest)
        return messages.encode_update(update, self.config.codec.up, turn.seed)

    def sum_securely(self, message: bytes) -> bytes:
        """The answer to a server's message of a secure sum. Raises PlanRefused."""
        from fedft.client import secure_sums

        return secure_sums.of(self.secure).answer(message, self.handle.layout)

    def enrol(self, job: Job) -> bytes:
        """Agree on the run; returns the encoded numbers of rows to train on and held out. Raises PlanRefused."""
        self.join(job)
        rows, held_out = self.privacy.rows_told(len(self.train_rows), len(self.test_rows))
        said = {"held_out": float(held_out), **{PROFILE + name: x for name, x in self.profile.items()}}
        return messages.encode_update(Update({}, rows, run=job.run, metrics=said), "fp32")

    def join(self, job: Job) -> None:
        """Take part in `job` if it is what the local config says. Raises PlanRefused."""
        self._run_bits = agreed_job.check(job, self.config, self.base)
        self.privacy.begin(self.name, job, self.config, len(self.train_rows))
        self._run, self._run_seed = job.run, job.seed
        self.kept.open(job.run)
        if self.secure is not None:
            self.secure.open(job.run)

    def train(self, turn: Turn) -> Update:
        """The update of the local steps from the installed state; what the client keeps of them is on the disk then.

        Raises PlanRefused: `nonfinite`, if no step had a finite loss; `privacy_budget`, before the first one.
        """
        self.privacy.charge(turn)
        told = own_profile.begun(next(iter(self.handle.base().values())).device) if self.tells else dict[str, float]
        try:
            trained = self.steps(turn)
            delta, metrics, kept = self.recipe.sent(trained, turn, self.handle)
        except FloatingPointError as e:
            raise PlanRefused("nonfinite", str(e)) from e
        if self.recipe.keeps:
            if self.kept.has_lost(counted := turn.plan.counted):
                metrics = {**metrics, MEMORY_LOST: 1.0}
            self.kept.keep(turn.plan.round, kept, counted)
        rows, _ = self.privacy.rows_told(len(self.train_rows), 0)
        return self._update(turn.plan, delta, rows, self.privacy.told({**metrics, **told()}))

    def steps(self, turn: Turn) -> Trained:
        """What the recipe's local steps give, from where the model stands. Raises FloatingPointError as they do."""
        with own_draws.from_seed(turn.seed), device_arithmetic.in_one_order(self.config.local):
            return self.recipe.local(self.handle, self._rows(turn), turn)

    def _rows(self, turn: Turn) -> ClientRows:
        """This client's rows as its local steps are given them, by the turn's own table `[local]`."""

        def begun(step: int) -> None:
            self.step = step

        collate = packing.collating(self.handle.objective, turn.local, self.config.data, self.base.pad_id)
        size = self._micro_batch
        if (most := rows_at_once(turn.plan.extra)) is not None and micro_batches.possible(self.handle.objective):
            size = (size or MicroBatch()).within(most)
        return ClientRows(self.train_rows, turn.local.batch_size, collate, begun, size)

    def evaluate(self, turn: Turn) -> Update:
        """The update without tensors whose metrics are those of the installed state on the client's held-out rows.

        ROUGE-L is among them when the plan asks for it. Raises PlanRefused, `privacy_budget`.
        """
        self.privacy.charge(turn)
        more = ["rouge_l"] if turn.plan.extra.get("rouge") else []
        found = evaluate.measure(self.handle, self.base, self.test_rows, self.config.eval, more)
        return self._update(turn.plan, {}, max(1, len(self.test_rows[: self.config.eval.max_rows])), found)

    def install(self, plan: Plan) -> Turn:
        """Bring the model to the plan's state; returns the client's turn on it.

        Raises PlanRefused: `wrong_run`, `policy_work`, `policy_memory`, `base_precision`, `no_rows`,
        `privacy_evaluation`, or `behind` with the version held if the plan builds on another.
        """
        if plan.run != self._run:
            raise PlanRefused("wrong_run", f"plan of run {plan.run}, enrolled in {self._run or 'none'}")
        for check in self.limits:
            check(plan)
        self._take_base(plan.bits)
        if plan.evaluate:
            self.privacy.check_measures()
            if not self.test_rows:
                raise PlanRefused("no_rows", "there are no held-out rows here")
        had = self.memory.held
        if plan.have is not None and (had is None or (had.version, self.memory.label) != (plan.have, plan.have_label)):
            raise PlanRefused("behind", f"{had.version} {self.memory.label}" if had else "none")
        self.ready()
        held = self.memory.cache.received(had, plan, self.recipe.receive)
        if not self.recipe.is_held(plan):
            digest = tensors.digest(held)
        else:
            self.memory.hold(plan.version, plan.label, held)
            self.at = replace(plan, tensors={})
            assert self.memory.held is not None
            held, digest = self.memory.held.tensors, self.memory.held.digest
        own = philox.derive(self._run_seed, "client", self.name, plan.round)
        kept = self.kept.after(plan.counted)
        turn = Turn(plan, held, digest, self.local_of(plan), self._run_seed, own, kept)
        turn = self.privacy.guarded(turn, self.train_rows)
        self.recipe.start(self.handle, turn)
        return turn

    def local_of(self, plan: Plan) -> Local:
        """The table `[local]` as the plan's turn has it."""
        return replace(self.config.local, batch_size=plan.batch) if plan.batch else self.config.local

    def _take_base(self, bits: int) -> None:
        """Go on with the base in so many bits, 0: as the client had it first. Raises PlanRefused, `base_precision`."""
        now = self.config.model.bits
        if (wanted := bits or self._own_bits or now) == now:
            return
        self._own_bits = self._own_bits or now
        if self.in_bits is None:
            why = f"a base of {bits} bits is asked for, here it has {now}"
            raise PlanRefused("base_precision", f"{why}: [model] base_bits and dtype of the site's file say it")
        self.base, self.handle = self.in_bits(wanted)
        self.config = replace(self.config, model=with_bits(self.config.model, wanted))

    def _update(self, plan: Plan, delta: dict[str, torch.Tensor], n: int, metrics: dict[str, float]) -> Update:
        if (bits := self.config.model.bits) != self._run_bits:
            metrics = {**metrics, BITS: float(bits)}
        return Update(delta, n, plan.round, plan.run, plan.attempt, metrics=metrics)
