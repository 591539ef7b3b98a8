"""Sites that are cut from a simulation hold what its clients hold."""

import json

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from fedft import run_file
from fedft.client import allowed_jobs, site_file
from fedft.config import LOCAL
from fedft.data import client_datasets
from fedft.durable import folder_name
from fedft.errors import ConfigError, DataError
from fedft.models.load import Base
from fedft.server.job import job_of
from fedft.simulations import virtual_clients
from fedft.simulations.split_for_sites import split

DIGEST = "0123456789abcdef" * 4
OWNERS = ["north", "King Lear", "../up", "ütf"]
RECORDS = [{"who": OWNERS[i * i % 7 % 4], "q": f"w{i}", "a": f"w{i % 5} w{i}", "n": i / 3} for i in range(90)]


def base() -> Base:
    """One token for every word."""
    vocabulary = {word: i for i, word in enumerate(["<pad>", "</s>", "<unk>", *(f"w{i}" for i in range(99))])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    return Base(None, tokenizer, "causal-lm", "base", DIGEST, ids=102)


@pytest.fixture
def run(tmp_path):
    def made(test=None, **tables):
        for name, found in (("train", RECORDS), ("test", test or [])):
            (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in found), encoding="utf-8")
        own = {"train": str(tmp_path / "train.jsonl"), "client": "who", "prompt": "{q}", "response": "{a} {n}"}
        own["max_length"] = 96
        own |= {"test": str(tmp_path / "test.jsonl")} if test else {}
        tables["data"] = own | tables.get("data", {})
        return run_file.from_dict({"server": {"seed": 5}, **tables})

    return made


def with_keys(path):
    """The site file, loaded; its keys are only looked for."""
    (path.parent / "keys").mkdir(exist_ok=True)
    for name in ("ca.pem", "server.pub", "signing.key", "node.key"):
        (path.parent / "keys" / name).touch()
    return site_file.load(path)


KINDS = {
    "natural": {},
    "dirichlet": {"data": {"partition": "dirichlet", "clients": 3, "alpha": 1.0}},
    "iid": {"data": {"partition": "iid", "clients": 4}},
    "built in": {
        "data": {"train": "stdlib-docstrings", "client": "client", "prompt": "{prompt}", "response": "{response}"}
    },
    "classes": {
        "model": {"task": "sequence-classification", "labels": OWNERS},
        "data": {"partition": "dirichlet", "clients": 2, "text": "{a}", "label": "who"},
    },
    "two sides": {"model": {"task": "seq2seq-lm"}, "data": {"max_prompt": 2}},
}


