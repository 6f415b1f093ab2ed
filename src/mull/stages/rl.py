"""Reinforcement learning from verifiable rewards: the model's own answers, graded, pull it towards the right ones.

Each step: draw problems, let the engine answer each `samples` times at temperature 1, grade, centre the rewards within
the group, drop groups that all succeeded or all failed and draw new problems in their place, one optimiser step,
hand the new weights to the engine.

Where it departs from the textbook GRPO (arXiv 2402.03300): advantages are not divided by the group's standard
deviation and the loss is a mean over all tokens (no length or difficulty bias, arXiv 2503.20783); no KL term, no
reference model; importance weights are truncated and measured against the sampler's own log-probabilities.
Engine and trainer are one model class in one process, and both compute in fp32 on every device, so those weights are 1
up to rounding; the largest difference is logged every step (`max_gap`), with k3 and the share of tokens that met other
experts (`rerouted`), and the run stops where it exceeds the configured `max_gap`. In exact mode all three are 0, to the
last bit, and a step in which they are not is not taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from pydantic import Field, field_validator

from mull.data.batch import Batch, collate
from mull.data.sources import Draw, Problems, from_rollout, seed_of
from mull.dist import row_floor
from mull.engine.rollout import rollouts, spent
from mull.stages.stage import Context, StageConfig, own_loss
from mull.train.losses import LossConfig
from mull.train.trainer import Limit, TrainConfig, Trainer
from mull.types import Rollout, Sampling, UserError


class RLConfig(StageConfig):
    kind: Literal["rl"] = "rl"
    init: str
    steps: int = Field(gt=0)
    tasks: list[Draw]
    problems: int = Field(default=32, gt=0)  # groups of mixed reward per step
    samples: int = Field(default=8, gt=1)  # answers per problem
    refills: int = Field(default=2, ge=0)  # how often dropped groups are redrawn before a step makes do with fewer
    max_tokens: int = Field(default=512, gt=0)
    overlong: int = Field(default=0, ge=0)  # the last so many tokens before max_tokens cost up to `overlong_cost`
    overlong_cost: float = Field(default=0.5, ge=0)
    rows: int = Field(default=256, gt=0)
    micro_tokens: int = Field(default=16384, gt=0)
    max_gap: float = Field(default=1e-3, gt=0)  # largest |sampler - trainer| of a log-probability; beyond, stop
    keep: bool = True  # write the graded answers to rollouts/<name>.jsonl
    train: TrainConfig = TrainConfig(loss=LossConfig(name="grpo"))

    @field_validator("train")
    @classmethod
    def _loss(cls, train: TrainConfig) -> TrainConfig:
        return own_loss(train, "grpo")


APART = (
    "By so much do sampler and trainer differ on the log-probability of a token: what is learnt would not be what was "
    "drawn. Both compute in fp32, so that is a fault of the machine or of mull; to go on all the same, give a larger "
    "max_gap and with it another --out."
)


INEXACT = (
    "In exact mode sampler and trainer agree to the last bit, and here they do not: the kernels of this machine or of "
    "this torch round a row by its company. Please report it; exactness=fast, with another --out, tolerates it."
)


def limits(cfg: RLConfig, exact: bool, mixture: bool) -> dict[str, Limit]:
    """How far sampler and trainer may be apart before a step is not taken."""
    if not exact:
        return {"max_gap": Limit(cfg.max_gap, APART)}
    equal = Limit(0.0, INEXACT)
    return {"max_gap": equal, "rerouted": equal} if mixture else {"max_gap": equal}


def main(cfg: RLConfig, ctx: Context) -> None:
    run, stage = ctx.run, cfg.name
    with run.ledger.stage(stage, cfg.kind) as entry:
        model, chat = ctx.load(cfg.init)
        model.exactly(ctx.exact)
        sampler, _ = ctx.load(cfg.init, mtp=False)
        # bf16 would round sampler and trainer further apart than max_gap allows, and hide a real fault
        engine = ctx.engine(sampler, chat, cfg.rows, fp32=True, routes=True)
        bounds = limits(cfg, ctx.exact, mixture=model.cfg.experts > 0)
        trainer = Trainer(model, cfg.train, cfg.steps, limits=bounds, fp32=True)
        problems = Problems(cfg.tasks, seed_of(ctx.seed, stage))
        sampling = Sampling(max_tokens=cfg.max_tokens, seed=seed_of(ctx.seed, stage, "draws"))
        cursor = 0
        if (found := trainer.restore(run.stage_dir(stage), run.say)) is not None:
            cursor = found["cursor"]
            engine.load(model.state_dict(), trainer.step)
        run.rewind(stage, trainer.step)
        run.rewind_rollouts(stage, trainer.step)

        def batches(step: int) -> Sequence[Batch]:
            nonlocal cursor
            chosen: list[Rollout] = []
            drawn: list[Rollout] = []
            log = ctx.step_log(stage, step)
            for _ in range(cfg.refills + 1):
                wanted = cfg.problems - len(chosen) // cfg.samples
                if wanted <= 0:
                    break
                batch = [problems(cursor + i) for i in range(wanted)]
                fresh = rollouts(
                    batch, engine, chat, samples=cfg.samples, sampling=sampling, step=step,
                    first=cursor, model_name=stage, log=log,
                )  # fmt: skip
                cursor += wanted
                fresh, teaching = _with_advantages(fresh, cfg)
                drawn += fresh
                chosen += teaching
            entry.add(*spent(model.cfg, drawn))
            if cfg.keep:
                run.append_rollouts(stage, step, drawn)
            if not chosen:
                raise UserError(
                    f"Stage {stage}, step {step + 1}: all {len(drawn) // cfg.samples} groups had equal rewards "
                    f"(mean {_mean(r.reward for r in drawn):.2f}); there is nothing to learn. "
                    "Choose easier or harder tasks."
                )
            micro = _micro(chosen, cfg.micro_tokens, row_floor())
            parts = [collate([from_rollout(r) for r in part], ctx.device) for part in micro]
            parts[0].extra = _figures(drawn, chosen, cfg)
            return parts

        trainer.fit(
            run, stage, batches, entry, extra=lambda: {"cursor": cursor},
            after=lambda step: engine.load(model.state_dict(), step),
        )  # fmt: skip
        ctx.save(stage, model, chat)


def _with_advantages(drawn: Sequence[Rollout], cfg: RLConfig) -> tuple[list[Rollout], list[Rollout]]:
    """All answers with their advantages, and of them those that teach: groups of mixed reward.

    An advantage is the reward minus the group's mean; 0 in groups that are dropped, and for our own failures.
    """
    every: list[Rollout] = []
    teaching: list[Rollout] = []
    for begin in range(0, len(drawn), cfg.samples):
        group = drawn[begin : begin + cfg.samples]
        graded = [r for r in group if r.outcome != "infrastructure"]
        rewards = [r.reward - _overlong(len(r.completion.tokens), cfg) for r in graded]
        if len(set(rewards)) > 1:
            mean = sum(rewards) / len(rewards)
            graded = [replace(r, advantage=reward - mean) for r, reward in zip(graded, rewards, strict=True)]
            teaching += graded
        rest = iter(graded)
        every += [r if r.outcome == "infrastructure" else next(rest) for r in group]
    return every, teaching


def _overlong(tokens: int, cfg: RLConfig) -> float:
    """Soft penalty (DAPO, arXiv 2503.14476): rises linearly over the last `overlong` tokens before the limit."""
    if not cfg.overlong:
        return 0.0
    over = tokens - (cfg.max_tokens - cfg.overlong)
    return cfg.overlong_cost * max(0, over) / cfg.overlong


def _micro(chosen: Sequence[Rollout], tokens: int, least: int) -> list[list[Rollout]]:
    """Micro-batches of similar lengths: longest first, at most `tokens` each.

    A last one of fewer than `least` tokens, too few for the exact kernels, joins the one before.
    """
    longest = sorted(chosen, key=lambda r: -len(r.prompt) - len(r.completion.tokens))
    parts: list[list[Rollout]] = [[]]
    used = 0
    for r in longest:
        size = len(r.prompt) + len(r.completion.tokens)
        if parts[-1] and used + size > tokens:
            parts.append([])
            used = 0
        parts[-1].append(r)
        used += size
    if used < least and len(parts) > 1:
        last = parts.pop()
        parts[-1] += last
    return parts


def _mean(values) -> float:
    listed = list(values)
    return sum(listed) / len(listed) if listed else 0.0


def _figures(drawn: Sequence[Rollout], chosen: Sequence[Rollout], cfg: RLConfig) -> dict[str, float]:
    """What a step is judged by: all drawn answers count, not only those that teach."""
    figures = {
        "reward": _mean(r.reward for r in drawn),
        "chain_length": _mean(len(r.completion.tokens) for r in drawn),
        "truncated": _mean(r.outcome == "truncated" for r in drawn),
        "groups": len(chosen) / cfg.samples,
        "answers": float(len(drawn)),
    }
    for task in sorted({r.problem.task for r in drawn}):
        figures[f"reward/{task}"] = _mean(r.reward for r in drawn if r.problem.task == task)
    return figures
