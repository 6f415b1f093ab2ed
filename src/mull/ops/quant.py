"""ggml's block formats <-> fp32: the numbers of a GGUF tensor, unpacked straight into place.

A block format stores 32 or 256 neighbouring numbers of a row as small integers with shared scales. The layouts are
ggml's (ggml-common.h, ggml-quants.c), and so is the order of the roundings: the results are the library's, bit for bit.
Tensors are unpacked in chunks that fit into the cache, so nothing of a tensor's size is ever allocated.

N blocks  X bytes of a block  K numbers of a block  G groups of a block, each with its own scale
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

CHUNK = 2**19  # numbers unpacked at a time
PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def _half(raw_N2: Tensor) -> Tensor:
    """Two bytes as a number: [N, 1]."""
    return raw_N2.contiguous().view(torch.float16).float()


def _nibbles(raw_NX: Tensor, width: int) -> Tensor:
    """Four-bit integers [N, 2X] of bytes: of each `width` bytes first all low halves, then all high ones."""
    raw = raw_NX.unflatten(1, (-1, 1, width))
    return torch.cat((raw & 15, raw >> 4), dim=2).flatten(1)


def _bits(raw_NX: Tensor, each: int) -> Tensor:
    """Integers of `each` bits: first the lowest bits of all bytes, then the next: [N, 8 / each, X]."""
    shift = torch.arange(0, 8, each, dtype=torch.uint8)
    return (raw_NX[:, None] >> shift[:, None]) & (2**each - 1)


def _single_bits(raw_NX: Tensor) -> Tensor:
    """The bits of each byte, lowest first, as bytes of their own: [N, 8X]. One look-up for eight of them."""
    bits = torch.arange(256, dtype=torch.uint8)[:, None] >> torch.arange(8, dtype=torch.uint8) & 1
    eights = bits.view(torch.int64).flatten()
    return eights.index_select(0, raw_NX.reshape(-1).int()).view(len(raw_NX), -1).view(torch.uint8)


def _six_bits(raw: Tensor) -> tuple[Tensor, Tensor]:
    """The eight scales and eight minima, six bits each, that Q4_K and Q5_K pack into twelve bytes: [N, 8] each."""
    scale, minimum, rest = raw.split(4, dim=1)
    scales = torch.cat((scale & 63, (rest & 15) | ((scale >> 2) & 48)), dim=1)
    minima = torch.cat((minimum & 63, (rest >> 4) | ((minimum >> 2) & 48)), dim=1)
    return scales.float(), minima.float()


def _q8_0(raw_NX: Tensor, out_NK: Tensor) -> None:
    out_NK.copy_(raw_NX[:, 2:].view(torch.int8)).mul_(_half(raw_NX[:, :2]))


def _q4_0(raw_NX: Tensor, out_NK: Tensor) -> None:
    out_NK.copy_(_nibbles(raw_NX[:, 2:], 16)).sub_(8).mul_(_half(raw_NX[:, :2]))


def _q4_1(raw_NX: Tensor, out_NK: Tensor) -> None:
    out_NK.copy_(_nibbles(raw_NX[:, 4:], 16)).mul_(_half(raw_NX[:, :2])).add_(_half(raw_NX[:, 2:4]))


def _q5_0(raw_NX: Tensor, out_NK: Tensor) -> None:
    high = _single_bits(raw_NX[:, 2:6])
    out_NK.copy_(_nibbles(raw_NX[:, 6:], 16) | (high << 4)).sub_(16).mul_(_half(raw_NX[:, :2]))


def _q4_k(raw_NX: Tensor, out_NK: Tensor) -> None:
    _scaled(raw_NX, _nibbles(raw_NX[:, 16:], 32), out_NK)


def _q5_k(raw_NX: Tensor, out_NK: Tensor) -> None:
    high = _bits(raw_NX[:, 16:48], 1).flatten(1)
    _scaled(raw_NX, _nibbles(raw_NX[:, 48:], 32) | (high << 4), out_NK)


def _scaled(raw_NX: Tensor, integer_NK: Tensor, out_NK: Tensor) -> None:
    """(scale of the block * scale of the group) * integer - (minimum of the block * minimum of the group)."""
    scales_NG, minima_NG = _six_bits(raw_NX[:, 4:16])
    out = out_NK.copy_(integer_NK).view(-1, 8, 32)
    out.mul_((scales_NG * _half(raw_NX[:, :2]))[..., None]).sub_((minima_NG * _half(raw_NX[:, 2:4]))[..., None])


def _q6_k(raw_NX: Tensor, out_NK: Tensor) -> None:
    low = _nibbles(raw_NX[:, :128], 64)
    high = _bits(raw_NX[:, 128:192].reshape(-1, 32), 2).reshape(-1, 256)
    scales_NG = raw_NX[:, 192:208].view(torch.int8).float() * _half(raw_NX[:, 208:])
    out_NK.copy_(low | (high << 4)).sub_(32).view(-1, 16, 16).mul_(scales_NG[..., None])


# name -> numbers and bytes of a block, and how it is read
BLOCKS: dict[str, tuple[int, int, Callable[[Tensor, Tensor], None]]] = {
    "Q8_0": (32, 34, _q8_0), "Q4_0": (32, 18, _q4_0), "Q4_1": (32, 20, _q4_1), "Q5_0": (32, 22, _q5_0),
    "Q4_K": (256, 144, _q4_k), "Q5_K": (256, 176, _q5_k), "Q6_K": (256, 210, _q6_k),
}  # fmt: skip
READABLE = (*PLAIN, *BLOCKS)


def dequantise(kind: str, raw: Tensor, target: Tensor) -> bool:
    """Unpack bytes of the format `kind` into `target`, in the order of its axes, of any strides, dtype and device.

    `raw` is uint8, flat. A row of a block format is whole blocks. Returns whether every number is finite.
    """
    if target.ndim == 1:
        target = target[None]
    if target.ndim > 2 and target[0].numel() > CHUNK:
        parts = zip(raw.view(len(target), -1), target, strict=True)
        return all(dequantise(kind, part, one) for part, one in parts)
    finite = True
    each, step = target[0].numel(), max(1, CHUNK // target[0].numel())
    raw = raw.view(len(target), -1)
    scratch = torch.empty(min(step, len(target)) * each)
    for begin in range(0, len(target), step):
        rows = target[begin : begin + step]
        direct = rows.is_contiguous() and rows.dtype == torch.float32 and rows.device == raw.device
        out = rows.view(-1) if direct else scratch[: rows.numel()]
        _unpack(kind, raw[begin : begin + step].view(-1), out)
        finite = finite and _finite(out)
        if not direct:
            rows.copy_(out.view(rows.shape))
    return finite


def _unpack(kind: str, raw: Tensor, out: Tensor) -> None:
    if kind in PLAIN:
        out.copy_(raw.view(PLAIN[kind]))
        return
    numbers, size, read = BLOCKS[kind]
    read(raw.view(-1, size), out.view(-1, numbers))


def _finite(numbers: Tensor) -> bool:
    """One NaN or infinity spoils a sum; a sum of large numbers may be spoilt without one."""
    return bool(numbers.sum().isfinite()) or bool(numbers.isfinite().all())


def quantise(kind: str, numbers: Tensor) -> Tensor | None:
    """fp32 [.., K] -> bytes, flat, in F32, F16, BF16 or Q8_0 (K a multiple of 32); None where numbers overflow it."""
    if kind in PLAIN:
        stored = numbers.to(PLAIN[kind]).contiguous()
        return stored.view(torch.uint8).view(-1) if _finite(stored) else None
    assert kind == "Q8_0"
    block_NK = numbers.reshape(-1, 32)
    raw_NX = torch.empty(len(block_NK), 34, dtype=torch.uint8)
    for part_NK, part_NX in zip(block_NK.split(CHUNK // 32), raw_NX.split(CHUNK // 32), strict=True):
        scale_N1 = part_NK.abs().amax(dim=1, keepdim=True) / 127
        inverse_N1 = torch.where(scale_N1 == 0, 0, 1 / scale_N1)
        stored_N1 = scale_N1.half()
        if not _finite(stored_N1):
            return None
        scaled_NK = part_NK * inverse_N1
        size_NK = scaled_NK.abs()
        whole_NK = size_NK.floor()
        whole_NK += (2 * (size_NK - whole_NK)).floor()  # halves go away from zero
        part_NX[:, :2] = stored_N1.view(torch.uint8)
        part_NX[:, 2:] = whole_NK.copysign(scaled_NK).to(torch.int8).view(torch.uint8)
    return raw_NX.view(-1)


__all__ = ["READABLE", "dequantise", "quantise"]
