"""`[data] encode`: a function of the operator's own makes records token ids; no message and no run file alone does."""

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import asked_site
import pytest
from asked_site import SITE

import fedft
from fedft import allowed_code, run_file
from fedft.client import allowed_jobs, site_file
from fedft.config import Data, RunConfig
from fedft.data import own_encoding
from fedft.data.examples import IGNORED, Example
from fedft.errors import ConfigError, DataError, PlanRefused
from fedft.server.job import job_of
from fedft.simulations import workplace

CODE = """
def digits(record, tokenizer):
    ids = [int(c) for c in record["given"] + record["sum"]]
    record.clear()
    return ids, [n >= len(ids) - 1 for n in range(len(ids))]
def letters(record, tokenizer):
    ids = tokenizer(record["prompt"])["input_ids"]
    return ids, [n % 2 == 1 for n in range(len(ids))]
def raises(record, tokenizer):
    return record["no such field"]
def unlike(record, tokenizer):
    return [1, 2], [True]
def text(record, tokenizer):
    return "1 2"
def outside(record, tokenizer):
    return [1, 99], [True, True]
number = 3
"""
NAMES = ("digits", "letters", "raises", "unlike", "text", "outside", "number")


@pytest.fixture(autouse=True)
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "my_rows.py").write_text(CODE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv(allowed_code.VARIABLE, "")
    yield
    sys.modules.pop("my_rows", None)


def encode(name: str, max_length: int = 9) -> Example:
    row = {"given": "52", "sum": "7"}
    found = own_encoding.encode(
        row, function=f"my_rows:{name}", tokenizer=None, ids=10, max_length=max_length, where="row 4"
    )
    assert row == {"given": "52", "sum": "7"}, "the function has a copy"
    return found


def test_what_the_function_says_is_learned_is_learned_and_what_is_cut_is_counted() -> None:
    allowed_code.allow(f"my_rows:{name}" for name in NAMES)
    assert encode("digits") == Example([5, 2, 7], [IGNORED, IGNORED, 7], 2)
    assert encode("digits", max_length=2) == Example([5, 2], [IGNORED, IGNORED], 2, lost=1)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("raises", "row 4.*my_rows:raises failed: KeyError"),
        ("unlike", "row 4.*2 token ids and 1 entries"),
        ("text", "row 4.*wanted a pair of lists"),
        ("outside", "row 4.*token id 99, the model has embeddings of 10 ids"),
        ("number", "is a int, wanted a function"),
    ],
)
def test_what_a_function_may_do_wrong_is_one_line(name: str, line: str) -> None:
    allowed_code.allow(f"my_rows:{name}" for name in NAMES)
    with pytest.raises((DataError, ConfigError), match=line) as refused:
        encode(name)
    assert "\n" not in str(refused.value)


def test_a_name_that_nobody_allowed_is_not_imported() -> None:
    with pytest.raises(ConfigError, match="--allow my_rows:digits"):
        encode("digits")
    assert "my_rows" not in sys.modules


@pytest.mark.parametrize(
    "beside", [{"messages": "m"}, {"tokens": "t"}, {"prompt": "{a}"}, {"response": "{a}"}, {"max_prompt": 4}]
)
def test_another_form_beside_it_is_refused(beside: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="has no effect beside encode"):
        run_file.from_dict({"data": {"encode": "my_rows:digits", **beside}})


def test_it_is_for_one_sided_texts() -> None:
    for model, local in (({"task": "sequence-classification", "labels": ["a", "b"]}, {}), ({}, {"objective": "dpo"})):
        with pytest.raises(ConfigError, match="encode"):
            run_file.from_dict({"data": {"encode": "my_rows:digits"}, "model": model, "local": local})


def test_a_function_itself_is_refused_with_how_to_name_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"package\.module:function.*allow=") as refused:
        fedft.simulate(data={"encode": lambda record, tokenizer: ([], [])}, out=tmp_path / "run")
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "run" / "config.toml").exists()


def test_a_job_does_not_carry_it_and_a_site_takes_none_from_a_job() -> None:
    config = RunConfig(data=Data(encode="my_rows:digits"))
    job = job_of(config, "0" * 64, b"")
    assert "my_rows" not in json.dumps({t: dict(job.table(t)) for t in job.tables})
    job.tables["data"]["encode"] = "my_rows:digits"
    policy = replace(SITE.policy, strategies=["flora"])
    with pytest.raises(PlanRefused, match=r"encode.*not for a server to say"):
        allowed_jobs.check_job(job, policy)
    assert "my_rows" not in sys.modules


def test_a_site_s_own_function_outranks_the_templates_of_a_job() -> None:
    own = replace(SITE, data=replace(SITE.data, encode="my_rows:letters"))
    said = allowed_jobs.carried_out(RunConfig(data=Data(messages="m", max_length=32)), own)
    assert (said.data.encode, said.data.messages) == ("my_rows:letters", None)
    assert "my_rows:letters" in own.own_code


def test_a_site_file_has_one_form(tmp_path: Path) -> None:
    file = asked_site.site_file(tmp_path)
    own = file.read_text().replace("[data]", '[data]\nencode = "my_rows:letters"')
    file.write_text(own)
    assert site_file.load(file).data.encode == "my_rows:letters"
    file.write_text(own.replace("[data]", '[data]\ntokens = "t"'))
    with pytest.raises(ConfigError, match="tokens and encode: a record has one form"):
        site_file.load(file)
    assert "my_rows" not in sys.modules


def test_a_run_trains_on_what_the_function_makes(tmp_path: Path) -> None:
    tables = {
        "data": {"encode": "my_rows:letters", "clients": 2, "max_length": 16},
        "local": {"steps": 1, "batch_size": 2},
        "server": {"rounds": 1, "loggers": []},
        "eval": {"max_rows": 2, "exactness": False},
    }
    with pytest.raises(ConfigError, match="--allow my_rows:letters"):
        fedft.simulate(**tables, out=tmp_path / "refused")
    done = fedft.simulate(**tables, out=tmp_path / "run", allow=["my_rows:letters"])
    place, _ = workplace.reopen(done.folder)
    for client in place.clients.values():
        for row in client.train_rows:
            assert row.labels == [x if n % 2 else IGNORED for n, x in enumerate(row.input_ids)]
