"""The tokenizer: splits as Qwen2's does, loses nothing, and no text can forge a special token."""

from __future__ import annotations

import contextlib
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from small import TEXTS, VOCAB, chat
from tokenizers import AddedToken

from mull.text.bounds import ADDED
from mull.text.tokenizer import QWEN2_SPLIT, SMALLEST, SPECIALS, Tokenizer, beginnings
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


# Published tokenizers


def letters() -> dict[str, int]:
    return {c: i for i, c in enumerate(sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()))}


def foreign(*added: AddedToken) -> tokenizers.Tokenizer:
    """Bytes alone, and added tokens behind them."""
    inner = tokenizers.Tokenizer(tokenizers.models.BPE(letters(), []))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = tokenizers.decoders.ByteLevel()
    inner.add_tokens([*added])
    return inner


def token(text: str, special: bool = True) -> AddedToken:
    return AddedToken(text, special=special, normalized=False)


def published_files(folder: Path, **files: object) -> Path:
    added = [token("<s>"), token("</s>"), token("<|eot_id|>"), token("<think>", special=False), token("[PAD]")]
    foreign(*added).save(str(folder / "tokenizer.json"))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def test_what_begins_ends_and_fills_is_read_where_it_is_declared(tmp_path: Path) -> None:
    config = {"bos_token": "<s>", "eos_token": {"content": "</s>", "special": True}, "pad_token": "[PAD]", "own": [1]}
    folder = published_files(tmp_path, tokenizer_config=config, generation_config={"eos_token_id": [258]})
    t = Tokenizer.load(folder)
    assert (t.bos, t.eos, t.pad) == (256, 257, 260)
    assert t.stop_ids == (258, 257)
    assert not t.house
    t.save(tmp_path / "again")
    back = Tokenizer.load(tmp_path / "again")
    assert back.config == config == t.config
    assert back.inner.to_str() == t.inner.to_str()
    assert back.stop_ids == (257, 258)  # declared nowhere now: by name


@pytest.mark.parametrize(
    ("files", "stops"),
    [
        ({"generation_config": {"eos_token_id": 257}}, (257,)),
        ({"generation_config": {"eos_token_id": [257, 258]}, "config": {"eos_token_id": 256}}, (257, 258)),
        ({"generation_config": {"eos_token_id": None}, "config": {"eos_token_id": 258}}, (258,)),
        ({"config": {"eos_token_id": [258]}, "special_tokens_map": {"eos_token": "</s>"}}, (258, 257)),
        ({}, (258, 257)),
    ],
)
def test_what_ends_an_answer(files: dict[str, object], stops: tuple[int, ...], tmp_path: Path) -> None:
    assert Tokenizer.load(published_files(tmp_path, **files)).stop_ids == stops


def test_what_ends_gpt_oss_thoughts_does_not_end_its_answers() -> None:
    tokens = [token(text) for text in ("<|end|>", "<|return|>", "<|call|>")]
    assert Tokenizer(foreign(*tokens), {}).stop_ids == (257, 258)
    assert Tokenizer(foreign(*tokens[:2]), {}).stop_ids == (256, 257)


def test_tokens_that_only_the_configuration_adds_are_added(tmp_path: Path) -> None:
    """As AutoTokenizer does."""
    listed = {str(261 + i): {"content": text, "special": i == 0} for i, text in enumerate(["<|new|>", "<call>"])}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "added_tokens_decoder": listed}
    t = Tokenizer.load(published_files(tmp_path, tokenizer_config=config))
    assert (t.added["<|new|>"], t.added["<call>"]) == (261, 262)
    assert not {261, 262} & {*t.encode("<|new|><call>")}
    auto = pytest.importorskip("transformers").AutoTokenizer.from_pretrained(tmp_path)
    text = "a<|new|> <call>b<s>"
    assert t.encode(text, special=True) == auto(text, add_special_tokens=False).input_ids


@pytest.mark.parametrize("listed", [{"999": {"content": "<far>"}}, {"x": {}}, {"261": {}}, [3], 3, {"261": 5}])
def test_tokens_that_cannot_be_added_are_refused(listed: object, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="tokenizer_config"):
        Tokenizer.load(published_files(tmp_path, tokenizer_config={"added_tokens_decoder": listed}))


