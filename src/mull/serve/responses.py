"""OpenAI's Responses: a request becomes an Ask, events become items that grow.

`Create` is the request, `ask_of` reads it, `Telling` writes the answer: streamed or not it is the same object that is
told, so both end in the same response. What `store` keeps (the default, as with OpenAI) lies in a bounded `Shelf` in
memory, each key's apart from the others', and is gone when the server ends; `store=false` keeps nothing.

Thoughts are shown in full: a reasoning item has `content`, and never a summary or encrypted content. A client gives
the items back as they came.
"""

from __future__ import annotations

import json
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from mull.serve.dialogue import Ask, Event
from mull.types import Grammar, Message, Sampling, UserError

Item = Mapping[str, Any]
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
STORED = 1024  # responses that are kept, at most
STORED_CHARACTERS = 1 << 26  # of their conversations together


class Reasoning(BaseModel):
    model_config = ConfigDict(extra="forbid")
    effort: Effort | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None
    generate_summary: Literal["auto", "concise", "detailed"] | None = None
    context: Literal["auto", "current_turn", "all_turns"] | None = None
    mode: Literal["standard"] | None = None


class Format(BaseModel):
    type: Literal["text", "json_object", "json_schema"] = "text"
    name: str | None = None
    description: str | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: bool | None = None


class TextOptions(BaseModel):
    model_config = ConfigDict(extra="forbid")
    format: Format = Format()
    verbosity: Literal["low", "medium", "high"] | None = None


class Create(BaseModel):
    """POST /v1/responses. The second half is what this server adds, and what it reads and does not need."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)
    model: str
    input: str | list[dict[str, Any]]
    instructions: str | None = None
    max_output_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    reasoning: Reasoning | None = None
    text: TextOptions = TextOptions()
    tools: list[dict[str, Any]] = []
    tool_choice: str | dict[str, Any] = "auto"
    parallel_tool_calls: bool | None = None
    stream: bool | None = None
    store: bool | None = None
    previous_response_id: str | None = None
    metadata: dict[str, str] | None = Field(None, max_length=16)
    include: list[str] | None = None
    truncation: Literal["auto", "disabled"] | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    # beyond OpenAI's
    seed: int | None = None
    top_k: int | None = Field(None, ge=0)
    min_p: float | None = Field(None, ge=0, le=1)
    stop: str | list[str] | None = None
    thinking_token_budget: int | None = Field(None, ge=0)
    min_thinking_tokens: int | None = Field(None, ge=0)
    votes: int | None = Field(None, ge=1)
    cache_salt: str | None = None
    # read, and of no effect here
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    prompt_cache_options: dict[str, Any] | None = None
    service_tier: str | None = None
    stream_options: dict[str, Any] | None = None
    max_tool_calls: int | None = None  # counts OpenAI's own tools, of which there are none
    context_management: list[dict[str, Any]] | None = None
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


@dataclass(frozen=True)
class Stored:
    """A response that is kept, and the conversation up to its end, without its instructions."""

    owner: str
    response: dict[str, Any]
    messages: tuple[Message, ...]
    size: int


class Shelf:
    """Responses of `store`, the newest `count` of them, and of at most `characters` in all. Forgets the oldest."""

    def __init__(self, count: int = STORED, characters: int = STORED_CHARACTERS):
        self.count, self.characters, self.size = count, characters, 0
        self._kept: OrderedDict[str, Stored] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def put(self, owner: str, response: dict[str, Any], messages: tuple[Message, ...]) -> None:
        size = len(json.dumps(response)) + sum(
            len(m.content) + len(m.reasoning or "") + len(json.dumps(m.tool_calls)) for m in messages
        )
        self._kept[response["id"]] = Stored(owner, response, messages, size)
        self.size += size
        while len(self._kept) > self.count or self.size > self.characters:
            self._forget(next(iter(self._kept)))

    def get(self, owner: str, name: str) -> Stored:
        """Raises LookupError, with a sentence: also where it is another key's."""
        stored = self._kept.get(name)
        if stored is None or stored.owner != owner:
            raise LookupError(f"Previous response with id {name[:80]!r} not found; the server keeps the latest only.")
        return stored

    def delete(self, owner: str, name: str) -> None:
        """Raises LookupError."""
        self.get(owner, name)
        self._forget(name)

    def _forget(self, name: str) -> None:
        self.size -= self._kept.pop(name).size


