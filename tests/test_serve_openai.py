"""OpenAI's protocol through OpenAI's own package, against a server that runs: every parameter, streamed and not."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

import openai
import pydantic
import pytest
from serving import Lesson, Server, serving, taught

from mull import hub
from mull.serve.errors import ApiError
from mull.serve.gate import Open, Scope, Spent, Who

PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL = {"type": "function", "function": {"name": "weather", "description": "Tells it.", "parameters": PARAMETERS}}
OTHER = {"type": "function", "function": {"name": "clock", "parameters": {"type": "object", "properties": {}}}}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>'
LESSONS = (
    Lesson("add", "It is 12. 你好 🙂", "7 and 5"),
    Lesson("rain?", "I look." + CALL + CALL.replace("Paris", "Rome"), f"not this: {CALL}", (TOOL,), (True,)),
)
GREEDY = {"model": "tiny", "temperature": 0}
USD = 0.25
NO_END = {"0": -100, "2": -100, "4": -100}  # of a turn, or of a thought by the model's own will


class Counting(Open):
    """A gate that has a price, and says no where it is told to."""

    refuse: ApiError | None = None

    def __init__(self) -> None:
        self.spent: list[Spent] = []

    async def admit(self, scope: Scope, api: Any, size: int) -> Who:
        if self.refuse is not None:
            raise self.refuse
        return await super().admit(scope, api, size)

    async def settle(self, who: Who, spent: Spent) -> float | None:
        self.spent.append(spent)
        return USD


GATE = Counting()


@pytest.fixture(scope="module", name="server")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder: Path = taught(tmp_path_factory.mktemp("model") / "tiny", *LESSONS)
    with serving(folder, GATE, options={"exact": True}) as server:
        yield server


@pytest.fixture(scope="module", name="client")
def connected(server: Server) -> Iterator[Any]:
    with server.openai() as client:
        yield client


@pytest.fixture(scope="module", name="ask")
def asking(client: Any) -> Any:
    """chat.completions.create with a question."""
    create = client.chat.completions.create

    def ask(question: str = "add", **options: Any) -> Any:
        return create(**{**GREEDY, "messages": [{"role": "user", "content": question}], **options})

    return ask


def whole(chunks: Any) -> tuple[list[dict[str, Any]], Any]:
    """(choices as an answer at once has them, usage) from a stream."""
    choices: dict[int, dict[str, Any]] = {}
    usage = None
    for chunk in chunks:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            one = choices.setdefault(choice.index, {"content": "", "reasoning": "", "tools": [], "logprobs": []})
            delta = choice.delta
            one["content"] += delta.content or ""
            one["reasoning"] += getattr(delta, "reasoning_content", None) or ""
            assert getattr(delta, "reasoning", None) == getattr(delta, "reasoning_content", None)
            one["tools"] += [(call.function.name, call.function.arguments) for call in delta.tool_calls or ()]
            one["logprobs"] += choice.logprobs.content if choice.logprobs else []
            one["finish"] = choice.finish_reason
    return [choices[index] for index in sorted(choices)], usage


def parts(answer: Any) -> list[dict[str, Any]]:
    """The same of an answer at once."""
    return [
        {
            "content": choice.message.content or "",
            "reasoning": getattr(choice.message, "reasoning_content", None) or "",
            "tools": [(call.function.name, call.function.arguments) for call in choice.message.tool_calls or ()],
            "logprobs": choice.logprobs.content if choice.logprobs else [],
            "finish": choice.finish_reason,
        }
        for choice in answer.choices
    ]


# what an answer holds


def test_an_answer_has_its_thought_apart_and_says_what_it_used(ask: Any, server: Server) -> None:
    answer = ask(seed=7)
    message = answer.choices[0].message
    assert message.content == "It is 12. 你好 🙂"
    assert message.reasoning == message.reasoning_content == "7 and 5"
    assert answer.choices[0].finish_reason == "stop"
    assert (answer.model, answer.system_fingerprint, answer.seed) == ("tiny", "tiny-fast", 7)
    usage, encode = answer.usage, server.dialogue.chat.tokenizer.encode
    assert usage.completion_tokens_details.reasoning_tokens == len(encode("7 and 5"))
    assert usage.completion_tokens == len(encode("7 and 5")) + 1 + len(encode("It is 12. 你好 🙂")) + 1
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert usage.cost_usd == USD
    spent = GATE.spent[-1]
    assert (spent.prompt_tokens, spent.completion_tokens) == (usage.prompt_tokens, usage.completion_tokens)
    assert spent.finish == "stop"
    assert 0 < spent.first_seconds <= spent.seconds


def test_a_prompt_that_is_known_is_told_to_be(ask: Any) -> None:
    question = "a question that is long enough for a page of the cache"
    before, after = (ask(question, max_tokens=2).usage for _ in range(2))
    assert before.prompt_tokens_details.cached_tokens == 0
    assert 0 < after.prompt_tokens_details.cached_tokens < after.prompt_tokens
    salted = ask(question, max_tokens=2, extra_body={"cache_salt": "mine"}).usage
    assert salted.prompt_tokens_details.cached_tokens == 0


DRAWS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0},
    "hot": {"temperature": 2},
    "n": {"temperature": 1.7, "n": 3, "logprobs": True, "top_logprobs": 2},
    "cuts": {"temperature": 2, "top_p": 0.9, "extra_body": {"top_k": 20, "min_p": 0.01}},
    "penalties": {"presence_penalty": 1, "frequency_penalty": 0.5, "extra_body": {"repetition_penalty": 1.2}},
    "stop": {"temperature": 2, "stop": ["a", "1", "\n", "你"]},
    "biased": {"temperature": 2, "logit_bias": {"70": 4, "71": -100}},
    "budget": {"temperature": 2, "extra_body": {"thinking_token_budget": 5}},
    "tools": {"tools": [TOOL]},
    "hidden": {"temperature": 2, "logprobs": True, "extra_body": {"include_reasoning": False}},
}


@pytest.mark.parametrize("name", DRAWS)
@pytest.mark.parametrize("question", ["add", "rain?", "something else"])
def test_streamed_or_not_an_answer_is_the_same(ask: Any, name: str, question: str) -> None:
    options = {"seed": 11, "max_tokens": 60, **DRAWS[name]}
    at_once = ask(question, **options)
    told, usage = whole(ask(question, stream=True, stream_options={"include_usage": True}, **options))
    assert told == parts(at_once)
    assert usage.completion_tokens == at_once.usage.completion_tokens
    assert usage.completion_tokens_details == at_once.usage.completion_tokens_details
    assert parts(ask(question, **options)) == told  # again, now with all of the prompt in the cache


def test_without_a_seed_one_is_drawn_and_told(ask: Any) -> None:
    options = {"question": "x", "temperature": 2, "max_tokens": 30}
    first, second = ask(**options), ask(**options)
    assert first.seed != second.seed
    assert parts(first) != parts(second)
    assert parts(ask(seed=first.seed, **options)) == parts(first)


def test_choices_differ_and_are_counted(ask: Any) -> None:
    answer = ask("x", temperature=2, n=4, seed=1, max_tokens=12, logit_bias=NO_END)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert len({choice.message.reasoning for choice in answer.choices}) == 4
    assert answer.usage.completion_tokens == 4 * 12
    alone = ask("x", temperature=2, n=2, seed=1, max_tokens=12, logit_bias=NO_END)
    assert parts(alone) == parts(answer)[:2]


def test_chunks_have_what_clients_look_for(ask: Any) -> None:
    chunks = [*ask(stream=True, stream_options={"include_usage": True})]
    assert len({chunk.id for chunk in chunks}) == 1
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices == []
    assert chunks[-1].usage.cost_usd == USD
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 2) + ["stop"]
    counted = [*ask(stream=True, stream_options={"include_usage": True, "continuous_usage_stats": True})]
    tokens = [chunk.usage.completion_tokens for chunk in counted if chunk.usage]
    assert tokens == sorted(tokens)
    assert len(set(tokens)) > 5


def test_the_other_client_too(server: Server) -> None:
    async def many() -> list[str]:
        client = openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
        async with client:
            create = partial(client.chat.completions.create, messages=[{"role": "user", "content": "add"}], **GREEDY)
            stream: Any = await create(stream=True)
            told = [chunk.choices[0].delta.content or "" async for chunk in stream if chunk.choices]
            at_once = await asyncio.gather(*(create() for _ in range(8)))
            return ["".join(told), *(answer.choices[0].message.content or "" for answer in at_once)]

    assert asyncio.run(many()) == ["It is 12. 你好 🙂"] * 9


# thinking


@pytest.mark.parametrize("off", [
    {"reasoning_effort": "none"},
    {"extra_body": {"thinking": {"type": "disabled"}}},
    {"extra_body": {"chat_template_kwargs": {"enable_thinking": False}}},
    {"extra_body": {"chat_template_kwargs": {"thinking": False}}},
    {"extra_body": {"chat_template_kwargs": {"thinking": False}, "thinking": {"type": "enabled"}}},
    {"reasoning_effort": "high", "extra_body": {"chat_template_kwargs": {"enable_thinking": False}}},
])  # fmt: skip
def test_thinking_is_turned_off_in_every_way_of_saying_so(ask: Any, off: dict[str, Any]) -> None:
    answer = ask(**off)
    assert answer.choices[0].message.content == "It is 12. 你好 🙂"
    assert not hasattr(answer.choices[0].message, "reasoning_content")
    assert answer.usage.completion_tokens_details.reasoning_tokens == 0


@pytest.mark.parametrize("on", [
    {"reasoning_effort": effort} for effort in ("minimal", "low", "medium", "high", "xhigh", "max")
] + [{"reasoning_effort": "none", "extra_body": {"thinking": {"type": "enabled"}}}])  # fmt: skip
def test_any_other_effort_thinks(ask: Any, on: dict[str, Any]) -> None:
    assert ask(**on).choices[0].message.reasoning == "7 and 5"


@pytest.mark.parametrize("budget", [0, 1, 2, 5, 20])
def test_a_budget_is_kept_to_the_token(ask: Any, budget: int) -> None:
    options = {"seed": 3, "temperature": 1, "max_tokens": 40, "logit_bias": NO_END}
    answer = ask("x", **options, extra_body={"thinking_token_budget": budget})
    assert answer.usage.completion_tokens_details.reasoning_tokens == budget
    anthropic = ask("x", **options, extra_body={"thinking": {"type": "enabled", "budget_tokens": budget or 1}})
    assert anthropic.usage.completion_tokens_details.reasoning_tokens == (budget or 1)


def test_a_thought_leaves_room_for_the_answer_unless_it_may_be_as_long_as_it_likes(ask: Any) -> None:
    options = {"seed": 3, "max_tokens": 40, "logit_bias": NO_END}

    def thought(**more: Any) -> int:
        return ask("x", **options, **more).usage.completion_tokens_details.reasoning_tokens

    assert thought() == thought(reasoning_effort="high") == 30
    assert thought(reasoning_effort="max") == thought(extra_body={"thinking_token_budget": 100}) == 40


def test_a_thought_is_closed_with_a_phrase_and_kept_open_by_force(ask: Any) -> None:
    closed = ask("x", max_tokens=60, logit_bias=NO_END, extra_body={
        "thinking_token_budget": 20, "thinking_closing": "So:",
    })  # fmt: skip
    assert closed.choices[0].message.reasoning.endswith("So:")
    assert closed.usage.completion_tokens_details.reasoning_tokens == 20
    opened = ask(max_tokens=60, extra_body={"min_thinking_tokens": 25})
    assert 25 <= opened.usage.completion_tokens_details.reasoning_tokens < 60


def test_thoughts_can_be_hidden_and_their_tokens_with_them(ask: Any) -> None:
    answer = ask(logprobs=True, extra_body={"include_reasoning": False})
    assert not hasattr(answer.choices[0].message, "reasoning")
    assert "".join(one.token for one in answer.choices[0].logprobs.content if "�" not in one.token).startswith("It is")
    assert answer.usage.completion_tokens_details.reasoning_tokens > 0


def test_earlier_thoughts_are_taken_back(ask: Any) -> None:
    for name in ("reasoning", "reasoning_content"):
        said = {"role": "assistant", "content": "It is 12.", name: "7 and 5"}
        turns = [{"role": "user", "content": "add"}, said, {"role": "user", "content": "add"}]
        assert ask(messages=turns, max_tokens=3).usage.prompt_tokens > 20


# drawing


def test_stops_end_an_answer_and_are_no_part_of_it(ask: Any, server: Server) -> None:
    for stop in (" 12", ["nothing", "12"], "is 1"):
        choice = ask(stop=stop).choices[0]
        assert choice.finish_reason == "stop"
        first = stop if isinstance(stop, str) else stop[-1]
        assert choice.message.content == "It is 12."[: "It is 12.".index(first)].strip()  # as every answer
    token = server.dialogue.chat.tokenizer.encode(" 12")[-1]
    assert ask(extra_body={"stop_token_ids": [token]}).choices[0].finish_reason == "stop"


def test_lengths_are_kept(ask: Any) -> None:
    short = ask(max_tokens=4)
    assert (short.choices[0].finish_reason, short.usage.completion_tokens) == ("length", 4)
    assert ask(max_tokens=50, max_completion_tokens=3).usage.completion_tokens == 3  # thinking included
    on = ask(max_tokens=40, extra_body={"ignore_eos": True})
    assert (on.choices[0].finish_reason, on.usage.completion_tokens) == ("length", 40)
    assert ask(max_tokens=1 << 30).choices[0].finish_reason == "stop"  # a bound, not a wish


def test_a_bias_decides(ask: Any, server: Server) -> None:
    token = server.dialogue.chat.tokenizer.encode("!")[0]
    answer = ask(max_tokens=5, reasoning_effort="none", logit_bias={str(token): 100})
    assert answer.choices[0].message.content == "!!!!!"


def test_log_probabilities_are_of_all_tokens_in_order(ask: Any) -> None:
    answer = ask(logprobs=True, top_logprobs=3)
    content = answer.choices[0].logprobs.content
    said = b"".join(bytes(one.bytes) for one in content).decode()
    assert said == "7 and 5</think>It is 12. 你好 🙂"
    for one in content:
        assert len(one.top_logprobs) == 3
        assert one.logprob == max(other.logprob for other in one.top_logprobs)  # greedy
        assert one.logprob <= 0
    assert ask(logprobs=True).choices[0].logprobs.content[0].top_logprobs == []


# a given form


def test_the_packages_own_helpers_understand_an_answer(client: Any) -> None:
    """`parse` sends a schema and reads the answer; `stream` puts chunks together."""

    class Sum(pydantic.BaseModel):
        right: bool
        value: Literal["a", "b"]

    asked = {**GREEDY, "messages": [{"role": "user", "content": "add"}], "max_tokens": 100}
    parsed = client.chat.completions.parse(**asked, response_format=Sum, reasoning_effort="none")
    assert isinstance(parsed.choices[0].message.parsed, Sum)
    with client.chat.completions.stream(**asked) as stream:
        told = [event.type for event in stream]
    assert "content.delta" in told
    assert stream.get_final_completion().choices[0].message.content == "It is 12. 你好 🙂"
    question = [{"role": "user", "content": "rain?"}]
    with client.chat.completions.stream(**{**asked, "messages": question, "max_tokens": 300}, tools=[TOOL]) as stream:
        names = [event.name for event in stream if event.type == "tool_calls.function.arguments.done"]
    assert names == ["weather", "weather"]


SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "integer"}, "b": {"enum": ["x", "y"]}},
    "required": ["a", "b"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("form", [
    {"response_format": {"type": "json_schema", "json_schema": {"name": "it", "schema": SCHEMA, "strict": True}}},
    {"extra_body": {"guided_json": SCHEMA}},
    {"extra_body": {"structured_outputs": {"json": json.dumps(SCHEMA)}}},
])  # fmt: skip
@pytest.mark.parametrize("effort", ["none", "low"])
def test_an_answer_keeps_to_a_schema_behind_its_thought(ask: Any, form: dict[str, Any], effort: str) -> None:
    answer = ask("x", reasoning_effort=effort, max_tokens=400, seed=1, temperature=0.7, **form)
    assert answer.choices[0].finish_reason in ("stop", "length")
    if answer.choices[0].finish_reason == "stop":
        read = json.loads(answer.choices[0].message.content)
        assert set(read) == {"a", "b"}
        assert isinstance(read["a"], int)
    assert (answer.usage.completion_tokens_details.reasoning_tokens > 0) is (effort == "low")


def test_an_answer_is_one_of_those_that_are_given(ask: Any) -> None:
    for form in ({"guided_choice": ["yes", "no"]}, {"structured_outputs": {"choice": ["yes", "no"]}}):
        assert ask("x", extra_body=form).choices[0].message.content in ("yes", "no")
    for form in ({"guided_regex": "[ab]{3}"}, {"structured_outputs": {"regex": "[ab]{3}"}}):
        content = ask("x", extra_body=form).choices[0].message.content
        assert len(content) == 3
        assert set(content) <= {"a", "b"}


# tools


def test_calls_are_found_in_the_answer_and_not_in_the_thought(ask: Any) -> None:
    answer = ask("rain?", tools=[TOOL])
    message = answer.choices[0].message
    assert answer.choices[0].finish_reason == "tool_calls"
    assert message.content == "I look."
    assert CALL in message.reasoning
    call, other = message.tool_calls
    assert call.id.startswith("call_")
    assert other.id != call.id
    assert (call.type, call.function.name, json.loads(call.function.arguments)) == ("function", "weather", {
        "city": "Paris",
    })  # fmt: skip


def test_calls_are_streamed_whole_and_numbered(ask: Any) -> None:
    chunks = [*ask("rain?", tools=[TOOL], stream=True)]
    calls = [call for chunk in chunks for choice in chunk.choices for call in choice.delta.tool_calls or ()]
    assert [call.index for call in calls] == [0, 1]
    assert len({call.id for call in calls}) == 2
    assert [json.loads(call.function.arguments)["city"] for call in calls] == ["Paris", "Rome"]
    one = ask("rain?", tools=[TOOL], parallel_tool_calls=False).choices[0].message
    assert len(one.tool_calls) == 1


def test_no_tools_no_calls(ask: Any) -> None:
    for without in ({}, {"tools": [TOOL], "tool_choice": "none"}):
        message = ask("rain?", **without).choices[0].message
        assert message.tool_calls is None


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "clock"}}])
def test_a_model_that_must_call_does(ask: Any, choice: Any) -> None:
    answer = ask("x", tools=[TOOL, OTHER], tool_choice=choice, max_tokens=300, reasoning_effort="none", seed=2)
    if answer.choices[0].finish_reason == "length":
        assert answer.choices[0].message.tool_calls is None
        return
    [call] = answer.choices[0].message.tool_calls
    assert answer.choices[0].finish_reason == "tool_calls"
    assert answer.choices[0].message.content is None
    assert call.function.name in (("weather", "clock") if choice == "required" else ("clock",))
    assert isinstance(json.loads(call.function.arguments), dict)


@pytest.mark.parametrize("arguments", ['{"city": "Paris"}', {"city": "Paris"}])
def test_results_of_tools_are_taken_back(ask: Any, arguments: Any) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": arguments}}
    turns = [
        {"role": "user", "content": "rain?"},
        {"role": "assistant", "content": None, "tool_calls": [call], "reasoning_content": "so"},
        {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
    ]
    assert ask(messages=turns, tools=[TOOL], max_tokens=3).usage.prompt_tokens > 40


# messages


def test_content_in_parts_is_its_text(ask: Any) -> None:
    text = {"type": "text", "text": "add"}
    assert parts(ask([text])) == parts(ask("add"))
    assert parts(ask([text, text], max_tokens=9)) == parts(ask("add\nadd", max_tokens=9))


def test_a_developer_is_the_system(ask: Any) -> None:
    told = [
        ask(messages=[{"role": role, "content": "Be short."}, {"role": "user", "content": "x"}], max_tokens=9)
        for role in ("developer", "system")
    ]
    assert parts(told[0]) == parts(told[1])
    assert told[0].usage.prompt_tokens == told[1].usage.prompt_tokens


HARMLESS = {
    "user": "me", "store": True, "metadata": {"a": "b"}, "service_tier": "auto", "safety_identifier": "x",
    "prompt_cache_key": "k", "prompt_cache_retention": "24h", "verbosity": "low", "parallel_tool_calls": True,
    "modalities": ["text"], "prediction": {"type": "content", "content": "x"}, "stream": False, "n": None,
}  # fmt: skip


def test_what_has_no_meaning_here_is_accepted(ask: Any) -> None:
    assert parts(ask(extra_body=HARMLESS)) == parts(ask())


IMAGE = [{"type": "image_url", "image_url": {"url": "data:,"}}]
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "messages": ({"messages": []}, "messages"),
    "messages.0.role": ({"messages": [{"role": "boss", "content": "x"}]}, "'developer'"),
    "messages.0.content": ({"messages": [{"role": "user", "content": IMAGE}]}, "text only"),
    "messages.0.tool_call_id": ({"messages": [{"role": "tool", "content": "x"}]}, "tool_call_id"),
    "temperature": ({"temperature": 2.5}, "less than or equal to 2"),
    "top_p": ({"top_p": 0}, "greater than 0"),
    "n": ({"n": 0}, "at least"),
    "stop": ({"stop": ["a", ""]}, "empty"),
    "max_tokens": ({"max_tokens": 0}, "greater than or equal to 1"),
    "logit_bias": ({"logit_bias": {"300": 1}}, "0 to 299"),
    "top_logprobs": ({"top_logprobs": 3}, "logprobs"),
    "stream_options": ({"stream_options": {"include_usage": True}}, "stream: true"),
    "modalities": ({"modalities": ["text", "audio"]}, "text only"),
    "functions": ({"functions": [{"name": "f", "parameters": {}}]}, "tools"),
    "web_search_options": ({"web_search_options": {}}, "no web"),
    "tool_choice": ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "no"}}}, "'no'"),
    "tools": ({"tools": [TOOL, TOOL]}, "same name"),
    "tools.0.type": ({"tools": [{"type": "web_search"}]}, "'function'"),
    "response_format": ({"response_format": {"type": "json_schema"}}, "schema"),
    "min_thinking_tokens": ({"extra_body": {"min_thinking_tokens": 9, "thinking_token_budget": 8}}, "9"),
    "reasoning_effort": ({"reasoning_effort": "hard"}, "'xhigh'"),
}


@pytest.mark.parametrize("param", REFUSED)
@pytest.mark.parametrize("stream", [False, True])
def test_what_is_wrong_is_said_and_named(ask: Any, param: str, stream: bool) -> None:
    options, why = REFUSED[param]
    with pytest.raises(openai.BadRequestError) as refused:
        ask(**({} if param == "stream_options" else {"stream": stream}), **options)
    assert refused.value.param == param
    assert why.lower() in refused.value.message.lower() or param == "n"
    assert refused.value.type == "invalid_request_error"


@pytest.mark.parametrize(("body", "why"), [
    ({"temprature": 1}, "'temperature'"),
    ({"chat_template_kwargs": {"tokenize": True}}, "enable_thinking and thinking only"),
    ({"chat_template_kwargs": {"enable_thinking": True, "thinking": False}}, "on and off"),
    ({"guided_json": {}, "guided_regex": "a"}, "one form"),
    ({"guided_regex": "a", "tools": [TOOL]}, "tools"),
    ({"votes": 2, "n": 2}, "n must be 1"),
    ({"stop": 5}, "string"),
])  # fmt: skip
def test_parameters_of_no_api_are_checked_too(ask: Any, body: dict[str, Any], why: str) -> None:
    with pytest.raises(openai.BadRequestError, match=why):
        ask(extra_body=body)


def test_a_conversation_that_is_too_long_has_the_code_that_clients_look_for(ask: Any) -> None:
    with pytest.raises(openai.BadRequestError, match="holds 1024") as refused:
        ask("x" * 2000)
    assert refused.value.code == "context_length_exceeded"


def test_another_model_is_not_found(ask: Any) -> None:
    with pytest.raises(openai.NotFoundError, match="this server has 'tiny'") as refused:
        ask(model="gpt-5")
    assert refused.value.code == "model_not_found"


@pytest.mark.parametrize(("status", "kind"), [
    (401, openai.AuthenticationError), (403, openai.PermissionDeniedError), (429, openai.RateLimitError),
    (503, openai.InternalServerError),
])  # fmt: skip
def test_refusals_of_the_house_are_the_packages_own_exceptions(ask: Any, status: int, kind: Any) -> None:
    GATE.refuse = ApiError(status, "Not now.", code="why", retry_after=7)
    try:
        with pytest.raises(kind, match="Not now") as refused:
            ask()
    finally:
        GATE.refuse = None
    assert refused.value.status_code == status
    assert refused.value.code == "why"
    assert refused.value.response.headers["retry-after"] == "7"
    assert refused.value.request_id.startswith("req_")


# votes


def test_a_vote_gives_one_answer_and_counts_all(ask: Any) -> None:
    answer = ask(extra_body={"votes": 3})
    assert len(answer.choices) == 1
    assert answer.choices[0].message.content == "It is 12. 你好 🙂"
    assert answer.votes == {"agreed": 3, "of": 3}
    assert answer.usage.completion_tokens == 3 * ask().usage.completion_tokens
    assert answer.usage.prompt_tokens == ask().usage.prompt_tokens
    chunks = [*ask(stream=True, extra_body={"votes": 3})]
    assert "".join(c.delta.content or "" for chunk in chunks for c in chunk.choices) == "It is 12. 你好 🙂"
    assert chunks[-1].votes == {"agreed": 3, "of": 3}


def test_half_a_character_is_told_by_its_bytes(ask: Any, server: Server) -> None:
    """Tokens cut characters where they like; their bytes together are the text's."""
    answer = ask(logprobs=True, top_logprobs=1, reasoning_effort="none")
    scored = answer.choices[0].logprobs.content
    assert any("\ufffd" in one.token for one in scored)  # the smiling face has several
    assert b"".join(bytes(one.bytes) for one in scored).decode() == answer.choices[0].message.content


@pytest.mark.slow
@pytest.mark.skipif(hub.resolve("smollm2") is None, reason="smollm2 has not been pulled: `mull pull smollm2`")
def test_a_real_model_answers() -> None:
    folder = hub.resolve("smollm2")
    with serving(folder) as server, server.openai() as client:
        asked = {"model": "tiny", "temperature": 0, "max_tokens": 24, "messages": [
            {"role": "user", "content": "What is the capital of France?"},
        ]}  # fmt: skip
        answer = client.chat.completions.create(**asked)
        assert "Paris" in answer.choices[0].message.content
        assert answer.usage.completion_tokens_details.reasoning_tokens == 0  # it does not think
        assert whole(client.chat.completions.create(**asked, stream=True))[0] == parts(answer)
        choices = [f"The capital of France is {city}." for city in ("Lyon", "Paris", "Nice")]
        chosen = client.chat.completions.create(**asked, extra_body={"guided_choice": choices})
        assert chosen.choices[0].message.content == choices[1]
        text = client.completions.create(model="tiny", prompt="The capital of France is", temperature=0, max_tokens=4)
        assert text.choices[0].text.startswith(" Paris")
