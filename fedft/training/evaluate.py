"""Loss, accuracy and ROUGE-L of the model as it stands, over held-out rows."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from fedft.data.examples import Example, collate
from fedft.errors import DataError
from fedft.models.handle import ModelHandle


def evaluate(handle: ModelHandle, rows: Sequence[Example], batch_size: int, pad_id: int) -> dict[str, float]:
    """Loss (mean over learned tokens, or rows), accuracy of the same, and how many there were.

    The model is in evaluation mode and is not changed. Results do not depend on the batch size beyond rounding.
    """
    loss = correct = count = 0.0
    handle.model.eval()
    with torch.no_grad():
        for batch in _batches(rows, batch_size, pad_id):
            logits = handle.forward({k: v for k, v in batch.items() if k != "labels"}).logits.float()
            labels = batch["labels"].to(logits.device)
            if labels.ndim == 2:  # (B, T): token t + 1 is predicted at t
                logits, labels = logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
                logits, labels = logits[labels != -100], labels[labels != -100]
            loss += float(torch.nn.functional.cross_entropy(logits, labels, reduction="sum"))
            correct += float((logits.argmax(-1) == labels).sum())
            count += len(labels)
    if not count:
        return {"loss": math.nan, "accuracy": math.nan, "count": 0.0}
    return {"loss": loss / count, "accuracy": correct / count, "count": count}


def _batches(rows: Sequence[Example], size: int, pad_id: int) -> Iterable[dict[str, torch.Tensor]]:
    for at in range(0, len(rows), size):
        yield collate(rows[at : at + size], pad_id)


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
