"""Anthropic's Messages: a request becomes an Ask, events become blocks that grow.

`Create` is the request, `ask_of` reads it, `Telling` writes the answer: streamed or not it is the same object that is
told, so both end in the same message. Where it differs from Anthropic's own:

- budget_tokens may be any number from 1 (theirs is 1024 and up): small models think shortly. It is kept exactly.
- Without `thinking` the model does as it would: a reasoning model thinks. {"type": "disabled"} stops it. For one that
  does not think {"type": "enabled"} is refused, as theirs is.
- A thinking block's signature is the SHA-256 of its text: it shows whether a block was changed. It is not checked, as
  whoever holds the conversation may write what they like into it.
- redacted_thinking cannot be read here and is left out. With display "omitted" the thinking is empty, and lost.
- Temperatures up to 2; `seed`, `min_p`, `min_thinking_tokens`, `votes` and `cache_salt` are added.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Any, Literal

from fastapi import APIRouter
from fastapi.requests import Request
from pydantic import Field
from starlette.responses import Response

from mull.serve.dialogue import Ask, Dialogue, Event, a_name, a_seed
from mull.serve.errors import ApiError, noted, refused
from mull.serve.gate import Visit, visit_of
from mull.serve.openai import dumps, reply
from mull.serve.openai_asks import Loose, Many, Seed, Shape, Tokens
from mull.serve.sse import streamed, unless_gone
from mull.types import Completion, Grammar, Message, Sampling, UserError

Block = Mapping[str, Any]


class Thinking(Shape):
    type: Literal["enabled", "adaptive", "disabled", "between_tools"]
    budget_tokens: Tokens | None = None
    display: Literal["summarized", "omitted"] | None = None


class OutputFormat(Loose):
    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")


class OutputConfig(Shape):
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: OutputFormat | None = None


class ToolChoice(Shape):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool = False


class Turn(Loose):
    role: Literal["user", "assistant", "system"]
    content: str | Many[dict[str, Any]]


class Count(Shape):
    """POST /v1/messages/count_tokens: what decides a prompt."""

    model: str | None = None
    messages: Many[Turn] = Field(min_length=1, max_length=100_000)
    system: str | Many[dict[str, Any]] | None = None
    thinking: Thinking | None = None
    tools: Many[dict[str, Any]] | None = None
    tool_choice: ToolChoice | None = None
    output_config: OutputConfig | None = None
    # read, and of no effect here
    cache_control: dict[str, Any] | None = None
    context_management: dict[str, Any] | None = None
    speed: str | None = None
    user_profile_id: str | None = None
    workspace_id: str | None = None
    # read to be refused
    mcp_servers: list[Any] | None = None
    container: Any = None


class Create(Count):
    """POST /v1/messages."""

    max_tokens: Tokens
    stop_sequences: Many[str] | None = None
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0, le=1 << 31)
    stream: bool | None = None
    # beyond Anthropic's
    seed: Seed | None = None
    min_p: float | None = Field(None, ge=0, le=1)
    min_thinking_tokens: int | None = Field(None, ge=0, le=1 << 31)
    votes: int | None = Field(None, ge=1, le=128)
    cache_salt: str | None = Field(None, max_length=512)
    # read, and of no effect here
    metadata: dict[str, Any] | None = None
    service_tier: str | None = None
    inference_geo: str | None = None
    diagnostics: dict[str, Any] | None = None


def ask_of(body: Count) -> Ask:
    """What is asked, or would be. Raises UserError."""
    if body.mcp_servers or body.container:
        raise UserError("There are no MCP servers and containers here: this server runs no tools, clients do.")
    messages = messages_of(body.messages)
    if body.system:
        messages.insert(0, Message("system", text_of(body.system, "system")))
    if messages[-1].role == "assistant":
        raise UserError("This model does not support assistant message prefill: the last message is to be a user's.")
    tools, choice = _tools(body)
    effort = body.output_config.effort if body.output_config is not None else None
    sampling = Sampling(thinking=_thinks(body, messages))
    alone = body.tool_choice is not None and body.tool_choice.disable_parallel_tool_use
    ask = Ask(
        messages=tuple(messages), sampling=sampling, effort=effort, tools=tools, tool_choice=choice, parallel=not alone
    )  # fmt: skip
    if not isinstance(body, Create):
        return ask
    sampling = _sampling(body, sampling)
    if tools and choice != "none" and sampling.grammar is not None:
        raise refused(
            "An answer that must have a form cannot call tools: tool_choice none, or no output_config.format."
        )
    return replace(ask, sampling=sampling, votes=body.votes or 1, salt=body.cache_salt or "")


def _thinks(body: Count, messages: Sequence[Message]) -> bool:
    if body.thinking is None:
        return True
    if body.thinking.type == "between_tools":
        return messages[-1].role == "tool"
    return body.thinking.type != "disabled"


def _sampling(body: Create, plain: Sampling) -> Sampling:
    given: dict[str, Any] = {
        "max_tokens": body.max_tokens, "temperature": body.temperature, "top_p": body.top_p, "top_k": body.top_k,
        "min_p": body.min_p, "seed": a_seed() if body.seed is None else body.seed, "thinking_tokens": _budget(body),
        "min_thinking_tokens": body.min_thinking_tokens,
    }  # fmt: skip
    if "" in (body.stop_sequences or ()):
        raise refused("stop_sequences: an empty text would stop every answer before it begins.", "stop_sequences")
    said = {name: value for name, value in given.items() if value is not None}
    wanted = body.output_config.format if body.output_config is not None else None
    grammar = Grammar("json_schema", json.dumps(wanted.schema_)) if wanted is not None else None
    return replace(plain, **said, stop=tuple(body.stop_sequences or ()), grammar=grammar)


def _budget(body: Create) -> int | None:
    thinking = body.thinking
    if thinking is None or thinking.type != "enabled":
        if thinking is not None and thinking.budget_tokens is not None:
            raise UserError(f"thinking.budget_tokens goes with type enabled, not with {thinking.type}.")
        return None
    if thinking.budget_tokens is None:
        raise UserError("thinking of type enabled needs `budget_tokens`; type adaptive has none.")
    if (body.min_thinking_tokens or 0) > thinking.budget_tokens:
        raise UserError("min_thinking_tokens is more than thinking.budget_tokens.")
    if thinking.budget_tokens >= body.max_tokens:
        raise UserError("`max_tokens` must be greater than `thinking.budget_tokens`: thoughts count towards it.")
    return thinking.budget_tokens


def _tools(body: Count) -> tuple[tuple[Mapping[str, Any], ...], str]:
    """(tools as chat completions have them, tool_choice as Ask has it)."""
    tools: dict[str, Mapping[str, Any]] = {}
    for at, tool in enumerate(body.tools or ()):
        if tool.get("type") not in (None, "custom"):
            raise UserError(f"tools[{at}]: there are only the client's own tools here, no {str(tool['type'])[:40]!r}.")
        name, schema = tool.get("name"), tool.get("input_schema")
        if not isinstance(name, str) or not name or not isinstance(schema, dict):
            raise UserError(f"tools[{at}] needs a `name`, and an `input_schema` that is a JSON schema.")
        if name in tools:
            raise UserError(f"Two tools are named {name[:64]!r}.")
        described = {"name": name, "description": tool.get("description") or "", "parameters": schema}
        tools[name] = {"type": "function", "function": described}
    choice = body.tool_choice or ToolChoice(type="auto")
    if choice.type == "tool" and choice.name not in tools:
        raise UserError(f"tool_choice names {choice.name!r}, which is not among the tools.")
    if choice.type == "any" and not tools:
        raise UserError("tool_choice is any, but there are no tools.")
    said = {"auto": "auto", "none": "none", "any": "required", "tool": choice.name or ""}
    return tuple(tools.values()), said[choice.type]


def messages_of(turns: Sequence[Turn]) -> list[Message]:
    """Turns as messages: results of tools become messages of their own, turns of one role that follow each other one.

    Raises UserError.
    """
    said = _Said()
    for at, turn in enumerate(turns):
        blocks = turn.content if isinstance(turn.content, list) else [{"type": "text", "text": turn.content}]
        for number, block in enumerate(blocks):
            where, kind = f"messages[{at}].content[{number}]", block.get("type")
            reader = _BLOCKS.get((turn.role, kind)) if isinstance(kind, str) else None
            if reader is None:
                why = "this model reads text only" if kind in ("image", "document") else f"not known of {turn.role}"
                raise UserError(f"{where}: blocks of type {str(kind)[:40]!r} cannot be given: {why}.")
            reader(said, turn.role, block, where)
    said.close()
    if not said.messages:
        raise UserError("messages: all of them are empty.")
    return said.messages


@dataclass
class _Said:
    """Messages so far, and the one that is being put together."""

    messages: list[Message] = field(default_factory=list)
    names: dict[str, str] = field(default_factory=dict)  # of the tools, by the calls' ids
    role: str = ""
    texts: list[str] = field(default_factory=list)
    thoughts: list[str] = field(default_factory=list)
    calls: list[Mapping[str, Any]] = field(default_factory=list)

    def goes_on(self, role: str) -> None:
        """What comes is the message's that is being put together, if that is of `role`."""
        if role != self.role:
            self.close()
            self.role = role

    def close(self) -> None:
        if self.role:
            thought = "".join(self.thoughts) or None
            self.messages.append(Message(self.role, "\n".join(self.texts), thought, tuple(self.calls)))
        self.role, self.texts, self.thoughts, self.calls = "", [], [], []

    def text(self, role: str, block: Block, where: str) -> None:
        text = block.get("text")
        if not isinstance(text, str):
            raise UserError(f"{where}: a text block has the text `text`.")
        if text:
            self.goes_on(role)
            self.texts.append(text)

    def thinking(self, role: str, block: Block, where: str) -> None:
        thought = block.get("thinking")
        if not isinstance(thought, str):
            raise UserError(f"{where}: a thinking block has the text `thinking`.")
        if thought:
            self.goes_on(role)
            self.thoughts.append(thought)

    def redacted(self, role: str, block: Block, where: str) -> None:
        """Cannot be read here."""

    def use(self, role: str, block: Block, where: str) -> None:
        ident, name, given = (block.get(key) for key in ("id", "name", "input"))
        if not (isinstance(ident, str) and isinstance(name, str) and isinstance(given, dict)):
            raise UserError(f"{where}: a tool_use block has the texts `id` and `name`, and the object `input`.")
        function = {"name": name, "arguments": json.dumps(given, ensure_ascii=False)}
        call = {"id": ident, "type": "function", "function": function}
        self.names[ident] = name
        self.goes_on(role)
        self.calls.append(call)

    def result(self, role: str, block: Block, where: str) -> None:
        ident = block.get("tool_use_id")
        if not isinstance(ident, str) or ident not in self.names:
            raise UserError(f"{where}: no tool_use before it has the id {str(ident)[:80]!r}.")
        text = text_of(block.get("content") or "", f"{where}.content")
        text = f"Error: {text}" if block.get("is_error") else text
        self.close()
        self.messages.append(Message("tool", text, name=self.names[ident], tool_call_id=ident))


