"""What a run's files say, as plain data: the content of report.json, and all that report.html shows.

Nothing here is remembered from the run itself. Grades come from rollouts/*.jsonl, what a set of answers cost from the
.json beside it, the bill from ledger.jsonl, sizes from models/*/config.json; so a report can be made again, anywhere,
from a copy of the directory. A set of rollouts without a .json beside it is training material, not an exam. Missing
files leave their part of the report empty.

The price: exams are read whole each time, about a second per ten thousand answers.
"""

from __future__ import annotations

import json
import math
import re
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mull.config import build
from mull.ledger import Rates
from mull.locate import judged
from mull.model.config import ModelConfig
from mull.model.families import read_config
from mull.model.flops import parameters
from mull.report import stats
from mull.run import MACHINE, Run, read_json
from mull.text.votes import result
from mull.types import OUTCOMES, Rollout, UserError, read_rollouts

SHOWN = 6  # rollouts of an exam kept whole, to show: so many right and so many not
ALL_TASKS = "all tasks"
NUMERIC = {"exact", "math-verify", "number"}  # verifiers that look for a result in the answer
HELD_OUT = "held-out"
TEACHER = "its teacher"

Row = dict[str, Any]
Key = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """What the figures need of a rollout."""

    outcome: str
    vote: str | None  # what it says, for the majority; None if it said nothing that could be read
    tokens: int  # of all its turns, thinking included, as the rest
    thinking: int = 0
    seconds: float = 0.0
    usd: float | None = None  # what an endpoint charged


@dataclass(frozen=True, slots=True)
class Exam:
    row: Row
    problems: dict[Key, list[Answer]]
    shown: tuple[Rollout, ...]


def evaluate_row(rollouts: Sequence[Rollout], *, label: str, split: str, seconds: float, usd: float, file: str,
                 **facts: Any) -> Row:  # fmt: skip
    """The figures of one set of answers: one model, one task, thinking or not. `facts` are passed on."""
    return _row(rollouts, dict(label=label, split=split, seconds=seconds, usd=usd, file=file, **facts))


def _row(rollouts: Sequence[Rollout], facts: Mapping[str, Any]) -> Row:
    first = rollouts[0] if rollouts else None
    who = {
        "model": first.model if first else "", "task": first.problem.task if first else "",
        "thinking": first.thinking if first else True, "stage": "", "size": {},
    }  # fmt: skip
    spent = (facts["seconds"], facts["usd"], facts.get("flops"), facts.get("kwh"))
    return who | dict(facts) | figures(_by_problem(rollouts, facts), *spent)


def _by_problem(rollouts: Iterable[Rollout], facts: Mapping[str, Any]) -> dict[Key, list[Answer]]:
    size = json.dumps(facts.get("size", {}), sort_keys=True)
    problems: dict[Key, list[Answer]] = {}
    for r in rollouts:
        key = (r.problem.task, size, r.problem.id)
        problems.setdefault(key, []).append(_answer(r))
    return problems


def _answer(rollout: Rollout) -> Answer:
    turns = (*rollout.earlier, rollout.completion)
    charged = [turn.usd for turn in turns if turn.usd is not None]
    return Answer(
        rollout.outcome, _vote(rollout), sum(turn.count for turn in turns), sum(turn.thinking_tokens for turn in turns),
        math.fsum(turn.seconds for turn in turns), math.fsum(charged) if charged else None,
    )  # fmt: skip


def _vote(rollout: Rollout) -> str | None:
    """Answers vote together when they come to the same: results of mathematics by value, others word for word."""
    if rollout.outcome in ("truncated", "unparsed", "infrastructure"):
        return None
    if rollout.words.keys() & NUMERIC:
        found = result(rollout.completion.text)
        return None if found is None else str(found)
    return " ".join(rollout.completion.text.casefold().split())


