"""The site's policy outranks the server: whatever a job or a plan says, it is allowed or refused with a code."""

import json
import re
import sys
from dataclasses import replace
from typing import get_type_hints

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as some

from fedft import config, registry, run_file
from fedft.client import allowed_jobs, site_settings
from fedft.client.site_settings import Policy
from fedft.data import examples, templates
from fedft.errors import DataError, PlanRefused
from fedft.server.job import job_of
from fedft.update import Job, Plan

DIGEST = "0123456789abcdef" * 4
ALLOWED = Policy(strategies=["flora", "fedkseed"], targets=["all-linear"])
SITE = site_settings.SiteConfig(
    site_settings.Site("north", "/state"),
    site_settings.SiteServer("127.0.0.1:9092", "/ca.pem", "/server.pub"),
    site_settings.SiteModel("/model", "cpu"),
    site_settings.SiteData("/train.jsonl"),
    policy=ALLOWED,
    local=site_settings.SiteLocal(threads=3),
)
LITTLE = {"strategy": {"name": "flora"}, "data": {"max_length": 96}}
RUN = run_file.from_dict(LITTLE | {"model": {"id": "theirs"}, "server": {"seed": 7}})


def job(base: object = DIGEST, **tables) -> Job:
    """The job of a run, keys of its tables changed: a value, or None to take one away."""
    good = job_of(RUN, DIGEST, b"")
    changed = {}
    for table, keys in tables.items():
        said = dict(good.table(table)) | keys if isinstance(keys, dict) else keys
        changed[table] = {k: v for k, v in said.items() if v is not None} if isinstance(keys, dict) else said
    return replace(good, base=base, tables={**good.tables, **changed})


def refused(code: str, said: Job, allowed: Policy = ALLOWED) -> str:
    for attempt in (allowed_jobs.check_job, lambda j, p: allowed_jobs.run_config(j, replace(SITE, policy=p))):
        with pytest.raises(PlanRefused) as e:
            attempt(said, allowed)
        assert e.value.code == code, str(e.value)
        assert str(e.value).isprintable()
        assert len(str(e.value)) <= 300
    return str(e.value)


def test_an_allowed_job_is_the_server_s_run_on_the_site_s_files():
    found = allowed_jobs.run_config(job(), SITE)
    ours = replace(RUN.data, train="/train.jsonl")
    assert found.data == ours
    assert found.model == replace(RUN.model, id="/model")
    assert found.local == replace(RUN.local, threads=3)
    assert (found.strategy, found.codec, found.eval) == (RUN.strategy, RUN.codec, RUN.eval)
    assert found.server.seed == 7


def test_the_site_s_record_format_outranks_the_server_s():
    mine = replace(SITE, data=site_settings.SiteData("/train.jsonl", test="/test.jsonl", prompt="{q}", label="y"))
    found = allowed_jobs.run_config(job(data={"prompt": "{secret}", "response": "{theirs}"}), mine).data
    assert (found.prompt, found.response, found.label, found.test) == ("{q}", "{theirs}", "y", "/test.jsonl")


def test_a_server_s_chat_template_runs_only_where_the_site_s_file_says_the_same():
    ours, theirs = "{% for m in messages %}{{ m.content }}{% endfor %}", "{{ messages }}"
    talk = job(data={"messages": "talk", "chat_template": theirs})

    def on(**form):
        return allowed_jobs.run_config(talk, replace(SITE, data=site_settings.SiteData("/train.jsonl", **form))).data

    assert (on(chat_template=theirs).messages, on(chat_template=theirs).chat_template) == ("talk", theirs)
    for form in ({}, {"messages": "mine"}, {"chat_template": ours}):
        with pytest.raises(PlanRefused, match="a program, which runs only where") as e:
            on(**form)
        assert e.value.code == "policy_options"
    plain = on(prompt="{q}", response="{a}")  # this site's records are no conversations
    assert (plain.messages, plain.chat_template, plain.prompt) == (None, None, "{q}")
    assert (on(tokens="ids").tokens, on(tokens="ids").messages) == ("ids", None)
    assert on(messages="mine", chat_template=theirs).messages == "mine"
    own = replace(SITE, data=site_settings.SiteData("/train.jsonl", messages="mine", chat_template=ours))
    assert allowed_jobs.run_config(job(data={"prompt": "{q}"}), own).data.chat_template == ours


