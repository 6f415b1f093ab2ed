"""report.html: one file that says what was made, how good it is and what it cost, and shows how each number came about.

The page is a Jinja template with every value escaped: what a model wrote is shown, never obeyed. As a second wall its
content security policy allows neither scripts nor the network. Drawings are SVG made in Python. Nothing depends on the
clock, so the same directory gives the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import zip_longest
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from mull.ledger import Rates
from mull.locate import judged
from mull.report import evaluation, figures, words
from mull.report.figures import Colours
from mull.report.summary import ALL_TASKS, TEACHER, Exam, Row, read_exams, summarise
from mull.report.verdict import verdict
from mull.run import Run, write_atomic
from mull.types import Rollout

SAMPLES = 4  # chains shown of each kind


def write_report(path: Path) -> Path:
    """Write report.json and report.html into the run directory `path`. Returns the page's path.

    Raises UserError where there is no run, or a file of it cannot be understood.
    """
    exams = read_exams(path)
    summary = summarise(path, exams)
    if judged(path):
        summary |= {"health": evaluation.sheet(path, exams), "verdict": asdict(verdict(summary))}
        page = _page("evaluation.html.jinja", evaluation.context(summary, exams, path))
    else:
        page = render(summary, Run(path, Rates(), quiet=True).metrics(), exams)
    write_atomic(path / "report.json", json.dumps(summary, indent=1) + "\n")
    write_atomic(path / "report.html", page)
    return path / "report.html"


def render(summary: Row, metrics: Sequence[Row], exams: Sequence[Exam]) -> str:
    """The page of a run that trains, as text."""
    colours = Colours(_models(summary))
    chief = _chief(summary)
    context = {
        "name": summary["name"],
        "about": summary["about"],
        "headline": _headline(summary, chief, bool(metrics)),
        "findings": _findings(summary, chief),
        "facts": _facts(summary, chief),
        "cards": _cards(summary),
        "repeated": any("maj_k" in row for row in summary["evals"]),
        "verdicts": _verdicts(summary),
        "outcomes": _in_order(summary, [row for row in summary["overall"] if row["outcomes"]]),
        "outcome_names": list(dict.fromkeys(o for row in summary["overall"] for o in row["outcomes"])),
        "models": _sizes(summary, chief),
        "students": _students(summary, chief),
        "frontier": figures.frontier(_examined(summary, chief), colours),
        "losses": figures.losses(metrics, colours),
        "learning": _learning(metrics, colours),
        "load": figures.expert_load(metrics, colours),
        "samples": _samples(exams, chief),
        "stages": summary["stages"],
        "total": summary["total"],
        "charged": False,
        "colours": colours,
        "bar": figures.bar,
        "stack": figures.stack,
        "gap": figures.gap,
        "words": words,
    }
    return _page("report.html.jinja", context)


def _page(template: str, context: Row) -> str:
    environment = Environment(
        loader=PackageLoader("mull", "report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    page = environment.get_template(template).render(context)
    return page.encode("utf-8", "replace").decode("utf-8")


def _models(summary: Row) -> tuple[str, ...]:
    """Every model there is, in the order it came to be: the order of colours."""
    made = [stage["name"] for stage in summary["stages"] if stage["kind"] != "evaluate"]
    known = [model["name"] for model in summary["models"]]
    asked = [row["model"] for row in summary["evals"]]
    return tuple(dict.fromkeys([*made, *known, *asked]))


def _chief(summary: Row) -> Row | None:
    """The row the page is about: the result model, thinking, on held-out problems, as far as there is such."""
    wanted = summary["model"]["name"] if summary["model"] else ""
    rows = list(enumerate(summary["overall"]))
    rows = [(i, row) for i, row in rows if row["accuracy"] is not None]
    rank = max(
        rows, default=None,
        key=lambda at: (at[1]["model"] == wanted, at[1]["label"] == "held-out", at[1]["thinking"], at[0]),
    )  # fmt: skip
    return rank[1] if rank else None


def _headline(summary: Row, chief: Row | None, begun: bool) -> str:
    model, stages = summary["model"], summary["stages"]
    took = f"in {words.clock(summary['total']['seconds'])} for {words.money(summary['total']['usd'])}"
    trained = any(stage["kind"] != "evaluate" for stage in stages)
    if model and trained and (chief is None or chief["model"] == model["name"]):
        size = f"{words.count(model['total_params'])}-parameter"
        kind = "mixture of experts" if model["experts"] else "model"
        active = f" ({words.count(model['active_params'])} active per token)" if model["experts"] else ""
        origin = "from nothing " if any(stage["kind"] == "pretrain" for stage in stages) else ""
        subject = f"{_article(size)} {size} {kind}{active}, trained {origin}{took},"
    elif chief:
        subject = chief["model"]
    elif trained:
        done = sum(stage["done"] for stage in stages)
        return f"A run in progress: {done} of {len(stages)} stages begun are done, {took} so far."
    else:
        return "A run in its first moments." if begun else "Nothing has been trained or examined here yet."
    if chief is None:
        return f"{subject} has not been examined yet."
    kind = "held-out" if chief["label"] == "held-out" else chief["label"]
    return (
        f"{subject} solves {words.percent(chief['accuracy'])} of {kind} problems "
        f"(95{words.THIN}% interval {words.interval(chief['ci95'])})."
    )


def _article(size: str) -> str:
    return "An" if size.startswith("8") or size.split(".")[0].split(words.THIN)[0] in ("11", "18") else "A"


def _findings(summary: Row, chief: Row | None) -> list[str]:
    """What the paired comparisons of the chief model say, a sentence each."""
    if chief is None:
        return []
    sentences = []
    for row in _whole(summary["comparisons"]):
        if chief["model"] not in (row["a"]["model"], row["b"]["model"]) or row["label"] != chief["label"]:
            continue
        if row["kind"] == "models" and not row["a"]["thinking"] and chief["thinking"]:
            continue
        ends = " to ".join(words.points(end) for end in row["ci95"])
        size = f"{words.points(row['difference'])} points (95{words.THIN}% interval {ends})"
        if row["kind"] == "thinking":
            sentences.append(f"Thinking first, against answering at once with the same weights: {size}.")
        else:
            why = f" ({row['why']})" if row["why"] else ""
            sentences.append(f"{row['a']['model']} against {row['b']['model']}{why}: {size}.")
    return sentences


def _facts(summary: Row, chief: Row | None) -> list[tuple[str, str]]:
    total, model = summary["total"], summary["model"]
    if model is None and chief:  # an evaluation: its subject was made elsewhere
        model = next((size for size in summary["models"] if size["name"] == chief["model"]), None)
    found = []
    if chief:
        found.append((words.percent(chief["accuracy"]), f"solved, {chief['label']}"))
        if chief["usd_per_solved"]:
            found.append((words.per_thousand(chief["usd_per_solved"]), "per 1,000 solved"))
    if model:
        found.append((words.count(model["total_params"]), "parameters"))
    found += [(words.clock(total["seconds"]), "of machine time"), (words.money(total["usd"]), "for all of it")]
    if total["peak_rss_bytes"]:
        found.append((words.memory(total["peak_rss_bytes"]), "of memory at most"))
    return found


def _cards(summary: Row) -> list[Row]:
    """Per label and task a card with a row for each model and mode; all tasks together first."""
    tasks_of: dict[tuple[str, str], set[str]] = {}
    for row in summary["evals"]:
        tasks_of.setdefault((row["stage"], row["label"]), set()).add(_title(row))
    several = len({row["stage"] for row in summary["evals"]}) > 1
    cards: dict[tuple[str, str, str], Row] = {}
    for whole in (True, False):
        for row in summary["overall"] if whole else summary["evals"]:
            stage = row["stage"]
            if whole and len(tasks_of[stage, row["label"]]) == 1:
                continue  # the one task's own card says the same
            card = cards.setdefault(
                (stage, row["label"], _title(row)),
                {"title": _title(row), "label": row["label"], "stage": stage if several else "",
                 "split": row["split"], "n": row["n"], "samples": row["samples"], "rows": []},
            )  # fmt: skip
            card["rows"].append(row)
    for card in cards.values():
        card["rows"] = _in_order(summary, card["rows"])
    return list(cards.values())


def _in_order(summary: Row, rows: Sequence[Row]) -> list[Row]:
    """By stage and label as they stand, then as the models were made, thinking first."""
    order = {name: i for i, name in enumerate(_models(summary))}
    groups = list(dict.fromkeys((row["stage"], row["label"]) for row in rows))
    return sorted(
        rows, key=lambda r: (groups.index((r["stage"], r["label"])), order[r["model"]], not r["thinking"])
    )  # fmt: skip


def _title(row: Row) -> str:
    size = ", ".join(f"{name} {_range(value)}" for name, value in row["size"].items()) if "size" in row else ""
    return f"{row['task']} ({size})" if size else row["task"]


def _range(value: Any) -> str:
    return "–".join(map(str, dict.fromkeys(value))) if isinstance(value, list) else str(value)


def _whole(comparisons: Sequence[Row]) -> list[Row]:
    """Those over all tasks."""
    return [row for row in comparisons if row["task"] == ALL_TASKS]


def _verdicts(summary: Row) -> Row:
    """Comparisons in the order of their weight: over all tasks, thinking; the rest folded away."""
    rows = summary["comparisons"]
    labels = list(dict.fromkeys(row["label"] for row in rows))
    order = {name: i for i, name in enumerate(_models(summary))}
    reach = max((abs(end) for row in rows for end in row["ci95"]), default=1.0)
    single = len({row["task"] for row in rows}) <= 2  # all tasks, and the one there is
    whole = _whole(rows)
    thinks = {row["a"]["model"] for row in whole if row["a"]["thinking"]}
    return {
        "thinking": sorted(
            (row for row in whole if row["kind"] == "thinking"),
            key=lambda row: (labels.index(row["label"]), order[row["a"]["model"]]),
        ),
        "models": [r for r in whole if r["kind"] == "models" and (r["a"]["thinking"] or r["a"]["model"] not in thinks)],
        "rest": [
            row for row in rows
            if (row["task"] != ALL_TASKS and not single)
            or (row["task"] == ALL_TASKS and row["kind"] == "models" and not row["a"]["thinking"]
                and row["a"]["model"] in thinks)
        ],
        "reach": min(1.0, max(0.05, reach)),
    }  # fmt: skip


def _examined(summary: Row, chief: Row | None) -> list[Row]:
    """Every model's overall row on the problems the page is about; thinking where it did."""
    if chief is None:
        return []
    found: dict[str, Row] = {}
    for row in summary["overall"]:
        if row["label"] == chief["label"] and row["stage"] == chief["stage"]:
            held = found.get(row["model"])
            if held is None or (row["thinking"] == chief["thinking"] and held["thinking"] != chief["thinking"]):
                found[row["model"]] = row
    return list(found.values())


