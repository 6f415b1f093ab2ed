"""What the server's process and the engine's say to each other: JSON, one object a line.

To the engine:    {"add": NAME, "request": {...}, "salt": TEXT}    {"cancel": NAME}    {"quit": true}
From the engine:  {"ready": {...}}    {"step": [[NAME, delta], ...], "stats": {...}}    {"refused": NAME, "why": TEXT}
"""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from typing import Any

from mull.types import Completion, Delta, Grammar, Request, Sampling


def dumps(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def _tuples(value: Any) -> Any:
    return tuple(_tuples(one) for one in value) if isinstance(value, list) else value


def request_to(request: Request) -> dict[str, Any]:
    """Without the messages: a local engine reads tokens."""
    return {"tokens": request.tokens, "sampling": asdict(request.sampling), "key": request.key}


def request_from(raw: dict[str, Any]) -> Request:
    sampling = {name: _tuples(value) for name, value in raw["sampling"].items()}
    if sampling["grammar"] is not None:
        sampling["grammar"] = Grammar(**sampling["grammar"])
    return Request(tuple(raw["tokens"]), Sampling(**sampling), tuple(raw["key"]))


_PLAIN = {field.name: field.default for field in fields(Delta)}


_TOLD = ("logprobs", "alternatives", "routes")  # of a completion: its Deltas held them, and they can be long


def delta_to(delta: Delta) -> dict[str, Any]:
    """Only what it holds. A completion goes without what may be long and was told with the tokens."""
    raw = {name: getattr(delta, name) for name, default in _PLAIN.items() if getattr(delta, name) != default}
    if delta.completion is not None:
        raw["completion"] = asdict(delta.completion) | dict.fromkeys(_TOLD, ())
    return raw


def delta_from(raw: dict[str, Any]) -> Delta:
    raw = {name: _tuples(value) for name, value in raw.items()}
    if (completion := raw.get("completion")) is not None:
        raw["completion"] = Completion(**{name: _tuples(value) for name, value in completion.items()})
    return Delta(**raw)


__all__ = ["delta_from", "delta_to", "dumps", "request_from", "request_to"]
