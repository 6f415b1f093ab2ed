"""What limits on one process do not count, and what would outlive it: none of it can be had in any confinement."""

# ruff: noqa: F811 - fixtures are imported

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from confined import DOUBLE, SHORT, TESTS, assert_dead, running, way  # noqa: F401

from mull.tasks.sandbox import Limits, _run

HELD = {  # 192 MiB where 160 may be used, of a kind that no limit on one process counts
    "segments": """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
libc.shmat.restype, libc.shmat.argtypes = ctypes.c_void_p, [ctypes.c_int, ctypes.c_void_p, ctypes.c_int]
libc.shmdt.argtypes = [ctypes.c_void_p]
for _ in range(3):
    number = libc.shmget(0, ctypes.c_size_t(64 << 20), 0o1600)
    if number < 0: raise OSError(ctypes.get_errno(), 'shmget')
    place = libc.shmat(number, None, 0)
    ctypes.memset(place, 1, 64 << 20)
    libc.shmdt(place)
    libc.shmctl(number, 0, None)
""",
    "files in memory": """
import os
files = [os.memfd_create('m') for _ in range(16)]
for file in files: os.write(file, bytes(12 << 20))
""",
    "children": """
import os
pipes = [os.pipe() for _ in range(3)]
for start, end in pipes:
    if not os.fork():
        held = b'x' * (64 << 20)
        os.write(end, b'1')
        os.read(os.pipe()[0], 1)
for start, end in pipes: os.read(start, 1)
""",
    "pages in a pipe": """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
pages = ctypes.create_string_buffer(4096)
given = (ctypes.c_size_t * 2)(ctypes.addressof(pages), 4096)
if libc.vmsplice(os.pipe()[1], given, ctypes.c_size_t(1), 0) < 0: raise OSError(ctypes.get_errno(), 'vmsplice')
""",
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", HELD)
def test_memory_that_no_limit_counts_is_refused(way, name):
    ran = _run(way, ([HELD[name] + DOUBLE], [], TESTS, ["f"]), Limits(memory=160 << 20, file=16 << 20))
    assert (ran.status, "[Errno" in ran.why) == ("failed", True)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("start", ["os.fork()", "os.forkpty()", "os.posix_spawn(sys.executable, ['python'], {})"])
def test_no_process_can_be_started(way, start):
    program = f"import os, sys\n{start}\n{DOUBLE}"
    ran = _run(way, ([program], [], TESTS, ["f"]), SHORT)
    assert (ran.status, "Error: [Errno" in ran.why) == ("failed", True)


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="numbers of x86_64")
def test_no_process_can_be_started_by_a_system_calls_other_names(way):
    calls = "(57,), (58,), (56, 17), (435, 0, 0), (0x40000000 + 57,), (0x40000000 + 56, 17)"
    program = f"import ctypes, os\nme = os.getpid()\nsaid = [ctypes.CDLL(None).syscall(*c) for c in ({calls})]\n"
    program += "if os.getpid() == me: print(said)\n"
    assert _run(way, ([program + DOUBLE], [], TESTS, ["f"]), SHORT).said == "[-1, -1, -1, -1, -1, -1]\n"


BURN = "until = time.thread_time() + 1.0\n    while time.thread_time() < until: pass\n"
CHILDREN = f"""
import os, time
for _ in range(3):
    if os.fork():
        os.wait()
        continue
    {BURN}    os._exit(0)
"""
THREADS = f"""
import threading, time
def burn():
    {BURN}
threads = [threading.Thread(target=burn) for _ in range(3)]
for thread in threads: thread.start()
for thread in threads: thread.join()
"""


@pytest.mark.timeout(60)
@pytest.mark.parametrize("program", [CHILDREN, THREADS], ids=["children", "threads"])
def test_processor_time_is_counted_over_all_that_a_program_starts(way, program):
    ran = _run(way, ([program + DOUBLE], [], TESTS, ["f"]), Limits(cpu_seconds=2))  # of which it takes 3
    assert ran.status in ("failed", "timeout")


LASTING = """
import ctypes
libc = ctypes.CDLL(None)
print([libc.shmget({key}, ctypes.c_size_t(4096), 0o1666), libc.semget({key}, 1, 0o1666), libc.msgget({key}, 0o1666),
       libc.mq_open(b'/{key}', 0o102, 0o666, None),
       libc.syscall({add}, b'user', b'{key}', b'x', ctypes.c_size_t(1), -4)])
"""


def test_nothing_that_outlives_a_process_can_be_made(way):
    key = 0x6A000000 + os.getpid()
    add = 248 if os.uname().machine == "x86_64" else 217  # add_key, which the C library has no name for
    program = LASTING.format(key=key, add=add) + DOUBLE
    assert _run(way, ([program], [], TESTS, ["f"]), SHORT).said == "[-1, -1, -1, -1, -1]\n"
    if sys.platform == "linux":
        assert not any(str(key) in Path("/proc/sysvipc", kind).read_text() for kind in ("shm", "sem", "msg"))


DIES = """
from mull.tasks.sandbox import Limits, _run
_run({way!r}, (['import time; time.sleep(100)'], [], [], []), Limits(memory={memory}))
"""


@pytest.mark.timeout(60)
@pytest.mark.parametrize("early", [False, True])
def test_what_runs_dies_with_whoever_runs_it(way, early):
    mark = Limits(memory=(1 << 30) + os.getpid())
    script = DIES.format(way=way, memory=mark.memory)
    outer = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.DEVNULL)
    each = 1 if early or way in ("landlock", "limits") else 3  # the outer, the first and the last
    while len(running(str(mark.memory))) < 1 + 2 * each:  # itself, the answer and the judge
        time.sleep(0.01)
    outer.send_signal(signal.SIGKILL)
    outer.wait()
    assert_dead(mark)
