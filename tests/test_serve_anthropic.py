"""Anthropic's Messages: what is read of a request, what is told of events, what the real client makes of a server."""

from __future__ import annotations

import json
import os
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from hashlib import sha256
from typing import Any, Literal

import pytest
from anthropic import (
    Anthropic,
    APIStatusError,
    AuthenticationError,
    BadRequestError,
    NotFoundError,
    RequestTooLargeError,
    ServiceUnavailableError,
)  # fmt: skip
from anthropic.types import Message as TheirMessage
from anthropic.types import RawMessageStreamEvent
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, TypeAdapter, ValidationError
from serving import TINY, Server, serving
from small import chat
from starlette.testclient import TestClient

from mull.engine.host import Host
from mull.serve.anthropic import Count, Create, Telling, ask_of
from mull.serve.app import build
from mull.serve.dialogue import Dialogue, Event, ToolCall
from mull.serve.errors import ApiError
from mull.serve.gate import Open, Who
from mull.serve.settings import Limits
from mull.text.chat import Chat
from mull.types import Completion, Message, UserError

EVENT: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)
TOWN = {
    "type": "object", "properties": {"town": {"enum": ["Ulm", "Rom"]}}, "required": ["town"],
    "additionalProperties": False,
}  # fmt: skip
WEATHER = {"name": "weather", "description": "Of a town.", "input_schema": TOWN}
USAGE = {"input_tokens": 3, "cache_read_input_tokens": 0, "cache_creation_input_tokens": 0, "output_tokens": 5}


def create(**fields: Any) -> Create:
    return Create(**{"model": "m", "max_tokens": 50, "messages": [{"role": "user", "content": "Hi"}], **fields})


def frames_of(raw: list[bytes]) -> list[dict[str, Any]]:
    """The events of SSE frames; but for the two kinds that it passes over, the anthropic package knows each, whole."""
    events = []
    for frame in raw:
        kind, data = frame.decode().removesuffix("\n\n").split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert kind == f"event: {event['type']}"
        if event["type"] not in ("ping", "error"):
            EVENT.validate_python(event)
        events.append(event)
    return events


def told(
    events: list[Event], finish: str = "stop", completion: Completion | None = None, **fields: Any
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """(stream events, message)."""
    telling = Telling(create(**fields), "m")
    raw = telling.begin(3)
    for event in events:
        raw += telling.hear(event)
    raw += telling.end(finish, completion or Completion((), (), "stop"), USAGE)
    return frames_of(raw), telling.message


def test_blocks_become_messages() -> None:
    turns = [
        {"role": "user", "content": "a"},
        {"role": "user", "content": [{"type": "text", "text": "b", "cache_control": {"type": "ephemeral"}}]},
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": "s"},
                {"type": "redacted_thinking", "data": "x"},
                {"type": "text", "text": "I ask."},
                {"type": "tool_use", "id": "t1", "name": "weather", "input": {"town": "Köln"}},
                {"type": "tool_use", "id": "t2", "name": "weather", "input": {}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "t2", "content": [{"type": "text", "text": "rain"}]},
                {"type": "tool_result", "tool_use_id": "t1", "content": "no such town", "is_error": True},
                {"type": "text", "text": "So?"},
            ],
        },
    ]
    calls = tuple(
        {"id": ident, "type": "function", "function": {"name": "weather", "arguments": arguments}}
        for ident, arguments in (("t1", '{"town": "Köln"}'), ("t2", "{}"))
    )
    system = [{"type": "text", "text": "Be"}, {"type": "text", "text": "short."}]
    assert ask_of(create(messages=turns, system=system)).messages == (
        Message("system", "Be\nshort."),
        Message("user", "a\nb"),
        Message("assistant", "I ask.", "hm", calls),
        Message("tool", "rain", name="weather", tool_call_id="t2"),
        Message("tool", "Error: no such town", name="weather", tool_call_id="t1"),
        Message("user", "So?"),
    )


