"""Bodies of requests before anybody reads them as anything: how large, how many in memory, how much is in them.

What a body costs is decided by its values, not by its bytes: 8 MB of `[]` are millions of objects, and a check that
complains of each takes minutes. Parsing holds Python's one lock, in a thread as much as here, so bodies are measured by
their marks (commas, brackets) before they are parsed.
"""

from __future__ import annotations

import asyncio
import json
import re
from contextlib import suppress

from starlette.types import Message, Receive

from mull.serve.errors import ApiError
from mull.serve.settings import Limits
from mull.serve.sse import GoneError

MARKS = (b",", b"[", b"{")  # each begins a value; a body of none of them is one
FLAT = bytes.maketrans(b"{}", b"[]")
OTHERS = bytes(byte for byte in range(256) if byte not in b"[]{}")
TEXT = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)  # it never goes back, so it takes time for each byte once


class Bodies:
    """Reads them. `held` is how many bytes of all bodies are in memory now; who read one lets it go."""

    def __init__(self, limits: Limits):
        self.limits, self.held = limits, 0

    async def read(self, receive: Receive, size: int) -> bytes:
        """The whole body, if it is not too large and comes in time; the client says that it has `size` bytes.

        Raises ApiError and GoneError, and then holds nothing of it.
        """
        parts: list[bytes] = []
        try:
            async with asyncio.timeout(self.limits.read_seconds):
                await self._gather(receive, size, parts)
            body = b"".join(parts)
            must_be_sound(body, self.limits.body_values, self.limits.depth)
        except BaseException as error:
            self.let_go(sum(map(len, parts)))
            if isinstance(error, TimeoutError):
                raise ApiError(408, "The body took too long to arrive.") from None
            raise
        return body

    async def _gather(self, receive: Receive, size: int, parts: list[bytes]) -> None:
        most, going_on, read = self.limits.body_bytes, True, 0
        while going_on:
            if max(size, read) > most:
                raise ApiError(413, f"The body is too large; this server reads at most {most:,} bytes.")
            message = await receive()
            if message["type"] == "http.disconnect":
                raise GoneError
            parts.append(message.get("body", b""))
            going_on, read = message.get("more_body", False), read + len(parts[-1])
            self.held += len(parts[-1])
            if self.held > max(most, self.limits.bodies_bytes):
                raise ApiError(503, "The server has too much to read at once.", code="overloaded", retry_after=1)

    def let_go(self, size: int) -> None:
        self.held -= size


def again(body: bytes, receive: Receive) -> Receive:
    """Says the body, and then what comes."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def said() -> Message:
        return messages.pop() if messages else await receive()

    return said


def must_be_sound(body: bytes, most: int, depth: int) -> None:
    """Raises ApiError for more than `most` values, for some nested deeper than `depth`, and for texts that are none."""
    if json.detect_encoding(body) not in ("utf-8", "utf-8-sig"):  # marks would be others
        raise ApiError(400, "The body cannot be read; it must be JSON in UTF-8.")
    if has_more(body, most):
        why = f"The body has too many values in its lists and objects; this server takes at most {most:,}."
        raise ApiError(400, why)
    if is_deeper(body, depth):
        raise ApiError(400, f"The body's lists and objects are nested too deeply; this server takes {depth} levels.")
    _must_be_text(body)


def has_more(body: bytes, most: int) -> bool:
    """Whether there are more than `most` values in it. Cheap unless it has many commas, which texts have too."""
    if _marks(body) < most:
        return False
    texts = (body.count(b'"') - body.count(b'\\"')) // 2  # or more: as keys and values
    return texts > 2 * most or _marks(TEXT.sub(b"", body)) >= most


def is_deeper(body: bytes, most: int) -> bool:
    """Whether lists and objects are nested deeper than that. What is no JSON is left to whoever reads it."""
    opened = body.count(b"[") + body.count(b"{")
    if opened <= most:
        return False
    nesting = TEXT.sub(b"", body).translate(FLAT, OTHERS)
    if len(nesting) > 2 * opened:  # more is closed than was opened: no JSON
        return False
    left = most
    while (within := b"[]" in nesting) and left:
        nesting, left = nesting.replace(b"[]", b""), left - 1  # without the innermost
    return within


def _marks(body: bytes) -> int:
    return sum(map(body.count, MARKS))


def _must_be_text(body: bytes) -> None:
    """Raises ApiError for half a character, which JSON can write (as \\ud800) and nobody can encode."""
    if b"\\ud" not in body and b"\\uD" not in body:
        return
    with suppress(ValueError, RecursionError):  # no JSON: that is said later
        try:
            json.dumps(json.loads(body), ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise ApiError(400, "The body has half a surrogate pair in a text, which is no character.") from None


__all__ = ["Bodies", "again", "has_more", "is_deeper", "must_be_sound"]
