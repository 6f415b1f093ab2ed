"""Pages of the cache: who holds which, and which hold the beginning of a prompt that somebody else may ask too.

Plain Python, no tensors. A page has room for PAGE tokens. Pages are counted: several sequences that begin alike hold
the same ones. A full page is known by what it holds and what stands before it; when nobody holds it any more it stays,
the least recently used to be taken first when pages run short. Different salts share nothing, so that nobody can time
whether somebody else's prompt is there (CVE-2025-46570).

What stands before is a number that is never given twice, so a page whose predecessor is gone is not found by accident.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

PAGE = 16
Place = int | str  # what stands before a page: the number of another page's content, or a salt

EMPTY = 0  # no sequence has it: it fills up tables, and is never written


class Pages:
    """`count` pages, the empty one included; they become more, up to `limit`, before anything known is given up."""

    def __init__(self, count: int, limit: int | None = None):
        assert count > 1
        self.count, self.limit = count, max(count, limit or count)
        self._free = list(range(count - 1, EMPTY, -1))
        self._held = [0] * count
        self._idle: OrderedDict[int, None] = OrderedDict()  # known and held by nobody, the least recently used first
        self._known: dict[tuple[Place, tuple[int, ...]], int] = {}
        self._key: dict[int, tuple[Place, tuple[int, ...]]] = {}
        self._content = [0] * count  # number of what a known page holds
        self._contents = 0

    @property
    def free(self) -> int:
        """Pages that can be taken."""
        return len(self._free) + len(self._idle) + self.limit - self.count

    @property
    def idle(self) -> int:
        """Of these, those that still hold a prompt's beginning."""
        return len(self._idle)

    @property
    def used(self) -> int:
        """Pages that somebody holds."""
        return self.limit - 1 - self.free

    def _grow(self, number: int) -> None:
        """By half at least: whoever stores them copies what there is."""
        count = min(self.limit, max(self.count + number, self.count * 3 // 2))
        self._free = [*range(count - 1, self.count - 1, -1), *self._free]
        self._held += [0] * (count - self.count)
        self._content += [0] * (count - self.count)
        self.count = count

    def take(self, number: int) -> list[int] | None:
        """So many pages that nobody holds, now held once; None where there are not so many."""
        if number > self.free:
            return None
        if number > len(self._free) and self.count < self.limit:
            self._grow(number)
        taken = []
        for _ in range(number):
            if self._free:
                page = self._free.pop()
            else:
                page, _ = self._idle.popitem(last=False)
                del self._known[self._key.pop(page)]
            self._held[page] = 1
            taken.append(page)
        return taken

    def find(self, tokens: Sequence[int], salt: str) -> tuple[list[int], Place]:
        """Pages that hold the beginning of `tokens`, now held once more, and the place behind the last of them.

        At least one token is left over: the last one's result is wanted, and it is not kept.
        """
        found: list[int] = []
        place: Place = salt
        for at in range(0, len(tokens) - PAGE, PAGE):
            page = self._known.get((place, tuple(tokens[at : at + PAGE])))
            if page is None:
                break
            found.append(page)
            place = self._content[page]
        for page in found:
            self._held[page] += 1
            self._idle.pop(page, None)
        return found, place

    def know(self, page: int, place: Place, tokens: Sequence[int]) -> Place:
        """A held page is full of `tokens` behind `place`; the place behind it."""
        assert self._held[page] and len(tokens) == PAGE and page not in self._key
        key = (place, tuple(tokens))
        if (same := self._known.get(key)) is not None:  # somebody else has computed it too: that one stays
            return self._content[same]
        self._known[key] = page
        self._key[page] = key
        self._contents += 1
        self._content[page] = self._contents
        return self._contents

    def drop(self, pages: Sequence[int]) -> None:
        """One holder less for each. The last go first, so that beginnings stay the longest."""
        for page in reversed(pages):
            self._held[page] -= 1
            assert self._held[page] >= 0
            if self._held[page]:
                continue
            if page in self._key:
                self._idle[page] = None
            else:
                self._free.append(page)

    def forget(self) -> None:
        """Nothing is known any more: the weights have changed, or what was computed is in doubt."""
        self._free.extend(self._idle)
        self._idle.clear()
        self._known.clear()
        self._key.clear()


__all__ = ["EMPTY", "PAGE", "Pages", "Place"]
