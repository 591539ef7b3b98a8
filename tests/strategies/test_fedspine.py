"""FedSpine: FlexLoRA where nothing is pruned, and what pruning may and may not do to the state and on the wire."""

import math
from dataclasses import replace

import pytest
import torch

from fedft import run_file, strategies
from fedft.arithmetic import tensors
from fedft.arithmetic.named_pairs import A_SUFFIX, B_SUFFIX
from fedft.contract import Layout, State
from fedft.errors import ConfigError, RejectedUpdate
from fedft.pruning.groups import Groups, Part, Structure
from fedft.pruning.kept import Kept
from fedft.strategies.fedspine import collected, fedspine
from fedft.strategies.flexlora import flexlora
from fedft.strategies.parts import pruned_clients
from fedft.strategies.parts.pruned_clients import KEPT, OF, OWNER
from fedft.testing import RUN, strategy_contract, toy
from fedft.update import Plan, Update

VARIANTS = [  # the default is in test_every_strategy
    {"variant": "reference", "weights": "norm", "ranks": [1, 2, 3]},
    {"variant": "fixed", "most": 0.3},
]
HIDDEN, CHANNELS, HEADS, WIDTH = 6, 5, 2, 3
GROUPS = Groups(
    (
        Structure("attention", HEADS, (Part("q", "rows", WIDTH), Part("o", "columns", WIDTH)), (), 2 * WIDTH * HIDDEN),
        Structure("feed_forward", CHANNELS, (Part("up", "rows", 1), Part("down", "columns", 1)), (), 2 * HIDDEN),
    )
)
LAYOUT = Layout(
    modules={"down": (HIDDEN, CHANNELS), "o": (HIDDEN, HEADS * WIDTH), "q": (HEADS * WIDTH, HIDDEN),
             "up": (CHANNELS, HIDDEN), "x": (4, HIDDEN)},
    head={"head": (3,)},
    groups=GROUPS,
)  # fmt: skip


def kept(bits: str) -> Kept:
    return Kept(GROUPS, torch.tensor([b == "1" for b in bits]))


def plan_of(words: torch.Tensor | None, rank: int = 2) -> Plan:
    return Plan(RUN, 1, 1, rank=rank, tensors={} if words is None else {KEPT: words})


def sent(seed: int, name: str, had: Kept, now: Kept | None = None, rank: int = 2, examples: int = 1) -> Update:
    """A client's update in coordinates of `had`, of which it says that `now` is left."""
    rng = torch.Generator().manual_seed(seed)
    spec = fedspine().spec(LAYOUT, plan_of(had.words(), rank))
    delta = {n: torch.randn(t.shape, generator=rng) for n, t in spec.items() if n != KEPT}
    said = torch.zeros(0, dtype=torch.uint16) if now is None else now.words()
    return Update({**delta, KEPT: said}, examples, client=name)


def full(u: Update, had: Kept, module: str) -> torch.Tensor:
    """The update's product of a module in full coordinates, float64, by indexing alone."""
    o, i = LAYOUT.modules[module]
    out = torch.zeros(o, i, dtype=torch.float64)
    small = u.delta[module + B_SUFFIX].double() @ u.delta[module + A_SUFFIX].double()
    part, _ = GROUPS.parts.get(module, (None, None))
    if part is None:
        return small
    places = had.places(module)
    if part.side == "rows":
        out[places] = small
    else:
        out[:, places] = small
    return out


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_it_keeps_the_contract(options):
    strategy_contract(fedspine(**options))


def test_with_nothing_to_prune_and_no_choice_it_is_flexlora_bit_for_bit():
    one, two = toy(fedspine(ratio=0.0, ranks=[])), toy(flexlora())
    a, b = one.state(), two.state()
    for _ in range(3):
        a = one.step(a, [one.update(a, k) for k in range(3)])
        b = two.step(b, [two.update(b, k) for k in range(3)])
        assert a.digest == b.digest
    assert not fedspine(ratio=0.0).keeps


