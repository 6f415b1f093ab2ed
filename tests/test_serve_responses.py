"""OpenAI's Responses: what is read of a request, what is told of events, and what the real client makes of a server."""

from __future__ import annotations

import json
import os
import signal
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai import BadRequestError, InternalServerError, NotFoundError, OpenAI
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter, ValidationError
from serving import TINY, Server, serving

from mull.serve.dialogue import Event, ToolCall
from mull.serve.errors import ApiError
from mull.serve.gate import Open, Who
from mull.serve.responses import Shelf, Telling
from mull.serve.responses_asks import Create, ask_of, messages_of
from mull.types import Grammar, Message, UserError

EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
TOWN = {
    "type": "object", "properties": {"town": {"enum": ["Ulm", "Rom"]}}, "required": ["town"],
    "additionalProperties": False,
}  # fmt: skip
WEATHER = {"type": "function", "name": "weather", "description": "Of a town.", "parameters": TOWN, "strict": True}
USAGE = {
    "input_tokens": 3, "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0}, "output_tokens": 5,
    "output_tokens_details": {"reasoning_tokens": 2}, "total_tokens": 8,
}  # fmt: skip


def create(**fields: Any) -> Create:
    return Create(**{"model": "m", "input": "Hi", **fields})


def frames_of(raw: list[bytes]) -> list[dict[str, Any]]:
    """The events of SSE frames, each checked to be one that the openai package knows, whole."""
    events = []
    for frame in raw:
        kind, data = frame.decode().removesuffix("\n\n").split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert kind == f"event: {event['type']}"
        EVENT.validate_python(event)
        events.append(event)
    return events


def told(events: list[Event], finish: str = "stop", **fields: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """(stream events, response)."""
    telling = Telling(create(**fields), "m")
    raw = telling.begin()
    for event in events:
        raw += telling.hear(event)
    raw += telling.end(finish, USAGE)
    return frames_of(raw), telling.response


def test_a_text_is_a_users_message_behind_the_instructions() -> None:
    ask = ask_of(create(instructions="Be short."))
    assert ask.messages == (Message("system", "Be short."), Message("user", "Hi"))


def test_what_is_asked_of_the_sampler_reaches_it() -> None:
    ask = ask_of(
        create(
            max_output_tokens=7, temperature=0.5, top_p=0.9, top_k=3, min_p=0.1, seed=5, stop=["a", "b"],
            top_logprobs=2, thinking_token_budget=4, min_thinking_tokens=2, votes=3, reasoning={"effort": "low"},
            cache_salt="pepper",
        )
    )  # fmt: skip
    s = ask.sampling
    assert (s.max_tokens, s.temperature, s.top_p, s.top_k, s.min_p, s.seed) == (7, 0.5, 0.9, 3, 0.1, 5)
    assert (s.stop, s.top_logprobs, s.thinking_tokens, s.min_thinking_tokens) == (("a", "b"), 2, 4, 2)
    assert (ask.votes, ask.effort, ask.salt) == (3, "low", "pepper")
    assert ask_of(create(stop="x")).sampling.stop == ("x",)


def test_formats_become_grammars() -> None:
    schema = {"type": "object", "properties": {"a": {"enum": [1, None]}, "b": {"default": None}}}
    body = create(text={"format": {"type": "json_schema", "name": "n", "schema": schema, "strict": True}})
    grammar = ask_of(body).sampling.grammar
    assert grammar is not None and grammar.kind == "json_schema" and json.loads(grammar.text) == schema
    assert Telling(body, "m").response["text"]["format"]["schema"] == schema
    assert ask_of(create(text={"format": {"type": "json_object"}})).sampling.grammar == Grammar("json")
    assert ask_of(create(text={"format": {"type": "text"}, "verbosity": "low"})).sampling.grammar is None


def test_a_turn_of_several_items_becomes_one_message() -> None:
    items = [
        {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "Be"}]},
        {"role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "I ask."}]},
        {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": "{}"},
        {"type": "function_call", "call_id": "c2", "name": "time", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "noon"}]},
        {"type": "function_call_output", "call_id": "c1", "output": "rain"},
        {"type": "reasoning", "id": "rs_2", "summary": [], "content": None},
        {"role": "assistant", "content": "It rains."},
        {"role": "assistant", "content": "Still."},
    ]
    calls = tuple(
        {"id": ident, "type": "function", "function": {"name": name, "arguments": "{}"}}
        for ident, name in (("c1", "weather"), ("c2", "time"))
    )
    assert messages_of(items) == [
        Message("system", "Be"),
        Message("user", "a\nb"),
        Message("assistant", "I ask.", "hm", calls),
        Message("tool", "noon", name="time", tool_call_id="c2"),
        Message("tool", "rain", name="weather", tool_call_id="c1"),
        Message("assistant", "It rains."),
        Message("assistant", "Still."),
    ]


