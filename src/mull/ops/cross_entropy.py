"""The vocabulary's head and cross-entropy in one: logits exist for a few rows at a time.

Logits are the largest tensor of a step, and autograd keeps their log-softmax and their gradient beside them: [N, V]
three times. Here each piece of rows goes from hidden states to loss and to the gradients of states and weights in one
go, while it lies in the cache; the backward pass only multiplies by the incoming scalar.

T tokens  N predicted positions  D width  V vocabulary  C rows of a piece
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import Function, once_differentiable

from mull.ops.linear import linear

PIECE = 1 << 22  # logits: 16 MB of fp32, and enough rows for a matrix product at its full speed


class _CrossEntropy(Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_TD: Tensor, weight_VD: Tensor, at_N: Tensor, target_N: Tensor
    ) -> tuple[Tensor, Tensor]:
        total = hidden_TD.new_zeros(())
        right = target_N.new_zeros(())
        dhidden_TD, dweight_VD = torch.zeros_like(hidden_TD), torch.zeros_like(weight_VD)
        weight_DV = weight_VD.t().contiguous()
        rows = max(PIECE // weight_VD.shape[0], 256)
        for at_C, target_C in zip(at_N.split(rows), target_N[:, None].split(rows), strict=True):
            hidden_CD = hidden_TD.index_select(0, at_C)
            odd = len(at_C) < rows  # a last piece: its number of rows does not come again, see ops/linear.py
            logits_CV = linear(hidden_CD, weight_VD, plain=odd)
            top_C1 = logits_CV.amax(dim=1, keepdim=True)
            told_C1 = logits_CV.gather(1, target_C)
            right += (told_C1 == top_C1).sum()
            power_CV = logits_CV.sub_(top_C1).exp_()
            norm_C1 = power_CV.sum(dim=1, keepdim=True)
            total += (norm_C1.log() + top_C1 - told_C1).sum()
            # the gradient of logits is softmax - one_hot = (power - norm * one_hot) / norm; the division comes after
            # the products, where rows are narrower
            power_CV.scatter_add_(1, target_C, -norm_C1)
            dhidden_TD.index_copy_(0, at_C, linear(power_CV, weight_DV, plain=odd).div_(norm_C1))
            dweight_VD.addmm_(power_CV.t(), hidden_CD.div_(norm_C1))
        ctx.save_for_backward(dhidden_TD, dweight_VD)
        ctx.mark_non_differentiable(right)
        return total, right

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        dhidden_TD, dweight_VD = ctx.saved_tensors
        return dhidden_TD * grad, dweight_VD * grad, None, None


def cross_entropy(hidden_TD: Tensor, weight_VD: Tensor, at_N: Tensor, target_N: Tensor) -> tuple[Tensor, Tensor]:
    """(sum over n of -log softmax(weight hidden[at[n]])[target[n]], how many targets are the likeliest token).

    `at_N` holds no position twice. Everything is computed in the dtype of the two inputs, which is one: fp32.
    """
    return _CrossEntropy.apply(hidden_TD, weight_VD, at_N, target_N)  # type: ignore[return-value]


def cross_entropy_plain(hidden_TD: Tensor, weight_VD: Tensor, at_N: Tensor, target_N: Tensor) -> tuple[Tensor, Tensor]:
    """The twin of `cross_entropy`, with all logits at once."""
    logits_NV = F.linear(hidden_TD[at_N], weight_VD)
    right = (logits_NV.argmax(dim=-1) == target_N).sum()
    return F.cross_entropy(logits_NV, target_N, reduction="sum"), right
