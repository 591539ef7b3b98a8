"""Records -> token batches with masked labels; and who holds which record.

    rows = read_rows("train.jsonl.gz")
    encode = partial(encode_generation, prompt="Q: {question}\\nA: ", response="{answer}", tokenizer=tokenizer, ...)
    examples, skipped = encode_all(rows, encode, where="train.jsonl.gz")
    for batch in batches(examples, batch_size=8, steps=40, seed=7, pad_id=0): ...

What is wrong with a user's records is a DataError of one line that says where. No global random state is used.
"""

import csv
import gzip
import json
import os
import re
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from io import StringIO
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fedft import check
from fedft.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Row = dict[str, Any]
IGNORED = -100  # the label that torch's cross entropy leaves out
FORMATS = (".jsonl", ".json", ".csv")  # each may be followed by .gz
HUB_ID = re.compile(r"(?P<name>[\w-][\w.-]*/[\w-][\w.-]*)(?::(?P<split>[\w.-]+))?")
BLOCK = re.compile(r"\[\[(.*?)\]\]", re.DOTALL)
FIELD = re.compile(r"\{\{|\}\}|\{([^{}\n]+)\}")


def read_rows(source: str) -> list[Row]:
    """The records of a file or of a data set on the Hugging Face hub.

    Args:
        source: path to JSON lines, JSON (one list of objects) or CSV (with a header), plain or as .gz; or a hub id
            "owner/name" or "owner/name:split", split "train" if not said. HF_HUB_OFFLINE=1 keeps to the hub's cache.
    Returns:
        At least one record, in the order of the file. CSV values are text; blank lines are passed over.
    Raises:
        DataError: naming the file and the line (of a JSON list: the record) that is malformed.
    """
    path = Path(source)
    form = next((f for f in FORMATS if path.name.endswith((f, f + ".gz"))), None)
    if form is None:
        rows = _from_hub(source)
    else:
        # Not by datasets' builders: they copy everything into a cache folder and report a bad line without its number.
        rows = list({".jsonl": _json_lines, ".json": _json_list, ".csv": _csv}[form](path))
    if not rows:
        raise DataError(f"{source} holds no records")
    return rows


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines with their ends; what hinders reading is a DataError at its line."""
    number = 0
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            for number, line in enumerate(file, 1):
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as e:
        raise DataError(f"{path}, line {number}: not UTF-8 text ({e.reason})") from e
    except FileNotFoundError as e:
        raise DataError(f"{path}: no such file") from e
    except (OSError, EOFError, zlib.error) as e:
        raise DataError(f"{path}: cannot be read behind line {number}: {e}") from e


def _json_lines(path: Path) -> Iterator[Row]:
    for number, line in _lines(path):
        if not line.isspace():
            yield _json_object(_parsed(line, path, number), f"{path}, line {number}")


def _json_list(path: Path) -> Iterator[Row]:
    text = "".join(line for _, line in _lines(path))
    rows = _parsed(text or "[]", path, 1)
    if not isinstance(rows, list):
        raise DataError(f"{path}: expected a list of objects, got {type(rows).__name__}; JSON lines end in .jsonl")
    for number, row in enumerate(rows, 1):
        yield _json_object(row, f"{path}, record {number}")


def _parsed(text: str, path: Path, first_line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as e:
        raise DataError(f"{path}, line {first_line + e.lineno - 1}: not JSON: {e.msg} at column {e.colno}") from e
    except (ValueError, RecursionError) as e:  # a number of too many digits, brackets too deep
        raise DataError(f"{path}, line {first_line}: not JSON that we read: {e}") from e


def _json_object(value: Any, where: str) -> Row:
    if not isinstance(value, dict):
        raise DataError(f"{where}: expected an object {{...}}, got {type(value).__name__}")
    return value


def _csv(path: Path) -> Iterator[Row]:
    reader = csv.reader((line for _, line in _lines(path)), strict=True)
    try:
        names = next(reader, [])
        if len(set(names)) < len(names) or (names and not all(names)):
            raise DataError(f"{path}, line 1: expected a header of different field names, got {names}")
        for cells in filter(None, reader):
            if len(cells) != len(names):
                raise DataError(f"{path}, line {reader.line_num}: {len(cells)} cells, the header has {len(names)}")
            yield dict(zip(names, cells, strict=True))
    except csv.Error as e:
        raise DataError(f"{path}, line {reader.line_num}: not CSV: {e}") from e


def _from_hub(source: str) -> list[Row]:
    found = HUB_ID.fullmatch(source)
    if found is None or Path(source).exists():
        raise DataError(f"{source}: expected a file {', '.join(FORMATS)} (or .gz of one) or a hub id 'owner/name'")
    import datasets

    try:
        return list(datasets.load_dataset(found["name"], split=found["split"] or "train"))
    except Exception as e:  # network, cache, script and Arrow errors of five libraries, none of them ours
        offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE", "0").lower() not in ("0", "") else ""
        reason = (str(e).strip() or type(e).__name__).splitlines()[0]
        raise DataError(f"{source}: no such file, and not to be had from the hub{offline}: {reason}") from e


def fill(template: str, row: Mapping[str, Any], where: str) -> str:
    """`template` with every "{field}" replaced by the row's value, as text; null is empty.

    What stands between the braces is a column's name and nothing else; "{{" and "}}" are literal braces, and values are
    taken as they are, whatever they hold. Text in "[[" and "]]" is left out when a field in it is empty or missing:
    "[[### Input:\\n{input}\\n]]"; brackets around no field are text. Blocks do not nest. A missing field outside a
    block and a value that is a list or an object raise DataError.
    """
    text = []
    for i, piece in enumerate(BLOCK.split(template)):  # odd ones were in brackets
        names = [name for name in FIELD.findall(piece) if name]
        if i % 2 and not names:
            piece = f"[[{piece}]]"
        elif i % 2 and any(row.get(name) in (None, "") for name in names):
            continue
        text.append(FIELD.sub(lambda m: _value(row, m[1], where) if m[1] else m[0][0], piece))
    return "".join(text)


def _value(row: Mapping[str, Any], name: str, where: str) -> str:
    if name not in row:
        raise DataError(f"{where}: no field {name!r}; there are {', '.join(map(str, row)) or 'none'}")
    if isinstance(row[name], list | dict):
        raise DataError(f"{where}: field {name!r} is a {type(row[name]).__name__}, wanted text or a number")
    return "" if row[name] is None else str(row[name])


@dataclass(frozen=True)
class Example:
    """One record in tokens."""

    input_ids: list[int]
    labels: list[int] | int
    """For every token itself or IGNORED; of a classification the number of its class."""
    prompt_length: int
    """Tokens at the beginning that are given and not learned."""

    @property
    def learnable(self) -> bool:
        """Whether any loss comes of it. The first token has nothing before it to be predicted from."""
        return isinstance(self.labels, int) or any(label != IGNORED for label in self.labels[1:])


def encode_generation(
    row: Mapping[str, Any],
    *,
    prompt: str,
    response: str,
    tokenizer: "PreTrainedTokenizerBase",
    max_length: int,
    max_prompt: int | None,
    where: str,
) -> Example:
    """Prompt, response and end of sequence; the loss is on the response and the end only.

    Args:
        prompt: template of what is given; "" learns all of the response, which is plain language modelling.
        response: template of what is learned.
        max_length: tokens at most; the response is cut from the right.
        max_prompt: tokens of the prompt at most, cut from the left; None: all but the last of max_length.
        where: what an error message calls this row.

    A beginning-of-sequence token, if the tokenizer has one, stands first, survives the cut and counts as prompt.
    """
    check.at_least(1, max_length=max_length, max_prompt=1 if max_prompt is None else max_prompt)
    # Two calls, so that no token lies across the border of what is masked and what is learned.
    given = tokenizer(fill(prompt, row, where), add_special_tokens=False, verbose=False)["input_ids"]
    learned = tokenizer(fill(response, row, where), add_special_tokens=False, verbose=False)["input_ids"]
    bos, eos = ([] if i is None else [i] for i in (tokenizer.bos_token_id, tokenizer.eos_token_id))
    given = given[1:] if bos and given[:1] == bos else given  # the template wrote it out
    room = min(max_length - 1, max_length if max_prompt is None else max_prompt)
    given = (bos + given[max(0, len(given) + len(bos) - room) :])[:room]
    learned = (learned + eos)[: max_length - len(given)]
    return Example(given + learned, [IGNORED] * len(given) + learned, len(given))


def encode_label(
    row: Mapping[str, Any],
    *,
    text: str,
    label_field: str,
    labels: Sequence[str],
    tokenizer: "PreTrainedTokenizerBase",
    max_length: int,
    where: str,
) -> Example:
    """The filled template `text`, cut to `max_length`, and the place of the row's label in `labels`.

    A label is one of `labels`, or already its place there (as the hub's class labels are).
    """
    found = fill(f"{{{label_field}}}", row, where)
    if found in labels:
        label = labels.index(found)
    elif type(value := row[label_field]) is int and 0 <= value < len(labels):
        label = value
    else:
        raise DataError(f"{where}: {label_field!r} is {found!r}, not a label{check.nearest(found, labels)}")
    ids = tokenizer(fill(text, row, where), truncation=True, max_length=max_length)["input_ids"]
    return Example(ids, label, len(ids))


def encode_all(
    rows: Iterable[Mapping[str, Any]], encode: Callable[..., Example], where: str
) -> tuple[list[Example], int]:
    """(examples, skipped): `encode(row, where=...)` of every row; those of which nothing can be learned are skipped."""
    found = [encode(row, where=f"{where}, row {number}") for number, row in enumerate(rows, 1)]
    examples = [example for example in found if example.learnable]
    return examples, len(found) - len(examples)


def collate(examples: Sequence[Example], pad_id: int) -> dict[str, Tensor]:
    """One batch, padded on the right to its longest example.

    Returns:
        input_ids, attention_mask: int64 (B, T); labels: int64 (B, T), IGNORED on padding, or (B,) for classes.
    """
    longest = max(len(e.input_ids) for e in examples)

    def padded(lists: Iterable[list[int]], value: int) -> Tensor:
        return torch.tensor([ids + [value] * (longest - len(ids)) for ids in lists])

    classes = [e.labels for e in examples if isinstance(e.labels, int)]
    sequences = [e.labels for e in examples if not isinstance(e.labels, int)]
    return {
        "input_ids": padded((e.input_ids for e in examples), pad_id),
        "attention_mask": padded(([1] * len(e.input_ids) for e in examples), 0),
        "labels": padded(sequences, IGNORED) if sequences else torch.tensor(classes),
    }


def batches(
    examples: Sequence[Example], *, batch_size: int, steps: int, seed: int, pad_id: int
) -> Iterator[dict[str, Tensor]]:
    """Exactly `steps` batches, drawn without replacement, one shuffle after the other.

    A batch that an epoch's end leaves short is filled up from the next shuffle, so no row waits longer than two epochs
    and none is dropped. Fewer examples than `batch_size`: every batch is all of them. The same seed gives the same
    batches. No example raises DataError.
    """
    if not examples:
        raise DataError("there is no example to train on")
    check.at_least(1, batch_size=batch_size)
    order, size = _shuffles(len(examples), seed), min(batch_size, len(examples))
    for _ in range(steps):
        yield collate([examples[i] for i in islice(order, size)], pad_id)


def _shuffles(n: int, seed: int) -> Iterator[int]:
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield from torch.randperm(n, generator=generator).tolist()


def hold_out(rows: Sequence[Row], fraction: float, seed: int) -> tuple[list[Row], list[Row]]:
    """(train, test): floor(`fraction` * rows) rows drawn for the test, both in the order they had."""
    check.between(0, 1, fraction=fraction)
    drawn = set(islice(_shuffles(len(rows), seed), int(len(rows) * fraction + 1e-9)))  # 0.29 * 100 is 28.999...
    return [r for i, r in enumerate(rows) if i not in drawn], [r for i, r in enumerate(rows) if i in drawn]


def partition(
    rows: Sequence[Row], *, how: str, field: str | None, clients: int | None, alpha: float, seed: int
) -> dict[str, list[int]]:
    """Row numbers by client: every row has one client, every client at least one row; numbers ascend.

    Args:
        how: "natural": one client per value of `field`, by which it is called; `clients` and `alpha` are not used.
            "iid": `clients` of equal size, up to one row. "dirichlet": of each value of `field`, client k gets a share
            p_k, p ~ Dirichlet(alpha, ..., alpha); up to eleven draws until nobody is left without a row.
        seed: decides it all; names are "client-0", "client-1", ... unless natural.
    Raises:
        DataError: more clients than rows; a row without `field`; every draw left some client without a row.
    """
    check.one_of(("natural", "iid", "dirichlet"), how=how)
    if how != "natural" and (clients is None or not 1 <= clients <= len(rows)):
        raise DataError(f"partition {how!r} of {len(rows)} rows: expected 1 to {len(rows)} clients, got {clients}")
    texts = [""] * len(rows) if how == "iid" else _texts(rows, field, how)
    names = sorted(set(texts)) if how == "natural" else [f"client-{k}" for k in range(clients or 0)]
    return dict(zip(names, _parts(texts, how, clients or 0, alpha, seed), strict=True))


def _texts(rows: Sequence[Row], field: str | None, how: str) -> list[str]:
    for number, row in enumerate(rows, 1):
        if field is None or row.get(field) is None:
            raise DataError(f"partition {how!r}: row {number} has no {field!r}; there are {', '.join(map(str, row))}")
    return [str(row[field]) for row in rows if field is not None]


def _parts(texts: Sequence[str], how: str, clients: int, alpha: float, seed: int) -> list[list[int]]:
    """Row numbers by part, cut by Flower's partitioners."""
    from datasets import Dataset
    from flwr_datasets import partitioner as flower

    # Numbers in place of texts: the partitioners compare through NumPy, which pads and strips text.
    codes = {text: code for code, text in enumerate(sorted(set(texts)))}
    order = list(range(len(texts)))
    seed %= 2**63  # NumPy takes no negative seed
    cut: Any
    if how == "natural":
        cut = flower.NaturalIdPartitioner(partition_by="code")
    elif how == "iid":
        order = list(islice(_shuffles(len(texts), seed), len(texts)))  # this one cuts a row of rows where it stands
        cut = flower.IidPartitioner(num_partitions=clients)
    else:
        cut = flower.DirichletPartitioner(clients, "code", float(alpha), min_partition_size=1, seed=seed)
    cut.dataset = Dataset.from_dict({"row": order, "code": [codes[texts[i]] for i in order]})
    try:
        with redirect_stderr(StringIO()), warnings.catch_warnings():  # its progress bar; its warning at every new draw
            warnings.simplefilter("ignore")
            return [sorted(cut.load_partition(k)["row"]) for k in range(cut.num_partitions)]
    except ValueError as e:
        hint = "a larger alpha or fewer clients would do"
        raise DataError(f"partition {how!r}: some of {clients} clients got no row at alpha = {alpha}; {hint}") from e
