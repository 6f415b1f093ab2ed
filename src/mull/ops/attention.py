"""Attention over packed documents: the fast form and its plain twin.

A training batch is one flat stream of tokens in which documents lie end to end; a document attends only to itself.
`Documents` sorts them into groups of similar length, once per batch, so that each attention call is one dense causal
call on [documents, heads, length, dim] with little padding: work grows with the sum of squared lengths.

On a CPU up to a length those calls are matrix products (ops/blocks.py), elsewhere torch's fused ones. Measured on two
AVX2 cores at 4,000 tokens, 8 heads, qk width 48, value width 32, forward and backward: 26 ms against 44 at documents of
120 tokens, 33 against 63 at 256, 121 against 168 at 1,024; from 2,000 on they are equal, and products take more memory.

T tokens  H heads  K qk width  V value width  G documents of a group  L longest of it
P tokens of all padded groups
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mull.ops.blocks import Layout, attend_blocks
from mull.ops.permute import from_groups, to_groups

LONGEST = 1024  # tokens of a document up to which products are faster on a CPU


class Documents:
    """Where each document of a packed stream begins and ends. Lengths are in tokens, each at least 1."""

    def __init__(self, lengths: Sequence[int], device: torch.device | str = "cpu", waste: float = 0.05):
        assert lengths and min(lengths) > 0
        self.lengths = tuple(int(n) for n in lengths)
        self.tokens = sum(self.lengths)
        starts = [0]
        for n in self.lengths:
            starts.append(starts[-1] + n)
        lengths_G = torch.tensor(self.lengths)
        self.index_T = torch.repeat_interleave(torch.arange(len(self.lengths)), lengths_G).to(device)
        starts_G = torch.tensor(starts[:-1])
        self.positions_T = (torch.arange(self.tokens) - starts_G.repeat_interleave(lengths_G)).to(device)
        self._group(starts, waste, device)

    def _group(self, starts: list[int], waste: float, device: torch.device | str) -> None:
        """Longest first; a group ends where its padding would exceed `waste` of it."""
        order = sorted(range(len(self.lengths)), key=lambda i: -self.lengths[i])
        grids: list[Tensor] = []  # [G, L] indices into the stream; padding repeats the document's last token
        home_T = torch.empty(self.tokens, dtype=torch.long)  # where each token's result lies in the groups laid flat
        offset, begin = 0, 0
        while begin < len(order):
            longest, used, end = self.lengths[order[begin]], 0, begin
            while end < len(order):
                used += self.lengths[order[end]]
                if used < (1 - waste) * longest * (end - begin + 1):
                    break
                end += 1
            chosen = order[begin:end]
            first = torch.tensor([starts[i] for i in chosen])[:, None]
            length = torch.tensor([self.lengths[i] for i in chosen])[:, None]
            step = torch.arange(longest)[None, :]
            grid = first + step.minimum(length - 1)
            real = step < length
            home_T[grid[real]] = offset + torch.arange(grid.numel()).view_as(grid)[real]
            offset += grid.numel()
            grids.append(grid)
            begin = end
        self.shapes = [tuple(grid.shape) for grid in grids]
        self.index_P = torch.cat([grid.flatten() for grid in grids]).to(device)
        self.home_T = home_T.to(device)
        self.layouts: dict[tuple[int, int], Layout] = {}

    def layout(self, heads: int, key_heads: int) -> Layout:
        """The rows of so many heads; made at first use, then shared by all layers."""
        if (heads, key_heads) not in self.layouts:
            real_P = torch.zeros_like(self.index_P, dtype=torch.bool).index_fill_(0, self.home_T, True)
            self.layouts[heads, key_heads] = Layout(self.shapes, self.index_P, real_P, heads, key_heads)
        return self.layouts[heads, key_heads]


def attend(
    q_THK: Tensor, k_THK: Tensor, v_THV: Tensor, documents: Documents, scale: float, exact: bool = False, reach: int = 0
) -> Tensor:
    """Causal attention within each document, [T, H, V]. Keys may have fewer heads than queries (grouped-query).

    With `reach`, a token sees so many, itself included (sliding window). With `exact`, a query has the bits that
    ops.exact.attend_window_exact gives it.
    """
    heads, kv_heads = q_THK.shape[1], k_THK.shape[1]
    longest = max(documents.lengths)
    if reach >= longest:
        reach = 0
    if exact or (q_THK.device.type == "cpu" and longest <= LONGEST):
        return attend_blocks(q_THK, k_THK, v_THV, documents.layout(heads, kv_heads), scale, exact, reach)
    return attend_fused(q_THK, k_THK, v_THV, documents, scale, reach)


def attend_fused(
    q_THK: Tensor, k_THK: Tensor, v_THV: Tensor, documents: Documents, scale: float, reach: int = 0
) -> Tensor:
    """The same by torch's fused kernels, group by group."""
    heads, kv_heads = q_THK.shape[1], k_THK.shape[1]
    qk_dim, v_dim = q_THK.shape[2], v_THV.shape[2]
    if v_dim < qk_dim:  # the fused kernels want one width; zero columns change nothing and cost less than the slow path
        v_THV = F.pad(v_THV, (0, qk_dim - v_dim))
    sizes = [g * length for g, length in documents.shapes]
    laid = [to_groups(x, documents.index_P, documents.home_T).split(sizes) for x in (q_THK, k_THK, v_THV)]
    parts = []
    for shape, *qkv in zip(documents.shapes, *laid, strict=True):
        q, k, v = (x.unflatten(0, shape).transpose(1, 2) for x in qkv)
        seen = None if not reach else ~unseen_of(torch.arange(shape[1], device=q.device), shape[1], reach)
        out = F.scaled_dot_product_attention(
            q, k, v, seen, is_causal=not reach, scale=scale, enable_gqa=heads != kv_heads
        )
        parts.append(out.transpose(1, 2).flatten(0, 1))
    return from_groups(torch.cat(parts), documents.home_T)[..., :v_dim]


