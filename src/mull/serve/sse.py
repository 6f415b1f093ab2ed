"""Answers on the wire: server-sent events for those that are told as they come, and an eye on whether anybody listens.

A client that goes away ends the work for it at once; so does one that stays but takes nothing, which wires.py cuts off.
The head of a stream waits for its first frame (a while), so that what goes wrong before has a status of its own.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Send
from starlette.types import Scope as AsgiScope

T = TypeVar("T")
HEAD_AFTER = 10.0  # seconds after which a stream begins though there is nothing to tell yet
PING_AFTER = 15.0  # seconds of silence after which a client is told that all is well
PING = b": still at it\n\n"  # a comment: clients skip it
HEADERS = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache", "x-accel-buffering": "no"}


class GoneError(Exception):
    """The client went away."""


async def gone(receive: Receive) -> None:
    """Returns when the client has gone. The body must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """What `work` returns. Raises GoneError, after `work` is cancelled, where the client does not wait for it."""
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(gone(request.receive))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise GoneError
        return working.result()
    finally:
        await _end(working, watching)


async def streamed(
    request: Request, frames: AsyncGenerator[bytes], failed: Callable[[Exception], bytes],
    headers: Mapping[str, str] | None = None, ping: bytes = PING,
) -> Response:  # fmt: skip
    """`frames` as a response. What is raised before the first is raised here; later `failed` makes a frame of it."""
    first = asyncio.ensure_future(anext(frames))
    watching = asyncio.ensure_future(gone(request.receive))
    await asyncio.wait({first, watching}, timeout=HEAD_AFTER, return_when=asyncio.FIRST_COMPLETED)
    left = watching.done()
    if left or (first.done() and first.exception() is not None):
        await _end(first, watching)
        await frames.aclose()
        if left:
            raise GoneError
        first.result()
    return _Stream(first, frames, watching, failed, {**HEADERS, **(headers or {})}, ping)


class _Stream(Response):
    def __init__(
        self, first: asyncio.Future[bytes], frames: AsyncGenerator[bytes], watching: asyncio.Future[None],
        failed: Callable[[Exception], bytes], headers: Mapping[str, str], ping: bytes,
    ):  # fmt: skip
        self.status_code, self.background = 200, None
        self.init_headers(headers)
        self.first, self.frames, self.watching = first, frames, watching
        self.failed, self.ping = failed, ping
        self.told = time.monotonic()

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        telling = asyncio.ensure_future(self._tell(send))
        pinging = asyncio.ensure_future(self._keep_alive(send))
        try:
            await asyncio.wait({telling, self.watching}, return_when=asyncio.FIRST_COMPLETED)
            if telling.done():
                telling.result()
        finally:
            await _end(telling, pinging, self.watching, self.first)
            await self.frames.aclose()

    async def _tell(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            await self._body(send, await self.first)
            async for frame in self.frames:
                await self._body(send, frame)
        except Exception as error:
            await self._body(send, self.failed(error))
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _body(self, send: Send, frame: bytes) -> None:
        await send({"type": "http.response.body", "body": frame, "more_body": True})
        self.told = time.monotonic()

    async def _keep_alive(self, send: Send) -> None:
        while True:
            await asyncio.sleep(PING_AFTER)
            if time.monotonic() - self.told >= PING_AFTER:
                await self._body(send, self.ping)


async def _end(*tasks: asyncio.Future[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


__all__ = ["GoneError", "gone", "streamed", "unless_gone"]
