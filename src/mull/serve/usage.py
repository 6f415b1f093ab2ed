"""What was used, per key, day and model. Written when an answer has ended and before its last words go out: whoever has
the whole answer knows that it stands in the file, whatever kills the server then.
"""

from __future__ import annotations

import asyncio
import sqlite3
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from mull.serve.store import connect

ANYBODY = 0  # the id in `usage` of those who need no key
SUMS = ("requests", "prompt", "cached", "completion", "thinking", "seconds", "usd")
RETRY_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Used:
    """Of one request, whatever its number of choices."""

    prompt: int = 0
    cached: int = 0  # of those of the prompt
    completion: int = 0
    thinking: int = 0  # of those of the completion
    seconds: float = 0.0  # of the engine's time, its share
    usd: float | None = None  # None where no price is set


@dataclass(frozen=True, slots=True)
class Entry:
    key: int
    model: str
    used: Used
    at: float  # seconds since 1970


def day_of(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d")


def write(db: sqlite3.Connection, entries: Sequence[Entry]) -> None:
    """All or none of them."""
    db.execute("begin immediate")
    try:
        for entry in entries:
            used = entry.used
            sums = (1, used.prompt, used.cached, used.completion, used.thinking, used.seconds, used.usd or 0.0)
            db.execute(
                f"insert into usage values (?, ?, ?, {', '.join('?' * len(SUMS))}) on conflict do update set "
                + ", ".join(f"{name} = {name} + excluded.{name}" for name in SUMS),
                (entry.key, day_of(entry.at), entry.model, *sums),
            )
            db.execute("update keys set used = ? where id = ?", (entry.at, entry.key))
        db.execute("commit")
    except BaseException:
        if db.in_transaction:  # SQLite takes some back by itself, as where the disk is full
            db.execute("rollback")
        raise


def spent(db: sqlite3.Connection, key: int, since: str) -> float:
    """US dollars from that day on."""
    row = db.execute("select sum(usd) from usage where key = ? and day >= ?", (key, since)).fetchone()
    return row[0] or 0.0


By = Literal["day", "key", "model"]
GROUPS: dict[By, str] = {"day": "day", "key": "usage.key", "model": "model"}


def summed(db: sqlite3.Connection, by: Sequence[By] = ("day", "key")) -> list[dict[str, Any]]:
    """Rows of what they are grouped by and the sums, in that order; `key` is a name, "" for those who needed none."""
    shown = {"day": "day", "key": "coalesce(keys.name, '')", "model": "model"}
    columns = ", ".join([*(f"{shown[one]} as {one}" for one in by), *(f"sum({name}) as {name}" for name in SUMS)])
    groups = ", ".join(GROUPS[one] for one in by)
    both = "usage left join keys on keys.id = usage.key"
    found = db.execute(f"select {columns} from {both} group by {groups} order by {groups}")
    names = [column[0] for column in found.description]
    return [dict(zip(names, row, strict=True)) for row in found]


class Writer:
    """A thread that writes: what comes while it writes goes together into the next transaction.

    What cannot be written (a full disk) is kept and tried again; meanwhile answers go out, and stderr says so. An entry
    that no file would take is left out, and stderr says that too: it must not keep the others waiting.
    """

    def __init__(self, path: Path):
        self.db = connect(path, threads=True)
        self.entries: list[Entry] = []  # that are not in the file yet
        self.waiting: list[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = []
        self.closing = False
        self.news = threading.Condition()
        self.thread = threading.Thread(target=self._run, name="usage", daemon=True)
        self.thread.start()

    async def write(self, entry: Entry) -> None:
        """Returns when it is in the file."""
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        with self.news:
            self.entries.append(entry)
            self.waiting.append((loop, done))
            self.news.notify()
        await done

    def close(self) -> None:
        """Once everything is written, or cannot be."""
        with self.news:
            self.closing = True
            self.news.notify()
        self.thread.join()

    def _run(self) -> None:
        while True:
            with self.news:
                self.news.wait_for(self._due, RETRY_SECONDS if self.entries else None)
                entries, waiting, closing = self.entries, self.waiting, self.closing
                self.entries, self.waiting = [], []
            try:
                left = self._write(entries)
                with self.news:
                    self.entries = left + self.entries
            finally:  # whatever happened, nobody waits for ever
                for loop, done in waiting:
                    with suppress(RuntimeError):  # its loop has ended, and who waited with it
                        loop.call_soon_threadsafe(_settle, done)
            if closing:
                self.db.close()
                return

    def _write(self, entries: list[Entry]) -> list[Entry]:
        """Those that are to be tried again."""
        try:
            write(self.db, entries)
        except sqlite3.OperationalError as error:
            _say(f"Usage of {len(entries)} requests cannot be written: {error}.")
            return entries
        except Exception as error:
            if len(entries) > 1:  # one of them is at fault
                return [left for entry in entries for left in self._write([entry])]
            _say(f"Usage of a request is lost: {error!r} ({entries}).")
        return []

    def _due(self) -> bool:
        return bool(self.waiting) or self.closing


def _say(line: str) -> None:
    with suppress(OSError, ValueError):  # stderr may be on the same full disk, or closed
        print(line, file=sys.stderr, flush=True)


def _settle(done: asyncio.Future[None]) -> None:
    if not done.done():
        done.set_result(None)


__all__ = ["ANYBODY", "By", "Entry", "Used", "Writer", "day_of", "spent", "summed", "write"]