def test_the_state_is_the_entrywise_mean_over_those_who_keep_an_entry():
    """At a rank where nothing is cut away, against dense sums by entry; three clients of unlike parts and ranks."""
    recipe = fedspine()
    first = recipe.first_state(LAYOUT, 12, 7)
    start = {n: torch.randn(x.shape, generator=torch.Generator().manual_seed(3)) for n, x in first.tensors.items()}
    had = {"a": kept("1111111"), "b": kept("1011010"), "c": kept("1010110")}
    now = {"a": kept("1011011"), "b": had["b"], "c": had["c"]}
    own = {OWNER: {**first.own[OWNER], **{OF + c: had[c].words() for c in "bc"}}}
    updates = [
        sent(1, "a", had["a"], now["a"], 2, 3), sent(2, "b", had["b"], None, 3, 1), sent(3, "c", had["c"], None, 1, 4),
    ]  # fmt: skip
    after = recipe.next_state(State(1, start, own), recipe.aggregate(iter(updates)))
    bare = 0
    for m, (o, i) in LAYOUT.modules.items():
        got = after.tensors[m + B_SUFFIX].double() @ after.tensors[m + A_SUFFIX].double()
        before = start[m + B_SUFFIX].double() @ start[m + A_SUFFIX].double()
        part, _ = GROUPS.parts.get(m, (None, None))
        for r in range(o):
            for c in range(i):
                place = None if part is None else r if part.side == "rows" else c
                holders = [u for u in updates if place is None or not now[u.client].lost(m)[place]]
                total = sum(u.num_examples for u in holders)
                wanted = sum(u.num_examples / total * full(u, had[u.client], m)[r, c] for u in holders)
                bare += not holders
                assert float(got[r, c]) == pytest.approx(float(wanted if holders else before[r, c]), abs=1e-4)
    assert bare, "some entries are kept by nobody"
    assert torch.equal(after.own[OWNER][OF + "a"], now["a"].words())
    assert torch.allclose(after.tensors["head"], sum(u.num_examples / 8 * u.delta["head"] for u in updates))


def test_what_comes_down_is_the_best_approximation_in_the_clients_coordinates():
    recipe = fedspine()
    first = recipe.first_state(LAYOUT, 4, 7)
    change = recipe.aggregate([sent(k, str(k), kept("1" * 7), rank=4) for k in range(3)])
    state = recipe.next_state(first, change)
    part = kept("1010011")
    down = recipe.downlink(state, None, plan_of(part.words(), 2))
    for m in LAYOUT.modules:
        whole = state.tensors[m + B_SUFFIX][:, :2] @ state.tensors[m + A_SUFFIX][:2]
        got = down[m + B_SUFFIX] @ down[m + A_SUFFIX]
        if m in GROUPS.parts:
            places = part.places(m)
            whole = whole[places] if GROUPS.parts[m][0].side == "rows" else whole[:, places]
        assert torch.equal(got, whole)
    assert recipe.downlink(state, state.version, plan_of(part.words(), 2)) == {}


def test_bytes_are_those_of_what_is_left():
    """Of each matrix r (kept rows + in) numbers, or r (out + kept columns); sixteen groups a word."""
    part, r = kept("1010011"), 3
    spec = fedspine().spec(LAYOUT, plan_of(part.words(), r))
    left = {"q": WIDTH, "o": WIDTH, "up": 3, "down": 3}
    for m, (o, i) in LAYOUT.modules.items():
        numbers = math.prod(spec[m + A_SUFFIX].shape) + math.prod(spec[m + B_SUFFIX].shape)
        side = GROUPS.parts[m][0].side if m in left else None
        assert numbers == r * ((left[m] if side == "rows" else o) + (left[m] if side == "columns" else i))
    assert spec[KEPT].shape == (1,)
    assert spec[KEPT].at_most
    bare = fedspine(ratio=0.0).spec(LAYOUT, plan_of(None, r))
    assert KEPT not in bare
    assert bare == flexlora().spec(LAYOUT, plan_of(None, r))


def test_only_the_pruned_side_of_a_matrix_shrinks():
    """With 30 % of its rows gone, a square matrix has 0.85 of its numbers."""
    groups = Groups((Structure("a", 10, (Part("q", "rows", 32), Part("o", "columns", 32)), (), 1),))
    layout = Layout(modules={"q": (320, 320), "o": (320, 320)}, groups=groups)
    part = Kept(groups, torch.arange(10) >= 3)
    numbers = [
        sum(math.prod(t.shape) for n, t in fedspine().spec(layout, plan_of(k, 8)).items() if n.startswith("q."))
        for k in (None, part.words())
    ]
    assert numbers[1] / numbers[0] == pytest.approx(0.85)


