"""What clients send, good and bad, and what may come back of it.

Everything drawn is a function of the number it is drawn for, so that a run can be had again.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from rawhttp import POLITE, Manners, Reply

JSON = {"Content-Type": "application/json"}
WORDS = ("What", "is", "7", "+", "81?", "The", "answer,", "then:", "héllo", "wörld", "你好", "🙂")
Told = tuple[str, str]  # thoughts, text


@dataclass(frozen=True)
class Call:
    """A request, and what it is there for: to be `answered`, `refused`, or to be `left` by its client."""

    path: str
    body: bytes
    purpose: str
    api: str = "openai"
    streaming: bool = False
    method: str = "POST"
    manners: Manners = POLITE
    seed: int | None = None  # requests of one path and seed have one answer


TOO_MUCH = 8 << 20  # bytes of a body; what the server reads at most


class LostError(Exception):
    """A request that was neither answered nor cleanly refused."""


# well-formed requests


def _chat(draw: random.Random, text: str, tokens: int) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], "max_tokens": tokens}


def _completions(draw: random.Random, text: str, tokens: int) -> dict[str, Any]:
    return {"prompt": text, "max_tokens": tokens}


def _responses(draw: random.Random, text: str, tokens: int) -> dict[str, Any]:
    return {"input": text, "max_output_tokens": tokens, "store": draw.random() < 0.5}


def _messages(draw: random.Random, text: str, tokens: int) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], "max_tokens": tokens}


ROUTES: dict[str, tuple[str, Callable[[random.Random, str, int], dict[str, Any]]]] = {
    "/v1/chat/completions": ("openai", _chat),
    "/v1/completions": ("openai", _completions),
    "/v1/responses": ("openai", _responses),
    "/v1/messages": ("anthropic", _messages),
}


def good(draw: random.Random, model: str, seed: int | None = None, streaming: bool | None = None) -> Call:
    """One that is to be answered. Those of one path and seed differ in nothing but in whether they are streamed."""
    path = draw.choice([*ROUTES])
    api, build = ROUTES[path]
    seed = draw.randrange(64) if seed is None else seed
    own = random.Random(f"{path} {seed}")
    body = build(own, " ".join(own.choices(WORDS, k=own.randint(1, 8))), own.randint(1, 12))
    body |= {"model": model, "seed": seed, "temperature": own.choice([0.0, 0.7, 1.0])}
    body["stream"] = draw.random() < 0.5 if streaming is None else streaming
    return Call(path, json.dumps(body).encode(), "answered", api, body["stream"], seed=seed)


def light(draw: random.Random, model: str) -> Call:
    """One that draws nothing."""
    counted = {"model": model, "messages": [{"role": "user", "content": draw.choice(WORDS)}]}
    return draw.choice(
        [
            Call("/v1/models", b"", "answered", method="GET"),
            Call(f"/v1/models/{model}", b"", "answered", method="GET"),
            Call("/v1/messages/count_tokens", json.dumps(counted).encode(), "answered", "anthropic"),
            Call("/health", b"", "answered", method="GET"),
            Call("/metrics", b"", "answered", method="GET"),
        ]
    )


def leaving(draw: random.Random, model: str) -> Call:
    """A good one whose client goes away, before the answer or in it."""
    call = good(draw, model)
    after = 0 if draw.random() < 0.4 or not call.streaming else draw.choice([1, 200, 600])
    body = {**json.loads(call.body)}
    body["max_output_tokens" if call.path == "/v1/responses" else "max_tokens"] = 60  # so that there is time to leave
    manners = Manners(leave_after=after, abort=draw.random() < 0.5)
    return replace(call, body=json.dumps(body).encode(), purpose="left", manners=manners, seed=None)


def half(draw: random.Random, model: str) -> Call:
    """A client that goes away before it has said all."""
    return replace(good(draw, model), purpose="left", manners=Manners(sends=draw.uniform(0.05, 0.99)), seed=None)


def slow(draw: random.Random, model: str) -> Call:
    """A client that takes its time to read."""
    return replace(good(draw, model, streaming=True), manners=Manners(pause=0.02))


# those that are wrong

JUNK: list[bytes | Callable[[dict[str, Any]], Any]] = [
    b"", b"{", b"[]", b"null", b'"text"', b"\xff\xfe\x00", b'{"model": 1e999}', b"{}" * 10, b"[" * 50_000,
    b'{"a":' * 5_000 + b"1" + b"}" * 5_000,
    lambda body: {**body, "temperature": "warm"},
    lambda body: {**body, "temperature": -1},
    lambda body: {**body, "no_such_parameter": 1},
    lambda body: {**body, "top_p": 7},
    lambda body: {**body, "model": "another"},
    lambda body: {**body, "model": 5},
    lambda body: {**body, "max_tokens": -1, "max_output_tokens": -1},
    lambda body: {**body, "messages": "none", "input": 5, "prompt": {}},
    lambda body: {**body, "messages": [], "input": [], "prompt": []},
    lambda body: {**body, "messages": [{"role": "wizard", "content": "x"}], "input": [{"type": "x"}], "prompt": [[]]},
    lambda body: {**body, "messages": [{"role": "user", "content": [{"type": "image"}]}], "input": [None], "prompt": 1},
    lambda body: {**body, "tools": [{"type": "function"}], "prompt": [1 << 70]},
    lambda body: {**body, "stop": 5, "stop_sequences": 5},
    lambda body: {**body, "seed": 1 << 80},
]  # fmt: skip


def junk(draw: random.Random, model: str) -> Call:
    """A body that is none, or says nonsense."""
    call, bad = good(draw, model, streaming=False), draw.choice(JUNK)
    raw = bad if isinstance(bad, bytes) else json.dumps(bad(json.loads(call.body))).encode()
    return replace(call, body=raw, purpose="refused", seed=None)


def lost(draw: random.Random, model: str) -> Call:
    """A path or a method that there is not."""
    call = good(draw, model, streaming=False)
    wrong = draw.choice([{"path": "/v1/nothing"}, {"path": "/v1/models/none", "method": "GET"}, {"method": "PUT"}])
    return replace(call, purpose="refused", seed=None, **wrong)


def huge(draw: random.Random, model: str) -> Call:
    """A body, or a prompt, that is too large."""
    call = good(draw, model, streaming=False)
    text = "x" * draw.choice([5_000, 200_000, 9 << 20])
    content = {"messages": [{"role": "user", "content": text}], "prompt": text, "input": text}
    body = json.loads(call.body)
    raw = json.dumps({name: content.get(name, value) for name, value in body.items()}).encode()
    return replace(call, body=raw, purpose="refused", seed=None)


KINDS: dict[Callable[[random.Random, str], Call], float] = {
    good: 0.45, light: 0.1, leaving: 0.17, half: 0.05, slow: 0.05, junk: 0.12, lost: 0.03, huge: 0.03,
}  # fmt: skip


def call_of(number: int, model: str, salt: int = 0) -> Call:
    draw = random.Random(f"{salt} {number}")
    kind = draw.choices([*KINDS], [*KINDS.values()])[0]
    return kind(draw, model)


# what came of them


def outcome(call: Call, reply: Reply) -> str:
    """answered, refused, busy, broken or left. Raises LostError for anything that should not be.

    Busy are those to be tried again later; broken is a stream that ended by saying what went wrong.
    """
    if call.purpose == "left":
        return "left"
    if reply.status == 413 or (reply.status == 0 and len(call.body) > TOO_MUCH):
        return "refused"  # what is too large is cut off while it comes; the client may not get to hear why
    if not reply.whole:
        raise LostError(f"{call.path}: cut off in the middle, status {reply.status}")
    if reply.status == 200:
        if call.purpose == "refused":
            raise LostError(f"{call.method} {call.path}: this should not have been answered: {call.body[:200]!r}")
        if call.streaming and breaks(call, reply):
            return "broken"
        if call.path in ROUTES:
            told_of(call, reply)
        return "answered"
    message = error_of(call, reply)
    if reply.status in (429, 503):
        if "retry-after" not in reply.headers:
            raise LostError(f"{call.path}: {reply.status} without Retry-After")
        return "busy"
    if call.purpose == "answered" or not 400 <= reply.status < 500:
        raise LostError(f"{call.method} {call.path}: {reply.status} {message!r} to {call.body[:200]!r}")
    return "refused"


def breaks(call: Call, reply: Reply) -> bool:
    """Whether a stream ends in an error, in the form of its protocol."""
    events = [event for event in events_of(reply.body) if event != {"done": True}]
    last = events[-1] if events else {}
    if call.path == "/v1/responses":
        return last.get("type") == "response.failed" and bool(last["response"]["error"]["message"])
    return bool((last.get("error") or {}).get("message"))


def error_of(call: Call, reply: Reply) -> str:
    """Its sentence, where it has the form of its protocol. Raises LostError."""
    try:
        said = json.loads(reply.body)
        if call.api == "anthropic" and call.path.startswith("/v1/messages") and said["type"] != "error":
            raise KeyError("type")
        assert isinstance(said["error"]["type"], str)
        return said["error"]["message"]
    except (ValueError, KeyError, TypeError, AssertionError):
        raise LostError(f"{call.path}: {reply.status} in no form of error: {reply.body[:200]!r}") from None


def told_of(call: Call, reply: Reply) -> Told:
    """(thoughts, text) of an answer, streamed or not. Raises LostError where it has no end."""
    try:
        return _READERS[call.path](
            events_of(reply.body) if call.streaming else [json.loads(reply.body)], call.streaming
        )
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise LostError(f"{call.path}: not a whole answer ({error!r}): {reply.body[-300:]!r}") from None


def events_of(body: bytes) -> list[dict[str, Any]]:
    """Of server-sent events, comments left out."""
    lines = (line for line in body.decode().split("\n") if line.startswith("data: "))
    return [{"done": True} if line == "data: [DONE]" else json.loads(line[6:]) for line in lines]


def _of_chat(events: list[dict[str, Any]], streaming: bool) -> Told:
    if streaming and events.pop() != {"done": True}:
        raise KeyError("[DONE]")
    said = [one["delta" if streaming else "message"] for event in events for one in event["choices"]]
    if not any(one.get("finish_reason") for event in events for one in event["choices"]):
        raise KeyError("finish_reason")
    return (
        "".join(one.get("reasoning_content") or "" for one in said),
        "".join(one.get("content") or "" for one in said),
    )


def _of_completions(events: list[dict[str, Any]], streaming: bool) -> Told:
    if streaming and events.pop() != {"done": True}:
        raise KeyError("[DONE]")
    choices = [one for event in events for one in event["choices"]]
    if not any(one.get("finish_reason") for one in choices):
        raise KeyError("finish_reason")
    return "", "".join(one["text"] for one in choices)


def _of_responses(events: list[dict[str, Any]], streaming: bool) -> Told:
    response = events[-1]["response"] if streaming else events[0]
    if response["status"] not in ("completed", "incomplete"):
        raise KeyError(response["status"])
    texts = {"reasoning": "", "message": ""}
    for item in response["output"]:
        texts[item["type"]] += item["content"][0]["text"]
    if streaming:
        deltas = "".join(event["delta"] for event in events if event["type"].endswith(".delta"))
        if deltas != texts["reasoning"] + texts["message"]:
            raise KeyError("deltas")
    return texts["reasoning"], texts["message"]


def _of_messages(events: list[dict[str, Any]], streaming: bool) -> Told:
    if streaming and events[-1]["type"] != "message_stop":
        raise KeyError("message_stop")
    if streaming:
        blocks = [event["delta"] for event in events if event["type"] == "content_block_delta"]
    else:
        blocks = events[0]["content"]
    return "".join(b.get("thinking", "") for b in blocks), "".join(b.get("text", "") for b in blocks)


_READERS: dict[str, Callable[[list[dict[str, Any]], bool], Told]] = {
    "/v1/chat/completions": _of_chat,
    "/v1/completions": _of_completions,
    "/v1/responses": _of_responses,
    "/v1/messages": _of_messages,
}

__all__ = ["JSON", "KINDS", "ROUTES", "Call", "LostError", "Told", "call_of", "good", "outcome", "told_of"]
