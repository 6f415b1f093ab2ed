"""One step of the model over the cache: what the scheduler planned in, the logits of whoever draws a token out.

All that a step computes is one flat stream of tokens: those of decoding sequences first, then prompts' chunks; weights
are read once for all. Only attention tells them apart, in groups of the same shape.

B sequences that draw  T tokens of a pass  V vocabulary
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mull.dist import precision, row_floor
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
    """Parts of a step that attend together: `new` tokens each, those that lack some repeat their last."""

    parts: list[Part]
    new: int
    dense: bool = False

    @property
    def ragged(self) -> bool:
        return any(part.count != self.new for part in self.parts)


class Decoder:
    """A model and the cache of at most `most` sequences. Its pages become more as `pages` counts more."""

    def __init__(
        self, model: Transformer, pages: Pages, most: int, fp32: bool = False, routes: bool = False,
        rows_bytes: int = ROWS_BYTES,
    ):  # fmt: skip
        self.model, self.pages, self.most, self.fp32, self.routes = model, pages, most, fp32, routes
        half = model.device.type == "cuda" and not fp32
        dtype = torch.bfloat16 if half else model.embed.weight.dtype
        self.row_tokens = rows_bytes // token_bytes(model.cfg, dtype)  # so many tokens fit into all rows
        self.pool = Pool(model.cfg, model.device, dtype)
        self.rows = Rows(self.pool)
        self.slots: list[Job] = []  # who has which row

    def step(self, parts: Sequence[Part]) -> Said:
        self.pool.reserve(self.pages.count)
        self._seat([part for part in parts if part.job.left == 1 and not part.joins])
        shapes = self._shapes(parts)
        device = self.model.device
        tokens, positions, stored, places, seats = self._flat(shapes)
        lengths = max(self.rows.length, 1)
        groups, at = [], 0
        for shape in shapes:
            size = shape.new * len(shape.parts)
            groups.append(self._group(shape, slice(at, at + size), positions[at : at + size]))
            at += size
        idle = -at % STEP if at > STEP else 0
        if self.model.exact:
            idle = max(idle, row_floor() - at)
        at_T = torch.tensor(places, device=device)
        stored_T = torch.tensor(stored, device=device) if len(stored) < at else None
        seat_T = torch.tensor([row * lengths + position for row, position in seats], dtype=torch.long, device=device)
        window = Window(self.pool, self.rows, groups, at_T, seat_T, stored_T)
        tokens_T = torch.tensor([*tokens, *[0] * idle], device=device)
        positions_T = torch.tensor([*positions, *[0] * idle], device=device)
        trace = Trace() if self.routes else None
        with torch.inference_mode():
            with precision(device, self.fp32):
                hidden_TD = self.model.extend(tokens_T, positions_T, window, trace)
            ends_B = torch.tensor(self._ends(parts, shapes), dtype=torch.long, device=device)
            logits_BV = self.model.logits(hidden_TD[ends_B]) if len(ends_B) else hidden_TD.new_empty(0, 0)
            if trace is None:
                return Said(logits_BV, [])
            return Said(logits_BV, fingerprints(trace.chosen, self.model.cfg.experts)[ends_B].tolist())

    def _seat(self, decoding: Sequence[Part]) -> None:
        """Rows for those who decode: who left makes room, newcomers are copied out of their pages while there is room.

        What fills up a group goes behind the longest's end.
        """
        longest = max((part.count for part in decoding), default=0)
        ends = {part.job: part.begin + longest for part in decoding}
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
        more = rows if rows <= self.rows.rows else min(self.most, max(16, rows, 2 * self.rows.rows))
        longer = length if length <= self.rows.length else whole(max(256, length, self.rows.length * 3 // 2))
        for size in ((more, longer), (rows, length)):
            if size[0] * size[1] <= self.row_tokens:
                self.rows.reserve(*size)
                return True
        return False

    def _shapes(self, parts: Sequence[Part]) -> list[_Shape]:
        """Parts in the order of the pass."""
        by_job = {part.job: part for part in parts}
        seated = [by_job.pop(job) for job in self.slots]
        shapes = [_Shape(seated, max(part.count for part in seated), dense=True)] if seated else []
        group: list[Part] = []
        for part in sorted(by_job.values(), key=lambda part: (part.count, part.begin)):
            if group and not _alike(group, part):
                shapes.append(_Shape(group, group[-1].count))
                group = []
            group.append(part)
        return [*shapes, _Shape(group, group[-1].count)] if group else shapes

    def _flat(
        self, shapes: Sequence[_Shape]
    ) -> tuple[list[int], list[int], list[int], list[int], list[tuple[int, int]]]:
        """Token and position of all tokens; which are stored, and where in the pool; row and position of those that
        have a row.

        What fills up a group is behind the sequence's end: it is stored in the row alone, and overwritten there before
        anybody can see it.
        """
        tokens: list[int] = []
        positions: list[int] = []
        stored: list[int] = []
        places: list[int] = []
        seats: list[tuple[int, int]] = []
        for shape in shapes:
            for row, part in enumerate(shape.parts):
                job, end = part.job, part.begin + part.count
                mine = [*job.tokens[part.begin : end], *job.draft[: max(0, end - len(job.tokens))]]
                stored += range(len(tokens), len(tokens) + part.count)
                tokens += mine + [0] * (shape.new - part.count)
                here = range(part.begin, part.begin + shape.new)
                positions += here
                places += [job.pages[p // PAGE] * PAGE + p % PAGE for p in here[: part.count]]
                if shape.dense:
                    seats += [(row, position) for position in here]
        return tokens, positions, stored, places, seats

    def _group(self, shape: _Shape, tokens: slice, positions: Sequence[int]) -> Group:
        device = self.model.device
        positions_Bt = torch.tensor(positions, device=device).view(len(shape.parts), shape.new)
        length = whole(max(positions) + 1)
        if shape.dense:
            return Group(tokens, positions_Bt, length)
        width = length // PAGE
        table = [[*part.job.pages[:width], *[EMPTY] * (width - len(part.job.pages))] for part in shape.parts]
        return Group(tokens, positions_Bt, length, self.pool.pieces(torch.tensor(table, device=device)))

    @staticmethod
    def _ends(parts: Sequence[Part], shapes: Sequence[_Shape]) -> list[int]:
        """Where the rows of logits are in the flat stream, in the order of the parts."""
        begins, at = {}, 0
        for shape in shapes:
            for part in shape.parts:
                begins[part.job] = at
                at += shape.new
        ends: list[int] = []
        for part in parts:
            if part.draws:
                first = len(part.job.tokens) - 1 - part.begin  # place of the newest token, drafts behind it
                ends += range(begins[part.job] + first, begins[part.job] + part.count)
        return ends


__all__ = ["Decoder", "Said"]
