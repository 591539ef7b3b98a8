"""What a site does with sealed letters: refuses what is not the server's, answers each request once, tells how it goes.

    JOB               agree on the run, under the site's policy       ANSWER: rows to train on, rows held out
    TRAIN, EVALUATE   one at a time, in a worker's thread             ANSWER, or PROGRESS "ready" where it is long
    SECAGG            likewise, at any hour: a step of a secure sum   ANSWER
    FETCH             the long answer                                 ANSWER
                      or PROGRESS with why it waits: it is sent again once STATUS says "unknown" (`held_letters`)
    STATUS            at once, whatever the worker is at              PROGRESS

Several runs of the server may go on at once: each has its own client, state and answer here, one request is carried out
at a time, and the others wait in the order in which they came.

An answer to TRAIN is on the site's disk before it is sent. The same request again gets the same bytes; an older one is
refused; a later attempt at the same work is answered from what is there. So a site that was killed never says two
things to one request, and trains once for a round if its disk lives.
"""

import json
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from queue import Empty, Queue

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from fedft.client.disk import Asked, SiteDisk, work_of
from fedft.client.held_letters import HeldLetters, Waits
from fedft.client.joined_runs import JoinedRuns
from fedft.client.train import MAX_PLAN_BYTES, Client
from fedft.contract import Turn
from fedft.errors import FedftError, PlanRefused, Refusal, RejectedUpdate
from fedft.security import sealed
from fedft.security.sealed import About, Kind, Opened
from fedft.update import RUNS_AT_ONCE, Job, Plan, Update
from fedft.wire import frame, messages
from fedft.wire.table import Entry, decoded_bytes

log = logging.getLogger(__name__)

INLINE_BYTES = 4 * 2**20  # longer answers wait until they are fetched
MAX_WAITING = 2 * RUNS_AT_ONCE  # requests in the queue; a run has one open at a time, and one that it gave up

Reply = Callable[[bytes], None]


