"""RMSNorm: on a CPU as one function with a backward pass of its own, elsewhere torch's.

On a CPU autograd differentiates torch's rms_norm through its six elementary steps, each a pass over the whole tensor.
Written as one function it needs half as many; the gradient of the scale is a matrix product. With and without a
gradient it is the same arithmetic, and a row's bits do not depend on its neighbours: no rsqrt, whose vector and scalar
forms round differently.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import Function, once_differentiable


def _rms_norm(x_TD: Tensor, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The result, and 1 / rms of each row."""
    norm_T1 = torch.linalg.vector_norm(x_TD, dim=-1, keepdim=True)
    inverse_T1 = norm_T1.pow_(2).div_(x_TD.shape[-1]).add_(eps).sqrt_().reciprocal_()
    return (x_TD * inverse_T1).mul_(weight_D), inverse_T1


class _RMSNorm(Function):
    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
        y_TD, inverse_T1 = _rms_norm(x_TD, weight_D, eps)
        ctx.save_for_backward(x_TD, inverse_T1, weight_D)
        return y_TD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TD: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x_TD, inverse_T1, weight_D = ctx.saved_tensors
        both_TD = grad_TD * x_TD
        grad_D = both_TD.t() @ inverse_T1[:, 0]
        pull_T1 = (both_TD @ weight_D)[:, None].mul_(inverse_T1.pow(3)).div_(x_TD.shape[-1])
        pulled_TD = torch.mul(x_TD, pull_T1, out=both_TD)
        return (grad_TD * weight_D).mul_(inverse_T1).sub_(pulled_TD), grad_D, None


def rms_norm(x_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last of two axes."""
    if x_TD.device.type == "cpu" and not torch.is_grad_enabled():
        return _rms_norm(x_TD, weight_D, eps)[0]
    if x_TD.device.type == "cpu":
        return _RMSNorm.apply(x_TD, weight_D, eps)  # type: ignore[return-value]
    return F.rms_norm(x_TD, weight_D.shape, weight_D, eps)
