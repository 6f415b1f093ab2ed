"""API keys: made, shown once, listed, revoked, found.

A key is 256 random bits in letters. Its SHA-256 is what is stored and searched for by an index: nobody can guess or
enumerate such a key, so a slow hash would protect nothing, and how long a search takes tells of the hash and not of the
key. A running server asks the file at each request, so that what is revoked is refused at once.
"""

from __future__ import annotations

import hashlib
import secrets
import sqlite3
import time
from dataclasses import dataclass

from pydantic import Field

from mull.config import Config
from mull.types import UserError

PREFIX = "mull-"
NAME_CHARS = 64
COLUMNS = "id, name, hint, created, used, revoked, allowance"


class Allowance(Config):
    """What a key may use; None is no bound. Days and months are of UTC.

    Tokens and money are known when an answer has ended: a key below its bound may begin, and what it began is answered.
    """

    rpm: int | None = Field(default=None, ge=1)  # requests a minute
    tpm: int | None = Field(default=None, ge=1)  # tokens a minute, those of prompts included
    parallel: int | None = Field(default=None, ge=1)  # requests at a time; None: half of the places (house.py)
    usd_per_day: float | None = Field(default=None, gt=0)
    usd_per_month: float | None = Field(default=None, gt=0)


@dataclass(frozen=True, slots=True)
class Key:
    id: int
    name: str
    hint: str  # its last four letters
    created: float  # seconds since 1970, as the next two
    used: float | None
    revoked: float | None
    allowance: Allowance


def create(db: sqlite3.Connection, name: str, allowance: Allowance | None = None) -> str:
    """The key itself, which nothing can show again. Raises UserError where the name is taken, or is none."""
    if not name.strip() or len(name) > NAME_CHARS or not name.isprintable():
        raise UserError(f"A key's name is 1 to {NAME_CHARS} printable characters, not {name[:80]!r}.")
    token = PREFIX + secrets.token_urlsafe(32)
    row = (name, _hash(token), token[-4:], time.time(), (allowance or Allowance()).model_dump_json(exclude_none=True))
    try:
        db.execute("insert into keys (name, hash, hint, created, allowance) values (?, ?, ?, ?, ?)", row)
    except sqlite3.IntegrityError:
        raise UserError(f"There is a key named {name!r} already; revoke it first, or give another name.") from None
    return token


def revoke(db: sqlite3.Connection, name: str) -> None:
    """Raises UserError where no key that is in force has the name."""
    done = db.execute("update keys set revoked = ? where name = ? and revoked is null", (time.time(), name))
    if not done.rowcount:
        names = ", ".join(key.name for key in listed(db) if key.revoked is None)
        raise UserError(f"No key in force is named {name!r}; {f'there are {names}' if names else 'there is none'}.")


def listed(db: sqlite3.Connection) -> list[Key]:
    """All that were ever made, the oldest first."""
    return [_key(row) for row in db.execute(f"select {COLUMNS} from keys order by id")]


def find(db: sqlite3.Connection, token: str) -> Key | None:
    """The key, also where it is revoked; None where it was never made here."""
    row = db.execute(f"select {COLUMNS} from keys where hash = ?", (_hash(token),)).fetchone()
    return None if row is None else _key(row)


def exist(db: sqlite3.Connection) -> bool:
    """Whether any was ever made: whoever revokes the last one does not mean to open the door."""
    return db.execute("select exists (select 1 from keys)").fetchone()[0] == 1


def in_force(db: sqlite3.Connection) -> int:
    """How many."""
    return db.execute("select count(*) from keys where revoked is null").fetchone()[0]


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode(errors="surrogateescape")).digest()


def _key(row: tuple[int, str, str, float, float | None, float | None, str]) -> Key:
    return Key(*row[:-1], Allowance.model_validate_json(row[-1]))


__all__ = ["Allowance", "Key", "create", "exist", "find", "in_force", "listed", "revoke"]
