"""Two saved runs, problem by problem: which is better, by how much, or that this cannot be told.

Nothing is run again and nothing but rollouts is read: what others reported of a model is no part of a comparison. Two
sets of answers meet where task, label, split, size and mode are the same; their problems by id, and only if they ask
the same and hold the same answer for right. What has no counterpart is named, never dropped in silence.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mull.locate import find_run
from mull.report import stats, words
from mull.report.summary import ALL_TASKS, HELD_OUT, Row, adjust, evaluate_row, judged_pair, read_facts
from mull.run import read_json
from mull.types import Message, Rollout, UserError, read_rollouts

NOTABLE = 0.02  # of the answers: from so many undecided or failed ones a result is said to hang on them
WIDTH = 120  # of a first line that is shown
SETTINGS = ("samples", "temperature", "max_tokens")
SPENT = ("seconds", "usd", "flops", "kwh")


@dataclass(frozen=True, slots=True)
class Sitting:
    """One model before one set of problems in one mode, as a run has kept it."""

    path: Path
    facts: Row
    task: str
    model: str
    thinking: bool

    @property
    def set(self) -> tuple[str, ...]:
        """What names the problems, whoever answers them."""
        size = json.dumps(self.facts.get("size") or {}, sort_keys=True)
        return self.facts["label"], self.task, size, self.facts["split"]

    @property
    def name(self) -> str:
        label, task, size, split = self.set
        parts = [task, *([label] if label != HELD_OUT else []), *([size] if size != "{}" else [])]
        parts += [split] if split != "test" else []
        return f"{' '.join(parts)}, {_mode(self.thinking)}"


def compare(a: Path, b: Path) -> Row:
    """`a` against `b`: run directories, or RUN:NAME for one of the models that a run has examined.

    The row, as plain data:
      a, b          {run, model}
      rows          per label and modes one row `all tasks` (if there are several), then one per set:
        task, label, split, size, a, b   a and b: {model, thinking} and the figures of summary.evaluate_row over the
                                         common problems (accuracy, ci95, bounds, outcomes, usd, usd_per_solved,
                                         usd_per_solved_ci95 ...); money and time by their share of the set's tokens
        n, difference, ci95, better, worse, p, p_adjusted, verdict (of a: better, worse, cannot tell),
        smallest      difference that these problems show four times out of five
        problems_needed, problems_more   to see a difference of the size at hand; None where it is seen, or a guess
        notes         lines: settings that differ, answers the verdict hangs on
        line          the verdict as a sentence
        differ        (sets only) problems that one solved more often, largest first: {id, asked (first line),
                      a, b: {solved, of, outcomes, says}}
      left_out      what was not compared: {where, why, n, ids (the first ten), line}
      lines         all of this to print, top first
    Raises UserError where a run cannot be read, where it is not clear which of its models is meant, and where the two
    have nothing in common.
    """
    sides = {"a": _sittings(a), "b": _sittings(b)}
    pairs, left_out = _meet(sides["a"], sides["b"])
    groups: dict[tuple[Any, ...], list[_Met]] = {}
    for one, other in pairs:
        met, missing = _together(one, other)
        left_out += missing
        if met.a:
            groups.setdefault((one.facts["label"], one.thinking, other.thinking), []).append(met)
    if not groups:
        why = " ".join(row["line"] for row in left_out[:4])
        raise UserError(f"{a} and {b} have no problem in common, so nothing can be compared. {why}")
    rows = [row for members in groups.values() for row in _rows(members)]
    who = {side: {"run": str(given), "model": found[0].model} for (side, found), given in
           zip(sides.items(), (a, b), strict=True)}  # fmt: skip
    lines = [line for row in rows for line in (row["line"], *(f"  {note}" for note in row["notes"]))]
    return who | {"rows": rows, "left_out": left_out, "lines": lines + [row["line"] for row in left_out]}


# which sets of answers meet


def _sittings(given: Path) -> list[Sitting]:
    """Those of one model of a run. Of two of one set and mode, the later by name."""
    before, colon, name = str(given).rpartition(":")
    named = bool(colon) and not given.exists()
    run = find_run(before if named else given)
    found = [sitting for noted in sorted((run / "rollouts").glob("*.json")) if (sitting := _sitting(noted))]
    if not found:
        raise UserError(f"{run} holds no answers to problems yet: rollouts/ has no finished set.")
    models = list(dict.fromkeys(sitting.model for sitting in found))
    if not named:
        name = models[0] if len(models) == 1 else _result(run)
    if name not in models:
        raise UserError(f"{run} has answers of {', '.join(models)}; say whose are meant: {run}:{models[-1]}.")
    return list({(s.set, s.thinking): s for s in found if s.model == name}.values())


def _sitting(noted: Path) -> Sitting | None:
    """None where the set was not finished, or is empty."""
    path = noted.with_suffix(".jsonl")
    if not path.exists():
        return None
    with path.open(encoding="utf-8") as lines:
        line = lines.readline()
    if not line.strip():
        return None
    try:
        first = Rollout.from_json(line)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}, line 1: not a rollout ({error}).") from None
    return Sitting(path, read_facts(noted), first.problem.task, first.model, first.thinking)


def _result(run: Path) -> str:
    path = run / "models" / "result.json"
    return str(read_json(path).get("model", "")) if path.exists() else ""


def _meet(ours: Sequence[Sitting], theirs: Sequence[Sitting]) -> tuple[list[tuple[Sitting, Sitting]], list[Row]]:
    """Same set, same mode; or, where each side answered a set in one mode only, in those two."""
    pairs, alone = [], []
    for one in ours:
        others = [s for s in theirs if s.set == one.set]
        same = [s for s in others if s.thinking == one.thinking]
        lonely = len(others) == 1 and sum(s.set == one.set for s in ours) == 1
        if same or lonely:
            pairs.append((one, (same or others)[0]))
        else:
            alone.append(_left(one.name, "only a has it"))
    taken = {other.path for _, other in pairs}
    alone += [_left(s.name, "only b has it") for s in theirs if s.path not in taken]
    return pairs, alone


def _left(where: str, why: str, ids: Sequence[str] = ()) -> Row:
    count = f"{len(ids)} problem{'s' * (len(ids) != 1)} of " if ids else ""
    such = f" ({', '.join(ids[:3])}{', ...' * (len(ids) > 3)})" if ids else ""
    line = f"Not compared: {count}{where}: {why}{such}."
    return {"where": where, "why": why, "n": len(ids), "ids": list(ids[:10]), "line": line}


# two sets of answers, problem by problem

Answers = dict[str, list[Rollout]]


@dataclass(frozen=True, slots=True)
class _Met:
    """Two sittings and the answers to the problems that they share; the same problems on both sides."""

    sittings: tuple[Sitting, Sitting]
    a: Answers
    b: Answers
    spent: tuple[Row, Row]  # on these answers


def _together(one: Sitting, other: Sitting) -> tuple[_Met, list[Row]]:
    read = [read_rollouts(sitting.path) for sitting in (one, other)]
    a, b = (_by_id(rollouts) for rollouts in read)
    both = [name for name in a if name in b]
    changed = [name for name in both if _asked(a[name][0]) != _asked(b[name][0])]
    regraded = [n for n in both if n not in changed and a[n][0].problem.answer != b[n][0].problem.answer]
    unscored = [n for n in both if not (_scored(a[n]) and _scored(b[n]))]
    reasons = {
        "only a was asked": [n for n in a if n not in b],
        "only b was asked": [n for n in b if n not in a],
        "the id is the same, the words of the question are not": changed,
        "the question is the same, the answer held for right is not": regraded,
        "the machinery failed, so there is no answer to score": [
            n for n in unscored if n not in changed and n not in regraded
        ],
    }
    left_out = [_left(one.name, why, ids) for why, ids in reasons.items() if ids]
    apart = {name for ids in reasons.values() for name in ids}
    kept = [{n: side[n] for n in both if n not in apart} for side in (a, b)]
    spent = [_share(s, all_, side) for s, all_, side in zip((one, other), read, kept, strict=True)]
    return _Met((one, other), kept[0], kept[1], (spent[0], spent[1])), left_out


def _by_id(rollouts: Iterable[Rollout]) -> Answers:
    found: Answers = {}
    for rollout in rollouts:
        found.setdefault(rollout.problem.id, []).append(_lean(rollout))
    return found


def _lean(rollout: Rollout) -> Rollout:
    """Without log-probabilities and prompt ids, of which two whole sets would not fit into memory."""
    return replace(rollout, completion=replace(rollout.completion, logprobs=()), prompt=())


def _asked(rollout: Rollout) -> list[tuple[str, str]]:
    """What a model answered before is its own; what it was told and asked has to be the same."""
    return [(m.role, m.content) for m in rollout.problem.messages if m.role != "assistant"]


def _scored(answers: Sequence[Rollout]) -> list[Rollout]:
    return [r for r in answers if r.outcome != stats.NOT_SCORED]


def _share(sitting: Sitting, rollouts: Sequence[Rollout], kept: Answers) -> Row:
    """What these answers cost: of the set's money and time, their share of its tokens."""
    whole = sum(_tokens(r) for r in rollouts)
    part = sum(_tokens(r) for answers in kept.values() for r in answers)
    share = part / whole if whole else 1.0
    known = {name: sitting.facts[name] for name in SPENT if sitting.facts.get(name) is not None}
    return {name: value * share for name, value in known.items()}


