"""Files that people really have: each is read as it was meant, or one line says what is wrong and what to do."""

import bz2
import datetime
import decimal
import gzip
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fedft.data import client_datasets, records, templates
from fedft.errors import DataError

ONE = [{"a": "1", "b": "2"}]
READ = {
    "BOM": ("r.csv", b"\xef\xbb\xbfa,b\n1,2\n", ONE),
    "BOM before quotes": ("r.csv", b'\xef\xbb\xbf"a","b"\r\n1,2\r\n', ONE),
    "CRLF": ("r.jsonl", b'{"a": "1", "b": "2"}\r\n\r\n', ONE),
    "blank lines": ("r.csv", b"\n\na,b\n\n1,2\n\n\n", ONE),
    "no last end of line": ("r.csv", b"a,b\n1,2", ONE),
    "a quote inside": ("r.csv", b'a,b\n5" pipe,"x, ""y"""\n', [{"a": '5" pipe', "b": 'x, "y"'}]),
    "empty rows of a sheet": ("r.csv", b"a,b\n1,2\n,\n", [*ONE, {"a": "", "b": ""}]),
    "emoji": ("r.jsonl", '{"a": "👩‍👩‍👧 é"}'.encode(), [{"a": "👩‍👩‍👧 é"}]),
    "line separators in a text": ("r.jsonl", '{"a": "x\u2028y\x85z"}'.encode(), [{"a": "x\u2028y\x85z"}]),
    "mixed types": ("r.jsonl", b'{"a": 1}\n{"a": "x"}\n{"a": null}\n', [{"a": 1}, {"a": "x"}, {"a": None}]),
    "nested": ("r.jsonl", b'{"a": {"b": [1, null]}}', [{"a": {"b": [1, None]}}]),
    "large integer": ("r.jsonl", b'{"a": 12345678901234567890123}', [{"a": 12345678901234567890123}]),
    "integers as floats": ("r.csv", b"a\n1.0\n", [{"a": "1.0"}]),
    "one column": ("r.csv", b"text\nhello\n\nworld\n", [{"text": "hello"}, {"text": "world"}]),
    "name with spaces": ("my data/r 1.csv", b"a,b\n1,2\n", ONE),
    "upper case": ("R.CSV.GZ", gzip.compress(b"a,b\n1,2\n"), ONE),
    "gz without a form": ("r.gz", gzip.compress(b'{"a": "1", "b": "2"}\n'), ONE),
}


