"""Which problems of a set a model may have met in training: 13-grams, whole questions, the same with other numbers.

Words are compared, not characters: case folded, punctuation taken for a blank. A gram is 13 words in a row (of a
shorter question, all of them), as in the paper on GPT-3 (arXiv 2005.14165, C). A second pass masks numbers and finds
the same template with other ones. Grams that more than ten problems of the set have in common are how the set asks,
not what: they are left out.

The set's grams are hashed (64 bits, so a false hit is one in a million for a gigabyte) and the training text streams
by, a megabyte at a time: memory does not grow with it. Words are what lies between blanks, so in scripts without them
only whole phrases are found.
"""

from __future__ import annotations

import glob
import gzip
import io
import json
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from mull.locate import is_run, run_config
from mull.types import Problem, UserError

Row = dict[str, Any]
Words = np.ndarray  # uint64, a hash per word

GRAM = 13
COMMON = 10  # problems: a gram that more of them share is the set's own phrase
TEMPLATE = 8  # words a question needs for its template to say anything
PIECE = 1 << 20  # bytes read at a time
LONGEST = 4000  # words of a question that are looked at
SUFFIXES = (".txt", ".md", ".jsonl", ".json", ".csv")
WHOLE = 256 << 20  # bytes of a .json file, which is read at once
LISTED = 10

ODD = np.uint64(0x9E3779B97F4A7C15)  # of the polynomials; odd, so that it has an inverse modulo 2**64
BACK = np.uint64(pow(int(ODD), -1, 1 << 64))
BITS = 22
TABLE = np.uint64((1 << BITS) - 1)
BREAK = b" \x00 "  # between texts: a word that no question has, so no gram reaches over it

PUNCTUATION = bytes(
    byte if byte >= 128 or byte == 0 or chr(byte).isalnum() else 32 for byte in bytes(range(256)).lower()
)
APOSTROPHE = "\u2019".encode()
FANCY = tuple(chr(code).encode() for code in (0x2018, 0x201C, 0x201D, *range(0x2010, 0x2015), 0x2026, 0xA0, 0x202F,
                                              0xD7, 0x2212))  # fmt: skip


@dataclass(frozen=True, slots=True)
class Training:
    """What is known of a model's training: files of text, tasks whose problems were drawn, and what is not known."""

    files: tuple[Path, ...] = ()
    tasks: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()


def training(paths: Sequence[Path]) -> Training:
    """Of runs (what their stages learnt from, and the runs that their models came from), folders and files of text.

    Raises UserError for a path where nothing is. A folder without text is one more thing that is not known.
    """
    files: dict[Path, None] = {}
    tasks: dict[str, None] = {}
    unknown: dict[str, None] = {}
    waiting, seen = list(paths), set[Path]()
    while waiting:
        path = waiting.pop(0)
        if path.resolve() in seen:
            continue
        seen.add(path.resolve())
        if path.is_dir() and is_run(path):
            waiting += _of_run(path, files, tasks, unknown)
        else:
            files |= dict.fromkeys(found := _texts(path))
            if not found:
                unknown[f"the text in {path}, which holds none of {', '.join(SUFFIXES)}"] = None
    return Training(tuple(files), tuple(tasks), tuple(unknown))


def _of_run(run: Path, files: dict[Path, None], tasks: dict[str, None], unknown: dict[str, None]) -> list[Path]:
    """Adds what a run learnt from; returns the runs of the models that it went on from."""
    config = run_config(run)
    for stage in config.get("stage", []):
        if stage.get("kind") == "evaluate":
            continue
        drawn = [*stage.get("tasks", []), *stage.get("recite", [])]
        tasks |= dict.fromkeys(draw["task"] for draw in drawn)
        for pattern in stage.get("files", []):
            found = [Path(name) for name in sorted(glob.glob(pattern, recursive=True))]
            files |= dict.fromkeys(found)
            if not found:
                unknown[f"the files {pattern}, which are no longer there"] = None
    # rollouts without a .json beside them are what was learnt from, not an exam
    files |= dict.fromkeys(p for p in sorted((run / "rollouts").glob("*.jsonl")) if not p.with_suffix(".json").exists())
    before = []
    for name, where in (config.get("outside") or {}).items():
        home = Path(where).resolve().parent.parent
        if is_run(home):
            before.append(home)
        else:
            unknown[f"what {name} was trained on"] = None
    return before