def figures(
    problems: Mapping[Key, Sequence[Answer]], seconds: float, usd: float, flops: float | None = None,
    kwh: float | None = None,
) -> Row:  # fmt: skip
    """Everything that is said about a set of answers. Infrastructure failures are counted and left out of the rest."""
    counts = Counter(answer.outcome for answers in problems.values() for answer in answers)
    scored = {k: [a for a in answers if a.outcome != stats.NOT_SCORED] for k, answers in problems.items()}
    scored = {k: answers for k, answers in scored.items() if answers}
    total = sum(len(answers) for answers in scored.values())
    everything = [a for answers in problems.values() for a in answers]
    tokens, charged = sum(a.tokens for a in everything), [a.usd for a in everything if a.usd is not None]
    share = stats.clustered([[a.outcome == "solved" for a in answers] for answers in scored.values()])
    per_solved, range_ = stats.cost_per_solved(usd, total, share)
    row: Row = {
        "n": len(scored),
        "samples": max((len(answers) for answers in problems.values()), default=0),
        "answers": total,
        "solved": counts["solved"],
        "accuracy": share.value if share else None,
        "ci95": [share.low, share.high] if share else None,
        "pass1": share.value if share else None,
        "bounds": _bounds(scored.values()),
        "outcomes": {name: counts[name] for name in OUTCOMES if counts[name]},
        "tokens": tokens,
        "tokens_per_answer": tokens / counts.total() if counts else None,
        "thinking_tokens_per_answer": sum(a.thinking for a in everything) / counts.total() if counts else None,
        "seconds_per_answer": seconds / counts.total() if counts else None,
        "latency_seconds": _latency([a.seconds for answers in scored.values() for a in answers]),
        "flops_per_answer": flops / counts.total() if counts and flops is not None else None,
        "kwh_per_solved": stats.cost_per_solved(kwh, total, share)[0] if kwh is not None else None,
        "usd_per_answer": usd / counts.total() if counts else None,
        "usd_per_answer_ci95": _cost_range(problems, usd),
        "usd_per_solved": per_solved,
        "usd_per_solved_ci95": list(range_),
        "seconds": seconds,
        "flops": flops,
        "kwh": kwh,
        "usd": usd,
        "charged_usd": math.fsum(charged) if charged else None,
    }
    if row["samples"] > 1 and scored and all(len(answers) == row["samples"] for answers in problems.values()):
        row |= _repeated(list(scored.values()))
    return row


def _bounds(problems: Iterable[Sequence[Answer]]) -> list[float] | None:
    """The share if every undecided answer is wrong, and if every one is right; problems weigh the same, as there."""
    ends = [pair for answers in problems if (pair := stats.bounds(Counter(a.outcome for a in answers)))]
    return [statistics.fmean(end) for end in zip(*ends, strict=True)] or None


def _latency(seconds: Sequence[float]) -> list[float] | None:
    """Median and nine tenths of the times that answers took, each from its submission to its last token."""
    if not seconds:
        return None
    return [statistics.median(seconds), sorted(seconds)[math.ceil(0.9 * len(seconds)) - 1]]


def _cost_range(problems: Mapping[Key, Sequence[Answer]], usd: float) -> list[float] | None:
    """The interval of what an answer costs: as answers to other problems would differ in what was charged for them,
    or, where a machine's time is what they cost, in their tokens. None for a single problem.
    """
    charged = any(a.usd is not None for answers in problems.values() for a in answers)
    weights = [
        statistics.fmean((a.usd or 0.0) if charged else a.tokens for a in answers) for answers in problems.values()
    ]
    answers, n = sum(map(len, problems.values())), len(weights)
    if n < 2 or not (mean := statistics.fmean(weights)):
        return None
    half = stats.t95(n - 1) * statistics.stdev(weights) / math.sqrt(n) / mean
    return [usd / answers * max(0.0, 1 - half), usd / answers * (1 + half)]


def _repeated(problems: Sequence[Sequence[Answer]]) -> Row:
    """pass@k and maj@k of all k answers; problems of which the machinery lost an answer are no part of either."""
    k = max(len(answers) for answers in problems)
    problems = [answers for answers in problems if len(answers) == k]
    right = [[a.outcome == "solved" for a in answers] for answers in problems]
    votes = [[a.vote for a in answers] for answers in problems]
    n = len(problems)
    passed = sum(stats.pass_at_k(len(r), sum(r), k) for r in right)
    agreed = sum(stats.majority(v, r) for v, r in zip(votes, right, strict=True))
    ks = [2**i for i in range(k.bit_length()) if 2**i <= k]
    return {
        "k": k,
        "pass_at": {str(few): sum(stats.pass_at_k(len(r), sum(r), few) for r in right) / n for few in ks},
        "pass_k": passed / n,
        "pass_k_ci95": list(stats.wilson(passed, n)),  # one answer per problem, as it were: never too narrow
        "maj_k": agreed / n,
        "maj_k_ci95": list(stats.wilson(agreed, n)),
    }


