"""What decoding remembers, in pages; and rows of it laid out side by side, for speed.

GQA keeps keys and values apart; MLA one tensor, the latent and its rotary key, as if of one head. A sequence's entries
lie in pages (engine/pages.py), which sequences that begin alike share: that is where everything is, [P, h, PAGE, X].

Matrix products want the entries of a sequence in one piece. `Pool.gather` copies them together, once a step and layer,
which costs as much as attention itself. So sequences that are decoding also have a row in `Rows`, [B, h, S, X], where
products take them as they lie; a step writes to both. Rows are only a copy: whoever has none is gathered.

P pages  B rows  T new tokens  t new tokens per row  h key heads  S cached positions  X width of an entry
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mull.engine.pages import PAGE
from mull.model.config import ModelConfig
from mull.ops.attention import attend_window, unseen_of
from mull.ops.exact import KEYS, attend_window_exact, whole

SCORES = 1 << 24  # of one attention product: longer prompts are taken in blocks of queries


def entry_shapes(cfg: ModelConfig) -> list[tuple[int, int]]:
    """[h, X] of each tensor of a layer."""
    return [(1, cfg.kv_rank + cfg.rope_dim)] if cfg.latent else [(cfg.kv_heads, cfg.head_dim)] * 2


def token_bytes(cfg: ModelConfig, dtype: torch.dtype, more: int = 0) -> int:
    """What one token takes in the cache, with `more` layers."""
    return (cfg.layers + more) * sum(h * x for h, x in entry_shapes(cfg)) * dtype.itemsize


def zeros(shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Zeros, not empty: what lies beyond a sequence's end is masked, but NaN * 0 would still be NaN.

    On a CPU the system gives the memory when it is first written to, which torch.zeros does at once: a cache may be
    large, and is paid for as it fills.
    """
    if device.type == "cpu" and dtype == torch.float32:
        return torch.from_numpy(np.zeros(shape, np.float32))
    return torch.zeros(shape, device=device, dtype=dtype)


class Pool:
    """The pages of all layers: none, before there is room for some. `more` layers behind the model's own have pages
    only, no rows."""

    def __init__(self, cfg: ModelConfig, device: torch.device, dtype: torch.dtype, more: int = 0):
        self.shapes, self.layers, self.device, self.dtype = entry_shapes(cfg), cfg.layers, device, dtype
        self.heads = self.shapes[0][0]
        self.pages = 0
        self.store: list[list[Tensor]] = [[] for _ in range(self.layers + more)]

    def reserve(self, pages: int) -> None:
        """Room for so many; what there is stays."""
        if pages <= self.pages:
            return
        for layer, old in enumerate(self.store):
            new = [zeros((pages, h, PAGE, x), self.device, self.dtype) for h, x in self.shapes]
            for to, source in zip(new, old, strict=False):
                to[: self.pages] = source
            self.store[layer] = new
        self.pages = pages

    def pieces(self, table_Bn: Tensor) -> Tensor:
        """Where `gather` finds rows of n pages each: in the order row, head, page."""
        head_h1 = torch.arange(self.heads, device=table_Bn.device)[:, None]
        return (table_Bn[:, None] * self.heads + head_h1).flatten()

    def gather(self, layer: int, pieces: Tensor, rows: int) -> list[Tensor]:
        """Each tensor's entries [B, h, S, X] of rows that `pieces` names."""
        found = (
            tensor.view(-1, PAGE * tensor.shape[3]).index_select(0, pieces).view(rows, self.heads, -1, tensor.shape[3])
            for tensor in self.store[layer]
        )
        return list(found)


class Rows:
    """Rows of entries side by side. Grows as asked."""

    def __init__(self, pool: Pool):
        self.pool = pool
        self.rows = self.length = 0
        self.store = [[self._empty(0, 0, shape) for shape in pool.shapes] for _ in range(pool.layers)]

    def _empty(self, rows: int, length: int, shape: tuple[int, int]) -> Tensor:
        return zeros((rows, shape[0], length, shape[1]), self.pool.device, self.pool.dtype)

    def reserve(self, rows: int, length: int) -> None:
        """Room for `rows` sequences of `length` tokens; what is stored of them stays. A multiple of KEYS tokens."""
        if rows <= self.rows and length <= self.length:
            return
        rows, length = max(rows, self.rows), whole(max(length, self.length))
        for layer in self.store:
            for k, old in enumerate(layer):
                layer[k] = self._empty(rows, length, self.pool.shapes[k])
                layer[k][: old.shape[0], :, : old.shape[2]] = old
        self.rows, self.length = rows, length

    def fill(self, row: int, pages: Sequence[int]) -> None:
        """A row takes what pages hold."""
        pieces = self.pool.pieces(torch.tensor([pages], device=self.pool.device))
        for layer in range(self.pool.layers):
            for tensor, found in zip(self.store[layer], self.pool.gather(layer, pieces, 1), strict=True):
                tensor[row, :, : found.shape[2]] = found[0]

    def move(self, source: int, target: int, length: int) -> None:
        for layer in self.store:
            for tensor in layer:
                tensor[target, :, :length] = tensor[source, :, :length]


