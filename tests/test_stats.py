"""The statistics against scipy, against enumeration, and at the ends where formulas break."""

from __future__ import annotations

import importlib.util
import itertools
import math
import random
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as oracle
from statsmodels.regression.linear_model import OLS
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from mull.report import stats


def script(name: str) -> ModuleType:
    """A benchmark as a module."""
    path = Path(__file__).parents[1] / "benchmarks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", path)
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


coverage = script("coverage")

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
    assert (low, high) == pytest.approx(proportion_confint(solved, n, 0.05, "wilson"), abs=1e-12)
    assert 0 <= low <= solved / n <= high <= 1


def test_wilson_of_nothing_says_nothing():
    assert stats.wilson(0, 0) == (0.0, 1.0)


@settings(deadline=None)
@given(st.integers(0, 300), st.integers(0, 300))
def test_mcnemars_mid_p_is_statsmodels_exact_less_half_of_what_was_seen(better, worse):
    p, n = stats.mcnemar(better, worse), better + worse
    exact = mcnemar([[7, better], [worse, 5]], exact=True).pvalue if n else 1.0
    seen = math.comb(n, better) / 2**n
    assert p == pytest.approx(1.0 if better == worse else exact - seen, rel=1e-9, abs=1e-15)
    assert p == stats.mcnemar(worse, better)


def test_mcnemar_of_a_huge_comparison_neither_overflows_nor_takes_long():
    assert stats.mcnemar(5000, 5600) == pytest.approx(oracle.norm.sf(600 / math.sqrt(10600)) * 2, rel=0.01)
    assert stats.mcnemar(0, 4000) == 0.0


@settings(deadline=None)
@given(st.floats(0, 60), st.integers(1, 2500))
def test_students_t_is_scipys(t, freedom):
    assert stats.t_test(t, freedom) == pytest.approx(2 * oracle.t.sf(t, freedom), abs=2e-4 if freedom > 2000 else 1e-10)
    assert stats.t_test(-t, freedom) == stats.t_test(t, freedom)


@pytest.mark.parametrize("freedom", [1, 2, 3, 7, 29, 30, 99, 1318])
def test_the_quantile_of_t_is_scipys(freedom):
    assert stats.t95(freedom) == pytest.approx(oracle.t.ppf(0.975, freedom), rel=1e-9)


def test_no_freedom_no_verdict():
    assert stats.t_test(9.0, 0) == 1.0
    assert stats.t95(0) == math.inf
    alone = stats.paired({1: 0.5}, {1: 0.0})
    assert alone is not None
    assert (alone.low, alone.high, alone.p) == (-1.0, 1.0, 1.0)


@settings(deadline=None, max_examples=10)
@given(st.lists(st.floats(0, 1), max_size=12))
def test_holm_is_statsmodels(ps):
    expected = multipletests(ps, method="holm")[1] if ps else []
    assert stats.holm(ps) == pytest.approx(list(expected))


def test_the_verdict_has_three_words():
    assert stats.verdict(0.049, 0.1) == "better"
    assert stats.verdict(0.049, -0.1) == "worse"
    assert stats.verdict(0.05, 0.1) == "cannot tell"
    assert stats.verdict(0.0, 0.0) == "cannot tell"


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


@pytest.mark.parametrize("spread", [0.1, 0.4, 0.8])
def test_the_clustered_error_is_that_of_a_regression_with_clusters(spread):
    """statsmodels' standard error, clustered by problem, says how many independent answers these are worth."""
    rng = np.random.default_rng(4)
    size = (1 - spread) / spread
    problems = rng.random((400, 6)) < rng.beta(0.6 * size, 0.4 * size, 400)[:, None]
    share = stats.clustered(problems.tolist())
    assert share is not None
    groups = np.repeat(np.arange(400), 6)
    fit = OLS(problems.ravel().astype(float), np.ones(2400)).fit(cov_type="cluster", cov_kwds={"groups": groups})
    assert share.value == pytest.approx(fit.params[0])
    error = math.sqrt(share.value * (1 - share.value) / share.effective)
    assert error == pytest.approx(fit.bse[0], rel=0.02)
    assert (share.low, share.high) == pytest.approx(fit.conf_int()[0], abs=0.002)


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


def test_intervals_hold_the_truth_as_often_as_they_say():
    """94 to 96 of a hundred, nowhere below 92; Wilson's over all answers do not. The slow test has more evaluations."""
    ours, naive = coverage.single(np.random.default_rng(11), 3000)
    assert 0.94 <= ours.share() <= 0.96
    assert min(ours.by(coverage.band).values()) > 0.92
    assert naive.share() < 0.75


def test_intervals_of_few_problems_hold_too():
    ours, _ = coverage.single(np.random.default_rng(12), 2000, problems=(30, 30))
    assert 0.94 <= ours.share() <= 0.965


