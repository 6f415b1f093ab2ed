"""x W^T: torch's, and for decoding on a CPU oneDNN's.

torch sends fp32 products to MKL. For the tens of rows of a decoding step oneDNN takes half the time or less on AMD's
processors (figures in dev/LOG.md). But it compiles a kernel for every
number of rows it meets, which costs milliseconds; a training step, whose number of tokens is always another, would pay
that each time. And its bits are not MKL's. So it serves where there is no gradient, and not in exact mode.

It is faster still over weights in an order of its own (`pack`), which nothing else can read. Kernels for int8 and int4
weights would be two functions like these.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

SMALL = 2**17  # numbers of a weight; with smaller ones oneDNN gains little or nothing
PACKED_FLOOR = 4  # rows from which on each has the same bits over packed weights: measured from 2 on (AVX2)


def linear(x_TK: Tensor, weight_NK: Tensor, bias_N: Tensor | None = None, plain: bool = False) -> Tensor:
    """x W^T + b over the last of two axes, [T, N]; `plain` rules oneDNN out."""
    plain = plain or torch.is_grad_enabled() or x_TK.device.type != "cpu" or x_TK.ndim != 2
    if plain or weight_NK.numel() < SMALL or not x_TK.dtype == weight_NK.dtype == torch.float32:
        return F.linear(x_TK, weight_NK, bias_N)
    if not torch.backends.mkldnn.is_available():
        return F.linear(x_TK, weight_NK, bias_N)
    return torch.ops.mkldnn._linear_pointwise(x_TK.contiguous(), weight_NK, bias_N, "none", [], "")


def packable(weight_NK: Tensor, always: bool = False) -> bool:
    """Whether `pack` can take it, and a product would gain by it, or `always`."""
    plain = weight_NK.device.type == "cpu" and weight_NK.dtype == torch.float32
    return plain and (always or weight_NK.numel() >= SMALL) and torch.backends.mkldnn.is_available()


def pack(weight_NK: Tensor, rows: int = 64) -> Tensor:
    """A copy for `linear_packed` alone, in the order that oneDNN likes for so many rows; it serves any number."""
    return torch.ops.mkldnn._reorder_linear_weight(weight_NK.detach().contiguous(), rows)


def linear_packed(x_TK: Tensor, packed: Tensor, bias_N: Tensor | None = None) -> Tensor:
    """x W^T + b, [T, N]. No gradient; a row's bits are the same in any number of rows but 1."""
    return torch.ops.mkldnn._linear_pointwise(x_TK.contiguous(), packed, bias_N, "none", [], "")
