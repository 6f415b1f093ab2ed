"""Drawing tokens. The randomness of a token is a function of (seed, key, position) and nothing else.

Each token takes one uniform number from a counter-based generator (SplitMix64 mixing, Steele et al. 2014) and inverts
the cumulative distribution. So what a request draws does not depend on what else is in the batch, and a run that
is continued draws what it would have drawn.

The log-probability kept with a token is of log_softmax(logits / temperature), before top-k and top-p cut anything
(they are off in RL, where it matters); at temperature 0 it is that of the plain logits.

What a row gets is a function of that row, to the last bit: every kernel here treats rows one by one. (`sum` over the
last dimension does not: it cuts a single row into one part per thread.)

B rows  V vocabulary  P rows of a piece  K candidates, the likeliest first
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mull.engine.logits import Mask, Tally, adjusted, penalised
from mull.types import Sampling

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


@dataclass(frozen=True, slots=True)
class Draw:
    """What decides about one row's token, besides its logits."""

    sampling: Sampling
    point: float = 0.0  # `uniform` of the request's stream at this position
    forced: int | None = None  # this token, whatever the model and all that follows say
    tally: Tally | None = None  # where the sampling penalises
    banned: Sequence[int] = ()
    grammar: Mask | None = None  # once thinking has ended
    exempt: Sequence[int] = ()  # not forbidden by the grammar

    @property
    def plain(self) -> bool:
        """Whether it is drawn from the model's own logits."""
        return not (self.banned or self.grammar or self.sampling.logit_bias or penalised(self.sampling))


Alternatives = tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class Drawn:
    """For each row its token, log-probability and the likeliest (token, log-probability), where asked.

    A row in `failed` got none (-1), and the reason is told there; the others are not concerned.
    """

    tokens: list[int]
    logprobs: list[float]
    alternatives: list[Alternatives]
    failed: dict[int, str] = field(default_factory=dict)


PIECE = 1 << 19  # logits that lie in a core's cache, where all passes but the first are four times faster
COLD = 1e-5  # temperatures below are 0: logits divided by them are no numbers
WIDTHS = (64, 256, 2048, 16_384)  # candidates to look among, before the whole vocabulary is sorted
BROKEN = "The model gave a logit that is no finite number: its weights are damaged, or too large for the number format."
NOTHING = "No token is left to draw: grammar, biases and bans together forbid all."


