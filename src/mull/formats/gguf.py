"""The header of a GGUF file (versions 2 and 3, little-endian): its metadata, and where each tensor lies.

A file from the internet is a stranger's word. So nothing is believed before the bytes are there: every count is held
against what the file can still hold and against the limits below, every tensor against the file's size and against
its neighbours. Whatever is wrong ends in one UserError, within a second or two and a few hundred megabytes. The
weights themselves are not touched.

Layout, after ggml's docs/gguf.md: "GGUF", version u32, tensors u64, keys u64; then the keys (string, type u32, value);
then per tensor name, dimensions u32, sizes u64 (innermost first), type u32, offset u64; then, aligned, the data.
"""

from __future__ import annotations

import mmap
import os
import struct
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

from mull.types import UserError

# ggml's type number -> name, numbers in a block, bytes of a block
TYPES: dict[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210),
    16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4), 27: ("I64", 1, 8), 28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56), 30: ("BF16", 1, 2), 34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17), 40: ("NVFP4", 64, 36), 41: ("Q1_0", 128, 18),
}  # fmt: skip
NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 10: "Q", 11: "q", 12: "d"}  # value type -> struct
BOOL, STRING, ARRAY = 7, 8, 9

# a multiple of what the largest published models have
MOST_BYTES = 2**26  # of the header
MOST_KEYS = 2**14
MOST_TENSORS = 2**16
MOST_ELEMENTS = 2**22  # of all arrays together; a text counts as two
MOST_TEXT = 2**22  # bytes of one text
MOST_NAME = 2**16  # bytes of a key or tensor name
MOST_ALIGNMENT = 2**16


@dataclass(frozen=True, slots=True)
class TensorInfo:
    shape: tuple[int, ...]  # rows first, as numpy and torch say it; the last axis is contiguous
    type: str  # "F32", "Q4_1", ...
    offset: int  # from the beginning of the file
    bytes: int


@dataclass(frozen=True, slots=True)
class Header:
    path: Path
    version: int
    metadata: dict[str, Any]  # arrays are lists
    tensors: dict[str, TensorInfo]  # in the file's order


def is_gguf(path: Path) -> bool:
    """Whether a path is that of a GGUF file, by its name. Raises nothing, whether or not there is one."""
    return path.suffix.lower() == ".gguf" and not path.is_dir()


def read_header(path: Path) -> Header:
    """Raises UserError for a file that is missing, is no GGUF file, is damaged, or is one part of several."""
    path = Path(path)
    if not path.is_file():  # nor is a pipe, which would be waited for
        raise UserError(f"There is no file {path}.")
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size < 24:
                raise UserError(f"{path} is no GGUF file: it has {size} bytes, and a header has at least 24.")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _Reader(path, data).header()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error}.") from None