def test_what_is_asked_of_the_sampler_reaches_it() -> None:
    schema = {"type": "object"}
    ask = ask_of(
        create(
            temperature=0.5, top_p=0.9, top_k=3, min_p=0.1, seed=5, stop_sequences=["a"], min_thinking_tokens=2,
            votes=3, thinking={"type": "enabled", "budget_tokens": 3}, cache_salt="pepper",
            output_config={"effort": "low", "format": {"type": "json_schema", "schema": schema}},
        )
    )  # fmt: skip
    s = ask.sampling
    assert (s.max_tokens, s.temperature, s.top_p, s.top_k, s.min_p, s.seed) == (50, 0.5, 0.9, 3, 0.1, 5)
    assert (s.stop, s.thinking, s.thinking_tokens, s.min_thinking_tokens) == (("a",), True, 3, 2)
    assert s.grammar is not None and s.grammar.kind == "json_schema" and json.loads(s.grammar.text) == schema
    assert (ask.votes, ask.effort, ask.salt) == (3, "low", "pepper")


def test_thinking_is_on_off_or_between_tools() -> None:
    use = {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "n", "input": {}}]}
    result = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t"}]}
    ask_user, ask_tool = [{"role": "user", "content": "a"}], [{"role": "user", "content": "a"}, use, result]
    for thinking, said, thinks in (
        (None, ask_user, True), ({"type": "adaptive"}, ask_user, True), ({"type": "disabled"}, ask_user, False),
        ({"type": "between_tools"}, ask_user, False), ({"type": "between_tools"}, ask_tool, True),
    ):  # fmt: skip
        sampling = ask_of(create(thinking=thinking, messages=said)).sampling
        assert sampling.thinking is thinks and sampling.thinking_tokens is None


def test_what_is_counted_is_what_is_asked() -> None:
    fields: dict[str, Any] = {
        "model": "m", "messages": [{"role": "user", "content": "Hi"}], "system": "Be short.", "tools": [WEATHER],
        "tool_choice": {"type": "any"}, "thinking": {"type": "disabled"}, "output_config": {"effort": "high"},
    }  # fmt: skip
    counted, asked = ask_of(Count(**fields)), ask_of(Create(**fields, max_tokens=5))
    for name in ("messages", "tools", "tool_choice", "effort", "template"):
        assert getattr(counted, name) == getattr(asked, name)
    assert counted.sampling.thinking == asked.sampling.thinking


def test_choices_of_tools() -> None:
    for choice, said in (
        ({"type": "auto"}, "auto"), ({"type": "none"}, "none"), ({"type": "any"}, "required"),
        ({"type": "tool", "name": "weather"}, "weather"),
    ):  # fmt: skip
        ask = ask_of(create(tools=[{**WEATHER, "type": "custom"}], tool_choice=choice))
        assert ask.tool_choice == said
        assert ask.tools[0]["function"]["parameters"] == WEATHER["input_schema"] and ask.parallel
    assert not ask_of(create(tool_choice={"type": "auto", "disable_parallel_tool_use": True})).parallel


def _user(*blocks: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [*blocks]}]}


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (_user({"type": "image", "source": {"type": "url", "url": "http://x"}}), "text only"),
        (_user({"type": ["text"]}), "cannot be given"),
        (_user({"type": "tool_use", "id": "a", "name": "n", "input": {}}), "not known of user"),
        (_user({"type": "text"}), "has the text"),
        (_user({"type": "tool_result", "tool_use_id": "t"}), "no tool_use before"),
        (_user({"type": "tool_result", "tool_use_id": {}}), "no tool_use before"),
        (_user(), "empty"),
        ({"system": [{"type": "image"}]}, "text only"),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}, "prefill"),
        ({"thinking": {"type": "enabled"}}, "needs `budget_tokens`"),
        ({"thinking": {"type": "enabled", "budget_tokens": 50}}, "greater than"),
        ({"thinking": {"type": "disabled", "budget_tokens": 5}}, "goes with type enabled"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "web_search"),
        ({"tools": [{"name": "x"}]}, "input_schema"),
        ({"tool_choice": {"type": "tool", "name": "x"}}, "not among the tools"),
        ({"tool_choice": {"type": "any"}}, "no tools"),
        ({"mcp_servers": [{}]}, "MCP"),
        ({"container": "c"}, "containers"),
    ],
)
def test_what_is_not_served_is_refused_in_a_sentence(fields: dict[str, Any], said: str) -> None:
    with pytest.raises((ApiError, UserError), match=said):
        ask_of(create(**fields))


