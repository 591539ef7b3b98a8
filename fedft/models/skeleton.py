"""A base model without weights: its modules on torch's "meta" device, by its config.json alone.

What is asked of it is names and shapes; nothing is computed. What a checkpoint lacks is not known: a pooler that a
classifier would draw counts as a part of the base.
"""

from typing import Any

import torch

from fedft.config import Model
from fedft.errors import DataError, FedftError, first_line
from fedft.models import adapter_folder, tasks
from fedft.models.load import Base, folder_of, ids_of, pad_id, tokenizer_of


def skeleton(m: Model) -> Base:
    """The base that a `[model]` table names, of which no weight exists; its tokenizer is None where none can be read.

    The folder of an adapter stands for its base. Raises DataError in one line: no config.json, or one of another task.
    """
    import transformers
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    wanted, source = tasks.of(m.task), adapter_folder.chain(m.id)[-1]
    folder = folder_of(source)
    kind: Any = getattr(transformers, f"Auto{wanted.model}")
    try:
        config = tasks.config_in(folder, source, wanted)
        if m.labels and not wanted.generates:
            config.num_labels = len(m.labels)
        with torch.device("meta"):
            model = kind.from_config(config, attn_implementation=m.attention)
    except FedftError:
        raise
    except Exception as e:  # of two libraries' parsers, on whatever lies in the folder
        raise DataError(f"[model] id: cannot read the config.json of {source!r}: {first_line(e).rstrip('. ')}") from e
    base = Base(model, None, m.task, source, "", ids=ids_of(model))
    try:
        tokenizer = tokenizer_of(folder)
    except DataError:  # rows are as long as they may be, then
        return base
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return Base(model, tokenizer, m.task, source, "", ids=base.ids, pad_id=pad_id(model, tokenizer))
