"""Problems in, graded rollouts out: places, keys, prompts, and graders that break."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
from small import MOE, chat, model_of

from mull.engine.engine import LocalEngine
from mull.engine.rollout import grade, rollouts, spent
from mull.model.flops import decoding_flops
from mull.tasks import TASKS, find
from mull.types import Completion, Delta, Problem, Request, Sampling


class Scripted:
    """An engine that answers from a list; it keeps what it was asked."""

    def __init__(self, texts: list[str]):
        self.texts, self.asked = texts, [Request(())][:0]

    def generate(self, requests: Sequence[Request], on_finish: object = None, log: object = None) -> list[Completion]:
        self.asked += requests
        return [Completion((9,), (-1.0,), "stop", self.texts[i % len(self.texts)]) for i in range(len(requests))]

    def stream(self, request: Request) -> Iterator[Delta]:
        raise NotImplementedError

    def score(self, ids: Sequence[Sequence[int]]) -> list[list[float]]:
        raise NotImplementedError

    def load(self, state, version: int) -> None:
        raise NotImplementedError


@pytest.fixture
def problems() -> list[Problem]:
    return find("gcd").problems("validation", 3, seed=1)


@pytest.mark.parametrize("thinking", [True, False])
def test_answers_stand_with_their_problems(problems: list[Problem], thinking: bool) -> None:
    right = [p.answer for p in problems for _ in range(2)]
    wrong = [str(int(a) + 1) if i % 2 else a for i, a in enumerate(right)]
    engine = Scripted(wrong)
    got = rollouts(problems, engine, chat(), samples=2, sampling=Sampling(), thinking=thinking, step=7, first=40)
    assert [r.problem for r in got] == [p for p in problems for _ in range(2)]
    assert [r.sample for r in got] == [0, 1] * 3
    assert [r.outcome for r in got] == ["solved", "wrong"] * 3
    assert [r.reward for r in got] == [1.0, 0.0] * 3
    assert [r.key for r in engine.asked] == [(7, 40 + i, k) for i in range(3) for k in range(2)]
    for r, request in zip(got, engine.asked, strict=True):
        assert r.prompt == request.tokens == tuple(chat().encode(r.problem.messages, thinking))
        assert r.thinking == request.sampling.thinking == thinking


def test_a_problem_is_answered_the_same_whatever_else_is_asked(problems: list[Problem]) -> None:
    engine = LocalEngine(model_of(MOE, std=0.1), chat())
    sampling = Sampling(max_tokens=8, seed=3)
    together = rollouts(problems, engine, chat(), samples=2, sampling=sampling, step=1)
    alone = rollouts(problems[2:], engine, chat(), samples=2, sampling=sampling, step=1, first=2)
    assert [r.completion.tokens for r in together[4:]] == [r.completion.tokens for r in alone]


def test_a_grader_that_breaks_is_not_the_models_fault(problems: list[Problem], monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        name = "gcd"

        def grade(self, problem: Problem, completion: Completion):
            raise ZeroDivisionError

    monkeypatch.setitem(TASKS, "gcd", Broken())  # type: ignore[arg-type]
    assert grade(problems[0], Completion((), (), "stop", "1")) == (0.0, "infrastructure")


def test_a_truncated_answer_is_named(problems: list[Problem]) -> None:
    assert grade(problems[0], Completion((), (), "length", problems[0].answer))[1] == "truncated"


def test_a_prompt_is_counted_once_for_its_answers(problems: list[Problem]) -> None:
    """As the engine does: all tokens counted go through the layers, but for the last of each answer."""
    engine = LocalEngine(model_of(MOE, std=0.1), chat())
    extend, fed = engine.model.extend, []

    def counted(tokens_T, *rest, **more):
        fed.append(len(tokens_T))
        return extend(tokens_T, *rest, **more)

    engine.model.extend = counted  # type: ignore[method-assign]
    got = rollouts(problems[:1], engine, chat(), samples=3, sampling=Sampling(max_tokens=8, seed=3))
    lengths = [len(r.completion.tokens) for r in got]
    prompt = len(got[0].prompt)
    assert sum(fed) == prompt + sum(lengths) - 3
    tokens, flops = spent(MOE, got)
    assert tokens == sum(lengths)
    assert flops == decoding_flops(MOE, prompt, lengths[0]) + sum(
        decoding_flops(MOE, prompt, n) - decoding_flops(MOE, prompt, 0) for n in lengths[1:]
    )
    apart = rollouts(problems, engine, chat(), sampling=Sampling(max_tokens=8, seed=3))
    assert spent(MOE, apart)[1] == sum(decoding_flops(MOE, len(r.prompt), len(r.completion.tokens)) for r in apart)
