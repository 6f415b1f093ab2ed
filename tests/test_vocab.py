"""Vocabularies of GGUF files: llama.cpp's own test vectors, and llama.cpp itself, give the ids that we give."""

from __future__ import annotations

import contextlib
import copy
import random
import sys
import unicodedata
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from llamacpp import LlamaCpp, write_vocabulary
from small import VOCAB, chat
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers

from mull.formats.gguf import read_header
from mull.text.tokenizer import SPECIALS, Tokenizer
from mull.text.vocab import CJK, GPT2_SPLIT, KINDS, SAME, metadata_of, tokenizer_of
from mull.types import UserError

VECTORS = sorted((Path(__file__).parents[2] / "shared" / "data" / "vocab").glob("*.gguf"))
needs_vectors = pytest.mark.skipif(not VECTORS, reason="llama.cpp's test vectors in ../shared are not here")
SPACES = {chr(c) for c in range(0x800, 0x4E00) if chr(c).isspace()}  # see `plain`


@cache
def given_vocabulary(path: Path) -> tuple[dict[str, Any], Tokenizer]:
    metadata = read_header(path).metadata
    return metadata, tokenizer_of(metadata, path.name)


@needs_vectors
@pytest.mark.parametrize("path", VECTORS, ids=lambda path: path.stem)
def test_llama_cpps_test_vectors_all_match(path: Path) -> None:
    _, tokenizer = given_vocabulary(path)
    asked = path.with_suffix(".gguf.inp").read_bytes().decode("utf-8").split("\n__ggml_vocab_test__\n")
    want = [[int(i) for i in line.split()] for line in path.with_suffix(".gguf.out").read_text().split("\n")]
    assert len(asked) > 40
    for text, ids in zip(asked, want, strict=True):
        assert tokenizer.encode(text) == ids, text
        assert tokenizer.encode(text, special=True) == ids, text
        assert tokenizer.decode(ids) == text


@needs_vectors
@pytest.mark.parametrize("path", VECTORS, ids=lambda path: path.stem)
def test_published_vocabularies_are_written_as_they_were_read(path: Path) -> None:
    metadata, tokenizer = given_vocabulary(path)
    written = metadata_of(tokenizer, len(metadata["tokenizer.ggml.tokens"]))
    for key, value in metadata.items():
        if key.startswith("tokenizer.ggml.") and key in written:
            assert written[key] == value, key
    lines = [line for line in written if line not in metadata]
    assert {*lines} <= {"tokenizer.ggml.eot_token_id", "tokenizer.ggml.add_bos_token", "tokenizer.ggml.add_eos_token"}


@needs_vectors
@settings(deadline=None, max_examples=100)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=30))
def test_text_comes_back_whole_from_published_vocabularies(text: str) -> None:
    for path in VECTORS:
        _, tokenizer = given_vocabulary(path)
        assert tokenizer.decode(tokenizer.encode(text)) == (nfc(text) if "qwen2" in path.name else text)


def nfc(text: str) -> str:
    return tokenizers.normalizers.NFC().normalize_str(text)


# A vocabulary that shows where text is split: pairs of bytes across every kind of boundary are tokens.