def test_thoughts_of_earlier_turns_stay_away_where_only_the_current_ones_count() -> None:
    thought = {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "hm"}]}
    items = [
        {"role": "user", "content": "a"}, thought, {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"}, thought,
        {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "rain"},
    ]  # fmt: skip
    for context, thoughts in (
        ("auto", [None, "hm", None, "hm", None]),
        ("current_turn", [None, None, None, "hm", None]),
    ):
        ask = ask_of(create(input=items, reasoning={"context": context}))
        assert [message.reasoning for message in ask.messages] == thoughts


def test_tools_and_their_choice() -> None:
    assert ask_of(create(parallel_tool_calls=True)).parallel and not ask_of(create(parallel_tool_calls=False)).parallel
    other = {**WEATHER, "name": "time"}
    ask = ask_of(create(tools=[WEATHER], tool_choice={"type": "function", "name": "weather"}))
    assert ask.tool_choice == "weather"
    assert ask.tools[0]["function"] == {k: WEATHER[k] for k in ("name", "description", "parameters")}
    allowed = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "time"}]}
    ask = ask_of(create(tools=[WEATHER, other], tool_choice=allowed))
    assert ask.tool_choice == "required" and [tool["function"]["name"] for tool in ask.tools] == ["time"]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"background": True}, "background"),
        ({"conversation": "conv_1"}, "Conversations"),
        ({"prompt": {"id": "p"}}, "stored prompts"),
        ({"moderation": {"model": "m"}}, "moderated"),
        ({"input": []}, "empty"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "item_reference"),
        ({"input": [{"type": ["message"]}]}, "not known"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "http://x"}]}]}, "text only"),
        ({"input": [{"role": "user", "content": ["text"]}]}, "text only"),
        ({"input": [{"role": "user", "content": 5}]}, "a text, or a list"),
        ({"input": [{"role": "tool", "content": "a"}]}, "role is user"),
        ({"input": [{"type": "function_call", "call_id": "c", "name": "n", "arguments": {}}]}, "arguments"),
        ({"input": [{"type": "function_call_output", "call_id": "c", "output": "x"}]}, "no function_call before"),
        ({"tools": [{"type": "web_search"}]}, "web_search"),
        ({"tools": [{"type": "function"}]}, "needs a `name`"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "name": {}}}, "not among the tools"),
        ({"tools": [WEATHER], "tool_choice": "weather"}, "tool_choice is"),
        ({"tool_choice": "required"}, "no tools"),
        ({"text": {"format": {"type": "json_schema", "name": "n"}}}, "schema"),
    ],
)
def test_what_is_not_served_is_refused_in_a_sentence(fields: dict[str, Any], said: str) -> None:
    with pytest.raises((ApiError, UserError), match=said):
        ask_of(create(**fields))


