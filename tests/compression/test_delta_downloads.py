"""Downloads as changes: whoever applies what was sent stands where the server stands, and nothing is lost for good."""

import json
import tracemalloc
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from deployed import Deployment, Direct
from torch import nn

from fedft import run_file, strategies, testing
from fedft.arithmetic import tensors
from fedft.arithmetic.tensors import Tensors
from fedft.compression import delta_downloads
from fedft.contract import Layout, State
from fedft.errors import ConfigError, RejectedUpdate, RunPaused
from fedft.models.handle import ModelHandle
from fedft.recipe import Recipe
from fedft.strategies import make
from fedft.update import Plan
from fedft.wire import messages as codec

LAYOUT = Layout(modules={"q": (96, 64), "v": (80, 64)}, parameters={"w": (60, 50), "b": (70,)})
CODECS = ("bf16", "int8", "int4", "topk:0.1 | int4", "ternary:0.5")
PRIVATE = (delta_downloads.LOST, delta_downloads.SENT)
NAMES = ("fedit", "fedavg", "ffa_lora", "fedopt", "rolora", "fedsa_lora")


def of(name: str, changes: str = "int4") -> Recipe:
    return delta_downloads.wrapped(make(name, {}), changes)


def changed(recipe: Recipe, state: State, size: float = 0.01) -> dict[str, torch.Tensor]:
    """A change of all that a client uploads in this round, drawn by version."""
    rng = torch.Generator().manual_seed(state.version)
    spec = recipe.spec(LAYOUT, Plan("", state.version, state.version, rank=8))
    return {n: size * torch.randn(s.shape, generator=rng) for n, s in spec.items()}


def history(recipe: Recipe, rounds: int) -> list[State]:
    """Version 0 and what the server makes of `rounds` changes."""
    states = [recipe.first_state(LAYOUT, 8, 3)]
    for _ in range(rounds):
        now = states[-1]
        states.append(recipe.next_state(now, changed(recipe, now)))
    return states


def sent(recipe: Recipe, state: State, have: int | None) -> Plan:
    """What comes over the wire to a client at version `have`."""
    plan = Plan(testing.RUN, state.version, state.version, have, rank=8)
    plan = replace(plan, tensors=recipe.downlink(state, have, plan))
    return codec.decode_plan(codec.encode_plan(plan, "fp32"), max_bytes=2**31)


def newcomer(recipe: Recipe, state: State) -> Tensors:
    return recipe.receive(None, sent(recipe, state, None))


def messages(plan: Plan) -> list[str]:
    return sorted(n for n in plan.tensors if n.startswith(PRIVATE))


def own(state: State) -> Tensors:
    """What the server keeps for itself."""
    return state.drawer(delta_downloads.OWNER)


@pytest.mark.parametrize("changes", CODECS)
@pytest.mark.parametrize("name", NAMES)
def test_veteran_latecomer_and_newcomer_hold_the_servers_bits(name: str, changes: str) -> None:
    recipe = of(name, changes)
    states = history(recipe, 12)
    veteran: Tensors = newcomer(recipe, states[0])
    for old, new in pairwise(states):
        plan = sent(recipe, new, old.version)
        assert messages(plan) == [f"{delta_downloads.SENT}{old.version}"] == list(plan.tensors)
        veteran = recipe.receive(State(old.version, veteran), plan)
    last, ways = states[-1], set[bool]()
    for old in states[:-1]:
        plan = sent(recipe, last, old.version)
        late = recipe.receive(State(old.version, newcomer(recipe, old)), plan)
        ways.add(bool(messages(plan)))
        assert tensors.digest(late) == tensors.digest(veteran), f"{last.version - old.version} rounds missed"
    window = len([n for n in own(last) if n.startswith(delta_downloads.SENT)])
    assert ways == ({True} if window == 12 else {True, False}), "within the window and beyond it"
    assert tensors.digest(newcomer(recipe, last)) == tensors.digest(veteran)
    assert all(torch.equal(last.tensors[n], t) for n, t in veteran.items())
    assert not any(n.startswith(PRIVATE) for n in veteran), "what is the server's stays there"


