"""The engine's process as seen from an asyncio server: submit, listen, cancel; if it dies it is started again.

    host = Host({"model": "runs/demo"}, rows=16, queue=32)
    await host.start()                      raises UserError where the model cannot be loaded
    ticket = host.submit(request)           raises BusyError; before it says anything nothing is promised
    async for delta in ticket: ...          the last one carries the Completion; raises RefusedError, DiedError
    ticket.cancel()                         also where the iteration is broken off: use `async with ticket`
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import time
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from mull.engine import wire
from mull.types import Completion, Delta, Request, UserError

PATIENCE = 300.0  # a step of a long prompt through a large model can take minutes


class BusyError(Exception):
    """The queue is full, or the engine is not up. `retry_after` in seconds."""

    def __init__(self, why: str, retry_after: int = 1):
        super().__init__(why)
        self.retry_after = retry_after


class NoRoomError(BusyError):
    """There is room, but not for all that is asked for together."""


class RefusedError(UserError):
    """The engine will not serve this request, and says why."""


class DiedError(Exception):
    """The engine died before the answer ended."""


class StoppedError(DiedError):
    """It was told to end, and does not start again."""


class Ticket:
    """One request on its way. What the engine has done for it is counted as it arrives, whether anybody reads it."""

    def __init__(self, host: Host, name: str, prompt: int = 0):
        self.host, self.name, self.prompt = host, name, prompt
        self.made = self.thought = 0  # tokens so far, and those of them until the last of the thought
        self.first: float | None = None  # when the first came, by time.monotonic
        self.completion: Completion | None = None
        self.inbox: asyncio.Queue[Delta | Exception] = asyncio.Queue()
        self.since = time.monotonic()
        self.ended = False

    async def __aenter__(self) -> Ticket:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.cancel()

    async def __aiter__(self) -> AsyncGenerator[Delta]:
        while not self.ended:
            delta = await self.inbox.get()
            if isinstance(delta, Exception):
                self.ended = True
                raise delta
            self.ended = delta.completion is not None
            yield delta

    def hear(self, delta: Delta) -> None:
        self.made += len(delta.tokens)
        if delta.reasoning:
            self.thought = self.made
        if self.made and self.first is None:
            self.first = time.monotonic()
        self.completion = delta.completion
        self.inbox.put_nowait(delta)

    def cancel(self) -> None:
        """The engine is told at once. Of an answer that has ended it does nothing."""
        if self.host.tickets.pop(self.name, None) is not None:
            self.host.send({"cancel": self.name})
        self.ended = True


class Host:
    """`options` go to engine/worker.py. At most `rows` requests are drawn at a time, and `queue` more wait.

    `patience` is how many seconds an engine may be silent that has something to do.
    """

    def __init__(self, options: Mapping[str, Any], rows: int = 16, queue: int = 64, patience: float = PATIENCE):
        self.patience = patience
        self.options, self.rows, self.queue = {**options, "rows": rows}, rows, queue
        self.tickets: dict[str, Ticket] = {}
        self.stats: dict[str, float] = {}
        self.restarts = 0
        self.alive = False
        self.closing = False
        self._names = itertools.count(1)
        self._process: asyncio.subprocess.Process | None = None
        self._listening: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    async def start(self) -> None:
        """Raises UserError where the model cannot be loaded."""
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "mull.engine.worker", json.dumps(self.options),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=1 << 24,
        )  # fmt: skip
        first = await self._line()
        if first is None or "failed" in first:
            raise UserError(first["failed"] if first else "The engine's process ended before it was ready.")
        self.alive = True
        self._listening = asyncio.create_task(self._listen())

    async def _line(self) -> dict[str, Any] | None:
        assert self._process is not None and self._process.stdout is not None
        line = await self._process.stdout.readline()
        return json.loads(line) if line.endswith(b"\n") else None

    async def _listen(self) -> None:
        """Until the process ends; whatever goes wrong here, it ends, and those who wait are told."""
        try:
            while (told := await self._heard()) is not None:
                self._tell(told)
        except (ValueError, KeyError, TypeError) as error:  # no line of ours
            print(f"The engine said what cannot be understood ({error}); it is ended.", file=sys.stderr, flush=True)
        finally:
            self.kill()
            self._ended()

    def _tell(self, told: dict[str, Any]) -> None:
        self.stats = told.get("stats", self.stats)
        for name, raw in told.get("step", ()):
            if (ticket := self.tickets.get(name)) is not None:
                delta = wire.delta_from(raw)
                if delta.completion is not None:
                    del self.tickets[name]
                ticket.hear(delta)
        if "refused" in told and (ticket := self.tickets.pop(told["refused"], None)) is not None:
            ticket.inbox.put_nowait(RefusedError(told["why"]))

    def _ended(self) -> None:
        """Who waits is told, and the process starts again unless that is not wanted."""
        self.alive, self.stats = False, {}
        waiting, self.tickets = self.tickets, {}
        why = DiedError("The engine stopped before this answer ended; it starts again.")
        if self.closing:
            why = StoppedError("The server is shutting down, before this answer ended.")
        for ticket in waiting.values():
            ticket.inbox.put_nowait(why)
        if not self.closing:
            self.restarts += 1
            self._restarting = asyncio.create_task(self._again())

    async def _heard(self) -> dict[str, Any] | None:
        """The next line. An engine that owes some and says nothing for too long is ended, like one that dies."""
        while True:
            try:
                return await asyncio.wait_for(self._line(), self.patience)
            except TimeoutError:
                if any(ticket.since < time.monotonic() - self.patience for ticket in self.tickets.values()):
                    self.kill()

    async def _again(self) -> None:
        wait = 0.1
        while not self.closing:
            try:
                await self.start()
                return
            except (UserError, OSError):
                await asyncio.sleep(wait)
                wait = min(2 * wait, 30)

    def must_hold(self, count: int) -> None:
        """Raises BusyError unless `count` more requests find room now, all of them."""
        if self.closing or not self.alive:
            raise BusyError("The engine is starting." if not self.closing else "The server is shutting down.", 2)
        room = self.rows + self.queue - len(self.tickets)
        if room <= 0:
            raise BusyError(f"The queue is full: {self.rows} requests are being answered and {self.queue} wait.")
        if count > room:
            raise NoRoomError(f"There is room for {room} more answers now, not for {count}: ask for fewer, or later.")

    def submit(self, request: Request, salt: str = "") -> Ticket:
        """Raises BusyError. Requests of different salts share no cached prompts."""
        self.must_hold(1)
        ticket = Ticket(self, f"r{next(self._names)}", len(request.tokens))
        self.tickets[ticket.name] = ticket
        self.send({"add": ticket.name, "request": wire.request_to(request), "salt": salt})
        return ticket

    def send(self, message: Mapping[str, Any]) -> None:
        if self.alive and self._process is not None and self._process.stdin is not None:
            self._process.stdin.write(wire.dumps(message))

    def kill(self) -> None:
        """End the process whatever it does; unless `stop` was called it is started again."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()

    async def stop(self) -> None:
        """End the process; requests that are under way get StoppedError."""
        self.closing = True
        if self._process is None:
            return
        self.send({"quit": True})
        try:
            await asyncio.wait_for(self._process.wait(), 5 if self.alive else 0)
        except TimeoutError:
            self.kill()
        if self._listening is not None:
            await self._listening


__all__ = ["BusyError", "DiedError", "Host", "NoRoomError", "RefusedError", "StoppedError", "Ticket"]
