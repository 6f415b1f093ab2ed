"""Drawing: the distribution is the softmax, the randomness is the key's and the position's alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare, kstest

from mull.engine.logits import Tally
from mull.engine.sampler import WIDTHS, Draw, draw, sample, stream_of, uniform
from mull.types import Sampling

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


def rough(rows: int, vocab: int, seed: int, flat: float = 2.0, steps: int = 0) -> torch.Tensor:
    """Logits; with `steps` only so many different ones, so that there are equals at every border."""
    logits = torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * flat
    return (logits * steps).round() / steps if steps else logits


def twin(logits: torch.Tensor, s: Sampling, point: float) -> set[int]:
    """What may be drawn, in numpy and fp64, cut by cut; several where the point is on a border within rounding."""
    x = logits.double().numpy()
    if s.temperature <= 0:
        return {int(x.argmax())}
    p = np.exp(x / s.temperature - (x / s.temperature).max())
    p /= p.sum()
    highest = p.max()
    allowed = set()
    for slack in (-1e-6, 1e-6):
        q = p.copy()
        if 0 < s.top_k < len(q):
            q[q < np.sort(q)[-s.top_k] * (1 - 1e-9)] = 0
        if s.top_p < 1:
            order = np.argsort(-np.round(q, 15), kind="stable")
            before = q[order].cumsum() - q[order]
            q[order[(before >= s.top_p * q.sum() + slack) & (before > 0)]] = 0
        q[q < s.min_p * highest * (1 - 1e-6)] = 0
        for at in (max(point - 1e-5, 0), point, min(point + 1e-5, 1 - 1e-12)):
            allowed.add(int(np.searchsorted(q.cumsum(), at * q.sum(), side="right")))
    return allowed


CUTS = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 0.3, 1.0, 1.7]),
    top_k=st.sampled_from([0, 0, 1, 3, 50, 63, 64, 300, 2100]),
    top_p=st.sampled_from([1.0, 1.0, 1e-9, 0.3, 0.9, 0.999]),
    min_p=st.sampled_from([0.0, 0.0, 0.01, 0.3, 1.0]),
    top_logprobs=st.sampled_from([0, 0, 3]),
)  # fmt: skip
POINTS = st.floats(0, 1, exclude_max=True)


@settings(deadline=None, max_examples=300)
@given(CUTS, POINTS, st.sampled_from([7, 300, 3001]), st.integers(0, 99), st.sampled_from([0.1, 2.0]), st.booleans())
def test_cuts_are_as_a_plain_twin_makes_them(
    s: Sampling, point: float, vocab: int, seed: int, flat: float, equals: bool
) -> None:
    logits = rough(1, vocab, seed, flat, steps=4 if equals else 0)
    (token,) = draw(logits, [Draw(s, point)]).tokens
    assert token in twin(logits[0], s, point)


@settings(deadline=None, max_examples=60)
@given(st.just(0.0) | st.floats(1e-3, 2), st.integers(0, 999))
def test_without_cuts_it_is_sample_to_the_bit(heat: float, seed: int) -> None:
    logits, points = rough(11, 301, seed), [uniform(seed, i) for i in range(11)]
    drawn = draw(logits, [Draw(Sampling(temperature=heat), point) for point in points])
    token, logprob = sample(logits, torch.tensor(points, dtype=torch.float64), torch.full((11,), heat))
    assert (drawn.tokens, drawn.logprobs) == (token.tolist(), logprob.tolist())


def test_with_cuts_it_is_sample_too() -> None:
    logits, points = rough(2000, 120, 5), [uniform(5, i) for i in range(2000)]
    where = torch.tensor(points, dtype=torch.float64)
    token, logprob = sample(logits, where, torch.full((2000,), 0.8), top_p=0.9, top_k=20)
    drawn = draw(logits, [Draw(Sampling(temperature=0.8, top_p=0.9, top_k=20), point) for point in points])
    assert drawn.tokens == token.tolist() and drawn.logprobs == logprob.tolist()


ROWS = st.builds(
    Draw,
    st.builds(
        replace,
        CUTS,
        repetition_penalty=st.sampled_from([1.0, 1.0, 1.3]),
        presence_penalty=st.sampled_from([0.0, 0.5]),
        logit_bias=st.sampled_from([(), ((3, 2.0), (5, -100.0))]),
    ),
    POINTS,
    st.sampled_from([None, None, None, 4]),
    st.just(Tally([1, 2, 3, 3])),
    st.sampled_from([(), (), (6,), (0, 2)]),
)  # fmt: skip


def one_by_one(logits: torch.Tensor, rows: Sequence[Draw]) -> list[tuple]:
    alone = [draw(logits[i : i + 1].clone(), [row]) for i, row in enumerate(rows)]
    return [(d.tokens[0], d.logprobs[0], d.alternatives[0]) for d in alone]


@settings(deadline=None, max_examples=80)
@given(st.lists(ROWS, min_size=1, max_size=40), st.sampled_from([7, 301]), st.integers(0, 99), st.randoms())
def test_a_row_gets_the_same_bits_in_any_company(rows: list[Draw], vocab: int, seed: int, random) -> None:
    logits = rough(len(rows), vocab, seed)
    kept = logits.clone()
    alone = one_by_one(logits, rows)
    order = list(range(len(rows)))
    random.shuffle(order)
    drawn = draw(logits[order], [rows[i] for i in order])
    assert [*zip(drawn.tokens, drawn.logprobs, drawn.alternatives, strict=True)] == [alone[i] for i in order]
    assert torch.equal(logits, kept)


@pytest.mark.parametrize("flat", [0.3, 3.0])
def test_a_row_gets_the_same_bits_in_any_company_at_a_true_size(flat: float) -> None:
    logits = rough(19, 49_152, 1, flat)
    cut = [{"top_p": 0.95, "top_k": 50}, {"top_p": 0.9}, {"min_p": 0.1}]
    options = [*cut, {}, {"temperature": 0.0}, {"temperature": 0.7}]
    rows = [Draw(Sampling(**options[i % len(options)], top_logprobs=i % 3), uniform(1, i)) for i in range(19)]
    drawn = draw(logits, rows)
    assert [*zip(drawn.tokens, drawn.logprobs, drawn.alternatives, strict=True)] == one_by_one(logits, rows)


def test_how_many_candidates_are_looked_at_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = rough(64, 3001, 3, steps=8)
    options = [
        Sampling(top_k=[0, 5, 40][i % 3], top_p=[0.5, 0.9][i % 2], min_p=[0.0, 0.02][i % 5 == 0]) for i in range(64)
    ]
    rows = [Draw(sampling, uniform(3, i)) for i, sampling in enumerate(options)]
    before = draw(logits, rows)
    for widths in ((2, 8, 64), (2900,), (4000,)):
        monkeypatch.setattr("mull.engine.sampler.WIDTHS", widths * (len(WIDTHS) // len(widths)))
        assert draw(logits, rows) == before


def test_a_forced_token_has_the_log_probability_that_the_model_gives_it() -> None:
    logits = rough(2, 50, 0)
    heated = Sampling(temperature=0.5, logit_bias=((7, 5.0),), top_logprobs=2)
    drawn = draw(logits, [Draw(heated, 0.5, forced=7, banned=(7,)), Draw(replace(heated, temperature=0.0), forced=9)])
    assert drawn.tokens == [7, 9]
    assert drawn.logprobs[0] == float((logits[0] / 0.5).log_softmax(-1)[7])
    assert drawn.logprobs[1] == float(logits[1].log_softmax(-1)[9])
    assert drawn.alternatives[0][0][0] == int(logits[0].argmax())


def test_alternatives_are_the_likeliest_before_cuts_and_hold_nothing_impossible() -> None:
    logits = rough(1, 9, 0)
    s = Sampling(top_k=1, top_logprobs=4)
    drawn = draw(logits, [Draw(s, 0.3)])
    logp = logits[0].log_softmax(-1)
    assert drawn.alternatives[0] == tuple((i, float(logp[i])) for i in logp.argsort(descending=True)[:4].tolist())
    (kept,) = draw(logits, [Draw(s, 0.3, banned=(0, 1, 2, 3, 4, 5, 6))]).alternatives
    assert {token for token, _ in kept} == {7, 8} and math.fsum(math.exp(x) for _, x in kept) == pytest.approx(1)
    (all_of_them,) = draw(logits, [Draw(replace(s, top_logprobs=20), 0.3)]).alternatives
    assert len(all_of_them) == 9


@pytest.mark.parametrize("options", [{}, {"temperature": 0.0}, {"top_p": 0.5}, {"top_k": 3}, {"min_p": 0.1}])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_broken_row_is_told_and_no_other_is_concerned(options: dict, bad: float) -> None:
    logits = rough(3, 400, 0)
    rows = [Draw(Sampling(**options), 0.4)] * 3
    whole = draw(logits, rows)
    logits[1, 17] = bad
    drawn = draw(logits, rows)
    assert "no finite number" in drawn.failed[1] and drawn.tokens[1] == -1 and len(drawn.failed) == 1
    assert [drawn.tokens[i] for i in (0, 2)] == [whole.tokens[i] for i in (0, 2)]


@pytest.mark.parametrize("options", [{}, {"temperature": 0.0}, {"top_p": 0.5}])
def test_where_everything_is_banned_there_is_nothing_to_draw(options: dict) -> None:
    drawn = draw(rough(1, 9, 0), [Draw(Sampling(**options), 0.4, banned=tuple(range(9)))])
    assert "No token is left" in drawn.failed[0]


@pytest.mark.parametrize("options", [{}, {"top_p": 0.9}, {"top_k": 2}, {"min_p": 0.001}])
def test_banned_tokens_are_never_drawn_at_any_point(options: dict) -> None:
    logits = torch.tensor([[9.0, 0.0, 9.0, 0.0, 9.0]])
    for point in (0.0, 0.5, math.nextafter(1.0, 0.0)):
        assert draw(logits, [Draw(Sampling(**options), point, banned=(0, 2, 4))]).tokens[0] in (1, 3)


@pytest.mark.parametrize("heat", [5e-324, 1e-40, 1e-6])
def test_a_temperature_of_next_to_nothing_is_greedy(heat: float) -> None:
    logits = rough(1, 50, 0, flat=30.0)
    assert draw(logits, [Draw(Sampling(temperature=heat), 0.9)]) == draw(logits, [Draw(Sampling(temperature=0.0))])


def test_no_rows_are_no_tokens() -> None:
    assert draw(torch.empty(0, 9), []).tokens == []
