"""Jinja for templates that strangers wrote: no way out of it, and an end to it.

Jinja's own sandbox keeps a template from the interpreter's insides, not from looping for ever or filling the memory.
Here all that repeats is counted, and all that grows is measured before it is made:

- The parsed template is rewritten: the body of a loop or macro begins by counting itself; lists and dicts written in
  the template, slices and `~` pass through a measure.
- Operators, methods and filters that make much of little are asked beforehand how much.
- Only methods and filters are reachable whose work is in proportion to what they are given.

So every single operation is short, and after each there is a look at the clock. Neither threads nor signals nor
processes are needed: it works in any thread of a server.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import wraps
from types import BuiltinFunctionType, FunctionType, GeneratorType, MethodType
from typing import Any

import jinja2
from jinja2 import nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.filters import do_indent, make_attrgetter
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext, Macro, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

SECONDS = 1.0
ROOM = 20_000_000  # characters that one rendering may make in all, besides a multiple of what it is given
PER_CHARACTER = 32
ITEM = 16  # characters that an item of a list weighs, as an object
BITS = 4096  # of a whole number

FILTERS = (
    "abs", "capitalize", "count", "d", "default", "dictsort", "e", "escape", "first", "float", "int", "items", "last",
    "length", "list", "lower", "map", "max", "min", "reject", "rejectattr", "reverse", "safe", "select", "selectattr",
    "sort", "title", "trim", "unique", "upper",
)  # fmt: skip
STRING = frozenset({
    "capitalize", "casefold", "center", "count", "endswith", "find", "index", "isalnum", "isalpha",
    "isascii", "isdecimal", "isdigit", "isidentifier", "islower", "isnumeric", "isprintable", "isspace", "istitle",
    "isupper", "join", "ljust", "lower", "lstrip", "partition", "removeprefix", "removesuffix", "replace", "rfind",
    "rindex", "rjust", "rpartition", "rsplit", "rstrip", "split", "splitlines", "startswith", "strip", "swapcase",
    "title", "upper", "zfill",
})  # fmt: skip
METHODS: tuple[tuple[type, frozenset[str]], ...] = (
    (str, STRING),
    (Mapping, frozenset({"copy", "get", "items", "keys", "values"})),
    (list, frozenset({"copy", "count", "index"})),
    (tuple, frozenset({"count", "index"})),
)
CODE = (FunctionType, MethodType, BuiltinFunctionType, GeneratorType)
WIDE = re.compile(r"\*|\d{3}")  # in a % format: a width or precision of hundreds, or given as an argument


class Exhausted(Exception):  # noqa: N818 - said to the user as a sentence, not as an error's name
    """A template used more than a rendering may. Nothing in a template can catch it."""


class Budget:
    """What one rendering may use: `size` characters made in all, and SECONDS of time.

    Half of them are those of the clock on the wall, which is quick to ask, and the rest the thread's own: a machine
    that is busy with other work is no endless template.
    """

    def __init__(self, size: int):
        self.left, self.half, self.end = size, time.monotonic() + SECONDS / 2, math.inf

    def spend(self, size: int) -> None:
        if size > 0:  # or a width below nothing would be a gain
            self.left -= size
        if self.left < 0:
            raise Exhausted("it makes more text than a conversation could need")
        if time.monotonic() > self.half:
            now = time.thread_time()
            self.end = min(self.end, now + SECONDS / 2)
            if now > self.end:
                raise Exhausted(f"it takes longer than {SECONDS:g} s")

    def measure(self, value: Any) -> int:
        """Size of `value` written out, what is shared counted as often as it is seen; a walk in bounded steps.

        Raises SecurityError for functions within it: written out, they say where they lie in memory.
        """
        if isinstance(value, str):
            return len(value)
        size, seen, rest = 0, 0, [value]
        while rest:
            item = rest.pop()
            seen += 1
            if isinstance(item, str | bytes):
                size += len(item)
            elif isinstance(item, int):
                size += item.bit_length() // 3
            elif isinstance(item, list | tuple | dict | set | frozenset):
                size += ITEM * len(item)
                if size <= self.left:
                    rest.extend(item)
                    rest.extend(item.values() if isinstance(item, dict) else ())
            elif isinstance(item, CODE) and item is not value:
                raise SecurityError("it puts a function among its data")
            if size > self.left or seen % 4096 == 0:
                self.spend(size if size > self.left else 0)
        self.spend(seen)
        return size


class Sandbox(ImmutableSandboxedEnvironment):
    """An environment for one template. `budget` is that of the rendering under way: one at a time."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation], finalize=_written,
            optimized=False,  # or constants would be computed, unmeasured, while it compiles
        )  # fmt: skip
        self.budget = Budget(0)
        own = {
            "join": self._join, "replace": self._replace, "indent": self._indent, "tojson": self._tojson,
            **{name: self.filters[name] for name in FILTERS},
        }  # fmt: skip
        self.filters = {name: self._measured(name, function) for name, function in own.items()} | {
            " turn": self._turn, " made": pass_context(lambda _, value: self._made(value)),
            " cut": pass_context(lambda _, value: self._cut(value)),
            " timed": pass_context(lambda _, value: self._timed(value)),
            " glued": pass_context(lambda _, parts: self._made("".join(map(self.text, parts)))),
            "string": self.text,
        }  # fmt: skip
        self.globals = {
            "range": self.globals["range"], "dict": _make_dict,
            "namespace": _Names, "raise_exception": _refuse, "strftime_now": _now,
        }  # fmt: skip

    def compiled(self, source: str) -> jinja2.Template:
        """Raises whatever Jinja and Python raise for what they cannot parse."""
        return self.from_string(_Guard(self).visit(self.parse(source)))

    # What templates reach: attributes, calls, operators

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        for kind, names in METHODS:
            if isinstance(obj, kind):
                return attr in names
        ours = isinstance(obj, LoopContext | Macro | Namespace | Undefined)
        return ours and super().is_safe_attribute(obj, attr, value)

    def call_filter(self, name: str, *args: Any, **named: Any) -> Any:
        """A filter that is called by its name, as `map` does; the guard's own are not for templates."""
        return super().call_filter(name.strip(), *args, **named)

    def call_test(self, name: str, *args: Any, **named: Any) -> Any:
        return self._timed(super().call_test(name, *args, **named))

    def wrap_str_format(self, value: Any) -> None:
        """str.format is no attribute that can be reached."""

    def unsafe_undefined(self, obj: Any, attribute: str) -> Undefined:
        raise SecurityError(f"it reaches for {attribute!r} of a {type(obj).__name__}")

    def call(__self, __context: Context, __obj: Any, *args: Any, **named: Any) -> Any:  # noqa: N805
        owner = getattr(__obj, "__self__", None)
        if isinstance(owner, str):
            args = __self._grown(owner, __obj.__name__, args)
        for value in (*args, *named.values()):
            __self.budget.measure(value)
        return __self._made(super().call(__context, __obj, *args, **named))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        spend, measure = self.budget.spend, self.budget.measure
        if operator == "+" and isinstance(left, str) and isinstance(right, str):
            spend(len(left) + len(right))
        elif isinstance(left, int) and isinstance(right, int):
            bits = {"*": left.bit_length() + right.bit_length(), "**": left.bit_length() * abs(right)}.get(operator, 0)
            if bits > BITS:
                raise Exhausted("it computes with numbers of more than a thousand digits")
        elif operator == "*":
            for many, times in ((left, right), (right, left)):
                if isinstance(many, str | list | tuple) and isinstance(times, int):
                    spend((measure(many) + 1) * max(times, 0))
        elif operator == "%" and isinstance(left, str):
            if WIDE.search(left):
                raise SecurityError("a width of hundreds in a % format")
            spend(measure([right]) * left.count("%"))
        elif operator == "+":
            return self._made(left + right)
        return self.binop_table[operator](left, right)

    # Measures

    def text(self, value: Any) -> str:
        """`value` as a template shows it."""
        if isinstance(value, str):
            return value
        self.budget.measure([value])
        return str(value)

    def _made(self, value: Any) -> Any:
        self.budget.spend(self.budget.measure(value))
        return value

    def _cut(self, value: Any) -> Any:
        """A slice is no bigger, written out, than what it was cut from."""
        self.budget.spend(len(value))
        return value

    def _timed(self, value: Any) -> Any:
        self.budget.spend(1)
        return value

    @pass_context
    def _turn(self, context: Context, size: int) -> None:
        self.budget.spend(size + 1)

    def _measured(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        place = 1 if hasattr(function, "jinja_pass_arg") else 0  # of the value that is filtered

        @wraps(function)
        def measured(*args: Any, **named: Any) -> Any:
            value = args[place]
            if isinstance(value, str) and name in ("join", "list", "map", "select", "reject", "sort", "unique"):
                self.budget.spend(ITEM * len(value))  # a string becomes a list of its characters
            if name == "int" and isinstance(value, str) and len(value) > BITS:
                raise Exhausted("it computes with numbers of more than a thousand digits")
            return self._made(function(*args, **named))

        return measured

    def _grown(self, text: str, method: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """The arguments of a string's method, after what it would make has been paid for."""
        spend = self.budget.spend
        match method, args:
            case "join", (parts, *rest):
                spend(ITEM * len(parts) if isinstance(parts, str) else 0)
                parts = list(parts)
                spend(self.budget.measure(parts) + len(text) * len(parts))
                return (parts, *rest)
            case "replace", (str() as old, str() as new, *_):
                spend(text.count(old) * len(new))
            case "center" | "ljust" | "rjust" | "zfill", (int() as width, *_):
                spend(width if width > 0 else 0)
            case "split" | "rsplit", (str() as separator, *_) if separator:
                spend(ITEM * (text.count(separator) + 1))
            case "split" | "rsplit" | "splitlines", _:
                spend(ITEM * len(text))
        return args

    # Filters that could grow

    def _join(self, value: Any, d: str = "", attribute: Any = None) -> str:
        parts = list(value)
        if attribute is not None:
            parts = [*map(make_attrgetter(self, attribute), parts)]
        self.budget.spend(self.budget.measure(parts) + self.budget.measure(d) * len(parts))
        return str(d).join(map(str, parts))

    def _replace(self, s: str, old: str, new: str, count: int | None = None) -> str:
        s, old, new = (str(self._made(x)) for x in (s, old, new))
        self._grown(s, "replace", (old, new))
        return s.replace(old, new, -1 if count is None else count)

    def _indent(self, s: str, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
        """Jinja's own, measured."""
        step = self.budget.measure(width) if isinstance(width, str) else width
        self.budget.spend((s.count("\n") + 1) * (step + ITEM))
        return do_indent(s, width, first, blank)

    def _tojson(
        self, value: Any, ensure_ascii: bool = False, indent: int | str | None = None, separators: Any = None,
        sort_keys: bool = False,
    ) -> str:  # fmt: skip
        """JSON as chat templates mean it: nothing escaped for HTML."""
        between = len("".join(separators or ()))
        step = len(indent) if isinstance(indent, str) else indent or 0
        if step > 100 or between > 100:
            raise SecurityError("an indent or separator of more than 100 characters")
        self.budget.spend(self.budget.measure(value) * (1 + between))
        encoder = json.JSONEncoder(
            ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
        )  # fmt: skip
        if indent is None:
            return encoder.encode(value)
        parts = []
        for part in encoder.iterencode(value):  # what is deep is indented far
            self.budget.spend(len(part))
            parts.append(part)
        return "".join(parts)


@pass_context
def _written(context: Context, value: Any) -> str:
    """Every expression that a template shows goes through here."""
    text = context.environment.text(value)  # type: ignore[attr-defined]
    context.environment.budget.spend(len(text))  # type: ignore[attr-defined]
    return text


class _Guard(NodeTransformer):
    """Puts the counting and measuring into a parsed template."""

    def __init__(self, environment: Sandbox):
        self.environment = environment

    def visit_For(self, node: Any) -> nodes.Node:
        self.generic_visit(node)
        text = sum(len(data.data) for part in node.body for data in part.find_all(nodes.TemplateData))
        node.body.insert(0, nodes.ExprStmt(self._through(" turn", nodes.Const(text)), lineno=node.lineno))
        return node

    visit_Macro = visit_CallBlock = visit_For

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return self._through(" glued", nodes.Tuple(node.nodes, "load", lineno=node.lineno))

    def visit_List(self, node: Any) -> nodes.Node:
        self.generic_visit(node)
        return node if getattr(node, "ctx", "load") != "load" else self._through(" made", node)

    visit_Tuple = visit_Dict = visit_List

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        if isinstance(node.arg, nodes.Const):
            return node
        return self._through(" cut" if isinstance(node.arg, nodes.Slice) else " timed", node)

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        if len(node.ops) > 8:
            raise SecurityError("it compares more than eight things in a row")
        self.generic_visit(node)
        return self._through(" timed", node)

    def visit_Test(self, node: nodes.Test) -> nodes.Node:
        self.generic_visit(node)
        return self._through(" timed", node) if node.args else node

    def visit_Filter(self, node: nodes.Filter) -> nodes.Node:
        if node.name not in self.environment.filters:
            known = ", ".join(sorted(name for name in self.environment.filters if not name.startswith(" ")))
            raise SecurityError(f"it uses the filter {node.name!r}; allowed are {known}")
        return self.generic_visit(node)

    def visit_Block(self, node: nodes.Node) -> nodes.Node:
        raise SecurityError(f"it uses the tag {type(node).__name__.lower()!r}, which joins files to a site")

    visit_Extends = visit_Include = visit_Import = visit_FromImport = visit_Block

    @staticmethod
    def _through(name: str, node: nodes.Expr) -> nodes.Filter:
        return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


class _Generation(Extension):
    """{% generation %}: marks what an assistant says, for those who train on it; it writes nothing."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


class _Names(Namespace):
    """Jinja's namespace, whose names are not Python's own and whose contents are not written out."""

    def __init__(*args: Any, **named: Any) -> None:
        self, *rest = args
        Namespace.__init__(self)
        for name, value in dict(*rest, **named).items():
            self[name] = value

    def __setitem__(self, name: str, value: Any) -> None:
        if str(name).startswith("_"):
            raise SecurityError(f"it names something {name!r}")
        super().__setitem__(name, value)

    def __repr__(self) -> str:
        return "<Namespace>"


def _make_dict(*args: Any, **named: Any) -> dict[Any, Any]:
    """`dict` without the attributes of a type."""
    return dict(*args, **named)


def _refuse(message: object) -> None:
    raise jinja2.TemplateError(str(message)[:500])


def _now(format: str) -> str:
    if len(format) > 200:
        raise SecurityError("a date format of more than 200 characters")
    return datetime.now().strftime(format)


__all__ = ["PER_CHARACTER", "ROOM", "Budget", "Exhausted", "Sandbox"]