@pytest.mark.parametrize("options", [{}, {"variant": "fixed", "ratio": 0.4, "most": 0.2}], ids=str)
def test_ratios_grow_to_their_target_and_what_is_pruned_never_returns(options):
    t = toy(fedspine(**options))
    state, before, reached = t.state(), dict[str, torch.Tensor](), list[float]()
    for n in range(7):
        updates = [t.update(state, k, lr=0.02, steps=20) for k in range(3)]
        state = t.step(state, updates)
        words = pruned_clients.words_of(state.drawer(OWNER))
        assert not (words and n == 0), "the adapter is still warming up"
        for client, now in words.items():
            assert client not in before or not (now.numpy() & ~before[client].numpy()).any()
        assert before.keys() <= words.keys()
        before = words
        reached += pruned_clients.ratios(state.drawer(OWNER)).values()
    group = 1 / 6
    assert all(r <= options.get("ratio", 0.5) + group - 1e-9 for r in reached)
    if options.get("variant") == "fixed":
        assert all(r >= 0.4 for r in reached[-3:])
    assert max(reached) >= group


def test_a_group_that_was_pruned_may_not_be_said_to_be_there():
    recipe, had = fedspine(), kept("1010011")
    plan = plan_of(had.words())
    recipe.admit(sent(1, "a", had, kept("1010010")).delta, plan)
    recipe.admit(sent(1, "a", had).delta, plan)
    recipe.admit(sent(1, "a", kept("1" * 7), had).delta, plan_of(None))
    with pytest.raises(RejectedUpdate, match="never returns"):
        recipe.admit(sent(1, "a", had, kept("1110011")).delta, plan)


@pytest.mark.parametrize("groups", [7, 40])
def test_a_client_that_says_it_has_nothing_left_does_not_stop_the_run(groups):
    """Nor one whose bits are fewer than the groups, which the wire lets through."""
    recipe, more = fedspine(), groups - 7
    part = (Structure("more", more, (Part("y", "rows", 1),), (), 1),) if more else ()
    layout = replace(LAYOUT, groups=Groups((*GROUPS.structures, *part)))
    state = recipe.first_state(replace(layout, modules={**LAYOUT.modules, "y": (33, HIDDEN)}), 2, 7)
    state = replace(state, tensors={n: x for n, x in state.tensors.items() if not n.startswith("y.")})
    updates = [sent(1, "a", kept("1" * 7)), sent(2, "b", kept("1" * 7), kept("0" * 7))]
    for u in updates:
        recipe.admit(u.delta, plan_of(None))
    after = recipe.next_state(state, recipe.aggregate(updates))
    assert all(x.isfinite().all() for x in after.tensors.values())
    assert recipe.spec(LAYOUT, plan_of(after.own[OWNER][OF + "b"]))["q.lora_B"].shape == (0, 2)


def test_a_client_that_lost_what_it_kept_stands_where_it_stood():
    t = toy(fedspine(variant="fixed"))
    state = t.state()
    for _ in range(3):
        state = t.step(state, [t.update(state, k, steps=20) for k in range(3)])
    assert pruned_clients.ratios(state.drawer(OWNER))["1"] > 0
    plan = t.plan(state, 1)
    t.turn(plan, 1)
    remembers = t.handle.forward({"x": torch.eye(8)}).logits
    t.turn(replace(plan, counted=None), 1)
    assert torch.equal(t.handle.forward({"x": torch.eye(8)}).logits, remembers)


def test_clients_of_unlike_parts_take_turns_on_one_model_whose_base_is_untouched():
    t = toy(fedspine(variant="fixed", most=0.2))
    base = {n: p.clone() for n, p in t.handle.base().items()}
    state = t.state()
    for _ in range(4):
        state = t.step(state, [t.update(state, k, steps=20) for k in range(3)])
    words = [pruned_clients.words_of(state.drawer(OWNER))[str(k)].tolist() for k in range(3)]
    assert words[0] != words[1]
    said = [t.outputs(state, k) for k in (0, 1, 0)]
    assert torch.equal(said[0], said[2])
    assert not torch.equal(said[0], said[1])
    assert all(torch.equal(p, base[n]) for n, p in t.handle.base().items())


