"""Our own verifier for mathematics: whether a result is the gold answer, exactly.

Both are read by latex.py and compared by what they are: values by equality.py (never by floating point alone), tuples
and intervals in order, sets and lists in any, equations up to a constant factor, inequalities as intervals, words as
words. What cannot be read or told counts as not equal, and says so.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from mull.tasks.algebra import Algebra, TooHard, exact
from mull.tasks.equality import near, same
from mull.tasks.latex import Group, Item, Numeral, Op, Quantity, Relation, Tree, Words, read
from mull.tasks.units import HEDGED
from mull.tasks.writings import FUNCTIONS, Unreadable, cleaned

MOST = 60  # items of a set that are compared with each other
SHOWN = 40  # letters of a result in words
SETS = ("{}", ",", "or")  # kinds of groups that are in any order
CHOICE = re.compile(r"\s*\(?\s*(?:\\word<)?\(?\s*([A-J])\s*\)?>?\s*[).:]\s*(.*)", re.DOTALL)
PART = (r"(?:m?\s*\\(?:angle|triangle|overline|vec)(?![a-zA-Z])\s*)?\{?(?:[A-Za-z]{1,3}|[A-Z]{4})'*\}?"
        r"(?:_(?:\w|\{[^{}]*\}))?(?:\([^()=<>]*\))?")  # fmt: skip
# AB, f(3), a+b: no unknown to solve
LABEL = re.compile(rf"\s*(?:\|\s*{PART}\s*\||{PART}(?:\s*[-+]\s*{PART})*)\s*=(?![=<>])")
FLIPPED = {">": "<", ">=": "<="}
INFINITE: tuple[Tree, ...] = ("inf", Op("neg", ("inf",)))


@dataclass(frozen=True, slots=True)
class Said:
    """What came of a comparison: True, False, or None for cannot tell; and in words."""

    equal: bool | None
    words: str


def compare(gold: str, answer: str) -> Said:
    """Never raises for any text."""
    try:
        equal, why = _compared(gold, answer), ""
    except (Unreadable, TooHard, RecursionError) as stop:
        equal, why = None, f" ({stop})" if isinstance(stop, Unreadable) else " (too large)"
    sign = {True: "=", False: "is not", None: "cannot be told from"}[equal]
    return Said(equal, f"{_short(answer)} {sign} {_short(gold)}{why}")


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."


def _compared(gold: str, answer: str) -> bool | None:
    if _bare(gold) == _bare(answer):
        return bool(_bare(gold)) or None
    wanted = read(gold)
    answer = cleaned(answer)
    letter, found = _choice(wanted), CHOICE.fullmatch(answer)
    if letter and found:
        others = re.search(r"\([A-J]\)|\b(?:or|and|not)\b", found[2])
        return None if others else found[1].casefold() == letter.casefold()
    if isinstance(wanted, Quantity):
        answer = found[2] if found and ")" in answer[: found.start(2)] else _unlabelled(answer)
    given = read(answer)
    return items_same(wanted, given)


def _unlabelled(text: str) -> str:
    """The value of a thing that has a name, such as f(3) = 8."""
    label = LABEL.match(text)
    if not label or HEDGED.search(label[0]) or label[0].strip().startswith((*FUNCTIONS, "sqrt")):
        return text
    return text[label.end() :]


def _bare(text: str) -> str:
    """Without the spaces that part nothing."""
    return re.sub(r"(?<![A-Za-z0-9.])\s+|\s+(?![A-Za-z0-9.])", "", " ".join(cleaned(text).split()))


def _choice(item: Item) -> str:
    """The letter, where an item is a choice such as (C)."""
    match item:
        case Words(text) if len(text) == 1:
            return text
        case Quantity(str(name), "") if len(name) == 1 and name.isalpha():
            return name
    return ""


def items_same(gold: Item, given: Item) -> bool | None:
    """Raises Unreadable."""
    gold, given = normal(gold), normal(given)
    if isinstance(gold, Words) or isinstance(given, Words):
        return (_choice(gold) or gold).__class__ is (_choice(given) or given).__class__ and _same_words(gold, given)
    if isinstance(gold, Numeral) or isinstance(given, Numeral):
        return gold == given
    if isinstance(gold, Relation) or isinstance(given, Relation):
        return _relations_same(gold, given)
    if isinstance(gold, Quantity) and isinstance(given, Quantity):
        return quantities_same(gold, given)
    if isinstance(gold, Group) and isinstance(given, Group):
        return _groups_same(gold, given)
    if isinstance(given, Group) and given.kind in SETS:  # one value in several writings
        return len(given.items) > 0 and len(given.items) <= MOST and every([items_same(gold, i) for i in given.items])
    return False


def _same_words(gold: Item, given: Item) -> bool:
    if isinstance(gold, Words) and isinstance(given, Words):
        return gold == given
    return _choice(gold).casefold() == _choice(given).casefold() != ""


def every(answers: Sequence[bool | None]) -> bool | None:
    return False if False in answers else None if None in answers else True


def normal(item: Item) -> Item:
    """One form of several: +- as two values, inequalities of one variable as intervals, a set of one as its member."""
    match item:
        case Quantity(tree, unit):
            signed = [Quantity(chosen(tree, sign), unit) for sign in (1, -1)] if varies(tree) else [item]
            return Group(",", tuple(signed)) if len(signed) > 1 else item
        case Group("{}" | "," | "or" as kind, items):
            if kind == "or" and all(isinstance(i, Relation) and set(i.signs) <= {"<", ">", "<=", ">=", "!="}
                                    for i in items):  # fmt: skip
                return Group("|", tuple(part for i in items for part in _parts(normal(i))))
            flat = tuple(part for i in items for part in _members(normal(i)))
            return flat[0] if len(flat) == 1 else Group("{}" if kind == "{}" else ",", flat)
        case Group("|", items):
            return Group("|", tuple(part for i in items for part in _parts(normal(i))))
        case Group("\\", (Group() as whole, Group("{}", left_out))) if whole == REALS:
            return _without(tuple(normal(i) for i in left_out))
        case Relation():
            return _relation(item)
    return item


REALS = Group("()", (Quantity(INFINITE[1]), Quantity(INFINITE[0])))


def _members(item: Item) -> tuple[Item, ...]:
    return item.items if isinstance(item, Group) and item.kind in SETS else (item,)


def _parts(item: Item) -> tuple[Item, ...]:
    return item.items if isinstance(item, Group) and item.kind == "|" else (item,)


def _without(points: Sequence[Item]) -> Group:
    """The real line without some rational points."""
    values = [exact(p.tree) if isinstance(p, Quantity) else None for p in points]
    known = sorted(v for v in values if v is not None)
    if len(known) < len(values) or not known:
        raise Unreadable("what is left out is no set of numbers")
    ends: list[Tree] = [INFINITE[1], *known, INFINITE[0]]
    return Group("|", tuple(Group("()", (Quantity(a), Quantity(b))) for a, b in pairwise(ends)))


def varies(tree: Tree) -> bool:
    return isinstance(tree, Op) and (tree.name in ("pm", "mp") or any(map(varies, tree.args)))


def chosen(tree: Tree, sign: int) -> Tree:
    """With the upper signs of all +- and -+, or the lower ones."""
    if not isinstance(tree, Op):
        return tree
    args = tuple(chosen(a, sign) for a in tree.args)
    if tree.name not in ("pm", "mp"):
        return Op(tree.name, args)
    return args[0] if (tree.name == "pm") == (sign > 0) else Op("neg", args)


# values


def quantities_same(gold: Quantity, given: Quantity) -> bool | None:
    if gold.unit == "%" or given.unit == "%":
        return _percents_same(gold, given)
    if not _units_agree(gold, given):
        return False
    if gold.tree in INFINITE or given.tree in INFINITE:
        return gold.tree == given.tree
    return same(gold.tree, given.tree)


def _units_agree(gold: Quantity, given: Quantity) -> bool:
    """A unit may be left out, but not be another one. An angle in degrees is none in radians."""
    if {gold.unit, given.unit} == {"", "degree"}:
        return "pi" not in names(gold.tree) | names(given.tree)
    open_ = ("", "unit", "unit^2", "unit^3")
    return gold.unit == given.unit or gold.unit in open_ or given.unit in open_


def _percents_same(gold: Quantity, given: Quantity) -> bool | None:
    """50 % is 1/2; and 50, as one writes where a percentage was asked for. Of 1 and less, it is the share alone."""
    if gold.unit == given.unit:
        return same(gold.tree, given.tree)
    percent, other = (gold, given) if gold.unit == "%" else (given, gold)
    if other.unit:
        return False
    value = exact(percent.tree)
    if value is None:
        return same(percent.tree, other.tree)
    return exact(other.tree) in (value / 100, value if abs(value) > 1 else value / 100)


def names(tree: Tree) -> set[str]:
    """Variables and constants in a tree."""
    if isinstance(tree, Op):
        return set().union(*map(names, tree.args))
    return {tree} if isinstance(tree, str) else set()


def variables(tree: Tree) -> set[str]:
    return names(tree) - {"pi", "e", "i", "inf"}


# several


def _groups_same(gold: Group, given: Group) -> bool | None:
    if gold.kind in SETS and given.kind in SETS:
        return _labels(gold) == _labels(given) and _matched(gold.items, given.items)
    if gold.kind == given.kind:
        return _matched(gold.items, given.items) if gold.kind == "|" else _in_order(gold.items, given.items)
    vector, other = _vector(gold), _vector(given)
    if vector and other:
        return _in_order(vector, other)
    if (gold.kind, given.kind) == ("()", ",") and len(gold.items) > 2:  # a tuple whose brackets were left out
        return _in_order(gold.items, given.items)
    return False


def _labels(item: Group) -> set[str]:
    """The names, where values of several are listed: x = 1, y = 2 is not 1, 2, but x = 1, x = 2 is."""
    found = {_name(i.sides[0]) for i in item.items if isinstance(i, Relation) and i.signs == ("=",)}
    return found if len(found) > 1 else set()


def _vector(item: Group) -> tuple[Item, ...]:
    """The entries of a row, a column, or a tuple; () of what is none."""
    if item.kind == "()":
        return item.items
    if item.kind == "matrix":
        rows = [row.items for row in item.items if isinstance(row, Group)]
        if len(rows) == 1:
            return rows[0]
        if rows and all(len(row) == 1 for row in rows):
            return tuple(row[0] for row in rows)
    return ()


def _in_order(gold: Sequence[Item], given: Sequence[Item]) -> bool | None:
    return len(gold) == len(given) and every([items_same(a, b) for a, b in zip(gold, given, strict=True)])


def _matched(gold: Sequence[Item], given: Sequence[Item]) -> bool | None:
    """Whether each of the one list is one of the other, in any order."""
    if len(gold) != len(given):
        return False
    if len(gold) > MOST:
        return _in_order(gold, given)
    left, unsure = list(given), False
    for item in gold:
        told = None
        for i, other in enumerate(left):
            told = items_same(item, other)
            unsure |= told is None
            if told:
                del left[i]
                break
        if not told:
            return None if unsure else False
    return True


# equations and inequalities


def _relation(item: Relation) -> Item:
    """Raises Unreadable for a chain whose sides are not the same, or a value that is only about right."""
    sides, signs = [*item.sides], [*item.signs]
    if "~" in signs:
        at = signs.index("~")
        sides, signs = sides[: at + 1], signs[:at]
        if set(signs) - {"="} or (not signs and (_name(sides[0]) or isinstance(sides[0], Words))):
            raise Unreadable("only about right")
    if not signs:
        return normal(sides[0])
    if signs == ["in"]:
        return normal(sides[1])
    if set(signs) == {"="}:
        return _equation([normal(side) for side in sides])
    return _interval(sides, signs) or Relation(*_upward(sides, signs))


def _equation(sides: list[Item]) -> Item:
    """name = value, curve = curve, or the value where all sides are the same."""
    first = sides[0]
    labelled = isinstance(first, Words) or (isinstance(first, Group) and all(map(_name, first.items)))
    if isinstance(first, Words) and HEDGED.search(first.text):
        raise Unreadable(f"{first.text[:30]!r} is no name")
    if labelled:
        sides = sides[1:]
    elif _name(first) or len(sides) == 2:
        if _name(sides[-1]) and not _name(first) and len(sides) == 2:
            sides.reverse()
        constant = not any(variables(s.tree) for s in sides if isinstance(s, Quantity))
        if not constant or not all(isinstance(s, Quantity) for s in sides):
            values = sides[1:]
            if not all(items_same(values[-1], other) for other in values[:-1]):
                raise Unreadable("sides that are not the same")
            return Relation((sides[0], values[-1]), ("=",))
    if not all(items_same(sides[-1], other) for other in sides[:-1]):
        raise Unreadable("sides that are not the same")
    return sides[-1]


def _name(item: Item) -> str:
    """The variable, where an item is one and nothing else."""
    tree = item.tree if isinstance(item, Quantity) and not item.unit else None
    return tree if isinstance(tree, str) and variables(tree) else ""


def _upward(sides: Sequence[Item], signs: Sequence[str]) -> tuple[tuple[Item, ...], tuple[str, ...]]:
    """With < and <= only, where all signs point down."""
    if all(sign in FLIPPED for sign in signs):
        return tuple(reversed(sides)), tuple(FLIPPED[sign] for sign in reversed(signs))
    return tuple(sides), tuple(signs)


def _interval(sides: Sequence[Item], signs: Sequence[str]) -> Group | None:
    """Of an inequality of one variable between constants; None where it is another."""
    sides, signs = _upward(sides, signs)
    at = [bool(_name(side)) for side in sides]
    if sum(at) != 1 or any(not isinstance(s, Quantity) or (not n and variables(s.tree))
                           for s, n in zip(sides, at, strict=True)):  # fmt: skip
        return None
    low, high = Quantity(INFINITE[1]), Quantity(INFINITE[0])
    match [*at], [*signs]:
        case [False, True, False], ["<" | "<=" as a, "<" | "<=" as b]:
            return Group(("[" if a == "<=" else "(") + ("]" if b == "<=" else ")"), (sides[0], sides[2]))
        case [True, False], ["<" | "<=" as b]:
            return Group("(" + ("]" if b == "<=" else ")"), (low, sides[1]))
        case [False, True], ["<" | "<=" as a]:
            return Group(("[" if a == "<=" else "(") + ")", (sides[0], high))
        case [_, _], ["!="]:
            return _without([sides[1 - at.index(True)]])
    return None


def _relations_same(gold: Item, given: Item) -> bool | None:
    if isinstance(gold, Relation) and isinstance(given, Relation):
        if gold.signs != given.signs:
            return False
        if gold.signs == ("=",):
            if _name(gold.sides[0]) and _name(gold.sides[0]) == _name(given.sides[0]):
                return items_same(gold.sides[1], given.sides[1])
            return _curves_same(gold, given)
        return every([items_same(a, b) for a, b in zip(gold.sides, given.sides, strict=True)])
    relation, other = (gold, given) if isinstance(gold, Relation) else (given, gold)
    assert isinstance(relation, Relation)
    if relation.signs == ("=",) and _name(relation.sides[0]):
        return items_same(relation.sides[1], other) if relation is gold else items_same(other, relation.sides[1])
    return False


def _curves_same(gold: Relation, given: Relation) -> bool | None:
    """Whether left - right of the one is a number times that of the other. Raises TooHard, Unreadable."""
    differences = []
    for relation in (gold, given):
        trees = [side.tree for side in relation.sides if isinstance(side, Quantity)]
        if len(trees) != 2:
            return every([items_same(a, b) for a, b in zip(gold.sides, given.sides, strict=True)])
        differences.append(Op("+", (trees[0], Op("neg", (trees[1],)))))
    if variables(differences[0]) != variables(differences[1]):
        return False
    algebra = Algebra()
    (a, _), (b, _) = (algebra.ratio(tree) for tree in differences)
    if not a or not b:
        return None
    if a.keys() != b.keys():
        return False if all(_linear(poly, algebra) for poly in (a, b)) else None
    mono = min(a)
    factor = a[mono] / b[mono]
    if all(number == factor * b[m] for m, number in a.items()):
        scaled = Op("*", (differences[1], factor))
        return None if near(differences[0], scaled) is False and not _divided(differences) else True
    return False if all(_linear(poly, algebra) for poly in (a, b)) else None


def _linear(poly: object, algebra: Algebra) -> bool:
    """Whether a polynomial is a line's: no product and no power of atoms."""
    assert isinstance(poly, dict)
    return all(len(mono) == 0 or (len(mono) == 1 and mono[0][1] == 1) for mono in poly)


def _divided(trees: Sequence[Tree]) -> bool:
    """Whether a variable stands below a stroke, so that the numerators alone were compared."""

    def below(tree: Tree) -> bool:
        if not isinstance(tree, Op):
            return False
        return (tree.name == "/" and bool(variables(tree.args[1]))) or any(map(below, tree.args))

    return any(map(below, trees))


__all__ = ["Said", "compare"]
