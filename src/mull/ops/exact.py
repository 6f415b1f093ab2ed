"""Attention whose result for a query has the same bits however that query is batched: the exact mode's one form.

Decoding asks one query over a cache, training a whole document at once, and a fused kernel rounds the two differently.
Here both are the same three steps, each of which gives a query's row the same bits in any company:

1. scores: a product over the head width, summed in the same order for every row, as long as there are not only a
   handful of rows (fewer than 16 are made a multiple of 4; measured on AVX2 with MKL, see docs/numerics.md);
2. softmax over keys padded to a multiple of KEYS: what is masked adds an exact zero at the end of each sum;
3. values: products over KEYS keys at a time, added block after block, since a product over all of them would split its
   sum at places that depend on their number.

G documents or cache rows  H heads  h key heads  g = H / h  t queries  S keys, a multiple of KEYS  K qk width  V value
width  N = G h  M = g t
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import Function, once_differentiable

from mull.ops.attention import Documents
from mull.ops.permute import from_groups, to_groups

softmax_backward = torch.ops.aten._softmax_backward_data  # (gradient, result, axis, dtype)
KEYS = 64  # keys of one value product; caches show a multiple of it
QUERIES = 128  # of a long document at once, so that they need not meet the keys that come after them


def _weigh(q_GhgtK: Tensor, k_GhSK: Tensor, hidden: Tensor) -> Tensor:
    """Attention weights [N, M, S]; `hidden` broadcasts to [G, h, g, t, S]."""
    groups, kv_heads, shared, queries, width = q_GhgtK.shape
    q_NMK = q_GhgtK.reshape(groups * kv_heads, shared * queries, width)
    rows = q_NMK.shape[1]
    if rows < 16 and rows % 4:
        q_NMK = F.pad(q_NMK, (0, 0, 0, -rows % 4))
    score_NMS = torch.bmm(q_NMK, k_GhSK.flatten(0, 1).transpose(1, 2))
    score_NMS[:, :rows].view(groups, kv_heads, shared, queries, -1).masked_fill_(hidden, float("-inf"))
    return score_NMS.softmax(dim=-1)


def _collect(weight_NMS: Tensor, v_GhSV: Tensor) -> Tensor:
    """Weighted values [N, M, V], KEYS keys at a time."""
    v_NSV = v_GhSV.flatten(0, 1)
    out_NMV = torch.bmm(weight_NMS[..., :KEYS], v_NSV[:, :KEYS])
    for at in range(KEYS, v_NSV.shape[1], KEYS):
        out_NMV.baddbmm_(weight_NMS[..., at : at + KEYS], v_NSV[:, at : at + KEYS])
    return out_NMV


def attend_window_exact(q: Tensor, k: Tensor, v: Tensor, hidden: Tensor, scale: float) -> Tensor:
    """As ops.attention.attend_window: q [G, H, t, K], k [G, h, S, K], v [G, h, S, V], hidden [G, 1, t, S] bool."""
    groups, heads, queries, _ = q.shape
    kv_heads = k.shape[1]
    weight_NMS = _weigh((q * scale).unflatten(1, (kv_heads, -1)), k, hidden[:, :, None])
    out_NMV = _collect(weight_NMS, v)[:, : heads // kv_heads * queries]
    return out_NMV.reshape(groups, heads, queries, -1)


class _Causal(Function):
    """Causal attention of whole documents, q [G, h, g, L, K] already scaled; keys and values padded to S."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out, weights = [], []
        at_S = torch.arange(k.shape[2], device=q.device)
        for begin, end, seen in _chunks(q.shape[3]):
            future = at_S[:seen] > at_S[begin:end, None]
            weight_NMS = _weigh(q[..., begin:end, :], k[:, :, :seen], future)
            rows = q.shape[2] * (end - begin)
            out.append(_collect(weight_NMS, v[:, :, :seen])[:, :rows].reshape(*q.shape[:3], end - begin, -1))
            weights.append(weight_NMS[:, :rows])
        ctx.save_for_backward(q, k, v, *weights)
        return torch.cat(out, dim=3)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        q, k, v, *weights = ctx.saved_tensors
        k_NSK, v_NSV = k.flatten(0, 1), v.flatten(0, 1)
        grad_k, grad_v, grad_q = torch.zeros_like(k_NSK), torch.zeros_like(v_NSV), []
        for (begin, end, seen), weight_NMS in zip(_chunks(q.shape[3]), weights, strict=True):
            q_NMK = q[..., begin:end, :].reshape(len(k_NSK), -1, q.shape[-1])
            grad_NMV = grad[..., begin:end, :].reshape(len(v_NSV), -1, v.shape[-1])
            grad_v[:, :seen].baddbmm_(weight_NMS.transpose(1, 2), grad_NMV)
            pull_NMS = torch.bmm(grad_NMV, v_NSV[:, :seen].transpose(1, 2))
            pull_NMS = softmax_backward(pull_NMS, weight_NMS, -1, weight_NMS.dtype)
            grad_q.append(torch.bmm(pull_NMS, k_NSK[:, :seen]).view(*q.shape[:3], end - begin, -1))
            grad_k[:, :seen].baddbmm_(pull_NMS.transpose(1, 2), q_NMK)
        return torch.cat(grad_q, dim=3), grad_k.view_as(k), grad_v.view_as(v)


def _chunks(length: int) -> list[tuple[int, int, int]]:
    """(first query, end, keys they may see, rounded up) of each chunk of a document."""
    spans = [(begin, min(begin + QUERIES, length)) for begin in range(0, length, QUERIES)]
    return [(begin, end, -(-end // KEYS) * KEYS) for begin, end in spans]


def attend_exact(q_THK: Tensor, k_ThK: Tensor, v_ThV: Tensor, documents: Documents, scale: float) -> Tensor:
    """As ops.attention.attend: causal attention within each document, [T, H, V]. h divides H."""
    kv_heads = k_ThK.shape[1]
    sizes = [g * length for g, length in documents.shapes]
    laid = [to_groups(x, documents.index_P, documents.home_T).split(sizes) for x in (q_THK * scale, k_ThK, v_ThV)]
    parts = []
    for shape, *qkv in zip(documents.shapes, *laid, strict=True):
        q, k, v = (x.unflatten(0, shape).transpose(1, 2) for x in qkv)  # [G, heads, L, width]
        k, v = (F.pad(x, (0, 0, 0, -shape[1] % KEYS)) for x in (k, v))
        out = _Causal.apply(q.unflatten(1, (kv_heads, -1)), k, v)
        parts.append(out.flatten(1, 2).transpose(1, 2).flatten(0, 1))  # type: ignore[union-attr]
    return from_groups(torch.cat(parts), documents.home_T)
