"""The scheduler by itself, over a cache that is only pretended: whatever stops when, nothing is lost or stale."""

from __future__ import annotations

from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from mull.engine.pages import PAGE, Pages
from mull.engine.scheduler import Job, Part, Scheduler


class Pretended:
    """A cache of tokens instead of numbers: an entry is all tokens up to it, since a real one depends on them."""

    def __init__(self, scheduler: Scheduler):
        self.scheduler = scheduler
        self.entries: dict[tuple[int, int], tuple[object, ...]] = {}

    def compute(self, parts: list[Part]) -> None:
        """All is written, then all is read."""
        for part in parts:
            row = [*part.job.tokens, *part.job.draft]
            for at in range(part.begin, part.begin + part.count):
                self.entries[part.job.pages[at // PAGE], at % PAGE] = (part.job.salt, *row[: at + 1])
        for part in parts:
            row = [*part.job.tokens, *part.job.draft]
            for at in range(part.begin + part.count):
                assert self.entries[part.job.pages[at // PAGE], at % PAGE] == (part.job.salt, *row[: at + 1])


plans = st.lists(st.tuples(st.integers(0, 2), st.integers(1, 60), st.integers(1, 30)), min_size=1, max_size=14)


@settings(deadline=None, max_examples=150)
@given(plans, st.integers(1, 6), st.integers(1, 40), st.integers(1, 80), st.integers(8, 40), st.integers(0, 10**6))
def test_every_sequence_comes_to_its_end_over_a_cache_that_holds_its_own(
    plan: list[tuple[int, int, int]], rows: int, chunk: int, prefill: int, pages: int, seed: int
) -> None:
    """Prompts that begin alike, drafts that are accepted or not, cancellations, and pages that run out."""
    draw = Random(seed)
    scheduler = Scheduler(rows, Pages(pages), chunk, prefill)
    cache = Pretended(scheduler)
    limits: dict[Job, int] = {}
    for i, (kind, length, limit) in enumerate(plan):
        job = Job(i, [kind] * length, salt="ab"[kind == 2])
        if scheduler.fits(length + limit):
            limits[job] = length + limit
            scheduler.add(job)
    wanted, ended, steps = set(limits), set(), 0
    while scheduler.busy:
        steps += 1
        assert steps < 3000
        parts = scheduler.plan()
        assert parts
        assert len(scheduler.running) <= rows
        assert len({part.job for part in parts}) == len(parts)
        prompts = [part.count for part in parts if part.job.left != 1]
        assert sum(prompts) <= max(chunk, prefill)
        cache.compute(parts)
        drawn = []
        for part in parts:
            assert part.begin == part.job.done
            if not part.draws:
                continue
            accepted = draw.randrange(part.begin + part.count - len(part.job.tokens) + 1)
            room = limits[part.job] - len(part.job.tokens)
            part.job.tokens += [*part.job.draft[:accepted], draw.randrange(3)][:room]
            drawn.append(part.job)
        scheduler.computed(parts)
        for job in drawn:
            if len(job.tokens) >= limits[job] or draw.random() < 0.05:
                ended.add(job)
                scheduler.leave(job)
            elif draw.random() < 0.3:
                job.draft = [draw.randrange(3) for _ in range(min(3, limits[job] - len(job.tokens)))]
        if draw.random() < 0.03 and scheduler.busy:
            victim = draw.choice([*scheduler.running, *scheduler.waiting])
            ended.add(victim)
            scheduler.leave(victim)
        if draw.random() < 0.02:
            scheduler.restart(Pages(pages))
            cache.entries.clear()
        holding = {page for job in scheduler.running for page in job.pages}
        assert scheduler.pages.used == len(holding)
        assert not any(job.pages for job in scheduler.waiting)
    assert ended == wanted
    assert scheduler.pages.used == 0


def run(scheduler: Scheduler, steps: int = 1) -> list[list[tuple[object, int, int]]]:
    """(name, begin, count) of what each step computes; every sequence that can draws a token."""
    told = []
    for _ in range(steps):
        parts = scheduler.plan()
        told.append([(part.job.name, part.begin, part.count) for part in parts])
        for part in parts:
            if part.draws:
                part.job.tokens.append(1)
        scheduler.computed(parts)
    return told


def test_long_prompts_come_in_chunks_beside_running_answers() -> None:
    scheduler = Scheduler(4, Pages(99), chunk=20, prefill=50)
    scheduler.add(Job("short", [5] * 3))
    assert run(scheduler) == [[("short", 0, 3)]]
    scheduler.add(Job("long", [6] * 45))
    assert run(scheduler, 4) == [
        [("short", 3, 1), ("long", 0, 20)], [("short", 4, 1), ("long", 20, 20)], [("short", 5, 1), ("long", 40, 5)],
        [("short", 6, 1), ("long", 45, 1)],
    ]  # fmt: skip


def test_a_prompt_alone_may_take_larger_chunks() -> None:
    scheduler = Scheduler(4, Pages(99), chunk=20, prefill=50)
    scheduler.add(Job("long", [6] * 120))
    assert run(scheduler, 3) == [[("long", 0, 50)], [("long", 50, 50)], [("long", 100, 20)]]


def test_those_who_ask_the_same_wait_for_none_and_compute_only_the_rest() -> None:
    scheduler = Scheduler(8, Pages(99))
    for name in "abc":
        scheduler.add(Job(name, [7] * 40))
    assert run(scheduler) == [[("a", 0, 40), ("b", 32, 8), ("c", 32, 8)]]


def test_first_come_first_served() -> None:
    scheduler = Scheduler(2, Pages(99))
    for name in "abc":
        scheduler.add(Job(name, [ord(name)] * 4))
    assert [name for name, *_ in run(scheduler)[0]] == ["a", "b"]
    scheduler.leave(scheduler.running[0])
    assert [name for name, *_ in run(scheduler)[0]] == ["b", "c"]


def test_the_youngest_makes_room_and_goes_on_behind_what_it_has() -> None:
    scheduler = Scheduler(2, Pages(5))  # four pages for sequences
    old, young = Job("old", [1] * 20), Job("young", [2] * 20)
    scheduler.add(old)
    scheduler.add(young)
    run(scheduler)
    assert scheduler.running == [old]  # one page more for each that runs must be left
    scheduler = Scheduler(2, Pages(7))
    scheduler.add(old := Job("old", [1] * 30))
    scheduler.add(young := Job("young", [2] * 30))
    run(scheduler, 3)
    assert scheduler.running == [old, young]
    run(scheduler, 31)
    assert scheduler.preemptions == 1
    assert scheduler.running == [old]
    assert len(young.tokens) == 49
    scheduler.leave(old)
    begin = run(scheduler)[0][0][1]
    assert begin == 32  # but for a page that was needed, what it had computed was still there
    assert young.found == 0


def test_what_can_never_fit_is_known_beforehand() -> None:
    scheduler = Scheduler(2, Pages(5))
    assert scheduler.fits(4 * PAGE)
    assert not scheduler.fits(4 * PAGE + 1)
