"""Answers graded per second: a set's own solutions, each of which must be solved, by part of the house.

    python benchmarks/grading.py --parts code math --data ../shared/data

Code: each answer is run in the sandbox, so this is the time of starting two confined processes more than all else. It
says which confinement it measured.

Mathematics: the sets' own solutions and, as wrong answers, those of the next problem. The first round reads every text
anew; a later one finds them read, as the further samples of an evaluation mostly are. One thread: the second verifier
is one process.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from mull.tasks import data
from mull.tasks.base import verdict
from mull.types import Completion


def code(items: int, threads: int) -> None:
    from mull.tasks import sandbox
    from mull.tasks.code import HumanEval, Mbpp

    print(sandbox.protection())
    for task in (HumanEval(), Mbpp()):
        problems = task.problems("test", items)
        answers = [Completion((), (), "stop", task.gold(problem)) for problem in problems]
        began = time.perf_counter()
        with ThreadPoolExecutor(threads) as pool:
            found = list(pool.map(lambda pair, task=task: verdict(task, *pair), zip(problems, answers, strict=True)))
        seconds = time.perf_counter() - began
        wrong = [problem.id for problem, one in zip(problems, found, strict=True) if one.outcome != "solved"]
        if wrong:
            raise SystemExit(f"{task.name}: the set's own answers to {', '.join(wrong)} were not solved.")
        print(f"{task.name:12}{len(problems):5} items{len(problems) / seconds:8.1f} items/s with {threads} threads")


def mathematics(items: int, threads: int) -> None:
    from mull.tasks import exact, results
    from mull.tasks.mathematics import mathematics

    for name in ("math500", "gsm8k"):
        task = mathematics()[name]
        problems = task.problems("test", items)
        texts = [task.gold(problem) for problem in problems]
        task.compare("1", "1")  # the process is up
        for kind, said in (("right", texts), ("wrong", texts[1:] + texts[:1])):
            speeds = []
            for _ in range(3):
                began = time.perf_counter()
                found = [task.compare(p.answer, text).outcome for p, text in zip(problems, said, strict=True)]
                speeds.append(len(problems) / (time.perf_counter() - began))
            if kind == "right" and {*found} != {"solved"}:
                raise SystemExit(
                    f"{name}: {len(found) - found.count('solved')} of the set's own answers are not solved."
                )
            began = time.perf_counter()
            for problem, text in zip(problems, said, strict=True):
                exact.compare(problem.answer, results.result(text, numbers=True) or "")
            alone = len(problems) / (time.perf_counter() - began)
            print(f"{name:12}{len(problems):5} {kind} items{speeds[0]:8.1f} items/s with both verifiers, "
                  f"then {speeds[-1]:.1f}; ours alone {alone:.1f}")  # fmt: skip


PARTS: dict[str, Callable[[int, int], None]] = {"code": code, "math": mathematics}


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--parts", nargs="+", choices=sorted(PARTS), default=sorted(PARTS))
    parser.add_argument("--items", type=int, default=1000, help="at most so many of each set")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--data", help=f"the folder of the sets, else {data.FOLDER}")
    given = parser.parse_args()
    if given.data:
        os.environ[data.FOLDER] = given.data
    for part in given.parts:
        PARTS[part](given.items, given.threads)


if __name__ == "__main__":
    main()
