"""Text of a record that the tokenizer reads as one of its control tokens, such as an "</s>" inside a value.

A model that is given it sees the end of a text or of a turn where the record only speaks of one; that of a template is
meant. Rows are counted, not refused: some records are about such text, and some have it from an earlier export.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from fedft import check
from fedft.config import RunConfig
from fedft.data.templates import FIELD
from fedft.models import tasks


class ControlTokens:
    """What of a run's rows holds text of a control token; `rows` counts them, `texts` says which they are."""

    def __init__(self, config: RunConfig, tokenizer: Any) -> None:
        """The fields that become text are those that the forms in `[data]` name; ids of tokens are no text."""
        added = getattr(tokenizer, "added_tokens_decoder", {}).values()
        names = {*getattr(tokenizer, "all_special_tokens", ()), *(str(t) for t in added if t.special)} - {""}
        longest_first = sorted(names, key=lambda name: (-len(name), name))
        self._expression = re.compile("|".join(map(re.escape, longest_first))) if names else None
        self._fields = fields(config)
        self.rows = 0
        self.texts: set[str] = set()

    def look(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Count those of `rows` that have such text, and remember what they have."""
        if self._expression is None:
            return
        for row in rows:
            said = (text for name in self._fields for text in check.texts(row.get(name)))
            found = {name for text in said for name in self._expression.findall(text)}
            self.rows += bool(found)
            self.texts |= found


def fields(config: RunConfig) -> list[str]:
    """Names of the fields whose values become text by the templates of `[data]`, or as a conversation."""
    d = config.data
    if d.tokens is not None or d.encode is not None:
        return []
    if d.messages is not None:
        return [d.messages, "system", "tools"]
    writes = tasks.of(config.model.task).generates
    learned = (d.chosen, d.rejected) if config.local.pairs else (d.response,)
    templates = (d.prompt, *learned) if writes else (d.text,)
    return sorted({name for template in templates for name in FIELD.findall(template) if name})
