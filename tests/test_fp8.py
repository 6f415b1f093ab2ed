"""FP8 blocks: every code, every ragged edge, the error of a round trip, and when a round trip has none."""

from __future__ import annotations

import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mull.ops.fp8 import BLOCK, block_scales, dequantise, grid, numbers, quantise

sizes = st.tuples(st.integers(1, 300), st.integers(1, 300))
blocks = st.sampled_from([(128, 128), (1, 32), (64, 128), (7, 5)])
seeds = st.integers(0, 2**32 - 1)


def drawn(seed: int, shape: tuple[int, ...]) -> Tensor:
    """Normal numbers whose size differs from place to place by many orders of magnitude; some are zero."""
    generator = torch.Generator().manual_seed(seed)
    size = torch.randint(-20, 20, shape, generator=generator).float().exp2()
    some = torch.rand(shape, generator=generator) > 0.05
    return torch.randn(shape, generator=generator) * size * some


def plain(codes: Tensor, scale: Tensor, block: tuple[int, int]) -> Tensor:
    """dequantise, said in one line."""
    spread = scale.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)
    return codes.float() * spread[: codes.shape[0], : codes.shape[1]]


def plain_quantise(weight: Tensor, block: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """quantise, block by block."""
    scale = torch.empty(grid(tuple(weight.shape), block))
    codes = torch.empty(weight.shape, dtype=torch.float8_e4m3fn)
    for row in range(scale.shape[0]):
        for column in range(scale.shape[1]):
            here = (slice(row * block[0], (row + 1) * block[0]), slice(column * block[1], (column + 1) * block[1]))
            largest = weight[here].abs().max()
            scale[row, column] = largest / 448 if largest else 1.0
            codes[here] = (weight[here] / scale[row, column]).to(torch.float8_e4m3fn)
    return codes, scale


def test_every_code_is_the_number_that_torch_takes_it_for() -> None:
    codes = torch.arange(256, dtype=torch.uint8)
    for some in (codes, codes[(codes & 0x7F) != 0x7F]):  # with NaN, and by the fast way
        assert torch.equal(numbers(some.view(torch.float8_e4m3fn)).nan_to_num(999.0),
                           some.view(torch.float8_e4m3fn).float().nan_to_num(999.0))  # fmt: skip
    assert numbers(torch.empty(0, dtype=torch.float8_e4m3fn)).shape == (0,)


@given(seeds, sizes, blocks)
def test_both_directions_equal_their_plain_twins(seed: int, shape: tuple[int, int], block: tuple[int, int]) -> None:
    weight = drawn(seed, shape)
    codes, scale = quantise(weight, block)
    right_codes, right_scale = plain_quantise(weight, block)
    assert torch.equal(scale, right_scale)
    assert torch.equal(scale, block_scales(weight, block))
    assert torch.equal(codes.view(torch.uint8), right_codes.view(torch.uint8))
    assert torch.equal(dequantise(codes, scale, torch.empty(shape), block), plain(codes, scale, block))


@given(seeds, sizes)
def test_the_error_is_a_sixteenth_at_most(seed: int, shape: tuple[int, int]) -> None:
    weight = drawn(seed, shape)
    codes, scale = quantise(weight)
    back = dequantise(codes, scale, torch.empty(shape))
    spread = plain(torch.ones(shape).to(torch.float8_e4m3fn), scale, BLOCK)
    bound = torch.maximum(weight.abs() / 16, spread / 1024) * (1 + 1e-6)
    assert bool(((back - weight).abs() <= bound).all())
    worst = ((back - weight).abs() / bound.clamp(min=1e-30)).max()
    assert bool(worst > 0.5) or weight.numel() < 100  # the bound is no exaggeration


@given(seeds, sizes)
def test_what_was_dequantised_gives_the_same_codes(seed: int, shape: tuple[int, int]) -> None:
    """And the same scales but for their last bit."""
    codes, scale = quantise(drawn(seed, shape))
    again, again_scale = quantise(dequantise(codes, scale, torch.empty(shape)))
    assert torch.equal(again.view(torch.uint8), codes.view(torch.uint8))
    assert bool(((scale.view(torch.int32) - again_scale.view(torch.int32)).abs() <= 1).all())


@given(st.integers(1, 2**24 - 1), st.integers(-90, 90))
def test_which_scales_survive_a_round_trip(mantissa: int, exponent: int) -> None:
    """fl(fl(448 s) / 448) = s unless 7 s lies halfway between two numbers: a mantissa of eight times anything plus
    four, of at least 8/7. Powers of two, as E8M0 has them, all survive."""
    scale = torch.tensor([[float(mantissa) * 2.0**exponent]])
    digits = int(scale.view(torch.int32)) & 0x7FFFFF  # behind the leading 1
    again = block_scales(torch.full((1, 1), 448.0) * scale)
    halfway = digits % 8 == 4 and (digits | 0x800000) / 0x800000 >= 8 / 7
    assert bool(again == scale) is not halfway
    power = torch.tensor([[2.0**exponent]])
    assert torch.equal(block_scales(power * 448), power)


def test_extremes() -> None:
    """Blocks of zeros, of fp32's smallest and of its largest numbers: nothing becomes NaN or infinite."""
    for value in (0.0, 1e-45, 1e-38, 3.4e38):
        weight = torch.full((130, 3), value)
        codes, scale = quantise(weight)
        back = dequantise(codes, scale, torch.empty(weight.shape))
        assert bool(back.isfinite().all())
        assert bool(((back - weight).abs() <= value / 16 + 1e-38).all())
    broken = quantise(torch.full((1, 1), float("nan")))
    assert bool(dequantise(*broken, torch.empty(1, 1)).isnan())


def test_transformers_dequantises_to_the_same() -> None:
    """Its helper is the oracle where it works: whole blocks."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers.integrations.finegrained_fp8 import Fp8Dequantize
    codes, scale = quantise(drawn(1, (256, 384)))
    theirs = Fp8Dequantize._dequantize_one(None, codes, scale)
    assert torch.equal(theirs.float(), dequantise(codes, scale, torch.empty(256, 384)).to(theirs.dtype).float())


def test_deepseeks_ragged_grid() -> None:
    """kv_a_proj_with_mqa of DeepSeek-V3 has 512 + 64 rows: four blocks and a half."""
    assert grid((576, 7168)) == (5, 56)
    codes, scale = quantise(drawn(2, (576, 7168)))
    assert torch.equal(dequantise(codes, scale, torch.empty(576, 7168)), plain(codes, scale, BLOCK))
    with pytest.raises(RuntimeError):
        dequantise(codes, scale[:, :55], torch.empty(576, 7168))