def _sizes(summary: Row, chief: Row | None) -> list[Row]:
    """Models with their size and what their answers cost."""
    examined = {row["model"]: row for row in _examined(summary, chief)}
    sizes = {model["name"]: model for model in summary["models"]}
    names = [name for name in _models(summary) if name in sizes or name in examined]
    made = {stage["name"] for stage in summary["stages"]}
    result = summary["model"]["name"] if summary["model"] else ""
    return [
        {"name": name, "size": sizes.get(name), "exam": examined.get(name), "result": name == result and name in made}
        for name in names
    ]


def _students(summary: Row, chief: Row | None) -> list[str]:
    """Each student beside its teacher, a sentence each: size, capability, price."""
    sizes = {model["name"]: model for model in summary["models"]}
    exams = {row["model"]: row for row in _examined(summary, chief)}
    sentences = []
    for row in _whole(summary["comparisons"]):
        a, b = row["a"]["model"], row["b"]["model"]
        if row["why"] != TEACHER or chief is None or row["label"] != chief["label"]:
            continue
        if row["a"]["thinking"] != chief["thinking"] or a not in sizes or b not in sizes:
            continue
        active = sizes[a]["active_params"] / sizes[b]["active_params"]
        ends = " to ".join(words.points(end) for end in row["ci95"])
        ours, theirs = (exams[name]["usd_per_solved"] if name in exams else None for name in (a, b))
        price = f" at {ours / theirs:.2f} times the price" if ours and theirs else ""
        sentences.append(
            f"{a} reads {words.percent(active, 0)} of the weights that its teacher {b} reads per token, and solves "
            f"{words.percent(row['a']['accuracy'])} against {words.percent(row['b']['accuracy'])}{price} "
            f"(difference {words.points(row['difference'])} points, {ends})."
        )
    return sentences