@pytest.mark.parametrize("declared", ["x", [1, "x"], -1, 1.5, [True], {"a": 1}])
def test_ends_that_are_no_ids_are_refused(declared: object, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"generation_config\.json: eos_token_id is"):
        Tokenizer.load(published_files(tmp_path, generation_config={"eos_token_id": declared}))


@pytest.mark.parametrize("text", ["[]", "{", "3", "\xff", "[" * 100_000])
def test_configurations_that_are_no_objects_are_refused(text: str, tmp_path: Path) -> None:
    (published_files(tmp_path) / "tokenizer_config.json").write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match=r"tokenizer_config\.json (is no JSON|is no UTF-8|holds no JSON object)"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize("other", ["tokenizer.model", "vocab.json"])
def test_a_folder_without_a_fast_tokenizer_is_told_so(other: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no tokenizer\.json\.$"):
        Tokenizer.load(tmp_path)
    (tmp_path / other).write_text("x")
    with pytest.raises(UserError, match=rf"holds no tokenizer\.json, only {other}"):
        Tokenizer.load(tmp_path)


ODD = ["<s>", "<s><s>", "[PAD]", "[PAD", "AD]", "<", "[", "<|eot_id|>", "<|", "|>", "s>", "a", " ", "<<s>s>", "ö", "  "]


@settings(deadline=None, max_examples=200)
@given(st.lists(st.sampled_from(ODD)).map("".join))
def test_no_added_token_can_be_written(text: str) -> None:
    """Overlapping ones included; single letters and blanks, which some vocabularies add, are no structure."""
    added = [token("<s>"), token("s>a"), token("[PAD]", special=False), token("<|eot_id|>"), token("<<s>")]
    t = Tokenizer(foreign(*added, token("ö", special=False), token("  ", special=False)), {})
    ids = t.encode(text)
    assert not {*range(256, 256 + len(added))} & {*ids}
    assert t.decode(ids) == text
    assert ids.count(t.added["ö"]) == text.count("ö")
    assert t.decode(t.encode(text, special=True)) == text


def test_long_texts_are_searched_in_time() -> None:
    """A vocabulary with thousands of added tokens, and texts that seem to begin one at every letter."""
    t = Tokenizer(foreign(*(token(f"[PAD{i}]", special=False) for i in range(3000)), token("<|im_end|>")), {})
    for text in ("<|im_" * 40_000, "[PAD" * 40_000, "word " * 40_000, "<|im_end|>" * 2_000):
        begun = time.process_time()
        assert not {*t.added.values()} & {*t.encode(text)}
        assert time.process_time() - begun < 5


def test_as_many_tokens_as_may_be_added_are_searched_in_time() -> None:
    begun = time.process_time()
    search = beginnings([*(f"<unused{i}>" for i in range(ADDED - 1)), "<s>"])
    assert [found.span() for found in search.finditer("<<" * 150_000 + "<s><unused7><unused")] == [
        (300_000, 300_001), (300_003, 300_004)
    ]  # fmt: skip
    assert time.process_time() - begun < 3


def test_a_tokenizer_that_reads_structure_out_of_plain_text_is_refused() -> None:
    inner = foreign()
    inner.normalizer = tokenizers.normalizers.Lowercase()
    inner.add_tokens([AddedToken("<end>", special=True, normalized=True)])
    with pytest.raises(UserError, match="reads '<END>' as its <end>; such text cannot be used safely"):
        Tokenizer(inner, {}).encode("<END>")


def test_a_blank_put_before_a_text_is_not_put_before_its_pieces() -> None:
    """Tokenizers of SentencePiece's kind; the cut in "</s>" is no beginning of a text."""
    inner = tokenizers.Tokenizer(
        tokenizers.models.BPE({c: i for i, c in enumerate(["▁", "a", "<", "/", "s", ">", "\n"])}, [])
    )
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(prepend_scheme="always")
    inner.decoder = tokenizers.decoders.Metaspace()
    inner.add_tokens([token("</s>")])
    t = Tokenizer(inner, {"eos_token": "</s>"})
    assert [inner.id_to_token(i) for i in t.encode("a</s>a")] == ["▁", "a", "<", "/", "s", ">", "a"]
    assert t.decode(t.encode("a</s>a")) == "a</s>a"


def test_documents_need_a_token_that_ends_them() -> None:
    assert Tokenizer(foreign(token("</s>")), {"eos_token": "</s>"}).end_of_text == 256
    assert Tokenizer(foreign(token("</s>"), token("<|end_of_text|>")), {"eos_token": "</s>"}).end_of_text == 257
    with pytest.raises(UserError, match="no token that ends a text"):
        _ = Tokenizer(foreign(), {}).end_of_text


@pytest.mark.parametrize("text", ["a" * 40, "\ud800"])
def test_what_the_library_cannot_read_is_a_user_error(text: str) -> None:
    """A pattern that backtracks for ever, which the library gives up after a while; half of a character."""
    inner = foreign()
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex("(a+)+b"), "isolated")
    with pytest.raises(UserError, match="cannot read the text"):
        Tokenizer(inner, {}).encode(text)


