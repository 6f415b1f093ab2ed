"""OpenAI's Chat Completions, for any client of them.

What the API does not have, and clients that do not look for it never see: `reasoning_content` and `reasoning` (the same
text under both names) beside content, `seed` (the one drawn where none was given), `votes` where there was a vote, and
`usage.cost_usd` where the server has a price.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter
from fastapi.requests import Request
from starlette.responses import Response

from mull.serve.dialogue import Ask, Choice, Dialogue, Event, Scored, ToolCall, a_name, gather
from mull.serve.errors import noted, refused
from mull.serve.gate import Visit, visit_of
from mull.serve.openai_asks import ChatRequest, StreamOptions
from mull.serve.sse import streamed, unless_gone
from mull.serve.tokens import Spelling

DONE = b"data: [DONE]\n\n"


def dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def reply(value: Mapping[str, Any]) -> Response:
    return Response(dumps(value).encode(), media_type="application/json")


def frame(value: Mapping[str, Any]) -> bytes:
    return b"data: " + dumps(value).encode() + b"\n\n"


def usage_of(visit: Visit, completion_tokens: int | None = None) -> dict[str, Any]:
    """Of an answer that has ended, or of one under way with so many tokens."""
    spent = visit.spent
    made = spent.completion_tokens if completion_tokens is None else completion_tokens
    told: dict[str, Any] = {
        "prompt_tokens": spent.prompt_tokens,
        "completion_tokens": made,
        "total_tokens": spent.prompt_tokens + made,
        "prompt_tokens_details": {"cached_tokens": spent.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": spent.reasoning_tokens},
    }
    return told if visit.usd is None else told | {"cost_usd": visit.usd}


def failed(visit: Visit) -> Any:
    """What becomes of an error in the midst of a stream."""

    def told(error: Exception) -> bytes:
        return frame(noted(error, visit.id).body("openai", visit.id)) + DONE

    return told


def with_stream(stream: bool | None, options: StreamOptions | None) -> StreamOptions:
    if options is not None and not stream:
        raise refused("stream_options are for answers with stream: true.", "stream_options")
    return options or StreamOptions()


class ChatAnswer:
    """One answer, told at once or as it comes."""

    def __init__(self, body: ChatRequest, ask: Ask, visit: Visit):
        self.ask, self.visit = ask, visit
        self.options = with_stream(body.stream, body.stream_options)
        self.shows_thoughts = body.include_reasoning
        self.spelling = Spelling(visit.dialogue.chat.tokenizer)
        self.made: dict[int, int] = {}
        self.calls: dict[int, int] = {}
        self.head: dict[str, Any] = {
            "id": a_name("chatcmpl-"),
            "object": "chat.completion",
            "created": int(time.time()),
            "model": visit.dialogue.name,
            "system_fingerprint": visit.dialogue.fingerprint,
            "seed": ask.sampling.seed,
        }

    async def whole(self) -> dict[str, Any]:
        choices = await gather(self.visit.answer(self.ask))
        told = {**self.head, "choices": [self._choice(choice) for choice in choices], "usage": usage_of(self.visit)}
        if self.ask.votes > 1:
            told["votes"] = {"agreed": choices[0].agreed, "of": len(choices[0].drawn)}
        return told

    def _choice(self, choice: Choice) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": choice.text, "refusal": None}
        if choice.reasoning and self.shows_thoughts:
            message["reasoning_content"] = message["reasoning"] = choice.reasoning
        if choice.tools:
            message["content"] = choice.text or None
            message["tool_calls"] = [_call(call) for call in choice.tools]
        logprobs = self._logprobs(choice.logprobs) if self.ask.logprobs else None
        return {"index": choice.index, "message": message, "logprobs": logprobs, "finish_reason": choice.finish}

    async def frames(self) -> AsyncGenerator[bytes]:
        """Server-sent events. What is the same in all of them is written once: HTTP is to cost next to nothing."""
        head = dumps({**self.head, "object": "chat.completion.chunk"})[:-1]
        begin, usage = f'data: {head},"choices":[{{"index":', ',"usage":null' if self.options.include_usage else ""
        begun: set[int] = set()
        agreed, drawn = 0, 0
        async with aclosing(self.visit.answer(self.ask)) as events:
            async for event in events:
                self.made[event.index] = event.made
                text = ""
                if event.index not in begun:
                    begun.add(event.index)
                    text = f'{begin}{event.index},"delta":{{"role":"assistant","content":""}},"logprobs":null,'
                    text += f'"finish_reason":null}}]{usage}}}\n\n'
                if event.finish is not None:
                    agreed, drawn = event.agreed, len(event.drawn)
                if (delta := self._delta(event)) is None:
                    continue
                scored = dumps(self._logprobs(event.logprobs)) if event.logprobs else "null"
                finish = f'"{event.finish}"' if event.finish else "null"
                if self.options.continuous_usage_stats:
                    usage = f',"usage":{dumps(usage_of(self.visit, sum(self.made.values())))}'
                text += f'{begin}{event.index},"delta":{delta},"logprobs":{scored},'
                text += f'"finish_reason":{finish}}}]{usage}}}\n\n'
                yield text.encode()
        last: dict[str, Any] = {**self.head, "object": "chat.completion.chunk", "choices": []}
        if self.ask.votes > 1:
            last["votes"] = {"agreed": agreed, "of": drawn}
        if self.options.include_usage:
            last["usage"] = usage_of(self.visit)
        yield (frame(last) if len(last) > len(self.head) + 1 else b"") + DONE

    def _delta(self, event: Event) -> str | None:
        """As JSON; None for what the client is not to see."""
        if event.text:
            return f'{{"content":{dumps(event.text)}}}'
        if event.reasoning:
            text = dumps(event.reasoning)
            return f'{{"reasoning_content":{text},"reasoning":{text}}}' if self.shows_thoughts else None
        if event.tool is not None:
            at = self.calls.get(event.index, 0)
            self.calls[event.index] = at + 1
            return dumps({"tool_calls": [{"index": at, **_call(event.tool)}]})
        return "{}"

    def _logprobs(self, scored: Iterable[Scored]) -> dict[str, Any]:
        seen = [one for one in scored if self.shows_thoughts or not one.thought]
        return {"content": [self._scored(one) for one in seen], "refusal": None}

    def _scored(self, one: Scored) -> dict[str, Any]:
        others = one.alternatives[: self.ask.sampling.top_logprobs]
        return {
            **self.spelling.scored(one.token, one.logprob),
            "top_logprobs": [self.spelling.scored(token, logprob) for token, logprob in others],
        }


def _call(call: ToolCall) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def routes(dialogue: Dialogue) -> APIRouter:
    router = APIRouter()

    @router.post("/v1/chat/completions")
    async def chat(body: ChatRequest, request: Request) -> Response:
        visit = visit_of(request.scope)
        answer = ChatAnswer(body, body.ask(dialogue), visit)
        if body.stream:
            return await streamed(request, answer.frames(), failed(visit))
        return reply(await unless_gone(request, answer.whole()))

    return router


__all__ = ["DONE", "ChatAnswer", "dumps", "failed", "frame", "reply", "routes", "usage_of", "with_stream"]
