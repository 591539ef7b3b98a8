"""The parameters of a model in canonical order, and a digest of them as they are in memory."""

import hashlib

import torch
from torch import nn


def parameters_of(model: nn.Module) -> dict[str, nn.Parameter]:
    """The distinct parameters by name, in canonical order: bytewise by name, tied ones under the first of their names.

    >>> two = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3))
    >>> two[1].weight = two[0].weight
    >>> list(parameters_of(two))
    ['0.weight', '1.bias']
    """
    every = sorted(model.named_parameters(remove_duplicate=False), key=lambda item: item[0].encode())
    first = {p: n for n, p in reversed(every)}
    return {n: p for n, p in every if first[p] == n}


def shared_names(model: nn.Module) -> list[list[str]]:
    """The names of each parameter that has several, as tied embeddings have."""
    names: dict[int, list[str]] = {}
    for n, p in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(p), []).append(n)
    return [of for of in names.values() if len(of) > 1]


def order_of(model: nn.Module) -> tuple[str, ...]:
    """The names of `parameters_of` as the model defines its parameters; a tied one stands where it is met first.

    >>> two = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3, bias=False))
    >>> two[1].weight = two[0].weight
    >>> order_of(two)
    ('0.weight', '0.bias')
    """
    name = {p: n for n, p in parameters_of(model).items()}
    return tuple(name[p] for p in model.parameters())


def digest_of(model: nn.Module) -> str:
    """SHA-256 of a model's weights, hexadecimal: over names, dtypes and bytes of its parameters in canonical order.

    Tied parameters count once; neither the device nor the file format changes the digest, the dtype does. Runs that
    were begun before digests were of stored weights (`stored_weights`) call their base by this one.
    """
    h = hashlib.sha256()
    for name, p in parameters_of(model).items():
        h.update(f"{name}\0{p.dtype}\0".encode())
        h.update(p.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return h.hexdigest()