def test_a_limit_of_length_in_the_file_is_not_ours(tmp_path: Path) -> None:
    inner = foreign()
    inner.enable_truncation(4)
    inner.enable_padding(length=9)
    inner.save(str(tmp_path / "tokenizer.json"))
    assert len(Tokenizer.load(tmp_path).encode("abcdefg")) == 7


FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json", "config.json")


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_gigabytes_is_not_read(name: str, tmp_path: Path) -> None:
    with (published_files(tmp_path) / name).open("wb") as file:
        file.truncate(1 << 36)
    begun = time.process_time()
    with pytest.raises(UserError, match=rf"{name} has more than"):
        Tokenizer.load(tmp_path)
    assert time.process_time() - begun < 2


# Programs of strangers: what makes too much of a text would end the process, so it is not even loaded


def step(kind: str, **given: Any) -> dict[str, Any]:
    return {"type": kind, **given}


def replacing(old: str, new: str) -> dict[str, Any]:
    return step("Replace", pattern={"String": old}, content=new)


def template(*texts: str) -> dict[str, Any]:
    parts = [{"Sequence": {"id": text, "type_id": 0}} for text in texts]
    return step("TemplateProcessing", single=parts, pair=parts, special_tokens={})


BYTES = step("ByteLevel", add_prefix_space=False, trim_offsets=True, use_regex=False)
SENTENCE = step("Metaspace", replacement="▁", prepend_scheme="first", split=False)
SPLIT = step("Split", pattern={"Regex": QWEN2_SPLIT}, behavior="Isolated", invert=False)
LLAMA2 = {
    "normalizer": step("Sequence", normalizers=[step("Prepend", prepend="▁"), replacing(" ", "▁")]),
    "pre_tokenizer": None,
    "decoder": step("Sequence", decoders=[
        replacing("▁", " "), step("ByteFallback"), step("Fuse"), step("Strip", content=" ", start=1, stop=0),
    ]),
}  # fmt: skip
PUBLISHED: dict[str, dict[str, Any]] = {
    "qwen": {
        "normalizer": step("NFC"), "pre_tokenizer": step("Sequence", pretokenizers=[SPLIT, BYTES]),
        "post_processor": BYTES,
    },
    "deepseek": {
        "normalizer": step("Sequence", normalizers=[]),
        "pre_tokenizer": step("Sequence", pretokenizers=[SPLIT, SPLIT, step("Digits", individual_digits=True), BYTES]),
    },
    "llama 3": {"post_processor": step("Sequence", processors=[BYTES, template("A")])},
    "llama 2": LLAMA2,
    "gemma": LLAMA2 | {"normalizer": replacing(" ", "▁")},
    "mistral": {"normalizer": None, "pre_tokenizer": SENTENCE, "decoder": LLAMA2["decoder"]},
    "codegen": {"normalizer": step("NFKC"), "pre_tokenizer": BYTES},
}
BOMBS: dict[str, dict[str, Any]] = {
    "replace": {"normalizer": step("Sequence", normalizers=[replacing("a", "a" * 100)] * 5)},
    "replace by pattern": {"normalizer": step("Replace", pattern={"Regex": "$|^|a*"}, content="a" * 100)},
    "replace nothing": {"normalizer": replacing("", "a" * 100)},
    "prepend": {"normalizer": step("Prepend", prepend="a" * 1000)},
    "sequences": {
        "normalizer": step("Sequence", normalizers=[step("Sequence", normalizers=[replacing("a", "aa")] * 3)] * 9)
    },
    "byte by byte": {"pre_tokenizer": step("Sequence", pretokenizers=[BYTES] * 30)},
    "many small steps": {"normalizer": step("Sequence", normalizers=[step("StripAccents")] * 99)},
    "decode": {"decoder": step("Sequence", decoders=[replacing("a", "a" * 1000)] * 4)},
    "everything twice": {"post_processor": step("Sequence", processors=[template("A", "A")] * 40)},
    "unknown": {"normalizer": step("Precompiled", precompiled_charsmap="AAAA")},
    "without a name": {"normalizer": {"prepend": "a" * 1000}},
}


