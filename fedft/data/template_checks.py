"""Templates of a run file or a site's file, checked before there are records; `templates.fill` fills them."""

import os
import re
from pathlib import Path

from fedft import check
from fedft.config import Data
from fedft.data.templates import FIELD, lone_brace, single_braces
from fedft.models import tasks
from fedft.registry import PREFERENCES

JINJA = re.compile(r"\{\{|\{%|\n")
TEMPLATES = ("prompt", "response", "chosen", "rejected", "text")
"""Keys of `[data]` that are templates of text."""


def check_forms(data: Data, task: str, objective: str = "likelihood") -> None:
    """Raise ValueError where the keys of `[data]` that say what a record's text is make no sense together.

    Args:
        data: the run file's table.
        task: `[model] task`.
        objective: the name in `[local] objective`, which says whether a record is a pair of answers.

    A template names at least one field: text that is the same for every record is nearly always a name without its
    braces, and nobody would see it in the numbers. Only `prompt` may be "", which is completion of plain text.
    """
    plain, pairs = Data(), objective in PREFERENCES
    if tasks.of(task).two_sides and not data.prompt:
        raise ValueError(f"[data] prompt = '' leaves the encoder nothing to read; task {task!r} wants a template")
    if pairs and task != tasks.CAUSAL.name:
        raise ValueError(f"[local] objective {objective!r} is for task {tasks.CAUSAL.name!r}, the task is {task!r}")
    for key in ("response", "messages", "tokens", "encode") if pairs else ("chosen", "rejected"):
        if (said := getattr(data, key)) != getattr(plain, key) and (pairs or objective == "likelihood"):
            reads = "chosen and rejected" if pairs else "no pairs of answers, as 'dpo' does"
            raise ValueError(
                f"[data] {key} = {check.quoted(said)} has no effect: objective {objective!r} reads {reads}"
            )
    for field, beside in (("encode", ("messages", "tokens")), ("tokens", ("messages",)), ("messages", ())):
        if (name := getattr(data, field)) is None:
            continue
        if not name:
            raise ValueError(
                f"[data] {field} is '', wanted the name of a {'function' if field == 'encode' else 'field'}"
            )
        if task != tasks.CAUSAL.name:
            raise ValueError(f"[data] {field} are for task {tasks.CAUSAL.name!r}, the task is {task!r}")
        for key in ("prompt", "response", "max_prompt", *beside):
            if (said := getattr(data, key)) != getattr(plain, key):
                raise ValueError(f"[data] {key} = {check.quoted(said)} has no effect beside {field}; leave out one")
    if data.chat_template is not None and data.messages is None and not pairs:
        raise ValueError("[data] chat_template has no effect without messages, the field that holds conversations")
    if data.chat_template is not None:
        check_is_jinja(data.chat_template)
    for key in TEMPLATES:
        if data.prompt or key != "prompt":
            check_names_field(key, getattr(data, key))


def check_names_field(key: str, template: str) -> None:
    """Raise ValueError unless a template names a field, in single braces, and each brace has its other.

    >>> check_names_field("response", "{{ answer }}")
    Traceback (most recent call last):
        ...
    ValueError: [data] response = '{{ answer }}' names no field; in single braces it does: '{answer}'
    """
    if lone_brace(template):
        raise ValueError(
            f"[data] {key} = {check.quoted(template)} has a brace without its other; a literal one is doubled"
        )
    if any(FIELD.findall(template)):
        return
    right = single_braces(template)
    how = f"in single braces it does: {right!r}" if right != template else "a name in braces does, as in '{answer}'"
    raise ValueError(f"[data] {key} = {check.quoted(template)} names no field; {how}")


def check_is_jinja(text: str) -> None:
    """Raise ValueError for a chat template that is no Jinja text: the name of a file that is not there."""
    if not JINJA.search(text):
        raise ValueError(f"[data] chat_template = {check.quoted(text)}: no such file, nor a Jinja text")


def chat_template(value: str, folder: Path) -> str:
    """The text of a chat template that a file's `[data] chat_template` names or is.

    Args:
        value: a path, relative to `folder` or to the working folder, or Jinja text.
        folder: where the file lies that says so.
    Returns:
        The text of the file that is there, else `value`.
    Raises:
        ValueError: the file cannot be read.
    """
    if JINJA.search(value):
        return value
    expanded = os.path.expanduser(os.path.expandvars(value))
    for path in (folder / expanded, Path(expanded)):
        if path.is_file():
            try:
                return path.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as e:
                raise ValueError(f"[data] chat_template = {value!r}: cannot be read: {e}") from e
    return value
