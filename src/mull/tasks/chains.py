"""Step-by-step solutions of the taught families: what the model learns to think.

Two rules, found by experiment (dev/LOG.md). Every step is small enough to look up: one digit meets one digit, least
significant first, and the carry stands in the total just written; steps that skip (whole partial sums) teach a small
model nothing. And everything a step reads stands near: what is left of the problem is written out anew before each
round, in the question's own spelling, so that no step has to find the third digit of the fourth number far above.

    514 - 544 + 386            123 * 45               112 and 987
    0|514 - 544 + 386          3*5=15                 112/987=0
    4-4=0                      2*5=10+1=11            987/112=8
    1-4=-3:7                   1*5=5+1=6              8*2=16 7-16=-9:1
    ...                        0                      ...

A total below zero is followed by its digit, the total mod 10; the carry is the total div 10, rounded down.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

SLIPS = 0.15  # share of divisions whose quotient is first guessed one off, in chains written with a generator


def digits(number: int) -> list[int]:
    """Least significant first; 0 has one digit."""
    assert number >= 0
    return [int(c) for c in reversed(str(number))]


def _padded(number: int, columns: int) -> list[int]:
    places = digits(number)
    return places + [0] * (columns - len(places))


def _written(places: Sequence[int]) -> str:
    """Most significant first, as people write."""
    return "".join(map(str, reversed(places)))


def _with_digit(line: str, total: int) -> str:
    """A total's last digit is plain to see unless it is negative; then it is written out."""
    return line if total >= 0 else f"{line}:{total % 10}"


def chain_sum(numbers: Sequence[int], signs: Sequence[int]) -> str:
    """Term by term. The result so far is `carry|digits`, worth carry * 10^columns + digits: it may be below zero
    without any digit being so. A result below zero is turned round at the end, digit by digit: `- c|ddd`.
    The first line has the form of all later ones, so that no round is a special case.

    `signs` holds +1 or -1 per number, the first always +1.
    """
    assert len(numbers) == len(signs)
    assert signs[0] == 1
    columns = max(len(digits(n)) for n in numbers)
    so_far, top = _padded(numbers[0], columns), 0
    left = [f" {'+' if sign > 0 else '-'} {n}" for n, sign in zip(numbers[1:], signs[1:], strict=True)]
    lines = [f"0|{_written(so_far)}" + "".join(left)]
    for i, (number, sign) in enumerate(zip(numbers[1:], signs[1:], strict=True), 1):
        mark, carry = "+" if sign > 0 else "-", 0
        for column, digit in enumerate(_padded(number, columns)):
            total = so_far[column] + sign * digit
            line = f"{so_far[column]}{mark}{digit}={total}"
            if carry:
                total += carry
                line += f"{carry:+}={total}"
            lines.append(_with_digit(line, total))
            carry, so_far[column] = divmod(total, 10)
        top += carry
        lines.append(f"{top}|{_written(so_far)}" + "".join(left[i:]))
    value = top * 10**columns + int(_written(so_far))
    if value < 0:
        front, rest = divmod(-value, 10**columns)
        turned = _padded(rest, columns)
        pairs = zip([*so_far, top], [*turned, front], strict=True)
        lines.append(" ".join(f"{old}:{new}" for old, new in pairs))
        lines.append(f"- {front}|{_written(turned)}")
    lines.append(str(value))
    return "\n".join(lines)


def products(a: int, b: int) -> str:
    """Schoolbook: for each digit of b a row of a's digits, each adding the carry and the row above's digit."""
    above: list[int] = []
    lines, finished = [], []
    for row, y in enumerate(digits(b)):
        carry, totals = 0, []
        for i, x in enumerate(digits(a)):
            total = x * y
            line = f"{x}*{y}={total}"
            if i:
                total += carry
                line += f"+{carry}={total}"
            if row:
                total += above[i]
                line += f"+{above[i]}={total}"
            carry = total // 10
            totals.append(total % 10)
            lines.append(line)
        lines.append(str(carry))
        totals.append(carry)
        finished.append(totals[0])
        above = totals[1:]
    value = a * b
    lines.append(str(value))
    assert value == int(_written(finished + above))
    return "\n".join(lines)


def gcd(a: int, b: int, slips: Random | None = None) -> str:
    """Euclid by long division: bring digits down until the divisor fits, take it off q times, digit by digit.

    The first line copies the question as it stands: a smaller first number gives the quotient 0 and changes places.
    A division of several steps is announced by a line of its own; the remainder stands at the head of the next line.

    With `slips`, a quotient is now and then one off at first, and mended: taken off once more where it was too small;
    where the top digit went below zero, `x`, and the divisor is added back. So a chain shows what to do after a wrong
    guess, which a model makes often and a textbook never. (Guessing again instead of adding back makes loops.)
    """
    lines = []
    while b:
        rest, steps = 0, []
        for digit in str(a):
            rest = rest * 10 + int(digit)
            if rest >= b or steps:
                steps.append(_divide(rest, b, slips))
                rest %= b
        if not steps:
            steps.append(_divide(a, b, slips))
        elif len(steps) > 1:
            lines.append(f"{a}/{b}")
        lines += [line for step in steps for line in step]
        a, b = b, rest
    lines.append(str(a))
    return "\n".join(lines)


def _divide(rest: int, b: int, slips: Random | None) -> list[str]:
    """The lines of one quotient digit, wrong guesses included. One-digit divisors are a table's work."""
    q = rest // b
    if b < 10:
        return [f"{rest}/{b}={q}:{rest % b}"]
    slip = slips.random() < SLIPS if slips is not None else False
    if slip and slips is not None:
        if q > 1 and slips.random() < 0.5:
            return _take_off(rest, b, q - 1) + _take_off(rest - (q - 1) * b, b, 1)
        if q < 9 and len(str(rest)) >= len(str(b)):
            return _take_off(rest, b, q + 1) + _add_back(rest - (q + 1) * b, b)
    return _take_off(rest, b, q) if q else [f"{rest}/{b}=0"]


def _take_off(rest: int, b: int, q: int) -> list[str]:
    """rest - q b, column by column; columns above b's only where they hold something after all."""
    lines, carry = [f"{rest}/{b}={q}"], 0
    columns = len(str(b)) if rest - q * b < 10 ** len(str(b)) else len(str(rest))
    for x, y in zip(_padded(rest, columns), _padded(b, columns), strict=False):
        total = x - q * y
        line = f"{q}*{y}={q * y} {x}-{q * y}={total}" if q > 1 else f"{x}-{y}={total}"
        if carry:
            total += carry
            line += f"{carry}={total}"
        carry = total // 10
        lines.append(_with_digit(line, total))
    return lines


def _add_back(below: int, b: int) -> list[str]:
    """below + b, where -b <= below < 0 stands in the columns as below + 10^n."""
    lines, carry = ["x"], 0
    columns = len(str(b))
    for x, y in zip(_padded(below % 10**columns, columns), digits(b), strict=True):
        total = x + y + carry
        lines.append(f"{x}+{y}={x + y}" + (f"+1={total}" if carry else ""))
        carry = total // 10
    return lines