@pytest.mark.parametrize("case", READ)
def test_it_is_read_as_it_was_meant(tmp_path, case):
    name, content, wanted = READ[case]
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(content)
    assert records.read_rows(str(tmp_path / name)) == wanted
    os.symlink(tmp_path / name, tmp_path / f"link {os.path.basename(name)}")
    assert records.read_rows(str(tmp_path / f"link {os.path.basename(name)}")) == wanted


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 3\n"
REFUSED = {
    "carriage returns": ("r.csv", b"a,b\r1,2\r", r"line 1: not CSV: lines end in a carriage return alone; `tr"),
    "carriage returns, JSON": ("r.jsonl", b'{"a":1}\r{"a":2}\r', r"line 1: not JSON: lines end in a carriage return"),
    "sep= of Excel": ("r.csv", b"sep=;\na;b\n", "line 1: 'sep=;' is for Excel, not a header; take the line out"),
    "semicolons": ("r.csv", b"a;b\n1;2\n", "look separated by ';'"),
    "tabs": ("r.csv", b"a\tb\n1\t2\n", r"look separated by '\\t'"),
    "a comma behind each row": ("r.csv", b"a,b\n1,2,\n", "line 2: 3 cells, the header has 2"),
    "a comma behind each line": ("r.csv", b"a,b,\n1,2,\n", r"line 1: expected a header .*'b', ''\]"),
    "a header twice": ("r.csv", b"a,a\n1,2\n", "line 1: expected a header of different field names"),
    "single quotes": ("r.csv", b"a,b\n'x,y',2\n", "line 2: 3 cells"),
    "backslashes": ("r.csv", b'a,b\n"x \\"y\\"",2\n', "line 2: not CSV: .*; a quote that is only text is doubled"),
    "a lone quote": ("r.tsv", b'a\tb\n"x\t2\n', "line 2: not CSV: .*; a quote that is only text is doubled"),
    "two lone quotes": ("r.tsv", b'a\tb\n"x\t2\ny"\t3\n', "line 3: a cell in quotes holds a tab; a quote that is only"),
    "several lines": ("r.jsonl", b'{\n "a": 1\n}\n', "line 1: an object over several lines; wanted one in each line"),
    "commas behind objects": ("r.jsonl", b'{"a":1},\n', "line 1: not JSON: Extra data at column 8"),
    "two on a line": ("r.jsonl", b'{"a":1}{"a":2}\n', "line 1: not JSON: Extra data"),
    "Python": ("r.jsonl", b"{'a': 1}\n", "line 1: not JSON: Expecting property name enclosed in double quotes"),
    "a list of texts": ("r.json", b'["a"]', "record 1: expected an object"),
    "files joined with BOMs": ("r.jsonl", b'{"a":1}\n\xef\xbb\xbf{"a":2}\n', "line 2: not JSON: Unexpected UTF-8 BOM"),
    "a control character": ("r.jsonl", b'{"a":"x\x01"}', "line 1: not JSON: Invalid control character"),
    "5000 digits": ("r.jsonl", b'{"a":' + b"9" * 5000 + b"}", "line 1: not JSON that we read: Exceeds the limit"),
    "an empty file": ("r.csv", b"", "holds no records"),
    "white space": ("r.jsonl", b"\n \n", "holds no records"),
    "gz of nothing": ("r.csv.gz", gzip.compress(b""), "holds no records"),
    "gz by another name": ("r.csv", gzip.compress(b"a\n1\n"), r"compressed by gzip; .* must end in \.gz"),
    "another by the name gz": ("r.csv.gz", b"a\n1\n", "cannot be read behind line 0: Not a gzipped file"),
    "bzip2": ("r.csv.bz2", bz2.compress(b"a\n1\n"), "compressed by bzip2; unpack it"),
    "zstd": ("r.jsonl.zst", b"\x28\xb5\x2f\xfdabc", "compressed by zstd; unpack it"),
    "a sheet": ("r.xlsx", b"PK\x03\x04\x14\x00", "a sheet of Excel; unpack it, or save the sheet as CSV UTF-8"),
    "a sheet by the name csv": ("r.csv", b"PK\x03\x04\x14\x00", "a sheet of Excel"),
    "a pointer": ("r.parquet", LFS, "a pointer of Git LFS .* `git lfs pull`"),
    "a pointer by the name csv": ("r.csv", LFS, "a pointer of Git LFS"),
    "Arrow": ("r.arrow", b"ARROW1\0\0", "an Arrow file; wanted Parquet"),
    "Parquet by another name": ("r.bin", b"PAR1abc", r"its name must end in \.parquet"),
    "prose": ("r.txt", b"hello\nworld\n", "expected a list of objects or an object per line"),
    "a web page": ("r.json", b"<!DOCTYPE html>", "expected a list of objects or an object per line"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_it_is_refused_in_one_line_that_helps(tmp_path, case):
    name, content, said = REFUSED[case]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=said) as e:
        records.read_rows(str(tmp_path / name))
    assert str(tmp_path / name) in str(e.value)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("https://example.org/r.csv", "an address; wanted a file of this machine"),
        ("hf://datasets/a/b/r.parquet", "an address"),
        ("imdb", "no such file; a data set of the hub is called 'owner/name'"),
        ("C:\\data\\r.csv", "no such file"),
        ("no/such/place/r.csv", "no such file"),
        ("dangling.csv", "no such file"),
        ("loop", "cannot be read behind line 0: .*symbolic links"),
        ("folder.csv", "a folder without a file"),
    ],
)
def test_a_source_that_is_no_file_is_refused_in_one_line(tmp_path, monkeypatch, source, said):
    monkeypatch.chdir(tmp_path)
    os.symlink("nowhere.csv", "dangling.csv")
    os.symlink("loop", "loop")
    os.mkdir("folder.csv")
    with pytest.raises(DataError, match=said) as e:
        client_datasets.read(source)
    assert source in str(e.value)
    assert "\n" not in str(e.value)


