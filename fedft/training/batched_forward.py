"""One forward pass of the resident model for the batches of several clients, and the mean loss of each of them.

The clients' rows lie one behind the other, [clients x rows, length]. Layers without an adapter cannot tell them apart;
adapted layers and linear layers of a head are replaced, for the time of the pass, by forwards that take client k's
factors for client k's rows.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedft.arithmetic.tensors import Tensors
from fedft.contract import Batch
from fedft.data.examples import IGNORED
from fedft.models import learned_places
from fedft.models.handle import ModelHandle
from fedft.models.transfers import sent
from fedft.training.client_stack import ClientStack
from fedft.training.objectives import OfLogits, of_tokens, predicted

Forward = Callable[[Tensor], Tensor]
"""The forward of one layer: [clients x rows, ..., in] -> [clients x rows, ..., out]."""
Forwards = Callable[[Tensors, Tensors], Mapping[nn.Module, Forward]]
"""(every tensor [clients, ...], unit scale per own scale [clients, 1, 1]) -> the forward of each replaced layer."""


class Unlike(Exception):
    """These turns cannot share a pass; they can still train one at a time."""


def client_losses(
    handle: ModelHandle, forwards: Forwards, stack: ClientStack, batches: Sequence[Batch], pad_id: int
) -> Tensor:
    """The mean loss of each client on its own batch, float32 [clients], with a graph to `stack.leaves`.

    Args:
        handle: on the model, with an objective `OfLogits`; put in training mode.
        forwards: see `client_forwards`.
        stack: the tensors of the clients; the first len(batches) of them take part.
        batches: one per client: input_ids, attention_mask and labels, of any rows and lengths.
        pad_id: the token id that fills up shorter rows.
    Raises:
        Unlike: a batch holds something else, or the head is more than linear layers.
    """
    handle.training(True)
    model, here = cast(Any, handle.model), len(batches)
    batch: dict[str, Any] = side_by_side(batches, pad_id)
    labels, device = batch.pop("labels"), stack.grads.device
    if tokens := of_tokens(labels):
        if handle.two_sided:
            batch["decoder_input_ids"] = model.prepare_decoder_input_ids_from_labels(labels=labels)
        labels, batch["use_cache"] = predicted(labels, handle.two_sided), False
    learned = labels != IGNORED if labels.dtype == torch.int64 else own_rows(batches)
    batch = {k: sent(x, device) if isinstance(x, Tensor) else x for k, x in batch.items()}
    with _replaced(forwards(stack.leaves(here), stack.scales(here))), handle.casting():
        if tokens:
            with learned_places.only(model, learned, device) as chosen:
                logits = chosen(model(**batch).logits)
        else:
            logits = model(**batch).logits[learned.to(device)]
    terms = cast(OfLogits, handle.objective).each(logits, sent(labels[learned], device))
    learned = sent(learned, device)
    places = torch.zeros(learned.shape, dtype=terms.dtype, device=terms.device).masked_scatter(learned, terms)
    return places.view(here, -1).sum(1) / learned.view(here, -1).sum(1)


def side_by_side(batches: Sequence[Batch], pad_id: int) -> dict[str, Tensor]:
    """The batches as one: each gets as many rows as the largest, as many tokens as the longest; padding is not learned.

    Args:
        batches: input_ids, attention_mask and labels, as `data.batches.collate` makes them. Not modified.
        pad_id: the token id that fills up shorter rows.
    Returns:
        The same three tensors, [clients x most rows, its longest length]; labels that are not of tokens [clients x most
        rows] or [clients x most rows, labels]. Where those are no integers `own_rows` says which rows are padding.
    Raises:
        Unlike: a batch holds other tensors.

    >>> def row(*ids):
    ...     return {name: torch.tensor([ids]) for name in ("input_ids", "attention_mask", "labels")}
    >>> one = side_by_side([row(5, 6), row(7)], pad_id=0)
    >>> one["input_ids"].tolist(), one["labels"].tolist()
    ([[5, 6], [7, 0]], [[5, 6], [7, -100]])
    """
    if any(b.keys() != {"input_ids", "attention_mask", "labels"} for b in batches):
        raise Unlike("their batches hold more than tokens and labels")
    size = max(len(b["labels"]) for b in batches)
    fill = {"input_ids": pad_id, "attention_mask": 0, "labels": IGNORED}
    found: dict[str, list[Tensor]] = {name: [] for name in fill}
    for b in batches:
        more = size - len(b["labels"])
        for name, x in b.items():
            if x.ndim == 2 and (name != "labels" or of_tokens(x)):
                longest = max(other[name].shape[1] for other in batches)
                x = functional.pad(x, (0, longest - x.shape[1]), value=fill[name])
            if more:  # the batch's own first row again: a row that is masked throughout has no attention to give
                first = torch.full_like(x[:1], IGNORED) if name == "labels" else x[:1]
                x = torch.cat([x, first.expand(more, *first.shape[1:])])
            found[name].append(x)
    return {name: torch.cat(xs) for name, xs in found.items()}


def own_rows(batches: Sequence[Batch]) -> Tensor:
    """Which rows of `side_by_side` are a client's own and no padding, bool [clients x most rows]."""
    counts = torch.tensor([len(b["labels"]) for b in batches])
    return (torch.arange(int(counts.max()))[None] < counts[:, None]).flatten()


