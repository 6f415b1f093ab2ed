"""Files of strangers are text, or one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from mull.formats.bounded import read_object, read_text
from mull.types import UserError


def test_what_is_within_the_limit_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"é": [1, null]}', encoding="utf-8")
    size = path.stat().st_size
    assert read_text(path, size) == '{"é": [1, null]}'
    assert read_object(path, size) == {"é": [1, None]}
    with pytest.raises(UserError, match=r"a\.json has more than 16 bytes"):
        read_object(path, size - 1)


BROKEN = [b"", b"[1]", b"null", b"{", b"\xff", b"[" * 100_000, b'{"a": ' + b"9" * 5000 + b"}"]


@pytest.mark.parametrize("content", BROKEN)
def test_what_is_no_json_object_is_one_line(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.json") as caught:
        read_object(path, 2**20)
    assert "\n" not in str(caught.value)


def test_gigabytes_are_not_read(tmp_path: Path) -> None:
    with (tmp_path / "a.json").open("wb") as file:
        file.truncate(2**36)
    with pytest.raises(UserError, match="no such file is that large"):
        read_text(tmp_path / "a.json", 2**20)
    with pytest.raises(FileNotFoundError):
        read_text(tmp_path / "b.json", 2**20)
