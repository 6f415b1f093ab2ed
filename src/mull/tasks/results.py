"""Finds the result that an answer states: the last box, or what stands behind "answer is" or ####, or the last number.

Boxes beside each other are one result of several values, so that nobody is right by naming two. A box that was not
closed states nothing.
"""

from __future__ import annotations

import re

from mull.tasks.units import MULTIPLIED

END = 20_000  # letters at the end of an answer in which its result is looked for
BOX = re.compile(r"\\(?:boxed|fbox|framebox)\s*(?=\{)|\\(?:boxed|fbox)\s*(?=[^\s{\\a-zA-Z]|\s[^\s{])")
BRACE = re.compile(r"\\.|[{}]", re.DOTALL)  # escaped ones are none
APART = 60  # letters between boxes that are beside each other, at most
BARE = re.compile(r"[^\s$.,;]+(?:[.,]\d+)*")
BETWEEN = re.compile(r"(?:\s|\$|\\[()\[\],;]|[,;]|\band\b|\bor\b|\\text\{\s*(?:and|or)\s*\}|\\q?quad)*")
SAID = re.compile(
    r"(?:(?<!\bno )\b(?:final\s+)?answer(?:\s+to\s+[^.:\n]{1,80}?)?\s*(?:is|:|=|\*\*\s*:)\s*|####)[\s:*]*",
    re.IGNORECASE,
)
STOP = re.compile(r"\.(?:\s|$)|\n|,\s+(?=(?:not|since|because|as)\b)")
MARK = re.compile(r"<\|\w{1,30}\|>")  # of a chat template, left behind
DENIED = re.compile(r"(?:\b(?:not|never|cannot|neither|nor)|n't)(?:\s+(?:be|equal(?: to)?))?[\s$*(]*(?:\\[(\[]\s*)?$")
TOUCHED = re.compile(
    r"(?:[+/^×÷·\d]|[\w)}]\s*-|(?<!\n)-(?! )|\\(?:times|cdot|div|pm|sqrt|[dtc]?frac)|"
    r"\\(?:sqrt(?:\[[^\]]{0,9}\])?|[dtc]?frac(?:\{[^{}]{0,40}\})?)\s*\{)[ ]*$"
)  # fmt: skip - before a box
GOES_ON = re.compile(
    r"[\d{^]|\s*(?:\\times|\\cdot|\\div|\\pi|\\sqrt|[\^/×÷·+])|\s*(?:\$|\\[)\]])?\s*(?:\\text\s*\{\s*)?"
    + MULTIPLIED
    + r"\b"
)
DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)"
NUMBER = re.compile(rf"(?<![\w.,])-?\$?{DIGITS}(?:\s?/\s?{DIGITS})?(?:\s?\\?%)?|(?<=\$)-?{DIGITS}", re.ASCII)
JOINED = re.compile(rf"({NUMBER.pattern})\s*(?:or|and|to|-|–)\s*\$?$", re.ASCII)


def result(text: str, numbers: bool = False) -> str | None:
    """The result in its own writing, None if there is none; with `numbers`, the last number is one at last."""
    text = spoken(text)[-END:]
    found = boxes(text)
    if found is not None:
        return found[0] or None
    if said := [*SAID.finditer(text)]:
        rest = text[said[-1].end() :].strip()
        return _stated(STOP.split(rest, maxsplit=1)[0]) or None
    return last_number(text) if numbers else None


def spoken(text: str) -> str:
    """What an answer says after its thinking: nothing where that does not end."""
    text = text.rpartition("</think>")[2]
    return "" if "<think>" in text else MARK.sub("", text)


def boxes(text: str) -> tuple[str, int] | None:
    """What the last box holds, joined by commas with those beside it, and where the first of them begins.

    It is "" where the last is not closed, is denied, or is part of something larger. None without any box; an empty
    one is none.
    """
    closing = _closing(text)
    all_ = [(box, _held(text, box, closing)) for box in BOX.finditer(text)]
    kept = [(box, span) for box, span in all_ if span is None or span[0].strip()]
    if not kept:
        return None
    found, spans = [box for box, _ in kept], [span for _, span in kept]
    if spans[-1] is None:
        return "", found[-1].start()
    begin, end = found[-1].start(), spans[-1][1]
    before = text[max(0, begin - 60) : begin]
    if DENIED.search(before) or TOUCHED.search(before) or GOES_ON.match(text, end):
        return "", begin
    held, edge = [spans[-1][0]], begin
    for box, span in zip(found[-2::-1], spans[-2::-1], strict=True):
        if span is not None and span[1] > edge:  # a box around the box
            continue
        if span is None or edge - span[1] > APART or not BETWEEN.fullmatch(text, span[1], edge):
            break
        held.insert(0, span[0])
        edge = box.start()
    return ", ".join(dict.fromkeys(value.strip() for value in held)), edge


def _closing(text: str) -> dict[int, int]:
    """Where each brace that is closed is closed."""
    pairs, opened = dict[int, int](), list[int]()
    for found in BRACE.finditer(text):
        if found[0] == "{":
            opened.append(found.start())
        elif found[0] == "}" and opened:
            pairs[opened.pop()] = found.start()
    return pairs


def _held(text: str, box: re.Match[str], closing: dict[int, int]) -> tuple[str, int] | None:
    """(what a box holds, where it ends), None if it does not end."""
    begin = box.end()
    if text[begin] == "{":
        end = closing.get(begin)
        return None if end is None else (text[begin + 1 : end], end + 1)
    bare = BARE.match(text, begin) or BARE.match(text, begin + 1)
    return (bare[0], bare.end()) if bare else None


def _stated(text: str) -> str:
    """A sentence's end without its dressing: **18**, $18$, `18`."""
    return text.strip().strip("*`_ ").rstrip(".!").strip()


def last_number(text: str) -> str | None:
    """The last number, with the one before it where a word alone stands between: "18 or 19" is not 19."""
    found = [*NUMBER.finditer(text)]
    if not found:
        return None
    last = found[-1]
    if DENIED.search(text[max(0, last.start() - 40) : last.start()]):
        return None
    before = JOINED.search(text, max(0, last.start() - 40), last.start())
    return f"{before[1]}, {last[0]}" if before else last[0]


__all__ = ["boxes", "last_number", "result", "spoken"]
