"""Thinking and answer taken apart while they come: in text (Parser) or token by token (Listener).

Models put their thoughts between marks, mostly <think> and </think>. Where a vocabulary has tokens for these, only the
tokens count: the same characters spelt out within a thought are part of it. A thought is opened by the prompt's end or
by the answer's beginning, blanks aside; a mark that the prompt has and the answer repeats is one mark. The first
closing mark ends the thought, and all that follows is the answer, further marks included.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Container
from dataclasses import dataclass, field

from mull.text.pieces import Pieces
from mull.text.stops import StopTexts, unfinished
from mull.text.tokenizer import END_THINK, THINK


@dataclass(frozen=True)
class Marks:
    """What opens and closes a thought."""

    open: str
    close: str


MARKS = (
    Marks(THINK, END_THINK),
    Marks("[THINK]", "[/THINK]"),  # Magistral
    Marks("<seed:think>", "</seed:think>"),
    Marks("◁think▷", "◁/think▷"),  # Kimi-VL
    Marks("<|START_THINKING|>", "<|END_THINKING|>"),  # Command A
    Marks("<|inner_prefix|>", "<|inner_suffix|>"),  # Apertus
    Marks("<thought>", "</thought>"),  # EXAONE Deep
)


def marks_of(template: str, vocabulary: Container[str]) -> Marks:
    """Those that the template writes or looks for, or else that the vocabulary has; or else <think>."""
    written = (marks for marks in MARKS if marks.close in template)
    had = (marks for marks in MARKS if marks.open in vocabulary and marks.close in vocabulary)
    return next(written, None) or next(had, MARKS[0])


@dataclass
class Parser:
    """Takes text apart as it arrives, cut anywhere. Feed pieces; flush at the end.

    `thinking` says whether the text is within a thought; with `may_think` it may begin by opening one. Text that may be
    the beginning of a mark is held back until it is known not to be.
    """

    thinking: bool = True
    may_think: bool = False
    marks: Marks = MARKS[0]
    _blanks: list[str] = field(default_factory=list, repr=False)  # before anything else
    _held: str = field(default="", repr=False)
    _begun: bool = field(default=False, repr=False)

    def feed(self, text: str) -> tuple[str, str]:
        """(new reasoning, new content)."""
        if not self._begun and (self.thinking or self.may_think):
            begun = self._begin(text)
            if begun is None:
                return "", ""
            text = begun
        if not self.thinking:
            return "", text
        text = self._held + text
        reasoning, mark, content = text.partition(self.marks.close)
        if mark:
            self.thinking, self._held = False, ""
            return reasoning, content
        keep = unfinished(text, [self.marks.close])
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], ""

    def _begin(self, text: str) -> str | None:
        """What is behind an opening mark, or all text where it is none; None while that is not known."""
        text = self._held + text
        begun = text.lstrip()
        self._blanks.append(text[: len(text) - len(begun)])
        self._held = begun
        if len(begun) < len(self.marks.open) and self.marks.open.startswith(begun):
            return None
        blanks, self._blanks, self._held, self._begun = "".join(self._blanks), [], "", True
        opened = begun.startswith(self.marks.open)
        self.thinking |= opened
        self.may_think = False
        return begun[len(self.marks.open) :] if opened else blanks + begun

    @property
    def held(self) -> int:
        """How many letters may be a mark's beginning."""
        return len(self._held)

    def flush(self) -> tuple[str, str]:
        held = "".join(self._blanks) + self._held
        self._blanks, self._held, self.may_think = [], "", False
        return (held, "") if self.thinking else ("", held)


class _Trimmed:
    """`text.strip(blanks)` of text as it comes."""

    def __init__(self, blanks: str | None):
        self.blanks, self.begun, self.held = blanks, False, list[str]()

    def feed(self, text: str) -> str:
        kept = text.rstrip(self.blanks)
        if not kept:
            if self.begun and text:
                self.held.append(text)
            return ""
        whole = "".join([*self.held, kept]) if self.begun else kept.lstrip(self.blanks)
        self.begun, self.held = True, [text[len(kept) :]]
        return whole


class _Stopped(_Trimmed):
    """The same up to a stop text, which may itself be blanks."""

    def __init__(self, stop: StopTexts):
        super().__init__(None)
        self.stop = stop

    def feed(self, text: str) -> str:
        return super().feed(self.stop.feed(text))

    def flush(self) -> str:
        return super().feed(self.stop.flush())


