"""What stages share: their place in a run, and how models pass from one to the next.

A stage is a function `main(cfg, ctx)` that reads models by name and leaves one under its own name. Stages do not import
one another; the recipe chains them.
"""

from __future__ import annotations

import re
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import torch
from pydantic import AfterValidator

from mull.config import Config
from mull.endpoints import Endpoint
from mull.engine.engine import LocalEngine
from mull.engine.remote import RemoteEngine
from mull.engine.rollout import Speaker
from mull.engine.tokenlog import TokenLog
from mull.model.config import ModelConfig
from mull.model.transformer import Transformer
from mull.model.weights import load_model, save_model
from mull.run import Run
from mull.text.chat import Chat
from mull.train import checkpoint
from mull.train.trainer import TrainConfig
from mull.types import UserError

OWN = "-own"  # what a distill stage adds to its name for the student's own answers


def _name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", text) or text == "result.json":
        raise ValueError(f"{text!r} is no name; use letters, digits and _.-, a letter, digit or _ first")
    return text


Name = Annotated[str, AfterValidator(_name)]  # of a directory, among others


class StageConfig(Config):
    """`name` is the stage's, and of the model it makes."""

    name: Name


def own_loss(train: TrainConfig, *losses: str) -> TrainConfig:
    """The stage's loss, the first of `losses`, where none is named. Raises ValueError for one it cannot feed."""
    loss = train.loss
    if "name" not in loss.model_fields_set:
        loss = loss.model_copy(update={"name": losses[0]})
    if loss.name not in losses:
        raise ValueError(f"this stage cannot feed the loss {loss.name!r}; it takes {' or '.join(losses)}")
    return train.model_copy(update={"loss": loss})


@dataclass
class Context:
    run: Run
    seed: int
    device: torch.device
    model: ModelConfig
    outside: dict[str, str] = field(default_factory=dict)  # models that no stage makes: name -> path
    exact: bool = False  # answers have the same bits however they are batched, and so do rl's trainer's
    endpoints: dict[str, Endpoint] = field(default_factory=dict)  # models that others serve
    max_usd: float | None = None  # an evaluation stops where it would cost more

    def folder(self, name: str) -> Path:
        if name in self.outside:
            return Path(self.outside[name])
        folder = self.run.model_dir(name)
        if not folder.exists():
            made = sorted(p.name for p in self.run.model_dir(name).parent.glob("[!.]*") if p.is_dir())
            raise UserError(f"No stage has made the model {name!r}; there are {', '.join(made) or 'none'}.")
        return folder

    def load(self, name: str, mtp: bool = True) -> tuple[Transformer, Chat]:
        """A model and its chat format; one that only answers needs no MTP layers."""
        folder = self.folder(name)
        model = load_model(folder, self.device, mtp)
        return model, Chat.load(folder)

    def present(self, name: str) -> None:
        """Raises UserError where there is no such model."""
        if name not in self.endpoints:
            self.folder(name)

    def speaker(self, name: str, rows: int) -> Speaker:
        """Whoever answers as `name`: a model in this process, or an endpoint."""
        if name in self.endpoints:
            served = self.endpoints[name]
            engine = RemoteEngine(served, say=self.run.say)
            return Speaker(engine, turn=nullcontext(), always=False not in served.modes)
        weights, chat = self.load(name, mtp=False)
        return Speaker(self.engine(weights, chat, rows), chat, weights.cfg.max_length)

    def save(self, name: str, model: Transformer, chat: Chat) -> None:
        save_model(self.run.model_dir(name), model, chat)

    def engine(
        self, model: Transformer, chat: Chat, rows: int = 256, fp32: bool = False, routes: bool = False
    ) -> LocalEngine:
        exact = model.exactly(self.exact)
        return LocalEngine(exact, chat, max_rows=rows, fp32=fp32 or self.exact, routes=routes, say=self.run.say)

    def log(self, stage: str, name: str) -> TokenLog | None:
        """Where unfinished answers are kept in exact mode. In fast mode they would go on with other bits: nowhere."""
        return TokenLog(self.run.tokens_dir(stage) / f"{name}.log") if self.exact else None

    def step_log(self, stage: str, step: int) -> TokenLog | None:
        """That of a step; those of steps that a checkpoint covers, and the one before it too, are gone."""
        covered = checkpoint.oldest(self.run.stage_dir(stage))
        for path in self.run.tokens_dir(stage).glob("*.log"):
            if path.stem.isdigit() and int(path.stem) < covered:
                path.unlink()
        return self.log(stage, str(step))