def test_what_is_cut_away_in_a_turn_gives_the_values_of_masks():
    """Three clients, four rounds in which they prune; afterwards the model is whole."""
    ways = [toy(fedspine(variant="fixed", mode=mode)) for mode in ("mask", "slice")]
    shapes = {n: p.shape for n, p in ways[1].handle.base().items()}
    states = [t.state() for t in ways]
    for _ in range(4):
        states = [t.step(s, [t.update(s, k, steps=20) for k in range(3)]) for t, s in zip(ways, states, strict=True)]
    masks, slices = states
    assert masks.own[OWNER].keys() == slices.own[OWNER].keys()
    assert all(torch.equal(x, slices.own[OWNER][n]) for n, x in masks.own[OWNER].items())
    assert max(pruned_clients.ratios(slices.own[OWNER]).values()) >= 0.5
    assert all(torch.allclose(x, slices.tensors[n], atol=1e-4) for n, x in masks.tensors.items())
    assert {n: p.shape for n, p in ways[1].handle.base().items()} == shapes
    assert torch.allclose(ways[0].outputs(masks), ways[1].outputs(slices), atol=1e-4)


def test_a_packed_base_is_not_cut():
    packed = run_file.from_dict({"model": {"base_bits": 4}, "strategy": {"name": "fedspine", "mode": "slice"}})
    with pytest.raises(ConfigError, match="base_bits = 4"):
        strategies.of(packed)
    with pytest.raises(ConfigError, match="keep_optimizer"):
        strategies.of(run_file.from_dict({"strategy": {"name": "fedspine"}, "local": {"keep_optimizer": True}}))
    assert strategies.of(run_file.from_dict({"strategy": {"name": "fedspine"}, "local": {"epochs": 1}}))


def test_groups_survive_the_drawer():
    drawer = pruned_clients.written(GROUPS)
    read = pruned_clients.groups_in(drawer)
    assert [(s.size, set(s.parts), s.weights) for s in read.structures] == [
        (s.size, set(s.parts), s.weights) for s in GROUPS.structures
    ]
    words = kept("1010011").words()
    assert pruned_clients.kept_of(read, words).bits.tolist() == kept("1010011").bits.tolist()
    assert pruned_clients.groups_in({}).size == 0


def test_a_model_whose_groups_are_not_known_is_refused():
    unknown = replace(LAYOUT, groups=None)
    with pytest.raises(ConfigError, match="pruning knows llama"):
        fedspine().first_state(unknown, 2, 7)
    fedspine(ratio=0.0).first_state(unknown, 2, 7)
    with pytest.raises(ValueError, match=r"at most 0\.\d+ is ever pruned"):
        fedspine(ratio=0.9).first_state(LAYOUT, 2, 7)
    bare = replace(LAYOUT, modules={m: s for m, s in LAYOUT.modules.items() if m in ("q", "o")})
    with pytest.raises(ConfigError, match="no adapter"):
        fedspine().first_state(bare, 2, 7)


def test_the_order_of_clients_does_not_matter():
    recipe = fedspine()
    first = recipe.first_state(LAYOUT, 12, 7)
    updates = [sent(k, "abc"[k], kept("1" * 7), kept(bits)) for k, bits in enumerate(("1011011", "1011010", "1010110"))]
    one, two = (recipe.next_state(first, recipe.aggregate(us)) for us in (updates, updates[::-1]))
    for m in LAYOUT.modules:
        x, y = (s.tensors[m + B_SUFFIX] @ s.tensors[m + A_SUFFIX] for s in (one, two))
        assert torch.allclose(x, y, atol=1e-5)
    assert tensors.digest(one.own[OWNER]) == tensors.digest(two.own[OWNER])


@pytest.mark.parametrize(
    "options",
    [{"ratio": 1.1}, {"ratio": -0.1}, {"most": 0.0}, {"discount": 1.1}, {"ranks": [0]}, {"exploration": -1.0}],
    ids=str,
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match="expected"):
        fedspine(**options)


def test_nobody_has_no_mean():
    with pytest.raises(ValueError, match="none"):
        collected([])
