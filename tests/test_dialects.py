"""Requests put into each vendor's words, and whatever a vendor may send understood."""

from __future__ import annotations

import json
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mull.endpoints import DIALECTS, Endpoint, Usage, endpoint
from mull.engine.dialects import (
    BrokenAnswerError,
    answer_of,
    body,
    charged,
    parse,
    refusal_of,
    seed_of,
    unmarked,
    usage_of,
    wait_of,
)  # fmt: skip
from mull.types import Grammar, Message, Request, Sampling, UserError

ASKED = (Message("system", "Be brief."), Message("user", "1 + 1?"))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["choices", "message", "content", "finish_reason", "usage", "prompt_tokens", "error", "code",
                         "completion_tokens", "total_tokens", "reasoning", "reasoning_details", "text", "thinking",
                         "detail", "completion_tokens_details", "reasoning_tokens", "cost", "status", "type"]),
        inner, max_size=5),
    max_leaves=15,
)  # fmt: skip


def to(dialect: Any, **more: Any) -> Endpoint:
    return Endpoint.of_url("http://127.0.0.1:1/v1", "m", dialect=dialect, **more)


def sent(target: Endpoint, **sampling: Any) -> tuple[dict[str, Any], list[str]]:
    said: list[str] = []
    return body(target, Request((), Sampling(**sampling), (1, 2), ASKED), said.append), said


def whole(message: dict[str, Any], finish: Any = "stop", usage: Any = None) -> dict[str, Any]:
    return {"choices": [{"message": message, "finish_reason": finish}], "usage": usage}


def apart(message: dict[str, Any], dialect: str = "plain", **more: Any) -> tuple[str, str]:
    answer = answer_of(whole(message), to(dialect, **more), True)
    return answer.text, answer.reasoning


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_request_in_each_dialect(dialect: str) -> None:
    target = to(dialect)
    asked, said = sent(target, max_tokens=100, temperature=0.6, top_p=0.95, stop=("\n\n",))
    assert asked["model"] == "m" and asked["messages"][1] == {"role": "user", "content": "1 + 1?"}
    assert asked["messages"][0]["role"] == ("developer" if dialect == "openai" else "system")
    assert asked["max_completion_tokens" if dialect == "openai" else "max_tokens"] == 100
    assert asked["temperature"] == 0.6 and asked["top_p"] == 0.95
    assert (asked.get("stop") == ["\n\n"]) != any("takes no stop" in line for line in said)
    assert ("seed" in asked) == ("seed" in target.habits.takes)
    json.dumps(asked)


@pytest.mark.parametrize(("name", "thinking", "expected"), [
    ("o3:low", True, {"reasoning_effort": "low"}),
    ("deepseek-flash", True, {"thinking": {"type": "enabled"}}),
    ("deepseek-flash", False, {"thinking": {"type": "disabled"}}),
    ("deepseek-flash:max", True, {"thinking": {"type": "enabled"}, "reasoning_effort": "max"}),
    ("gemini-2.5-flash", False, {"reasoning_effort": "none"}),
    ("gemini-2.5-flash", True, {"extra_body": {"google": {"thinking_config": {"include_thoughts": True}}}}),
    ("gemini-4-neon:low", True,
     {"extra_body": {"google": {"thinking_config": {"include_thoughts": True, "thinking_level": "low"}}}}),
    ("claude-haiku-4-5", True, {"thinking": {"type": "enabled", "budget_tokens": 16_384}}),
    ("claude-haiku-4-5", False, {"thinking": {"type": "disabled"}}),
    ("claude-sonnet-5-5", True, {"thinking": {"type": "adaptive"}}),
    ("mull", True, {"chat_template_kwargs": {"enable_thinking": True}, "reasoning_effort": "max"}),
    ("mull:low", True, {"chat_template_kwargs": {"enable_thinking": True}, "reasoning_effort": "low"}),
    ("mull", False, {"chat_template_kwargs": {"enable_thinking": False}}),
])  # fmt: skip
def test_how_thinking_is_switched(name: str, thinking: bool, expected: dict[str, Any]) -> None:
    asked, _ = sent(endpoint(name), thinking=thinking, max_tokens=32_000)
    switches = ("thinking", "reasoning_effort", "extra_body", "chat_template_kwargs", "reasoning")
    assert {key: asked[key] for key in switches if key in asked} == expected