def _tokens(rollout: Rollout) -> int:
    return sum(turn.count for turn in (*rollout.earlier, rollout.completion))


# what is said of them


def _rows(members: Sequence[_Met]) -> list[Row]:
    """All tasks as one row, if there are several, and each set; verdicts on sets are corrected for their number."""
    rows = [_row([met], met.sittings[0].task) | {"differ": _differ(met)} for met in members]
    if len(members) > 1:
        rows.insert(0, _row(members, ALL_TASKS))
    return [_worded(row) for row in adjust(rows)]


def _row(members: Sequence[_Met], task: str) -> Row:
    first = members[0].sittings[0]
    shares: list[dict[Any, float]] = [{}, {}]
    for i, met in enumerate(members):
        for into, side in zip(shares, (met.a, met.b), strict=True):
            into |= {(i, name): _solved(answers) / len(_scored(answers)) for name, answers in side.items()}
    result = stats.paired(*shares)
    assert result is not None, "members have problems in common"
    sides = {name: _figures(members, k) for k, name in enumerate("ab")}
    size = first.facts.get("size") or {}
    return {
        "task": task, "label": first.facts["label"], "split": first.facts["split"],
        "size": size if task != ALL_TASKS else {}, **sides, **judged_pair(result),
        "notes": [*_settings(members), *_warnings(sides)],
    }  # fmt: skip