def read_exams(folder: Path) -> list[Exam]:
    """Every exam in `folder`, held-out ones first. Raises UserError for a file that cannot be understood."""
    exams = []
    for noted in sorted((folder / "rollouts").glob("*.json")):
        answers = noted.with_suffix(".jsonl")
        if not answers.exists():
            continue  # the exam was interrupted before its end
        facts = read_facts(noted)
        exams.append(exam(read_rollouts(answers), facts))
    return sorted(exams, key=lambda found: (found.row["label"] != HELD_OUT, _natural(found.row["label"])))


def _natural(label: str) -> list[tuple[int, str]]:
    """As people sort: "256 thinking tokens" comes before "1,024 thinking tokens"."""
    parts = re.split(r"(\d+)", label.replace(",", ""))
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]


def exam(rollouts: Sequence[Rollout], facts: Mapping[str, Any]) -> Exam:
    """`facts` are those that evaluate_row wants by name."""
    return Exam(_row(rollouts, facts), _by_problem(rollouts, facts), _to_show(rollouts))


def read_facts(path: Path) -> Row:
    needed = {"label", "split", "seconds", "usd", "file"}
    facts = read_json(path)
    if missing := needed - facts.keys():
        raise UserError(f"{path} does not say {', '.join(sorted(missing))}; restore it, or delete it to leave it out.")
    return facts


def _to_show(rollouts: Sequence[Rollout]) -> tuple[Rollout, ...]:
    """The first few right and the first few not right: no choosing."""
    right = [r for r in rollouts if r.outcome == "solved"][:SHOWN]
    other = [r for r in rollouts if r.outcome not in ("solved", stats.NOT_SCORED)][:SHOWN]
    return (*right, *other)


def rows(folder: Path) -> list[Row]:
    """The `evals` of report.json, derived from the rollouts on disk and what was noted of their cost."""
    return [exam.row for exam in read_exams(folder)]


def overall(exams: Sequence[Exam]) -> list[Row]:
    """All tasks of one exam stage, model, label and mode as one row: every problem weighs the same."""
    groups: dict[Key, list[Exam]] = {}
    for exam in exams:
        row = exam.row
        key = (row["stage"], row["model"], row["label"], row["split"], row["thinking"])
        groups.setdefault(key, []).append(exam)
    found = []
    for (stage, model, label, split, thinking), members in groups.items():
        problems = {k: answers for exam in members for k, answers in exam.problems.items()}
        seconds, usd = (sum(exam.row[name] for exam in members) for name in ("seconds", "usd"))
        flops, kwh = (_sum(exam.row[name] for exam in members) for name in ("flops", "kwh"))
        who = {
            "model": model, "task": ALL_TASKS, "thinking": thinking, "label": label, "split": split, "stage": stage,
            "tasks": sorted({exam.row["task"] for exam in members}), "files": [exam.row["file"] for exam in members],
        }  # fmt: skip
        found.append(who | figures(problems, seconds, usd, flops, kwh))
    return found


def _sum(parts: Iterable[float | None]) -> float | None:
    """Nothing where a part is not known: exams of older runs do not say all."""
    listed = list(parts)
    known = [part for part in listed if part is not None]
    return sum(known) if len(known) == len(listed) else None