@dataclass
class Responder:
    """A site's answers to the server: `take` accepts messages in any thread, `work` deals with them in one."""

    site: str
    """The site's name."""
    key: Ed25519PrivateKey
    """The site's own key, which its messages are signed with."""
    server: Ed25519PublicKey
    """The server's key; a message signed with any other is dropped."""
    disk: SiteDisk
    join: Callable[[Job], Client]
    """Makes the client of a job, or raises PlanRefused."""
    check: Callable[[Plan, int], None]
    """(plan without tensors, bytes of what it makes the site hold) raises PlanRefused where the policy forbids it."""
    held: HeldLetters = field(default_factory=HeldLetters)
    """Decides which requests wait, and knows those that do."""
    inline_bytes: int = INLINE_BYTES
    """Longest answer to TRAIN, in bytes, that is sent without being fetched."""
    receiving: Callable[[], bool] = lambda: False
    """Whether messages are on their way in: what a slow line brings is not lost."""
    requests: "Requests" = field(default_factory=Queue)
    """Requests that wait, in the order in which they came: this site's, and those of sites that share its worker."""
    device: Callable[[], AbstractContextManager[None]] = nullcontext
    """Inside, the site may use its device."""
    _doing: tuple[bytes, str, float] = (b"", "", 0.0)
    """Plan digest of the request at work, what is done about it, and since when in monotonic seconds."""
    _waiting: set[bytes] = field(default_factory=set)
    _steps: int = 0

    def __post_init__(self) -> None:
        self.runs = JoinedRuns(self.join, self.disk, self._loading)

    def take(self, data: bytes, reply: Reply) -> None:
        """Accept a message from the network; `reply` sends sealed bytes back, now or when `work` is done with it.

        STATUS and FETCH are answered at once; JOB, TRAIN and EVALUATE wait for `work`. Dropped in silence, or with a
        line in the log: what the server has not signed for this site, a request that waits already, and any request
        while MAX_WAITING wait.
        """
        try:
            opened = sealed.open_sealed(data, self._server_key)
        except RejectedUpdate as e:
            log.warning("a message that is not from our server, for us, was dropped: %s: %s", e.code, e)
            return
        if opened.kind is Kind.STATUS:
            reply(self._seal(Kind.PROGRESS, opened, json.dumps(self._progress(opened.about)).encode()))
        elif opened.kind is Kind.FETCH:
            self._fetch(opened, reply)
        elif opened.kind in (Kind.JOB, Kind.TRAIN, Kind.EVALUATE, Kind.SECAGG):
            if opened.about.plan in self._waiting or len(self._waiting) >= MAX_WAITING:
                return  # a repetition: the one that waits is answered
            self._waiting.add(opened.about.plan)
            self.requests.put((self, opened, reply))

    def work(self, timeout_s: float | None = None) -> bool:
        """Carry out one waiting request; False if none came within `timeout_s` (None: waits for ever)."""
        try:
            owner, opened, reply = (
                self.requests.get(timeout=timeout_s) if timeout_s != 0 else self.requests.get_nowait()
            )
        except Empty:
            return False
        owner.carry_out(opened, reply)
        return True

    def carry_out(self, opened: Opened, reply: Reply) -> None:
        """Deal with a request that waited, and answer it; one at a time, in one thread.

        Whatever goes wrong is answered with a refusal; nothing is raised.
        """
        about = opened.about
        of = {"run": about.run, "site": self.site, "round": about.round}  # other sites' lines may be in the same log
        self._doing = (about.plan, "queued", time.monotonic())
        self._waiting.discard(about.plan)
        try:
            with self.device():
                self._doing = (about.plan, "working", time.monotonic())
                payload = self._deal_with(opened)
            if opened.kind is Kind.TRAIN and len(payload) > self.inline_bytes:
                said = json.dumps({"doing": "ready", "size": len(payload)}).encode()
                reply(self._seal(Kind.PROGRESS, opened, said))
            else:
                reply(self._seal(Kind.ANSWER, opened, payload))
        except Waits as e:
            reply(self._seal(Kind.PROGRESS, opened, json.dumps({"doing": str(e)}).encode()))
        except Refusal as e:
            log.warning("%s: refused what the server asks: %s: %s", self.runs.round(about), e.code, e, extra=of)
            reply(self._refusal(opened, e.code, str(e)))
        except FedftError as e:
            log.error("%s: %s", self.runs.round(about), e, extra=of)
            reply(self._refusal(opened, "site_error", "this site failed; its log says why"))  # it may quote a record
        except Exception as e:
            log.exception("%s: this site failed", self.runs.round(about), extra=of)
            reply(self._refusal(opened, "crashed", f"{type(e).__name__}"))
        self._doing = (b"", "", 0.0)
        if opened.kind is not Kind.JOB:
            self.runs.keep(about.run)

    def _server_key(self, site: str) -> Ed25519PublicKey:
        if site != self.site:
            raise RejectedUpdate("unknown_client", f"it is addressed to {site!r}")
        return self.server

    def _deal_with(self, opened: Opened) -> bytes:
        if opened.about.plan != opened.digest:
            raise PlanRefused("malformed", "the letter's digest is of another payload")
        if opened.kind is Kind.SECAGG:
            return self._sum_securely(opened)
        job = messages.decode_job(opened.payload) if opened.kind is Kind.JOB else None
        if self._answer_to(opened.about) is None:
            self.held.check(opened.about, job)
        if job is not None:
            return self._recorded("job", opened, self._enrol(job, opened.about), 0)
        plan = messages.decode_plan(opened.payload, max_bytes=MAX_PLAN_BYTES, check=partial(self._check, opened))
        client = self.runs.of(plan.run)
        if not plan.evaluate:
            return self._train(client, plan, opened)
        client.renew_rows()
        rows = len(client.test_rows[: client.config.eval.max_rows])
        return self._recorded("evaluate", opened, client.carry_out(plan), rows, client.rows_digest)

    def _sum_securely(self, opened: Opened) -> bytes:
        return self._noted("secagg", opened.about, self.runs.of(opened.about.run).sum_securely(opened.payload), 0)

    def _check(self, opened: Opened, plan: Plan, entries: Mapping[str, Entry]) -> None:
        """Raise PlanRefused or RejectedUpdate for a plan that is not to be carried out, before its tensors are decoded.

        What is held counts where the plan's tensors are added to it, so that no history grows beyond the limit.
        """
        if (plan.run, plan.round, plan.attempt) != (opened.about.run, opened.about.round, opened.about.attempt):
            raise PlanRefused("malformed", "the letter is about another request than its plan")
        if plan.evaluate != (opened.kind is Kind.EVALUATE):
            raise PlanRefused("malformed", f"a plan that does not fit a letter of kind {opened.kind.name}")
        client, size = self.runs.of(plan.run), decoded_bytes(entries)
        if plan.have is not None and client.memory.held and not client.recipe.replaces_what_is_held:
            size += sum(t.nbytes for t in client.memory.held.tensors.values())
        self.check(plan, size)
        client.check_download(plan, entries)

    def _enrol(self, job: Job, about: About) -> bytes:
        if job.run != about.run:
            raise PlanRefused("malformed", "the letter is about another run than its job")
        client = self.runs.take(job)
        client.renew_rows()
        return client.enrol(job)

    def _loading(self) -> None:
        self._doing = (self._doing[0], "loading", time.monotonic())

    def _train(self, client: Client, plan: Plan, opened: Opened) -> bytes:
        kept, about = self.disk.answer(plan.run), opened.about
        answered = kept[0].attempt if kept is not None else -1
        if kept is not None and (answered, kept[0].plan) == (plan.attempt, about.plan.hex()):
            return kept[1]
        stale = PlanRefused("stale", f"attempt {plan.attempt}, answered attempt {answered} before")
        if answered > plan.attempt:
            raise stale
        self._steps, client.step = plan.steps, 0
        client.renew_rows()
        turn = client.install(plan)
        work = work_of(turn, client.rows_digest)
        asked = Asked(plan.run, plan.round, plan.attempt, about.plan.hex(), work)
        if kept is not None and kept[0].work == asked.work:
            payload = messages.relabelled(kept[1], round=plan.round, attempt=plan.attempt)
            did = "no step, the work of another attempt"
        elif answered == plan.attempt:  # the same in other words is asked where one side was updated meanwhile
            raise stale
        else:
            self._doing = (about.plan, "training", time.monotonic())
            update, did = self._trained(client, turn)
            payload = client.encode(update, turn)
        payload = self._recorded("train", opened, payload, len(client.train_rows), client.rows_digest)
        self.disk.keep_answer(asked, payload)
        if client.secure is not None:
            client.secure.sent(plan)
        sent = f"{len(payload)} bytes, sha256 {self.disk.digest_of(payload).hex()[:12]}"
        said = "%s: %s, %d rows: %s to send"
        of = {"run": about.run, "site": self.site, "round": about.round}
        log.info(said, self.runs.round(about), did, len(client.train_rows), sent, extra=of)
        return payload

    def _trained(self, client: Client, turn: Turn) -> tuple[Update, str]:
        """(the update of a turn, before masks; what was done for it): that of another slot, where there is one."""
        if (secure := client.secure) is None:
            update = client.train(turn)
        else:
            work = work_of(turn, client.rows_digest, any_slot=True)
            if (kept := secure.unmasked(work, turn.plan, client.handle.layout)) is not None:
                return kept, "no step, the work of another slot"
            update = client.train(turn)
            secure.keep_unmasked(work, update)
        said = f", loss {update.metrics['loss']:.4f}" if "loss" in update.metrics else ""
        return update, f"{turn.plan.steps} steps{said}"

    def _recorded(self, kind: str, opened: Opened, answer: bytes, rows: int, data: str = "") -> bytes:
        """The answer in the version of the question, which stands in the site's record before it can leave."""
        answer = messages.in_version(answer, frame.version_of(opened.payload))
        return self._noted(kind, opened.about, answer, rows, data)

    def _noted(self, kind: str, about: About, answer: bytes, rows: int, data: str = "") -> bytes:
        """The answer, as it leaves, once it stands in the site's record."""
        sha256 = self.disk.digest_of(answer).hex()
        self.disk.sent.add(kind, about.run, about.round, about.attempt, about.plan.hex(), answer, rows, data, sha256)
        return answer

    def _progress(self, about: About) -> dict[str, object]:
        queued = about.plan in self._waiting  # before the rest: the worker moves it from here to there
        plan, doing, since = self._doing
        if plan == about.plan:
            said: dict[str, object] = {"doing": doing}
            if doing == "training" and (client := self.runs.loaded(about.run)) is not None:
                step, seconds = client.step, time.monotonic() - since
                said |= {"step": step, "steps": self._steps}
                if step > 1 and not client.config.privacy.at_clients:  # how long a step takes tells of its rows
                    said["left_s"] = round(seconds / (step - 1) * (self._steps - step + 1), 1)
            return said
        if queued:
            return {"doing": "queued"}
        known = "ready" if self._answer_to(about) is not None else self.held.doing(about)
        return {"doing": known or ("receiving" if self.receiving() else "unknown")}

    def _fetch(self, opened: Opened, reply: Reply) -> None:
        payload = self._answer_to(opened.about)
        if payload is None:
            reply(self._seal(Kind.PROGRESS, opened, json.dumps({"doing": "unknown"}).encode()))
        else:
            reply(self._seal(Kind.ANSWER, opened, payload, self.disk.digest_of(payload)))

    def _answer_to(self, about: About) -> bytes | None:
        if (kept := self.disk.answer(about.run)) is None:
            return None
        asked, payload = kept
        mine = (asked.round, asked.attempt, asked.plan)
        return payload if mine == (about.round, about.attempt, about.plan.hex()) else None

    def _refusal(self, opened: Opened, code: str, reason: str) -> bytes:
        return self._seal(Kind.REFUSAL, opened, json.dumps({"code": code, "reason": reason[:300]}).encode())

    def _seal(self, kind: Kind, opened: Opened, payload: bytes, sha256: bytes | None = None) -> bytes:
        """An answer to what was opened, sealed in the version of its seal; `sha256` is its own, where it is known."""
        return sealed.seal(kind, opened.about, payload, self.key, opened.version, sha256)


Requests = Queue[tuple[Responder, Opened, Reply]]
"""Requests that wait for a worker: whose they are, the request, and what sends the answer."""