@pytest.mark.parametrize("changes", CODECS)
def test_what_was_sent_is_the_sum_of_all_changes_but_for_what_is_lost_last(changes: str) -> None:
    recipe, plain = of("fedit", changes), make("fedit", {})
    mine, exact = history(recipe, 10), history(plain, 10)
    for n, x in exact[-1].tensors.items():
        lost = own(mine[-1])[delta_downloads.LOST + n]
        assert torch.allclose(mine[-1].tensors[n] + lost, x, atol=1e-6)
        assert float(lost.norm()) > 0, "the codec left something out"
        assert float((x - exact[0].tensors[n]).norm()) > float(lost.norm()), "and sent most of it"


def test_what_a_codec_leaves_out_does_not_grow_with_the_rounds() -> None:
    lost = [
        tensors.norm({n: t for n, t in own(s).items() if n.startswith(delta_downloads.LOST)})
        for s in history(of("fedit", "int4"), 30)
    ]
    assert max(lost[20:]) < 1.5 * max(lost[1:6])


@pytest.mark.parametrize("name", NAMES)
def test_with_a_lossless_codec_the_run_is_the_plain_one(name: str) -> None:
    mine, plain = history(of(name, "topk:1 | fp32"), 6)[-1], history(make(name, {}), 6)[-1]
    for n, x in plain.tensors.items():
        assert torch.allclose(mine.tensors[n], x, rtol=1e-6, atol=1e-7), n


def test_a_factor_that_did_not_change_is_not_in_the_message() -> None:
    recipe = of("rolora", "int8")
    for old, new in pairwise(history(recipe, 4)):
        moved = {n for n, t in old.tensors.items() if t is not new.tensors[n]}
        (message,) = sent(recipe, new, old.version).tensors.values()
        said = codec.decode_plan(delta_downloads._unpacked(message), max_bytes=2**20)
        ending = ".lora_B" if old.version % 2 == 0 else ".lora_A"
        assert said.tensors.keys() == {m + ending for m in LAYOUT.modules}
        assert all(torch.equal(old.tensors[n], new.tensors[n]) for n in moved - said.tensors.keys())


@pytest.mark.parametrize("changes", CODECS)
def test_a_download_is_as_long_as_an_upload_in_its_codec(changes: str) -> None:
    from fedft.update import Update

    recipe = of("fedit", changes)
    for old, new in pairwise(history(recipe, 4)):
        down = len(codec.encode_plan(sent(recipe, new, old.version), "fp32"))
        up = len(codec.encode_update(Update(changed(recipe, old), 10, run=testing.RUN), changes))
        assert down < 1.06 * up + 256


def test_no_more_messages_are_kept_than_are_shorter_than_the_whole() -> None:
    for changes, window in (("bf16", 1), ("int8", 3), ("int4", 8), ("topk:1 | fp32", 0)):
        states = history(of("fedit", changes), 10)
        whole = sum(t.numel() for n, t in states[0].tensors.items())
        kept = [sum(t.numel() for n, t in own(s).items() if n.startswith(delta_downloads.SENT)) for s in states]
        assert max(kept) < whole
        assert sum(n.startswith(delta_downloads.SENT) for n in own(states[-1])) == window, changes


def test_a_client_of_a_state_that_was_taken_back_is_sent_the_whole() -> None:
    recipe = of("fedit", "int8")
    states = history(recipe, 4)
    assert not messages(sent(recipe, states[2], 4))


def test_a_change_that_no_message_can_bring_is_sent_whole() -> None:
    """Numbers beyond what decoders take, one that is none, another shape: what had not arrived comes with them."""
    recipe = of("fedit", "int8")
    before = history(recipe, 3)[-1]
    for x in (torch.full((8, 64), 3e4), torch.full((8, 64), float("nan"))):
        after = recipe.next_state(before, {"q.lora_A": x})
        assert not own(after)
        for n, t in make("fedit", {}).next_state(before, {"q.lora_A": x}).tensors.items():
            late = own(before)[delta_downloads.LOST + n]
            assert torch.equal(after.tensors[n], t + late) or bool(x.isnan().any()), n
    grown = replace(make("fedit", {}), server=lambda state, change: {n: t[:4] for n, t in state.tensors.items()})
    after = delta_downloads.wrapped(grown, "int8").next_state(before, {})
    assert after.tensors["q.lora_A"].shape == (4, 64)
    assert not own(after)


