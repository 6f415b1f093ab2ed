"""What an evaluation came to, in sentences: who is better, or that it cannot be told, and what speaks against it.

All of it is derived from the content of report.json (summary.py). The page and the terminal say the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mull.report import stats, words
from mull.report.summary import ALL_TASKS, HELD_OUT

NOTABLE = 0.02  # of the answers: so many without a verdict, or lost to the machinery, belong into the headline
FEW = 20  # problems, below which no interval says much
NAMED = 3  # tasks that are named; more are counted

Row = Mapping[str, Any]
Target = tuple[str, bool]  # model, thinking


@dataclass(frozen=True, slots=True)
class Verdict:
    headline: str
    caveats: tuple[str, ...]  # belong to it
    details: tuple[str, ...]  # the other comparisons, a sentence each


def verdict(summary: Row) -> Verdict:
    """Of a finished evaluation, or as far as it has come."""
    rows = subjects(summary)
    if not rows:
        return Verdict("Nothing has been answered yet.", _unfinished(summary), ())
    names = _Names(rows)
    scored = [row for row in rows if row["accuracy"] is not None]
    pairs = _pairs(summary, rows)
    chief = _leading(pairs, scored, names) if pairs else _alone(scored, rows)
    rest = [_sentence(row, names) for row in pairs if len(pairs) > 1 or len(scored) > 2]
    caveats = [line for row in rows if (line := _caveat(row, names))]
    caveats += [line for row in pairs if (line := _hanging(row, rows, names))]
    fewest = min((row["n"] for row in scored), default=FEW)
    if fewest < FEW:
        caveats.append(f"{_problems(fewest)} are few: read the counts, not the shares.")
    return Verdict(chief, (*caveats, *_unfinished(summary)), tuple(rest))


def subjects(summary: Row) -> list[Row]:
    """The overall rows that the page is about, one per model and mode: those of the held-out problems if there are."""
    rows = summary["overall"]
    labels = list(dict.fromkeys(row["label"] for row in rows))
    label = HELD_OUT if HELD_OUT in labels else labels[-1] if labels else ""  # of several budgets, the largest
    found: dict[Target, Row] = {}
    for row in rows:
        if row["label"] == label:
            found[row["model"], row["thinking"]] = row
    order = [target["name"] for target in summary["targets"]]
    return sorted(found.values(), key=lambda row: order.index(row["model"]) if row["model"] in order else len(order))


class _Names:
    """A target's name: with its mode only where a model sat in both."""

    def __init__(self, rows: Sequence[Row]):
        models = [row["model"] for row in rows]
        self.both = {model for model in models if models.count(model) > 1}

    def of(self, row: Row) -> str:
        mode = words.mode(row["thinking"])
        return f"{row['model']} ({mode})" if row["model"] in self.both else row["model"]


def _alone(scored: Sequence[Row], rows: Sequence[Row]) -> str:
    if not scored:
        return f"{rows[0]['model']} has no answer that could be scored."
    row = max(scored, key=lambda one: one["thinking"])
    repeated = f", {row['samples']} answers to each," if row["samples"] > 1 else ""
    return (
        f"{row['model']} solves {words.percent(row['accuracy'])} of {_problems(row['n'])}{_of(row['tasks'])}{repeated} "
        f"(95{words.THIN}% interval {words.interval(row['ci95'])})."
    )


def _leading(pairs: Sequence[Row], scored: Sequence[Row], names: _Names) -> str:
    """Of two, how they differ; of more, who solves most, and from whom that can be told."""
    if len(pairs) == 1:
        tasks = next((row["tasks"] for row in scored if row["model"] == pairs[0]["a"]["model"]), [])
        return _sentence(pairs[0], names, _of(tasks))
    first = max(scored, key=lambda row: row["accuracy"])
    against = [_turned(row, first) for row in pairs if _target(first) in (_target(row["a"]), _target(row["b"]))]
    told = [row for row in against if row["verdict"] == "better"]
    untold = [row for row in against if row not in told]
    parts = [
        f"{names.of(first)} solves the most, {words.percent(first['accuracy'])} of {_problems(first['n'])}"
        f"{_of(first['tasks'])} (95{words.THIN}% interval {words.interval(first['ci95'])})"
    ]
    if told:
        parts.append(f"more than {words.listed([names.of(row['b']) for row in told])}")
    if untold:
        parts.append(f"but it cannot be told from {words.listed([names.of(row['b']) for row in untold])}")
    return f"{', '.join(parts)}."


