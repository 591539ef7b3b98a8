"""FedPipe's probe is asked of each client as its memory allows: never more than a site forecasts and refuses, and with
the scores that the whole batch would give.
"""

import random
from dataclasses import replace

import pytest
import torch

from fedft import strategies
from fedft.client.train import Client
from fedft.contract import Member, Roster, Work
from fedft.data.examples import Example
from fedft.models.handle import ModelHandle
from fedft.models.layout import layout_of
from fedft.strategies.fedpipe import PROBE, fedpipe
from fedft.strategies.parts import probes
from fedft.strategies.parts.sensitivity import to_mean_1
from fedft.training import objectives
from fedft.update import ROWS_AT_ONCE, Plan
from tests.forecast.test_work import config as config_of
from tests.forecast.test_work import of
from tests.strategies.test_fedpipe import costs
from tests.support.small_models import base_of, llama


def asked(memory: dict[str, float | None], ask, bits: tuple[int, ...] = ()) -> dict[str, Work]:
    """The probes of clients that have, and say, so much; None: they say nothing."""
    members = {c: Member(8, {} if m is None else {"memory": m}) for c, m in memory.items()}
    return probes.works(4, bits, {PROBE: 4}, Roster(members, 0, 7, tuple(sorted(members)), ask))


def planned(work: Work) -> Plan:
    return work.planned(Plan("", 0, 0, steps=2), 8)


@pytest.mark.parametrize("bits", [(), (8, 4)])
def test_nobody_is_asked_for_more_than_its_site_foresees_and_no_less_than_fits(bits):
    """Random limits, of the forecast that sites refuse by; the next larger piece would not fit."""
    forecaster = of("fedpipe", local={"batch_size": 16, "steps": 2}, eval={"batch_size": 1})
    least = forecaster.memory(fedpipe().takes(planned(asked({"a": 1.0}, forecaster.forecast, bits)["a"]))).peak
    most = forecaster.memory(Work()).peak
    assert most > least + 1e6
    rng = random.Random(5)
    limits = {str(n): rng.uniform(least, least + 1.2 * (most - least)) for n in range(40)}
    found = asked({**limits, "free": 1e15, "silent": None}, forecaster.forecast, bits)
    sizes = set()
    for client, limit in limits.items():
        work, rows = found[client], found[client].extra.get(ROWS_AT_ONCE)
        taken = fedpipe().takes(planned(work))
        assert forecaster.memory(taken).peak <= limit
        sizes.add((work.batch, work.bits, rows))
        if rows is not None and rows < 8:
            larger = replace(taken, extra={**taken.extra, ROWS_AT_ONCE: 2 * int(rows)})
            assert forecaster.memory(larger).peak > limit
    assert len(sizes) >= 3, "the limits must tell clients apart"
    assert (found["free"].batch, found["free"].extra.get(ROWS_AT_ONCE)) == (None, None)
    assert (found["silent"].batch, found["silent"].extra[ROWS_AT_ONCE]) == (None, 1)


def test_where_nothing_fits_one_record_is_asked_for_and_a_warning_says_so(caplog):
    forecaster = of("fedpipe", local={"batch_size": 16}, eval={"batch_size": 1})
    work = asked({"a": 5.0}, forecaster.forecast)["a"]
    assert work.batch == 1
    assert "a probe of one record takes" in caplog.text


def test_a_run_whose_batches_have_no_pieces_is_asked_for_whole_ones_or_for_one_record():
    """As with an objective that does not weigh pieces: the forecast of a piece is that of the whole."""
    whole, one = costs(Work()).memory, costs(Work(batch=1)).memory
    found = asked({"much": whole + 1e5, "little": one}, costs)
    assert (found["much"].batch, found["little"].batch) == (None, 1)
    assert not any(ROWS_AT_ONCE in w.extra for w in found.values())


def test_pieces_of_a_probe_give_the_scores_of_the_whole_batch():
    """Of rows of unlike length, to rounding; a plan says how large pieces are, and the client takes no larger ones."""
    config = config_of("fedpipe", local={"batch_size": 6, "steps": 4}, model={"dtype": "float32"})
    recipe, base = strategies.of(config), base_of(llama())
    handle = ModelHandle(
        base.model, layout_of(base, config.model.targets), recipe.space, objective=objectives.of(config)
    )
    g = torch.Generator().manual_seed(3)
    rows = [torch.randint(1, 20, (5 + 4 * k,), generator=g).tolist() for k in range(6)]
    client = Client("a", [Example(r, r, 0) for r in rows], [], base, handle, recipe, config)
    passes: list[int] = []
    base.model.register_forward_hook(lambda *_: passes.append(1))
    sent = {}
    for most in (None, 4, 1):
        passes.clear()
        extra = {PROBE: 4, **({} if most is None else {ROWS_AT_ONCE: most})}
        plan = Plan("", 0, 0, steps=4, learning_rate=1e-3, extra=extra)
        sent[most] = client.train(client.install(plan)).delta
        assert len(passes) == 4 * {None: 1, 4: 2, 1: 6}[most]
    assert len(sent[None]) == len(handle.layout.modules)
    for most in (4, 1):
        assert all(torch.allclose(sent[most][n], x, rtol=1e-3, atol=1e-6) for n, x in sent[None].items())


@pytest.mark.parametrize("factor", [1e-6, 3.0, 1e5])
def test_a_factor_of_all_scores_as_fewer_rows_give_leaves_what_is_sent(factor):
    scores = {m: torch.rand(4, generator=torch.Generator().manual_seed(k)) for k, m in enumerate("abc")}
    sent, scaled = to_mean_1(scores), to_mean_1({m: factor * x for m, x in scores.items()})
    for m in scores:
        assert torch.allclose(sent[m], scaled[m], rtol=1e-5)
    assert sum(float(x.sum()) for x in sent.values()) == pytest.approx(12.0, rel=1e-5)
