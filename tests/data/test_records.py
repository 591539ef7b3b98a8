"""Every file of records is read the same or refused in one line, and every record has one owner."""

import codecs
import gzip
import json
import logging
import subprocess
import sys
from itertools import pairwise

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fedft.data import client_datasets, partition, records
from fedft.errors import DataError

# --- reading


ROWS = [{"q": "what\nis", "n": "1"}, {"q": 'say "é"', "n": "2"}]
FILES = {
    "rows.jsonl": "\n".join(map(json.dumps, ROWS)) + "\n\n",
    "rows.jsonl.gz": "\ufeff" + "\n".join(map(json.dumps, ROWS)),
    "rows.json": json.dumps(ROWS, indent=1),
    "rows.csv": 'q,n\r\n"what\nis",1\r\n"say ""é""",2\r\n',
    "rows.ndjson": "\n".join(map(json.dumps, ROWS)),
    "lines.json": "\n".join(map(json.dumps, ROWS)),
    "lines.txt": "\n".join(map(json.dumps, ROWS)),
    "list": json.dumps(ROWS),
    "ROWS.TSV": 'q\tn\n"what\nis"\t1\n"say ""é"""\t2\n',
}


@pytest.mark.parametrize("name", FILES)
def test_every_format_gives_the_same_records(tmp_path, name):
    path = tmp_path / name
    data_bytes = FILES[name].encode()
    path.write_bytes(gzip.compress(data_bytes) if name.endswith(".gz") else data_bytes)
    assert records.read_rows(str(path)) == ROWS


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", b'{"x": 1}\n\n{"x": }\n', "line 3: not JSON"),
        ("a.jsonl", b'{"x": 1}\n[1]\n', "line 2: expected an object"),
        ("a.jsonl", b'{"x": 1}\n{"x": "\xff"}\n', "line 2: byte 0xff is not UTF-8"),
        ("a.csv", "x,y\n1,é\n".encode("cp1252"), "line 2: byte 0xe9 is not UTF-8.*`iconv -f WINDOWS-1252 -t UTF-8`"),
        ("a.csv", "x,y\n1,é\n".encode("utf-16-le"), "line 1: a byte 0: .*`iconv -f UTF-16LE -t UTF-8`"),
        ("a.csv", "x,y\n1,é\n".encode("utf-16") + b"x", "line 1: not utf-16-le text, as its first bytes say"),
        ("a.jsonl", b'{"x": 1}\n' + b"[" * 100_000, "line 2: not JSON that we read"),
        ("a.json", b'[{"x": 1},\n {"x": }]', "line 2: not JSON"),
        ("a.json", b'"x"', "expected a list"),
        ("a.txt", b"hello", "expected a list of objects or an object per line"),
        ("a.jsonl", b'{"x": 1}\n{"x": 1, "y": 2, "x": 3}', "line 2: not JSON that we read: the key 'x' stands twice"),
        ("a.jsonl", b'{"x": {"y": [Infinity]}}', "line 1: field 'x' is inf"),
        ("a.jsonl", b'{"x": 1e999}', "line 1: field 'x' is inf"),
        ("a.csv", b"x;y\n1;2\n", "line 1: one field, 'x;y'; its cells look separated by ';'"),
        ("a.json", b'[{"x": 1}, 7]', "record 2: expected an object"),
        ("a.csv", b'x,y\n"1\n2",3\n4\n', "line 4: 1 cells, the header has 2"),
        ("a.csv", b'x,y\n1,2\n"3"4,5\n', "line 3: not CSV"),
        ("a.csv", b"x,x\n1,2\n", "line 1: expected a header"),
        ("a.jsonl.gz", b'{"x": 1}\n', "cannot be read behind line 0"),
        ("a.jsonl.gz", gzip.compress(b'{"x": 1}\n' * 9, mtime=0)[:-6], "cannot be read behind line"),
        ("a.jsonl", b"", "holds no records"),
        ("a.json", b"", "holds no records"),
        ("a.csv", b"x,y\n", "holds no records"),
        ("a.parquet", b"PAR1", "cannot be read as Parquet"),
    ],
)
def test_a_malformed_file_is_one_line_that_says_where(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=said) as e:
        records.read_rows(str(tmp_path / name))
    assert name in str(e.value)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("name", [n for n in FILES if n != "rows.jsonl.gz"])