@pytest.mark.parametrize(("name", "path"), [
    ("gemini-2.5-pro", "extra_body.google.thinking_config.thinking_budget"),
    ("claude-haiku-4-5", "thinking.budget_tokens"), ("vllm", "thinking_token_budget"),
    ("mull", "thinking_token_budget"),
])  # fmt: skip
def test_a_budget_of_thinking_tokens(name: str, path: str) -> None:
    here: Any = sent(endpoint(name), thinking_tokens=2000, max_tokens=8000)[0]
    for key in path.split("."):
        here = here[key]
    assert here == 2000


def test_a_budget_leaves_room_where_both_are_counted_together() -> None:
    asked, _ = sent(endpoint("claude-haiku-4-5"), max_tokens=4000)
    assert asked["thinking"]["budget_tokens"] == 3999
    assert sent(endpoint("claude-haiku-4-5"), max_tokens=100_000)[0]["max_tokens"] == 64_000


@pytest.mark.parametrize(("name", "sampling", "words"), [
    ("o3", {"thinking": False}, "always thinks"),
    ("o3", {"thinking_tokens": 100}, "o3:low"),
    ("deepseek-v4-pro", {"thinking_tokens": 100}, "no budget"),
    ("vllm", {"grammar": Grammar("json")}, "no grammar"),
    ("vllm", {"logit_bias": ((1, 2.0),)}, "no logit_bias"),
    ("vllm", {"verbatim": True}, "no verbatim"),
])  # fmt: skip
def test_what_would_mislead_is_refused(name: str, sampling: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        sent(endpoint(name), **sampling)
    with pytest.raises(UserError, match="in messages"):
        body(endpoint(name), Request((1, 2)), print)


def test_what_is_left_out_is_said() -> None:
    assert "no switch" in sent(to("plain"), thinking=False)[1][0]
    asked, said = sent(endpoint("o3"), temperature=0.0)
    assert "temperature" not in asked and len(said) == 1 and "temperature" in said[0]
    assert sent(endpoint("o3"))[1] == []  # 1 is what it does
    asked, said = sent(to("anthropic"), temperature=1.5)
    assert asked["temperature"] == 1.0 and "above 1" in said[0]
    asked, said = sent(endpoint("deepseek-flash"), temperature=0.6)
    assert "temperature" not in asked and said
    assert sent(endpoint("deepseek-flash"), temperature=0.6, thinking=False)[0]["temperature"] == 0.6


def test_earlier_thoughts_are_not_shown_again() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "add", "arguments": "{}"}}
    turns = (Message("user", "?"), Message("assistant", "4", "because", tool_calls=(call,)),
             Message("tool", "5", tool_call_id="1"))  # fmt: skip
    asked = body(to("deepseek"), Request((), messages=turns), print)
    assert asked["messages"][1] == {"role": "assistant", "content": "4", "tool_calls": [call]}
    assert asked["messages"][2] == {"role": "tool", "content": "5", "tool_call_id": "1"}


def test_each_draw_has_its_own_seed() -> None:
    seeds = [seed_of(Request((), Sampling(seed=s), (0, i, k))) for s in range(3) for i in range(20) for k in range(8)]
    assert len({*seeds}) == len(seeds) and all(0 <= seed < 1 << 31 for seed in seeds)
    assert seed_of(Request((), Sampling(seed=5), (1, 2))) == seed_of(Request((9,), Sampling(seed=5), (1, 2), ASKED))


@pytest.mark.parametrize(("message", "expected"), [
    ({"content": " 4 ", "reasoning_content": "\nso\n"}, ("4", "so")),
    ({"content": "4", "reasoning": "so"}, ("4", "so")),
    ({"content": "4", "reasoning": "", "reasoning_content": None, "reasoning_details": [
        {"type": "reasoning.summary", "summary": "so"}, {"type": "reasoning.encrypted", "data": "x"}, 3]}, ("4", "so")),
    ({"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "so"}]},
                  {"type": "text", "text": "4"}]}, ("4", "so")),
    ({"content": [{"type": "thinking", "thinking": "so"}, {"type": "text", "text": "4"}, None]}, ("4", "so")),
    ({"content": "<think>so</think>4"}, ("4", "so")),
    ({"content": "\n<think>\nso\n</think>\n\n4"}, ("4", "so")),
    ({"content": "<think>\n\n</think>\n\n4"}, ("4", "")),
    ({"content": "<thought>so</thought>4"}, ("4", "so")),
    ({"content": "[THINK]so[/THINK]4"}, ("4", "so")),
    ({"content": "so</think>4"}, ("4", "so")),
    ({"content": "<think>so, and no end"}, ("", "so, and no end")),
    ({"content": "Write <think> and </think> around it."}, ("Write <think> and </think> around it.", "")),
    ({"content": "Write </think> behind it.", "reasoning": "so"}, ("Write </think> behind it.", "so")),
    ({"content": None, "refusal": "No."}, ("No.", "")),
])  # fmt: skip
def test_where_the_thought_is(message: dict[str, Any], expected: tuple[str, str]) -> None:
    assert apart(message) == expected


