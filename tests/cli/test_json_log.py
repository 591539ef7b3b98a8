"""`--log json`: every line of stdout and stderr is an object, whoever writes it, to the process's last."""

import json
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from processes import FEDFT, Deployment

from fedft.simulations import run as runs

LEVELS = {"DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"}


def objects(text: str) -> list[dict[str, Any]]:
    """The lines, each of which is a JSON object in the form of a log line."""
    found = [json.loads(line) for line in text.splitlines()]
    for line in found:
        assert {"time", "level", "logger", "message"} <= line.keys(), line
        assert line.keys() <= {"time", "level", "logger", "run", "site", "round", "message", "traceback"}
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["time"])
        assert line["level"] in LEVELS
    return found


def ran(code: str, code_is: int = 0) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """What a process that runs `code` after `json_log.begin()` has written: on stdout, on stderr."""
    before = "import ctypes, logging, os, subprocess, sys, threading, warnings\nfrom fedft.cli import json_log, logs\n"
    whole = f"{before}logs.start('json')\nlog = logging.getLogger('fedft')\n{textwrap.dedent(code)}"
    done = subprocess.run([sys.executable, "-c", whole], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == code_is, done.stderr
    return objects(done.stdout), objects(done.stderr)


def told(lines: list[dict[str, Any]]) -> list[tuple[str, str, str]]:
    return [(x["logger"], x["level"], x["message"]) for x in lines]


def test_whatever_is_printed_is_an_object_on_the_same_stream() -> None:
    out, err = ran(
        r"""
        print("from Python")
        print("by halves ", end="")
        print(", whole")
        print("on stderr\n\n   \nthree lines below", file=sys.stderr)
        os.write(2, b"step 1\rstep 2\r\xff not UTF-8 \x1b[1m\nno end")
        libc = ctypes.CDLL(None)
        libc.puts(b"from C")
        subprocess.run([sys.executable, "-c", "print('from a child')"])
        """
    )
    assert sorted(told(out)) == sorted(
        [("stdout", "INFO", m) for m in ("from Python", "by halves , whole", "from a child", "from C")]
    )
    said = ["on stderr", "three lines below", "step 1", "step 2", "\\xff not UTF-8 \x1b[1m", "no end"]
    assert told(err) == [("stderr", "WARNING", m) for m in said]


def test_records_of_all_loggers_come_once() -> None:
    out, err = ran(
        r"""
        for name, passes_on in (("alone", False), ("both", True)):  # as transformers and flwr set theirs up
            theirs = logging.getLogger(name)
            theirs.addHandler(logging.StreamHandler())
            theirs.propagate = passes_on
            logging.getLogger(name + ".below").warning("of %s", name)
        warnings.warn("be careful")
        log.info("two\nlines %s", "é\ud800")
        log.info("%d does not fit", "text")
        log.debug("not said")
        try:
            1 / 0
        except ZeroDivisionError:
            log.exception("failed")
        """
    )
    assert not err
    assert [(x["logger"], x["message"].partition("<string>")[0]) for x in out] == [
        ("alone.below", "of alone"), ("both.below", "of both"), ("py.warnings", ""), ("fedft", "two\nlines é\ud800"),
        ("fedft", "'%d does not fit' of ('text',)"), ("fedft", "failed"),
    ]  # fmt: skip
    assert "UserWarning: be careful" in out[2]["message"]
    assert out[5]["traceback"].endswith("ZeroDivisionError: division by zero")


def test_facts_are_of_the_thread_of_the_message_and_of_the_record() -> None:
    out, _ = ran(
        """
        json_log.know(site="north", run="r1")
        log.info("plain")
        log.info("round %d: at work", 3)
        log.info("run %s: at work", "r2")
        log.info("own", extra={"site": "south", "round": None})
        def others():
            log.info("of the main thread")
            json_log.know(run="r3", round=7)
            log.info("of its own")
            print("printed")
        thread = threading.Thread(target=others)
        thread.start()
        thread.join()
        json_log.know(run=None)
        log.info("round 4: text")
        """
    )
    found = {x["message"]: {k: x[k] for k in ("run", "site", "round") if k in x} for x in out}
    assert found == {
        "plain": {"run": "r1", "site": "north"}, "round 3: at work": {"run": "r1", "site": "north", "round": 3},
        "run r2: at work": {"run": "r2", "site": "north"}, "own": {"run": "r1", "site": "south"},
        "of the main thread": {"run": "r1", "site": "north"}, "of its own": {"run": "r3", "round": 7},
        "printed": found["printed"], "round 4: text": {"site": "north"},
    }  # fmt: skip


def test_what_ends_a_process_or_a_thread_is_an_object() -> None:
    out, err = ran("threading.Thread(target=lambda: 1 / 0).start()\nraise ValueError('for\\nnothing')", 1)
    assert [(x["message"], "Traceback" in x["traceback"]) for x in out] == [
        ("ZeroDivisionError: division by zero", True)
    ]
    assert [(x["message"], "Traceback" in x["traceback"]) for x in err] == [("ValueError: for\nnothing", True)]
    out, err = ran("print('last words')\nlogging.shutdown()\nos._exit(7)", 7)  # as `fedft client` leaves
    assert told(out) == [("stdout", "INFO", "last words")]
    assert not err


def test_long_lines_are_cut_and_nothing_waits_for_the_reader() -> None:
    out, _ = ran(f"print('x' * {3 * 2**16 + 5})\nfor n in range(20_000): print(n)")
    assert sum(len(x["message"]) for x in out if x["message"].startswith("x")) == 3 * 2**16 + 5
    assert max(len(x["message"]) for x in out) <= 2**16
    assert [x["message"] for x in out if x["message"].isdecimal()] == [str(n) for n in range(20_000)]


def test_who_reads_no_more_stops_nobody() -> None:
    code = "from fedft.cli import logs\nlogs.start('json')\nfor n in range(20_000): print('y' * 100)\n"
    code += "import logging\nlogging.getLogger('fedft').info('on')"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    process.stdout.read(10)
    process.stdout.close()
    try:
        assert process.wait(60) == 0
    finally:
        process.kill()


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (("server", "--log", "json", "none.toml", "--keys", "k", "--out", "o"), 2, "none.toml: no such"),
        (("server", "--log", "json", "--no-such"), 2, "No such option '--no-such'"),
        (("client", "none.toml", "--log=json"), 2, "none.toml: no such"),
        (("board", "none", "--log", "json"), 2, "none: no such folder"),
    ],
)
def test_a_mistake_is_one_object_on_stderr(args: tuple[str, ...], code: int, said: str, tmp_path: Path) -> None:
    done = subprocess.run([*FEDFT, *args], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    (line,) = objects(done.stderr)
    assert (done.returncode, done.stdout, line["level"], line["logger"]) == (code, "", "ERROR", "fedft")
    assert said in line["message"]
    assert "\n" not in line["message"]


@pytest.mark.slow
def test_a_deployment_that_fails_and_finishes_logs_nothing_but_objects(tiny_base: Path, tmp_path: Path) -> None:
    small = ["local.steps=4", "local.batch_size=4", "data.max_length=64", "data.clients=2", "eval.max_rows=4"]
    sets = [f"model.id='{tiny_base}'", "strategy.name=flora", "clients.rank=4", "server.rounds=2", *small]
    with Deployment(tmp_path, runs.QUICKSTART, sets) as d:
        names = d.rehearse()
        failed = d.server("--set", "model.id='no-such-model'", "--log", "json", out=tmp_path / "failed")
        assert failed.ended(120) == 2
        (line,) = [x for x in objects(failed.said()) if x["level"] == "ERROR"]
        assert "no-such-model" in line["message"]
        config = d.site(names[0]) / "site.toml"
        whole = config.read_text()
        config.write_text(re.sub(r"(?m)^train = .*$", "train = 'none.jsonl'", whole))
        server = d.server("--log", "json")
        clients = {name: d.client(name, "--log", "json") for name in names}
        assert clients[names[0]].ended(120) == 2  # its rows are not there
        (line,) = objects(clients[names[0]].said())
        assert "none.jsonl" in line["message"]
        config.write_text(whole)
        clients[names[0]].start()
        assert server.ended(180) == 0
        said = objects(server.said())
        finished = next(x for x in said if x["message"].startswith("finished: "))
        run = {x["run"] for x in said if "run" in x}
        assert len(run) == 1
        assert json.loads(finished["message"].removeprefix("finished: "))["rounds"] == 2
        admitted = [x for x in said if x["message"].endswith("admitted") or " admitted, loss" in x["message"]]
        assert {(x["site"], x["round"]) for x in admitted} == {(name, n) for name in names for n in (0, 1)}
        for name, client in clients.items():
            assert client.stop() == 0
            assert objects(client.log.read_text())
            lines = objects(client.said())
            assert not [x for x in lines if x.get("site") != name]
            assert {x["run"] for x in lines if "run" in x} >= run
            assert {x["round"] for x in lines if x["message"].endswith("to send")} == {0, 1}
            assert lines[-1]["message"] == "stopped"
