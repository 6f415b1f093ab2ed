"""Causal attention of packed documents on a CPU: matrix products over blocks of queries, forward and backward.

torch's fused kernel works in tiles so small that at documents of 100 tokens it reaches a fifth of what a matrix product
does. Here the documents and heads of a group are one batch of products. Each block of queries meets only the keys up to
its end, which saves most of what the causal mask throws away. Weights are kept for the backward pass: less arithmetic
than computing them again, and memory that grows with the square of lengths, so the fast mode uses this for documents of
up to about 1,000 tokens. The exact mode uses it for all, with the steps of ops/exact.py.

T tokens  H query heads  h key heads  S = H / h query heads per key head  K qk width  V value width
G documents of a group  L longest of it  M = G * h products of a batch  b = S * queries of a block  e keys up to its end
Q rows of all queries, in the order (group, block, document, key head, query head, position)
X rows of all keys, in the order (group, document, key head, position)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import Function, once_differentiable

from mull.ops.exact import KEYS, collect, scores, whole

BLOCK = KEYS  # queries; of 32, 48, 64, 96 and 128 the fastest or near it at all lengths


@dataclass(frozen=True)
class _Block:
    begin: int  # positions of its queries
    end: int
    rows: slice  # of Q


@dataclass(frozen=True)
class _Group:
    products: int  # M
    rows: slice  # of X
    blocks: list[_Block]


class Layout:
    """Where the rows of queries and keys lie, for documents in groups and a number of heads.

    `shapes` holds [G, L] per group, `index_P` the token at each of their positions, `real_P` whether it is no padding.
    """

    def __init__(self, shapes: Sequence[tuple[int, ...]], index_P: Tensor, real_P: Tensor, heads: int, key_heads: int):
        self.shared = heads // key_heads
        self.groups: list[_Group] = []
        head_hS = torch.arange(heads, device=index_P.device).view(key_heads, -1)
        queries, keys = [], []  # (source of each row, whether it is real), part by part
        sizes = [documents * length for documents, length in shapes]
        used = 0  # rows of keys; there are `shared` times as many of queries
        for (docs, length), token_P, here_P in zip(shapes, index_P.split(sizes), real_P.split(sizes), strict=True):
            row_GhSL = token_P.view(docs, 1, 1, length) * heads + head_hS[:, :, None]
            real_GhSL = here_P.view(docs, 1, 1, length).expand_as(row_GhSL)
            products, blocks = docs * key_heads, []
            for begin in range(0, length, BLOCK):
                end = min(begin + BLOCK, length)
                queries.append((row_GhSL[..., begin:end].flatten(), real_GhSL[..., begin:end].flatten()))
                first, last = (self.shared * (used + products * at) for at in (begin, end))
                blocks.append(_Block(begin, end, slice(first, last)))
            head_h1 = torch.arange(key_heads, device=index_P.device)[:, None]
            row_GhL = token_P.view(docs, 1, length) * key_heads + head_h1
            keys.append((row_GhL.flatten(), real_GhSL[:, :, 0].flatten()))
            self.groups.append(_Group(products, slice(used, used + products * length), blocks))
            used += products * length
        self.query_Q, self.query_home, self.padding = _there_and_back(queries)
        self.key_X, self.key_home, _ = _there_and_back(keys)


def _there_and_back(parts: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    """(source of each row, row of each source, rows that are padding)."""
    source_N, real_N = (torch.cat(column) for column in zip(*parts, strict=True))
    row_R = real_N.nonzero()[:, 0]
    home_R = torch.empty_like(row_R).index_copy_(0, source_N[row_R], row_R)
    return source_N, home_R, (~real_N).nonzero()[:, 0]


class _Attention(Function):
    @staticmethod
    def forward(
        ctx: Any, q_THK: Tensor, k_ThK: Tensor, v_ThV: Tensor, layout: Layout, scale: float, exact: bool, reach: int
    ) -> Tensor:
        q_QK = q_THK.flatten(0, 1).index_select(0, layout.query_Q).mul_(scale)
        k_XK = k_ThK.flatten(0, 1).index_select(0, layout.key_X)
        v_XV = v_ThV.flatten(0, 1).index_select(0, layout.key_X)
        out_QV = v_XV.new_empty(q_QK.shape[0], v_XV.shape[1])
        future = q_QK.new_full((BLOCK, BLOCK), float("-inf")).triu_(1)
        kept: list[Tensor] = []
        for group in layout.groups:
            k_MLK, v_MLV = (x[group.rows].view(group.products, -1, x.shape[1]) for x in (k_XK, v_XV))
            if exact:
                k_MLK, v_MLV = (F.pad(x, (0, 0, 0, -x.shape[1] % KEYS)) for x in (k_MLK, v_MLV))
            for block in group.blocks:
                q_MbK, out_MbV = (x[block.rows].view(group.products, -1, x.shape[1]) for x in (q_QK, out_QV))
                size, rows = block.end - block.begin, q_MbK.shape[1]
                end = whole(block.end) if exact else block.end
                k_MeK, v_MeV = k_MLK[:, :end], v_MLV[:, :end]
                score_Mbe = scores(q_MbK, k_MeK) if exact else torch.bmm(q_MbK, k_MeK.transpose(1, 2))
                score_MSbe = score_Mbe[:, :rows].unflatten(1, (-1, size))
                score_MSbe[..., block.begin :].add_(future[:size, : end - block.begin])
                if reach and block.end > reach:
                    score_MSbe.masked_fill_(_out_of_reach(block, end, reach, q_QK.device), float("-inf"))
                weight_Mbe = score_Mbe.softmax(dim=-1)
                if exact:
                    out_MbV.copy_(collect(weight_Mbe, v_MeV)[:, :rows])
                else:
                    torch.bmm(weight_Mbe, v_MeV, out=out_MbV)
                if any(ctx.needs_input_grad):
                    kept.append(weight_Mbe[:, :rows, : block.end])
        ctx.save_for_backward(q_QK, k_XK, v_XV, out_QV, *kept)
        ctx.layout, ctx.scale = layout, scale
        return out_QV.index_select(0, layout.query_home).view(*q_THK.shape[:2], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_THV: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        q_QK, k_XK, v_XV, out_QV, *kept = ctx.saved_tensors
        layout: Layout = ctx.layout
        tokens = grad_THV.shape[0]
        grad_QV = grad_THV.flatten(0, 1).index_select(0, layout.query_Q).index_fill_(0, layout.padding, 0)
        pull_Q1 = (grad_QV * out_QV).sum(dim=1, keepdim=True)  # sum over the keys of weight times its gradient
        dq_QK, dk_XK, dv_XV = torch.empty_like(q_QK), torch.empty_like(k_XK), torch.empty_like(v_XV)
        for group in reversed(layout.groups):
            keys = (k_XK, v_XV, dk_XK, dv_XV)
            k_MLK, v_MLV, dk_MLK, dv_MLV = (x[group.rows].view(group.products, -1, x.shape[1]) for x in keys)
            for block in reversed(group.blocks):
                rows = (q_QK, dq_QK, grad_QV, pull_Q1)
                q_MbK, dq_MbK, grad_MbV, pull_Mb1 = (
                    x[block.rows].view(group.products, -1, x.shape[1]) for x in rows
                )  # fmt: skip
                weight_Mbe, end = kept.pop(), block.end
                score_Mbe = torch.bmm(grad_MbV, v_MLV[:, :end].transpose(1, 2)).sub_(pull_Mb1).mul_(weight_Mbe)
                torch.bmm(score_Mbe, k_MLK[:, :end], out=dq_MbK)
                if block is group.blocks[-1]:  # it meets all keys: the blocks before add to what it sets
                    torch.bmm(weight_Mbe.transpose(1, 2), grad_MbV, out=dv_MLV)
                    torch.bmm(score_Mbe.transpose(1, 2), q_MbK, out=dk_MLK)
                else:
                    dv_MLV[:, :end].add_(torch.bmm(weight_Mbe.transpose(1, 2), grad_MbV))
                    dk_MLK[:, :end].add_(torch.bmm(score_Mbe.transpose(1, 2), q_MbK))
        dq_THK = dq_QK.mul_(ctx.scale).index_select(0, layout.query_home).view(tokens, -1, q_QK.shape[1])
        dk_ThK, dv_ThV = (x.index_select(0, layout.key_home).view(tokens, -1, x.shape[1]) for x in (dk_XK, dv_XV))
        return dq_THK, dk_ThK, dv_ThV, None, None, None, None


def _out_of_reach(block: _Block, keys: int, reach: int, device: torch.device) -> Tensor:
    """[queries, keys] bool: keys that lie `reach` or more before the query. Their weights are zero, their work is not
    saved: windows are wide and documents short, on a CPU."""
    query, key = torch.arange(block.begin, block.end, device=device), torch.arange(keys, device=device)
    return key <= query[:, None] - reach


def attend_blocks(
    q_THK: Tensor, k_ThK: Tensor, v_ThV: Tensor, layout: Layout, scale: float, exact: bool = False, reach: int = 0
) -> Tensor:
    """Causal attention within each document, [T, H, V], as far back as `reach` where it is set; `exact` gives a query
    the bits that it has over a cache."""
    return _Attention.apply(q_THK, k_ThK, v_ThV, layout, scale, exact, reach)  # type: ignore[return-value]
