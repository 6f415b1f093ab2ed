"""Texts that end an answer, found as it comes, wherever it is cut."""

from __future__ import annotations

from collections.abc import Sequence


class StopTexts:
    """Feed pieces; what could be the beginning of a stop text is held back. `hit` is the one that was found."""

    def __init__(self, stops: Sequence[str]):
        self.stops = [stop for stop in stops if stop]
        self.longest = max(map(len, self.stops), default=0)
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
        keep = next((n for n in range(min(self.longest - 1, len(text)), 0, -1) if self._begins(text[-n:])), 0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def _begins(self, text: str) -> bool:
        return any(stop.startswith(text) for stop in self.stops)

    def flush(self) -> str:
        held, self._held = self._held, ""
        return held


__all__ = ["StopTexts"]
