"""One writing of many: LaTeX and plain text without what has no meaning, for the parser (latex.py)."""

from __future__ import annotations

import re

LONGEST = 2000  # letters of a result
FUNCTIONS = (
    "arcsin", "arccos", "arctan", "sinh", "cosh", "tanh", "sin", "cos", "tan", "cot", "sec", "csc", "ln", "log", "exp",
)  # fmt: skip
SYMBOLS = {
    "−": "-", "–": "-", "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "÷": r"\div ", "π": r"\pi ", "∞": r"\infty ",
    "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "≈": r"\approx ", "∈": r"\in ", "∪": r"\cup ", "°": r"^\circ ",
    "±": r"\pm ", "∓": r"\mp ", "²": "^2", "³": "^3", "θ": r"\theta ", "’": "'", "‘": "'", "\u00a0": " ",
    "√": r"\sqrt ",
    "₀": "_0", "₂": "_2", "₃": "_3", "₄": "_4", "₅": "_5", "₆": "_6", "₇": "_7", "₈": "_8", "₉": "_9",
}  # fmt: skip
REWRITTEN = tuple(
    (re.compile(pattern), new)
    for pattern, new in (
        (r"\\(?:boxed|fbox|framebox)(?![a-zA-Z])", ""),
        (r"\\(?:left|right|[bB]igg?[lrm]?|displaystyle|textstyle|limits)(?![a-zA-Z])\.?", ""),
        (r"\\[dtc]frac(?![a-zA-Z])", r"\\frac"),
        (r"\\[dt]binom(?![a-zA-Z])", r"\\binom"),
        (r",\s?\\!\s*(?=\d{3})|\{,\}\s*(?=\d{3})|(?<=\d)(?:\\,|\\ )(?=\d{3}(?!\d))", ""),
        (r"\\(?:text)?color\s*\{[^{}]*\}", ""),
        (r"(?<![\d.,/])(\d{1,3}) (\d{3})(?![\d.,/])", r"\1\2"),
        (r"(?<!\\)\\[,;:! ]|~|\\q?quad(?![a-zA-Z])|\\(?:no)?break(?![a-zA-Z])", " "),
        (r"\^\s*\{?\s*(?:\\circ|\\degree)(?![a-zA-Z])\s*\}?|\\degree(?![a-zA-Z])", r"\\deg "),
        (r"-\s*\\\$", r"\\$-"),
        (r"\\\$", r"\\money "),
        (r"€|£|\\(?:pounds|euro)(?![a-zA-Z])", ""),
        (r"\{([^{}]*)\\choose(?![a-zA-Z])([^{}]*)\}", r"\\binom{\1}{\2}"),
        (r"(?<!\\)\\[()\[\]]|[$*]{2}|\$|`", " "),
        (r"\\(?:lbrace|\{)", r"\\lset "),
        (r"\\(?:rbrace|\})", r"\\rset "),
        (r"\\(?:lvert|rvert|vert|mid)(?![a-zA-Z])", "|"),
        (r"\\(?:dots|ldots|cdots)(?![a-zA-Z])", "..."),
        (r"^\s*[a-zA-Z]\s*\(\s*[a-z]\s*(?:,\s*[a-z]\s*)*\)\s*=", ""),
        (r"\\%|%", r"\\percent "),
        (r"\\[hv]?phantom(?![a-zA-Z])\s*(?:\{[^{}]*\})?", ""),
    )
)
TEXT = re.compile(r"\\(text|mbox|hbox|textrm|textbf|textit|textnormal|mathrm|mathbf|mathit|mathsf|operatorname)"
                  r"\s*\{((?:[^{}]|\{[^{}]*\})*)\}")  # fmt: skip


REPEATING = re.compile(r"(?<![\d.])(\d*)\.(\d*)\\(?:overline|bar)\s*\{\s*(\d+)\s*\}", re.ASCII)
LABEL = re.compile(r"\\word<(?:the )?(?:final )?answer(?: is)?:?\s*>:?", re.IGNORECASE)


class Unreadable(ValueError):  # noqa: N818 - it is no error of ours
    """A text that is no result we know."""


def cleaned(text: str) -> str:
    """One writing of many: without what has no meaning, symbols as commands, \\text{...} as \\word<...>."""
    if len(text) > LONGEST:
        raise Unreadable("too long")
    text = unrepeated(text)
    for symbol, command in SYMBOLS.items():
        text = text.replace(symbol, command)
    for pattern, new in REWRITTEN:
        text = pattern.sub(new, text)
    text = TEXT.sub(_unwrapped, text).strip()
    return text[label.end() if (label := LABEL.match(text)) else 0 :].strip().rstrip(".,;").strip()


def unrepeated(text: str) -> str:
    """0.1\\overline{6} as a fraction."""
    return REPEATING.sub(_fraction, text)


def _fraction(found: re.Match[str]) -> str:
    whole, fixed, again = found.groups()
    value = int(whole + fixed + again) - int(whole + fixed or 0)
    return rf"\frac{{{value}}}{{{10 ** len(fixed) * (10 ** len(again) - 1)}}}"


def _unwrapped(found: re.Match[str]) -> str:
    """What \\text{...} holds: words as \\word<...>, and all else as if it stood outside."""
    command, inside = found[1], found[2]
    plain = " ".join(inside.replace("\\", " ").split())
    if counted := re.fullmatch(r"\$?\s?([\d.,]*\d)\s+([A-Za-z][A-Za-z ]*)", plain, re.ASCII):
        return f" {counted[1]} \\word<{counted[2]}>"
    if not re.search(r"[A-Za-z]", plain) or plain in ("money", "percent"):
        return f" {inside} "
    if re.fullmatch(r"[,;]? ?(?:and|or)", plain):
        return f" {plain} "
    if command == "operatorname" or (command.startswith("math") and len(plain) == 1):
        return f" \\{plain} " if plain in FUNCTIONS else f" {plain} "
    return f"\\word<{re.sub('[<>]', ' ', plain)}>"


__all__ = ["FUNCTIONS", "LONGEST", "Unreadable", "cleaned", "unrepeated"]