_BLOCKS: dict[tuple[str, str], Callable[[_Said, str, Block, str], None]] = {
    ("user", "text"): _Said.text,
    ("user", "tool_result"): _Said.result,
    ("system", "text"): _Said.text,
    ("assistant", "text"): _Said.text,
    ("assistant", "thinking"): _Said.thinking,
    ("assistant", "redacted_thinking"): _Said.redacted,
    ("assistant", "tool_use"): _Said.use,
}


def text_of(content: Any, where: str) -> str:
    """A text, or a list of text blocks. Raises UserError: pictures and documents are not read."""
    if isinstance(content, str):
        return content
    texts = []
    for block in content if isinstance(content, list) else [None]:
        text = block.get("text") if isinstance(block, dict) and block.get("type") == "text" else None
        if not isinstance(text, str):
            raise UserError(f"{where}: this model reads text only: a text, or blocks of type text.")
        texts.append(text)
    return "\n".join(texts)


class Telling:
    """A message as it grows. `hear` events; what is to be sent then is what the methods return, as SSE frames."""

    def __init__(self, body: Create, model: str, seed: int = 0, streaming: bool = True):
        self.streaming = streaming
        self.stops = frozenset(body.stop_sequences or ())
        self.most = body.max_tokens
        self.omitted = body.thinking is not None and body.thinking.display == "omitted"
        self.message: dict[str, Any] = {
            "id": a_name("msg_"), "type": "message", "role": "assistant", "model": model, "content": [],
            "stop_reason": None, "stop_sequence": None, "usage": {}, "seed": seed,
        }  # fmt: skip
        self._frames: list[bytes] = []
        self._texts: list[str] = []
        self._open = ""  # the type of the block that is being told

    def begin(self, prompt_tokens: int) -> list[bytes]:
        self.message["usage"] = {"input_tokens": prompt_tokens, "output_tokens": 0}
        self._say("message_start", message=self.message)
        self._say("ping")
        return self._flush()

    def hear(self, event: Event) -> list[bytes]:
        if event.reasoning:
            self._grow("thinking", event.reasoning)
        if event.text:
            self._grow("text", event.text)
        if event.tool is not None:
            self._close()
            block = {"type": "tool_use", "id": event.tool.id, "name": event.tool.name, "input": {}}
            self._begin(block)
            self._delta("input_json_delta", "partial_json", event.tool.arguments)
            block["input"] = json.loads(event.tool.arguments)
            self._close()
        return self._flush()

    def end(self, finish: str, completion: Completion, usage: dict[str, Any]) -> list[bytes]:
        """`usage` as the message has it."""
        self._close()
        self.message |= {"stop_reason": self._reason(finish, completion), "usage": usage}
        stopped = completion.stopped_by
        if self.message["stop_reason"] == "stop_sequence":
            self.message["stop_sequence"] = stopped
        stop = {name: self.message[name] for name in ("stop_reason", "stop_sequence")}
        self._say("message_delta", delta=stop, usage=usage)
        self._say("message_stop")
        return self._flush()

    def _reason(self, finish: str, completion: Completion) -> str:
        if finish == "tool_calls":
            return "tool_use"
        if finish == "length":
            full = len(completion.tokens) < self.most
            return "model_context_window_exceeded" if full else "max_tokens"
        return "stop_sequence" if completion.stopped_by in self.stops else "end_turn"

    def _say(self, kind: str, **fields: Any) -> None:
        if self.streaming:
            self._frames.append(frame(kind, **fields))

    def _flush(self) -> list[bytes]:
        frames, self._frames = self._frames, []
        return frames

    def _begin(self, block: dict[str, Any]) -> None:
        self.message["content"].append(block)
        self._open = block["type"]
        self._say("content_block_start", index=len(self.message["content"]) - 1, content_block=block)

    def _delta(self, kind: str, name: str, piece: str) -> None:
        index = len(self.message["content"]) - 1
        self._say("content_block_delta", index=index, delta={"type": kind, name: piece})

    def _grow(self, kind: Literal["text", "thinking"], piece: str) -> None:
        if self._open != kind:
            self._close()
            self._begin({"type": kind, kind: ""} | ({"signature": ""} if kind == "thinking" else {}))
        self._texts.append(piece)
        if kind == "text" or not self.omitted:
            self._delta(f"{kind}_delta", kind, piece)

    def _close(self) -> None:
        if not self._open:
            return
        block, text = self.message["content"][-1], "".join(self._texts)
        if self._open == "thinking":
            block["thinking"] = "" if self.omitted else text
            block["signature"] = sha256(text.encode()).hexdigest()
            self._delta("signature_delta", "signature", block["signature"])
        elif self._open == "text":
            block["text"] = text
        self._say("content_block_stop", index=len(self.message["content"]) - 1)
        self._open, self._texts = "", []


