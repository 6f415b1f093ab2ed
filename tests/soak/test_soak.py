"""A server under load: nothing is lost, stuck or kept, whoever dies. Real processes; minutes on a quiet machine."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
import signal
import sqlite3
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rawhttp import Reply, StuckError, ask
from serve_process import Running, command_of, eventually, running, tiny_folder  # noqa: F401 - a fixture
from soak import FRUGAL, metrics, report, settled, soak
from traffic import JSON, KINDS, Call, LostError, breaks, call_of, good, outcome

from mull.serve.responses import STORED

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc"),
]
CHAT = "/v1/chat/completions"


def lasting(number: int, tokens: int = 60, streaming: bool = False) -> Call:
    """A request whose answer has exactly so many tokens."""
    body = {
        "model": "tiny", "messages": [{"role": "user", "content": f"What is {number} + 1?"}], "max_tokens": tokens,
        "seed": number, "ignore_eos": True, "stream": streaming,
    }  # fmt: skip
    return Call(CHAT, json.dumps(body).encode(), "answered", streaming=streaming)


async def sent(port: int, call: Call) -> Reply:
    return await ask(port, call.method, call.path, call.body, JSON)


def test_nothing_is_lost_stuck_or_kept(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in FRUGAL.items():
        monkeypatch.setenv(name, value)
    with running(folder, tmp_path, "--exact", "--queue", "24") as server:
        # what huge bodies leave in the heap settles within thousands: soak.py's ten thousand are held to 5 %
        tally = asyncio.run(soak(server, 2000, growth=0.2))
    print(report(tally))
    assert tally.problems == [], report(tally)
    assert tally.outcomes.total() == 2000 + STORED and set(tally.outcomes) <= {"answered", "refused", "left", "busy"}
    assert tally.compared > 500 and tally.outcomes["answered"] > 1000 and tally.outcomes["left"] > 200


def test_streamed_and_whole_are_the_same_in_any_company(folder: Path, tmp_path: Path) -> None:
    """Each request alone first, then both ways in a crowd."""
    requests = [(path, seed) for path in ("chat", "completions", "responses", "messages") for seed in range(8)]

    def call(path: str, seed: int, streaming: bool) -> Call:
        draws = (random.Random(n) for n in itertools.count())
        return next(c for c in (good(d, "tiny", seed, streaming) for d in draws) if f"/{path}" in c.path)

    async def crowd(server: Running) -> None:
        from traffic import told_of

        alone = {}
        for one in requests:
            made = call(*one, streaming=False)
            alone[one] = told_of(made, await sent(server.port, made))
        many = [(one, call(*one, streaming=streaming)) for one in requests for streaming in (True, False)] * 3
        random.Random(0).shuffle(many)
        replies = await asyncio.gather(*(sent(server.port, made) for _, made in many))
        for (one, made), reply in zip(many, replies, strict=True):
            assert told_of(made, reply) == alone[one], one

    with running(folder, tmp_path, "--exact", "--queue", "400") as server:
        asyncio.run(crowd(server))


def test_two_hundred_clients_and_a_short_queue(folder: Path, tmp_path: Path) -> None:
    rows, queue, clients = 8, 32, 200

    async def crowd(server: Running) -> tuple[list[Call], list[Reply]]:
        calls = [lasting(number, streaming=number % 2 == 0) for number in range(clients)]
        return calls, await asyncio.gather(*(sent(server.port, call) for call in calls))

    with running(folder, tmp_path, "--rows", str(rows), "--queue", str(queue)) as server:
        calls, replies = asyncio.run(crowd(server))
        outcomes = Counter(outcome(call, reply) for call, reply in zip(calls, replies, strict=True))
        assert outcomes["answered"] + outcomes["busy"] == clients, outcomes
        assert outcomes["answered"] >= rows + queue and outcomes["busy"] > 0, outcomes
        assert asyncio.run(settled(server.port)) is None
        assert {reply.status for reply in replies} <= {200, 429, 503}


def test_an_engine_killed_under_load_is_told_of_and_comes_again(folder: Path, tmp_path: Path) -> None:
    kills = 3

    async def under_load(server: Running) -> Counter[str]:
        outcomes: Counter[str] = Counter()
        running_on = True

        async def client(numbers: Any) -> None:
            while running_on:
                number = next(numbers)
                call = lasting(number, 80, number % 2 == 0) if number % 3 else good(random.Random(number), "tiny")
                reply = await sent(server.port, call)
                outcomes[outcome(call, reply)] += 1
                if reply.status == 503:
                    await asyncio.sleep(0.1)

        numbers = itertools.count()
        clients = [asyncio.create_task(client(numbers)) for _ in range(24)]
        for _ in range(kills):
            before = outcomes["answered"]
            await _until(lambda: outcomes["answered"] > before + 40)  # noqa: B023 - called here
            os.kill(server.engine(), signal.SIGKILL)
            await asyncio.sleep(0.5)
            await _until(lambda: server.get("/ready").status == 200)
        running_on = False
        await asyncio.gather(*clients)
        assert await settled(server.port) is None
        assert (await metrics(server.port))["mull_engine_restarts_total"] == kills
        return outcomes

    with running(folder, tmp_path, "--queue", "64") as server:
        outcomes = asyncio.run(under_load(server))
        assert set(outcomes) <= {"answered", "busy", "broken"}, outcomes
        assert outcomes["broken"] + outcomes["busy"] > 0
        after = asyncio.run(sent(server.port, lasting(1)))
        assert after.status == 200


async def _until(true: Callable[[], Any], seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, "it did not come about in time"
        await asyncio.sleep(0.05)


def test_a_server_killed_under_load_has_written_down_what_it_answered(folder: Path, tmp_path: Path) -> None:
    """The books hold at least what clients have the whole of, and its engine does not stay behind."""
    done: list[int] = []

    async def under_load(server: Running) -> None:
        numbers = itertools.count()

        async def client() -> None:
            while True:
                number = next(numbers)
                try:
                    reply = await sent(server.port, lasting(number, 8, number % 2 == 0))
                except (OSError, StuckError):
                    return
                if not reply.whole:
                    return
                assert reply.status == 200, reply
                done.append(8)

        clients = [asyncio.create_task(client()) for _ in range(16)]
        await _until(lambda: len(done) > 200)
        server.process.kill()
        await asyncio.gather(*clients)

    with running(folder, tmp_path, "--queue", "64") as server:
        engine = server.engine()
        asyncio.run(under_load(server))
        eventually(lambda: b"mull.engine.worker" not in command_of(engine))
        with closing(sqlite3.connect(server.db)) as db:
            requests, tokens = db.execute("select sum(requests), sum(completion) from usage").fetchone()
        assert len(done) <= requests <= len(done) + 16
        assert tokens >= sum(done)


def test_what_is_drawn_is_of_every_kind() -> None:
    """Of the soak's own requests: all kinds, and the same again for the same number."""
    calls = [call_of(number, "tiny") for number in range(400)]
    assert calls == [call_of(number, "tiny") for number in range(400)]
    assert calls != [call_of(number, "tiny", salt=1) for number in range(400)]
    assert {call.purpose for call in calls} == {"answered", "refused", "left"}
    assert len({call.path for call in calls}) >= 8 and len(KINDS) == 8


