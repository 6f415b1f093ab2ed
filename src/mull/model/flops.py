"""Analytic counts: parameters, FLOPs, cache bytes. Pure arithmetic on a ModelConfig; no weights are made.

A multiply-add is 2 FLOPs; only matrix products count (as torch's FlopCounterMode does; `tests/test_flops.py` holds the
two within 2 %). The backward pass costs twice the forward. Causal attention over a document of n tokens is counted as
n (n + 1) / 2 pairs: what is needed, not what a kernel may waste.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from mull.model.config import ModelConfig


@dataclass(frozen=True)
class Parameters:
    total: int  # MTP layers not counted: they are no part of the model that answers
    active: int  # for one token: of experts the chosen and the shared; the embedding table, a lookup, whole
    mtp: int


def _attention(cfg: ModelConfig) -> int:
    """Weights of one layer's attention matrices."""
    if not cfg.latent:
        return cfg.width * cfg.head_dim * (2 * cfg.heads + 2 * cfg.kv_heads)
    queries = cfg.heads * cfg.qk_dim
    q = cfg.width * cfg.q_rank + cfg.q_rank * queries if cfg.q_rank else cfg.width * queries
    kv = cfg.width * (cfg.kv_rank + cfg.rope_dim) + cfg.kv_rank * cfg.heads * (cfg.nope_dim + cfg.v_dim)
    return q + kv + cfg.heads * cfg.v_dim * cfg.width


def _ffn(cfg: ModelConfig, layer: int) -> tuple[int, int]:
    """(all, active) weights of one layer's feed-forward matrices, router included."""
    if not cfg.is_moe(layer):
        dense = 3 * cfg.width * cfg.ffn
        return dense, dense
    one, router = 3 * cfg.width * cfg.expert_ffn, cfg.width * cfg.experts
    shared = one * cfg.shared_experts
    return one * cfg.experts + shared + router, one * cfg.active_experts + shared + router


def _vectors(cfg: ModelConfig) -> int:
    """Norm weights and biases of one layer, the router's bias not counted (it is no parameter)."""
    if cfg.latent:
        return 2 * cfg.width + cfg.kv_rank + cfg.q_rank
    bias = cfg.head_dim * (cfg.heads + 2 * cfg.kv_heads) * cfg.qkv_bias + cfg.width * cfg.o_bias
    norms = {"none": 0, "head": 2, "full": cfg.heads + cfg.kv_heads}[cfg.qk_norm]
    return 2 * cfg.width + bias + norms * cfg.head_dim


def parameters(cfg: ModelConfig) -> Parameters:
    total = active = cfg.vocab * cfg.width * (1 if cfg.tied else 2) + cfg.width
    for layer in range(cfg.layers):
        every, used = _ffn(cfg, layer)
        rest = _attention(cfg) + _vectors(cfg)
        total, active = total + every + rest, active + used + rest
    every, _ = _ffn(cfg, cfg.layers)
    mtp = cfg.mtp_layers * (_attention(cfg) + every + _vectors(cfg) + 2 * cfg.width * cfg.width + 3 * cfg.width)
    return Parameters(total, active, mtp)


def _per_token(cfg: ModelConfig, layer: int) -> int:
    return 2 * (_attention(cfg) + _ffn(cfg, layer)[1])


def _per_pair(cfg: ModelConfig) -> int:
    """FLOPs of one query meeting one key, all heads, expanded form."""
    return 2 * cfg.heads * (cfg.qk_dim + cfg.value_dim)


def _pairs(length: int, reach: int = 0) -> int:
    """How many pairs of query and key a document has in one layer, whose window `reach` is (0: none)."""
    seen = min(length, reach or length)
    return seen * (seen + 1) // 2 + (length - seen) * seen


def _all_pairs(cfg: ModelConfig, lengths: Sequence[int]) -> int:
    """The same of several documents in all layers."""
    windows = Counter(cfg.window_of(layer) for layer in range(cfg.layers))
    return sum(layers * _pairs(n, reach) for n in lengths for reach, layers in windows.items())


def forward_flops(cfg: ModelConfig, lengths: Sequence[int], predicted: int) -> int:
    """Documents of these lengths through all layers, `predicted` positions through the vocabulary head."""
    layers = sum(_per_token(cfg, layer) for layer in range(cfg.layers))
    attention = _all_pairs(cfg, lengths) * _per_pair(cfg)
    return sum(lengths) * layers + attention + 2 * predicted * cfg.width * cfg.vocab


def training_flops(cfg: ModelConfig, lengths: Sequence[int], predicted: int) -> int:
    """Forward and backward of documents of these lengths with `predicted` learnt tokens, MTP layers included."""
    mtp = cfg.mtp_layers * (
        sum(lengths) * (_per_token(cfg, cfg.layers) + 4 * cfg.width * cfg.width)
        + sum(map(_pairs, lengths)) * _per_pair(cfg)
        + 2 * predicted * cfg.width * cfg.vocab
    )
    return 3 * (forward_flops(cfg, lengths, predicted) + mtp)


def decoding_flops(cfg: ModelConfig, prompt: int, generated: int) -> int:
    """One answer: the prompt once, then token by token over the cache, in the form the engine runs. The last token is
    drawn, but never goes through the layers.

    MLA's absorbed form folds each query into the latent space (H N C and H C V per token instead of kv_b) and pays
    2 C + R per head and pair.
    """
    total = prompt + max(generated - 1, 0)
    if not cfg.latent:
        return forward_flops(cfg, [total], generated)
    per_pair = 2 * cfg.heads * (2 * cfg.kv_rank + cfg.rope_dim)
    layers = sum(_per_token(cfg, layer) for layer in range(cfg.layers))
    return total * layers + _all_pairs(cfg, [total]) * per_pair + 2 * generated * cfg.width * cfg.vocab


def cache_bytes(cfg: ModelConfig, element: int = 4) -> int:
    """Bytes of cache per token over all layers: the latent and its rotary key, or keys and values."""
    entry = cfg.kv_rank + cfg.rope_dim if cfg.latent else 2 * cfg.kv_heads * cfg.head_dim
    return cfg.layers * entry * element
