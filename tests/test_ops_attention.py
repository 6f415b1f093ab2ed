"""Packed attention against its plain twin, and what documents may know of one another: nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mull.ops.attention import LONGEST, Documents, attend, attend_fused, attend_plain, attend_window

Attend = Callable[..., torch.Tensor]
lengths = st.lists(st.integers(1, 40), min_size=1, max_size=12)


def qkv(tokens: int, heads: int, kv_heads: int, qk: int, v: int, dtype: torch.dtype = torch.float64):
    generator = torch.Generator().manual_seed(tokens)
    shapes = (tokens, heads, qk), (tokens, kv_heads, qk), (tokens, kv_heads, v)
    return [torch.randn(s, generator=generator, dtype=dtype).requires_grad_() for s in shapes]


@settings(deadline=None, max_examples=40)
@given(lengths, st.floats(0, 0.9))
def test_groups_hold_every_token_once(sizes: list[int], waste: float) -> None:
    documents = Documents(sizes, waste=waste)
    assert documents.tokens == sum(sizes)
    assert documents.positions_T.tolist() == [i for n in sizes for i in range(n)]
    assert documents.index_T.tolist() == [k for k, n in enumerate(sizes) for _ in range(n)]
    assert sum(g for g, _ in documents.shapes) == len(sizes)
    assert documents.index_P[documents.home_T].tolist() == list(range(sum(sizes)))
    assert len(documents.index_P) <= sum(sizes) / (1 - waste) + 1e-6  # padding stays within what was allowed


@settings(deadline=None, max_examples=15)
@given(
    lengths, st.sampled_from([(2, 2, 8, 8), (4, 2, 8, 8), (4, 1, 6, 6), (2, 2, 8, 5), (2, 2, 6, 10)]),
    st.floats(0, 0.6), st.sampled_from([0, 1, 2, 7, 39]),
)  # fmt: skip
@pytest.mark.parametrize("form", [attend, attend_fused])
def test_attention_equals_its_plain_twin(
    form: Attend, sizes: list[int], shape: tuple[int, int, int, int], waste: float, reach: int
) -> None:
    """Forward and all three gradients, in double precision, whatever the lengths, the grouping and the window."""
    inputs, documents = qkv(sum(sizes), *shape), Documents(sizes, waste=waste)
    fast = form(*inputs, documents, 0.3, reach=reach)
    plain = attend_plain(*inputs, documents, 0.3, reach)
    torch.testing.assert_close(fast, plain, atol=1e-6, rtol=1e-6)  # the twin's softmax is in fp32
    up = torch.randn(fast.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for a, b in zip(
        torch.autograd.grad((fast * up).sum(), inputs), torch.autograd.grad((plain * up).sum(), inputs), strict=True
    ):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("reach", [0, 64, 70])
@pytest.mark.parametrize("heads", [(2, 2), (6, 2)])
def test_documents_of_several_blocks(heads: tuple[int, int], reach: int) -> None:
    """Lengths around multiples of the block of queries, padded groups among them; keys shared by heads, and not."""
    sizes = [150, 3, 64, 65, 63, 130, 128, 1, 149, 129]
    inputs, documents = qkv(sum(sizes), *heads, 8, 5), Documents(sizes, waste=0.2)
    results = []
    for form in (attend, attend_plain):
        out = form(*inputs, documents, 0.3, reach=reach)
        results.append([out, *torch.autograd.grad(out.sin().sum(), inputs)])
    for fast, plain in zip(*results, strict=True):
        torch.testing.assert_close(fast, plain, atol=1e-5, rtol=1e-5)


def test_attention_is_a_slope() -> None:
    inputs, documents = qkv(75, 2, 1, 3, 2), Documents([70, 5], waste=0.9)
    assert torch.autograd.gradcheck(
        lambda *qkv: attend(*qkv, documents, 0.3), inputs, fast_mode=True, nondet_tol=0.0
    )


def test_long_documents_take_the_fused_form() -> None:
    sizes = [LONGEST + 1, 7]
    inputs, documents = qkv(sum(sizes), 1, 1, 2, 2), Documents(sizes)
    assert torch.equal(attend(*inputs, documents, 0.3), attend_fused(*inputs, documents, 0.3))
    assert not documents.layouts


@settings(deadline=None, max_examples=20)
@given(st.lists(st.integers(1, 30), min_size=2, max_size=8), st.data())
def test_a_document_never_sees_another(sizes: list[int], data: st.DataObject) -> None:
    """New contents for one document leave the others' outputs and gradients equal to the bit."""
    changed = data.draw(st.integers(0, len(sizes) - 1))
    documents = Documents(sizes)
    here = documents.index_T == changed

    def outputs(shift: float) -> list[torch.Tensor]:
        inputs = qkv(sum(sizes), 2, 2, 8, 8, torch.float32)
        with torch.no_grad():
            for x in inputs:
                x[here] += shift
        out = attend(*inputs, documents, 0.3)
        return [out.detach(), *torch.autograd.grad((out**2).sum(), inputs)]

    for before, after in zip(outputs(0.0), outputs(1.0), strict=True):
        assert torch.equal(before[~here], after[~here])


@settings(deadline=None, max_examples=20)
@given(st.integers(2, 30), st.data())
def test_no_token_sees_a_later_one(length: int, data: st.DataObject) -> None:
    at = data.draw(st.integers(1, length - 1))
    q, k, v = qkv(length, 2, 1, 8, 8, torch.float32)
    documents = Documents([length])
    before = attend(q, k, v, documents, 0.3)
    with torch.no_grad():
        for x in (q, k, v):
            x[at:] += 1.0
    after = attend(q, k, v, documents, 0.3)
    assert torch.equal(before[:at], after[:at])
    assert not torch.equal(before[at:], after[at:])


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (4, 1), (32, 1)])
@pytest.mark.parametrize("new", [1, 3, 20])
def test_window_attention_is_masked_softmax(heads: int, kv_heads: int, new: int) -> None:
    """Both orders of the product: few queries per key, and many."""
    generator = torch.Generator().manual_seed(0)
    rows, seen = 3, 24
    q = torch.randn(rows, heads, new, 8, generator=generator)
    k = torch.randn(rows, kv_heads, seen, 8, generator=generator)
    v = torch.randn(rows, kv_heads, seen, 6, generator=generator)
    visible = torch.rand(rows, 1, new, seen, generator=generator) < 0.5
    visible[..., 0] = True
    want = torch.nn.functional.scaled_dot_product_attention(
        q, k.repeat_interleave(heads // kv_heads, 1), v.repeat_interleave(heads // kv_heads, 1), visible, scale=0.3
    )
    torch.testing.assert_close(attend_window(q, k, v, ~visible, 0.3), want, atol=1e-5, rtol=1e-5)


def test_what_is_hidden_in_a_window_cannot_leak() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 2, n, 8, generator=generator) for n in (1, 10, 10))
    visible = torch.arange(10).expand(2, 1, 1, 10) < 7
    before = attend_window(q, k, v, ~visible, 0.3)
    k[:, :, 7:], v[:, :, 7:] = 1e6, 1e6
    assert torch.equal(before, attend_window(q, k, v, ~visible, 0.3))
