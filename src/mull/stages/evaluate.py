"""Evaluation: the RL road, stopped after grading.

Every model answers the same held-out problems, thinking and not, and each set of answers is one file of rollouts, from
which every figure of the report can be derived again. A set that is already on disk is not asked again, and of one
that was interrupted only what is missing.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from mull.data.sources import Draw, seed_of
from mull.engine.engine import LocalEngine
from mull.engine.remote import NOT_ASKED, RemoteEngine
from mull.engine.rollout import Speaker, rollouts, spent
from mull.ledger import Entry
from mull.report.summary import HELD_OUT, evaluate_row
from mull.run import read_json, write_atomic
from mull.stages.kept import Kept
from mull.stages.stage import Context, StageConfig
from mull.tasks import find
from mull.tasks.base import Cautious, Judged, later_turns
from mull.tasks.perturb import FRESH
from mull.types import Completion, Rollout, Sampling, UserError, write_rollouts


class Exam(Draw):
    """One set of held-out problems. Without `models` or `thinking`, those of the stage."""

    n: int = Field(default=0, ge=0)  # 0: the stage's
    samples: int = Field(default=0, ge=0)
    models: list[str] = []
    thinking: list[bool] = []
    thinking_tokens: int | None = Field(default=None, ge=0)  # none: the stage's; with one, the problems of "held-out"


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
    thinking_tokens: int | None = Field(default=None, ge=0)  # the longest thought; what is longer is ended there
    judge: str = ""  # the model that judges where a task needs one

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


class PausedError(Exception):
    """Not all is answered, and the same command goes on: what there is is kept, and in the report."""


class OverspentError(PausedError):
    """The next answer would cost more than the user wants to pay."""


def main(cfg: EvaluateConfig, ctx: Context) -> None:
    run, sat = ctx.run, sittings(cfg)
    for name in (*cfg.models, *filter(None, [cfg.judge])):
        ctx.present(name)  # a missing model is said now, not after an hour
    tasks = [find(exam.task) for exam in cfg.exams]
    for line in dict.fromkeys(task.warning() for task in tasks if isinstance(task, Cautious)):
        run.say(line)
    speakers: dict[str, Speaker] = {}
    lost: dict[str, str] = {}  # what was not answered to the end, and why
    judge = ctx.speaker(cfg.judge, cfg.rows) if cfg.judge else None
    with run.ledger.stage(cfg.name, cfg.kind) as entry, run.progress(cfg.name, len(sat), unit="exam") as progress:
        for number, sitting in enumerate(sat, 1):
            if _whole(run.rollouts_path(sitting.name)):
                progress.update(number)
                continue
            if (model := sitting.model) not in speakers:
                speakers = {model: ctx.speaker(model, cfg.rows)}
            try:
                row = _Sitter(cfg, ctx, sitting, speakers[model], judge, entry, progress.note).sit()
            except UserError as error:
                if model not in ctx.endpoints:
                    raise
                lost[sitting.name] = str(error)  # one endpoint's refusal is not the end of the others
                continue
            if row.get("missing"):
                lost[sitting.name] = f"{row['missing']} answers never came"
            progress.update(number, solved=row["accuracy"] or 0.0)
    if lost:
        raise PausedError("; ".join(f"{name}: {why}" for name, why in lost.items()))


def _whole(answers: Path) -> bool:
    """Whether a set was answered to its end, as far as it ever can be."""
    return answers.exists() and not read_json(answers.with_suffix(".json")).get("missing")


def check(cfg: EvaluateConfig) -> None:
    """Raises UserError where a task needs a model to judge and there is none."""
    for exam in cfg.exams:
        if isinstance(find(exam.task), Judged) and not cfg.judge:
            raise UserError(f"{exam.task} is graded by a model; name one as judge (--judge MODEL).")


class _Sitter:
    """One sitting under way: what it costs so far, and what is kept of it."""

    def __init__(
        self, cfg: EvaluateConfig, ctx: Context, sitting: Sitting, speaker: Speaker, judge: Speaker | None,
        entry: Entry, note: Callable[[str, int], None],
    ):  # fmt: skip
        self.cfg, self.ctx, self.sitting, self.speaker = cfg, ctx, sitting, speaker
        self.judge = replace(judge, hear=self._heard) if judge else None
        self.judging = 0.0  # dollars that the judge charged
        self.entry, self.note = entry, note
        self.log = ctx.log(cfg.name, sitting.name) if speaker.chat else None
        self.kept = None if self.log else Kept(ctx.run.tokens_dir(cfg.name) / f"{sitting.name}.jsonl")
        self.over = False  # the price is reached
        known = self.kept.known.values() if self.kept else ()
        self.came = sum(1 + len(rollout.earlier) for rollout in known)
        self.began, self.joules = time.perf_counter(), entry.meter.joules()

    @property
    def earlier(self) -> float:
        """Seconds of sessions that were killed."""
        return self.kept.seconds if self.kept else self.log.seconds if self.log else 0.0

    def sit(self) -> dict[str, Any]:
        cfg, exam = self.cfg, self.sitting.exam
        self.samples = exam.samples or cfg.samples
        label = exam.label if exam.thinking_tokens is None else HELD_OUT  # budgets are compared on the same problems
        seed = seed_of("exam", exam.task.removesuffix(FRESH), label)  # a set and its variants: the same problems
        self.problems = find(exam.task).problems(cfg.split, exam.n or cfg.n, seed, **exam.size)
        self.expected = self.samples * sum(1 + len(later_turns(problem)) for problem in self.problems)
        sampling = Sampling(max_tokens=cfg.max_tokens, temperature=cfg.temperature, seed=self.ctx.seed)
        budget = cfg.thinking_tokens if exam.thinking_tokens is None else exam.thinking_tokens
        if budget is not None and self.sitting.thinking:
            sampling = replace(sampling, thinking_tokens=budget)
        if self.kept:
            self.kept.hold(self.problems)
        if self._too_dear():
            raise self._overspent()
        answers = rollouts(
            self.problems, self.speaker.engine, self.speaker.chat, samples=self.samples, sampling=sampling,
            thinking=self.sitting.thinking, model_name=self.sitting.model, on_finish=self._came, log=self.log,
            longest=self.speaker.longest, known=self.kept.known if self.kept else None,
            keep=self._keep if self.kept else None, judge=self.judge,
        )  # fmt: skip
        row = self._write(answers)
        if self.over:
            raise self._overspent()
        return row

    def _came(self, _: int, answer: Completion) -> None:
        if answer.finish == "cancelled":
            return
        self.came += 1
        self.entry.add(usd=answer.usd or 0.0)
        self.note(f"answer {self.came}/{self.expected}", answer.count)
        if self._too_dear():
            if not isinstance(self.speaker.engine, RemoteEngine):
                raise self._overspent()
            self.over = True
            self.speaker.engine.stop()  # what is under way there is paid for, and comes

    def _too_dear(self) -> bool:
        return self.ctx.max_usd is not None and self.ctx.run.ledger.total().usd > self.ctx.max_usd

    def _heard(self, judgement: Completion) -> None:
        self.judging += judgement.usd or 0.0
        self.entry.add(judgement.count, usd=judgement.usd or 0.0)

    def _overspent(self) -> OverspentError:
        return OverspentError(f"{self.came} of {self.expected} answers of {self.sitting.name}")

    def _keep(self, rollout: Rollout) -> None:
        assert self.kept is not None
        self.kept.keep(rollout, self.kept.seconds + time.perf_counter() - self.began)

    def _write(self, answers: Sequence[Rollout]) -> dict[str, Any]:
        cfg, exam, run = self.cfg, self.sitting.exam, self.ctx.run
        seconds = self.earlier + time.perf_counter() - self.began
        engine = self.speaker.engine
        tokens, flops = sum(one.count for r in answers for one in (*r.earlier, r.completion)), None
        if isinstance(engine, LocalEngine):
            tokens, flops = spent(engine.model.cfg, answers)
        self.entry.add(tokens, flops or 0.0)
        path = run.rollouts_path(self.sitting.name)
        charged = math.fsum(one.usd or 0.0 for r in answers for one in (*r.earlier, r.completion))
        kwh = (self.entry.meter.joules() - self.joules) / 3.6e6 + run.ledger.price(self.earlier).kwh
        facts = {
            "label": exam.label, "split": cfg.split, "seconds": seconds,
            "usd": charged or run.ledger.price(seconds).usd, "flops": flops, "kwh": kwh, "file": path.name,
            "stage": cfg.name, "size": exam.size, "temperature": cfg.temperature, "max_tokens": cfg.max_tokens,
        }  # fmt: skip
        if not self.speaker.chat:
            facts |= {"charged_usd": charged, "remote": True}
        if missing := sum(r.completion.finish == "cancelled" for r in answers):
            facts["missing"] = missing
            answers = [r for r in answers if r.completion.error != NOT_ASKED]
        if self.judging:
            facts["judge_usd"] = self.judging
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path.with_suffix(".json"), json.dumps(facts))
        write_rollouts(path, answers)  # last: its presence says that the set is whole
        if self.kept and not missing:
            self.kept.forget()
        return evaluate_row(answers, **facts)
