"""Do the intervals hold, and do the verdicts err as seldom as they say? Simulated evaluations, the truth known.

    python benchmarks/coverage.py [--evaluations 10000] [--seed 1]

An evaluation has 30 to 500 problems (evenly in the logarithm), a true rate drawn evenly from 0.05 to 0.95, and 1 to 16
answers per problem, each right with the problem's own rate, which is Beta distributed around the true rate; how far
the rates spread (the correlation of answers to one problem) is drawn evenly from 0 to 0.9. Of a pair of models, some
problems are equally hard for both (a share drawn evenly from 0 to 0.9), of the others each has rates of its own, spread
by its own measure. Equals have the same true rate; of others, b's is by a factor below a's.

Prints, as JSON, how often intervals held the truth: overall, by true rate and by answers per problem; how often equals
were called different; how often a difference was seen that `problems_needed` problems show four times out of five. For
the record, the same of what was not chosen: Wilson's interval over all answers, signs of problems, and a percentile
bootstrap over problems.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from mull.report import stats

LOW, HIGH, BANDS = 0.05, 0.95, 9
PROBLEMS, SAMPLES = (30, 500), (1, 16)

Rng = np.random.Generator
Shares = dict[int, float]


@dataclass(frozen=True)
class Design:
    """An evaluation, as drawn. `spreads` (correlations of answers to a problem): common, the one's, the other's."""

    problems: int
    samples: int
    rate: float
    spreads: tuple[float, ...]
    alike: float  # share of the problems that are equally hard for both


def draw(rng: Rng, samples: tuple[int, int] = SAMPLES, problems: tuple[int, int] = PROBLEMS) -> Design:
    n, k = int(np.exp(rng.uniform(*np.log(problems)))), int(rng.integers(samples[0], samples[1] + 1))
    rate, spreads, alike = rng.uniform(LOW, HIGH), rng.uniform(0.001, 0.9, 3), rng.uniform(0, 0.9)
    return Design(n, k, float(rate), tuple(map(float, spreads)), float(alike))


@dataclass
class Tally:
    hits: list[tuple[Design, bool]] = field(default_factory=list)

    def add(self, drawn: Design, hit: bool) -> None:
        self.hits.append((drawn, hit))

    def share(self) -> float:
        return float(np.mean([hit for _, hit in self.hits]))

    def by(self, name: Callable[[Design], str]) -> dict[str, float]:
        groups: dict[str, list[bool]] = {}
        for drawn, hit in self.hits:
            groups.setdefault(name(drawn), []).append(hit)
        return {key: round(float(np.mean(groups[key])), 4) for key in sorted(groups)}

    def told(self) -> dict[str, Any]:
        return {
            "mean": round(self.share(), 4),
            "by true rate": self.by(band),
            "by spread": self.by(lambda drawn: f"{int(drawn.spreads[0] * 10) / 10:.1f}"),
            "by answers per problem": self.by(lambda drawn: f"{drawn.samples:02}"),
            "by problems": self.by(lambda drawn: "030 to 049" if drawn.problems < 50 else "050 to 149"
                                   if drawn.problems < 150 else "150 to 500"),
        }  # fmt: skip


def band(drawn: Design) -> str:
    width = (HIGH - LOW) / BANDS
    low = LOW + width * min(BANDS - 1, int((drawn.rate - LOW) / width))
    return f"{low:.2f} to {low + width:.2f}"


def rates(rng: Rng, drawn: Design, spread: float) -> np.ndarray:
    size = (1 - spread) / spread
    return rng.beta(drawn.rate * size, (1 - drawn.rate) * size, drawn.problems)


def answers(rng: Rng, each: np.ndarray, samples: int) -> list[list[bool]]:
    return (rng.random((len(each), samples)) < each[:, None]).tolist()


def both(rng: Rng, drawn: Design, factor: float) -> tuple[Shares, Shares]:
    """Shares solved by two models whose true rates are `rate` and `rate * factor`."""
    alike = rng.random(drawn.problems) < drawn.alike
    common = rates(rng, drawn, drawn.spreads[0])
    a, b = (np.where(alike, common, rates(rng, drawn, spread)) for spread in drawn.spreads[1:])
    given = (answers(rng, side, drawn.samples) for side in (a, b * factor))
    left, right = ({i: sum(k) / len(k) for i, k in enumerate(side)} for side in given)
    return left, right


def paired(rng: Rng, drawn: Design, factor: float) -> stats.Paired:
    found = stats.paired(*both(rng, drawn, factor))
    assert found is not None
    return found


def single(rng: Rng, evaluations: int, **how: Any) -> tuple[Tally, Tally]:
    """Of one model: how often the interval holds, and Wilson's as if all answers were independent."""
    ours, naive = Tally(), Tally()
    for _ in range(evaluations):
        drawn = draw(rng, **how)
        given = answers(rng, rates(rng, drawn, drawn.spreads[0]), drawn.samples)
        share = stats.clustered(given)
        assert share is not None
        ours.add(drawn, share.low <= drawn.rate <= share.high)
        low, high = stats.wilson(sum(map(sum, given)), drawn.problems * drawn.samples)
        naive.add(drawn, low <= drawn.rate <= high)
    return ours, naive