@torch.inference_mode()
def draw(logits_BV: Tensor, rows: Sequence[Draw]) -> Drawn:
    """One token for each row of fp32 logits, which stay as they are.

    Log-probabilities and alternatives are of the distribution behind penalties, biases, bans, grammar and temperature,
    before top-k, top-p and min-p cut it; with a forced token, of the model's own. Cuts follow each other as in
    transformers: top-k (and its equals), top-p of what that leaves, min-p.
    """
    drawn = Drawn([-1] * len(rows), [0.0] * len(rows), [()] * len(rows))
    groups: dict[Hashable, list[int]] = {}
    for at, row in enumerate(rows):
        groups.setdefault(_way(row, logits_BV.shape[1]), []).append(at)
    size = max(1, PIECE // logits_BV.shape[1]) if logits_BV.device.type == "cpu" else len(rows)
    for way, members in groups.items():
        for begin in range(0, len(members), size):
            _draw_piece(logits_BV, rows, members[begin : begin + size], way, drawn)
    return drawn


def _way(row: Draw, vocab: int) -> Hashable:
    """How a row is drawn: forced, greedy, from the whole vocabulary, or from so many candidates first."""
    s = row.sampling
    if row.forced is not None:
        return "forced"
    if s.temperature < COLD:
        return "greedy"
    if 0 < s.top_k < vocab:
        return next((width for width in (*WIDTHS, vocab) if s.top_k < width), vocab)
    return WIDTHS[1] if s.top_p < 1.0 or s.min_p > 0.0 else "whole"


def _draw_piece(logits_BV: Tensor, rows: Sequence[Draw], at: list[int], way: Hashable, drawn: Drawn) -> None:
    """Into `drawn`, for the rows at `at`, which are drawn in one way."""
    chosen = [rows[i] for i in at]
    adjacent = at[-1] - at[0] + 1 == len(at)
    logits_PV = logits_BV[at[0] : at[-1] + 1] if adjacent else logits_BV[at]
    if way != "forced" and not all(row.plain for row in chosen):
        logits_PV = torch.stack([
            logits_V if row.plain
            else adjusted(logits_V, row.sampling, row.tally, row.banned, row.grammar, row.exempt)
            for logits_V, row in zip(logits_PV, chosen, strict=True)
        ])  # fmt: skip
    heat = [row.sampling.temperature if row.sampling.temperature >= COLD else 1.0 for row in chosen]
    if any(h != 1.0 for h in heat):
        logits_PV = logits_PV / torch.tensor(heat, device=logits_PV.device)[:, None]
    logp_PV = logits_PV.log_softmax(dim=-1)
    tokens = _tokens(logits_PV, logp_PV, chosen, way)
    logprobs = logp_PV.gather(1, torch.tensor(tokens, device=logp_PV.device)[:, None])[:, 0].tolist()
    for i, logp_V, row, token, logprob in zip(at, logp_PV, chosen, tokens, logprobs, strict=True):
        if logprob != logprob:  # NaN: an infinite or undefined logit, or nothing but -inf
            drawn.failed[i] = NOTHING if bool(logits_BV[i].isfinite().all()) else BROKEN
            continue
        drawn.tokens[i], drawn.logprobs[i] = token, logprob
        if row.sampling.top_logprobs:
            drawn.alternatives[i] = _likeliest(logp_V, row.sampling.top_logprobs)


def _tokens(logits_PV: Tensor, logp_PV: Tensor, rows: Sequence[Draw], way: Hashable) -> list[int]:
    if way == "forced":
        return [row.forced for row in rows if row.forced is not None]
    if way == "greedy":  # numpy's argmax is ten times as fast as torch's
        argmax = logits_PV.numpy().argmax(-1) if logits_PV.device.type == "cpu" else logits_PV.argmax(-1)
        return argmax.tolist()
    if isinstance(way, int):
        return _candidates(logp_PV, rows, way)
    cumulative_PV = logp_PV.exp().double().cumsum(dim=-1)
    point_P1 = torch.tensor([[row.point] for row in rows], dtype=torch.float64, device=logp_PV.device)
    point_P1 = point_P1 * cumulative_PV[:, -1:]
    return torch.searchsorted(cumulative_PV, point_P1, right=True)[:, 0].clamp_max(logp_PV.shape[1] - 1).tolist()


def _candidates(logp_PV: Tensor, rows: Sequence[Draw], width: int) -> list[int]:
    """Tokens of rows that are cut, looking among `width` candidates, and among more where these do not suffice."""
    width = min(width, logp_PV.shape[1])
    everything = width == logp_PV.shape[1]
    value_PK, id_PK = logp_PV.sort(stable=True, dim=-1, descending=True) if everything else logp_PV.topk(width)
    found = [
        _pick(value_K, id_K, row, everything)
        for value_K, id_K, row in zip(value_PK.cpu().numpy(), id_PK.cpu().numpy(), rows, strict=True)
    ]
    if unsure := [i for i, token in enumerate(found) if token is None]:
        wider = next((w for w in WIDTHS if w > width), logp_PV.shape[1])
        for i, token in zip(unsure, _candidates(logp_PV[unsure], [rows[i] for i in unsure], wider), strict=True):
            found[i] = token
    return [token for token in found if token is not None]


def _pick(value_K: NDArray[np.float32], id_K: NDArray[np.int64], row: Draw, everything: bool) -> int | None:
    """One of the candidates; None where tokens that are not among them could belong to those that are kept."""
    s = row.sampling
    p_K = np.exp(value_K.astype(np.float64))
    kept, mass = len(p_K), 1.0
    if not p_K[0] > 0:  # not a number: `draw` will see
        return int(id_K[0])
    if 0 < s.top_k < kept:
        kept = int((value_K >= value_K[s.top_k - 1]).sum())
        mass = float(p_K[:kept].cumsum()[-1])
        if kept == len(p_K) and not everything:  # there may be more equals
            return None
    if s.top_p < 1.0:
        before_K = p_K[:kept].cumsum() - p_K[:kept]
        kept = max(1, int((before_K < s.top_p * mass).sum()))
    if s.min_p > 0.0:
        kept = max(1, int((p_K[:kept] >= s.min_p * p_K[0]).sum()))
    if not everything:
        if value_K[kept - 1] == value_K[-1]:  # there may be more
            return None
        if value_K[kept - 1] == value_K[kept]:  # of equals at the border, the first ids: topk takes any
            order_K = np.lexsort((id_K, -value_K))
            p_K, id_K = p_K[order_K], id_K[order_K]
    by_id = id_K[:kept].argsort()  # as in `sample`, they share the unit interval in the vocabulary's order
    cumulative = p_K[by_id].cumsum()
    place = int(cumulative.searchsorted(row.point * cumulative[-1], side="right"))
    return int(id_K[by_id[min(place, kept - 1)]])


def _likeliest(logp_V: Tensor, count: int) -> Alternatives:
    """The impossible is no alternative."""
    value_K, id_K = logp_V.topk(min(count, len(logp_V)))
    pairs = sorted(zip(id_K.tolist(), value_K.tolist(), strict=True), key=lambda pair: (-pair[1], pair[0]))
    return tuple(pair for pair in pairs if pair[1] > -torch.inf)


__all__ = ["Draw", "Drawn", "draw", "sample", "stream_of", "uniform"]
