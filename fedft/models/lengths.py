"""How many tokens of a record a base model is given where the run file says nothing: what model and tokenizer can take.

The number is resolved once, where a run begins (`dtypes.resolved`), and is what `config.toml` and the job hold: server
and sites, a rehearsal and its deployment, cut the same rows at the same place.
"""

import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fedft import quickstart
from fedft.config import RunConfig
from fedft.errors import DataError
from fedft.models import adapter_folder, tasks
from fedft.models.load import Base

LONGEST = 1024
"""Memory of a batch grows with its longest row: more is for the run file to say."""
BEYOND = 2 * LONGEST
"""A table of so many positions has more than LONGEST for text, whatever rows it keeps for itself."""


def chosen(config: RunConfig) -> int:
    """`[data] max_length` where it is "auto": the least of 1024, the model's positions and the tokenizer's limit.

    Positions that are looked up in a table also have to hold what is generated on a prompt, where something is and
    `max_prompt` does not say how much. 1024 for a model that cannot be read: loading it says why in one line.
    """
    m, source = config.model, adapter_folder.chain(config.model.id)
    if source[-1] == quickstart.BASE:
        from fedft.quickstart import pretraining

        return min(LONGEST, pretraining.Settings().context)
    try:
        positions, table = _positions(os.path.expanduser(source[-1]), m.task)
        limits = [positions, *(_tokenizer_limit(os.path.expanduser(s)) for s in source)]
    except Exception:  # of transformers' parsers, on whatever lies there
        return LONGEST
    task = tasks.of(m.task)
    behind_prompt = task.generates and not task.two_sides and config.data.max_prompt is None
    writes = behind_prompt and (config.eval.rouge or config.eval.metrics)
    if table and positions and writes:
        limits.append(positions - config.eval.generate_tokens)
    return min([LONGEST, *(n for n in limits if n is not None and n >= 2)])


def check_lengths(base: Base, config: RunConfig) -> None:
    """Raise DataError where a text of `[data]`, or one that is generated, is longer than the model has positions for.

    `[data] max_length` is a number by now.
    """
    d, task = config.data, tasks.of(config.model.task)
    given = d.length if d.max_prompt is None else d.max_prompt
    generated = config.eval.generate_tokens if task.generates and (config.eval.rouge or config.eval.metrics) else 0
    if task.two_sides:
        _check_sides(base, given, d.length, generated)
    else:
        check_length(base, d.length, min(d.length - 1, given) + generated if generated else 0)


def check_length(base: Base, max_length: int, generated: int = 0) -> None:
    """Raise DataError if a text of `max_length` tokens is longer than the positions that the base model has.

    `generated` is the length of a prompt and what is generated on it. It counts only where positions are looked up in
    a table; others have no end.
    """
    table = usable_positions(base.model)
    room = getattr(base.model.config, "max_position_embeddings", None) if table is None else table
    if isinstance(room, int) and 0 < room < max_length:
        raise DataError(f"[data] max_length = {max_length}, but {base.source} has {room} positions")
    if table is not None and table < generated:
        raise DataError(
            f"[eval] generate_tokens: a prompt and they are up to {generated} tokens, but {base.source} has {table} "
            f"positions; a smaller [data] max_prompt would do"
        )


def _check_sides(base: Base, read: int, written: int, generated: int) -> None:
    """Raise DataError if a text is longer than the positions in the table of an encoder or a decoder that has one.

    Args:
        base: of an encoder-decoder; T5 has relative positions, and no end.
        read: tokens that the encoder reads at most.
        written: tokens that the decoder learns at most.
        generated: tokens that it generates at most.
    """
    model = base.model
    for part, side, keys, tokens in (
        (model.get_encoder(), "encoder", "[data] max_length or max_prompt", read),
        (model.get_decoder(), "decoder", "[data] max_length", written),
        (model.get_decoder(), "decoder", "[eval] generate_tokens", generated),
    ):
        room = usable_positions(part)
        if room is not None and room < tokens:
            raise DataError(f"{keys} = {tokens}, but the {side} of {base.source} has {room} positions")


def usable_positions(model: nn.Module) -> int | None:
    """How many positions of a model's learned table a text can use, of two tables the smaller; None without one.

    Some begin behind the row of padding (RoBERTa), some behind a fixed offset (OPT, BART).
    """
    found = []
    for name, m in model.named_modules():
        if isinstance(m, nn.Embedding) and name.rpartition(".")[2] in ("position_embeddings", "wpe", "embed_positions"):
            found.append(m.num_embeddings - getattr(m, "offset", 0 if m.padding_idx is None else m.padding_idx + 1))
    return min(found, default=None)


def _positions(source: str, task: str) -> tuple[int | None, bool]:
    """(positions of the model at `source`, whether they are looked up in a table); None where nothing bounds them."""
    import transformers
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    config = transformers.AutoConfig.from_pretrained(source, trust_remote_code=False)
    said = getattr(config, "max_position_embeddings", None)
    if not isinstance(said, int) or said <= 0:
        return None, False
    if said >= BEYOND:
        return said, False
    kind: Any = getattr(transformers, f"Auto{tasks.of(task).model}")
    with torch.random.fork_rng(devices=[]), torch.device("meta"):  # shapes without numbers
        table = usable_positions(kind.from_config(config, trust_remote_code=False))
    return (said, False) if table is None else (table, True)


def _tokenizer_limit(source: str) -> int | None:
    """`model_max_length` of the tokenizer at `source`; None for a folder of an adapter that has none of its own.

    One that knows no limit says 10**30.
    """
    from transformers import AutoTokenizer

    if Path(source).is_dir() and not (Path(source) / "tokenizer_config.json").is_file():
        return None
    return int(AutoTokenizer.from_pretrained(source, trust_remote_code=False).model_max_length)
