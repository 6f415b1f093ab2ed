"""Step-by-step solutions of the taught families: what the model learns to think.

Every step is small enough to look up: one digit meets one digit, least significant first, and a running total is
written after each. Steps that skip (whole partial sums) teach a small model nothing; these do. Lines end in a total
whose last digit is a digit of the result and whose front is the carry into the next line.

    123 + 45 - 678           123 * 45                  gcd of 84 and 36
    3+5=8-8=0:0              3*5=15                    84/36=2
    0+2+4=6-7=-1:9           2*5=10+1=11               4-12=-8:2 ...
"""

from __future__ import annotations

from collections.abc import Sequence


def digits(number: int) -> list[int]:
    """Least significant first; 0 has one digit."""
    assert number >= 0
    return [int(c) for c in reversed(str(number))]


def chain_sum(numbers: Sequence[int], signs: Sequence[int]) -> str:
    """Term by term: each is copied out, then met digit by digit with the result so far.

    A total t leaves the digit t mod 10 and the carry t div 10, rounded down, so that a result below zero is a carry
    below zero at the top: digits - 10^columns. It stays so until the end, where one line turns it round.
    """
    assert len(numbers) == len(signs)
    assert signs[0] == 1
    columns = max(len(digits(n)) for n in numbers)
    above, top = _padded(numbers[0], columns), 0
    lines = []
    for number, sign in zip(numbers[1:], signs[1:], strict=True):
        mark = "+" if sign > 0 else "-"
        lines.append(f"{mark}{number}")
        carry = 0
        for i, digit in enumerate(_padded(number, columns)):
            total = above[i] + sign * digit
            line = f"{above[i]}{mark}{digit}={total}"
            if carry:
                total += carry
                line += f"{carry:+}={total}"
            lines.append(_with_digit(line, total))
            carry, above[i] = divmod(total, 10)
        top += carry
        lines.append(str(top))
    value = sum(d * 10**i for i, d in enumerate(above)) + top * 10**columns
    if value < 0:
        lines.append("neg " + "".join(map(str, _padded(-value, columns))))
    lines.append(str(value))
    return "\n".join(lines)


def _padded(number: int, columns: int) -> list[int]:
    places = digits(number)
    return places + [0] * (columns - len(places))


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
    assert value == int("".join(map(str, reversed(finished + above))))
    return "\n".join(lines)


def gcd(a: int, b: int) -> str:
    """Euclid by long division: bring digits down until the divisor fits, take it off q times, digit by digit.

    The first line copies the question as it stands: a smaller first number gives the quotient 0 and changes places.
    A division of several steps is announced by a line of its own; the remainder stands at the head of the next line.
    """
    lines = []
    while b:
        shown, rest, steps = str(a), 0, []
        for digit in shown:
            rest = rest * 10 + int(digit)
            if rest >= b or steps:
                rest, step = _take_off(rest, b)
                steps.append(step)
        if not steps:
            lines.append(f"{a}/{b}=0")
        elif len(steps) > 1:
            lines.append(f"{a}/{b}")
        lines += [line for step in steps for line in step]
        a, b = b, rest
    lines.append(str(a))
    return "\n".join(lines)


def _take_off(rest: int, b: int) -> tuple[int, list[str]]:
    """rest - q b for the largest q; b's columns only, as the remainder is smaller than b. One digit is a table's work."""
    q, remainder = divmod(rest, b)
    lines, carry = [f"{rest}/{b}={q}"], 0
    if b < 10 or not q:
        return remainder, lines
    above = digits(rest)
    for x, y in zip(above, digits(b), strict=False):
        total = x - q * y
        line = f"{q}*{y}={q * y} {x}-{q * y}={total}" if q > 1 else f"{x}-{y}={total}"
        if carry:
            total += carry
            line += f"{carry}={total}"
        carry = total // 10
        lines.append(_with_digit(line, total))
    return remainder, lines


def _with_digit(line: str, total: int) -> str:
    """A total's last digit is plain to see unless it is negative; then it is written out."""
    return line if total >= 0 else f"{line}:{total % 10}"
