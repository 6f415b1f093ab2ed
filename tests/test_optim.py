"""Schedules, groups, and Muon against one matrix at a time."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from small import MOE, SHAPES, model_of
from torch import nn

from mull.train.optim import Muon, OptimConfig, learning_rate, optimisers, orthogonalise


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 400), st.floats(0, 0.5), st.floats(0, 0.5), st.floats(0, 1))
def test_warmup_stable_decay(steps: int, warmup: float, decay: float, final: float) -> None:
    cfg = OptimConfig(lr=0.1, warmup=warmup, decay=decay, final_lr=final)
    rates = [learning_rate(cfg, step, steps) for step in range(steps)]
    warm, down = round(warmup * steps), round(decay * steps)
    assert all(0 < rate <= 0.1 + 1e-12 for rate in rates)  # every step moves
    assert all(a <= b + 1e-12 for a, b in pairwise(rates[:warm]))
    assert all(rate == 0.1 for rate in rates[warm : steps - down])
    assert all(a >= b - 1e-12 for a, b in pairwise(rates[steps - down :]))
    if down and steps - down >= warm:
        step_down = 0.1 * (1 - final) / (down + 1)  # in equal steps, the last of which would reach final_lr
        assert rates[-1] == pytest.approx(0.1 * final + step_down)
    if warm:
        assert rates[0] == pytest.approx(0.1 / warm)
        assert rates[warm - 1] == pytest.approx(0.1)


@pytest.mark.parametrize("shape", [(8, 8), (6, 20), (20, 6), (3, 8, 12), (3, 12, 8)])
def test_orthogonalise_brings_singular_values_to_about_one(shape: tuple[int, ...]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    before, after = torch.linalg.svd(matrix), torch.linalg.svd(orthogonalise(matrix))
    assert float(after.S.min()) > 0.5
    assert float(after.S.max()) < 1.3
    # directions stay: U V^T is what Newton-Schulz approaches
    polar = torch.linalg.svd(matrix, full_matrices=False)
    nearest = polar.U @ polar.Vh
    assert float((orthogonalise(matrix) * nearest).sum()) / float(before.S.numel()) > 0.7


def orthogonalise_plain(matrix: torch.Tensor) -> torch.Tensor:
    """Newton-Schulz as it is written down, one matrix at a time, in double precision."""
    x = matrix.double() / matrix.double().norm()
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x - 4.7750 * gram @ x + 2.0315 * gram @ gram @ x
    return x


@pytest.mark.parametrize("shape", [(8, 8), (60, 64), (64, 60), (6, 12), (6, 13), (12, 6), (20, 128), (128, 20), (1, 9)])
def test_orthogonalise_equals_the_plain_iteration(shape: tuple[int, int]) -> None:
    """Squarish matrices and long ones, which are iterated another way; small singular values too."""
    matrix = torch.randn(4, *shape, generator=torch.Generator().manual_seed(0))
    matrix[1:3, :, 1:] *= 1e-3  # nearly of rank one
    got = orthogonalise(matrix)
    for one, plain in zip(got, map(orthogonalise_plain, matrix), strict=True):
        torch.testing.assert_close(one.double(), plain, atol=2e-3, rtol=0)
    assert torch.equal(got[0], orthogonalise(matrix[0]))
    assert torch.equal(got.reshape(2, 2, *shape), orthogonalise(matrix.reshape(2, 2, *shape)))


def test_muon_equals_one_matrix_at_a_time() -> None:
    """Three steps of stacks and single matrices, equal shapes among them, against torch's own 2-D Muon."""
    g = torch.Generator().manual_seed(0)
    cfg = OptimConfig(name="muon", lr=0.02, weight_decay=0.1, momentum=0.9)
    ours = [nn.Parameter(torch.randn(s, generator=g)) for s in ((5, 8, 12), (8, 12), (8, 12), (12, 8), (2, 12, 8))]
    singles = [nn.Parameter(m.clone()) for p in ours for m in p.detach().reshape(-1, *p.shape[-2:])]
    theirs = torch.optim.Muon(
        singles, lr=0.02, weight_decay=0.1, momentum=0.9, nesterov=True, adjust_lr_fn="match_rms_adamw"
    )
    muon = Muon(ours, cfg)
    for _ in range(3):
        grads = [torch.randn(p.shape, generator=g) for p in ours]
        for p, grad in zip(ours, grads, strict=True):
            p.grad = grad.clone()
        for p, grad in zip(singles, (m for x in grads for m in x.reshape(-1, *x.shape[-2:])), strict=True):
            p.grad = grad.clone()
        muon.step()
        theirs.step()
    got = torch.cat([p.detach().flatten() for p in ours])
    want = torch.cat([p.detach().flatten() for p in singles])
    # torch's runs Newton-Schulz in bf16, ours in fp32: the same direction within that rounding
    torch.testing.assert_close(got, want, atol=5e-3, rtol=0)
    alone = [nn.Parameter(m.detach().clone()) for m in ours[0]]
    batch, each = Muon([ours[0]], cfg), Muon(alone, cfg)
    assert ours[0].grad is not None
    for p, grad in zip(alone, ours[0].grad, strict=True):
        p.grad = grad.clone()
    batch.step()
    each.step()
    torch.testing.assert_close(ours[0].detach(), torch.stack([p.detach() for p in alone]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize("shape", ["moe", "moe, tied", "qwen2"])
def test_every_parameter_has_one_optimiser_and_only_matrices_in_blocks_decay(name: str, shape: str) -> None:
    model = model_of(SHAPES[shape])
    found = optimisers(model, OptimConfig(name=name))  # type: ignore[arg-type]
    names = {id(p): key for key, p in model.named_parameters()}
    seen: dict[str, float] = {}
    for optimiser in found:
        for group in optimiser.param_groups:
            for p in group["params"]:
                assert names[id(p)] not in seen
                seen[names[id(p)]] = group["weight_decay"]
    assert set(seen) == set(names.values())
    for key, decay in seen.items():
        free = "norm" in key or "embed.weight" in key or "head.weight" in key or "router" in key or "bias" in key
        assert decay == (0.0 if free else 0.1), key
    if name == "muon":
        muon = {names[id(p)] for p in found[1].param_groups[0]["params"]}
        assert muon == {key for key, decay in seen.items() if decay}


@pytest.mark.parametrize("key", ["lr", "momentum", "warmup", "clip"])
def test_impossible_settings_are_refused(key: str) -> None:
    with pytest.raises(ValidationError):
        OptimConfig(**{key: 0.0 if key in ("lr", "clip") else 1.5})


def test_router_bias_is_no_parameter() -> None:
    assert not any("router.bias" in name for name, _ in model_of(MOE).named_parameters())


@pytest.mark.parametrize("steps", [7, 100])
def test_the_last_step_is_one_short_of_the_final_rate(steps: int) -> None:
    cfg = OptimConfig(lr=0.1, warmup=0.3, decay=0.7, final_lr=0.5)
    rates = [learning_rate(cfg, step, steps) for step in range(steps)]
    assert 0.05 < rates[-1] == pytest.approx(0.05 + 0.05 / (round(0.7 * steps) + 1))


def test_warmup_and_decay_share_the_steps() -> None:
    OptimConfig(warmup=0.1, decay=0.9)
    with pytest.raises(ValidationError, match=r"warmup \+ decay = 1\.1 is more than all steps"):
        OptimConfig(warmup=0.4, decay=0.7)
