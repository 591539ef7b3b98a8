"""What a client adapts fits what it has, is nearly as useful as the best there is, and never worse for having more."""

import itertools
import math
import random

import pytest
import torch

from fedft.contract import Forecast
from fedft.strategies.parts.allocation import Infeasible, Limits, Search

LADDER = (4, 8, 16, 32)
LINKS = Limits(flops=1e9, up=1e6, down=4e6)


def additive(rng, weights):
    """(scores, cost) of weights whose costs add up, some of them in layers; a fixed part of each is for its input."""
    names = [f"layers.{rng.randrange(3)}.w{k}" if rng.random() < 0.5 else f"w{k}" for k in range(weights)]
    scores = {m: rng.lognormvariate(0, 1) for m in names}
    size, kept = ({m: rng.choice(of) for m in names} for of in ((64, 128, 320, 864), (0, 500, 2000, 8000)))

    def cost(bits, batch, ranks):
        memory = 1e5 * bits / 16 + sum(24 * size[m] * r + kept[m] * batch for m, r in ranks.items())
        flops = batch * (1e6 + sum(6 * size[m] * r + 3e4 for m, r in ranks.items()))
        return Forecast(memory, flops, *[sum(4 * size[m] * r for m, r in ranks.items())] * 2)

    return scores, cost


def whole(rng, layers=2, kinds=("k", "q", "v")):
    """(scores, cost) of layers whose weights read one input, and whose gradients stop below the lowest adapted one."""
    names = [f"layers.{n}.{k}" for n in range(layers) for k in kinds]
    scores = {m: rng.lognormvariate(0, 1) for m in names}

    def cost(bits, batch, ranks):
        at = {int(m.split(".")[1]) for m in ranks}
        above = layers - min(at) if at else 0
        tokens, parameters = 64 * batch, sum(64 * r for r in ranks.values())
        memory = 1e5 * bits + 4 * tokens * (64 * len(at) + 512 * above + sum(ranks.values())) + 24 * parameters
        flops = tokens * (2e4 * layers + 2e4 * above + 6 * parameters)
        return Forecast(memory, flops, 4 * parameters, 4 * parameters)

    return scores, cost


def between(rng, none, full, limits=LINKS):
    """Limits with a random share of what all weights take beyond what none do, of memory and of time."""
    memory = none.memory + rng.random() * (full.memory - none.memory)
    seconds = limits.seconds_of(none) + rng.random() * (limits.seconds_of(full) - limits.seconds_of(none))
    return Limits(memory, seconds, limits.flops, limits.up, limits.down)


def best_additive(scores, cost, limits):
    """The largest utility within the limits of all (len(LADDER) + 1)^n choices, where costs add up."""
    none, sums = cost(16, 4, {}), [torch.zeros(1, dtype=torch.float64) for _ in range(3)]
    for m, s in scores.items():
        alone = [none, *(cost(16, 4, {m: r}) for r in LADDER)]
        columns = (
            [s * (1 - 2 ** (-r / 4)) for r in (0, *LADDER)],
            [c.memory - none.memory for c in alone],
            [limits.seconds_of(c) - limits.seconds_of(none) for c in alone],
        )
        sums = [
            (x[:, None] + torch.tensor(c, dtype=torch.float64)).flatten() for x, c in zip(sums, columns, strict=True)
        ]
    fits = (sums[1] <= limits.memory - none.memory) & (sums[2] <= limits.seconds - limits.seconds_of(none))
    return float(sums[0][fits].max())


def best_whole(search, limits):
    """The largest utility within the limits of all choices, each forecast whole."""
    names = sorted(search.worth)
    works = ({m: r for m, r in zip(names, of, strict=True) if r} for of in itertools.product((0, *LADDER), repeat=6))
    return max((search.utility(w) for w in works if w and limits.allow(search.cost(16, 4, w))), default=0.0)


def answer(search, limits):
    """The allocation, None where nothing fits."""
    try:
        return search.allocate(limits)
    except Infeasible:
        return None


def test_where_costs_add_up_it_is_nearly_as_useful_as_the_best_of_all_choices():
    """95 % of it in every one of 60 instances of up to 8 weights, and within the limits."""
    compared = 0
    for seed in range(60):
        rng = random.Random(seed)
        scores, cost = additive(rng, rng.randint(1, 8))
        limits = between(rng, cost(16, 4, {}), cost(16, 4, dict.fromkeys(scores, 32)))
        best, found = best_additive(scores, cost, limits), answer(Search(scores, cost, LADDER, (4,), (16,)), limits)
        assert (found is None) == (best == 0)
        if found is not None:
            assert limits.allow(cost(16, 4, found.ranks))
            assert 0.95 * best <= found.utility <= best * (1 + 1e-9)
            compared += 1
    assert compared > 50


