"""Where the files of published sets are, and whether they are the ones we know.

A set is read from a folder (`MULL_DATA`, or `--data`, which sets it), where its file lies by its own name or in the
sub-folder that SOURCES names. mull brings no such data along.
"""

from __future__ import annotations

import gzip
import json
import os
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from mull.types import UserError

FOLDER = "MULL_DATA"


@dataclass(frozen=True, slots=True)
class Source:
    """The file of a set: its path in the folder, and the SHA-256 of the copy that was looked through."""

    file: str
    sha256: str


SOURCES: dict[str, Source] = {
    "aime24": Source("math/aime24.jsonl", "af2b8bd2aa911b6333ad0df32f3ca05c7ae8ed10f1731f4372c8ae26990bf7ac"),
    "amc23": Source("math/amc23.jsonl", "43707e1ca784602d8479de24ee8ce36609dbebc46dd152b0b12a46611aa898a4"),
    "math500": Source("math/math500.jsonl", "35dc41080a3680858b27fa7e0533d2d547825316fc5dafe5d316f4ccc5a06132"),
    "gsm8k": Source("math/gsm8k_test.jsonl", "3730d312f6e3440559ace48831e51066acaca737f6eabec99bccb9e4b3c39d14"),
    "gsm8k_train": Source("math/gsm8k_train.jsonl", "17f347dc51477c50d4efb83959dbb7c56297aba886e5544ee2aaed3024813465"),
    "svamp": Source("math/svamp.jsonl", "d0826ff1264f3860e46fc4e71db9e31d2d188960db87090e22677f9493e67a0d"),
    "humaneval": Source("code/HumanEval.jsonl.gz", "b796127e635a67f93fb35c04f4cb03cf06f38c8072ee7cee8833d7bee06979ef"),
    "mbpp": Source("code/mbpp.jsonl", "ccf64ceae9c5403bf50a044cb6d505bfd2a2963ee58338ba268fd65beab92a9f"),
    "ifeval": Source("instruct/ifeval.jsonl", "67ffeee0fcb87c317c5b08a2de85557b4a7e96ada6178aa645b4954fe4b53d49"),
    "mt_bench": Source(
        "instruct/mt_bench_question.jsonl", "119565adbab82227089cefdb44c8d7e2cf04dc0a0ec233634c82e7d4e2a944f7"
    ),
    "mt_bench_reference": Source(
        "instruct/mt_bench_reference_gpt4.jsonl", "f957a5bc977badb66885ec970e6cd08527845780313f0995764260e5777b9b3f"
    ),
}


def path_of(name: str) -> Path:
    """The file of a set. Raises UserError that says what to put where."""
    source, given = SOURCES[name], os.environ.get(FOLDER)
    if not given:
        raise UserError(f"{name} needs {source.file}; put it into a folder and name that by --data DIR or {FOLDER}.")
    for path in (Path(given) / source.file, Path(given) / Path(source.file).name):
        if path.is_file():
            return path
    raise UserError(f"{name} needs {source.file} or {Path(source.file).name} in {given}; neither is there.")


def rows(name: str) -> list[dict[str, Any]]:
    """The entries of a set as they are in its file."""
    return list(_read(path_of(name)))


@cache
def _read(path: Path) -> tuple[dict[str, Any], ...]:
    content = path.read_bytes()
    text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode()
    return tuple(json.loads(line) for line in text.splitlines() if line.strip())


def is_known(name: str) -> bool:
    """Whether the copy at hand is the one that was looked through."""
    return sha256(path_of(name).read_bytes()).hexdigest() == SOURCES[name].sha256


__all__ = ["FOLDER", "SOURCES", "Source", "is_known", "path_of", "rows"]