@pytest.mark.parametrize("held_out", [False, True], ids=["holdout", "test file"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_site_has_the_examples_of_the_simulated_client_of_its_name(run, tmp_path, kind, held_out, monkeypatch):
    if kind == "built in":
        asked = ("logging",)  # one small package
        short = client_datasets.stdlib_docstrings.rows
        monkeypatch.setattr(client_datasets.stdlib_docstrings, "rows", lambda: short(asked))
    # no test row is of the client whose name comes first: it holds out nothing
    test = [r | {"client": "logging", "prompt": "w1", "response": "w2"} for r in RECORDS[3:40] if r["who"] != "../up"]
    simulated = run(test=test if held_out else None, **KINDS[kind])
    wanted = virtual_clients.encode(virtual_clients.rows_by_client(simulated), simulated, base())
    job = job_of(simulated, DIGEST, b"")
    found = {}
    for path in split(simulated, tmp_path / "sites", server="127.0.0.1:9092"):
        own = with_keys(path)
        settings = allowed_jobs.run_config(job, own)
        parts = client_datasets.of_site(settings, own.site.name, own.data.client, own.data.value)
        found[own.site.name] = client_datasets.encode({own.site.name: parts}, settings, base())[own.site.name]
    renamed = {"../up": folder_name("../up")}
    wanted = {renamed.get(c, c): v for c, v in wanted.items()}
    assert list(found) == list(wanted)
    if not held_out and kind in (
        "natural",
        "two sides",
    ):  # a name that no site may have: the same rows, held out by another name
        own, theirs = found.pop(folder_name("../up")), wanted.pop(folder_name("../up"))
        assert sorted(map(str, own[0] + own[1])) == sorted(map(str, theirs[0] + theirs[1]))
    assert found == wanted
    assert held_out or all(test for _, test in found.values())


def test_a_shared_file_gives_a_site_the_rows_with_its_value(run):
    simulated = run(test=RECORDS[:40])
    parts = virtual_clients.rows_by_client(simulated)
    assert client_datasets.of_site(simulated, "north", "who") == parts["north"]
    assert client_datasets.of_site(simulated, "any", "who", "King Lear") == parts["King Lear"]
    with pytest.raises(DataError, match="no row has who = 'nort'; did you mean 'north'"):
        client_datasets.of_site(simulated, "nort", "who")


def test_a_site_carries_the_run_out_in_the_way_of_the_simulation(run, tmp_path):
    """What never travels with a job stands in the site's file, or its sums are rounded in another way."""
    how = {"threads": 2, "micro_batch": 3, "checkpointing": True, "deterministic": True, "compile": True}
    simulated = run(local=how, model={"attention": "eager", "base_bits": 4}, strategy={"name": "fedit"})
    own = with_keys(split(simulated, tmp_path / "sites", server="[::1]:9092")[0])
    found = allowed_jobs.run_config(job_of(simulated, DIGEST, b""), own)
    assert how.keys() == LOCAL["local"], "all that there are"
    assert found.local == simulated.local
    for key in LOCAL["model"] - {"id"}:
        assert getattr(found.model, key) == getattr(simulated.model, key)


def test_the_policy_of_a_site_allows_the_run_and_nothing_larger(run, tmp_path):
    simulated = run(local={"steps": 3, "learning_rate": 1e-3}, clients={"rank": [2, 4]}, strategy={"name": "flora"})
    allowed = with_keys(split(simulated, tmp_path / "sites", server="[::1]:9092")[0]).policy
    allowed_jobs.check_job(job_of(simulated, DIGEST, b""), allowed)
    assert (allowed.max_rank, allowed.max_steps, allowed.max_learning_rate) == (4, 3, 1e-3)
    assert allowed.strategies == ["flora"]
    for table, key, value in (("local", "steps", 4), ("data", "max_length", 97), ("strategy", "name", "fedit")):
        tables = simulated.to_dict()
        tables[table][key] = value
        with pytest.raises(allowed_jobs.PlanRefused):
            allowed_jobs.check_job(job_of(run_file.from_dict(tables), DIGEST, b""), allowed)


def test_the_policy_of_a_site_allows_the_repair_of_packed_weights(run, tmp_path):
    """Whose rank may be above that of what is trained."""
    model = {"base_bits": 4, "repair_rank": 16}
    simulated = run(model=model, clients={"rank": 4}, strategy={"name": "fedit"})
    allowed = with_keys(split(simulated, tmp_path / "sites", server="[::1]:9092")[0]).policy
    assert allowed.max_rank == 16
    allowed_jobs.check_job(job_of(simulated, DIGEST, b""), allowed)


def test_the_policy_of_a_site_allows_the_modules_that_are_trained_whole(run, tmp_path):
    simulated = run(model={"targets": ["q_proj"], "modules_to_save": ["norm"]}, strategy={"name": "fedit"})
    allowed = with_keys(split(simulated, tmp_path / "sites", server="[::1]:9092")[0]).policy
    allowed_jobs.check_job(job_of(simulated, DIGEST, b""), allowed)
    other = run(model={"targets": ["q_proj"], "modules_to_save": ["lm_head"]}, strategy={"name": "fedit"})
    with pytest.raises(allowed_jobs.PlanRefused, match="modules_to_save"):
        allowed_jobs.check_job(job_of(other, DIGEST, b""), allowed)


def test_the_policy_of_a_site_requires_what_the_run_hides(run, tmp_path):
    hidden = {"mode": "local-dp", "clip": 1.0, "noise_multiplier": 2.0, "delta": 1e-3, "noise": "seeded"}
    simulated = run(privacy=hidden, strategy={"name": "fedit"})
    allowed = with_keys(split(simulated, tmp_path / "sites", server="[::1]:9092")[0]).policy
    assert (allowed.require, allowed.seeded_noise) == (["local-dp"], True)
    allowed_jobs.check_job(job_of(simulated, DIGEST, b""), allowed)
    with pytest.raises(allowed_jobs.PlanRefused, match="required here: local-dp"):
        allowed_jobs.check_job(job_of(run(strategy={"name": "fedit"}), DIGEST, b""), allowed)


def test_a_site_s_file_has_the_run_s_chat_template(run, tmp_path):
    template = "{% for m in messages %}{{ m.content }}\n{% endfor %}"
    plain = {"prompt": "{prompt}", "response": "{response}"}
    simulated = run(data={"messages": "talk", "chat_template": template, **plain})
    for path in split(simulated, tmp_path / "sites", server="127.0.0.1:9092"):
        found = allowed_jobs.run_config(job_of(simulated, DIGEST, b""), with_keys(path)).data
        assert (found.messages, found.chat_template) == ("talk", template)


def test_the_policy_of_a_site_lists_what_a_run_takes_from_other_packages(run, tmp_path, monkeypatch):
    info = tmp_path / "others-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: others\nVersion: 1.0\n")
    groups = (f"[fedft.{g}]\n{n} = others:{n}" for g, n in (("optimizers", "lion"), ("strategies", "median")))
    (info / "entry_points.txt").write_text("\n".join(groups))
    monkeypatch.syspath_prepend(tmp_path)
    below = {"name": "fedopt", "on": {"name": "median", "on": "fedit"}}
    simulated = run(
        local={"optimizer": "lion"}, strategy={"name": "fedprox", "on": below}, eval={"metrics": ["rouge_l"]}
    )
    allowed = with_keys(split(simulated, tmp_path / "sites", server="north.example:9092")[0]).policy
    assert (allowed.strategies, allowed.plugins) == (["fedprox", "median"], ["lion"])
    assert (allowed.codecs, allowed.metrics) == ([], ["rouge_l"])


HOSTILE = [
    "",
    ".",
    "..",
    "../x",
    "/etc",
    "a/b",
    "a\\b",
    "a\0b",
    "CON ",
    "~",
    "$HOME",
    "-rf",
    "é",
    "日本",
    "x" * 300,
    "a\nb",
    "a.",
]


def test_folder_names_are_safe_and_never_meet():
    names = [
        *HOSTILE,
        folder_name(".."),
        folder_name("King Lear"),
        "north",
        "North",
        "NORTH",
        "nor-th",
        "nor th",
        "nor_th",
    ]
    found = [folder_name(name) for name in names]
    assert len({f.casefold() for f in found}) == len(names)
    for name in found:
        assert name.isascii()
        assert name[0].isalnum()
        assert name[-1].isalnum()
        assert set(name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")
        assert len(name) <= 64
    assert folder_name("north") == "north"


def test_nothing_is_overwritten(run, tmp_path):
    (tmp_path / "sites").mkdir()
    (tmp_path / "sites" / "mine").touch()
    with pytest.raises(ConfigError, match="is not empty"):
        split(run(), tmp_path / "sites", server="h:1")
    with pytest.raises(ConfigError, match="cannot be written"):
        split(run(), tmp_path / "train.jsonl", server="h:1")


def test_with_the_server_s_keys_the_sites_are_enrolled(run, tmp_path):
    from fedft.security import new_keys, private_keys, roster

    server = tmp_path / "server"
    new_keys.make_server(server, ["localhost"], 30)
    found = [site_file.load(path) for path in split(run(), tmp_path / "sites", server="localhost:9092", keys=server)]
    members = roster.load_roster(server / "roster.toml").members
    assert sorted(members) == sorted(own.site.name for own in found)
    for own in found:
        signing = private_keys.load_private(tmp_path / own.keys.folder / "signing.key")
        assert signing.public_key() == members[own.site.name].signing
        assert (tmp_path / own.server.key).read_bytes() == (server / "server.pub").read_bytes()
    with pytest.raises(ConfigError, match="is enrolled already"):
        split(run(), tmp_path / "again", server="localhost:9092", keys=server)
    assert not (tmp_path / "again").exists()
    with pytest.raises(ConfigError, match=r"there is no ca\.pem"):
        split(run(), tmp_path / "again", server="localhost:9092", keys=tmp_path)


def test_who_counts_less_in_a_deployment_than_in_the_simulation_is_named(run, tmp_path, caplog):
    rows = [{**r, "who": OWNERS[0] if i % 10 < 7 else OWNERS[i % 3 + 1]} for i, r in enumerate(RECORDS)]
    for number, (limits, named) in enumerate([({}, True), ({"max_share": 0.5}, False), ({"max_share": 1.0}, False)]):
        config = run(limits=limits)
        (tmp_path / "train.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
        caplog.clear()
        split(config, tmp_path / f"sites{number}", server="h:1")
        said = [m for m in caplog.messages if "max_share" in m]
        assert bool(said) == named
        assert not said or "client north has 70 % of all rows: a deployment cuts its weight to 50 %" in said[0]
