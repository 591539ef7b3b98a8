"""`fedft plan` as a user types it: the table, the refusal with its remedy, and what it does without weights."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from fedft.cli import main
from fedft.models import free_memory

ROWS = "".join(f'{{"who": "{"ab"[n % 2]}", "q": "{n} plus {n}", "a": "{"x " * (5 + n)}"}}\n' for n in range(12))
RUN = """
[model]
id = "bare"
[data]
train = "rows.jsonl"
client = "who"
prompt = "{q}"
response = "{a}"
holdout = 0.25
max_length = 96
[local]
steps = 4
batch_size = 16
[eval]
batch_size = 2
[strategy]
name = "fedit"
[server]
rounds = 3
"""


class Done(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Plan = Callable[..., Done]


@pytest.fixture
def plan(tmp_path: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Plan:
    """The command in a folder with a run file, rows, and a model of which there is everything but the weights."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text(ROWS)
    (tmp_path / "run.toml").write_text(RUN)
    shutil.copytree(tiny_base, tmp_path / "bare", ignore=shutil.ignore_patterns("*.safetensors"))
    assert not list((tmp_path / "bare").glob("*.safetensors"))

    def command(*args: str) -> Done:
        monkeypatch.setattr(sys, "argv", ["fedft", "plan", *args])
        code = 0
        try:
            main.main()
        except SystemExit as e:
            code = int(e.code or 0)
        return Done(code, *capsys.readouterr())

    return command


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets the bytes that are free on this machine."""
    return lambda n: monkeypatch.setattr(free_memory, "limits", lambda device: {"free on this machine": int(n)})


def test_the_table_needs_no_weights(plan: Plan) -> None:
    done = plan("run.toml", "--set", "strategy.name=flexlora", "--set", "clients.rank=[4,8]")
    assert done.code == 0, done.err
    for column in ("base", "activations", "logits", "peak", "down", "up"):
        assert column in done.out
    assert "3 rounds, 2 of 2 clients a round" in done.out
    assert "of memory at its peak (error), where it has no clients: base" in done.out
    assert "pace     b has most to compute" in done.out


def test_equal_clients_are_one_row_and_json_has_all_of_it(plan: Plan) -> None:
    found = plan("run.toml", "--json", "--flops", "1e9", "--up", "1e4", "--down", "1e5").json
    (row,) = found["clients"]
    assert (row["clients"], row["name"], row["rank"], row["steps"]) == (2, "2 clients", 8, 4)
    m = row["memory"]
    parts = ("base", "adapter", "optimizer", "activations", "logits", "process")
    assert sum(m[k] for k in parts) == pytest.approx(m["peak"])
    server = found["server"]
    assert server["peak"] == sum(server[k] for k in ("base", "state", "updates", "sums", "error", "process"))
    assert server["base"] == pytest.approx(m["base"])
    assert found["fits"]
    assert found["run"]["up"] == 3 * 2 * row["up"]
    assert row["seconds"] == pytest.approx(row["flops"] / 1e9 + row["up"] / 1e4 + row["down"] / 1e5)
    assert found["run"]["seconds"] == pytest.approx(3 * row["seconds"])


DEVICES = "clients.devices={classes=[{flops=1e9},{flops=1e8}]}"


def test_virtual_devices_of_the_run_file_are_the_speeds_and_take_no_time_to_evaluate(plan: Plan) -> None:
    fast, slow = "clients.devices={classes=[{flops=1e9}]}", "clients.devices={classes=[{flops=1e8,up=1e4}]}"
    one, ten = (plan("run.toml", "--json", "--set", of).json for of in (fast, slow))
    row = ten["clients"][0]
    assert row["seconds"] == pytest.approx(row["flops"] / 1e8 + row["up"] / 1e4)
    assert ten["run"]["seconds"] > 9 * one["run"]["seconds"] > 0
    assert ten["run"]["evaluation"] is None
    assert plan("run.toml", "--json").json["run"]["seconds"] is None


def test_evaluations_are_seconds_of_their_own(plan: Plan) -> None:
    """Versions 0 to 3, or 0, 2 and the last: three quarters of it."""
    every, second = (plan("run.toml", "--json", "--flops", "1e9", "--set", f"eval.every={n}").json for n in (1, 2))
    assert 0 < second["run"]["evaluation"] == pytest.approx(0.75 * every["run"]["evaluation"])
    assert every["run"]["evaluation"] < every["run"]["seconds"]  # forward passes of few rows
    assert "of evaluations" in plan("run.toml", "--flops", "1e7").out


def test_a_round_ends_with_its_quorum_and_grace_and_a_version_with_its_buffer(plan: Plan) -> None:
    """A fast and a ten times slower client: who sets the pace, and how long a round is."""

    def run(*sets: str) -> Any:
        words = [word for one in (DEVICES, *sets) for word in ("--set", one)]
        return plan("run.toml", "--json", *words).json["run"]

    whole = run("server.quorum=1.0")
    half = run("server.quorum=0.5", "server.grace_s=0")
    graced = run("server.quorum=0.5", "server.grace_s=1e6")
    assert half["seconds"] == pytest.approx(whole["seconds"] / 10, rel=0.2)  # their rows are not quite alike
    assert graced["seconds"] == whole["seconds"]
    assert half["pace"] != whole["pace"] == graced["pace"]
    assert half["why"] == "is the last one that a round waits for"
    first = run("server.buffer=1")
    assert first["seconds"] == pytest.approx(whole["seconds"] / 11, rel=0.2)  # 1 + 10 answers in the slow one's time
    assert (first["up"], first["down"]) == (whole["up"] // 2, whole["down"] // 2)


def test_what_does_not_fit_is_refused_with_a_change_that_makes_it_fit(
    plan: Plan, memory: Callable[[float], None]
) -> None:
    peak = plan("run.toml", "--json").json["clients"][0]["memory"]["peak"]
    memory(peak + 1)
    assert plan("run.toml").code == 0
    memory(peak - 1)
    done = plan("run.toml")
    assert done.code == 2
    assert "peak" in done.out
    line = done.err.strip().splitlines()[-1]
    assert "does not fit: " in line
    assert "checkpointing: " in line
    assert plan("run.toml", "--set", "local.checkpointing=true").code == 0


def test_changes_are_combined_where_one_is_not_enough(plan: Plan, memory: Callable[[float], None]) -> None:
    """What the line says is true: with these changes, and with none fewer, the plan fits."""
    keys = {"checkpointing": "local.checkpointing=true"}
    alone = [
        plan("run.toml", "--json", "--set", change).json["clients"][0]["memory"]["peak"]
        for change in (*keys.values(), "local.micro_batch=1", "model.base_bits=4", "eval.batch_size=1")
    ]
    memory(min(alone) - 1)
    done = plan("run.toml", "--json")
    assert done.code == 2
    (remedy,) = done.json["remedies"].values()
    assert remedy["fits"]
    assert "," in remedy["text"]
    said = remedy["text"].split(", ")
    tables = {"micro_batch": "local", "base_bits": "model"}
    changes = [keys.get(s) or f"{tables[s.split()[0]]}.{s.replace(' ', '=')}" for s in said]
    again = plan("run.toml", "--json", *(x for c in changes for x in ("--set", c)))
    assert again.code == 0, again.err
    assert again.json["clients"][0]["memory"]["peak"] == pytest.approx(remedy["peak"])


def test_the_impossible_says_so(plan: Plan, memory: Callable[[float], None]) -> None:
    memory(1e6)
    done = plan("run.toml", "--json")
    assert done.code == 2
    assert not done.json["fits"]
    assert "no change of the run file is enough" in done.err


def test_a_budget_ends_it_earlier(plan: Plan) -> None:
    one = plan("run.toml", "--json").json["run"]
    found = plan("run.toml", "--json", "--set", f"server.budget='bytes={(one['up'] + one['down']) / 3 + 10}'").json[
        "run"
    ]
    assert found["rounds"] == 1
    assert "budget" in found["cut"]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("missing.toml",), "missing.toml"),
        (("run.toml", "--set", "model.id=nowhere/at-all-of-it"), "nowhere/at-all-of-it"),
        (("run.toml", "--flops", "-1"), "--flops is -1, wanted a number above 0"),
        (("run.toml", "--set", "model.targets=['nothing']"), "nothing"),
        (("run.toml", "--set", "data.max_length=100000"), "positions"),
    ],
)
def test_mistakes_are_one_line(plan: Plan, args: tuple[str, ...], said: str) -> None:
    done = plan(*args)
    assert done.code == 2
    (line,) = done.err.strip().splitlines()
    assert said in line
    assert not done.out


def test_rows_that_are_elsewhere_count_as_long_as_they_may_be(plan: Plan, caplog: pytest.LogCaptureFixture) -> None:
    done = plan("run.toml", "--json", "--set", "data.train=elsewhere.jsonl", "--set", "data.clients=5")
    assert done.code == 0
    assert "planned for 5 clients with rows of 96 tokens" in caplog.text
    assert done.json["clients"][0]["clients"] == 5
    here = plan("run.toml", "--json").json["clients"][0]
    assert done.json["clients"][0]["memory"]["peak"] > here["memory"]["peak"]


SITE = """
[site]
name = "north"
[server]
address = "127.0.0.1:9092"
[model]
id = "bare"
[data]
train = "own.jsonl"
test = "own.jsonl"
prompt = "{q}"
response = "{a}"
[local]
micro_batch = 1
[policy]
strategies = ["fedit"]
"""


def test_a_site_plans_with_its_own_rows_machine_and_limit(plan: Plan, tmp_path: Path) -> None:
    (tmp_path / "keys").mkdir()
    for name in ("keys/ca.pem", "keys/server.pub", "keys/signing.key", "keys/node.key"):
        (tmp_path / name).write_text("x")
    (tmp_path / "own.jsonl").write_text(ROWS)
    site = tmp_path / "site.toml"
    site.write_text(SITE)
    found = plan("run.toml", "site.toml", "--json")
    assert found.code == 0, found.err
    (row,) = found.json["clients"]
    assert row["name"] == "north"
    assert found.json["disk"] is found.json["server"] is None
    run = plan("run.toml", "--json").json["clients"][0]
    assert row["memory"]["activations"] < run["memory"]["activations"] / 4  # micro_batch is the site's own

    most = int(row["memory"]["peak"] / 2**20)
    site.write_text(f"{SITE}max_memory_mib = {most}\n")
    done = plan("run.toml", "site.toml")
    assert done.code == 2
    assert "([policy] max_memory_mib)" in done.err
    site.write_text(f"{SITE}max_memory_mib = {most + 1}\nmax_rank = 4\n")
    done = plan("run.toml", "site.toml", "--set", "local.steps=100000")
    assert done.code != 0
    assert done.err.count("\n") == 1
    assert "[local] steps = 100000, allowed here: 0 to 1000" in done.err


def test_a_first_round_that_asks_for_little_does_not_stand_for_all(
    plan: Plan, caplog: pytest.LogCaptureFixture
) -> None:
    """FedPipe probes first; without a planner there is nothing to say."""
    said = "a later one may take up to"
    plan("run.toml")
    assert said not in caplog.text
    plan("run.toml", "--set", "strategy.name=fedpipe")
    assert said in caplog.text


def test_what_privacy_will_cost_is_said_with_the_rest(plan: Plan, tmp_path: Path) -> None:
    pytest.importorskip("dp_accounting", reason="pip install 'fedft[dp]'")
    said = ("--set", "privacy.clip=0.5", "--set", "privacy.delta=0.01", "--set", "privacy.noise_multiplier=2")
    done = plan("run.toml", "--set", "privacy.mode=central-dp", *said)
    assert (done.code, done.err) == (0, "")
    assert "privacy  central-dp, of one client: epsilon " in done.out
    found = plan("run.toml", "--json", "--set", "privacy.mode=example-dp", *said).json["privacy"]
    assert found["unit"] == "record"
    assert found["after"][-1] == [3, found["epsilon"]]
    assert plan("run.toml", "--json").json["privacy"] == {}
    refused = plan("run.toml", "--set", "privacy.mode=central-dp", *said, "--set", "strategy.name=flora")
    assert refused.code == 2
    assert "[strategy] name = 'flora' and [privacy] mode = 'central-dp'" in refused.err
