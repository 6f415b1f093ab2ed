"""Distillation: a smaller model learns from a larger one's own, graded answers.

Two ways, one student:
- `rollouts` (off-policy): answers the teacher gave and a verifier found right, token for token, with the teacher's
  probabilities over the whole vocabulary at every token (forward KL), which say more than the one token drawn;
- `on_policy_steps`: afterwards the student answers itself and the teacher scores it (reverse KL), so that it learns
  from its own mistakes.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field, field_validator, model_validator

from mull.data.batch import Batch, Stream, collate
from mull.data.sources import Draw, Problems, answers, from_rollout, seed_of
from mull.dist import precision
from mull.engine.rollout import rollouts, spent
from mull.ledger import Entry
from mull.model.config import ModelConfig
from mull.model.flops import forward_flops
from mull.model.transformer import Transformer
from mull.stages.stage import OWN, Context, StageConfig, own_loss
from mull.text.chat import Chat
from mull.train.losses import LossConfig
from mull.train.trainer import TrainConfig, Trainer
from mull.types import Rollout, Sampling, UserError, read_rollouts, write_rollouts


class DistillConfig(StageConfig):
    kind: Literal["distill"] = "distill"
    teacher: str
    init: str = ""  # the student: a model to go on from, with the teacher's tokenizer
    model: ModelConfig | None = None  # or a new one of this shape; the vocabulary is the teacher's
    steps: int = Field(gt=0)
    batch_tokens: int = Field(default=4096, gt=0)
    accumulate: int = Field(default=1, gt=0)  # micro-batches of batch_tokens per step
    reuse: list[str] = []  # stages whose graded answers are learnt from as well (the teacher's RL)
    tasks: list[Draw] = []  # fresh problems for the teacher
    fresh: int = Field(default=0, ge=0)  # how many
    max_tokens: int = Field(default=512, gt=0)
    rows: int = Field(default=256, gt=0)
    on_policy_steps: int = Field(default=0, ge=0)
    on_policy_answers: int = Field(default=64, gt=0)  # per step
    train: TrainConfig = TrainConfig(loss=LossConfig(name="forward_kl"))

    @field_validator("train")
    @classmethod
    def _loss(cls, train: TrainConfig) -> TrainConfig:
        return own_loss(train, "forward_kl", "ce")

    @model_validator(mode="after")
    def _one_student(self) -> DistillConfig:
        if bool(self.init) == bool(self.model):
            raise ValueError("give either init, a model to go on from, or model, the shape of a new one")
        return self


def main(cfg: DistillConfig, ctx: Context) -> None:
    run, stage = ctx.run, cfg.name
    with run.ledger.stage(stage, cfg.kind) as entry:
        teacher, chat = ctx.load(cfg.teacher, mtp=False)
        teacher.eval().exactly(ctx.exact)  # now: a continued stage may need no engine of it
        student = _student(cfg, ctx, teacher, chat)  # first: one that cannot learn is said before answers are drawn
        lessons = _lessons(cfg, ctx, teacher, chat, entry)
        trainer = Trainer(student, cfg.train, cfg.steps)
        source = answers(lessons, seed_of(ctx.seed, stage))
        stream = Stream(source, cfg.batch_tokens, ctx.device, accumulate=cfg.accumulate)
        if (found := trainer.restore(run.stage_dir(stage), run.say)) is not None:
            stream.cursor = found["cursor"]
        run.rewind(stage, trainer.step)

        def batches(step: int) -> Sequence[Batch]:
            drawn = stream.batches(step)
            if cfg.train.loss.name == "ce":  # learns from the tokens alone
                return drawn
            return [scored(batch, teacher, entry) for batch in drawn]

        if trainer.step < cfg.steps:
            run.rewind(stage + OWN, 0)  # what came after these steps comes after them again
            shutil.rmtree(run.stage_dir(stage + OWN), ignore_errors=True)
            trainer.fit(run, stage, batches, entry, extra=stream.state)
            if cfg.on_policy_steps and cfg.train.checkpoint_every:  # so that they are never done again after those
                run.sync()
                trainer.save(run.stage_dir(stage), stream.state())
        if cfg.on_policy_steps:
            _on_policy(cfg, ctx, teacher, student, chat, entry)
        ctx.save(stage, student, chat)


def _student(cfg: DistillConfig, ctx: Context, teacher: Transformer, chat: Chat) -> Transformer:
    if cfg.model is not None:
        shape = cfg.model.model_copy(update={"vocab": teacher.cfg.vocab})
        return Transformer(shape).initialise(seed_of(ctx.seed, cfg.name, "weights")).to(ctx.device)
    student, own = ctx.load(cfg.init)
    if own.tokenizer.inner.to_str() != chat.tokenizer.inner.to_str():
        raise UserError(
            f"Stage {cfg.name}: {cfg.init!r} and the teacher {cfg.teacher!r} have different tokenizers, so the student "
            "cannot learn the teacher's tokens; pretrain it on the teacher's tasks and vocabulary."
        )
    return student


def scored(batch: Batch, teacher: Transformer, entry: Entry) -> Batch:
    """The batch with the teacher's log-probabilities [N, V] at every predicted position."""
    with torch.no_grad(), precision(teacher.device):
        hidden_TD = teacher(batch.tokens_T, batch.documents)
        batch.teacher_NV = teacher.logits(hidden_TD[batch.predict_N]).log_softmax(dim=-1)
    entry.add(flops=forward_flops(teacher.cfg, batch.documents.lengths, len(batch.target_N)))
    return batch