@dataclass
class Group:
    """Consecutive tokens of a pass that belong to `rows` sequences of `new` tokens each.

    Their entries are in the first rows of `dense`, or in the pages that `pieces` names.
    """

    tokens: slice
    positions_Bt: Tensor
    length: int  # positions in sight, a multiple of KEYS
    pieces: Tensor | None = None
    unseen: dict[int, Tensor] = field(default_factory=dict)

    def mask(self, reach: int) -> Tensor:
        """[B, 1, t, S], made once for the layers that see as far."""
        if reach not in self.unseen:
            self.unseen[reach] = unseen_of(self.positions_Bt, self.length, reach)[:, None]
        return self.unseen[reach]


class Window:
    """The cache as one forward pass sees it (model.attention.Window).

    `at_T` names for each token that is stored the place of its entry: page * PAGE + offset. These are the first
    tokens, or those that `stored` names: what fills up a group is not. `row_at_T` names places of the first tokens,
    which have a row too: row * length + position. Tokens behind all groups are idle; nobody reads what they get.
    """

    def __init__(
        self, pool: Pool, rows: Rows, groups: list[Group], at_T: Tensor, row_at_T: Tensor, stored: Tensor | None = None
    ):
        self.pool, self.rows, self.groups = pool, rows, groups
        self.dense, self.stored = len(row_at_T), slice(len(at_T)) if stored is None else stored
        self.at = _with_heads(at_T, PAGE, pool.heads)
        self.row_at = _with_heads(row_at_T, max(rows.length, 1), pool.heads)

    def attend(
        self, layer: int, q_THK: Tensor, new: tuple[Tensor, ...], scale: float, exact: bool, reach: int = 0,
        values: int | None = None,
    ) -> Tensor:  # fmt: skip
        """Store the new tokens' entries, each [T, h, X], then let each token attend to its sequence's: [T, H, V].

        Where there is one tensor, its first `values` numbers are the values too.
        """
        for tensor, entry_ThX in zip(self.pool.store[layer], new, strict=True):
            entry = entry_ThX[self.stored].flatten(0, 1).to(tensor.dtype)
            tensor.view(-1, tensor.shape[3]).index_copy_(0, self.at, entry)
        if self.dense:
            for tensor, entry_ThX in zip(self.rows.store[layer], new, strict=True):
                entry = entry_ThX[: self.dense].flatten(0, 1).to(tensor.dtype)
                tensor.view(-1, tensor.shape[3]).index_copy_(0, self.row_at, entry)
        parts = [self._group(layer, group, q_THK, scale, exact, reach, values) for group in self.groups]
        idle = len(q_THK) - self.groups[-1].tokens.stop
        out_THV = parts[0] if len(parts) == 1 else torch.cat(parts)
        return out_THV if not idle else F.pad(out_THV, (0, 0, 0, 0, 0, idle))

    def _group(
        self, layer: int, group: Group, q_THK: Tensor, scale: float, exact: bool, reach: int, values: int | None
    ) -> Tensor:
        rows = len(group.positions_Bt)
        if group.pieces is None:
            found = [tensor[:rows, :, : group.length] for tensor in self.rows.store[layer]]
        else:
            found = self.pool.gather(layer, group.pieces, rows)
        k, v = (found[0], found[0][..., :values]) if len(found) == 1 else found
        q = q_THK[group.tokens].unflatten(0, (rows, -1)).transpose(1, 2)
        attend = attend_window_exact if exact else attend_window
        out_BHtV = in_blocks(attend, q, k, v, group.mask(reach), scale)
        return out_BHtV.transpose(1, 2).flatten(0, 1)


def in_blocks(
    attend: Callable[..., Tensor], q: Tensor, k: Tensor, v: Tensor, unseen: Tensor, scale: float
) -> Tensor:
    """`attend` over so few queries at a time that their scores stay few, and over no keys behind the last query's.

    For prompts: queries are consecutive positions, and the last sees all keys but those that fill up the length.
    """
    rows, heads, new, _ = q.shape
    step = max(KEYS, SCORES // (rows * heads * k.shape[2]) // KEYS * KEYS)
    if rows > 1 or new <= step:
        return attend(q, k, v, unseen, scale)
    parts = []
    for begin in range(0, new, step):
        here = slice(begin, begin + step)
        hidden = unseen[:, :, here]
        last = k.shape[2] - int(hidden[0, 0, -1].flip(0).long().argmin())  # behind the last key that is seen
        end = whole(last)
        parts.append(attend(q[:, :, here], k[:, :, :end], v[:, :, :end], hidden[..., :end], scale))
    return torch.cat(parts, dim=2)


def _with_heads(at_T: Tensor, length: int, heads: int) -> Tensor:
    """Places [T] counted in blocks of `length` -> places of all heads' entries, [T h], blocks being [h, length]."""
    block_T, offset_T = at_T // length, at_T % length
    head_h = torch.arange(heads, device=at_T.device)
    return ((block_T[:, None] * heads + head_h) * length + offset_T[:, None]).flatten()


__all__ = ["Group", "Pool", "Rows", "Window", "entry_shapes", "in_blocks", "token_bytes"]
