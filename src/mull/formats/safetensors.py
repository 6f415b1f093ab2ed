"""Safetensors files: their headers, the shards of a model directory, and the writing of both.

A file from the internet is a stranger's word, so nothing is believed before it is checked: the header against the
file's size, every tensor's shape against its bytes, all tensors against one another (they fill the file without gap or
overlap), the index against its shards, and the shards against the folder they must lie in. Whatever is wrong ends in
one UserError before a weight is touched. Files that hold pickles run code when opened; they never are.

Layout, after huggingface/safetensors' documentation: the header's length u64, little-endian; the header, a JSON object
of name -> {dtype, shape, data_offsets}, padded with spaces; the numbers, little-endian, row after row.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from mull.types import UserError

# bits of one number
BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64, "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip
WHOLE, INDEX, MTP = "model.safetensors", "model.safetensors.index.json", "mtp.safetensors"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
FILE_NAME = re.compile(r"[\w.+-]{1,200}\.safetensors", re.ASCII)
MOST_JSON = 2**25  # bytes of a header or index
MOST_TENSORS = 2**17  # of one file or index; the largest models have nearly a hundred thousand
MOST_NOTES = 1000  # pairs of __metadata__
MOST_DIMENSIONS = 8
SHARD = 5 * 10**9  # bytes of tensors in one written file, where they can be split


@dataclass(frozen=True, slots=True)
class TensorInfo:
    file: Path
    dtype: str  # "BF16"
    shape: tuple[int, ...]
    offset: int  # from the beginning of the file
    bytes: int


def read_folder(folder: Path) -> dict[str, TensorInfo]:
    """Every tensor of a model directory: of model.safetensors or the shards of its index, and of mtp.safetensors.

    Raises UserError where a file is missing, damaged or outside the folder, where a tensor is there twice, or where
    the weights are pickles.
    """
    folder = Path(folder)
    if (folder / WHOLE).exists():
        promised: Mapping[str, str] = {}
        names = [WHOLE]
    elif (folder / INDEX).exists():
        promised = _index(folder / INDEX)
        names = sorted(set(promised.values()))
    else:
        raise _no_weights(folder)
    names += [MTP] if (folder / MTP).exists() and MTP not in names else []
    found: dict[str, TensorInfo] = {}
    for name in names:
        for tensor, info in read_header(inside(folder, name)).items():
            if tensor in found:
                raise UserError(f"{folder} holds the tensor {tensor} twice, in {found[tensor].file.name} and {name}.")
            found[tensor] = info
    for tensor, name in promised.items():
        if tensor not in found or found[tensor].file.name != name:
            raise UserError(f"{folder / INDEX} promises the tensor {tensor} in {name}, which lacks it.")
    return found


def _no_weights(folder: Path) -> UserError:
    pickles = sorted(path.name for path in folder.glob("*") if path.suffix.lower() in PICKLES)
    if pickles:
        return UserError(
            f"{folder} holds its weights as pickles only ({pickles[0]}); opening one can run code, so mull never does: "
            "convert them to safetensors."
        )
    return UserError(f"{folder} holds no weights: there is neither {WHOLE} nor {INDEX}.")


def _index(path: Path) -> dict[str, str]:
    """Tensor -> file name, checked to be one."""
    if not path.is_file() or path.stat().st_size > MOST_JSON:
        raise UserError(f"{path} is no index: it has more than {MOST_JSON} bytes, or is no file.")
    found = _json(path.read_bytes(), path, "index").get("weight_map")
    if not isinstance(found, dict) or not found:
        raise UserError(f"{path} has no weight_map from tensors to files.")
    for tensor, name in found.items():
        _check_name(tensor, path)
        if not isinstance(name, str) or not FILE_NAME.fullmatch(name):
            raise UserError(f"{path}: {str(name)[:100]!r} is no name of a safetensors file in the same folder.")
    return found


def inside(folder: Path, name: str) -> Path:
    """The path of a folder's file. A link may lead only where the hub's cache keeps files: from snapshots/x to blobs.

    Raises UserError where it is missing, or leads elsewhere.
    """
    path, home = folder / name, folder.resolve()
    if not path.exists():
        raise UserError(f"There is no file {path}; the model is not whole.")
    real = path.resolve()
    blobs = home.parent.parent / "blobs" if home.parent.name == "snapshots" else home
    if real.parent not in (home, blobs):
        raise UserError(f"{path} is a link out of its folder, to {real}; put the file itself there.")
    return path


def read_header(path: Path) -> dict[str, TensorInfo]:
    """The tensors of one file, in the order of their bytes. Raises UserError for one that is damaged."""
    path = Path(path)
    if not path.is_file():  # nor is a pipe, which would be waited for
        raise UserError(f"There is no file {path}.")
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > size - 8:
                raise _damaged(path, f"its header would have {length} bytes, and the file has {size}")
            if length > MOST_JSON:
                raise _damaged(path, f"its header has {length} bytes; {MOST_JSON} are the most")
            raw = file.read(length)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error}.") from None
    header = _json(raw, path, "header")
    _check_metadata(header.pop("__metadata__", {}), path)
    begin = 8 + length
    found = sorted((_tensor(path, name, entry, begin) for name, entry in header.items()), key=_order)
    at = begin
    for name, info in found:
        if info.offset != at:
            raise _damaged(path, f"{name} begins at {info.offset - begin} of its data, not at {at - begin}")
        at += info.bytes
    if at != size:
        raise _damaged(path, f"its tensors end at byte {at}, and the file has {size}")
    return dict(found)


def _order(found: tuple[str, TensorInfo]) -> tuple[int, int]:
    """Tensors without numbers come before the one that begins where they do."""
    return found[1].offset, found[1].bytes


def _tensor(path: Path, name: str, entry: object, begin: int) -> tuple[str, TensorInfo]:
    _check_name(name, path)
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise _damaged(path, f"{name} is not described by dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise _damaged(path, f"{name} is of the unknown dtype {str(dtype)[:40]!r}")
    if not _naturals(shape) or len(shape) > MOST_DIMENSIONS:
        raise _damaged(path, f"{name} has no shape of at most {MOST_DIMENSIONS} whole numbers")
    if not _naturals(offsets) or len(offsets) != 2:
        raise _damaged(path, f"{name} has no data_offsets [begin, end]")
    first, last = offsets
    if prod(shape) * BITS[dtype] != (last - first) * 8:
        raise _damaged(path, f"{name}, {dtype} of the shape {shape}, does not fit into its {last - first} bytes")
    return name, TensorInfo(path, dtype, tuple(shape), begin + first, last - first)


def _naturals(values: object) -> bool:
    """Whether this is a list of whole numbers that a file's size or a tensor's can have."""
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 2**63 for value in values)


def _check_name(name: str, path: Path) -> None:
    if not name.isprintable() or len(name) > 1000:
        raise UserError(f"{path} names a tensor {name[:40]!r}; names are printable and have at most 1000 characters.")


def _check_metadata(metadata: object, path: Path) -> None:
    if isinstance(metadata, dict) and len(metadata) > MOST_NOTES:
        raise _damaged(path, f"its __metadata__ has {len(metadata)} pairs; {MOST_NOTES} are the most")
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _damaged(path, "its __metadata__ is no table of texts")


def _json(raw: bytes, path: Path, what: str) -> dict[str, Any]:
    """A JSON object. Python's parser is safe, but makes much of every bracket and every text; honest files have few: a
    tensor of theirs has five texts."""
    if raw.count(b'"') > 10 * MOST_TENSORS:
        raise UserError(f"{path} is damaged: its {what} has more texts than {MOST_TENSORS} tensors have.")
    if (raw.count(b"[") + raw.count(b"{")) * 12 > len(raw) + 64:
        raise UserError(f"{path} is damaged: its {what} is hardly anything but brackets.")
    try:
        found = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique)  # bytes could be UTF-16 as well
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged: its {what} is no JSON ({str(error)[:200]}).") from None
    if not isinstance(found, dict):
        raise UserError(f"{path} is damaged: its {what} is no JSON object.")
    return found


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"the key {twice[:100]!r} is there twice")
    return found


def _damaged(path: Path, what: str) -> UserError:
    return UserError(f"{path} is damaged or no safetensors file: {what}.")


@dataclass(frozen=True, slots=True)
class Planned:
    """A tensor to be written. Its bytes are asked for when their turn comes, so that no two need be in memory."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    content: Callable[[], bytes | memoryview]

    @property
    def bytes(self) -> int:
        return prod(self.shape) * BITS[self.dtype] // 8


