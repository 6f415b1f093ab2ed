"""OpenAI's older Completions: text goes on where the prompt ends. No messages, no thinking, no blank taken away.

Prompts are texts or token ids, one or several. In texts special tokens are read as such: whoever sends a whole prompt
writes its structure too. A prompt that cannot be joined by what came before it (suffix) is refused.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter
from fastapi.requests import Request
from pydantic import Discriminator, Field, Tag
from starlette.responses import Response

from mull.serve.dialogue import Ask, Dialogue, Scored, a_name, gather
from mull.serve.errors import refused
from mull.serve.gate import Visit, visit_of
from mull.serve.openai import DONE, dumps, failed, frame, reply, usage_of, with_stream
from mull.serve.openai_asks import Drawing, Many
from mull.serve.sse import streamed, unless_gone
from mull.serve.tokens import LEAST, Spelling

Id = Annotated[int, Field(ge=0, lt=1 << 31)]
DEFAULT_TOKENS = 16  # as the API has it


def _kind(prompt: object) -> str:
    """What the first of a list is decides what all are to be: one mistake is told, and it is the one that was made."""
    if not isinstance(prompt, list):
        return "[text]"
    first = prompt[0] if prompt else ""
    return "[lists]" if isinstance(first, list) else "[texts]" if isinstance(first, str) else "[ids]"


Prompt = Annotated[
    Annotated[str, Tag("[text]")]
    | Annotated[Many[str], Tag("[texts]")]
    | Annotated[Many[Id], Tag("[ids]")]
    | Annotated[Many[Many[Id]], Tag("[lists]")],
    Discriminator(_kind),
]


class TextRequest(Drawing):
    prompt: Prompt | None = None
    logprobs: int | None = Field(default=None, ge=0, le=20)
    echo: bool | None = None
    best_of: int | None = Field(default=None, ge=1, le=128)
    suffix: str | None = None

    def asks(self, dialogue: Dialogue, most: int) -> list[Ask]:
        """One for each prompt. Raises ApiError and UserError."""
        if self.suffix:
            raise refused("This server does not write what stands before a suffix.", "suffix")
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise refused("best_of is not served; ask for n answers with logprobs and choose among them.", "best_of")
        if self.echo and self.logprobs is not None:
            raise refused("echo does not go with logprobs: a prompt's own are not given.", "echo")
        prompts = self._prompts()
        if len(prompts) > most:
            raise refused(f"This server takes at most {most} prompts at a time, not {len(prompts)}.", "prompt")
        most_tokens = self.max_tokens or DEFAULT_TOKENS
        sampling = replace(self.sampling(dialogue), max_tokens=most_tokens, top_logprobs=self.logprobs or 0)
        return [
            Ask(
                prompt=prompt if isinstance(prompt, str) else tuple(prompt), sampling=sampling, n=self.n or 1,
                salt=self.cache_salt or "", logprobs=self.logprobs is not None,
            )
            for prompt in prompts
        ]  # fmt: skip

    def _prompts(self) -> Sequence[str | Sequence[int]]:
        given = self.prompt
        if given is None or isinstance(given, str):
            return [given or ""]
        if not given:
            raise refused("prompt is an empty list.", "prompt")
        whole = [one for one in given if isinstance(one, int)]
        return [whole] if whole else [one for one in given if not isinstance(one, int)]


class TextAnswer:
    """One answer to all prompts, told at once or as it comes."""

    def __init__(self, body: TextRequest, asks: Sequence[Ask], visit: Visit):
        self.asks, self.visit = asks, visit
        self.options = with_stream(body.stream, body.stream_options)
        self.spelling = Spelling(visit.dialogue.chat.tokenizer)
        self.echo = bool(body.echo)
        self.offsets: dict[int, int] = {}  # of the next token, within its choice's text
        self.head: dict[str, Any] = {
            "id": a_name("cmpl-"),
            "object": "text_completion",
            "created": int(time.time()),
            "model": visit.dialogue.name,
            "system_fingerprint": visit.dialogue.fingerprint,
            "seed": asks[0].sampling.seed,
        }

    def prompt(self, index: int) -> str:
        """The text that choice `index` goes on from."""
        prompt = self.asks[index // self.asks[0].n].prompt
        return prompt if isinstance(prompt, str) else self.visit.dialogue.chat.tokenizer.decode(prompt)

    async def whole(self) -> dict[str, Any]:
        choices = [
            {
                "index": choice.index,
                "text": (self.prompt(choice.index) if self.echo else "") + choice.text,
                "logprobs": self._logprobs(choice.index, choice.logprobs),
                "finish_reason": choice.finish,
            }
            for choice in await gather(self.visit.answer(*self.asks))
        ]
        return {**self.head, "choices": choices, "usage": usage_of(self.visit)}

    async def frames(self) -> AsyncGenerator[bytes]:
        begin = f'data: {dumps(self.head)[:-1]},"choices":[{{"index":'
        usage = ',"usage":null' if self.options.include_usage else ""
        made: dict[int, int] = {}
        async with aclosing(self.visit.answer(*self.asks)) as events:
            async for event in events:
                text = self.prompt(event.index) + event.text if self.echo and event.index not in made else event.text
                made[event.index] = event.made
                if self.options.continuous_usage_stats:
                    usage = f',"usage":{dumps(usage_of(self.visit, sum(made.values())))}'
                scored = dumps(self._logprobs(event.index, event.logprobs)) if event.logprobs else "null"
                finish = f'"{event.finish}"' if event.finish else "null"
                told = f'{event.index},"text":{dumps(text)},"logprobs":{scored},"finish_reason":{finish}}}]'
                yield f"{begin}{told}{usage}}}\n\n".encode()
        last = {**self.head, "choices": [], "usage": usage_of(self.visit)}
        yield (frame(last) if self.options.include_usage else b"") + DONE

    def _logprobs(self, index: int, scored: Sequence[Scored]) -> dict[str, Any] | None:
        if not self.asks[0].logprobs:
            return None
        texts = [self.spelling.text(one.token) for one in scored]
        offsets = []
        for text in texts:
            offsets.append(self.offsets.get(index, 0))
            self.offsets[index] = offsets[-1] + len(text)
        return {
            "tokens": texts,
            "token_logprobs": [max(one.logprob, LEAST) for one in scored],
            "top_logprobs": [
                {self.spelling.text(token): max(logprob, LEAST) for token, logprob in one.alternatives}
                for one in scored
            ],
            "text_offset": offsets,
        }


def routes(dialogue: Dialogue) -> APIRouter:
    router = APIRouter()

    @router.post("/v1/completions")
    async def complete(body: TextRequest, request: Request) -> Response:
        visit = visit_of(request.scope)
        answer = TextAnswer(body, body.asks(dialogue, dialogue.limits.prompts), visit)
        if body.stream:
            return await streamed(request, answer.frames(), failed(visit))
        return reply(await unless_gone(request, answer.whole()))

    return router


__all__ = ["TextAnswer", "TextRequest", "routes"]
