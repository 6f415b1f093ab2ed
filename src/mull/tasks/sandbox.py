"""Runs code that nobody has read, and says whether it passes tests, in a way that the code cannot forge.

Two processes are started for each run, both confined (confine.py): the program's and the judge's (jail.py). The judge
alone has the tests, and calls the program's functions over a socket. What counts is processor time: a slow or busy
machine changes no verdict. Wall time is a backstop for programs that sleep.

How they are confined depends on the system, and `protection` says it in a sentence: namespaces made as root, a user's
own namespaces, bubblewrap where the system refuses those to anyone else, Landlock, or resource limits alone.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from mull.tasks import confine, jail

Status = Literal["passed", "failed", "unreadable", "timeout"]
Kind = Literal["root", "user", "bubblewrap", "landlock", "limits"]
TRIAL = ["import heapq, decimal\ndef f(x): return heapq.heappop(x)"]  # what needs the library, shared objects too
GRACE = 20.0  # seconds for those around a process that has ended to end too
START = (
    "import sys; sys.path.append({folder!r}); import confine, jail; sys.path.pop(); "
    "confine.confine({kind!r}, {limits!r}, {parent}); jail.main({role!r}, {fd})"
)
ENVIRONMENT = {"PATH": "/usr/bin:/bin", "HOME": confine.WORK, "LC_ALL": "C.UTF-8", "PYTHONHASHSEED": "0"}
SHUT = "no network, no files but Python's library, no other process, limits on time, memory and output"
KERNEL = "it does not protect from a fault in the kernel"
PROTECTION: dict[Kind, str] = {
    "root": f"Code runs in namespaces of its own, as a user that owns nothing: {SHUT}; {KERNEL}.",
    "user": f"Code runs in user namespaces of its own: {SHUT}; {KERNEL}.",
    "bubblewrap": f"Code runs under bubblewrap: {SHUT}; {KERNEL}.",
    "landlock": "Code runs under Landlock, as this system gives us no namespaces: no files but Python's library, no "
    "other process, limits on time, memory and output; it does not protect from use of the network.",
    "limits": "Code runs under resource limits alone, as this system gives us no better: it can start no process "
    "and write into no file, but read and delete what you can, and reach the network and your other processes.",
}


class SandboxError(RuntimeError):
    """The sandbox could not do its work: nothing is said about the program."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a program may use in all, as it is one process: confine.py lets it start no other. Bytes and seconds;
    `wall_seconds` is for those that sleep. The tests' process has as much for itself."""

    cpu_seconds: int = 10
    wall_seconds: float = 60.0
    memory: int = 1 << 30
    file: int = 16 << 20
    threads: int = 16
    output: int = 1 << 20

    def resources(self, kind: Kind) -> dict[str, int]:
        """As setrlimit(2) has them. It counts threads by user: where the user is not the program's own, it has one."""
        alone = kind in ("landlock", "limits")
        return {
            "RLIMIT_CPU": self.cpu_seconds,
            "RLIMIT_AS": self.memory,
            "RLIMIT_FSIZE": 0 if alone else self.file,
            "RLIMIT_NPROC": 0 if alone else self.threads,
            "RLIMIT_NOFILE": 64,
            "RLIMIT_CORE": 0,
        }


@dataclass(frozen=True, slots=True)
class Ran:
    """What became of a program: `why` in a few words where it did not pass, `said` the beginning of its output.

    "unreadable" is what does not compile. "timeout" used up its processor time, or slept through all the wall time.
    """

    status: Status
    why: str
    said: str


def run(
    program: Sequence[str], tests: Sequence[str] = (), names: Sequence[str] = (), setup: Sequence[str] = (),
    limits: Limits | None = None,
) -> Ran:  # fmt: skip
    """Run the program's sources, one after the other in one module, and then the tests with the program's `names`.

    `setup` is run before the tests, beside them, where the program has no hand in it. Safe to call from several
    threads. Raises SandboxError where the sandbox could not be set up, or the machine was too busy to run anything.
    """
    return _run(kind(), (list(program), list(setup), list(tests), list(names)), limits or Limits())


def protection() -> str:
    """How the code of answers is confined here, and what that does not protect from: one sentence."""
    return PROTECTION[kind()]


