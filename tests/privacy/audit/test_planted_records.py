"""Canaries: the same for the same run file, in the form of its records, known to nobody but the run's folder."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fedft import run_file
from fedft.config import RunConfig
from fedft.errors import ConfigError
from fedft.privacy.audit import canaries, planted_records
from fedft.privacy.tables import Audit

AUDIT = Audit(canaries=64, repeats=[1, 4, 16], seed=3)
CLIENTS = ["east", "north", "west"]


def config(**tables: Any) -> RunConfig:
    return run_file.from_dict({"audit": {"canaries": 64, "seed": 3}, **tables})


def test_the_same_table_and_clients_have_the_same_plan_and_another_seed_another_one() -> None:
    plan = canaries.planned(AUDIT, CLIENTS)
    assert plan == canaries.planned(AUDIT, CLIENTS)
    other = canaries.planned(replace(AUDIT, seed=4), CLIENTS)
    assert [c.secret for c in plan.canaries] != [c.secret for c in other.canaries]
    assert [c.planted for c in plan.canaries] != [c.planted for c in other.canaries]


def test_canaries_are_dealt_out_and_about_half_of_them_are_planted() -> None:
    plan = canaries.planned(replace(AUDIT, canaries=3000), CLIENTS)
    assert [c.client for c in plan.canaries[:4]] == ["east", "north", "west", "east"]
    assert 0.45 < sum(c.planted for c in plan.canaries) / 3000 < 0.55
    for client in CLIENTS:  # every client has canaries of every number of repeats
        own = [c.repeats for c in plan.canaries if c.client == client]
        assert [own.count(r) for r in AUDIT.repeats] == [334, 333, 333]
    assert len({c.carrier for c in plan.canaries}) == 3000


def test_alternatives_are_unlike_each_other_and_the_secret() -> None:
    plan = canaries.planned(AUDIT, CLIENTS)
    for canary in plan.canaries[:3]:
        found = plan.alternatives(canary)
        assert len({canary.secret, *found}) == canaries.ALTERNATIVES + 1
        assert all(len(s) == len(canary.secret) for s in found)


def test_a_client_gets_its_planted_canaries_behind_its_rows_and_nobody_else_does() -> None:
    parts = {c: ([{"prompt": c, "response": str(n)} for n in range(3)], [{"prompt": "held"}]) for c in CLIENTS}
    plan = canaries.planned(AUDIT, CLIENTS)
    found = planted_records.planted_in(parts, config(), plan)
    for client, (train, held) in found.items():
        assert train[:3] == parts[client][0]
        assert held == parts[client][1]
        secrets = [row["response"] for row in train[3:]]
        assert secrets == [c.secret for c in plan.of(client)]
        assert len(secrets) == sum(c.repeats for c in plan.canaries if c.client == client and c.planted)
    without = planted_records.without_canaries({c: train for c, (train, _) in found.items()}, plan)
    assert without == {c: train for c, (train, _) in parts.items()}


def test_the_plan_in_the_folder_is_the_owners_alone_and_stays(tmp_path: Path) -> None:
    plan = canaries.planned(AUDIT, CLIENTS)
    canaries.keep(tmp_path, plan)
    path = tmp_path / canaries.FILE
    assert path.stat().st_mode & 0o777 == 0o600
    assert canaries.read(tmp_path) == plan
    before = path.read_bytes()
    canaries.keep(tmp_path, plan)
    assert path.read_bytes() == before
    with pytest.raises(ConfigError, match="is another plan than"):
        canaries.keep(tmp_path, replace(plan, seed=9))
    assert canaries.read(tmp_path / "elsewhere") is None


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"version": 2, "seed": 1, "canaries": []}', '{"version": 1}'])
def test_another_file_in_its_place_is_refused_in_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / canaries.FILE).write_text(text)
    with pytest.raises(ConfigError, match="is no plan of an audit of this version"):
        canaries.read(tmp_path)


CANARY = canaries.planned(AUDIT, CLIENTS).canaries[5]
CARRIER, SECRET = "The access code of clinic 5 is", CANARY.secret
FORMS = {
    "prompt and response": ({}, {"prompt": CARRIER, "response": SECRET}),
    "several fields": (
        {"prompt": "{q}[[ ({hint})]] A:", "response": "{a}{b}"}, {"q": CARRIER, "hint": "", "a": SECRET, "b": ""},
    ),
    "a field on both sides": ({"prompt": "{q}", "response": "{q}{a}"}, {"q": CARRIER, "a": SECRET}),
    "plain text": ({"prompt": "", "response": "{text}"}, {"text": f"{CARRIER} {SECRET}"}),
    "conversations": (
        {"messages": "talk"},
        {"talk": [{"role": "user", "content": CARRIER}, {"role": "assistant", "content": SECRET}]},
    ),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_a_canary_has_the_form_of_the_runs_records(form: str) -> None:
    data, wanted = FORMS[form]
    assert planted_records.record_of(CANARY, SECRET, config(data=data)) == wanted


def test_a_canary_of_a_classification_is_a_text_of_a_class_by_chance() -> None:
    labels = ["a", "b", "c"]
    of = config(model={"task": "sequence-classification", "labels": labels}, data={"text": "{x} {y}", "label": "kind"})
    plan = canaries.planned(AUDIT, CLIENTS)
    rows = [planted_records.record_of(c, c.secret, of) for c in plan.canaries]
    assert rows[5] == {"x": f"{CARRIER} {SECRET}", "y": "", "kind": rows[5]["kind"]}
    assert {row["kind"] for row in rows} == set(labels)


REFUSED = {
    "token ids": {"data": {"tokens": "ids"}},
    "pairs of answers": {"local": {"objective": "dpo"}},
    "every field of": {"data": {"prompt": "{a}", "response": "{a}"}},
    "multi_label_classification": {
        "model": {"task": "sequence-classification", "labels": ["a", "b"], "problem_type": "multi_label_classification"}
    },
}


@pytest.mark.parametrize("why", REFUSED)
def test_records_that_cannot_hold_one_are_refused_in_one_line(why: str) -> None:
    with pytest.raises(ConfigError) as e:
        planted_records.record_of(CANARY, SECRET, config(**REFUSED[why]))
    assert str(e.value).startswith("[audit] canaries: ")
    assert why in str(e.value)
    assert "\n" not in str(e.value)


def test_a_canary_that_would_be_cut_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its secret would not be learned, and the audit would find nothing."""
    cut = SimpleNamespace(encode=lambda row, base, config, where: SimpleNamespace(lost=2, prompt_lost=1))
    monkeypatch.setattr(planted_records.objectives, "of", lambda config: cut)
    with pytest.raises(ConfigError, match="3 tokens of one do not fit"):
        planted_records.check_fits(config(), None, canaries.planned(AUDIT, CLIENTS))


def test_the_secrets_are_in_no_repr_of_a_plan_that_a_log_might_hold() -> None:
    """A plan is written to its file and nowhere else."""
    plan = canaries.planned(AUDIT, CLIENTS)
    assert SECRET in json.dumps(plan.to_dict())
    assert SECRET not in repr(plan)
