"""OpenAI's Responses: events become items that grow.

`Telling` writes the answer: streamed or not it is the same object that is told, so both end in the same response. What
`store` keeps (the default, as with OpenAI) lies in a bounded `Shelf` in memory, each key's apart from the others', and
is gone when the server ends; `store=false` keeps nothing.

Thoughts are shown in full: a reasoning item has `content`, and never a summary or encrypted content. A client gives
the items back as they came.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter
from fastapi.requests import Request
from starlette.responses import Response

from mull.serve.dialogue import Ask, Dialogue, Event, Scored, a_name
from mull.serve.errors import ApiError, noted
from mull.serve.gate import Visit, visit_of
from mull.serve.openai import dumps, reply
from mull.serve.responses_asks import Create, Item, Reasoning, ask_of, messages_of
from mull.serve.sse import streamed, unless_gone
from mull.serve.tokens import Spelling
from mull.types import Message

STORED = 1024  # responses that are kept of each owner, at most
STORED_CHARACTERS = 1 << 26  # of their conversations together


@dataclass(frozen=True)
class Stored:
    """A response that is kept, and the conversation up to its end, without its instructions."""

    response: dict[str, Any]
    messages: tuple[Message, ...]
    size: int


class Shelf:
    """Responses of `store`: of each owner the newest `count`, and of at most `characters` in all.

    Where that is too much, whoever has most of it loses the oldest: nobody's can be driven out by another's.
    """

    def __init__(self, count: int = STORED, characters: int = STORED_CHARACTERS):
        self.count, self.characters = count, characters
        self._kept: dict[str, dict[str, Stored]] = {}  # by owner, the oldest first
        self._sizes: Counter[str] = Counter()

    def __len__(self) -> int:
        return sum(map(len, self._kept.values()))

    @property
    def size(self) -> int:
        return self._sizes.total()

    def put(self, owner: str, response: dict[str, Any], messages: tuple[Message, ...]) -> None:
        size = len(json.dumps(response)) + sum(
            len(m.content) + len(m.reasoning or "") + len(json.dumps(m.tool_calls)) for m in messages
        )
        kept = self._kept.setdefault(owner, {})
        kept[response["id"]] = Stored(response, messages, size)
        self._sizes[owner] += size
        if len(kept) > self.count:
            self._forget(owner, next(iter(kept)))
        while self.size > self.characters:
            most = self._sizes.most_common(1)[0][0]
            self._forget(most, next(iter(self._kept[most])))

    def get(self, owner: str, name: str) -> Stored:
        """Raises ApiError: also where it is another key's."""
        stored = self._kept.get(owner, {}).get(name)
        if stored is None:
            why = f"There is no response {name[:80]!r}; the newest {self.count} are kept, until the server ends."
            raise ApiError(404, why, "previous_response_id", "previous_response_not_found")
        return stored

    def delete(self, owner: str, name: str) -> None:
        """Raises ApiError."""
        self.get(owner, name)
        self._forget(owner, name)

    def _forget(self, owner: str, name: str) -> None:
        self._sizes[owner] -= self._kept[owner].pop(name).size
        if not self._kept[owner]:
            del self._kept[owner], self._sizes[owner]


class Telling:
    """A response as it grows: `hear` events. What is to be sent then is what the methods return, as SSE frames.

    `spell` writes log-probabilities, where they are asked for.
    """

    def __init__(
        self, body: Create, model: str, seed: int = 0, spell: Callable[[Scored], dict[str, Any]] | None = None,
        streaming: bool = True,
    ):  # fmt: skip
        self.body, self.spell, self.streaming = body, spell, streaming
        self.response = _response(body, model, seed)
        self.sent = 0
        self._frames: list[bytes] = []
        self._texts: list[str] = []
        self._logprobs: list[dict[str, Any]] = []

    def begin(self) -> list[bytes]:
        self._say("response.created", response=self.response)
        self._say("response.in_progress", response=self.response)
        return self._flush()

    def hear(self, event: Event) -> list[bytes]:
        if event.reasoning:
            self._grow("reasoning", event.reasoning, [])
        if event.text:
            self._grow("message", event.text, self._scores(event))
        if event.tool is not None:
            self._call(event)
        return self._flush()

    def end(self, finish: str, usage: dict[str, Any]) -> list[bytes]:
        """`usage` as the response has it."""
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
        """The answer broke off behind the head of the stream."""
        if not self.sent:
            self._frames = self.begin()
        self._close("incomplete")
        self.response |= {"status": "failed", "error": {"code": "server_error", "message": why}}
        self._say("response.failed", response=self.response)
        return self._flush()

    def messages(self) -> list[Message]:
        """What was answered, for the next turn."""
        return messages_of(self.response["output"])

    def _say(self, kind: str, **fields: Any) -> None:
        if self.streaming:
            data = dumps({"type": kind, "sequence_number": self.sent, **fields})
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

    def _scores(self, event: Event) -> list[dict[str, Any]]:
        return [] if self.spell is None else [self.spell(one) for one in event.logprobs if not one.thought]

    def _grow(self, kind: str, piece: str, logprobs: list[dict[str, Any]]) -> None:
        item = self._item
        if item is None or item["type"] != kind:
            self._close("completed")
            item = {"id": a_name("rs_" if kind == "reasoning" else "msg_"), "type": kind, "status": "in_progress"}
            item |= {"summary": [], "content": []} if kind == "reasoning" else {"role": "assistant", "content": []}
            self._open(item)
            self._say("response.content_part.added", **self._at(item), part=_part(kind, "", []))
        self._texts.append(piece)
        self._logprobs += logprobs
        if kind == "reasoning":
            self._say("response.reasoning_text.delta", **self._at(item), delta=piece)
        else:
            self._say("response.output_text.delta", **self._at(item), delta=piece, logprobs=logprobs)

    def _call(self, event: Event) -> None:
        assert event.tool is not None
        self._close("completed")
        item = {"id": a_name("fc_"), "type": "function_call", "status": "in_progress", "call_id": event.tool.id}
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