def _figures(members: Sequence[_Met], side: int) -> Row:
    """Of one side over the common problems. A problem's id is unique in its set only: the set's place is put before."""
    rollouts = [
        replace(r, problem=replace(r.problem, id=f"{i}/{r.problem.id}"))
        for i, met in enumerate(members)
        for answers in (met.a, met.b)[side].values()
        for r in answers
    ]
    parts = [met.spent[side] for met in members]
    spent = {name: sum(part[name] for part in parts) for name in SPENT if all(name in part for part in parts)}
    facts = members[0].sittings[side].facts
    return evaluate_row(rollouts, label=facts["label"], split=facts["split"], file="", **spent)


def _solved(answers: Sequence[Rollout]) -> int:
    return sum(r.outcome == "solved" for r in answers)


def _settings(members: Sequence[_Met]) -> list[str]:
    """Answers drawn in different ways are compared all the same, and it is said."""
    found: dict[str, None] = {}
    for met in members:
        one, other = met.sittings
        if one.thinking != other.thinking:
            found[f"a answered {_mode(one.thinking)}, b {_mode(other.thinking)}"] = None
        left, right = (s.facts | _samples(side) for s, side in zip(met.sittings, (met.a, met.b), strict=True))
        for name in SETTINGS:
            values = left.get(name), right.get(name)
            if None not in values and values[0] != values[1]:
                found[f"{name.replace('_', ' ')}: a {values[0]}, b {values[1]} ({one.task})"] = None
    return list(found)


