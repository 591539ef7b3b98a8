"""What `fedft doctor` says of a site's records: their form, and what a run would make of them, each in one line."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fedft.cli import checks_machine, checks_records
from fedft.cli.checks_machine import FAIL, OK, WARN, Finding, findings_of
from fedft.client import site_settings
from fedft.models.load import Base

END = "<|end|>"  # the base model's end token
CHAT = (
    "{% for m in messages %}{{ m.role + ': ' + m.content + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


@pytest.fixture(scope="module")
def base(tiny_base: Path) -> Base:
    return checks_machine.site_base(str(tiny_base), "cpu")


@pytest.fixture
def looked(tmp_path: Path, base: Base) -> Any:
    """All that is said of these rows, of a site whose file says so of their form."""

    def of(rows: list[Any], **form: Any) -> list[Finding]:
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        data = site_settings.SiteData(str(tmp_path / "rows.jsonl"), **form)
        site = site_settings.SiteConfig(
            site_settings.Site("north", "/state"),
            site_settings.SiteServer("127.0.0.1:9092", "/ca.pem", "/server.pub"),
            site_settings.SiteModel(base.source),
            data,
        )
        own: list[Any] = []
        found = [*findings_of("rows", lambda: checks_records.site_rows(site, own))]
        found += findings_of("records", lambda: checks_records.forms(data, own))
        return [*found, *findings_of("records", lambda: checks_records.encoded(data, own, base))]

    return of


def talk(*said: str) -> dict[str, Any]:
    return {"m": [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(said)]}


def test_rows_are_counted_and_must_fit_the_site_s_own_templates(looked: Any) -> None:
    rows = [{"who": "north", "q": "1"}, {"who": "b", "q": "2"}]
    assert " 2 rows" in looked(rows)[0].found
    assert " 1 rows" in looked(rows, client="who", response="{q}", prompt="")[0].found
    first = looked(rows, response="{w}")[0]
    assert (first.check, first.state) == ("rows", FAIL)
    assert "row 1 of this site: no field 'w'" in first.found


@pytest.mark.parametrize(
    ("row", "form", "check", "words"),
    [
        (
            talk("a", "b", "c", ""),
            {"messages": "m", "chat_template": CHAT},
            "conversations",
            "have 80 messages; 20 are",
        ),
        ({"t": [5, 6, 7]}, {"tokens": "t"}, "tokens", "have up to 3 token ids; 40 are learned"),
        ({"text": "a", "y": 3}, {"text": "{text}", "label": "y"}, "labels", "have 1 of them: '3'"),
    ],
)
def test_each_form_is_one_line_and_what_a_run_makes_of_it_another(
    looked: Any, row: dict[str, Any], form: dict[str, str], check: str, words: str
) -> None:
    rows, of_form, records = looked([row] * 20, **form)
    assert (rows.state, of_form.check, of_form.state, records.check, records.state) == (OK, check, OK, "records", OK)
    assert f"the first 20 rows {words}" in of_form.found
    assert "the first 20 rows have" in records.found
    assert "at max_length = 512" in records.found


@pytest.mark.parametrize("written", [lambda names: names, json.dumps], ids=["list", "text"])
def test_lists_of_labels_are_left_to_the_run_which_has_their_names(looked: Any, written: Any) -> None:
    rows = [{"text": "a", "y": written(names)} for names in (["red"], [], ["red", "new"])]
    found = looked(rows, text="{text}", label="y")
    assert [f.state for f in found] == [OK] * 3
    assert "the run says what its labels are" in found[2].found
    assert "'new'" in found[1].found or written is json.dumps


def test_pairs_are_looked_at_as_pairs(looked: Any) -> None:
    talks = {side: [*talk("1 + 1")["m"], {"role": "assistant", "content": side}] for side in ("up", "down")}
    texts = {"q": "1 + 1", "up": "2", "down": "3"}
    for row, more in ((texts, {"prompt": "{q}"}), (talks, {"chat_template": CHAT})):
        rows, records, *said = looked([row] * 20, chosen="{up}", rejected="{down}", **more)
        assert (rows.state, records.state, said) == (OK, OK, [])
        assert "the first 20 rows have" in records.found
    (failed,) = [f for f in looked([texts] * 2, prompt="{q}", chosen="{up}", rejected="{dow}") if f.state == FAIL]
    assert "no field 'dow'" in failed.found


@pytest.mark.parametrize(
    ("row", "form", "words"),
    [
        ({"m": "hello"}, {"messages": "m"}, "row 2 of this site: field 'm' is 'hello', wanted a list of messages"),
        (talk("a"), {"messages": "m"}, "row 2 of this site: 'm' has no turn of the assistant"),
        ({"t": "1 2"}, {"tokens": "t"}, "row 2 of this site: field 't' is '1 2', wanted a list of integers"),
        ({"t": [10**6]}, {"tokens": "t"}, "token id 1000000, the model has embeddings of"),
        ({"x": 1}, {"label": "y"}, "row 2 of this site: no field 'y'"),
    ],
)
def test_a_row_of_another_form_fails_with_its_place(looked: Any, row: Any, form: dict[str, str], words: str) -> None:
    good = {**talk("a", "b"), "t": [5, 6], "text": "a", "y": "z"}
    failed = [found for found in looked([good, row], **form) if found.state == FAIL]
    assert any(words in found.found for found in failed)
    assert all(found.remedy for found in failed)


def test_what_a_run_would_say_before_round_1_is_said(looked: Any) -> None:
    rows = [{"q": "a " * 900, "a": f"b{END}"}, {"q": "a", "a": ""}]
    found = [f for f in looked(rows, prompt="{q}", response="{a}") if f.state == WARN]
    assert [f.found.split(";")[0] for f in found] == [
        "1 of 2 rows are longer than max_length = 512 tokens and were cut",
        "1 of 2 rows were skipped: there is nothing to learn in them",
        f"1 of 2 rows have {END!r} in their own text, which the tokenizer reads as control tokens",
    ]


def test_a_site_that_leaves_the_form_to_the_run_is_told_so(looked: Any) -> None:
    assert [f.found for f in looked([{"q": 1}])][1:] == ["not looked at: the run says what becomes of them"]


def test_a_model_without_a_chat_template_fails_where_the_site_has_conversations(looked: Any, base: Base) -> None:
    assert replace(base).tokenizer.chat_template is None
    assert any("has no chat template" in f.found for f in looked([talk("a", "b")], messages="m") if f.state == FAIL)
