"""One step of the model over the cache: what the scheduler planned in, the logits of whoever draws a token out.

All that a step computes is one flat stream of tokens: those of decoding sequences first, then prompts' chunks; weights
are read once for all. Only attention tells them apart, in groups of the same shape.

B sequences that draw  T tokens of a pass  V vocabulary
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mull.dist import precision
from mull.engine.cache import Group, Pool, Rows, Window, token_bytes
from mull.engine.pages import EMPTY, PAGE, Pages
from mull.engine.scheduler import Job, Part
from mull.model.moe import Trace, fingerprints
from mull.model.transformer import Transformer
from mull.ops.exact import whole

STEP = 16  # more tokens than this are a multiple of it: oneDNN compiles a kernel for each number of them
TAIL = 16  # chunks of at most so many tokens attend together, however many they are
NEAR = 256  # tokens before them may differ by as many
GROUP = 2048  # tokens that attend together
SPARE = 512  # tokens that rows may be longer than they must
ROWS_BYTES = 1 << 30  # of the copy of the cache that decoding takes as it lies


@dataclass(frozen=True)
class Said:
    """What a step says of the next tokens: for each part that draws a row, and one more for each token of its draft."""

    logits_BV: Tensor
    routes: list[int]  # per row, which experts its token met (model.moe.fingerprints); empty where not recorded


def _alike(group: Sequence[Part], part: Part) -> bool:
    """Whether a part, no shorter than those of a group, can join it: little is filled up, and scores stay few."""
    tokens = sum(one.count for one in group) + part.count
    filled = part.count * (len(group) + 1)
    begins = [one.begin for one in (*group, part)]
    near = max(begins) - min(begins) <= max(NEAR, min(begins) // 2)
    return near and (filled <= tokens * 5 // 4 or part.count <= TAIL) and filled <= GROUP


@dataclass(frozen=True)
class _Shape:
    """Parts of a step that attend together: `new` tokens each, those that lack some are filled up. `dense` in rows."""

    parts: list[Part]
    new: int
    dense: bool = False


@dataclass(frozen=True)
class _Flat:
    """The stream of a pass, group after group: for each token what and where it is.

    `stored` names those that are kept, `places` where in the pool; `seats` are row and position of those in rows.
    """

    tokens: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    stored: list[int] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    seats: list[tuple[int, int]] = field(default_factory=list)


class Decoder:
    """A model and the cache of at most `most` sequences. Its pages become more as `pages` counts more.

    With `ahead` there is one more layer of pages, for the model's first MTP layer.
    """

    def __init__(
        self, model: Transformer, pages: Pages, most: int, fp32: bool = False, routes: bool = False,
        rows_bytes: int = ROWS_BYTES, ahead: bool = False,
    ):  # fmt: skip
        self.model, self.pages, self.most, self.fp32, self.routes = model, pages, most, fp32, routes
        half = model.device.type == "cuda" and not fp32
        dtype = torch.bfloat16 if half else model.embed.weight.dtype
        self.row_tokens = rows_bytes // token_bytes(model.cfg, dtype)  # so many tokens fit into all rows
        self.pool = Pool(model.cfg, model.device, dtype, more=int(ahead))
        self.rows = Rows(self.pool)
        self.slots: list[Job] = []  # who has which row
        self.states: tuple[Tensor, dict[Job, int]] | None = None  # of the last step, and where each sequence's begin
        self.keep = ahead

    def step(self, parts: Sequence[Part]) -> Said:
        self.pool.reserve(self.pages.count)
        self._seat([part for part in parts if part.job.left == 1 and not part.joins])
        by_job = {part.job: part for part in parts}
        shapes = self._shapes([by_job.pop(job) for job in self.slots], by_job.values())
        flat = _flat(shapes)
        window = self._window(shapes, flat)
        begins = _begins(shapes)
        trace = Trace() if self.routes else None
        tokens_T, positions_T = self._padded(flat.tokens, flat.positions)
        with torch.inference_mode():
            with precision(self.model.device, self.fp32):
                hidden_TD = self.model.extend(tokens_T, positions_T, window, trace)
            self.states = (hidden_TD, begins) if self.keep else None
            ends_B = torch.tensor(_ends(parts, begins), dtype=torch.long, device=self.model.device)
            logits_BV = self.model.logits(hidden_TD[ends_B]) if len(ends_B) else hidden_TD.new_empty(0, 0)
            if trace is None:
                return Said(logits_BV, [])
            return Said(logits_BV, fingerprints(trace.chosen, self.model.cfg.experts)[ends_B].tolist())

    def ahead(self, parts: Sequence[Part], asked: Sequence[Job]) -> Tensor:
        """The MTP layer over those tokens of the last step whose next one is known by now: rejected drafts are not
        among them. What it says of the next token of each job that is asked for, [B, V]: of those that have drawn.

        A page's last entry depends on the token behind the page, which may differ among those who share it, and what
        was computed while nobody looked ahead has no entries: guesses become worse by it, answers do not.
        """
        assert self.states is not None
        hidden_TD, begins = self.states
        parts = [Part(part.job, part.begin, part.job.done - part.begin) for part in parts]
        shapes = self._shapes([], parts)
        flat = _flat(shapes, after=1)
        states = [
            begins[part.job] + min(i, part.count - 1) for shape in shapes for part in shape.parts
            for i in range(shape.new)
        ]  # fmt: skip
        window = self._window(shapes, flat)
        here, counts = _begins(shapes), {part.job: part.count for part in parts}
        with torch.inference_mode():
            states_T, tokens_T, positions_T = self._padded(states, flat.tokens, flat.positions)
            with precision(self.model.device, self.fp32):
                ahead_TD = self.model.extend_ahead(tokens_T, hidden_TD[states_T], positions_T, window)
            ends_B = torch.tensor([here[job] + counts[job] - 1 for job in asked], dtype=torch.long)
            return self.model.logits(ahead_TD[ends_B.to(ahead_TD.device)]) if asked else ahead_TD.new_empty(0, 0)

    def _padded(self, *streams: Sequence[int]) -> list[Tensor]:
        """Behind each so many zeros as make a pass of a good size: idle tokens, whose results nobody reads."""
        count = len(streams[0])
        idle = -count % STEP if count > STEP else 0
        idle = max(idle, self.model.least_rows - count)
        return [torch.tensor([*stream, *[0] * idle], device=self.model.device) for stream in streams]

    def _window(self, shapes: Sequence[_Shape], flat: _Flat) -> Window:
        device, lengths = self.model.device, max(self.rows.length, 1)
        groups, at = [], 0
        for shape in shapes:
            size = shape.new * len(shape.parts)
            groups.append(self._group(shape, slice(at, at + size), flat.positions[at : at + size]))
            at += size
        at_T = torch.tensor(flat.places, device=device)
        stored_T = torch.tensor(flat.stored, device=device) if len(flat.stored) < at else None
        seat_T = torch.tensor([row * lengths + place for row, place in flat.seats], dtype=torch.long, device=device)
        return Window(self.pool, self.rows, groups, at_T, seat_T, stored_T)

    def _seat(self, decoding: Sequence[Part]) -> None:
        """Rows for those who decode: who left makes room, newcomers are copied out of their pages while there is room.

        What fills up a group goes behind the longest's end.
        """
        longest = max((part.count for part in decoding), default=0)
        ends = {part.job: part.begin + longest for part in decoding}
        if self.rows.length > max(SPARE, 4 * max(ends.values(), default=SPARE)):  # as long as a sequence that has left
            self.rows, self.slots = Rows(self.pool), []
        at = 0
        while at < len(self.slots):
            if self._room(len(self.slots), ends.get(self.slots[at], self.row_tokens + 1)):
                at += 1
                continue
            last = self.slots.pop()
            if at < len(self.slots):
                self.rows.move(len(self.slots), at, last.done)
                self.slots[at] = last
        seated = set(self.slots)
        for part in decoding:
            if part.job not in seated and self._room(len(self.slots) + 1, ends[part.job]):
                self.rows.fill(len(self.slots), part.job.pages[: -(-part.begin // PAGE)])
                self.slots.append(part.job)

    def _room(self, rows: int, length: int) -> bool:
        """Whether so many rows can have this length; they become larger than they must, so that copying is rare."""
        rows, length = max(rows, self.rows.rows), whole(max(length, self.rows.length))
        if rows <= self.rows.rows and length <= self.rows.length:
            return True
        more = rows if rows <= self.rows.rows else max(rows, min(self.most, max(16, 2 * self.rows.rows)))
        longer = length if length <= self.rows.length else whole(max(256, length, self.rows.length * 3 // 2))
        for size in ((more, longer), (rows, length)):
            if size[0] * size[1] <= self.row_tokens:
                self.rows.reserve(*size)
                return True
        return False

    @staticmethod
    def _shapes(seated: list[Part], others: Iterable[Part]) -> list[_Shape]:
        """Parts in the order of the pass."""
        shapes = [_Shape(seated, max(part.count for part in seated), dense=True)] if seated else []
        group: list[Part] = []
        for part in sorted(others, key=lambda part: (part.count, part.begin)):
            if group and not _alike(group, part):
                shapes.append(_Shape(group, group[-1].count))
                group = []
            group.append(part)
        return [*shapes, _Shape(group, group[-1].count)] if group else shapes

    def _group(self, shape: _Shape, tokens: slice, positions: Sequence[int]) -> Group:
        device = self.model.device
        positions_Bt = torch.tensor(positions, device=device).view(len(shape.parts), shape.new)
        length = whole(max(positions) + 1)
        if shape.dense:
            return Group(tokens, positions_Bt, length)
        width = length // PAGE
        table = [[*part.job.pages[:width], *[EMPTY] * (width - len(part.job.pages))] for part in shape.parts]
        return Group(tokens, positions_Bt, length, self.pool.pieces(torch.tensor(table, device=device)))


def _flat(shapes: Sequence[_Shape], after: int = 0) -> _Flat:
    """What fills up a group is behind the sequence's end: it is stored in the row alone, and overwritten there before
    anybody can see it. Instead of each token the one that comes `after` so many."""
    flat = _Flat()
    for shape in shapes:
        for row, part in enumerate(shape.parts):
            job, begin, end = part.job, part.begin + after, part.begin + part.count + after
            mine = [*job.tokens[begin:end], *job.draft[: max(0, end - len(job.tokens))]]
            here = range(part.begin, part.begin + shape.new)
            flat.stored.extend(range(len(flat.tokens), len(flat.tokens) + part.count))
            flat.tokens.extend(mine + [0] * (shape.new - part.count))
            flat.positions.extend(here)
            flat.places.extend(job.pages[p // PAGE] * PAGE + p % PAGE for p in here[: part.count])
            if shape.dense:
                flat.seats.extend((row, position) for position in here)
    return flat


def _begins(shapes: Sequence[_Shape]) -> dict[Job, int]:
    """Where in the flat stream each sequence's tokens begin."""
    begins, at = {}, 0
    for shape in shapes:
        for part in shape.parts:
            begins[part.job] = at
            at += shape.new
    return begins


def _ends(parts: Sequence[Part], begins: dict[Job, int]) -> list[int]:
    """Where the rows of logits are in the flat stream, in the order of the parts."""
    ends: list[int] = []
    for part in parts:
        if part.draws:
            first = len(part.job.tokens) - 1 - part.begin  # place of the newest token, drafts behind it
            ends += range(begins[part.job] + first, begins[part.job] + part.count)
    return ends


__all__ = ["Decoder", "Said"]