@pytest.mark.parametrize("samples", [(1, 1), (2, 16)])
def test_equals_are_seldom_called_different(samples):
    held, told = coverage.pairs(np.random.default_rng(13), 2000, samples=samples, problems=(30, 200))
    assert told.share() <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / 2000)
    assert held.share() >= 0.94


def test_intervals_of_differences_hold_where_there_are_some():
    held, told = coverage.pairs(np.random.default_rng(14), 2000, 0.5, problems=(30, 200))
    assert 0.935 <= held.share() <= 0.97
    assert told.share() > 0.3


@pytest.mark.slow
def test_ten_thousand_evaluations():
    for seed, how in ((1, {}), (2, {"problems": (30, 30)})):
        ours, _ = coverage.single(np.random.default_rng(seed), 10000, **how)
        assert 0.94 <= ours.share() <= 0.96
        assert min(ours.by(coverage.band).values()) >= 0.92
    for samples in ((1, 1), (2, 16)):
        _, told = coverage.pairs(np.random.default_rng(3), 10000, samples=samples)
        assert told.share() <= 0.05


def test_signs_alone_are_no_test_of_repeated_answers():
    """Why `paired` does not use them: many small losses and a few large gains can be no difference at all."""
    assert coverage.discarded(np.random.default_rng(15), 300)["signs of problems"] > 0.08


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
    assert found.p == pytest.approx(1 / 2**10)
    assert oracle.fisher_exact([[60, 40], [50, 50]]).pvalue > 0.1


def test_paired_uses_only_what_both_answered():
    found = stats.paired({1: 1.0, 2: 1.0, 3: 0.0}, {2: 0.0, 3: 0.0, 4: 1.0})
    assert found is not None
    assert (found.n, found.a, found.b) == (2, 0.5, 0.0)
    assert stats.paired({1: 1.0}, {2: 1.0}) is None


@pytest.mark.parametrize("gap", [0.0, 0.02, 0.06])
def test_of_many_problems_with_repeated_answers_the_verdict_is_the_paired_t_test(gap):
    rng = np.random.default_rng(8)
    hard = rng.beta(1, 1, 1500)
    a, b = rng.binomial(8, np.minimum(1, hard + gap)) / 8, rng.binomial(8, hard) / 8
    found = stats.paired(dict(enumerate(map(float, a))), dict(enumerate(map(float, b))))
    expected = oracle.ttest_rel(a, b)
    assert found is not None
    assert found.p == pytest.approx(expected.pvalue, rel=0.05, abs=1e-4)
    assert (found.low, found.high) == pytest.approx(expected.confidence_interval(), abs=2e-4)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=2, max_size=60))
def test_with_repeated_answers_interval_and_p_say_the_same(pairs):
    found = stats.paired({i: x / 4 for i, (x, _) in enumerate(pairs)}, {i: y / 4 for i, (_, y) in enumerate(pairs)})
    assert found is not None
    if any(abs(x - y) not in (0, 4) for x, y in pairs):
        assert (found.p < 0.05) == (found.low > 0 or found.high < 0)
        # the one-sample t test of the differences and of two more, as large as they are
        gaps = [(x - y) / 4 for x, y in pairs] + [found.step, -found.step]
        n = len(gaps)
        t = sum(gaps) / n / math.sqrt((sum(g * g for g in gaps) / n - (sum(gaps) / n) ** 2) / n)
        assert found.p == pytest.approx(2 * oracle.t.sf(abs(t), n - 3), abs=1e-9)


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


@pytest.mark.parametrize(("n", "lost"), [(60, 4), (300, 12), (1000, 50)])
def test_the_smallest_difference_is_seen_four_times_out_of_five(n, lost):
    """Of models as alike as these, one better by exactly that."""
    seen = stats.paired({i: float(i % n >= lost) for i in range(n)}, {i: float(i % n < n - lost) for i in range(n)})
    assert seen is not None and seen.difference == 0
    gap = stats.smallest(seen)
    decided = max(seen.spread, gap)
    wins = (decided + gap) / 2
    rng, shown, trials = random.Random(5), 0, 400
    for _ in range(trials):
        cells = rng.choices([(1, 0), (0, 1), (0, 0)], [wins, decided - wins, 1 - decided], k=n)
        better, worse = sum(c[0] for c in cells), sum(c[1] for c in cells)
        shown += better > worse and stats.mcnemar(better, worse) < 0.05
    assert 0.72 < shown / trials < 0.92
    more = stats.paired(
        {i: float(i % n >= lost) for i in range(4 * n)}, {i: float(i % n < n - lost) for i in range(4 * n)}
    )
    assert more is not None
    assert stats.smallest(more) < 0.6 * gap


def test_of_a_handful_not_even_the_largest_difference_is_sure_to_be_seen():
    found = stats.paired({1: 1.0}, {1: 0.0})
    assert found is not None
    assert stats.smallest(found) == 1.0


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
