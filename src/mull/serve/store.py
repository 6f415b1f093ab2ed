"""The file that keys and usage live in: SQLite, one per user, readable by its owner alone.

Its write-ahead log is not synced at every commit (synchronous=NORMAL): what was committed outlives any death of the
process, since the kernel has it; a power cut may take the last moments, but never damages what is older.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import suppress
from pathlib import Path

from mull.types import UserError

APPLICATION = 0x6D756C6C  # "mull", by which the file knows itself
VERSION = 1
BUSY_SECONDS = 5.0  # that a writer waits for another process to end its transaction

SCHEMA = """
create table keys (
    id integer primary key autoincrement,  -- never used again, so that usage keeps its owner
    name text not null,
    hash blob not null unique,
    hint text not null,
    created real not null,
    used real,
    revoked real,
    allowance text not null
);
create unique index names on keys (name) where revoked is null;
create table usage (
    key integer not null,
    day text not null,
    model text not null,
    requests integer not null,
    prompt integer not null,
    cached integer not null,
    completion integer not null,
    thinking integer not null,
    seconds real not null,
    usd real not null,
    primary key (key, day, model)
) without rowid;
"""


def default_path() -> Path:
    """$MULL_STATE, or mull/ in $XDG_STATE_HOME or ~/.local/state."""
    given = os.environ.get("MULL_STATE")
    return Path(given or Path(os.environ.get("XDG_STATE_HOME") or "~/.local/state") / "mull").expanduser() / "serve.db"


def connect(path: Path, threads: bool = False) -> sqlite3.Connection:
    """Opens it, or makes it. `threads`: it is used by another thread than this one. Raises UserError.

    Transactions are begun and ended by whoever uses the connection.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with suppress(FileExistsError):
            # SQLite gives its log the same mode. A file that is there is not opened by hand: closing it would drop the
            # locks that this process has on it, and who closes it next deletes the log under its other connections.
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        db = sqlite3.connect(path, BUSY_SECONDS, isolation_level=None, check_same_thread=not threads)
    except (OSError, sqlite3.Error) as error:
        raise UserError(f"{path} cannot be opened ({error}); --db names another file for keys and usage.") from None
    try:
        _prepare(db, path)
    except sqlite3.Error as error:
        db.close()
        raise UserError(f"{path} is no file of keys and usage ({error}); --db names another.") from None
    except UserError:
        db.close()
        raise
    return db


def _prepare(db: sqlite3.Connection, path: Path) -> None:
    if _mark(db) == (0, 0):
        db.execute("begin immediate")  # of two that make it, the second finds it made
        if _mark(db) == (0, 0):
            if db.execute("select count(*) from sqlite_master").fetchone()[0]:
                db.execute("rollback")
                raise UserError(f"{path} is another program's database; --db names another file.")
            for statement in SCHEMA.split(";\n"):
                db.execute(statement)
            db.execute(f"pragma application_id = {APPLICATION}")
            db.execute(f"pragma user_version = {VERSION}")
        db.execute("commit")
    application, version = _mark(db)
    if application != APPLICATION:
        raise UserError(f"{path} is another program's database; --db names another file.")
    if version != VERSION:
        raise UserError(f"{path} is of version {version} and this mull knows {VERSION}; use the mull that made it.")
    db.execute("pragma journal_mode = wal")
    db.execute("pragma synchronous = normal")


def _mark(db: sqlite3.Connection) -> tuple[int, int]:
    return db.execute("pragma application_id").fetchone()[0], db.execute("pragma user_version").fetchone()[0]


__all__ = ["connect", "default_path"]
