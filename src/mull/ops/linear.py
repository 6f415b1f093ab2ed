"""x W^T: torch's, and for decoding on a CPU oneDNN's.

torch sends fp32 products to MKL. For the tens of rows of a decoding step oneDNN takes half the time or less on AMD's
processors (figures in dev/LOG.md). But it compiles a kernel for every
number of rows it meets, which costs milliseconds; a training step, whose number of tokens is always another, would pay
that each time. And its bits are not MKL's. So it serves where there is no gradient, and not in exact mode.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

SMALL = 2**17  # numbers of a weight; with smaller ones oneDNN gains little or nothing


def linear(x_TK: Tensor, weight_NK: Tensor, bias_N: Tensor | None = None, plain: bool = False) -> Tensor:
    """x W^T + b over the last of two axes, [T, N]; `plain` rules oneDNN out."""
    plain = plain or torch.is_grad_enabled() or x_TK.device.type != "cpu" or x_TK.ndim != 2
    if plain or weight_NK.numel() < SMALL or not x_TK.dtype == weight_NK.dtype == torch.float32:
        return F.linear(x_TK, weight_NK, bias_N)
    if not torch.backends.mkldnn.is_available():
        return F.linear(x_TK, weight_NK, bias_N)
    return torch.ops.mkldnn._linear_pointwise(x_TK.contiguous(), weight_NK, bias_N, "none", [], "")
