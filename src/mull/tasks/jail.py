"""What runs inside the sandbox: the answer's process, and the judge's. Standard library only; started by sandbox.py.

The answer's code runs in one process, the tests in another, and only plain values cross between them: numbers, texts,
containers of them. So nothing that the answer does to its own process (patching builtins, exiting, reading frames,
writing to the socket by itself) is more than an answer to "what does f(3) return?", and the judge compares that with
ints and lists of its own. An object of another type crosses as a reference, which can be handed back or called, but
never compared.

Both are started with a bare interpreter: no site-packages, and no import that costs more than it gives.
"""

# ruff: noqa: S102 - running code is what this is for

from __future__ import annotations

import builtins
import os
import sys

TYPE_CHECKING = False  # typing costs as much time as all else here
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

CHANGEABLE = (list, dict, set, bytearray)  # arguments that show what a function did to them
LARGEST = 8 << 20  # bytes of one message
DEEPEST = 200  # levels of containers in one
WORD = 300  # characters of an error that are told


# ---- plain values as bytes


class UnplainError(Exception):
    """Something that is no plain value, or no message of ours."""


class GoneError(BaseException):
    """The other process has ended. No Exception: a test that expects one of the program is not to take it for that."""


def dump(value: Any, refer: Callable[[Any], int] | None = None) -> bytes:
    """A value as bytes. `refer` numbers what is not plain. Raises UnplainError for what is too large or too deep.

    A subclass of a plain type (a Counter, a named tuple) becomes the plain type itself, an iterator what is left of it.
    """
    out = bytearray()
    _dump(value, out, refer, DEEPEST)
    return bytes(out)


def _dump(value: Any, out: bytearray, refer: Callable[[Any], int] | None, depth: int) -> None:
    if not depth or len(out) > LARGEST:
        raise UnplainError("too deep" if not depth else "too large")
    kind = type(value)
    if value is None or kind is bool:
        out += {None: b"n", True: b"t", False: b"f"}[value]
    elif issubclass(kind, int):
        out += b"i%x;" % int.__index__(value) if int.__index__(value) >= 0 else b"i-%x;" % -int.__index__(value)
    elif issubclass(kind, float):
        out += b"d" + float.hex(value).encode() + b";"
    elif issubclass(kind, complex):
        out += b"c" + complex.__repr__(value).encode() + b";"
    elif issubclass(kind, str):
        _sized(b"s", str.__str__(value).encode("utf-8", "surrogatepass"), out)
    elif issubclass(kind, (bytes, bytearray)):
        _sized(b"y" if issubclass(kind, bytes) else b"Y", bytes(memoryview(value)), out)
    elif issubclass(kind, dict):
        _many(b"m", [part for pair in dict.items(value) for part in pair], out, refer, depth)
    elif kind is range:
        _many(b"g", [value.start, value.stop, value.step], out, refer, depth)
    elif mark := next((mark for mark, plain in CONTAINERS.items() if issubclass(kind, plain)), None):
        _many(mark, list(CONTAINERS[mark].__iter__(value)), out, refer, depth)
    else:
        _odd(value, kind, out, refer, depth)


CONTAINERS: dict[bytes, type] = {b"l": list, b"u": tuple, b"e": set, b"z": frozenset}
TYPES = {kind.__name__: kind for kind in (bool, int, float, complex, str, bytes, list, tuple, dict, set, frozenset)}


def _odd(value: Any, kind: type, out: bytearray, refer: Callable[[Any], int] | None, depth: int) -> None:
    """What is not a builtin container: known number types as text, iterators drained, anything else a reference."""
    name = f"{kind.__module__}.{kind.__qualname__}"
    if kind is type and value in TYPES.values():
        _many(b"T", [value.__name__], out, refer, depth)
    elif name in ("decimal.Decimal", "fractions.Fraction"):
        _many(b"N", [name, str(value)], out, refer, depth)
    elif name in ("builtins.dict_keys", "builtins.dict_items"):
        _many(b"e", list(value), out, refer, depth)
    elif name == "builtins.dict_values":
        _many(b"l", list(value), out, refer, depth)
    elif hasattr(kind, "__next__"):
        drained = []
        for part in value:
            drained.append(part)
            if len(drained) > LARGEST // 2:
                raise UnplainError("too large")
        _many(b"I", drained, out, refer, depth)
    elif refer is None:
        raise UnplainError(f"a {kind.__name__} cannot cross")
    else:
        _many(b"r", [refer(value), kind.__name__], out, refer, depth)


