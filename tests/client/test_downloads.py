"""What a server sends is held against the job and the policy before a tensor of it is decoded."""

import hashlib
import json
from dataclasses import replace
from functools import partial

import pytest
import torch
from deployed import OPTIONS, SERVER_KEY, Deployment

from fedft import registry, run_file, strategies, testing
from fedft.client import allowed_jobs
from fedft.client.site_settings import Policy
from fedft.compression import delta_downloads
from fedft.contract import State
from fedft.errors import RejectedUpdate
from fedft.security import sealed
from fedft.security.sealed import About, Kind
from fedft.update import Plan, TensorSpec, Update
from fedft.wire import messages
from fedft.wire.table import check_download, describe

BUILT_IN = sorted(set(registry.strategies.built_in) - {"alone", "central"})


def letter(run, payload, kind=Kind.TRAIN):
    return sealed.seal(kind, About(run, 0, 0, "anna", hashlib.sha256(payload).digest()), payload, SERVER_KEY)


def joined(folder, name="fedit", **limits):
    """(a site that has joined, its run) under a default policy with other limits."""
    d = Deployment(folder, name)
    site = d.sites["anna"].responder
    site.check = partial(allowed_jobs.check_plan, policy=Policy(**limits))
    site.take(letter(d.job.run, messages.encode_job(d.job), Kind.JOB), [].append)
    assert site.work(0)
    return site, d


def answer(site, data):
    """ "answer", or the code of the refusal."""
    said = []
    site.take(data, said.append)
    assert site.work(0)
    opened = sealed.open_sealed(said[0], lambda _: site.key.public_key())
    return json.loads(opened.payload)["code"] if opened.kind is Kind.REFUSAL else opened.kind.name.lower()


@pytest.fixture
def undecoded(monkeypatch):
    """Whoever decodes a tensor fails the test."""

    def decode(entries, body):
        raise AssertionError("a tensor was decoded")

    monkeypatch.setattr(messages, "read_body", decode)


def of_round_1(name):
    """(a plan of the second round of a toy run, what the strategy says may come down with it)."""
    recipe = strategies.make(name, OPTIONS.get(name, {}))
    t = testing.toy(recipe)
    state = t.state()
    state = t.step(state, [t.update(state, k) for k in range(len(t.ranks))])
    plan = t.plan(state, 0)
    return plan, recipe.downloads(t.layout, plan)


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_strategy_says_what_may_come_down(name):
    plan, wanted = of_round_1(name)
    assert plan.tensors
    check_download(describe(plan.tensors, "fp32"), wanted, "fp32")
    for stranger in ("stranger", *(n + "x" for n in plan.tensors)):
        with pytest.raises(RejectedUpdate) as e:
            check_download(describe({**plan.tensors, stranger: torch.zeros(1)}, "fp32"), wanted, "fp32")
        assert e.value.code == "spec_mismatch"


@pytest.mark.parametrize("name", BUILT_IN)
def test_no_shared_float_comes_down_larger_than_the_model_lets_it_be(name):
    (plan, wanted), found = of_round_1(name), 0
    for n, x in plan.tensors.items():
        large = {n: torch.zeros([max(s, 1) * 1000 for s in x.shape], dtype=x.dtype)}
        if wanted(n).shape[0] < 2**31:  # a history of however many clients is bounded by the policy alone
            found += 1
            with pytest.raises(RejectedUpdate):
                check_download(describe(large, "fp32"), wanted, "fp32")
    assert found or name == "mezo"


@pytest.mark.usefixtures("undecoded")
def test_a_plan_is_refused_before_a_tensor_is_decoded(tmp_path):
    site, d = joined(tmp_path, max_download_mib=1)
    good = Plan(d.job.run, 0, 0, rank=2, steps=1, learning_rate=0.01)
    A = torch.zeros(2, 8)
    cases = {
        "int4": (replace(good, tensors={"first.lora_A": A}), "spec_mismatch"),
        "topk:1|fp32": (replace(good, tensors={"first.lora_A": A}), "spec_mismatch"),
        "fp32": (replace(good, tensors={"first.lora_A": torch.zeros(3, 8)}), "spec_mismatch"),
        "fp32 ": (replace(good, tensors={"stranger": A}), "spec_mismatch"),
        "fp32  ": (replace(good, tensors={"first.lora_A": A.int()}), "spec_mismatch"),
        "fp32   ": (replace(good, tensors={"first.lora_A": torch.zeros(513, 512)}), "policy_download"),
        "int8": (replace(good, tensors={"first.lora_A": torch.zeros(513, 512)}), "policy_download"),
        "fp16": (replace(good, rank=65, tensors={"first.lora_A": A}), "policy_rank"),
        "bf16": (replace(good, run="f" * 16, tensors={"first.lora_A": A}), "malformed"),
        "fp32    ": (replace(good, evaluate=True, tensors={"first.lora_A": A}), "malformed"),
    }
    for codec, (plan, code) in cases.items():
        assert answer(site, letter(d.job.run, messages.encode_plan(plan, codec.strip()))) == code, (codec, plan)


