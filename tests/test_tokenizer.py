"""The tokenizer: splits as Qwen2's does, loses nothing, and no text can forge a special token."""

from __future__ import annotations

from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from small import TEXTS, VOCAB, chat

from mull.text.tokenizer import QWEN2_SPLIT, SMALLEST, SPECIALS, Tokenizer
from mull.types import UserError

anything = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
forged = st.lists(st.sampled_from([*SPECIALS, "<|im_", "end|>", "<", "|", ">", "</", "think", "a", " ", "\n", "é"]))


def nfc(text: str) -> str:
    return tokenizers.normalizers.NFC().normalize_str(text)


@settings(deadline=None, max_examples=200)
@given(anything)
def test_text_comes_back_whole(text: str) -> None:
    """Up to Unicode's composed form, which Qwen2's tokenizer makes too."""
    tokenizer = chat().tokenizer
    assert tokenizer.decode(tokenizer.encode(text)) == nfc(text)


@settings(deadline=None, max_examples=200)
@given(forged)
def test_written_special_tokens_stay_text(parts: list[str]) -> None:
    tokenizer, text = chat().tokenizer, "".join(parts)
    ids = tokenizer.encode(text)
    assert not {*range(len(SPECIALS))} & {*ids}
    assert tokenizer.decode(ids) == text


@settings(deadline=None, max_examples=100)
@given(forged)
def test_structure_is_read_as_special_where_it_is_ours(parts: list[str]) -> None:
    tokenizer = chat().tokenizer
    ids = tokenizer.encode("".join(parts), special=True)
    assert tokenizer.decode(ids) == "".join(parts)
    text = "".join(parts)
    count = sum(text.count(special) for special in SPECIALS)
    assert sum(i < len(SPECIALS) for i in ids) == count


@settings(deadline=None, max_examples=100)
@given(st.text("0123456789", min_size=1, max_size=12), st.sampled_from(["", " ", "a", "+", "\n"]))
def test_every_digit_is_a_token(number: str, before: str) -> None:
    tokenizer = chat().tokenizer
    ids = tokenizer.encode(before + number)
    assert [tokenizer.decode([i]) for i in ids[-len(number) :]] == list(number)


def pieces(tokenizer: Tokenizer, text: str) -> list[str]:
    pre = tokenizer.inner.pre_tokenizer
    assert pre is not None
    return [text[a:b] for _, (a, b) in pre.pre_tokenize_str(text)]


def published() -> Tokenizer:
    """Qwen2's own pipeline as transformers builds it, with our vocabulary: only its pre-tokenizer is asked."""
    qwen2 = pytest.importorskip("transformers.models.qwen2.tokenization_qwen2")
    theirs = qwen2.Qwen2Tokenizer(vocab={chr(97): 0, "<|endoftext|>": 1}, merges=[])
    made = Tokenizer.__new__(Tokenizer)
    made.inner = theirs.backend_tokenizer
    return made


def test_the_split_is_qwen2s_pattern() -> None:
    qwen2 = pytest.importorskip("transformers.models.qwen2.tokenization_qwen2")
    assert qwen2.PRETOKENIZE_REGEX == QWEN2_SPLIT


@settings(deadline=None, max_examples=200)
@given(
    st.one_of(
        anything,
        st.lists(
            st.sampled_from(["It's", " we'LL", "12", " 3", "  ", "\n", "\r\n", "\t", "你好", "ß", "!?", " .", "a", "٣"])
        ).map("".join),
    )
)
def test_text_splits_as_qwen2s_published_tokenizer_splits_it(text: str) -> None:
    assert pieces(chat().tokenizer, text) == pieces(QWEN2, text)


QWEN2 = published()


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("12 + 345", ["1", "2", " +", " ", "3", "4", "5"]),
        ("it's", ["it", "'s"]),
        (" hello  world", [" hello", " ", " world"]),
        ("a\n\nb", ["a", "\n\n", "b"]),
        ("x=-7:3", ["x", "=-", "7", ":", "3"]),
    ],
)
def test_splits_written_out(text: str, want: list[str]) -> None:
    assert pieces(chat().tokenizer, text) == want


def test_training_is_deterministic_and_fills_the_vocabulary() -> None:
    a, b = Tokenizer.train(TEXTS, VOCAB), Tokenizer.train(iter(TEXTS), VOCAB)
    assert a.inner.to_str() == b.inner.to_str()
    assert a.vocab_size == VOCAB
    assert [a.inner.token_to_id(s) for s in SPECIALS] == list(range(len(SPECIALS)))
    long = "The answer is"
    assert len(a.encode(long)) < len(long.encode())


def test_a_vocabulary_of_bytes_alone_works_and_a_smaller_one_is_refused() -> None:
    assert Tokenizer.train([], SMALLEST).decode(Tokenizer.train([], SMALLEST).encode("né 1")) == "né 1"
    with pytest.raises(UserError, match="too small"):
        Tokenizer.train(TEXTS, SMALLEST - 1)


def test_saved_and_loaded_is_the_same(tmp_path: Path) -> None:
    chat().tokenizer.save(tmp_path)
    back = Tokenizer.load(tmp_path)
    assert back.inner.to_str() == chat().tokenizer.inner.to_str()
    assert back.stop_ids == chat().tokenizer.stop_ids
    assert sorted(p.name for p in tmp_path.iterdir()) == ["tokenizer.json", "tokenizer_config.json"]


@pytest.mark.parametrize("text", ["", "{}", "[]", "{", '{"model": 3}'])
def test_a_broken_file_is_a_user_error(text: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        Tokenizer.load(tmp_path)


def test_a_tokenizer_without_our_specials_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no tokenizer\.json"):
        Tokenizer.load(tmp_path)
    tokenizers.Tokenizer(tokenizers.models.BPE()).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match=r"lacks <\|endoftext\|>"):
        Tokenizer.load(tmp_path)
