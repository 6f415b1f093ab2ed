"""Connections and signals: uvicorn, with an end for those that take or give nothing, and for the server itself.

A connection is cut where its headers do not come, and where nobody reads what is sent: uvicorn waits for both for ever.
What a server has sent and nobody has read is at most what the kernel and one buffer of 64 KiB hold.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from types import FrameType
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from mull.serve.errors import ApiError
from mull.serve.settings import Settings

SPARE = 64  # connections above the bound are told so; beyond these they are cut
LAST_WORDS = 1.0  # seconds in which errors may still go out, of a connection and of a server that ends
FORCED = 128  # + the signal's number: how shells count ends by a signal


def protocol_of(settings: Settings) -> type[asyncio.Protocol]:
    """A class of connections that keeps to these settings."""
    limits = settings.limits

    class Connection(H11Protocol):
        arriving: asyncio.TimerHandle | None = None  # runs while headers are awaited
        closing = False  # has had its last word; what it still sends is not looked at
        unread: asyncio.TimerHandle | None = None  # runs while the client does not read

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._watch()
            if len(self.connections) > settings.connections + SPARE:
                transport.abort()

        def data_received(self, data: bytes) -> None:
            if self.closing:
                return
            super().data_received(data)
            self._watch()

        def _watch(self) -> None:
            awaited = self.conn.their_state is h11.IDLE
            if awaited and self.arriving is None:
                self.arriving = self.loop.call_later(limits.read_seconds, self.transport.abort)
            elif not awaited and self.arriving is not None:
                self.arriving.cancel()
                self.arriving = None

        def pause_writing(self) -> None:
            super().pause_writing()
            self.unread = self.loop.call_later(limits.stall_seconds, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            if self.unread is not None:
                self.unread.cancel()
                self.unread = None

        def connection_lost(self, exc: Exception | None) -> None:
            for timer in (self.arriving, self.unread):
                if timer is not None:
                    timer.cancel()
            super().connection_lost(exc)

        def send_400_response(self, msg: str) -> None:
            """What is no HTTP, or has headers without end, in JSON as all else."""
            error = ApiError(400, f"This is no HTTP request, or its headers exceed {limits.header_bytes} bytes.")
            body = json.dumps(error.body("openai", "")).encode()
            headers = [("content-type", "application/json"), ("connection", "close")]
            head = h11.Response(status_code=400, headers=[*headers, ("content-length", str(len(body)))])
            with suppress(h11.LocalProtocolError):  # in the midst of an answer there is nothing to say
                for event in (head, h11.Data(data=body), h11.EndOfMessage()):
                    self.transport.write(self.conn.send(event) or b"")
            self.closing = True
            self.loop.call_later(LAST_WORDS, self.transport.close)  # at once, it would lose the answer in what it sends

    return Connection


class Server(uvicorn.Server):
    """Told to end, it takes in no more (`drain` is called), waits for what is under way, and ends; told again, at once.

    `cut` is awaited when the time for draining is over: it ends what is still under way.
    """

    def __init__(
        self, app: Any, settings: Settings, drain: Callable[[], None], cut: Callable[[], Awaitable[None]],
        kill: Callable[[], None],
    ):  # fmt: skip
        super().__init__(
            uvicorn.Config(
                app, log_config=None, access_log=False, lifespan="off", ws="none", server_header=False,
                http=protocol_of(settings), h11_max_incomplete_event_size=settings.limits.header_bytes,
                ssl_certfile=settings.tls_cert, ssl_keyfile=settings.tls_key, timeout_keep_alive=30,
                timeout_graceful_shutdown=1,
            )
        )  # fmt: skip
        self.drain, self.cut, self.kill = drain, cut, kill
        self.seconds = settings.drain_seconds
        self.told: int | None = None  # the signal that ended it
        self.until = 0.0  # when those under way have had their time
        self.cutting = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.told is not None:
            self.kill()
            os._exit(FORCED + sig)
        self.end(sig)

    def end(self, sig: int = signal.SIGTERM) -> None:
        if self.told is not None:
            return
        self.told = sig
        self.until = time.monotonic() + self.seconds
        self.drain()

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second."""
        if self.told is not None:
            now, busy = time.monotonic(), bool(self.server_state.tasks)
            if busy and now > self.until and not self.cutting:
                self.cutting, self.until = True, now + LAST_WORDS
                await self.cut()
            elif not busy or now > self.until:
                self.should_exit = True
        return await super().on_tick(counter)


__all__ = ["Server", "protocol_of"]