def _samples(side: Answers) -> Row:
    return {"samples": max(len(answers) for answers in side.values())}


def _warnings(sides: Mapping[str, Row]) -> list[str]:
    found = []
    for name, row in sides.items():
        low, high = row["bounds"]
        if high - low > NOTABLE:
            reach = f"{words.percent(low)} if all are wrong, {words.percent(high)} if all are right"
            share = words.percent(high - low)
            found.append(f"{share} of {name}'s answers have no verdict (cut off, unreadable ...): {reach}")
        failed = row["outcomes"].get(stats.NOT_SCORED, 0) / sum(row["outcomes"].values())
        if failed > NOTABLE:
            found.append(f"{words.percent(failed)} of {name}'s answers are left out, because the machinery failed")
    return found


def _worded(row: Row) -> Row:
    needed = row["problems_needed"]
    more = max(0, needed - row["n"]) if needed is not None else None
    low, high = (words.points(end) for end in row["ci95"])
    p = words.probability(row["p"])
    if row["p_adjusted"] != row["p"]:
        p += f", {words.probability(row['p_adjusted'])} adjusted for the number of tasks"
    verdict = {"better": "a is better than b", "worse": "a is worse than b"}.get(row["verdict"], "cannot tell a from b")
    line = (
        f"{row['task']}{'' if row['label'] == HELD_OUT else ', ' + row['label']}: {verdict}. "
        f"{words.percent(row['a']['accuracy'])} against {words.percent(row['b']['accuracy'])}, "
        f"{words.points(row['difference'])} points ({low} to {high}), {row['n']} problems, "
        f"won {row['better']}, lost {row['worse']}, p {p}."
    )
    if row["verdict"] == stats.UNTOLD:
        least = words.points(row["smallest"]).lstrip("+")
        line += f" So many problems would show a difference of {least} points, four times of five."
        if more is None:
            line += " How many more would decide one of the size at hand is anyone's guess."
        elif more:
            line += f" {more:,} more would decide one of the size at hand."
    return row | {"problems_more": more, "line": line}


def _differ(met: _Met) -> list[Row]:
    def gap(name: str) -> float:
        return _solved(met.a[name]) / len(_scored(met.a[name])) - _solved(met.b[name]) / len(_scored(met.b[name]))

    names = sorted((name for name in met.a if gap(name)), key=lambda name: -abs(gap(name)))
    return [
        {"id": name, "asked": _first_line(_question(met.a[name][0])), "a": _said(met.a[name]), "b": _said(met.b[name])}
        for name in names
    ]


def _question(rollout: Rollout) -> str:
    asked: list[Message] = [m for m in rollout.problem.messages if m.role == "user"]
    return asked[-1].content if asked else ""


def _said(answers: Sequence[Rollout]) -> Row:
    scored = _scored(answers)
    return {
        "solved": _solved(answers), "of": len(scored), "outcomes": sorted({r.outcome for r in answers}),
        "says": _first_line(scored[0].completion.text),
    }  # fmt: skip


def _first_line(text: str) -> str:
    line = next((line for line in text.splitlines() if line.strip()), "").strip()
    return words.shown(line if len(line) <= WIDTH else line[: WIDTH - 3] + "...")


def _mode(thinking: bool) -> str:
    return "thinking" if thinking else "at once"


__all__ = ["compare"]
