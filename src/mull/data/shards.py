"""Text files as token shards: tokenised once, read by memory map.

A shard is two .npy files, tokens (uint32) and document ends (int64). Documents of a .txt file are separated by a line
holding only <|endoftext|>, or the whole file is one; a .jsonl file has one document per line under "text". Long
documents are cut to the training length.
"""

from __future__ import annotations

import glob
import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from mull.data.batch import Example
from mull.data.sources import Source, seed_of
from mull.text.tokenizer import Tokenizer
from mull.types import UserError, sync

SEPARATOR = "<|endoftext|>"


def text_files(patterns: Sequence[str]) -> Iterator[Path]:
    """All files the patterns match, in name order. Raises UserError where a pattern matches nothing."""
    for pattern in patterns:
        paths = sorted(glob.glob(pattern, recursive=True))
        if not paths:
            raise UserError(f"No text file matches {pattern!r}.")
        yield from map(Path, paths)


def read_texts(patterns: Sequence[str]) -> Iterator[str]:
    """Documents of all files the patterns match, file by file."""
    for path in text_files(patterns):
        if path.suffix == ".jsonl":
            yield from _jsonl(path)
        else:
            text = path.read_text(encoding="utf-8", errors="replace")
            yield from (part.strip("\n") for part in text.split(f"\n{SEPARATOR}\n") if part.strip())


def _jsonl(path: Path) -> Iterator[str]:
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                yield str(json.loads(line)["text"])
            except (ValueError, KeyError, TypeError):
                raise UserError(f'{path}, line {number}: expected a JSON object with a "text".') from None


def write_shard(stem: Path, texts: Iterator[str], tokenizer: Tokenizer, length: int) -> None:
    """Tokenise into `stem`.tokens.npy and `stem`.ends.npy; the second is written last and marks a whole shard."""
    tokens: list[int] = []
    ends: list[int] = []
    for text in texts:
        ids = [*tokenizer.encode(text), tokenizer.end_of_text]
        for begin in range(0, len(ids), length):
            tokens += ids[begin : begin + length]
            ends.append(len(tokens))
    if not ends:
        raise UserError("The text files hold no text.")
    stem.parent.mkdir(parents=True, exist_ok=True)
    for name, array in (("tokens", np.array(tokens, np.uint32)), ("ends", np.array(ends, np.int64))):
        part = stem.with_suffix(f".{name}.part.npy")
        np.save(part, array, allow_pickle=False)
        sync(part)
        part.replace(stem.with_suffix(f".{name}.npy"))


def shard(stem: Path, seed: int) -> Source:
    """Examples of a shard, endless, in an order drawn anew each pass."""
    tokens = np.load(stem.with_suffix(".tokens.npy"), mmap_mode="r", allow_pickle=False)
    ends = np.load(stem.with_suffix(".ends.npy"), allow_pickle=False)
    orders: dict[int, list[int]] = {}

    def example(i: int) -> Example:
        epoch, at = divmod(i, len(ends))
        if epoch not in orders:
            orders.clear()
            orders[epoch] = list(range(len(ends)))
            random.Random(seed_of(seed, "epoch", epoch)).shuffle(orders[epoch])
        document = orders[epoch][at]
        begin = int(ends[document - 1]) if document else 0
        ids = tokens[begin : int(ends[document])].tolist()
        return Example(ids, [1] * len(ids))

    return example


def mix(sources: Sequence[Source], weights: Sequence[int], seed: int) -> Source:
    """Several sources as one: every block of sum(weights) examples holds each source `weight` times, shuffled."""
    pattern = [k for k, weight in enumerate(weights) for _ in range(weight)]

    def example(i: int) -> Example:
        block, at = divmod(i, len(pattern))
        order = pattern.copy()
        random.Random(seed_of(seed, "mix", block)).shuffle(order)
        which = order[at]
        return sources[which](block * weights[which] + order[:at].count(which))

    return example