def test_a_file_that_says_its_encoding_is_read(tmp_path, name, encoding):
    (tmp_path / name).write_bytes(FILES[name].encode(encoding))
    (tmp_path / f"{name}.gz").write_bytes(gzip.compress(FILES[name].encode(encoding)))
    assert records.read_rows(str(tmp_path / name)) == ROWS == records.read_rows(str(tmp_path / f"{name}.gz"))
    big = codecs.BOM_UTF16_BE + FILES[name].encode("utf-16-be")
    (tmp_path / name).write_bytes(big)
    assert records.read_rows(str(tmp_path / name)) == ROWS


def test_a_number_that_is_none_is_null_however_it_is_written(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"x": NaN, "y": [1, NaN], "z": {"v": NaN}}\n')
    pq.write_table(pa.table({"x": [1.0, float("nan")], "y": [None, "b"]}), tmp_path / "a.parquet")
    assert records.read_rows(str(tmp_path / "a.jsonl")) == [{"x": None, "y": [1, None], "z": {"v": None}}]
    assert records.read_rows(str(tmp_path / "a.parquet")) == [{"x": 1.0, "y": None}, {"x": None, "y": "b"}]


def test_a_cell_may_hold_a_whole_document(tmp_path):
    (tmp_path / "a.csv").write_text(f"x,y\n{'word ' * 100_000},1\n")
    assert len(records.read_rows(str(tmp_path / "a.csv"))[0]["x"]) == 500_000


def test_several_files_are_read_in_the_order_of_their_names(tmp_path):
    (tmp_path / "b.jsonl").write_text('{"n": 2}\n')
    (tmp_path / "a.csv").write_text("n\n1\n")
    (tmp_path / "README.md").write_text("about")
    (tmp_path / "deeper").mkdir()
    (tmp_path / "deeper" / "c.jsonl").write_text('{"n": 3}\n')
    assert [r["n"] for r in records.read_rows(str(tmp_path))] == ["1", 2]
    assert [r["n"] for r in records.read_rows(str(tmp_path / "*.jsonl"))] == [2]
    assert [r["n"] for r in records.read_rows(str(tmp_path / "**" / "*.jsonl"))] == [2, 3]
    (tmp_path / "x[1].jsonl").write_text('{"n": 4}\n')  # a file's name wins over a pattern
    assert records.read_rows(str(tmp_path / "x[1].jsonl")) == [{"n": 4}]
    with pytest.raises(DataError, match="no file is called like that"):
        records.read_rows(str(tmp_path / "*.tsv"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="a folder without a file"):
        records.read_rows(str(tmp_path / "empty"))


def test_what_of_a_folder_is_not_read_is_said(tmp_path, caplog):
    for name in ("a.csv", "b.csv", "README.md", "._a.csv"):
        (tmp_path / name).write_text("n\n1\n")
    with caplog.at_level(logging.WARNING):
        assert len(records.read_rows(str(tmp_path))) == 2
    assert caplog.messages == [f"{tmp_path}: 2 of its entries are not read: ._a.csv, README.md"]


def test_a_list_is_read_in_its_order_and_names_nothing_twice(tmp_path):
    for name in "abc":
        (tmp_path / f"{name}.csv").write_text(f"n\n{name}\n")
    a, b, c = (str(tmp_path / f"{name}.csv") for name in "abc")
    assert [r["n"] for r in client_datasets.read([c, a])] == ["c", "a"]
    assert [r["n"] for r in client_datasets.read([c, str(tmp_path / "[ab].csv")])] == ["c", "a", "b"]
    for twice in ([a, b, a], [str(tmp_path / "*.csv"), b], [str(tmp_path), c]):
        with pytest.raises(DataError, match=r"names .*[abc]\.csv twice"):
            client_datasets.read(twice)
    with pytest.raises(DataError, match="an empty list"):
        client_datasets.read([])
    with pytest.raises(DataError, match=r"none\.csv: no such file"):
        client_datasets.read([a, str(tmp_path / "none.csv")])
    for nothing in ("", [a, ""]):
        with pytest.raises(DataError, match="is '', wanted a file"):
            client_datasets.read(nothing)


def test_what_datasets_saved_is_read(tmp_path):
    import datasets

    rows = [{"q": "é", "n": 1}, {"q": "b", "n": 2}]
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "one")
    split = datasets.DatasetDict(
        {"train": datasets.Dataset.from_list(rows), "test": datasets.Dataset.from_list(rows[:1])}
    )
    split.save_to_disk(tmp_path / "splits")
    assert records.read_rows(str(tmp_path / "one")) == rows == records.read_rows(str(tmp_path / "splits"))