@pytest.mark.parametrize(
    "fields",
    [{"nonsense": 1}, {"temperature": float("nan")}, {"temperature": -1}, {"max_output_tokens": 0}, {"top_p": 0}],
)
def test_what_is_no_request_is_none(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        create(**fields)


def test_what_clients_send_by_habit_is_read() -> None:
    create(
        user="u", safety_identifier="s", prompt_cache_key="k", service_tier="auto", metadata={"a": "b"},
        include=["reasoning.encrypted_content"], stream_options={"include_obfuscation": False}, store=False,
        context_management=[{"type": "compaction"}], max_tool_calls=3, truncation="disabled",
        reasoning={"effort": "high", "summary": "auto"},
    )  # fmt: skip


def test_the_order_of_the_events_is_openais() -> None:
    call = ToolCall("call_1", "weather", '{"town": "Ulm"}')
    events = [
        Event(0, reasoning="h"),
        Event(0, reasoning="m"),
        Event(0, text="I "),
        Event(0, text="ask."),
        Event(0, tool=call),
    ]
    stream, response = told(events, "tool_calls", tools=[WEATHER])
    assert [event["type"].removeprefix("response.") for event in stream] == [
        "created", "in_progress",
        "output_item.added", "content_part.added", "reasoning_text.delta", "reasoning_text.delta",
        "reasoning_text.done", "content_part.done", "output_item.done",
        "output_item.added", "content_part.added", "output_text.delta", "output_text.delta",
        "output_text.done", "content_part.done", "output_item.done",
        "output_item.added", "function_call_arguments.delta", "function_call_arguments.done", "output_item.done",
        "completed",
    ]  # fmt: skip
    assert [event["sequence_number"] for event in stream] == list(range(len(stream)))
    assert [event["output_index"] for event in stream if "output_index" in event] == [0] * 7 + [1] * 7 + [2] * 4
    assert stream[0]["response"]["output"] == [] and stream[0]["response"]["status"] == "in_progress"
    assert stream[-1]["response"] == response
    Response.model_validate(response, strict=True)
    reasoning, message, asked = response["output"]
    assert reasoning["content"] == [{"type": "reasoning_text", "text": "hm"}] and reasoning["summary"] == []
    assert message["content"][0]["text"] == "I ask."
    assert (asked["call_id"], asked["name"], asked["arguments"]) == ("call_1", "weather", '{"town": "Ulm"}')
    assert {item["status"] for item in response["output"]} == {"completed"}


def test_an_answer_that_is_cut_is_incomplete() -> None:
    stream, response = told([Event(0, reasoning="hm")], "length")
    assert stream[-1]["type"] == "response.incomplete"
    assert response["status"] == "incomplete" and response["incomplete_details"] == {"reason": "max_output_tokens"}
    assert response["output"][0]["status"] == "incomplete"


def test_an_answer_that_breaks_off_has_failed() -> None:
    telling = Telling(create(), "m")
    stream = frames_of(telling.begin() + telling.hear(Event(0, text="I ")) + telling.fail("The engine stopped."))
    assert stream[-1]["type"] == "response.failed" and stream[-2]["type"] == "response.output_item.done"
    assert stream[-1]["response"]["error"] == {"code": "server_error", "message": "The engine stopped."}


pieces = st.one_of(
    st.builds(lambda text: Event(0, reasoning=text), st.text(min_size=1)),
    st.builds(lambda text: Event(0, text=text), st.text(min_size=1)),
    st.builds(lambda n: Event(0, tool=ToolCall(f"c{n}", "weather", "{}")), st.integers(0, 999)),
)


@given(st.lists(pieces, max_size=12), st.sampled_from(["stop", "length", "tool_calls"]))
def test_what_is_streamed_adds_up_to_what_is_not(events: list[Event], finish: str) -> None:
    stream, response = told(events, finish, tools=[WEATHER])
    plain = Telling(create(tools=[WEATHER]), "m", streaming=False)
    assert not plain.begin() and not any(plain.hear(event) for event in events) and not plain.end(finish, USAGE)
    deltas: dict[int, str] = {}
    for event in stream:
        if event["type"].endswith(".delta"):
            deltas[event["output_index"]] = deltas.get(event["output_index"], "") + event["delta"]

    def texts(response: dict[str, Any]) -> list[str]:
        return [i["arguments"] if i["type"] == "function_call" else i["content"][0]["text"] for i in response["output"]]

    assert [*deltas.values()] == texts(response) == texts(plain.response)
    assert stream[-1]["response"] == response and response["status"] == plain.response["status"]
    done = [event["item"] for event in stream if event["type"] == "response.output_item.done"]
    assert done == response["output"]


def test_the_shelf_forgets_the_oldest_and_shows_no_one_anothers() -> None:
    shelf = Shelf(count=2, characters=10_000)
    for name in "abc":
        shelf.put("me", {"id": name}, (Message("user", name),))
    with pytest.raises(ApiError):
        shelf.get("me", "a")
    assert shelf.get("me", "c").messages == (Message("user", "c"),)
    with pytest.raises(ApiError):
        shelf.get("you", "c")
    with pytest.raises(ApiError):
        shelf.delete("you", "c")
    shelf.put("me", {"id": "d"}, (Message("user", "x" * 9_990),))
    assert len(shelf) == 0 and shelf.size == 0, "too large for all of the shelf: not even itself is kept"
    shelf.put("me", {"id": "e"}, ())
    shelf.delete("me", "e")
    assert len(shelf) == 0 and shelf.size == 0


def test_nobodys_responses_are_driven_out_by_anothers() -> None:
    shelf = Shelf(count=3, characters=2000)
    shelf.put("you", {"id": "mine"}, (Message("user", "?"),))
    for number in range(50):  # many small ones
        shelf.put("me", {"id": f"small {number}"}, ())
    assert len(shelf) == 1 + 3
    for number in range(50):  # and large ones
        shelf.put("me", {"id": f"large {number}"}, (Message("user", "x" * 900),))
    assert len(shelf) == 1 + 2 and shelf.size <= 2000
    assert shelf.get("you", "mine").messages == (Message("user", "?"),)
    assert shelf.get("me", "large 49")


# against a server


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving() as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[OpenAI]:
    with server.openai() as made:
        yield made


def asked(client: OpenAI, more: dict[str, Any] | None = None, **fields: Any) -> Response:
    """An answer of few tokens; `more` is what the package does not know."""
    fields = {"model": "tiny", "input": "Hi", "max_output_tokens": 24, **fields}
    return client.responses.create(**fields, extra_body={"seed": 1, **(more or {})})


def streamed(client: OpenAI, more: dict[str, Any] | None = None, **fields: Any) -> list[Any]:
    fields = {"model": "tiny", "input": "Hi", "max_output_tokens": 24, **fields}
    return list(client.responses.create(**fields, stream=True, extra_body={"seed": 1, **(more or {})}))


def said(response: Response) -> list[Any]:
    """What was answered, without the names of items."""
    kept = ("type", "status", "content", "name", "arguments")
    return [{name: value for name, value in item.to_dict().items() if name in kept} for item in response.output]


PLAIN = {"reasoning": {"effort": "none"}}
WAYS: dict[str, dict[str, Any]] = {
    "thinking": {},
    "not thinking": PLAIN,
    "greedy": {"temperature": 0.0, **PLAIN},
    "thinking shortly": {"more": {"thinking_token_budget": 4}},
    "cut": {"max_output_tokens": 5, **PLAIN},
    "with log-probabilities": {"include": ["message.output_text.logprobs"], "top_logprobs": 2, **PLAIN},
    "with a stop text": {"more": {"stop": ["e", "a"]}, **PLAIN},
    "by vote": {"more": {"votes": 3}, **PLAIN},
    "as JSON": {"text": {"format": {"type": "json_schema", "name": "n", "schema": TOWN}}, **PLAIN},
    "calling a tool": {"tools": [WEATHER], "tool_choice": "required", "max_output_tokens": 60, **PLAIN},
}


@pytest.mark.parametrize("way", WAYS)
def test_a_streamed_answer_is_the_same_as_one_told_at_once(client: OpenAI, way: str) -> None:
    whole, events = asked(client, **WAYS[way]), streamed(client, **WAYS[way])
    assert events[-1].type in ("response.completed", "response.incomplete")
    last = events[-1].response
    assert said(last) == said(whole) and last.status == whole.status
    assert last.usage.output_tokens == whole.usage.output_tokens > 0
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    thought = "".join(event.delta for event in events if event.type == "response.reasoning_text.delta")
    assert text == whole.output_text
    assert thought == "".join(item.content[0].text for item in whole.output if item.type == "reasoning")


def test_the_packages_own_stream_ends_in_the_response(client: OpenAI) -> None:
    fields: dict[str, Any] = {"model": "tiny", "input": "Hi", "extra_body": {"seed": 1}, **PLAIN}
    with client.responses.stream(**fields) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert kinds[0] == "response.created" and kinds[-1] == "response.completed"
    assert final.output_text == client.responses.create(**fields).output_text != ""


def test_thoughts_are_an_item_and_are_counted(client: OpenAI) -> None:
    least = {"thinking_token_budget": 6, "min_thinking_tokens": 6}
    response = asked(client, least)
    assert response.output[0].type == "reasoning"
    assert response.usage is not None and response.usage.output_tokens_details.reasoning_tokens == 6
    response = asked(client, **PLAIN)
    assert [item.type for item in response.output] == ["message"]
    assert response.usage is not None and response.usage.output_tokens_details.reasoning_tokens == 0
    assert response.usage.total_tokens == response.usage.input_tokens + response.usage.output_tokens


def test_an_answer_as_a_schema_wants_it_is_read_by_the_package(client: OpenAI) -> None:
    class Town(BaseModel):
        town: Literal["Ulm", "Rom"]

    response = client.responses.parse(
        model="tiny", input="Hi", text_format=Town, extra_body={"seed": 1, "thinking_token_budget": 4}
    )
    assert isinstance(response.output_parsed, Town)


def test_a_call_is_made_and_its_result_read(client: OpenAI) -> None:
    fields: dict[str, Any] = {"tools": [WEATHER], "tool_choice": {"type": "function", "name": "weather"}, **PLAIN}
    first = asked(client, **fields, max_output_tokens=60)
    call = first.output[-1]
    assert call.type == "function_call" and json.loads(call.arguments)["town"] in ("Ulm", "Rom")
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "rain"}
    question = {"role": "user", "content": "Hi"}
    given = asked(client, input=[question, *first.output, result], tools=[WEATHER], tool_choice="none", **PLAIN)
    continued = asked(
        client, input=[result], previous_response_id=first.id, tools=[WEATHER], tool_choice="none", **PLAIN
    )
    assert said(given) == said(continued)


