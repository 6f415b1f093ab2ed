"""What keeps a server to its rules, over real sockets: keys, names and pages, bounds, and each class of attacks and
complaints that other servers knew, under its name.
"""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import Mull
from serve_process import ASK, LONG, Running, eventually, raw, running, tiny_folder  # noqa: F401

from mull.serve import keys, usage
from mull.serve.keys import Allowance
from mull.serve.store import connect


@pytest.fixture(scope="module")
def server(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One without keys."""
    words = (
        "limits.read_seconds=1.5", "limits.stall_seconds=1", "limits.body_bytes=100000", "limits.n=8", "connections=60",
        "origins=['https://a.example']", "hosts=['mull.lan']",
    )  # fmt: skip
    with running(folder, tmp_path_factory.mktemp("home"), *words) as one:
        yield one


@pytest.fixture(scope="module")
def locked(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One with a key."""
    home = tmp_path_factory.mktemp("home")
    make(home / "serve.db", "first", Allowance(usd_per_day=100))
    with running(folder, home, "price.usd_per_million_input=1", "price.usd_per_million_output=10") as one:
        yield one


def make(path: Path, name: str, allowance: Allowance | None = None) -> str:
    db = connect(path)
    token = keys.create(db, name, allowance)
    db.close()
    return token


# keys: "auth on every route but /health"


def test_every_route_but_those_of_health_needs_a_key(folder: Path, tmp_path: Path, mull: Mull):
    """From the first key on; and revoking works at once."""
    with running(folder, tmp_path) as server:
        assert server.ask(ASK).status == 200
        token = mull("keys", "create", "alice", "--db", server.db).out.strip()
        paths = server.get("/openapi.json", token).json["paths"]
        assert len(paths) >= 6
        routes = [(method.upper(), path) for path, methods in paths.items() for method in methods]
        for method, path in [*routes, ("GET", "/metrics"), ("GET", "/openapi.json"), ("GET", "/v1/nothing")]:
            for headers in ({}, {"authorization": "Bearer mull-x"}, {"x-api-key": "é"}, {"authorization": "Basic a"}):
                said = server.ask({}, path, method=method, **headers)
                assert said.status == 401, (method, path, headers, said)
        assert [server.get(path).status for path in ("/health", "/ready", "/")] == [200, 200, 200]
        assert server.ask(ASK, key=token).status == 200
        assert server.ask(ASK, **{"x-api-key": token}).status == 200
        mull("keys", "revoke", "alice", "--db", server.db)
        said = server.ask(ASK, key=token)
        assert (said.status, said.error) == (401, "This API key was revoked.")
        assert server.ask(ASK).status == 401  # nobody opened the door by it


def test_errors_of_keys_are_in_each_protocols_form(locked: Running):
    openai, anthropic = locked.ask(ASK), locked.ask(ASK, "/v1/messages")
    assert openai.json["error"]["type"] == "authentication_error"
    assert openai.json["error"]["code"] == "invalid_api_key"
    assert anthropic.json["type"] == "error"
    assert anthropic.json["error"]["type"] == "authentication_error"
    assert "send one that `mull keys create` made" in openai.error


def test_a_locked_server_says_so_when_it_starts(locked: Running):
    assert "asking needs an API key" in locked.line


def test_open_lets_anybody_ask_and_still_knows_keys(folder: Path, tmp_path: Path):
    token = make(tmp_path / "serve.db", "alice", Allowance(rpm=1, usd_per_day=1))
    with running(folder, tmp_path, "--open", "--host", "0.0.0.0") as server:
        assert "no price is set (--usd-per-hour)" in server.log.read_text()
        assert [server.ask(ASK, key=key).status for key in ("", "none", token, token)] == [200, 200, 200, 429]
        db = connect(server.db)
        assert {row["key"]: row["requests"] for row in usage.summed(db, ["key"])} == {"": 2, "alice": 1}
        db.close()


def test_requests_a_minute_over_http(locked: Running):
    key = make(locked.db, "often", Allowance(rpm=2))
    assert [locked.ask(ASK, key=key).status for _ in range(3)] == [200, 200, 429]
    said = locked.ask(ASK, key=key)
    assert 1 <= int(said.headers["retry-after"]) <= 30
    assert said.json["error"]["code"] == "rate_limit_exceeded"


def test_money_a_day_over_http(locked: Running):
    key = make(locked.db, "spender", Allowance(usd_per_day=0.000001))
    assert locked.ask(ASK, key=key).status == 200
    said = locked.ask(ASK, key=key)
    assert (said.status, said.json["error"]["code"]) == (429, "insufficient_quota")
    assert said.error == "This key has spent its $1e-06 a day."


def test_tokens_a_minute_over_http(locked: Running):
    key = make(locked.db, "thirsty", Allowance(tpm=5))
    assert [locked.ask(ASK, key=key).status for _ in range(2)] == [200, 429]


def test_requests_at_a_time_over_http(locked: Running):
    """A request that was refused, and one whose client went away, are no longer under way."""
    key = make(locked.db, "single", Allowance(parallel=1))
    response = locked.stream(LONG, key)
    assert locked.ask(ASK, key=key).status == 429
    response.close()
    locked.opened[-2].close()
    eventually(lambda: locked.ask(ASK, key=key).status == 200)
    assert locked.ask({**ASK, "n": 99}, key=key).status == 400
    assert locked.ask({**ASK, "messages": [{"role": "user", "content": "a" * 5000}]}, key=key).status == 400
    assert locked.ask({**ASK, "prompt": ["a", "b"], "stop": ["x"] * 99}, "/v1/completions", key=key).status == 400
    assert locked.ask(ASK, key=key).status == 200


# usage


def test_usage_is_what_answers_say(locked: Running, mull: Mull):
    key = make(locked.db, "reader")
    told = [locked.ask({**ASK, "n": n}, key=key).json["usage"] for n in (1, 2)]
    said = json.loads(mull("usage", "--db", locked.db, "--json").out)["usage"]
    row = next(row for row in said if row["key"] == "reader")
    assert row["requests"] == 2
    assert row["prompt"] == sum(one["prompt_tokens"] for one in told)
    assert row["completion"] == sum(one["completion_tokens"] for one in told) == 24
    assert row["thinking"] == sum(one["completion_tokens_details"]["reasoning_tokens"] for one in told)
    assert row["usd"] == pytest.approx(sum(one["cost_usd"] for one in told))
    assert row["usd"] == pytest.approx(row["prompt"] / 1e6 + row["completion"] / 1e5)
    for verbs in (("usage",), ("usage", "--by", "key"), ("keys", "list")):
        assert "reader" in mull(*verbs, "--db", locked.db).out


def test_a_client_that_goes_away_has_used_what_was_drawn(locked: Running):
    key = make(locked.db, "hasty")
    response = locked.stream(LONG, key)
    for _ in range(20):
        response.readline()
    locked.opened[-1].close()
    response.close()
    db = connect(locked.db)
    row = eventually(lambda: [row for row in usage.summed(db, ["key"]) if row["key"] == "hasty"])[0]
    db.close()
    assert row["requests"] == 1
    assert 5 <= row["completion"] < 900


# names and pages


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]:8000", "192.168.1.7:1", "LOCALHOST:9"])
def test_addresses_and_localhost_are_its_names(server: Running, host: str):
    assert server.get("/v1/models", host=host).status == 200


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:8000", "", "a@b"])
def test_dns_rebinding_is_refused(server: Running, host: str):
    said = server.get("/v1/models", host=host)
    assert said.status == 403
    assert "is not known as" in said.error


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1.evil.example", "file://"])
def test_pages_of_others_are_refused(server: Running, origin: str):
    for said in (server.ask(ASK, origin=origin), server.ask(None, method="OPTIONS", origin=origin)):
        assert said.status == 403
        assert "access-control-allow-origin" not in said.headers