def test_a_thought_that_the_prompt_opened() -> None:
    assert apart({"content": "so</think>4"}, "vllm", opens=True) == ("4", "so")
    assert apart({"content": "so, and no end"}, "vllm", opens=True) == ("", "so, and no end")
    answer = answer_of(whole({"content": "so</think>4"}), to("vllm", opens=True), thinking=False)
    assert (answer.text, answer.reasoning) == ("so</think>4", "")


@given(st.text(), st.text(), st.booleans())
def test_marks_lose_nothing(thought: str, text: str, thinking: bool) -> None:
    if "</think>" in thought:
        return
    assert unmarked(f"<think>{thought}</think>{text}", thinking, False) == (text, thought)


@pytest.mark.parametrize(("dialect", "told", "expected"), [
    ("openai", {"prompt_tokens": 10, "completion_tokens": 50, "total_tokens": 60,
                "completion_tokens_details": {"reasoning_tokens": 40}, "prompt_tokens_details": {"cached_tokens": 8}},
     Usage(10, 50, 40, 8)),
    ("deepseek", {"prompt_tokens": 10, "completion_tokens": 50, "total_tokens": 60, "prompt_cache_hit_tokens": 4,
                  "completion_tokens_details": {"reasoning_tokens": 40}}, Usage(10, 50, 40, 4)),
    ("xai", {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 55,
             "completion_tokens_details": {"reasoning_tokens": 40}}, Usage(10, 45, 40)),
    ("xai", {"prompt_tokens": 10, "completion_tokens": 5, "completion_tokens_details": {"reasoning_tokens": 40}},
     Usage(10, 45, 40)),
    ("plain", {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 55,  # a gateway before xAI
               "completion_tokens_details": {"reasoning_tokens": 40}}, Usage(10, 45, 40)),
    ("gemini", {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 55}, Usage(10, 45, 40)),
    ("gemini", {"prompt_tokens": 10, "completion_tokens": 45, "total_tokens": 55,
                "completion_tokens_details": {"reasoning_tokens": 40}}, Usage(10, 45, 40)),
    ("plain", {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 99}, Usage(10, 5)),
    ("plain", {"input_tokens": 10, "output_tokens": 5}, Usage(10, 5)),
    ("plain", {"prompt_tokens": 10, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 99}},
     Usage(10, 5, 0, 10)),
    ("plain", {"prompt_tokens": 10, "completion_tokens": 5, "prompt_tokens_details": None}, Usage(10, 5)),
    ("plain", {"prompt_tokens": -10, "completion_tokens": "5"}, None), ("plain", {}, None), ("plain", None, None),
])  # fmt: skip
def test_usage(dialect: str, told: Any, expected: Usage | None) -> None:
    assert usage_of(told, to(dialect)) == expected


@pytest.mark.parametrize(("told", "usd"), [
    ({"cost": 0.25}, 0.25), ({"cost_in_usd_ticks": 25_000_000}, 0.0025), ({"cost": True}, None), ({"cost": -1}, None),
    ({"cost": float("nan")}, None), ({"cost": "1"}, None), ({}, None), (None, None),
])  # fmt: skip
def test_what_a_vendor_says_it_charged(told: Any, usd: float | None) -> None:
    assert charged(told) == pytest.approx(usd)


@pytest.mark.parametrize(("told", "seconds"), [
    ({}, None), ({"retry-after": "3"}, 3.0), ({"retry-after": "0.5"}, 0.5), ({"retry-after-ms": "250"}, 0.25),
    ({"retry-after": "Tue, 24 Nov 2026 12:00:30 GMT"}, 30.0), ({"retry-after": "Tue, 24 Nov 2026 11:00:00 GMT"}, 0.0),
    ({"retry-after": "soon"}, None), ({"retry-after": "nan"}, None), ({"retry-after": "-5"}, 0.0),
    ({"retry-after": "1e99"}, 1e99), ({"retry-after": "Tue, 24 Nov 2026 12:00:30"}, None),
])  # fmt: skip
def test_how_long_to_wait(told: dict[str, str], seconds: float | None) -> None:
    assert wait_of(told, datetime(2026, 11, 24, 12, 0, 0, tzinfo=UTC)) == seconds