def test_a_conversation_goes_on_from_the_response_before(client: OpenAI) -> None:
    first = asked(client, instructions="Be short.", **PLAIN)
    question = {"role": "user", "content": "And?"}
    continued = asked(client, input="And?", previous_response_id=first.id, **PLAIN)
    given = asked(client, input=[{"role": "user", "content": "Hi"}, *first.output, question], **PLAIN)
    assert said(continued) == said(given), "the instructions before do not count any more"
    assert continued.previous_response_id == first.id
    assert said(client.responses.retrieve(first.id)) == said(first)
    client.responses.delete(first.id)
    for gone in (lambda: client.responses.retrieve(first.id), lambda: asked(client, previous_response_id=first.id)):
        with pytest.raises(NotFoundError, match="no response"):
            gone()
    unkept = asked(client, store=False)
    with pytest.raises(NotFoundError):
        client.responses.retrieve(unkept.id)


def test_responses_are_kept_for_whom_they_were_made() -> None:
    class ByName(Open):
        async def admit(self, scope: Any, api: Any, size: int) -> Who:
            return Who(dict(scope["headers"])[b"authorization"].decode())

    with serving(gate=ByName()) as server, server.openai("me") as me, server.openai("you") as you:
        mine = asked(me)
        me.responses.retrieve(mine.id)
        with pytest.raises(NotFoundError):
            you.responses.retrieve(mine.id)
        with pytest.raises(NotFoundError):
            asked(you, previous_response_id=mine.id)


