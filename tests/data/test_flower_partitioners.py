"""Any partitioner of flwr-datasets cuts by its name and options; every row has one client."""

import subprocess
import sys

import pytest

from fedft.data import partition
from fedft.errors import ConfigError

ROWS = [{"who": f" {'abcdef'[i % 6]}", "i": i} for i in range(90)]
OPTIONS = {
    "PathologicalPartitioner": {"num_classes_per_partition": 4, "class_assignment_mode": "deterministic"},
    "ShardPartitioner": {"num_shards_per_partition": 2},
    "LinearPartitioner": {},
    "SquarePartitioner": {},
    "ExponentialPartitioner": {},
    "GroupedNaturalIdPartitioner": {"group_size": 2},
    "IidPartitioner": {},
}


def cut(name, options=None, *, rows=ROWS, seed=1, clients=3):
    how = {"name": "flwr", "partitioner": name, "options": options or {}}
    return partition.partition(rows, how=how, field="who", clients=clients, alpha=0.5, seed=seed)


@pytest.mark.parametrize("name", OPTIONS)
def test_every_row_has_one_client_and_the_same_seed_the_same_cut(name, capfd):
    parts = cut(name, OPTIONS[name])
    assert sorted(i for part in parts.values() for i in part) == list(range(90))
    assert all(part == sorted(part) and part for part in parts.values())
    assert list(parts) == ["client-0", "client-1", "client-2"]
    assert parts == cut(name, OPTIONS[name])
    assert capfd.readouterr() == ("", "")


def test_its_options_reach_the_partitioner():
    parts = cut("PathologicalPartitioner", {"num_classes_per_partition": 4, "class_assignment_mode": "deterministic"})
    assert {len({ROWS[i]["who"] for i in part}) for part in parts.values()} == {4}


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("PathologicPartitioner", {}, "did you mean 'PathologicalPartitioner'"),
        ("PathologicalPartitioner", {"classes": 2}, "unexpected keyword argument 'classes'"),
        ("PathologicalPartitioner", {"num_classes_per_partition": 60}, "60"),
    ],
)
def test_what_it_cannot_do_is_one_line(name, options, said):
    with pytest.raises(ConfigError, match=said) as e:
        cut(name, options)
    assert "\n" not in str(e.value)


def test_plain_cuts_import_neither_datasets_nor_flower():
    code = (
        "import sys; from fedft.data import partition as p\n"
        "rows = [{'c': 'ab'[i % 2]} for i in range(9)]\n"
        "for how in ('natural', 'iid'): p.partition(rows, how=how, field='c', clients=2, alpha=1.0, seed=1)\n"
        "print({'datasets', 'flwr_datasets', 'flwr'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


@pytest.mark.parametrize("name", ["dirichlet", "flwr"])
def test_without_the_library_one_line_names_the_extra(name, monkeypatch):
    monkeypatch.setitem(sys.modules, "flwr_datasets.partitioner", None)
    with pytest.raises(ConfigError, match=rf"'{name}' is of flwr-datasets; pip install 'fedft\[partitioners\]'$"):
        partition.partition(ROWS, how=name, field="who", clients=3, alpha=0.5, seed=1)
