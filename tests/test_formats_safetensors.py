"""The reader takes what the safetensors library writes, and ends every other file in one clear line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from small import in_memory  # noqa: F401

from mull.formats.safetensors import (
    BITS,
    INDEX,
    MOST_JSON,
    Planned,
    TensorInfo,
    read_folder,
    read_header,
    write_file,
    write_folder,
)
from mull.types import UserError

FIXTURES = Path(__file__).parent / "fixtures"
TENSORS = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(5, dtype=torch.bfloat16), "none": torch.zeros(0, 3)}


def entry(dtype: Any = "F32", shape: Any = (2,), begin: Any = 0, end: Any = 8) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape) if isinstance(shape, tuple) else shape, "data_offsets": [begin, end]}


def put(path: Path, header: Any, data: bytes = b"\0" * 8, length: int | None = None) -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(raw) if length is None else length).to_bytes(8, "little") + raw + data)
    return path


def test_the_librarys_files_are_read(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "m", metadata={"format": "pt"})
    found = read_header(tmp_path / "m")
    content = (tmp_path / "m").read_bytes()
    assert {name: (info.dtype, info.shape) for name, info in found.items()} == {
        "a": ("F32", (2, 3)), "b": ("BF16", (5,)), "none": ("F32", (0, 3)),
    }  # fmt: skip
    for name, info in found.items():
        bytes_ = content[info.offset : info.offset + info.bytes]
        assert bytes_ == TENSORS[name].view(torch.uint8).numpy().tobytes()


def test_the_library_reads_our_files(tmp_path: Path) -> None:
    """Narrow numbers in odd counts before wide ones, too: all lie aligned."""
    tensors = {"c": torch.ones(3).to(torch.float8_e4m3fn), **TENSORS, "d": torch.ones(3, dtype=torch.float16)}
    dtypes = {"a": "F32", "b": "BF16", "c": "F8_E4M3", "d": "F16", "none": "F32"}
    write_file(tmp_path / "m", [planned(n, t, dtypes[n]) for n, t in tensors.items()])
    back = load_file(tmp_path / "m")
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(back[name].view(torch.uint8), tensor.view(torch.uint8)), name
    assert all(info.offset % (BITS[info.dtype] // 8) == 0 for info in read_header(tmp_path / "m").values())


def planned(name: str, tensor: torch.Tensor, dtype: str) -> Planned:
    return Planned(name, dtype, tuple(tensor.shape), lambda: tensor.view(torch.uint8).numpy().data)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda p: p.write_bytes(b""), "0 bytes"),
        (lambda p: p.write_bytes(b"\x08"), "1"),
        (lambda p: put(p, {}, b"", length=2**63), "9223372036854775808"),
        (lambda p: put(p, {}, b"", length=3 * 2**30), "3221225472"),
        (lambda p: put(p, b" " * (MOST_JSON + 1)), "are the most"),
        (lambda p: put(p, b'{"a": '), "no JSON"),
        (lambda p: put(p, b"\xff{}"), "no JSON"),
        (lambda p: put(p, [1, 2]), "no JSON object"),
        (lambda p: put(p, b'{"a": 1, "a": 2}'), "'a' is there twice"),
        (lambda p: put(p, b'{"a":{"dtype":"F32","dtype":"F16","shape":[2],"data_offsets":[0,8]}}'), "twice"),
        (lambda p: put(p, b"[" * 100_000), "brackets"),
        (lambda p: put(p, (b"[" + b" " * 19) * 100_000), "no JSON"),
        (lambda p: put(p, b'{"a":' + b"9" * 5000 + b"}"), "no JSON"),
        (lambda p: put(p, {"a": 1}), "described"),
        (lambda p: put(p, {"a": entry() | {"more": 1}}), "described"),
        (lambda p: put(p, {"a": entry("I3")}), "I3"),
        (lambda p: put(p, {"a": entry(["F32"])}), "dtype"),
        (lambda p: put(p, {"a": entry(shape=(-2,))}), "shape"),
        (lambda p: put(p, {"a": entry(shape=(2.0,))}), "shape"),
        (lambda p: put(p, {"a": entry(shape=(True, 2))}), "shape"),
        (lambda p: put(p, {"a": entry(shape="2")}), "shape"),
        (lambda p: put(p, {"a": entry(shape=(1,) * 9 + (2,))}), "shape"),
        (lambda p: put(p, {"a": entry(shape=(2**32, 2**32))}), "does not fit"),
        (lambda p: put(p, {"a": entry(shape=(2**62, 4, 2))}), "does not fit"),
        (lambda p: put(p, {"a": entry(shape=(3,))}), "does not fit"),
        (lambda p: put(p, {"a": entry(begin=8, end=0)}), "does not fit"),
        (lambda p: put(p, {"a": entry(begin=-8, end=0)}), "data_offsets"),
        (lambda p: put(p, {"a": entry(begin=None)}), "data_offsets"),
        (lambda p: put(p, {"a": entry(begin=8, end=16)}), "begins at 8"),
        (lambda p: put(p, {"a": entry(), "b": entry()}), "begins at 0"),
        (lambda p: put(p, {"a": entry(), "b": entry(begin=4, end=12)}, b"\0" * 12), "begins at 4"),
        (lambda p: put(p, {"a": entry()}, b"\0" * 7), "end at byte"),
        (lambda p: put(p, {"a": entry()}, b"\0" * 9), "end at byte"),
        (lambda p: put(p, {"a": entry(), "__metadata__": {"x": 1}}), "__metadata__"),
        (lambda p: put(p, {"a": entry(), "__metadata__": 3}), "__metadata__"),
        (lambda p: put(p, {"a\x1b[2J": entry()}), "printable"),
        (lambda p: put(p, {"\ud800": entry()}), "printable"),
        (lambda p: put(p, {"n" * 1001: entry()}), "1000"),
        (lambda p: (p.unlink(missing_ok=True), os.mkfifo(p)), "no file"),
        (lambda p: p.mkdir(), "no file"),
        (lambda p: put(p, {"__metadata__": {str(i): "" for i in range(1001)}}), "has 1001 pairs; 1000 are the most"),
        (lambda p: put(p, {f"{i:x}": entry(shape=[0], end=0) for i in range(2**17 + 1)}), "more texts than 131072"),
        (lambda p: put(p, b"{" + b",".join(b'"%x":""' % i for i in range(2_600_000)) + b"}"), "more texts than 131072"),
    ],
)  # fmt: skip
def test_a_damaged_file_is_one_line(change: Callable[[Path], object], said: str, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    change(path)
    begun = time.monotonic()
    with pytest.raises(UserError, match=said) as caught:
        read_header(path)
    assert time.monotonic() - begun < 2
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000
    str(caught.value).encode()


WORST = {  # of 32 MB: what the counting of brackets lets pass
    "lists": lambda: b'{"a":[' + b"[0         ]," * 2_500_000 + b"0]}",
    "numbers": lambda: b'{"a":[' + b"300," * 8_000_000 + b"0]}",
    "keys": lambda: b"{" + b"".join(b'"%x":0,' % i for i in range(2_600_000)) + b'"":0}',
}


@pytest.mark.slow
@pytest.mark.parametrize("name", WORST)
def test_the_worst_header_takes_bounded_memory(name: str, tmp_path: Path) -> None:
    path = put(tmp_path / "m.safetensors", WORST[name]())
    code = """