def test_tokens_are_counted_without_an_answer(client: OpenAI) -> None:
    counted = client.responses.input_tokens.count(model="tiny", input="Hi", instructions="Be short.")
    usage = asked(client, instructions="Be short.").usage
    assert usage is not None and counted.input_tokens == usage.input_tokens


def test_a_conversation_that_is_too_long_is_refused_or_loses_its_oldest_turns(client: OpenAI) -> None:
    turns = [{"role": role, "content": f"{at} " + "x " * 60} for at in range(12) for role in ("user", "assistant")]
    turns = [{"role": "developer", "content": "Be short."}, *turns, {"role": "user", "content": "Hi"}]
    with pytest.raises(BadRequestError, match="tokens") as caught:
        asked(client, input=turns)
    assert caught.value.code == "context_length_exceeded"
    kept = next(at for at in range(1, 26, 2) if counted(client, [turns[0], *turns[at:]]) <= TINY.max_length - 24)
    usage = asked(client, input=turns, truncation="auto").usage
    assert usage is not None and usage.input_tokens == counted(client, [turns[0], *turns[kept:]])


def counted(client: OpenAI, items: list[Any]) -> int:
    return client.responses.input_tokens.count(model="tiny", input=items).input_tokens


@pytest.mark.parametrize(
    ("fields", "kind", "said"),
    [
        ({"model": "another"}, NotFoundError, "no model 'another'"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
            BadRequestError,
            "text",
        ),
        ({"temperature": 7}, BadRequestError, "temperature"),
        ({"more": {"temprature": 1}}, BadRequestError, "'temperature'"),
        ({"more": {"input": 5}}, BadRequestError, "input"),
        ({"tools": [{"type": "web_search"}]}, BadRequestError, "web_search"),
        ({"background": True}, BadRequestError, "background"),
        ({"previous_response_id": "resp_none"}, NotFoundError, "no response"),
        ({"input": [{"role": "assistant", "content": ""}]}, BadRequestError, "empty"),
        ({"metadata": {"a": "b" * 600}}, BadRequestError, "metadata"),
        ({"text": {"format": {"type": "json_schema", "name": "n", "schema": {"type": 5}}}}, BadRequestError, None),
    ],
)
def test_errors_are_the_packages_own(client: OpenAI, fields: dict[str, Any], kind: Any, said: str | None) -> None:
    for ask in (asked, streamed):
        with pytest.raises(kind, match=said):
            ask(client, **fields)


