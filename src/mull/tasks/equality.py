"""Whether two trees have the same value: yes with a proof, no with a witness, or None: cannot tell.

Yes: in one form (algebra.py) their cross products are the same polynomial. Constants of radicals that differ in form
alone (nested roots, roots of unity) are equal where their difference is below the least that it could be were it not
zero: the bound of Burnikel, Funke, Mehlhorn, Schirra and Schmitt (2001; its exponent squared, for roots of unity).
No: evaluated to DIGITS digits, at fixed values of the variables, they differ. Numbers alone never say yes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from hashlib import blake2b
from typing import Any

from mull.tasks.algebra import WHOLE, Algebra, TooHard, exact
from mull.tasks.latex import Op, Tree
from mull.tasks.writings import Unreadable

DIGITS = 60
CLOSE = 45  # digits that must agree for two values to be called near
BITS = 20_000  # of the digits that a bound asks for


def evaluated(tree: Tree, context: Any, values: Callable[[str], Any]) -> Any:
    """In the precision of an mpmath context. Raises what mpmath does, Unreadable, TooHard."""

    def of(tree: Tree) -> Any:
        match tree:
            case Fraction():
                return context.mpf(tree.numerator) / tree.denominator
            case "pi" | "e" | "i":
                return {"pi": +context.pi, "e": +context.e, "i": context.mpc(0, 1)}[tree]
            case "inf":
                return context.inf
            case str():
                return values(tree)
            case Op("neg", (a,)):
                return -of(a)
            case Op("+", (a, b)):
                return of(a) + of(b)
            case Op("*", (a, b)):
                return of(a) * of(b)
            case Op("/", (a, b)):
                return of(a) / of(b)
            case Op("^", (a, b)):
                return _raised(context, of(a), of(b), exact(b))
            case Op("root", (a, b)):
                degree = exact(b)
                return _raised(context, of(a), 1 / of(b), 1 / degree if degree else None)
            case Op("factorial" | "binomial" | "floor" | "ceil" as name, arguments):
                given = [exact(a) for a in arguments]
                if None in given:
                    raise TooHard
                value = WHOLE[name](*given)
                return context.mpf(value.numerator) / value.denominator
            case Op("log", (a, b)):
                return context.log(of(a)) / context.log(of(b))
            case Op(name, (a,)):
                return getattr(context, MPMATH.get(name, name))(of(a))
        raise Unreadable("no tree")

    return of(tree)


MPMATH = {
    "log": "log10", "abs": "fabs", "arcsin": "asin", "arccos": "acos", "arctan": "atan",
}  # fmt: skip


def _raised(context: Any, base: Any, exponent: Any, known: Fraction | None) -> Any:
    """A power; of a negative number with an odd root, the real one."""
    if abs(exponent) > 10_000:
        raise TooHard
    if known is not None and known.denominator % 2 and not context.im(base) and context.re(base) < 0:
        return (-1) ** known.numerator * (-context.re(base)) ** exponent
    return base**exponent


def somewhere(context: Any, name: str) -> Any:
    """A value for a variable, between 1 and 2: the same each time, and hardly a zero of anything."""
    return 1 + context.mpf(int.from_bytes(blake2b(name.encode(), digest_size=16).digest(), "big")) / 2**128


def near(a: Tree, b: Tree, bits: int = 0) -> bool | None:
    """Whether two trees agree in CLOSE digits (or to 2^-bits, absolute), None where they cannot be evaluated.

    What differs must do so with three times the digits as well: else it was but rounding that told them apart.
    """
    for more in (1, 3):
        close = _near(a, b, bits, bits + 60 if bits else int(DIGITS * 3.33) * more)
        if bits or close is not False:
            break
    return close


def _near(a: Tree, b: Tree, bits: int, precision: int) -> bool | None:
    from mpmath.ctx_mp import MPContext

    context = MPContext()  # of its own: mpmath's shared one is not for several threads
    context.prec = precision
    try:
        left, right = (evaluated(tree, context, lambda name: somewhere(context, name)) for tree in (a, b))
        if not all(context.isfinite(value) for value in (left, right)):
            return None
        allowed = context.mpf(2) ** -bits if bits else max(abs(left), abs(right)) * context.mpf(10) ** -CLOSE
        return bool(abs(left - right) <= allowed)
    except (ArithmeticError, AttributeError, NotImplementedError, TooHard, TypeError, Unreadable, ValueError):
        return None


class Bound:
    """log2 of (u, low) for a tree of radicals, and a bound of its degree."""

    def __init__(self) -> None:
        self.roots: dict[Any, int] = {}
        self.turn = 1  # all roots of unity are powers of (-1)^(1/turn)

    @property
    def degree(self) -> int:
        return math.prod(self.roots.values()) * self.turn

    def of(self, tree: Tree) -> tuple[float, float]:
        """Raises TooHard for what is no radical."""
        match tree:
            case Fraction():
                return math.log2(max(abs(tree.numerator), 1)), math.log2(tree.denominator)
            case "i":
                self.turn = math.lcm(self.turn, 2)
                return 0.0, 0.0
            case Op("neg", (a,)):
                return self.of(a)
            case Op("+", (a, b)):
                (u, low), (v, below) = self.of(a), self.of(b)
                return max(u + below, v + low) + 1, low + below
            case Op("*", (a, b)):
                (u, low), (v, below) = self.of(a), self.of(b)
                return u + v, low + below
            case Op("/", (a, b)):
                (u, low), (v, below) = self.of(a), self.of(b)
                return u + below, low + v
            case Op("root", (a, b)):
                return self._root(a, exact(b), tree)
            case Op("^", (a, b)):
                n = exact(b)
                if n is None or abs(n) > 200:
                    raise TooHard
                u, low = self.of(a) if n.denominator == 1 else self._root(a, Fraction(n.denominator), tree)
                u, low = (u, low) if n >= 0 else (low, u)
                return u * abs(n.numerator), low * abs(n.numerator)
            case Op("sin" | "cos" | "tan" | "cot" | "sec" | "csc", (a,)):
                turn = exact(Op("/", (a, "pi")))
                if turn is None:
                    raise TooHard
                self.turn = math.lcm(self.turn, 2, turn.denominator)
                return 2.0, 2.0
        raise TooHard

    def _root(self, a: Tree, degree: Fraction | None, tree: Tree) -> tuple[float, float]:
        if degree is None or degree.denominator != 1 or not 1 <= degree <= 60:
            raise TooHard
        k = degree.numerator
        self.roots[tree] = k
        u, low = self.of(a)
        return ((u + (k - 1) * low) / k, low) if u >= low else (u, ((k - 1) * u + low) / k)


def separated(a: Tree, b: Tree) -> int:
    """How many bits behind the point are enough to tell the difference of two radicals from 0. Raises TooHard."""
    bound = Bound()
    u, low = bound.of(Op("+", (a, Op("neg", (b,)))))
    bits = max(u, 1.0) * (bound.degree**2 - 1) + max(low, 1.0) + 10
    if bits > BITS:
        raise TooHard
    return math.ceil(bits)


def same(a: Tree, b: Tree) -> bool | None:
    """Whether two trees have the same value: True, False, or None where it cannot be told. Raises Unreadable."""
    if a == b:
        return True
    if isinstance(a, Fraction) and isinstance(b, Fraction):
        return a == b
    try:
        algebra = Algebra()
        left, right = algebra.ratio(a), algebra.ratio(b)
        x, y = algebra.rational(left), algebra.rational(right)
        if x is not None and y is not None:
            return x == y
        if algebra.same(left, right):
            return None if near(a, b) is False else True  # a branch that we took otherwise than the numbers do
    except (RecursionError, TooHard):
        pass
    if near(a, b) is False:
        return False
    try:
        return near(a, b, separated(a, b)) or None
    except (RecursionError, TooHard):
        return None


__all__ = ["near", "same"]
