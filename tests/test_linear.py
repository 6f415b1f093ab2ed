"""x W^T by oneDNN against torch's own, and what exactness asks of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F

from mull.ops.linear import linear

SHAPES = [(256, 128), (128, 400), (640, 256), (37, 1031)]


@pytest.fixture(autouse=True, params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def inputs(k: int, n: int, rows: int = 300) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(k)
    return tuple(torch.randn(*shape, generator=generator) for shape in ((rows, k), (n, k), (n,)))  # type: ignore[return-value]


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_is_torchs_linear_and_so_are_its_gradients(shape: tuple[int, int], biased: bool) -> None:
    given = inputs(*shape)[: 3 if biased else 2]
    both = []
    for function in (linear, F.linear):
        leaves = [x.clone().requires_grad_() for x in given]
        out = function(*leaves)
        pull = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
        both.append([out, *torch.autograd.grad((out * pull).sum(), leaves)])
    for mine, plain in zip(*both, strict=True):
        torch.testing.assert_close(mine, plain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_row_has_the_same_bits_in_any_number_of_two_and_more(shape: tuple[int, int]) -> None:
    x, weight, bias = inputs(*shape)
    whole = linear(x.requires_grad_(), weight, bias)
    with torch.inference_mode():
        for rows in (2, 3, 5, 8, 9, 17, 64, 131, 299):
            assert torch.equal(linear(x[1 : 1 + rows], weight, bias), whole[1 : 1 + rows]), rows


def test_strided_inputs_and_what_oneDNN_is_not_for() -> None:
    x, weight, _ = inputs(128, 400)
    wide = torch.cat((x, x), dim=1)[:, 64:192]
    assert torch.equal(linear(wide, weight), linear(wide.contiguous(), weight))
    assert torch.equal(linear(x[0], weight), F.linear(x[0], weight))
    assert linear(x.double(), weight.double()).dtype == torch.float64
    assert torch.equal(linear(x, weight[:9]), F.linear(x, weight[:9]))
    turned = weight.t().contiguous().t()
    torch.testing.assert_close(linear(x, turned), linear(x, weight))
