"""Sources are functions of (seed, index): exact mixtures, the train split, tokens as the chat writes them."""

from __future__ import annotations

import re
from collections import Counter

import pytest
from small import chat

from mull.data.sources import Draw, Problems, answers, conversations, documents, from_rollout, recitals, seed_of
from mull.tasks import TASKS, TAUGHT, find
from mull.types import Completion, Message, Problem, Rollout, UserError

SUMS = Draw(task="chain_sum", weight=3)
GCD = Draw(task="gcd", weight=1)


def test_a_seed_is_stable_across_processes() -> None:
    assert seed_of(0, "weights") == seed_of("0", "weights")
    assert seed_of(1, 23) != seed_of(12, 3)
    assert 0 <= seed_of("x") < 2**63


def test_problems_are_a_function_of_seed_and_index() -> None:
    problems, again = Problems([SUMS, GCD], 5), Problems([SUMS, GCD], 5)
    want = [problems(i) for i in range(40)]
    assert [again(i) for i in (39, 3, 17)] == [want[39], want[3], want[17]]
    assert [Problems([SUMS, GCD], 6)(i) for i in range(40)] != want


def test_problems_hold_their_weights_in_every_block() -> None:
    problems = Problems([SUMS, GCD], 0)
    for block in range(5):
        counts = Counter(problems(4 * block + i).task for i in range(4))
        assert counts == {find("chain_sum").name: 3, find("gcd").name: 1}


def test_problems_go_on_past_a_chunk_without_repeating_it() -> None:
    problems = Problems([GCD], 0)
    first, second = ([problems(k * 256 + i).messages for i in range(20)] for k in (0, 1))
    assert first != second


def test_problems_are_of_the_train_split() -> None:
    problems = Problems([GCD], 1)
    held_out = {p.messages for s in ("validation", "test") for p in find("gcd").problems(s, 150, 0)}
    assert not held_out & {problems(i).messages for i in range(150)}


def test_conversations_begin_with_the_prompt_and_hold_their_share_of_direct_answers() -> None:
    source, problems = conversations([SUMS], chat(), 3, 0.25), Problems([SUMS], 3)
    direct = 0
    for i in range(100):
        example, problem = source(i), problems(i)
        solution = TAUGHT[problem.task].solution(problem)
        prompts = {thinking: chat().encode(problem.messages, thinking) for thinking in (True, False)}
        thinking = list(example.tokens[: len(prompts[False])]) != prompts[False]
        direct += not thinking
        prompt = prompts[thinking]
        assert list(example.tokens) == prompt + chat().answer(solution, thinking)
        assert list(example.mask) == [0] * len(prompt) + [1] * (len(example.tokens) - len(prompt))
        reasoning, content, closed = chat().parse(example.tokens[len(prompt) :], thinking)
        assert closed
        assert content == problem.answer
        assert reasoning == ((solution.reasoning or "").strip("\n") if thinking else "")
    assert direct == 25


def test_documents_are_question_chain_and_answer_and_a_share_leaves_out_the_chain() -> None:
    source, problems = documents([GCD], chat(), 2, 0.25), Problems([GCD], 2)
    bare = 0
    for i in range(100):
        example, problem = source(i), problems(i)
        assert example.tokens[-1] == chat().tokenizer.end_of_text
        assert set(example.mask) == {1}
        question, answer = problem.messages[-1].content, problem.answer
        text = chat().tokenizer.decode(example.tokens[:-1])
        direct = text == f"{question}\n{answer}"
        bare += direct
        assert direct or text == f"{question}\n{TAUGHT[problem.task].solution(problem).reasoning}\n{answer}"
    assert bare == 25


@pytest.mark.parametrize("spoken", [True, False])
def test_recitals_say_the_numbers_of_the_question_again(spoken: bool) -> None:
    source, problems = recitals([SUMS], chat(), 2, spoken), Problems([SUMS], 2)
    for i in range(20):
        operands = problems(i).meta["operands"]
        text = chat().tokenizer.decode(source(i).tokens)
        _, _, said = text.rpartition("<think>") if spoken else text.partition("\n")
        lines = said.partition("</think>" if spoken else "<|endoftext|>")[0].strip("\n").split("\n")
        numbers = [[int(n) for n in re.findall(r"\d+", line)] for line in lines]
        assert numbers == [operands[k:] for k in range(len(operands))]


def test_unknown_and_untaught_tasks_are_refused() -> None:
    with pytest.raises(UserError, match="chain_sum"):
        Problems([Draw(task="chain_sun")], 0)
    with pytest.raises(UserError, match="at least one"):
        Problems([], 0)


def rollout(i: int) -> Rollout:
    completion = Completion((10 + i, 11, 2), (-0.1, -0.2, -0.3), "stop")
    return Rollout(Problem("t", str(i), (Message("user", "q"),), "a"), completion, 1.0, "solved", 0.25, prompt=(7, 8))


def test_rollouts_are_learnt_as_they_were_drawn() -> None:
    example = from_rollout(rollout(1))
    assert example.tokens == [7, 8, 11, 11, 2]
    assert example.mask == [0, 0, 1, 1, 1]
    assert example.logprobs == [0.0, 0.0, -0.1, -0.2, -0.3]
    assert example.advantage == 0.25


def test_answers_deal_every_rollout_once_a_pass() -> None:
    source = answers([rollout(i) for i in range(5)], 0)
    passes = [[tuple(source(5 * p + i).tokens) for i in range(5)] for p in range(4)]
    assert all(set(p) == set(passes[0]) and len(set(p)) == 5 for p in passes)
    assert len({tuple(p) for p in passes}) > 1
    with pytest.raises(UserError, match="no rollouts"):
        answers([], 0)


def test_nothing_is_said_again_of_a_question_without_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    class Riddles:
        name = "riddle"

        def problems(self, split: str, n: int, seed: int = 0) -> list[Problem]:
            return [Problem("riddle", str(i), (Message("user", "What has keys?"),), "piano") for i in range(n)]

    monkeypatch.setitem(TASKS, "riddle", Riddles())  # type: ignore[arg-type]
    with pytest.raises(UserError, match="riddle asks questions without numbers, so there is nothing to say again"):
        recitals([Draw(task="riddle")], chat(), 2)(0)
