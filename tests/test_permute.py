"""Moves and their transposes: autograd's own backward of the same indexing is the judge."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mull.ops.attention import Documents
from mull.ops.permute import combine, dispatch, from_groups, inverse, to_groups


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 30), st.integers(1, 4), st.integers(0, 1000))
def test_dispatch_and_combine(tokens: int, chosen: int, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    order = torch.randperm(tokens * chosen, generator=g)
    back = inverse(order)
    assert torch.equal(order[back], torch.arange(tokens * chosen))
    x = torch.randn(tokens, 5, generator=g, dtype=torch.float64, requires_grad=True)
    y = torch.randn(tokens * chosen, 5, generator=g, dtype=torch.float64, requires_grad=True)
    out = dispatch(x, order, back, chosen)
    assert torch.equal(out, x.repeat_interleave(chosen, dim=0)[order])
    up = torch.randn(out.shape, generator=g, dtype=torch.float64)
    (ours,) = torch.autograd.grad((out * up).sum(), x)
    (theirs,) = torch.autograd.grad((x.repeat_interleave(chosen, dim=0)[order] * up).sum(), x)
    torch.testing.assert_close(ours, theirs)
    # <combine(y), x> = <y, dispatch(x)>: they are each other's transpose
    torch.testing.assert_close(
        (combine(y, order, back, chosen) * x).sum(), (y * dispatch(x, order, back, chosen)).sum()
    )
    (ours,) = torch.autograd.grad((combine(y, order, back, chosen) * x.detach()).sum(), y)
    torch.testing.assert_close(ours, dispatch(x.detach(), order, back, chosen))


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=8), st.floats(0, 0.8))
def test_groups_and_back(sizes: list[int], waste: float) -> None:
    documents = Documents(sizes, waste=waste)
    x = torch.randn(sum(sizes), 2, 3, dtype=torch.float64, requires_grad=True)
    laid = to_groups(x, documents.index_P, documents.home_T)
    assert torch.equal(from_groups(laid, documents.home_T), x)
    up = torch.randn(sum(sizes), 2, 3, dtype=torch.float64)
    (grad,) = torch.autograd.grad((from_groups(laid * 2, documents.home_T) * up).sum(), x)
    torch.testing.assert_close(grad, 2 * up)
