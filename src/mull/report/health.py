"""Whether a set can tell what is asked of it: read this before any score.

Of each set that was answered: can it still tell models apart (ceiling, floor, problems that everybody or nobody
solves), is this copy the known one and which of its answers are known to be wrong, is it in the training text of the
models, and do models solve it better than the same problems with other numbers (a pair of tasks NAME and NAME-fresh).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mull.report import stats, words
from mull.report.overlap import Training, overlaps, training
from mull.report.summary import HELD_OUT, Exam, read_exams, read_facts
from mull.tasks import data
from mull.tasks.perturb import FRESH
from mull.types import Problem, UserError, read_rollouts

SATURATED = 0.97
FEW_POINTS = 0.1  # half an interval: from there on a set is called small
ROOM = 10  # problems that must be left to tell models apart
NAMED = 10

Row = dict[str, Any]
Set = tuple[str, str, str, str]  # task, label, size as JSON, split


def of_run(folder: Path, more: Sequence[Path] = ()) -> list[Row]:
    """The sheet of a saved run; `more`: runs, folders and files with what its models were trained on, where known."""
    return health(read_exams(folder), asked(folder), training([folder, *more]))


def asked(folder: Path) -> dict[str, list[Problem]]:
    """The problems of held-out sets that were put to anybody, each once, by task."""
    found: dict[str, dict[tuple[str, str], Problem]] = {}
    for noted in sorted((folder / "rollouts").glob("*.json")):
        if (path := noted.with_suffix(".jsonl")).exists() and read_facts(noted)["label"] == HELD_OUT:
            for rollout in read_rollouts(path):
                problem = rollout.problem
                text = "\n".join(m.content for m in problem.messages if m.role == "user")
                found.setdefault(problem.task, {}).setdefault((problem.id, text), problem)
    return {task: list(problems.values()) for task, problems in found.items()}


def health(
    exams: Sequence[Exam], problems: Mapping[str, Sequence[Problem]] | None = None, known: Training | None = None
) -> list[Row]:
    """Rows to print before any score, warnings first: {task, label, about, level, line, ...}.

    about     range (can it tell models apart), copy, errata, twice (a question asked twice), overlap, fresh
    level     warning: a reason to doubt the score; note
    line      a sentence
    and, by `about`:
      range   n, targets, solved_by_all, solved_by_none, apart (what some solve and others do not), worth (evenly hard
              problems that would tell as much), accuracy and ci95 of the best
      errata  ids -> why, of those asked
      overlap the row of mull.report.overlap.overlap
      fresh   model, thinking, n, difference (published minus fresh), ci95, p, verdict
    Without `problems` nothing is said of errata asked, repetitions, overlap and fresh variants.
    """
    rows: list[Row] = []
    for (task, label, _, split), members in _sets(exams).items():
        rows += [{"task": task, "label": label} | row for row in _range(task, label, members)]
        if label == HELD_OUT and not task.endswith(FRESH):
            rows += [{"task": task, "label": label} | row for row in _copy(task, split, (problems or {}).get(task))]
    for task, asked_of in (problems or {}).items():
        rows += [{"task": task, "label": HELD_OUT} | row for row in _twice(task, asked_of)]
    for task, found in overlaps(problems or {}, known).items() if known else ():
        line = f"{task}: {' '.join(found['lines'])}"
        rows.append({"task": task, "label": HELD_OUT} | _row("overlap", found["grams"] > 0, line, **found))
    rows += _fresh(exams, problems or {})
    return sorted(rows, key=lambda row: row["level"] != "warning")


def _row(about: str, warning: bool, line: str, **more: Any) -> Row:
    return {"about": about, "level": "warning" if warning else "note", "line": line, **more}


def _sets(exams: Iterable[Exam]) -> dict[Set, list[Exam]]:
    sets: dict[Set, list[Exam]] = {}
    for exam in exams:
        row = exam.row
        key = row["task"], row["label"], json.dumps(row.get("size") or {}, sort_keys=True), row["split"]
        sets.setdefault(key, []).append(exam)
    return sets


# can it tell models apart?


def _shares(exam: Exam) -> dict[Any, float]:
    """Problem -> share solved, of what was scored."""
    scored = {k: [a for a in answers if a.outcome != stats.NOT_SCORED] for k, answers in exam.problems.items()}
    return {k: sum(a.outcome == "solved" for a in answers) / len(answers) for k, answers in scored.items() if answers}


def _range(task: str, label: str, members: Sequence[Exam]) -> list[Row]:
    scored = [(exam.row, shares) for exam in members if (shares := _shares(exam))]
    if not scored:
        return [_row("range", True, f"{_set(task, label)}: no answer was scored, so nothing can be said of it.")]
    common = set.intersection(*(set(shares) for _, shares in scored))
    by_all = sum(all(shares[key] == 1 for _, shares in scored) for key in common)
    by_none = sum(all(shares[key] == 0 for _, shares in scored) for key in common)
    best = max((row for row, _ in scored), key=lambda row: row["accuracy"])
    n, apart = len(common), len(common) - by_all - by_none
    rates = [row["accuracy"] for row, _ in scored]
    facts = {
        "n": n, "targets": len(scored), "solved_by_all": by_all, "solved_by_none": by_none, "apart": apart,
        "worth": n * sum(4 * rate * (1 - rate) for rate in rates) / len(rates),
        "accuracy": best["accuracy"], "ci95": best["ci95"],
    }  # fmt: skip
    line = f"{_set(task, label)}: {n} problems, worth {facts['worth']:.0f} evenly hard ones"
    if len(scored) > 1:
        line += (
            f"; all {len(scored)} targets solve {by_all} of them and none solves {by_none}, so {apart} tell them apart"
        )
    doubts = _doubts(best, facts)
    return [_row("range", bool(doubts), f"{line}.{''.join(f' {doubt}' for doubt in doubts)}", **facts)]


def _doubts(best: Row, facts: Row) -> list[str]:
    found = []
    low, high = best["ci95"]
    if high > SATURATED:
        left = words.percent(1 - low)
        solves = f"{best['model']} solves {words.percent(best['accuracy'])} ({words.interval([low, high])})"
        doubt = f"who is better could gain {left} at most, and as many of the set's answers may be wrong"
        found.append(f"Ceiling: {solves}; {doubt}.")
    if best["accuracy"] == 0:
        found.append("Floor: nobody solves any of it, so it tells nobody apart.")
    elif facts["targets"] > 1 and facts["apart"] < ROOM:
        found.append("Hardly any problem is left that one target solves and another does not.")
    if (half := (high - low) / 2) > FEW_POINTS:
        reach = words.points(half).lstrip("+")
        found.append(f"It is small: the interval reaches {reach} points either way.")
    return found


def _set(task: str, label: str) -> str:
    return task if label == HELD_OUT else f"{task}, {label}"


# is this copy the known one?


def _copy(task: str, split: str, problems: Sequence[Problem] | None) -> list[Row]:
    name = f"{task}_{split}" if f"{task}_{split}" in data.SOURCES else task
    if name not in data.SOURCES:
        return []
    try:
        state, errata = data.state(name), data.errata(name)
    except UserError as error:
        return [_row("copy", True, f"{task}: the copy could not be looked at: {error}")]
    rows = [_row("copy", bool(state), state or f"{task}: the copy is the one that was looked through.")]
    if problems is not None:
        ids = {problem.id for problem in problems}
        errata = {at: why for at, why in errata.items() if at in ids}
    if errata:
        told = "; ".join(f"{at}: {why}" for at, why in list(errata.items())[:NAMED])
        more = f"; and {len(errata) - NAMED} more" if len(errata) > NAMED else ""
        line = f"{task}: {len(errata)} of the problems asked are known to be wrong ({told}{more})."
        rows.append(_row("errata", True, line, ids=errata))
    return rows


def _twice(task: str, problems: Sequence[Problem]) -> list[Row]:
    asked_of = Counter(tuple((m.role, m.content) for m in p.messages if m.role != "assistant") for p in problems)
    again = sum(count - 1 for count in asked_of.values())
    if not again:
        return []
    line = f"{task}: {again} of {len(problems)} questions are asked twice, so the intervals are a little too narrow."
    return [_row("twice", True, line, n=again)]


# is it solved better than the same problems with other numbers?


def _fresh(exams: Sequence[Exam], problems: Mapping[str, Sequence[Problem]]) -> list[Row]:
    """Per target: published against fresh, paired by the problem that a variant was made of."""
    rows = []
    by_who = {(e.row["task"], e.row["model"], e.row["thinking"]): e for e in exams if e.row["label"] == HELD_OUT}
    for (task, model, thinking), exam in by_who.items():
        published = by_who.get((task.removesuffix(FRESH), model, thinking))
        if not task.endswith(FRESH) or published is None:
            continue
        of = {problem.id: str(problem.meta.get("of", "")) for problem in problems.get(task, ())}
        variants: dict[str, list[float]] = {}
        for (_, _, at), share in _shares(exam).items():
            variants.setdefault(of.get(at, ""), []).append(share)
        old = {at: share for (_, _, at), share in _shares(published).items()}
        new = {at: sum(shares) / len(shares) for at, shares in variants.items()}
        if (result := stats.paired(old, new)) is not None:
            rows.append(_gap(task.removesuffix(FRESH), model, thinking, result))
    return rows


def _gap(task: str, model: str, thinking: bool, result: stats.Paired) -> Row:
    verdict = stats.verdict(result.p, result.difference)
    low, high = words.points(result.low), words.points(result.high)
    said = {
        "better": "which is what having learnt the answers by heart looks like",
        "worse": "so the fresh ones are easier",
    }.get(verdict, f"which is no sign of memory; {words.points(stats.smallest(result)).lstrip('+')} points would show")
    line = (
        f"{task}: {model}{'' if thinking else ', at once,'} solves {words.percent(result.a)} as published and "
        f"{words.percent(result.b)} with other numbers, {words.points(result.difference)} points ({low} to {high}, "
        f"{result.n} pairs), {said}."
    )
    return {"task": task, "label": HELD_OUT} | _row(
        "fresh", verdict == "better", line, model=model, thinking=thinking, n=result.n,
        difference=result.difference, ci95=[result.low, result.high], p=result.p, verdict=verdict,
    )  # fmt: skip


__all__ = ["asked", "health", "of_run"]