@pytest.mark.parametrize(
    "fields",
    [{"nonsense": 1}, {"temperature": float("inf")}, {"max_tokens": 0}, {"messages": []},
     {"thinking": {"type": "enabled", "budget_tokens": 0}}, {"messages": [{"role": "tool", "content": "a"}]}],
)  # fmt: skip
def test_what_is_no_request_is_none(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        create(**fields)


def test_the_order_of_the_events_is_anthropics() -> None:
    call = ToolCall("toolu_1", "weather", '{"town": "Ulm"}')
    events = [Event(0, reasoning="h"), Event(0, reasoning="m"), Event(0, text="I ask."), Event(0, tool=call)]
    stream, message = told(events, "tool_calls")
    assert [(event["type"], event.get("index"), event.get("delta", {}).get("type")) for event in stream] == [
        ("message_start", None, None), ("ping", None, None),
        ("content_block_start", 0, None), ("content_block_delta", 0, "thinking_delta"),
        ("content_block_delta", 0, "thinking_delta"), ("content_block_delta", 0, "signature_delta"),
        ("content_block_stop", 0, None),
        ("content_block_start", 1, None), ("content_block_delta", 1, "text_delta"), ("content_block_stop", 1, None),
        ("content_block_start", 2, None), ("content_block_delta", 2, "input_json_delta"),
        ("content_block_stop", 2, None),
        ("message_delta", None, None), ("message_stop", None, None),
    ]  # fmt: skip
    assert stream[0]["message"]["content"] == [] and stream[0]["message"]["usage"]["input_tokens"] == 3
    assert stream[10]["content_block"]["input"] == {}
    assert stream[-2]["delta"] == {"stop_reason": "tool_use", "stop_sequence": None} and stream[-2]["usage"] == USAGE
    TheirMessage.model_validate(message, strict=True)
    thinking, text, use = message["content"]
    assert thinking["thinking"] == "hm" and len(thinking["signature"]) == 64
    assert text == {"type": "text", "text": "I ask."}
    assert use == {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"town": "Ulm"}}


@pytest.mark.parametrize(
    ("finish", "completion", "reason", "sequence"),
    [
        ("stop", Completion((1,), (0.0,), "stop", stopped_by=1), "end_turn", None),
        ("stop", Completion((1,), (0.0,), "stop", stopped_by="END"), "stop_sequence", "END"),
        ("length", Completion((1,) * 50, (0.0,) * 50, "length"), "max_tokens", None),
        ("length", Completion((1,) * 49, (0.0,) * 49, "length"), "model_context_window_exceeded", None),
        ("tool_calls", Completion((1,), (0.0,), "stop"), "tool_use", None),
    ],
)
def test_why_it_stopped(finish: str, completion: Completion, reason: str, sequence: str | None) -> None:
    stream, message = told([Event(0, text="a")], finish, completion, stop_sequences=["END"])
    assert (message["stop_reason"], message["stop_sequence"]) == (reason, sequence)
    assert stream[-2]["delta"] == {"stop_reason": reason, "stop_sequence": sequence}


def test_thoughts_that_are_not_to_be_shown_are_not() -> None:
    events = [Event(0, reasoning="secret"), Event(0, text="a")]
    stream, message = told(events, thinking={"type": "adaptive", "display": "omitted"})
    assert "secret" not in json.dumps(stream) + json.dumps(message)
    assert message["content"][0]["thinking"] == "" and message["content"][0]["signature"]


def test_a_model_that_does_not_think_is_not_made_to() -> None:
    mute = Chat(chat().tokenizer, "{{ messages[-1].content }}")
    client = TestClient(build(Dialogue(Host({}), mute, "tiny", 1024)))
    body = {"messages": [{"role": "user", "content": "Hi"}]}
    for path, more in (("", {"max_tokens": 9}), ("/count_tokens", {})):
        thinking = {"type": "enabled", "budget_tokens": 5}
        said = client.post(f"/v1/messages{path}", json={**body, **more, "thinking": thinking})
        assert said.status_code == 400
        assert "does not think" in said.json()["error"]["message"]
    for kind in ("adaptive", "disabled"):
        counted = client.post("/v1/messages/count_tokens", json={**body, "thinking": {"type": kind}})
        assert counted.json() == {"input_tokens": len(mute.tokenizer.encode("Hi"))}