def _part(kind: str, text: str, logprobs: list[dict[str, Any]]) -> dict[str, Any]:
    if kind == "reasoning":
        return {"type": "reasoning_text", "text": text}
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}


def _response(body: Create, model: str, seed: int) -> dict[str, Any]:
    """As it is before anything was said: OpenAI repeats the request in it."""
    reasoning = body.reasoning or Reasoning()
    return {
        "id": a_name("resp_"),
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
        "seed": seed,
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


class Answer:
    """One answer, told at once or as it comes, and kept where it is to be."""

    def __init__(self, body: Create, ask: Ask, visit: Visit, shelf: Shelf):
        self.ask, self.visit, self.shelf = ask, visit, shelf
        spell = _speller(visit.dialogue, ask.sampling.top_logprobs) if ask.logprobs else None
        self.telling = Telling(body, visit.dialogue.name, ask.sampling.seed, spell, bool(body.stream))

    async def frames(self) -> AsyncGenerator[bytes]:
        frames, finish = self.telling.begin(), "cancelled"
        async with aclosing(self.visit.answer(self.ask)) as events:
            async for event in events:
                finish = event.finish or finish
                frames += self.telling.hear(event)
                if frames:
                    yield b"".join(frames)
                frames = []
        frames = self.telling.end(finish, usage_of(self.visit))
        if self.telling.body.store is not False:
            spoken = self.ask.messages[1:] if self.telling.body.instructions else self.ask.messages
            self.shelf.put(owner(self.visit), self.telling.response, (*spoken, *self.telling.messages()))
        yield b"".join(frames)

    async def whole(self) -> dict[str, Any]:
        async for _ in self.frames():
            pass
        return self.telling.response

    def failed(self, error: Exception) -> bytes:
        return b"".join(self.telling.fail(noted(error, self.visit.id).message))


def _speller(dialogue: Dialogue, alternatives: int) -> Callable[[Scored], dict[str, Any]]:
    spelling = Spelling(dialogue.chat.tokenizer)

    def spelt(token: int, logprob: float) -> dict[str, Any]:
        said = spelling.scored(token, logprob)
        return said | {"bytes": said["bytes"] or []}

    def spell(one: Scored) -> dict[str, Any]:
        others = [spelt(token, logprob) for token, logprob in one.alternatives[:alternatives]]
        return spelt(one.token, one.logprob) | {"top_logprobs": others}

    return spell


def usage_of(visit: Visit) -> dict[str, Any]:
    """Of an answer that has ended."""
    spent = visit.spent
    told: dict[str, Any] = {
        "input_tokens": spent.prompt_tokens,
        "input_tokens_details": {"cached_tokens": spent.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": spent.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": spent.reasoning_tokens},
        "total_tokens": spent.prompt_tokens + spent.completion_tokens,
    }
    return told if visit.usd is None else told | {"cost_usd": visit.usd}


def owner(visit: Visit) -> str:
    """Whose responses are whose: a key's name, and what tells it from another that had the name before."""
    return f"{visit.who.name}\n{visit.who.salt}"


def routes(dialogue: Dialogue) -> APIRouter:
    router, shelf = APIRouter(), Shelf()

    def asked(body: Create, visit: Visit) -> Ask:
        if body.model and body.model != dialogue.name:
            why = f"There is no model {body.model[:80]!r} here; this server has {dialogue.name!r}."
            raise ApiError(404, why, "model", "model_not_found")
        if body.previous_response_id is None:
            return ask_of(body)
        return ask_of(body, shelf.get(owner(visit), body.previous_response_id).messages)

    @router.post("/v1/responses")
    async def create(body: Create, request: Request) -> Response:
        visit = visit_of(request.scope)
        answer = Answer(body, asked(body, visit), visit, shelf)
        if body.stream:
            return await streamed(request, answer.frames(), answer.failed)
        return reply(await unless_gone(request, answer.whole()))

    @router.post("/v1/responses/input_tokens")
    async def count(body: Create, request: Request) -> dict[str, Any]:
        visit = visit_of(request.scope)
        return {"object": "response.input_tokens", "input_tokens": await visit.counted(asked(body, visit))}

    @router.get("/v1/responses/{name}")
    async def retrieve(name: str, request: Request) -> Response:
        return reply(shelf.get(owner(visit_of(request.scope)), name).response)

    @router.delete("/v1/responses/{name}")
    async def delete(name: str, request: Request) -> dict[str, Any]:
        shelf.delete(owner(visit_of(request.scope)), name)
        return {"id": name, "object": "response", "deleted": True}

    return router


__all__ = ["Answer", "Shelf", "Stored", "Telling", "routes"]
