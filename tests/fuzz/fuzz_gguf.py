"""Fuzz the reader of GGUF headers: python tests/fuzz/fuzz_gguf.py [corpus folder] [libFuzzer options]

Any bytes must end in a header whose tensors lie inside the file, or in a UserError. Starts from the smallest valid
files; what it finds belongs into tests/test_formats_gguf.py (WRONG).
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["mull.formats"]):
    from mull.formats.gguf import read_header
    from mull.types import UserError

PATH = Path(tempfile.gettempdir()) / "fuzz.gguf"


def one(content: bytes) -> None:
    PATH.write_bytes(content)
    try:
        header = read_header(PATH)
    except UserError as error:
        assert "\n" not in str(error)  # noqa: PT017 - no pytest here
        return
    end = 24
    for info in sorted(header.tensors.values(), key=lambda info: info.offset):
        assert info.offset >= end
        end = info.offset + info.bytes
    assert end <= max(len(content), 24)


def seed(folder: Path) -> None:
    """Small valid files, made by the gguf library."""
    import gguf
    import numpy as np

    folder.mkdir(parents=True, exist_ok=True)
    for number, values in enumerate(([], [("a", [1, 2])], [("a", ["x", "yy"]), ("b", 1.5), ("c", True)])):
        writer = gguf.GGUFWriter(folder / f"{number}.gguf", "llama")
        for key, value in values:
            if isinstance(value, list):
                writer.add_array(key, value)
            elif isinstance(value, bool):
                writer.add_bool(key, value)
            else:
                writer.add_float32(key, value)
        writer.add_tensor("t", np.ones((2, 32), np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


if __name__ == "__main__":
    given = [word for word in sys.argv[1:] if not word.startswith("-")] or [tempfile.mkdtemp()]
    seed(Path(given[0]))
    atheris.Setup([sys.argv[0], *given, *[word for word in sys.argv[1:] if word.startswith("-")]], one)
    atheris.Fuzz()
