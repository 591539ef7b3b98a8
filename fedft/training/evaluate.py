"""Loss, accuracy and ROUGE-L of the model as it stands, over held-out rows."""

import math
from collections.abc import Sequence
from typing import Any

import torch

from fedft.data.examples import Example
from fedft.errors import DataError
from fedft.models.handle import ModelHandle


def evaluate(handle: ModelHandle, rows: Sequence[Any], batch_size: int, pad_id: int) -> dict[str, float]:
    """Means of what the run's objective measures on these rows (loss, accuracy), and how many places there were.

    The model is in evaluation mode and is not changed. Results do not depend on the batch size beyond rounding.
    """
    sums: dict[str, float] = {}
    weights: dict[str, float] = {}
    handle.training(False)
    with torch.no_grad():
        for at in range(0, len(rows), batch_size):
            batch = handle.objective.collate(rows[at : at + batch_size], pad_id)
            for name, (total, weight) in handle.objective.measure(handle, batch).items():
                sums[name] = sums.get(name, 0.0) + total
                weights[name] = weights.get(name, 0.0) + weight
    means = {n: x / weights[n] if weights[n] else math.nan for n, x in sums.items()}
    return {"loss": math.nan, "accuracy": math.nan, **means, "count": weights.get("loss", 0.0)}


def rouge_l(handle: ModelHandle, rows: Sequence[Example], tokenizer: Any, new_tokens: int) -> float:
    """Mean ROUGE-L F-measure of greedy generations against the responses, between 0 and 1 (rouge-score's)."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"])
    handle.model.eval()
    scores = []
    device = next(handle.model.parameters()).device
    # a generation starts from something, also where a record's prompt is empty
    start = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    with torch.no_grad():
        for row in rows:
            given = row.input_ids[: row.prompt_length] or [start]
            if None in given:
                raise DataError("ROUGE-L of an empty prompt needs a tokenizer with a first or a last token")
            prompt = torch.tensor([given], device=device)
            out = handle.model.generate(  # type: ignore[operator]
                prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=new_tokens,
                do_sample=False,
                pad_token_id=tokenizer.pad_token_id,
            )
            said = tokenizer.decode(out[0, len(given) :], skip_special_tokens=True)
            wanted = tokenizer.decode(row.input_ids[row.prompt_length :], skip_special_tokens=True)
            scores.append(scorer.score(wanted, said)["rougeL"].fmeasure)
    return sum(scores) / len(scores) if scores else math.nan
