"""A process that work is sent to which must not be done here: a JSON request a line, and its replies.

Libraries that score answers may *evaluate* them: a model that answers 9**9**9**9 would stop the run that asked, beyond
the reach of any thread or Python signal handler. In a process of its own each request has a time limit kept by
the kernel (an alarm left at its default action, which ends the process), memory is capped, what evaluated text prints
goes nowhere, and the libraries' imports stay out of ours. Whoever died is started anew by the next request.

What it does not protect from: this is no sandbox. Text evaluated there may read and write the user's files and open
connections. Its environment is bare, no more.

Replies: {"item": ...} any number of times, then {"end": true} or {"error": text}; once at the start {"end": true}.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from mull.types import UserError

MEMORY = 3 << 30  # bytes of address space; the libraries themselves need 0.2 GiB
PASSED_ON = ("HOME", "LANG", "LD_LIBRARY_PATH", "PATH", "PYTHONPATH", "TMPDIR")  # of our environment: no tokens


class StoppedError(Exception):
    """The process ended in the middle of a request; `timeout` where an alarm of its own ended it."""

    def __init__(self, timeout: bool) -> None:
        self.timeout = timeout


class Apart:
    """A handle on the process that runs `module`. Starts it when needed, anew where it died or after a fork.

    One request at a time: threads take turns. `package` is what it imports, `missing` what to say where that is absent.
    """

    def __init__(self, module: str, package: str, missing: str, passed_on: Sequence[str] = PASSED_ON) -> None:
        self._module, self._package, self._missing, self._passed_on = module, package, missing, passed_on
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._end: Callable[[], object] = lambda: None
        self._owner = 0  # pid of the process that started it: a fork must not read its parent's replies

    def ready(self) -> None:
        """Raises UserError where the package is not installed."""
        try:
            found = importlib.util.find_spec(self._package)
        except ValueError:  # an import of it is under way elsewhere, or was made to fail
            found = None
        if found is None:
            raise UserError(self._missing)

    def ask(self, request: dict[str, Any]) -> list[Any]:
        """The items of the reply. Raises UserError as the other side did, StoppedError if the request ended it."""
        with self._lock:
            try:
                if self._process is None or self._owner != os.getpid() or self._process.poll() is not None:
                    self._start()
                return self._exchange(json.dumps(request))
            except UserError:
                raise
            except BaseException:  # Ctrl-C included: a reply left unread would answer the next request
                self._end()
                self._process = None
                raise

    def _exchange(self, request: str) -> list[Any]:
        process, items = self._process, []
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        with suppress(BrokenPipeError, json.JSONDecodeError):  # it ended, perhaps in the middle of a line
            process.stdin.write(request + "\n")
            process.stdin.flush()
            for line in process.stdout:
                match json.loads(line):
                    case {"item": item}:
                        items.append(item)
                    case {"error": error}:
                        raise UserError(error)
                    case {"end": _}:
                        return items
        raise StoppedError(timeout=process.wait() in (-signal.SIGALRM, -signal.SIGPROF))

    def _start(self) -> None:
        self.ready()
        environment = {key: os.environ[key] for key in self._passed_on if key in os.environ}
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-W", "ignore", "-m", self._module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            encoding="utf-8",
            env=environment | {"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )
        self._owner = os.getpid()
        self._end = weakref.finalize(self, end, self._process)  # at our own exit, at the latest
        assert self._process.stdout is not None
        if not self._process.stdout.readline():
            self._end()
            raise UserError(f"{self._package} does not start; `python -c 'import {self._package}'` says why.")


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


# the other side


@contextmanager
def limit(seconds: float, timer: int = signal.ITIMER_REAL) -> Iterator[None]:
    """Ends this process if the block takes longer than so many seconds: of wall-clock time, or by ITIMER_PROF its own.

    The time of its own processor does not depend on what else the machine has to do, but never runs out while waiting.
    """
    signal.setitimer(timer, seconds)
    try:
        yield
    finally:
        signal.setitimer(timer, 0)


def attend(start: Callable[[], object], answers: Callable[[dict[str, Any]], Iterator[dict[str, Any]]]) -> None:
    """Runs in the process: `start` imports what is needed, `answers` makes the replies to a request."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # print() in evaluated text cannot write a reply
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent; the end of stdin is for us
    with suppress(ImportError, OSError, ValueError):  # not every system has the limit
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    start()
    replies.write('{"end": true}\n')
    replies.flush()
    for line in sys.stdin:
        for reply in answers(json.loads(line)):
            replies.write(json.dumps(reply) + "\n")
        replies.flush()


__all__ = ["Apart", "StoppedError", "attend", "limit"]