def test_the_plan_that_the_server_means_is_carried_out(tmp_path):
    site, d = joined(tmp_path, max_download_mib=1)
    A, B = torch.zeros(2, 8), torch.zeros(6, 2)
    A2, B2 = torch.zeros(2, 6), torch.zeros(4, 2)
    whole = {"first.lora_A": A, "first.lora_B": B, "second.lora_A": A2, "second.lora_B": B2}
    plan = Plan(d.job.run, 0, 0, rank=2, steps=1, learning_rate=0.01, tensors=whole)
    assert answer(site, letter(d.job.run, messages.encode_plan(plan, "fp32"))) == "answer"


@pytest.mark.usefixtures("undecoded")
def test_a_site_that_is_in_no_run_decodes_nothing(tmp_path):
    d = Deployment(tmp_path)
    plan = Plan(d.job.run, 0, 0, rank=2, steps=1, tensors={"first.lora_A": torch.zeros(2, 8)})
    assert answer(d.sites["anna"].responder, letter(d.job.run, messages.encode_plan(plan, "fp32"))) == "wrong_run"


def test_a_history_grows_no_further_than_the_policy_allows(tmp_path):
    """Each plan is small and leads on from the last; together they are more than the site holds for a server."""
    site, d = joined(tmp_path, "mezo", max_download_mib=1)
    seeds = torch.zeros(12, 2, dtype=torch.int32)
    codes = []
    for version in range(1, 8):
        news = {f"{version - 1}.scalar": torch.zeros(12, 4096), f"{version - 1}.seed": seeds}
        had = site.runs.loaded(d.job.run).memory
        plan = Plan(d.job.run, 0, version, version - 1 if had.held else None, have_label=had.label, tensors=news)
        plan = replace(plan, evaluate=True)
        codes.append(answer(site, letter(d.job.run, messages.encode_plan(plan, "fp32"), Kind.EVALUATE)))
    assert codes == ["answer"] * 5 + ["policy_download"] * 2
    assert sum(t.nbytes for t in site.runs.loaded(d.job.run).memory.held.tensors.values()) <= 2**20


@pytest.mark.parametrize("name", ["7.scalar", "3.scalar", "05.scalar", "-5.scalar", "5.other", "scalar", "5"])
def test_a_history_s_versions_are_those_between_the_client_s_and_the_plan_s(name):
    recipe = strategies.make("mezo", {})
    t = testing.toy(recipe)
    wanted = recipe.downloads(t.layout, Plan(testing.RUN, 7, 7, have=4))
    assert wanted("4.scalar") is not None
    assert wanted("6.seed") == TensorSpec((2**31, 2), "int32", at_most=True)
    assert wanted(name) is None


def test_the_longest_message_that_is_taken_in_follows_the_policy():
    assert allowed_jobs.longest_message(Policy()) == messages.MAX_MESSAGE_BYTES
    small = allowed_jobs.longest_message(Policy(max_download_mib=1))
    assert 2**20 < small < 2**20 + 2**22


def test_changes_of_a_state_come_in_the_job_s_codec_alone():
    recipe = strategies.of(run_file.from_dict({"strategy": {"name": "fedit"}, "codec": {"down": "delta | int8"}}))
    t = testing.toy(recipe)
    held = State(0, recipe.receive(None, t.plan(t.state(), 0)))

    def plan(codec, **news):
        inner = messages.encode_plan(Plan(delta_downloads.NO_RUN, 0, 1, 0, tensors=news), codec)
        return replace(
            t.plan(t.state(), 0), version=1, have=0, tensors={"delta.sent.0": delta_downloads._packed(inner)}
        )

    news = {n: torch.ones_like(x) for n, x in held.tensors.items()}
    good = plan("int8", **news)
    check_download(describe(good.tensors, "fp32"), recipe.downloads(t.layout, good), "fp32")
    assert not torch.equal(recipe.receive(held, good)["first.lora_B"], held.tensors["first.lora_B"])
    with pytest.raises(RejectedUpdate, match=r"int4.*wanted .*int8"):
        recipe.receive(held, plan("int4", **news))
    with pytest.raises(RejectedUpdate, match=r"wanted int8\[2, 8\]"):
        recipe.receive(held, plan("int8", **{"first.lora_A": torch.zeros(2, 9)}))
    with pytest.raises(RejectedUpdate, match="no such tensor"):
        recipe.receive(held, plan("int8", stranger=torch.zeros(2, 9)))


@pytest.mark.usefixtures("undecoded")
@pytest.mark.parametrize("sent", [{"w": torch.zeros(3, 4)}, {"w": torch.zeros(2, 4), "x": torch.zeros(1)}, {}])
def test_no_tensor_of_an_update_is_decoded_where_one_does_not_fit(sent):
    data = messages.encode_update(Update(sent, 1), "int8")
    with pytest.raises(RejectedUpdate) as e:
        messages.decode_update(data, {"w": TensorSpec((2, 4))}, "int8")
    assert e.value.code == "spec_mismatch"
