"""The engine's process seen from the server's: what it tells of itself is so, whoever leaves or dies."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from serving import saved

from mull.engine.host import DiedError, Host, StoppedError
from mull.types import Request, Sampling

LONG = Request((5, 6, 7), Sampling(max_tokens=900, ignore_end=True))


@pytest.fixture(scope="module", name="options")
def options_of_a_tiny_engine(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return {"model": str(saved(tmp_path_factory.mktemp("models") / "tiny")), "device": "cpu"}


async def until(true: Callable[[], Any]) -> None:
    async with asyncio.timeout(60):
        while not true():
            await asyncio.sleep(0.01)


async def drawing(host: Host) -> Any:
    """The ticket of a long answer of which something has come."""
    ticket = host.submit(LONG)
    await anext(aiter(ticket))
    assert host.stats["running"] == 1 and host.stats["pages_used"] > 0
    return ticket


def test_all_is_free_and_said_to_be_when_the_last_one_leaves(options: dict[str, Any]) -> None:
    async def leave() -> None:
        host = Host(options)
        await host.start()
        (await drawing(host)).cancel()
        await until(lambda: host.stats["running"] == host.stats["pages_used"] == 0)
        await host.stop()

    asyncio.run(leave())


def test_a_dead_engine_has_no_figures_and_its_answers_say_so(options: dict[str, Any]) -> None:
    async def die() -> None:
        host = Host(options)
        await host.start()
        ticket = await drawing(host)
        assert host.pid is not None
        os.kill(host.pid, signal.SIGKILL)
        with pytest.raises(DiedError):
            async for _ in ticket:
                pass
        assert host.stats == {} and host.restarts == 1
        await until(lambda: host.alive)
        (await drawing(host)).cancel()
        await host.stop()

    asyncio.run(die())


def test_an_engine_that_is_stopped_says_that_it_does_not_come_back(options: dict[str, Any]) -> None:
    async def stop() -> None:
        host = Host(options)
        await host.start()
        ticket = await drawing(host)
        await host.stop()
        with pytest.raises(StoppedError, match=r"^The server is shutting down, before this answer ended\.$"):
            async for _ in ticket:
                pass
        assert host.restarts == 0

    asyncio.run(stop())


@pytest.mark.parametrize("line", ["nonsense", "[1]", '{"step": [["r1", {"no": 1}]]}', "x" * (1 << 25)], ids=range(4))
def test_an_engine_that_says_nonsense_is_started_again(options: dict[str, Any], line: str, tmp_path: Path) -> None:
    """In its place a program that says it is ready, and then something else."""
    path = tmp_path / "sitecustomize.py"
    path.write_text(
        "import sys\n"
        "if sys.argv[0] == '-m':\n"
        "    print('{\"ready\": {}}', flush=True)\n"
        "    sys.stdin.readline()\n"
        f"    print({line[:40]!r} * {max(1, len(line) // 40)}, flush=True)\n"
        "    sys.stdin.read()\n"
    )

    async def listen() -> None:
        host = Host(options)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PYTHONPATH", str(tmp_path))
            await host.start()
            ticket = host.submit(LONG)
        with pytest.raises(DiedError):
            async for _ in ticket:
                pass
        await until(lambda: host.alive)
        (await drawing(host)).cancel()
        await host.stop()

    asyncio.run(listen())


def test_an_engine_that_falls_silent_is_started_again(options: dict[str, Any]) -> None:
    async def freeze() -> None:
        host = Host(options, patience=1.0)
        await host.start()
        ticket = await drawing(host)
        assert host.pid is not None
        os.kill(host.pid, signal.SIGSTOP)
        with pytest.raises(DiedError):
            async for _ in ticket:
                pass
        await until(lambda: host.alive)
        host.patience = 60.0
        (await drawing(host)).cancel()
        await host.stop()

    asyncio.run(freeze())
