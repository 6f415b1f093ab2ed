"""Attention: grouped-query (GQA) and multi-head latent (MLA), for training and for decoding with a cache.

MLA (arXiv 2405.04434, 2.1) keeps one latent vector and one rotary key per token instead of all heads' keys and values.
It has two forms of the same mathematics. *Naive*: expand the latent into keys and values, then attend; best for whole
documents. *Absorbed*: fold the expansion into the query and the output, and attend over the latents themselves, so
a decoding step reads kv_rank + rope_dim numbers per cached token. Training uses the first, the engine the second;
`tests/test_attention.py` holds their difference. In exact mode both use the second, over the kernels of ops/exact.py.

T new tokens  D width  H heads  h key heads
N non-rotary width  R rotary width  V value width  C kv_rank
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from mull.model.config import ModelConfig
from mull.model.layers import Linear, Packed, RMSNorm, rotate, softmax_scale
from mull.ops.attention import Documents, attend


class Window(Protocol):
    """A cache as one forward pass sees it: whose tokens they are, and what stands before them (engine/cache.py).

    The pass may have more tokens behind those, which are not cached and whose results nobody reads.
    """

    def attend(
        self, layer: int, q_THK: Tensor, new: tuple[Tensor, ...], scale: float, exact: bool, reach: int = 0,
        values: int | None = None,
    ) -> Tensor:  # fmt: skip
        """Store the new tokens' entries, each [T, h, X]: keys and values, or one whose first `values` numbers are the
        values. Then each token attends to its sequence up to itself, with `reach` no further back: [T, H, V]."""
        ...


@dataclass(frozen=True)
class Where:
    """Where the tokens of a forward pass stand: in packed documents (training) or behind cached rows (decoding)."""

    cos: Tensor
    sin: Tensor
    documents: Documents | None = None
    window: Window | None = None
    exact: bool = False  # the same bits for a token, however it is batched

    def attend(self, q_THK: Tensor, k_ThK: Tensor, v_ThV: Tensor, scale: float, reach: int = 0) -> Tensor:
        """Packed documents attend to themselves: [T, H, V]."""
        assert self.documents is not None
        return attend(q_THK, k_ThK, v_ThV, self.documents, scale, self.exact, reach)


class GQA(nn.Module):
    """Grouped-query attention (arXiv 2305.13245); kv_heads = heads is ordinary multi-head attention.

    Queries and keys may be normed before they are turned, each head by itself (Qwen3) or all at once (OLMoE), and all
    three clipped (OLMoE); a layer may see only a window of the newest tokens.
    """

    def __init__(self, cfg: ModelConfig):
        super().__init__()
        self.cfg = cfg
        self.q = Linear(cfg.width, cfg.heads * cfg.head_dim, bias=cfg.qkv_bias)
        self.k = Linear(cfg.width, cfg.kv_heads * cfg.head_dim, bias=cfg.qkv_bias)
        self.v = Linear(cfg.width, cfg.kv_heads * cfg.head_dim, bias=cfg.qkv_bias)
        self.o = Linear(cfg.heads * cfg.head_dim, cfg.width, bias=cfg.o_bias)
        if cfg.qk_norm != "none":
            heads, kv_heads = (cfg.heads, cfg.kv_heads) if cfg.qk_norm == "full" else (1, 1)
            self.q_norm = RMSNorm(heads * cfg.head_dim, cfg.eps)
            self.k_norm = RMSNorm(kv_heads * cfg.head_dim, cfg.eps)
        self.scale = softmax_scale(cfg)
        self.qkv: Packed | None = None

    def pack(self, always: bool = False) -> None:
        self.qkv = Packed.of(self.q, self.k, self.v, always=always)
        self.o.packed = Packed.of(self.o, always=always)

    def forward(self, x_TD: Tensor, where: Where, layer: int) -> Tensor:
        cfg = self.cfg
        if self.qkv is None:
            q_TX, k_TX, v_TX = self.q(x_TD), self.k(x_TD), self.v(x_TD)
        else:
            sizes = [cfg.heads * cfg.head_dim, *[cfg.kv_heads * cfg.head_dim] * 2]
            q_TX, k_TX, v_TX = self.qkv(x_TD).split(sizes, dim=1)
        if cfg.qk_norm != "none":
            q_TX, k_TX = self.q_norm(q_TX), self.k_norm(k_TX)
        if cfg.clip_qkv:
            q_TX, k_TX, v_TX = (x.clamp(-cfg.clip_qkv, cfg.clip_qkv) for x in (q_TX, k_TX, v_TX))
        q_THK = rotate(q_TX.unflatten(1, (cfg.heads, -1)), where.cos, where.sin, cfg.rope_interleaved)
        k_ThK = rotate(k_TX.unflatten(1, (cfg.kv_heads, -1)), where.cos, where.sin, cfg.rope_interleaved)
        v_ThV = v_TX.unflatten(1, (cfg.kv_heads, -1))
        reach = cfg.window_of(layer)
        if where.window is None:
            out_THV = where.attend(q_THK, k_ThK, v_ThV, self.scale, reach)
        else:
            out_THV = where.window.attend(layer, q_THK, (k_ThK, v_ThV), self.scale, where.exact, reach)
        return self.o(out_THV.flatten(1))


class MLA(nn.Module):
    def __init__(self, cfg: ModelConfig):
        super().__init__()
        self.cfg = cfg
        queries = cfg.heads * cfg.qk_dim
        if cfg.q_rank:
            self.q_a = Linear(cfg.width, cfg.q_rank, bias=False)
            self.q_norm = RMSNorm(cfg.q_rank)  # the latent norms keep eps 1e-6 whatever the model's eps is
            self.q_b = Linear(cfg.q_rank, queries, bias=False)
        else:
            self.q = Linear(cfg.width, queries, bias=False)
        self.kv_a = Linear(cfg.width, cfg.kv_rank + cfg.rope_dim, bias=False)
        self.kv_norm = RMSNorm(cfg.kv_rank)
        self.kv_b = Linear(cfg.kv_rank, cfg.heads * (cfg.nope_dim + cfg.v_dim), bias=False)
        self.o = Linear(cfg.heads * cfg.v_dim, cfg.width, bias=False)
        self.scale = softmax_scale(cfg)

    def pack(self, always: bool = False) -> None:
        """All but `kv_b`, whose parts are products of their own."""
        for product in (*((self.q_a, self.q_b) if self.cfg.q_rank else (self.q,)), self.kv_a, self.o):
            product.packed = Packed.of(product, always=always)

    def forward(self, x_TD: Tensor, where: Where, layer: int) -> Tensor:
        cfg = self.cfg
        q_TX = self.q_b(self.q_norm(self.q_a(x_TD))) if cfg.q_rank else self.q(x_TD)
        q_THN, q_THR = q_TX.unflatten(1, (cfg.heads, -1)).split((cfg.nope_dim, cfg.rope_dim), dim=-1)
        q_THR = rotate(q_THR, where.cos, where.sin, cfg.rope_interleaved)
        latent_TC, k_TR = self.kv_a(x_TD).split((cfg.kv_rank, cfg.rope_dim), dim=-1)
        latent_TC = self.kv_norm(latent_TC)
        k_T1R = rotate(k_TR[:, None], where.cos, where.sin, cfg.rope_interleaved)
        if where.window is None and not where.exact:
            return self._naive(q_THN, q_THR, latent_TC, k_T1R, where)
        return self._absorbed(q_THN, q_THR, torch.cat((latent_TC, k_T1R[:, 0]), dim=-1), where, layer)

    def _naive(self, q_THN: Tensor, q_THR: Tensor, latent_TC: Tensor, k_T1R: Tensor, where: Where) -> Tensor:
        cfg = self.cfg
        kv_THX = self.kv_b(latent_TC).unflatten(1, (cfg.heads, -1))
        k_THN, v_THV = kv_THX.split((cfg.nope_dim, cfg.v_dim), dim=-1)
        q = torch.cat((q_THN, q_THR), dim=-1)
        k = torch.cat((k_THN, k_T1R.expand(-1, cfg.heads, -1)), dim=-1)
        return self.o(where.attend(q, k, v_THV, self.scale).flatten(1))

    def _absorbed(self, q_THN: Tensor, q_THR: Tensor, entry_TX: Tensor, where: Where, layer: int) -> Tensor:
        """q k = (q W_k) latent + q_r k_r, and out = W_v (weights latent): attend over [latent | rotary key] itself."""
        cfg, window = self.cfg, where.window
        w_HXC = self.kv_b.weight.view(cfg.heads, cfg.nope_dim + cfg.v_dim, cfg.kv_rank)
        wk_HNC, wv_HVC = w_HXC.split((cfg.nope_dim, cfg.v_dim), dim=1)
        q_HTC = torch.bmm(q_THN.transpose(0, 1), wk_HNC)
        q_HTX = torch.cat((q_HTC, q_THR.transpose(0, 1)), dim=-1)
        key_T1X = entry_TX[:, None]  # one "key head" that all query heads share
        q_THX = q_HTX.transpose(0, 1)
        if window is None:
            mixed_THC = where.attend(q_THX, key_T1X, key_T1X[..., : cfg.kv_rank], self.scale)
        else:
            mixed_THC = window.attend(layer, q_THX, (key_T1X,), self.scale, where.exact, values=cfg.kv_rank)
        out_HTV = torch.bmm(mixed_THC.transpose(0, 1), wv_HVC.transpose(1, 2))
        return self.o(out_HTV.transpose(0, 1).flatten(1))


def attention(cfg: ModelConfig) -> GQA | MLA:
    return MLA(cfg) if cfg.latent else GQA(cfg)