def ask_of(body: Create, earlier: Sequence[Message] = (), salt: str = "") -> Ask:
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
    effort = body.reasoning.effort if body.reasoning is not None else None
    return Ask(
        messages=tuple(messages), sampling=_sampling(body), votes=body.votes or 1, effort=effort, tools=tools,
        tool_choice=choice, salt=salt + (body.cache_salt or ""),
    )  # fmt: skip


def _sampling(body: Create) -> Sampling:
    given: dict[str, Any] = {
        "max_tokens": body.max_output_tokens, "temperature": body.temperature, "top_p": body.top_p,
        "top_k": body.top_k, "min_p": body.min_p, "seed": body.seed, "top_logprobs": body.top_logprobs,
        "thinking_tokens": body.thinking_token_budget, "min_thinking_tokens": body.min_thinking_tokens,
    }  # fmt: skip
    stop = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
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

    def message(self, item: Item, where: str) -> None:
        role, text = item.get("role"), text_of(item.get("content"), where)
        if role == "assistant":
            if self.turn is not None and (self.turn.content or self.turn.tool_calls):
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
        turn = self.turn or Message("assistant", "")
        self.turn = replace(turn, tool_calls=(*turn.tool_calls, call))

    def output(self, item: Item, where: str) -> None:
        self.close()
        ident = item.get("call_id")
        if not isinstance(ident, str) or ident not in self.names:
            raise UserError(f"{where}: no function_call before it has its call_id {str(ident)[:80]!r}.")
        text = text_of(item.get("output"), f"{where}.output")
        self.messages.append(Message("tool", text, name=self.names[ident], tool_call_id=ident))

    def close(self) -> None:
        if self.turn is not None and (self.turn.content or self.turn.tool_calls or self.turn.reasoning):
            self.messages.append(self.turn)
        self.turn = None


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
    return "\n\n".join(texts)


