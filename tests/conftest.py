"""What holds for every test: no network, no telemetry, one thread, and the folder of real data where there is one."""

import os

# Before anything else is imported: these libraries read their environment once, at import.
os.environ.update(
    HF_HUB_OFFLINE="1", FLWR_TELEMETRY_ENABLED="0", FLWR_DISABLE_UPDATE_CHECK="1", TOKENIZERS_PARALLELISM="false"
)

from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)  # the tests' tensors are tiny: a second thread costs more than it gives


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with `data/` and `models/` for tests on real data; the test is skipped where there is none."""
    folder = Path(os.environ.get("FEDFT_SHARED") or Path(__file__).resolve().parents[2] / "shared")
    if not (folder / "data").is_dir():
        pytest.skip(f"no real data: {folder} has no data/ folder (FEDFT_SHARED names another one)")
    return folder