class _Reader:
    def __init__(self, path: Path, data: mmap.mmap):
        self.path, self.data, self.at = path, data, 0
        self.end = min(len(data), MOST_BYTES)  # of what the header may occupy
        self.elements = MOST_ELEMENTS  # array elements that may still come

    def fail(self, what: str) -> UserError:
        return UserError(f"{self.path} is damaged or no GGUF file: {what}.")

    def header(self) -> Header:
        if self.data[:4] != b"GGUF":
            raise self.fail(f"it begins with {self.data[:4]!r} instead of b'GGUF'")
        self.at = 4
        version = self.number("I")
        if version & 0xFFFF == 0:
            raise UserError(f"{self.path} is a big-endian GGUF file; mull reads little-endian ones.")
        if version not in (2, 3):
            raise UserError(f"{self.path} is a GGUF file of version {version}; mull reads versions 2 and 3.")
        tensors, keys = self.number("Q"), self.number("Q")
        if keys > MOST_KEYS or tensors > MOST_TENSORS:
            raise self.fail(f"it claims {keys} keys and {tensors} tensors; {MOST_KEYS} and {MOST_TENSORS} are the most")
        metadata = self.metadata(keys)
        if metadata.get("split.count", 0) > 1:
            raise UserError(
                f"{self.path} is one of {metadata['split.count']} parts; mull reads GGUF files in one piece "
                "(llama-gguf-split --merge makes one)."
            )
        return Header(self.path, version, metadata, self.tensors(tensors, self.alignment(metadata)))

    def take(self, count: int) -> int:
        """Where the next `count` bytes begin; they are there."""
        at = self.at
        if count > self.end - at:
            limit = "the file ends before that" if self.end == len(self.data) else f"headers end by {MOST_BYTES}"
            raise self.fail(f"{count} bytes are announced at byte {at}, but {limit}")
        self.at = at + count
        return at

    def number(self, code: str) -> Any:
        return struct.unpack_from(f"<{code}", self.data, self.take(struct.calcsize(f"<{code}")))[0]

    def string(self, most: int = MOST_TEXT) -> str:
        length = self.number("Q")
        at = self.take(length)
        if length > most:  # decoded it may take four times its bytes
            raise self.fail(f"the text at byte {at} has {length} bytes; {most} are the most")
        try:
            return self.data[at : at + length].decode()
        except UnicodeDecodeError:
            raise self.fail(f"the text at byte {at} is not UTF-8") from None

    def metadata(self, count: int) -> dict[str, Any]:
        metadata: dict[str, Any] = {}
        for _ in range(count):
            key = self.string(MOST_NAME)
            if key in metadata:
                raise self.fail(f"the key {shown(key)} is there twice")
            metadata[key] = self.value(self.number("I"))
        split = metadata.get("split.count", 0)
        if type(split) is not int:
            raise self.fail("split.count is no whole number")
        return metadata

    def value(self, kind: int) -> Any:
        if kind in NUMBERS:
            return self.number(NUMBERS[kind])
        if kind == BOOL:
            return self.flags(1)[0]
        if kind == STRING:
            return self.string()
        if kind == ARRAY:
            return self.array(self.number("I"), self.number("Q"))
        raise self.fail(f"there is no value type {kind} (before byte {self.at})")

    def array(self, kind: int, count: int) -> list[Any]:
        """Of anything but arrays, which ggml's own reader refuses too."""
        cost = 2 * count if kind == STRING else count
        if cost > self.elements:
            raise self.fail(f"an array of {count} elements is announced at byte {self.at}, more than may still come")
        self.elements -= cost
        if kind in NUMBERS:
            code = f"<{count}{NUMBERS[kind]}"
            return list(struct.unpack_from(code, self.data, self.take(struct.calcsize(code))))
        if kind == BOOL:
            return self.flags(count)
        if kind == STRING:
            return self.strings(count)
        if kind == ARRAY:
            raise self.fail(f"an array of arrays is announced at byte {self.at}")
        raise self.fail(f"there is no value type {kind} (before byte {self.at})")

    def flags(self, count: int) -> list[bool]:
        at = self.take(count)
        raw = self.data[at : at + count]
        if raw.strip(b"\0\1"):
            raise self.fail(f"a truth value after byte {at} is neither 0 nor 1")
        return [byte == 1 for byte in raw]

    def strings(self, count: int) -> list[str]:
        """`string` as one loop: a vocabulary has hundreds of thousands."""
        data, at, end = self.data, self.at, self.end
        unpack = struct.Struct("<Q").unpack_from
        texts = []
        try:
            for _ in range(count):
                begin = at + 8
                at = begin + unpack(data, at)[0]
                if at > end or at - begin > MOST_TEXT:
                    break
                texts.append(data[begin:at].decode())
        except UnicodeDecodeError:
            raise self.fail(f"the text before byte {at} is not UTF-8") from None
        except struct.error:
            pass
        if len(texts) < count:
            raise self.fail(
                f"of {count} texts announced at byte {self.at} only {len(texts)} are there (of {MOST_TEXT} bytes each)"
            )
        self.at = at
        return texts

    def alignment(self, metadata: dict[str, Any]) -> int:
        alignment = metadata.get("general.alignment", 32)
        if type(alignment) is not int or not 8 <= alignment <= MOST_ALIGNMENT or alignment & (alignment - 1):
            raise self.fail(f"its alignment {shown(alignment)} is no power of two from 8 to {MOST_ALIGNMENT}")
        return alignment

    def tensors(self, count: int, alignment: int) -> dict[str, TensorInfo]:
        found: dict[str, TensorInfo] = {}
        for _ in range(count):
            name = self.string(MOST_NAME)
            if name in found:
                raise self.fail(f"the tensor {shown(name)} is there twice")
            found[name] = self.tensor(name, alignment)
        start = -(-self.at // alignment) * alignment
        tensors = {name: TensorInfo(one.shape, one.type, start + one.offset, one.bytes) for name, one in found.items()}
        begin_end = sorted((one.offset, one.offset + one.bytes, name) for name, one in tensors.items())
        for (_, end, name), (begin, _, other) in pairwise(begin_end):
            if begin < end:
                raise self.fail(f"the tensors {shown(name)} and {shown(other)} overlap")
        if begin_end and begin_end[-1][1] > len(self.data):
            raise self.fail(
                f"the tensor {shown(begin_end[-1][2])} would end at byte {begin_end[-1][1]} of {len(self.data)}"
            )
        return tensors

    def tensor(self, name: str, alignment: int) -> TensorInfo:
        """Its offset is still counted from the beginning of the data."""
        axes = self.number("I")
        if not 1 <= axes <= 4:
            raise self.fail(f"the tensor {shown(name)} has {axes} dimensions, not 1 to 4")
        sizes = [self.number("Q") for _ in range(axes)]
        kind, offset = self.number("I"), self.number("Q")
        if kind not in TYPES:
            raise self.fail(f"the tensor {shown(name)} has the unknown type {kind}")
        type_, block, block_bytes = TYPES[kind]
        if 0 in sizes:
            raise self.fail(f"the tensor {shown(name)} is empty")
        if sizes[0] % block:
            raise self.fail(f"the tensor {shown(name)} has rows of {sizes[0]}, and {type_} has blocks of {block}")
        if offset % alignment:
            raise self.fail(f"the tensor {shown(name)} lies at {offset}, which is no multiple of {alignment}")
        return TensorInfo(tuple(reversed(sizes)), type_, offset, prod(sizes) // block * block_bytes)


def shown(value: object) -> str:
    """For a message: whatever a file says, in one short line."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:76]}...{text[-1]}"


__all__ = ["TYPES", "Header", "TensorInfo", "is_gguf", "read_header", "shown"]