def unseen_of(position: Tensor, keys: int, reach: int = 0) -> Tensor:
    """Which of `keys` positions a token at `position` [...] does not see, [..., keys] bool: those behind it, and with
    `reach` those that are so far before it."""
    at_S = torch.arange(keys, device=position.device)
    unseen = at_S > position[..., None]
    return unseen if not reach else unseen | (at_S <= position[..., None] - reach)


def attend_plain(
    q_THK: Tensor, k_THK: Tensor, v_THV: Tensor, documents: Documents, scale: float, reach: int = 0
) -> Tensor:
    """The twin of `attend`: one document, one head, softmax written out."""
    repeat = q_THK.shape[1] // k_THK.shape[1]
    out, start = [], 0
    for length in documents.lengths:
        here = slice(start, start + length)
        k, v = (x[here].repeat_interleave(repeat, dim=1) for x in (k_THK, v_THV))
        score = torch.einsum("thk,shk->hts", q_THK[here], k) * scale
        unseen = unseen_of(torch.arange(length, device=score.device), length, reach)
        weight = score.float().masked_fill(unseen, float("-inf")).softmax(dim=-1).to(v.dtype)
        out.append(torch.einsum("hts,shv->thv", weight, v))
        start += length
    return torch.cat(out)


def attend_window(q: Tensor, k: Tensor, v: Tensor, unseen: Tensor, scale: float) -> Tensor:
    """Attention of a few new tokens over cached ones, for decoding: products written out, which beat the fused call.

    q [B, H, t, K], k [B, h, S, K], v [B, h, S, V], unseen [B, 1, t, S] bool -> [B, H, t, V]. h divides H.
    """
    rows, heads, new, _ = q.shape
    shared = heads // k.shape[1]
    q = q.reshape(rows, k.shape[1], shared * new, q.shape[-1])  # heads that share keys are extra queries of one product
    if shared * new < 16:  # keys on the left: a product with a handful of rows on the left takes twice as long
        score = (k @ q.transpose(-1, -2)).transpose(-1, -2).reshape(rows, heads, new, -1)
    else:
        score = (q @ k.transpose(-1, -2)).view(rows, heads, new, -1)
    weight = (score.float() * scale).masked_fill_(unseen, float("-inf")).softmax(dim=-1).to(v.dtype)
    return (weight.view(rows, v.shape[1], shared * new, -1) @ v).view(rows, heads, new, v.shape[-1])
