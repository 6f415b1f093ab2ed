"""Optimisers and the learning-rate schedule.

AdamW is torch's fused one. Muon (Keller Jordan 2024; match-RMS scaling of arXiv 2502.16982) orthogonalises each weight
matrix's momentum by Newton-Schulz; torch's own refuses stacked experts, so here the iteration is batched over
[experts, out, in]. Matrices learn by Muon; embeddings, head, router, norms and biases by AdamW with the same
learning rate.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from mull.config import Config


class OptimConfig(Config):
    name: Literal["adamw", "muon"] = "adamw"
    lr: float = Field(default=2e-3, gt=0)
    final_lr: float = Field(default=0.0, ge=0)  # as a fraction of lr; the last step is one short of it
    warmup: float = Field(default=0.02, ge=0, le=1)  # fraction of the steps
    decay: float = Field(default=0.2, ge=0, le=1)  # fraction of the steps, at the end
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = Field(default=0.1, ge=0)
    momentum: float = Field(default=0.95, ge=0, lt=1)  # Muon's
    clip: float = Field(default=1.0, gt=0)

    @model_validator(mode="after")
    def _room(self) -> OptimConfig:
        if self.warmup + self.decay > 1 + 1e-9:  # 1.0 may be a hair more in floating point
            raise ValueError(f"warmup + decay = {self.warmup + self.decay:g} is more than all steps; at most 1 will do")
        return self


def learning_rate(cfg: OptimConfig, step: int, steps: int) -> float:
    """Warmup, stable, decay (linear), for step in 0 .. steps - 1."""
    warm, decay = round(cfg.warmup * steps), round(cfg.decay * steps)
    if step < warm:
        return cfg.lr * (step + 1) / warm
    left = steps - step  # this step included: the last one still moves
    if left <= decay:
        return cfg.lr * (cfg.final_lr + (1 - cfg.final_lr) * left / (decay + 1))
    return cfg.lr


def orthogonalise(matrix: Tensor, iterations: int = 5) -> Tensor:
    """Nearest semi-orthogonal matrix, roughly: singular values go to about 1. [..., m, n], leading axes are a batch.

    X <- (a + b G + c G^2) X with G = X X^T of the shorter side. Where the other is at least twice as long, X waits: all
    factors are polynomials in G, so the next G and the product of factors need no X, and X is multiplied once.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = matrix.shape[-2] > matrix.shape[-1]
    x = matrix.reshape(-1, *matrix.shape[-2:])
    x = x.transpose(1, 2) if tall else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    if 2 * x.shape[1] > x.shape[2]:
        for _ in range(iterations):
            gram = x @ x.transpose(1, 2)
            x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    else:
        gram = product = x @ x.transpose(1, 2)
        for step in range(iterations):
            factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
            factor.diagonal(dim1=1, dim2=2).add_(a)
            product = factor @ product if step else factor
            gram = factor @ (factor @ gram) if step < iterations - 1 else gram
        x = product @ x
    return (x.transpose(1, 2) if tall else x).reshape(matrix.shape)


class Muon(torch.optim.Optimizer):
    """Muon over matrices and stacks of matrices; equal shapes are stacked so that one iteration serves them all."""

    def __init__(self, params: list[nn.Parameter], cfg: OptimConfig):
        super().__init__(params, {"lr": cfg.lr, "momentum": cfg.momentum, "weight_decay": cfg.weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        assert closure is None
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    by_shape[p.shape[-2:]].append(p)
            for shape, params in by_shape.items():
                self._update(group, shape, params)

    def _update(self, group: dict[str, Any], shape: torch.Size, params: list[nn.Parameter]) -> None:
        directions = []
        for p in params:
            momentum = self.state[p].setdefault("momentum", torch.zeros_like(p))
            assert p.grad is not None
            momentum.lerp_(p.grad, 1 - group["momentum"])
            directions.append(p.grad.lerp(momentum, group["momentum"]).reshape(-1, *shape))  # Nesterov
        update = orthogonalise(torch.cat(directions)) * (0.2 * max(shape) ** 0.5)
        for p, part in zip(params, update.split([len(d) for d in directions]), strict=True):
            p.mul_(1 - group["lr"] * group["weight_decay"])
            p.add_(part.reshape(p.shape), alpha=-group["lr"])


def optimisers(model: nn.Module, cfg: OptimConfig) -> list[torch.optim.Optimizer]:
    """One or two optimisers over all parameters. Only matrices inside blocks decay."""
    matrices, tables, rest = [], [], []
    for name, p in model.named_parameters():
        inside = name.startswith(("blocks.", "mtp."))
        if p.ndim >= 2 and inside and "router" not in name:
            matrices.append(p)
        elif p.ndim >= 2:
            tables.append(p)
        else:
            rest.append(p)
    adam = [{"params": tables, "weight_decay": 0.0}, {"params": rest, "weight_decay": 0.0}]
    if cfg.name == "adamw":
        adam.append({"params": matrices, "weight_decay": cfg.weight_decay})
    groups = [g for g in adam if g["params"]]
    found: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(groups, lr=cfg.lr, betas=cfg.betas, eps=cfg.eps, fused=True)
    ]
    if cfg.name == "muon":
        found.append(Muon(matrices, cfg))
    return found