@pytest.mark.parametrize(("status", "raw", "kind", "words"), [
    (200, b'{"choices": [{}], "error": null}', "", ""),
    (200, b'{"error": {"code": 429, "message": "slow down"}}', "again", "429: slow down"),
    (200, b'{"error": {"code": 401, "message": "no"}}', "all", "401"),
    (200, b'{"error": "boom"}', "again", "boom"),
    (200, b"<html>", "again", "HTML page"), (200, b"", "again", "nothing"),
    (502, b"<html>", "again", "HTML page"), (500, b"", "again", "500"), (599, b"{}", "again", "599"),
    (400, b'[{"error": {"code": 400, "message": "bad", "status": "INVALID_ARGUMENT"}}]', "this", "bad"),
    (400, b'{"object": "error", "message": "too long", "code": 400}', "this", "too long"),
    (422, b'{"detail": [{"msg": "wrong"}]}', "this", "wrong"), (404, b'{"detail": "Not Found"}', "all", "Not Found"),
    (401, b"{}", "all", "key"), (403, b"<html>", "all", "403"), (302, b"", "all", "mend the address"),
    (429, b'{"error": {"code": "insufficient_quota", "message": "quota"}}', "all", "empty"),
    (429, b'{"error": {"code": "rate_limit_exceeded", "message": "slow"}}', "again", "slow"),
    (400, b'{"error": {"message": "a\\nb \\ud83d"}}', "this", "a b ?"),
])  # fmt: skip
def test_refusals(status: int, raw: bytes, kind: str, words: str) -> None:
    refusal = refusal_of(status, {}, raw, to("plain"))
    if not kind:
        assert refusal is None
        return
    assert refusal is not None and refusal.kind == kind and words in refusal.why
    assert refusal.why.endswith((".", "!", "?")) and "\n" not in refusal.why and len(refusal.why) < 600


def test_who_asks_us_to_wait_for_a_day_is_not_asked_again() -> None:
    refusal = refusal_of(429, {"retry-after": "86400"}, b"{}", to("plain"))
    assert refusal is not None and refusal.kind == "all" and "1,440 minutes" in refusal.why
    refusal = refusal_of(429, {"retry-after": "1e300"}, b"{}", to("plain"))
    assert refusal is not None and refusal.kind == "all"


def test_a_model_that_is_gone_is_said_to_be_gone() -> None:
    refusal = refusal_of(404, {}, b'{"error": {"message": "no such model"}}', endpoint("deepseek-reasoner"))
    assert refusal is not None and "2026-07-24" in refusal.why and "deepseek-flash" in refusal.why


@given(JSON, st.sampled_from(DIALECTS), st.booleans())
def test_nothing_that_may_come_breaks_it(payload: Any, dialect: str, thinking: bool) -> None:
    whole_of = {"choices": [{"message": payload, "finish_reason": "stop"}], "usage": payload}
    for told in (payload, {"choices": [payload], "usage": payload, "error": payload}, whole_of):
        with suppress(BrokenAnswerError):
            answer = answer_of(told, to(dialect), thinking)
            assert answer.finish in ("stop", "length")
            assert answer.usage is None or answer.usage.thinking <= answer.usage.output
        for status in (200, 400, 429, 500):
            refusal = refusal_of(status, {}, json.dumps(told).encode(), to(dialect))
            assert (refusal is not None or status == 200) and (refusal is None or refusal.why)


@given(st.binary(max_size=200))
def test_no_bytes_break_it(raw: bytes) -> None:
    for status in (200, 500):
        refusal_of(status, {}, raw, to("plain"))
    with suppress(BrokenAnswerError):
        parse(raw)


def test_hostile_answers_take_no_time() -> None:
    began = datetime.now(UTC)
    for text in ("<" * 1_000_000, "<think>" * 200_000, "{" * 1_000_000, "</think>" * 200_000):
        answer_of(whole({"content": text}), to("plain"), True)
    with pytest.raises(BrokenAnswerError):
        parse(b'{"a":' * 500_000)
    with pytest.raises(BrokenAnswerError):
        parse(b"9" * 1_000_000)
    assert (datetime.now(UTC) - began).total_seconds() < 10