def _sized(mark: bytes, content: bytes, out: bytearray) -> None:
    if len(content) > LARGEST:
        raise UnplainError("too large")
    out += mark + b"%x;" % len(content) + content


def _many(mark: bytes, parts: list[Any], out: bytearray, refer: Callable[[Any], int] | None, depth: int) -> None:
    out += mark + b"%x;" % len(parts)
    for part in parts:
        _dump(part, out, refer, depth - 1)


def load(data: bytes, find: Callable[[int, str], Any] | None = None) -> Any:
    """What `dump` wrote; `find` gives what a reference stands for. Raises UnplainError for anything else."""
    try:
        value, end = _load(data, 0, find, DEEPEST)
    except (ValueError, TypeError, IndexError, KeyError, OverflowError, ArithmeticError) as error:
        raise UnplainError(f"not a message ({type(error).__name__})") from None
    if end != len(data):
        raise UnplainError("not a message")
    return value


def _load(data: bytes, at: int, find: Callable[[int, str], Any] | None, depth: int) -> tuple[Any, int]:
    if not depth:
        raise UnplainError("too deep")
    mark = data[at : at + 1]
    at += 1
    if mark in SINGLES:
        return SINGLES[mark], at
    end = data.index(b";", at)
    head, at = data[at:end].decode("ascii"), end + 1
    if mark == b"i":
        return int(head, 16), at
    if mark == b"d":
        return float.fromhex(head), at
    if mark == b"c":
        return complex(head), at
    count = int(head, 16)
    if not 0 <= count <= len(data) - at:
        raise UnplainError("not a message")
    if mark in (b"s", b"y", b"Y"):
        content = data[at : at + count]
        make = {b"s": lambda: content.decode("utf-8", "surrogatepass"), b"y": lambda: content}
        return make.get(mark, lambda: bytearray(content))(), at + count
    parts = []
    for _ in range(count):
        part, at = _load(data, at, find, depth - 1)
        parts.append(part)
    return _made(mark, parts, find), at


SINGLES: dict[bytes, Any] = {b"n": None, b"t": True, b"f": False}


def _made(mark: bytes, parts: list[Any], find: Callable[[int, str], Any] | None) -> Any:
    if mark in CONTAINERS:
        return parts if mark == b"l" else CONTAINERS[mark](parts)
    if mark == b"m":
        return dict(zip(parts[::2], parts[1::2], strict=True))
    if mark == b"g":
        return range(*parts)
    if mark == b"I":
        return iter(parts)
    if mark == b"N":
        return _number(*parts)
    if mark == b"T":
        return TYPES[parts[0]]
    if mark == b"r" and find is not None:
        number, kind = parts
        return find(number, kind)
    raise UnplainError("not a message")


def _number(name: str, text: str) -> Any:
    if len(text) > 1000:
        raise UnplainError("too large")
    if name == "decimal.Decimal":
        from decimal import Decimal

        return Decimal(text)
    from fractions import Fraction

    return Fraction(text)


