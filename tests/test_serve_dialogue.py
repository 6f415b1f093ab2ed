"""A dialogue over a real engine: choices, votes, and what becomes of them when nobody waits, or the engine dies."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from serving import TINY, Lesson, taught
from small import chat

from mull.engine.host import BusyError, DiedError, Host, NoRoomError
from mull.serve.calls import grammar_for, parser_for
from mull.serve.dialogue import Ask, Choice, Dialogue, Event, gather, merged, usage
from mull.serve.effort import BUDGETS, EFFORTS, budgeted, switched, thinks
from mull.serve.errors import LateError, TooLongError
from mull.serve.settings import Limits
from mull.text.chat import Chat
from mull.text.tools import Call
from mull.types import Completion, Message, Sampling, UserError

ROWS, QUEUE = 4, 4
ADD = Ask((Message("user", "add"),), sampling=Sampling(temperature=0, max_tokens=100), effort="max")
LONG = replace(ADD, sampling=Sampling(max_tokens=900, ignore_end=True, seed=1))


@pytest.fixture(scope="module", name="folder")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return taught(tmp_path_factory.mktemp("model") / "tiny", Lesson("add", "It is 12.", "7 and 5"))


@pytest.fixture(scope="module", name="runner")
def looping() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module", name="host")
def hosting(folder: Path, runner: asyncio.Runner) -> Iterator[Host]:
    host = Host({"model": str(folder), "device": "cpu", "exact": True}, ROWS, QUEUE)
    runner.run(host.start())
    yield host
    runner.run(host.stop())


@pytest.fixture(name="run")
def running(host: Host, folder: Path, runner: asyncio.Runner) -> Callable[..., Any]:
    """Runs `work(dialogue)`, and sees that nothing is left behind it."""
    template = Chat.load(folder)

    def run(work: Callable[[Dialogue], Coroutine[Any, Any, Any]], **limits: Any) -> Any:
        async def all_of_it() -> Any:
            dialogue = Dialogue(host, template, "tiny", TINY.max_length, limits=Limits(**limits))
            try:
                return await work(dialogue)
            finally:
                assert host.tickets == {}
                await idle(host)

        return runner.run(all_of_it())

    return run


async def idle(host: Host) -> None:
    """Until the engine says that it has nothing to do."""
    async with asyncio.timeout(20):
        while not host.alive:
            await asyncio.sleep(0.05)
        probe = host.submit(Dialogue(host, chat(), "", TINY.max_length).request(replace(ADD, sampling=Sampling(1))))
        async for _ in probe:
            pass
        while host.stats.get("running", 0) or host.stats.get("waiting", 0):
            await asyncio.sleep(0.02)


def test_an_answer_comes_in_pieces_and_ends_once(run: Any) -> None:
    async def work(dialogue: Dialogue) -> list[Event]:
        return [event async for event in dialogue.answer(ADD)]

    events = run(work)
    assert "".join(event.reasoning for event in events) == "7 and 5"
    assert "".join(event.text for event in events) == "It is 12."
    assert [event.finish for event in events] == [None] * (len(events) - 1) + ["stop"]
    assert all(sum(map(bool, (e.reasoning, e.text, e.tool, e.finish))) == 1 for e in events)
    made = [event.made for event in events]
    assert made == sorted(made)
    completion = events[-1].completion
    assert events[-1].drawn == (completion,)
    assert made[-1] == len(completion.tokens)


def test_choices_come_as_they_are_drawn(run: Any) -> None:
    async def work(dialogue: Dialogue) -> tuple[list[Event], list[Choice]]:
        ask = replace(LONG, n=3, sampling=replace(LONG.sampling, max_tokens=40, temperature=2.0))
        events = [event async for event in dialogue.answer(ask)]
        return events, await gather(dialogue.answer(ask))

    events, choices = run(work)
    order = [event.index for event in events]
    assert set(order) == {0, 1, 2}
    assert sum(a != b for a, b in pairwise(order)) > 10  # not one after the other
    assert len({choice.reasoning for choice in choices}) == 3
    for choice in choices:
        assert choice.reasoning == "".join(event.reasoning for event in events if event.index == choice.index)


def test_an_answer_that_is_broken_off_ends_at_once(run: Any, host: Host) -> None:
    async def work(dialogue: Dialogue) -> None:
        for n in (1, 3):
            events = dialogue.answer(replace(LONG, n=n))
            await anext(events)
            assert len(host.tickets) == n
            await events.aclose()
            assert host.tickets == {}
            await idle(host)

    run(work)


def test_a_task_that_is_cancelled_ends_its_answer(run: Any, host: Host) -> None:
    async def work(dialogue: Dialogue) -> None:
        for ask in (LONG, replace(LONG, n=2), replace(LONG, votes=3)):
            task = asyncio.create_task(gather(dialogue.answer(ask)))
            while not host.tickets:
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert host.tickets == {}

    run(work)


def test_all_choices_find_room_or_none_does(run: Any, host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(dialogue: Dialogue) -> None:
        told, send = [], host.send
        monkeypatch.setattr(host, "send", lambda message: (told.append(message), send(message)))
        first = dialogue.answer(replace(LONG, n=5))
        await anext(first)
        with pytest.raises(UserError, match="at most 8"):  # never, not later
            await anext(dialogue.answer(replace(LONG, n=9)))
        del told[:]
        for asks in ([replace(LONG, n=4)], [replace(LONG, votes=4)], [LONG, replace(LONG, n=2), LONG]):
            with pytest.raises(NoRoomError, match="room for 3 more answers now, not for 4") as busy:
                await anext(dialogue.answer(*asks))
            assert busy.value.retry_after >= 1
            assert len(host.tickets) == 5
        assert told == []  # the engine has heard nothing of them
        last = dialogue.answer(replace(LONG, n=3))
        waiting = asyncio.create_task(anext(last))
        await asyncio.sleep(0.05)
        assert len(host.tickets) == ROWS + QUEUE
        with pytest.raises(BusyError, match="queue is full"):
            await anext(dialogue.answer(LONG))
        await first.aclose()
        await waiting
        await last.aclose()

    run(work)


def test_an_answer_that_takes_too_long_is_ended(run: Any) -> None:
    async def work(dialogue: Dialogue) -> None:
        with pytest.raises(LateError, match=r"longer than 0\.2 seconds"):
            await gather(dialogue.answer(LONG))

    run(work, seconds=0.2)


def test_what_does_not_fit_is_refused_before_the_engine_hears_of_it(run: Any, host: Host) -> None:
    long = Ask((Message("user", "x" * 2000),))

    async def too_long(dialogue: Dialogue) -> None:
        with pytest.raises(TooLongError, match="this model holds 1024"):
            await gather(dialogue.answer(long))

    async def too_long_here(dialogue: Dialogue) -> None:
        with pytest.raises(TooLongError, match="this server takes at most 10"):
            await gather(dialogue.answer(replace(ADD, messages=(Message("user", "x" * 20),))))

    async def bounded(dialogue: Dialogue) -> list[Choice]:
        return await gather(dialogue.answer(LONG))

    run(too_long)
    run(too_long_here, prompt_tokens=10)
    completion = run(bounded, max_tokens=7)[0].completion
    assert (len(completion.tokens), completion.finish) == (7, "length")


def test_what_the_engine_refuses_is_said(run: Any) -> None:
    async def work(dialogue: Dialogue) -> None:
        with pytest.raises(UserError, match="vocabulary"):
            await gather(dialogue.answer(Ask(prompt=(5, 100_000))))
        with pytest.raises(UserError, match="role"):
            await gather(dialogue.answer(Ask((Message("boss", "x"),))))

    run(work)


def test_where_the_engine_dies_answers_end_in_an_error_and_the_next_is_given(run: Any, host: Host) -> None:
    async def work(dialogue: Dialogue) -> None:
        tasks = [asyncio.create_task(gather(dialogue.answer(replace(LONG, n=n)))) for n in (1, 2, 1)]
        while len(host.tickets) < 4:
            await asyncio.sleep(0.01)
        assert host.pid is not None
        os.kill(host.pid, signal.SIGKILL)
        for told in await asyncio.gather(*tasks, return_exceptions=True):
            assert isinstance(told, DiedError)
        with pytest.raises(BusyError, match="starting"):
            await gather(dialogue.answer(ADD))
        await idle(host)
        assert (await gather(dialogue.answer(ADD)))[0].text == "It is 12."

    run(work)


def test_a_vote_is_told_as_one_answer(run: Any) -> None:
    async def work(dialogue: Dialogue) -> list[Event]:
        with pytest.raises(UserError, match="n must be 1"):
            await gather(dialogue.answer(replace(ADD, n=2, votes=2)))
        return [event async for event in dialogue.answer(replace(ADD, votes=4))]

    events = run(work)
    assert {event.index for event in events} == {0}
    assert "".join(event.text for event in events) == "It is 12."
    assert len(events[-1].drawn) == events[-1].agreed == 4


def test_tokens_are_scored_in_the_order_they_were_drawn(run: Any) -> None:
    async def work(dialogue: Dialogue) -> list[Choice]:
        return await gather(dialogue.answer(replace(ADD, logprobs=True)))

    [choice] = run(work)
    completion = choice.completion
    assert completion is not None
    assert tuple(one.token for one in choice.logprobs) == completion.tokens[:-1]  # that which ends it is not told
    thought = completion.thinking_tokens + 1  # and its end
    assert [one.thought for one in choice.logprobs] == [True] * thought + [False] * (len(choice.logprobs) - thought)


# without an engine


def test_usage_counts_a_prompt_once() -> None:
    def one(tokens: int, cached: int) -> Completion:
        return Completion((1,) * tokens, (), "stop", prompt_tokens=9, cached_tokens=cached, thinking_tokens=2)

    counted = usage([one(5, 0), one(7, 8)])
    assert counted == {"prompt_tokens": 9, "cached_tokens": 0, "completion_tokens": 12, "reasoning_tokens": 4}
    assert set(usage([]).values()) == {0}


@given(st.lists(st.lists(st.integers(), max_size=5), max_size=5))
def test_streams_are_merged_each_in_its_order(lists: list[list[int]]) -> None:
    async def stream(items: Sequence[int]) -> AsyncGenerator[int]:
        for item in items:
            await asyncio.sleep(0)
            yield item

    async def work() -> list[tuple[int, int]]:
        return [item async for item in merged([stream(items) for items in lists])]

    told = asyncio.run(work())
    assert [[item for at, item in told if at == which] for which in range(len(lists))] == lists


def test_an_error_ends_all_streams() -> None:
    closed = []

    async def endless(name: str) -> AsyncGenerator[str]:
        try:
            while True:
                await asyncio.sleep(0)
                yield name
        finally:
            closed.append(name)

    async def broken() -> AsyncGenerator[str]:
        yield "a"
        raise UserError("no")

    async def work() -> None:
        with pytest.raises(UserError, match="no"):
            async for _ in merged([endless("x"), broken(), endless("y")]):
                pass

    asyncio.run(work())
    assert sorted(closed) == ["x", "y"]


# effort


@given(
    st.integers(1, 10_000), st.integers(1, 10_000), st.sampled_from([None, *EFFORTS]),
    st.none() | st.integers(0, 10_000), st.integers(0, 10_000),
)  # fmt: skip
def test_a_thought_leaves_room_for_the_answer(
    most: int, room: int, effort: str | None, budget: int | None, least: int
) -> None:
    asked = Sampling(max_tokens=most, thinking_tokens=budget, min_thinking_tokens=least)
    given = budgeted(asked, effort, room)
    assert given.max_tokens == min(most, room)
    if budget is not None:
        assert given.thinking_tokens == budget
    elif effort == "max":
        assert given.thinking_tokens is None
    else:
        assert given.thinking_tokens is not None
        quarter = max(1, given.max_tokens // 4)
        assert given.thinking_tokens <= max(least, min(given.max_tokens - quarter, BUDGETS.get(effort or "", 1 << 30)))
        assert given.thinking_tokens >= min(least, given.max_tokens)


def test_more_effort_is_never_less_thought() -> None:
    budgets = [budgeted(Sampling(1 << 20), effort, 1 << 20).thinking_tokens or 0 for effort in (*BUDGETS, None)]
    assert budgets == sorted(budgets)
    assert budgeted(Sampling(100, thinking=False, thinking_tokens=5), "high", 50).thinking_tokens is None


def test_what_is_said_of_thinking_outright_wins() -> None:
    assert thinks(Sampling(), None, {})
    assert thinks(Sampling(), "low", {})
    assert not thinks(Sampling(), "none", {})
    assert not thinks(Sampling(thinking=False), "high", {})
    assert thinks(Sampling(thinking=False), "none", {"thinking": True})
    assert not thinks(Sampling(), "high", {"enable_thinking": False})
    with pytest.raises(UserError, match="efforts are none, minimal, low"):
        thinks(Sampling(), "much", {})


@pytest.mark.parametrize("template", [{"tokenize": True}, {"chat_template": "{{ x }}"}, {"enable_thinking": "yes"}, {
    "enable_thinking": True, "thinking": False,
}])  # fmt: skip
def test_a_template_takes_two_switches_and_nothing_else(template: dict[str, Any]) -> None:
    """CVE-2025-62426: such arguments reached the tokenizer and held up the server."""
    with pytest.raises(UserError, match="chat_template_kwargs"):
        switched(template)


# calls


def tool(name: str, **parameters: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": {"type": "object", **parameters}}}


def test_a_forced_call_is_one_object_of_a_tool_that_is_there() -> None:
    tools = [tool("a", properties={"x": {"$ref": "#/$defs/X"}}, **{"$defs": {"X": {"type": "string"}}}), tool("b")]
    assert grammar_for(tools, "auto") is None
    assert grammar_for(tools, "none") is None
    assert grammar_for([], "required") is None
    named, any_of = (grammar_for(tools, choice) for choice in ("a", "required"))
    assert named is not None
    assert any_of is not None
    schema = json.loads(named.text)
    assert schema["properties"]["name"] == {"const": "a"}
    assert schema["$defs"] == {"X": {"type": "string"}}  # references go from the root
    assert [one["properties"]["name"]["const"] for one in json.loads(any_of.text)["anyOf"]] == ["a", "b"]
    with pytest.raises(UserError, match="rename"):
        grammar_for([tools[0], tool("c", **{"$defs": {"X": {"type": "integer"}}})], "required")


@pytest.mark.parametrize("said", ["", "{", "[]", '{"name": "a"}', "5", '{"name": "a", "argum', "[" * 100_000])
def test_a_forced_call_that_was_cut_off_is_text(said: str) -> None:
    parser = parser_for(chat(), [tool("a")], "required")
    assert parser is not None
    told = [part for at in range(0, len(said), 7) for part in parser.feed(said[at : at + 7])] + parser.flush()
    assert told == ([said] if said else [])


def test_a_forced_call_is_read() -> None:
    parser = parser_for(chat(), [tool("a")], "a")
    assert parser is not None
    assert parser.feed('{"name": "a", "argu') == []
    assert parser.feed('ments": {"x": "ü"}}') == []
    assert parser.flush() == [Call("a", '{"x": "ü"}')]
