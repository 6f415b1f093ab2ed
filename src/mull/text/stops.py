"""Texts that end an answer, found as it comes, wherever it is cut."""

from __future__ import annotations

from collections.abc import Sequence


def unfinished(text: str, marks: Sequence[str]) -> int:
    """How many letters at the end of `text` may be the beginning of a mark."""
    longest = min(max(map(len, marks), default=1) - 1, len(text))
    return next((n for n in range(longest, 0, -1) if any(mark.startswith(text[-n:]) for mark in marks)), 0)


class StopTexts:
    """Feed pieces; what could be the beginning of a stop text is held back. `hit` is the one that was found."""

    def __init__(self, stops: Sequence[str]):
        self.stops = [stop for stop in stops if stop]
        self.hit: str | None = None
        self._held = ""

    def feed(self, text: str) -> str:
        """What can be shown. Nothing comes behind a hit."""
        if self.hit is not None:
            return ""
        text = self._held + text
        found = [(at, stop) for stop in self.stops if (at := text.find(stop)) >= 0]
        if found:
            # the one that was complete first; of two that end alike, the longer
            at, self.hit = min(found, key=lambda one: (one[0] + len(one[1]), one[0]))
            self._held = ""
            return text[:at]
        keep = unfinished(text, self.stops)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        held, self._held = self._held, ""
        return held


__all__ = ["StopTexts", "unfinished"]
