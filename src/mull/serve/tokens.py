"""Single tokens as text and bytes, for log-probabilities. A token may be half a character: its bytes say which half."""

from __future__ import annotations

from typing import Any

from mull.text.pieces import byte_names
from mull.text.tokenizer import Tokenizer

LEAST = -9999.0  # JSON has no minus infinity


class Spelling:
    """Of one tokenizer."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer

    def text(self, token: int) -> str:
        return self.tokenizer.decode([token])

    def bytes(self, token: int) -> list[int] | None:
        """None where the vocabulary does not tell."""
        text = self.text(token)
        if "\ufffd" not in text:
            return list(text.encode())
        name = self.tokenizer.inner.id_to_token(token) or ""
        if name.startswith("<0x") and len(name) == 6:
            return [int(name[3:5], 16)]
        table = byte_names()
        return [table[letter] for letter in name] if name and all(letter in table for letter in name) else None

    def scored(self, token: int, logprob: float) -> dict[str, Any]:
        return {"token": self.text(token), "logprob": max(logprob, LEAST), "bytes": self.bytes(token)}


__all__ = ["Spelling"]
