"""Guesses are what came before, and are made where they pay: by simulation, against plain twins."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mull.engine.draft import DOUBT, SIZES, Costs, Guesser, NGrams, Worth


def twin(tokens: list[int], count: int) -> list[int]:
    """Looked for from the end, the longest run first."""
    for size in SIZES:
        for at in range(len(tokens) - 1, size - 1, -1):
            if tokens[at - size : at] == tokens[-size:]:
                longer = [*tokens]
                for i in range(count):
                    longer.append(longer[at + i])
                return longer[len(tokens) :]
    return []


@given(st.lists(st.integers(0, 3), max_size=40), st.integers(0, 12))
def test_guesses_are_what_followed_last_time(tokens: list[int], count: int) -> None:
    assert NGrams(tokens).propose(count) == twin(tokens, count)


@given(st.lists(st.integers(0, 3), max_size=30), st.integers(0, 30))
def test_what_is_heard_later_is_as_if_it_had_been_there(tokens: list[int], cut: int) -> None:
    later = NGrams(tokens[:cut])
    for token in tokens[cut:]:
        later.hear(token)
    assert later.propose(5) == NGrams(tokens).propose(5)


def test_what_repeats_itself_is_continued() -> None:
    assert NGrams([1, 2, 3, 1, 2, 3, 1, 2]).propose(7) == [3, 1, 2, 3, 1, 2, 3]
    assert NGrams([5, 5, 5, 5]).propose(3) == [5, 5, 5]
    assert NGrams([1, 2, 3, 4]).propose(3) == []


def test_a_token_costs_the_same_however_many_there_are() -> None:
    begun = time.process_time()
    grams = NGrams(range(100_000))
    for _ in range(20_000):
        grams.hear(7)
        grams.propose(4)
    assert time.process_time() - begun < 2


@pytest.mark.parametrize(("level", "slope"), [(1.0, 0.0), (1.0, 0.1), (0.2, 0.8)])
def test_the_cost_of_a_row_is_learnt_from_steps(level: float, slope: float) -> None:
    costs, draw = Costs(), random.Random(0)
    for _ in range(200):
        rows = draw.choice([1, 2, 3, 5])
        costs.tell(rows, (level + slope * rows) * draw.uniform(0.95, 1.05))
    assert costs.of_a_row(1) == pytest.approx(slope / (level + slope), abs=0.05)


def test_where_all_steps_are_alike_the_cost_is_unknown() -> None:
    costs = Costs()
    assert costs.of_a_row(1) is None
    for _ in range(100):
        costs.tell(4, 1.0)
    assert costs.of_a_row(4) is None
    costs.tell(6, 2.0)
    for _ in range(1000):
        costs.tell(4, 1.0)
    assert costs.of_a_row(4) == pytest.approx(0.5, abs=0.05)  # from then on what was seen is remembered


def simulated(
    seconds: Callable[[int], float], right: Callable[[int], float], tokens: int = 3000, rows: int = 1
) -> float:  # fmt: skip
    """How many times faster an answer of so many tokens comes than without drafts."""
    costs, draw = Costs(), random.Random(1)
    worth = Worth(costs)
    done, spent, plain = 0, 0.0, 0.0
    while done < tokens:
        drafted = worth.length(rows, 8)
        accepted = 0
        while accepted < drafted and draw.random() < right(done):
            accepted += 1
        step = seconds(rows + drafted)
        costs.tell(rows + drafted, step * draw.uniform(0.95, 1.05))
        worth.tell(drafted, accepted)
        spent += step
        done += 1 + accepted
        plain += seconds(rows) * (1 + accepted / rows)  # what the whole company would have taken for these tokens
    return plain / spent


def test_where_rows_are_free_and_guesses_right_it_is_much_faster() -> None:
    assert simulated(lambda rows: 1 + 0.02 * rows, lambda _: 0.8) > 2.2


def test_where_rows_are_dear_or_guesses_wrong_hardly_anything_is_lost() -> None:
    assert simulated(lambda rows: 1 + 0.6 * (rows - 1), lambda _: 0.3) > 0.97
    assert simulated(lambda rows: 1 + 0.1 * (rows - 1), lambda _: 0.0) > 0.97
    assert simulated(lambda rows: rows, lambda _: 0.9) > 0.97


def test_in_a_large_company_a_row_must_be_cheap() -> None:
    assert simulated(lambda rows: 1 + 0.5 * rows, lambda _: 0.5, rows=16) > 0.98
    assert simulated(lambda rows: 10 + 0.01 * rows, lambda _: 0.8, rows=4) > 1.3


def test_it_is_tried_again_when_an_answer_begins_to_repeat() -> None:
    """Nothing is right at first, then nearly everything."""
    faster = simulated(lambda rows: 1 + 0.05 * rows, lambda done: 0.0 if done < 1500 else 0.95, tokens=6000)
    assert faster > 1.8


def test_attempts_become_rarer_and_a_draft_keeps_to_the_room_there_is() -> None:
    costs = Costs()
    for rows in (1, 3) * 20:
        costs.tell(rows, float(rows))
    worth = Worth(costs)
    tried = []
    for step in range(10_000):
        drafted = worth.length(1, 8)
        worth.tell(drafted, 0)
        tried += [step] if drafted else []
    gaps = [b - a for a, b in pairwise(tried)]
    assert gaps == sorted(gaps) and gaps[-1] == DOUBT[1] + 1
    eager = Worth(Costs())
    eager.tell(0, 0)
    assert [eager.length(1, most) for most in (0, 1, 8)] == [0, 1, 2]


@pytest.mark.parametrize("period", [1, 7, 100_000])
def test_an_answer_that_repeats_itself_takes_fewer_steps_and_is_the_same(period: int) -> None:
    """As an engine does it: a step draws one token, and one more behind each guess that is right."""
    answer = [i % period for i in range(600)]
    costs, done, steps = Costs(), 1, 0
    guesser = Guesser(costs, [9, 9, *answer[:1]])
    said = answer[:1]
    while done < len(answer):
        guessed = guesser.guess(1, min(8, len(answer) - done - 1))
        accepted = 0
        while accepted < len(guessed) and guessed[accepted] == answer[done + accepted]:
            accepted += 1
        drawn = answer[done : done + accepted + 1]
        guesser.hear(drawn)
        costs.tell(1 + len(guessed), 1 + 0.05 * len(guessed))
        said += drawn
        done += len(drawn)
        steps += 1
    assert said == answer
    assert steps < 200 if period < 10 else steps == 599
