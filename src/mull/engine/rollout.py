"""Problems in, graded rollouts out: the stretch of road that evaluation, RL and distillation share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from itertools import pairwise
from threading import Lock
from typing import Any

from mull.engine.pages import PAGE
from mull.engine.tokenlog import TokenLog
from mull.model.config import ModelConfig
from mull.model.flops import decoding_flops
from mull.tasks import find
from mull.tasks.base import Judged, Verdict, later_turns, unfinished, verdict
from mull.text.chat import Chat
from mull.types import Completion, Engine, Message, Outcome, Problem, Request, Rollout, Sampling, UserError

JUDGEMENT = 1024  # tokens of a model's judgement
GRADERS = 4  # answers graded at a time: most graders wait for a process of their own
Place = tuple[str, int]  # of an answer: its problem's id, and which of the answers to it


@dataclass(frozen=True)
class Speaker:
    """Who answers, and how prompts are put to it: as token ids by a chat format, or, without one, as messages."""

    engine: Engine
    chat: Chat | None = None
    longest: int = 0  # tokens of prompt and answer together; 0: whoever answers will say
    turn: AbstractContextManager[Any] = field(default_factory=Lock)  # of one process: one at a time
    always: bool = False  # it cannot but think
    hear: Callable[[Completion], None] | None = None  # told what it said as a judge: that costs too

    def prompt(self, messages: Sequence[Message], thinking: bool) -> tuple[int, ...]:
        return tuple(self.chat.encode(messages, thinking=thinking)) if self.chat else ()


@dataclass
class _Talk:
    """One answer to a problem on its way: several turns, where the problem has them."""

    problem: Problem
    sample: int
    key: tuple[int, ...]
    messages: tuple[Message, ...]
    ahead: tuple[str, ...]  # what the user says after each answer
    prompt: tuple[int, ...] = ()
    answers: tuple[Completion, ...] = ()
    ended: bool = False

    def hear(self, answer: Completion) -> None:
        self.answers += (answer,)
        self.ended = not self.ahead or answer.finish != "stop"
        if not self.ended:
            said = Message("assistant", answer.text, answer.reasoning or None)
            self.messages += (said, Message("user", self.ahead[0]))
            self.ahead = self.ahead[1:]
            self.key += (len(self.answers),)


def rollouts(
    problems: Sequence[Problem],
    engine: Engine,
    chat: Chat | None,
    *,
    samples: int = 1,
    sampling: Sampling,
    thinking: bool = True,
    step: int = 0,
    first: int = 0,
    model_name: str = "",
    on_finish: Callable[[int, Completion], None] | None = None,
    log: TokenLog | None = None,
    longest: int = 0,
    known: Mapping[Place, Rollout] | None = None,
    keep: Callable[[Rollout], None] | None = None,
    judge: Speaker | None = None,
) -> list[Rollout]:
    """`samples` graded answers to each problem, a problem's answers side by side.

    The draw of an answer is keyed by (step, first + place of its problem, sample): the same whatever else is asked.
    `on_finish(place, answer)` is called as each answer comes to its end; where it raises, no more are asked. What `log`
    holds of them is not drawn again. Those of `known` are not asked again; `keep` gets each other one as soon as it is
    graded, from any thread. A prompt that `longest` leaves no room behind is `truncated`, not asked. `judge` is asked
    by tasks that need a model to judge.
    """
    speaker, known = Speaker(engine, chat, longest), known or {}
    sampling = replace(sampling, thinking=thinking)
    talks = [
        _Talk(problem, k, (step, first + i, k), problem.messages, later_turns(problem))
        for i, problem in enumerate(problems)
        for k in range(samples)
    ]
    graded: dict[int, Future[Rollout]] = {}

    def grade_one(talk: _Talk) -> Rollout:
        asked = replace(talk.problem, messages=talk.messages)
        found = judged(asked, talk.answers[-1], judge)
        rollout = Rollout(
            asked, talk.answers[-1], found.reward, found.outcome, 0.0, talk.sample, model_name, thinking, talk.prompt,
            talk.answers[:-1], found.words,
        )  # fmt: skip
        if keep is not None:
            keep(rollout)
        return rollout

    with ThreadPoolExecutor(GRADERS, "grader") as pool:
        asked = [at for at, talk in enumerate(talks) if (talk.problem.id, talk.sample) not in known]

        def heard(place: int, answer: Completion) -> None:
            talk = talks[at := asked[place]]
            talk.hear(answer)
            if talk.ended:
                graded[at] = pool.submit(grade_one, talk)
            if on_finish is not None:  # it may raise: what has come is graded, and kept, before the pool closes
                on_finish(at, answer)

        while asked:
            _turn(speaker, [talks[at] for at in asked], sampling, heard, log)
            asked, log = [at for at in asked if not talks[at].ended], None
        return [
            graded[at].result() if at in graded else known[talk.problem.id, talk.sample]
            for at, talk in enumerate(talks)
        ]


def _turn(
    speaker: Speaker, talks: Sequence[_Talk], sampling: Sampling, heard: Callable[[int, Completion], None],
    log: TokenLog | None,
) -> None:  # fmt: skip
    """The next answer of each."""
    requests, places = [], []
    for place, talk in enumerate(talks):
        talk.prompt = speaker.prompt(talk.messages, sampling.thinking)
        if speaker.longest and len(talk.prompt) >= speaker.longest:
            why = f"the prompt has {len(talk.prompt)} tokens; the model holds {speaker.longest}, the answer included"
            heard(place, Completion((), (), "length", prompt_tokens=len(talk.prompt), error=why))
        else:
            places.append(place)
            requests.append(Request(talk.prompt, sampling, talk.key, talk.messages))
    if requests:
        told = set[int]()

        def tell(index: int, answer: Completion) -> None:
            told.add(index)
            heard(places[index], answer)

        for index, answer in enumerate(speaker.engine.generate(requests, tell, log)):
            if index not in told:
                heard(places[index], answer)


def judged(problem: Problem, completion: Completion, judge: Speaker | None = None) -> Verdict:
    """The task's verdict; a grader that breaks is infrastructure, never the model's fault.

    Raises UserError where the task needs a model to judge and there is none.
    """
    try:
        task = find(problem.task)
        if isinstance(task, Judged):
            return _by_model(task, problem, completion, judge)
        return verdict(task, problem, completion)
    except UserError as error:
        return Verdict(0.0, "infrastructure", {"grader": str(error)})
    except Exception as error:  # whatever a grader may raise, an evaluation of hours goes on
        return Verdict(0.0, "infrastructure", {"grader": f"{type(error).__name__}: {error}"})


def _by_model(task: Judged, problem: Problem, completion: Completion, judge: Speaker | None) -> Verdict:
    if cut := unfinished(completion):
        return Verdict(0.0, cut)
    if judge is None:
        raise UserError(f"{task.name} is graded by a model; name one with --judge.")
    most = JUDGEMENT * (8 if judge.always else 1)
    sampling = Sampling(max_tokens=most, temperature=0.0, thinking=judge.always)
    asks = task.requests_for_judge(problem, completion)
    requests = [Request(judge.prompt(ask, judge.always), sampling, (i,), ask) for i, ask in enumerate(asks)]
    with judge.turn:
        said = judge.engine.generate(requests)
        if judge.hear is not None:
            for one in said:
                judge.hear(one)
    return task.judged(problem, completion, [one.text if one.finish == "stop" else "" for one in said])


def spent(cfg: ModelConfig, answers: Sequence[Rollout]) -> tuple[int, int]:
    """(tokens, FLOPs) of answers that stand as `rollouts` returned them: neighbours share their prompt's full pages."""
    tokens = sum(len(one.tokens) for r in answers for one in (*r.earlier, r.completion))
    flops = sum(decoding_flops(cfg, len(r.prompt), len(r.completion.tokens)) for r in answers)
    flops += sum(decoding_flops(cfg, one.prompt_tokens, len(one.tokens)) for r in answers for one in r.earlier)
    shared = [(len(b.prompt) - 1) // PAGE * PAGE for a, b in pairwise(answers) if a.prompt == b.prompt]
    return tokens, flops - sum(decoding_flops(cfg, length, 0) for length in shared if length)


def grade(problem: Problem, completion: Completion) -> tuple[float, Outcome]:
    """The same without the words."""
    found = judged(problem, completion)
    return found.reward, found.outcome


__all__ = ["Speaker", "grade", "judged", "rollouts", "spent"]
