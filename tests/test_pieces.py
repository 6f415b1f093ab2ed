"""Text as it comes is the text of all tokens, for every kind of decoder and any tokens at all."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import cache

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from small import chat
from tokenizers import AddedToken, decoders, models

from mull.text.pieces import spelling
from mull.text.tokenizer import Tokenizer

WORDS = ["▁", "a", "▁a", "b", "▁▁", "é", "你", "##a", "##", "<", "</w>", "a</w>", "."]


def foreign(decoder: decoders.Decoder | None, *added: str) -> Tokenizer:
    """Single bytes as SentencePiece names them, and words of several kinds."""
    vocabulary = [*(f"<0x{byte:02X}>" for byte in range(256)), *WORDS]
    inner = tokenizers.Tokenizer(models.BPE({text: at for at, text in enumerate(vocabulary)}, []))
    if decoder is not None:
        inner.decoder = decoder
    inner.add_tokens([AddedToken(text, special=True, normalized=False) for text in added])
    return Tokenizer(inner, {})


def lettered() -> Tokenizer:
    """DeepSeek's way: a letter as a token of its own, whose name is also a byte's."""
    inner = tokenizers.Tokenizer.from_str(chat().tokenizer.inner.to_str())
    inner.add_tokens([AddedToken("ö", normalized=False), AddedToken("<｜end｜>", special=True)])
    return Tokenizer(inner, {})


LLAMA = decoders.Sequence(
    [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
)
KINDS: dict[str, Callable[[], Tokenizer]] = {
    "ours": lambda: chat().tokenizer,
    "bytes and letters": lettered,
    "llama": lambda: foreign(LLAMA, "<s>", "</s>"),
    "gemma": lambda: foreign(
        decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]), "<s>"
    ),
    "metaspace": lambda: foreign(decoders.Metaspace(), "</s>"),
    "wordpiece": lambda: foreign(decoders.WordPiece(), "[SEP]"),
    "bpe, whose last word is another": lambda: foreign(decoders.BPEDecoder()),
    "replaced when fused": lambda: foreign(decoders.Sequence([decoders.Fuse(), decoders.Replace("ab", "c")])),
    "none": lambda: foreign(None, "</s>"),
}
tokenizer_of = cache(lambda kind: KINDS[kind]())


def heard(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    pieces = spelling(tokenizer)()
    return "".join([*map(pieces.feed, ids), pieces.flush()])


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=200)
@given(st.data())
def test_pieces_are_the_whole(kind: str, data: st.DataObject) -> None:
    """Beyond the vocabulary there is padding; and bytes that are no characters come in any order."""
    t = tokenizer_of(kind)
    size = t.vocab_size
    broken = [t.inner.token_to_id(name) for name in ("<0xE4>", "<0xBD>", "<0xA0>", "ä", "½", "ł")]
    token = st.sampled_from([*range(size), size + 3]) | st.sampled_from([i for i in broken if i is not None])
    ids = data.draw(st.lists(token, max_size=12))
    assert heard(t, ids) == t.decode(ids)


@pytest.mark.parametrize("kind", ["ours", "bytes and letters", "llama", "gemma"])
def test_half_a_character_is_held_back_and_whole_ones_are_not(kind: str) -> None:
    t = tokenizer_of(kind)
    names = ["<0xE4>", "<0xBD>", "<0xA0>", "a", "a"] if kind in ("llama", "gemma") else ["ä", "½", "ł", "a", "a"]
    pieces = spelling(t)()
    said = [pieces.feed(i) for name in names if (i := t.inner.token_to_id(name)) is not None]
    assert said == (["", "", "", "你a", "a"] if "<" in names[0] else ["", "", "你", "a", "a"])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("names", [["a"], ["▁"], ["##"], ["<0xBD>", "½"], ["<0xE4>", "ä"], ["a", "▁"]])
def test_a_token_costs_the_same_however_long_the_text_is(kind: str, names: list[str]) -> None:
    t = tokenizer_of(kind)
    ids = [i for name in names if (i := t.inner.token_to_id(name)) is not None]
    begun = time.process_time()
    assert heard(t, ids * 20_000) == t.decode(ids * 20_000)
    assert time.process_time() - begun < 2