HOSTILE = [
    b"", b"{", b"[]", b"null", b"\xff", b'{"input": 1e999}', b"[" * 100_000, b'{"a":' * 900 + b"1" + b"}" * 900,
    b'{"input": "a", "seed": 1' + b"0" * 5000 + b"}",
    b'{"input": "\\ud800"}', b'{"input": [{"role": "user", "content": "\\udfff"}]}',
    b'{"input": "a", "metadata": {"a": "\\ud800"}}', b'{"input": "a", "instructions": "\\ud800", "store": true}',
    b'{"input": "a", "tools": [{"type": "function", "name": "a", "parameters": {"x": "\\ud800"}}]}',
    b'{"input": "a", "text": {"format": {"type": "json_schema", "schema": {"enum": ["\\ud800"]}}}}',
    b'{"input": [' + b"[" * 300 + b"]" * 301 + b"}",
]  # fmt: skip


@pytest.mark.parametrize("body", HOSTILE, ids=range(len(HOSTILE)))
def test_bodies_that_would_break_a_server_are_refused(server: Server, body: bytes) -> None:
    status, raw = posted(server, "/v1/responses", body)
    assert status == 400 and json.loads(raw)["error"]["message"], raw


def posted(server: Server, path: str, body: bytes) -> tuple[int, bytes]:
    request = urllib.request.Request(server.url + path, body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def test_a_client_that_goes_away_ends_the_work(server: Server, client: OpenAI) -> None:
    stream = client.responses.create(
        model="tiny", input="Hi", stream=True, max_output_tokens=900, extra_body={"min_thinking_tokens": 900}
    )
    for _, _event in zip(range(6), stream, strict=False):
        assert server.host.tickets
    stream.close()
    until = time.monotonic() + 10
    while server.host.tickets and time.monotonic() < until:
        time.sleep(0.01)
    assert not server.host.tickets


def test_an_engine_that_dies_is_told_of_and_comes_again() -> None:
    with serving() as server, server.openai() as client:
        stream = client.responses.create(
            model="tiny", input="Hi", stream=True, max_output_tokens=900, extra_body={"min_thinking_tokens": 900}
        )
        events = [next(stream) for _ in range(6)]
        assert server.host.pid is not None
        os.kill(server.host.pid, signal.SIGKILL)
        events += list(stream)
        assert events[-1].type == "response.failed" and "engine" in events[-1].response.error.message
        until = time.monotonic() + 60
        while not server.host.alive and time.monotonic() < until:
            with pytest.raises(InternalServerError):
                asked(client)
            time.sleep(0.1)
        assert asked(client).status in ("completed", "incomplete")