class Link:
    """One end of the socket between the two processes: messages, each with its length before it."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def send(self, data: bytes) -> None:
        """Raises GoneError where there is no other end."""
        view = memoryview(len(data).to_bytes(4, "big") + data)
        while view:
            try:
                view = view[os.write(self.fd, view) :]
            except ConnectionError:
                raise GoneError from None

    def receive(self) -> bytes:
        """Raises GoneError where there is no other end, UnplainError where it wants to say too much."""
        size = int.from_bytes(self._exactly(4), "big")
        if size > LARGEST * 2:
            raise UnplainError("too large")
        return self._exactly(size)

    def _exactly(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            try:
                piece = os.read(self.fd, min(size - len(data), 1 << 16))
            except ConnectionError:
                piece = b""
            if not piece:
                raise GoneError
            data += piece
        return bytes(data)


# ---- the answer's process


class Answer:
    """Runs the answer's code, and then answers calls to what it defines until the judge is gone."""

    def __init__(self, link: Link) -> None:
        self.link, self.things = link, []
        self.module = type(sys)("answer")

    def refer(self, thing: Any) -> int:
        self.things.append(thing)
        return len(self.things) - 1

    def find(self, number: int, kind: str) -> Any:
        return self.things[number]

    def serve(self) -> None:
        self.link.send(dump(("hello",)))
        sources = load(self.link.receive())
        self.reply(lambda: self.start(sources))
        while True:
            try:
                asked, *rest = load(self.link.receive(), self.find)
            except GoneError:
                return
            self.reply(lambda: {"get": self.get, "call": self.call}[asked](*rest))  # noqa: B023

    def reply(self, work: Callable[[], tuple[Any, ...]]) -> None:
        try:
            message = dump(work(), self.refer)
        except BaseException as error:  # the answer may raise anything, SystemExit too
            message = dump(("raised", *told(error)))
        self.link.send(message)

    def start(self, sources: Iterable[str]) -> tuple[Any, ...]:
        sys.modules["answer"] = self.module
        for source in sources:
            if "random" in source:  # a verdict is the same each time
                import random

                random.seed(0)
            try:
                code = compile(source, "<answer>", "exec", dont_inherit=True)
            except Exception as error:
                return ("unreadable", *told(error))
            exec(code, self.module.__dict__)
        return ("ready",)

    def get(self, name: str) -> tuple[Any, ...]:
        if name not in self.module.__dict__:
            return ("missing",)
        return ("value", self.module.__dict__[name], ())

    def call(self, number: int, args: list[Any], named: dict[str, Any]) -> tuple[Any, ...]:
        """("value", what came back, the arguments that were changed by their places)."""
        before = {i: dump(arg, lambda _: 0) for i, arg in enumerate(args) if type(arg) in CHANGEABLE}
        value = self.things[number](*args, **named)
        changed = tuple((i, args[i]) for i, old in before.items() if dump(args[i], lambda _: 0) != old)
        return ("value", value, changed)


def told(error: BaseException) -> tuple[str, str, str]:
    """(the builtin exception it is, its own name, what it says)"""
    known = next((kind.__name__ for kind in type(error).__mro__ if kind.__module__ == "builtins"), "Exception")
    try:
        said = str(error)[:WORD]
    except BaseException:
        said = ""
    return known, str(type(error).__name__)[:WORD], said


# ---- the judge's process


class Thing:
    """Something of the answer's that is no plain value. It can be handed back and called; comparing it is an error."""

    def __init__(self, judge: Judge, number: int, kind: str) -> None:
        self._judge, self._number, self._kind = judge, number, kind

    def __call__(self, *args: Any, **named: Any) -> Any:
        return self._judge.call(self._number, args, named)

    def _refuse(self, *_: Any) -> Any:
        raise TypeError(f"the answer gave a {self._kind}, which is not a plain value")

    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __bool__ = _refuse
    __len__ = __iter__ = __contains__ = __getitem__ = _refuse
    __hash__ = None  # pyright: ignore[reportAssignmentType]


