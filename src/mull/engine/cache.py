"""What decoding remembers: one row of slots per running sequence.

GQA keeps keys and values apart, each [rows, h, S, head_dim]; MLA one tensor, the latent and its rotary key, as if of
one head: [rows, 1, S, kv_rank + rope_dim]. In that order matrix products take them as they lie. Rows stay dense: when
sequences end, the last rows move into the gaps, so a step works on the first n rows and on no more positions than the
longest has.

Rows are whole sequences, so memory is rows x longest; pages come when sequences share prefixes.

B rows  t new tokens per row  h key heads  S cached positions  X width of an entry
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mull.model.config import ModelConfig
from mull.ops.attention import unseen_of
from mull.ops.exact import whole


class Cache:
    """Storage for the layers of one model. Grows as asked; when it does, rows that are not asked for go."""

    def __init__(self, cfg: ModelConfig, device: torch.device, dtype: torch.dtype):
        # [h, X] of each tensor of a layer
        self.shapes = [(1, cfg.kv_rank + cfg.rope_dim)] if cfg.latent else [(cfg.kv_heads, cfg.head_dim)] * 2
        self.layers, self.limit = cfg.layers, cfg.max_length
        self.device, self.dtype = device, dtype
        self.rows = self.length = 0
        self.store = [[self._empty(0, 0, shape) for shape in self.shapes] for _ in range(self.layers)]

    def _empty(self, rows: int, length: int, shape: tuple[int, int]) -> Tensor:
        # zeros, not empty: what lies beyond a row's end is masked, but NaN * 0 would still be NaN
        return torch.zeros(rows, shape[0], length, shape[1], device=self.device, dtype=self.dtype)

    def reserve(self, rows: int, length: int) -> None:
        """Room for `rows` sequences of `length` tokens; what is stored of them stays, and nothing of other rows.

        Lengths grow by half: copying is rare.
        """
        if rows <= self.rows and length <= self.length:
            return
        if length > self.length:
            length = whole(max(length, min(self.length * 3 // 2, self.limit)))
        length = max(length, self.length)
        for layer in self.store:
            for k, old in enumerate(layer):
                layer[k] = self._empty(rows, length, self.shapes[k])
                layer[k][: old.shape[0], :, : old.shape[2]] = old[:rows]
        self.rows, self.length = rows, length

    def copy(self, source_B: Tensor, target_B: Tensor, length: int) -> None:
        """Rows target_B take the first `length` positions of rows source_B: to share a prompt, or to fill a gap."""
        for layer in self.store:
            for tensor in layer:
                tensor[target_B, :, :length] = tensor[source_B, :, :length]


@dataclass
class SlotWindow:
    """Consecutive rows of a cache as one forward pass sees them (model.attention.Window).

    `idle` rows follow the others in the pass and have no place in the cache.
    """

    cache: Cache
    first: int  # first row
    positions_Bt: Tensor  # where each new token goes
    length: int  # positions in sight
    idle: int = 0

    def __post_init__(self) -> None:
        self.stored = self.positions_Bt.shape[0]
        self.rows = self.stored + self.idle
        self.index_B1 = torch.arange(self.first, self.first + self.stored, device=self.positions_Bt.device)[:, None]
        self.masks: dict[int, Tensor] = {}

    def unseen(self, reach: int) -> Tensor:
        """Made once for the layers that see as far."""
        if reach not in self.masks:
            self.masks[reach] = unseen_of(self.positions_Bt, self.length, reach)[:, None]
        return self.masks[reach]

    def extend(self, layer: int, *new: Tensor) -> tuple[Tensor, ...]:
        tensors = self.cache.store[layer]
        for tensor, entries_BthX in zip(tensors, new, strict=True):
            tensor.transpose(1, 2)[self.index_B1, self.positions_Bt] = entries_BthX[: self.stored].to(tensor.dtype)
        return tuple(tensor[self.first : self.first + self.stored, :, : self.length] for tensor in tensors)