def write_file(path: Path, tensors: Sequence[Planned]) -> None:
    """One file. Wide numbers come first, so that all are aligned; else in the given order. Raises OSError."""
    ordered = sorted(tensors, key=lambda planned: -BITS[planned.dtype])
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for planned in ordered:
        end = at + planned.bytes
        header[planned.name] = {"dtype": planned.dtype, "shape": list(planned.shape), "data_offsets": [at, end]}
        at = end
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    with path.open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        for planned in ordered:
            written = file.write(planned.content())
            assert written == planned.bytes, planned.name


def write_folder(folder: Path, tensors: Iterable[Planned], shard: int = SHARD) -> None:
    """model.safetensors, or its shards of at most `shard` bytes (but for larger tensors) and their index."""
    shards = list(_shards(tensors, shard))
    if len(shards) == 1:
        write_file(folder / WHOLE, shards[0])
        return
    index: dict[str, str] = {}
    for number, part in enumerate(shards, 1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        write_file(folder / name, part)
        index |= {planned.name: name for planned in part}
    total = sum(planned.bytes for part in shards for planned in part)
    text = json.dumps({"metadata": {"total_size": total}, "weight_map": index}, indent=1)
    (folder / INDEX).write_text(text, encoding="utf-8")


def _shards(tensors: Iterable[Planned], most: int) -> Iterator[list[Planned]]:
    part: list[Planned] = []
    size = 0
    for planned in tensors:
        if part and size + planned.bytes > most:
            yield part
            part, size = [], 0
        part.append(planned)
        size += planned.bytes
    yield part


__all__ = [
    "INDEX", "MTP", "PICKLES", "SHARD", "WHOLE", "Planned", "TensorInfo", "inside", "read_folder", "read_header",
    "write_file", "write_folder",
]  # fmt: skip
