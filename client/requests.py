"""What a site does with sealed letters: refuses what is not the server's, answers each request once, tells how it goes.

    JOB               agree on the run, under the site's policy       ANSWER: rows to train on, rows held out
    TRAIN, EVALUATE   one at a time, in a worker's thread             ANSWER, or PROGRESS "ready" where it is long
    FETCH             the long answer                                 ANSWER
                      or PROGRESS with why it waits: it is sent again once STATUS says "unknown" (`held_letters`)
    STATUS            at once, whatever the worker is at              PROGRESS

An answer to TRAIN is on the site's disk before it is sent. The same request again gets the same bytes; an older one is
refused; a later attempt at the same work is answered from what is there. So a site that was killed never says two
things to one request, and trains once for a round if its disk lives.
"""

import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from queue import Empty, Queue

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from fedft.client.disk import Asked, SiteDisk, work_of
from fedft.client.held_letters import HeldLetters, Waits
from fedft.client.train import MAX_PLAN_BYTES, Client
from fedft.errors import FedftError, PlanRefused, Refusal, RejectedUpdate
from fedft.security import sealed
from fedft.security.sealed import About, Kind, Opened
from fedft.update import Job, Plan
from fedft.wire import messages
from fedft.wire.table import Entry, decoded_bytes

log = logging.getLogger(__name__)

