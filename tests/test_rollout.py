"""Problems in, graded rollouts out: places, keys, prompts, and graders that break."""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from small import GQA, MOE, changed, chat, in_memory, model_of, tokens_of  # noqa: F401 - the fixture

from mull.engine.cache import Rows
from mull.engine.core import out_of_memory
from mull.engine.decoder import STEP, Decoder
from mull.engine.engine import LocalEngine
from mull.engine.pages import PAGE
from mull.engine.rollout import Speaker, grade, rollouts, spent
from mull.engine.tokenlog import TokenLog
from mull.model.flops import decoding_flops
from mull.tasks import TASKS, find
from mull.tasks.base import Verdict
from mull.types import (
    Completion,
    Delta,
    Finish,
    Message,
    Outcome,
    Problem,
    Request,
    Rollout,
    Sampling,
    UserError,
)


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
    shared = (prompt - 1) // PAGE * PAGE
    assert shared > 0
    assert fed[0] - (3 * prompt - 2 * shared) in range(STEP)  # some that nobody reads fill it up
    assert sum(fed[1:]) == sum(lengths) - 3
    tokens, flops = spent(MOE, got)
    assert tokens == sum(lengths)
    assert flops == decoding_flops(MOE, prompt, lengths[0]) + sum(
        decoding_flops(MOE, prompt, n) - decoding_flops(MOE, shared, 0) for n in lengths[1:]
    )
    apart = rollouts(problems, engine, chat(), sampling=Sampling(max_tokens=8, seed=3))
    assert spent(MOE, apart)[1] == sum(decoding_flops(MOE, len(r.prompt), len(r.completion.tokens)) for r in apart)


# memory


def wide() -> LocalEngine:
    """A model whose answers take little time and much memory, 14 KB a token. Its weights are too small for oneDNN,
    which does not survive it when the system refuses memory for its code."""
    shape = changed(GQA, layers=2, heads=7, kv_heads=7, head_dim=128)
    return LocalEngine(model_of(shape, std=0.02).exactly(), chat(), max_rows=64)


def asked(count: int = 64) -> list[Request]:
    prompts = [tuple(tokens_of(20 + i % 3 * 10, i)) for i in range(count)]
    return [Request(prompt, Sampling(max_tokens=5 + i % 40), (0, i)) for i, prompt in enumerate(prompts)]


def bits(answers: Sequence[Completion]) -> list[tuple]:
    return [(a.tokens, a.logprobs, a.finish) for a in answers]


@contextmanager
def at_most(more: int) -> Iterator[None]:
    """This process gets so many bytes and no others, what it once gave back to its allocator included."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + more, hard))
    held: list[torch.Tensor] = []
    try:
        with suppress(RuntimeError):
            while True:
                held.append(torch.empty(1 << 20, dtype=torch.uint8))
        del held[-(more >> 20) :]
        yield
    finally:
        held.clear()
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_without_memory_for_all_rows_half_of_them_draw_the_same_bits(tmp_path: Path) -> None:
    whole = wide().generate(asked())
    engine, log = wide(), TokenLog(tmp_path / "log")
    said: list[str] = []
    engine.say = said.append
    with at_most(40 << 20):
        answers = engine.generate(asked(), log=log)
    assert bits(answers) == bits(whole)
    assert said[0] == "Memory does not suffice for 64 answers at a time; going on with 32."
    assert engine.max_rows == 64 >> len(said)
    fed = len(said)
    assert bits(engine.generate(asked(), log=log)) == bits(whole)  # the log is none the worse for it
    assert len(said) == fed


def test_memory_that_fails_at_any_step_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the middle of a forward pass, whatever that had done to the cache; several times."""
    shape = changed(MOE, layers=2)
    requests = asked(9)
    whole = LocalEngine(model_of(shape, std=0.1).exactly(), chat(), routes=True).generate(requests)
    for failing in ({0}, {1}, {5}, {7, 8}, {3, 11, 12}):
        engine = LocalEngine(model_of(shape, std=0.1).exactly(), chat(), max_rows=8, routes=True)
        logits, calls = engine.model.logits, iter(range(10_000))

        def failed(hidden, logits=logits, calls=calls, failing=failing):
            if next(calls) in failing:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return logits(hidden)

        monkeypatch.setattr(engine.model, "logits", failed)
        answers = engine.generate(requests)
        assert bits(answers) == bits(whole)
        assert [a.routes for a in answers] == [a.routes for a in whole]
        assert engine.max_rows < 8


