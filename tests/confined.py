"""Programs run in each confinement that can be had here."""

import contextlib
import os
import time
from functools import cache
from pathlib import Path

import pytest

from mull.tasks.sandbox import Limits, SandboxError, _run, kind, run

DOUBLE = "def f(x):\n    return 2 * x\n"
TESTS = ["assert f(3) == 6", "assert f('a') == 'aa'"]
SHORT = Limits(cpu_seconds=1, wall_seconds=20)


def tried(program, tests=TESTS, limits=SHORT):
    return run([program], tests, ["f"], limits=limits)


@cache
def works(way):
    try:
        return _run(way, ([DOUBLE], [], TESTS, ["f"]), SHORT).status == "passed"
    except SandboxError:
        return False


OTHERS = [pytest.param(way, marks=pytest.mark.slow) for way in ("root", "user", "bubblewrap", "landlock", "limits")]


@pytest.fixture(params=["best", *OTHERS])
def way(request):
    """The best confinement that can be had here, and then each."""
    way = kind() if request.param == "best" else request.param
    if not works(way) or (way == "bubblewrap" and os.getuid() == 0):
        pytest.skip(f"{way} cannot be had here")
    return way


@pytest.fixture
def namespaces():
    if kind() in ("landlock", "limits"):
        pytest.skip("this system gives us no namespaces")


def assert_dead(limits):
    """Nothing of a run with these limits is left; its end may take the kernel a moment."""
    until = time.monotonic() + 5
    while running(str(limits.memory)) and time.monotonic() < until:
        time.sleep(0.01)
    assert not running(str(limits.memory))


def running(mark):
    """The processes with this in their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if mark in path.read_text():
                found.append(path)
    return found
