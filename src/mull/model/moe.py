"""Fine-grained mixture of experts with a shared expert, as DeepSeek-V3 defines it (arXiv 2412.19437, 2.1.2).

The router scores experts by a sigmoid. A bias, no parameter and outside the gradient, is added only to *choose*; the
weights are the unbiased scores of the chosen, normalised. After each optimiser step the trainer moves the bias of
overloaded experts down and of underloaded ones up: balance without a loss that fights the objective. A small loss per
sequence (eq. 17-20) keeps single documents from collapsing onto one expert. Qwen3's and OLMoE's mixtures, which mull
runs too, score by a softmax, and have neither bias nor shared expert.

T tokens  D width  E experts  K chosen experts  G groups  F expert width
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from mull.dist import row_floor, unrounded
from mull.model.config import ModelConfig
from mull.model.layers import SwiGLU
from mull.ops.attention import Documents
from mull.ops.experts import routed
from mull.ops.linear import linear
from mull.ops.swiglu import sigmoid


@dataclass
class Trace:
    """What a forward pass notes beside its result, when asked: per MoE layer, in order."""

    load: list[Tensor] = field(default_factory=list)  # [E] tokens per expert
    balance: list[Tensor] = field(default_factory=list)  # scalar sequence-wise balance loss, unweighted
    chosen: list[Tensor] = field(default_factory=list)  # [T, K] expert ids


@functools.cache
def _codes(layers: int, experts: int, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(-(2**62), 2**62, (layers, experts), generator=generator).to(device)


def fingerprints(chosen: Sequence[Tensor], experts: int) -> Tensor:
    """One integer per token for the experts it was sent to in all layers: [T] int64 from a Trace's `chosen`.

    A token's experts within a layer are a set: their order does not count. Different routes share a number with a
    chance of about 2^-62.
    """
    table_LE = _codes(len(chosen), experts, chosen[0].device)
    return torch.stack([code_E[one_TK].sum(dim=1) for code_E, one_TK in zip(table_LE, chosen, strict=True)]).sum(dim=0)


class Router(nn.Module):
    bias: Tensor | None

    def __init__(self, cfg: ModelConfig):
        super().__init__()
        self.cfg, self.exact = cfg, False
        self.weight = nn.Parameter(torch.empty(cfg.experts, cfg.width))
        self.register_buffer("bias", torch.zeros(cfg.experts) if cfg.score == "sigmoid" else None)

    def forward(self, x_TD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(chosen experts [T, K], their weights [T, K], all scores [T, E]); fp32 throughout, under autocast too."""
        cfg = self.cfg
        with unrounded(x_TD.device):
            logit_TE = linear(x_TD.float(), self.weight.float(), plain=self.exact)
        score_TE = sigmoid(logit_TE) if cfg.score == "sigmoid" else logit_TE.softmax(dim=-1)
        choice_TE = score_TE.detach() if self.bias is None else score_TE.detach() + self.bias
        if cfg.active_groups < cfg.groups:
            choice_TGe = choice_TE.unflatten(1, (cfg.groups, -1))
            rank_TG = choice_TGe.topk(2, dim=-1).values.sum(dim=-1)
            kept = torch.zeros_like(rank_TG, dtype=torch.bool)
            kept.scatter_(1, rank_TG.topk(cfg.active_groups, dim=-1).indices, True)
            choice_TE = choice_TGe.masked_fill(~kept[..., None], float("-inf")).flatten(1)
        expert_TK = choice_TE.topk(cfg.active_experts, dim=-1).indices
        weight_TK = score_TE.gather(1, expert_TK)
        if cfg.renormalise:
            weight_TK = weight_TK / (weight_TK.sum(dim=-1, keepdim=True) + 1e-20)
        return expert_TK, weight_TK * cfg.router_scale, score_TE


def sequence_balance(score_TE: Tensor, expert_TK: Tensor, documents: Documents) -> Tensor:
    """Mean over documents of sum_i f_i P_i (eq. 17-20): 1 when loads are even, larger when they are not."""
    experts = score_TE.shape[1]
    chosen = expert_TK.shape[1]
    docs = len(documents.lengths)
    length_G1 = torch.tensor(documents.lengths, device=score_TE.device, dtype=torch.float32)[:, None]
    index_T = documents.index_T
    cell_N = (index_T[:, None] * experts + expert_TK).flatten()
    f_GE = torch.bincount(cell_N, minlength=docs * experts).view(docs, experts) * (experts / chosen) / length_G1
    share_TE = score_TE / score_TE.sum(dim=-1, keepdim=True)
    p_GE = torch.zeros(docs, experts, device=score_TE.device).index_add(0, index_T, share_TE) / length_G1
    return (f_GE * p_GE).sum(dim=1).mean()


class MoE(nn.Module):
    """Routed experts and shared ones. With `exact` set, a token's result has the same bits in any batch of enough rows
    (`mull.dist.row_floor`), however few tokens its experts have."""

    def __init__(self, cfg: ModelConfig):
        super().__init__()
        self.exact = False
        self.router = Router(cfg)
        self.gate_up = nn.Parameter(torch.empty(cfg.experts, 2 * cfg.expert_ffn, cfg.width))
        self.down = nn.Parameter(torch.empty(cfg.experts, cfg.width, cfg.expert_ffn))
        self.shared = SwiGLU(cfg.width, cfg.expert_ffn * cfg.shared_experts) if cfg.shared_experts else None

    def forward(self, x_TD: Tensor, documents: Documents | None = None, trace: Trace | None = None) -> Tensor:
        expert_TK, weight_TK, score_TE = self.router(x_TD)
        floor = row_floor() if self.exact else 0
        y_TD = routed(x_TD, expert_TK, weight_TK, self.gate_up, self.down, floor)
        if trace is not None:
            trace.load.append(torch.bincount(expert_TK.flatten(), minlength=score_TE.shape[1]))
            trace.chosen.append(expert_TK)
            if documents is not None:
                trace.balance.append(sequence_balance(score_TE, expert_TK, documents))
        return y_TD if self.shared is None else y_TD + self.shared(x_TD)