def program(folder: Path, parts: dict[str, Any]) -> Path:
    raw = json.loads(foreign(token("<s>")).to_str()) | parts
    (folder / "tokenizer.json").write_text(json.dumps(raw))
    return folder


@pytest.mark.parametrize("name", [*PUBLISHED])
def test_what_published_tokenizers_do_is_done(name: str, tmp_path: Path) -> None:
    t = Tokenizer.load(program(tmp_path, PUBLISHED[name]))
    assert "abc" in t.decode(t.encode("abc"))


@pytest.mark.parametrize("name", [*BOMBS])
def test_what_would_make_too_much_of_a_text_is_not_loaded(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"tokenizer\.json(: its .* has a step that is not read| takes more than)"):
        Tokenizer.load(program(tmp_path, BOMBS[name]))


def test_what_two_readers_could_read_differently_is_not_loaded(tmp_path: Path) -> None:
    text = foreign().to_str().replace('"normalizer":null', '"normalizer":{"type":"Prepend","type":"NFC"}')
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(UserError, match="a key is there twice"):
        Tokenizer.load(tmp_path)


def test_added_tokens_are_thousands_not_millions(tmp_path: Path) -> None:
    """In tokenizer.json and beside it."""
    many = [{"id": 256 + i, "content": f"<{i}>"} for i in range(100_000)]
    flags = {"special": True, "normalized": False, "lstrip": False, "rstrip": False, "single_word": False}
    begun = time.process_time()
    with pytest.raises(UserError, match=r"tokenizer\.json adds 100,000 tokens"):
        Tokenizer.load(program(tmp_path, {"added_tokens": [one | flags for one in many]}))
    long = [{"id": 256 + i, "content": "<" * 1000} | flags for i in range(300)]
    with pytest.raises(UserError, match=r"tokenizer\.json adds 300 tokens of 300,000 characters"):
        Tokenizer.load(program(tmp_path, {"added_tokens": long}))
    listed = {str(one["id"]): {"content": one["content"]} for one in many}
    with pytest.raises(UserError, match=r"tokenizer_config\.json adds 99,995 tokens"):
        Tokenizer.load(published_files(tmp_path, tokenizer_config={"added_tokens_decoder": listed}))
    few = dict([*listed.items()][5:9_005])  # behind the five of tokenizer.json
    t = Tokenizer.load(published_files(tmp_path, tokenizer_config={"added_tokens_decoder": few}))
    assert t.added["<9004>"] == 9_260
    assert time.process_time() - begun < 5


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_whatever_a_tokenizer_json_holds_it_loads_or_is_a_user_error(data: st.DataObject) -> None:
    """Values of a good file replaced by others."""
    raw = json.loads(foreign(token("<s>")).to_str())
    at: Any = raw
    while True:
        keys = [*at] if isinstance(at, dict) else [*range(len(at))]
        key = data.draw(st.sampled_from(keys))
        if isinstance(at[key], dict | list) and at[key] and data.draw(st.booleans()):
            at = at[key]
            continue
        at[key] = data.draw(st.sampled_from([None, 3, -1, 1 << 40, "x", "", [], {}, True, 1.5, "ByteLevel", [{}]]))
        break
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "tokenizer.json").write_text(json.dumps(raw))
        with contextlib.suppress(UserError):
            Tokenizer.load(Path(folder)).encode("ab <s> é")