@cache
def kind() -> Kind:
    """The best confinement that works here, found by trying. Raises SandboxError where not even limits do."""
    problem = ""
    for way in _ways():
        try:
            ran = _run(way, (TRIAL, [], ["assert f([3]) == 3"], ["f"]), Limits())
            if ran.status == "passed":
                return way
            problem = ran.why
        except SandboxError as error:
            problem = str(error)
    raise SandboxError(f"No code can be run here: {problem}")


def _ways() -> Iterator[Kind]:
    root = os.getuid() == 0
    if sys.platform == "linux":
        if root:
            yield "root"
        yield "user"
        if shutil.which("bwrap") and not root:  # within it root stays root, whose processes no limit counts
            yield "bubblewrap"
        yield "landlock"
    yield "limits"


def _command(way: Kind, role: str, fd: int, limits: Limits) -> list[str]:
    folder = Path(confine.__file__).parent
    python = Path(getattr(sys, "_base_executable", sys.executable)).resolve()
    start = START.format(
        folder=str(folder), kind=way, limits=limits.resources(way), parent=os.getpid(), role=role, fd=fd
    )
    around = _bubblewrap((python, folder / "confine.py", folder / "jail.py")) if way == "bubblewrap" else []
    return [*around, str(python), "-S", "-s", "-P", "-B", "-u", "-X", "utf8", "-c", start]


def _bubblewrap(files: Sequence[Path]) -> list[str]:
    """The command line that makes what confine.py makes, where only bubblewrap may."""
    nobody, hidden = str(confine.NOBODY), list[str]()
    words = [shutil.which("bwrap") or "bwrap", "--unshare-all", "--die-with-parent", "--cap-drop", "ALL"]
    words += ["--uid", nobody, "--gid", nobody]
    for path in filter(Path.exists, map(Path, confine.shown())):
        if path.is_symlink():
            words += ["--symlink", str(path.readlink()), str(path)]
        else:
            words += ["--ro-bind", str(path), str(path)]
            hidden += confine.packages_in(str(path))
    for packages in hidden:
        words += ["--tmpfs", packages]
    for file in files:
        words += ["--ro-bind", str(file), str(file)]
    words += ["--size", str(64 << 20), "--tmpfs", confine.WORK, "--chdir", confine.WORK]
    for place in (*hidden, "/"):
        words += ["--remount-ro", place]
    return [*words, "--"]


