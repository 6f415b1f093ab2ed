"""An endpoint on this machine that speaks each vendor's chat completions, quirks and failures included.

    with serving(Vendor("deepseek")) as vendor:
        RemoteEngine(vendor.endpoint())

It answers "What is A + B?" with the sum, after a thought. What goes wrong is queued: `vendor.faults` has the names of
FAULTS, one for each request that comes, and then requests are answered.
"""

from __future__ import annotations

import json
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from mull.endpoints import Dialect, Endpoint

KEY = "sk-proj-0123456789abcdef"
THOUGHT = "Let me add the two numbers."
PROMPT, SAID, THOUGHT_TOKENS, CACHED = 20, 8, 30, 16  # tokens, as the endpoint counts
LONGEST = 4096


@dataclass
class Vendor:
    """What it speaks, what goes wrong, and what it was asked."""

    dialect: str  # of endpoints.Dialect, or "vllm-bare": with no reasoning parser
    faults: list[str] = field(default_factory=list)
    always: str = ""  # a fault for every request
    key: str = ""  # that it wants
    seconds: float = 0.0  # each answer takes so long
    thinks: bool = True
    asked: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    when: list[float] = field(default_factory=list)
    most: int = 0  # requests at a time
    url: str = ""
    hung: threading.Event = field(default_factory=threading.Event)  # lets those go that hang
    answer: Callable[[str], str] | None = None
    _busy: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def endpoint(self, **more: Any) -> Endpoint:
        dialect: Any = "vllm" if self.dialect == "vllm-bare" else self.dialect
        given: dict[str, Any] = {"opens": self.dialect == "vllm-bare", "retries": 3, **more}
        return Endpoint.of_url(self.url, "thinker", dialect=dialect, **given)

    def next_fault(self) -> str:
        with self._lock:
            return self.faults.pop(0) if self.faults else self.always

    @contextmanager
    def busy(self) -> Iterator[None]:
        with self._lock:
            self._busy += 1
            self.most = max(self.most, self._busy)
        try:
            yield
        finally:
            with self._lock:
                self._busy -= 1


def said(asked: dict[str, Any]) -> str:
    numbers = re.findall(r"\d+", asked["messages"][-1]["content"])
    return f"The sum is {sum(map(int, numbers))}."


def refused(asked: dict[str, Any], dialect: str) -> dict[str, Any] | None:
    """What this vendor does not take, in its own words."""
    if dialect == "openai":
        if "max_tokens" in asked:
            return openai_error("Unsupported parameter: 'max_tokens' is not supported with this model. Use "
                                "'max_completion_tokens' instead.", "max_tokens", "unsupported_parameter")  # fmt: skip
        if asked.get("temperature", 1) != 1:
            return openai_error("Unsupported value: 'temperature' does not support 0.0 with this model. Only the "
                                "default (1) value is supported.", "temperature", "unsupported_value")  # fmt: skip
    if dialect == "deepseek" and any("reasoning_content" in message for message in asked["messages"]):
        return openai_error("reasoning_content is not accepted", "messages", "invalid_request_error")
    if dialect == "anthropic":
        budget = asked.get("thinking", {}).get("budget_tokens", 0)
        if budget >= asked.get("max_tokens", LONGEST):
            return anthropic_error("`max_tokens` must be greater than `thinking.budget_tokens`.")
        if asked.get("thinking", {}).get("type") == "enabled" and asked.get("temperature", 1) != 1:
            return anthropic_error("`temperature` may only be set to 1 when thinking is enabled.")
    if dialect in ("vllm", "vllm-bare") and asked.get("max_tokens", 0) > LONGEST:
        return {"object": "error", "message": f"This model's maximum context length is {LONGEST} tokens.",
                "type": "BadRequestError", "param": None, "code": 400}  # fmt: skip
    return None


