"""What decoding remembers: one row of slots per running sequence.

MLA keeps one tensor per layer, [rows, S, kv_rank + rope_dim]: the latent and its rotary key. GQA keeps keys and values
apart, [rows, S, kv_heads, head_dim]; together, matmul would have to copy them. Rows stay dense: when sequences end,
the last rows move into the gaps, so a step works on the first n rows and on no more positions than the longest has.

Rows are whole sequences, so memory is rows x longest; pages come when sequences share prefixes.

B rows  t new tokens per row  S cached positions
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mull.model.config import ModelConfig
from mull.ops.exact import KEYS

BLOCK = KEYS  # capacities and windows are multiples of this


def rounded(length: int) -> int:
    return -(-length // BLOCK) * BLOCK


class Cache:
    """Storage for the layers of one model. Grows as asked; never shrinks before it is dropped."""

    def __init__(self, cfg: ModelConfig, device: torch.device, dtype: torch.dtype):
        self.widths = [(cfg.kv_rank + cfg.rope_dim,)] if cfg.latent else [(cfg.kv_heads, cfg.head_dim)] * 2
        self.layers = cfg.layers
        self.device, self.dtype = device, dtype
        self.rows = self.length = 0
        self.store: list[list[Tensor]] = [[self._empty(0, 0, w) for w in self.widths] for _ in range(self.layers)]

    def _empty(self, rows: int, length: int, width: tuple[int, ...]) -> Tensor:
        # zeros, not empty: what lies beyond a row's end is masked, but NaN * 0 would still be NaN
        return torch.zeros(rows, length, *width, device=self.device, dtype=self.dtype)

    def reserve(self, rows: int, length: int) -> None:
        """Room for `rows` sequences of `length` tokens; what is stored stays."""
        if rows <= self.rows and length <= self.length:
            return
        rows, length = max(rows, self.rows), rounded(max(length, self.length))
        for layer in self.store:
            for k, old in enumerate(layer):
                layer[k] = self._empty(rows, length, self.widths[k])
                layer[k][: old.shape[0], : old.shape[1]] = old
        self.rows, self.length = rows, length

    def copy(self, source_B: Tensor, target_B: Tensor, length: int) -> None:
        """Rows target_B take the first `length` positions of rows source_B: to share a prompt, or to fill a gap."""
        for layer in self.store:
            for tensor in layer:
                tensor[target_B, :length] = tensor[source_B, :length]


@dataclass
class SlotWindow:
    """Consecutive rows of a cache as one forward pass sees them (model.attention.Window)."""

    cache: Cache
    first: int  # first row
    positions_Bt: Tensor  # where each new token goes
    length: int  # positions in sight

    def __post_init__(self) -> None:
        self.rows = self.positions_Bt.shape[0]
        self.index_B1 = torch.arange(self.first, self.first + self.rows, device=self.positions_Bt.device)[:, None]
        at_S = torch.arange(self.length, device=self.positions_Bt.device)
        self.hidden = (at_S > self.positions_Bt[:, :, None])[:, None]

    def extend(self, layer: int, *new: Tensor) -> tuple[Tensor, ...]:
        stored = self.cache.store[layer]
        for tensor, entries in zip(stored, new, strict=True):
            tensor[self.index_B1, self.positions_Bt] = entries.to(tensor.dtype)
        return tuple(tensor[self.first : self.first + self.rows, : self.length] for tensor in stored)
