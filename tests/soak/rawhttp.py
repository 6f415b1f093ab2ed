"""HTTP by hand, so that a client can behave badly: leave in the middle, read slowly, send half of what it promised."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field

ABORT = struct.pack("ii", 1, 0)  # SO_LINGER: close with a reset
PATIENCE = 120.0  # seconds; what takes longer is stuck


class StuckError(Exception):
    """No end of it within the patience one has."""


@dataclass
class Reply:
    """What came back; `whole` where it ended as it should. Status 0: nothing did."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    whole: bool = False


@dataclass(frozen=True)
class Manners:
    """How a client behaves. It leaves after so many bytes of an answer, or never; it sends only a part of its body."""

    leave_after: int | None = None
    abort: bool = False  # leave with a reset instead of a goodbye
    pause: float = 0.0  # seconds after each little that is read
    sends: float = 1.0  # of its request


POLITE = Manners()


async def ask(
    port: int, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None,
    manners: Manners = POLITE, patience: float = PATIENCE,
) -> Reply:  # fmt: skip
    """One request on a connection of its own. Raises StuckError, and OSError where nobody takes the connection."""
    reply = Reply()
    try:
        async with asyncio.timeout(patience):
            await _ask(port, method, path, body, headers or {}, manners, reply)
    except TimeoutError:
        raise StuckError(f"{method} {path}: no end after {patience:g} s, status {reply.status}") from None
    except (ConnectionError, asyncio.IncompleteReadError):
        pass  # cut off: `whole` says so
    return reply


async def _ask(
    port: int, method: str, path: str, body: bytes, headers: Mapping[str, str], manners: Manners, reply: Reply
) -> None:  # fmt: skip
    connection = socket.socket()
    if manners.pause:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    connection.setblocking(False)
    try:
        await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", port))
    except OSError:
        connection.close()
        raise
    reader, writer = await asyncio.open_connection(sock=connection, limit=1 << 20)
    try:
        given = {"Host": f"127.0.0.1:{port}", "Connection": "close", "Content-Length": str(len(body)), **headers}
        head = f"{method} {path} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in given.items())
        raw = head.encode() + b"\r\n" + body
        writer.write(raw[: int(len(raw) * manners.sends)])
        if manners.sends < 1:
            await asyncio.sleep(manners.pause)
            return
        with suppress(ConnectionError):  # refused while it was sent; the answer may be there all the same
            await writer.drain()
        await _read(reader, manners, reply)
    finally:
        if manners.abort:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, ABORT)
        writer.close()
        with suppress(ConnectionError, TimeoutError):
            await writer.wait_closed()


async def _read(reader: asyncio.StreamReader, manners: Manners, reply: Reply) -> None:
    if manners.leave_after == 0:
        return
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    reply.status = int(head[0].split()[1])
    for line in head[1:-2]:
        name, _, value = line.partition(":")
        reply.headers[name.strip().lower()] = value.strip()
    if reply.headers.get("transfer-encoding") == "chunked":
        while size := int(await reader.readuntil(b"\r\n"), 16):
            reply.body += await reader.readexactly(size)
            await reader.readexactly(2)
            if manners.leave_after is not None and len(reply.body) >= manners.leave_after:
                return
            if manners.pause:
                await asyncio.sleep(manners.pause)
        await reader.readexactly(2)
    else:
        reply.body = await reader.readexactly(int(reply.headers.get("content-length", 0)))
    reply.whole = True


__all__ = ["POLITE", "Manners", "Reply", "StuckError", "ask"]
