"""What can be said about a share of solved problems, and what cannot.

Problems are the sample: several answers to one problem tell little more than one, so they form a cluster. Every formula
is analytic (no resampling, so a report derived twice is the same twice) and behaves at 0 and at 1, where the textbook
"plus or minus two standard errors" claims certainty. Each was chosen by simulation (benchmarks/coverage.py): over 30
and more problems, intervals hold the truth 94 to 96 times of a hundred and at least 92 times at every rate, and a pair
of equals is called different at most 5 times. With fewer than about twenty problems, read the counts.

Standard library only. 95 % throughout.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist
from typing import TypeVar

K = TypeVar("K")  # what names a problem

Z95 = NormalDist().inv_cdf(0.975)
POWER80 = NormalDist().inv_cdf(0.8)
FEW = 10
ENOUGH = 2000  # degrees of freedom from which Student's t is the normal distribution to three digits
RARE = 0.25  # so much of a problem that is always solved, and as much of one that never is: a sample may not hold such

# No verdict on the answer itself: with more room, another parser or more patience it might have been right.
UNDECIDED = ("truncated", "unparsed", "disagreed", "timeout")
NOT_SCORED = "infrastructure"
UNTOLD = "cannot tell"


@dataclass(frozen=True, slots=True)
class Share:
    """A share with its interval; `n` problems, of which the interval counts `effective` independent answers."""

    value: float
    low: float
    high: float
    n: int
    effective: float


@dataclass(frozen=True, slots=True)
class Paired:
    """How much better `a` is than `b` on the problems both answered."""

    n: int
    a: float
    b: float
    difference: float
    low: float
    high: float
    better: int  # problems on which a did better
    worse: int
    p: float  # two-sided, that they are equally good
    spread: float  # mean square of a problem's difference; with one answer each, the share of problems they differ on
    step: float  # root mean square of the differences that are not 0; with one answer each it is 1


def wilson(solved: float, n: float) -> tuple[float, float]:
    """Score interval for a share. (0, 1) where nothing was observed."""
    if n <= 0:
        return 0.0, 1.0
    share, z2 = solved / n, Z95 * Z95
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    low = 0.0 if solved <= 0 else max(0.0, centre - half)
    high = 1.0 if solved >= n else min(1.0, centre + half)
    return low, high


def clustered(problems: Sequence[Sequence[bool]]) -> Share | None:
    """The mean over problems of the share of right answers, each problem a cluster. None without any answer.

    The variance between problems, set against that of single answers, says how many independent answers they are
    worth: at least one per problem, at most all of them. That number goes into Wilson's interval, so with one answer
    per problem it is Wilson's exactly. A small sample that met none of the rare hard (or easy) problems looks surer
    than it is; so half a problem is added, solved always and never in equal parts, to the variance alone.
    """
    means = [sum(answers) / len(answers) for answers in problems if answers]
    if not means:
        return None
    n, answers = len(means), sum(len(p) for p in problems)
    mean = math.fsum(means) / n
    centre = (math.fsum(means) + RARE) / (n + 2 * RARE)
    rare = RARE * (centre**2 + (1 - centre) ** 2)
    between = (math.fsum((m - centre) ** 2 for m in means) + rare) / (n + 2 * RARE)
    effective = min(max(n * centre * (1 - centre) / between, n), answers)
    low, high = wilson(mean * effective, effective)
    return Share(mean, low, high, n, effective)


def pass_at_k(n: int, right: int, k: int) -> float:
    """Chance that k of the n answers drawn without replacement hold a right one: unbiased (arXiv 2107.03374)."""
    assert 0 <= right <= n and 1 <= k <= n, (n, right, k)
    return 1.0 - math.comb(n - right, k) / math.comb(n, k)


def majority(votes: Sequence[str | None], right: Sequence[bool]) -> float:
    """maj@k of one problem: is the most frequent answer right?

    None casts no vote (cut off, unreadable). Answers tied for first place count by their share that is right: the
    expected value of drawing one of them by lot, so the order of the answers is worth nothing.
    """
    assert len(votes) == len(right)
    counts = Counter(vote for vote in votes if vote is not None)
    if not counts:
        return 0.0
    most = max(counts.values())
    leading = {vote for vote, count in counts.items() if count == most}
    verdicts = [ok for vote, ok in zip(votes, right, strict=True) if vote in leading]
    return sum(verdicts) / len(verdicts)


def mcnemar(better: int, worse: int) -> float:
    """McNemar's mid-p, two-sided: exact, with half the weight of what was seen (Fagerland, Lydersen, Laake 2013)."""
    n = better + worse
    if n == 0:
        return 1.0
    tail, ways = 0, 1  # in halves of a way, as whole numbers: no float holds them all
    for k in range(min(better, worse)):
        tail, ways = tail + 2 * ways, ways * (n - k) // (k + 1)
    return min(1.0, (tail + ways) / 2**n)


