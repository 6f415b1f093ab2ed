"""What a tokenizer that a stranger wrote may do, checked before the library reads it.

A tokenizer.json is a small program: steps that rewrite text, one after the other. A few of them that each make a
hundred letters of one fill any memory, and where memory ends the library does not raise but aborts the process. So
every kind of step has a factor by which it may lengthen a text, and a file whose factors multiply to too much is
refused. Added tokens are searched for in every text: there may be thousands of them, not millions.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from mull.types import UserError

LONGER = 64  # times as many bytes; Llama 2's steps come to 12, NFKC and GPT-2's to 33
STEPS = 64
ADDED, SPELT = 10_000, 250_000  # tokens, and their characters altogether; Gemma has 6,400 of 80,000
FACTORS: dict[str, dict[str, int]] = {  # of the kinds of steps that always have the same
    "normalizer": {
        "NFC": 3, "NFD": 3, "NFKC": 11, "NFKD": 11, "Lowercase": 2, "StripAccents": 1, "Strip": 1, "Nmt": 1,
        "BertNormalizer": 9, "ByteLevel": 3,
    },
    "pre_tokenizer": {
        "ByteLevel": 3, "Metaspace": 5, "Split": 1, "Digits": 1, "Punctuation": 1, "Whitespace": 1,
        "WhitespaceSplit": 1, "CharDelimiterSplit": 1, "UnicodeScripts": 1, "BertPreTokenizer": 1, "FixedLength": 1,
    },
    "post_processor": {"ByteLevel": 1, "BertProcessing": 1, "RobertaProcessing": 1},
    "decoder": {
        "ByteLevel": 1, "ByteFallback": 1, "Fuse": 1, "Metaspace": 1, "Strip": 1, "WordPiece": 2, "BPEDecoder": 2,
    },
}  # fmt: skip


def check(text: str, where: str) -> None:
    """Raises UserError, which names `where`, for a tokenizer.json that is no JSON or that goes too far."""
    try:
        raw = json.loads(text, object_pairs_hook=_once)
        grown, steps = 1, 0
        for part in FACTORS:
            for step in _steps(raw.get(part)):
                steps, grown = steps + 1, grown * _factor(part, step, where)
                if steps > STEPS or grown > LONGER:
                    raise UserError(f"{where} takes more than {STEPS} steps, or makes a text {LONGER} times as long.")
        check_added([token["content"] for token in raw.get("added_tokens") or ()], where)
    except UserError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UserError(f"{where} is no tokenizer ({' '.join(str(error).split())[:200]}).") from None


def check_added(texts: Collection[str], where: str) -> None:
    """Raises UserError for more added tokens than any published vocabulary has."""
    if len(texts) > ADDED or sum(map(len, texts)) > SPELT:
        raise UserError(
            f"{where} adds {len(texts):,} tokens of {sum(map(len, texts)):,} characters to its vocabulary; more than "
            f"{ADDED:,}, or {SPELT:,} characters, are not read."
        )


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose keys mean the same to every reader."""
    made = dict(pairs)
    if len(made) < len(pairs):
        raise ValueError("a key is there twice")
    return made


def _steps(step: Mapping[str, Any] | None) -> Iterator[Mapping[str, Any]]:
    """Each of them, out of sequences within sequences."""
    rest = [] if step is None else [step]
    while rest:
        one = rest.pop()
        if one.get("type") != "Sequence":
            yield one
        for parts in ("normalizers", "pretokenizers", "processors", "decoders"):
            rest += one.get(parts, [])


def _factor(part: str, step: Mapping[str, Any], where: str) -> int:
    match step:
        case {"type": "Prepend", "prepend": str(put)}:
            return 1 + len(put.encode())
        case {"type": "Replace", "pattern": {"String": str(old)}, "content": str(new)} if old:
            return max(1, -(-len(new.encode()) // len(old.encode())))
        case {"type": "Replace", "content": str(new)}:  # a regular expression may match between any two letters
            return 1 + len(new.encode())
        case {"type": "TemplateProcessing", "single": parts} if sum("Sequence" in piece for piece in parts) == 1:
            return 1
        case {"type": str(kind)} if kind in FACTORS[part]:
            return FACTORS[part][kind]
    raise UserError(f"{where}: its {part} has a step that is not read: {str(step)[:100]}.")


__all__ = ["ADDED", "SPELT", "check", "check_added"]