def frame(kind: str, **fields: Any) -> bytes:
    return f"event: {kind}\ndata: {dumps({'type': kind, **fields})}\n\n".encode()


class Answer:
    """One answer, told at once or as it comes."""

    def __init__(self, body: Create, ask: Ask, visit: Visit):
        self.ask, self.visit = ask, visit
        self.telling = Telling(body, visit.dialogue.name, ask.sampling.seed, bool(body.stream))

    async def frames(self) -> AsyncGenerator[bytes]:
        last = None
        async with aclosing(self.visit.answer(self.ask)) as events:
            async for event in events:
                frames = [] if last else self.telling.begin(event.prompt)
                last = event
                if frames := frames + self.telling.hear(event):
                    yield b"".join(frames)
        assert last is not None and last.finish is not None and last.completion is not None
        yield b"".join(self.telling.end(last.finish, last.completion, usage_of(self.visit)))

    async def whole(self) -> dict[str, Any]:
        async for _ in self.frames():
            pass
        return self.telling.message

    def failed(self, error: Exception) -> bytes:
        """The answer broke off behind the head of the stream."""
        body = noted(error, self.visit.id).body("anthropic", self.visit.id)
        return frame("error", **{name: value for name, value in body.items() if name != "type"})


def usage_of(visit: Visit) -> dict[str, Any]:
    """Of an answer that has ended. input_tokens are those that were not found in the cache, as Anthropic counts."""
    spent = visit.spent
    told: dict[str, Any] = {
        "input_tokens": spent.prompt_tokens - spent.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": spent.cached_tokens,
        "output_tokens": spent.completion_tokens,
        "output_tokens_details": {"thinking_tokens": spent.reasoning_tokens},
    }
    return told if visit.usd is None else told | {"cost_usd": visit.usd}


def routes(dialogue: Dialogue) -> APIRouter:
    router = APIRouter()

    def asked(body: Count) -> Ask:
        if body.model and body.model != dialogue.name:
            why = f"There is no model {body.model[:80]!r} here; this server has {dialogue.name!r}."
            raise ApiError(404, why, "model", "model_not_found")
        if body.thinking is not None and body.thinking.type == "enabled" and not dialogue.chat.thinks:
            raise refused("This model does not think: leave `thinking` out, or give type disabled.", "thinking")
        return ask_of(body)

    @router.post("/v1/messages")
    async def create(body: Create, request: Request) -> Response:
        visit = visit_of(request.scope)
        answer = Answer(body, asked(body), visit)
        if body.stream:
            return await streamed(request, answer.frames(), answer.failed, ping=frame("ping"))
        return reply(await unless_gone(request, answer.whole()))

    @router.post("/v1/messages/count_tokens")
    async def count(body: Count, request: Request) -> dict[str, Any]:
        return {"input_tokens": await visit_of(request.scope).counted(asked(body))}

    return router


__all__ = ["Answer", "Count", "Create", "Telling", "ask_of", "messages_of", "routes", "text_of"]
