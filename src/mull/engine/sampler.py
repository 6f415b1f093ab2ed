"""Drawing tokens. The randomness of a token is a function of (seed, key, position) and nothing else.

Each token takes one uniform number from a counter-based generator (SplitMix64 mixing, Steele et al. 2014) and inverts
the cumulative distribution. So what a request draws does not depend on what else is in the batch, and a run that
is continued draws what it would have drawn.

The log-probability kept with a token is of log_softmax(logits / temperature), before top-k and top-p cut anything
(they are off in RL, where it matters); at temperature 0 it is that of the plain logits.

B rows  V vocabulary
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_MASK = (1 << 64) - 1
_GAMMA = 0x9E3779B97F4A7C15


def _mix(x: int) -> int:
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & _MASK
    return x ^ (x >> 31)


def stream_of(seed: int, key: Sequence[int]) -> int:
    """A 64-bit state for one request: every part of the key is mixed in, in order."""
    state = _mix(seed + _GAMMA & _MASK)
    for part in key:
        state = _mix((state ^ (part & _MASK)) + _GAMMA & _MASK)
    return state


def uniform(stream: int, position: int) -> float:
    """In [0, 1): 53 bits of the stream at a position."""
    return (_mix(stream + (position + 1) * _GAMMA & _MASK) >> 11) / (1 << 53)


def sample(
    logits_BV: Tensor, uniform_B: Tensor, temperature_B: Tensor, top_p: float = 1.0, top_k: int = 0
) -> tuple[Tensor, Tensor]:
    """(tokens [B], their log-probabilities [B]). Rows of temperature 0 take the largest logit, the first of equals.

    logits in fp32, uniform and temperature one per row.
    """
    greedy_B = temperature_B <= 0
    logp_BV = (logits_BV / torch.where(greedy_B, 1.0, temperature_B)[:, None]).log_softmax(dim=-1)
    if bool(greedy_B.all()):
        token_B = logits_BV.argmax(dim=-1)
        return token_B, logp_BV.gather(1, token_B[:, None])[:, 0]
    p_BV = logp_BV.exp()
    if 0 < top_k < p_BV.shape[1]:
        p_BV = p_BV.masked_fill(p_BV < p_BV.topk(top_k, dim=-1).values[:, -1:], 0.0)
    if top_p < 1.0:
        p_BV = _nucleus(p_BV, top_p)
    cumulative_BV = p_BV.double().cumsum(dim=-1)
    point_B1 = uniform_B[:, None].double() * cumulative_BV[:, -1:]
    drawn_B = torch.searchsorted(cumulative_BV, point_B1, right=True)[:, 0].clamp_max(p_BV.shape[1] - 1)
    token_B = torch.where(greedy_B, logits_BV.argmax(dim=-1), drawn_B)
    return token_B, logp_BV.gather(1, token_B[:, None])[:, 0]


def _nucleus(p_BV: Tensor, top_p: float) -> Tensor:
    """Keep the fewest most probable tokens whose mass reaches top_p (arXiv 1904.09751)."""
    ordered, index = p_BV.sort(dim=-1, descending=True, stable=True)
    before = ordered.cumsum(dim=-1) - ordered
    return torch.zeros_like(p_BV).scatter_(1, index, ordered.masked_fill(before >= top_p * ordered.sum(-1, True), 0.0))