def test_the_soak_sees_what_is_wrong() -> None:
    call = replace(lasting(1), streaming=True)
    whole = {"index": 0, "delta": {"content": "a"}, "finish_reason": "stop"}
    body = b"data: " + json.dumps({"choices": [whole]}).encode() + b"\n\n"
    assert outcome(call, Reply(200, {}, body + b"data: [DONE]\n\n", True)) == "answered"
    broken = b'data: {"error": {"message": "It stopped.", "type": "server_error"}}\n\ndata: [DONE]\n\n'
    assert outcome(call, Reply(200, {}, body + broken, True)) == "broken" and breaks(call, Reply(200, {}, broken, True))
    refused = json.dumps({"error": {"message": "Full.", "type": "server_error"}}).encode()
    assert outcome(call, Reply(503, {"retry-after": "1"}, refused, True)) == "busy"
    for lost in (
        Reply(200, {}, body + b"data: [DONE]\n\n", False),  # cut off
        Reply(200, {}, body, True),  # no end
        Reply(503, {}, refused, True),  # no Retry-After
        Reply(500, {}, refused, True),
        Reply(400, {}, b"<html>", True),
        Reply(400, {}, refused, True),  # a good request
        Reply(),
    ):
        with pytest.raises(LostError):
            outcome(call, lost)
