"""report.json from a run directory made with the real Run, Ledger, tasks and rollouts, whole and in part."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from pathlib import Path

import pytest

from mull.engine.rollout import grade
from mull.ledger import Rates
from mull.model.config import PRESETS
from mull.model.families import config_to_hf
from mull.report import stats, summary
from mull.report.summary import ALL_TASKS, Exam, comparisons, evaluate_row, exam
from mull.run import MACHINE, Run
from mull.tasks import TAUGHT
from mull.types import Completion, Message, Problem, Rollout, UserError, write_rollouts

TASKS = ("chain_sum", "products", "gcd")
SKILL = {"sft": 0.55, "sft_longer": 0.62, "rl": 0.82, "student": 0.74}  # share solved, thinking
MINUTES = {"pretrain": 4.0, "sft": 7.0, "rl": 16.0, "sft_longer": 15.0, "student": 5.0}
STEPS = {"pretrain": 400, "sft": 600, "rl": 60, "sft_longer": 1200, "student": 300}
KINDS = {"pretrain": "pretrain", "sft": "sft", "rl": "rl", "sft_longer": "sft", "student": "distill"}
CONFIG = {
    "name": "reason", "about": "", "rates": {"usd_per_hour": 0.2, "watts": 30.0},
    "stage": [
        {"name": "pretrain", "kind": "pretrain"},
        {"name": "sft", "kind": "sft", "init": "pretrain"},
        {"name": "rl", "kind": "rl", "init": "sft"},
        {"name": "sft_longer", "kind": "sft", "init": "sft", "as_long_as": "rl", "speed_of": "sft"},
        {"name": "student", "kind": "distill", "teacher": "rl"},
        {"name": "exam", "kind": "evaluate", "models": list(SKILL)},
    ],
}  # fmt: skip


def answered(
    problem: Problem, model: str, thinking: bool, right: float, rng: random.Random, sample: int = 0
) -> Rollout:
    """A graded answer: the taught solution, or one with a slip, or one that was cut off or cannot be read."""
    message = TAUGHT[problem.task].solution(problem)
    chain, text, finish = message.reasoning or "", message.content, "stop"
    if rng.random() > right:
        slip = rng.random()
        if slip < 0.12:
            text, finish = "", "length"
            chain = chain * 3
        elif slip < 0.2:
            text = "I am not sure."
        else:
            text = str(int(text) + rng.choice([-10, -1, 1, 2, 10]))
    if not thinking:
        chain = ""
    tokens = tuple(range(3 + len(chain + text) // 2))
    said = Completion(tokens, (-0.1,) * len(tokens), "length" if finish == "length" else "stop", text, chain, 20)
    reward, outcome = grade(problem, said)
    return Rollout(problem, said, reward, outcome, 0.0, sample, model, thinking, (1, 2, 3))


def write_exam(run: Run, rollouts: list[Rollout], label: str, **more) -> str:
    first = rollouts[0]
    facts = {"label": label, "split": "test", "seconds": 12.0, "usd": 0.0004, "stage": "exam", "size": {}} | more
    mode = "think" if first.thinking else "direct"
    path = run.rollouts_path(f"{facts['stage']}_{first.model}_{first.problem.task}_{label}_{mode}")
    facts["file"] = path.name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".json").write_text(json.dumps(facts), encoding="utf-8")
    write_rollouts(path, rollouts)
    return path.name


def write_exams(run: Run, n: int, tasks=TASKS, samples: int = 1) -> None:
    for label, penalty in (("held-out", 0.0), ("beyond", 0.3)):
        for task in tasks:
            problems = TAUGHT[task].problems("test", n, 11 if label == "beyond" else 5)
            for model, skill in SKILL.items():
                for thinking in (True, False):
                    rng = random.Random(f"{label} {task} {model} {thinking}")
                    right = (skill if thinking else 0.4 * skill) - penalty + 0.05 * TASKS.index(task)
                    answers = [
                        answered(p, model, thinking, right, rng, k) for p in problems for k in range(samples)
                    ]  # fmt: skip
                    write_exam(run, answers, label, size={"terms": [5, 6]} if label == "beyond" else {})


def write_training(run: Run, scale: float = 1.0) -> None:
    rng, now = random.Random(3), 1.7e9
    for stage, kind in KINDS.items():
        steps = max(4, int(STEPS[stage] * scale))
        with run.ledger.stage(stage, kind) as entry:
            entry.began -= 60 * MINUTES[stage]
            entry.meter.began -= 60 * MINUTES[stage]
            entry.add(tokens=steps * 4096, flops=steps * 4096 * 3e6)
        for step in range(1, steps + 1):
            now += 60 * MINUTES[stage] / steps
            share = step / steps
            loss = {"pretrain": 6.2, "student": 1.2}.get(stage, 0.9) * math.exp(-3 * share) + 0.25
            more: dict = {}
            if kind == "rl":
                loss = 0.02 * rng.gauss(0, 1)
                more = {"reward": 0.5 + 0.3 * share + rng.gauss(0, 0.03), "truncated": 0.2 * (1 - share),
                        "chain_length": 90 + 60 * share + rng.gauss(0, 4)}  # fmt: skip
                more |= {f"reward/{task}": 0.4 + 0.1 * i + 0.3 * share + rng.gauss(0, 0.05)
                         for i, task in enumerate(TASKS)}  # fmt: skip
            if step % max(1, steps // 20) == 0:
                heat = [[math.exp(rng.gauss(0, 0.7 * (1 - share))) for _ in range(8)] for _ in range(3)]
                more["expert_load"] = [[x / sum(row) for x in row] for row in heat]
            run.log(stage, step, time=now, loss=loss + 0.03 * rng.gauss(0, 1) * (kind != "rl"), grad_norm=1.0, **more)
        run.finish(stage, kind=kind)
        shape = PRESETS["tiny-moe"]
        folder = run.model_dir(stage)
        folder.mkdir(parents=True)
        if stage == "student":
            shape = shape.model_copy(update={"width": 96, "layers": 3, "expert_ffn": 48})
        (folder / "config.json").write_text(json.dumps(config_to_hf(shape)), encoding="utf-8")


def make_run(path: Path, n: int = 30, scale: float = 0.1, samples: int = 1) -> Path:
    """A finished run as a recipe leaves it."""
    run = Run.open(path, CONFIG, rates=Rates(usd_per_hour=0.2, watts=30.0), quiet=True)
    write_training(run, scale)
    with run.ledger.stage("exam", "evaluate") as entry:
        entry.began -= 200
        write_exams(run, n, samples=samples)
        entry.add(tokens=1000, flops=1e9)
    run.finish("exam", kind="evaluate")
    run.set_result("rl")
    run.note_peak()
    rng = random.Random(0)
    problems = TAUGHT["gcd"].problems("train", 8, 1)
    run.append_rollouts("rl", 0, [answered(p, "rl", True, 0.5, rng) for p in problems])  # training, no exam
    run.close()
    return path


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("report") / "run")


@pytest.fixture(scope="module")
def report(whole):
    return summary.summarise(whole)


def find(rows, **wanted):
    found = [row for row in rows if all(row[key] == value for key, value in wanted.items())]
    assert len(found) == 1, (wanted, len(found))
    return found[0]


def test_every_exam_is_a_row_and_training_rollouts_are_none(whole, report):
    rows = report["evals"]
    assert len(rows) == 2 * 3 * 4 * 2
    assert {row["model"] for row in rows} == set(SKILL)
    assert "rl.jsonl" not in {row["file"] for row in rows}
    assert rows == summary.rows(whole)


def test_a_row_can_be_counted_again_by_hand(whole, report):
    row = find(report["evals"], model="rl", task="gcd", label="held-out", thinking=True)
    lines = [json.loads(line) for line in (whole / "rollouts" / row["file"]).read_text().splitlines()]
    solved = sum(line["outcome"] == "solved" for line in lines)
    assert (row["n"], row["samples"], row["solved"]) == (30, 1, solved)
    assert row["accuracy"] == row["pass1"] == pytest.approx(solved / 30)
    assert row["ci95"] == pytest.approx(list(stats.wilson(solved, 30)))
    assert sum(row["outcomes"].values()) == 30
    assert row["tokens"] == sum(len(line["completion"]["tokens"]) for line in lines)
    assert row["tokens_per_answer"] == pytest.approx(row["tokens"] / 30)
    assert row["usd_per_solved"] == pytest.approx(0.0004 / solved)
    assert "maj_k" not in row


def test_the_whole_report_is_plain_json_and_is_the_same_twice(whole, report):
    first = json.dumps(report, allow_nan=False)
    assert first == json.dumps(summary.summarise(whole), allow_nan=False)
    assert [stage["name"] for stage in report["stages"]] == [*KINDS, "exam"]
    assert all(stage["done"] for stage in report["stages"])
    assert report["total"]["usd"] == pytest.approx(sum(stage["usd"] for stage in report["stages"]))
    assert report["total"]["usd_per_hour"] == 0.2
    assert report["total"]["energy_source"] == "stated 30 W"
    assert report["total"]["peak_rss_bytes"] > 1e7


def test_models_are_measured_in_the_order_they_were_made(report):
    assert [model["name"] for model in report["models"]] == list(KINDS)
    assert report["model"]["name"] == "rl"
    assert report["model"]["active_params"] < report["model"]["total_params"]
    assert report["models"][-1]["active_params"] < report["model"]["active_params"]


def test_overall_rows_pool_the_tasks_of_a_label(report):
    row = find(report["overall"], model="rl", label="beyond", thinking=True)
    parts = [r for r in report["evals"] if (r["model"], r["label"], r["thinking"]) == ("rl", "beyond", True)]
    assert row["n"] == 90
    assert row["solved"] == sum(part["solved"] for part in parts)
    assert row["usd"] == pytest.approx(sum(part["usd"] for part in parts))
    assert row["files"] == [part["file"] for part in parts]


def test_the_planned_comparisons_are_made_and_others_are_not(report):
    rows = report["comparisons"]
    asked = {(r["a"]["model"], r["b"]["model"]) for r in rows if r["kind"] == "models"}
    assert asked == {("rl", "sft_longer"), ("rl", "sft"), ("student", "rl")}
    assert {r["a"]["model"] for r in rows if r["kind"] == "thinking"} == set(SKILL)
    assert {r["label"] for r in rows} == {"held-out", "beyond"}
    for row in rows:
        assert row["difference"] == pytest.approx(row["a"]["accuracy"] - row["b"]["accuracy"])
        assert row["n"] == (90 if row["task"] == summary.ALL_TASKS else 30)
    longer = [r for r in rows if r["b"]["model"] == "sft_longer" and r["task"] == summary.ALL_TASKS]
    assert find(longer, label="held-out", why="as much time spent on more fine-tuning", verdict="better")


def test_several_answers_per_problem_are_clustered_and_voted(tmp_path):
    run = Run.open(tmp_path / "run", {"name": "eval"}, quiet=True)
    rng = random.Random(1)
    problems = TAUGHT["gcd"].problems("test", 25, 3)
    answers = [answered(p, "rl", True, 0.7, rng, k) for p in problems for k in range(8)]
    write_exam(run, answers, "held-out")
    run.close()
    (row,) = summary.rows(tmp_path / "run")
    assert (row["n"], row["samples"], row["k"], row["answers"]) == (25, 8, 8, 200)
    assert row["accuracy"] == pytest.approx(row["solved"] / 200)
    assert row["accuracy"] < row["maj_k"] <= row["pass_k"] <= 1
    low, high = stats.wilson(row["solved"], 200)
    assert row["ci95"][1] - row["ci95"][0] >= high - low - 1e-9


def test_infrastructure_is_counted_and_left_out(tmp_path):
    run = Run.open(tmp_path / "run", {"name": "eval"}, quiet=True)
    rng = random.Random(1)
    answers = [answered(p, "rl", True, 1.0, rng) for p in TAUGHT["gcd"].problems("test", 10, 3)]
    answers[3] = replace(answers[3], outcome="infrastructure", reward=0.0)
    write_exam(run, answers, "held-out")
    run.close()
    (row,) = summary.rows(tmp_path / "run")
    assert (row["n"], row["solved"], row["accuracy"]) == (9, 9, 1.0)
    assert row["outcomes"] == {"solved": 9, "infrastructure": 1}


def test_an_exam_without_a_single_verdict_has_no_accuracy():
    rng = random.Random(1)
    answers = [replace(answered(p, "rl", True, 1.0, rng), outcome="infrastructure")
               for p in TAUGHT["gcd"].problems("test", 3, 3)]  # fmt: skip
    row = summary.evaluate_row(answers, label="held-out", split="test", seconds=1.0, usd=0.1, file="x.jsonl")
    assert (row["n"], row["accuracy"], row["ci95"], row["usd_per_solved"]) == (0, None, None, None)
    empty = summary.evaluate_row([], label="held-out", split="test", seconds=1.0, usd=0.1, file="x.jsonl")
    assert (empty["n"], empty["solved"], empty["accuracy"]) == (0, 0, None)


def test_exams_of_several_stages_are_not_pooled(tmp_path):
    run = Run.open(tmp_path / "run", {"name": "eval"}, quiet=True)
    problems = TAUGHT["gcd"].problems("test", 10, 3)
    early = [answered(p, "rl", True, 0.0, random.Random(1)) for p in problems]
    late = [answered(p, "rl", True, 1.0, random.Random(2)) for p in problems]
    write_exam(run, early, "held-out", stage="early")
    write_exam(run, late, "held-out", stage="late")
    run.close()
    overall = summary.summarise(tmp_path / "run")["overall"]
    assert {(row["stage"], row["n"], row["accuracy"]) for row in overall} == {("early", 10, 0.0), ("late", 10, 1.0)}


def test_a_run_that_has_just_begun_has_a_summary(tmp_path):
    run = Run.open(tmp_path / "run", CONFIG, quiet=True)
    with run.ledger.stage("pretrain", "pretrain"):
        run.log("pretrain", 1, loss=6.0)
    report = summary.summarise(run.path)
    run.close()
    assert (report["evals"], report["comparisons"], report["model"], report["models"]) == ([], [], None, [])
    assert report["stages"][0]["done"] is False
    assert report["total"]["peak_rss_bytes"] is None


def test_an_exam_that_was_interrupted_is_left_out(whole, report, tmp_path):
    folder = tmp_path / "run" / "rollouts"
    folder.mkdir(parents=True)
    row = report["evals"][0]
    note = Path(row["file"]).with_suffix(".json").name
    (folder / note).write_bytes((whole / "rollouts" / note).read_bytes())
    assert summary.rows(tmp_path / "run") == []


def test_what_cannot_be_read_is_named(tmp_path):
    with pytest.raises(UserError, match="holds no run"):
        summary.summarise(tmp_path)
    folder = tmp_path / "rollouts"
    folder.mkdir()
    (folder / "a.json").write_text('{"label": "held-out"}', encoding="utf-8")
    (folder / "a.jsonl").write_text("{}\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"a\.json does not say file, seconds, split, usd"):
        summary.rows(tmp_path)
    (folder / "a.json").write_text("[", encoding="utf-8")
    with pytest.raises(UserError, match=r"a\.json cannot be read"):
        summary.rows(tmp_path)


def test_unplanned_models_are_all_compared():
    rng = random.Random(5)
    problems = TAUGHT["gcd"].problems("test", 12, 3)
    facts = {"label": "held-out", "split": "test", "seconds": 1.0, "usd": 0.1, "file": "x"}
    exams = []
    for model in ("a", "b", "c"):
        answers = [answered(p, model, True, 0.5, rng) for p in problems]
        exams.append(summary.exam(answers, facts))
    pairs = [(r["a"]["model"], r["b"]["model"]) for r in summary.comparisons(exams, []) if r["task"] == "gcd"]
    assert pairs == [("b", "a"), ("c", "a"), ("c", "b")]


def test_the_largest_memory_of_all_sessions_is_kept(tmp_path):
    run = Run.open(tmp_path / "run", CONFIG, quiet=True)
    run.note(MACHINE, peak_rss_bytes=1 << 50)
    run.note_peak()
    run.close()
    again = Run.open(tmp_path / "run", CONFIG, quiet=True)
    again.note_peak()
    again.close()
    assert summary.summarise(tmp_path / "run")["total"]["peak_rss_bytes"] == 1 << 50


def test_flops_and_energy_are_told_per_answer_where_they_are_known():
    facts = {"label": "held-out", "split": "test", "seconds": 1.0, "usd": 0.1, "file": "x.jsonl"}
    row = summary.evaluate_row([], flops=8.0, kwh=2.0, **facts)
    assert (row["flops"], row["flops_per_answer"], row["kwh_per_solved"]) == (8.0, None, None)
    problems = {("gcd", "", i): [summary.Answer("solved" if i else "wrong", "1", 3)] for i in range(4)}
    row = summary.figures(problems, 2.0, 0.1, 8.0, 6.0)
    assert (row["seconds_per_answer"], row["flops_per_answer"], row["kwh_per_solved"]) == (0.5, 2.0, 2.0)
    assert summary.figures(problems, 2.0, 0.1)["flops_per_answer"] is None


def test_what_an_answer_costs_has_an_interval_and_its_time_has_quantiles():
    said = Completion((1,) * 10, (0.0,) * 10, "stop", "1", thinking_tokens=6, seconds=2.0)
    rollouts = []
    for i in range(20):
        problem = Problem("t", str(i), (), "1")
        turn = replace(said, seconds=float(i), usd=0.01 * (1 + i % 2))
        rollouts.append(Rollout(problem, turn, 1.0, "solved", earlier=(said,)))
    row = summary.evaluate_row(rollouts, label="l", split="test", seconds=60.0, usd=0.3, file="f")
    assert row["tokens_per_answer"] == 20 and row["thinking_tokens_per_answer"] == 12
    assert row["latency_seconds"] == [11.5, 19.0]  # both turns
    assert row["charged_usd"] == pytest.approx(0.3) and row["usd_per_answer"] == pytest.approx(0.015)
    low, high = row["usd_per_answer_ci95"]
    half = 2.0930 * 0.005 * math.sqrt(20 / 19) / math.sqrt(20)
    assert (low, high) == (pytest.approx(0.015 - half, rel=1e-4), pytest.approx(0.015 + half, rel=1e-4))
    alone = summary.evaluate_row(rollouts[:1], label="l", split="test", seconds=1.0, usd=0.0, file="f")
    assert alone["usd_per_answer_ci95"] is None


def test_one_that_only_thinks_meets_one_that_cannot(tmp_path):
    rng = random.Random(4)
    problems = TAUGHT["gcd"].problems("test", 30, 3)
    sat = {("a", True): 0.9, ("b", False): 0.2, ("c", True): 0.5, ("c", False): 0.3}
    exams = [
        summary.exam([answered(p, model, mode, right, rng) for p in problems],
                     {"label": "held-out", "split": "test", "seconds": 1.0, "usd": 0.1, "file": "f"})
        for (model, mode), right in sat.items()
    ]  # fmt: skip
    rows = [row for row in summary.comparisons(exams, []) if row["task"] == summary.ALL_TASKS]
    found = [(r["a"]["model"], r["a"]["thinking"], r["b"]["model"], r["b"]["thinking"]) for r in rows]
    assert found == [
        ("c", True, "c", False), ("b", False, "a", True), ("c", True, "a", True), ("c", False, "b", False),
    ]  # fmt: skip


def test_results_vote_by_their_value_not_by_the_words_around_them() -> None:
    problem = Problem("gsm8k", "1", (Message("user", "How many?"),), "18")
    texts = ["So \\boxed{18}.", "Thus it is \\boxed{18}", "I get \\boxed{18.0}", "\\boxed{7}", "\\boxed{7}"]
    rollouts = [
        Rollout(problem, Completion((1,), (-0.1,), "stop", text), float(i < 3), "solved" if i < 3 else "wrong", 0.0, i,
                words={"exact": "", "math-verify": ""})
        for i, text in enumerate(texts)
    ]  # fmt: skip
    row = evaluate_row(rollouts, label="held-out", split="test", seconds=1.0, usd=0.1, file="f")
    assert row["maj_k"] == 1.0
    assert row["pass_at"] == pytest.approx({"1": 0.6, "2": 0.9, "4": 1.0})


def test_of_many_pairs_of_models_verdicts_are_corrected() -> None:
    def exam_of(model: str, solved: int) -> Exam:
        rollouts = [
            Rollout(Problem("t", str(i), (Message("user", "?"),), "1"), Completion((1,), (-0.1,), "stop", "1"), 1.0,
                    "solved" if i < solved else "wrong", model=model)
            for i in range(60)
        ]  # fmt: skip
        return exam(rollouts, {"label": "held-out", "split": "test", "seconds": 1.0, "usd": 0.1, "file": model})

    rows = comparisons([exam_of(name, n) for name, n in (("a", 40), ("b", 46), ("c", 41), ("d", 42))], ())
    pairs = [row for row in rows if row["kind"] == "models" and row["task"] == ALL_TASKS]
    assert len(pairs) == 6
    sure = next(row for row in pairs if {row["a"]["model"], row["b"]["model"]} == {"a", "b"})
    assert sure["p"] < 0.05 < sure["p_adjusted"]
    assert sure["verdict"] == "cannot tell"
    (alone,) = [
        row for row in comparisons([exam_of("a", 40), exam_of("b", 46)], ())
        if row["kind"] == "models" and row["task"] == ALL_TASKS
    ]  # fmt: skip
    assert (alone["verdict"], alone["p_adjusted"]) == ("better", alone["p"])
