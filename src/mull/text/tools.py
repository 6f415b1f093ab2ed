"""Calls of tools in what a model says: told apart from its text while it comes, in the forms that models were taught.

Which form, the chat template shows: it writes earlier calls in it. What follows a model's thoughts is read by a parser
that sees each character once and holds back only what may belong to a call, up to LONGEST characters. A call that is
damaged, unfinished or names no tool that was offered stays text, whole; the search goes on where the damage was seen.
So what comes out does not depend on how the text was cut, and takes time in proportion to it.

Blanks around calls are not text: an answer that only calls has no content. A missing end mark is forgiven at the end of
the answer where the arguments are one JSON object, which is whole or not; parameters in tags might lack the last.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from mull.types import UserError

if TYPE_CHECKING:
    from mull.text.chat import Chat

LONGEST = 1 << 18  # characters of a call
DEEPEST = 64  # arrays and objects within one another, in arguments

T = TypeVar("T")
Wait = Generator[None, None, T]  # yields where it needs more text
Known = Mapping[str, Mapping[str, Any]]  # the parameters' schemas of the tools that were offered, by name


@dataclass(frozen=True)
class Call:
    """`arguments` is a JSON object as text."""

    name: str
    arguments: str


class _Tape:
    """Text as it comes. `taken` is what an attempt at a call has read so far, which is text again if it fails."""

    BARE = re.compile(r"[ \t\r\n0-9+\-.eE,:a-z]*")  # between strings and brackets
    QUOTED = re.compile(r'[^"\\\x00-\x1f]*')
    WORD = re.compile(r"[^\s<>{}\[\]\"'=]*")
    BLANK = re.compile(r"\s*")

    def __init__(self) -> None:
        self.rest, self.at, self.ended = "", 0, False
        self.taken: list[str] = []
        self.room = 0  # characters that this attempt may still read

    def feed(self, text: str) -> None:
        self.rest, self.at = self.rest[self.at :] + text, 0

    def begin(self) -> None:
        self.taken, self.room = [], LONGEST

    def take(self, end: int) -> str:
        part = self.rest[self.at : end]
        self.taken.append(part)
        self.room -= len(part)
        self.at = end
        return part

    def run(self, pattern: re.Pattern[str]) -> Wait[str]:
        """All that is of one kind; the pattern is one class of characters, repeated."""
        parts = []
        while True:
            found = pattern.match(self.rest, self.at, self.at + max(self.room, 0))
            assert found is not None
            parts.append(self.take(found.end()))
            if self.at < len(self.rest) or self.ended or self.room <= 0:
                return "".join(parts)
            yield

    def blanks(self) -> Wait[str]:
        return (yield from self.run(self.BLANK))

    def peek(self) -> Wait[str]:
        """The next character, "" at the end."""
        while self.at == len(self.rest) and not self.ended:
            yield
        return self.rest[self.at : self.at + 1]

    def literal(self, text: str, forgiven: bool = False) -> Wait[bool]:
        """Whether exactly that comes next; `forgiven` if the answer ends before it has."""
        while not self.ended and len(self.rest) - self.at < len(text):
            if not text.startswith(self.rest[self.at :]):
                return False
            yield
        here = self.rest[self.at : self.at + len(text)]
        if here == text or (forgiven and self.ended and text.startswith(here)):
            self.take(self.at + len(here))
            return True
        return False

    def word(self, mark: str) -> Wait[str | None]:
        """A name with the mark behind it, which is taken too."""
        yield from self.blanks()
        name = yield from self.run(self.WORD)
        yield from self.blanks()
        return name if (yield from self.literal(mark)) else None

    def until(self, mark: str) -> Wait[str | None]:
        """What is before the mark, which is taken too."""
        parts = []
        while True:
            room = max(self.room, 0)
            found = self.rest.find(mark, self.at, self.at + room + len(mark))
            if found >= 0:
                parts.append(self.take(found))
                self.take(found + len(mark))
                return "".join(parts)
            safe = len(self.rest) - self.at - (0 if self.ended else len(mark) - 1)
            parts.append(self.take(self.at + max(0, min(room, safe))))
            if self.room <= 0 or self.ended:
                return None
            yield

    def object(self) -> Wait[str | None]:
        """A JSON object, or at least what has an object's brackets and strings; None where it cannot be one."""
        if (yield from self.peek()) != "{":
            return None
        parts, depth = [], 0
        while True:
            parts.append((yield from self.run(self.BARE)))
            sign = yield from self.peek()
            if not sign or sign not in '{}[]"' or self.room <= 0:
                return None
            parts.append(self.take(self.at + 1))
            if sign == '"':
                if not (yield from self._string(parts)):
                    return None
                continue
            depth += 1 if sign in "{[" else -1
            if depth > DEEPEST:
                return None
            if depth == 0:
                return "".join(parts)

    def _string(self, parts: list[str]) -> Wait[bool]:
        while True:
            parts.append((yield from self.run(self.QUOTED)))
            sign = yield from self.peek()
            if not sign or sign not in '"\\' or self.room <= 0:
                return False
            parts.append(self.take(self.at + 1))
            if sign == '"':
                return True
            if not (yield from self.peek()):
                return False
            parts.append(self.take(self.at + 1))


