"""Vocabularies of GGUF files <-> tokenizers.

A GGUF file names how text is split before merging (`tokenizer.ggml.pre`) where a tokenizer.json spells it out. The
patterns of the names read here are those of llama.cpp's src/llama-vocab.cpp, which are those of the models' published
tokenizer.json files; every other name is refused. Checked against llama.cpp's own test vectors and against llama.cpp.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from mull.text.bounds import check_added
from mull.text.tokenizer import QWEN2_SPLIT, Tokenizer, failure, likely_ends
from mull.types import UserError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED = range(1, 6)  # token types; 6 is a byte, which byte-level BPE has not
PREFIX = "tokenizer.ggml."

GPT2_SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
DEEPSEEK_LETTERS = (  # cased ones, as its tokenizer.json lists them
    "\xb5\xc0-\xd6\xd8-\xf6\xf8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373\u0376\u0377\u037b-\u037d"
    "\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f\u0531-\u0556\u10a0-\u10c5"
    "\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a\u1e00-\u1f15"
    "\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc"
    "\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107"
    "\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f\u2145-\u2149"
    "\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f"
    "\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f"
    "\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df"
    "\U0001e900-\U0001e943"
)
CJK = "\u4e00-\u9fa5"


@dataclass(frozen=True)
class Kind:
    """Text is cut by each pattern in turn, what it matches from what it does not."""

    patterns: tuple[str, ...]
    whole: bool = False  # a piece that is a token is taken as it is, unmerged
    nfc: bool = False  # the published tokenizer composes characters first; llama.cpp does not


KINDS = {
    "gpt-2": Kind((GPT2_SPLIT,)),
    "llama-bpe": Kind((QWEN2_SPLIT.replace(r"\p{N}| ", r"\p{N}{1,3}| "),), whole=True),
    "qwen2": Kind((QWEN2_SPLIT,), nfc=True),
    "qwen35": Kind(
        (QWEN2_SPLIT.replace(r"?\p{L}+", r"?[\p{L}\p{M}]+").replace(r"[^\s\p{L}\p{N}]+", r"[^\s\p{L}\p{M}\p{N}]+"),),
        nfc=True,
    ),
    "deepseek-llm": Kind((
        r"[\r\n]", rf"\s?[A-Za-z{DEEPSEEK_LETTERS}]+",
        "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+", r"\s+$",
        f"[{CJK}\u0800-\u4e00\uac00-\ud7ff]+", r"\p{N}+",
    )),
    "deepseek-coder": Kind((
        r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", f"[{CJK}\u0800-\u4e00\uac00-\ud7ff]+", r"\p{N}",
    )),
    "deepseek-v3": Kind((
        r"\p{N}{1,3}", f"[{CJK}\u3040-\u309f\u30a0-\u30ff]+",
        r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+""" r"|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
        r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    )),
    "smollm": Kind((r"\p{N}", GPT2_SPLIT)),
}  # fmt: skip
SAME = {"llama3": "llama-bpe", "llama-v3": "llama-bpe", "deepseek-r1-qwen": "qwen2"}  # other names for these


def tokenizer_of(metadata: Mapping[str, Any], where: str) -> Tokenizer:
    """The tokenizer of a GGUF file. Raises UserError, which names `where`, for kinds not read here and for damage."""
    model, name = (metadata.get(PREFIX + key) for key in ("model", "pre"))
    if model != "gpt2":
        raise UserError(f"{where} has a tokenizer of the kind {model!r}; the only kind read is 'gpt2', byte-level BPE.")
    kind = KINDS.get(SAME.get(str(name), str(name)))
    if kind is None:
        raise UserError(f"{where} splits text in the way {name!r}; those read are {', '.join([*KINDS, *SAME])}.")
    tokens = _list(metadata, "tokens", str, where)
    types = _list(metadata, "token_type", int, where) if PREFIX + "token_type" in metadata else [NORMAL] * len(tokens)
    merges = [tuple(merge.split(" ")) for merge in _list(metadata, "merges", str, where)]
    if (odd := next((merge for merge in merges if len(merge) != 2), None)) is not None:
        raise UserError(f"{where} is damaged: the merge {' '.join(odd)[:60]!r} is not of two tokens.")
    vocab = {token: i for i, token in enumerate(tokens)}
    if len(vocab) < len(tokens):
        twice = next(token for i, token in enumerate(tokens) if vocab[token] != i)
        raise UserError(f"{where} is damaged: it lists the token {twice[:60]!r} twice.")
    if not tokens or len(types) != len(tokens):
        raise UserError(f"{where} is damaged: {len(tokens)} tokens have {len(types)} types.")
    try:
        inner = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=kind.whole))  # pyright: ignore
    except BaseException as error:
        raise failure(error, f"{where} is damaged: its merges do not fit its tokens") from None
    inner.normalizer = normalizers.NFC() if kind.nfc else None  # pyright: ignore
    inner.pre_tokenizer = _pre_tokenizer(kind)
    inner.decoder = decoders.ByteLevel()
    added = [(token, type_) for token, type_ in zip(tokens, types, strict=True) if type_ in (2, 3, 4) and token]
    check_added([token for token, _ in added], where)
    inner.add_tokens([
        AddedToken(token, special=type_ != USER_DEFINED, normalized=False) for token, type_ in added
    ])  # fmt: skip
    return _declared(inner, metadata, tokens, {token for token, type_ in added if type_ == CONTROL}, where)


