"""A token's row has the same bits whatever stands beside it, wherever it stands, and with or without a gradient.

The sampler computes a few rows where the trainer computes thousands; they agree to the last bit only if this holds for
every part that both run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from small import MOE, changed
from torch import Tensor

from mull.dist import row_floor
from mull.model.layers import RMSNorm, Rotary, SwiGLU, rotate
from mull.model.moe import MoE
from mull.ops.experts import routed

ROWS = 700
SMALLEST = 32  # row_floor() of four threads
WIDTHS = [8, 30, 37, 64, 128]


@pytest.fixture(autouse=True, params=[1, 2, 4])
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def drawn(*shape: int, seed: int = 0, scale: float = 2.0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


def filled(module: torch.nn.Module) -> torch.nn.Module:
    with torch.no_grad():
        for i, tensor in enumerate(module.parameters()):
            tensor.copy_(drawn(*tensor.shape, seed=i, scale=0.3))
    return module


def hold(f: Callable[..., Tensor], *inputs: Tensor, smallest: int = SMALLEST) -> None:
    """f of some rows, drawn in any order, equals those rows of f of all; under no_grad and inference mode too."""
    learnt = [x.clone().requires_grad_() if x.is_floating_point() else x for x in inputs]
    whole = f(*learnt)
    assert whole.requires_grad
    with torch.no_grad():
        assert torch.equal(f(*inputs), whole)
    draw = torch.Generator().manual_seed(7)
    for count in (smallest, smallest + 1, smallest + 5, 2 * smallest + 3, 333, ROWS - 1):
        at = torch.randperm(ROWS, generator=draw)[:count]
        with torch.inference_mode():
            some = f(*(x[at] for x in inputs))
        assert torch.equal(some, whole[at]), count


@pytest.mark.parametrize("width", WIDTHS)
def test_norm(width: int) -> None:
    hold(filled(RMSNorm(width)), drawn(ROWS, width), smallest=1)


@pytest.mark.parametrize("width", WIDTHS)
def test_norm_of_a_slice(width: int) -> None:
    """As the latent is a slice of a wider product."""
    norm = filled(RMSNorm(width))
    hold(lambda x: norm(x[:, :width]), drawn(ROWS, width + 8), smallest=1)


@pytest.mark.parametrize("rotary", [8, 10, 16, 32])
@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("interleaved", [False, True])
def test_rotation(rotary: int, heads: int, interleaved: bool) -> None:
    turn = Rotary(changed(MOE, rope_dim=rotary))

    def turned(x: Tensor, positions: Tensor) -> Tensor:
        return rotate(x[..., 4:], *turn(positions, torch.float32), interleaved)

    hold(turned, drawn(ROWS, heads, rotary + 4), torch.arange(ROWS) % 61, smallest=1)


@pytest.mark.parametrize("width", [8, 36, 128])
@pytest.mark.parametrize("ffn", [24, 52, 128])
def test_dense_layer(width: int, ffn: int) -> None:
    hold(filled(SwiGLU(width, ffn)), drawn(ROWS, width))


@pytest.mark.parametrize(("rows", "columns"), [(96, 128), (80, 128), (192, 64), (16, 256), (8, 128), (4096, 256)])
def test_products_from_the_floor_on(rows: int, columns: int) -> None:
    """What `row_floor` promises; it may be less than what the other tests here begin with."""
    weight, bias = drawn(rows, columns, seed=1), drawn(rows, seed=2)
    floor = row_floor()
    hold(lambda x: torch.nn.functional.linear(x, weight), drawn(ROWS, columns), smallest=floor)
    hold(lambda x: torch.nn.functional.linear(x, weight, bias), drawn(ROWS, columns), smallest=floor)


@pytest.mark.parametrize("shape", [{}, {"groups": 4, "active_groups": 2}, {"experts": 40, "active_experts": 6}])
@pytest.mark.parametrize("width", [32, 44])
def test_mixture(shape: dict[str, int], width: int) -> None:
    """Experts with a single token included: 40 of them share 32 rows."""
    moe = MoE(changed(MOE, width=width, **shape))
    moe.exact = True
    hold(filled(moe), drawn(ROWS, width))


def test_without_the_floor_a_mixture_would_not_hold() -> None:
    """Or filling groups up would be for nothing."""
    moe = MoE(changed(MOE, experts=40, active_experts=6, width=32))
    with pytest.raises(AssertionError):
        hold(filled(moe), drawn(ROWS, 32))


def test_a_gradient_flows_past_rows_that_fill_up() -> None:
    """Of input, weights and experts: within rounding of what it is without them, and nothing where no token is."""
    experts, chosen, tokens = 9, 2, 20
    expert_TK = torch.stack([torch.randperm(experts - 1, generator=torch.Generator().manual_seed(i))[:chosen]
                             for i in range(tokens)])  # fmt: skip
    sizes = ((tokens, 16), (tokens, chosen), (experts, 24, 16), (experts, 16, 12))
    x, weight, gate_up, down = learnt = [drawn(*s, seed=i, scale=1).requires_grad_() for i, s in enumerate(sizes)]
    up = drawn(tokens, 16, seed=9)
    bare, full = (routed(x, expert_TK, weight, gate_up, down, floor) for floor in (0, 16))
    torch.testing.assert_close(full, bare, atol=1e-5, rtol=1e-5)
    for a, b in zip(
        torch.autograd.grad((full * up).sum(), learnt), torch.autograd.grad((bare * up).sum(), learnt), strict=True
    ):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
        assert a.shape[0] != experts or not a[-1].any()