class Telling:
    """A response as it grows. `hear` events; what is to be sent then is what the three methods return, as SSE frames.

    `spell` writes an event's log-probabilities as OpenAI does; `cost` (usage as `serve.dialogue.usage` has it) is
    called once, at the end. Calls beyond the first are left out where parallel_tool_calls is false.
    """

    def __init__(
        self, body: Create, model: str, spell: Callable[[Event], list[dict[str, Any]]] | None = None,
        streaming: bool = True,
    ):  # fmt: skip
        self.body, self.spell, self.streaming = body, spell, streaming
        self.response = _response(body, model)
        self.sent = 0
        self._frames: list[bytes] = []
        self._texts: list[str] = []
        self._logprobs: list[dict[str, Any]] = []
        self._calls = 0

    def begin(self) -> list[bytes]:
        self._say("response.created", response=self.response)
        self._say("response.in_progress", response=self.response)
        return self._flush()

    def hear(self, event: Event) -> list[bytes]:
        if event.reasoning:
            self._grow("reasoning", event.reasoning, event)
        if event.text:
            self._grow("message", event.text, event)
        if event.tool is not None and (self._calls == 0 or self.body.parallel_tool_calls is not False):
            self._call(event)
        return self._flush()

    def end(self, finish: str, usage: dict[str, Any]) -> list[bytes]:
        """`usage` as the response has it (`usage_of`)."""
        cut = finish == "length"
        self._close("incomplete" if cut else "completed")
        self.response |= {"status": "incomplete" if cut else "completed", "usage": usage}
        if cut:
            self.response["incomplete_details"] = {"reason": "max_output_tokens"}
        else:
            self.response["completed_at"] = int(time.time())
        self._say(f"response.{self.response['status']}", response=self.response)
        return self._flush()

    def fail(self, why: str) -> list[bytes]:
        """The answer broke off behind its first frame."""
        self._close("incomplete")
        self.response |= {"status": "failed", "error": {"code": "server_error", "message": why}}
        self._say("response.failed", response=self.response)
        return self._flush()

    def messages(self) -> list[Message]:
        """What was answered, for the next turn."""
        return messages_of(self.response["output"])

    def _say(self, kind: str, **fields: Any) -> None:
        if self.streaming:
            data = json.dumps({"type": kind, "sequence_number": self.sent, **fields}, ensure_ascii=False)
            self._frames.append(f"event: {kind}\ndata: {data}\n\n".encode())
        self.sent += 1

    def _flush(self) -> list[bytes]:
        frames, self._frames = self._frames, []
        return frames

    @property
    def _item(self) -> dict[str, Any] | None:
        """That which is being told."""
        last = self.response["output"][-1:]
        return last[0] if last and last[0]["status"] == "in_progress" else None

    def _at(self, item: Item, part: bool = True) -> dict[str, Any]:
        where = {"item_id": item["id"], "output_index": len(self.response["output"]) - 1}
        return where | {"content_index": 0} if part else where

    def _open(self, item: dict[str, Any]) -> None:
        self.response["output"].append(item)
        self._say("response.output_item.added", output_index=len(self.response["output"]) - 1, item=item)

    def _grow(self, kind: str, piece: str, event: Event) -> None:
        item = self._item
        if item is None or item["type"] != kind:
            self._close("completed")
            item = {"id": _name("rs" if kind == "reasoning" else "msg"), "type": kind, "status": "in_progress"}
            item |= {"summary": [], "content": []} if kind == "reasoning" else {"role": "assistant", "content": []}
            self._open(item)
            self._say("response.content_part.added", **self._at(item), part=_part(kind, "", []))
        logprobs = self.spell(event) if self.spell is not None and kind == "message" else []
        self._texts.append(piece)
        self._logprobs += logprobs
        if kind == "reasoning":
            self._say("response.reasoning_text.delta", **self._at(item), delta=piece)
        else:
            self._say("response.output_text.delta", **self._at(item), delta=piece, logprobs=logprobs)

    def _call(self, event: Event) -> None:
        assert event.tool is not None
        self._close("completed")
        self._calls += 1
        item = {"id": _name("fc"), "type": "function_call", "status": "in_progress", "call_id": event.tool.id}
        item |= {"name": event.tool.name, "arguments": ""}
        self._open(item)
        arguments, where = event.tool.arguments, self._at(item, part=False)
        self._say("response.function_call_arguments.delta", **where, delta=arguments)
        self._say("response.function_call_arguments.done", **where, name=event.tool.name, arguments=arguments)
        item["arguments"] = arguments
        self._close("completed")

    def _close(self, status: str) -> None:
        if (item := self._item) is None:
            return
        if item["type"] != "function_call":
            text, self._texts = "".join(self._texts), []
            logprobs, self._logprobs = self._logprobs, []
            part = _part(item["type"], text, logprobs)
            if item["type"] == "reasoning":
                self._say("response.reasoning_text.done", **self._at(item), text=text)
            else:
                self._say("response.output_text.done", **self._at(item), text=text, logprobs=logprobs)
            self._say("response.content_part.done", **self._at(item), part=part)
            item["content"] = [part]
        item["status"] = status
        self._say("response.output_item.done", output_index=len(self.response["output"]) - 1, item=item)


def _name(kind: str) -> str:
    return f"{kind}_{secrets.token_hex(16)}"


def _part(kind: str, text: str, logprobs: list[dict[str, Any]]) -> dict[str, Any]:
    if kind == "reasoning":
        return {"type": "reasoning_text", "text": text}
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}


def _response(body: Create, model: str) -> dict[str, Any]:
    """As it is before anything was said: OpenAI repeats the request in it."""
    reasoning = body.reasoning or Reasoning()
    return {
        "id": _name("resp"),
        "object": "response",
        "created_at": int(time.time()),
        "completed_at": None,
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "metadata": body.metadata or {},
        "model": model,
        "output": [],
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": body.previous_response_id,
        "reasoning": {"effort": reasoning.effort, "summary": None, "context": reasoning.context},
        "service_tier": "default",
        "store": body.store is not False,
        "temperature": body.temperature,
        "text": body.text.model_dump(by_alias=True, exclude_none=True),
        "tool_choice": body.tool_choice,
        "tools": body.tools,
        "top_logprobs": body.top_logprobs or 0,
        "top_p": body.top_p,
        "truncation": body.truncation or "disabled",
        "usage": None,
        "user": body.user,
    }


__all__ = ["Create", "Shelf", "Stored", "Telling", "ask_of", "messages_of", "text_of"]