class Listener:
    """Hears an answer's tokens; what it says of them all together is what `Chat.parse` says.

    `thinking` is whether the next token is within a thought, and `undecided` whether the answer may still open one.
    `opens` and `closes` are the ids that do so, None where marks are spelt out. `thinking_tokens` counts the tokens of
    the thought without its marks. Ids of `stops` are no part of the text.
    """

    def __init__(
        self, spelling: Callable[[], Pieces], stops: Container[int], marks: Marks, ids: tuple[int | None, int | None],
        opened: bool, may_think: bool,
    ):  # fmt: skip
        self.spelling, self.stops, self.pieces = spelling, stops, spelling()
        self.opens, self.closes = ids if None not in ids else (None, None)
        self.parser = Parser(opened, may_think, marks) if self.closes is None else None
        self.thinking, self.undecided, self.thinking_tokens = opened, may_think, 0
        self._at, self._starts = 0, deque[int]()  # of the text; of tokens that may turn out to be the closing mark's
        self._blanks: list[str] | None = [] if opened or may_think else None  # before anything else
        self._half = False
        self._reasoning, self._content = _Trimmed("\n"), _Trimmed(None)  # `stop_at` may change the second

    def stop_at(self, stop: StopTexts) -> None:
        """The answer ends where a text does that `stop` looks for; a thought does not."""
        self._content = _Stopped(stop)

    @property
    def pending(self) -> int:
        """Tokens that are the thought's unless they turn out to be its end; `thinking_tokens` has them later."""
        return len(self._starts)

    @property
    def held(self) -> int:
        """How many letters of a spelt mark may be written already."""
        return 0 if self.parser is None else self.parser.held

    @property
    def broken(self) -> bool:
        """Whether a token may have ended within a character: then the answer has begun, whatever comes."""
        return self._half

    def hear(self, token: int) -> tuple[str, str]:
        """(new reasoning, new content)."""
        if token in self.stops:
            return "", ""
        if self.parser is not None:
            return self._spelt(self.parser, token)
        if token == self.closes and self.thinking:
            return self._close()
        if token == self.opens and self._blanks is not None:
            return self._open(token)
        self.thinking_tokens += self.thinking
        text = self.pieces.feed(token)
        if self.undecided:
            alone = self.spelling()
            self._half |= alone.feed(token) + alone.flush() != text
        return self._say(text)

    def end(self) -> tuple[str, str]:
        """What was held back."""
        reasoning, content = self._say(self.pieces.flush(), last=True) if self.parser is None else self._last()
        self.undecided = False
        return reasoning, content + (self._content.flush() if isinstance(self._content, _Stopped) else "")

    def _say(self, text: str, last: bool = False) -> tuple[str, str]:
        if self._blanks is not None:
            self._blanks.append(text)
            if not last and (not text or text.isspace()):
                return "", ""
            text, self._blanks, self.undecided = "".join(self._blanks), None, False
        return (self._reasoning.feed(text), "") if self.thinking else ("", self._content.feed(text))

    def _open(self, token: int) -> tuple[str, str]:
        rest = self.pieces.flush()
        if rest and not rest.isspace():  # half a character: the answer has begun
            said = self._say(rest)
            self.thinking_tokens += self.thinking
            more = self._say(self.pieces.feed(token))
            return said[0] + more[0], said[1] + more[1]
        self.thinking, self.undecided, self._blanks, self.pieces = True, False, None, self.spelling()
        return "", ""

    def _close(self) -> tuple[str, str]:
        said = self._say(self.pieces.flush(), last=True)
        self.thinking, self.pieces = False, self.spelling()
        return said

    def _spelt(self, parser: Parser, token: int) -> tuple[str, str]:
        if parser.thinking:
            self._starts.append(self._at)
        piece = self.pieces.feed(token)
        reasoning, content = parser.feed(piece)
        self._at += len(piece)
        mark = parser.held if parser.thinking else len(parser.marks.close) + len(content)
        while self._starts and self._starts[0] < self._at - mark:
            self._starts.popleft()
            self.thinking_tokens += 1
        if not parser.thinking:
            self._starts.clear()
        self.thinking, self.undecided = parser.thinking, parser.may_think
        return self._reasoning.feed(reasoning), self._content.feed(content)

    def _last(self) -> tuple[str, str]:
        assert self.parser is not None
        parts = [self.parser.feed(self.pieces.flush()), self.parser.flush()]
        reasoning, content = ("".join(part) for part in zip(*parts, strict=True))
        self.thinking = self.parser.thinking
        self.thinking_tokens += len(self._starts) if self.thinking else 0
        return self._reasoning.feed(reasoning), self._content.feed(content)


class Verbatim:
    """Hears text that goes on behind a prompt, as a Listener does: without thoughts, and no blank is taken away."""

    def __init__(self, pieces: Pieces, stops: Container[int]):
        self.pieces, self.stops, self.stop = pieces, stops, StopTexts(())
        self.thinking, self.undecided, self.thinking_tokens = False, False, 0
        self.opens: int | None = None
        self.closes: int | None = None

    def hear(self, token: int) -> tuple[str, str]:
        return "", "" if token in self.stops else self.stop.feed(self.pieces.feed(token))

    def end(self) -> tuple[str, str]:
        return "", self.stop.feed(self.pieces.flush()) + self.stop.flush()

    def stop_at(self, stop: StopTexts) -> None:
        self.stop = stop


__all__ = ["MARKS", "Listener", "Marks", "Parser", "Verbatim", "marks_of"]
