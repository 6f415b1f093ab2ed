"""Attention in its two forms: whole documents as training sees them, token by token over a cache as the engine does."""

from __future__ import annotations

import math

import pytest
import torch
from small import GQA, MLA, SHAPES, YARN, model_of, tokens_of

from mull.engine.cache import Group, Pool, Rows, Window
from mull.engine.pages import PAGE
from mull.model.config import ModelConfig
from mull.model.layers import (
    RMSNorm,
    Rotary,
    rotary_frequencies,
    rotary_magnitude,
    rotate,
    softmax_scale,
)
from mull.model.transformer import Transformer
from mull.ops.attention import Documents
from mull.ops.norm import rms_norm


def by_cache(model: Transformer, ids: list[int], pieces: list[int]) -> torch.Tensor:
    """Hidden states of `ids` fed in pieces through a cache."""
    pool = Pool(model.cfg, model.device, torch.float32)
    pool.reserve(9)
    pages = torch.tensor([5, 2, 8, 1])
    states, begin = [], 0
    for size in pieces:
        at = torch.arange(begin, begin + size)
        group = Group(slice(0, size), at[None], len(pages) * PAGE, pool.pieces(pages[None]))
        places = pages[at // PAGE] * PAGE + at % PAGE
        window = Window(pool, Rows(pool), [group], places, places[:0])
        with torch.inference_mode():
            states.append(model.extend(torch.tensor(ids[begin : begin + size]), at, window))
        begin += size
    assert begin == len(ids)
    return torch.cat(states)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("pieces", [[1] * 12, [12], [5, 1, 1, 5]], ids=["one by one", "at once", "in pieces"])
def test_the_cached_form_equals_whole_documents(name: str, pieces: list[int]) -> None:
    """For MLA this is absorbed against naive: the two share no line between the projections and the output."""
    model = model_of(SHAPES[name])
    ids = tokens_of(12)
    with torch.inference_mode():
        whole = model(torch.tensor(ids), Documents([12]))
    torch.testing.assert_close(by_cache(model, ids, pieces), whole, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("name", ["mla", "llama", "moe, yarn"])
def test_only_distances_matter_to_rotary_positions(name: str) -> None:
    """Shifting all positions of a document by the same number changes nothing."""
    model = model_of(SHAPES[name])
    tokens, documents = torch.tensor(tokens_of(20)), Documents([20])
    with torch.inference_mode():
        before = model(tokens, documents)
        documents.positions_T = documents.positions_T + 37
        after = model(tokens, documents)
        documents.positions_T = documents.positions_T * 2
        stretched = model(tokens, documents)
    torch.testing.assert_close(before, after, atol=1e-4, rtol=1e-4)
    assert (before - stretched).abs().max() > 1e-3


@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize("offset", [0, 1, 2])
def test_rotation_is_the_written_formula(interleaved: bool, offset: int) -> None:
    """Both layouts, at slices that hold whole pairs and at one that does not."""
    cfg = MLA.model_copy(update={"rope_dim": 8})
    cos, sin = Rotary(cfg)(torch.arange(6), torch.float32)
    x = torch.randn(6, 3, 8 + offset, generator=torch.Generator().manual_seed(0))[..., offset:].requires_grad_()
    out = rotate(x, cos, sin, interleaved)
    for t in range(6):
        for pair in range(4):
            angle = t * 10000 ** (-2 * pair / 8)
            a, b = (2 * pair, 2 * pair + 1) if interleaved else (pair, pair + 4)
            want_a = x[t, :, a] * math.cos(angle) - x[t, :, b] * math.sin(angle)
            want_b = x[t, :, b] * math.cos(angle) + x[t, :, a] * math.sin(angle)
            torch.testing.assert_close(out[t, :, a], want_a, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(out[t, :, b], want_b, atol=1e-5, rtol=1e-5)
    weight = torch.randn(out.shape)
    (back,) = torch.autograd.grad((out * weight).sum(), x)
    # a rotation's transpose is the rotation back
    torch.testing.assert_close(back, rotate(weight, cos, -sin, interleaved), atol=1e-5, rtol=1e-5)


def test_yarn_keeps_fast_pairs_and_slows_slow_ones() -> None:
    plain = rotary_frequencies(MLA.model_copy(update={"rope_dim": 64}))
    long = rotary_frequencies(
        MLA.model_copy(
            update={"rope_dim": 64, "yarn": YARN.model_copy(update={"factor": 40.0, "original_length": 4096})}
        )
    )
    ratio = long / plain
    assert ratio[0] == pytest.approx(1.0)
    assert ratio[-1] == pytest.approx(1 / 40)
    assert bool((ratio.diff() <= 1e-7).all())


def test_yarn_scales_are_the_published_numbers() -> None:
    """DeepSeek-V3: head 192, factor 40, both mscales 1: softmax scale times 1.3689^2, cos and sin left alone."""
    published = YARN.model_copy(update={"factor": 40.0, "original_length": 4096})
    cfg = ModelConfig(kv_rank=512, nope_dim=128, rope_dim=64, yarn=published)
    assert softmax_scale(cfg) == pytest.approx(192**-0.5 * 1.3689**2, rel=1e-4)
    assert rotary_magnitude(cfg.yarn) == 1.0
    bare = published.model_copy(update={"mscale": 0.0, "mscale_all_dim": 0.0})
    assert rotary_magnitude(bare) == pytest.approx(0.1 * math.log(40) + 1)
    assert softmax_scale(cfg.model_copy(update={"yarn": bare})) == pytest.approx(192**-0.5)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e4])
def test_rms_norm_is_torchs_own_and_so_is_its_gradient(scale: float) -> None:
    """In double precision, so that a wrong term cannot hide in rounding; tiny inputs make eps matter."""
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(7, 12, generator=generator, dtype=torch.float64) * scale).requires_grad_()
    weight = torch.rand(12, generator=generator, dtype=torch.float64).requires_grad_()
    up = torch.randn(7, 12, generator=generator, dtype=torch.float64)
    ours, theirs = rms_norm(x, weight, 1e-6), torch.nn.functional.rms_norm(x, (12,), weight, 1e-6)
    torch.testing.assert_close(ours, theirs)
    for mine, right in zip(
        torch.autograd.grad((ours * up).sum(), (x, weight)), torch.autograd.grad((theirs * up).sum(), (x, weight)),
        strict=True,
    ):  # fmt: skip
        torch.testing.assert_close(mine, right, rtol=1e-9, atol=0)


def test_rms_norm_of_zeros_is_zero_with_a_finite_gradient() -> None:
    norm, x = RMSNorm(8), torch.zeros(3, 8, requires_grad=True)
    out = norm(x)
    out.sum().backward()
    assert bool((out == 0).all())
    assert x.grad is not None
    assert bool(x.grad.isfinite().all())


def test_grouped_queries_share_keys() -> None:
    """With the key heads copied out, grouped-query attention is ordinary attention of the same numbers."""
    grouped = model_of(GQA)
    full = model_of(GQA.model_copy(update={"kv_heads": 4}))
    state = grouped.state_dict()
    for name, tensor in list(state.items()):
        if name.endswith(("attention.k.weight", "attention.v.weight")):
            state[name] = tensor.view(2, 16, 32).repeat_interleave(2, dim=0).reshape(64, 32)
    full.load_state_dict(state)
    tokens, documents = torch.tensor(tokens_of(25)), Documents([10, 15])
    with torch.inference_mode():
        torch.testing.assert_close(full(tokens, documents), grouped(tokens, documents), atol=1e-5, rtol=1e-5)
