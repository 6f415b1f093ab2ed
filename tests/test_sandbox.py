"""The sandbox: what a program may do to look right, and what it may do to the machine. None of it is ever "passed"."""

# ruff: noqa: F811 - fixtures are imported

import os
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from confined import DOUBLE, SHORT, TESTS, assert_dead, namespaces, tried, way, works  # noqa: F401

from mull.tasks.sandbox import PROTECTION, Limits, SandboxError, _run, _times, kind, protection, run

# ---- what is right passes, what is wrong does not


def test_a_right_program_passes_and_a_wrong_one_fails_with_the_test_that_it_failed():
    assert tried(DOUBLE).status == "passed"
    wrong = tried("def f(x):\n    return 6")
    assert (wrong.status, wrong.why) == ("failed", "test 2 of 2: assertion failed in assert f('a') == 'aa'")


def test_what_it_prints_is_told_up_to_the_limit():
    assert tried("print('début')\n" + DOUBLE).said == "début\n"


def test_an_exception_is_told_by_its_name():
    ran = tried("def f(x):\n    return [][x]")
    assert ran.status == "failed"
    assert "IndexError: list index out of range" in ran.why
    assert "NameError: name 'f' is not defined" in tried("g = 1").why


@pytest.mark.parametrize("name", ["EOFError", "BrokenPipeError", "ConnectionError"])
def test_an_exception_about_a_connection_is_the_programs_own(name):
    ran = tried(f"def f(x): raise {name}('mine')")
    assert (ran.status, ran.why) == (
        "failed", f"test 1 of 2: the program raised {name}: mine in assert f(3) == 6"
    )  # fmt: skip
    expected = f"try: f(3)\nexcept {name}: pass\nelse: assert False"
    assert tried(f"def f(x): raise {name}('mine')", [expected]).status == "passed"


def test_an_end_is_not_the_exception_that_a_test_expects():
    test = "try: f(3)\nexcept Exception: pass\nelse: assert False"
    assert tried("import os\ndef f(x): os._exit(0)", [test]).status == "failed"