def paired(a: Mapping[K, float], b: Mapping[K, float]) -> Paired | None:
    """a minus b over the problems both answered (problem -> share solved). None where they share none.

    The interval is Bonett and Price's (2012): as if there were two more problems, one won by each side. So it has a
    width even where both agree on everything. p is McNemar's mid-p where each problem has one answer from each side.
    With several, the two more problems are won by as much as problems are won by here, and interval and p are
    Student's. Of those tried that alone keeps to 5 %: signs call equals different 16 times of a hundred (many small
    losses and few large gains may be equal), a percentile bootstrap over problems 6 times.
    """
    both = [key for key in a if key in b]
    if not both:
        return None
    n = len(both)
    gaps = [a[key] - b[key] for key in both]
    better, worse = sum(g > 0 for g in gaps), sum(g < 0 for g in gaps)
    single = all(g in (-1.0, 0.0, 1.0) for g in gaps)
    square, total = math.fsum(g * g for g in gaps), math.fsum(gaps)
    step = math.sqrt(square / (better + worse)) if square else 1.0
    centre, spread = total / (n + 2), (square + 2 * step**2) / (n + 2)
    error = math.sqrt((spread - centre * centre) / (n + 2))
    half = error * (Z95 if single else t95(n - 1))
    p = mcnemar(better, worse) if single else t_test(centre / error, n - 1)
    mean_a, mean_b = (math.fsum(side[key] for key in both) / n for side in (a, b))
    return Paired(
        n, mean_a, mean_b, total / n, max(-1.0, centre - half), min(1.0, centre + half),
        better, worse, p, spread, step,
    )  # fmt: skip


def t_test(t: float, freedom: int) -> float:
    """Two-sided p of Student's t: the finite sums of Abramowitz and Stegun, 26.7.3 and 26.7.4."""
    if freedom < 1:
        return 1.0
    if freedom > ENOUGH:
        return math.erfc(abs(t) / math.sqrt(2))
    angle = math.atan(abs(t) / math.sqrt(freedom))
    odd = freedom % 2
    power = math.cos(angle) if odd else 1.0
    total = 0.0
    for k in range(1 + odd, freedom, 2):
        total += power
        power *= k / (k + 1) * math.cos(angle) ** 2
    inside = 2 / math.pi * (angle + math.sin(angle) * total) if odd else math.sin(angle) * total
    return min(1.0, max(0.0, 1.0 - inside))


@cache
def t95(freedom: int) -> float:
    """The t beyond which, in either direction, lie 5 %."""
    if freedom < 1:
        return math.inf
    low, high = Z95, 12.7063
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if t_test(middle, freedom) > 0.05 else (low, middle)
    return high


def verdict(p: float, difference: float) -> str:
    """Of a against b: better, worse, cannot tell."""
    return UNTOLD if p >= 0.05 or not difference else "better" if difference > 0 else "worse"


def holm(ps: Sequence[float]) -> list[float]:
    """p-values of a family of tests, raised so that one wrong verdict among all of them is a 5 % event (Holm 1979)."""
    adjusted, least = [0.0] * len(ps), 0.0
    for rank, i in enumerate(sorted(range(len(ps)), key=lambda i: ps[i])):
        least = adjusted[i] = max(least, min(1.0, (len(ps) - rank) * ps[i]))
    return adjusted


def problems_needed(found: Paired) -> int | None:
    """How many problems, all in all, would show a difference as large as the one seen four times out of five.

    None if none was seen, or on so few disagreements that the number would be a guess.
    """
    if not found.difference or found.better + found.worse < FEW:
        return None
    return max(1, math.ceil(_needed(abs(found.difference), found)))


def smallest(found: Paired) -> float:
    """The smallest difference that so many problems would show four times out of five, were it there."""
    low, high = 0.0, 1.0
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (low, middle) if _needed(middle, found) <= found.n else (middle, high)
    return high


def _needed(difference: float, found: Paired) -> float:
    """Problems for 80 % power. Who differs by more also disagrees on more problems."""
    spread = max(found.spread, difference * min(found.step, 1.0), difference**2)
    return ((Z95 * math.sqrt(spread) + POWER80 * math.sqrt(spread - difference**2)) / difference) ** 2


def bounds(outcomes: Mapping[str, int]) -> tuple[float, float] | None:
    """The share of answers that are right if every undecided one is wrong, and if every undecided one is right."""
    scored = sum(count for name, count in outcomes.items() if name != NOT_SCORED)
    if not scored:
        return None
    solved = outcomes.get("solved", 0)
    return solved / scored, (solved + sum(outcomes.get(name, 0) for name in UNDECIDED)) / scored


def cost_per_solved(usd: float, answers: int, share: Share | None) -> tuple[float | None, tuple[float | None, ...]]:
    """Money per solved answer and its interval, cheap end first. None means that there is no bound."""

    def each(value: float) -> float | None:
        return usd / (answers * value) if value > 0 else None

    if share is None or not answers:
        return None, (None, None)
    return each(share.value), (each(share.high), each(share.low))


__all__ = [
    "NOT_SCORED", "UNDECIDED", "UNTOLD", "Paired", "Share", "bounds", "clustered", "cost_per_solved", "holm",
    "majority", "mcnemar", "paired", "pass_at_k", "problems_needed", "smallest", "t95", "t_test", "verdict", "wilson",
]  # fmt: skip