def client_forwards(handle: ModelHandle) -> Forwards:
    """The function that gives adapted layers and those of the head their forwards for several clients.

    Layers are looked up here, once for all steps: a look-up costs as much as a layer of a small model. The function
    raises Unlike where a layer of the head is not learned. Heads of other layers: see `unfit_head`.
    """
    several = handle.kind.several(handle.model, handle.layout)
    assert several is not None, "`batched_clients.unfit` says so of a kind without this form"
    head = _head_layers(handle)

    def forwards(leaves: Tensors, scales: Tensors) -> dict[nn.Module, Forward]:
        found: dict[nn.Module, Forward] = dict(several(leaves, scales))
        for m, layer in head.items():
            if m + ".weight" not in leaves:
                raise Unlike(f"{m} of the head is not learned")
            found[layer] = partial(_linear, leaves[m + ".weight"], leaves.get(m + ".bias"))
        return found

    return forwards


def unfit_head(handle: ModelHandle) -> str:
    """Why what is trained whole has no form for several clients, in one line; "" where it is linear layers.

    The output is none of them: it sees the learned places alone, of which clients have unlike numbers.
    """
    output = getattr(handle.model, "get_output_embeddings", lambda: None)()
    for m, layer in _head_layers(handle).items():
        if layer is output:
            return f"{m}, the output, is trained whole"
        if type(layer) is not nn.Linear:
            return f"{m} is trained whole and no linear layer"
    return ""


def _head_layers(handle: ModelHandle) -> dict[str, nn.Module]:
    """The layers that are trained whole, by name."""
    return {m: handle.model.get_submodule(m) for m in sorted({n.rpartition(".")[0] for n in handle.layout.head})}


def _linear(weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    """x [clients x rows, ..., in] by each client's own weight [clients, out, in] and bias [clients, out]."""
    y = torch.bmm(x.reshape(weight.shape[0], -1, x.shape[-1]).to(weight.dtype), weight.mT)
    return (y if bias is None else y + bias[:, None]).view(*x.shape[:-1], weight.shape[1])


@contextmanager
def _replaced(forwards: Mapping[nn.Module, Forward]) -> Iterator[None]:
    """Inside, these modules run the given forwards; afterwards their own again."""
    before = {m: m.__dict__.get("forward") for m in forwards}
    try:
        for m, f in forwards.items():
            m.__dict__["forward"] = f
        yield
    finally:
        for m, own in before.items():
            m.__dict__.pop("forward")
            if own is not None:
                m.__dict__["forward"] = own
