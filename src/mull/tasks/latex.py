"""Reads the result of an answer, in LaTeX or plain writing, into a tree. No sympy, no eval: a parser of our own.

What it knows: integers, decimals, thousands commas, fractions, mixed numbers, percent, powers, roots, factorials,
binomials, functions, constants, variables, +-, tuples, intervals, sets, unions, lists, matrices, equations,
inequalities, numerals of a base, ratios, units, words. What it does not know raises Unreadable, and is never
guessed at.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeAlias

from mull.tasks.units import UNITS, unit_of
from mull.tasks.writings import FUNCTIONS, Unreadable, cleaned

DEEPEST = 40  # brackets inside one another


@dataclass(frozen=True, slots=True)
class Op:
    """An operation on trees: + * / ^ root (radicand, degree) pm (a value and its negative), or a function by name."""

    name: str
    args: tuple[Tree, ...]


Tree: TypeAlias = "Fraction | str | Op"  # a number, a variable or constant (pi, e, i, inf) by name, an operation


@dataclass(frozen=True, slots=True)
class Quantity:
    """A value with its unit, "" where it has none and "%" for percent."""

    tree: Tree
    unit: str = ""


@dataclass(frozen=True, slots=True)
class Words:
    text: str  # small letters


@dataclass(frozen=True, slots=True)
class Numeral:
    """Digits in a base that is written with them."""

    digits: str
    base: int


@dataclass(frozen=True, slots=True)
class Group:
    """Several: "()", "[)" and the like in order, "{}", "," and "or" in any order, ":" a ratio or time, "|" a union,
    "\\" a difference of sets, "matrix" of "row"."""

    kind: str
    items: tuple[Item, ...]


@dataclass(frozen=True, slots=True)
class Relation:
    """sides[0] signs[0] sides[1] signs[1] ...; a sign is one of = < > <= >= != in ~ (about)."""

    sides: tuple[Item, ...]
    signs: tuple[str, ...]


Item: TypeAlias = Quantity | Words | Numeral | Group | Relation

NUMBER = re.compile(
    r"(?P<thousands>\d{1,3}(?:,\d{3})+(?!\d|,\d)(?:\.\d+)?)"
    r"|(?P<power>(?:\d+\.\d*|\.\d+)[eE][-+]?\d{1,4}(?!\d)|\d+(?:[eE]\d{1,4}|[eE][-+]\d{2,4})(?![\d.]))"
    r"|\d+\.\d+|\.\d+|\d+\.?(?!\d)",
    re.ASCII,
)
SHORT_WORDS = "am an as at be by do go he if is it me no of on so to up"
SHORT = SHORT_WORDS.split()
ROWS = ("abcdef", "klmn", "pqrstuvwxyz")  # letters that are variables together
CONSTANTS = {"pi": "pi", "infty": "inf", "infinity": "inf", "e": "e", "i": "i"}
LETTERS = """
alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta kappa lambda mu nu xi rho sigma tau phi varphi
chi psi omega Gamma Delta Theta Lambda Xi Sigma Phi Psi Omega ell
"""
GREEK = frozenset(LETTERS.split())
SIGNS = {
    r"\leq": "<=", r"\le": "<=", r"\geq": ">=", r"\ge": ">=", r"\neq": "!=", r"\ne": "!=", r"\lt": "<", r"\gt": ">",
    r"\in": "in", r"\approx": "~", "<=": "<=", ">=": ">=", "!=": "!=", "=": "=", "<": "<", ">": ">",
    r"\leqslant": "<=", r"\geqslant": ">=", r"\equiv": "=",
}  # fmt: skip
SIGN = re.compile(r"\\(?:leqslant|geqslant|leq|le|geq|ge|neq|ne|lt|gt|in|approx|equiv)(?![a-zA-Z])|<=|>=|!=|[=<>]")
JOINED = re.compile(r"and(?![a-zA-Z])|or(?![a-zA-Z])")
WORD = re.compile(r"[A-Za-z]{2,}(?:['.-][A-Za-z]+)*\.?")
COMMAND = re.compile(r"\\([a-zA-Z]+)\s*")
MATRIX = re.compile(r"\\begin\s*\{([pbBvV]?matrix|array)\}\s*(?:\{[lcr|\s]*\})?(.*?)\\end\s*\{\1\}", re.DOTALL)
BASE_NAMES = "two three four five six seven eight nine ten eleven twelve"
BASES = {name: base for base, name in enumerate(BASE_NAMES.split(), 2)} | {"sixteen": 16}
NUMERAL = re.compile(r"(-?[0-9A-F]+)\s*(?:_\s*\{?\s*(\w+)\s*\}?|\(?\s*(?:in )?base[\s-]*(\w+)\s*\)?)")


def read(text: str) -> Item:
    """The result that a text states. Raises Unreadable."""
    reader = Reader(cleaned(text))
    item = reader.everything()
    reader.blank()
    if reader.at < len(reader.text):
        raise Unreadable(f"ends at {reader.text[reader.at : reader.at + 20]!r}")
    return item


class Reader:
    """Recursive descent over a cleaned text: `at` is where it stands."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.depth = 0

    def blank(self) -> None:
        while self.text.startswith((" ", "\n", "\t"), self.at):
            self.at += 1

    def take(self, *tokens: str) -> str | None:
        """The first of the tokens that stands here, which is then behind us; a command ends where its letters do."""
        self.blank()
        for token in tokens:
            end = self.at + len(token)
            if self.text.startswith(token, self.at) and not (
                token[0] == "\\" and token[-1].isalpha() and self.text[end : end + 1].isalpha()
            ):
                self.at = end
                return token
        return None

    def match(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        self.blank()
        found = pattern.match(self.text, self.at)
        if found:
            self.at = found.end()
        return found

    def peek(self, *tokens: str) -> bool:
        here = self.at
        found = self.take(*tokens) is not None
        self.at = here
        return found

    # lists and relations

    def everything(self) -> Item:
        if found := NUMERAL.fullmatch(self.text.replace(r"\word<", "").replace(">", "")):
            self.at = len(self.text)
            return _numeral(found)
        return self.listed()

    def listed(self) -> Item:
        """One item, or several between commas, semicolons, "and", "or"."""
        items, joints = [self.relation()], set[str]()
        while joint := self.take(",", ";") or self.match(JOINED):
            while joint:
                joints.add(joint if isinstance(joint, str) else joint[0])
                joint = self.match(JOINED)
            items.append(self.relation())
        if len(items) == 1:
            return items[0]
        return Group("or" if "or" in joints and "and" not in joints else ",", tuple(items))

    def relation(self) -> Item:
        sides, signs = [self.union()], list[str]()
        while sign := self.match(SIGN):
            signs.append(SIGNS[sign[0]])
            sides.append(self.union())
        return Relation(tuple(sides), tuple(signs)) if signs else sides[0]

    def union(self) -> Item:
        parts = [self.ratio()]
        kind = ""
        while sign := self.take(r"\cup", r"\bigcup", r"\setminus", r"\backslash"):
            kind = "|" if "cup" in sign else "\\"
            parts.append(self.ratio())
        return Group(kind, tuple(parts)) if kind else parts[0]

    def ratio(self) -> Item:
        parts = [self.quantity()]
        while self.take(":"):
            parts.append(self.quantity())
        return Group(":", tuple(parts)) if len(parts) > 1 else parts[0]

    def quantity(self) -> Item:
        """A value and its unit, a bracketed group, or words."""
        here = self.at
        if words := self._words():
            return Words(words)
        self.at = here
        money = self.take(r"\money")
        value = self.sum()
        if not isinstance(value, Fraction | str | Op):
            return value
        if money or self.take(r"\money"):
            self._unit()
            return Quantity(value, "dollar")
        if self.take(r"\percent"):
            return Quantity(value, "%")
        unit = "degree" if self.take(r"\deg") else ""
        return Quantity(value, unit or self._unit())

    def _words(self) -> str:
        """Words up to a separator, where nothing but words stands there."""
        words = []
        while True:
            if (found := self._word()) is None:
                break
            words.append(found)
        self.blank()
        ends = self.at == len(self.text) or self.text[self.at] in ",;=" or self.peek("and ", "or ")
        single = re.fullmatch(r"\(?\s*([A-Za-z])\s*\)?", self.text)
        if single:  # a letter in brackets is a choice; alone it may be a variable, which compares as well
            self.at = len(self.text)
            return single[1] if "(" in self.text else ""
        return " ".join(words) if words and ends else ""

    def _word(self) -> str | None:
        self.blank()
        if self.take(r"\word<"):
            end = self.text.find(">", self.at)
            if end < 0:
                raise Unreadable("words without an end")
            word, self.at = self.text[self.at : end], end + 1
            return " ".join(re.sub(r"[().,!?\"':]", " ", word).split()).casefold()
        here = self.at
        if (found := self.match(WORD)) and not self._letters(found[0]) and found[0] not in ("or", "and"):
            return found[0].rstrip(".").casefold()
        self.at = here
        return None

    @staticmethod
    def _letters(run: str) -> bool:
        """Whether letters that stand together are functions or variables, not a word."""
        if run.startswith(FUNCTIONS) or run in ("pi", "sqrt", "infinity", "inf", "oo"):
            return True
        if run in UNITS:
            return False
        return (len(run) <= 2 and run not in SHORT) or (len(run) == 3 and any(run in row for row in ROWS))

    def _unit(self) -> str:
        """Of the words behind a value, "" where there are none."""
        words = []
        while True:
            if words and self.take("/"):
                words.append("per")
            word = self._word()
            if word is None:
                break
            words.append(word)
            if self.take("^"):
                words.append({"2": "^2", "3": "^3"}.get(self.argument_text(), "^?"))
        return unit_of(" ".join(words))

    def argument_text(self) -> str:
        found = self.match(re.compile(r"\{?\s*(\d)\s*\}?"))
        return found[1] if found else ""

    # arithmetic

    def sum(self) -> Tree | Item:
        sign = self.take("+", "-", r"\pm", r"\mp")
        value = self.term()
        if sign and sign != "+":
            value = Op({"-": "neg", r"\pm": "pm", r"\mp": "mp"}[sign], (_tree(value),))
        while sign := self.take("+", "-", r"\pm", r"\mp"):
            right = _tree(self.negated() if self.take("-") else self.term())
            if sign != "+":
                right = Op({"-": "neg", r"\pm": "pm", r"\mp": "mp"}[sign], (right,))
            value = Op("+", (_tree(value), right))
        return value

    def negated(self) -> Tree:
        return Op("neg", (_tree(self.term()),))

    def term(self) -> Tree | Item:
        value = self.power()
        while True:
            if self.take(r"\cdot", r"\times", "*"):
                value = Op("*", (_tree(value), _tree(self.signed())))
            elif self.peek("/", r"\div"):
                here = self.at
                self.take("/", r"\div")
                if self._word() is not None:  # a unit's own stroke
                    self.at = here
                    return value
                value = Op("/", (_tree(value), _tree(self.signed())))
            elif self._begins():
                here, right = self.at, self.power()
                if re.match(r"\s*\d", self.text[here:]) and not isinstance(value, str | Op):
                    raise Unreadable("two numbers beside each other")
                value = Op("*", (_tree(value), _tree(right)))
            else:
                return value

    def _begins(self) -> bool:
        """Whether a factor stands here, so that nothing means times."""
        self.blank()
        here = self.text[self.at : self.at + 1]
        if not here or here in ")]}|,;:=<>+-^_!&/*":
            return False
        if here == "\\":
            found = COMMAND.match(self.text, self.at)
            name = found[1] if found else ""
            return name in FUNCTIONS or name in GREEK or name in CONSTANTS or name in ("frac", "sqrt", "binom")
        if here.isalpha() and here.isascii():
            at, word = self.at, self._word()
            joined = JOINED.match(self.text, at)
            self.at = at
            return word is None and joined is None
        return here in "({" or (here in "0123456789." and here.isascii())

    def signed(self) -> Tree | Item:
        return Op("neg", (_tree(self.signed_inner()),)) if self.take("-") else self.power()

    def signed_inner(self) -> Tree | Item:
        self.enter()
        value = self.signed()
        self.depth -= 1
        return value

    def power(self) -> Tree | Item:
        value = self.postfix(self.primary())
        if self.take("^", "**"):
            self.enter()
            sign = self.take("-")
            exponent = _tree(self.power())
            self.depth -= 1
            value = self.postfix(Op("^", (_tree(value), Op("neg", (exponent,)) if sign else exponent)))
        return value

    def postfix(self, value: Tree | Item) -> Tree | Item:
        while not self.peek("!=") and self.take("!"):
            value = Op("factorial", (_tree(value),))
        return value

    def enter(self) -> None:
        self.depth += 1
        if self.depth > DEEPEST:
            raise Unreadable("too deep")

    def primary(self) -> Tree | Item:
        self.blank()
        here = self.text[self.at : self.at + 1]
        if here == "\\":
            return self.command()
        if here in ("(", "["):
            return self.brackets()
        if here == "{":
            self.at += 1
            return self.inside("}")
        if here == "|":
            self.at += 1
            return Op("abs", (_tree(self.inside("|")),))
        if here.isascii() and (here.isdigit() or here == "."):
            return self.number()
        if here.isascii() and here.isalpha():
            return self.letter()
        raise Unreadable(f"{here!r} begins no value" if here else "nothing there")

    def inside(self, close: str) -> Tree | Item:
        self.enter()
        item = self.listed()
        self.depth -= 1
        if not self.take(close):
            raise Unreadable(f"no {close}")
        return item.tree if isinstance(item, Quantity) and not item.unit else item

    def brackets(self) -> Tree | Item:
        """A value in brackets, or several: a tuple, a point, an interval."""
        opened = self.take("(", "[")
        assert opened
        self.enter()
        item = self.listed()
        self.depth -= 1
        closed = self.take(")", "]")
        if not closed:
            raise Unreadable("a bracket is not closed")
        if isinstance(item, Group) and item.kind in (",", "or"):
            return Group(opened + closed, item.items)
        if opened + closed not in ("()", "[]"):
            raise Unreadable("brackets that do not belong together")
        return item.tree if isinstance(item, Quantity) and not item.unit else item

    def number(self) -> Tree:
        begin = self.at
        found = self.match(NUMBER)
        if not found:
            raise Unreadable("no number")
        around = self.text[:begin].rstrip()[-1:], self.text[self.at :].lstrip()[:1]
        if found["thousands"] and around[0] and around[0] in "([" and around[1] in ")]":
            self.at = self.text.index(",", begin)  # (1,234) is two numbers
            return Fraction(int(self.text[begin : self.at]))
        if found[0].endswith("."):
            self.at -= 1
        digits = found[0].replace(",", "").rstrip(".")
        value = _decimal(digits)
        if digits.isdigit() and (part := self._part()) is not None:
            return value + part
        return value

    def _part(self) -> Fraction | None:
        """The fraction of a mixed number."""
        found = self.match(re.compile(r"\\frac\s*(?:\{\s*(\d+)\s*\}|(\d))\s*(?:\{\s*(\d+)\s*\}|(\d))(?!\s*\^)", re.A))
        found = found or self.match(re.compile(r"(?<=\s)(\d+)()\s*/\s*(\d+)()(?![\d.])", re.A))
        if not found:
            return None
        above, below = int(found[1] or found[2]), int(found[3] or found[4])
        if not below:
            raise Unreadable("division by zero")
        return Fraction(above, below)

    def letter(self) -> Tree:
        run = re.compile(r"[A-Za-z]+").match(self.text, self.at)
        assert run
        for name in (*FUNCTIONS, "sqrt", "pi", "infinity", "inf", "oo"):
            if run[0].startswith(name):
                self.at += len(name)
                if name in ("pi", "infinity", "inf", "oo"):
                    return "pi" if name == "pi" else "inf"
                return self.root() if name == "sqrt" else self.function(name)
        if len(run[0]) > 1 and not self._letters(run[0]):
            raise Unreadable(f"the word {run[0][:20]}")
        self.at += 1
        return self.subscript(run[0][0])

    def subscript(self, name: str) -> str:
        if found := self.match(re.compile(r"_\s*(?:\{\s*(\w+)\s*\}|(\w))", re.A)):
            return f"{name}_{found[1] or found[2]}"
        return CONSTANTS.get(name, name)

    def command(self) -> Tree | Item:
        found = self.match(COMMAND)
        if not found:
            raise Unreadable("a stroke")
        name = found[1]
        if name == "frac":
            return Op("/", (self.argument(), self.argument()))
        if name == "binom":
            return Op("binomial", (self.argument(), self.argument()))
        if name == "sqrt":
            return self.root()
        if name in FUNCTIONS:
            return self.function(name)
        if name in CONSTANTS or name in GREEK:
            return CONSTANTS.get(name) or self.subscript(name)
        if name == "lset":
            return self.set()
        if name in ("emptyset", "varnothing"):
            return Group("{}", ())
        if name in ("lfloor", "lceil"):
            value = _tree(self.inside("\\r" + name[1:]))
            return Op(name[1:], (value,))
        if name == "mathbb" and self.match(re.compile(r"\{?\s*R\s*\}?")):
            return Group("()", (Quantity(Op("neg", ("inf",))), Quantity("inf")))
        if name == "begin":
            self.at = found.start()
            return self._matrix()
        raise Unreadable(f"the command {name[:20]}")

    def set(self) -> Group:
        if self.take(r"\rset"):
            return Group("{}", ())
        self.enter()
        item = self.listed()
        self.depth -= 1
        if not self.take(r"\rset"):
            raise Unreadable("a set is not closed")
        return Group("{}", item.items if isinstance(item, Group) and item.kind in (",", "or") else (item,))

    def root(self) -> Tree:
        degree: Tree = Fraction(2)
        if self.take("["):
            degree = _tree(self.inside("]"))
        return Op("root", (self.argument(), degree))

    def argument(self) -> Tree:
        """What a command takes: a group in braces, or one digit, letter or command."""
        self.blank()
        here = self.text[self.at : self.at + 1]
        if here.isascii() and here.isdigit():
            self.at += 1
            return Fraction(int(here))
        if here.isascii() and here.isalpha():
            self.at += 1
            return CONSTANTS.get(here, here)
        self.enter()
        value = _tree(self.primary())
        self.depth -= 1
        return value

    def function(self, name: str) -> Tree:
        base = self.argument() if name == "log" and self.take("_") else None
        exponent = self.argument() if self.take("^") else None
        if name in ("sin", "cos", "tan") and exponent == Op("neg", (Fraction(1),)):
            name, exponent = f"arc{name}", None
        self.enter()
        given = self._applied()
        self.depth -= 1
        value = Op(name, (given,) if base is None else (given, base))
        return value if exponent is None else Op("^", (value, exponent))

    def _applied(self) -> Tree:
        """A function's argument: what is in brackets, or the factors up to the next function or sign."""
        bracketed = self.peek("(", "{", "[", "|")
        value = _tree(self.signed())
        while not bracketed and not isinstance(value, Group) and self._begins() and not self.peek("(", "{"):
            found = COMMAND.match(self.text, self.at)
            if (found and found[1] in FUNCTIONS) or self.text[self.at :].startswith(FUNCTIONS):
                break
            value = Op("*", (value, _tree(self.power())))
        if not bracketed and self.take("/"):
            value = Op("/", (value, _tree(self.power())))
        if self.take(r"\deg"):
            value = Op("/", (Op("*", (value, "pi")), Fraction(180)))
        return value

    def _matrix(self) -> Item:
        found = self.match(MATRIX)
        if not found:
            raise Unreadable("something begins that is no matrix")
        rows = [row for row in re.split(r"\\\\(?:\[[^\]]*\])?", found[2]) if row.strip() not in ("", r"\hline")]
        return Group("matrix", tuple(Group("row", tuple(map(_whole, row.split("&")))) for row in rows))


def _whole(text: str) -> Item:
    reader = Reader(text.strip())
    item = reader.relation()
    reader.blank()
    if reader.at < len(reader.text):
        raise Unreadable("a cell that does not end")
    return item


def _tree(value: Tree | Item) -> Tree:
    """Of something that arithmetic is done with."""
    if isinstance(value, Fraction | str | Op):
        return value
    if isinstance(value, Quantity) and value.unit == "degree":
        return value.tree
    raise Unreadable("arithmetic with something that is no number")


def _decimal(digits: str) -> Fraction:
    """Raises Unreadable for exponents that would make a huge number."""
    mantissa, _, exponent = digits.lower().partition("e")
    if abs(int(exponent or 0)) > 400:
        raise Unreadable("too large")
    return Fraction(mantissa) * Fraction(10) ** int(exponent or 0)


def _numeral(found: re.Match[str]) -> Numeral:
    said = (found[2] or found[3]).casefold()
    base = BASES.get(said) or (int(said) if said.isascii() and said.isdigit() and len(said) < 3 else 0)
    if not 2 <= base <= 36 or any(int(digit, 36) >= base for digit in found[1].lstrip("-")):
        raise Unreadable("no numeral of that base")
    sign, digits = ("-", found[1][1:]) if found[1][0] == "-" else ("", found[1])
    return Numeral(sign + (digits.lstrip("0") or "0"), base)


__all__ = ["Group", "Item", "Numeral", "Op", "Quantity", "Relation", "Tree", "Unreadable", "Words", "read"]