def metadata_of(tokenizer: Tokenizer, size: int) -> dict[str, Any]:
    """A tokenizer as a GGUF file of a model with `size` embeddings names it, ids without a token as unused.

    Raises UserError for a tokenizer that is not byte-level BPE, splits text in a way without a name here, or has ids
    beyond `size`.
    """
    raw = json.loads(tokenizer.inner.to_str())
    kind = _name_of(raw)
    names = {i: token for token, i in tokenizer.inner.get_vocab().items()}
    if max(names) >= size:
        raise UserError(f"The tokenizer has ids up to {max(names)}, but the model only {size} embeddings.")
    types = dict.fromkeys(names, NORMAL)
    for i, token in tokenizer.inner.get_added_tokens_decoder().items():
        types[i] = CONTROL if token.special else USER_DEFINED
    bos, eos, pad = tokenizer.bos, tokenizer.eos, tokenizer.pad
    others = [i for i in tokenizer.stop_ids if i != eos]
    try:
        marked = tokenizer.inner.encode("a", add_special_tokens=True).ids
    except BaseException as error:
        raise failure(error, "This tokenizer's post_processor breaks") from None
    ids = {
        "bos": bos, "eos": others.pop(0) if eos is None and others else eos, "eot": others[0] if others else None,
        "padding": pad,
    }  # fmt: skip
    return {
        PREFIX + "model": "gpt2",
        PREFIX + "pre": kind,
        PREFIX + "tokens": [names.get(i, f"[PAD{i}]") for i in range(size)],
        PREFIX + "token_type": [types.get(i, UNUSED) for i in range(size)],
        PREFIX + "merges": [m if isinstance(m, str) else " ".join(m) for m in raw["model"]["merges"]],
        **{f"{PREFIX}{name}_token_id": i for name, i in ids.items() if i is not None},
        PREFIX + "add_bos_token": bool(tokenizer.config.get("add_bos_token", bos is not None and marked[0] == bos)),
        PREFIX + "add_eos_token": bool(tokenizer.config.get("add_eos_token", eos is not None and marked[-1] == eos)),
    }


def _pre_tokenizer(kind: Kind) -> pre_tokenizers.Sequence:
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in kind.patterns]
    return pre_tokenizers.Sequence([*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def _list(metadata: Mapping[str, Any], key: str, of: type, where: str) -> list[Any]:
    found = metadata.get(PREFIX + key)
    if not isinstance(found, list) or not all(type(item) is of for item in found):
        raise UserError(f"{where} is damaged: {PREFIX}{key} is no list of {'texts' if of is str else 'whole numbers'}.")
    return found


def _declared(
    inner: tokenizers.Tokenizer, metadata: Mapping[str, Any], tokens: Sequence[str], control: set[str], where: str
) -> Tokenizer:
    """With what the file says of its tokens; what llama.cpp takes for an end by its name is one here too."""

    def token(name: str) -> int | None:
        i = metadata.get(f"{PREFIX}{name}_token_id")
        if i is not None and not (type(i) is int and 0 <= i < len(tokens)):
            raise UserError(f"{where} is damaged: {PREFIX}{name}_token_id is {i!r}, with {len(tokens)} tokens.")
        return i

    roles = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    ids = {key: token(name) for key, name in roles.items()}
    ends = [i for name in ("eos", "eot", "eom") if (i := token(name)) is not None]
    ends += [tokens.index(name) for name in likely_ends(control)]
    flags = {key: metadata[PREFIX + key] for key in ("add_bos_token", "add_eos_token") if PREFIX + key in metadata}
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **{key: None if i is None else tokens[i] for key, i in ids.items()},
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1_000_000_000,
        **{key: bool(flag) for key, flag in flags.items()},
    }
    return Tokenizer(inner, config, tuple(dict.fromkeys(ends)))


def _name_of(raw: Mapping[str, Any]) -> str:
    """The GGUF name of a tokenizer.json's way to split text."""
    model = raw["model"]
    if model.get("type") != "BPE" or model.get("byte_fallback"):
        raise UserError(f"A GGUF file is written for byte-level BPE; this tokenizer is {model.get('type')}.")
    patterns = _patterns(raw.get("pre_tokenizer"))
    for name, kind in KINDS.items():
        # DeepSeek's published file splits numbers into digits; llama.cpp leaves that to the merges, which have none.
        digits = (*kind.patterns[:-1], r"\p{N}") if name == "deepseek-llm" else kind.patterns
        if patterns in (kind.patterns, digits) and bool(model.get("ignore_merges")) == kind.whole:
            return name
    raise UserError(
        f"This tokenizer splits text in a way that has no name here, so no GGUF file can be written with it; those "
        f"with a name are {', '.join(KINDS)}."
    )


def _patterns(step: Mapping[str, Any] | None) -> tuple[str, ...] | None:
    """The patterns of a pre-tokenizer, None where it does other things too."""
    match step:
        case {"type": "Sequence", "pretokenizers": steps}:
            parts = [_patterns(part) for part in steps]
            return None if None in parts else tuple(p for part in parts if part for p in part)
        case {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}:
            return (pattern.replace("\r", r"\r").replace("\n", r"\n"),)
        case {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Removed", "invert": True}:
            return (pattern.replace("\r", r"\r").replace("\n", r"\n"),)  # the same, as these match everything
        case {"type": "Digits", "individual_digits": each}:
            return (r"\p{N}" if each else r"\p{N}+",)
        case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": whole}:
            return (GPT2_SPLIT,) if whole else ()
    return None


__all__ = ["KINDS", "SAME", "metadata_of", "tokenizer_of"]