def summarise(folder: Path, exams: Sequence[Exam] | None = None) -> Row:
    """The content of report.json. Raises UserError where `folder` holds no run."""
    if not (folder / "config.json").exists() and not (folder / "rollouts").is_dir():
        raise UserError(f"{folder} holds no run: there is neither config.json nor rollouts/ in it.")
    exams = read_exams(folder) if exams is None else exams
    config = read_json(folder / "config.json").get("config", {}) if (folder / "config.json").exists() else {}
    rates = build(Rates, config.get("rates") or {}, "config.json")
    run = Run(folder, rates, quiet=True)
    machine = run.facts(MACHINE)
    stages: list[Row] = [stage | {"done": run.done(stage["name"])} for stage in run.ledger.stages()]
    models = read_models(folder, [stage["name"] for stage in stages], config.get("outside") or {})
    result = _result(folder, [model for model in models if (folder / "models" / model["name"]).is_dir()])
    if len(others := judged(folder)) == 1:
        (result,) = others
    return {
        "name": config.get("name") or folder.resolve().name,
        "about": config.get("about", ""),
        "stages": stages,
        "evals": [exam.row for exam in exams],
        "overall": overall(exams),
        "total": asdict(run.ledger.total())
        | {
            "peak_rss_bytes": machine.get("peak_rss_bytes"),
            "energy_source": machine.get("energy_source") or run.ledger.energy_source,
            "usd_per_hour": rates.usd_per_hour,
        },
        "model": next((model for model in models if model["name"] == result), None),
        "models": models,
        "targets": _targets(others, config, rates),
        "comparisons": comparisons(exams, planned(config)),
    }


def _targets(others: Mapping[str, str], config: Mapping[str, Any], rates: Rates) -> list[Row]:
    """The models of an evaluation: where they are, and by what their answers are priced."""
    examined = {name for stage in config.get("stage", []) for name in stage.get("models", [])}
    found = []
    for name in filter(examined.__contains__, others):
        served = (config.get("endpoints") or {}).get(name) or {}
        tokens = served.get("usd_per_million")
        found.append({
            "name": name, "where": others[name], "usd_per_million": tokens,
            "priced": str(served.get("priced")) if tokens else None, "source": served.get("source") or None,
            "usd_per_hour": None if tokens else rates.usd_per_hour,
        })  # fmt: skip
    return found


def read_models(folder: Path, order: Sequence[str], outside: Mapping[str, str]) -> list[Row]:
    """Name and size of every finished model, in the order the stages made them; then of those made elsewhere."""
    made = {path.parent.name: path.parent for path in (folder / "models").glob("[!.]*/config.json")}
    place = {name: i for i, name in enumerate(order)}
    names = sorted(made, key=lambda name: (place.get(name, len(place)), name))
    found = [_model(name, read_config(made[name])) for name in names]
    elsewhere = {name: Path(where) for name, where in outside.items() if name not in made}
    there = {n: path for n, path in elsewhere.items() if path.is_file() or (path / "config.json").exists()}
    return found + [_model(n, read_config(path)) for n, path in there.items()]


def _model(name: str, cfg: ModelConfig) -> Row:
    count = parameters(cfg)
    return {
        "name": name, "total_params": count.total, "active_params": count.active, "mtp_params": count.mtp,
        "layers": cfg.layers, "width": cfg.width, "vocab": cfg.vocab, "latent_attention": cfg.latent,
        "experts": cfg.experts, "active_experts": cfg.active_experts if cfg.experts else 0,
        "shared_experts": cfg.shared_experts,
    }  # fmt: skip


def _result(folder: Path, made: Sequence[Row]) -> str:
    """The model that a run was for. An evaluation makes none: those it judges are not its own."""
    named = folder / "models" / "result.json"
    if named.exists():
        return str(read_json(named).get("model", ""))
    return made[-1]["name"] if made else ""