def byte_letters() -> list[str]:
    """The letter that byte-level BPE writes for each byte."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in kept]
    named = dict(zip(kept, map(chr, kept), strict=True)) | {byte: chr(256 + i) for i, byte in enumerate(rest)}
    return [named[byte] for byte in range(256)]


@cache
def telling(kind: str) -> dict[str, Any]:
    letters = byte_letters()
    leads, inner = letters[0xC2:0xF5], letters[0x80:0xC0]
    near = [letters[ord(c)] for c in "ab12 .,'\n\r\tsST"]
    pairs = [(a, b) for a in near for b in [*near, *leads]] + [(a, b) for a in inner for b in [*near, *leads]]
    tokens = ["<|im_end|>", "<think>", *letters, *(a + b for a, b in pairs)]
    return {
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": kind, "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3, 4] + [1] * (len(tokens) - 2),
        "tokenizer.ggml.merges": [f"{a} {b}" for a, b in pairs], "tokenizer.ggml.eos_token_id": 0,
    }  # fmt: skip


def plain(kind: str, text: str) -> str:
    """What both should agree on.

    llama.cpp composes no characters where the published tokenizer does. And it takes every blank for an ASCII one where
    patterns have ranges, so that DeepSeek's older range from U+0800 to U+4E00 holds no blanks there; in the published
    files it does.
    """
    if kind in ("deepseek-llm", "deepseek-coder"):
        text = "".join(c for c in text if c not in SPACES)
    return nfc(text) if KINDS[kind].nfc else text


@pytest.fixture(scope="module")
def oracles(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, tuple[Tokenizer, LlamaCpp]]]:
    pytest.importorskip("xllamacpp")
    made = {}
    for kind in KINDS:
        path = tmp_path_factory.mktemp("vocab") / f"{kind}.gguf"
        write_vocabulary(path, telling(kind))
        made[kind] = tokenizer_of(read_header(path).metadata, path.name), LlamaCpp(path)
    yield made
    made.clear()


LETTERS = "abcXYZ019 '  \n\r\t.,!?-_()[]<>|+=é你こ안ßÀö١½²\u00a0\u0301\u0303\u200d🙂ไि中"
POOL = [*LETTERS, "'s", "'LL", "'Ve", "\r\n", "  "]


@pytest.mark.parametrize("kind", KINDS)
def test_llama_cpp_splits_text_as_we_do(kind: str, oracles: dict[str, tuple[Tokenizer, LlamaCpp]]) -> None:
    tokenizer, oracle = oracles[kind]
    draw = random.Random(kind)
    for _ in range(150):
        text = plain(kind, "".join(draw.choice(POOL) for _ in range(draw.randrange(1, 30))))
        assert tokenizer.encode(text) == oracle.ids(text), text


def assigned(step: int) -> list[str]:
    """Characters that every Unicode of the last years knows."""
    chars = map(chr, range(0x80, sys.maxunicode + 1, step))
    return [c for c in chars if unicodedata.category(c) not in ("Cn", "Cs", "Co")]


def check_characters(kind: str, tokenizer: Tokenizer, oracle: LlamaCpp, step: int) -> None:
    """Each of them between letters, digits, blanks and marks, and beside itself."""
    framed = [plain(kind, f"a{c}b 1{c}2 {c}{c}. .{c} \n") for c in assigned(step)]
    for at in range(0, len(framed), 256):
        text = "".join(framed[at : at + 256])
        if tokenizer.encode(text) != oracle.ids(text):
            wrong = [one for one in framed[at : at + 256] if tokenizer.encode(one) != oracle.ids(one)]
            raise AssertionError(f"{kind} splits differently: {wrong[:20]}")


@pytest.mark.parametrize("kind", KINDS)
def test_llama_cpp_knows_characters_as_we_do(kind: str, oracles: dict[str, tuple[Tokenizer, LlamaCpp]]) -> None:
    check_characters(kind, *oracles[kind], step=61)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_llama_cpp_knows_all_characters_as_we_do(kind: str, oracles: dict[str, tuple[Tokenizer, LlamaCpp]]) -> None:
    check_characters(kind, *oracles[kind], step=1)


@pytest.mark.parametrize("kind", KINDS)
def test_llama_cpp_reads_special_tokens_where_we_do(kind: str, oracles: dict[str, tuple[Tokenizer, LlamaCpp]]) -> None:
    tokenizer, oracle = oracles[kind]
    text = "a<|im_end|>\n <think> 12</think>."
    assert tokenizer.encode(text, special=True) == oracle.ids(text, special=True)
    assert {0, 1} <= {*tokenizer.encode(text, special=True)}
    assert not {0, 1} & {*tokenizer.encode(text)}
    assert tokenizer.stop_ids == (0,)


def test_llama_cpp_reads_text_with_our_own_tokenizer_as_we_do(tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    own = chat().tokenizer
    metadata = metadata_of(own, VOCAB + 20)
    assert metadata["tokenizer.ggml.pre"] == "qwen2"
    assert metadata["tokenizer.ggml.tokens"][: VOCAB + 1][-1] == f"[PAD{VOCAB}]"
    assert metadata["tokenizer.ggml.token_type"] == [3] * len(SPECIALS) + [1] * (VOCAB - len(SPECIALS)) + [5] * 20
    write_vocabulary(tmp_path / "own.gguf", metadata)
    oracle = LlamaCpp(tmp_path / "own.gguf")
    draw = random.Random(0)
    for _ in range(150):
        text = nfc("".join(draw.choice([*POOL, "The answer is", *SPECIALS]) for _ in range(draw.randrange(1, 20))))
        assert own.encode(text, special=True) == oracle.ids(text, special=True), text
    again = tokenizer_of(read_header(tmp_path / "own.gguf").metadata, "own")
    assert (again.stop_ids, again.bos, again.eos, again.pad) == (own.stop_ids, own.bos, own.eos, own.pad)
    assert again.house


# There and back


@pytest.mark.parametrize("kind", [*KINDS, *SAME])
def test_a_vocabulary_goes_through_tokenizer_json_and_back(kind: str, tmp_path: Path) -> None:
    metadata = telling(kind)
    tokenizer = tokenizer_of(metadata, "x")
    tokenizer.save(tmp_path)
    back = Tokenizer.load(tmp_path)
    written = metadata_of(back, len(metadata["tokenizer.ggml.tokens"]))
    assert written["tokenizer.ggml.pre"] == SAME.get(kind, kind)
    for key in ("tokens", "token_type", "merges", "eos_token_id"):
        assert written[f"tokenizer.ggml.{key}"] == metadata[f"tokenizer.ggml.{key}"]
    auto = pytest.importorskip("transformers").AutoTokenizer.from_pretrained(tmp_path)
    for text in ("it's 12 + 345\n\n  你好", "a <think> b"):
        assert auto(text, add_special_tokens=False).input_ids == tokenizer.encode(text, special=True)


def byte_level(*steps: Any, whole: bool = False, regex: bool = False, prefix: bool = False) -> Tokenizer:
    letters = byte_letters()
    inner = tokenizers.Tokenizer(models.BPE({c: i for i, c in enumerate(letters)}, [], ignore_merges=whole))
    last = pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=regex)
    inner.pre_tokenizer = pre_tokenizers.Sequence([*steps, last]) if steps else last
    inner.decoder = decoders.ByteLevel()
    return Tokenizer(inner, {})


def split(pattern: str, *way: Any) -> Any:
    return pre_tokenizers.Split(Regex(pattern), *(way or ("isolated",)))


@pytest.mark.parametrize(
    ("kind", "tokenizer"),
    [
        ("gpt-2", byte_level(regex=True)),
        ("smollm", byte_level(pre_tokenizers.Digits(individual_digits=True), regex=True)),
        ("llama-bpe", byte_level(split(KINDS["llama-bpe"].patterns[0]), whole=True)),
        ("qwen2", byte_level(split(KINDS["qwen2"].patterns[0], "removed", True))),
        ("deepseek-v3", byte_level(*(split(p.replace(r"\r\n", "\r\n")) for p in KINDS["deepseek-v3"].patterns))),
        (
            "deepseek-llm",
            byte_level(*map(split, KINDS["deepseek-llm"].patterns[:-1]), pre_tokenizers.Digits(individual_digits=True)),
        ),
        (
            "deepseek-coder",
            byte_level(
                split("[\r\n]"), split(r"\s?\p{L}+"), split(r"\s?\p{P}+"),
                split(f"[{CJK}\u0800-\u4e00\uac00-\ud7ff]+"), pre_tokenizers.Digits(individual_digits=True),
            ),
        ),
    ],
)  # fmt: skip
def test_published_ways_to_say_it_are_recognised(kind: str, tokenizer: Tokenizer) -> None:
    assert metadata_of(tokenizer, 256)["tokenizer.ggml.pre"] == kind


@pytest.mark.parametrize(
    "tokenizer",
    [
        byte_level(split(r"\d+")), byte_level(regex=True, prefix=True), byte_level(),
        byte_level(split(KINDS["llama-bpe"].patterns[0])), byte_level(pre_tokenizers.Punctuation(), regex=True),
        byte_level(split(GPT2_SPLIT, "removed")),
    ],
)  # fmt: skip
def test_other_ways_to_split_are_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(UserError, match="no name here"):
        metadata_of(tokenizer, 256)


def test_what_no_gguf_file_can_hold_is_refused() -> None:
    with pytest.raises(UserError, match="only 255 embeddings"):
        metadata_of(byte_level(regex=True), 255)
    words = tokenizers.Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    with pytest.raises(UserError, match="this tokenizer is WordLevel"):
        metadata_of(Tokenizer(words, {}), 9)


# Damage


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": "llama"}, "of the kind 'llama'"), ({"model": None}, "of the kind None"),
        ({"pre": "default"}, "in the way 'default'; those read are gpt-2, llama-bpe"), ({"pre": None}, "way None"),
        ({"pre": ["gpt-2"]}, "in the way"), ({"tokens": None}, "tokens is no list of texts"),
        ({"tokens": ["a", 3]}, "tokens is no list"), ({"tokens": []}, "0 tokens have 12"),
        ({"tokens": ["a", "b", "a"]}, "lists the token 'a' twice"), ({"token_type": [1]}, "have 1 types"),
        ({"token_type": "x"}, "no list of whole numbers"), ({"merges": None}, "merges is no list"),
        ({"merges": ["a"]}, "'a' is not of two"), ({"merges": ["a b c"]}, "'a b c' is not of two"),
        ({"merges": ["zz yy"]}, "merges do not fit"), ({"eos_token_id": 10**9}, "eos_token_id is 1000000000"),
        ({"bos_token_id": -1}, "bos_token_id is -1"), ({"padding_token_id": "x"}, "padding_token_id is 'x'"),
    ],
)  # fmt: skip
def test_damage_is_one_line(changes: dict[str, Any], said: str) -> None:
    metadata = telling("gpt-2") | {f"tokenizer.ggml.{key}": value for key, value in changes.items()}
    with pytest.raises(UserError) as refused:
        tokenizer_of(metadata, "m.gguf")
    assert "m.gguf" in str(refused.value) and "\n" not in str(refused.value)
    assert said.replace("have 12", "have ") in str(refused.value)


def test_added_tokens_are_thousands_not_millions() -> None:
    metadata = telling("gpt-2")
    more = [f"<{i}>" for i in range(100_000)]
    metadata["tokenizer.ggml.tokens"] = metadata["tokenizer.ggml.tokens"] + more
    types = metadata["tokenizer.ggml.token_type"]
    for kind in (2, 3, 4):
        metadata["tokenizer.ggml.token_type"] = types + [kind] * len(more)
        with pytest.raises(UserError, match=r"m\.gguf adds 100,\d+ tokens"):
            tokenizer_of(metadata, "m.gguf")
    metadata["tokenizer.ggml.token_type"] = types + [1] * len(more)
    tokenizer_of(metadata, "m.gguf")


json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-3, 10), st.text("a< Ġ", max_size=3)),
    lambda inner: st.lists(inner, max_size=4), max_leaves=6,
)  # fmt: skip


@settings(deadline=None, max_examples=150)
@given(st.dictionaries(st.sampled_from(["pre", "tokens", "token_type", "merges", "eos_token_id"]), json_values))
def test_whatever_a_file_says_it_is_a_tokenizer_or_a_user_error(said: dict[str, Any]) -> None:
    letters = byte_letters()
    metadata: dict[str, Any] = {
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "smollm", "tokenizer.ggml.tokens": letters,
        "tokenizer.ggml.merges": [],
    }  # fmt: skip
    metadata |= {f"tokenizer.ggml.{key}": value for key, value in said.items()}
    kept = copy.deepcopy(metadata)
    with contextlib.suppress(UserError):
        assert isinstance(tokenizer_of(metadata, "x").encode("ab <"), list)
    assert metadata == kept


def test_nfc_is_where_the_published_tokenizer_has_it() -> None:
    has = {kind: tokenizer_of(telling(kind), "x").inner.normalizer for kind in KINDS}
    assert {kind for kind, normalizer in has.items() if normalizer} == {"qwen2", "qwen35"}
    assert all(isinstance(normalizer, normalizers.NFC) for normalizer in has.values() if normalizer)