def test_memory_that_fails_while_rows_move_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two steps: the tokens are drawn, the cache is half moved."""
    requests = asked(9)
    whole = LocalEngine(model_of(MOE, std=0.1).exactly(), chat(), routes=True).generate(requests)
    engine = LocalEngine(model_of(MOE, std=0.1).exactly(), chat(), max_rows=8, routes=True)
    move, calls = Rows.move, iter(range(10_000))

    def failed(rows: Rows, source: int, target: int, length: int) -> None:
        if next(calls) in (0, 2):
            move(rows, source, target, length // 2)
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        move(rows, source, target, length)

    monkeypatch.setattr(Rows, "move", failed)
    answers = engine.generate(requests)
    assert bits(answers) == bits(whole)
    assert [a.routes for a in answers] == [a.routes for a in whole]
    assert engine.max_rows < 8
    assert next(calls) > 2  # both failures came


def test_one_answer_that_does_not_fit_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = wide()
    monkeypatch.setattr(Decoder, "step", lambda *_: torch.empty(1 << 55))  # more than any machine has
    with pytest.raises(UserError, match=r"^Memory does not suffice for one answer of more than \d+ tokens, prompt"):
        engine.generate(asked(3))


def test_only_a_lack_of_memory_is_taken_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = wide()
    monkeypatch.setattr(Decoder, "step", lambda *_: torch.ones(2, 3) @ torch.ones(2, 3))
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        engine.generate(asked(3))
    assert engine.max_rows == 64


@pytest.mark.parametrize(("error", "lacking"), [
    (MemoryError(), True), (torch.OutOfMemoryError("CUDA out of memory."), True),
    (RuntimeError("std::bad_alloc"), True),
    (RuntimeError("[enforce fail at alloc_cpu.cpp:129] err == 0. DefaultCPUAllocator: can't allocate memory"), True),
    (RuntimeError("not enough memory: you tried to allocate 1 bytes."), True),
    (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
], ids=range(6))  # fmt: skip
def test_the_words_for_it_are_known(error: Exception, lacking: bool) -> None:
    assert out_of_memory(error) == lacking


# several turns, known answers, judges


class Talkative:
    """A task of two turns whose answers repeat what was said: it is graded on the whole conversation."""

    name, about = "talkative", "says it again"

    def problems(self, split: str, n: int, seed: int = 0, **size: object) -> list[Problem]:
        turns = {"turns": ["again", "more"]}
        return [Problem(self.name, str(i), (Message("user", f"{i}"),), "", turns) for i in range(n)]

    def judge(self, problem: Problem, completion: Completion) -> Verdict:
        said = [m.content for m in problem.messages if m.role == "assistant"]
        return Verdict(1.0, "solved", {"heard": "|".join([*said, completion.text])})

    def grade(self, problem: Problem, completion: Completion) -> tuple[float, Outcome]:
        return self.judge(problem, completion).reward, "solved"


class Tasted(Talkative):
    """The same, judged by a model."""

    needs_judge = True

    def requests_for_judge(self, problem: Problem, completion: Completion) -> list[tuple[Message, ...]]:
        return [(Message("user", f"is {completion.text} good?"),), (Message("user", "really?"),)]

    def judged(self, problem: Problem, completion: Completion, said: list[str]) -> Verdict:
        return Verdict(0.5, "solved", {"judge": "|".join(said)})


class Counting(Scripted):
    """Says how often it was asked; stops at a limit, if there is one."""

    def __init__(self, finish: Finish = "stop"):
        super().__init__([])
        self.finish: Finish = finish

    def generate(self, requests: Sequence[Request], on_finish: Any = None, log: object = None) -> list[Completion]:
        answers = []
        for request in requests:
            self.asked.append(request)
            answers.append(Completion((9,), (-1.0,), self.finish, f"{len(self.asked)}", "hm", prompt_tokens=3))
            if on_finish is not None:
                on_finish(len(answers) - 1, answers[-1])
        return answers


@pytest.fixture
def talkative(monkeypatch: pytest.MonkeyPatch) -> list[Problem]:
    monkeypatch.setitem(TASKS, "talkative", Talkative())
    return TASKS["talkative"].problems("test", 2)


def test_a_conversation_is_answered_turn_by_turn(talkative: list[Problem]) -> None:
    engine = Counting()
    one, two = rollouts(talkative, engine, chat(), sampling=Sampling(), thinking=True, step=4)
    assert [r.key for r in engine.asked] == [(4, i, 0, *turn) for turn in ((), (1,), (1, 2)) for i in (0, 1)]
    assert [(m.role, m.content) for m in two.problem.messages] == [
        ("user", "1"), ("assistant", "2"), ("user", "again"), ("assistant", "4"), ("user", "more"),
    ]  # fmt: skip
    assert two.problem.messages[1].reasoning == "hm"
    assert (two.completion.text, [c.text for c in two.earlier]) == ("6", ["2", "4"])
    assert one.words == {"heard": "1|3|5"}
    assert engine.asked[4].messages == one.problem.messages
    assert Rollout.from_json(one.to_json()) == one
    assert spent(MOE, [one])[0] == 3


def test_a_conversation_ends_where_an_answer_is_cut_off(talkative: list[Problem]) -> None:
    got = rollouts(talkative, Counting("length"), chat(), sampling=Sampling())
    assert [(len(r.problem.messages), r.earlier) for r in got] == [(1, ()), (1, ())]


def test_what_is_known_is_not_asked_and_what_is_graded_is_kept_at_once(talkative: list[Problem]) -> None:
    kept: list[Rollout] = []
    whole = rollouts(talkative, Counting(), chat(), samples=2, sampling=Sampling(), keep=kept.append)
    assert sorted(kept, key=whole.index) == whole
    known = {(r.problem.id, r.sample): r for r in whole if (r.problem.id, r.sample) != ("1", 0)}
    engine, again = Counting(), []
    got = rollouts(talkative, engine, chat(), samples=2, sampling=Sampling(), known=known, keep=again.append)
    assert {r.key[:3] for r in engine.asked} == {(0, 1, 0)}
    assert [r for r in got if r not in again] == [r for r in whole if (r.problem.id, r.sample) in known]


def test_what_has_come_is_kept_where_the_caller_wants_no_more(talkative: list[Problem]) -> None:
    kept: list[Rollout] = []

    def enough(place: int, answer: Completion) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rollouts(talkative, Counting("length"), chat(), sampling=Sampling(), keep=kept.append, on_finish=enough)
    assert [r.problem.id for r in kept] == ["0"]


def test_a_prompt_without_room_behind_it_is_truncated_and_not_asked(problems: list[Problem]) -> None:
    engine = Counting()
    got = rollouts(problems, engine, chat(), sampling=Sampling(), longest=5)
    assert [r.outcome for r in got] == ["truncated"] * 3
    assert "holds 5" in got[0].completion.error
    assert not engine.asked


def test_messages_go_to_who_has_no_tokens(problems: list[Problem]) -> None:
    engine = Counting()
    rollouts(problems, engine, None, sampling=Sampling())
    assert [(r.tokens, r.messages) for r in engine.asked] == [((), p.messages) for p in problems]


def test_a_model_judges_where_a_task_needs_one(talkative: list[Problem], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TASKS, "talkative", Tasted())
    judgements: list[Completion] = []
    judge = Speaker(Counting(), chat(), hear=judgements.append)
    got = rollouts(talkative[:1], Counting(), chat(), sampling=Sampling(), judge=judge)
    assert [one.text for one in judgements] == ["1", "2"]
    assert (got[0].reward, got[0].outcome, got[0].words) == (0.5, "solved", {"judge": "1|2"})
    alone = rollouts(talkative[:1], Counting(), chat(), sampling=Sampling())
    assert alone[0].outcome == "infrastructure"
    assert "--judge" in alone[0].words["grader"]
    cut = rollouts(talkative[:1], Counting("length"), chat(), sampling=Sampling(), judge=judge)
    assert cut[0].outcome == "truncated"
