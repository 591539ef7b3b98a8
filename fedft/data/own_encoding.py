"""Records encoded by a function of the operator's own, `[data] encode = "package.module:function"`.

    def encode(record, tokenizer):
        ids = tokenizer(record["case"] + " => " + record["code"])["input_ids"]
        return ids, [n >= 5 for n in range(len(ids))]           # the first five are given, the others learned

It is called once for each record, in order, before any training, and returns token ids of the base model and, of each,
whether it is learned. What it returns has to follow from the record alone: a run that is resumed encodes anew, and goes
on only if it finds the same. A server never names such a function: each site has its own in its own file.
"""

from collections.abc import Mapping
from typing import Any

from fedft import check, registry
from fedft.data import token_columns
from fedft.data.examples import Example
from fedft.errors import ConfigError, DataError, in_one_line


def encode(row: Mapping[str, Any], *, function: str, tokenizer: Any, ids: int, max_length: int, where: str) -> Example:
    """What the function makes of a record; tokens beyond `max_length` are cut from the right, and counted.

    Args:
        row: the record, fields by name; the function is given a copy.
        function: its name, "package.module:function".
        tokenizer: the base model's.
        ids: how many token ids the model has an embedding for.
        max_length: tokens at most.
        where: name of the row in error messages.
    Raises:
        ConfigError: nobody allowed the name, or it leads to no function.
        DataError: the function raised something, or what it returned is no such pair.
    """
    own = registry.encoders.load(function)
    if not callable(own):
        raise ConfigError(f"[data] encode = {function!r} is a {type(own).__name__}, wanted a function")
    try:
        found = own(dict(row), tokenizer)
    except Exception as e:  # the operator's own code
        raise DataError(f"{where}: [data] encode {function} failed: {in_one_line(e)}") from e
    if not (isinstance(found, tuple) and len(found) == 2 and all(isinstance(x, list) for x in found)):
        wanted = "a pair of lists: token ids, and of each whether it is learned"
        raise DataError(f"{where}: [data] encode {function} gave {check.quoted(found)}, wanted {wanted}")
    tokens, learned = found
    if len(tokens) != len(learned):
        told = f"{len(tokens)} token ids and {len(learned)} entries of what is learned"
        raise DataError(f"{where}: [data] encode {function} gave {told}, wanted one for each")
    labels = [token if on else token_columns.IGNORED for token, on in zip(tokens, learned, strict=True)]
    made = {"input_ids": tokens, "labels": labels}
    told = f"{where}: [data] encode {function}"
    return token_columns.encode(made, field="input_ids", ids=ids, max_length=max_length, where=told)
