"""What the Responses API's clients send, understood: pydantic for the shape and the ranges, then an `Ask`.

Items become messages: a thought, a text and the calls of one turn are one message of the assistant's.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

from pydantic import Field

from mull.serve.dialogue import Ask, a_seed
from mull.serve.errors import refused
from mull.serve.openai_asks import AT_FIRST, Loose, Many, Seed, Shape, Tokens
from mull.types import Grammar, Message, Sampling, UserError

Item = Mapping[str, Any]
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
Key = Annotated[str, Field(max_length=64)]
Value = Annotated[str, Field(max_length=512)]
UNBOUNDED = 1 << 31  # tokens of an answer; the model's length bounds it


class Reasoning(Shape):
    effort: Effort | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None
    generate_summary: Literal["auto", "concise", "detailed"] | None = None
    context: Literal["auto", "current_turn", "all_turns"] | None = None
    mode: Literal["standard"] | None = None


class Format(Loose):
    type: Literal["text", "json_object", "json_schema"] = "text"
    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: bool | None = None


class TextOptions(Shape):
    format: Format = Format()
    verbosity: Literal["low", "medium", "high"] | None = None


class Create(Shape):
    """POST /v1/responses."""

    model: str | None = None
    input: str | Many[dict[str, Any]]
    instructions: str | None = None
    max_output_tokens: Tokens | None = None
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    reasoning: Reasoning | None = None
    text: TextOptions = TextOptions()
    tools: Many[dict[str, Any]] = []
    tool_choice: str | dict[str, Any] = "auto"
    parallel_tool_calls: bool | None = None
    stream: bool | None = None
    store: bool | None = None
    previous_response_id: str | None = None
    metadata: Annotated[dict[Key, Value], AT_FIRST] | None = Field(None, max_length=16)
    include: Many[str] | None = None
    truncation: Literal["auto", "disabled"] | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    # beyond OpenAI's
    seed: Seed | None = None
    top_k: int | None = Field(None, ge=0, le=1 << 31)
    min_p: float | None = Field(None, ge=0, le=1)
    stop: str | Many[str] | None = None
    thinking_token_budget: int | None = Field(None, ge=0, le=1 << 31)
    min_thinking_tokens: int | None = Field(None, ge=0, le=1 << 31)
    votes: int | None = Field(None, ge=1, le=128)
    cache_salt: str | None = Field(None, max_length=512)
    # read, and of no effect here
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    prompt_cache_options: dict[str, Any] | None = None
    service_tier: str | None = None
    stream_options: dict[str, Any] | None = None
    max_tool_calls: int | None = None  # counts OpenAI's own tools, of which there are none
    context_management: Many[dict[str, Any]] | None = None
    # read to be refused
    background: bool | None = None
    conversation: Any = None
    prompt: Any = None
    moderation: Any = None


_REFUSED = {
    "background": "background=true is not served: the answer comes with the request.",
    "conversation": "Conversations are not kept here: give the earlier items in `input`, or `previous_response_id`.",
    "prompt": "There are no stored prompts here: give `input` and `instructions`.",
    "moderation": "Nothing is moderated here: leave `moderation` out.",
}


def ask_of(body: Create, earlier: Sequence[Message] = ()) -> Ask:
    """What is asked; `earlier` is the conversation of the previous response. Raises UserError."""
    for name, why in _REFUSED.items():
        if getattr(body, name):
            raise UserError(why)
    items = [{"role": "user", "content": body.input}] if isinstance(body.input, str) else body.input
    messages = [*earlier, *messages_of(items, earlier)]
    if not messages:
        raise UserError("`input` is empty.")
    if body.reasoning is not None and body.reasoning.context == "current_turn":
        messages = _current(messages)
    if body.instructions:
        messages.insert(0, Message("system", body.instructions))
    tools, choice = _tools(body)
    if tools and choice != "none" and body.text.format.type != "text":
        raise refused("An answer that must have a form cannot call tools: tool_choice none, or no text.format.", "text")
    effort = body.reasoning.effort if body.reasoning is not None else None
    return Ask(
        messages=tuple(messages), sampling=_sampling(body), votes=body.votes or 1, effort=effort, tools=tools,
        tool_choice=choice, parallel=body.parallel_tool_calls is not False, salt=body.cache_salt or "",
        logprobs=_scores(body), shorten=body.truncation == "auto",
    )  # fmt: skip


def _scores(body: Create) -> bool:
    return bool(body.top_logprobs) or "message.output_text.logprobs" in (body.include or ())


def _sampling(body: Create) -> Sampling:
    given: dict[str, Any] = {
        "max_tokens": body.max_output_tokens or UNBOUNDED, "temperature": body.temperature, "top_p": body.top_p,
        "top_k": body.top_k, "min_p": body.min_p, "top_logprobs": body.top_logprobs,
        "seed": a_seed() if body.seed is None else body.seed,
        "thinking_tokens": body.thinking_token_budget, "min_thinking_tokens": body.min_thinking_tokens,
    }  # fmt: skip
    stop = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
    if "" in stop:
        raise refused("stop: an empty text would stop every answer before it begins.", "stop")
    budget = body.thinking_token_budget
    if budget is not None and (body.min_thinking_tokens or 0) > budget:
        raise refused(f"min_thinking_tokens is more than the budget of {budget} tokens.", "min_thinking_tokens")
    said = {name: value for name, value in given.items() if value is not None}
    return Sampling(**said, stop=stop, grammar=_grammar(body.text.format))


def _grammar(wanted: Format) -> Grammar | None:
    if wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return Grammar("json")
    if wanted.schema_ is None:
        raise UserError("text.format of type json_schema needs a `schema`.")
    return Grammar("json_schema", json.dumps(wanted.schema_))


def _tools(body: Create) -> tuple[tuple[Mapping[str, Any], ...], str]:
    """(tools as chat completions have them, tool_choice as Ask has it)."""
    tools: dict[str, Mapping[str, Any]] = {}
    for at, tool in enumerate(body.tools):
        if tool.get("type") != "function":
            raise UserError(f"tools[{at}]: there are only function tools here, no {tool.get('type')!r}.")
        name, parameters = tool.get("name"), tool.get("parameters") or {}
        if not isinstance(name, str) or not name or not isinstance(parameters, dict):
            raise UserError(f"tools[{at}] needs a `name`, and `parameters` that are a JSON schema.")
        if name in tools:
            raise refused(f"Two tools are named {name[:64]!r}.", "tools")
        described = {"name": name, "description": tool.get("description") or "", "parameters": parameters}
        tools[name] = {"type": "function", "function": described}
    choice = body.tool_choice
    if isinstance(choice, dict):
        if choice.get("type") == "allowed_tools":
            allowed = [one.get("name") for one in choice.get("tools") or () if isinstance(one, dict)]
            tools = {name: tool for name, tool in tools.items() if name in allowed}
            choice = choice.get("mode", "auto")
        elif choice.get("type") == "function":
            choice = str(choice.get("name"))
            if choice not in tools:
                raise UserError(f"tool_choice names {choice[:80]!r}, which is not among the tools.")
            return tuple(tools.values()), choice
    if choice not in ("auto", "none", "required"):
        raise UserError("tool_choice is auto, none, required, a function or allowed_tools.")
    if choice == "required" and not tools:
        raise UserError("tool_choice is required, but there are no tools.")
    return tuple(tools.values()), choice


def _current(messages: Sequence[Message]) -> list[Message]:
    """Without the thoughts before the last question."""
    last = max((at for at, message in enumerate(messages) if message.role == "user"), default=0)
    return [replace(m, reasoning=None) if at < last else m for at, m in enumerate(messages)]


def messages_of(items: Sequence[Item], earlier: Sequence[Message] = ()) -> list[Message]:
    """Items as messages: a thought, a text and calls of one turn become one message. Raises UserError."""
    turns = _Turns({call["id"]: call["function"]["name"] for m in earlier for call in m.tool_calls})
    for at, item in enumerate(items):
        where, kind = f"input[{at}]", item.get("type") or "message"
        if not isinstance(kind, str) or kind not in _ITEMS:
            raise UserError(f"{where}: items of type {str(kind)[:40]!r} are not known here.")
        _ITEMS[kind](turns, item, where)
    turns.close()
    return turns.messages


@dataclass
class _Turns:
    """Messages so far, and the assistant's turn that is being put together."""

    names: dict[str, str]  # of the functions, by the calls' ids
    messages: list[Message] = field(default_factory=list)
    turn: Message | None = None
    calls: list[Mapping[str, Any]] = field(default_factory=list)  # of the turn

    def message(self, item: Item, where: str) -> None:
        role, text = item.get("role"), text_of(item.get("content"), where)
        if role == "assistant":
            if self.turn is not None and (self.turn.content or self.calls):
                self.close()
            self.turn = replace(self.turn or Message("assistant", ""), content=text)
            return
        if role not in ("user", "system", "developer"):
            raise UserError(f"{where}: role is user, assistant, system or developer.")
        self.close()
        self.messages.append(Message("system" if role == "developer" else role, text))

    def reasoning(self, item: Item, where: str) -> None:
        self.close()
        text = text_of(item.get("content") or [], f"{where}.content")
        self.turn = Message("assistant", "", reasoning=text or None)

    def call(self, item: Item, where: str) -> None:
        name, arguments, ident = (item.get(key) for key in ("name", "arguments", "call_id"))
        if not (isinstance(name, str) and isinstance(arguments, str) and isinstance(ident, str)):
            raise UserError(f"{where}: a function_call has the texts `call_id`, `name` and `arguments`.")
        call = {"id": ident, "type": "function", "function": {"name": name, "arguments": arguments}}
        self.names[ident] = name
        self.turn = self.turn or Message("assistant", "")
        self.calls.append(call)

    def output(self, item: Item, where: str) -> None:
        self.close()
        ident = item.get("call_id")
        if not isinstance(ident, str) or ident not in self.names:
            raise UserError(f"{where}: no function_call before it has its call_id {str(ident)[:80]!r}.")
        text = text_of(item.get("output"), f"{where}.output")
        self.messages.append(Message("tool", text, name=self.names[ident], tool_call_id=ident))

    def close(self) -> None:
        if self.turn is not None and (self.turn.content or self.calls or self.turn.reasoning):
            self.messages.append(replace(self.turn, tool_calls=tuple(self.calls)))
        self.turn, self.calls = None, []


_ITEMS: dict[str, Callable[[_Turns, Item, str], None]] = {
    "message": _Turns.message,
    "reasoning": _Turns.reasoning,
    "function_call": _Turns.call,
    "function_call_output": _Turns.output,
}
_PARTS = {"input_text": "text", "output_text": "text", "reasoning_text": "text", "text": "text", "refusal": "refusal"}


def text_of(content: Any, where: str) -> str:
    """A text, or a list of texts in parts. Raises UserError: pictures, sounds and files are not read."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise UserError(f"{where}: content is a text, or a list of parts.")
    texts = []
    for part in content:
        kind = str(part.get("type")) if isinstance(part, dict) else "none"
        text = part.get(_PARTS[kind]) if kind in _PARTS else None
        if not isinstance(text, str):
            raise UserError(f"{where}: this model reads text only, in parts of type input_text; not {kind[:40]!r}.")
        texts.append(text)
    return "\n".join(texts)


__all__ = ["Create", "Item", "Reasoning", "ask_of", "messages_of", "text_of"]