def openai_error(message: str, param: str | None, code: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error", "param": param, "code": code}}


def anthropic_error(message: str) -> dict[str, Any]:
    return {"error": {"code": "invalid_request_error", "message": message, "type": "invalid_request_error"}}


def thinking_of(asked: dict[str, Any], dialect: str) -> bool:
    """Whether it was asked to think, in this vendor's way."""
    match dialect:
        case "openai" | "xai":
            return asked.get("reasoning_effort") != "none"
        case "deepseek" | "anthropic":
            return asked.get("thinking", {}).get("type") != "disabled"
        case "gemini":
            return asked.get("reasoning_effort") != "none"
        case "openrouter":
            return asked.get("reasoning", {}).get("enabled", True)
    return asked.get("chat_template_kwargs", {}).get("enable_thinking", True)


def message_of(text: str, thinks: bool, dialect: str) -> dict[str, Any]:
    """The assistant's message, its thought where this vendor has it."""
    message: dict[str, Any] = {"role": "assistant", "content": text}
    if not thinks:
        return message
    match dialect:
        case "deepseek" | "mull" | "vllm" | "xai":
            message["reasoning_content"] = THOUGHT
        case "gemini":
            message["content"] = f"<thought>{THOUGHT}</thought>{text}"
            message["extra_content"] = {"google": {"thought_signature": "AAAA"}}
        case "openrouter":
            message["reasoning"] = THOUGHT
            message["reasoning_details"] = [{"type": "reasoning.text", "text": THOUGHT, "format": "unknown"}]
        case "vllm-bare":  # the prompt opened the thought
            message["content"] = f"{THOUGHT}\n</think>\n\n{text}"
        case "plain":
            message["content"] = f"<think>\n{THOUGHT}\n</think>\n\n{text}"
    return message


def usage_of(thinks: bool, dialect: str) -> dict[str, Any]:
    thought = THOUGHT_TOKENS if thinks else 0
    whole = {"prompt_tokens": PROMPT, "completion_tokens": SAID + thought, "total_tokens": PROMPT + SAID + thought}
    beside = whole | {"completion_tokens": SAID}  # only the total has the thought
    details = {"completion_tokens_details": {"reasoning_tokens": thought}}
    cached = {"prompt_tokens_details": {"cached_tokens": CACHED}}
    match dialect:
        case "openai":
            return whole | details | cached
        case "deepseek":
            return whole | details | {"prompt_cache_hit_tokens": CACHED, "prompt_cache_miss_tokens": PROMPT - CACHED}
        case "xai":
            return beside | details | cached | {"cost_in_usd_ticks": 25_000_000}
        case "gemini":
            return beside
        case "openrouter":
            return whole | details | cached | {"cost": 0.0042}
        case "mull":
            return whole | details
    return whole


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    vendor: Vendor

    def log_message(self, *given: object) -> None:
        pass

    def do_POST(self) -> None:
        vendor = self.vendor
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        vendor.asked.append(asked)
        vendor.headers.append({name.lower(): value for name, value in self.headers.items()})
        vendor.when.append(time.monotonic())
        with vendor.busy():
            if self.path != "/v1/chat/completions":
                return self.json({"detail": "Not Found"}, 404)
            if vendor.key and self.headers.get("Authorization") != f"Bearer {vendor.key}":
                told = self.headers.get("Authorization", "").removeprefix("Bearer ")
                return self.json(openai_error(f"Incorrect API key provided: {told}.", None, "invalid_api_key"), 401)
            if fault := vendor.next_fault():
                return FAULTS[fault](self, asked)
            if why := refused(asked, vendor.dialect):
                return self.json([why] if vendor.dialect == "gemini" else why, 400)
            time.sleep(vendor.seconds)
            return self.stream(asked) if asked.get("stream") else self.json(self.answer(asked))

    def answer(self, asked: dict[str, Any], **choice: Any) -> dict[str, Any]:
        vendor = self.vendor
        thinks = vendor.thinks and thinking_of(asked, vendor.dialect)
        text = (vendor.answer or (lambda _: said(asked)))(asked["messages"][-1]["content"])
        message = message_of(text, thinks, vendor.dialect)
        end = {"anthropic": "stop"}.get(vendor.dialect, "stop")
        return {
            "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": asked["model"],
            "choices": [{"index": 0, "message": message, "finish_reason": end, **choice}],
            "usage": usage_of(thinks, vendor.dialect),
        }  # fmt: skip

    def stream(self, asked: dict[str, Any], breaks: bool = False) -> None:
        whole = self.answer(asked)
        message = whole["choices"][0]["message"]
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
        content = message["content"]
        if self.vendor.dialect == "gemini" and content.startswith("<thought>"):
            thought, _, content = content.partition("</thought>")
            deltas.append({"content": thought, "extra_content": {"google": {"thought": True}}})
            content = "</thought>" + content
        for name in ("reasoning_content", "reasoning"):
            deltas += [{name: piece} for piece in re.findall(".{1,7}", message.get(name, ""))]
        deltas += [{"content": piece} for piece in re.findall("(?s).{1,5}", content)]
        self.wfile.write(b": OPENROUTER PROCESSING\n\n")
        for delta in deltas[: len(deltas) // 2 if breaks else None]:
            self.event({"choices": [{"index": 0, "delta": delta, "finish_reason": None}]})
        if breaks:
            return
        self.event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        self.event({"choices": [], "usage": whole["usage"]})
        self.wfile.write(b"data: [DONE]\n\n")

    def event(self, value: Any) -> None:
        self.wfile.write(b"data: " + json.dumps(value).encode() + b"\n\n")

    def json(self, value: Any, status: int = 200, **headers: str) -> None:
        self.send(json.dumps(value).encode(), status, **headers)

    def send(self, body: bytes, status: int = 200, kind: str = "application/json", **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", headers.pop("length", str(len(body))))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)


def reset(handler: Handler, asked: dict[str, Any]) -> None:
    """In the middle of the answer, without a good-bye."""
    body = json.dumps(handler.answer(asked)).encode()
    handler.send(body[:40], length=str(len(body)))
    handler.wfile.flush()
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.close_connection = True


def hang(handler: Handler, asked: dict[str, Any]) -> None:
    handler.vendor.hung.wait(30)
    handler.close_connection = True


def dribble(handler: Handler, asked: dict[str, Any]) -> None:
    """A blank now and then, as some do while they think, and never an answer."""
    handler.send_response(200)
    handler.send_header("Content-Length", "100000")
    handler.end_headers()
    handler.close_connection = True
    while not handler.vendor.hung.wait(0.02):
        try:
            handler.wfile.write(b"\n")
        except OSError:
            return


def choices(*given: Any) -> Callable[[Handler, dict[str, Any]], None]:
    return lambda handler, asked: handler.json({**handler.answer(asked), "choices": list(given)})


def without(*names: str) -> Callable[[Handler, dict[str, Any]], None]:
    return lambda handler, asked: handler.json(
        {name: value for name, value in handler.answer(asked).items() if name not in names}
    )


def status(code: int, message: str = "", **headers: str) -> Callable[[Handler, dict[str, Any]], None]:
    told = {"error": {"message": message or f"mistake {code}", "type": "error", "code": None}}
    return lambda handler, asked: handler.json(told, code, **headers)


def ending(reason: str | None, **message: Any) -> Callable[[Handler, dict[str, Any]], None]:
    def end(handler: Handler, asked: dict[str, Any]) -> None:
        whole = handler.answer(asked)
        whole["choices"][0] |= {"finish_reason": reason}
        whole["choices"][0]["message"] |= message
        handler.json(whole)

    return end


def long(handler: Handler, asked: dict[str, Any]) -> None:
    """A content-length that is more than the content."""
    handler.send(b"{}", length="5000")
    handler.close_connection = True


def short(handler: Handler, asked: dict[str, Any]) -> None:
    """A content-length that is less than the content."""
    body = json.dumps(handler.answer(asked)).encode()
    handler.send(body, length=str(len(body) - 30))
    handler.close_connection = True


PAGE = b"<!DOCTYPE html><html><head><title>502 Bad Gateway</title></head><body>cloud</body></html>"
FAULTS: dict[str, Callable[[Handler, dict[str, Any]], None]] = {
    # another try helps
    "429": status(429, "Rate limit reached", Retry_After="0.2"),
    "429 soon": status(429, "Rate limit reached"),
    "408": status(408),
    "409": status(409),
    "500": status(500),
    "502 page": lambda handler, asked: handler.send(PAGE, 502, "text/html"),
    "503": status(503, "The engine is currently overloaded"),
    "529": status(529, "Overloaded"),
    "page": lambda handler, asked: handler.send(PAGE, 200, "text/html"),
    "no choices": choices(),
    "null choice": choices(None),
    "null content": lambda handler, asked: handler.json(
        handler.answer(asked, message={"role": "assistant", "content": None}) | {"usage": None}
    ),
    "half": lambda handler, asked: handler.send(json.dumps(handler.answer(asked)).encode()[:60]),
    "no json": lambda handler, asked: handler.send(b"upstream connect error"),
    "nothing": lambda handler, asked: handler.send(b""),
    "deep": lambda handler, asked: handler.send(b"[" * 200_000),
    "error in 200": lambda handler, asked: handler.json({"error": {"message": "Provider returned error", "code": 502}}),
    "reset": reset,
    "long": long,
    "short": short,
    "hang": hang,
    "dribble": dribble,
    "no end": ending(None),
    "overloaded end": ending("insufficient_system_resource"),
    "error end": ending("error"),
    # none does
    "400": status(400, "messages: at least one message is required"),
    "402": status(402, "Insufficient Balance"),
    "403": status(403, "Country not supported"),
    "404": status(404, "The model `thinker` does not exist or you do not have access to it."),
    "422": lambda handler, asked: handler.json({"detail": [{"loc": ["body", "max_tokens"], "msg": "too large"}]}, 422),
    "quota": lambda handler, asked: handler.json(
        {"error": {"message": "You exceeded your current quota", "type": "insufficient_quota", "param": None,
                   "code": "insufficient_quota"}}, 429),
    "moved": lambda handler, asked: handler.send(b"", 308, Location="http://127.0.0.1:9/v1/chat/completions"),
    "tomorrow": status(429, "Daily limit reached", Retry_After="86400"),
    # these are answers
    "in thought": ending("length", content=None),
    "cut": ending("length"),
    "MAX_TOKENS": ending("MAX_TOKENS"),
    "filtered": ending("content_filter", content=""),
    "tool": ending("tool_calls", content=None),
    "refusal": ending("stop", content=None, refusal="I cannot help with that."),
    "no usage": without("usage"),
    "odd usage": lambda handler, asked: handler.json(
        handler.answer(asked) | {"usage": {"prompt_tokens": "many", "completion_tokens": -3, "total_tokens": True}}
    ),
    "half a character": ending("stop", content="\ud83d The sum is 3."),
    # of a stream
    "breaks": lambda handler, asked: handler.stream(asked, breaks=True),
}  # fmt: skip


@contextmanager
def serving(vendor: Vendor) -> Iterator[Vendor]:
    http = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"vendor": vendor}))
    http.daemon_threads, http.request_queue_size = True, 128
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    vendor.url = f"http://127.0.0.1:{http.server_port}/v1"
    try:
        yield vendor
    finally:
        vendor.hung.set()
        http.shutdown()
        http.server_close()
        thread.join()


__all__ = ["CACHED", "FAULTS", "KEY", "PROMPT", "SAID", "THOUGHT", "THOUGHT_TOKENS", "Dialect", "Vendor", "serving"]
