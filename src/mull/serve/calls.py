"""Calls of tools in an answer: those that the model makes as it was taught, and those that it must make.

A model that must call is held to a grammar: one JSON object with the name and the arguments of a tool, whatever form it
was taught. That form is ours, so it is read here; text/tools.py reads the models' own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from mull.text.chat import Chat
from mull.text.tools import Call, parser_of
from mull.types import Grammar, UserError

DEFINITIONS = ("$defs", "definitions")  # where a schema keeps what it refers to, from its root
Tools = Sequence[Mapping[str, Any]]


class CallParser(Protocol):
    """The answer as it comes, in text and calls."""

    def feed(self, text: str) -> list[str | Call]: ...

    def flush(self) -> list[str | Call]: ...


class _Forced:
    """An answer that is one call, if it was not cut off."""

    def __init__(self) -> None:
        self.said = ""

    def feed(self, text: str) -> list[str | Call]:
        self.said += text
        return []

    def flush(self) -> list[str | Call]:
        try:
            raw = json.loads(self.said)
            return [Call(raw["name"], json.dumps(raw["arguments"], ensure_ascii=False))]
        except (ValueError, TypeError, KeyError, RecursionError):
            return [self.said] if self.said else []


def parser_for(chat: Chat, tools: Tools, choice: str) -> CallParser | None:
    """None where an answer is all text. `choice` is auto, none, required, or the name of a tool."""
    if not tools or choice == "none":
        return None
    return parser_of(chat, tools) if choice == "auto" else _Forced()


def grammar_for(tools: Tools, choice: str) -> Grammar | None:
    """What an answer is held to that must call. Raises UserError for tools whose definitions contradict one another."""
    if not tools or choice in ("none", "auto"):
        return None
    named = [tool["function"] for tool in tools if choice in ("required", tool["function"]["name"])]
    shared: dict[str, dict[str, Any]] = {}
    forms = []
    for function in named:
        parameters: dict[str, Any] = dict(function.get("parameters") or {"type": "object"})
        for where in DEFINITIONS:
            for name, schema in (parameters.pop(where, None) or {}).items():
                known = shared.setdefault(where, {}).setdefault(name, schema)
                if known != schema:
                    raise UserError(f"Two tools define {name!r} in their {where}, each in its way; rename one.")
        forms.append({
            "type": "object",
            "properties": {"name": {"const": function["name"]}, "arguments": parameters},
            "required": ["name", "arguments"],
            "additionalProperties": False,
        })  # fmt: skip
    schema = {**(forms[0] if len(forms) == 1 else {"anyOf": forms}), **shared}
    return Grammar("json_schema", json.dumps(schema, ensure_ascii=False))


__all__ = ["CallParser", "grammar_for", "parser_for"]
