"""The cache by itself: growing keeps, copying copies, windows see what is theirs."""

from __future__ import annotations

import pytest
import torch
from small import GQA, MLA

from mull.engine.cache import Cache, SlotWindow
from mull.ops.exact import KEYS, whole


def filled(cfg, rows: int = 3, length: int = 5) -> tuple[Cache, list[torch.Tensor]]:
    cache = Cache(cfg, torch.device("cpu"), torch.float32)
    cache.reserve(rows, length)
    window = SlotWindow(cache, 0, torch.arange(length).expand(rows, -1), whole(length))
    g = torch.Generator().manual_seed(0)
    new = [torch.randn(rows, length, *shape, generator=g) for shape in cache.shapes]
    for layer in range(cfg.layers):
        window.extend(layer, *new)
    return cache, new


@pytest.mark.parametrize("cfg", [MLA, GQA], ids=["latent", "keys and values"])
def test_what_is_stored_survives_growth(cfg) -> None:
    cache, new = filled(cfg)
    cache.reserve(2, 3)
    assert (cache.rows, cache.length) == (3, KEYS)
    cache.reserve(7, KEYS + 8)
    assert (cache.rows, cache.length) == (7, 2 * KEYS)
    for layer in cache.store:
        for stored, want in zip(layer, new, strict=True):
            assert torch.equal(stored[:3, :, :5], want.transpose(1, 2))
            assert not bool(stored[3:].any())
            assert not bool(stored[:, :, 5:].any())


@pytest.mark.parametrize("cfg", [MLA, GQA], ids=["latent", "keys and values"])
def test_copying_reads_before_it_writes(cfg) -> None:
    """Rows may be source and target at once, as when a prompt is spread over the rows behind it."""
    cache, new = filled(cfg)
    cache.copy(torch.tensor([0, 0, 1]), torch.tensor([0, 1, 2]), 4)
    for layer in cache.store:
        for stored, was in zip(layer, new, strict=True):
            assert torch.equal(stored[1, :, :4], was[0, :4].transpose(0, 1))
            assert torch.equal(stored[2, :, :4], was[1, :4].transpose(0, 1))
            assert torch.equal(stored[2, :, 4], was[2, 4])  # beyond the length nothing moved


def test_a_window_writes_at_its_positions_and_sees_up_to_them() -> None:
    cache, (old,) = filled(MLA)
    window = SlotWindow(cache, 1, torch.tensor([[2], [5]]), 8)
    (seen,) = window.extend(0, torch.full((2, 1, *cache.shapes[0]), 9.0))
    assert seen.shape[:3] == (2, 1, 8)
    assert bool((seen[0, :, 2] == 9).all())
    assert bool((seen[1, :, 5] == 9).all())
    assert torch.equal(cache.store[0][0][0, :, :5], old[0].transpose(0, 1))
    assert torch.equal(cache.store[1][0][1, :, 2], old[1, 2])  # the other layer is untouched
    assert (~window.unseen(0))[:, 0, 0].tolist() == [[True] * 3 + [False] * 5, [True] * 6 + [False] * 2]


@pytest.mark.parametrize(("length", "want"), [(0, 0), (1, KEYS), (KEYS, KEYS), (KEYS + 1, 2 * KEYS)])
def test_rounding(length: int, want: int) -> None:
    assert whole(length) == want
