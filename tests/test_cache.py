"""The cache by itself: what was written at a place is read there, in pages and in rows, whatever grows and moves."""

from __future__ import annotations

import pytest
import torch
from small import GQA, MLA

from mull.engine.cache import Group, Pool, Rows, Window, entry_shapes, in_blocks, token_bytes
from mull.engine.pages import PAGE
from mull.model.config import ModelConfig
from mull.ops.attention import attend_window, unseen_of
from mull.ops.exact import KEYS, attend_window_exact

CPU = torch.device("cpu")
SHAPES = pytest.mark.parametrize("cfg", [MLA, GQA], ids=["latent", "keys and values"])
TABLE = [[3, 7, 1, 4], [6, 2, 5, 8]]  # pages of two sequences


def entries(cfg: ModelConfig, tokens: int, seed: int = 0) -> tuple[torch.Tensor, ...]:
    g = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(tokens, *shape, generator=g) for shape in entry_shapes(cfg))


def places(row: int, positions: range) -> list[int]:
    return [TABLE[row][p // PAGE] * PAGE + p % PAGE for p in positions]


def write(pool: Pool, rows: Rows, new: tuple[torch.Tensor, ...], at: list[int], seats: list[int]) -> None:
    """Through a window, as a forward pass does; nobody attends."""
    group = Group(slice(0, 1), torch.zeros(1, 1, dtype=torch.long), KEYS, pool.pieces(torch.tensor([TABLE[0]])))
    window = Window(pool, rows, [group], torch.tensor(at), torch.tensor(seats, dtype=torch.long))
    heads, width = 2 * new[0].shape[1], new[0].shape[2]
    for layer in range(pool.layers):
        window.attend(layer, torch.zeros(len(at), heads, width), new, 1.0, False, values=4)


@SHAPES
def test_what_is_written_in_pages_is_gathered_in_order(cfg: ModelConfig) -> None:
    pool = Pool(cfg, CPU, torch.float32)
    pool.reserve(9)
    new = entries(cfg, 40)
    write(pool, Rows(pool), new, [*places(0, range(25)), *places(1, range(15))], [])
    pool.reserve(20)  # keeps it
    for layer in range(cfg.layers):
        for tensor, want in zip(pool.gather(layer, pool.pieces(torch.tensor(TABLE)), 2), new, strict=True):
            assert tensor.shape == (2, want.shape[1], KEYS, want.shape[2])
            assert torch.equal(tensor[0, :, :25], want[:25].transpose(0, 1))
            assert torch.equal(tensor[1, :, :15], want[25:].transpose(0, 1))
            assert not tensor[0, :, 25:].any()


@SHAPES
def test_rows_are_copies_of_pages(cfg: ModelConfig) -> None:
    """Filled from them, written beside them, moved and grown: always the same numbers."""
    pool = Pool(cfg, CPU, torch.float32)
    pool.reserve(9)
    rows = Rows(pool)
    rows.reserve(2, 30)
    assert (rows.rows, rows.length) == (2, KEYS)
    old = entries(cfg, 20)
    write(pool, rows, old, places(1, range(20)), [])
    rows.fill(0, TABLE[1][:2])
    new = entries(cfg, 2, seed=1)
    write(pool, rows, new, places(1, range(20, 22)), [20, 21])  # row 0
    rows.move(0, 1, 22)
    rows.reserve(3, KEYS + 1)
    assert (rows.rows, rows.length) == (3, 2 * KEYS)
    for layer in range(cfg.layers):
        gathered = pool.gather(layer, pool.pieces(torch.tensor([TABLE[1]])), 1)
        for row, pages, first, last in zip(rows.store[layer], gathered, old, new, strict=True):
            assert torch.equal(pages[0, :, :22], torch.cat((first, last)).transpose(0, 1))
            for at in (0, 1):
                assert torch.equal(row[at, :, :22], pages[0, :, :22])


def test_masks_hide_what_comes_later_and_what_is_out_of_reach() -> None:
    group = Group(slice(0, 2), torch.tensor([[2], [5]]), 8)
    assert (~group.mask(0))[:, 0, 0].tolist() == [[True] * 3 + [False] * 5, [True] * 6 + [False] * 2]
    assert (~group.mask(2))[:, 0, 0].tolist() == [[p in (1, 2) for p in range(8)], [p in (4, 5) for p in range(8)]]


@pytest.mark.parametrize("begin", [0, 37, 130])
@pytest.mark.parametrize("reach", [0, 50])
def test_queries_in_blocks_get_what_they_get_at_once(begin: int, reach: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In exact mode to the bit: keys that nobody sees add nothing."""
    g = torch.Generator().manual_seed(0)
    new, keys = 150, 320
    q, k, v = (torch.randn(1, h, t, 16, generator=g) for h, t in ((4, new), (2, keys), (2, keys)))
    unseen = unseen_of(torch.arange(begin, begin + new), keys, reach)[None, None]
    for attend in (attend_window, attend_window_exact):
        whole = attend(q, k, v, unseen, 0.25)
        monkeypatch.setattr("mull.engine.cache.SCORES", 1)
        parts = in_blocks(attend, q, k, v, unseen, 0.25)
        monkeypatch.undo()
        if attend is attend_window_exact:
            assert torch.equal(parts, whole)
        torch.testing.assert_close(parts, whole, atol=1e-6, rtol=1e-5)


def test_bytes_of_a_token() -> None:
    assert token_bytes(MLA, torch.float32) == MLA.layers * (16 + 8) * 4
    assert token_bytes(GQA, torch.bfloat16) == GQA.layers * 2 * 2 * 16 * 2
