"""Rows of a user's file: .jsonl, .json, .csv, .tsv. A mistake is one sentence that names file, line and what is right.

Nothing is guessed: a CSV file's separator is the comma, a .jsonl file has one object a line. A UTF-8 byte order mark,
which spreadsheets write, is accepted; other encodings are not.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from mull.config import nearest
from mull.types import UserError

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv")
MOST = 512 << 20  # bytes of a file
LINE = 16 << 20  # bytes of a line
LISTS = ("data", "problems", "examples", "rows", "items")  # where a .json file may have its rows


@dataclass(frozen=True, slots=True)
class Row:
    where: str  # for messages: "my.jsonl, line 3"
    cells: dict[str, Any]


def read(path: Path) -> list[Row]:
    """Raises UserError for a file that does not exist, is empty or too large, and for the first damage in it."""
    text = _text(path)
    if not text.strip():
        raise UserError(f"{path} is empty; it should hold one problem a line.")
    readers = {".jsonl": _lines, ".json": _whole, ".csv": _comma, ".tsv": _tab}
    rows = list(readers[path.suffix.lower()](path, text))
    if not rows:
        raise UserError(f"{path} has column names, but no rows under them.")
    return rows


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(MOST + 1)
    except FileNotFoundError:
        beside = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise UserError(f"There is no file {path}.{nearest(path.name, beside)}") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from None
    if len(content) > MOST:
        raise UserError(f"{path} has more than {MOST >> 20} MiB; make several files of it.")
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise UserError(f"{path} is UTF-16; save it as UTF-8.")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}, line {line}: this is no UTF-8 text ({error.reason}); save it as UTF-8.") from None


def _lines(path: Path, text: str) -> Iterator[Row]:
    for number, line in enumerate(text.split("\n"), 1):
        where = f"{path}, line {number}"
        if len(line) > LINE:
            raise UserError(f"{where}: it has more than {LINE >> 20} MiB; a line holds one problem.")
        if line.strip():
            yield Row(where, _object(_json(line, where, "write one JSON object a line"), where))


def _whole(path: Path, text: str) -> Iterator[Row]:
    found = _json(text, str(path), "write a list of objects; one object a line belongs into a .jsonl file")
    if isinstance(found, dict):
        lists = [found[name] for name in LISTS if isinstance(found.get(name), list)]
        if len(lists) != 1:
            raise UserError(f"{path} holds one object; write a list of them, or name the list {' or '.join(LISTS)}.")
        found = lists[0]
    if not isinstance(found, list):
        raise UserError(f"{path} holds no list; write a list of objects.")
    if not found:
        raise UserError(f"{path} holds an empty list; write an object for each problem.")
    for number, entry in enumerate(found, 1):
        where = f"{path}, entry {number}"
        yield Row(where, _object(entry, where))


def _json(text: str, where: str, right: str) -> Any:
    try:
        found = json.loads(text, object_pairs_hook=_once, parse_constant=_no_number, parse_float=_finite)
        if "\\ud" in text.lower():  # half a surrogate pair is no text that could be written to a file
            json.dumps(found, ensure_ascii=False).encode()
    except RecursionError:
        raise UserError(f"{where}: brackets lie too deep in one another; {right}.") from None
    except UnicodeEncodeError:
        raise UserError(f"{where}: it has half of a surrogate pair, which is no character; leave it out.") from None
    except json.JSONDecodeError as error:
        at = f" at line {error.lineno}, column {error.colno}" if "\n" in text else f" at column {error.colno}"
        raise UserError(f"{where}: this is no JSON ({error.msg}{at}); {right}.") from None
    except ValueError as error:
        raise UserError(f"{where}: {error}; {right}.") from None
    return found


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"it names {next(name for name in names if names.count(name) > 1)!r} twice")
    return found


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no number in JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:40]} is too large a number; write it as text, in quotes")
    return value


def _object(entry: Any, where: str) -> dict[str, Any]:
    if not isinstance(entry, dict):
        raise UserError(f'{where}: this is no JSON object; write {{"prompt": ..., "answer": ...}}.')
    return entry


def _comma(path: Path, text: str) -> Iterator[Row]:
    return _separated(path, text, ",", "commas")


def _tab(path: Path, text: str) -> Iterator[Row]:
    return _separated(path, text, "\t", "tabs")


def _separated(path: Path, text: str, sign: str, name: str) -> Iterator[Row]:
    reader = csv.reader(StringIO(text, newline=""), delimiter=sign, strict=True)
    records = _records(reader, path)
    _, header = next(records)
    for other, what in ((";", "semicolons"), ("\t", "tabs"), (",", "commas")):
        if len(header) == 1 and other in header[0]:
            raise UserError(f"{path}, line 1: its columns are separated by {what}; save it with {name}.")
    names = [column.strip() for column in header]
    if "" in names or len(set(names)) < len(names):
        what = "a column has no name" if "" in names else "two columns have one name"
        raise UserError(f"{path}, line 1: {what} ({', '.join(names)[:200]}); the first line names each column once.")
    for line, fields in records:
        if len(fields) != len(names):
            raise UserError(
                f"{path}, line {line}: it has {len(fields)} fields, but line 1 names {len(names)} columns; "
                f'put texts that hold {name} or quotes into "quotes", quotes doubled.'
            )
        yield Row(f"{path}, line {line}", dict(zip(names, fields, strict=True)))


def _records(reader: Any, path: Path) -> Iterator[tuple[int, list[str]]]:
    """(line on which it begins, fields) of each record that is not blank."""
    while True:
        line = reader.line_num + 1
        try:
            fields = next(reader, None)
        except csv.Error as error:
            long = "; write texts as long as that into a .jsonl file" if "limit" in str(error) else ""
            raise UserError(f"{path}, line {line}: this is no CSV record ({error}){long}.") from None
        if fields is None:
            return
        if any(field.strip() for field in fields):
            yield line, fields


def rows_of(entries: Iterable[Any], name: str) -> list[Row]:
    """Rows that a program made. Raises UserError for what is none."""
    return [
        Row(f"{name}, problem {number}", _object(entry, f"{name}, problem {number}"))
        for number, entry in enumerate(entries, 1)
    ]


__all__ = ["SUFFIXES", "Row", "read", "rows_of"]