def _sentence(row: Row, names: _Names, tasks: str = "") -> str:
    """A paired difference, the better one first where it is known."""
    if row["difference"] < 0:
        row = _turned(row, row["b"])
    a, b = (f"{words.percent(row[side]['accuracy'])}" for side in "ab")
    low, high = (words.points(end) for end in row["ci95"])
    by = f"{words.points(row['difference']).lstrip('+')} points"
    sure = f"95{words.THIN}% interval {low} to {high}, p{words.THIN}{words.equals(row['p'])}"
    over = f"the same {_problems(row['n'])}{tasks}"
    if row["verdict"] != stats.UNTOLD:
        return (
            f"{names.of(row['a'])} is better than {names.of(row['b'])}: {a} against {b} of {over}, {by} more ({sure})."
        )
    line = (
        f"{names.of(row['a'])} cannot be told from {names.of(row['b'])}: {a} against {b} of {over}, a difference of "
        f"{by} ({sure})."
    )
    seen = words.points(row["smallest"]).lstrip("+") if row["smallest"] is not None else ""
    line += f" So many problems show a difference of {seen} points four times of five." if seen else ""
    more = (row["problems_needed"] or 0) - row["n"]
    return line + (f" About {more:,} more would decide one of the size at hand." if more > 0 else "")


def _caveat(row: Row, names: _Names) -> str:
    """What hangs on answers without a verdict, and on those that the machinery lost; "" where that is little."""
    counts, scored = row["outcomes"], row["answers"]
    parts = []
    if undecided := _undecided(row):
        parts.append(
            f"{words.percent(undecided)} were cut off or unreadable and count as not solved "
            f"({words.interval(row['bounds'])}{words.THIN}% all undecided ones lost .. all won)"
        )
    failed = counts.get(stats.NOT_SCORED, 0)
    if failed > NOTABLE * (scored + failed):
        ends = row["solved"] / (scored + failed), (row["solved"] + failed) / (scored + failed)
        parts.append(
            f"{failed} of {scored + failed} failed for technical reasons and are left out "
            f"({words.interval(ends)}{words.THIN}% all lost .. all won)"
        )
    return f"Of the answers of {names.of(row)}, {', and '.join(parts)}." if parts else ""


def _hanging(pair: Row, rows: Sequence[Row], names: _Names) -> str:
    """Whether who is better hangs on the undecided answers of who is worse; "" where it does not, or is not told."""
    if pair["verdict"] == stats.UNTOLD:
        return ""
    winner, loser = ("a", "b") if pair["verdict"] == "better" else ("b", "a")
    found = {_target(row): row for row in rows}
    ahead, behind = (found.get(_target(pair[side])) for side in (winner, loser))
    if not ahead or not behind or not _undecided(behind) or behind["bounds"][1] < ahead["bounds"][0]:
        return ""
    return f"If all undecided answers of {names.of(behind)} were won, {names.of(ahead)} would not be ahead of it."


def _undecided(row: Row) -> float:
    """The share of answers that were cut off or unreadable, where it is worth a word; else 0."""
    undecided = row["outcomes"].get("truncated", 0) + row["outcomes"].get("unparsed", 0)
    return undecided / row["answers"] if undecided > NOTABLE * row["answers"] else 0.0


def _unfinished(summary: Row) -> tuple[str, ...]:
    return (
        () if all(stage["done"] for stage in summary["stages"]) else ("This evaluation has not come to its end yet.",)
    )


def _pairs(summary: Row, rows: Sequence[Row]) -> list[Row]:
    """Paired differences over all tasks between the targets; of a model that sat in both modes, by its thinking."""
    label, thinkers = rows[0]["label"], {row["model"] for row in rows if row["thinking"]}
    found = []
    for row in summary["comparisons"]:
        if row["task"] != ALL_TASKS or row["label"] != label:
            continue
        ends = [row["a"], row["b"]]
        if row["kind"] == "thinking" or all(end["thinking"] or end["model"] not in thinkers for end in ends):
            found.append(row)
    return found


def _target(row: Row) -> Target:
    return row["model"], row["thinking"]


def _turned(row: Row, first: Row) -> Row:
    """The same difference, seen from `first`."""
    if _target(row["a"]) == _target(first):
        return row
    low, high = row["ci95"]
    other = {"better": "worse", "worse": "better"}.get(row["verdict"], row["verdict"])
    return {
        **row, "a": row["b"], "b": row["a"], "difference": -row["difference"], "ci95": [-high, -low],
        "better": row["worse"], "worse": row["better"], "verdict": other,
    }  # fmt: skip


def _problems(n: int) -> str:
    return f"{n:,} problem{'s' * (n != 1)}"


def _of(tasks: Sequence[str]) -> str:
    return f" of {words.listed(tasks)}" if len(tasks) <= NAMED else f" of {len(tasks)} tasks"


def dominated(rows: Sequence[Row]) -> dict[Target, list[Target]]:
    """By whom each target is beaten: who solves no less for no more money an answer, and is better in one of the two.

    By what was measured, not by what can be told: the comparisons say whether a difference may be chance.
    """
    known = [row for row in rows if row["accuracy"] is not None and row["usd_per_answer"] is not None]

    def beats(a: Row, b: Row) -> bool:
        ours, theirs = ((row["accuracy"], -row["usd_per_answer"]) for row in (a, b))
        return ours != theirs and ours[0] >= theirs[0] and ours[1] >= theirs[1]

    return {_target(row): [_target(other) for other in known if beats(other, row)] for row in known}


__all__ = ["NOTABLE", "Row", "Target", "Verdict", "dominated", "subjects", "verdict"]
