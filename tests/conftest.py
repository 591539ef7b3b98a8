"""What holds for every test: no network, no telemetry, one thread, and the folder of real data where there is one.

The whole suite runs in as many processes as there are cores, at most four; files that are named, `-k`, `--pdb` and
`-n 0` make it one process.
"""

import gc
import os

# Before anything else is imported: these libraries read their environment once, at import.
os.environ.update(
    HF_HUB_OFFLINE="1", FLWR_TELEMETRY_ENABLED="0", FLWR_DISABLE_UPDATE_CHECK="1", TOKENIZERS_PARALLELISM="false"
)
os.environ.setdefault("WARM_PROCESSES", "1")  # see tests/support/warm_processes.py

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

MAX_PROCESSES = 4  # each of them holds torch, Flower and a small model: about a gigabyte

gc.disable()  # until the tests run: imports make a million objects that stay, and each would be looked at many times


def pytest_collection_modifyitems() -> None:
    """In the processes that run tests, and not in the one that deals them out, which needs no torch."""
    import torch

    torch.set_num_threads(1)  # the tests' tensors are tiny: a second thread costs more than it gives
    os.fsync = lambda fd: None  # nobody pulls the plug: what is fsynced when has tests, which set their own


def pytest_runtestloop() -> None:
    """What has been imported stays; from here on garbage is collected, among what is newer."""
    gc.freeze()
    gc.enable()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """A process more costs seconds of imports: worth it for the whole suite only. 0 is this process alone.

    One more than cores: tests that wait for servers and sites left half of one idle.
    """
    if config.option.keyword or any(".py" in name for name in config.args):
        return 0
    ours = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(ours + 1, MAX_PROCESSES) if ours > 1 else 0


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """What tests that passed tell by `record_property("told", text)`, from whatever process."""
    for report in terminalreporter.getreports("passed"):
        for name, text in report.user_properties:
            if name == "told" and report.when == "call":
                terminalreporter.write_line(f"{report.nodeid.partition('::')[2]}: {text}")


@pytest.fixture
def allow(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Allows each "module:name" that run files of this test name, as `fedft --allow` does."""
    return lambda *names: monkeypatch.setenv("FEDFT_ALLOW", " ".join(names))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with `data/` and `models/` for tests on real data; the test is skipped where there is none."""
    folder = Path(os.environ.get("FEDFT_SHARED") or Path(__file__).resolve().parents[2] / "shared")
    if not (folder / "data").is_dir():
        pytest.skip(f"no real data: {folder} has no data/ folder (FEDFT_SHARED names another one)")
    return folder


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama with two layers of 64, trained for two seconds by whichever process is first; nobody writes into it."""
    from fedft.quickstart import base
    from fedft.quickstart.pretraining import TINY

    own = tmp_path_factory.getbasetemp()
    of_all = own.parent if os.environ.get("PYTEST_XDIST_WORKER") else own
    return base.ensure(of_all / "cache", settings=TINY)