def pairs(rng: Rng, evaluations: int, least: float = 1.0, **how: Any) -> tuple[Tally, Tally]:
    """Of two, the second by a factor of `least` to 1 below: how often the interval holds, and a difference is told."""
    held, told = Tally(), Tally()
    for _ in range(evaluations):
        drawn, factor = draw(rng, **how), float(rng.uniform(least, 1))
        found = paired(rng, drawn, factor)
        held.add(drawn, found.low <= drawn.rate * (1 - factor) <= found.high)
        told.add(drawn, stats.verdict(found.p, found.difference) != stats.UNTOLD)
    return held, told


def discarded(rng: Rng, evaluations: int) -> dict[str, float]:
    """How often two equals, with repeated answers, would be called different by what was not chosen."""
    signs = boots = 0
    for _ in range(evaluations):
        a, b = both(rng, draw(rng, samples=(2, 16)), 1.0)
        gaps = np.array([a[i] - b[i] for i in a])
        signs += stats.mcnemar(int((gaps > 0).sum()), int((gaps < 0).sum())) < 0.05
        low, high = np.quantile(gaps[rng.integers(0, len(gaps), (500, len(gaps)))].mean(1), (0.025, 0.975))
        boots += low > 0 or high < 0
    return {"signs of problems": signs / evaluations, "percentile bootstrap": boots / evaluations}


def power(rng: Rng, evaluations: int, **how: Any) -> float:
    """How often as many problems as a large pilot calls for show the difference that is there."""
    shown = done = 0
    while done < evaluations:
        drawn, factor = draw(rng, **how), float(rng.uniform(0.8, 0.95))
        needed = stats.problems_needed(paired(rng, replace(drawn, problems=20000), factor))
        if needed is not None and 30 <= needed <= 3000:
            found = paired(rng, replace(drawn, problems=needed), factor)
            shown += stats.verdict(found.p, found.difference) == "better"
            done += 1
    return shown / evaluations


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--evaluations", type=int, default=10000)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    n, began = given.evaluations, time.perf_counter()
    rng = np.random.default_rng(given.seed)
    ours, naive = single(rng, n)
    once, several = (1, 1), (2, 16)
    report = {
        "95 % intervals hold the truth": ours.told(),
        "of only 30 problems": single(rng, n, problems=(30, 30))[0].told(),
        "Wilson over all answers would": naive.told(),
        "intervals of differences hold, one answer each": pairs(rng, n, 0.5, samples=once)[0].told(),
        "intervals of differences hold, several": pairs(rng, n, 0.5, samples=several)[0].told(),
        "equals called different, one answer each": pairs(rng, n, samples=once)[1].told(),
        "equals called different, several": pairs(rng, n, samples=several)[1].told(),
        "equals called different, had we chosen": discarded(rng, n // 5),
        "seen among problems_needed, one answer each": power(rng, n // 50, samples=once),
        "seen among problems_needed, several": power(rng, n // 50, samples=several),
        "evaluations": n, "seed": given.seed, "seconds": round(time.perf_counter() - began),
    }  # fmt: skip
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