def test_pairs_of_answers_keep_to_the_site_s_templates_too():
    theirs = "{% for m in messages %}{{ m.content }}{% endfor %}"
    pairs = {"local": {"objective": {"name": "dpo", "beta": 0.2}}}
    own = replace(SITE, data=site_settings.SiteData("/train.jsonl", chosen="{better}", rejected="{worse}"))
    found = allowed_jobs.run_config(job(**pairs, data={"prompt": "{q}", "chosen": "{theirs}"}), own).data
    assert (found.prompt, found.chosen, found.rejected) == ("{q}", "{better}", "{worse}")
    with pytest.raises(PlanRefused, match="chat_template: a program"):
        allowed_jobs.run_config(job(**pairs, data={"chat_template": theirs}), own)
    same = replace(SITE, data=site_settings.SiteData("/train.jsonl", chat_template=theirs))
    assert allowed_jobs.run_config(job(**pairs, data={"chat_template": theirs}), same).data.chat_template == theirs
    with pytest.raises(PlanRefused, match="chosen: 4099 characters"):
        allowed_jobs.run_config(job(**pairs, data={"chosen": "x" * 4096 + "{a}"}), own)


def test_a_job_that_says_little_is_a_run_file_that_says_little():
    least = Job("0" * 16, 0, DIGEST, LITTLE)
    assert allowed_jobs.run_config(least, SITE).local == config.Local(threads=3)
    refused("policy_tokens", replace(least, tables={"strategy": {"name": "flora"}}))  # server and site would cut apart
    refused("policy_tokens", job(data={"max_length": "auto"}))


@pytest.mark.parametrize(
    "name", ["fedit", "Flora", "flora ", "os:system", "fedft.strategies.flora:flora", None, [], {}, 1]
)
def test_only_strategies_that_are_listed_by_exactly_this_name(name):
    refused("policy_strategy", job(strategy={"name": name}))
    refused("policy_strategy", job(), Policy())