def _learning(metrics: Sequence[Row], colours: Colours) -> list[Row]:
    """For each stage that learns from its own answers: reward, length of chains, and reward by task."""
    found = []
    for stage in dict.fromkeys(row["stage"] for row in metrics):
        reward = figures.series(metrics, stage, "reward")
        if not reward:
            continue
        tasks = dict.fromkeys(k for row in metrics if row["stage"] == stage for k in row if k.startswith("reward/"))
        top, colour = max(1.0, *(y for _, y in reward)), colours.of(stage)
        by_task = [
            (task.removeprefix("reward/"), figures.over_steps(
                figures.series(metrics, stage, task), colour, f"Reward on {task.removeprefix('reward/')}", top=top,
                share=top == 1.0, width=figures.SMALL, height=130,
            )) for task in tasks
        ]  # fmt: skip
        length = figures.series(metrics, stage, "chain_length")
        cut = figures.series(metrics, stage, "truncated")
        found.append({
            "stage": stage,
            "reward": figures.over_steps(reward, colour, "Mean reward", top=top, share=top == 1.0),
            "length": figures.over_steps(length, colour, "Mean tokens per answer"),
            "by_task": by_task if len(by_task) > 1 else [],
            "truncated": (cut[0][1], cut[-1][1]) if cut else None,
        })  # fmt: skip
    return found


