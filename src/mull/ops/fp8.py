"""FP8 weights as DeepSeek publishes them: E4M3 codes, and one fp32 factor per block of 128x128 (arXiv 2412.19437, 3.3).

A weight is code * scale. The last block of a row or column may be ragged: 576x7168 has a grid of 5x56. Both directions
work through whole rows of blocks, so what they need beside their result does not grow with the matrix.

O output rows  I input columns  R, C block height and width  o, i blocks down and across: ceil(O / R), ceil(I / C)
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

BLOCK = (128, 128)
LARGEST = 448.0  # of E4M3
SMALLEST_SCALE = torch.finfo(torch.float32).tiny  # below it, fp32 itself gets coarse


def grid(shape: tuple[int, ...], block: tuple[int, int] = BLOCK) -> tuple[int, int]:
    """The shape of the scales of a matrix, (o, i)."""
    return math.ceil(shape[0] / block[0]), math.ceil(shape[1] / block[1])


def dequantise(codes_OI: Tensor, scale_oi: Tensor, out_OI: Tensor, block: tuple[int, int] = BLOCK) -> Tensor:
    """code * scale, rounded once to fp32, into `out_OI`; NaN codes give NaN."""
    for row, some_RI, out_RI in _rows(block, codes_OI, out_OI):
        torch.mul(numbers(some_RI), _spread(scale_oi[row], block, codes_OI.shape[1]), out=out_RI)
    return out_OI


def numbers(codes: Tensor) -> Tensor:
    """E4M3 -> fp32. On a CPU ten times as fast as torch's own conversion, and equal to it.

    Sign, exponent and mantissa are moved to where fp16 has them; its exponent counts from another zero, hence 256.
    """
    magnitude = codes.view(torch.uint8).bitwise_and(0x7F)
    if codes.device.type != "cpu" or (codes.numel() and int(magnitude.max()) == 0x7F):  # NaN is a number in fp16
        return codes.float()
    wide = codes.view(torch.int8).to(torch.int16).bitwise_left_shift_(8).bitwise_right_shift_(1)
    return wide.bitwise_and_(-0x4001).view(torch.float16).float().mul_(256)  # without bit 14, a copy of the sign


def block_scales(weight_OI: Tensor, block: tuple[int, int] = BLOCK) -> Tensor:
    """Each block's largest magnitude / 448, fp32 [o, i]; 1 for a block of zeros."""
    scale_oi = torch.zeros(grid(tuple(weight_OI.shape), block))
    for row, some_RI in _rows(block, weight_OI):
        largest_I = some_RI.abs().amax(dim=0)
        columns = torch.arange(len(largest_I)) // block[1]
        scale_oi[row].scatter_reduce_(0, columns, largest_I, "amax")
    zero_oi = scale_oi == 0
    return scale_oi.div_(LARGEST).clamp_(min=SMALLEST_SCALE).masked_fill_(zero_oi, 1.0)


def quantise(weight_OI: Tensor, block: tuple[int, int] = BLOCK) -> tuple[Tensor, Tensor]:
    """fp32 -> (codes, scales). A weight w comes back within max(|w| / 16, scale / 1024) of itself, and a rounding.

    What was dequantised before gives the same codes where a block's largest code was 448, as it is here; its scale may
    differ in the last bit, for times 448 and divided by 448 are two roundings.
    """
    scale_oi = block_scales(weight_OI, block)
    codes_OI = torch.empty(weight_OI.shape, dtype=torch.float8_e4m3fn)
    for row, some_RI, codes_RI in _rows(block, weight_OI, codes_OI):
        codes_RI.copy_(some_RI / _spread(scale_oi[row], block, weight_OI.shape[1]))
    return codes_OI, scale_oi


def _spread(scale_i: Tensor, block: tuple[int, int], columns: int) -> Tensor:
    """One row of scales, a factor per column."""
    return scale_i.repeat_interleave(block[1])[:columns]


def _rows(block: tuple[int, int], *matrices: Tensor) -> Iterator[tuple[Any, ...]]:
    """(row of blocks, that part of each matrix), from the top."""
    for row, begin in enumerate(range(0, matrices[0].shape[0], block[0])):
        yield row, *(matrix[begin : begin + block[0]] for matrix in matrices)


__all__ = ["BLOCK", "block_scales", "dequantise", "grid", "numbers", "quantise"]
