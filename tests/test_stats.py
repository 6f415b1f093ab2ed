"""The statistics against scipy, against enumeration, and at the ends where formulas break."""

from __future__ import annotations

import itertools
import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as oracle

from mull.report import stats

COUNTS = st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))
VOTES = st.lists(st.sampled_from(["a", "b", "c", None]), min_size=1, max_size=8)


@settings(deadline=None)
@given(COUNTS)
def test_wilson_is_scipys(count):
    solved, n = count
    low, high = stats.wilson(solved, n)
    expected = oracle.binomtest(solved, n).proportion_ci(0.95, method="wilson")
    assert low == pytest.approx(expected.low, abs=1e-12)
    assert high == pytest.approx(expected.high, abs=1e-12)
    assert 0 <= low <= solved / n <= high <= 1


def test_wilson_of_nothing_says_nothing():
    assert stats.wilson(0, 0) == (0.0, 1.0)


@settings(deadline=None)
@given(st.integers(0, 300), st.integers(0, 300))
def test_sign_test_is_the_exact_binomial_of_mcnemar(better, worse):
    p = stats.sign_test(better, worse)
    if better + worse:
        assert p == pytest.approx(oracle.binomtest(better, better + worse, 0.5).pvalue, rel=1e-9)
    else:
        assert p == 1.0
    assert p == stats.sign_test(worse, better)


@settings(deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=300))
def test_one_answer_per_problem_is_wilson_exactly(answers):
    share = stats.clustered([[a] for a in answers])
    assert share is not None
    assert share.effective == pytest.approx(len(answers))
    assert (share.low, share.high) == pytest.approx(stats.wilson(sum(answers), len(answers)), abs=1e-9)


@settings(deadline=None)
@given(st.lists(st.lists(st.booleans(), min_size=1, max_size=6), min_size=1, max_size=60))
def test_a_clustered_share_stays_between_its_bounds(problems):
    share = stats.clustered(problems)
    assert share is not None
    assert 0 <= share.low <= share.value + 1e-12
    assert share.value <= share.high + 1e-12 <= 1 + 2e-12
    assert len(problems) - 1e-9 <= share.effective <= sum(map(len, problems)) + 1e-9


def test_repeating_an_answer_adds_no_certainty_and_independent_answers_do():
    rng = random.Random(1)
    once = [[rng.random() < 0.4] for _ in range(200)]
    copied = stats.clustered([answers * 8 for answers in once])
    single = stats.clustered(once)
    assert copied is not None and single is not None
    assert (copied.low, copied.high) == pytest.approx((single.low, single.high))
    fresh = stats.clustered([[rng.random() < 0.4 for _ in range(8)] for _ in range(200)])
    assert fresh is not None
    assert fresh.high - fresh.low < 0.5 * (single.high - single.low)


def test_at_the_ends_a_clustered_interval_still_has_a_width():
    share = stats.clustered([[True] * 4] * 50)
    assert share is not None
    assert (share.value, share.high) == (1.0, 1.0)
    assert share.low == pytest.approx(stats.wilson(50, 50)[0])
    assert stats.clustered([]) is None
    assert stats.clustered([[]]) is None


def test_the_clustered_interval_covers_what_it_should():
    """Problems of very different difficulty, eight answers each: 95 % of intervals hold the truth, Wilson's do not."""
    rng = random.Random(7)
    held = naive = 0
    trials = 400
    for _ in range(trials):
        chances = [rng.choice([0.05, 0.95]) for _ in range(60)]
        answers = [[rng.random() < c for _ in range(8)] for c in chances]
        share = stats.clustered(answers)
        assert share is not None
        held += share.low <= 0.5 <= share.high
        low, high = stats.wilson(sum(map(sum, answers)), 480)
        naive += low <= 0.5 <= high
    assert held / trials > 0.92
    assert naive / trials < 0.7


