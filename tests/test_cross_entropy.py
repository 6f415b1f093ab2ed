"""Head and cross-entropy in one against logits, loss and autograd one after another."""

from __future__ import annotations

import pytest
import torch

from mull.ops import cross_entropy as module
from mull.ops.cross_entropy import cross_entropy, cross_entropy_plain


def inputs(tokens: int, predicted: int, width: int, vocab: int, scale: float = 1.0):
    g = torch.Generator().manual_seed(0)
    hidden = (scale * torch.randn(tokens, width, generator=g, dtype=torch.float64)).requires_grad_()
    weight = torch.randn(vocab, width, generator=g, dtype=torch.float64).requires_grad_()
    at = torch.randperm(tokens, generator=g)[:predicted].sort().values
    return hidden, weight, at, torch.randint(vocab, (predicted,), generator=g)


@pytest.mark.parametrize("piece", [1, 700, 1 << 22])
@pytest.mark.parametrize("predicted", [1, 60, 90])
def test_equals_its_plain_twin(monkeypatch: pytest.MonkeyPatch, piece: int, predicted: int) -> None:
    """In one piece and in several, the last of which is smaller; positions that predict nothing have no gradient."""
    monkeypatch.setattr(module, "PIECE", piece)
    hidden, weight, at, target = inputs(90, predicted, 8, 31)
    results = []
    for form in (cross_entropy, cross_entropy_plain):
        total, right = form(hidden, weight, at, target)
        results.append([total, right, *torch.autograd.grad(0.3 * total, (hidden, weight))])
    for fast, plain in zip(*results, strict=True):
        torch.testing.assert_close(fast, plain)
    idle = torch.ones(90, dtype=torch.bool).index_fill_(0, at, False)
    assert not results[0][2][idle].any()


def test_large_logits_neither_overflow_nor_vanish() -> None:
    """exp of them would be infinite, and the likeliest token's probability is 1 to the last bit."""
    hidden, weight, at, target = inputs(20, 20, 8, 31, scale=300.0)
    total, right = cross_entropy(hidden, weight, at, target)
    want, count = cross_entropy_plain(hidden, weight, at, target)
    torch.testing.assert_close(total, want)
    assert int(right) == int(count)
    assert total.isfinite()


def test_it_counts_what_is_right() -> None:
    weight = torch.eye(5)
    total, right = cross_entropy(10 * weight, weight, torch.arange(5), torch.tensor([0, 1, 2, 4, 3]))
    assert int(right) == 3
    assert float(total) == pytest.approx(20, abs=0.01)


def test_what_is_no_number_stays_none() -> None:
    """The trainer stops at such a loss; it must not turn into one that looks fine."""
    hidden, weight, at, target = inputs(20, 20, 8, 31)
    with torch.no_grad():
        hidden[3, 2] = float("nan")
    assert cross_entropy(hidden, weight, at, target)[0].isnan()
