"""Evaluation: the RL road, stopped after grading.

Every model answers the same held-out problems, thinking and not, and each set of answers is one file of rollouts, from
which every figure of the report can be derived again. A set that is already on disk is not asked again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field, model_validator

from mull.data.sources import Draw, seed_of
from mull.engine.engine import LocalEngine
from mull.engine.rollout import rollouts, spent
from mull.ledger import Entry
from mull.report.summary import evaluate_row
from mull.run import write_atomic
from mull.stages.stage import Context, StageConfig
from mull.tasks import find
from mull.text.chat import Chat
from mull.types import Completion, Sampling, write_rollouts


class Exam(Draw):
    """One set of held-out problems. Without `models` or `thinking`, those of the stage."""

    n: int = Field(default=0, ge=0)  # 0: the stage's
    samples: int = Field(default=0, ge=0)
    models: list[str] = []
    thinking: list[bool] = []


class EvaluateConfig(StageConfig):
    kind: Literal["evaluate"] = "evaluate"
    models: list[str] = Field(min_length=1)
    exams: list[Exam] = Field(min_length=1)
    thinking: list[bool] = Field(default=[True, False], min_length=1)
    n: int = Field(default=500, gt=0)
    samples: int = Field(default=1, gt=0)
    split: Literal["validation", "test"] = "test"
    temperature: float = Field(default=0.0, ge=0)
    max_tokens: int = Field(default=512, gt=0)
    rows: int = Field(default=512, gt=0)

    @model_validator(mode="after")
    def _sensible(self) -> EvaluateConfig:
        samples = max(exam.samples or self.samples for exam in self.exams)
        if samples > 1 and not self.temperature:
            raise ValueError(f"{samples} samples at temperature 0 are the same answer {samples} times")
        for exam in self.exams:
            for name in exam.models:
                if name not in self.models:
                    raise ValueError(f"an exam is for {name!r}, which is not among models {self.models}")
        return self


@dataclass(frozen=True)
class Sitting:
    """One model before one exam in one mode: one file of rollouts, `name`.jsonl."""

    name: str
    model: str
    exam: Exam
    thinking: bool


def sittings(cfg: EvaluateConfig) -> list[Sitting]:
    return [
        Sitting(_name(cfg.name, model, exam, thinking), model, exam, thinking)
        for model in cfg.models
        for exam in cfg.exams
        if model in (exam.models or cfg.models)
        for thinking in exam.thinking or cfg.thinking
    ]


def _name(stage: str, model: str, exam: Exam, thinking: bool) -> str:
    size = "-".join(f"{k}={v}" for k, v in sorted(exam.size.items()))
    parts = [stage, model, exam.task.replace("/", "."), exam.label, size, "think" if thinking else "direct"]
    return "_".join("".join(c if c.isalnum() or c in "-_.=," else "" for c in part) for part in parts if part)


def main(cfg: EvaluateConfig, ctx: Context) -> None:
    run, sat = ctx.run, sittings(cfg)
    for name in cfg.models:
        ctx.folder(name)  # a missing model is said now, not after an hour
    for exam in cfg.exams:
        find(exam.task)
    engines: dict[str, tuple[LocalEngine, Chat]] = {}
    with run.ledger.stage(cfg.name, cfg.kind) as entry, run.progress(cfg.name, len(sat), unit="exam") as progress:
        for number, sitting in enumerate(sat, 1):
            if not run.rollouts_path(sitting.name).exists():
                if (model := sitting.model) not in engines:
                    weights, chat = ctx.load(model, mtp=False)
                    engines = {model: (ctx.engine(weights, chat, cfg.rows), chat)}
                row = _sit(cfg, ctx, sitting, engines[model], entry, progress.note)
                progress.update(number, solved=row["accuracy"] or 0.0)
            else:
                progress.update(number)


def _sit(
    cfg: EvaluateConfig, ctx: Context, sitting: Sitting, engine: tuple[LocalEngine, Chat], entry: Entry,
    note: Callable[[str, int], None],
) -> dict[str, Any]:
    (speaker, chat), exam = engine, sitting.exam
    samples = exam.samples or cfg.samples
    problems = find(exam.task).problems(cfg.split, exam.n or cfg.n, seed_of("exam", exam.task, exam.label), **exam.size)
    sampling = Sampling(max_tokens=cfg.max_tokens, temperature=cfg.temperature, seed=ctx.seed)
    came = 0

    def on_finish(_: int, answer: Completion) -> None:
        nonlocal came
        came += 1
        note(f"answer {came}/{len(problems) * samples}", len(answer.tokens))

    log = ctx.log(cfg.name, sitting.name)
    began, joules = time.perf_counter(), entry.meter.joules()
    answers = rollouts(
        problems, speaker, chat, samples=samples, sampling=sampling, thinking=sitting.thinking,
        model_name=sitting.model, on_finish=on_finish, log=log,
    )  # fmt: skip
    earlier = log.seconds if log is not None else 0.0  # of sessions that were killed
    seconds = earlier + time.perf_counter() - began
    tokens, flops = spent(speaker.model.cfg, answers)
    entry.add(tokens, flops)
    path = ctx.run.rollouts_path(sitting.name)
    bill = ctx.run.ledger.price(seconds, tokens, flops)
    kwh = (entry.meter.joules() - joules) / 3.6e6 + ctx.run.ledger.price(earlier).kwh
    facts = {
        "label": exam.label, "split": cfg.split, "seconds": seconds, "usd": bill.usd,
        "flops": flops, "kwh": kwh, "file": path.name,
        "stage": cfg.name, "size": exam.size, "temperature": cfg.temperature, "max_tokens": cfg.max_tokens,
    }  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path.with_suffix(".json"), json.dumps(facts))
    write_rollouts(path, answers)  # last: its presence says that the set is whole
    return evaluate_row(answers, **facts)