def test_its_own_page_may_ask(server: Running):
    assert server.ask(ASK, origin=f"http://127.0.0.1:{server.port}").status == 200


def test_origins_and_hosts_that_were_named_may_ask(server: Running):
    said = server.ask(None, method="OPTIONS", origin="https://a.example")
    assert said.status == 204
    assert "x-api-key" in said.headers["access-control-allow-headers"]
    said = server.ask(ASK, origin="https://a.example", host="mull.lan:80")
    assert said.status == 200
    assert said.headers["access-control-allow-origin"] == "https://a.example"
    assert "access-control-allow-credentials" not in said.headers
    said = server.ask({}, origin="https://a.example")
    assert (said.status, said.headers["access-control-allow-origin"]) == (400, "https://a.example")
    assert server.ask(ASK, origin="https://b.example").status == 403


# bodies, headers, connections


HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n"


@pytest.mark.parametrize("size", [40_000, 70_000, 300_000])
def test_huge_headers_are_refused(server: Running, size: int):
    """CVE-2025-48956."""
    got = raw(server, HEAD + b"connection: close\r\nx: " + b"a" * size + b"\r\n\r\n")
    assert re.match(rb"HTTP/1.1 4(00|31) ", got), got[:100]
    assert b"32768" in got and b'"error"' in got


