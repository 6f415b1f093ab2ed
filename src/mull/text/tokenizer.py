"""Text <-> token ids: byte-level BPE trained here, or any published one; a thin skin over the `tokenizers` library.

Tokenizers trained here split text before merging exactly as Qwen2's published one does (single digits, words with
their leading space; llama.cpp knows this as qwen2), so that arithmetic is done on digits. Their special tokens come
first: ids 0 to 4 whatever the vocabulary's size. A published one is what its files say: tokenizer.json, and beside it
tokenizer_config.json, generation_config.json and config.json for which tokens begin, end and fill up.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers

from mull.formats.bounded import read_object, read_text
from mull.run import write_atomic
from mull.text.bounds import check, check_added
from mull.types import UserError

END_OF_TEXT, IM_START, IM_END, THINK, END_THINK = SPECIALS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>",
)  # fmt: skip
QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SMALLEST = 256 + len(SPECIALS)
# What ends a turn or a text in published vocabularies, for those that do not declare it.
ENDS = (
    IM_END, "<|eot_id|>", "<|eom_id|>", "<|end|>", "<|return|>", "<|call|>", "<end_of_turn>", "<|user|>",
    "<|observation|>", "<|end_of_text|>", "<｜end▁of▁sentence｜>", END_OF_TEXT, "</s>",
)  # fmt: skip
HOUSE: dict[str, Any] = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": None,
    "eos_token": IM_END,
    "pad_token": END_OF_TEXT,
    "additional_special_tokens": [IM_START, THINK, END_THINK],
    "clean_up_tokenization_spaces": False,
    "model_max_length": 1_000_000_000,
}  # the tokenizer_config.json of tokenizers trained here
BIGGEST = 1 << 26  # bytes of a tokenizer.json; published ones have up to some 35 million
UNSAFE = "such text cannot be used safely."
CONFIGURATION = 1 << 24  # of the files beside it


class Tokenizer:
    """`config` is the tokenizer_config.json; `ends` are ids that end an answer, where other files declare them.

    `bos`, `eos` and `pad` are ids, or None where there is no such token; `stop_ids` end an answer. `house` says whether
    the special tokens are those of a tokenizer trained here.
    """

    def __init__(
        self, inner: tokenizers.Tokenizer, config: Mapping[str, Any] | None = None, ends: Sequence[int] = ()
    ):  # fmt: skip
        self.inner = inner
        self.house = [inner.token_to_id(token) for token in SPECIALS] == [*range(len(SPECIALS))]
        self.config = dict(HOUSE if config is None and self.house else config or {})
        self.added = {token.content: i for i, token in inner.get_added_tokens_decoder().items()}
        self.bos, self.eos, self.pad = (self._id(self.config.get(f"{name}_token")) for name in ("bos", "eos", "pad"))
        self.think, self.end_think = self.added.get(THINK), self.added.get(END_THINK)
        own = [] if self.eos is None else [self.eos]
        likely = [] if ends else [self.added[token] for token in likely_ends(self.added)]
        self.stop_ids: tuple[int, ...] = tuple(dict.fromkeys([*ends, *own, *likely]))
        self._see_forgeries()

    def _id(self, token: object) -> int | None:
        text = token.get("content") if isinstance(token, Mapping) else token
        return self.inner.token_to_id(text) if isinstance(text, str) else None

    def _see_forgeries(self) -> None:
        """Which added tokens text could pretend to be: not single letters and runs of blanks, which some list too."""
        tokens = self.inner.get_added_tokens_decoder().items()
        texts = {t.content: i for i, t in tokens if len(t.content) > 1 and (t.special or not t.content.isspace())}
        self.forgeable, self._forged = tuple(texts), frozenset(texts.values())
        self.forgery = beginnings(texts)
        # What a normalizer may make of other text: of capitals, of wide letters
        made = self.inner.normalizer is not None
        self._suspect = {i: t.content for i, t in tokens if made and t.normalized and i in self._forged}
        self.opening = re.compile(f"[{re.escape(''.join({text[0] for text in texts}))}]" if texts else "(?!)")
        # Added tokens like DeepSeek's "ö" stand for that letter; the library takes it for a byte's name.
        byte_level = isinstance(self.inner.decoder, decoders.ByteLevel)
        letters = {i: t.content for i, t in tokens if byte_level and len(t.content) == 1 and not t.content.isascii()}
        self.letters = {i: text for i, text in letters.items() if self.inner.decode([i]) != text}
        begun = self._read("\n")
        self._lead = begun if self._read("\na")[len(begun) :] != self._read("a") else []

    @property
    def vocab_size(self) -> int:
        return self.inner.get_vocab_size()

    @property
    def end_of_text(self) -> int:
        """What ends a document. Raises UserError where a published vocabulary has no such token."""
        for token in (END_OF_TEXT, "<|end_of_text|>"):
            if token in self.added:
                return self.added[token]
        if self.eos is None:
            raise UserError("This tokenizer has no token that ends a text, so documents cannot be kept apart.")
        return self.eos

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> Tokenizer:
        """Learn merges from `texts`; the same texts give the same tokenizer. Raises UserError below SMALLEST."""
        if vocab_size < SMALLEST:
            raise UserError(f"A vocabulary of {vocab_size} is too small: 256 bytes and the specials are {SMALLEST}.")
        inner = tokenizers.Tokenizer(models.BPE())
        inner.normalizer = normalizers.NFC()
        inner.pre_tokenizer = pre_tokenizers.Sequence([
            pre_tokenizers.Split(Regex(QWEN2_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ])  # fmt: skip
        inner.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIALS],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        inner.train_from_iterator(texts, trainer)
        return cls(inner)

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        """Raises UserError for a folder without tokenizer.json, and for files that are damaged."""
        folder = Path(folder)
        path = folder / "tokenizer.json"
        if not path.exists():
            others = [name for name in ("tokenizer.model", "vocab.json", "tekken.json") if (folder / name).exists()]
            instead = f", only {others[0]}; save its fast tokenizer there" if others else ""
            raise UserError(f"{folder} holds no tokenizer.json{instead}.")
        config = read_json(folder / "special_tokens_map.json") | read_json(folder / "tokenizer_config.json")
        inner = _from_file(path)
        _add_declared(inner, config.get("added_tokens_decoder"), folder)
        return cls(inner, config or None, _declared_ends(folder))

    def save(self, folder: Path) -> None:
        """tokenizer.json and tokenizer_config.json, as AutoTokenizer reads them; the first is written last."""
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / "tokenizer_config.json", json.dumps(self.config, indent=1))
        write_atomic(folder / "tokenizer.json", self.inner.to_str(pretty=False))

    def encode(self, text: str, special: bool = False) -> list[int]:
        """Ids of `text`. Unless `special`, "<|im_end|>" and its like are plain characters: input cannot forge them."""
        if special:
            return self._read(text)
        pieces, begin = [], 0
        for found in self.forgery.finditer(text):  # each is cut in two behind its first character
            pieces.append(text[begin : found.end()])
            begin = found.end()
        ids = self.join([*pieces, text[begin:]])
        if not self._forged.isdisjoint(ids):  # an odd normalizer could make one of something else
            raise UserError(f"This tokenizer reads a special token out of plain text; {UNSAFE}")
        return ids

    def join(self, pieces: Sequence[str]) -> list[int]:
        """Ids of a text in pieces, special tokens read in each but none across a cut."""
        ids = self._read(pieces[0])
        for piece in pieces[1:]:
            # Tokenizers of SentencePiece's kind put a blank before a text; before the middle of one they must not.
            lead = len(self._lead)
            made = self._read("\n" + piece if lead else piece)
            ids += made[lead:] if made[:lead] == self._lead else self._read(piece)
        return ids

    def _read(self, text: str) -> list[int]:
        try:
            read = self.inner.encode(text, add_special_tokens=False)
        except BaseException as error:  # a hostile pattern ends in the library's panic; a surrogate is no text
            raise failure(error, "This tokenizer cannot read the text") from None
        ids = read.ids
        if self._suspect and not self._suspect.keys().isdisjoint(ids):
            for i, (begin, end) in zip(ids, read.offsets, strict=True):
                if self._suspect.get(i, "") not in text[begin:end]:
                    raise UserError(f"This tokenizer reads {text[begin:end]!r} as its {self._suspect[i]}; {UNSAFE}")
        return ids

    def decode(self, ids: Sequence[int], special: bool = True) -> str:
        """Text of `ids`; special tokens are written out unless `special` is False."""
        text, begin = "", 0
        for at, token in enumerate(ids if self.letters else ()):
            if token in self.letters:
                text += self.inner.decode(list(ids[begin:at]), skip_special_tokens=not special) + self.letters[token]
                begin = at + 1
        return text + self.inner.decode(list(ids[begin:]), skip_special_tokens=not special)


def likely_ends(tokens: Container[str]) -> list[str]:
    """Those of ENDS that are among `tokens`; where gpt-oss's answers end otherwise, <|end|> only ends a thought."""
    thoughts = {"<|end|>"} if "<|return|>" in tokens and "<|call|>" in tokens else set()
    return [token for token in ENDS if token in tokens and token not in thoughts]


