"""Whatever is sent becomes an Ask, or is refused in a sentence; nothing else."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from small import chat

from mull.engine.host import Host
from mull.serve.completions import TextRequest
from mull.serve.dialogue import Ask, Dialogue, ids_of
from mull.serve.errors import ApiError, of, of_validation
from mull.serve.openai_asks import ChatRequest, Turn, messages_of
from mull.types import Grammar, Message, UserError

DIALOGUE = Dialogue(Host({}), chat(), "tiny", 1024)  # its engine is never started
HELLO = [{"role": "user", "content": "x"}]
FUNCTION = {"name": "f", "parameters": {"type": "object"}}
SEEDS: dict[str, Any] = {  # something that each parameter could be, for what is drawn to start from
    "messages": HELLO, "model": "tiny", "temperature": 1, "top_p": 1, "top_k": 5, "min_p": 0, "n": 2, "stop": ["a"],
    "logit_bias": {"5": 1}, "seed": -1, "max_tokens": 5, "max_completion_tokens": 5, "stop_token_ids": [1],
    "tools": [{"type": "function", "function": FUNCTION}], "tool_choice": "required", "logprobs": True,
    "top_logprobs": 2, "response_format": {"type": "json_schema", "json_schema": {"schema": {}}},
    "structured_outputs": {"choice": ["a"]}, "guided_json": "{}", "thinking": {"type": "enabled", "budget_tokens": 5},
    "thinking_token_budget": 5, "min_thinking_tokens": 5, "chat_template_kwargs": {"thinking": True},
    "reasoning_effort": "low", "votes": 2, "modalities": ["text"], "functions": [], "function_call": "auto",
}  # fmt: skip
JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(["text", "none"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["type", "a", "role"]), inner),
    max_leaves=5,
)


def asked(kind: type[ChatRequest] | type[TextRequest], body: Any) -> list[Ask]:
    read = kind.model_validate(body)
    return [read.ask(DIALOGUE)] if isinstance(read, ChatRequest) else read.asks(DIALOGUE, 4)


@settings(deadline=None, max_examples=400)
@given(
    st.sampled_from([ChatRequest, TextRequest]),
    st.dictionaries(st.sampled_from([*SEEDS, "prompt", "echo", "suffix", "best_of"]), JUNK, max_size=3),
    st.sets(st.sampled_from([*SEEDS]), max_size=6),
)
def test_whatever_is_sent_is_understood_or_refused(kind: Any, junk: dict[str, Any], sane: set[str]) -> None:
    known = {field.alias or name for name, field in kind.model_fields.items()}
    body = {name: value for name, value in {**{name: SEEDS[name] for name in sane}, **junk}.items() if name in known}
    asks, told = [], None
    try:
        asks = asked(kind, {"messages": HELLO, **body} if kind is ChatRequest else body)
    except ValidationError as error:
        told = of_validation([{**one, "loc": ("body", *one["loc"])} for one in error.errors()])
    except (ApiError, UserError) as error:
        told = of(error)
    assert told is None or (told.status in (400, 404) and told.message.endswith((".", "?")))
    assert told is not None or asks
    for understood in asks:
        json.dumps([message.content for message in understood.messages])
        assert understood.sampling.max_tokens >= 1
        assert understood.n >= 1


def ask(**body: Any) -> Ask:
    [understood] = asked(ChatRequest, {"messages": HELLO, **body})
    return understood


def test_what_is_not_said_is_as_the_api_has_it() -> None:
    given = ask(seed=1)
    assert given.sampling.temperature == given.sampling.top_p == given.sampling.repetition_penalty == 1
    assert given.sampling.max_tokens == 1024  # what the model holds; the prompt is taken off later
    assert (given.n, given.votes, given.effort, given.tool_choice, given.parallel) == (1, 1, None, "auto", True)
    assert asked(TextRequest, {"prompt": "a"})[0].sampling.max_tokens == 16


def test_each_parameter_arrives() -> None:
    body = {
        "temperature": 0.5, "top_p": 0.9, "top_k": 7, "min_p": 0.1, "presence_penalty": 1, "frequency_penalty": -1,
        "repetition_penalty": 1.1, "seed": -5, "stop": "a", "stop_token_ids": [7], "ignore_eos": True,
        "logit_bias": {"9": -3}, "max_tokens": 9, "max_completion_tokens": 8, "top_logprobs": 4, "logprobs": True,
        "thinking_token_budget": 6, "min_thinking_tokens": 3, "thinking_closing": "so",
        "structured_outputs": {"regex": "a+"},
    }  # fmt: skip
    s = ask(**body).sampling
    assert (s.temperature, s.top_p, s.top_k, s.min_p) == (0.5, 0.9, 7, 0.1)
    assert (s.presence_penalty, s.frequency_penalty, s.repetition_penalty, s.seed) == (1, -1, 1.1, -5)
    assert (s.stop, s.stop_tokens, s.ignore_end, s.logit_bias) == (("a",), (7,), True, ((9, -3),))
    assert (s.max_tokens, s.top_logprobs, s.thinking_tokens, s.min_thinking_tokens, s.closing) == (8, 4, 6, 3, "so")
    assert s.grammar == Grammar("regex", "a+")
    assert ask(top_k=-1, thinking_token_budget=-1).sampling.thinking_tokens is None
    assert ask(tools=SEEDS["tools"], tool_choice={"type": "function", "function": {"name": "f"}}).tool_choice == "f"
    assert ask(cache_salt="s", n=3, votes=2, reasoning_effort="max", parallel_tool_calls=False).parallel is False


@pytest.mark.parametrize(("body", "grammar"), [
    ({"response_format": {"type": "text"}}, None),
    ({"response_format": {"type": "json_object"}}, Grammar("json")),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"a": 1}}}},
     Grammar("json_schema", '{"a": 1}')),
    ({"guided_json": {"a": 1}}, Grammar("json_schema", '{"a": 1}')),
    ({"guided_json": '{"a":1}'}, Grammar("json_schema", '{"a":1}')),
    ({"guided_choice": ["ä", "b"]}, Grammar("choice", '["ä", "b"]')),
    ({"guided_grammar": "root ::= x"}, Grammar("ebnf", "root ::= x")),
    ({"structured_outputs": {"json_object": True}}, Grammar("json")),
])  # fmt: skip
def test_forms_arrive_in_every_way_of_saying_them(body: dict[str, Any], grammar: Grammar | None) -> None:
    assert ask(**body).sampling.grammar == grammar


def test_messages_keep_what_they_hold() -> None:
    call = {"id": "c", "function": {"name": "f", "arguments": {"a": 1}}}
    turns = [
        Turn.model_validate(turn)
        for turn in (
            {"role": "developer", "content": "d", "name": "boss"},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "assistant", "content": None, "tool_calls": [call], "reasoning": "r"},
            {"role": "tool", "content": "t", "tool_call_id": "c"},
        )
    ]
    assert messages_of(turns) == (
        Message("system", "d", name="boss"),
        Message("user", "a\nb"),
        Message("assistant", "", "r", ({"id": "c", "type": "function", "function": call["function"]},)),
        Message("tool", "t", tool_call_id="c"),
    )


@pytest.mark.parametrize("kind", [ChatRequest, TextRequest])
def test_stop_tokens_are_of_the_vocabulary(kind: Any) -> None:
    size = DIALOGUE.chat.tokenizer.vocab_size
    body = {"messages": HELLO} if kind is ChatRequest else {"prompt": "a"}
    assert asked(kind, {**body, "stop_token_ids": [0, size - 1]})[0].sampling.stop_tokens == (0, size - 1)
    for wrong in (-1, size, 10**30):
        with pytest.raises(ApiError, match=f"they are 0 to {size - 1}") as refused:
            asked(kind, {**body, "stop_token_ids": [1, wrong]})
        assert (refused.value.status, refused.value.param) == (400, "stop_token_ids")


def test_a_plain_prompt_begins_as_the_model_is_used_to() -> None:
    t = chat().tokenizer
    assert ids_of("ab", t) == tuple(t.encode("ab"))
    assert ids_of("<|im_end|>", t) == (t.eos,)
    assert ids_of("", t) == (t.end_of_text,)
    assert ids_of([5, 6], t) == (5, 6)
