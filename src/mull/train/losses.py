"""Objectives. Each takes the logits of the predicted positions and the batch, and returns a sum and what to log.

The trainer divides by the number of predicted tokens of the whole optimiser step, so that micro-batches and longer
answers weigh as they should. A new objective is a function here and one entry in LOSSES.

N predicted positions  V vocabulary
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from mull.config import Config
from mull.data.batch import Batch


class LossConfig(Config):
    name: Literal["ce", "grpo", "forward_kl", "reverse_kl"] = "ce"
    ratio_cap: float = Field(default=5.0, gt=0)  # grpo: largest importance weight pi/mu
    mask_gap: float = Field(default=0.5, gt=0)  # grpo: a losing answer whose mean log(mu/pi) exceeds this is left out
    temperature: float = Field(default=1.0, gt=0)  # grpo: what the answers were drawn at
    kl_weight: float = Field(default=1.0, ge=0, le=1)  # forward_kl: the rest is cross-entropy on the tokens themselves


Metrics = dict[str, Tensor]
Loss = Callable[[Tensor, Batch, LossConfig], tuple[Tensor, Metrics]]


def ce(logits_NV: Tensor, batch: Batch, cfg: LossConfig) -> tuple[Tensor, Metrics]:
    """Cross-entropy: -sum log pi(target). The trainer computes the same together with the head, in pieces
    (ops/cross_entropy.py), and so without these logits."""
    total = F.cross_entropy(logits_NV, batch.target_N, reduction="sum")
    with torch.no_grad():
        right = (logits_NV.argmax(dim=-1) == batch.target_N).sum()
    return total, {"token_accuracy": right}


def grpo(logits_NV: Tensor, batch: Batch, cfg: LossConfig) -> tuple[Tensor, Metrics]:
    """Truncated-importance policy gradient with group-centred advantages, no KL term.

    -sum M_i sg[min(pi/mu, cap)] A_i log pi, mu the sampler's own probability; M_i = 0 for answers with A_i < 0 whose
    mean log(mu/pi) exceeds `mask_gap` (CISPO, arXiv 2510.13786; sequence masking, DeepSeek-V3.2 arXiv 2512.02556).
    When sampler and trainer agree and each answer is used once, every weight is 1: REINFORCE with a group baseline.
    """
    assert batch.logprob_N is not None
    assert batch.advantage_N is not None
    logp_N = -F.cross_entropy(logits_NV / cfg.temperature, batch.target_N, reduction="none")
    with torch.no_grad():
        gap_N = batch.logprob_N - logp_N
        ratio_N = (-gap_N).exp()
        examples = int(batch.example_N.max()) + 1
        count = torch.bincount(batch.example_N, minlength=examples).clamp_min(1)
        mean_gap = torch.zeros(examples, device=gap_N.device).index_add(0, batch.example_N, gap_N) / count
        kept_N = ~((batch.advantage_N < 0) & (mean_gap[batch.example_N] > cfg.mask_gap))
        weight_N = kept_N * ratio_N.clamp_max(cfg.ratio_cap) * batch.advantage_N
        probability_NV = (logits_NV / cfg.temperature).softmax(dim=-1)
        entropy = torch.special.entr(probability_NV).sum()
    metrics = {
        "max_gap": gap_N.abs().max(),
        "k3": (ratio_N - 1 + gap_N).sum(),
        "left_out": (~kept_N).sum(),
        "entropy": entropy,
    }
    return -(weight_N * logp_N).sum(), metrics


def forward_kl(logits_NV: Tensor, batch: Batch, cfg: LossConfig) -> tuple[Tensor, Metrics]:
    """KL(teacher || student) over the whole vocabulary on given tokens, mixed with cross-entropy by `kl_weight`."""
    assert batch.teacher_NV is not None
    logp_NV = logits_NV.log_softmax(dim=-1)
    kl = F.kl_div(logp_NV, batch.teacher_NV, reduction="sum", log_target=True)
    hard = F.nll_loss(logp_NV, batch.target_N, reduction="sum")
    right = (logits_NV.argmax(dim=-1) == batch.target_N).sum()
    return cfg.kl_weight * kl + (1 - cfg.kl_weight) * hard, {"kl": kl.detach(), "token_accuracy": right}


def reverse_kl(logits_NV: Tensor, batch: Batch, cfg: LossConfig) -> tuple[Tensor, Metrics]:
    """KL(student || teacher) over the whole vocabulary on the student's own answers: on-policy distillation."""
    assert batch.teacher_NV is not None
    logp_NV = logits_NV.log_softmax(dim=-1)
    kl = (logp_NV.exp() * (logp_NV - batch.teacher_NV)).sum()
    return kl, {"kl": kl.detach()}


LOSSES: dict[str, Loss] = {"ce": ce, "grpo": grpo, "forward_kl": forward_kl, "reverse_kl": reverse_kl}
MAXIMA = {"max_gap"}  # metrics of which the largest counts; all others are per predicted token
