"""The door, through real sockets: who goes away, who sends too much, who does not read; and what is said of errors."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import closing
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI
from serving import TINY, Server, saved, serving

from mull.engine.host import BusyError, DiedError, NoRoomError, StoppedError
from mull.serve.app import build
from mull.serve.dialogue import Ask, Dialogue, Event
from mull.serve.errors import ApiError, LateError, TooLongError, of, of_validation
from mull.serve.gate import Open, Spent, Who
from mull.serve.settings import Limits
from mull.types import UserError

LIMITS = Limits(body_bytes=4096, read_seconds=1.0, stall_seconds=1.0)
LONG = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 900, "ignore_eos": True, "temperature": 2}
SECRET = "nobody may see this"


class Books(Open):
    """A gate that remembers."""

    def __init__(self) -> None:
        self.spent: list[Spent] = []

    def allow(self, who: Who, ask: Ask) -> None:
        if ask.messages and ask.messages[-1].content == SECRET:
            raise RuntimeError(SECRET)

    async def settle(self, who: Who, spent: Spent) -> float | None:
        self.spent.append(spent)
        return None


BOOKS = Books()


@pytest.fixture(scope="module", name="server")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(saved(tmp_path_factory.mktemp("model") / "tiny"), BOOKS, LIMITS, 4, 2, buffer=8192) as server:
        yield server


def request_of(body: bytes, path: str = "/v1/chat/completions", length: int | None = None) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body) if length is None else length}\r\n\r\n".encode() + body


def connect(server: Server) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=10)


def wait_for(what: Any, seconds: float = 10.0) -> None:
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.01)


def post(server: Server, body: bytes | dict[str, Any], path: str = "/v1/chat/completions", **headers: str) -> Any:
    content = json.dumps(body).encode() if isinstance(body, dict) else body
    with httpx2.Client(verify=False, timeout=30) as client:  # certificates take long to load
        return client.post(
            server.url + path, content=content, headers={"content-type": "application/json", **headers}
        )


# clients that go away


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("n", [1, 3])
def test_a_client_that_goes_away_frees_the_engine_within_steps(server: Server, stream: bool, n: int) -> None:
    settled = len(BOOKS.spent)
    with closing(connect(server)) as client:
        client.sendall(request_of(json.dumps({**LONG, "stream": stream, "n": n}).encode()))
        wait_for(lambda: len(server.host.tickets) == n)
        if stream:
            assert client.recv(15) == b"HTTP/1.1 200 OK"
    wait_for(lambda: not server.host.tickets, 2)
    wait_for(lambda: len(BOOKS.spent) > settled)
    spent = BOOKS.spent[-1]
    assert spent.finish == "cancelled"
    assert spent.completion_tokens < 900 * n
    if stream:  # what was used until then is in the books
        assert spent.completion_tokens >= spent.reasoning_tokens > 0
        assert spent.prompt_tokens > 10
    assert post(server, {**LONG, "max_tokens": 2, "n": 4}).status_code == 200  # there is room again


TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


@pytest.mark.parametrize("more", [
    {"votes": 4}, {"votes": 4, "stream": True},  # tells nothing until all have ended
    {"tools": [TOOL], "tool_choice": "required"},  # nothing until the call has ended
])  # fmt: skip
def test_who_leaves_before_the_first_word_has_used_what_was_made(server: Server, more: dict[str, Any]) -> None:
    settled, choices = len(BOOKS.spent), more.get("votes", 1)
    with closing(connect(server)) as client:
        client.sendall(request_of(json.dumps({**LONG, **more}).encode()))
        wait_for(lambda: len(server.host.tickets) == choices)
        tickets = list(server.host.tickets.values())
        wait_for(lambda: all(one.made > 5 for one in tickets))
    wait_for(lambda: len(BOOKS.spent) > settled)
    spent = BOOKS.spent[-1]
    assert spent.finish == "cancelled"
    assert spent.completion_tokens == sum(one.made for one in tickets) > 5 * choices
    assert spent.prompt_tokens == tickets[0].prompt > 10
    assert 0 < spent.first_seconds < spent.seconds


def test_who_leaves_while_the_prompt_is_read_has_used_it(server: Server) -> None:
    settled = len(BOOKS.spent)
    os.kill(server.host.pid or 0, signal.SIGSTOP)  # it reads for as long as we like
    try:
        with closing(connect(server)) as client:
            client.sendall(request_of(json.dumps(LONG).encode()))
            wait_for(lambda: server.host.tickets)
            prompt = next(iter(server.host.tickets.values())).prompt
        wait_for(lambda: len(BOOKS.spent) > settled)
    finally:
        os.kill(server.host.pid or 0, signal.SIGCONT)
    spent = BOOKS.spent[-1]
    assert (spent.prompt_tokens, spent.completion_tokens, spent.first_seconds) == (prompt, 0, 0.0)
    assert prompt > 10


def test_what_the_engine_never_began_is_not_counted(server: Server) -> None:
    settled = len(BOOKS.spent)
    assert post(server, {**LONG, "max_tokens": 1, "guided_regex": "(((("}).status_code == 400
    with closing(connect(server)) as client:
        client.sendall(request_of(json.dumps({**LONG, "n": 6}).encode()))
        wait_for(lambda: len(server.host.tickets) == 6)
        assert post(server, LONG).status_code == 503
    wait_for(lambda: len(BOOKS.spent) >= settled + 2)
    assert all(one.prompt_tokens == one.completion_tokens == 0 for one in BOOKS.spent[settled:-1])


def test_a_client_that_reads_nothing_is_cut_off(server: Server) -> None:
    """Log-probabilities are more than sockets hold."""
    body = {**LONG, "stream": True, "n": 3, "logprobs": True, "top_logprobs": 20}
    with closing(socket.socket()) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        host, port = server.url.removeprefix("http://").split(":")
        client.connect((host, int(port)))
        client.sendall(request_of(json.dumps(body).encode()))
        wait_for(lambda: server.host.tickets)
        wait_for(lambda: not server.host.tickets, 30)
    assert BOOKS.spent[-1].finish == "cancelled"


def test_a_stream_is_framed_as_events(server: Server) -> None:
    answer = post(server, {**LONG, "stream": True, "max_tokens": 5})
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.headers["cache-control"] == "no-cache"
    frames = answer.text.split("\n\n")
    assert frames[-2:] == ["data: [DONE]", ""]
    assert all(json.loads(frame.removeprefix("data: ")) for frame in frames[:-2])


def test_the_queue_is_bounded_and_says_when_to_come_again(server: Server) -> None:
    wait_for(lambda: not server.host.tickets)  # the last test's
    with closing(connect(server)) as client:
        client.sendall(request_of(json.dumps({**LONG, "n": 6}).encode()))
        wait_for(lambda: len(server.host.tickets) == 6)
        for stream in (False, True):
            busy = post(server, {**LONG, "stream": stream})
            assert busy.status_code == 503
            assert int(busy.headers["retry-after"]) >= 1
            assert "queue is full" in busy.json()["error"]["message"]


@pytest.mark.parametrize(("path", "body"), [
    ("/v1/chat/completions", {**LONG, "n": 4}),
    ("/v1/completions", {"prompt": ["a", "b"], "n": 2, "max_tokens": 900}),
])  # fmt: skip
def test_a_request_for_which_there_is_half_of_the_room_is_refused_whole(
    server: Server, path: str, body: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    wait_for(lambda: not server.host.tickets)  # the last test's
    settled, told, send = len(BOOKS.spent), list[Any](), server.host.send
    with closing(connect(server)) as client:
        client.sendall(request_of(json.dumps({**LONG, "n": 3}).encode()))
        wait_for(lambda: len(server.host.tickets) == 3)
        monkeypatch.setattr(server.host, "send", lambda message: (told.append(message), send(message)))
        busy = post(server, body, path)
        assert told == []  # none of it was begun
    assert (busy.status_code, busy.headers["retry-after"]) == (429, "1")
    assert "room for 3 more answers now, not for 4" in busy.json()["error"]["message"]
    assert any(one.prompt_tokens == one.completion_tokens == 0 for one in BOOKS.spent[settled:])


def test_where_the_engine_dies_every_client_hears_of_it(server: Server) -> None:
    wait_for(lambda: server.host.alive, 60)
    with closing(connect(server)) as streamed, closing(connect(server)) as whole:
        streamed.sendall(request_of(json.dumps({**LONG, "stream": True}).encode()))
        assert b"200 OK" in streamed.recv(15)
        whole.sendall(request_of(json.dumps(LONG).encode()))
        wait_for(lambda: len(server.host.tickets) == 2)
        assert server.host.pid is not None
        os.kill(server.host.pid, signal.SIGKILL)
        assert whole.recv(12) == b"HTTP/1.1 503"
        told = b""
        while b"[DONE]" not in told:
            told += streamed.recv(1 << 16)
        assert b'"error":{"message":"The engine stopped' in told
    wait_for(lambda: server.host.alive, 60)
    assert post(server, {**LONG, "max_tokens": 2}).status_code == 200


# bodies


def test_a_body_that_is_too_large_is_refused_before_it_is_read(server: Server) -> None:
    with closing(connect(server)) as client:
        client.sendall(request_of(b"", length=1 << 40))
        assert client.recv(12) == b"HTTP/1.1 413"


def test_a_body_that_does_not_say_how_large_it_is_is_bounded_too(server: Server) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(1000):
            yield b" " * 1024

    try:
        answer = httpx2.post(
            f"{server.url}/v1/chat/completions", content=endless(), headers={"content-type": "application/json"}
        )
    except httpx2.TransportError:
        return  # it was cut off while it still wrote
    assert answer.status_code == 413
    assert "4,096 bytes" in answer.json()["error"]["message"]


def test_a_body_that_does_not_come_is_not_waited_for(server: Server) -> None:
    with closing(connect(server)) as client:
        client.sendall(request_of(b'{"mess', length=100))
        assert client.recv(12) == b"HTTP/1.1 408"


NO_BODIES = [b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe", b"{" * 4000, b'{"a":' * 800, b"[" * 4000, b"1" * 4000]
HOSTILE = [
    b'{"messages":[{"role":"user","content":"\\ud800"}]}',
    b'{"messages":[{"role":"user","content":"\\u0000"}],"max_tokens":NaN}',
    b'{"messages":[{"role":"user","content":"x"}],"temperature":1e999}',
    b'{"messages":[{"role":"user","content":"x"}],"seed":' + b"9" * 3000 + b"}",
    b'{"messages":[{"role":"user","content":"x"}],"\\ud800":1}',
    b'{"messages":[{"role":"user","content":"x"}],"stop":"\\ud800","max_tokens":1}',
    b'{"messages":[{"role":"\\ud800","content":"x"}]}',
    b'{"messages":[{"role":"user","content":"x"}],"tools":[{"type":"function","function":{"name":"f","parameters":'
    + b'{"a":' * 300 + b"1" + b"}" * 300 + b"}}]}",
]  # fmt: skip


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"])
@pytest.mark.parametrize("body", [*NO_BODIES, *HOSTILE])
def test_bad_bodies_are_refused_in_one_sentence(server: Server, path: str, body: bytes) -> None:
    answer = post(server, body, path)
    assert answer.status_code == 400
    said = answer.json()
    assert said["error"]["message"].endswith((".", "?"))
    assert said["error"]["type"] == "invalid_request_error"
    assert (said.get("type") == "error") is (path == "/v1/messages")


def test_a_form_is_no_request(server: Server) -> None:
    """A page elsewhere can send forms without asking; JSON it cannot."""
    for kind in ("application/x-www-form-urlencoded", "text/plain"):
        answer = post(server, LONG, **{"content-type": kind})
        assert answer.status_code == 400
        assert "Content-Type: application/json" in answer.json()["error"]["message"]


# errors


def test_every_answer_has_an_id_by_which_it_can_be_found(server: Server) -> None:
    with httpx2.Client(base_url=server.url) as client:
        ids = [client.get("/v1/models").headers["x-request-id"] for _ in range(2)]
        anthropic = client.post("/v1/messages", json={})
    assert all(one.startswith("req_") for one in ids)
    assert ids[0] != ids[1]
    assert anthropic.headers["request-id"] == anthropic.json()["request_id"]


def test_what_is_not_there_is_said_in_the_protocols_words(server: Server) -> None:
    with httpx2.Client(base_url=server.url) as client:
        missing = client.get("/v1/nothing")
        assert (missing.status_code, missing.json()["error"]["type"]) == (404, "not_found_error")
        assert client.get("/v1/messages/nothing").json()["type"] == "error"
        assert client.get("/v1/chat/completions").status_code == 405
        for path in ("/docs", "/redoc"):  # such pages fetch scripts from elsewhere
            assert client.get(path).status_code == 404
        assert "/v1/chat/completions" in client.get("/openapi.json").json()["paths"]


def test_our_own_mistakes_show_nothing_of_the_request(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    body = {"messages": [{"role": "user", "content": SECRET}]}
    with caplog.at_level(logging.ERROR):
        answer = post(server, body)
        streamed = post(server, {**body, "stream": True})
    for one in (answer, streamed):
        assert one.status_code == 500
        assert SECRET not in one.text
        assert any(one.headers["x-request-id"] in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize(("error", "status", "openai", "anthropic"), [
    (UserError("x"), 400, "invalid_request_error", "invalid_request_error"),
    (TooLongError("x"), 400, "invalid_request_error", "invalid_request_error"),
    (ApiError(401, "x"), 401, "authentication_error", "authentication_error"),
    (ApiError(403, "x"), 403, "permission_error", "permission_error"),
    (ApiError(404, "x"), 404, "not_found_error", "not_found_error"),
    (ApiError(413, "x"), 413, "invalid_request_error", "request_too_large"),
    (ApiError(429, "x"), 429, "rate_limit_error", "rate_limit_error"),
    (NoRoomError("x", 3), 429, "rate_limit_error", "rate_limit_error"),
    (BusyError("x", 3), 503, "server_error", "overloaded_error"),
    (StoppedError("x"), 503, "server_error", "overloaded_error"),
    (DiedError("x"), 503, "server_error", "overloaded_error"),
    (LateError("x"), 504, "timeout_error", "timeout_error"),
    (KeyError(SECRET), 500, "server_error", "api_error"),
])  # fmt: skip
def test_errors_have_each_protocols_form(error: Exception, status: int, openai: str, anthropic: str) -> None:
    known = of(error)
    assert known.status == status
    said = known.body("openai", "req_1")
    assert set(said["error"]) == {"message", "type", "param", "code"}
    assert said["error"]["type"] == openai
    assert known.body("anthropic", "req_1") == {
        "type": "error", "error": {"type": anthropic, "message": known.message}, "request_id": "req_1",
    }  # fmt: skip
    assert SECRET not in known.message
    busy = isinstance(error, BusyError | DiedError)
    assert (known.headers.get("retry-after") is not None) is busy


def test_of_several_mistakes_the_deepest_is_told() -> None:
    errors = [
        {"loc": ("body", "stop", "str"), "msg": "Input should be a valid string", "type": "string_type", "input": [5]},
        {"loc": ("body", "stop", "list[str]", 0), "msg": "Input should be a valid string", "type": "string_type",
         "input": 5},
    ]  # fmt: skip
    told = of_validation(errors)
    assert (told.param, told.message) == ("stop.0", "stop.0: Input should be a valid string (given: '5').")
    missing = of_validation([{"loc": ("body", "messages"), "msg": "Field required", "type": "missing", "input": {}}])
    assert (missing.param, missing.code) == ("messages", "missing_required_parameter")


def test_a_stream_that_is_slow_to_begin_is_kept_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its head goes out, comments follow, and what goes wrong later is told within."""
    monkeypatch.setattr("mull.serve.sse.HEAD_AFTER", 0.1)
    monkeypatch.setattr("mull.serve.sse.PING_AFTER", 0.1)

    def app(dialogue: Dialogue) -> FastAPI:
        async def slow(ask: Ask, tickets: object = None) -> AsyncGenerator[Event]:
            await asyncio.sleep(0.5)
            raise DiedError("It stopped.")
            yield Event(0)

        dialogue.answer = slow
        return build(dialogue)

    with serving(app=app) as server:
        answer = post(server, {**LONG, "stream": True})
    assert answer.status_code == 200
    assert answer.text.startswith(": still at it\n\n")
    assert '"message":"It stopped. Ask again in 2 seconds."' in answer.text
    assert answer.text.endswith("data: [DONE]\n\n")


def test_the_tiny_model_holds_what_these_tests_ask_of_it() -> None:
    assert TINY.max_length > 900
