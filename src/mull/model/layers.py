"""The plain parts: RMSNorm, rotary positions, SwiGLU.

T tokens (packed, no batch axis)  D width  R rotary width  F feed-forward width  H heads
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mull.model.config import Llama3Rope, ModelConfig, Yarn
from mull.ops.linear import linear, linear_packed, pack, packable
from mull.ops.norm import rms_norm
from mull.ops.swiglu import swiglu


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last axis, in the input's dtype (arXiv 1910.07467).

    A last axis that is several times as wide as the weight is so many vectors, each with a norm of its own.
    """

    def __init__(self, dim: int, eps: float = 1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x.reshape(-1, len(self.weight)), self.weight, self.eps).view_as(x)


class Linear(nn.Linear):
    """torch's, over the kernels of ops/linear.py."""

    exact = False
    packed: Packed | None = None

    def forward(self, input: Tensor) -> Tensor:
        if self.packed is not None:
            return self.packed(input)
        return linear(input, self.weight, self.bias, self.exact)


class Packed:
    """Products with one input as one, over weights in oneDNN's own order: for answering only.

    The parts keep their biases and lose their weights, but for those that somebody else has too.
    """

    def __init__(self, parts: Sequence[Linear], keep: bool = False):
        with torch.no_grad():
            self.weight = pack(torch.cat(tuple(part.weight for part in parts)))
            biases = [part.bias for part in parts if part.bias is not None]
            assert len(biases) in (0, len(parts))
            self.bias = torch.cat(tuple(biases)) if biases else None
        for part in parts if not keep else ():
            part.weight = nn.Parameter(part.weight.new_empty(0, part.in_features), requires_grad=False)

    @classmethod
    def of(cls, *parts: Linear, keep: bool = False, always: bool = False) -> Packed | None:
        """None where it would not pay, unless `always`."""
        return cls(parts, keep) if packable(torch.cat(tuple(part.weight for part in parts)), always) else None

    def __call__(self, x_TK: Tensor) -> Tensor:
        return linear_packed(x_TK, self.weight, self.bias)


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)), arXiv 2002.05202. Gate and up are one matrix: half the calls, the same numbers."""

    def __init__(self, width: int, ffn: int):
        super().__init__()
        self.gate_up = Linear(width, 2 * ffn, bias=False)
        self.down = Linear(ffn, width, bias=False)

    def forward(self, x_TD: Tensor) -> Tensor:
        return self.down(swiglu(self.gate_up(x_TD)))

    def pack(self, always: bool = False) -> None:
        for product in (self.gate_up, self.down):
            product.packed = Packed.of(product, always=always)


def rotary_frequencies(cfg: ModelConfig) -> Tensor:
    """Angle per position of each rotary pair, [R/2], fp32, on the CPU whatever the default device: on the meta device
    arange loads torch's compiler, which takes a second. Context extensions slow the slow pairs down.
    """
    half = torch.arange(0, cfg.rotary_dim, 2, dtype=torch.float32, device="cpu") / cfg.rotary_dim
    frequency = 1.0 / cfg.rope_theta**half
    if cfg.yarn is not None:
        return _yarn(frequency, cfg.yarn, cfg.rope_theta)
    if cfg.llama3_rope is not None:
        return _llama3(frequency, cfg.llama3_rope)
    return frequency / cfg.linear_rope


def _yarn(frequency: Tensor, yarn: Yarn, theta: float) -> Tensor:
    pairs = len(frequency)

    def pair_of(rotations: float) -> float:  # the pair that turns `rotations` times over the original length
        return pairs * math.log(yarn.original_length / (rotations * 2 * math.pi)) / math.log(theta)

    low, high = pair_of(yarn.beta_fast), pair_of(yarn.beta_slow)
    if yarn.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, 2 * pairs - 1)
    ramp = torch.arange(pairs, dtype=torch.float32, device="cpu").sub(low).div((high - low) or 1e-3).clamp(0, 1)
    return frequency / yarn.factor * ramp + frequency * (1 - ramp)


def _llama3(frequency: Tensor, rope: Llama3Rope) -> Tensor:
    """Between the two factors the share of the unscaled frequency grows with the turns over the original length."""
    turns = frequency * (rope.original_length / (2 * math.pi))
    kept = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    kept = kept.clamp(0, 1)
    return frequency / rope.factor * (1 - kept) + frequency * kept


def _mscale(factor: float, weight: float) -> float:
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0


def rotary_magnitude(yarn: Yarn | None) -> float:
    """What cos and sin are multiplied with; 1 without YaRN, and for DeepSeek-V3, whose two mscales are equal."""
    if yarn is None:
        return 1.0
    if yarn.magnitude:
        return yarn.magnitude
    if yarn.mscale and yarn.mscale_all_dim:
        return _mscale(yarn.factor, yarn.mscale) / _mscale(yarn.factor, yarn.mscale_all_dim)
    return _mscale(yarn.factor, 1.0)


def softmax_scale(cfg: ModelConfig) -> float:
    """qk_dim^-0.5; in latent attention, where YaRN sets mscale_all_dim, times mscale(factor)^2 (DeepSeek-V3: 1.87)."""
    scale = cfg.qk_dim**-0.5
    if cfg.latent and cfg.yarn is not None and cfg.yarn.mscale_all_dim:
        scale *= _mscale(cfg.yarn.factor, cfg.yarn.mscale_all_dim) ** 2
    return scale


class Rotary(nn.Module):
    """cos and sin, each [T, 1, R/2], for integer positions [T]; computed in fp32, given in `dtype`."""

    frequency: Tensor

    def __init__(self, cfg: ModelConfig):
        super().__init__()
        self.register_buffer("frequency", rotary_frequencies(cfg), persistent=False)
        self.magnitude = rotary_magnitude(cfg.yarn)

    def forward(self, positions_T: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        angle = positions_T[:, None, None].float() * self.frequency.float()
        return (angle.cos() * self.magnitude).to(dtype), (angle.sin() * self.magnitude).to(dtype)


def rotate(x_THR: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """Turn each pair by its angle. Pairs are neighbours (DeepSeek) or half the width apart (Llama, Qwen); they stay so.
    What is wider than cos and sin are for stays as it is behind them.

    Neighbours are one complex number: on a CPU one product instead of six strided ones. Only in whole vectors: what
    is left over is computed in scalar form, which rounds differently.
    """
    width = 2 * cos.shape[-1]
    if width < x_THR.shape[-1]:
        return torch.cat((rotate(x_THR[..., :width], cos, sin, interleaved), x_THR[..., width:]), dim=-1)
    if not interleaved:
        first, second = x_THR.chunk(2, dim=-1)
        return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
    pairs_THr2 = x_THR.unflatten(-1, (-1, 2))
    if x_THR.dtype == torch.float32 and x_THR.device.type == "cpu" and _complex(pairs_THr2):
        return torch.view_as_real(torch.view_as_complex(pairs_THr2) * torch.complex(cos, sin)).flatten(-2)
    first, second = pairs_THr2.unbind(-1)
    return torch.stack((first * cos - second * sin, second * cos + first * sin), dim=-1).flatten(-2)


def _complex(pairs: Tensor) -> bool:
    """Whether memory holds whole pairs, as a slice that begins at an odd place does not, and whole vectors of eight."""
    whole = pairs.storage_offset() % 2 == 0 and all(stride % 2 == 0 for stride in pairs.stride()[:-1])
    return whole and pairs.shape[-2] % 8 == 0
