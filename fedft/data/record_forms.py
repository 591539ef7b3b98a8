"""What records look like, told from the records themselves: for the run file that `fedft init` writes.

    found = form_of(rows)          found.keys {"prompt": "{question}\\n", "response": "{answer}"}, found.said "..."
    owner_of(rows)                 the field that says whose a record is, or None

Names are what people call such fields. What cannot be told is a DataError that names the fields there are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedft import check
from fedft.data.records import is_plain
from fedft.errors import DataError

OWNERS = ("client", "clinic", "hospital", "site", "branch", "bank", "user", "device", "speaker", "source", "owner")
ASKED = ("prompt", "question", "instruction", "input", "query", "context", "source", "document", "article")
ANSWERED = ("response", "answer", "output", "completion", "target", "reply", "summary")
TALKS = ("messages", "conversations", "conversation")
TEXTS = ("text", "content", "body")
MOST_CLIENTS = 1000
"""A field with more values than this is no owner that one guesses."""


@dataclass(frozen=True)
class Form:
    """What is learned of a record: keys of `[data]`, an objective where it is not the usual one, and a sentence."""

    keys: Mapping[str, str]
    said: str
    objective: str | None = None


def form_of(rows: Sequence[Mapping[str, Any]], owner: str | None = None) -> Form:
    """The form of records that are alike.

    Args:
        rows: at least one.
        owner: the field that says whose a record is, which is neither asked nor answered.
    Raises:
        DataError: none that is known; the line names the fields.
    """
    fields = [name for name in rows[0] if name != owner]
    if talk := next((name for name in fields if name in TALKS or _is_talk(rows[0][name])), None):
        return Form({"messages": talk}, f"conversations in {talk!r}: every turn of the assistant is learned")
    if {"chosen", "rejected"} <= {*fields}:
        prompt = _first(fields, ASKED)
        keys = {"prompt": f"{{{prompt}}}\n" if prompt else "", "chosen": "{chosen}", "rejected": "{rejected}"}
        return Form(keys, "pairs of answers: to prefer the chosen one is learned", "dpo")
    if "input_ids" in fields:
        return Form({"tokens": "input_ids"}, "token ids: all that 'labels' does not leave out is learned")
    plain = [name for name in fields if all(is_plain(row.get(name)) for row in rows)]
    answer = _first(plain, ANSWERED)
    asked = [name for name in plain if name in ASKED and name != answer]
    if answer is None and not asked and (text := _first(plain, TEXTS) or (plain[0] if len(plain) == 1 else None)):
        return Form({"prompt": "", "response": f"{{{text}}}"}, f"plain text in {text!r}: all of it is learned")
    if (answer is None or not asked) and len(plain) == 2:
        asked, answer = [plain[0]] if answer is None else [n for n in plain if n != answer], answer or plain[1]
    if answer is None or not asked:
        raise DataError(
            f"cannot tell what is asked and what is answered; the fields are {check.few(list(rows[0]), 12)}. "
            "Name them like 'question' and 'answer', or write the run file by hand: DATA.md has the forms"
        )
    prompt = "".join(f"{{{name}}}\n" if n == 0 else f"[[{{{name}}}\n]]" for n, name in enumerate(asked))
    given = " and ".join(map(repr, asked))
    return Form({"prompt": prompt, "response": f"{{{answer}}}"}, f"{given} given, {answer!r} learned")


def owner_of(rows: Sequence[Mapping[str, Any]]) -> str | None:
    """The field that says whose a record is, by its name and because it names each of a few several times; or None."""
    for name in OWNERS:
        values = {str(row.get(name)) for row in rows if is_plain(row.get(name)) and row.get(name) is not None}
        if 2 <= len(values) <= min(MOST_CLIENTS, len(rows) // 2):
            return name
    return None


def characters(rows: Sequence[Mapping[str, Any]], form: Form) -> list[int]:
    """About how many characters each record has of what the form reads, in order of size; token ids count one each."""
    read = [*form.keys.values()]
    used = [name for name in rows[0] if any(name == said or f"{{{name}}}" in said for said in read)]
    return sorted(sum(_long(row.get(name)) for name in used) for row in rows)


def _long(value: Any) -> int:
    if isinstance(value, list):
        return sum(1 if isinstance(x, int) else _long(x) for x in value)
    return sum(map(_long, value.values())) if isinstance(value, dict) else len(str(value or ""))


def _is_talk(value: Any) -> bool:
    turns = value if isinstance(value, list) else []
    return bool(turns) and all(isinstance(t, dict) and {"role", "from"} & t.keys() for t in turns)


def _first(names: Sequence[str], known: Sequence[str]) -> str | None:
    return next((name for name in known if name in names), None)
