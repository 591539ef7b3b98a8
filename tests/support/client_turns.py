"""Turns of clients on small models with an adapter, and the updates of each training alone, or of all together."""

from typing import Any

import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
)

from fedft.adapters.lora import LoRA
from fedft.arithmetic.named_pairs import A_SUFFIX
from fedft.config import Local
from fedft.contract import Batch, Turn
from fedft.data.examples import IGNORED
from fedft.models import layout, load
from fedft.models.handle import ModelHandle
from fedft.testing import Ready
from fedft.training import batched_clients
from fedft.training.first_order import FirstOrder
from fedft.update import Plan

SPACE, PLAIN = LoRA(), FirstOrder()
SMALL = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "pad_token_id": 0,
}  # fmt: skip


def llama(**more: Any) -> Any:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SMALL, **more))


def classifier() -> Any:
    torch.manual_seed(0)
    return LlamaForSequenceClassification(LlamaConfig(**SMALL, num_labels=3))


def gpt2(rate: float = 0.0) -> Any:
    torch.manual_seed(0)
    rates = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop", "summary_first_dropout"), rate)
    return GPT2LMHeadModel(GPT2Config(vocab_size=97, n_embd=32, n_layer=2, n_head=2, pad_token_id=0, **rates))


def handle_on(net: Any, space: Any = SPACE) -> ModelHandle:
    task = "sequence-classification" if "Classification" in type(net).__name__ else "causal-lm"
    return ModelHandle(net, layout.layout_of(load.Base(net, None, task, "", ""), "all-linear"), space)


def batch_of(seed: int, rows: int = 2, length: int = 9, classes: int = 0) -> Batch:
    """Rows of unlike lengths whose first tokens are not learned; without classes, of language."""
    g = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, 97, (rows, length), generator=g)
    ends = torch.randint(4, length + 1, (rows,), generator=g)
    ends[0] = length
    there = torch.arange(length)[None] < ends[:, None]
    ids[~there] = 0
    labels = torch.where(there, ids, IGNORED)
    labels[:, :2] = IGNORED
    if classes:
        labels = torch.randint(classes, (rows,), generator=g)
    return {"input_ids": ids, "attention_mask": there.long(), "labels": labels}


def turn_of(client: int, rank: int = 4, steps: int = 4, lr: float = 1e-2, **local: Any) -> Turn:
    return Turn(Plan("", 0, 0, rank=rank, steps=steps, learning_rate=lr), {}, "", Local(**local), 0, client)


def start(handle: ModelHandle, turn: Turn) -> None:
    """Each client from factors of its own, none of them zero, so that everything has a gradient."""
    values = SPACE.initial(handle.layout, turn.plan.rank, turn.seed)
    g = torch.Generator().manual_seed(turn.seed)
    handle.write({n: x if n.endswith(A_SUFFIX) else 0.1 * torch.randn(x.shape, generator=g) for n, x in values.items()})


Work = list[tuple[Turn, list[Batch]]]


def alone(handle: ModelHandle, work: Work, local: FirstOrder) -> list[Any]:
    found: list[Any] = []
    for turn, batches in work:
        start(handle, turn)
        try:
            found.append(local(handle, Ready(*batches), turn))
        except FloatingPointError as e:
            found.append(e)
    return found


def shared(handle: ModelHandle, work: Work, local: FirstOrder = PLAIN) -> list[Any]:
    seats, base = [], batched_clients.common(handle)
    for turn, batches in work:
        start(handle, turn)
        seats.append(batched_clients.seat(handle, local, turn, iter(batches), base))
    return batched_clients.train(handle, local, seats, 0, check=True)


UNLIKE: Work = [
    (turn_of(1, rank=2, steps=3, lr=2e-2), [batch_of(10 + i, 2, 9) for i in range(3)]),
    (turn_of(2, rank=8, steps=5), [batch_of(20 + i, 3, 6) for i in range(5)]),
    (turn_of(3, rank=4, steps=4, lr=5e-3), [batch_of(30 + i, 1, 12) for i in range(4)]),
]


def poisoned(batches: list[Batch], *places: int) -> list[Batch]:
    """Batches with nothing to learn there: their mean loss is no number."""
    none = {i: {**b, "labels": torch.full_like(b["labels"], IGNORED)} for i, b in enumerate(batches) if i in places}
    return [none.get(i, b) for i, b in enumerate(batches)]
