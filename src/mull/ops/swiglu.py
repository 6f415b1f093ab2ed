"""SwiGLU and the sigmoid: on a CPU as one function each with a backward pass of its own, elsewhere torch's.

torch's CPU sigmoid and silu compute the last few numbers of a tensor in scalar form, which rounds differently: a row's
bits would depend on where it stands. exp, sum and reciprocal round alike everywhere, so both are written with those,
and passes run in place.

T rows  F width
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import Function, once_differentiable


def _sigmoid(x: Tensor) -> Tensor:
    return x.neg().exp_().add_(1).reciprocal_()


class _Sigmoid(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = _sigmoid(x)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        (y,) = ctx.saved_tensors
        return (1 - y).mul_(y).mul_(grad)


def _swiglu(both_T2F: Tensor, weight_T1: Tensor | None) -> tuple[Tensor, Tensor]:
    """The result, and sigmoid(gate)."""
    gate_TF, up_TF = both_T2F.chunk(2, dim=-1)
    open_TF = _sigmoid(gate_TF)
    hidden_TF = (gate_TF * open_TF).mul_(up_TF)
    return hidden_TF if weight_T1 is None else hidden_TF.mul_(weight_T1), open_TF


class _SwiGLU(Function):
    @staticmethod
    def forward(ctx: Any, both_T2F: Tensor, weight_T1: Tensor | None) -> Tensor:
        hidden_TF, open_TF = _swiglu(both_T2F, weight_T1)
        ctx.save_for_backward(both_T2F, open_TF, weight_T1)
        return hidden_TF

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TF: Tensor) -> tuple[Tensor, Tensor | None]:  # type: ignore[override]
        both_T2F, open_TF, weight_T1 = ctx.saved_tensors
        gate_TF, up_TF = both_T2F.chunk(2, dim=-1)
        grad_both_T2F = torch.empty_like(both_T2F)
        grad_gate_TF, grad_up_TF = grad_both_T2F.chunk(2, dim=-1)
        silu_TF = gate_TF * open_TF
        hidden_grad_TF = grad_TF if weight_T1 is None else grad_TF * weight_T1
        torch.mul(hidden_grad_TF, silu_TF, out=grad_up_TF)
        # silu' = open + silu (1 - open)
        slope_TF = torch.addcmul(open_TF, silu_TF, open_TF, value=-1).add_(silu_TF).mul_(hidden_grad_TF)
        torch.mul(slope_TF, up_TF, out=grad_gate_TF)
        grad_weight_T1 = None
        if weight_T1 is not None:
            grad_weight_T1 = silu_TF.mul_(up_TF).mul_(grad_TF).sum(dim=-1, keepdim=True)
        return grad_both_T2F, grad_weight_T1


def sigmoid(x: Tensor) -> Tensor:
    """1 / (1 + exp(-x)), element by element."""
    return _Sigmoid.apply(x) if x.device.type == "cpu" else x.sigmoid()  # type: ignore[return-value]


def swiglu(both_T2F: Tensor, weight_T1: Tensor | None = None) -> Tensor:
    """silu(gate) * up * weight, [T, F], of [gate | up]; without `weight_T1` it is 1. arXiv 2002.05202."""
    if both_T2F.device.type == "cpu" and not torch.is_grad_enabled():
        return _swiglu(both_T2F, weight_T1)[0]
    if both_T2F.device.type == "cpu":
        return _SwiGLU.apply(both_T2F, weight_T1)  # type: ignore[return-value]
    return swiglu_plain(both_T2F, weight_T1)


def swiglu_plain(both_T2F: Tensor, weight_T1: Tensor | None = None) -> Tensor:
    """The twin of `swiglu`, and its form on other devices."""
    gate_TF, up_TF = both_T2F.chunk(2, dim=-1)
    hidden_TF = F.silu(gate_TF) * up_TF
    return hidden_TF if weight_T1 is None else hidden_TF * weight_T1.to(hidden_TF.dtype)
