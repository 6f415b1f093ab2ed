"""GGUF headers: what the gguf library writes is read as its own reader reads it; everything else is one clear error."""

from __future__ import annotations

import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mull.formats.gguf import MOST_BYTES, MOST_ELEMENTS, MOST_KEYS, MOST_TENSORS, MOST_TEXT, TYPES, Header, read_header
from mull.types import UserError

VOCAB = Path(__file__).parents[2] / "shared/data/vocab"


def written(path: Path) -> Path:
    """A file with every kind of value and several kinds of tensors."""
    writer = gguf.GGUFWriter(path, "llama")
    for kind in ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float32", "float64"):
        getattr(writer, f"add_{kind}")(f"x.{kind}", -3 if kind.startswith("int") else 3)
    writer.add_bool("x.bool", True)
    writer.add_string("x.string", "héllo, wörld 你好 🙂")
    writer.add_array("x.strings", ["", "a", "ü" * 40])
    writer.add_array("x.numbers", [1, -2, 3])
    writer.add_array("x.reals", [1.5, -2.25])
    writer.add_array("x.flags", [True, False, True])
    writer.add_tensor("one", np.arange(6, dtype=np.float32))
    writer.add_tensor("two", np.ones((3, 4), np.float16))
    blocks = gguf.quantize(np.ones((5, 2, 64), np.float32), gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("three", blocks, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("gguf") / "valid.gguf")


def test_values_and_tensors(valid: Path) -> None:
    header = read_header(valid)
    assert header.path == valid
    assert header.version == 3
    assert header.metadata["x.string"] == "héllo, wörld 你好 🙂"
    assert header.metadata["x.flags"] == [True, False, True]
    assert list(header.tensors) == ["one", "two", "three"]
    assert header.tensors["three"].shape == (5, 2, 64)
    assert header.tensors["three"].bytes == 5 * 2 * 2 * 34


def same_as_the_library(path: Path) -> Header:
    header, theirs = read_header(path), gguf.GGUFReader(path)
    fields = {name: field for name, field in theirs.fields.items() if not name.startswith("GGUF.")}
    assert header.metadata.keys() == fields.keys()
    for name, field in fields.items():
        assert header.metadata[name] == field.contents(), name
    assert list(header.tensors) == [tensor.name for tensor in theirs.tensors]
    for tensor in theirs.tensors:
        info = header.tensors[tensor.name]
        assert info.shape == tuple(int(n) for n in reversed(tensor.shape))
        assert (info.type, info.offset, info.bytes) == (tensor.tensor_type.name, tensor.data_offset, tensor.n_bytes)
    return header


def test_reads_what_the_library_reads(valid: Path) -> None:
    same_as_the_library(valid)


def test_another_alignment(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "wide.gguf", "llama")
    writer.add_custom_alignment(256)
    writer.add_tensor("one", np.arange(6, dtype=np.float32))
    writer.add_tensor("two", np.arange(6, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert [one.offset % 256 for one in same_as_the_library(tmp_path / "wide.gguf").tensors.values()] == [0, 0]


def test_block_sizes_are_the_library_s() -> None:
    kinds = gguf.GGMLQuantizationType
    for number, (name, block, size) in TYPES.items():
        assert (kinds(number).name, gguf.GGML_QUANT_SIZES[kinds(number)]) == (name, (block, size))


@pytest.mark.skipif(not VOCAB.is_dir(), reason="needs ../shared/data/vocab")
@pytest.mark.parametrize(("name", "count"), [("llama-bpe", 128256), ("qwen2", 151936)])
def test_large_vocabularies_are_read_at_once(name: str, count: int) -> None:
    begin = time.process_time()
    header = read_header(VOCAB / f"ggml-vocab-{name}.gguf")
    assert time.process_time() - begin < 0.6  # 0.12 s on a quiet machine; the library takes seven
    assert len(header.metadata["tokenizer.ggml.tokens"]) == count


@pytest.mark.slow
@pytest.mark.skipif(not VOCAB.is_dir(), reason="needs ../shared/data/vocab")
@pytest.mark.parametrize("name", ["gpt-2", "llama-bpe", "qwen2", "deepseek-llm"])
def test_published_vocabularies(name: str) -> None:
    same_as_the_library(VOCAB / f"ggml-vocab-{name}.gguf")


# files that are wrong, each in one way


def text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def key(name: str, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


def array(kind: int, count: int, items: bytes = b"") -> bytes:
    return struct.pack("<IQ", kind, count) + items


def tensor(name: str, *sizes: int, kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, kind, offset)


def file(*keys: bytes, tensors: tuple[bytes, ...] = (), data: int = 256, **claims: Any) -> bytes:
    """A file of these, with `data` bytes behind its header; `claims` are what the header says instead of the truth."""
    said = {"magic": b"GGUF", "version": 3, "tensors_claimed": len(tensors), "keys": len(keys)} | claims
    begin = said["magic"] + struct.pack("<IQQ", said["version"], said["tensors_claimed"], said["keys"])
    body = begin + b"".join(keys) + b"".join(tensors)
    return body + bytes(-len(body) % 32 + data)


GOOD = key("general.architecture", 8, text("llama"))
WRONG: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "has 0 bytes"),
    "only the magic": (b"GGUF", "has 4 bytes"),
    "another magic": (file(GOOD, magic=b"GGML"), "begins with b'GGML'"),
    "version 1": (file(GOOD, version=1), "of version 1;"),
    "version 4": (file(GOOD, version=4), "of version 4;"),
    "big-endian": (file(GOOD, version=0x03000000), "big-endian"),
    "too many keys claimed": (file(GOOD, keys=10**9), "claims 1000000000 keys"),
    "too many tensors claimed": (file(GOOD, tensors_claimed=2**63), "claims 1 keys and 9223372036854775808 tensors"),
    "more keys than there are": (file(GOOD, keys=MOST_KEYS), "no value type|announced|ends before|twice"),
    "more tensors than there are": (file(GOOD, tensors_claimed=MOST_TENSORS, data=0), "dimensions|ends before"),
    "a billion tokens": (file(GOOD, key("t", 9, array(8, 10**9))), "an array of 1000000000 elements is announced"),
    "a million tokens": (file(GOOD, key("t", 9, array(8, 10**6)), data=8000), "of 1000000 texts announced"),
    "a billion numbers": (file(GOOD, key("t", 9, array(4, 10**9))), "an array of 1000000000 elements"),
    "too many texts": (file(key("t", 9, array(8, MOST_ELEMENTS // 2 + 1))), "more than may still come"),
    "too much together": (
        file(key("a", 9, array(0, MOST_ELEMENTS - 1, bytes(MOST_ELEMENTS - 1))), key("b", 9, array(0, 2, bytes(2)))),
        "an array of 2 elements is announced",
    ),
    "a million numbers": (file(GOOD, key("t", 9, array(4, 10**6))), "4000000 bytes are announced"),
    "a text past the end": (file(key("a", 8, struct.pack("<Q", 2**62))), "4611686018427387904 bytes are announced"),
    "a text in an array past the end": (file(key("a", 9, array(8, 1, struct.pack("<Q", 2**63)))), "only 0 are there"),
    "a long key": (file(key("k" * 70_000, 7, b"\1")), "text at byte 32 has 70000 bytes; 65536 are"),
    "a long text": (file(key("a", 8, text("t" * (MOST_TEXT + 1)))), "has 4194305 bytes; 4194304 are the most"),
    "a long text in an array": (file(key("a", 9, array(8, 1, text("t" * (MOST_TEXT + 1))))), "only 0 are there"),
    "a long tensor name": (file(tensors=(tensor("t" * 70_000, 8),)), "has 70000 bytes; 65536 are the most"),
    "no UTF-8": (file(key("a", 8, struct.pack("<Q", 2) + b"\xc3\x28")), "is not UTF-8"),
    "no UTF-8 in an array": (file(key("a", 9, array(8, 1, struct.pack("<Q", 2) + b"\xc3\x28"))), "is not UTF-8"),
    "no UTF-8 in a key": (file(struct.pack("<Q", 2) + b"\xc3\x28"), "is not UTF-8"),
    "an unknown value type": (file(key("a", 13, bytes(8))), "no value type 13"),
    "an unknown element type": (file(key("a", 9, array(99, 1, bytes(8)))), "no value type 99"),
    "a truth value of two": (file(key("a", 7, b"\2")), "neither 0 nor 1"),
    "truth values of two": (file(key("a", 9, array(7, 3, b"\0\1\2"))), "neither 0 nor 1"),
    "arrays in an array": (file(key("a", 9, array(9, 1, array(4, 1, bytes(4))))), "an array of arrays"),
    "a key twice": (file(GOOD, GOOD), "the key 'general.architecture' is there twice"),
    "split": (file(key("split.count", 2, struct.pack("<H", 3))), "one of 3 parts"),
    "split as text": (file(key("split.count", 8, text("3"))), "split.count is no whole number"),
    "alignment of no power of two": (file(key("general.alignment", 4, struct.pack("<I", 48))), "alignment 48 is no"),
    "alignment of zero": (file(key("general.alignment", 4, struct.pack("<I", 0))), "alignment 0 is no"),
    "alignment too large": (file(key("general.alignment", 10, struct.pack("<Q", 2**60))), "is no power of two from"),
    "alignment as text": (file(key("general.alignment", 8, text("32"))), "alignment '32' is no"),
    "a tensor twice": (file(tensors=(tensor("a", 8), tensor("a", 8, offset=32))), "the tensor 'a' is there twice"),
    "five dimensions": (file(tensors=(tensor("a", 1, 1, 1, 1, 1),)), "has 5 dimensions"),
    "no dimensions": (file(tensors=(tensor("a"),)), "has 0 dimensions"),
    "2^32 dimensions": (file(tensors=(text("a") + b"\xff" * 4,)), "has 4294967295 dimensions"),
    "a dimension of zero": (file(tensors=(tensor("a", 8, 0),)), "'a' is empty"),
    "a shape that overflows": (file(tensors=(tensor("a", 2**62, 2**62, 2**62, 4),)), "would end at byte"),
    "a shape that wraps around": (file(tensors=(tensor("a", 2**32, 2**32),)), "would end at byte"),
    "an unknown tensor type": (file(tensors=(tensor("a", 8, kind=77),)), "has the unknown type 77"),
    "half a block": (file(tensors=(tensor("a", 48, kind=8),)), "rows of 48, and Q8_0 has blocks of 32"),
    "an offset of no alignment": (file(tensors=(tensor("a", 8, offset=8),)), "lies at 8"),
    "an offset past the end": (file(tensors=(tensor("a", 8, offset=2**40),)), "would end at byte"),
    "an offset that wraps around": (file(tensors=(tensor("a", 8, offset=2**64 - 32),)), "would end at byte"),
    "a tensor past the end": (file(tensors=(tensor("a", 65),)), "'a' would end at byte"),
    "overlapping tensors": (file(tensors=(tensor("a", 16), tensor("b", 8, offset=32))), "'a' and 'b' overlap"),
    "a tensor inside another": (
        file(tensors=(tensor("a", 64), tensor("b", 8, offset=64), tensor("c", 8, offset=192))), "'a' and 'b' overlap",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_said(case: str, tmp_path: Path) -> None:
    content, said = WRONG[case]
    path = tmp_path / "wrong.gguf"
    path.write_bytes(content)
    with pytest.raises(UserError, match=said) as error:
        read_header(path)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400


def test_the_good_ones_differ_from_the_wrong_ones_by_little(tmp_path: Path) -> None:
    """Else a test above might pass for another reason than the one it names."""
    path = tmp_path / "good.gguf"
    keys = (GOOD, key("split.count", 2, struct.pack("<H", 1)), key("general.alignment", 4, struct.pack("<I", 64)))
    longest = key("a", 9, array(8, 1, text("t" * MOST_TEXT)))
    tensors = (tensor("a", 16), tensor("b", 8, offset=64), tensor("c", 32, kind=8, offset=128))
    path.write_bytes(file(*keys, longest, tensors=tensors, data=320))
    header = read_header(path)
    assert len(header.metadata["a"][0]) == MOST_TEXT
    assert [one.offset % 64 for one in header.tensors.values()] == [0, 0, 0]


def test_no_file_at_all(tmp_path: Path) -> None:
    for path in (tmp_path / "none.gguf", tmp_path):
        with pytest.raises(UserError, match="There is no file"):
            read_header(path)


def test_every_truncation_of_a_header_is_refused(valid: Path, tmp_path: Path) -> None:
    content, path = valid.read_bytes(), tmp_path / "cut.gguf"
    whole = max(info.offset + info.bytes for info in read_header(valid).tensors.values())
    for length in [*range(0, whole, 7), whole - 1]:
        path.write_bytes(content[:length])
        with pytest.raises(UserError):
            read_header(path)


def test_a_sparse_file_cannot_make_counts_true(tmp_path: Path) -> None:
    """64 GB of zeros hold eight billion empty texts; they are not believed."""
    path = tmp_path / "sparse.gguf"
    path.write_bytes(file(GOOD, key("t", 9, array(8, 8 * 10**9)), data=0))
    with path.open("r+b") as sparse:
        sparse.truncate(64 * 2**30)
    with pytest.raises(UserError, match="elements is announced"):
        read_header(path)


SMILE = "\N{GRINNING FACE}"  # one such letter makes every letter of a text take four bytes
HALF = MOST_ELEMENTS // 2
COSTLY: dict[str, Callable[[], bytes]] = {  # what may take long or much memory, whether or not it is refused
    "a text of the whole file": lambda: file(key("a", 8, text("a" * (MOST_BYTES - 200) + SMILE))),
    "a name of the whole file": lambda: file(key("a" * (MOST_BYTES - 200) + SMILE, 7, b"\1")),
    "the same in an array": lambda: file(key("a", 9, array(8, 1, text("a" * (MOST_BYTES - 200) + SMILE)))),
    "the longest texts": lambda: file(*[key(f"{i}", 8, text("a" * (MOST_TEXT - 4) + SMILE)) for i in range(15)]),
    "the longest names": lambda: file(*[key(f"{i:065530}" + SMILE, 7, b"\1") for i in range(1000)]),
    "millions of texts": lambda: file(key("a", 9, array(8, HALF, text("a" * 20 + SMILE) * HALF))),
    "millions of empty texts": lambda: file(key("a", 9, array(8, HALF, bytes(8 * HALF)))),
    "millions of numbers": lambda: file(key("a", 9, array(10, MOST_ELEMENTS, b"\xff" * 8 * MOST_ELEMENTS))),
    "millions of arrays": lambda: file(key("a", 9, array(9, MOST_ELEMENTS, array(0, 0) * MOST_ELEMENTS))),
    "most keys": lambda: file(*[key(f"{i:04000}", 7, b"\1") for i in range(MOST_KEYS)]),
    "most tensors": lambda: file(tensors=tuple(tensor(f"{i:0900}", 8, offset=32 * i) for i in range(MOST_TENSORS))),
}
MEASURED = """
import re, sys, time
from pathlib import Path
from mull.formats.gguf import read_header
from mull.types import UserError
peak = lambda: int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024
before, begin = peak(), time.process_time()
try:
    read_header(sys.argv[1])
except UserError:
    pass
print(peak() - before, time.process_time() - begin)
"""


@pytest.mark.parametrize("case", COSTLY)
def test_no_file_takes_long_or_much_memory(case: str, tmp_path: Path) -> None:
    """In a process of its own: 64 MB of the file itself are counted in."""
    path = tmp_path / "costly.gguf"
    path.write_bytes(COSTLY[case]())
    said = subprocess.run([sys.executable, "-c", MEASURED, path], capture_output=True, text=True, check=True)
    megabytes, seconds = map(float, said.stdout.split())
    assert megabytes < 480
    assert seconds < 3


def reads_or_says(path: Path, content: bytes) -> None:
    """Nothing but a header whose tensors lie inside the file, apart from one another, or a UserError."""
    path.write_bytes(content)
    try:
        header = read_header(path)
    except UserError:
        return
    end = 24
    for info in sorted(header.tensors.values(), key=lambda info: info.offset):
        assert info.offset >= end
        end = info.offset + info.bytes
    assert end <= max(len(content), 24)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_mutated_files(data: st.DataObject, valid: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    content = bytearray(valid.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        match data.draw(st.sampled_from(["byte", "word", "cut", "insert"])):
            case "byte":
                content[at] = data.draw(st.integers(0, 255))
            case "word":
                word = struct.pack("<Q", data.draw(st.sampled_from([0, 1, 2**16, 2**31, 2**32, 2**63, 2**64 - 1])))
                content[at : at + 8] = word
            case "cut":
                del content[at : at + data.draw(st.integers(1, 64))]
            case _:
                content[at:at] = data.draw(st.binary(min_size=1, max_size=16))
        content = content or bytearray(b"GGUF")
    reads_or_says(tmp_path_factory.getbasetemp() / "mutated.gguf", bytes(content))


@settings(max_examples=200, deadline=None)
@given(content=st.binary(max_size=200))
def test_random_bytes_behind_the_magic(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    reads_or_says(tmp_path_factory.getbasetemp() / "random.gguf", b"GGUF\3\0\0\0" + content)
