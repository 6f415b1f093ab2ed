"""One form for many writings of a value: a quotient of polynomials over *atoms*, with rational coefficients.

Atoms are variables, pi, e, primes and -1 with fractional exponents (roots, i), sums with fractional exponents (nested
roots), exponentials, logarithms, and functions of which nothing is known but their name. Sines and cosines are written
with exp(ix), so identities between them need no rules. Variables count as positive where a root or a logarithm is
taken apart. All work is bounded: TooHard.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

from mull.tasks.latex import Op, Tree
from mull.tasks.writings import Unreadable

STEPS = 40_000  # products of two terms
BITS = 20_000  # of a coefficient
TERMS = 400  # of a polynomial
TRIED = 2000  # divisors in the search for prime factors

Mono = tuple[tuple[int, Fraction], ...]  # (atom, exponent) by atom
Poly = dict[Mono, Fraction]
Ratio = tuple[Poly, Poly]
ONE = Fraction(1)
HALF = Fraction(1, 2)
UNIT: Poly = {(): ONE}


class TooHard(Exception):  # noqa: N818 - it is no error
    """More work than is worth it."""


class Algebra:
    """The atoms of one comparison, and how much work is left for it."""

    def __init__(self) -> None:
        self.keys: list[Any] = []
        self.ids: dict[Any, int] = {}
        self.steps = STEPS

    def atom(self, key: Any, exponent: Fraction = ONE) -> Poly:
        if key not in self.ids:
            self.ids[key] = len(self.keys)
            self.keys.append(key)
        return self.tidy({((self.ids[key], exponent),): ONE})

    # polynomials

    def spend(self, steps: int) -> None:
        self.steps -= steps
        if self.steps < 0:
            raise TooHard

    def add(self, a: Poly, b: Poly, sign: int = 1) -> Poly:
        total = dict(a)
        self.spend(len(b))
        for mono, number in b.items():
            value = total.get(mono, 0) + sign * number
            if value:
                total[mono] = Fraction(value)
            else:
                total.pop(mono, None)
        return total

    def times(self, a: Poly, b: Poly) -> Poly:
        self.spend(len(a) * len(b))
        product: Poly = {}
        for left, x in a.items():
            for right, y in b.items():
                number = x * y
                if number.numerator.bit_length() + number.denominator.bit_length() > BITS:
                    raise TooHard
                exponents = dict(left)
                for atom, exponent in right:
                    exponents[atom] = exponents.get(atom, Fraction(0)) + exponent
                mono = tuple(sorted((atom, e) for atom, e in exponents.items() if e))
                product[mono] = product.get(mono, Fraction(0)) + number
        if len(product) > TERMS:
            raise TooHard
        return self.tidy({mono: number for mono, number in product.items() if number})

    def tidy(self, poly: Poly) -> Poly:
        """Whole powers of the atoms that stand for numbers or for sums are taken out of their monomials."""
        for mono, number in poly.items():
            for atom, exponent in mono:
                kind, *what = self.keys[atom] if isinstance(self.keys[atom], tuple) else (self.keys[atom],)
                whole = exponent.numerator // exponent.denominator
                out: Poly | None = None
                if kind == "prime" and whole:
                    if abs(whole) * what[0].bit_length() > BITS:
                        raise TooHard
                    out = {(): Fraction(what[0]) ** whole}
                elif kind == "base" and whole > 0:
                    out = self.power(dict(what[0]), whole)
                elif kind == "-1" and (whole or (exponent != HALF and 12 % exponent.denominator == 0)):
                    return self._rotated(poly, mono, number, atom, exponent)
                if out is not None:
                    rest = tuple((a, e - whole if a == atom else e) for a, e in mono)
                    rest = tuple((a, e) for a, e in rest if e)
                    others = {m: n for m, n in poly.items() if m != mono}
                    return self.add(self.tidy(others), self.times({rest: number}, out))
        return poly

    def _rotated(self, poly: Poly, mono: Mono, number: Fraction, atom: int, exponent: Fraction) -> Poly:
        """Roots of unity whose order divides 24 have radicals: (-1)^(1/3) is 1/2 + i sqrt(3)/2."""
        rest = tuple((a, e) for a, e in mono if a != atom)
        others = {m: n for m, n in poly.items() if m != mono}
        exponent %= 2
        sign = -1 if exponent >= 1 else 1
        exponent %= 1
        value: Poly = {rest: number * sign}
        if exponent and 12 % exponent.denominator:
            value = {tuple(sorted((*rest, (atom, exponent)))): number * sign}
        elif exponent:
            thirds = next(k for k in range(3) if (exponent - Fraction(k, 3)).denominator in (1, 2, 4))
            quarters = int((exponent - Fraction(thirds, 3)) * 4) % 8
            i: Poly = {((atom, HALF),): ONE}
            third = self.add({(): HALF}, self.times({(): HALF}, self.times(i, self.root_of(3))))
            eighth = self.times(self.times({(): HALF}, self.root_of(2)), self.add(UNIT, i))
            for _ in range(thirds):
                value = self.times(value, third)
            for _ in range(quarters // 2):
                value = self.times(value, i)
            if quarters % 2:
                value = self.times(value, eighth)
        return self.add(self.tidy(others), value)

    def root_of(self, prime: int) -> Poly:
        return self.atom(("prime", prime), HALF)

    def power(self, poly: Poly, n: int) -> Poly:
        result, square = UNIT, poly
        while n:
            if n & 1:
                result = self.times(result, square)
            n >>= 1
            if n:
                square = self.times(square, square)
        return result

    # quotients

    def plus(self, a: Ratio, b: Ratio, sign: int = 1) -> Ratio:
        if a[1] == b[1]:
            return self.add(a[0], b[0], sign), a[1]
        return self.add(self.times(a[0], b[1]), self.times(b[0], a[1]), sign), self.times(a[1], b[1])

    def product(self, a: Ratio, b: Ratio) -> Ratio:
        return self.times(a[0], b[0]), self.times(a[1], b[1])

    def inverse(self, a: Ratio) -> Ratio:
        """Raises Unreadable for one through nothing. A lone term is divided by at once."""
        if not a[0]:
            raise Unreadable("division by zero")
        if len(a[0]) == 1:
            [(mono, number)] = a[0].items()
            inverse = self.tidy({tuple((atom, -e) for atom, e in mono): 1 / number})
            return self.times(a[1], inverse), UNIT
        return a[1], a[0]

    def same(self, a: Ratio, b: Ratio) -> bool:
        return not self.add(self.times(a[0], b[1]), self.times(b[0], a[1]), -1)

    # trees

    def ratio(self, tree: Tree) -> Ratio:
        """Raises TooHard, Unreadable."""
        match tree:
            case Fraction():
                return ({(): tree} if tree else {}), UNIT
            case "i":
                return self.atom("-1", HALF), UNIT
            case "inf":
                raise Unreadable("infinity is no number")
            case str():
                return self.atom(tree if tree in ("pi", "e") else ("variable", tree)), UNIT
            case Op("neg", (a,)):
                top, below = self.ratio(a)
                return {mono: -number for mono, number in top.items()}, below
            case Op("+", (a, b)):
                return self.plus(self.ratio(a), self.ratio(b))
            case Op("*", (a, b)):
                return self.product(self.ratio(a), self.ratio(b))
            case Op("/", (a, b)):
                return self.product(self.ratio(a), self.inverse(self.ratio(b)))
            case Op("^", (a, b)):
                return self.raised(self.ratio(a), self.ratio(b))
            case Op("root", (a, b)):
                return self.raised(self.ratio(a), self.inverse(self.ratio(b)))
            case Op(name, arguments):
                return self.applied(name, [self.ratio(a) for a in arguments])
        raise Unreadable("no tree")

    def rational(self, a: Ratio) -> Fraction | None:
        if a[0].keys() <= {()} and a[1].keys() == {()}:
            return a[0].get((), Fraction(0)) / a[1][()]
        return None

    def raised(self, base: Ratio, exponent: Ratio) -> Ratio:
        n = self.rational(exponent)
        if n is None:
            return self._exponential(base, exponent)
        if n.denominator == 1:
            if n < 0:
                base, n = self.inverse(base), -n
            value = self.rational(base)
            if value is not None:
                size = max(value.numerator.bit_length(), value.denominator.bit_length()) - (abs(value) == 1)
                if size * n > BITS:
                    raise TooHard
                return self.ratio(value ** (n.numerator % 2 if abs(value) == 1 else n.numerator))
            if len(base[0]) == 1 and base[1] == UNIT and n < BITS:
                [(mono, number)] = base[0].items()
                if abs(number) == 1:
                    return self.tidy({tuple((atom, e * n) for atom, e in mono): number**n.numerator}), UNIT
            if n > 200:
                raise TooHard
            return self.power(base[0], n.numerator), self.power(base[1], n.numerator)
        if n.denominator > 60 or abs(n) > 200:
            raise TooHard
        if not base[0]:
            return {}, UNIT
        return self.product(self._root(base[0], n), self.inverse(self._root(base[1], n)))

    def _root(self, poly: Poly, n: Fraction) -> Ratio:
        """poly^n. An odd root of a negative number is real."""
        mono, number = next(iter(poly.items())) if len(poly) == 1 else ((), content(poly))
        value = self._number(number, n)
        if len(poly) > 1:
            primitive = {mono: c / number for mono, c in poly.items()}
            if n.denominator % 2 and min(primitive.items())[1] < 0:
                primitive = {mono: -c for mono, c in primitive.items()}
                value = self.product(value, self._number(Fraction(-1), n))
            whole = n.numerator // n.denominator
            inner = self.atom(("base", frozenset(primitive.items())), n - whole), UNIT
            outer = self.power(primitive, abs(whole)), UNIT
            return self.product(self.product(value, inner), outer if whole >= 0 else self.inverse(outer))
        for atom, exponent in mono:
            key = self.keys[atom]
            if exponent == 1 or n.denominator % 2 or key in ("pi", "e") or key[0] == "prime":
                factor = self.tidy({((atom, exponent * n),): ONE})
            else:
                inner = frozenset({(((atom, exponent),), ONE)})
                factor = self.atom(("base", inner), n)
            value = self.product(value, (factor, UNIT))
        return value

    def _number(self, number: Fraction, n: Fraction) -> Ratio:
        """number^n."""
        result: Ratio = (UNIT, UNIT)
        for part, sign in ((abs(number.numerator), 1), (number.denominator, -1)):
            for prime, k in factors(part).items():
                result = self.product(result, (self.atom(("prime", prime), k * n * sign), UNIT))
        if number < 0:
            if n.denominator % 2:
                return self.product(result, ({(): Fraction((-1) ** n.numerator)}, UNIT))
            return self.product(result, (self.atom("-1", n), UNIT))
        return result

    def _exponential(self, base: Ratio, exponent: Ratio) -> Ratio:
        """base^exponent for an exponent that is no number: a product over its terms."""
        result: Ratio = (UNIT, UNIT)
        if len(base[0]) != 1 or len(base[1]) != 1:
            return self.opaque("power", [base, exponent]), UNIT
        [(mono, number)], [(below, divisor)] = base[0].items(), base[1].items()
        number /= divisor
        if number < 0 or below:
            return self.opaque("power", [base, exponent]), UNIT
        powers: list[tuple[Any, Fraction]] = [(self.keys[atom], e) for atom, e in mono]
        powers += [(("prime", p), Fraction(k)) for p, k in factors(number.numerator).items()]
        powers += [(("prime", p), Fraction(-k)) for p, k in factors(number.denominator).items()]
        for key, e in powers:
            for term, c in exponent[0].items():
                result = self.product(result, (self._term(key, term, exponent[1], c * e), UNIT))
        return result

    def _term(self, key: Any, term: Mono, below: Poly, c: Fraction) -> Poly:
        """key^(c * term / below)."""
        if below.keys() == {()}:
            c, below = c / below[()], UNIT
            if not term:
                return self.atom(key, c)
            if key == "e" and {(self.keys[atom], e) for atom, e in term} == {("-1", HALF), ("pi", ONE)}:
                return self.atom("-1", c)
            if key == "e" and len(term) == 1 and term[0][1] == 1 and self.keys[term[0][0]][0] == "log":
                [prime] = self.keys[term[0][0]][1:]
                return self.atom(prime, c)  # e^(c ln p)
        return self.atom(("exp", key, term, frozenset(below.items())), c)

    def opaque(self, name: str, arguments: list[Ratio]) -> Poly:
        """A function of which nothing is known but its name."""
        return self.atom(("fn", name, *(key for a in arguments for key in self._key(a))))

    @staticmethod
    def _key(a: Ratio) -> tuple[frozenset[Any], frozenset[Any]]:
        lead = a[1][min(a[1])]
        return tuple(frozenset((mono, c / lead) for mono, c in poly.items()) for poly in a)  # type: ignore[return-value]

    # functions

    def applied(self, name: str, given: list[Ratio]) -> Ratio:
        first = given[0]
        if name in CIRCULAR:
            return CIRCULAR[name](self, first)
        if name == "exp":
            return self.raised((self.atom("e"), UNIT), first)
        if name in ("ln", "log"):
            base = given[1] if len(given) > 1 else (UNIT, UNIT) if name == "ln" else ({(): Fraction(10)}, UNIT)
            below = (UNIT, UNIT) if name == "ln" else self.logarithm(base)
            return self.product(self.logarithm(first), self.inverse(below))
        values = [self.rational(a) for a in given]
        if name in WHOLE and None not in values:
            return self.ratio(WHOLE[name](*values))
        return self.opaque(name, given), UNIT

    def logarithm(self, a: Ratio) -> Ratio:
        """A sum over the factors; variables count as positive. Raises Unreadable for that of nothing."""
        if not a[0]:
            raise Unreadable("logarithm of zero")
        if len(a[0]) > 1 or len(a[1]) > 1:
            return self.opaque("ln", [a]), UNIT
        [(mono, number)], [(below, divisor)] = a[0].items(), a[1].items()
        number /= divisor
        if number < 0:
            return self.opaque("ln", [a]), UNIT
        powers: list[tuple[Any, Fraction]] = [(self.keys[atom], e) for atom, e in mono]
        powers += [(self.keys[atom], -e) for atom, e in below]
        powers += [(("prime", p), Fraction(k)) for p, k in factors(number.numerator).items()]
        powers += [(("prime", p), Fraction(-k)) for p, k in factors(number.denominator).items()]
        total: Poly = {}
        for key, e in powers:
            if key[0] == "exp" and key[1] == "e":
                total = self.add(total, {key[2]: e}) if key[3] == frozenset(UNIT.items()) else total
                if key[3] != frozenset(UNIT.items()):
                    return self.opaque("ln", [a]), UNIT
            else:
                total = self.add(total, {(): e} if key == "e" else self.times({(): e}, self.atom(("log", key))))
        return total, UNIT

    def exponentials(self, a: Ratio) -> tuple[Ratio, Ratio, Ratio]:
        """exp(ia), exp(-ia), i."""
        i: Ratio = (self.atom("-1", HALF), UNIT)
        turned = self.product(i, a)
        back = self.product(({(): -ONE}, UNIT), turned)
        e: Ratio = (self.atom("e"), UNIT)
        return self.raised(e, turned), self.raised(e, back), i

    def cos(self, a: Ratio) -> Ratio:
        forth, back, _ = self.exponentials(a)
        return self.product(({(): HALF}, UNIT), self.plus(forth, back))

    def sin(self, a: Ratio) -> Ratio:
        forth, back, i = self.exponentials(a)
        return self.product(self.product(({(): -HALF}, UNIT), i), self.plus(forth, back, -1))

    def hyperbolic(self, a: Ratio, sign: int) -> Ratio:
        e: Ratio = (self.atom("e"), UNIT)
        back = self.raised(e, self.product(({(): -ONE}, UNIT), a))
        return self.product(({(): HALF}, UNIT), self.plus(self.raised(e, a), back, sign))


def over(above: Callable[..., Ratio], below: Callable[..., Ratio]) -> Callable[[Algebra, Ratio], Ratio]:
    return lambda algebra, a: algebra.product(above(algebra, a), algebra.inverse(below(algebra, a)))


def one(algebra: Algebra, a: Ratio) -> Ratio:
    return UNIT, UNIT


def sinh(algebra: Algebra, a: Ratio) -> Ratio:
    return algebra.hyperbolic(a, -1)


def cosh(algebra: Algebra, a: Ratio) -> Ratio:
    return algebra.hyperbolic(a, 1)


CIRCULAR: Mapping[str, Callable[[Algebra, Ratio], Ratio]] = {
    "sin": Algebra.sin, "cos": Algebra.cos, "tan": over(Algebra.sin, Algebra.cos),
    "cot": over(Algebra.cos, Algebra.sin), "sec": over(one, Algebra.cos), "csc": over(one, Algebra.sin),
    "sinh": sinh, "cosh": cosh, "tanh": over(sinh, cosh),
}  # fmt: skip


def factorial(n: Fraction) -> Fraction:
    if n.denominator != 1 or n < 0:
        raise Unreadable("a factorial of no natural number")
    if n > 1500:
        raise TooHard
    return Fraction(math.factorial(n.numerator))


def binomial(n: Fraction, k: Fraction) -> Fraction:
    if n.denominator != 1 or k.denominator != 1 or n < 0 or k < 0:
        raise Unreadable("a binomial of no natural numbers")
    if n > 1500:
        raise TooHard
    return Fraction(math.comb(n.numerator, k.numerator))


WHOLE: Mapping[str, Callable[..., Fraction]] = {
    "factorial": factorial, "binomial": binomial, "abs": lambda a: Fraction(abs(a)),
    "floor": lambda a: Fraction(math.floor(a)), "ceil": lambda a: Fraction(math.ceil(a)),
}  # fmt: skip


def content(poly: Poly) -> Fraction:
    """The positive number that makes the coefficients whole and without a common factor when divided by it."""
    above = math.gcd(*(c.numerator for c in poly.values()))
    below = math.lcm(*(c.denominator for c in poly.values()))
    return Fraction(above, below)


@functools.lru_cache(maxsize=1024)
def _factors(n: int) -> tuple[tuple[int, int], ...]:
    found: dict[int, int] = {}
    for divisor in (2, 3, *range(5, TRIED, 2)):
        while n % divisor == 0:
            found[divisor] = found.get(divisor, 0) + 1
            n //= divisor
        if divisor * divisor > n:
            break
    if n > 1:  # a prime, or what no small prime divides
        root = math.isqrt(n)
        found[root if root * root == n else n] = 2 if root * root == n else 1
    return tuple(found.items())


def factors(n: int) -> dict[int, int]:
    """Prime factors of a positive number and their powers; a large one may be left whole. Raises TooHard."""
    if n.bit_length() > 600:
        raise TooHard
    return dict(_factors(n))


def exact(tree: Tree) -> Fraction | None:
    """The value of a tree that is a rational number."""
    try:
        algebra = Algebra()
        return algebra.rational(algebra.ratio(tree))
    except (TooHard, Unreadable):
        return None


__all__ = ["UNIT", "WHOLE", "Algebra", "Poly", "Ratio", "TooHard", "exact"]
