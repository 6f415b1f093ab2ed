"""The steps of attention in which a query's row has the same bits in any company: what exact mode computes with.

Decoding asks one query over a cache, training a whole document at once, and fast kernels round the two differently.
In exact mode both (`attend_window_exact` here, `attend_blocks` in ops/blocks.py) take these steps:

1. scores: a product over the head width, summed in the same order for every row, as long as there are not only a
   handful of rows (fewer than 16 are made a multiple of 4; measured on AVX2 with MKL, see docs/numerics.md);
2. softmax over keys padded to a multiple of KEYS: what is masked adds an exact zero at the end of each sum;
3. values: products over KEYS keys at a time, added block after block, since a product over all of them would split its
   sum at places that depend on their number.

B cached rows  H heads  h key heads  t queries  S keys, a multiple of KEYS  K qk width  V value width
M products of a batch  b queries of each
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

KEYS = 64  # keys of one value product; caches show a multiple of it


def whole(length: int) -> int:
    """The number of keys to compute with where `length` are wanted."""
    return -(-length // KEYS) * KEYS


def scores(q_MbK: Tensor, k_MSK: Tensor) -> Tensor:
    """q k^T, [M, b, S]; where b is small, behind it some rows that nobody asked for."""
    rows = q_MbK.shape[1]
    if rows < 16 and rows % 4:
        q_MbK = F.pad(q_MbK, (0, 0, 0, -rows % 4))
    return torch.bmm(q_MbK, k_MSK.transpose(1, 2))


def collect(weight_MbS: Tensor, v_MSV: Tensor) -> Tensor:
    """Weighted values [M, b, V], KEYS keys at a time."""
    out_MbV = torch.bmm(weight_MbS[..., :KEYS], v_MSV[:, :KEYS])
    for at in range(KEYS, v_MSV.shape[1], KEYS):
        out_MbV.baddbmm_(weight_MbS[..., at : at + KEYS], v_MSV[:, at : at + KEYS])
    return out_MbV


def attend_window_exact(q: Tensor, k: Tensor, v: Tensor, unseen: Tensor, scale: float) -> Tensor:
    """As ops.attention.attend_window: q [B, H, t, K], k [B, h, S, K], v [B, h, S, V], unseen [B, 1, t, S] bool."""
    rows, heads, queries, width = q.shape
    kv_heads = k.shape[1]
    many = heads // kv_heads * queries  # queries of heads that share keys are rows of one product
    score_MbS = scores((q * scale).reshape(rows * kv_heads, many, width), k.flatten(0, 1))
    score_MbS[:, :many].view(rows, kv_heads, -1, queries, k.shape[2]).masked_fill_(unseen[:, :, None], float("-inf"))
    return collect(score_MbS.softmax(dim=-1), v.flatten(0, 1))[:, :many].reshape(rows, heads, queries, -1)
