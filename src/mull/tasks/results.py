"""Finds the result that an answer states: the last box, or what stands behind "answer is" or ####, or the last number.

Boxes beside each other are one result of several values, so that nobody is right by naming two. A box that was not
closed states nothing.
"""

from __future__ import annotations

import re

END = 20_000  # letters at the end of an answer in which its result is looked for
BOX = re.compile(r"\\(?:boxed|fbox|framebox)\s*(?=\{)|\\(?:boxed|fbox)\s*(?=[^\s{\\a-zA-Z]|\s[^\s{])")
BARE = re.compile(r"[^\s$.,;]+(?:[.,]\d+)*")
BETWEEN = re.compile(r"(?:\s|\$|\\[()\[\],;]|[,;]|\band\b|\bor\b|\\text\{\s*(?:and|or)\s*\}|\\q?quad)*")
SAID = re.compile(
    r"(?:(?<!\bno )\b(?:final\s+)?answer(?:\s+to\s+[^.:\n]{1,80}?)?\s*(?:is|:|=|\*\*\s*:)\s*|####)[\s:*]*",
    re.IGNORECASE,
)
STOP = re.compile(r"\.(?:\s|$)|\n")
DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)"
NUMBER = re.compile(rf"(?<![\w.,])-?\$?{DIGITS}(?:\s?/\s?{DIGITS})?(?:\s?\\?%)?|(?<=\$)-?{DIGITS}", re.ASCII)
JOINED = re.compile(rf"({NUMBER.pattern})\s*(?:or|and|to|-|–)\s*\$?$", re.ASCII)


def result(text: str, numbers: bool = False) -> str | None:
    """The result in its own writing, None if there is none; with `numbers`, the last number is one at last."""
    text = text.rpartition("</think>")[2][-END:]
    found = boxes(text)
    if found is not None:
        return found or None
    if said := [*SAID.finditer(text)]:
        rest = text[said[-1].end() :].strip()
        return _stated(STOP.split(rest, maxsplit=1)[0]) or None
    return last_number(text) if numbers else None


def boxes(text: str) -> str | None:
    """What the last box holds, joined by commas with those beside it; "" where it is not closed, None without any."""
    if not (found := [*BOX.finditer(text)]):
        return None
    spans = [_held(text, box) for box in found]
    last = spans[-1]
    if last is None:
        return ""
    held, edge = [last], found[-1].start()
    for box, span in zip(found[-2::-1], spans[-2::-1], strict=True):
        if span is None or span[1] > edge or not BETWEEN.fullmatch(text, span[1], edge):
            if span is not None and span[1] > edge:  # a box around the box
                continue
            break
        held.insert(0, span)
        edge = box.start()
    values = [value.strip() for value, _ in held]
    return ", ".join(dict.fromkeys(values))


def _held(text: str, box: re.Match[str]) -> tuple[str, int] | None:
    """(what a box holds, where it ends), None if it does not."""
    begin = box.end()
    if text[begin] != "{":
        bare = BARE.match(text, begin) or BARE.match(text, begin + 1)
        return (bare[0], bare.end()) if bare else None
    depth, at = 0, begin
    while at < len(text):
        letter = text[at]
        if letter == "\\":
            at += 1
        elif letter == "{":
            depth += 1
        elif letter == "}":
            depth -= 1
            if not depth:
                return text[begin + 1 : at], at + 1
        at += 1
    return None


def _stated(text: str) -> str:
    """A sentence's end without its dressing: **18**, $18$, `18`."""
    return text.strip().strip("*`_ ").rstrip(".!").strip()


def last_number(text: str) -> str | None:
    """The last number, with the one before it where a word alone stands between: "18 or 19" is not 19."""
    found = [*NUMBER.finditer(text)]
    if not found:
        return None
    last = found[-1]
    before = JOINED.search(text, max(0, last.start() - 40), last.start())
    return f"{before[1]}, {last[0]}" if before else last[0]


__all__ = ["boxes", "last_number", "result"]