# Arguments


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON")


def _float(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _no_number(text)


def _read(text: str) -> Any:
    """Raises ValueError or RecursionError for what is not JSON."""
    return json.loads(text, parse_constant=_no_number, parse_float=_float)


def _written(arguments: Mapping[str, Any]) -> str:
    text = json.dumps(arguments, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, escaped: no text that could be sent
        return json.dumps(arguments)
    return text


def _call(name: object, arguments: Any, known: Known) -> Call | None:
    if isinstance(arguments, str):
        arguments = _value(arguments, {})
    if not isinstance(name, str) or name not in known or not isinstance(arguments, Mapping):
        return None
    return Call(name, _written(arguments))


def _named(text: str, known: Known) -> Call | None:
    """{"name": ..., "arguments": {...}}; Llama says parameters."""
    try:
        raw = _read(text)
    except (ValueError, RecursionError):
        return None
    given = raw.get("arguments", raw.get("parameters", {} if len(raw) == 1 else None))
    return _call(raw.get("name"), given, known)


TYPES: dict[str, tuple[type, ...]] = {
    "integer": (int,), "number": (int, float), "boolean": (bool,), "array": (list,), "object": (dict,),
    "null": (type(None),),
}  # fmt: skip
PYTHON = {"True": True, "False": False, "None": None}


def _value(text: str, schema: Mapping[str, Any]) -> Any:
    """What a parameter written as bare text is: what its schema says, where the text can be read so."""
    given = schema.get("type")
    listed = given if isinstance(given, list) else [given]
    kinds = [kind for kind in listed if isinstance(kind, str)]
    choices = schema.get("enum")
    if kinds == ["string"] or (isinstance(choices, list) and text in choices):
        return text
    try:
        value = PYTHON[text] if text in PYTHON else _read(text)
    except (ValueError, RecursionError):
        return text
    if kinds and not any(type(value) in TYPES.get(kind, ()) for kind in kinds):
        return text
    return value


def _tagged(name: str, parts: Sequence[tuple[str, str]], known: Known) -> Call | None:
    """Parameters that were written one by one, as bare text."""
    if name not in known:
        return None
    properties = known[name].get("properties")
    schemas = properties if isinstance(properties, Mapping) else {}
    given = {key: _value(text, s if isinstance(s := schemas.get(key), Mapping) else {}) for key, text in parts}
    return _call(name, given, known)


# Forms


def _hermes(tape: _Tape, known: Known) -> Wait[Call | None]:
    if not (yield from tape.literal("<tool_call>")):
        return None
    yield from tape.blanks()
    body = yield from tape.object()
    if body is None:
        return None
    yield from tape.blanks()
    closed = yield from tape.literal("</tool_call>", forgiven=True)
    return _named(body, known) if closed else None


def _llama(tape: _Tape, known: Known) -> Wait[Call | None]:
    yield from tape.blanks()
    yield from tape.literal("<|python_tag|>")
    yield from tape.literal(";")
    yield from tape.blanks()
    body = yield from tape.object()
    return None if body is None else _named(body, known)


def _coder(tape: _Tape, known: Known) -> Wait[Call | None]:
    yield from tape.literal("<tool_call>")
    yield from tape.blanks()
    if not (yield from tape.literal("<function=")):
        return None
    name = yield from tape.word(">")
    if name is None:
        return None
    parts = []
    while True:
        yield from tape.blanks()
        if (yield from tape.literal("</function>")):
            return _tagged(name, parts, known)
        if not (yield from tape.literal("<parameter=")):
            return None
        key = yield from tape.word(">")
        value = None if key is None else (yield from tape.until("</parameter>"))
        if key is None or value is None:
            return None
        parts.append((key, value.removeprefix("\n").removesuffix("\n")))


def _glm(tape: _Tape, known: Known) -> Wait[Call | None]:
    if not (yield from tape.literal("<tool_call>")):
        return None
    yield from tape.blanks()
    name = yield from tape.run(tape.WORD)
    parts = []
    while True:
        yield from tape.blanks()
        if (yield from tape.literal("</tool_call>")):
            return _tagged(name, parts, known)
        if not (yield from tape.literal("<arg_key>")):
            return None
        key = yield from tape.word("</arg_key>")
        yield from tape.blanks()
        value = None
        if key is not None and (yield from tape.literal("<arg_value>")):
            value = yield from tape.until("</arg_value>")
        if key is None or value is None:
            return None
        parts.append((key, value))


def _deepseek(tape: _Tape, known: Known) -> Wait[Call | None]:
    """R1's and V3's calls have a type before the mark and a block of code behind the name, V3.1's name and object."""
    yield from tape.literal("<｜tool▁calls▁begin｜>")
    yield from tape.blanks()
    if not (yield from tape.literal("<｜tool▁call▁begin｜>")):
        return None
    name = yield from tape.word("<｜tool▁sep｜>")
    if name is None:
        return None
    yield from tape.blanks()
    fenced = False
    if (yield from tape.peek()) != "{":
        name = yield from tape.run(tape.WORD)
        yield from tape.blanks()
        fenced = yield from tape.literal("```json")
        yield from tape.blanks()
    body = yield from tape.object()
    if body is None:
        return None
    yield from tape.blanks()
    if fenced and not (yield from tape.literal("```", forgiven=True)):
        return None
    yield from tape.blanks()
    if not (yield from tape.literal("<｜tool▁call▁end｜>", forgiven=True)):
        return None
    try:
        return _call(name, _read(body), known)
    except (ValueError, RecursionError):
        return None


@dataclass(frozen=True)
class Form:
    """How calls are written. `signs` are texts by which a template that writes them is known."""

    signs: tuple[str, ...]
    opens: tuple[str, ...]  # what a call may begin with
    read: Callable[[_Tape, Known], Wait[Call | None]]
    example: str  # for a model whose template does not describe tools
    tail: str = ""  # what may follow a call, and is no text
    bare: bool = False  # a call may also begin without a mark, at an answer's beginning and behind another


FORMS = {
    "deepseek": Form(
        ("<｜tool▁call▁begin｜>",), ("<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>"), _deepseek,
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>NAME\n```json\nARGUMENTS\n```"
        "<｜tool▁call▁end｜><｜tool▁calls▁end｜>", "<｜tool▁calls▁end｜>",
    ),
    "glm": Form(
        ("<arg_key>",), ("<tool_call>",), _glm,
        "<tool_call>NAME\n<arg_key>KEY</arg_key>\n<arg_value>VALUE</arg_value>\n</tool_call>",
    ),
    "qwen3-coder": Form(
        ("<function=",), ("<tool_call>", "<function="), _coder,
        "<tool_call>\n<function=NAME>\n<parameter=KEY>\nVALUE\n</parameter>\n</function>\n</tool_call>", "</tool_call>",
    ),
    "hermes": Form(
        ("<tool_call>",), ("<tool_call>",), _hermes,
        '<tool_call>\n{"name": NAME, "arguments": ARGUMENTS}\n</tool_call>',
    ),
    "llama": Form(
        ("<|python_tag|>", '"parameters": dictionary'), ("<|python_tag|>",), _llama,
        '{"name": NAME, "parameters": ARGUMENTS}', bare=True,
    ),
}  # fmt: skip


def form_of(chat: Chat) -> Form:
    """The one in which the chat's template writes calls; Hermes's where it writes none."""
    template = chat.tool_template or chat.template or ""
    forms = (form for form in FORMS.values() if any(sign in template for sign in form.signs))
    return next(forms, FORMS["hermes"])


def known_of(tools: Sequence[Mapping[str, Any]]) -> Known:
    """Raises UserError for a tool that is none."""
    known: dict[str, Mapping[str, Any]] = {}
    for tool in tools:
        function = tool.get("function", tool) if isinstance(tool, Mapping) else None
        name = function.get("name") if isinstance(function, Mapping) else None
        if not isinstance(name, str) or not name or name in known:
            raise UserError(
                'A tool is {"type": "function", "function": {"name": ..., "description": ..., "parameters": ...}}, '
                f"each with a name of its own; this is none: {str(tool)[:200]}."
            )
        parameters = function.get("parameters") if isinstance(function, Mapping) else None
        known[name] = parameters if isinstance(parameters, Mapping) else {}
    return known


class ToolParser:
    """Takes calls out of an answer's text as it arrives, cut anywhere. Feed pieces; flush at the end."""

    def __init__(self, form: Form, known: Known):
        self.form, self.known, self.tape = form, known, _Tape()
        self._opening = re.compile("|".join(map(re.escape, form.opens)))
        self._told: list[str | Call] = []
        self._blanks: list[str] = []  # that may be before a call
        self._spoke = self._called = False  # text so far; a call since the newest text
        self._work = self._reading()
        next(self._work)

    def feed(self, text: str) -> list[str | Call]:
        self.tape.feed(text)
        return self._go_on()

    def flush(self) -> list[str | Call]:
        self.tape.ended = True
        told = self._go_on()
        rest = "".join(self._blanks)
        self._blanks = []
        return told if self._called or not rest else [*told, rest]

    def _go_on(self) -> list[str | Call]:
        self._told = []
        next(self._work, None)
        return self._told

    def _say(self, text: str) -> None:
        kept = text.rstrip()
        if not kept:
            self._blanks.append(text)
            return
        if self._called and not self._spoke:
            self._told.append(kept.lstrip())
        else:
            self._told.append("".join([*self._blanks, kept]))
        self._blanks, self._spoke, self._called = [text[len(kept) :]], True, False

    def _reading(self) -> Wait[None]:
        tape = self.tape
        yield
        if self.form.bare:
            yield from self._attempt()
        while not (tape.ended and tape.at == len(tape.rest)):
            found = self._opening.search(tape.rest, tape.at)
            if found is not None:
                self._pass(found.start())
                yield from self._attempt()
                continue
            self._pass(len(tape.rest) if tape.ended else len(tape.rest) - self._unsure())
            if not tape.ended:
                yield

    def _pass(self, end: int) -> None:
        if end > self.tape.at:
            self._say(self.tape.rest[self.tape.at : end])
            self.tape.at = end

    def _unsure(self) -> int:
        """How many of the last characters may be a call's beginning."""
        opens = self.form.opens
        tail = self.tape.rest[max(self.tape.at, len(self.tape.rest) - max(map(len, opens)) + 1) :]
        return next((len(tail) - at for at in range(len(tail)) if any(o.startswith(tail[at:]) for o in opens)), 0)

    def _attempt(self) -> Wait[None]:
        """Read a call where one may begin; and others behind it, where they need no mark."""
        while True:
            self.tape.begin()
            call = yield from self.form.read(self.tape, self.known)
            if call is None:
                break
            self._told.append(call)
            self._called = True
            self.tape.begin()
            if self.form.tail:
                yield from self.tape.blanks()
                if (yield from self.tape.literal(self.form.tail)):
                    return
                break
            if not self.form.bare:
                return
        if text := "".join(self.tape.taken):
            self._say(text)


class _Silent(ToolParser):
    """For an answer to which no tools were offered: all of it is text."""

    def __init__(self) -> None:
        super().__init__(FORMS["hermes"], {})

    def feed(self, text: str) -> list[str | Call]:
        return [text] if text else []

    def flush(self) -> list[str | Call]:
        return []


def parser_of(chat: Chat, tools: Sequence[Mapping[str, Any]]) -> ToolParser:
    """For one answer. Without tools all of it is text. Raises UserError for a tool that is none."""
    return ToolParser(form_of(chat), known_of(tools)) if tools else _Silent()


__all__ = ["FORMS", "Call", "Form", "ToolParser", "form_of", "known_of", "parser_of"]
