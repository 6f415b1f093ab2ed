"""How a user's rows are understood: which column is what, which answers will do, and who grades them.

Decided from all rows at once, and from nothing else. What is wrong with a single row is a fault, a sentence that names
it; what leaves the columns in doubt is a UserError.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Any

from mull.config import nearest
from mull.tasks.graders import PLAIN, normalised, value_of
from mull.tasks.tables import Row
from mull.types import Message, UserError

PROMPTS = ("messages", "prompt", "question", "problem", "input", "turns")
ANSWERS = ("answer", "answers", "target", "gold", "expected", "output", "solution")
IDS = ("id", "task_id", "unique_id", "key", "idx")
SYSTEMS = ("system", "system_prompt")
CHOICES = ("choices", "options")
GRADERS = (*PLAIN, "math", "regex")
SIZES = ("prompt", "answer", "id", "system", "grader")  # what `--size` may say: a column's name, or a grader's
ROLES = ("system", "user", "assistant")
MATHEMATICAL = re.compile(
    r"\\[a-zA-Z]+|\^|=|\bsqrt\b|\bpi\b|π|√|^[\[(].*,.*[\])]$|[a-z\d)]\s*[-+*/]\s*[a-z\d(]|\d[a-z]\b", re.IGNORECASE
)
WORDS = re.compile(r"(?<!\\)\b[^\W\d_]{4,}")
LETTER = re.compile(r"\s*\(?[A-J][).]?\s*")


@dataclass(frozen=True, slots=True)
class Columns:
    """Which column is what; "" where there is none."""

    prompt: str
    answer: str
    id: str
    system: str
    choices: str
    grader: str
    others: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Entry:
    """A row as it was understood."""

    where: str
    id: str
    messages: tuple[Message, ...]
    turns: tuple[str, ...]  # what the user says after each answer but the last
    golds: tuple[str, ...]
    structured: bool  # the gold is no text in the file, but an object or a list
    choices: tuple[str, ...]
    grader: str  # its own; "" where it has none
    others: dict[str, Any]  # the columns that were not understood
    cells: dict[str, Any]  # all of them


@dataclass(frozen=True, slots=True)
class Understood:
    columns: Columns
    entries: tuple[Entry, ...]  # those without a fault
    grader: str
    why: str
    faults: tuple[str, ...]


class FaultError(ValueError):
    """What is wrong with a row."""


def understand(rows: Sequence[Row], name: str, given: Mapping[str, Any], graded: bool = True) -> Understood:
    """`graded` is False where a program grades: golds are its own affair then.

    Raises UserError where the columns cannot be told.
    """
    columns = _columns(rows, name, given, graded)
    entries, faults, seen = list[Entry](), list[str](), dict[str, str]()
    for number, row in enumerate(rows, 1):
        try:
            entry = _entry(row, columns, str(number), graded)
            if entry.id in seen:
                raise FaultError(f"its {columns.id} {entry.id!r} is also that of {seen[entry.id]}; give each its own")
        except FaultError as fault:
            faults.append(f"{row.where}: {fault}.")
            continue
        seen[entry.id] = row.where
        entries.append(entry)
    if not graded:
        return Understood(columns, tuple(entries), "", "a program grades", tuple(faults))
    if grader := given.get("grader"):
        if why := _unknown(grader):
            raise UserError(f"{name}: {why}.")
        why = "as you said"
    else:
        grader, why = chosen(entries)
    fit, unfit = _fit(entries, grader)
    return Understood(columns, tuple(fit), grader, why, (*faults, *unfit))


def _columns(rows: Sequence[Row], name: str, given: Mapping[str, Any], graded: bool) -> Columns:
    for key in given.keys() - set(SIZES):
        raise UserError(f'{name} has no size "{key}"; for a file they are {", ".join(SIZES)}.{nearest(key, SIZES)}')
    names = list(dict.fromkeys(column for row in rows for column in row.cells))
    lower = {column.strip().lower(): column for column in reversed(names)}

    def find(known: tuple[str, ...], what: str = "") -> str:
        if what in given:
            if given[what] not in names:
                raise UserError(f'{name} has no column "{given[what]}".{nearest(str(given[what]), names)}')
            return given[what]
        return next((lower[one] for one in known if one in lower), "")

    prompt, answer = find(PROMPTS, "prompt"), find(ANSWERS, "answer")
    for what, column, known in (("prompt", prompt, PROMPTS), ("answer", answer, ANSWERS)):
        if not column and (what == "prompt" or graded):
            raise UserError(
                f"{name} has no column for the {what}; its columns are {listed(names)}. Call one "
                f"{', '.join(known[:-1])} or {known[-1]}, or say --size {what}=COLUMN."
            )
    found = (prompt, answer, find(IDS, "id"), find(SYSTEMS, "system"), find(CHOICES), find(("grader",)))
    return Columns(*found, tuple(column for column in names if column not in found))


def listed(names: Iterable[str]) -> str:
    """On one line, and no longer than that."""
    return " ".join(", ".join(names).split())[:200] or "none"


def _entry(row: Row, columns: Columns, number: str, graded: bool) -> Entry:
    cells = row.cells
    messages, turns = _messages(cells.get(columns.prompt), columns.prompt)
    if system := cells.get(columns.system):
        if not isinstance(system, str):
            raise FaultError(f"its {columns.system} is no text")
        messages = (Message("system", system), *messages)
    choices = _choices(cells.get(columns.choices), columns.choices)
    if choices:
        shown = "\n".join(f"{letter}. {choice}" for letter, choice in zip(ascii_uppercase, choices, strict=False))
        messages = (*messages[:-1], Message("user", f"{messages[-1].content}\n\n{shown}"))
    grader = cells.get(columns.grader) or ""
    if graded and grader and (why := _unknown(grader)):
        raise FaultError(why)
    golds, structured = _golds(cells.get(columns.answer), columns.answer, grader, choices, graded)
    others = {column: cells[column] for column in columns.others if column in cells}
    name = cells.get(columns.id) if columns.id else number
    if not isinstance(name, str | int | float) or isinstance(name, bool) or not str(name).strip():
        raise FaultError(f"its {columns.id} is missing")
    grader = grader if graded else ""
    return Entry(row.where, str(name), messages, turns, golds, structured, choices, grader, others, cells)


def _unknown(grader: Any) -> str:
    if grader in GRADERS:
        return ""
    return f"there is no grader {str(grader)[:40]!r}; graders are {', '.join(GRADERS)}"


def _messages(cell: Any, column: str) -> tuple[tuple[Message, ...], tuple[str, ...]]:
    """(the conversation up to the first answer that is asked for, what the user says after each answer)."""
    if isinstance(cell, str) and cell.strip() and column.strip().lower() in ("messages", "turns"):  # of a CSV file
        cell = _listed(cell, column)
    if isinstance(cell, str):
        if not cell.strip():
            raise FaultError(f"its {column} is empty")
        return (Message("user", cell),), ()
    if isinstance(cell, list) and cell and all(isinstance(one, str) and one.strip() for one in cell):
        return (Message("user", cell[0]),), tuple(cell[1:])
    if isinstance(cell, list) and cell and all(isinstance(one, dict) for one in cell):
        return _conversation(cell, column), ()
    what = "is missing" if cell is None else "is empty" if cell in ([], {}) else "is neither text nor a conversation"
    raise FaultError(f"its {column} {what}")


def _conversation(cell: list[dict[str, Any]], column: str) -> tuple[Message, ...]:
    for number, message in enumerate(cell, 1):
        content, role = message.get("content"), message.get("role")
        if not isinstance(content, str) or role not in ROLES:
            raise FaultError(f'message {number} of its {column} is not {{"role": {"|".join(ROLES)}, "content": text}}')
    if cell[-1]["role"] != "user" or not cell[-1]["content"].strip():
        raise FaultError(f"the last of its {column} is not something that the user says")
    return tuple(Message(message["role"], message["content"]) for message in cell)


def _listed(cell: str, column: str) -> Any:
    try:
        return json.loads(cell)
    except (ValueError, RecursionError):
        raise FaultError(f"its {column} are no JSON list") from None


def _choices(cell: Any, column: str) -> tuple[str, ...]:
    cell = _listed(cell, column) if isinstance(cell, str) and cell.strip() else cell
    if not cell:
        return ()
    if not isinstance(cell, list) or not 2 <= len(cell) <= 10 or not all(isinstance(one, str) and one for one in cell):
        raise FaultError(f"its {column} are no list of 2 to 10 texts")
    return tuple(cell)


def _golds(
    cell: Any, column: str, grader: Any, choices: tuple[str, ...], graded: bool
) -> tuple[tuple[str, ...], bool]:  # fmt: skip
    """(the answers of which any one will do, whether they were written as JSON)."""
    if choices and isinstance(cell, int) and not isinstance(cell, bool) and 0 <= cell < len(choices):
        return (ascii_uppercase[cell],), False
    several = isinstance(cell, list) and grader != "json" and not any(isinstance(one, list | dict) for one in cell)
    golds = tuple(map(_gold, cell if isinstance(cell, list) and several else [cell]))
    if graded and (not golds or not all(gold.strip() for gold in golds)):
        raise FaultError(f"its {column} is {'missing' if cell is None else 'empty'}; fill it in, or take the row out")
    if choices:
        by_text = {normalised(choice): letter for letter, choice in zip(ascii_uppercase, choices, strict=False)}
        golds = tuple(by_text.get(normalised(gold), gold) for gold in golds)
    return golds, isinstance(cell, dict) or (isinstance(cell, list) and not several)


def _gold(value: Any) -> str:
    if isinstance(value, str):
        return value
    return "" if value is None else json.dumps(value, ensure_ascii=False)


def chosen(entries: Sequence[Entry]) -> tuple[str, str]:
    """(the grader for those entries that name none, why), by looking at all of their golds."""
    left = [entry for entry in entries if not entry.grader]
    golds = [gold for entry in left for gold in entry.golds]
    if not golds:
        return "text", "each row names its own" if entries else "there are no golds"
    every, n = f"all {len(golds)} golds" if len(golds) > 1 else "the gold", len(golds)
    if all(entry.choices for entry in left):
        return "choice", "each row has choices"
    if all(entry.structured for entry in left) or all(_is_structure(gold) for gold in golds):
        return "json", f"{every} are JSON objects or lists"
    numbers = sum(value_of(gold) is not None for gold in golds)
    if numbers == n:
        return "number", f"{every} can be read as numbers"
    if all(LETTER.fullmatch(gold) for gold in golds):
        return "choice", f"{every} are letters"
    if all(_is_mathematical(gold) for gold in golds):
        return "math", f"{every} look like mathematics"
    mixed = f"; {numbers} of {n} are numbers, so a grader column would serve them better" if numbers else ""
    return "text", f"{n - numbers} of {n} golds are words{mixed}"


def _is_structure(gold: str) -> bool:
    try:
        return gold.lstrip().startswith(("{", "[")) and isinstance(json.loads(gold), dict | list)
    except (ValueError, RecursionError):
        return False


def _is_mathematical(gold: str) -> bool:
    return value_of(gold) is not None or bool(MATHEMATICAL.search(gold) and len(WORDS.findall(gold)) < 2)


def _fit(entries: Iterable[Entry], grader: str) -> tuple[list[Entry], list[str]]:
    """(the entries whose golds their grader can read, a fault for each other one)."""
    fit, faults = list[Entry](), list[str]()
    for entry in entries:
        unfit = [(gold, why) for gold in entry.golds if (why := why_unfit(entry.grader or grader, gold))]
        if unfit:
            faults.append(f"{entry.where}: the gold {unfit[0][0][:60]!r} {unfit[0][1]}.")
        else:
            fit.append(entry)
    return fit, faults


def why_unfit(grader: str, gold: str) -> str:
    """Why a grader cannot read a gold; "" where it can."""
    if grader == "regex":
        try:
            re.compile(gold)
        except (re.error, OverflowError, RecursionError) as error:
            return f"is no regular expression ({error})"
    if grader == "number" and value_of(gold) is None:
        return "is no number"
    if grader == "choice" and not LETTER.fullmatch(gold.upper()):
        return "is no letter from A to J, nor one of the row's choices"
    if grader == "json":
        try:
            json.loads(gold)
        except (ValueError, RecursionError) as error:
            return f"is no JSON ({error})"
    if grader in ("text", "contains") and not normalised(gold):
        return "has no letters or digits to compare"
    return ""


__all__ = ["GRADERS", "Columns", "Entry", "Understood", "chosen", "listed", "understand", "why_unfit"]