pieces = st.one_of(
    st.builds(lambda text: Event(0, reasoning=text), st.text(min_size=1)),
    st.builds(lambda text: Event(0, text=text), st.text(min_size=1)),
    st.builds(lambda n: Event(0, tool=ToolCall(f"t{n}", "weather", f'{{"n": {n}}}')), st.integers(0, 999)),
)


@given(st.lists(pieces, max_size=12))
def test_what_is_streamed_adds_up_to_what_is_not(events: list[Event]) -> None:
    stream, message = told(events)
    plain = Telling(create(), "m", streaming=False)
    assert not plain.begin(3) and not any(plain.hear(event) for event in events)
    assert not plain.end("stop", Completion((), (), "stop"), USAGE)
    assert plain.message["content"] == message["content"]
    added: list[dict[str, Any]] = []
    for event in stream:
        if event["type"] == "content_block_start":
            added.append(event["content_block"] | {"json": ""})
        elif event["type"] == "content_block_delta":
            kind, piece = (event["delta"][name] for name in event["delta"])
            name = {"input_json_delta": "json"}.get(kind, kind.removesuffix("_delta"))
            added[event["index"]][name] += piece
    for block in added:
        said = block.pop("json")
        if block["type"] == "tool_use":
            block["input"] = json.loads(said)
    assert added == message["content"]


# against a server


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving() as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[Anthropic]:
    with server.anthropic() as made:
        yield made


HI = [{"role": "user", "content": "Hi"}]
OFF = {"thinking": {"type": "disabled"}}


def fields_of(more: dict[str, Any] | None, fields: dict[str, Any]) -> dict[str, Any]:
    """Of a request for few tokens; `more` is what the package does not know."""
    return {"model": "tiny", "messages": HI, "max_tokens": 24, **fields, "extra_body": {"seed": 1, **(more or {})}}


def asked(client: Anthropic, more: dict[str, Any] | None = None, **fields: Any) -> TheirMessage:
    return client.messages.create(**fields_of(more, fields))


def streamed(client: Anthropic, more: dict[str, Any] | None = None, **fields: Any) -> TheirMessage:
    with client.messages.stream(**fields_of(more, fields)) as stream:
        return stream.get_final_message()


def content_of(message: TheirMessage) -> list[dict[str, Any]]:
    """Without the names of calls."""
    return [block.to_dict() | ({"id": ""} if block.type == "tool_use" else {}) for block in message.content]


WAYS: dict[str, dict[str, Any]] = {
    "thinking": {},
    "not thinking": OFF,
    "greedy": {"more": {"temperature": 0.0}, **OFF},
    "thinking shortly": {"thinking": {"type": "enabled", "budget_tokens": 4}},
    "with effort": {"output_config": {"effort": "low"}, "thinking": {"type": "adaptive"}},
    "without its thoughts": {"thinking": {"type": "adaptive", "display": "omitted"}},
    "cut": {"max_tokens": 5, **OFF},
    "with a stop text": {"stop_sequences": ["e", "a"], **OFF},
    "by vote": {"more": {"votes": 3}, **OFF},
    "of the likeliest": {"more": {"top_k": 5, "top_p": 0.9}, **OFF},
    "as JSON": {"output_config": {"format": {"type": "json_schema", "schema": TOWN}}, **OFF},
    "calling a tool": {"tools": [WEATHER], "tool_choice": {"type": "any"}, "max_tokens": 60, **OFF},
}


@pytest.mark.parametrize("way", WAYS)
def test_a_streamed_answer_is_the_same_as_one_told_at_once(client: Anthropic, way: str) -> None:
    whole, told = asked(client, **WAYS[way]), streamed(client, **WAYS[way])
    assert content_of(told) == content_of(whole) != []
    assert (told.stop_reason, told.stop_sequence) == (whole.stop_reason, whole.stop_sequence)
    assert told.usage.output_tokens == whole.usage.output_tokens > 0


