"""What stands before the application: is this server meant, may this web page ask, is it well; one line for the log.

A page that somebody visits can send requests to servers on their machine, and by rebinding its own name to 127.0.0.1
even read the answers. So where no key keeps it out, a request must name the server by an address or a known name
(Host), and one that a web page sent (Origin) must come from the server's own page or from one that was allowed.

    /health   the process lives                          needs no key, as the page's files
    /ready    the engine answers and nobody shuts down   needs no key
    /metrics  for Prometheus                             needs a key where asking does, as all else
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mull.engine.host import Host
from mull.serve.app import api_of
from mull.serve.dialogue import a_name
from mull.serve.errors import DRAIN_RETRY, START_RETRY, ApiError
from mull.serve.gate import Visit
from mull.serve.house import House
from mull.serve.metrics import CONTENT_TYPE, Metrics

NAMES = ("localhost", "ip6-localhost")
LINGER_SECONDS, LINGER_BYTES = 2.0, 64 << 20
OWN = ("/health", "/ready", "/metrics")
GONE = 499  # nginx's number for a client that went away

Headers = list[tuple[bytes, bytes]]
PREFLIGHT: Headers = [
    (b"access-control-allow-methods", b"GET, POST, DELETE"),
    (b"access-control-allow-headers", b"authorization, content-type, x-api-key, anthropic-version, anthropic-beta"),
    (b"access-control-max-age", b"600"),
]


@dataclass
class Porch:
    """`log` takes a line. `app` is all the rest."""

    app: ASGIApp
    house: House
    host: Host
    metrics: Metrics
    connections: Callable[[], int]  # open now
    log: Callable[[str], None]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return  # lifespan: nothing to prepare; websockets: none are spoken
        began, status, unread = time.perf_counter(), 0, _has_body(scope)
        given = {name: value for name, value in scope["headers"] if name in (b"host", b"origin")}
        origin = given.get(b"origin")
        shared = self._shared(origin)

        async def read() -> Message:
            nonlocal unread
            message = await receive()
            unread = message.get("more_body", False)
            return message

        async def heard(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message.get("headers", ()), *shared]}
            elif unread and not message.get("more_body", False):
                await send({**message, "more_body": True})
                await _linger(read)
                message = {"type": "http.response.body"}
            await send(message)

        try:
            self._must_fit(scope)
            self._must_mean_us(given.get(b"host", b""), origin)
            if not await self._own(scope, heard, bool(shared)):
                await self.app(scope, read, heard)
        except ApiError as error:
            body = json.dumps(error.body(api_of(scope), a_name("req_"))).encode()
            await _send(heard, error.status, body, b"application/json", _headers(error))
        finally:
            self._ended(scope, status, time.perf_counter() - began)

    def _must_fit(self, scope: Scope) -> None:
        settings = self.house.settings
        if self.connections() > settings.connections:
            raise ApiError(503, "The server has too many connections open.", code="overloaded", retry_after=1)
        size = len(scope["path"]) + len(scope["query_string"]) + sum(len(n) + len(v) for n, v in scope["headers"])
        if size > settings.limits.header_bytes:
            raise ApiError(431, f"The headers have {size} bytes; this server takes {settings.limits.header_bytes}.")

    def _must_mean_us(self, host: bytes, origin: bytes | None) -> None:
        settings = self.house.settings
        name = _hostname(host)
        if (settings.loopback or settings.open) and not (_address(name) or name in (*NAMES, *settings.hosts)):
            raise ApiError(403, f"This server is not known as {name[:80]!r}; hosts=[...] names what else it is called.")
        if origin is None or origin.partition(b"://")[2].lower() == host.lower() or self._shared(origin):
            return
        shown = origin[:80].decode("latin-1")
        raise ApiError(403, f"Pages of {shown!r} may not ask this server; origins=[...] names those that may.")

    def _shared(self, origin: bytes | None) -> Headers:
        """What lets a page of another origin read the answer, if it may."""
        if origin is None or origin.decode("latin-1") not in self.house.settings.origins:
            return []
        return [(b"access-control-allow-origin", origin), (b"vary", b"origin")]

    async def _own(self, scope: Scope, send: Send, shared: bool) -> bool:
        """Answers what needs no application; whether it did."""
        path, method = scope["path"], scope["method"]
        if method == "OPTIONS" and shared:
            await _send(send, 204, b"", None, PREFLIGHT)
        elif method not in ("GET", "HEAD") or path not in OWN:
            return False
        elif path == "/health":
            await _say(send, 200, {"status": "ok"})
        elif path == "/ready":
            why = self._unready()
            if why:
                again = DRAIN_RETRY if self.house.draining else START_RETRY
                await _say(send, 503, {"status": "not ready", "why": why}, [(b"retry-after", b"%d" % again)])
            else:
                await _say(send, 200, {"status": "ready"})
        else:
            self.house.guest(scope)
            await _send(send, 200, self.metrics.page(), CONTENT_TYPE.encode())
        return True

    def _unready(self) -> str:
        if self.house.draining:
            return "The server is shutting down."
        return "" if self.host.alive else "The engine is starting."

    def _ended(self, scope: Scope, status: int, seconds: float) -> None:
        path = scope["path"]
        # never a path that a client made up
        route = path if path in OWN else getattr(scope.get("route"), "path", "other")
        self.metrics.ended(route, status or GONE, seconds)
        if path not in OWN or status != 200:  # those are asked every few seconds
            self.log(_line(scope, status, seconds))


def _line(scope: Scope, status: int, seconds: float) -> str:
    """One request, for whoever reads logs: nothing of what was asked or answered."""
    visit: Visit | None = scope.get("state", {}).get("visit")
    path = scope["path"][:100].encode("unicode_escape").decode()
    parts = [scope["method"], path, str(status or GONE), f"{seconds:.3f}s"]
    if visit is not None:
        parts.append(f"id={visit.id}")
        if visit.who.name:
            parts.append(f"key={visit.who.name!r}")
        spent = visit.spent
        if spent.prompt_tokens or spent.completion_tokens:
            parts += [
                f"prompt={spent.prompt_tokens}", f"cached={spent.cached_tokens}", f"made={spent.completion_tokens}",
                f"thinking={spent.reasoning_tokens}", f"first={spent.first_seconds:.3f}s", f"finish={spent.finish}",
            ]  # fmt: skip
        if visit.usd is not None:
            parts.append(f"usd={visit.usd:.3g}")
    return " ".join(parts)


def _has_body(scope: Scope) -> bool:
    return any(
        name == b"transfer-encoding" or (name == b"content-length" and value != b"0")
        for name, value in scope["headers"]
    )


async def _linger(receive: Receive) -> None:
    """Read on for a while what the client still sends: if the connection were closed now, it would lose our answer."""
    left = LINGER_BYTES
    with suppress(TimeoutError):
        async with asyncio.timeout(LINGER_SECONDS):
            while left > 0 and (message := await receive()).get("more_body", False):
                left -= len(message["body"])


def _hostname(host: bytes) -> str:
    """Without the port; an IPv6 address stands in brackets."""
    text = host.decode("latin-1").lower()
    return text[1:].partition("]")[0] if text.startswith("[") else text.partition(":")[0]


def _address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _headers(error: ApiError) -> Headers:
    return [(name.encode(), value.encode()) for name, value in error.headers.items()]


async def _say(send: Send, status: int, what: dict[str, str], headers: Headers | None = None) -> None:
    await _send(send, status, json.dumps(what).encode(), b"application/json", headers)


async def _send(send: Send, status: int, body: bytes, kind: bytes | None, headers: Headers | None = None) -> None:
    told: Headers = [(b"content-length", str(len(body)).encode()), *(headers or [])]
    if kind is not None:
        told.append((b"content-type", kind))
    await send({"type": "http.response.start", "status": status, "headers": told})
    await send({"type": "http.response.body", "body": body})


__all__ = ["Porch"]
