"""Supervised fine-tuning: a model of text learns to think step by step, and to answer at once when told not to think.

The mixture holds `direct` answers and chains of the same problems' distribution, so that a later comparison of thinking
with not thinking is between two things that were taught equally often.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from mull.data.batch import Stream
from mull.data.shards import mix
from mull.data.sources import Draw, Source, conversations, recitals, seed_of
from mull.stages.stage import Context, StageConfig, own_loss
from mull.text.chat import Chat
from mull.train.trainer import TrainConfig, Trainer
from mull.types import UserError


class SFTConfig(StageConfig):
    kind: Literal["sft"] = "sft"
    init: str  # the model to go on from
    steps: int = Field(default=0, ge=0)
    as_long_as: str = ""  # instead of steps: as many seconds as the steps of this stage took
    speed_of: str = ""  # with as_long_as: the stage whose seconds per step tell how many steps that is
    batch_tokens: int = Field(default=4096, gt=0)
    accumulate: int = Field(default=1, gt=0)  # micro-batches of batch_tokens per step
    tasks: list[Draw]
    direct: float = Field(default=0.5, ge=0, le=1)  # share of examples answered without thinking
    recite: list[Draw] = []  # problems whose numbers are only said again
    recite_weight: int = Field(default=1, gt=0)  # of `tasks_weight` + `recite_weight` examples
    tasks_weight: int = Field(default=5, gt=0)
    train: TrainConfig = TrainConfig()

    @field_validator("train")
    @classmethod
    def _loss(cls, train: TrainConfig) -> TrainConfig:
        return own_loss(train, "ce")

    @model_validator(mode="after")
    def _one_length(self) -> SFTConfig:
        if bool(self.steps) == bool(self.as_long_as):
            raise ValueError("give either steps or as_long_as")
        if bool(self.as_long_as) != bool(self.speed_of):
            raise ValueError("as_long_as needs speed_of, and the other way round")
        return self


def main(cfg: SFTConfig, ctx: Context) -> None:
    run, stage = ctx.run, cfg.name
    steps = cfg.steps or _matching_steps(cfg, ctx)
    with run.ledger.stage(stage, cfg.kind) as entry:
        model, chat = ctx.load(cfg.init)
        trainer = Trainer(model, cfg.train, steps)
        stream = Stream(_source(cfg, ctx, chat), cfg.batch_tokens, ctx.device, accumulate=cfg.accumulate)
        if (found := trainer.restore(run.stage_dir(stage), run.say)) is not None:
            stream.cursor = found["cursor"]
        run.rewind(stage, trainer.step)
        trainer.fit(run, stage, stream.batches, entry, extra=stream.state)
        ctx.save(stage, model, chat)


def _source(cfg: SFTConfig, ctx: Context, chat: Chat) -> Source:
    seed = seed_of(ctx.seed, cfg.name)
    taught = conversations(cfg.tasks, chat, seed, cfg.direct)
    if not cfg.recite:
        return taught
    recited = recitals(cfg.recite, chat, seed_of(seed, "recite"), spoken=True)
    return mix([taught, recited], [cfg.tasks_weight, cfg.recite_weight], seed)


def _matching_steps(cfg: SFTConfig, ctx: Context) -> int:
    """How many steps fill the seconds of another stage; decided once per run, so that a continued run agrees.

    Seconds are those of the steps that count: drawing, grading and learning, but neither checkpoints nor what was lost
    to an interruption and done again.
    """
    known = ctx.run.facts(cfg.name).get("steps")
    if known is None:
        took, _ = _steps(cfg.as_long_as, ctx)
        seconds, steps = _steps(cfg.speed_of, ctx)
        known = max(1, round(took * steps / seconds))
        ctx.run.note(cfg.name, steps=known)
    return int(known)


def _steps(stage: str, ctx: Context) -> tuple[float, int]:
    """(seconds of a stage's steps, their number), from the line that each left in the metrics."""
    each = [line["seconds"] for line in ctx.run.metrics(stage) if "seconds" in line]
    if not sum(each):
        raise UserError(f"{ctx.run.path}/metrics.jsonl does not say how long the steps of {stage!r} took; give steps.")
    return sum(each), len(each)
