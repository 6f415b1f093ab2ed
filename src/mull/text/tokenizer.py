"""Byte-level BPE, trained here or read from a model directory; a thin skin over the `tokenizers` library.

Text is split before merging exactly as Qwen2's published tokenizer splits it (single digits, words with their leading
space; llama.cpp knows this as qwen2), so that arithmetic is done on digits. Special tokens come first: ids 0 to 4
whatever the vocabulary's size.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers

from mull.types import UserError, sync

END_OF_TEXT, IM_START, IM_END, THINK, END_THINK = SPECIALS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>",
)  # fmt: skip
QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SMALLEST = 256 + len(SPECIALS)


class Tokenizer:
    """Text <-> ids. Raises UserError for a folder without the house's special tokens."""

    def __init__(self, inner: tokenizers.Tokenizer):
        self.inner = inner
        missing = [token for token in SPECIALS if inner.token_to_id(token) is None]
        if missing:
            raise UserError(f"This tokenizer lacks {', '.join(missing)}, which mull's chat format needs.")
        ids = [int(inner.token_to_id(token) or 0) for token in SPECIALS]
        self.end_of_text, self.im_start, self.im_end, self.think, self.end_think = ids
        self.stop_ids: tuple[int, ...] = (self.im_end, self.end_of_text)

    @property
    def vocab_size(self) -> int:
        return self.inner.get_vocab_size()

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
        path = Path(folder) / "tokenizer.json"
        if not path.exists():
            raise UserError(f"{folder} holds no tokenizer.json.")
        try:
            return cls(tokenizers.Tokenizer.from_file(str(path)))
        except UserError:
            raise
        except Exception as error:  # the library raises bare Exception for whatever is wrong in the file
            raise UserError(f"{path} cannot be read: {error}.") from None

    def save(self, folder: Path) -> None:
        """tokenizer.json and tokenizer_config.json, as AutoTokenizer reads them; the first is written last."""
        folder.mkdir(parents=True, exist_ok=True)
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": None,
            "eos_token": IM_END,
            "pad_token": END_OF_TEXT,
            "additional_special_tokens": [IM_START, THINK, END_THINK],
            "clean_up_tokenization_spaces": False,
            "model_max_length": 1_000_000_000,
        }
        for name, text in (
            ("tokenizer_config.json", json.dumps(config, indent=1)),
            ("tokenizer.json", self.inner.to_str(pretty=False)),
        ):
            part = folder / f"{name}.part"
            part.write_text(text, encoding="utf-8")
            sync(part)
            part.replace(folder / name)

    def encode(self, text: str, special: bool = False) -> list[int]:
        """Ids of `text`. Unless `special`, "<|im_end|>" and its like are plain characters: input cannot forge them."""
        if not special and any(token in text for token in SPECIALS):
            return self._encode_plain(text)
        return self.inner.encode(text, add_special_tokens=False).ids

    def _encode_plain(self, text: str) -> list[int]:
        """Cut every special token in two, so that the library sees none, and join the ids."""
        ids: list[int] = []
        begin = at = 0
        while at < len(text):
            token = next((t for t in SPECIALS if text.startswith(t, at)), None)
            if token is None:
                at += 1
                continue
            ids += self.inner.encode(text[begin : at + 1], add_special_tokens=False).ids
            begin = at = at + 1
        return ids + self.inner.encode(text[begin:], add_special_tokens=False).ids

    def decode(self, ids: Sequence[int], special: bool = True) -> str:
        """Text of `ids`; special tokens are written out unless `special` is False."""
        return self.inner.decode(list(ids), skip_special_tokens=not special)
