"""What a template is shown of tools and calls, so that each model reads them in the way it can.

Clients write a call's arguments as JSON text. Most templates want the object, some the text: which, an attempt shows.
A template that leaves the tools out (its model was never taught any) has them described in the system message, with the
form in which to call; calls and results that it would leave out as well are written as text of their turns.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mull.types import UserError

Shown = dict[str, Any]  # a message as templates see it
Render = Callable[[Sequence[Shown], Sequence[Shown] | None], str]

OFFER = """\
# Tools

You may call functions to help with the request. These are there, as JSON, one on each line:
<tools>
{tools}
</tools>

For each call write the function's name and its arguments, which fit the function's parameters, in exactly this form:
{example}"""


@dataclass(frozen=True)
class Habits:
    """Whether a template writes tools, calls and results, and how it wants calls."""

    tools: bool = True
    calls: bool = True
    results: bool = True
    as_text: bool = False  # their arguments
    as_none: bool = False  # the content beside them, where there is none


def habits_of(render: Render, probe: str) -> Habits:
    """`probe` is a text that no template writes of itself."""
    asked: list[Shown] = [{"role": "user", "content": "?"}]
    parameters = {"type": "object", "properties": {probe: {"type": "string", "description": probe}}}
    tool = {"type": "function", "function": {"name": probe, "description": probe, "parameters": parameters}}
    offered = _tried(render, asked, [tool])
    tools = offered is None or probe in offered
    results = False
    for content, as_text in (("", False), ("", True), (None, False), (None, True)):
        arguments = json.dumps({probe: True}) if as_text else {probe: True}
        call = {"id": "c12345678", "type": "function", "function": {"name": f"name{probe}", "arguments": arguments}}
        answer = {"role": "tool", "content": f"result{probe}", "name": f"name{probe}", "tool_call_id": call["id"]}
        said = _tried(render, [*asked, {"role": "assistant", "content": content, "tool_calls": [call]}, answer], None)
        results |= f"result{probe}" in (said or "")
        if said and f"name{probe}" in said.replace(f"result{probe}", "") and f"{{'{probe}': True}}" not in said:
            return Habits(tools, True, results, as_text, content is None)
    return Habits(tools, False, results)


def _tried(render: Render, messages: Sequence[Shown], tools: Sequence[Shown] | None) -> str | None:
    try:
        return render(messages, tools)
    except UserError:
        return None


def calls_for(calls: Sequence[Mapping[str, Any]], as_text: bool) -> list[Any]:
    """Calls with their arguments as the template wants them. What is no JSON object stays as it is."""
    return [_call_for(call, as_text) for call in calls]


def _call_for(call: Mapping[str, Any], as_text: bool) -> Any:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping):
        return call
    arguments = function.get("arguments")
    if as_text and isinstance(arguments, Mapping):
        arguments = _written(arguments)
    elif not as_text and isinstance(arguments, str):
        arguments = _read(arguments)
    return {**call, "function": {**function, "arguments": arguments}} if "arguments" in function else call


def _written(value: Any) -> Any:
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        return value


def _read(text: str) -> Any:
    try:
        value = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return text
    return value if isinstance(value, dict) else text


def described(messages: Sequence[Shown], tools: Sequence[Shown], example: str, habits: Habits) -> list[Shown]:
    """The conversation for a template that writes no tools."""
    offer = OFFER.format(tools="\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools), example=example)
    system = messages[:1] if messages and messages[0]["role"] == "system" else ()
    before = f"{system[0]['content']}\n\n" if system and system[0]["content"] else ""
    made: list[Shown] = [{"role": "system", "content": before + offer}]
    answering = False
    for message in messages[len(system) :]:
        if message["role"] == "tool" and not habits.results:
            result = f"<tool_response>\n{message['content']}\n</tool_response>"
            if answering:  # in one turn: some templates refuse two in a row
                made[-1]["content"] += f"\n{result}"
            else:
                made.append({"role": "user", "content": result})
            answering = True
            continue
        answering = False
        made.append(_spelt(message) if message.get("tool_calls") and not habits.calls else message)
    return made


def _spelt(message: Shown) -> Shown:
    """An assistant's calls as text."""
    parts = [message["content"]] if message["content"] else []
    for call in message["tool_calls"]:
        function = call.get("function", call) if isinstance(call, Mapping) else call
        parts.append(f"<tool_call>\n{json.dumps(function, ensure_ascii=False)}\n</tool_call>")
    return {**{key: value for key, value in message.items() if key != "tool_calls"}, "content": "\n".join(parts)}


__all__ = ["Habits", "calls_for", "described", "habits_of"]