def test_of_two_whole_layers_it_is_nearly_as_useful_as_the_best_of_all_choices():
    compared = 0
    for seed in range(4):
        rng = random.Random(seed)
        scores, cost = whole(rng)
        search = Search(scores, cost, LADDER, (4,), (16,))
        limits = between(rng, cost(16, 4, {}), cost(16, 4, dict.fromkeys(scores, 32)))
        found, best = answer(search, limits), best_whole(search, limits)
        assert (found is None) == (best == 0)
        if found is not None:
            assert 0.95 * best <= found.utility <= best * (1 + 1e-9)
            compared += 1
    assert compared >= 3


def worth(search, one):
    """How good an answer is: a precision and a batch that reach `least` before all, then what they are, then U."""
    if one is None:
        return (-1.0,)
    reached = one.utility >= search.least * search.utility(dict.fromkeys(search.worth, LADDER[-1]))
    return (1.0, one.bits, one.batch, one.utility) if reached else (0.0, one.utility)


@pytest.mark.parametrize("least", [0.0, 0.5])
@pytest.mark.parametrize("layers", [2, 9], ids=["small search", "large search"])
def test_more_memory_or_time_never_makes_it_worse_and_it_always_fits(least, layers):
    rng = random.Random(layers)
    scores, cost = whole(rng, layers, ("k", "q"))
    search = Search(scores, cost, LADDER, (4, 2, 1), (16, 8, 4), least)
    none, full = cost(4, 1, {}), cost(16, 4, dict.fromkeys(scores, 32))
    steps = [0.0, *sorted(rng.random() ** 2 for _ in range(9)), 1.0]
    memory = [none.memory + f * (full.memory - none.memory) for f in steps]
    seconds = [LINKS.seconds_of(none) + f * (LINKS.seconds_of(full) - LINKS.seconds_of(none)) for f in steps]
    found = {}
    for a, b in itertools.product(range(len(steps)), repeat=2):
        limits = Limits(memory[a], seconds[b], LINKS.flops, LINKS.up, LINKS.down)
        one = answer(search, limits)
        assert one is None or (one.ranks and limits.allow(cost(one.bits, one.batch, one.ranks)))
        found[a, b] = worth(search, one)
        assert a == 0 or found[a, b] >= found[a - 1, b]
        assert b == 0 or found[a, b] >= found[a, b - 1]
    assert len({w[:3] for w in found.values()}) >= 5, "the resources hardly mattered"
    assert found[len(steps) - 1, len(steps) - 1] == (1.0, 16, 4, search.utility(dict.fromkeys(scores, 32)))


def test_bits_fall_only_where_nothing_fits_on_more_of_them():
    rng = random.Random(3)
    scores, cost = whole(rng)
    search = Search(scores, cost, LADDER, (4, 2, 1), (16, 8, 4))
    fewest = {bits: min(cost(bits, 1, {m: 4}).memory for m in scores) for bits in search.bits}
    for bits, more in ((8, 16), (4, 8)):
        assert search.allocate(Limits(fewest[more] - 1)).bits == bits
        assert search.allocate(Limits(fewest[more])).bits == more
    with pytest.raises(Infeasible):
        search.allocate(Limits(fewest[4] - 1))


def test_what_fits_nowhere_is_one_line_with_the_smallest_work():
    scores, cost = whole(random.Random(3))
    with pytest.raises(Infeasible, match=r"^layers\.1\.k alone at rank 4, batch 1, bits 4 takes .* MB and") as e:
        Search(scores, cost, LADDER, (4, 1), (16, 4)).allocate(Limits(1.0, 60.0, 1e9))
    assert "\n" not in str(e.value)
    assert e.value.least.ranks == {"layers.1.k": 4}
    assert (e.value.least.bits, e.value.least.batch) == (4, 1)


def test_ties_go_by_name_and_the_order_of_the_scores_does_not_matter():
    _, cost = whole(random.Random(3))
    names = [f"layers.1.{k}" for k in "qkv"]
    limits = Limits(cost(16, 4, {names[0]: 4}).memory)
    for order in itertools.permutations(names):
        assert Search(dict.fromkeys(order, 1.0), cost, LADDER, (4,), (16,)).allocate(limits).ranks == {"layers.1.k": 4}


def test_a_client_with_everything_adapts_everything_and_a_weight_without_a_score_nothing():
    _, cost = whole(random.Random(3))
    found = Search({"layers.0.q": 1.0, "layers.1.q": 2.0, "layers.1.k": 0.0}, cost, LADDER, (4, 2), (16, 8)).allocate(
        Limits()
    )
    assert (found.bits, found.batch, found.ranks) == (16, 4, {"layers.0.q": 32, "layers.1.q": 32})
    assert found.utility == pytest.approx(3 * (1 - 2**-8))


def test_a_slow_link_and_a_slow_machine_take_their_time():
    limits = Limits(flops=2e9, up=1e6, down=2e6, slowness=1.5)
    assert limits.seconds_of(Forecast(0, 4e9, 3_000_000, 4_000_000)) == pytest.approx(1.5 * (2 + 3 + 2))
    assert Limits(flops=2e9).seconds_of(Forecast(0, 4e9, 3, 4)) == pytest.approx(2)
    assert math.isinf(Limits().seconds)