def test_a_prompt_has_as_many_tokens_as_are_counted(client: Anthropic) -> None:
    for fields in (
        {},
        {"system": "Be short.", **OFF},
        {"messages": [*HI, {"role": "assistant", "content": "Ho"}, *HI], "thinking": {"type": "between_tools"}},
        {"tools": [WEATHER]},
        {"tools": [WEATHER], "tool_choice": {"type": "none"}},
    ):
        given: dict[str, Any] = {"model": "tiny", "messages": HI, **fields}
        counted = client.messages.count_tokens(**given).input_tokens
        for ask in (asked, streamed):
            usage = ask(client, **given).usage
            assert usage.input_tokens + (usage.cache_read_input_tokens or 0) == counted > 5
        events = client.messages.create(**fields_of(None, given), stream=True)
        first = next(iter(events))
        events.close()
        assert first.type == "message_start" and first.message.usage.input_tokens == counted


@pytest.mark.parametrize("budget", [1, 2, 5, 9])
def test_a_budget_is_kept_exactly(client: Anthropic, budget: int) -> None:
    message = asked(client, {"min_thinking_tokens": budget}, thinking={"type": "enabled", "budget_tokens": budget})
    assert message.usage.output_tokens_details is not None
    assert message.usage.output_tokens_details.thinking_tokens == budget
    assert message.content[0].type == "thinking"


def test_thinking_can_be_off_and_signatures_show_what_was_thought(client: Anthropic) -> None:
    assert [block.type for block in asked(client, **OFF).content] == ["text"]
    block = asked(client).content[0]
    assert block.type == "thinking" and block.signature == sha256(block.thinking.encode()).hexdigest()


def test_why_a_real_answer_stopped(client: Anthropic) -> None:
    whole = asked(client, {"temperature": 0.0}, **OFF)
    assert whole.content[0].type == "text" and whole.stop_reason in ("end_turn", "max_tokens")
    stop = whole.content[0].text[3]
    told = asked(client, {"temperature": 0.0}, stop_sequences=[stop], **OFF)
    assert (told.stop_reason, told.stop_sequence) == ("stop_sequence", stop)
    assert (
        "".join(block.text for block in told.content if block.type == "text")
        == whole.content[0].text.split(stop)[0].rstrip()
    )
    assert asked(client, max_tokens=2, **OFF).stop_reason == "max_tokens"
    long = [{"role": "user", "content": "x" * (TINY.max_length - 50)}]
    full = asked(client, {"min_thinking_tokens": 2000}, messages=long, max_tokens=5000)
    assert full.stop_reason == "model_context_window_exceeded"


def test_a_call_is_made_and_its_result_read(client: Anthropic) -> None:
    fields: dict[str, Any] = {"tools": [WEATHER], "tool_choice": {"type": "tool", "name": "weather"}, **OFF}
    message = asked(client, **fields, max_tokens=60)
    use = message.content[-1]
    assert message.stop_reason == "tool_use"
    assert use.type == "tool_use" and use.input["town"] in ("Ulm", "Rom")
    result = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": use.id, "content": "rain"}]}
    turns = [*HI, {"role": "assistant", "content": message.content}, result]
    assert asked(client, messages=turns, tools=[WEATHER], tool_choice={"type": "none"}, **OFF).content


def test_an_answer_as_a_schema_wants_it_is_read_by_the_package(client: Anthropic) -> None:
    class Town(BaseModel):
        town: Literal["Ulm", "Rom"]

    message = client.messages.parse(
        model="tiny", max_tokens=60, messages=HI, output_format=Town, thinking={"type": "enabled", "budget_tokens": 4},
        extra_body={"seed": 1},
    )  # fmt: skip
    assert isinstance(message.parsed_output, Town)


def test_a_key_that_there_is_not_is_an_error_of_its_own() -> None:
    class Refuses(Open):
        async def admit(self, scope: Any, api: Any, size: int) -> Who:
            raise ApiError(401, "No such key.")

    with (
        serving(gate=Refuses()) as server,
        server.anthropic("secret") as client,
        pytest.raises(AuthenticationError, match="No such key"),
    ):
        asked(client)