class Judge:
    """Runs the tests, in which the names of the answer stand for calls to its process."""

    def __init__(self, link: Link) -> None:
        self.link = link

    def refer(self, thing: Any) -> int:
        if type(thing) is not Thing:
            raise UnplainError(f"a {type(thing).__name__} cannot cross")
        return thing._number

    def find(self, number: int, kind: str) -> Thing:
        return Thing(self, number, kind)

    def ask(self, *message: Any) -> tuple[Any, ...]:
        self.link.send(dump(message, self.refer))
        answer = load(self.link.receive(), self.find)
        if type(answer) is not tuple or not answer:
            raise UnplainError("not a message")
        return answer

    def call(self, number: int, args: tuple[Any, ...], named: dict[str, Any]) -> Any:
        said, *rest = self.ask("call", number, list(args), named)
        if said != "value":
            raise _rebuilt(*rest)
        value, changed = rest
        for place, new in changed:
            _change(args[place], new)
        return value

    def verdict(self, program: list[str], setup: list[str], tests: list[str], names: list[str]) -> tuple[str, str]:
        """("passed" | "failed" | "unreadable" | "ended" | "unstarted", why)"""
        try:
            self.link.receive()
        except GoneError:
            return "unstarted", ""
        try:
            self.link.send(dump(program))
            said, *rest = load(self.link.receive(), self.find)
            if said != "ready":
                return "unreadable" if said == "unreadable" else "failed", "{1}: {2}".format(*rest)
            return self.examine(setup, tests, names)
        except GoneError:
            return "ended", "the program ended before it was done"
        except (UnplainError, ValueError, TypeError, IndexError) as error:
            return "failed", f"the program's answer cannot be read: {error}"[:WORD]

    def examine(self, setup: list[str], tests: list[str], names: list[str]) -> tuple[str, str]:
        space: dict[str, Any] = {"__name__": "tests"}
        for source in setup:
            exec(compile(source, "<setup>", "exec", dont_inherit=True), space)
        for name in names:
            said, *rest = self.ask("get", name)
            if said == "value":
                space[name] = rest[0]
        for number, source in enumerate(tests, 1):
            try:
                exec(compile(source, "<test>", "exec", dont_inherit=True), space)
            except GoneError:
                raise
            except BaseException as error:
                return "failed", f"test {number} of {len(tests)}: {_why(error, source)}"
        return "passed", ""


def _change(old: Any, new: Any) -> None:
    """Make an argument what the answer made of it."""
    if type(old) is not type(new) or type(old) not in CHANGEABLE:
        raise UnplainError("an argument changed its type")
    old.clear()
    old.extend(new) if isinstance(old, (list, bytearray)) else old.update(new)


def _rebuilt(known: str, name: str, said: str) -> Exception:
    """The answer's exception, as the builtin one that it is or descends from; not one that would end a test's loop."""
    kind = getattr(builtins, str(known), None)
    if isinstance(kind, type) and issubclass(kind, Exception) and kind not in (StopIteration, StopAsyncIteration):
        try:
            error = kind(said)
        except TypeError:  # one that wants more than words
            error = Exception(said)
    else:
        error = Exception(said)
    error.raised = f"the program raised {name}: {said}"  # pyright: ignore[reportAttributeAccessIssue]
    return error


def _why(error: BaseException, source: str) -> str:
    line, trace = 0, error.__traceback__
    while trace is not None:
        line = trace.tb_lineno if trace.tb_frame.f_code.co_filename == "<test>" else line
        trace = trace.tb_next
    lines = source.splitlines()
    words = lines[line - 1].strip() if 0 < line <= len(lines) else ""
    raised = getattr(error, "raised", "assertion failed" if isinstance(error, AssertionError) else "")
    return f"{raised or f'{type(error).__name__}: {error}'} in {words[:WORD]}"[: 2 * WORD]


# ---- the way in


def main(role: str, fd: int) -> None:
    """`fd` is the socket's end. The judge is told what to do on standard input and gives its verdict on the output."""
    if role == "answer":
        link = Link(os.dup(fd))
        os.close(0)
        sys.stdin = None
        Answer(link).serve()
        os._exit(0)
    out = os.dup(1)
    os.write(out, b"+")
    spec = Link(0).receive()
    for number in (0, 1, 2):
        os.close(number)
    sys.stdin = sys.stdout = sys.stderr = None
    said = Judge(Link(fd)).verdict(*load(spec))
    Link(out).send(dump(said))
    os._exit(0)