@pytest.mark.parametrize(
    ("program", "test"),
    [
        ("def f(x):\n    x.sort()", "x = [3, 1]\nf(x)\nassert x == [1, 3]"),
        ("def f(x):\n    x.clear()\n    x[1] = {2}", "x = {3: 4}\nf(x)\nassert x == {1: {2}}"),
        ("def f(x):\n    x.add(2)\n    return x", "x = {1}\nassert f(x) == {1, 2} == x"),
        ("def f(x):\n    yield from x", "assert list(f((1, 2))) == [1, 2]"),
        ("def f(x):\n    return map(str, x)", "assert [*f([1, 2])] == ['1', '2']"),
        ("""
from collections import Counter
def f(x):
    return Counter(x)
""", "assert f('aab') == {'a': 2, 'b': 1}"),
        ("""
from collections import namedtuple
P = namedtuple('P', 'a b')
def f(x):
    return P(1, x)
""", "assert f(2) == (1, 2)"),
        ("""
from fractions import Fraction
def f(x):
    return Fraction(x, 4)
""", "assert f(2) == 0.5"),
        ("def f(x, *, y=0):\n    return x - y", "assert f(3, y=2) == 1"),
        ("def f(x):\n    return {}.keys()", "assert f(3) == set()"),
        ("def f(x):\n    return isinstance(3, x)", "assert f(int) is True"),
        ("""
def f(x):
    return 1 / x
""", """try:
    f(0)
except ZeroDivisionError:
    pass
else:
    assert False"""),
        ("""
class Odd(ValueError): pass
def f(x):
    raise Odd(x)
""", """try:
    f(0)
except ValueError:
    pass
else:
    assert False"""),
        ("class f:\n    def __init__(self, x): self.x = x", "f(3)"),
        ("f = lambda x: (lambda y: x + y)", "assert f(3)(4) == 7"),
        ("""
from dataclasses import dataclass
@dataclass
class P:
    a: int
def f(x):
    return P(x).a
""", "assert f(3) == 3"),
        ("def f(x):\n    return range(x)", "assert f(3) == range(3)"),
        ("""
import threading
def f(x):
    r = []
    t = threading.Thread(target=r.append, args=(x,))
    t.start()
    t.join()
    return r
""", "assert f(3) == [3]"),
        ("""
def f(x):
    open('note', 'w').write(x)
    return open('note').read()
""", "assert f('x') == 'x'"),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("namespaces")
def test_what_an_honest_program_may_do_works(program, test):
    assert tried(program, [test]).status == "passed"


def test_objects_of_the_program_can_be_handed_back_to_it():
    program = (
        "class Node:\n    def __init__(self, v): self.v = v\na = Node(7)\ndef f(nodes): return [n.v for n in nodes]"
    )
    assert run([program], ["assert f([Node(1), a]) == [1, 7]"], ["f", "Node", "a"]).status == "passed"


def test_the_setup_is_the_tests_own_whatever_the_program_calls_the_same():
    program = "def helper(x): return True\nclass math:\n    isclose = lambda *a: True\ndef f(x): return 1.0"
    setup = ["import math\ndef helper(x): return x == 2"]
    for test in ("assert math.isclose(f(3), 2.0)", "assert helper(f(3))"):
        assert run([program], [test], ["f"], setup).status == "failed"


def test_an_exception_does_not_end_a_loop_of_the_tests():
    for test in ("assert all(map(lambda x: f(x) == 1, [1, 2]))", "assert not [*map(f, [1])]"):
        assert tried("def f(x): raise StopIteration", [test]).status == "failed"


def test_an_iterator_can_be_an_argument():
    assert tried("def f(x): return sum(x)", ["assert f(iter([1, 2])) == 3"]).status == "passed"


def test_a_verdict_does_not_hang_on_chance():
    program = "import random\ndef f(x):\n    return [random.random(), ''.join({'a', 'b', 'c', 'd', 'e', 'f', 'g'})]"
    assert run([program], ["print(f(3))\nassert repr(f(3)) == 'no'"], ["f"]) == run(
        [program], ["print(f(3))\nassert repr(f(3)) == 'no'"], ["f"]
    )
    seen = {tried(f"print(1)\n{program}\nprint(f(3))").said for _ in range(3)}
    assert len(seen) == 1


# ---- what looks right and is not


FORGED = {
    "exit": """
import sys
sys.exit(0)""",
    "exit at once": """
import os
os._exit(0)""",
    "exit when called": """
import sys
def f(x): sys.exit(0)""",
    "exit at once when called": """
import os
def f(x): os._exit(0)""",
    "at exit": """
import atexit, os
atexit.register(os._exit, 0)
def f(x): raise SystemExit""",
    "equal to all": """
class E:
    def __eq__(s, o): return True
    __hash__ = None
def f(x): return E()""",
    "unequal to none": """
class E(int):
    def __eq__(s, o): return True
    def __ne__(s, o): return False
def f(x): return E(1)""",
    "equal within": """
class E(str):
    __eq__ = lambda s, o: True
    __hash__ = str.__hash__
def f(x): return E('')""",
    "its own class": """
class E:
    __class__ = int
    def __eq__(s, o): return True
def f(x): return E()""",
    "builtins": """
import builtins
builtins.AssertionError = builtins.Exception = BaseException
builtins.len = lambda x: 6
builtins.exec = builtins.compile = lambda *a, **k: None
def f(x): return 0""",
    "sys": """
import sys
sys.exit = sys.settrace = sys.excepthook = lambda *a: None
sys.modules.clear()
def f(x): return 0""",
    "unittest": """
import unittest
unittest.TestCase.assertEqual = lambda *a: None
def f(x): return 0""",
    "raised": "def f(x): raise AssertionError('passed')",
    "raised an odd thing": """
class E(BaseException):
    def __str__(s): raise s
def f(x): raise E""",
    "says so": """
print('passed')
import sys
sys.stdout = sys.stderr
def f(x): print('+\\n', flush=True)""",
    "frames": """
import sys
f_ = sys._getframe()
while f_.f_back: f_ = f_.f_back
f_.f_globals['jail'].Judge = None
for g in list(f_.f_globals['jail'].__dict__): f_.f_globals['jail'].__dict__[g] = None""",
    "every descriptor": """
import os, sys
jail = sys.modules['jail']
m = jail.dump(('passed', ''))
for fd in range(64):
    for d in (b'+' + len(m).to_bytes(4, 'big') + m, len(m).to_bytes(4, 'big') + m, m):
        try: os.write(fd, d)
        except OSError: pass
os._exit(0)""",
    "its own messages": """
import os, sys
jail = sys.modules['jail']
m = jail.dump(('value', True, ()))
for fd in range(3, 64):
    try: os.write(fd, (len(m).to_bytes(4, 'big') + m) * 9)
    except OSError: pass""",
    "no message": """
import os
for fd in range(64):
    try: os.write(fd, b'\\xff' * 9)
    except OSError: pass""",
    "answers before it is asked": """
import os
if os.fork(): os._exit(0)
def f(x): return 0""",
    "kills its parent": """
import os
os.kill(os.getppid(), 9)
os.kill(1, 9)
def f(x): return 0""",
    "kills all": """
import os
try: os.kill(-1, 9)
finally: os._exit(0)""",
    "kills itself": """
import os
os.kill(os.getpid(), 9)""",
    "stops": """
import os
os.kill(os.getpid(), 6)""",
    "replaces itself": """
import os, sys
os.execv(sys.executable, ['python', '-c', 'print(1)'])""",
    "crashes": """
import ctypes
ctypes.string_at(0)""",
    "recursion": """
import sys
sys.setrecursionlimit(10 ** 9)
def f(x): return f(x)""",
    "recursion without python": """
import sys
sys.setrecursionlimit(10 ** 9)
class A:
    def __repr__(s): return repr([s])
def f(x): return repr(A())""",
    "deep": """
def f(x):
    r = []
    for _ in range(100_000): r = [r]
    return r""",
    "a circle": """
def f(x):
    r = []
    r.append(r)
    return r""",
    "a huge number": "def f(x): return 1 << 400_000_000",
    "a huge list": "def f(x): return [0] * 20_000_000",
    "endless": """
import itertools
def f(x): return itertools.count()""",
    "nothing": "",
    "nothing readable": "def f(x: return",
    "a zero byte": "def f(x): return 6\0",
    "half a character": "def f(x): return '\ud800'",
    "deep code": "f = " + "(" * 5000 + ")" * 5000,
    "deeper code": "f = " + "-" * 200_000 + "1",
    "a megabyte of braces": "{" * (1 << 20),
}  # fmt: skip


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", FORGED)
def test_what_only_looks_right_does_not_pass(name):
    assert tried(FORGED[name]).status in ("failed", "unreadable", "timeout")


def test_a_value_that_cannot_be_compared_is_named():
    assert "the answer gave a E, which is not a plain value" in tried(FORGED["equal to all"]).why


LOOKS_AROUND = """
import gc, os, sys
seen = []
frame = sys._getframe()
while frame:
    seen.append(repr(frame.f_locals) + repr(frame.f_globals))
    frame = frame.f_back
for thing in gc.get_objects():
    try: seen.append(repr(thing))
    except Exception: pass
for top, folders, files in os.walk('/'):
    for name in files:
        if 'humaneval' in name.lower() or 'mbpp' in name or name in ('sandbox.py', 'jail.py', 'environ', 'mem'):
            seen.append('FILE ' + top + name)
for path in ('/proc/self/environ', '/proc/1/cmdline', sys.argv[0], sys.modules['jail'].__file__):
    try: seen.append('FILE ' + open(path).read())
    except OSError: pass
for fd in range(64):
    try:
        os.set_blocking(fd, False)
        seen.append(repr(os.read(fd, 10000)))
    except OSError: pass
print('found', [text[:200] for text in seen if 's3cr3t' + str(77) in text or text.startswith('FILE')], flush=True)
os._exit(0)
"""


@pytest.mark.usefixtures("namespaces")
def test_neither_tests_nor_grader_can_be_read():
    secret = "s3cr3t" + "77"
    ran = tried(LOOKS_AROUND, [f"assert f(3) == '{secret}'"], Limits())
    assert ran.status == "failed"
    assert ran.said == "found []\n"


OPEN = """
import os, sys
found = []
for fd in range(64):
    try: found.append(os.fstat(fd) and fd)
    except OSError: pass
print(sorted(os.environ), sys.stdin)
print(found)
"""


@pytest.mark.usefixtures("namespaces")
def test_the_environment_and_the_descriptors_are_not_inherited(monkeypatch):
    monkeypatch.setenv("SECRET_KEY", "x")
    ran = tried(OPEN)
    names, descriptors = ran.said.splitlines()
    assert names == "['HOME', 'LC_ALL', 'PATH', 'PYTHONHASHSEED'] None"
    assert descriptors == "[1, 2, 3]"  # output, errors, and the socket to the judge


# ---- what would hurt the machine


@pytest.mark.timeout(60)
def test_an_endless_loop_is_a_timeout_by_processor_time(way):
    ran = _run(way, (["def f(x):\n    while True: pass"], [], TESTS, ["f"]), SHORT)
    assert ran.status == "timeout"
    assert "processor time" in ran.why


@pytest.mark.timeout(60)
def test_signal_handlers_do_not_help_a_loop():
    ignore = "import signal\nfor n in set(signal.Signals) - {9, 19}:\n    signal.signal(n, lambda *a: None)\n"
    assert tried(ignore + "while True: pass").status == "timeout"


@pytest.mark.timeout(60)
def test_who_sleeps_too_long_is_timed_out_and_who_sleeps_a_little_is_not():
    asleep = "import time\ndef f(x):\n    time.sleep({})\n    return 2 * x"
    ran = tried(asleep.format(1000), limits=Limits(cpu_seconds=1, wall_seconds=1.5))
    assert (ran.status, "slept" in ran.why) == ("timeout", True)
    assert tried(asleep.format(0.7), limits=Limits(cpu_seconds=1, wall_seconds=20)).status == "passed"  # 1.4 s in all


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "bomb",
    [
        "import os\nwhile True: os.fork()",
        "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
        "import os\nwhile True:\n    try:\n        if not os.fork(): os.setsid()\n    except OSError: pass",
    ],
)
def test_a_fork_bomb_ends(way, bomb):
    began = time.monotonic()
    limits = Limits(cpu_seconds=1, wall_seconds=15, memory=(1 << 30) + os.getpid())
    assert _run(way, ([bomb], [], TESTS, ["f"]), limits).status in ("failed", "timeout")
    assert time.monotonic() - began < 30
    assert_dead(limits)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("take", ["bytearray(10 << 30)", "[bytes(1 << 20) for _ in range(10_000)]", "'x' * (8 << 30)"])
def test_a_memory_bomb_is_refused_the_memory(way, take):
    ran = _run(way, ([f"x = {take}\ndef f(x): return 2 * x"], [], TESTS, ["f"]), SHORT)
    assert (ran.status, "MemoryError" in ran.why) == ("failed", True)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("write", ["print('x' * 1000)", "os.write(2, b'x' * 100_000)", "os.write(1, b'x' * 1_000)"])
def test_ten_gigabytes_of_output_are_not_taken(write):
    ran = tried(f"import os\nfor _ in range(10_000_000): {write}\n" + DOUBLE)
    assert ran.status == "failed"
    assert "wrote more than" in ran.why
    assert len(ran.said) <= SHORT.output


@pytest.mark.timeout(60)
def test_ten_gigabytes_of_a_file_are_not_written(way):
    files = """
for n in range({}):
    with open(str(n), 'wb') as out:
        for _ in range({}): out.write(bytes(1 << 20))
"""
    for many, long in ((1, 10_000), (10_000, 10)):
        ran = _run(way, ([files.format(many, long) + DOUBLE], [], TESTS, ["f"]), Limits(cpu_seconds=3))
        assert ran.status == "failed"
        assert "Error" in ran.why


@pytest.mark.usefixtures("namespaces")
def test_there_is_no_network():
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        port = server.getsockname()[1]
        program = f"import socket\nsocket.create_connection(('127.0.0.1', {port}), 5).send(b'here')\n" + DOUBLE
        assert tried(program).status == "failed"
        with pytest.raises(TimeoutError):
            server.accept()


@pytest.mark.usefixtures("namespaces")
def test_nothing_of_the_users_can_be_seen_or_written(tmp_path):
    (tmp_path / "diary").write_text("private")
    for path in (tmp_path / "diary", tmp_path / "new", Path.home() / "new", Path("/new"), Path("/usr/lib/new")):
        for mode in ("w", "r+", "a"):
            assert tried(f"open({str(path)!r}, {mode!r}).write('x')\n" + DOUBLE).status == "failed"
    assert tried(f"print(open({str(tmp_path / 'diary')!r}).read())\n" + DOUBLE).status == "failed"
    assert [path.name for path in tmp_path.iterdir()] == ["diary"]
    assert (tmp_path / "diary").read_text() == "private"


def test_landlock_hides_files_and_connections(tmp_path):
    if not works("landlock"):
        pytest.skip("this kernel has no Landlock")
    (tmp_path / "diary").write_text("private")
    for line in (
        "open('/etc/passwd')", "open('/proc/self/environ')", f"open({str(tmp_path / 'diary')!r})", "os.listdir('/')",
        f"os.unlink({str(tmp_path / 'diary')!r})", "os.mkdir('/tmp/mull-was-here')", "os.fork()",
    ):  # fmt: skip
        ran = _run("landlock", ([f"import os\n{line}\n{DOUBLE}"], [], TESTS, ["f"]), SHORT)
        assert (ran.status, "Error: [Errno" in ran.why) == ("failed", True), line
    assert (tmp_path / "diary").read_text() == "private"


@pytest.mark.usefixtures("namespaces")
def test_no_way_back_to_more_rights():
    program = (
        "import ctypes, os\nlibc = ctypes.CDLL(None)\n"
        "print([libc.unshare(1 << 28), libc.mount(b'none', b'/answer', b'tmpfs', 0, None), libc.setuid(0), "
        "libc.chroot(b'/answer'), libc.ptrace(16, 1, 0, 0), os.path.exists('/proc')])\n"
    )
    assert tried(program + DOUBLE).said == "[-1, -1, -1, -1, -1, False]\n"


@pytest.mark.usefixtures("namespaces")
def test_what_it_starts_is_dead_afterwards():
    program = (
        "import os, threading, time\nfor _ in range(3): threading.Thread(target=time.sleep, args=(1000,)).start()\n"
    )
    for rest in (DOUBLE, "os._exit(0)"):
        mark = Limits(memory=(1 << 30) + os.getpid())
        tried(program + rest, limits=mark)
        assert_dead(mark)


@pytest.mark.parametrize("python", ["/bin/false", "/nowhere/python"])
def test_a_sandbox_that_cannot_start_says_nothing_about_the_program(monkeypatch, python):
    monkeypatch.setattr(sys, "_base_executable", python)
    with pytest.raises(SandboxError, match="start"):
        run([DOUBLE], TESTS, ["f"])


@pytest.mark.usefixtures("namespaces")
def test_each_run_is_empty_again():
    leave = "import os\nopen('left', 'w').write('x')\nprint(os.listdir('.'))\n" + DOUBLE
    assert [tried(leave).said for _ in range(2)] == ["['left']\n"] * 2


def test_several_threads_run_at_once():
    def one(n):
        return run([f"def f(x):\n    return x + {n}"], [f"assert f(1) == {n + 1}"], ["f"]).status

    before = threading.active_count(), len(list(Path("/proc/self/fd").iterdir()))
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(one, range(24))) == ["passed"] * 24
    assert (threading.active_count(), len(list(Path("/proc/self/fd").iterdir()))) == before


def test_it_says_what_it_protects_from():
    assert protection() == PROTECTION[kind()]
    for words in PROTECTION.values():
        assert words.count(".") == 1
    assert "network" in PROTECTION["limits"]


def test_the_time_of_a_process_can_be_told():
    while time.process_time() < 0.2:
        pass
    computed, waited = _times(os.getpid())
    assert computed > 0.1
    assert waited >= 0
