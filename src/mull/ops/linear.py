"""x W^T: on a CPU by oneDNN, elsewhere by torch.

torch sends fp32 products to MKL, which on AMD's processors reaches three quarters of what oneDNN does: 150 against 200
GF/s on two cores at 4,096 rows, 11.1 against 7.2 ms for [4096, 640] x [640, 256]. Its kernels also give a row the same
bits for any number of rows from two on. The product of a backward pass that sums over rows stays with MKL: oneDNN would
have to copy both of its operands into another order first, which takes longer than it saves. So do small weights,
whose product with a few rows is over before oneDNN has begun; the weight alone decides, or bits would depend on rows.

T rows  K inputs  N outputs
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import Function, once_differentiable

SMALL = 2**15  # numbers of a weight; smaller ones are left to torch


def product(x_TK: Tensor, weight_NK: Tensor, bias_N: Tensor | None = None) -> Tensor:
    """x W^T (+ b) without a gradient; fp32 on a CPU."""
    return torch.ops.mkldnn._linear_pointwise(x_TK.contiguous(), weight_NK, bias_N, "none", [], "")


class _Linear(Function):
    @staticmethod
    def forward(ctx: Any, x_TK: Tensor, weight_NK: Tensor, bias_N: Tensor | None) -> Tensor:
        ctx.save_for_backward(x_TK, weight_NK)
        return product(x_TK, weight_NK, bias_N)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TN: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x_TK, weight_NK = ctx.saved_tensors
        want_x, want_weight, want_bias = ctx.needs_input_grad
        grad_TN = grad_TN.contiguous()
        return (
            product(grad_TN, weight_NK.t().contiguous()) if want_x else None,
            grad_TN.t() @ x_TK if want_weight else None,
            grad_TN.sum(dim=0) if want_bias else None,
        )


def linear(x_TK: Tensor, weight_NK: Tensor, bias_N: Tensor | None = None) -> Tensor:
    """x W^T + b over the last of two axes."""
    here = x_TK.device.type == "cpu" and x_TK.dtype == weight_NK.dtype == torch.float32 and x_TK.ndim == 2
    if not here or weight_NK.numel() < SMALL or not torch.backends.mkldnn.is_available():
        return F.linear(x_TK, weight_NK, bias_N)
    if not torch.is_grad_enabled():
        return product(x_TK, weight_NK, bias_N)
    return _Linear.apply(x_TK, weight_NK, bias_N)  # type: ignore[return-value]