def test_headers_without_end_are_refused(server: Running):
    got = raw(server, HEAD + b"x: a\r\n" * 20_000)
    assert got.startswith(b"HTTP/1.1 4")


@pytest.mark.parametrize("sent", [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"GET\r\n\r\n", b"\r\n\r\n\x00" * 9])
def test_what_is_no_http_is_refused(server: Running, sent: bytes):
    got = raw(server, sent)
    assert got == b"" or got.startswith(b"HTTP/1.1 400 ")


def test_huge_bodies_are_refused_before_they_are_read(server: Running):
    got = raw(server, HEAD + b"connection: close\r\ncontent-length: 99999999999\r\n\r\n{")
    assert got.startswith(b"HTTP/1.1 413 ")
    chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    said = raw(server, HEAD + b"connection: close\r\ntransfer-encoding: chunked\r\n\r\n" + 2 * chunk)
    assert said.startswith(b"HTTP/1.1 413 ")


def test_who_sends_too_slowly_is_cut_off(server: Running):
    """Headers and bodies that never end hold a connection no longer than read_seconds."""
    for sent in (b"", b"POST /v1", HEAD + b"x: a\r\n"):
        began = time.monotonic()
        assert raw(server, sent) == b""
        assert 1 < time.monotonic() - began < 8
    got = raw(server, HEAD + b"connection: close\r\ncontent-length: 10\r\n\r\n{")
    assert got.startswith(b"HTTP/1.1 408 ")


def test_a_client_that_reads_nothing_is_cut_off_and_frees_its_place(server: Running):
    """Slow readers: what is buffered for one is bounded, and ends."""
    body = json.dumps({**LONG, "n": 8, "logprobs": True, "top_logprobs": 20}).encode()
    length = f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect(("127.0.0.1", server.port))
        slow.sendall(HEAD + length.encode() + body)
        eventually(lambda: server.metric("mull_open") == 8)
        eventually(lambda: server.metric("mull_open") == 0, 60)
        line = eventually(lambda: [one for one in server.log.read_text().splitlines() if "finish=cancelled" in one])[0]
    assert int(re.findall(r"made=(\d+)", line)[0]) < 8 * 900
    assert server.ask(ASK).status == 200


def test_too_many_connections_are_told(server: Running):
    idle = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(60)]
    said = eventually(lambda: (one := server.get("/health")).status == 503 and one, 1)
    assert said.headers["retry-after"] == "1"
    for one in idle:
        one.close()
    eventually(lambda: server.get("/health").status == 200)


def test_bounds_of_the_settings_hold(server: Running):
    said = server.ask({**ASK, "n": 9})
    assert said.status == 400
    assert "at most 8 for n, not 9" in said.error


