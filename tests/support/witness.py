"""What must hold whatever fails, checked at every write of a simulated run and at its end.

The witness computes each committed state by hand: the recipe's own aggregation over updates of clients that nothing
ever happened to, from the state before, with weights written out here.
"""

import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from faults import SERVER
from faulty import FaultyClient, Hashed, hashed_loss, key_of

from fedft import testing
from fedft.arithmetic import tensors
from fedft.client.private_state import Kept
from fedft.client.received_state import Memory
from fedft.contract import Drawers, Layout, State
from fedft.recipe import Recipe
from fedft.security import sealed
from fedft.security.sealed import Kind
from fedft.update import Plan, Update
from fedft.wire import messages


class Witness:
    """Sees everything; raises AssertionError at the first thing that may not be."""

    def __init__(self, recipe: Recipe, layout: Layout, clients: Mapping[str, FaultyClient], up: str) -> None:
        """`clients`: fresh ones, kept out of the run."""
        self.recipe, self.layout, self.clients, self.up = recipe, layout, clients, up
        ranks = testing.toy(recipe).ranks
        self.ranks = {name: ranks[i % len(ranks)] for i, name in enumerate(sorted(clients))}
        self.exact = all(c.exact for c in clients.values())
        self.states: dict[int, State] = {}
        """By version, of the branch that stands."""
        self.kept: dict[int, dict[str, tuple[int, Drawers]]] = {0: {}}
        """By version: the round in which a client last counted, and what it kept then."""
        self.durable = -1
        """Version that was acknowledged and not torn since."""
        self.records: dict[int, Mapping[str, Any]] = {}
        self.journalled: dict[int, set[str]] = defaultdict(set)
        """Clients by round whose update was acknowledged as durable."""
        self.entries: dict[tuple[int, str], bytes] = {}
        self.answers: dict[tuple[str, Kind, int, int, bytes], bytes] = {}
        self.commits = 0
        self.forgiven: set[str] = set()
        """Sites whose own disk was full: to be barred for it is no wrong."""

    # -- the sites -------------------------------------------------------------------------------------------------

    def signed(self, site: str, data: bytes) -> None:
        """A message leaves a site."""
        said = sealed.open_sealed(data, key_of)
        assert said.about.site == site
        if said.kind is not Kind.ANSWER:
            return
        key = (site, said.kind, said.about.round, said.about.attempt, said.about.plan)
        digest = hashlib.sha256(said.payload).digest()
        assert self.answers.setdefault(key, digest) == digest, (
            f"{site} signed two answers for round {said.about.round}, attempt {said.about.attempt}"
        )

    # -- the server ------------------------------------------------------------------------------------------------

    def found(self, found: tuple[State, dict[str, Any]] | None) -> None:
        """The server starts with this state."""
        version = found[0].version if found else -1
        assert version >= self.durable, f"version {self.durable} was committed, the server starts at {version}"
        if found:
            state = found[0]
            committed = self.states[version].digest
            assert state.digest == committed, f"version {version} on the disk is not the one that was committed"
        for later in [v for v in self.states if v > version]:
            del self.states[later]
            self.records.pop(later - 1, None)
        for later in [r for r in self.journalled if r > version]:
            del self.journalled[later]  # of a branch that is no more
        self.durable = version

    def journals(self, round: int, client: str, payload: bytes) -> None:
        """An update is about to be made durable: it was signed by its site, and is the first of the round."""
        assert client not in self.journalled[round], f"round {round}: {client} is admitted a second time"
        digest = hashlib.sha256(payload).digest()
        mine = {d for (site, _, r, _, _), d in self.answers.items() if site == client and r <= round}
        assert digest in mine, f"round {round}: what is admitted of {client} was never signed by it"
        self.entries[round, client] = payload

    def journal_stands(self, round: int, client: str) -> None:
        """It is durable."""
        self.journalled[round].add(client)

    def saves(self, after: State, notes: Mapping[str, Any]) -> None:
        """A state is about to be committed."""
        version = after.version
        if version:
            self._check_round(after, notes)
        barred = set(notes["barred"]) - self.forgiven
        assert not barred, f"honest sites are quarantined: {barred}, for {notes['refusals']}"
        if version == 0:
            first = self.recipe.first_state(self.layout, max(self.ranks.values()), testing.SEED)
            assert first.digest == after.digest
        self.states[version] = after

    def _check_round(self, after: State, notes: Mapping[str, Any]) -> None:
        round, record = after.version - 1, notes["record"]
        taken: Sequence[str] = record["participants"]
        assert len(set(taken)) == len(taken), f"round {round}: somebody counts twice in {taken}"
        lost = self.journalled[round] - set(taken)
        assert not lost, f"round {round}: updates of {sorted(lost)} were admitted and are lost"
        state = self.states[round]
        late = record.get("staleness", dict.fromkeys(taken, 0))
        updates = [self._update(self.states[round - late[client]], client, round) for client in taken]
        if "staleness" in record:
            of = [int(0.5 + 256 * u.num_examples / math.sqrt(1 + late[u.client])) for u in updates]
            updates = [replace(u, num_examples=n) for u, n in zip(updates, of, strict=True)]
        if self.exact:
            asked = {c: round - late[c] for c in taken if self.recipe.keeps}
            news = {c: (r, self.clients[c].kept.after(r)) for c, r in asked.items()}
            self.kept[after.version] = {**self.kept[round], **news}
        weights = _weights({u.client: u.num_examples for u in updates})
        assert record["weights"] == weights, f"round {round}: weights {record['weights']}, wanted {weights}"
        change = self.recipe.aggregate(iter([replace(u, num_examples=weights[u.client]) for u in updates]))
        wanted = self.recipe.next_state(state, change)
        assert wanted.digest == after.digest, (
            f"round {round}: the state is not what the updates of {list(taken)} make of version {round}"
        )
        self.records[round] = record

    def save_stands(self, version: int) -> None:
        """The commit was acknowledged."""
        self.durable = version
        self.commits += 1
        for round in [r for r in self.journalled if r < version]:
            del self.journalled[round]
        self.answers = {k: d for k, d in self.answers.items() if k[2] >= version - 30}

    def torn(self, actor: str, path: Path) -> None:
        """A finished file is about to be damaged; what it held may be lost then."""
        if actor != SERVER:
            if path.name.startswith("kept"):
                raise PermissionError("nobody else has what a client keeps for itself")
            if path.name.startswith("answer") and not self.exact:
                raise PermissionError("a site that cannot compute its answer again would contradict itself")
            return
        if path.name.startswith("gen-") or path.name == "history":
            # of a history the last round goes, which the newest generation may need
            version = int((path if path.name != "history" else max(path.parent.glob("gen-*.fedft"))).name[4:12])
            others = [p for p in path.parent.glob("gen-*.fedft") if p != path]
            if not others or version == 0:
                raise PermissionError("a run of which no state is left has to end")
            self.durable = min(self.durable, version - 1)
            self.journalled.pop(version - 1, None)  # dropped, or about to be, when the generation was written
        if path.name.startswith("u-"):
            for client in list(self.journalled[int(path.parent.name)]):
                if path.name == _journal_name(client):
                    self.journalled[int(path.parent.name)].discard(client)
        if path.name == "metrics.jsonl":
            raise PermissionError("it is written line by line")

    def finished(self, path: Path, rounds: int) -> None:
        """The metrics' lines are the versions, once each and in order, and say what was committed."""
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        assert [line["version"] for line in lines] == list(range(rounds + 1)), [line["version"] for line in lines]
        for line in lines:
            state = self.states[line["version"]]
            assert line["state_digest"] == state.digest, f"line {line['version']} tells of another state"
            if line["version"]:
                assert line["participants"] == self.records[line["version"] - 1]["participants"]
            for client, said in line.get("evaluation", {}).items():
                if isinstance(self.recipe.local, Hashed):
                    held = self._held(state, client)
                    assert said["loss"] == hashed_loss(held, client), f"{client} measured another state"

    # -- by hand ---------------------------------------------------------------------------------------------------

    def _plan(self, state: State, client: str) -> Plan:
        local = self.clients[client].config.local
        rank = self.ranks[client] if self.layout.modules else 0
        plan = Plan(
            testing.RUN, state.version, state.version, rank=rank, steps=local.steps, learning_rate=local.learning_rate
        )
        return replace(plan, tensors=self.recipe.downlink(state, None, plan))

    def _held(self, state: State, client: str) -> str:
        return tensors.digest(self.recipe.receive(None, self._plan(state, client)))

    def _update(self, state: State, name: str, round: int) -> Update:
        """What an undisturbed client sends from this state, after the wire; in which round it counts."""
        plan, client = self._plan(state, name), self.clients[name]
        spec = self.recipe.spec(self.layout, plan)
        if not self.exact:
            sent = self.entries[round, name]
            return replace(messages.decode_update(sent, spec, self.up), client=name)
        client.memory, client.kept = Memory(), Kept()
        client.kept.open(testing.RUN)
        counted, kept = self.kept[state.version].get(name, (None, {}))
        if counted is not None:
            client.kept.keep(counted, kept, None)
        sent = client.carry_out(replace(plan, counted=counted if self.recipe.keeps else None))
        return replace(messages.decode_update(sent, spec, self.up), client=name)


def _weights(examples: Mapping[str, int]) -> dict[str, int]:
    """Nobody of three or more weighs more than all the others together."""
    if len(examples) < 3:
        return dict(examples)
    return {c: min(n, sum(examples.values()) - n) for c, n in examples.items()}


def _journal_name(client: str) -> str:
    return "u-" + hashlib.blake2b(client.encode(), digest_size=16).hexdigest()
