"""Text files: read in order, cut to length, dealt anew each pass."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small import chat

from mull.data.batch import Example
from mull.data.shards import mix, read_texts, shard, write_shard
from mull.types import UserError


def test_documents_of_text_files(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("one\ntwo\n<|endoftext|>\nthree\n<|endoftext|>\n\n", encoding="utf-8")
    (tmp_path / "a.jsonl").write_text('{"text": "zero"}\n\n{"text": "né"}\n', encoding="utf-8")
    (tmp_path / "c.txt").write_text("not <|endoftext|> alone on its line", encoding="utf-8")
    got = list(read_texts([str(tmp_path / "*.*")]))
    assert got == ["zero", "né", "one\ntwo", "three", "not <|endoftext|> alone on its line"]


def test_bytes_that_are_no_text_do_not_stop_a_run(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"good \xff\xfe bad")
    (text,) = read_texts([str(tmp_path / "a.txt")])
    assert text.startswith("good")


@pytest.mark.parametrize("line", ['{"txt": "x"}', "[1]", "plain", '"text"'])
def test_a_line_that_is_no_document_is_named(line: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(f'{{"text": "fine"}}\n{line}\n')
    with pytest.raises(UserError, match=r"a\.jsonl, line 2"):
        list(read_texts([str(tmp_path / "a.jsonl")]))


def test_a_pattern_that_matches_nothing_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nothing\.txt"):
        list(read_texts([str(tmp_path / "nothing.txt")]))


TEXTS = ["What is 7 + 81?", "12 + 34 = 46. " * 9, "a", "héllo 你好"]


def test_a_shard_holds_every_token_and_cuts_long_documents(tmp_path: Path) -> None:
    tokenizer = chat().tokenizer
    write_shard(tmp_path / "s", iter(TEXTS), tokenizer, length=20)
    tokens, ends = np.load(tmp_path / "s.tokens.npy"), np.load(tmp_path / "s.ends.npy")
    whole = [t for text in TEXTS for t in [*tokenizer.encode(text), tokenizer.end_of_text]]
    assert tokens.tolist() == whole
    sizes = np.diff([0, *ends]).tolist()
    assert max(sizes) == 20
    assert sum(sizes) == len(whole)
    source = shard(tmp_path / "s", seed=0)
    passes = [[tuple(source(p * len(ends) + i).tokens) for i in range(len(ends))] for p in range(3)]
    assert Counter(passes[0]) == Counter(passes[1]) == Counter(passes[2])  # each pass holds every piece once
    assert len({tuple(p) for p in passes}) > 1  # in an order of its own
    assert source(2) == shard(tmp_path / "s", seed=0)(2)
    assert all(source(i).mask == [1] * len(source(i).tokens) for i in range(len(ends)))


def test_access_in_any_order_gives_the_same(tmp_path: Path) -> None:
    write_shard(tmp_path / "s", iter(TEXTS), chat().tokenizer, length=20)
    forth, back = shard(tmp_path / "s", 1), shard(tmp_path / "s", 1)
    want = [forth(i) for i in range(30)]
    assert [back(i) for i in reversed(range(30))] == want[::-1]


def test_no_text_is_an_error_and_half_a_shard_is_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no text"):
        write_shard(tmp_path / "s", iter([]), chat().tokenizer, 20)
    assert list(tmp_path.iterdir()) == []


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=3), st.integers(0, 1000))
def test_mixing_is_exact_in_every_block_and_skips_nothing(weights: list[int], seed: int) -> None:
    def plain(k: int):
        return lambda i: Example([5 + k, 10 + i], [1, 1])

    mixed = mix([plain(k) for k in range(len(weights))], weights, seed)
    block, blocks = sum(weights), 4
    seen = [mixed(i).tokens for i in range(block * blocks)]
    for b in range(blocks):
        counts = Counter(which - 5 for which, _ in seen[b * block : (b + 1) * block])
        assert [counts[k] for k in range(len(weights))] == weights
    for k, weight in enumerate(weights):
        assert [i - 10 for which, i in seen if which - 5 == k] == list(range(weight * blocks))


def test_json_and_text_are_the_same_documents(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": t}) for t in TEXTS))
    (tmp_path / "b.txt").write_text("\n<|endoftext|>\n".join(TEXTS), encoding="utf-8")
    assert list(read_texts([str(tmp_path / "a.jsonl")])) == list(read_texts([str(tmp_path / "b.txt")]))