def test_the_mean_of_control_variates_is_kept_however_coarse_the_codec() -> None:
    recipe, plain = of("scaffold", "ternary:0.2"), make("scaffold", {})
    mine, exact = history(recipe, 15)[-1], history(plain, 15)[-1]
    for n in (n for n in exact.tensors if n.startswith("control.")):
        assert torch.allclose(mine.tensors[n] + own(mine)[delta_downloads.LOST + n], exact.tensors[n], atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_the_contract_is_kept(name: str) -> None:
    testing.strategy_contract(of(name))


# What a client refuses


def told(plan: Plan, name: str, packed: Any) -> Plan:
    return replace(plan, tensors={name: packed})


@pytest.mark.parametrize("changes", ["int8", "int4", "ternary:0.5"])
def test_damaged_bytes_are_refused_in_one_line_or_move_x_by_finite_numbers(changes: str) -> None:
    recipe = of("fedit", changes)
    old, new = history(recipe, 3)[-2:]
    held, plan = State(old.version, newcomer(recipe, old)), sent(recipe, new, old.version)
    ((name, packed),) = plan.tensors.items()
    data, rng, refused = delta_downloads._unpacked(packed), torch.Generator().manual_seed(5), []
    for _ in range(200):
        at = int(torch.randint(len(data), (1,), generator=rng))
        bad = bytearray(data)
        bad[at] ^= 1 << int(torch.randint(8, (1,), generator=rng))
        if at % 3 == 0:
            bad = bad[:at]
        try:
            got = recipe.receive(held, told(plan, name, delta_downloads._packed(bytes(bad))))
        except RejectedUpdate as e:
            refused.append(str(e))
        else:
            assert {n: t.shape for n, t in got.items()} == {n: t.shape for n, t in held.tensors.items()}
            assert all(bool(torch.isfinite(t).all()) for t in got.values())
    assert len(refused) > 50
    assert not any("\n" in said for said in refused)


def forged(have: int, version: int, changes: str = "int4", **values: torch.Tensor) -> torch.Tensor:
    plan = Plan(
        delta_downloads.NO_RUN, have, version, have, tensors={n.replace("__", "."): t for n, t in values.items()}
    )
    return delta_downloads._packed(codec.encode_plan(plan, changes))


@pytest.mark.parametrize(
    ("held", "name", "packed"),
    [
        (True, "delta.sent.2", forged(2, 3, q__lora_A=torch.zeros(8, 64)).float()),
        (True, "delta.sent.2", torch.zeros(40, dtype=torch.int32)),
        (True, "delta.sent.2", forged(1, 2, q__lora_A=torch.zeros(8, 64))),
        (True, "delta.sent.2", forged(2, 3, q__lora_A=torch.zeros(1, 64))),
        (True, "delta.sent.2", forged(2, 3, q__lora_A=torch.zeros(8, 64, dtype=torch.int32))),
        (True, "delta.sent.2", forged(2, 3, stranger=torch.zeros(8))),
        (True, "delta.sent.1", forged(1, 2, q__lora_A=torch.zeros(8, 64))),
        (True, "delta.sent.", forged(2, 3, q__lora_A=torch.zeros(8, 64))),
        (True, "delta.sent.q.lora_A", torch.zeros(8, 64)),
        (False, "delta.sent.2", forged(2, 3, q__lora_A=torch.zeros(8, 64))),
    ],
)
def test_a_plan_that_does_not_lead_on_is_refused(held: bool, name: str, packed: torch.Tensor) -> None:
    recipe = of("fedit")
    states = history(recipe, 3)
    state = State(2, newcomer(recipe, states[2])) if held else None
    with pytest.raises(RejectedUpdate) as e:
        recipe.receive(state, told(sent(recipe, states[3], 2), name, packed))
    assert "\n" not in str(e.value)


def test_whole_and_changes_do_not_come_together() -> None:
    recipe = of("fedit")
    states = history(recipe, 3)
    plan = sent(recipe, states[3], 2)
    mixed = replace(plan, tensors={**plan.tensors, "q.lora_A": torch.zeros(8, 64)})
    with pytest.raises(RejectedUpdate):
        recipe.receive(State(2, newcomer(recipe, states[2])), mixed)


def test_a_short_message_cannot_ask_for_memory_that_the_state_does_not_have() -> None:
    recipe = of("fedit", "ternary:0.5")
    states = history(recipe, 3)
    bomb = forged(2, 3, "ternary:0.5", q__lora_A=torch.zeros(2**12, 2**12))
    state, plan = State(2, newcomer(recipe, states[2])), sent(recipe, states[3], 2)
    tracemalloc.start()
    with pytest.raises(RejectedUpdate, match="do both sides have the same job"):
        recipe.receive(state, told(plan, "delta.sent.2", bomb))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * bomb.numel() * 4 < 2**20


# Run files


@pytest.mark.parametrize(
    ("down", "said"),
    [
        ("delta", "as in 'delta | int4'"),
        ("delta |", "does not say the codec"),
        ("deltas | int4", "did you mean 'delta'"),
        ("delta | fp32", "as long as the state"),
        ("delta | randk:0.5 | int8", "would pile up"),
        ("delta | fixed:8", "sums over clients"),
        ("delta | int5", "did you mean"),
        ("int4", "as in 'delta | int4'"),
    ],
)
def test_a_codec_that_changes_cannot_travel_in_is_refused(down: str, said: str) -> None:
    with pytest.raises(ConfigError, match=r"\[codec\] down: .*") as e:
        run_file.from_dict({"codec": {"down": down}})
    assert said in str(e.value)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("flora", {}, "add up what they receive"),
        ("fedex_lora", {}, "add up what they receive"),
        ("mezo", {}, "add up what they receive"),
        ("fedkseed", {}, "no model that changes a little"),
        ("ferret", {}, "no model that changes a little"),
        ("flasc", {}, "no model that changes a little"),
        ("hetlora", {}, "cuts factors"),
        ("flexlora", {}, "cuts factors"),
        ("lora_fair", {}, "cuts factors"),
        ("fedit", {"padding": "zero"}, "cuts factors"),
        ("fedsa_lora", {"global_b": "mean"}, "replaces what it has"),
    ],
)
def test_methods_whose_downloads_are_no_changes_of_one_model_say_why(name: str, options: dict, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as e:
        strategies.of(run_file.from_dict({"strategy": {"name": name, **options}, "codec": {"down": "delta | int8"}}))
    assert str(e.value).endswith("wanted 'fp32'")
    assert "\n" not in str(e.value)


def test_every_other_method_takes_changes() -> None:
    for name in (*NAMES, "fedprox", "scaffold", "zo_fedavg"):
        tables = {"strategy": {"name": name}, "codec": {"down": "delta | int4", "up": "int4"}}
        c = run_file.from_dict(tables)
        assert (c.codec.plans, c.codec.changes) == ("fp32", "int4")
        recipe = strategies.of(c)
        assert isinstance(recipe.server.__self__, delta_downloads.Deltas), name
        assert recipe.keeps, "uploads have a feedback of their own"


def test_a_model_with_the_names_that_are_reserved_is_refused() -> None:
    layout = Layout(parameters={"delta.sent.1": (2,)})
    with pytest.raises(ValueError, match="begin with 'delta\\.sent\\.'"):
        of("fedavg").first_state(layout, 0, 1)


# Whole runs


class Wide(nn.Module):
    """The toy with 64 hidden units, so that a message is shorter than the state."""

    def __init__(self) -> None:
        super().__init__()
        self.toy = testing.ToyModel()
        self.first, self.second = nn.Linear(8, 64), nn.Linear(64, 4, bias=False)
        with torch.no_grad():
            for name, p in self.named_parameters():
                p.copy_(testing.inputs(name, -(-p.numel() // 8)).reshape(-1)[: p.numel()].reshape(p.shape) / 4)

    forward = testing.ToyModel.forward


def wide(recipe: Recipe) -> testing.Toy:
    model = Wide()
    parameters = {n: tuple(p.shape) for n, p in sorted(model.named_parameters()) if not n.startswith("toy.")}
    layout = Layout(modules={"first": (64, 8), "second": (4, 64)}, parameters=parameters)
    handle = ModelHandle(model, layout, recipe.space)
    return testing.Toy(recipe, handle, handle.layout, (4, 4, 4))


@pytest.fixture
def through(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Deployments on the wide toy, whose downloads are changes in a codec."""

    def use(changes: str) -> None:
        monkeypatch.setattr(testing, "toy", wide)
        wrapped = SimpleNamespace(make=lambda name, options: delta_downloads.wrapped(make(name, options), changes))
        monkeypatch.setattr("deployed.strategies", wrapped)

    return use


@dataclass
class Away(Direct):
    """A link from which sites can be cut."""

    away: set[str] = field(default_factory=set)

    def nodes(self) -> Mapping[str, int]:
        return {name: i for i, name in enumerate(self.sites) if name not in self.away}


@pytest.mark.parametrize("name", ["fedavg", "fedopt", "rolora"])
def test_a_deployment_ends_with_the_bytes_of_the_simulation(tmp_path: Path, through: Any, name: str) -> None:
    through("int4")
    run = Deployment(tmp_path / "a", name)
    assert run.digest() == Deployment(tmp_path / "b", name).simulated()
    assert any(n.startswith(delta_downloads.SENT) for n in own(run.store.latest()[0]))


def test_bytes_down_are_those_of_the_messages(tmp_path: Path, through: Any) -> None:
    down = {}
    for changes in ("int8", "int4"):
        through(changes)
        run = Deployment(tmp_path / changes, "fedavg", rounds=6)
        run.simulated()
        lines = [json.loads(line) for line in (tmp_path / changes / "metrics.jsonl").read_text().splitlines()]
        assert [line["refused"] for line in lines] == [[]] * 7
        down[changes] = [line["bytes_down"] / 3 for line in lines]
    whole = 4 * sum(p.numel() for p in Wide().parameters()) - 4 * 78
    assert all(found[0] > whole for found in down.values()), "newcomers get all of it"
    for changes, most in (("int8", 0.6), ("int4", 0.4)):
        assert max(down[changes][1:-1]) < most * whole, changes


def test_a_site_that_missed_rounds_is_brought_up_by_what_it_lacks(tmp_path: Path, through: Any) -> None:
    through("int4")
    folder = tmp_path / "a"
    run = Deployment(folder, "fedavg", rounds=9, quorum=0.6)
    run.link = run.post.link = Away(run.sites)
    told = run.federation.observe

    def cut(kind: str, info: Mapping[str, Any]) -> None:
        if kind == "round":
            run.link.away = {2: {"carl"}, 5: set()}.get(info["round"], run.link.away)
        told(kind, info)

    run.federation.observe = cut
    digest = run.digest()
    took_part = [line["participants"] for line in run.metrics.lines[1:]]
    assert [len(p) for p in took_part] == [3, 3, 3, 2, 2, 3, 3, 3, 3]
    whole = 4 * sum(p.numel() for p in Wide().parameters()) - 4 * 78
    carl = run.metrics.lines[6]["bytes"]["carl"]["down"]
    anna = run.metrics.lines[5]["evaluation_bytes"]["down"]["anna"]
    assert 1.5 * anna < carl < whole
    assert digest == run.store.latest()[0].digest
    held = {
        s: tensors.digest(site.responder.runs.loaded(run.job.run).memory.held.tensors) for s, site in run.sites.items()
    }
    assert len(set(held.values())) == 1


def test_a_run_that_diverges_pauses_with_its_own_line(tmp_path: Path, through: Any) -> None:
    through("int8")
    run = Deployment(tmp_path, "fedavg")
    inner = run.federation.recipe.server.__self__
    far = replace(inner.inner, server=lambda state, change: {n: t + 9e4 for n, t in state.tensors.items()})
    run.federation.recipe = replace(run.federation.recipe, server=replace(inner, inner=far).server)
    with pytest.raises(RunPaused, match="would go beyond"):
        run.run()


def test_after_the_server_lost_a_generation_everybody_stands_where_it_stands(tmp_path: Path, through: Any) -> None:
    """Sites hold version 4 of a round that is done again, with another outcome."""
    through("int4")
    first = Deployment(tmp_path, "fedavg", rounds=4, quorum=0.6)
    first.link = first.post.link = Away(first.sites)
    first.link.away = {"carl"}
    lost = first.digest()
    (tmp_path / "state" / "gen-00000004.fedft").write_bytes(b"")
    again = Deployment(tmp_path, "fedavg", rounds=5, quorum=0.6, sites=first.sites)
    run_again = again.run()
    lines = {line["version"]: line for line in again.metrics.lines}
    assert lines[4]["participants"] == ["anna", "bert", "carl"]
    assert lines[4]["state_digest"] != lost
    held = {s: site.responder.runs.loaded(again.job.run).memory.held.tensors for s, site in again.sites.items()}
    assert all(torch.equal(run_again.tensors[n], t) for x in held.values() for n, t in x.items())
    assert own(run_again)
    assert run_again.tensors.keys() == held["anna"].keys(), "what is the server's stays there"
