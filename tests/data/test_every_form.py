"""A hundred rows of every form of records go through a round; files that hold the same records give the same bytes."""

import csv
import gzip
import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import AutoTokenizer

from fedft import run_file
from fedft.simulations import run as runs

ROWS = [{"client": "ab"[n % 2], "prompt": f"{n} + 1 =", "response": f" {n + 1}\n"} for n in range(100)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


def table(separator, rows=ROWS) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, list(ROWS[0]), delimiter=separator, lineterminator="\r\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def saved(at):
    import datasets

    datasets.Dataset.from_list(ROWS).save_to_disk(at)


def halves(at):
    at.mkdir()
    (at / "1.jsonl").write_text(LINES[: LINES.index("\n", len(LINES) // 2) + 1])
    rest = [json.loads(line) for line in LINES[LINES.index("\n", len(LINES) // 2) + 1 :].splitlines()]
    (at / "2.csv").write_bytes(table(",", rest).encode())


SAME = {
    "jsonl": ("r.jsonl", lambda at: at.write_text(LINES)),
    "json": ("r.json", lambda at: at.write_text(json.dumps(ROWS, indent=1))),
    "any name": ("records", lambda at: at.write_text(LINES)),
    "csv": ("r.csv", lambda at: at.write_bytes(table(",").encode())),
    "csv of Excel": ("r.csv", lambda at: at.write_bytes(table(",").encode("utf-8-sig"))),
    "tsv in UTF-16": ("r.tsv", lambda at: at.write_bytes(table("\t").encode("utf-16"))),
    "parquet": ("r.parquet", lambda at: pq.write_table(pa.Table.from_pylist(ROWS), at)),
    "saved": ("r", saved),
    "jsonl.gz": ("r.jsonl.gz", lambda at: at.write_bytes(gzip.compress(LINES.encode()))),
    "csv.gz": ("r.csv.gz", lambda at: at.write_bytes(gzip.compress(table(",").encode()))),
    "folder": ("r", halves),
    "pattern": ("r/[12].*", lambda at: halves(at.parent)),
    "list": (["r/1.jsonl", "r/2.csv"], lambda at: halves(at.parent)),
    "hub": ("some/rows:train", None),
}


def a_round(folder, base, source, **data):
    """The summary of one round on these rows."""
    tables = {"model": {"id": str(base)}, "data": {"train": source, "max_length": 64, **data}, "clients": {"rank": 2}}
    tables |= {"local": {"steps": 4, "batch_size": 4}, "server": {"rounds": 1}, "strategy": {"name": "fedit"}}
    return runs.simulate(run_file.from_dict(tables), out=folder / "run").summary


@pytest.fixture(scope="module")
def wanted(tmp_path_factory, tiny_base):
    folder = tmp_path_factory.mktemp("wanted")
    (folder / "r.jsonl").write_text(LINES)
    return a_round(folder, tiny_base, str(folder / "r.jsonl"))


@pytest.mark.slow
@pytest.mark.parametrize("form", SAME)
def test_the_same_records_in_any_file_give_the_same_bytes(tmp_path, tiny_base, wanted, form, monkeypatch):
    source, write = SAME[form]
    if write is None:
        import datasets

        monkeypatch.setattr(datasets, "load_dataset", lambda *asked, split: datasets.Dataset.from_list(ROWS))
    else:
        write(tmp_path / (source if isinstance(source, str) else source[0]))
        source = str(tmp_path / source) if isinstance(source, str) else [str(tmp_path / one) for one in source]
    found = a_round(tmp_path, tiny_base, source)
    assert found["state_digest"] == wanted["state_digest"]
    assert found["rows"] == wanted["rows"]
    assert found["rows"]["rows"] == 100
    assert found["final"]["loss"] < found["initial"]["loss"]


CHAT = {
    "chat_template": "{% for m in messages %}{{ m.role + ': ' + m.content + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
}
OTHERS = {
    "messages": (CHAT, lambda row, ids: [
        {"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["response"]}
    ]),
    "conversations": (CHAT, lambda row, ids: [
        {"from": "human", "value": row["prompt"]}, {"from": "gpt", "value": row["response"]}
    ]),
    "tokens": ({}, lambda row, ids: ids(row["prompt"] + row["response"])),
    "text": ({"prompt": "", "response": "{text}"}, lambda row, ids: row["prompt"] + row["response"]),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("form", OTHERS)
@pytest.mark.parametrize("name", ["r.jsonl", "r.parquet"])
def test_every_form_of_a_record_goes_through_a_round(tmp_path, tiny_base, form, name):
    more, made = OTHERS[form]
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    rows = [{"client": row["client"], form: made(row, lambda text: tokenizer(text)["input_ids"])} for row in ROWS]
    if name == "r.jsonl":
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / name)
    key = {"text": {}, "tokens": {"tokens": form}}.get(form, {"messages": form})
    found = a_round(tmp_path, tiny_base, str(tmp_path / name), **key, **more)
    assert found["rows"]["rows"] == 100
    assert found["rows"]["cut"] == found["rows"]["empty"] == 0
    assert found["final"]["loss"] < found["initial"]["loss"]
