"""Problems in, graded rollouts out: the stretch of road that evaluation, RL and distillation share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

from mull.engine.pages import PAGE
from mull.engine.tokenlog import TokenLog
from mull.model.config import ModelConfig
from mull.model.flops import decoding_flops
from mull.tasks import find
from mull.text.chat import Chat
from mull.types import Completion, Engine, Outcome, Problem, Request, Rollout, Sampling


def rollouts(
    problems: Sequence[Problem],
    engine: Engine,
    chat: Chat,
    *,
    samples: int = 1,
    sampling: Sampling,
    thinking: bool = True,
    step: int = 0,
    first: int = 0,
    model_name: str = "",
    on_finish: Callable[[int, Completion], None] | None = None,
    log: TokenLog | None = None,
) -> list[Rollout]:
    """`samples` graded answers to each problem, a problem's answers side by side.

    The draw of an answer is keyed by (step, first + place of its problem, sample): the same whatever else is asked.
    `on_finish(place, answer)` is called as each answer comes to its end, before any is graded. What `log` holds of them
    is not drawn again.
    """
    sampling = replace(sampling, thinking=thinking)
    prompts = [tuple(chat.encode(p.messages, thinking=thinking)) for p in problems]
    requests = [
        Request(prompt, sampling, (step, first + i, k), problems[i].messages)
        for i, prompt in enumerate(prompts)
        for k in range(samples)
    ]
    answers = engine.generate(requests, on_finish, log)
    graded = []
    for at, completion in enumerate(answers):
        i, k = divmod(at, samples)
        reward, outcome = grade(problems[i], completion)
        graded.append(
            Rollout(problems[i], completion, reward, outcome, 0.0, k, model_name, thinking, prompts[i])
        )  # fmt: skip
    return graded


def spent(cfg: ModelConfig, answers: Sequence[Rollout]) -> tuple[int, int]:
    """(tokens, FLOPs) of answers that stand as `rollouts` returned them: neighbours share their prompt's full pages."""
    tokens = sum(len(r.completion.tokens) for r in answers)
    flops = sum(decoding_flops(cfg, len(r.prompt), len(r.completion.tokens)) for r in answers)
    shared = [(len(b.prompt) - 1) // PAGE * PAGE for a, b in pairwise(answers) if a.prompt == b.prompt]
    return tokens, flops - sum(decoding_flops(cfg, length, 0) for length in shared if length)


def grade(problem: Problem, completion: Completion) -> tuple[float, Outcome]:
    """The task's verdict; a grader that breaks is infrastructure, never the model's fault."""
    try:
        return find(problem.task).grade(problem, completion)
    except Exception:  # whatever a grader may raise, an evaluation of hours goes on
        return 0.0, "infrastructure"
