"""Pretraining: from nothing to a model of text.

1. train a tokenizer on the documents, unless a model to go on from brings one;
2. initialise the weights from the seed;
3. learn to predict every token of every document, the next ones too (multi-token prediction).

Documents are worked problems of the taught tasks (as many answered at once as step by step), recitals of their numbers,
the user's own text files, or a mixture.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from mull.config import digest
from mull.data.batch import Stream
from mull.data.shards import mix, read_texts, shard, text_files, write_shard
from mull.data.sources import Draw, Problems, Source, documents, recitals, seed_of
from mull.model.config import ModelConfig
from mull.model.transformer import Transformer
from mull.stages.stage import Context, StageConfig, own_loss
from mull.tasks import TAUGHT
from mull.text.chat import ROLES, Chat
from mull.text.tokenizer import Tokenizer
from mull.train.trainer import TrainConfig, Trainer
from mull.types import UserError


class PretrainConfig(StageConfig):
    kind: Literal["pretrain"] = "pretrain"
    model: ModelConfig | None = None  # instead of the recipe's
    steps: int = Field(gt=0)
    batch_tokens: int = Field(default=4096, gt=0)
    accumulate: int = Field(default=1, gt=0)  # micro-batches of batch_tokens per step
    tasks: list[Draw] = []  # worked problems
    direct: float = Field(default=0.5, ge=0, le=1)  # share of them that go without steps
    recite: list[Draw] = []  # problems whose numbers are only said again
    files: list[str] = []  # patterns of .txt and .jsonl files
    tasks_weight: int = Field(default=1, gt=0)  # the mixture, in documents
    recite_weight: int = Field(default=1, gt=0)
    files_weight: int = Field(default=1, gt=0)
    length: int = Field(default=1024, gt=1)  # longer documents are cut
    tokenizer_sample: int = Field(default=3000, gt=0)  # documents of `tasks` the tokenizer is trained on
    train: TrainConfig = TrainConfig()

    @field_validator("train")
    @classmethod
    def _loss(cls, train: TrainConfig) -> TrainConfig:
        return own_loss(train, "ce")


def main(cfg: PretrainConfig, ctx: Context) -> None:
    run, stage = ctx.run, cfg.name
    if not (cfg.tasks or cfg.recite or cfg.files):
        raise UserError(f"Stage {stage}: nothing to learn from; give tasks, recite or files.")
    with run.ledger.stage(stage, cfg.kind) as entry:
        _same_text(cfg, ctx)
        shape = cfg.model or ctx.model
        chat = Chat(_tokenizer(cfg, ctx, shape.vocab))
        source = _source(cfg, ctx, chat)
        model = Transformer(shape).initialise(seed_of(ctx.seed, "weights")).to(ctx.device)
        trainer = Trainer(model, cfg.train, cfg.steps)
        stream = Stream(source, cfg.batch_tokens, ctx.device, accumulate=cfg.accumulate)
        if (found := trainer.restore(run.stage_dir(stage), run.say)) is not None:
            stream.cursor = found["cursor"]
        run.rewind(stage, trainer.step)
        trainer.fit(run, stage, stream.batches, entry, extra=stream.state)
        ctx.save(stage, model, chat)


def _same_text(cfg: PretrainConfig, ctx: Context) -> None:
    """A run that is continued finds the text it began with, or is refused."""
    now, before = digest(text_files(cfg.files)), ctx.run.facts(cfg.name).get("text")
    if before not in (None, now):
        raise UserError(
            f"Stage {cfg.name}: what {', '.join(cfg.files)} holds has changed since this stage began; restore it or "
            "give another --out."
        )
    if cfg.files and not before:
        ctx.run.note(cfg.name, text=now)


def _tokenizer(cfg: PretrainConfig, ctx: Context, vocab: int) -> Tokenizer:
    """Trained once per run; a run that is continued reads it back."""
    folder = ctx.run.stage_dir(cfg.name) / "tokenizer"
    if (folder / "tokenizer.json").exists():
        return Tokenizer.load(folder)
    texts: list[str] = []
    if cfg.tasks:
        problems = Problems(cfg.tasks, seed_of(ctx.seed, "tokenizer"))
        for i in range(cfg.tokenizer_sample):
            problem = problems(i)
            solution = TAUGHT[problem.task].solution(problem)
            texts += [*ROLES, problem.messages[-1].content, solution.reasoning or "", solution.content]
    texts += read_texts(cfg.files)
    tokenizer = Tokenizer.train(texts, vocab)
    tokenizer.save(folder)
    return tokenizer


def _source(cfg: PretrainConfig, ctx: Context, chat: Chat) -> Source:
    seed = seed_of(ctx.seed, cfg.name)
    sources: list[tuple[Source, int]] = []
    if cfg.tasks:
        sources.append((documents(cfg.tasks, chat, seed, cfg.direct), cfg.tasks_weight))
    if cfg.recite:
        sources.append((recitals(cfg.recite, chat, seed_of(seed, "recite")), cfg.recite_weight))
    if cfg.files:
        stem = ctx.run.stage_dir(cfg.name) / "text"
        if not stem.with_suffix(".ends.npy").exists():
            write_shard(stem, read_texts(cfg.files), chat.tokenizer, cfg.length)
        sources.append((shard(stem, seed), cfg.files_weight))
    return mix(*zip(*sources, strict=True), seed=seed) if len(sources) > 1 else sources[0][0]