def _texts(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UserError(f"There is no training text at {path}; give a run, a folder of text or a file.")
    return [p for p in sorted(path.rglob("*")) if p.is_file() and _kind(p) in SUFFIXES]


def _kind(path: Path) -> str:
    return Path(path.stem).suffix.lower() if path.suffix.lower() == ".gz" else path.suffix.lower()


def overlap(problems: Sequence[Problem], known: Training) -> Row:
    """One set against training text; see `overlaps`."""
    return overlaps({"": problems}, known)[""]


def overlaps(sets: Mapping[str, Sequence[Problem]], known: Training) -> dict[str, Row]:
    """Each set's row, as plain data; the training text is read once for all of them.

      problems   per problem {id, found: exact, grams, template or none; words, grams, share, template_share, file}
                 share: of its grams, those in training text; file: where the first was found
      n, exact, grams, half, template     counts: whole question; at least one gram; at least half of them; only with
                                          other numbers
      ignored    grams left out, because more than ten problems have them
      files, bytes, unread, tasks, unknown
      lines      to print
    A file that cannot be read is named in `unread`.
    """
    asked = {name: [_question(problem) for problem in problems] for name, problems in sets.items()}
    sides = {name: (_Side(each, masked=False), _Side(each, masked=True)) for name, each in asked.items()}
    size, unread = 0, []
    for path in known.files:
        if _kind(path) == ".json" and path.stat().st_size > WHOLE:
            unread.append(f"{path} ({path.stat().st_size >> 20} MB in one value)")
            continue
        try:
            size += _stream(path, list(sides.values()))
        except (OSError, EOFError, zlib.error) as error:  # after hours of answers no report is to fail for this
            unread.append(f"{path}, or the rest of it ({error})")
    read = {
        "files": len(known.files) - len(unread), "bytes": size, "unread": unread,
        "tasks": list(known.tasks), "unknown": list(known.unknown),
    }  # fmt: skip
    return {name: _of_set(problems, sides[name], read) for name, problems in sets.items()}


def _of_set(problems: Sequence[Problem], sides: tuple[_Side, _Side], read: Row) -> Row:
    rows = [_of_problem(i, problem, sides) for i, problem in enumerate(problems)]
    counts = Counter(row["found"] for row in rows)
    found: Row = {
        "n": len(rows), "exact": counts["exact"], "grams": counts["exact"] + counts["grams"],
        "half": sum(row["found"] == "exact" or row["share"] >= 0.5 for row in rows), "template": counts["template"],
        "ignored": sides[0].ignored, "short": sum(row["words"] < GRAM for row in rows), **read, "problems": rows,
    }  # fmt: skip
    return found | {"lines": _lines(found, {problem.task for problem in problems})}


def _question(problem: Problem) -> str:
    return "\n".join(message.content for message in problem.messages if message.role == "user")


def _of_problem(i: int, problem: Problem, sides: tuple[_Side, _Side]) -> Row:
    plain, masked = sides
    share, other = plain.share(i), masked.share(i)
    if plain.whole[i]:
        found = "exact"
    elif share:
        found = "grams"
    else:
        found = "template" if masked.whole[i] or other >= 0.5 else "none"
    where = plain.where.get(i) or (masked.where.get(i) if found == "template" else None)
    return {
        "id": problem.id, "found": found, "words": len(plain.questions[i]), "grams": len(plain.grams[i]),
        "share": 1.0 if plain.whole[i] else share, "template_share": 1.0 if masked.whole[i] else other,
        "file": str(where) if where else None,
    }  # fmt: skip


def _lines(found: Row, evaluated: set[str]) -> list[str]:
    n, lines = found["n"], []
    if found["files"]:
        lines.append(
            f"Overlap with {found['bytes'] / 1e6:,.1f} MB of training text in {found['files']} files: of {n} problems "
            f"{found['exact']} are in it word for word, {found['grams']} share a 13-gram or more with it, "
            f"{found['half']} at least half of theirs; {found['template']} more are in it with other numbers."
        )
        hit = [row["id"] for row in found["problems"] if row["found"] in ("exact", "grams")]
        if hit:
            lines.append(f"In training text: {', '.join(hit[:LISTED])}{' ...' if len(hit) > LISTED else ''}.")
        if found["short"]:
            lines.append(f"{found['short']} questions have fewer than 13 words; of those the whole was looked for.")
        if found["ignored"]:
            lines.append(f"{found['ignored']} grams are left out: more than {COMMON} problems of the set have them.")
    else:
        lines.append("Overlap with training text: no text is known to compare with.")
    lines += [
        f"{task}: the model was trained on problems of this task. They are dealt to train or test by a hash of their "
        "text, so none is in both."
        for task in sorted(evaluated & set(found["tasks"]))
    ]  # fmt: skip
    lines += [f"Not known: {what}." for what in found["unknown"]]
    return lines + [f"Not read: {what}." for what in found["unread"]]


# text to hashes of words


def normalised(text: bytes) -> bytes:
    """Lower case, blanks for punctuation, nothing for apostrophes."""
    if not text.isascii():
        text = text.decode("utf-8", "replace").casefold().encode().replace(APOSTROPHE, b"")
        for mark in FANCY:
            text = text.replace(mark, b" ")
    return text.translate(PUNCTUATION, b"'`")


def hashes(text: bytes, masked: bool) -> Words:
    """A hash per word of normalised text; `masked`: every number is the same word, and so are several in a row."""
    data = np.frombuffer(text, dtype=np.uint8)
    if masked:
        digit = (data >= 48) & (data <= 57)
        again = digit.copy()
        again[1:] &= digit[:-1]
        again[:1] = False
        data = np.where(digit, np.uint8(48), data)[~again]
    inside = np.zeros(len(data) + 2, dtype=np.int8)
    inside[1:-1] = data != 32
    edge = np.diff(inside)
    start, end = np.flatnonzero(edge == 1), np.flatnonzero(edge == -1)
    words = _mixed(_between(_prefix(data), start, end))
    if masked and len(words):
        number = (end - start == 1) & (data[start] == 48)
        again = number.copy()
        again[1:] &= number[:-1]
        again[0] = False
        words = words[~again]
    return words


@cache
def _powers(bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Powers of ODD and of its inverse, from the first to the 2**bits-th."""
    bases = (np.full(1 << bits, base, dtype=np.uint64) for base in (ODD, BACK))
    up, down = (np.multiply.accumulate(base) for base in bases)
    return up, down


def _prefix(values: np.ndarray) -> np.ndarray:
    """prefix[i]: the polynomial of the values before i, modulo 2**64."""
    up, _ = _powers(len(values).bit_length())
    prefix = np.zeros(len(values) + 1, dtype=np.uint64)
    np.cumsum((values + np.uint64(1)) * up[: len(values)], out=prefix[1:])
    return prefix


def _between(prefix: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """The hash of each stretch of values, wherever it stands."""
    _, down = _powers((len(prefix) - 1).bit_length())
    return (prefix[end] - prefix[start]) * down[start]


def _mixed(values: np.ndarray) -> np.ndarray:
    """Every bit to depend on every other (the finaliser of splitmix64)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


# the set's grams, and training text streaming past them


class _Side:
    """The grams of the questions, as they are or with numbers masked, and which of them were met."""

    def __init__(self, asked: Sequence[str], masked: bool):
        self.masked = masked
        self.questions = [hashes(normalised(text.encode("utf-8", "replace")), masked)[:LONGEST] for text in asked]
        self.grams = [self._grams_of(words) for words in self.questions]
        sharing = Counter(gram for grams in self.grams for gram in grams)
        common = {gram for gram, count in sharing.items() if count > COMMON}
        self.ignored = len(common)
        self.grams = [grams - common for grams in self.grams]
        self.lengths = sorted({min(len(words), GRAM) for words in self.questions if self._telling(words)})
        self.known = np.array(sorted(set().union(*self.grams)), dtype=np.uint64)
        self.met = np.zeros(len(self.known), dtype=bool)
        self.table = np.zeros(1 << BITS, dtype=bool)
        self.whole = [False] * len(asked)
        self.where: dict[int, Path] = {}
        self.first: dict[int, list[int]] = {}  # hash of a question's first gram -> questions
        self.ends: dict[int, int] = {}  # question -> hash of all of it
        for i, words in enumerate(self.questions):
            if self._telling(words):
                prefix = _prefix(words)
                self.first.setdefault(int(_grams(prefix, min(len(words), GRAM))[0]), []).append(i)
                self.ends[i] = int(_between(prefix, np.array([0]), np.array([len(words)]))[0])
        self.firsts = np.array(sorted(self.first), dtype=np.uint64)
        for some in (self.known, self.firsts):
            self.table[some & TABLE] = True
        self.owners: dict[int, list[int]] = {}
        for i, grams in enumerate(self.grams):
            for gram in grams:
                self.owners.setdefault(gram, []).append(i)
        self.tail = max((len(words) for words in self.questions), default=1)

    def _telling(self, words: Words) -> bool:
        return len(words) >= (TEMPLATE if self.masked else 1)

    def _grams_of(self, words: Words) -> set[int]:
        if not self._telling(words):
            return set()
        return set(map(int, _grams(_prefix(words), min(len(words), GRAM))))

    def share(self, i: int) -> float:
        """Of a question's grams, those that were met."""
        grams = np.array(list(self.grams[i]), dtype=np.uint64)
        return float(self.met[np.searchsorted(self.known, grams)].mean()) if len(grams) else 0.0

    def look(self, words: Words, path: Path) -> None:
        """At a stretch of training text."""
        prefix = _prefix(words)
        for n in self.lengths:
            if len(words) < n:
                break
            grams = _grams(prefix, n)
            at = np.flatnonzero(self.table[grams & TABLE])
            if len(at):
                self._met(grams[at], path)
                self._whole(prefix, grams, at, path)

    def _met(self, grams: np.ndarray, path: Path) -> None:
        places = np.flatnonzero(np.isin(self.known, grams) & ~self.met)
        for place in places:
            for i in self.owners[int(self.known[place])]:
                self.where.setdefault(i, path)
        self.met[places] = True

    def _whole(self, prefix: np.ndarray, grams: np.ndarray, at: np.ndarray, path: Path) -> None:
        at = at[np.isin(grams[at], self.firsts)]
        for gram in map(int, np.unique(grams[at])):
            places = at[grams[at] == np.uint64(gram)]
            for i in self.first[gram]:
                ends = places + len(self.questions[i])
                fits = ends < len(prefix)
                told = _between(prefix, places[fits], ends[fits])
                if not self.whole[i] and np.any(told == np.uint64(self.ends[i])):
                    self.whole[i] = True
                    self.where.setdefault(i, path)


def _grams(prefix: np.ndarray, n: int) -> np.ndarray:
    _, down = _powers((len(prefix) - 1).bit_length())
    count = len(prefix) - n
    return _mixed((prefix[n:] - prefix[:count]) * down[:count])


def _stream(path: Path, sets: Sequence[tuple[_Side, _Side]]) -> int:
    """All of a file past every set; returns its bytes of text."""
    size = 0
    tail = max((side.tail for sides in sets for side in sides), default=1)
    rest = [np.zeros(0, dtype=np.uint64)] * 2  # as they are, and masked
    for piece in _pieces(path):
        size += len(piece)
        text = normalised(piece)
        for k, masked in enumerate((False, True)):
            words = np.concatenate([rest[k], hashes(text, masked)])
            for sides in sets:
                sides[k].look(words, path)
            rest[k] = words[-tail:]
    return size


def _pieces(path: Path) -> Iterator[bytes]:
    """A file's text, about PIECE bytes at a time, cut between words."""
    with _open(path) as source:
        match _kind(path):
            case ".jsonl":
                yield from _gathered(_line_texts(source))
            case ".json":
                yield from _gathered(_strings(_value(source.read())))
            case _:
                yield from _cut(source)


def _open(path: Path) -> BinaryIO | io.BufferedReader:
    return gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb")  # type: ignore[return-value]


def _cut(source: Any) -> Iterator[bytes]:
    rest = b""
    while piece := source.read(PIECE):
        piece = rest + piece
        end = max(piece.rfind(b" "), piece.rfind(b"\n")) + 1 or len(piece)
        rest = piece[end:]
        yield piece[:end]
    yield rest


def _line_texts(source: Any) -> Iterator[str]:
    """The texts of a line's JSON; the line itself where it is none, or too long to be taken for one."""
    while line := source.readline(16 * PIECE):
        yield from _strings(_value(line))


def _value(text: bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text.decode("utf-8", "replace")


def _strings(value: Any) -> Iterator[str]:
    """All texts in a JSON value, however deep; names of fields are none."""
    waiting = [value]
    while waiting:
        match waiting.pop():
            case str(text):
                yield text
            case dict(entries):
                waiting += reversed(entries.values())
            case list(entries):
                # most are ids of tokens and log-probabilities
                waiting += [e for e in reversed(entries) if isinstance(e, (str, dict, list))]


def _gathered(texts: Iterable[str]) -> Iterator[bytes]:
    parts: list[bytes] = []
    size = 0
    for text in texts:
        parts.append(text.encode("utf-8", "replace").replace(b"\x00", b" "))
        size += len(parts[-1])
        if size >= PIECE:
            yield BREAK.join(parts) + BREAK
            parts, size = [], 0
    yield BREAK.join(parts) + BREAK


__all__ = ["GRAM", "Training", "hashes", "normalised", "overlap", "overlaps", "training"]