COLUMNS = {
    "dictionary": (pa.array(["x", "x"]).dictionary_encode(), "x"),
    "large text": (pa.array(["x"], pa.large_string()), "x"),
    "timestamp": (pa.array([datetime.datetime(2024, 1, 2, 3, 4, 5)], pa.timestamp("us")), "2024-01-02 03:04:05"),
    "nanoseconds": (pa.array([1704164645000000001], pa.timestamp("ns")), "2024-01-02 03:04:05.000000001"),
    "time zone": (pa.array([0], pa.timestamp("us", tz="Europe/Berlin")), "1970-01-01 01:00:00+01:00"),
    "date": (pa.array([datetime.date(2024, 1, 2)]), "2024-01-02"),
    "decimal": (pa.array([decimal.Decimal("1.50")]), "1.50"),
    "boolean": (pa.array([True]), "True"),
    "single precision": (pa.array([0.1], pa.float32()), "0.1"),
    "half precision": (pa.array([0.5], pa.float32()).cast(pa.float16()), "0.5"),
    "integers with null": (pa.array([None, 1], pa.int64()), ""),
    "nothing": (pa.array([None]), ""),
    "binary": (pa.array([b"x"]), None),
    "list": (pa.array([["x"]]), None),
    "struct": (pa.array([{"x": 1}]), None),
    "map": (pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int64())), None),
}


@pytest.mark.parametrize("kind", COLUMNS)
def test_a_column_of_parquet_is_its_text_or_refused_where_it_is_used(tmp_path, kind):
    column, text = COLUMNS[kind]
    pq.write_table(pa.table({"a": column, "b": ["y"] * len(column)}), tmp_path / "r.parquet")
    row = records.read_rows(str(tmp_path / "r.parquet"))[0]
    assert templates.fill("{b}", row, "row 1") == "y"
    if text is None:
        with pytest.raises(DataError, match=r"field 'a' is a .*, wanted text or a number"):
            templates.fill("{a}", row, "row 1")
    else:
        assert templates.fill("{a}", row, "row 1") == text


def test_single_precision_is_the_same_text_from_parquet_and_from_a_saved_data_set(tmp_path):
    import datasets

    table = pa.table({"a": pa.array([0.1, None, 3.0], pa.float32())})
    pq.write_table(table, tmp_path / "r.parquet")
    datasets.Dataset(table).save_to_disk(tmp_path / "saved")
    wanted = [{"a": 0.1}, {"a": None}, {"a": 3.0}]
    assert records.read_rows(str(tmp_path / "r.parquet")) == wanted == records.read_rows(str(tmp_path / "saved"))


@pytest.mark.parametrize("name", ["a\u200b", "a\u00a0", " a", "\ufeffa"])
def test_an_invisible_character_in_a_name_is_shown_where_the_name_is_missed(tmp_path, name):
    (tmp_path / "r.csv").write_text(f"b,{name}\n1,2\n", encoding="utf-8")
    with pytest.raises(DataError) as e:
        templates.fill("{a}", records.read_rows(str(tmp_path / "r.csv"))[0], "row 1")
    assert f"no field 'a'; there are b, {name!r}" in str(e.value)


def test_a_folder_of_mixed_forms_is_read_and_what_it_lacks_is_said(tmp_path, caplog):
    (tmp_path / "a.csv").write_text("a\n1\n")
    (tmp_path / "b.jsonl").write_text('{"a": 2}\n')
    (tmp_path / "c.csv").write_text("")
    (tmp_path / "sub").mkdir()
    assert [row["a"] for row in records.read_rows(str(tmp_path))] == ["1", 2]
    assert caplog.messages == [
        f"{tmp_path}: 1 of its entries are not read: sub",
        f"{tmp_path / 'c.csv'} holds no records",
    ]


@pytest.mark.parametrize(
    ("names", "held"),
    [
        (["train.jsonl", "test.jsonl"], "test.jsonl"),
        (["train-00000-of-00001.csv", "Validation-00000.csv", "dev.csv"], "Validation-00000.csv, dev.csv"),
        (["train_1.csv", "train_2.csv"], None),
        (["visits.csv", "test_results.csv"], None),  # no rows are said to be for training
        (["train.csv", "testimonials.csv"], None),
    ],
)
def test_a_folder_with_rows_to_train_on_and_to_test_with_is_not_read_as_one(tmp_path, names, held):
    for name in names:
        (tmp_path / name).write_text('{"a": 1}\n' if name.endswith("l") else "a\n1\n")
    if held is None:
        assert len(records.read_rows(str(tmp_path))) == len(names)
    else:
        with pytest.raises(DataError, match=f"holds rows to train on and {held}; name the file that is meant"):
            records.read_rows(str(tmp_path))
        assert len(client_datasets.read([str(tmp_path / name) for name in names])) == len(names)