def beginnings(tokens: Iterable[str]) -> re.Pattern[str]:
    """Finds the first character of each of `tokens` in a text, overlapping ones included; a match ends behind it."""
    rests: dict[str, list[str]] = defaultdict(list)  # by two letters: a "<" alone is no reason to try thousands
    for token in tokens:
        rests[token[:2]].append(re.escape(token[2:]))
    either = [f"{re.escape(two[0])}(?={re.escape(two[1:])}(?:{'|'.join(rest)}))" for two, rest in rests.items()]
    return re.compile("|".join(either) or "(?!)")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a file, {} where there is none. Raises UserError for what is no JSON object."""
    try:
        return read_object(path, CONFIGURATION)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error}.") from None


def _from_file(path: Path) -> tokenizers.Tokenizer:
    try:
        text = read_text(path, BIGGEST)
        check(text, str(path))
        inner = tokenizers.Tokenizer.from_str(text)
        inner.no_truncation()
        inner.no_padding()
        return inner
    except UserError:
        raise
    except BaseException as error:
        raise failure(error, f"{path} cannot be read") from None


def failure(error: BaseException, said: str) -> BaseException:
    """A UserError of what the library raises: bare Exception for anything, and where it panics not even that."""
    ours = isinstance(error, Exception) or type(error).__name__ == "PanicException"
    return UserError(f"{said}: {' '.join(str(error).split())}.") if ours else error


def _add_declared(inner: tokenizers.Tokenizer, declared: Any, folder: Path) -> None:
    """Tokens that tokenizer_config.json adds to those of tokenizer.json: where they are missing there, here too."""
    if declared is None:
        return
    known = inner.get_added_tokens_decoder()
    flags = ("lstrip", "rstrip", "single_word", "normalized", "special")
    try:
        listed = sorted((int(i), token) for i, token in dict(declared).items() if int(i) not in known)
        check_added([token["content"] for _, token in listed], f"{folder}/tokenizer_config.json")
        missing = {
            i: AddedToken(token["content"], **{name: bool(token.get(name)) for name in flags}) for i, token in listed
        }
    except UserError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{folder}/tokenizer_config.json: added_tokens_decoder is damaged ({error}).") from None
    inner.add_tokens([*missing.values()])
    for i, token in missing.items():
        if inner.token_to_id(token.content) != i:
            raise UserError(
                f"{folder}: tokenizer_config.json says token {i} is {token.content!r}; tokenizer.json has another."
            )


def _declared_ends(folder: Path) -> list[int]:
    """The ids that end an answer, as generation_config.json says, or else config.json."""
    for name in ("generation_config.json", "config.json"):
        declared = read_json(folder / name).get("eos_token_id")
        ends = declared if isinstance(declared, list) else [] if declared is None else [declared]
        if any(type(end) is not int or end < 0 for end in ends):
            raise UserError(f"{folder / name}: eos_token_id is {declared!r}, which is neither an id nor a list of ids.")
        if ends:
            return ends
    return []


__all__ = ["ENDS", "QWEN2_SPLIT", "SMALLEST", "SPECIALS", "Tokenizer", "beginnings", "failure", "read_json"]