def _samples(exams: Sequence[Exam], chief: Row | None) -> Mapping[str, list[Row]]:
    """The first answers of each exam of the chief model in turn, right ones and others."""
    if chief is None:
        return {}
    chosen = [e for e in exams if e.row["model"] == chief["model"] and e.row["thinking"] == chief["thinking"]]
    right = [[_sample(r, e) for r in e.shown if r.outcome == "solved"] for e in chosen]
    other = [[_sample(r, e) for r in e.shown if r.outcome != "solved"] for e in chosen]
    return {"Solved": _in_turn(right, SAMPLES), "Not solved": _in_turn(other, SAMPLES)}


def _in_turn(lists: Iterable[list[Row]], most: int) -> list[Row]:
    return [row for turn in zip_longest(*lists) for row in turn if row is not None][:most]


def _sample(rollout: Rollout, exam: Exam) -> Row:
    asked = [m.content for m in rollout.problem.messages if m.role == "user"]
    return {
        "question": words.shown(asked[-1] if asked else ""),
        "chain": words.shown(rollout.completion.reasoning),
        "answer": words.shown(rollout.completion.text),
        "gold": words.shown(rollout.problem.answer),
        "tokens": len(rollout.completion.tokens),
        "outcome": rollout.outcome,
        "task": rollout.problem.task,
        "label": exam.row["label"],
        "id": words.shown(rollout.problem.id, 200),
        "file": exam.row["file"],
    }


__all__ = ["render", "write_report"]
