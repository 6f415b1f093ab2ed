"""The only training loop. Pretraining, SFT, RL and distillation differ in where batches come from and in one loss name.

One optimiser step: micro-batches forward and backward, each weighted by its share of predicted tokens; clip; step;
move the routers' biases against the load of the whole step. Everything a step uses is a function of (seed, step), so a
checkpoint is the weights, the optimisers and a few counters.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from mull.config import Config
from mull.data.batch import Batch
from mull.dist import precision, unrounded
from mull.ledger import Entry
from mull.model.flops import training_flops
from mull.model.moe import MoE, Trace, fingerprints
from mull.model.transformer import Transformer
from mull.ops.cross_entropy import cross_entropy
from mull.run import Run
from mull.train import checkpoint
from mull.train.losses import LOSSES, MAXIMA, LossConfig
from mull.train.optim import OptimConfig, learning_rate, optimisers
from mull.types import UserError


class TrainConfig(Config):
    optim: OptimConfig = OptimConfig()
    loss: LossConfig = LossConfig()
    balance_speed: float = Field(default=1e-3, ge=0)  # how far a router bias moves per step (arXiv 2412.19437: 1e-3)
    balance_weight: float = Field(default=1e-4, ge=0)  # of the sequence-wise balance loss
    mtp_weight: float = Field(default=0.3, ge=0)  # of the mean multi-token-prediction loss; ignored without MTP layers
    checkpoint_every: int = Field(default=0, ge=0)  # steps; 0 keeps only the finished model
    load_every: int = Field(default=20, gt=0)  # steps between records of the experts' load


Batches = Callable[[int], Sequence[Batch]]  # optimiser step -> its micro-batches


@dataclass(frozen=True)
class Limit:
    """The most that a metric may be, and what to say of one that is more."""

    most: float
    advice: str


@dataclass
class Trainer:
    """Owns the optimisers of one model for `steps` steps. `step` counts those done.

    A step whose loss is no number, or whose metrics exceed their `limits`, is not taken. With `fp32` forward passes are
    fp32 on CUDA too.
    """

    model: Transformer
    cfg: TrainConfig
    steps: int
    step: int = 0
    limits: Mapping[str, Limit] = field(default_factory=dict)
    fp32: bool = False

    def __post_init__(self) -> None:
        self.optimisers = optimisers(self.model, self.cfg.optim)
        self.loss = LOSSES[self.cfg.loss.name]
        self.moes = [m for m in self.model.modules() if isinstance(m, MoE)]

    def train_step(self, batches: Sequence[Batch]) -> dict[str, float]:
        """One optimiser step. Returns means per predicted token (or maxima) of what the loss reports."""
        predicted = sum(len(b.target_N) for b in batches)
        sums: dict[str, float] = {}
        load = None
        for optimiser in self.optimisers:
            optimiser.zero_grad(set_to_none=True)
        for batch in batches:
            trace = Trace()
            total, parts = self._objective(batch, predicted, trace)
            total.backward()
            for name, value in parts.items():
                figure = float(value)
                sums[name] = max(sums.get(name, figure), figure) if name in MAXIMA else sums.get(name, 0.0) + figure
            step_load = torch.stack(trace.load) if trace.load else None
            load = step_load if load is None or step_load is None else load + step_load
        metrics = {name: v if name in MAXIMA else v / predicted for name, v in sums.items()}
        metrics["grad_norm"] = self._clip()
        if self._broken(metrics):
            return metrics  # the caller stops; the weights are still those of the step before
        rate = learning_rate(self.cfg.optim, self.step, self.steps)
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = rate
            optimiser.step()
        if load is not None:
            metrics |= self._balance(load)
        self.step += 1
        return metrics | {"lr": rate}

    def _objective(self, batch: Batch, predicted: int, trace: Trace) -> tuple[Tensor, dict[str, Tensor]]:
        model, cfg = self.model, self.cfg
        with precision(model.device, self.fp32):
            hidden_TD = model(batch.tokens_T, batch.documents, trace)
            ahead = model.predict_ahead(batch.tokens_T, hidden_TD, batch.documents, trace) if cfg.mtp_weight else []
        if cfg.loss.name == "ce":
            main, right = self._cross_entropy(hidden_TD, batch.predict_N, batch.target_N)
            parts = {"token_accuracy": right}
        else:
            main, parts = self.loss(model.logits(hidden_TD.index_select(0, batch.predict_N)), batch, cfg.loss)
        parts["loss"] = main.detach()
        if batch.route_N is not None:
            blocks = trace.chosen[: len(trace.chosen) - len(ahead)]  # without those of the layers that predict ahead
            parts["rerouted"] = (fingerprints(blocks, model.cfg.experts)[batch.predict_N] != batch.route_N).sum()
        total = main / predicted
        for depth, state_TD in enumerate(ahead, 2):
            mtp, _ = self._cross_entropy(state_TD, *batch.ahead(depth))
            total = total + cfg.mtp_weight / len(ahead) * mtp / predicted
            parts[f"mtp_loss_{depth}"] = mtp.detach()
        if trace.balance and cfg.balance_weight:
            share = len(batch.target_N) / predicted
            total = total + cfg.balance_weight * share * torch.stack(trace.balance).sum()
        return total, parts

    def _clip(self) -> float:
        """The norm of all gradients together, which are scaled down where it exceeds `clip`, else left alone."""
        norm = torch.nn.utils.get_total_norm([p.grad for p in self.model.parameters() if p.grad is not None])
        if norm > self.cfg.optim.clip:
            torch.nn.utils.clip_grads_with_norm_(self.model.parameters(), self.cfg.optim.clip, norm)
        return float(norm)

    def _cross_entropy(self, hidden_TD: Tensor, at_N: Tensor, target_N: Tensor) -> tuple[Tensor, Tensor]:
        """LOSSES["ce"] without all logits at once, in fp32 as `Transformer.logits` is: (sum, how many are right)."""
        with unrounded(hidden_TD.device):
            return cross_entropy(hidden_TD.float(), self.model.head.weight.float(), at_N, target_N)

    def _balance(self, load_LE: Tensor) -> dict[str, float]:
        """bias += speed * sign(mean load - load), once per step over the whole batch. Returns the worst imbalance."""
        for moe, load_E in zip(self.moes, load_LE.float(), strict=False):
            if moe.router.bias is not None:
                moe.router.bias += self.cfg.balance_speed * (load_E.mean() - load_E).sign()
        self.last_load = load_LE / load_LE.sum(dim=1, keepdim=True)
        return {"load_max": float(self.last_load.max() * load_LE.shape[1])}

    def fit(
        self, run: Run, stage: str, batches: Batches, entry: Entry, after: Callable[[int], None] | None = None,
        extra: Callable[[], dict[str, Any]] = dict,
    ) -> None:  # fmt: skip
        """Train to the end, from wherever `step` is. Logs each step, shows progress, writes checkpoints.

        `after(step)` runs behind each step (RL hands the new weights to the engine); `extra()` is what a checkpoint
        keeps besides the model. Raises UserError when the loss is no longer a number or a limit is exceeded.
        """
        folder = run.stage_dir(stage)
        self.model.train()
        with run.progress(stage, self.steps) as progress:
            while self.step < self.steps:
                began = time.perf_counter()
                micro = batches(self.step)
                tokens = sum(b.tokens for b in micro)
                metrics = self.train_step(micro)
                self._stop_if_broken(metrics, stage, folder)
                entry.add(tokens=tokens, flops=self._flops(micro))
                for batch in micro[:1]:
                    metrics |= batch.extra
                metrics["seconds"] = time.perf_counter() - began
                metrics["tokens_per_s"] = tokens / metrics["seconds"]
                self._record(run, stage, metrics)
                if after is not None:
                    after(self.step)
                shown = {k: metrics[k] for k in ("reward", "loss") if k in metrics}
                progress.update(self.step, tokens=tokens, **dict(list(shown.items())[:1]))
                every = self.cfg.checkpoint_every
                if every and self.step % every == 0 and self.step < self.steps:
                    run.sync()
                    self.save(folder, extra())

    def _flops(self, batches: Sequence[Batch]) -> float:
        return sum(training_flops(self.model.cfg, b.documents.lengths, len(b.target_N)) for b in batches)

    def _record(self, run: Run, stage: str, metrics: dict[str, float]) -> None:
        if self.moes and (self.step % self.cfg.load_every == 0 or self.step == self.steps):
            load = [[round(x, 4) for x in row] for row in self.last_load.tolist()]
            run.log(stage, self.step, expert_load=load, **metrics)
        else:
            run.log(stage, self.step, **metrics)

    def _broken(self, metrics: Mapping[str, float]) -> tuple[str, str] | None:
        """(what is wrong with a step, what to do about it), or None for a step that may be taken."""
        loss, norm = metrics["loss"], metrics["grad_norm"]
        if not math.isfinite(loss) or not math.isfinite(norm):
            return f"the loss is {loss} (gradient norm {norm})", "Try a lower optim.lr."
        for name, limit in self.limits.items():
            if metrics[name] > limit.most:
                return f"{name} is {metrics[name]:.3g}, more than {limit.most:g}", limit.advice
        return None

    def _stop_if_broken(self, metrics: dict[str, float], stage: str, folder: Path) -> None:
        broken = self._broken(metrics)
        if broken is None:
            return
        what, advice = broken
        last = checkpoint.newest(folder)
        where = f"the last good checkpoint is {last}" if last else "there is no checkpoint of this stage yet"
        raise UserError(
            f"Stage {stage}, step {self.step + 1}: {what}, so training stopped before using it; {where}. {advice}"
        )

    def save(self, folder: Path, extra: dict[str, Any]) -> None:
        checkpoint.save(folder, self.step, self.model, self.optimisers, extra)

    def restore(self, folder: Path, say: Callable[[str], None] = print) -> dict[str, Any] | None:
        """Continue from the newest sound checkpoint; returns its `extra`, or None where there is none."""
        found = checkpoint.restore(folder, self.model, self.optimisers, say)
        if found is None:
            return None
        self.step, extra = found
        return extra
