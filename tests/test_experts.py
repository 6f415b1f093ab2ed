"""Grouped experts against the plain loop, forward and backward."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mull.ops.experts import routed, routed_plain


def inputs(tokens: int, experts: int, chosen: int, seed: int, dtype: torch.dtype):
    g = torch.Generator().manual_seed(seed)
    expert_TK = torch.stack([torch.randperm(experts, generator=g)[:chosen] for _ in range(tokens)])
    weight, x, gate_up, down = (
        torch.randn(s, generator=g, dtype=dtype).requires_grad_()
        for s in ((tokens, chosen), (tokens, 16), (experts, 24, 16), (experts, 16, 12))
    )
    return x, expert_TK, weight, gate_up, down


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 50), st.integers(1, 9), st.data(), st.integers(0, 1000))
def test_grouped_product_equals_the_loop(tokens: int, experts: int, data: st.DataObject, seed: int) -> None:
    """Any number of tokens and experts, experts without tokens included; outputs and all four gradients."""
    chosen = data.draw(st.integers(1, experts))
    x, expert_TK, weight, gate_up, down = inputs(tokens, experts, chosen, seed, torch.float32)
    learnt = (x, weight, gate_up, down)
    fast, plain = (f(x, expert_TK, weight, gate_up, down) for f in (routed, routed_plain))
    torch.testing.assert_close(fast, plain, atol=2e-4, rtol=2e-4)
    up = torch.randn(fast.shape, generator=torch.Generator().manual_seed(seed))
    for a, b in zip(
        torch.autograd.grad((fast * up).sum(), learnt), torch.autograd.grad((plain * up).sum(), learnt), strict=True
    ):
        torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-3)


def test_all_tokens_on_one_expert_leave_the_others_without_gradient() -> None:
    x, expert_TK, weight, gate_up, down = inputs(20, 4, 1, 0, torch.float32)
    routed(x, torch.full_like(expert_TK, 2), weight, gate_up, down).square().sum().backward()
    assert gate_up.grad is not None
    assert [bool(g.any()) for g in gate_up.grad] == [False, False, True, False]


@pytest.mark.parametrize("order", ["reversed", "shuffled"])
def test_a_tokens_result_does_not_depend_on_the_order_of_tokens(order: str) -> None:
    x, expert_TK, weight, gate_up, down = (t.detach() for t in inputs(64, 8, 2, 3, torch.float32))
    at = (
        torch.arange(64).flip(0)
        if order == "reversed"
        else torch.randperm(64, generator=torch.Generator().manual_seed(0))
    )
    straight = routed(x, expert_TK, weight, gate_up, down)
    other = routed(x[at], expert_TK[at], weight[at], gate_up, down)
    torch.testing.assert_close(other, straight[at], atol=1e-5, rtol=1e-5)