class _Process:
    """One of the two processes of a run, and what it has written so far."""

    def __init__(self, command: list[str], stdin: int, fds: Sequence[int] = ()) -> None:
        try:
            self.popen = subprocess.Popen(
                command, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, pass_fds=fds, cwd="/",
                env=ENVIRONMENT, start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            raise SandboxError(f"{command[0]} could not be started: {error}") from None
        self.output = bytearray()
        self.cpu = 0.0  # seconds, of it and all that it waited for, once it has ended

        assert self.popen.stdout
        os.set_blocking(self.popen.stdout.fileno(), False)

    def read(self, most: int) -> bool:
        """Take what is there, as long as that is no more than `most` in all. Whether there may be more to come."""
        assert self.popen.stdout
        with contextlib.suppress(BlockingIOError):
            while len(self.output) <= most:
                piece = os.read(self.popen.stdout.fileno(), 1 << 16)
                if not piece:
                    return False
                self.output += piece
        return True

    def end(self, patience: float = 0.0) -> None:
        """Wait so many seconds for its own end, then kill it, and all that it started with it."""
        until = time.monotonic() + patience
        while self.popen.returncode is None:
            late = time.monotonic() >= until
            if late:
                os.kill(self.popen.pid, confine.KILL)
            pid, status, used = os.wait4(self.popen.pid, 0 if late else os.WNOHANG)
            if pid:
                self.popen.returncode = os.waitstatus_to_exitcode(status)
                self.cpu = used.ru_utime + used.ru_stime
            else:
                time.sleep(0.005)

    def spent(self, limits: Limits) -> bool:
        """Whether it was ended for its processor time: by the limit's own signal, or by the last one where it ignored
        that. The kernel counts ticks for the limit, so what it says it used may be less, on a busy machine by half."""
        signal = -self.popen.returncode if self.popen.returncode < 0 else self.popen.returncode - 128
        late = signal == confine.KILL and self.cpu > limits.cpu_seconds / 2
        return signal == confine.CPU_SPENT or late or self.cpu >= limits.cpu_seconds

    def close(self) -> None:
        self.end()
        for pipe in (self.popen.stdin, self.popen.stdout):
            if pipe:
                with contextlib.suppress(OSError):
                    pipe.close()


def _run(way: Kind, spec: tuple[list[str], ...], limits: Limits) -> Ran:
    here, there = socket.socketpair()
    with contextlib.ExitStack() as ending:
        ending.callback(here.close)
        ending.callback(there.close)
        answer = _Process(_command(way, "answer", 0, limits), there.fileno())
        ending.callback(answer.close)
        judge = _Process(_command(way, "judge", here.fileno(), limits), subprocess.PIPE, [here.fileno()])
        ending.callback(judge.close)
        here.close()
        there.close()
        with contextlib.suppress(jail.GoneError):  # it could not start, and has said why
            assert judge.popen.stdin
            jail.Link(judge.popen.stdin.fileno()).send(jail.dump(spec))
        ended = _attend(answer, judge, limits)
        return _conclude(answer, judge, ended, limits)


def _attend(answer: _Process, judge: _Process, limits: Limits) -> Literal["judged", "flood", "wall"]:
    """Until the judge has spoken, or there is no use in waiting for it."""
    until = time.monotonic() + limits.wall_seconds
    with selectors.DefaultSelector() as waiting:
        for process in (answer, judge):
            assert process.popen.stdout
            waiting.register(process.popen.stdout, selectors.EVENT_READ, process)
        while (left := until - time.monotonic()) > 0:
            for key, _ in waiting.select(left):
                if not key.data.read(limits.output):
                    waiting.unregister(key.fileobj)
            ended = judge.popen.stdout not in waiting.get_map()
            if ended:  # what the program wrote before it gave its last answer is there by now
                answer.read(limits.output)
            if len(answer.output) > limits.output:
                return "flood"
            if ended:
                return "judged"
    return "wall"


def _conclude(answer: _Process, judge: _Process, ended: str, limits: Limits) -> Ran:
    said = bytes(answer.output[: limits.output]).decode("utf-8", "replace")
    spent = f"the program used up its {limits.cpu_seconds} s of processor time"
    if ended == "flood":
        return Ran("failed", f"the program wrote more than {limits.output:,} bytes", said)
    if ended == "wall":
        used, waited = _times(answer.popen.pid)
        if used >= limits.cpu_seconds:
            return Ran("timeout", spent, said)
        if waited > limits.wall_seconds / 2:
            raise SandboxError(f"the machine was too busy: the program waited {waited:.0f} s for a processor")
        return Ran("timeout", f"the program slept: {limits.wall_seconds:g} s passed", said)
    judge.end(GRACE)
    status, why = _verdict(judge, said, limits)
    if status != "ended":
        return Ran(status, why, said)
    answer.end(GRACE)
    if answer.spent(limits):
        return Ran("timeout", spent, said)
    return Ran("failed", f"{why} ({_ending(answer.popen.returncode)})", said)


def _verdict(judge: _Process, said: str, limits: Limits) -> tuple[Status | Literal["ended"], str]:
    """What the judge has written. Only it writes there: a message of the right shape is its own."""
    if judge.output[:1] != b"+":
        raise SandboxError(judge.output.decode("utf-8", "replace")[:500] or "the judge did not start")
    try:
        status, why = jail.load(bytes(judge.output[5:]))
    except jail.UnplainError:  # it was ended: what the program gave was too much for it
        if judge.spent(limits):
            return "timeout", f"the tests used up their {limits.cpu_seconds} s of processor time"
        return "failed", "the tests could not be run to their end on what the program gave"
    if status == "unstarted":
        raise SandboxError(said[:500] or "the program's process did not start")
    return status, why


def _ending(code: int) -> str:
    return f"signal {-code or code}" if code < 0 else f"signal {code - 128}" if code > 128 else f"exit status {code}"


def _times(pid: int) -> tuple[float, float]:
    """Seconds that a process and those below it have computed, and have waited for a processor (Linux; else 0)."""
    computed = waited = 0.0
    with contextlib.suppress(OSError, ValueError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            ran, delayed, _ = map(int, (task / "schedstat").read_text().split())
            computed, waited = computed + ran / 1e9, waited + delayed / 1e9
            for child in (task / "children").read_text().split():
                below = _times(int(child))
                computed, waited = computed + below[0], waited + below[1]
    return computed, waited


__all__ = ["Limits", "Ran", "SandboxError", "kind", "protection", "run"]
