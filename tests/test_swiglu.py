"""SwiGLU and sigmoid against torch's own, gradients by finite differences, and inputs at the ends of the scale."""

from __future__ import annotations

import pytest
import torch

from mull.ops.swiglu import sigmoid, swiglu, swiglu_plain


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).requires_grad_()


@pytest.mark.parametrize("weighted", [False, True])
def test_swiglu_equals_its_plain_twin(weighted: bool) -> None:
    inputs = [drawn(37, 26), *([drawn(37, 1, seed=1)] if weighted else [])]
    fast, plain = swiglu(*inputs), swiglu_plain(*inputs)
    torch.testing.assert_close(fast, plain)
    up = drawn(37, 13, seed=2).detach()
    for a, b in zip(
        torch.autograd.grad((fast * up).sum(), inputs), torch.autograd.grad((plain * up).sum(), inputs), strict=True
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("weighted", [False, True])
def test_swiglus_gradient_is_a_slope(weighted: bool) -> None:
    assert torch.autograd.gradcheck(swiglu, [drawn(5, 6), *([drawn(5, 1, seed=1)] if weighted else [])])


def test_sigmoid_and_its_gradient() -> None:
    x = drawn(50)
    torch.testing.assert_close(sigmoid(x), x.sigmoid())
    assert torch.autograd.gradcheck(sigmoid, [x])


def test_large_inputs_saturate() -> None:
    """exp of them is infinite; neither results nor gradients are."""
    x = torch.tensor([-300.0, -90.0, 0.0, 90.0, 300.0], requires_grad=True)
    y = sigmoid(x)
    assert y.tolist() == pytest.approx([0.0, 0.0, 0.5, 1.0, 1.0])
    both = torch.cat((x, torch.ones_like(x)))[None]
    hidden = swiglu(both)
    assert hidden[0].tolist() == pytest.approx([0.0, 0.0, 0.0, 90.0, 300.0])
    (grad,) = torch.autograd.grad(y.sum() + hidden.sum(), x)
    assert grad.tolist() == pytest.approx([0.0, 0.0, 0.75, 1.0, 1.0])