@settings(deadline=None)
@given(st.integers(1, 9).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_is_the_mean_over_all_draws(case):
    n, right, k = case
    answers = [i < right for i in range(n)]
    draws = [any(draw) for draw in itertools.combinations(answers, k)]
    assert stats.pass_at_k(n, right, k) == pytest.approx(sum(draws) / len(draws))


@settings(deadline=None)
@given(VOTES, st.sampled_from("abc"), st.randoms())
def test_the_majority_is_the_expected_verdict_of_a_lot_and_ignores_order(votes, gold, rng):
    right = [vote == gold for vote in votes]
    said = [vote for vote in votes if vote is not None]
    most = max((said.count(v) for v in said), default=0)
    leaders = {v for v in said if said.count(v) == most}
    assert stats.majority(votes, right) == pytest.approx((gold in leaders) / len(leaders) if leaders else 0.0)
    order = list(range(len(votes)))
    rng.shuffle(order)
    assert stats.majority([votes[i] for i in order], [right[i] for i in order]) == stats.majority(votes, right)


def test_one_vote_is_pass_at_one_and_silence_is_no_vote():
    assert stats.majority(["a"], [True]) == 1.0
    assert stats.majority([None, None], [False, False]) == 0.0
    assert stats.majority([None, None, "a"], [False, False, True]) == 1.0


@settings(deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=200))
def test_paired_counts_the_four_cells(pairs):
    a = {i: float(x) for i, (x, _) in enumerate(pairs)}
    b = {i: float(y) for i, (_, y) in enumerate(pairs)}
    found, turned = stats.paired(a, b), stats.paired(b, a)
    assert found is not None and turned is not None
    assert found.better == sum(x and not y for x, y in pairs)
    assert found.difference == pytest.approx(found.a - found.b)
    assert -1 <= found.low < found.high <= 1
    assert found.low - 1e-9 <= found.difference <= found.high + 1e-9
    assert (turned.low, turned.high) == pytest.approx((-found.high, -found.low))
    assert turned.p == found.p


def test_paired_is_bonett_and_price_and_sharper_than_unpaired():
    a = {i: float(i < 60) for i in range(100)}
    b = {i: float(5 <= i < 55) for i in range(100)}
    found = stats.paired(a, b)
    assert found is not None
    p12, p21, n = 11 / 102, 1 / 102, 102
    half = stats.Z95 * math.sqrt((p12 + p21 - (p12 - p21) ** 2) / n)
    assert (found.low, found.high) == pytest.approx((p12 - p21 - half, p12 - p21 + half))
    assert (found.better, found.worse) == (10, 0)
    assert found.p == pytest.approx(2 / 2**10)
    assert oracle.fisher_exact([[60, 40], [50, 50]]).pvalue > 0.1


def test_paired_uses_only_what_both_answered():
    found = stats.paired({1: 1.0, 2: 1.0, 3: 0.0}, {2: 0.0, 3: 0.0, 4: 1.0})
    assert found is not None
    assert (found.n, found.a, found.b) == (2, 0.5, 0.0)
    assert stats.paired({1: 1.0}, {2: 1.0}) is None


def test_agreement_on_everything_is_no_proof_of_equality():
    same = stats.paired(dict.fromkeys(range(10), 1.0), dict.fromkeys(range(10), 1.0))
    assert same is not None
    assert same.low < -0.1 and same.high > 0.1
    assert same.p == 1.0
    assert stats.problems_needed(same) is None
    once = stats.paired(dict.fromkeys(range(50), 1.0), dict.fromkeys(range(50), 1.0) | {7: 0.0})
    assert once is not None and once.difference > 0
    assert stats.problems_needed(once) is None  # one disagreement says nothing about how many problems it takes


def test_so_many_problems_show_the_difference_four_times_out_of_five():
    pilot = stats.paired({i: float(i % 10 in (0, 1)) for i in range(100)}, {i: float(i % 10 == 2) for i in range(100)})
    assert pilot is not None
    needed = stats.problems_needed(pilot)
    assert needed is not None
    rng, shown, trials = random.Random(3), 0, 400
    for _ in range(trials):
        cells = rng.choices([(1, 0), (0, 1), (0, 0)], [0.2, 0.1, 0.7], k=needed)
        result = stats.paired({i: c[0] for i, c in enumerate(cells)}, {i: c[1] for i, c in enumerate(cells)})
        assert result is not None
        shown += result.p < 0.05
    assert 0.72 < shown / trials < 0.88


def test_bounds_hold_the_undecided_and_leave_infrastructure_out():
    counts = {"solved": 6, "wrong": 1, "truncated": 2, "unparsed": 1, "infrastructure": 90}
    assert stats.bounds(counts) == (0.6, 0.9)
    assert stats.bounds({"infrastructure": 3}) is None


def test_cost_per_solved_has_no_bound_where_nothing_may_be_solved():
    none = stats.clustered([[False]] * 100)
    assert none is not None
    value, (low, high) = stats.cost_per_solved(2.0, 100, none)
    assert value is None and high is None
    assert low == pytest.approx(2.0 / (100 * none.high))
    half = stats.clustered([[i % 2 == 0] for i in range(100)])
    assert half is not None
    value, (low, high) = stats.cost_per_solved(2.0, 100, half)
    assert low is not None and value is not None and high is not None
    assert value == pytest.approx(0.04)
    assert low < value < high
    assert stats.cost_per_solved(1.0, 0, None) == (None, (None, None))
