"""Moving rows about, with backward passes that are moves too.

Autograd's own backward of `x[index]` adds row by row into a zeroed tensor, which is slow and, on a GPU, in no fixed
order. Where the inverse is known the gradient is a plain gather (and a sum over a fixed axis): faster, and
deterministic. Both pairs below are each other's transpose.

T tokens  N = T * K rows sorted by expert  K chosen experts  P rows laid out in padded groups
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function


def _sums(y_ND: Tensor, back_N: Tensor, chosen: int) -> Tensor:
    """Each token's K rows summed in the order of its choices, [T, D], in one pass: they are not laid out first."""
    return F.embedding_bag(back_N.view(-1, chosen), y_ND, mode="sum")


class _Dispatch(Function):
    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, order_N: Tensor, back_N: Tensor, chosen: int) -> Tensor:
        ctx.save_for_backward(back_N)
        ctx.chosen = chosen
        return x_TD.index_select(0, order_N // chosen)

    @staticmethod
    def backward(ctx: Any, grad_ND: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        (back_N,) = ctx.saved_tensors
        return _sums(grad_ND, back_N, ctx.chosen), None, None, None


class _Combine(Function):
    @staticmethod
    def forward(ctx: Any, y_ND: Tensor, order_N: Tensor, back_N: Tensor, chosen: int) -> Tensor:
        ctx.save_for_backward(order_N)
        ctx.chosen = chosen
        return _sums(y_ND, back_N, chosen)

    @staticmethod
    def backward(ctx: Any, grad_TD: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        (order_N,) = ctx.saved_tensors
        return grad_TD.index_select(0, order_N // ctx.chosen), None, None, None


class _ToGroups(Function):
    @staticmethod
    def forward(ctx: Any, x_T: Tensor, index_P: Tensor, home_T: Tensor) -> Tensor:
        ctx.save_for_backward(home_T)
        return x_T.index_select(0, index_P)

    @staticmethod
    def backward(ctx: Any, grad_P: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        (home_T,) = ctx.saved_tensors
        return grad_P.index_select(0, home_T), None, None


class _FromGroups(Function):
    @staticmethod
    def forward(ctx: Any, y_P: Tensor, home_T: Tensor) -> Tensor:
        ctx.save_for_backward(home_T)
        ctx.rows = y_P.shape[0]
        return y_P.index_select(0, home_T)

    @staticmethod
    def backward(ctx: Any, grad_T: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        (home_T,) = ctx.saved_tensors
        return grad_T.new_zeros(ctx.rows, *grad_T.shape[1:]).index_copy_(0, home_T, grad_T), None


def dispatch(x_TD: Tensor, order_N: Tensor, back_N: Tensor, chosen: int) -> Tensor:
    """A row per (token, choice), in the order `order_N`: [N, D]. `back_N` is the inverse permutation of `order_N`."""
    return _Dispatch.apply(x_TD, order_N, back_N, chosen)  # type: ignore[return-value]


def combine(y_ND: Tensor, order_N: Tensor, back_N: Tensor, chosen: int) -> Tensor:
    """The transpose of `dispatch`: each token's K rows summed in the order of its choices, [T, D]."""
    return _Combine.apply(y_ND, order_N, back_N, chosen)  # type: ignore[return-value]


def to_groups(x_T: Tensor, index_P: Tensor, home_T: Tensor) -> Tensor:
    """Rows at `index_P`. Padding repeats a row; its gradient is taken to be zero, as causal attention makes it."""
    return _ToGroups.apply(x_T, index_P, home_T)  # type: ignore[return-value]


def from_groups(y_P: Tensor, home_T: Tensor) -> Tensor:
    """Each token's own row out of the padded groups."""
    return _FromGroups.apply(y_P, home_T)  # type: ignore[return-value]


def inverse(order_N: Tensor) -> Tensor:
    return torch.empty_like(order_N).scatter_(0, order_N, torch.arange(order_N.numel(), device=order_N.device))