import re, sys, time
from pathlib import Path
from mull.formats.safetensors import read_header
from mull.types import UserError
begun = time.process_time()
try:
    read_header(Path(sys.argv[1]))
except UserError:
    print(time.process_time() - begun, re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
"""
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    seconds, kilobytes = map(float, done.stdout.split())
    assert seconds < 5
    assert kilobytes < 700_000


def folder_of(tmp_path: Path) -> Path:
    """A directory of two shards."""
    folder = tmp_path / "model"
    folder.mkdir()
    write_folder(folder, [planned("a", torch.ones(2), "F32"), planned("b", torch.zeros(3), "F32")], shard=9)
    return folder


def test_shards_and_their_index(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    first, second = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    assert sorted(path.name for path in folder.iterdir()) == [first, second, INDEX]
    index = json.loads((folder / INDEX).read_text())
    assert index == {"metadata": {"total_size": 20}, "weight_map": {"a": first, "b": second}}
    assert {name: info.file.name for name, info in read_folder(folder).items()} == {"a": first, "b": second}
    write_file(folder / "mtp.safetensors", [planned("c", torch.ones(1), "F32")])
    assert list(read_folder(folder)) == ["a", "b", "c"]
    for name in ("a", "b"):  # one tensor is larger than a shard should be; it has one to itself
        with safe_open(folder / index["weight_map"][name], "pt") as file:
            assert list(file.keys()) == [name]


def edit(folder: Path, **changes: object) -> None:
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"] |= changes
    (folder / INDEX).write_text(json.dumps({k: v for k, v in index.items() if v is not None}))


SHARD_1 = "model-00001-of-00002.safetensors"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda f: edit(f, a="../x.safetensors"), "no name of a safetensors file"),
        (lambda f: edit(f, a="/etc/x.safetensors"), "no name of a safetensors file"),
        (lambda f: edit(f, a="..\\\\x.safetensors"), "no name of a safetensors file"),
        (lambda f: edit(f, a="x\0.safetensors"), "no name of a safetensors file"),
        (lambda f: edit(f, a="x" * 300 + ".safetensors"), "no name of a safetensors file"),
        (lambda f: edit(f, a="config.json"), "no name of a safetensors file"),
        (lambda f: edit(f, a="pytorch_model.bin"), "no name of a safetensors file"),
        (lambda f: edit(f, a=3), "no name of a safetensors file"),
        (lambda f: edit(f, c="absent.safetensors"), "absent.safetensors; the model is not whole"),
        (lambda f: edit(f, c=SHARD_1), "promises the tensor c"),
        (lambda f: edit(f, b=SHARD_1), "promises the tensor b"),
        (lambda f: (f / INDEX).write_text("{}"), "weight_map"),
        (lambda f: (f / INDEX).write_text('{"weight_map": []}'), "weight_map"),
        (lambda f: (f / INDEX).write_text('{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}'), "twice"),
        (lambda f: (f / INDEX).write_text("[" * 10**6), "brackets"),
        (lambda f: (f / INDEX).write_bytes(b" " * (MOST_JSON + 1)), "no index"),
        (lambda f: (f / SHARD_1).unlink(), "not whole"),
        (lambda f: write_file(f / SHARD_1, [planned(n, torch.ones(2), "F32") for n in "ab"]), "the tensor b twice"),
        (lambda f: write_file(f / "mtp.safetensors", [planned("a", torch.ones(2), "F32")]), "the tensor a twice"),
        (lambda f: link_out(f, "elsewhere"), "link out of its folder"),
    ],
)  # fmt: skip
def test_a_damaged_folder_is_one_line(change: Callable[[Path], object], said: str, tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    change(folder)
    with pytest.raises(UserError, match=said) as caught:
        read_folder(folder)
    assert "\n" not in str(caught.value)


def link_out(folder: Path, to: str) -> None:
    """Shard 1 moves to another folder, and a link to it takes its place."""
    target = folder.parent / to
    target.mkdir(parents=True)
    (folder / SHARD_1).rename(target / "3fc6a1")
    (folder / SHARD_1).symlink_to(os.path.relpath(target / "3fc6a1", folder))


def test_the_hubs_cache_is_links_into_blobs(tmp_path: Path) -> None:
    """models--org--name/snapshots/REVISION/* -> ../../blobs/*: those links are followed, and no others."""
    folder = folder_of(tmp_path)
    snapshots = tmp_path / "models--org--name" / "snapshots"
    snapshots.mkdir(parents=True)
    folder = folder.rename(snapshots / "0123abcd")
    link_out(folder, "../blobs")
    assert set(read_folder(folder)) == {"a", "b"}
    (tmp_path / "alias").symlink_to(folder)  # to the folder itself any path is fine
    assert set(read_folder(tmp_path / "alias")) == {"a", "b"}
    (folder / SHARD_1).unlink()
    (folder / SHARD_1).symlink_to("/etc/hostname")
    with pytest.raises(UserError, match="link out of its folder"):
        read_folder(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth", "x.ckpt", "weights.pkl"])
def test_pickles_are_never_opened(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()  # opening it would be another error
    with pytest.raises(UserError, match=rf"pickles only \({name}\).*convert them to safetensors"):
        read_folder(tmp_path)


def test_no_weights(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no weights"):
        read_folder(tmp_path)


def agreed(path: Path) -> None:
    """Ours refuses in one line, or says what the library says; what the library refuses, ours does too."""
    found: dict[str, TensorInfo] | None = None
    said = ""
    try:
        found = read_header(path)
    except UserError as error:
        said = str(error)
    assert "\n" not in said
    assert len(said) < 3000
    try:
        with safe_open(path, "pt") as file:
            theirs = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except SafetensorError:
        assert found is None
    else:
        assert found is None or {name: info.shape for name, info in found.items()} == theirs


json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | st.sampled_from(sorted(BITS)),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4), max_leaves=9,
)  # fmt: skip
small = st.integers(0, 40)
entries = st.fixed_dictionaries({
    "dtype": st.sampled_from(sorted(BITS)) | json_like, "shape": st.lists(small | json_like, max_size=4) | json_like,
    "data_offsets": st.lists(small | json_like, min_size=2, max_size=2) | json_like,
})  # fmt: skip
headers = st.dictionaries(st.sampled_from(["a", "b", "__metadata__", ""]) | st.text(max_size=9), entries | json_like)


@given(headers, st.binary(max_size=40), st.integers(-3, 3))
def test_any_header_is_read_as_the_library_reads_it_or_refused(header: dict, data: bytes, off: int) -> None:
    raw = json.dumps(header).encode()
    with_file(lambda path: put(path, raw, data, max(len(raw) + off, 0)), agreed)


@given(st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=4), st.integers(0, 400))
@example([(0, 0)], 400)
def test_a_file_with_changed_bytes_is_read_as_the_library_reads_it_or_refused(
    changes: list[tuple[int, int]], keep: int
) -> None:
    content = bytearray(HONEST)
    for at, byte in changes:
        content[at % len(content)] = byte
    with_file(lambda path: path.write_bytes(content[:keep] if keep < len(content) else content), agreed)


def honest() -> bytes:
    got: list[bytes] = []
    with_file(lambda path: save_file(TENSORS, path), lambda path: got.append(path.read_bytes()))
    return got[0]


def with_file(make: Callable[[Path], object], check: Callable[[Path], object]) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        path = Path(folder) / "m.safetensors"
        make(path)
        check(path)


HONEST = honest()


@pytest.mark.parametrize("path", sorted(FIXTURES.glob("*.safetensors")), ids=lambda path: path.name)
def test_what_fuzzing_found(path: Path) -> None:
    agreed(path)