def _lessons(cfg: DistillConfig, ctx: Context, teacher: Transformer, chat: Chat, entry: Entry) -> list[Rollout]:
    """Right answers: those kept from earlier stages, and fresh ones of the teacher, made once per run."""
    run = ctx.run
    lessons: list[Rollout] = []
    for name in cfg.reuse:
        path = run.rollouts_path(name)
        if not path.exists():
            raise UserError(f"Stage {cfg.name}: {path}, which is to be reused, is not there any more.")
        lessons += [r for r in read_rollouts(path) if r.outcome == "solved"]
    if cfg.fresh:
        path = run.rollouts_path(cfg.name)
        if not path.exists():
            problems = Problems(cfg.tasks, seed_of(ctx.seed, cfg.name, "problems"))
            sampling = Sampling(max_tokens=cfg.max_tokens, seed=seed_of(ctx.seed, cfg.name, "draws"))
            drawn = rollouts(
                [problems(i) for i in range(cfg.fresh)], ctx.engine(teacher, chat, cfg.rows), chat, samples=1,
                sampling=sampling, model_name=cfg.teacher, log=ctx.log(cfg.name, "fresh"),
            )  # fmt: skip
            entry.add(*spent(teacher.cfg, drawn))
            write_rollouts(path, drawn)
        lessons += [r for r in read_rollouts(path) if r.outcome == "solved"]
    if not lessons:
        raise UserError(f"Stage {cfg.name}: the teacher {cfg.teacher!r} solved nothing, so there is nothing to teach.")
    return lessons


def _on_policy(
    cfg: DistillConfig, ctx: Context, teacher: Transformer, student: Transformer, chat: Chat, entry: Entry
) -> None:
    """Reverse KL on the student's own answers, under a name of its own."""
    run, stage = ctx.run, cfg.name + OWN
    sampler = Transformer(student.cfg.model_copy(update={"mtp_layers": 0})).to(ctx.device)
    engine = ctx.engine(sampler, chat, cfg.rows)
    train = cfg.train.model_copy(update={"loss": LossConfig(name="reverse_kl")})
    trainer = Trainer(student, train, cfg.on_policy_steps)
    trainer.restore(run.stage_dir(stage), run.say)
    run.rewind(stage, trainer.step)
    problems = Problems(cfg.tasks, seed_of(ctx.seed, stage))
    sampling = Sampling(max_tokens=cfg.max_tokens, seed=seed_of(ctx.seed, stage, "draws"))

    def batches(step: int) -> Sequence[Batch]:
        engine.load(student.state_dict(), step)
        first = step * cfg.on_policy_answers
        asked = [problems(first + i) for i in range(cfg.on_policy_answers)]
        drawn = rollouts(
            asked, engine, chat, samples=1, sampling=sampling, step=step, model_name=cfg.name,
            log=ctx.step_log(stage, step),
        )  # fmt: skip
        entry.add(*spent(student.cfg, drawn))
        batch = scored(collate([from_rollout(r) for r in drawn], ctx.device), teacher, entry)
        batch.extra = {"reward": sum(r.reward for r in drawn) / len(drawn)}
        return [batch]

    trainer.fit(run, stage, batches, entry)
