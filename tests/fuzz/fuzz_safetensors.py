"""Fuzz the reader of safetensors headers: python tests/fuzz/fuzz_safetensors.py [corpus folder] [libFuzzer options]

Any bytes must end in a UserError, or in tensors that fill the file and that the safetensors library sees as well.
Each input is tried as a file, and its first line as the header of one, with the right length before it: else hardly
any would be read so far. What is found belongs into tests/fixtures, which test_formats_safetensors.py reads.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["mull.formats"]):
    from mull.formats.safetensors import read_header
    from mull.types import UserError

from safetensors import safe_open

PATH = Path(tempfile.gettempdir()) / f"fuzz-{os.getpid()}.safetensors"


def one(content: bytes) -> None:
    check(content)
    header, _, data = content.partition(b"\n")
    check(len(header).to_bytes(8, "little") + header + data)


def check(content: bytes) -> None:
    PATH.write_bytes(content)
    try:
        found = read_header(PATH)
    except UserError as error:
        assert "\n" not in str(error)  # noqa: PT017 - no pytest here
        return
    end = 8 + int.from_bytes(content[:8], "little")
    for info in found.values():  # in the order of their bytes
        assert info.offset == end
        end += info.bytes
    assert end == len(content)
    with safe_open(PATH, "numpy") as file:
        assert sorted(found) == sorted(file.keys())
        for name, info in found.items():
            assert tuple(file.get_slice(name).get_shape()) == info.shape


def seed(folder: Path) -> None:
    """Small valid files."""
    folder.mkdir(parents=True, exist_ok=True)
    two = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    byte = {"dtype": "F8_E4M3", "shape": [1, 1], "data_offsets": [8, 9]}
    none = {"dtype": "BF16", "shape": [0, 3], "data_offsets": [0, 0]}
    for number, header in enumerate(({}, {"a": two}, {"__metadata__": {"x": "y"}, "none": none, "a": two, "b": byte})):
        size = max((entry["data_offsets"][1] for entry in header.values() if "dtype" in entry), default=0)
        raw = json.dumps(header).encode()
        (folder / f"{number}.safetensors").write_bytes(len(raw).to_bytes(8, "little") + raw + bytes(size))
        (folder / f"{number}.lines").write_bytes(raw + b"\n" + bytes(size))


if __name__ == "__main__":
    given = [word for word in sys.argv[1:] if not word.startswith("-")] or [tempfile.mkdtemp()]
    seed(Path(given[0]))
    atheris.Setup([sys.argv[0], *given, *(word for word in sys.argv[1:] if word.startswith("-"))], one)
    try:
        atheris.Fuzz()
    finally:
        PATH.unlink(missing_ok=True)
