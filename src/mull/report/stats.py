"""What can be said about a share of solved problems, and what cannot.

Problems are the sample: several answers to one problem tell little more than one, so they form a cluster. Every formula
is analytic (no resampling, so a report derived twice is the same twice) and behaves at 0 and at 1, where the textbook
"plus or minus two standard errors" claims certainty. Given up for that: corrections for a handful of problems; with
fewer than about twenty, read the counts.

Standard library only. 95 % throughout.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TypeVar

K = TypeVar("K")  # what names a problem

Z95 = NormalDist().inv_cdf(0.975)
POWER80 = NormalDist().inv_cdf(0.8)
FEW = 10

# No verdict on the answer itself: with more room, another parser or more patience it might have been right.
UNDECIDED = ("truncated", "unparsed", "disagreed", "timeout")
NOT_SCORED = "infrastructure"


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
    p: float  # exact, two-sided


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

    The clustered variance of the mean, sum (m - mean)^2 / n^2, is turned into the number of independent answers that
    would have the same, at least one per problem and at most all of them, and that goes into Wilson's interval. With
    one answer per problem it is Wilson's interval exactly.
    """
    means = [sum(answers) / len(answers) for answers in problems if answers]
    if not means:
        return None
    n, answers = len(means), sum(len(p) for p in problems)
    mean = math.fsum(means) / n
    variance = math.fsum((m - mean) ** 2 for m in means) / n**2
    independent = mean * (1 - mean) / variance if variance > 0 else (n if mean in (0.0, 1.0) else answers)
    effective = min(max(independent, n), answers)
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


def sign_test(better: int, worse: int) -> float:
    """Exact two-sided p. With one answer per problem on each side this is McNemar's exact test."""
    n = better + worse
    if n == 0:
        return 1.0
    tail = sum(math.comb(n, k) for k in range(min(better, worse) + 1))
    return min(1.0, 2 * tail / 2**n)


def paired(a: Mapping[K, float], b: Mapping[K, float]) -> Paired | None:
    """a minus b over the problems both answered (problem -> share solved). None where they share none.

    The interval is Bonett and Price's (2012): as if there were two more problems, one won by each side. So it has a
    width even where both agree on everything, and it holds for shares of several answers as well.
    """
    both = [key for key in a if key in b]
    if not both:
        return None
    n = len(both)
    gaps = [a[key] - b[key] for key in both]
    better, worse = sum(g > 0 for g in gaps), sum(g < 0 for g in gaps)
    total = math.fsum(gaps)
    centre = total / (n + 2)
    variance = (math.fsum(g * g for g in gaps) + 2) / (n + 2) - centre * centre
    half = Z95 * math.sqrt(max(variance, 0.0) / (n + 2))
    mean_a, mean_b = (math.fsum(side[key] for key in both) / n for side in (a, b))
    return Paired(
        n, mean_a, mean_b, total / n, max(-1.0, centre - half), min(1.0, centre + half),
        better, worse, sign_test(better, worse),
    )  # fmt: skip


def problems_needed(found: Paired) -> int | None:
    """How many problems would show a difference as large as the one seen four times out of five.

    None if none was seen, or on so few disagreements that the number would be a guess.
    """
    if not found.difference or found.better + found.worse < FEW:
        return None
    decided = (found.better + found.worse) / found.n
    spread = max(decided - found.difference**2, 0.0)
    return max(1, math.ceil(((Z95 * math.sqrt(decided) + POWER80 * math.sqrt(spread)) / found.difference) ** 2))


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
    "NOT_SCORED", "UNDECIDED", "Paired", "Share", "bounds", "clustered", "cost_per_solved", "majority", "paired",
    "pass_at_k", "problems_needed", "sign_test", "wilson",
]  # fmt: skip
