"""Bodies that cost far more than their bytes: each is answered soon, and others' requests meanwhile."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from serving import Server, saved, serving

from mull.serve.bodies import Bodies, has_more, is_deeper, must_be_sound
from mull.serve.errors import ApiError
from mull.serve.settings import Limits

MANY = 8_300_000  # bytes; the server takes 8 MiB
SECONDS = 8.0  # of this process, which is the server's too, whatever else the machine does; without bounds: minutes


@pytest.fixture(scope="module", name="server")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(saved(tmp_path_factory.mktemp("model") / "tiny"), rows=4, queue=2) as server:
        yield server


def filled(head: str, one: str, tail: str, size: int = MANY) -> bytes:
    """`one` again and again, between head and tail."""
    return (head + (one + ",") * ((size - len(head) - len(tail)) // (len(one) + 1)) + tail).encode()


TEXT, CHAT = "/v1/completions", "/v1/chat/completions"
TALK = '"messages":[{"role":"user","content":"x"}]'
SHAPES = {
    "ids and a text": (TEXT, filled('{"prompt":[', "1", '"x"]}')),
    "ids": (TEXT, filled('{"prompt":[', "1", "1]}")),
    "lists": (TEXT, filled('{"prompt":[', "[]", "[]]}")),
    "objects": (TEXT, filled('{"prompt":[', "{}", "{}]}")),
    "texts": (TEXT, filled('{"prompt":[', '""', '""]}')),
    "stop": (CHAT, filled(f'{{{TALK},"stop":[', "1", "1]}")),
    "stop ids": (CHAT, filled(f'{{{TALK},"stop_token_ids":[', '"x"', "1]}")),
    "choices": (CHAT, filled(f'{{{TALK},"structured_outputs":{{"choice":[', "1", "1]}}")),
    "messages": (CHAT, filled('{"messages":[', "{}", "{}]}")),
    "parts": (CHAT, filled('{"messages":[{"role":"user","content":[', "1", "1]}]}")),
    "anthropic's messages": ("/v1/messages", filled('{"max_tokens":1,"messages":[', "{}", "{}]}")),
    "blocks": ("/v1/messages", filled('{"max_tokens":1,"messages":[{"role":"user","content":[', "1", "1]}]}")),
    "items": ("/v1/responses", filled('{"input":[', "1", "1]}")),
}  # fmt: skip
# fewer values than the server takes: they are read
BOUNDED = {
    "ids and a text": (TEXT, filled('{"prompt":[', "1", '"x"]}', 500_000)),
    "lists": (TEXT, filled('{"prompt":[', "[]", '"x"]}', 350_000)),
    "messages": (CHAT, filled('{"messages":[', "{}", "{}]}", 350_000)),
    "parts": (CHAT, filled('{"messages":[{"role":"user","content":[', "1", "1]}]}", 500_000)),
    "biases": (CHAT, (f'{{{TALK},"logit_bias":{{' + ",".join(f'"{at}":"x"' for at in range(200_000)) + "}}").encode()),
    "blocks": ("/v1/messages", filled('{"max_tokens":1,"messages":[{"role":"user","content":[', "1", "1]}]}", 500_000)),
    "items": ("/v1/responses", filled('{"input":[', "1", "1]}", 500_000)),
    "long names": (CHAT, f'{{{TALK},"{"x" * MANY}":1}}'.encode()),
    "long blocks": ("/v1/messages", filled('{"max_tokens":0,"messages":[{"role":"user","content":[',
        '{"type":"text","text":"' + 90 * "x" + '"}', '{"type":"text","text":"x"}],"role":"no"}]}')),
}  # fmt: skip


class Watch:
    """How long somebody else's request took at most, asked all the time."""

    def __init__(self, url: str):
        self.url, self.longest, self.asked = url, 0.0, 0
        self.done = threading.Event()
        self.thread = threading.Thread(target=self.run)

    def run(self) -> None:
        with httpx2.Client(base_url=self.url, timeout=60, verify=False) as client:
            while not self.done.is_set():
                began = time.process_time()
                client.get("/v1/models")
                self.longest, self.asked = max(self.longest, time.process_time() - began), self.asked + 1
                time.sleep(0.02)

    def __enter__(self) -> Watch:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.thread.join()


def refusal(server: Server, path: str, body: bytes) -> str:
    """What is said of a body, soon; others are answered meanwhile."""
    headers = {"content-type": "application/json"}
    with Watch(server.url) as watch, httpx2.Client(timeout=60, verify=False) as client:
        began = time.process_time()
        answer = client.post(server.url + path, content=body, headers=headers)
        took = time.process_time() - began
    assert answer.status_code == 400, answer.text[:200]
    assert took < SECONDS
    assert watch.asked and watch.longest < SECONDS / 2
    said = answer.json()["error"]["message"]
    assert len(said) < 300
    return said


@pytest.mark.parametrize("name", SHAPES)
def test_a_body_of_millions_of_values_is_refused_unread(server: Server, name: str) -> None:
    assert "too many values in its lists and objects; this server takes at most 262,144." in refusal(
        server, *SHAPES[name]
    )


