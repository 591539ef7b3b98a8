"""What a model that was written loses on rows, worked out apart from the package."""

from typing import Any

import torch


def loss_of(model: Any, rows: list[Any]) -> float:
    """Mean over the learned tokens of the rows, one row at a time, by plain torch."""
    total = places = 0.0
    for row in rows:
        with torch.no_grad():
            logits = model.eval()(input_ids=torch.tensor([row.input_ids])).logits[0, :-1]
        wanted = torch.tensor(row.labels[1:])
        total += float(torch.nn.functional.cross_entropy(logits, wanted, ignore_index=-100, reduction="sum"))
        places += float((wanted != -100).sum())
    return total / places