INLINE_BYTES = 4 * 2**20  # longer answers wait until they are fetched
MAX_WAITING = 8  # requests in the queue; a server has one open at a time

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
    _queue: Queue[tuple[Opened, Reply]] = field(default_factory=lambda: Queue(MAX_WAITING))
    _doing: tuple[bytes, str, float] = (b"", "", 0.0)
    """Plan digest of the request that `work` is at, what it does about it, and since when in monotonic seconds."""
    _waiting: set[bytes] = field(default_factory=set)
    _client: Client | None = None
    _job: Job | None = None
    _steps: int = 0

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
            reply(self._seal(Kind.PROGRESS, opened.about, json.dumps(self._progress(opened.about)).encode()))
        elif opened.kind is Kind.FETCH:
            self._fetch(opened.about, reply)
        elif opened.kind in (Kind.JOB, Kind.TRAIN, Kind.EVALUATE):
            if opened.about.plan in self._waiting or self._queue.full():
                return  # a repetition: the one that waits is answered
            self._waiting.add(opened.about.plan)
            self._queue.put((opened, reply))

    def work(self, timeout_s: float | None = None) -> bool:
        """Deal with one waiting request and answer it; False if none came within `timeout_s` (None: waits for ever).

        Whatever goes wrong is answered with a refusal; nothing is raised.
        """
        try:
            opened, reply = self._queue.get(timeout=timeout_s) if timeout_s != 0 else self._queue.get_nowait()
        except Empty:
            return False
        about = opened.about
        self._doing = (about.plan, "working", time.monotonic())
        self._waiting.discard(about.plan)
        try:
            payload = self._deal_with(opened)
            if opened.kind is Kind.TRAIN and len(payload) > self.inline_bytes:
                said = json.dumps({"doing": "ready", "size": len(payload)}).encode()
                reply(self._seal(Kind.PROGRESS, about, said))
            else:
                reply(self._seal(Kind.ANSWER, about, payload))
        except Waits as e:
            reply(self._seal(Kind.PROGRESS, about, json.dumps({"doing": str(e)}).encode()))
        except Refusal as e:
            log.warning("round %d: refused what the server asks: %s: %s", about.round, e.code, e)
            reply(self._refusal(about, e.code, str(e)))
        except FedftError as e:
            log.error("round %d: %s", about.round, e)
            why = "this site failed; its log says why"  # the error's own text may quote a record
            reply(self._refusal(about, "site_error", why))
        except Exception as e:
            log.exception("round %d: this site failed", about.round)
            reply(self._refusal(about, "crashed", f"{type(e).__name__}"))
        self._doing = (b"", "", 0.0)
        client = self._client if opened.kind is not Kind.JOB else None
        if client is not None and client.at is not None and (held := client.memory.held) is not None:
            try:
                self.disk.keep_state(about.run, client.memory.label, held, client.at)
            except FedftError as e:
                log.warning("%s", e)  # the server sends it again if it is missed
        return True

    def _server_key(self, site: str) -> Ed25519PublicKey:
        if site != self.site:
            raise RejectedUpdate("unknown_client", f"it is addressed to {site!r}")
        return self.server

    # -- requests --------------------------------------------------------------------------------------------------

    def _deal_with(self, opened: Opened) -> bytes:
        if opened.about.plan != opened.digest:
            raise PlanRefused("malformed", "the letter's digest is of another payload")
        job = messages.decode_job(opened.payload) if opened.kind is Kind.JOB else None
        if self._answer_to(opened.about) is None:
            self.held.check(opened.about, job)
        if job is not None:
            return self._recorded("job", opened.about, self._enrol(job, opened.about), 0)
        plan = messages.decode_plan(opened.payload, max_bytes=MAX_PLAN_BYTES, check=partial(self._check, opened))
        client = self._enrolled(plan)
        if not plan.evaluate:
            return self._train(client, plan, opened.about)
        client.renew_rows()
        rows = len(client.test_rows[: client.config.eval.max_rows])
        return self._recorded("evaluate", opened.about, client.carry_out(plan), rows, client.rows_digest)

    def _check(self, opened: Opened, plan: Plan, entries: Mapping[str, Entry]) -> None:
        """Raise PlanRefused or RejectedUpdate for a plan that is not to be carried out, before its tensors are decoded.

        What is held counts where the plan's tensors are added to it, so that no history grows beyond the limit.
        """
        if (plan.run, plan.round, plan.attempt) != (opened.about.run, opened.about.round, opened.about.attempt):
            raise PlanRefused("malformed", "the letter is about another request than its plan")
        if plan.evaluate != (opened.kind is Kind.EVALUATE):
            raise PlanRefused("malformed", f"a plan that does not fit a letter of kind {opened.kind.name}")
        client, size = self._enrolled(plan), decoded_bytes(entries)
        if plan.have is not None and client.memory.held and not client.recipe.replaces_what_is_held:
            size += sum(t.nbytes for t in client.memory.held.tensors.values())
        self.check(plan, size)
        client.check_download(plan, entries)

    def _enrolled(self, plan: Plan) -> Client:
        if self._client is None or self._job is None or self._job.run != plan.run:
            enrolled = self._job.run if self._job else "none"
            raise PlanRefused("wrong_run", f"plan of run {plan.run}, enrolled in {enrolled}")
        return self._client

    def _enrol(self, job: Job, about: About) -> bytes:
        if job.run != about.run:
            raise PlanRefused("malformed", "the letter is about another run than its job")
        if self._client is None or job != self._job:
            self._doing = (about.plan, "loading", time.monotonic())
            self._client = self._job = None
            client = self.join(job)
            said = client.enrol(job)
            if (kept := self.disk.state(job.run)) is not None:
                label, held = kept
                client.memory.hold(held.version, label, held.tensors)
            self._client, self._job = client, job
            return said
        self._client.renew_rows()
        return self._client.enrol(job)

    def _train(self, client: Client, plan: Plan, about: About) -> bytes:
        kept = self.disk.answer()
        if kept is not None and kept[0].run == plan.run:
            asked, payload = kept
            if (asked.attempt, asked.plan) == (plan.attempt, about.plan.hex()):
                return payload
            if asked.attempt >= plan.attempt:
                raise PlanRefused("stale", f"attempt {plan.attempt}, answered attempt {asked.attempt} before")
        self._steps, client.step = plan.steps, 0
        client.renew_rows()
        turn = client.install(plan)
        work = work_of(turn, client.rows_digest)
        asked = Asked(plan.run, plan.round, plan.attempt, about.plan.hex(), work)
        if kept is not None and kept[0].work == asked.work:
            payload = messages.relabelled(kept[1], round=plan.round, attempt=plan.attempt)
            did = "no step, the work of another attempt"
        else:
            self._doing = (about.plan, "training", time.monotonic())
            update = client.train(turn)
            payload = client.encode(update, turn)
            did = f"{plan.steps} steps, loss {update.metrics.get('loss', math.nan):.4f}"
        self._recorded("train", about, payload, len(client.train_rows), client.rows_digest)
        self.disk.keep_answer(asked, payload)
        sent = f"{len(payload)} bytes, sha256 {hashlib.sha256(payload).hexdigest()[:12]}"
        log.info("round %d: %s, %d rows: %s to send", plan.round, did, len(client.train_rows), sent)
        return payload

    def _recorded(self, kind: str, about: About, answer: bytes, rows: int, data: str = "") -> bytes:
        """The answer, which stands in the site's record before it can leave."""
        self.disk.sent.add(kind, about.run, about.round, about.attempt, about.plan.hex(), answer, rows, data)
        return answer

    # -- at once ---------------------------------------------------------------------------------------------------

    def _progress(self, about: About) -> dict[str, object]:
        queued = about.plan in self._waiting  # before the rest: the worker moves it from here to there
        plan, doing, since = self._doing
        if plan == about.plan:
            said: dict[str, object] = {"doing": doing}
            if doing == "training" and self._client is not None:
                step, seconds = self._client.step, time.monotonic() - since
                said |= {"step": step, "steps": self._steps}
                if step > 1:
                    said["left_s"] = round(seconds / (step - 1) * (self._steps - step + 1), 1)
            return said
        if queued:
            return {"doing": "queued"}
        known = "ready" if self._answer_to(about) is not None else self.held.doing(about)
        return {"doing": known or ("receiving" if self.receiving() else "unknown")}

    def _fetch(self, about: About, reply: Reply) -> None:
        payload = self._answer_to(about)
        if payload is None:
            reply(self._seal(Kind.PROGRESS, about, json.dumps({"doing": "unknown"}).encode()))
        else:
            reply(self._seal(Kind.ANSWER, about, payload))

    def _answer_to(self, about: About) -> bytes | None:
        if (kept := self.disk.answer()) is None:
            return None
        asked, payload = kept
        mine = (asked.run, asked.round, asked.attempt, asked.plan)
        return payload if mine == (about.run, about.round, about.attempt, about.plan.hex()) else None

    def _refusal(self, about: About, code: str, reason: str) -> bytes:
        return self._seal(Kind.REFUSAL, about, json.dumps({"code": code, "reason": reason[:300]}).encode())

    def _seal(self, kind: Kind, about: About, payload: bytes) -> bytes:
        return sealed.seal(kind, about, payload, self.key)