def test_no_name_that_is_not_listed_is_imported(tmp_path, monkeypatch):
    (tmp_path / "planted_strategy.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    name = "planted_strategy:make"
    refused("policy_strategy", job(strategy={"name": name}))
    # a table inside the strategy's own is no other strategy, nor any other table's
    for planted in ({"flora": {"name": name}}, {name: {"name": name}}, {"options": {"name": name}}):
        refused("policy_options", job(strategy=planted))
    wrapped = job(strategy={"name": "fedprox", "on": {"name": "fedprox", "on": name}})
    refused("policy_strategy", wrapped, replace(ALLOWED, strategies=["fedprox"]))
    refused("policy_options", job(data={"flora": {"train": "/etc/passwd"}}))
    assert "planted_strategy" not in sys.modules


def test_a_codec_of_another_package_is_only_imported_for_the_site_s_own_file(tmp_path, monkeypatch):
    info = tmp_path / "fedft_planted-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: fedft-planted\nVersion: 0.1\n")
    (info / "entry_points.txt").write_text("[fedft.codecs]\nplanted = planted_codec:make\n")
    (tmp_path / "planted_codec.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    for said in ({"up": "planted"}, {"up": "topk:0.1 | planted:3"}, {"down": "planted"}, {"down": "delta | planted"}):
        refused("policy_options", job(codec=said))
    assert "planted_codec" not in sys.modules
    allowed_jobs.check_job(job(codec={"up": "topk:0.1 | int8", "down": "delta | int4"}), ALLOWED)


@pytest.fixture
def planted(tmp_path, monkeypatch):
    """An installed package with one `planted` of many kinds, which must not be imported unless the policy lists it."""
    info = tmp_path / "fedft_planted-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: fedft-planted\nVersion: 0.1\n")
    groups = [r.group for r in registry.REGISTRIES.values() if r is not registry.codecs]
    (info / "entry_points.txt").write_text("\n".join(f"[{g}]\nplanted = planted_part:make" for g in groups))
    (tmp_path / "planted_part.py").write_text("def make(*a, **b): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("planted_part", None)


NAMING = [
    {"local": {"optimizer": "NAME"}},
    {"local": {"objective": "NAME"}},
    {"local": {"objective": {"name": "NAME"}}},
    {"local": {"objective": {"name": "likelihood", "of": [{"deep": "NAME"}]}}},
    {"local": {"transforms": ["NAME"]}},
    {"local": {"transforms": [{"name": "NAME"}]}},
    {"model": {"adapter": "NAME"}},
    {"model": {"adapter": {"name": "lora", "inside": ["NAME"]}}},
    {"strategy": {"name": "fedprox", "mu": "NAME"}},
    {"strategy": {"name": "fedprox", "on": {"name": "fedopt", "optimizer": "NAME"}}},
    {"strategy": {"name": "fedprox", "on": {"name": "fedopt", "on": {"name": "fedit", "padding": ["NAME"]}}}},
]


@pytest.mark.usefixtures("planted")
@pytest.mark.parametrize("tables", NAMING, ids=str)
def test_nothing_is_imported_because_a_job_says_its_name(tables):
    for name in ("planted", "planted_part:make", "planted_part:0.5", " planted_part : make"):
        text = json.loads(json.dumps(tables).replace("NAME", name))
        refused("policy_options", job(**text), replace(ALLOWED, strategies=["flora", "fedprox"]))
        assert "planted_part" not in sys.modules


@pytest.mark.usefixtures("planted")
def test_what_is_installed_is_taken_by_its_name_where_the_policy_lists_it():
    allowed = replace(ALLOWED, plugins=["planted"])
    for tables in ({"local": {"optimizer": "planted"}}, {"local": {"transforms": [{"name": "planted"}]}}):
        allowed_jobs.check_job(job(**tables), allowed)
        refused("policy_options", job(**tables), replace(ALLOWED, plugins=["other"]))
    refused("policy_options", job(local={"optimizer": "planted_part:make"}), allowed)
    allowed_jobs.check_job(job(local={"optimizer": "sgd"}), ALLOWED)  # what is built in needs no listing


def test_texts_that_name_no_code_may_have_colons():
    said = {"data": {"prompt": "Question: {q}", "label": "a:b"}, "model": {"labels": ["x:y", "z"]}}
    allowed_jobs.check_job(job(**said, codec={"up": "fixed:16"}), ALLOWED)


def test_every_key_of_a_run_file_travels_or_is_named_as_local():
    """What a job says and what a site hears follow from one table; neither lists keys of its own."""
    hints = get_type_hints(config.RunConfig)
    assert set(config.LOCAL) <= set(hints)
    said = job_of(RUN, DIGEST, b"").tables
    for table, kind in hints.items():
        local = set(config.LOCAL.get(table, ()))
        if local == config.ALL:
            assert table not in said
            refused("policy_options", job(**{table: {}}))
            continue
        assert local <= get_type_hints(kind).keys()
        assert not said.get(table, {}).keys() & local  # of [privacy] nothing is said where nothing is hidden
        for key in local:
            assert f"[{table}] '{key}'" in refused("policy_options", job(**{table: {key: "x"}}))


@pytest.mark.parametrize("table", ["nothing", "Local", "fedft.local", "", "\x1b[2J", "x" * 10_000])
def test_a_table_that_no_run_file_has_is_refused(table):
    assert "not for a server to say" in refused("policy_options", job(**{table: {"x": 1}}))


def test_a_job_says_the_largest_share_of_a_client_and_no_other_limit():
    assert allowed_jobs.run_config(job(limits={"max_share": 0.5}), SITE).limits.max_share == 0.5
    refused("policy_options", job(limits={"max_share": 0.4}))
    assert "not for a server to say" in refused("policy_options", job(limits={"max_norm": 1.0}))


def test_only_bases_that_are_listed():
    for allowed in (None, [DIGEST], ["f" * 12, DIGEST[:12]]):
        allowed_jobs.check_job(job(), replace(ALLOWED, base=allowed))
    for allowed in ([], ["f" * 12], [DIGEST[1:13]]):
        refused("policy_base", job(), replace(ALLOWED, base=allowed))
    for digest in (None, "", DIGEST[:12], DIGEST.upper(), DIGEST + "0", 7, [DIGEST]):
        refused("policy_options", job(base=digest))
    for digest in (None, DIGEST[:12], DIGEST.upper(), 7, [DIGEST]):
        refused("policy_options", replace(job(), tokenizer=digest))
    allowed_jobs.check_job(replace(job(), tokenizer=DIGEST), replace(ALLOWED, base=[DIGEST[:12]]))


@pytest.mark.parametrize(
    ("allowed", "asked", "code"),
    [
        (["all-linear"], "all-linear", None),
        (["all-linear"], ["q_proj"], None),
        (["q_proj", "v_proj"], ["v_proj"], None),
        (["q_proj", "v_proj"], "v_proj", None),
        (["q_proj"], ["q_proj", "v_proj"], "policy_targets"),
        (["q_proj"], "all-linear", "policy_targets"),
        (["q_proj"], "proj", "policy_targets"),
        ([], ["q_proj"], "policy_targets"),
        (["all-linear"], ["q_proj", "re:(a+)+b"], "policy_targets"),
        (["all-linear", "re:.*q_proj"], "re:.*q_proj", None),
        (["q_proj"], [], "policy_options"),
        (["q_proj"], [["q_proj"]], "policy_options"),
    ],
)
def test_only_layers_that_are_listed(allowed, asked, code):
    said, own = job(model={"targets": asked}), replace(ALLOWED, targets=allowed)
    if code:
        refused(code, said, own)
    else:
        allowed_jobs.check_job(said, own)


@pytest.mark.parametrize(
    ("allowed", "asked", "code"),
    [
        (["all-linear"], ["lm_head", "norm"], None),
        (["q_proj", "lm_head"], ["lm_head"], None),
        (["q_proj"], ["lm_head"], "policy_targets"),
        (["q_proj", "lm_head"], ["lm_head", "norm"], "policy_targets"),
        (["all-linear"], ["re:(a+)+b"], "policy_options"),
        (["all-linear"], ["norm"] * 101, "policy_options"),
        (["all-linear"], "norm", "policy_options"),
    ],
)
def test_only_modules_that_are_listed_are_trained_whole(allowed, asked, code):
    said, own = job(model={"targets": ["q_proj"], "modules_to_save": asked}), replace(ALLOWED, targets=allowed)
    if code:
        refused(code, said, own)
    else:
        assert allowed_jobs.check_job(said, own) is None


@pytest.mark.parametrize(("layers", "fine"), [("0-3, 8", True), ("3-0", False), ("0," * 600 + "0", False), (3, False)])
def test_numbers_of_layers_are_numbers(layers, fine):
    said = job(model={"layers": layers})
    if fine:
        assert allowed_jobs.check_job(said, ALLOWED) is None
    else:
        refused("policy_options", said, ALLOWED)


def test_all_parameters_are_more_than_some_layers():
    allowed_jobs.check_job(job(strategy={"name": "fedkseed"}), ALLOWED)
    lora = {"name": "fedkseed", "space": "lora"}
    listed = replace(ALLOWED, targets=["q_proj"])
    allowed_jobs.check_job(job(strategy=lora, model={"targets": ["q_proj"]}), listed)
    refused("policy_targets", job(strategy={"name": "fedkseed"}, model={"targets": ["q_proj"]}), listed)


@pytest.mark.parametrize(
    ("code", "table", "key", "limit"),
    [
        ("policy_steps", "local", "steps", "max_steps"),
        ("policy_learning_rate", "local", "learning_rate", "max_learning_rate"),
        ("policy_batch_size", "local", "batch_size", "max_batch_size"),
        ("policy_batch_size", "eval", "batch_size", "max_batch_size"),
        ("policy_tokens", "data", "max_length", "max_tokens"),
        ("policy_tokens", "data", "max_prompt", "max_tokens"),
        ("policy_rank", "model", "repair_rank", "max_rank"),
        ("policy_tokens", "eval", "generate_tokens", "max_tokens"),
    ],
)
def test_a_limit_is_kept_to_and_not_passed(code, table, key, limit):
    most = getattr(ALLOWED, limit)
    allowed_jobs.check_job(job(**{table: {key: most}}), ALLOWED)
    for more in (most * 1.01 if isinstance(most, float) else most + 1, 2**52):
        assert f"[{table}] {key}" in refused(code, job(**{table: {key: more}}))
    for junk in (float("nan"), float("inf"), -1, 10**400, 10**5000, "7", True, [7], {"a": 7}):
        refused("policy_options", job(**{table: {key: junk}}))


@pytest.mark.parametrize(
    "tables",
    [
        {"model": {"id": "/etc"}},
        {"model": {"device": "cuda"}},
        {"model": {"task": "pickle"}},
        {"model": {"dtype": "float8"}},
        {"model": {"lora_alpha": float("nan")}},
        {"model": {"lora_dropout": 2}},
        {"model": {"task": "sequence-classification", "labels": ["a", "a"]}},
        {"model": {"task": "sequence-classification", "labels": [str(i) for i in range(1001)]}},
        {"data": {"train": "/etc/passwd"}},
        {"data": {"test": "/etc/passwd"}},
        {"data": {"partition": "iid"}},
        {"data": {"clients": 1}},
        {"data": {"holdout": float("nan")}},
        {"data": {"prompt": "{a"}},
        {"data": {"prompt": "{x}" * 33}},
        {"data": {"response": "x" * 4097}},
        {"data": {"text": "[[" * 33}},
        {"data": {"text": "[" * 4096}},
        {"local": {"optimizer": "adamw; rm"}},
        {"local": {"threads": 2, "hook": "x"}},
        {"local": {"momentum": float("inf")}},
        {"codec": {"up": "zip"}},
        {"codec": {"\x1b[2J": "zip"}},
        {"eval": {"max_rows": 0}},
        {"eval": {"rouge": "yes"}},
        {"strategy": {"name": "flora", "no_such_option": 1}},
        {"strategy": {"name": "fedkseed", "K": 4097}},
        {"strategy": {"name": "fedkseed", "K": 1e9}},
        {"strategy": {"name": "fedkseed", "table": [1]}},
        {"strategy": {"name": "fedkseed", "epsilon": float("nan")}},
        {"strategy": {"name": "fedkseed", 7: "x"}},
        {"strategy": {"name": "fedkseed", "x" * 10_000: "line\nline"}},
        {"strategy": {"name": "fedkseed", "K": "\x1b]0;" + "x" * 10_000}},
        {"local": None},
        {"local": [["steps", 1]]},
        {"model": 7},
        {"data": "data"},
        {"run": "../../etc"},
        {"run": 7},
        {"seed": -1},
        {"seed": 2**53},
        {"seed": 10**400},
        {"seed": "0"},
    ],
)
def test_anything_else_that_is_malformed_is_refused(tables):
    refused("policy_options", job(**tables))


def test_brackets_too_deep_are_refused():
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    refused("policy_options", job(strategy={"name": "fedkseed", "K": deep}))
    refused("policy_options", job(local={"steps": deep}))


@pytest.mark.parametrize("said", [{"metrics": ["exact_match"]}, {"rouge": True}])
def test_a_site_measures_what_it_lists_and_nothing_else(said):
    assert allowed_jobs.run_config(job(eval=said), SITE).eval == replace(RUN.eval, **said)
    assert "allowed: none" in refused("policy_metrics", job(eval=said), replace(ALLOWED, metrics=[]))


def test_no_code_is_imported_for_a_metric_that_a_server_names():
    refused("policy_metrics", job(eval={"metrics": ["antigravity:metric"]}))
    assert "antigravity" not in sys.modules


PLAN = Plan("0" * 16, 3, 3, rank=64, steps=1000, learning_rate=1e-2)


def test_a_plan_may_use_the_limits_up():
    allowed_jobs.check_plan(PLAN, 0, ALLOWED)
    allowed_jobs.check_plan(Plan("0" * 16, 0, 0, steps=1), 0, ALLOWED)
    allowed_jobs.check_plan(replace(PLAN, evaluate=True, learning_rate=0, extra={"rouge": True}), 0, ALLOWED)


@pytest.mark.parametrize(
    "value",
    [-1, 1001, 2**60, pytest.param(10**5000, id="long"), float("nan"), float("inf"), "1", None, True, [1], 1j, 0.5],
)
@pytest.mark.parametrize("field", ["rank", "steps", "learning_rate"])
def test_a_plan_beyond_the_limits_is_refused(field, value):
    with pytest.raises(PlanRefused) as e:
        allowed_jobs.check_plan(replace(PLAN, **{field: value}), 0, ALLOWED)
    assert e.value.code in (f"policy_{field}", "policy_options")
    assert str(e.value).isprintable()


def test_a_plan_of_other_types_is_refused():
    for plan in (replace(PLAN, evaluate=1), replace(PLAN, extra=None), replace(PLAN, extra=[("rouge", True)])):
        with pytest.raises(PlanRefused):
            allowed_jobs.check_plan(plan, 0, ALLOWED)


junk = some.recursive(
    some.none() | some.booleans() | some.integers() | some.floats() | some.text(max_size=20),
    lambda inner: some.lists(inner, max_size=3) | some.dictionaries(some.text(max_size=12), inner, max_size=3),
    max_leaves=8,
)
TABLES = ("strategy", "local", "model", "codec", "data", "eval")


@given(table=some.sampled_from(TABLES), which=some.integers(0, 30), value=junk, whole=some.booleans())
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
def test_whatever_a_job_says_it_is_allowed_or_refused(table, which, value, whole):
    """The invariant: a RunConfig within the policy, or PlanRefused; nothing else leaves."""
    good = dict(job().table(table))
    said = value if whole else {**good, sorted(good)[which % len(good)]: value}
    try:
        found = allowed_jobs.run_config(replace(job(), tables={**job().tables, table: said}), SITE)
    except PlanRefused as e:
        code, line = e.code, str(e)
    else:
        code, line = "", ""
    if code:
        event(code)
        assert code.startswith("policy_")
        assert line.isprintable()
        return
    assert found.strategy.name in ALLOWED.strategies
    assert found.local.steps <= 1000
    assert found.local.learning_rate <= 1e-2
    assert (found.data.train, found.model.id, found.model.device) == ("/train.jsonl", "/model", "cpu")


# --- what a template can do


ROW = {"a": "x", "n": 7}


@pytest.mark.parametrize("said", ["{a.__class__}", "{a[0]}", "{a!r}", "{n:>999999999}", "{n:{n}}", "{0}", "{a} {b}"])
def test_a_template_looks_up_fields_and_does_nothing_else(said):
    with pytest.raises(DataError, match=r"no field|brace"):
        templates.fill(said, ROW, "here")


@pytest.mark.parametrize("field", ["a}{n", "{a}", "a}} {{n", "n:>999999999", "", "missing"])
def test_the_field_of_the_label_is_never_a_template(field):
    with pytest.raises(DataError, match="no field"):
        examples.encode_label(ROW, text="", label_field=field, labels=["x"], tokenizer=None, max_length=8, where="here")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"name": "fedkseed", "samples": 10**9}, "samples"),
        ({"name": "mezo", "samples": 4000}, "steps x samples"),
        ({"name": "zo_fedavg", "first_order_from": 0, "first_order_factor": 99.0}, "first_order_factor"),
        ({"name": "fedopt", "on": {"name": "zo_fedavg", "samples": 4000}}, "steps x samples"),
        (
            {"name": "fedopt", "on": {"name": "zo_fedavg", "first_order_from": 0, "first_order_factor": 99.0}},
            "first_order_factor",
        ),
        ({"name": "fedprox", "on": "os:system"}, "strategy 'os:system' is not allowed here"),
        ({"name": "fedopt", "on": {"name": "fedprox", "on": {"name": "os:system"}}}, "strategy 'os:system'"),
        ({"name": "ferret", "K": 10**12}, "K"),
    ],
    ids=str,
)
def test_options_do_not_multiply_what_the_limits_bound(options, said):
    allowed = replace(ALLOWED, strategies=["fedkseed", "mezo", "zo_fedavg", "fedprox", "fedopt", "ferret"])
    with pytest.raises(PlanRefused, match=re.escape(said)):
        allowed_jobs.check_job(job(strategy=options), allowed)


def test_a_plan_to_train_no_steps_is_refused():
    with pytest.raises(PlanRefused, match="nothing to train"):
        allowed_jobs.check_plan(replace(PLAN, steps=0), 0, ALLOWED)
