"""A digest of a tokenizer: of all that decides which numbers a record becomes."""

import hashlib
import json
from typing import Any


def digest_of(tokenizer: Any) -> str:
    """SHA-256 of a tokenizer, hexadecimal: over canonical JSON of what makes ids of text, and nothing else.

    That is the content of `tokenizer.json` (vocabulary, merges, normaliser, added tokens, what stands before and behind
    a text) or, where there is none, the vocabulary and the added tokens; the special tokens; the chat template. How a
    tokenizer was last asked to cut and to pad is left out, and merges are pairs, in whatever form a library writes
    them. "" for None.
    """
    if tokenizer is None:
        return ""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        content = json.loads(backend.to_str())
        for state in ("version", "truncation", "padding"):
            content.pop(state, None)
        if isinstance(merges := content.get("model", {}).get("merges"), list):
            content["model"]["merges"] = [m.split(" ") if isinstance(m, str) else m for m in merges]
    else:
        content = {"vocabulary": tokenizer.get_vocab(), "added": tokenizer.get_added_vocab()}
    special = {n: str(t) for n, t in tokenizer.special_tokens_map.items()}
    said = [content, special, getattr(tokenizer, "chat_template", None)]
    text = json.dumps(said, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
