"""x W^T by oneDNN against torch's own, and where it is not used."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from mull.ops.linear import SMALL, linear

SHAPES = [(256, 512), (640, 256), (128, 1031)]


def inputs(k: int, n: int, rows: int = 300) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(k)
    x, weight, bias = (torch.randn(*shape, generator=generator) for shape in ((rows, k), (n, k), (n,)))
    return x, weight, bias


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_is_torchs_linear(shape: tuple[int, int]) -> None:
    x, weight, bias = inputs(*shape)
    assert weight.numel() >= SMALL
    with torch.inference_mode():
        for rows in (1, 2, 16, 300):
            for given in ((weight,), (weight, bias)):
                torch.testing.assert_close(linear(x[:rows], *given), F.linear(x[:rows], *given), rtol=1e-4, atol=1e-4)
        wide = torch.cat((x, x), dim=1)[:, 7 : 7 + shape[0]]
        assert torch.equal(linear(wide, weight), linear(wide.contiguous(), weight))


def test_training_and_the_exact_mode_are_torchs_to_the_bit() -> None:
    x, weight, bias = inputs(640, 256)
    assert torch.equal(linear(x, weight, bias), F.linear(x, weight, bias))
    with torch.inference_mode():
        assert torch.equal(linear(x, weight, bias, plain=True), F.linear(x, weight, bias))
        assert torch.equal(linear(x, weight[:9]), F.linear(x, weight[:9]))
        assert linear(x.double(), weight.double()).dtype == torch.float64
