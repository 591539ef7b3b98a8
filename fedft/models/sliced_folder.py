"""A pruned model as a folder, and back: `fedft.load_sliced(folder)`.

    cut           a standard folder of smaller matrices, where layers keep as many heads and channels as each other and
                  the type's configuration can say so: any tool loads it
    with zeros    else a standard folder of full size, 0 where it is pruned: any tool loads it; it computes the same
    an adapter    a PEFT folder: with its whole base alone it is another model

Beside the last two lies `fedft_slices.safetensors`, by which `load_sliced` cuts what it has loaded: for each structure,
`<path of the layer>.attention` or `.feed_forward`, the numbers of the groups that are kept, int32, ascending.
"""

import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from fedft.errors import DataError, first_line
from fedft.models import adapter_folder, classes, tasks
from fedft.models.adapter_folder import SLICES
from fedft.pruning.groups import Groups, groups_of
from fedft.pruning.kept import Kept
from fedft.pruning.slices import put_to_zero, slice_for_good


def save(folder: Path, model: Any, kept: Kept) -> str:
    """Write a whole model of transformers, less what is not kept, into a folder that is there; says in which form.

    The model is pruned for it. Returns "merged model, cut" or "merged model with zeros".
    """
    if (config := _smaller_config(model, kept)) is not None:
        slice_for_good(model, kept)
        model.config = config
        model.save_pretrained(str(folder))
        return "merged model, cut"
    put_to_zero(model, kept)
    model.save_pretrained(str(folder))
    write_slices(folder, kept)
    return "merged model with zeros"


def write_slices(folder: Path, kept: Kept) -> None:
    """Write what is kept beside the files of a model, or of an adapter."""
    numbers = {s.name: kept.bits[place].nonzero().flatten().int() for s, place in kept.groups.each()}
    save_file(numbers, folder / SLICES, {"format": "pt", "fedft_slices": "1"})


def add_to_card(folder: Path, kept: Kept) -> None:
    """Say in the `README.md` of an exported adapter that its base is pruned."""
    with (folder / "README.md").open("a", encoding="utf-8") as card:
        card.write(
            f"\nOf its model {kept.ratio:.0%} of the weights in heads and channels are pruned: "
            f"`fedft.load_sliced(folder)` gives that model, the adapter on its whole base another one.\n"
        )


def load_sliced(folder: str | Path, *, dtype: str = "float32", device: str = "cpu") -> Any:
    """The pruned model in a folder that `fedft export` wrote, cut, in evaluation mode; an adapter is in its weights.

    Args:
        folder: a whole model or an adapter, with `fedft_slices.safetensors` or cut already.
        dtype: of the weights: float32, bfloat16 or float16.
        device: torch device.
    Raises:
        DataError: no model there, or slices that do not fit it.
    """
    at = Path(os.path.expanduser(folder))
    task, own = _task(at), classes.of_folder(at)
    named: dict[str, Any] = (
        {"labels": own.names, "problem_type": own.problem_type} if own and not tasks.of(task).generates else {}
    )
    model = adapter_folder.load(str(at), task, dtype=dtype, device=device, **named).model
    if (at / SLICES).is_file():
        slice_for_good(model, _read_slices(at / SLICES, groups_of(model)))
    return model


def _read_slices(file: Path, groups: Groups) -> Kept:
    """What a file says is kept of the groups. Raises DataError for one that does not fit them."""
    try:
        numbers = load_file(file)
    except (OSError, SafetensorError) as e:
        raise DataError(f"{file}: cannot be read: {first_line(e)}") from e
    names = {s.name for s in groups.structures}
    if other := sorted(names ^ numbers.keys()):
        raise DataError(f"{file}: {other[0]} is in only one of the file and the model; is it another model's?")
    bits = torch.zeros(groups.size, dtype=torch.bool)
    for s, place in groups.each():
        x = numbers[s.name].long()
        if x.ndim != 1 or not len(x) or not 0 <= int(x[0]) <= int(x[-1]) < s.size or bool((x.diff() <= 0).any()):
            raise DataError(f"{file}: {s.name}: expected ascending numbers of groups from 0 to {s.size - 1}")
        bits[place.start + x] = True
    return Kept(groups, bits)


def _task(folder: Path) -> str:
    """The name of the task of the model or adapter in a folder."""
    if (folder / "adapter_config.json").is_file():
        from peft import PeftConfig

        named = str(PeftConfig.from_pretrained(str(folder)).task_type)
        return next((t.name for t in tasks.TASKS.values() if t.peft in named), tasks.CAUSAL.name)
    from transformers import AutoConfig

    try:
        named = " ".join(AutoConfig.from_pretrained(str(folder), trust_remote_code=False).architectures or ())
    except Exception as e:  # transformers' parser, on whatever lies in the folder
        raise DataError(f"{folder}: no model there: {first_line(e)}") from e
    return next((t.name for t in tasks.TASKS.values() if t.model.removeprefix("Model") in named), tasks.CAUSAL.name)


def _smaller_config(model: Any, kept: Kept) -> Any:
    """The configuration of a model with as many heads and channels as are kept; None where there is none.

    A model made of it must have the very shapes that cutting gives: bert's and gpt2's heads are as wide as the hidden
    states allow, so of them only channels can be fewer.
    """
    old, counts = model.config, kept.counts()
    heads_of = {n for name, n in counts.items() if name.endswith(".attention")}
    channels_of = {n for name, n in counts.items() if name.endswith(".feed_forward")}
    if len(heads_of) != 1 or len(channels_of) != 1:
        return None
    groups = getattr(old, "num_key_value_heads", None) or old.num_attention_heads
    width = getattr(old, "head_dim", None) or old.hidden_size // old.num_attention_heads
    (heads,), (channels,) = heads_of, channels_of
    said = {"num_attention_heads": heads * (old.num_attention_heads // groups)}
    said |= {"n_inner" if hasattr(old, "n_inner") else "intermediate_size": channels}
    said |= {"num_key_value_heads": heads, "head_dim": width} if hasattr(old, "num_key_value_heads") else {}
    try:
        config = type(old).from_dict(old.to_dict() | said)
        with torch.device("meta"):
            made = type(model)(config)
    except Exception:  # transformers refuses, in many ways, what a type of model cannot be
        return None
    shapes = {n: tuple(p.shape) for n, p in made.named_parameters()}
    return config if shapes == _cut_shapes(model, kept) else None


def _cut_shapes(model: nn.Module, kept: Kept) -> dict[str, tuple[int, ...]]:
    """The shapes of the model's parameters, by name, as cutting would leave them."""
    shapes = {n: tuple(p.shape) for n, p in model.named_parameters()}
    for module, (part, _) in kept.groups.parts.items():
        layer = model.get_submodule(module)
        axis = (part.side == "columns") != (type(layer).__name__ == "Conv1D")
        left = len(kept.places(module))
        rows, columns = shapes[f"{module}.weight"]
        shapes[f"{module}.weight"] = (rows, left) if axis else (left, columns)
        if part.side == "rows" and f"{module}.bias" in shapes:
            shapes[f"{module}.bias"] = (left,)
    return shapes
