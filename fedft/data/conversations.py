"""Records that hold a conversation, to messages: `{role, content}`, or ShareGPT's `{from, value}`.

    said = messages({"talk": [{"from": "human", "value": "2 + 2?"}, {"from": "gpt", "value": "4"}]}, "talk", "row 1")

What no chat template could be given is a DataError of one line that says where.
"""

import json
from collections.abc import Mapping
from typing import Any

from fedft import check
from fedft.data.records import value_of
from fedft.errors import DataError

Message = dict[str, Any]
"""`role` and `content`, both text, and what else the record says of this turn: `tool_calls`, `name`..."""
OPENAI = {name: name for name in ("system", "developer", "user", "assistant", "tool")}
SHAREGPT = {**OPENAI, "human": "user", "gpt": "assistant"}


def messages(row: Mapping[str, Any], field: str, where: str) -> list[Message]:
    """The turns of the conversation in `field`, by OpenAI's names; null is left out, as content it is empty text.

    The field is a list or its JSON. Text in the record's field `system` comes first, if no turn is a system prompt.

    Raises DataError, beginning with `where`: no such field, no list of messages, an unknown role, content that is no
    text, or no turn of the assistant.

    >>> messages({"t": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]}, "t", "row 1")
    [{'role': 'user', 'content': 'Hi'}, {'role': 'assistant', 'content': 'Ho'}]
    """
    if not isinstance(found := parsed(value_of(row, field, where)), list):
        raise DataError(f"{where}: field {field!r} is {check.quoted(found)}, wanted a list of messages")
    said = [_message(turn, f"{where}: {field!r}, message {n}") for n, turn in enumerate(found, 1)]
    if not any(m["role"] == "assistant" for m in said):
        raise DataError(f"{where}: {field!r} has no turn of the assistant among its {len(said)}; nothing is learned")
    prompt = row.get("system")
    if isinstance(prompt, str) and prompt.strip() and not any(m["role"] == "system" for m in said):
        said.insert(0, {"role": "system", "content": prompt})
    return said


def _message(turn: Any, where: str) -> Message:
    if not isinstance(turn, dict):
        raise DataError(f"{where} is {check.quoted(turn)}, wanted {{role, content}} or {{from, value}}")
    said = {key: value for key, value in turn.items() if value is not None}
    who, what, names = "role", "content", OPENAI
    if "from" in said and "role" not in said:
        who, what, names = "from", "value", SHAREGPT
    if who not in said:
        raise DataError(f"{where} has no {who!r}; there are {', '.join(map(str, turn)) or 'none'}")
    role = said.pop(who)
    if not (isinstance(role, str) and role in names):
        wanted = ", ".join(names)
        raise DataError(f"{where}: {who} is {check.quoted(role)}, wanted one of {wanted}{check.nearest(role, names)}")
    if what not in turn and "tool_calls" not in said:
        raise DataError(f"{where} has no {what!r}; there are {', '.join(map(str, turn))}")
    if not isinstance(content := said.pop(what, ""), str):
        raise DataError(f"{where}: {what} is {check.quoted(content)}, wanted text")
    return {"role": names[role], "content": content, **said}


def tools(row: Mapping[str, Any], where: str) -> list[dict[str, Any]] | None:
    """The record's field `tools`, a list of objects or such a list as JSON; None where it has none, or an empty one.

    Raises DataError, beginning with `where`, for anything else.
    """
    found = parsed(row.get("tools"))
    if not found or (isinstance(found, str) and not found.strip()):
        return None
    if not (isinstance(found, list) and all(isinstance(tool, dict) for tool in found)):
        raise DataError(f"{where}: field 'tools' is {check.quoted(found)}, wanted a list of objects")
    return found


def parsed(value: Any) -> Any:
    """What JSON text says, as tables hold it in a cell; any other value as it is."""
    try:
        return json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        return value


def taught(message: Message) -> bool:
    """Whether a turn is to be learned: the assistant's, not empty, and not of `weight` 0 as in OpenAI's form."""
    said = message["content"].strip() or message.get("tool_calls")
    return message["role"] == "assistant" and bool(said) and message.get("weight", 1) != 0