def test_an_answer_has_a_deadline_and_prompts_are_logged_where_asked(folder: Path, tmp_path: Path):
    with running(folder, tmp_path, "limits.seconds=1", "--log-prompts") as server:
        said = server.ask({**LONG, "stream": False, "n": 16})
        assert said.status == 504
        assert said.error == "The answer took longer than 1 seconds."
        eventually(lambda: server.metric("mull_open") == 0)
        assert "What is 1 + 1?" in server.log.read_text()


# classes of attacks


def test_template_kwargs_reach_no_template(server: Running):
    """CVE-2025-62426: chat_template_kwargs that block the server."""
    said = server.ask({**ASK, "chat_template_kwargs": {"tokenize": True}})
    assert said.status == 400


@pytest.mark.parametrize("name", ["chat_template", "template"])
def test_no_template_comes_with_a_request(server: Running, name: str):
    """CVE-2026-5760: Jinja of strangers. Of requests it is not even looked at."""
    plain = server.ask(ASK).json
    said = server.ask({**ASK, name: "{{ cycler.__init__.__globals__ }}"})
    assert said.status == 400 or said.json["choices"] == plain["choices"]


def test_nothing_is_fetched_for_a_request(server: Running):
    """CVE-2026-24779: a server that fetches what a request names."""
    with socket.create_server(("127.0.0.1", 0)) as trap:
        trap.settimeout(0.3)
        url = f"http://127.0.0.1:{trap.getsockname()[1]}/a.png"
        for part in ({"type": "image_url", "image_url": {"url": url}}, {"type": "file", "file": {"file_data": url}}):
            said = server.ask({**ASK, "messages": [{"role": "user", "content": [part]}]})
            assert said.status == 400
        with pytest.raises(TimeoutError):
            trap.accept()


def test_keys_share_no_cached_prompts(locked: Running):
    """CVE-2025-46570: from how fast a prompt is answered, another's prompts can be guessed."""
    tokens = [make(locked.db, name) for name in ("secretive", "curious")]
    long = {**ASK, "messages": [{"role": "user", "content": "What is 7 + 81? " * 20}]}
    cached = [
        locked.ask(long, key=key).json["usage"]["prompt_tokens_details"]["cached_tokens"]
        for key in (tokens[0], tokens[0], tokens[1], tokens[1])
    ]
    assert cached[0] == cached[2] == 0
    assert cached[1] == cached[3] > 0


def test_a_hostile_pattern_harms_nobody(server: Running):
    """CVE-2025-48944: a tool's pattern or type that kills the worker."""
    engine = server.engine()
    for schema in ({"type": "object", "properties": {"a": {"type": "string", "pattern": "((("}}}, {"type": "nothing"}):
        tool = {"type": "function", "function": {"name": "f", "parameters": schema}}
        form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
        for more in ({"tools": [tool], "tool_choice": "required"}, {"tools": [tool]}, {"response_format": form}):
            assert server.ask({**ASK, **more, "max_tokens": 2}).status in (200, 400), (schema, more)
    assert server.engine() == engine
    assert server.ask(ASK).status == 200


# logs


def test_logs_hold_no_prompt(server: Running):
    secret = {**ASK, "messages": [{"role": "user", "content": "my diary, page 81"}]}
    before = len(server.log.read_text().splitlines())
    assert server.ask(secret).status == 200
    assert server.ask({**secret, "temperature": "diary"}).status == 400
    assert server.ask(b"my diary, {").status == 400
    server.get("/%0aforged%1b[31m")
    lines = eventually(lambda: len(found := server.log.read_text().splitlines()[before:]) >= 4 and found)
    assert "diary" not in "\n".join(lines)
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ POST /v1/chat/completions 200 [\d.]+s id=req_\w+ prompt=\d+ cached=\d+ "
        r"made=8 thinking=\d+ first=[\d.]+s finish=length", lines[0]
    )  # fmt: skip
    assert r"GET /\nforged\x1b[31m 404" in lines[-1]