def planned(config: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(a, b, what b is to a): the pairs of models that a recipe was made to compare."""
    stages = [stage for stage in config.get("stage", []) if isinstance(stage, Mapping)]
    pairs = []
    for stage in stages:
        name, kind = stage.get("name", ""), stage.get("kind")
        if kind == "rl":
            longer = [other["name"] for other in stages if other.get("as_long_as") == name]
            pairs += [(name, other, "as much time spent on more fine-tuning") for other in longer]
            pairs.append((name, stage.get("init", ""), "what it started from"))
        elif kind == "distill":
            pairs.append((name, stage.get("teacher", ""), TEACHER))
    return pairs


def comparisons(exams: Sequence[Exam], pairs: Sequence[tuple[str, str, str]]) -> list[Row]:
    """Paired differences: thinking against not, then the planned pairs of models (or all, if nothing was planned).

    Over all tasks there is one test; over the tasks one by one there are several, whose verdicts go by Holm's p.
    """
    shares: dict[Key, dict[str, dict[Key, float]]] = {}  # (label, model, thinking) -> task -> problem -> share
    for exam in exams:
        row = exam.row
        by_task = shares.setdefault((row["label"], row["model"], row["thinking"]), {})
        solved = {
            (row["split"], *key): sum(a.outcome == "solved" for a in scored) / len(scored)
            for key, answers in exam.problems.items()
            if (scored := [a for a in answers if a.outcome != stats.NOT_SCORED])
        }
        for name in (ALL_TASKS, row["task"]):
            by_task.setdefault(name, {}).update(solved)
    models = list(dict.fromkeys(model for _, model, _ in shares))
    labels = list(dict.fromkeys(label for label, _, _ in shares))
    chosen = bool(pairs)  # before anybody had answered
    pairs = pairs or [(b, a, "") for i, a in enumerate(models) for b in models[i + 1 :]]
    wanted = [("thinking", "the same weights, answering at once", (m, True), (m, False)) for m in models]
    modes = {model: {mode for _, name, mode in shares if name == model} for model in models}
    for a, b, why in pairs:
        wanted += [("models", why, (a, x), (b, y)) for x, y in _modes(modes.get(a, set()), modes.get(b, set()))]
    found = []
    for label in labels:
        for kind, why, a, b in wanted:
            left, right = shares.get((label, *a), {}), shares.get((label, *b), {})
            results = ((task, stats.paired(left[task], right[task])) for task in left if task in right)
            rows = [_comparison(kind, why, label, task, a, b, result) for task, result in results if result]
            found += adjust(rows)
    return found if chosen else _over_pairs(found)


def _over_pairs(found: Sequence[Row]) -> list[Row]:
    """Where all models meet all others, verdicts over all tasks go by p-values corrected for the number of pairs."""
    meetings: dict[str, list[int]] = {}
    for i, row in enumerate(found):
        if row["kind"] == "models" and row["task"] == ALL_TASKS:
            meetings.setdefault(row["label"], []).append(i)
    corrected = list(found)
    for places in meetings.values():
        for i, p in zip(places, stats.holm([found[i]["p"] for i in places]), strict=True):
            corrected[i] = _told(found[i], p)
    return corrected


def _told(row: Row, p: float) -> Row:
    """The row with the verdict that this p gives."""
    verdict = stats.verdict(p, row["difference"])
    needed = row["problems_needed"] if verdict == stats.UNTOLD else None
    return row | {"p_adjusted": p, "verdict": verdict, "problems_needed": needed}


def _modes(ours: set[bool], theirs: set[bool]) -> list[tuple[bool, bool]]:
    """Like with like, thinking first; one that only thinks meets one that cannot all the same."""
    if both := ours & theirs:
        return [(mode, mode) for mode in sorted(both, reverse=True)]
    return [(max(ours), max(theirs))] if ours and theirs else []


def _comparison(kind: str, why: str, label: str, task: str, a: Key, b: Key, result: stats.Paired) -> Row:
    return {
        "kind": kind, "why": why, "label": label, "task": task,
        "a": {"model": a[0], "thinking": a[1], "accuracy": result.a},
        "b": {"model": b[0], "thinking": b[1], "accuracy": result.b},
    } | judged_pair(result)  # fmt: skip


def judged_pair(result: stats.Paired) -> Row:
    """What is said of a paired difference; see `adjust` for where there are several."""
    return {
        "n": result.n, "difference": result.difference, "ci95": [result.low, result.high],
        "better": result.better, "worse": result.worse, "p": result.p, "p_adjusted": result.p,
        "verdict": stats.verdict(result.p, result.difference),
        "smallest": stats.smallest(result), "problems_needed": stats.problems_needed(result),
    }  # fmt: skip


def adjust(rows: Sequence[Row]) -> list[Row]:
    """Verdicts on single tasks, by p-values corrected for how many tasks there are; on all tasks, as it was."""
    tasks = [row for row in rows if row["task"] != ALL_TASKS]
    raised = iter(stats.holm([row["p"] for row in tasks]))
    return [_told(row, row["p"] if row["task"] == ALL_TASKS else next(raised)) for row in rows]


__all__ = [
    "ALL_TASKS", "TEACHER", "Answer", "Exam", "adjust", "comparisons", "evaluate_row", "exam", "figures", "judged_pair",
    "overall", "read_exams", "read_facts", "rows", "summarise",
]  # fmt: skip
