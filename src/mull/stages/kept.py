"""Graded answers of an exam that is not at its end, a line each: a continued run asks for the others only.

What went wrong on the way (`infrastructure`) is not taken for known, so that it is tried again. In exact mode there is
none of this: engine/tokenlog.py keeps single tokens, and answers that are known to it are graded again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from threading import Lock

from mull.types import Problem, Rollout


class Kept:
    """One file. `known` are the answers of earlier sessions, `seconds` what those took.

    Lines reach the system at once; a kill costs none that was written whole.
    """

    def __init__(self, path: Path):
        self.path = path
        self.known: dict[tuple[str, int], Rollout] = {}
        self.seconds = 0.0
        self._lock = Lock()
        for line in path.read_bytes().splitlines() if path.exists() else []:
            try:
                seconds, text = json.loads(line)
                rollout = Rollout.from_json(text)
            except (AttributeError, KeyError, TypeError, ValueError):
                continue  # cut short by a kill
            self.seconds = max(self.seconds, seconds)
            if rollout.outcome != "infrastructure":
                self.known[rollout.problem.id, rollout.sample] = rollout
        path.parent.mkdir(parents=True, exist_ok=True)
        self._torn = path.exists() and not path.read_bytes().endswith(b"\n") and path.stat().st_size > 0

    def hold(self, problems: Sequence[Problem]) -> None:
        """Answers to what is no longer asked so are none: a file may have been edited meanwhile."""
        now = {problem.id: problem for problem in problems}
        for name, sample in [*self.known]:
            was, asked = self.known[name, sample].problem, now.get(name)
            same = asked is not None and was.messages[: len(asked.messages)] == asked.messages
            if asked is None or not same or (was.answer, was.meta) != (asked.answer, asked.meta):
                del self.known[name, sample]

    def keep(self, rollout: Rollout, seconds: float) -> None:
        """`seconds` of all sessions; from any thread."""
        line = ("\n" if self._torn else "") + json.dumps([round(seconds, 3), rollout.to_json()]) + "\n"
        with self._lock, self.path.open("a", encoding="utf-8") as file:
            file.write(line)
            self._torn = False

    def forget(self) -> None:
        self.path.unlink(missing_ok=True)


__all__ = ["Kept"]
