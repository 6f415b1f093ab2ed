"""Where mull keeps what it fetches, and one fetcher at a time."""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

Say = Callable[[str], None]


def cache() -> Path:
    """$MULL_CACHE, or mull/ in $XDG_CACHE_HOME or ~/.cache."""
    given = os.environ.get("MULL_CACHE")
    return Path(given or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "mull").expanduser()


@contextmanager
def alone(name: str, say: Say) -> Iterator[None]:
    """Two who pull the same wait for one another; the kernel lets go of a lock however its process ends."""
    locks = cache() / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    with (locks / re.sub(r"[^A-Za-z0-9]", "-", name)).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"Another process is fetching {name}; waiting for it.")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


__all__ = ["Say", "alone", "cache"]
