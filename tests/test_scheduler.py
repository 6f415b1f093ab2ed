"""The scheduler by itself: whatever stops when, no sequence is lost or doubled, rows stay within bounds and dense."""

from __future__ import annotations

from collections import Counter
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from mull.engine.scheduler import Job, Scheduler

plans = st.lists(st.tuples(st.integers(0, 3), st.integers(1, 6), st.integers(1, 4)), min_size=1, max_size=30)


def sequences(plan: list[tuple[int, int, int]]) -> list[Job]:
    """(prompt's kind, its length, limit) each."""
    return [Job(i, (kind,) * length, limit) for i, (kind, length, limit) in enumerate(plan)]


@settings(deadline=None, max_examples=150)
@given(plans, st.integers(1, 8), st.integers(1, 12), st.integers(0, 1000))
def test_every_sequence_runs_once_to_its_end(
    plan: list[tuple[int, int, int]], rows: int, prefill: int, seed: int
) -> None:
    draw, scheduler = Random(seed), Scheduler(rows, prefill)
    scheduler.add(sequences(plan))
    admitted: list[int] = []
    finished: dict[int, tuple[int, bool]] = {}
    steps = 0
    while scheduler.busy:
        steps += 1
        before = len(scheduler.running)
        groups = scheduler.admit()
        fresh = [s for group in groups for s in group]
        assert scheduler.running[before:] == fresh  # new rows lie behind the old ones, in the groups' order
        assert len(scheduler.running) <= rows
        assert len(scheduler.running) == rows or not scheduler.waiting or groups  # never idle for nothing
        assert all(len({s.prompt for s in group}) == 1 for group in groups)
        assert max((len(g[0].prompt) for g in groups), default=0) * len(groups) <= prefill or len(groups) == 1
        admitted += [s.index for s in fresh]
        assert scheduler.running, "busy, but nothing runs"
        rows_before = list(scheduler.running)
        stopped = [draw.random() < 0.3 for _ in rows_before]
        source, done = scheduler.record(stopped)
        # a row that goes on is where `source` says, and rows that need not move stay
        assert [rows_before[r] for r in source] == scheduler.running
        assert len(set(source)) == len(source)
        assert all(r == i or r >= len(source) for i, r in enumerate(source))
        for sequence, stop in done:
            assert sequence.index not in finished
            finished[sequence.index] = sequence.made, stop
        assert Counter(id(s) for s in [*scheduler.running, *(s for s, _ in done)]) == Counter(map(id, rows_before))
    assert admitted == list(range(len(plan)))  # first come, first served
    assert set(finished) == set(range(len(plan)))
    for index, (made, stop) in finished.items():
        limit = plan[index][2]
        assert 1 <= made <= limit
        assert stop or made == limit
    assert steps <= sum(limit for *_, limit in plan)


def test_equal_prompts_join_in_one_group() -> None:
    scheduler = Scheduler(8)
    scheduler.add(sequences([(1, 3, 9), (1, 3, 9), (2, 3, 9), (1, 3, 9)]))
    assert [[s.index for s in group] for group in scheduler.admit()] == [[0, 1], [2], [3]]


def test_a_prompt_longer_than_the_budget_passes_alone() -> None:
    scheduler = Scheduler(8, prefill_tokens=4)
    scheduler.add(sequences([(1, 6, 9), (2, 2, 9), (3, 2, 9), (1, 2, 9)]))
    assert [[len(g[0].prompt) for g in scheduler.admit()] for _ in range(2)] == [[6], [2, 2]]


def test_padding_counts() -> None:
    scheduler = Scheduler(8, prefill_tokens=12)
    scheduler.add(sequences([(1, 2, 9), (2, 2, 9), (3, 6, 9), (1, 6, 9)]))
    assert [[len(g[0].prompt) for g in scheduler.admit()] for _ in range(2)] == [[2, 2], [6, 6]]


def test_cancelling_gives_back_everyone() -> None:
    scheduler = Scheduler(2)
    scheduler.add(sequences([(1, 3, 9), (2, 3, 9), (3, 3, 9)]))
    scheduler.admit()
    assert sorted(s.index for s in scheduler.cancel()) == [0, 1, 2]
    assert not scheduler.busy
