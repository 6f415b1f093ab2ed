"""Token ids -> their text as it comes: what all pieces make together is what `Tokenizer.decode` makes of all ids.

A token may end within a character, and what a token reads as may depend on those before it. Decoding everything again
at each token is right but slow; here a token costs its own decoding, however long the text already is.

Vocabularies of bytes (GPT-2's kind) are decoded as bytes, in UTF-8. Those of SentencePiece's and WordPiece's kind are
decoded token by token behind a word, so that none is taken for a text's first; there a run of single bytes is
text only when it has ended, since one wrong byte spoils all of it. Decoders that look ahead give all text at the end.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from typing import Any, Protocol

import tokenizers
from tokenizers import decoders

from mull.text.tokenizer import Tokenizer

BYTE = re.compile(r"<0x[0-9A-F]{2}>")
TOKENWISE = ("Replace", "ByteFallback", "Fuse", "Metaspace", "Strip", "WordPiece")


@cache
def byte_names() -> dict[str, int]:
    """The letters that vocabularies of bytes are written in (GPT-2's table), and the byte that each stands for."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + at): byte for at, byte in enumerate(hidden)}


class Pieces(Protocol):
    """The text of one sequence of ids; `flush` ends it."""

    def feed(self, token: int) -> str: ...

    def flush(self) -> str: ...


def spelling(tokenizer: Tokenizer) -> Callable[[], Pieces]:
    """How a tokenizer's texts are decoded: call it for each of them."""
    if isinstance(tokenizer.inner.decoder, decoders.ByteLevel):
        return partial(_OfBytes, _Bytes(tokenizer))
    word = tokenizer.inner.encode("a", add_special_tokens=False).ids[-1:]
    if word and tokenizer.decode(word) and not _is_byte(tokenizer, word[0]) and _is_tokenwise(tokenizer.inner):
        return partial(_OfTokens, tokenizer, word[0], len(tokenizer.decode(word)))
    return partial(_Whole, tokenizer)


class _Bytes(dict[int, bytes | str]):
    """What each token stands for, filled as they come; text for a token that is a letter and no byte's name."""

    def __init__(self, tokenizer: Tokenizer):
        super().__init__(tokenizer.letters)
        self.inner, self.names = tokenizer.inner, byte_names()

    def __missing__(self, token: int) -> bytes | str:
        text = self.inner.id_to_token(token) or ""
        named = [self.names.get(letter, -1) for letter in text]
        made = self[token] = text.encode() if -1 in named else bytes(named)
        return made


class _OfBytes:
    def __init__(self, bytes_of: _Bytes):
        self.bytes_of, self.decode = bytes_of, codecs.getincrementaldecoder("utf-8")("replace").decode

    def feed(self, token: int) -> str:
        made = self.bytes_of[token]
        return self.decode(made) if isinstance(made, bytes) else self.decode(b"", True) + made

    def flush(self) -> str:
        return self.decode(b"", True)


class _OfTokens:
    """`word` is a token that the others are read behind, and `length` that of its text."""

    def __init__(self, tokenizer: Tokenizer, word: int, length: int):
        self.tokenizer, self.word, self.length = tokenizer, word, length
        self.begun, self.held = False, list[int]()

    def feed(self, token: int) -> str:
        if self.tokenizer.inner.id_to_token(token) is None:
            return ""
        self.held.append(token)
        return "" if _is_byte(self.tokenizer, token) else self.flush()

    def flush(self) -> str:
        before = [self.word] if self.begun else []
        text = self.tokenizer.decode([*before, *self.held])[self.length if self.begun else 0 :]
        if self.begun or text:
            self.begun, self.held = True, []
        return text


class _Whole:
    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer, self.held = tokenizer, list[int]()

    def feed(self, token: int) -> str:
        self.held.append(token)
        return ""

    def flush(self) -> str:
        held, self.held = self.held, []
        return self.tokenizer.decode(held)


def _is_byte(tokenizer: Tokenizer, token: int) -> bool:
    return BYTE.fullmatch(tokenizer.inner.id_to_token(token) or "") is not None


def _is_tokenwise(inner: tokenizers.Tokenizer) -> bool:
    """Whether no step of the decoder changes a token's text because of what comes behind it."""
    fused = False
    for step in _steps(json.loads(inner.decoder.__getstate__()) if inner.decoder else None):
        if step["type"] not in TOKENWISE or step.get("stop") or (fused and step["type"] == "Replace"):
            return False
        fused |= step["type"] == "Fuse"
    return True


def _steps(step: Mapping[str, Any] | None) -> Iterator[Mapping[str, Any]]:
    if step is None:
        return
    if step["type"] != "Sequence":
        yield step
        return
    for one in step["decoders"]:
        yield from _steps(one)


__all__ = ["Pieces", "byte_names", "spelling"]
