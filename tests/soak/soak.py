"""A server under clients of every kind, for a while: does it lose a request, get stuck, or grow?

    python tests/soak/soak.py --requests 10000 --minutes 5

Real processes: `mull serve` with its engine, and here the clients, `--clients` of them at a time. Good requests over
all protocols, streamed and not; clients that leave in the middle, say half of what they wanted, read slowly; bodies
that are no JSON, nonsense or huge. At the end nothing may be under way, all pages must be free, and memory may have
grown by 5 % at most since the warm-up; and every answer to one request and seed must be the same, in whatever company
it was drawn. Exits with 1 where any of it fails. Linux only: looks into /proc.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from rawhttp import StuckError, ask  # noqa: E402
from traffic import JSON, Call, LostError, Told, call_of, outcome, told_of  # noqa: E402

from mull.serve.responses import STORED  # noqa: E402

if TYPE_CHECKING:
    from serve_process import Running

PARTS = 20  # of a run; at the end of each all comes to rest and memory is looked at
WARM = 5  # of them: until then memory may grow
GROWTH = 0.05  # from then on: the median of the last five against that of the first five behind the warm-up
# so that memory which is free is given back at once: what malloc keeps for later would hide what is lost
FRUGAL = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "262144", "MALLOC_TRIM_THRESHOLD_": "1048576"}
SETTLE = 30.0  # seconds in which all that was under way has to be gone


@dataclass
class Tally:
    """What came of it."""

    outcomes: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    answers: dict[tuple[str, int], Told] = field(default_factory=dict)  # the first of each path and seed
    compared: int = 0
    memory: dict[str, list[float]] = field(default_factory=dict)  # of the server and the engine, MiB, at each rest
    seconds: float = 0.0

    def note(self, call: Call, what: str, told: Told | None) -> None:
        self.outcomes[what] += 1
        if told is None or call.seed is None:
            return
        first = self.answers.setdefault((call.path, call.seed), told)
        self.compared += first is not told
        if first != told:
            self.problems.append(f"{call.path}, seed {call.seed}: {told} and before {first}")

    @property
    def growth(self) -> dict[str, tuple[float, float]]:
        """Memory behind the warm-up, and at the end."""
        return {who: (median(seen[WARM : WARM + 5]), median(seen[-5:])) for who, seen in self.memory.items()}


def memory_of(pid: int) -> float:
    """A process's own, in MiB; what of it the kernel put away is counted too, files that it maps are not."""
    status = Path(f"/proc/{pid}/status").read_text()
    return sum(int(size) for size in re.findall(r"(?:RssAnon|VmSwap):\s+(\d+) kB", status)) / 1024


async def metrics(port: int) -> dict[str, float]:
    """All that have no labels."""
    page = (await ask(port, "GET", "/metrics")).body.decode()
    return {name: float(value) for name, value in re.findall(r"^(mull_\w+) (\S+)$", page, re.MULTILINE)}


async def settled(port: int) -> str | None:
    """None when nothing is under way any more and all pages are free; else what is."""
    until = time.monotonic() + SETTLE
    while True:
        told = await metrics(port)
        left = {name: told.get(f"mull_{name}", 0.0) for name in ("open", "running", "waiting", "pages_used")}
        if not any(left.values()):
            return None
        if time.monotonic() > until:
            return f"after {SETTLE:g} s there is still something: {left}"
        await asyncio.sleep(0.1)


async def one(port: int, call: Call, tally: Tally) -> None:
    try:
        reply = await ask(port, call.method, call.path, call.body, JSON if call.body else {}, call.manners)
        what = outcome(call, reply)
        told = told_of(call, reply) if what == "answered" and call.seed is not None else None
        tally.note(call, what, told)
    except (LostError, StuckError, OSError) as error:
        tally.outcomes["lost"] += 1
        tally.problems.append(f"{type(error).__name__}: {error}")


async def drive(port: int, numbers: Iterator[int], clients: int, model: str, tally: Tally, salt: int = 0) -> None:
    async def client() -> None:
        for number in numbers:
            await one(port, call_of(number, model, salt), tally)

    await asyncio.gather(*(client() for _ in range(clients)))


def timed(numbers: Iterator[int], count: int, seconds: float) -> Iterator[int]:
    """So many of `numbers` and, until so many seconds have gone, more."""
    until = time.monotonic() + seconds
    yield from itertools.islice(numbers, count)
    while time.monotonic() < until:
        yield next(numbers)


async def fill(port: int, clients: int, tally: Tally) -> None:
    """The shelf of responses that are kept: it is bounded, but is not to be full only in the midst of the run."""
    body = {"model": "tiny", "input": "What is 7 + 81? The answer, then: héllo", "max_output_tokens": 6, "seed": 1}
    call = Call("/v1/responses", json.dumps(body).encode(), "answered")
    left = iter(range(STORED))

    async def client() -> None:
        for _ in left:
            await one(port, call, tally)

    await asyncio.gather(*(client() for _ in range(clients)))


async def soak(
    server: Running, requests: int, clients: int = 24, minutes: float = 0, salt: int = 0, growth: float = GROWTH
) -> Tally:  # fmt: skip
    port, tally, began = server.port, Tally(), time.monotonic()
    await fill(port, clients, tally)
    numbers = itertools.count()
    for number in range(1, PARTS + 1):
        part = timed(numbers, requests // PARTS, minutes * 60 / PARTS)
        await drive(port, part, clients, "tiny", tally, salt)
        if (left := await settled(port)) is not None:
            tally.problems.append(left)
        for who, pid in (("server", server.process.pid), ("engine", server.engine())):
            tally.memory.setdefault(who, []).append(memory_of(pid))
        print(f"{number}/{PARTS}: {tally.outcomes.total()} requests, {len(tally.problems)} problems", file=sys.stderr)
    for who, (before, after) in tally.growth.items():
        if after > before * (1 + growth):
            tally.problems.append(f"the {who}'s memory has grown by {after / before - 1:.1%} since the warm-up")
    if restarts := (await metrics(port)).get("mull_engine_restarts_total"):
        tally.problems.append(f"the engine died {restarts:g} times")
    tally.seconds = time.monotonic() - began
    return tally


def report(tally: Tally) -> str:
    counts = ", ".join(f"{count} {what}" for what, count in tally.outcomes.most_common())
    memory = ", ".join(f"{who} {before:.1f} and {after:.1f} MiB" for who, (before, after) in tally.growth.items())
    return (
        f"{tally.outcomes.total()} requests in {tally.seconds:.0f} s: {counts}\n"
        f"{tally.compared} answers compared with an earlier one to the same request and seed\n"
        f"memory behind the warm-up and at the end: {memory}"
    )


def main() -> int:
    from serve_process import running
    from serving import saved

    words = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    words.add_argument("--requests", type=int, default=10_000)
    words.add_argument("--minutes", type=float, default=0, help="go on with more requests, at least so long")
    words.add_argument("--clients", type=int, default=24, help="at a time")
    words.add_argument("--salt", type=int, default=0, help="another number draws other requests")
    given = words.parse_args()
    os.environ.update(FRUGAL)
    with tempfile.TemporaryDirectory() as made:
        folder = saved(Path(made) / "tiny")
        with running(folder, Path(made) / "home", "--exact", "--queue", str(given.clients)) as server:
            tally = asyncio.run(soak(server, given.requests, given.clients, given.minutes, given.salt))
    print(report(tally))
    for problem in itertools.islice(tally.problems, 20):
        print(f"PROBLEM: {problem}")
    print(f"{len(tally.problems)} problems")
    return 1 if tally.problems else 0


if __name__ == "__main__":
    sys.exit(main())