@pytest.mark.parametrize(
    ("source", "asked"),
    [
        ("a/b", ("a/b", None, "train")),
        ("a/b:test", ("a/b", None, "test")),
        ("a/b:de:validation", ("a/b", "de", "validation")),
    ],
)
def test_a_hub_id_says_configuration_and_split(source, asked, monkeypatch):
    import datasets

    def load(name, configuration, split):
        assert (name, configuration, split) == asked
        return [{"x": float("nan")}]

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert records.read_rows(source) == [{"x": None}]


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"none\.jsonl: no such file"):
        records.read_rows(str(tmp_path / "none.jsonl"))


def test_a_hub_id_offline_is_one_line():
    with pytest.raises(DataError, match="HF_HUB_OFFLINE is set") as e:
        records.read_rows("nobody/nothing:train")
    assert "\n" not in str(e.value)


def test_importing_the_module_imports_neither_datasets_nor_flower_nor_transformers():
    heavy = {"datasets", "flwr_datasets", "flwr", "transformers"}
    code = f"import sys, fedft.data.records; print({heavy} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


# --- who holds what


@pytest.mark.parametrize(("n", "fraction", "test"), [(326, 0.2, 65), (100, 0.29, 29), (3, 0.2, 0), (4, 0.0, 0)])
def test_the_held_out_part_is_a_floor_and_nothing_is_lost(n, fraction, test):
    rows = [{"i": i} for i in range(n)]
    train, held = partition.hold_out(rows, fraction, seed=0)
    assert len(held) == test
    assert sorted([*train, *held], key=lambda row: row["i"]) == rows
    assert all(a["i"] < b["i"] for part in (train, held) for a, b in pairwise(part))
    assert partition.hold_out(rows, fraction, seed=0) == (train, held)


MANY = [{"who": f"{i % 5} ", "i": i} for i in range(60)]


def cut(how, rows=MANY, *, field="who", clients=4, alpha=0.5, seed=1):
    return partition.partition(rows, how=how, field=field, clients=clients, alpha=alpha, seed=seed)


@pytest.mark.parametrize("how", ["natural", "iid", "dirichlet"])
def test_every_row_has_one_client_and_the_seed_decides(how, capfd):
    parts = cut(how)
    assert sorted(i for part in parts.values() for i in part) == list(range(60))
    assert all(part and part == sorted(part) for part in parts.values())
    assert parts == cut(how)
    assert (parts == cut(how, seed=-2)) == (how == "natural")
    assert capfd.readouterr() == ("", "")  # no progress bar of the partitioner


def test_natural_clients_are_called_by_their_value_as_text():
    parts = cut("natural", [{"who": w} for w in (3, "3", "é ", True, 3.0, 3.5)])
    assert parts == {"3": [0, 1, 4], "3.5": [5], "True": [3], "é ": [2]}


def test_iid_clients_are_of_equal_size_and_not_in_the_order_of_the_file():
    parts = cut("iid", clients=7)
    assert list(parts) == [f"client-{k}" for k in range(7)]
    assert {len(part) for part in parts.values()} == {8, 9}
    assert parts["client-0"] != list(range(9))


def test_a_small_alpha_skews_the_labels_more():
    def skew(alpha):
        parts = cut("dirichlet", MANY * 10, alpha=alpha)
        return sum(max(sum(i % 5 == k for i in part) for k in range(5)) / len(part) for part in parts.values()) / 4

    assert skew(1000.0) < 0.3 < skew(0.1)


def test_a_dirichlet_cut_that_leaves_a_client_without_rows_ends():
    with pytest.raises(DataError, match=r"some of 30 clients got no row at alpha = 0\.001"):
        cut("dirichlet", clients=30, alpha=0.001)


@pytest.mark.parametrize("how", ["iid", "dirichlet"])
@pytest.mark.parametrize("clients", [0, 61, None])
def test_a_wrong_number_of_clients_is_refused(how, clients):
    with pytest.raises(DataError, match="expected 1 to 60 clients"):
        cut(how, clients=clients)


@pytest.mark.parametrize(("row", "said"), [({}, "row 2 has no 'who'"), ({"who": None}, "row 2 is null in 'who'")])
def test_a_row_without_the_field_is_named(row, said):
    with pytest.raises(DataError, match=said):
        cut("natural", [{"who": 1}, row])


def test_the_tasks_of_natural_instructions_are_clients(shared):
    rows = records.read_rows(str(shared / "data/natural_instructions/train.jsonl.gz"))
    parts = cut("natural", rows, field="task")
    assert len(parts) == 46
    assert sum(map(len, parts.values())) == 7153