@pytest.mark.parametrize("name", BOUNDED)
def test_of_a_hundred_thousand_mistakes_one_is_told(server: Server, name: str) -> None:
    assert "too many values" not in refusal(server, *BOUNDED[name])


@pytest.mark.parametrize(("prompt", "says"), [
    ([1, 2, "x"], "prompt.2: Input should be a valid integer"),
    (["a", 2], "prompt.1: Input should be a valid string (given: '2')."),
    ([[1], ["x"]], "prompt.1.0: Input should be a valid integer"),
    ([-1], "prompt.0: Input should be greater than or equal to 0"),
    (5, "prompt: Input should be a valid string (given: '5')."),
])  # fmt: skip
def test_the_mistake_in_a_prompt_is_the_one_that_was_made(server: Server, prompt: Any, says: str) -> None:
    assert says in refusal(server, TEXT, json.dumps({"prompt": prompt}).encode())


# how much is in a body

JSON = st.recursive(
    st.none() | st.integers() | st.text(), lambda one: st.lists(one) | st.dictionaries(st.text(), one), max_leaves=20
)


def marks_of(value: Any) -> int:
    """By its definition: each list and object counts one, and what it holds less one."""
    if not isinstance(value, list | dict):
        return 0
    inner = list(value.values()) if isinstance(value, dict) else value
    return 1 + max(0, len(inner) - 1) + sum(map(marks_of, inner))


@given(JSON, st.booleans())
def test_values_are_counted_outside_of_texts(value: Any, plain: bool) -> None:
    body = json.dumps(value, ensure_ascii=plain).encode("utf-8", "surrogatepass")
    count = marks_of(value)
    assert not has_more(body, count + 1)
    assert has_more(body, count) or count == 0


def depth_of(value: Any) -> int:
    """By its definition."""
    inner = list(value.values()) if isinstance(value, dict) else value
    return 1 + max(map(depth_of, inner), default=0) if isinstance(value, list | dict) else 0


@given(st.lists(JSON, max_size=3), st.booleans(), st.integers(0, 3))
def test_nesting_is_measured_outside_of_texts(value: Any, plain: bool, more: int) -> None:
    for level in range(more):
        value = {'"[': value} if level % 2 else [value, "]["]
    body = json.dumps(value, ensure_ascii=plain).encode("utf-8", "surrogatepass")
    depth = depth_of(value)
    assert not is_deeper(body, depth)
    assert is_deeper(body, depth - 1)


@pytest.mark.parametrize("body", [b"[" * 8_000_000, b"[" * 101 + b"]" * 8_000_000, b"[" * 131_000 + b"]" * 131_000])
def test_measuring_what_is_nested_takes_no_time(body: bytes) -> None:
    began = time.process_time()
    is_deeper(body, 100)
    assert time.process_time() - began < 2


@pytest.mark.parametrize(("path", "body"), [
    (CHAT, {"messages": [{"role": "user", "content": "x"}]}),
    (TEXT, {"prompt": "x"}),
    ("/v1/responses", {"input": "x"}),
    ("/v1/messages", {"messages": [{"role": "user", "content": "x"}], "max_tokens": 1}),
])  # fmt: skip
def test_what_is_nested_too_deeply_is_refused_by_all_in_the_same_words(server: Server, path: str, body: Any) -> None:
    field = "stream_options" if path == TEXT else "metadata"  # of no consequence, but for its depth
    for levels, says in ((99, None), (100, "nested too deeply; this server takes 100 levels."), (5000, "nested")):
        deep = json.dumps(body)[:-1] + f', "{field}": {{"a":' + "[" * (levels - 1) + "]" * (levels - 1) + "}}"
        if says is not None:
            assert says in refusal(server, path, deep.encode())
        else:
            with httpx2.Client(timeout=60, verify=False) as client:
                answer = client.post(server.url + path, content=deep, headers={"content-type": "application/json"})
            assert "nested" not in answer.text


def test_prose_is_one_value() -> None:
    must_be_sound(json.dumps({"prompt": 'He said: "a, [b], {c}" \\' * 100_000}).encode(), 64, 100)


def test_bodies_of_other_encodings_are_refused() -> None:
    for encoding in ("utf-16", "utf-32-be"):
        with pytest.raises(ApiError, match="JSON in UTF-8"):
            must_be_sound('{"prompt": "x"}'.encode(encoding), 64, 100)


# all bodies together


def test_all_bodies_together_are_bounded() -> None:
    """Those that have come, not those that were announced; who is done, or refused, makes room."""
    bodies = Bodies(Limits(body_bytes=4096, bodies_bytes=6000))
    body = json.dumps("x" * 3998).encode()

    async def read() -> bytes:
        async def receive() -> Any:
            return {"type": "http.request", "body": body}

        return await bodies.read(receive, 0)

    async def run() -> None:
        assert await read() == body
        assert bodies.held == 4000
        with pytest.raises(ApiError) as busy:
            await read()
        assert (busy.value.status, busy.value.retry_after, bodies.held) == (503, 1, 4000)
        bodies.let_go(4000)
        assert await read() == body

    asyncio.run(run())
