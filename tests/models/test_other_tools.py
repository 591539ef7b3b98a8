"""What is printed for vLLM and llama.cpp, and why in other cases there is nothing to type."""

import re
from pathlib import Path
from typing import Any

import pytest

from fedft.models import other_tools


def adapter(r: int = 16, **more: Any) -> dict[str, Any]:
    return {"r": r, "base_model_name_or_path": "owner/name", "modules_to_save": None, "rank_pattern": {}, **more}


@pytest.mark.parametrize(("rank", "room"), [(1, 1), (2, 8), (16, 16), (33, 64), (257, 320), (512, 512)])
def test_vllm_is_given_the_least_room_that_it_takes(rank: int, room: int) -> None:
    line, limits = other_tools.vllm("adapter", "causal-lm", adapter(rank), "here it is")
    served = f"vllm serve owner/name --enable-lora --max-lora-rank {room} --lora-modules 'fedft=here it is'"
    assert line == served
    assert bool(limits) == (rank != room)


@pytest.mark.parametrize(
    ("kind", "said", "why"),
    [
        ("adapter", adapter(513), "up to rank 512, this one has 513: export it with --rank or --merged"),
        ("adapter", adapter(modules_to_save=["lm_head"]), r"modules_to_save \(lm_head\): export it with --merged"),
        ("delta", {}, "'delta': export it with --merged$"),
        ("values", {}, "'values': export it with --merged, where what it changes are weights$"),
    ],
)
def test_what_vllm_does_not_take_is_said_with_what_would_do(kind: str, said: dict[str, Any], why: str) -> None:
    line, (limit,) = other_tools.vllm(kind, "causal-lm", said)
    assert line == ""
    assert re.search(why, limit)


def test_a_whole_model_needs_no_adapter() -> None:
    for kind in other_tools.WHOLE:
        assert other_tools.vllm(kind, "causal-lm", {}, "m").command == "vllm serve m"
        assert "convert_hf_to_gguf.py m --" in other_tools.gguf(kind, "causal-lm", {}, "m").command


def test_llama_cpp_is_given_the_base_where_it_is_a_folder(tmp_path: Path) -> None:
    hub = other_tools.gguf("adapter", "causal-lm", adapter(), "a").command
    assert hub == "python llama.cpp/convert_lora_to_gguf.py a --outfile fedft.gguf"
    local = adapter(base_model_name_or_path=str(tmp_path))
    assert f" --base {tmp_path} " in other_tools.gguf("adapter", "seq2seq-lm", local).command


def test_llama_cpp_has_one_alpha_for_all_modules() -> None:
    line, (limit,) = other_tools.gguf("adapter", "causal-lm", adapter(rank_pattern={"m": 4}))
    assert line == ""
    assert "unlike ranks: export it with --rank or --merged" in limit
    assert not other_tools.gguf("adapter", "causal-lm", adapter(modules_to_save=["lm_head"])).command


def test_of_tasks_that_they_do_not_do_nothing_is_said() -> None:
    assert other_tools.vllm("adapter", "seq2seq-lm", adapter()) == other_tools.Lines("")
    assert other_tools.gguf("adapter", "sequence-classification", adapter()) == other_tools.Lines("")
