"""The page of an evaluation: the verdict on top, then health, tables, the frontier, and every item to look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mull.endpoints import Reported, reported
from mull.locate import run_config
from mull.report import figures, words
from mull.report.figures import Colours
from mull.report.health import asked, health
from mull.report.items import browse
from mull.report.overlap import training
from mull.report.summary import ALL_TASKS, HELD_OUT, Exam
from mull.report.verdict import Row, Target, dominated, subjects, verdict

LABELS = {HELD_OUT: ""}  # how most sets are labelled, so that it says nothing


def context(summary: Row, exams: Sequence[Exam], folder: Path) -> dict[str, Any]:
    """What evaluation.html.jinja shows. Raises UserError for rollouts that cannot be understood."""
    names = [target["name"] for target in summary["targets"]]
    names = list(dict.fromkeys([*names, *(row["model"] for row in summary["evals"])]))
    colours = Colours(("", *names))  # the first colour is grey
    rows, found = subjects(summary), verdict(summary)
    beaten = dominated(rows)
    exams = sorted(exams, key=lambda exam: (names.index(exam.row["model"]), not exam.row["thinking"]))  # as in tables
    browser = browse(folder, exams)
    return {
        "name": summary["name"],
        "about": summary["about"],
        "verdict": found,
        "modes": len({row["thinking"] for row in summary["overall"]}) > 1,
        "facts": _facts(summary, browser.total),
        "health": summary["health"],
        "groups": _groups(summary, names),
        "repeated": any("maj_k" in row for row in summary["evals"]),
        "outcome_names": list(dict.fromkeys(o for row in summary["overall"] for o in row["outcomes"])),
        "verdicts": _verdicts(summary),
        "frontier": figures.frontier(rows, colours, "usd_per_answer"),
        "offers": [_offer(row, summary, beaten) for row in sorted(rows, key=_dearest)],
        "reported": _reported(summary),
        "browser": browser,
        "stages": summary["stages"],
        "total": summary["total"],
        "charged": any(row["charged_usd"] is not None for row in summary["overall"]),
        "colours": colours,
        "bar": figures.bar,
        "stack": figures.stack,
        "gap": figures.gap,
        "words": words,
    }


def sheet(folder: Path, exams: Sequence[Exam]) -> list[dict[str, Any]]:
    """The health of what was asked: see mull.report.health. What models learnt from is looked through where it is."""
    known = [Path(path) for path in run_config(folder).get("trained_on") or [] if Path(path).exists()]
    return health(exams, asked(folder), training([folder, *known]))


def _facts(summary: Row, problems: int) -> list[tuple[str, str]]:
    rows, total = summary["overall"], summary["total"]
    answers = sum(sum(row["outcomes"].values()) for row in rows)
    found = [
        (f"{problems:,}", "items"),
        (f"{answers:,}", "answers"),
        (words.clock(total["seconds"]), "of machine time"),
    ]
    return [*found, (words.money(total["usd"]), "for all of it")]


def _groups(summary: Row, names: Sequence[str]) -> list[dict[str, Any]]:
    """Per set of problems the rows of all targets; all tasks together first, where there are several."""
    place = {name: i for i, name in enumerate(names)}
    groups: dict[str, list[Row]] = {}
    several = len({row["task"] for row in summary["evals"]}) > 1
    for row in [*(summary["overall"] if several else []), *summary["evals"]]:
        groups.setdefault(_title(row), []).append(row)
    return [
        {"title": title, "rows": sorted(rows, key=lambda row: (place[row["model"]], not row["thinking"]))}
        for title, rows in groups.items()
    ]


def _title(row: Row) -> str:
    size = ", ".join(f"{name} {value}" for name, value in row.get("size", {}).items())
    label = LABELS.get(row["label"], row["label"])
    return ", ".join(part for part in (f"{row['task']} ({size})" if size else row["task"], label) if part)


def _verdicts(summary: Row) -> dict[str, Any]:
    rows = summary["comparisons"]
    single = len({row["task"] for row in rows}) <= 2  # all tasks, and the one there is
    return {
        "whole": [row for row in rows if row["task"] == ALL_TASKS],
        "rest": [row for row in rows if row["task"] != ALL_TASKS and not single],
        "reach": min(1.0, max(0.05, max((abs(end) for row in rows for end in row["ci95"]), default=1.0))),
    }  # fmt: skip


def _dearest(row: Row) -> tuple[float, float]:
    return -(row["accuracy"] or 0.0), row["usd_per_answer"] or 0.0


def _offer(row: Row, summary: Row, beaten: Mapping[Target, list[Target]]) -> dict[str, Any]:
    """A target with its price, who beats it in both, and whether that can be told from chance."""
    told = {}
    for pair in summary["comparisons"]:
        if pair["task"] == ALL_TASKS and pair["label"] == row["label"]:
            ends = [(pair[side]["model"], pair[side]["thinking"]) for side in "ab"]
            told[frozenset(ends)] = pair["verdict"]
    us = row["model"], row["thinking"]
    target = next((one for one in summary["targets"] if one["name"] == row["model"]), None)
    better = [
        {"model": model, "thinking": mode, "told": told.get(frozenset([us, (model, mode)]), "") in ("better", "worse")}
        for model, mode in beaten.get(us, [])
    ]
    return {"row": row, "price": _price(target), "beaten": better, "ranked": us in beaten}


def _price(target: Row | None) -> str:
    """How a target's answers are priced."""
    if target is None:
        return ""
    if (rate := target["usd_per_million"]) is None:
        return f"time at {words.money(target['usd_per_hour'])} an hour"
    return f"${rate['input']:g} in, ${rate['output']:g} out per million tokens, as of {target['priced']}"


def _reported(summary: Row) -> list[Reported]:
    tasks = dict.fromkeys(row["task"] for row in summary["evals"])
    return [score for task in tasks for score in reported(task)]


__all__ = ["context", "sheet"]