@pytest.mark.parametrize(
    ("fields", "kind", "said"),
    [
        ({"model": "another"}, NotFoundError, "no model 'another'"),
        ({"messages": []}, BadRequestError, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}, BadRequestError, "text only"),
        ({"messages": [*HI, {"role": "assistant", "content": "I"}]}, BadRequestError, "prefill"),
        ({"messages": [{"role": "user", "content": "x" * 3000}]}, BadRequestError, "tokens"),
        ({"more": {"temperature": 7}}, BadRequestError, "temperature"),
        ({"max_tokens": 0}, BadRequestError, "max_tokens"),
        ({"more": {"temprature": 1}}, BadRequestError, "'temperature'"),
        ({"more": {"max_tokens": None}}, BadRequestError, "max_tokens"),
        ({"thinking": {"type": "enabled", "budget_tokens": 24}}, BadRequestError, "greater than"),
        ({"stop_sequences": [""]}, BadRequestError, "empty"),
        ({"more": {"mcp_servers": [{}]}}, BadRequestError, "MCP"),
    ],
)
def test_errors_are_the_packages_own(client: Anthropic, fields: dict[str, Any], kind: Any, said: str) -> None:
    for ask in (asked, streamed):
        with pytest.raises(kind, match=said) as caught:
            ask(client, **fields)
        assert caught.value.body["type"] == "error" and caught.value.request_id.startswith("req_")


HOSTILE = [
    b"", b"[]", b"\xff", b"[" * 100_000, b'{"max_tokens": 1e999}', b'{"max_tokens": 5, "messages": [[]]}',
    b'{"max_tokens": 5, "messages": [{"role": "user", "content": "\\ud800"}]}',
    b'{"max_tokens": 5, "messages": [{"role": "user", "content": [{"type": "text", "text": "\\udfff"}]}]}',
    b'{"max_tokens": 5, "messages": [{"role": "user", "content": [{"type": {}, "text": 5}]}]}',
    b'{"max_tokens": 5, "messages": [{"role": "user", "content": "a"}], "system": [5]}',
    b'{"max_tokens": 5, "messages": [{"role": "user", "content": "a"}], "tools": [{"name": {}}]}',
    b'{"max_tokens": 5, "messages": [{"role": "user", "content": "a"}], "tool_choice": {"type": "tool", "name": []}}',
]  # fmt: skip


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens"])
def test_bodies_that_would_break_a_server_are_refused(server: Server, path: str) -> None:
    for body in HOSTILE:
        request = urllib.request.Request(server.url + path, body, {"Content-Type": "application/json"})
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(request)
        with caught.value as answer:
            said = json.loads(answer.read())
        assert (answer.code, said["type"], said["error"]["type"]) == (400, "error", "invalid_request_error"), body[:99]


def test_bodies_that_are_too_large_and_queues_that_are_full_have_their_own_errors() -> None:
    with serving(limits=Limits(body_bytes=2000), rows=1, queue=0) as server, server.anthropic() as client:
        with pytest.raises(RequestTooLargeError):
            asked(client, messages=[{"role": "user", "content": "x" * 3000}])
        with client.messages.stream(**fields_of({"min_thinking_tokens": 900}, {"max_tokens": 900})) as stream:
            next(iter(stream))
            with pytest.raises(ServiceUnavailableError) as caught:
                asked(client)
        assert caught.value.body["error"]["type"] == "overloaded_error"
        assert int(caught.value.response.headers["retry-after"]) >= 1


def test_a_client_that_goes_away_ends_the_work(server: Server, client: Anthropic) -> None:
    with client.messages.stream(**fields_of({"min_thinking_tokens": 900}, {"max_tokens": 900})) as stream:
        for _, _event in zip(range(6), stream, strict=False):
            assert server.host.tickets
    until = time.monotonic() + 10
    while server.host.tickets and time.monotonic() < until:
        time.sleep(0.01)
    assert not server.host.tickets


def test_an_engine_that_dies_is_told_of() -> None:
    fields = fields_of({"min_thinking_tokens": 900}, {"max_tokens": 900})
    with serving() as server, server.anthropic() as client, client.messages.stream(**fields) as stream:
        for _ in zip(range(6), stream, strict=False):
            pass
        assert server.host.pid is not None
        os.kill(server.host.pid, signal.SIGKILL)
        with pytest.raises(APIStatusError, match="engine"):
            stream.until_done()
