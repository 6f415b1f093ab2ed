"""Drawing: the distribution is the softmax, the randomness is the key's and the position's alone."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare, kstest

from mull.engine.sampler import sample, stream_of, uniform

N = 20_000


def logits_of(seed: int = 0, vocab: int = 12) -> torch.Tensor:
    return torch.randn(vocab, generator=torch.Generator().manual_seed(seed)) * 1.5


def draws(logits: torch.Tensor, temperature: float, **cuts) -> torch.Tensor:
    where = torch.tensor([uniform(stream_of(0, (i,)), 3) for i in range(N)], dtype=torch.float64)
    token, _ = sample(logits.expand(N, -1), where, torch.full((N,), temperature), **cuts)
    return torch.bincount(token, minlength=len(logits))


def fits(counts: torch.Tensor, p: torch.Tensor) -> bool:
    kept = p > 0
    assert int(counts[~kept].sum()) == 0
    if int(kept.sum()) == 1:
        return True
    expected = p[kept].double() / p[kept].double().sum() * N
    return bool(chisquare(counts[kept].double().numpy(), expected.numpy()).pvalue > 1e-4)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_draws_follow_the_softmax(temperature: float, seed: int) -> None:
    logits = logits_of(seed)
    assert fits(draws(logits, temperature), (logits / temperature).softmax(-1))


def test_a_wrong_distribution_would_be_noticed() -> None:
    logits = logits_of()
    assert not fits(draws(logits, 1.0), (logits / 1.1).softmax(-1))


@pytest.mark.parametrize("top_k", [1, 3, 11])
def test_top_k_keeps_the_best(top_k: int) -> None:
    logits = logits_of()
    p = logits.softmax(-1)
    p[p < p.topk(top_k).values[-1]] = 0
    assert fits(draws(logits, 1.0, top_k=top_k), p)


@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9, 0.999])
def test_top_p_keeps_the_smallest_set_that_reaches_the_mass(top_p: float) -> None:
    logits = logits_of()
    p, mass = logits.softmax(-1), 0.0
    kept = torch.zeros_like(p)
    for token in p.argsort(descending=True).tolist():
        if mass >= top_p:
            break
        kept[token] = p[token]
        mass += float(p[token])
    assert fits(draws(logits, 1.0, top_p=top_p), kept)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10_000), st.floats(0.1, 3), st.floats(0, 1, exclude_max=True), st.integers(0, 12))
def test_the_kept_log_probability_is_before_any_cut(seed: int, heat: float, point: float, top_k: int) -> None:
    logits = logits_of(seed)[None]
    token, logprob = sample(logits, torch.tensor([point]), torch.tensor([heat]), top_p=0.8, top_k=top_k)
    exact = (logits.double() / heat).log_softmax(-1)[0, int(token)]
    assert float(logprob) == pytest.approx(float(exact), abs=1e-4)


def test_temperature_zero_is_the_first_largest_with_the_plain_log_probability() -> None:
    logits = torch.tensor([[0.0, 3.0, 3.0, -1.0], [5.0, 1.0, 1.0, 1.0]])
    token, logprob = sample(logits, torch.tensor([0.99, 0.99]), torch.zeros(2))
    assert token.tolist() == [1, 0]
    torch.testing.assert_close(logprob, logits.log_softmax(-1)[torch.arange(2), token])


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 6), st.integers(0, 1000))
def test_a_rows_draw_does_not_depend_on_its_neighbours(rows: int, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    logits, where = torch.randn(rows, 9, generator=g), torch.rand(rows, generator=g, dtype=torch.float64)
    heat = torch.rand(rows, generator=g)
    together, _ = sample(logits, where, heat)
    alone = [int(sample(logits[i : i + 1], where[i : i + 1], heat[i : i + 1])[0]) for i in range(rows)]
    assert together.tolist() == alone


def test_impossible_tokens_are_never_drawn() -> None:
    """Not at the ends of the unit interval either."""
    logits = torch.tensor([-math.inf, 0.0, -math.inf, 0.0, -math.inf])
    edges = torch.tensor([0.0, 0.5, math.nextafter(1.0, 0.0)], dtype=torch.float64)
    token, _ = sample(logits.expand(3, -1), edges, torch.ones(3))
    assert token.tolist() == [1, 3, 3]


def test_uniform_numbers_are_uniform_and_independent_of_neighbours() -> None:
    by_position = [uniform(stream_of(7, (1, 2)), i) for i in range(4000)]
    by_key = [uniform(stream_of(7, (1, i)), 0) for i in range(4000)]
    by_seed = [uniform(stream_of(i, ()), 0) for i in range(4000)]
    for numbers in (by_position, by_key, by_seed):
        assert all(0 <= u < 1 for u in numbers)
        assert kstest(numbers, "uniform").pvalue > 1e-3
        centred = torch.tensor(numbers, dtype=torch.float64) - 0.5
        assert abs(float((centred[1:] * centred[:-1]).mean())) * 12 < 0.06
    assert len({*by_position, *by_key, *by_seed}) == 11_999  # one is asked for twice: key (1, 2), position 0


def test_keys_and_seeds_give_streams_of_their_own() -> None:
    streams = [stream_of(*x) for x in ((0, ()), (1, ()), (0, (0,)), (0, (0, 0)), (0, (1, 0)), (0, (0, 1)), (1, (0,)))]
    assert len(set(streams)) == len(streams)
    assert stream_of(2**63 - 1, (2**70, -1)) == stream_of(2**63 - 1, (2**70, -1))
