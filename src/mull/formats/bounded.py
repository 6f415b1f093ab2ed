"""Text and JSON files of strangers: read up to a size, and not at all beyond it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mull.types import UserError

CONFIG = 2**22  # bytes of a config.json; published ones have thousands


def read_text(path: Path, most: int) -> str:
    """A UTF-8 file of at most `most` bytes. Raises UserError for one that is longer or no text; OSError as it comes."""
    with path.open("rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise UserError(f"{path} has more than {most:,} bytes; no such file is that large.")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no UTF-8 text ({error.reason} at byte {error.start}).") from None


def read_object(path: Path, most: int) -> dict[str, Any]:
    """A JSON object in such a file. Raises UserError for other JSON, and for none."""
    text = read_text(path, most)
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is no JSON: {error}.") from None
    if not isinstance(found, dict):
        raise UserError(f"{path} holds no JSON object.")
    return found


__all__ = ["CONFIG", "read_object", "read_text"]
