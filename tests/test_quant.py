"""Block formats: bit for bit what the gguf library reads and writes, wherever the numbers are put."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from gguf import quants
from hypothesis import given, settings
from hypothesis import strategies as st

from mull.ops import quant
from mull.ops.quant import BLOCKS, PLAIN, READABLE, dequantise, quantise


def blocks_of(kind: str, count: int, seed: int) -> np.ndarray:
    """Random blocks whose scales are ordinary numbers; everything else is any bits."""
    draw = np.random.default_rng(seed)
    _, size = gguf.GGML_QUANT_SIZES[Kind[kind]]
    if kind in PLAIN:
        return np.frombuffer(quants.quantize(draw.normal(size=(count, 32)).astype(np.float32), Kind[kind]), np.uint8)
    raw = draw.integers(0, 256, (count, size), dtype=np.uint8)
    for at in {"Q4_1": (0, 2), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,)}.get(kind, (0,)):
        raw[:, at : at + 2] = draw.normal(size=(count, 1)).astype(np.float16).view(np.uint8)
    return raw.reshape(-1)


def theirs(kind: str, raw: np.ndarray) -> torch.Tensor:
    _, size = gguf.GGML_QUANT_SIZES[Kind[kind]]
    return torch.from_numpy(quants.dequantize(raw.reshape(-1, size), Kind[kind]).copy()).view(-1)


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.equal(one.contiguous().view(torch.int32), other.contiguous().view(torch.int32))


@pytest.mark.parametrize("kind", READABLE)
def test_unpacked_as_the_library_does(kind: str) -> None:
    raw = blocks_of(kind, 96, seed=1)
    expected = theirs(kind, raw)
    target = torch.full_like(expected, 7)
    assert dequantise(kind, torch.from_numpy(raw), target)
    assert same_bits(target, expected)
    assert expected.std() > 0.1


@pytest.mark.parametrize("kind", READABLE)
def test_unpacked_in_chunks_into_any_strides(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several chunks, the last one short; rows in another order; a slice of a wider matrix; half precision."""
    raw = blocks_of(kind, 96, seed=2)
    expected = theirs(kind, raw).view(2, 3, -1, 256 if kind.endswith("K") else 32)
    monkeypatch.setattr(quant, "CHUNK", expected[0, 0].numel() + 1)
    for dtype in (torch.float32, torch.float16):
        whole = torch.zeros(3, 2, *expected.shape[2:], dtype=dtype)
        target = whole.transpose(0, 1)
        dequantise(kind, torch.from_numpy(raw), target)
        torch.testing.assert_close(target, expected.to(dtype), rtol=0, atol=0)
    wide = torch.zeros(2, 5, *expected.shape[2:])
    dequantise(kind, torch.from_numpy(raw), wide[:, 1:4])
    assert same_bits(wide[:, 1:4], expected)
    assert not wide[:, 0].any() and not wide[:, 4].any()


@pytest.mark.gpu
@pytest.mark.parametrize("kind", READABLE)
def test_unpacked_onto_a_gpu(kind: str) -> None:
    raw = blocks_of(kind, 96, seed=4)
    target = torch.zeros(3, 32, len(theirs(kind, raw)) // 96, device="cuda")
    assert dequantise(kind, torch.from_numpy(raw), target)
    assert same_bits(target.cpu().view(-1), theirs(kind, raw))


@pytest.mark.parametrize("kind", READABLE)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_says_when_a_number_is_not_finite(kind: str, bad: float) -> None:
    raw = blocks_of(kind, 64, seed=3).copy()
    size = {"F32": 4, "F16": 2, "BF16": 2}.get(kind) or BLOCKS[kind][1]
    dtype = PLAIN.get(kind, torch.float16)
    at = (len(raw) // size - 1) * size + (208 if kind == "Q6_K" else 0)
    bits = torch.tensor([bad]).to(dtype).view(torch.uint8)
    raw[at : at + len(bits)] = bits.numpy()
    if kind.endswith("_K"):  # a scale of zero would hide it
        raw[at - 16 if kind == "Q6_K" else at + 4] = 1
    target = torch.empty(64 * 32 if kind in PLAIN else 64 * BLOCKS[kind][0])
    assert not dequantise(kind, torch.from_numpy(raw), target)


def test_large_numbers_are_finite() -> None:
    """Their sum is not."""
    numbers = torch.full((4, 32), 3e38)
    assert dequantise("F32", numbers.view(torch.uint8).view(-1), torch.empty(4, 32))


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0"])
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), power=st.integers(-12, 4), rows=st.integers(1, 5))
def test_packed_as_the_library_does(kind: str, seed: int, power: int, rows: int) -> None:
    numbers = np.random.default_rng(seed).normal(size=(rows, 64)).astype(np.float32) * np.float32(10.0**power)
    numbers[0, :32] = np.random.default_rng(seed).choice([0, 0.5, -0.5, 127, -63.5, 2.5], 32)  # halves, and zeros
    numbers[-1, 32:] = 0
    ours = quantise(kind, torch.from_numpy(numbers))
    assert ours is not None
    with np.errstate(divide="ignore"):
        expected = quants.quantize(numbers, Kind[kind])
    assert ours.numpy().tobytes() == expected.tobytes()


def test_packed_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = torch.randn(37, 96, generator=torch.Generator().manual_seed(0))
    whole = quantise("Q8_0", numbers)
    monkeypatch.setattr(quant, "CHUNK", 32 * 10)
    parts = quantise("Q8_0", numbers)
    assert whole is not None and parts is not None and torch.equal(whole, parts)


@pytest.mark.parametrize(("kind", "largest"), [("F16", 7e4), ("Q8_0", 1e7), ("F32", float("inf"))])
def test_numbers_too_large_for_a_format_are_not_packed(kind: str, largest: float) -> None:
    numbers = torch.ones(2, 32)
    assert quantise(kind, numbers) is not None
    numbers[1, 5] = largest
    assert quantise(kind, numbers) is None
