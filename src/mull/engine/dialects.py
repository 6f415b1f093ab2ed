"""Chat completions as each vendor speaks them: a request put into words, an answer or a refusal understood.

All claim to be compatible with OpenAI, and differ in what matters to an evaluation: how thinking is switched on, where
the thought is (a field of its own, parts, between marks in the answer, nowhere), whether thinking is counted among the
answer's tokens (OpenAI, DeepSeek) or beside them (xAI, Gemini), what an end is called, and how a mistake is reported.

Nothing an endpoint may send raises anything but BrokenAnswerError here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from hashlib import blake2b
from typing import Any, Literal

from mull.endpoints import Endpoint, Usage, put
from mull.text.thoughts import MARKS, Parser
from mull.types import Finish, Message, Request, Sampling, UserError

ENDS: dict[str, Finish] = {
    "stop": "stop", "end_turn": "stop", "stop_sequence": "stop", "eos": "stop", "eos_token": "stop",
    "tool_calls": "stop", "function_call": "stop", "tool_use": "stop",
    "length": "length", "max_tokens": "length", "max_output_tokens": "length", "model_length": "length",
    "model_context_window_exceeded": "length",
}  # fmt: skip
FILTERED = ("content_filter", "safety", "refusal", "recitation", "prohibited_content", "blocklist", "spii", "sensitive")
SENT = {  # what a Sampling has, under its name on the wire
    "temperature": "temperature", "top_p": "top_p", "top_k": "top_k", "min_p": "min_p",
    "repetition_penalty": "repetition_penalty", "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty", "stop": "stop", "min_thinking_tokens": "min_thinking_tokens",
    "thinking_closing": "closing",
}  # fmt: skip
UNSENT = ("grammar", "logit_bias", "stop_tokens", "ignore_end", "verbatim", "top_logprobs")
PLAIN = Sampling()
LETTERS = 300  # of what an endpoint says, in a sentence of ours
LONGEST_WAIT = 600.0  # seconds; who wants us to wait for longer wants us to come another day


class BrokenAnswerError(Exception):
    """What came is no answer; the message is one sentence. Another try may do."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What an endpoint answered."""

    finish: Finish
    text: str
    reasoning: str
    usage: Usage | None  # None: it did not say
    usd: float | None = None  # what it says that it charged
    filtered: bool = False
    shared: bool = False  # `usage.thinking` is the thought's share of the letters


@dataclass(frozen=True, slots=True)
class Refusal:
    """An answer that is none. `kind`: another try may help; this request is refused; so is every other;
    nothing is there that could answer.
    """

    kind: Literal["again", "this", "all", "away"]
    why: str
    wait: float | None = None  # seconds that it asks us to wait


def body(endpoint: Endpoint, request: Request, say: Callable[[str], None]) -> dict[str, Any]:
    """The request as this endpoint understands it; `say` is told what it cannot be told.

    Raises UserError for a request without messages, and for what changes an answer so much that leaving it out would
    mislead.
    """
    habits, sampling = endpoint.habits, request.sampling
    if not request.messages:
        raise UserError(f"{endpoint.name} is asked in messages; this request has none.")
    for name in UNSENT:
        if getattr(sampling, name) != getattr(PLAIN, name):
            raise UserError(f"An endpoint takes no {name}; {endpoint.name} cannot be asked so.")
    if not sampling.thinking and endpoint.always:
        raise UserError(f"{endpoint.name} always thinks; it cannot be asked to answer without.")
    limit = min(sampling.max_tokens, endpoint.max_output or sampling.max_tokens)
    asked: dict[str, Any] = {
        "model": endpoint.model,
        "messages": [_message(message, habits.system) for message in request.messages],
        habits.limit: limit,
    }
    asked |= _sampled(endpoint, sampling, say)
    if "seed" in habits.takes and "seed" not in endpoint.refuses:
        asked["seed"] = seed_of(request)
    if not sampling.thinking and endpoint.modes == (True,):
        say(f"{endpoint.name} has no switch for thinking; it is asked as it is.")
    asked |= json.loads(json.dumps(endpoint.switch(sampling.thinking)))
    if sampling.thinking:
        asked = _budgeted(endpoint, asked, sampling, limit)
    return asked | endpoint.extra


def _message(message: Message, system: str) -> dict[str, Any]:
    """Without its thought: earlier thoughts are not shown again, and DeepSeek refuses them."""
    written: dict[str, Any] = {"role": system if message.role == "system" else message.role, "content": message.content}
    if message.tool_calls:
        written["tool_calls"] = [dict(call) for call in message.tool_calls]
    for name in ("name", "tool_call_id"):
        if (value := getattr(message, name)) is not None:
            written[name] = value
    return written


def _sampled(endpoint: Endpoint, sampling: Sampling, say: Callable[[str], None]) -> dict[str, Any]:
    habits = endpoint.habits
    untaken = {*endpoint.refuses, *(endpoint.refuses_thinking if sampling.thinking else ())}
    asked: dict[str, Any] = {}
    for name, ours in SENT.items():
        value = getattr(sampling, ours)
        if name in habits.takes and name not in untaken:
            if value != getattr(PLAIN, ours) or name == "temperature":
                asked[name] = list(value) if isinstance(value, tuple) else value
        elif value != getattr(PLAIN, ours):
            say(f"{endpoint.name} takes no {name}: not {_shown(value)}, but what its maker has set holds.")
    if asked.get("temperature", 0.0) > habits.hottest:
        say(f"{endpoint.name} takes no temperature above {habits.hottest:g}; that is what it is sent.")
        asked["temperature"] = habits.hottest
    return asked


def _shown(value: object) -> str:
    return ", ".join(map(repr, value)) if isinstance(value, tuple) else str(value)


def _budgeted(endpoint: Endpoint, asked: dict[str, Any], sampling: Sampling, limit: int) -> dict[str, Any]:
    """With the budget of thinking tokens, which must leave room for an answer where a vendor counts both together."""
    path = endpoint.habits.budget if endpoint.budget is None else endpoint.budget
    if sampling.thinking_tokens is not None:
        if not path:
            instead = f" name an effort, {endpoint.name}:{endpoint.efforts[0]}." if endpoint.efforts else ""
            raise UserError(f"{endpoint.name} takes no budget of thinking tokens;{instead or ' leave it out.'}")
        asked = put(asked, path, sampling.thinking_tokens)
        if endpoint.dialect == "anthropic":
            asked = put(asked, "thinking.type", "enabled")
    thinking = asked.get("thinking")
    if isinstance(thinking, dict) and isinstance(thinking.get("budget_tokens"), int):
        thinking["budget_tokens"] = min(thinking["budget_tokens"], limit - 1)
    return asked


def seed_of(request: Request) -> int:
    """Of its draw: several answers to one problem must differ, and come out the same when asked again."""
    told = ",".join(map(str, (request.sampling.seed, *request.key)))
    return int.from_bytes(blake2b(told.encode(), digest_size=4).digest(), "big") >> 1


def parse(raw: bytes) -> Any:
    """JSON. Raises BrokenAnswerError."""
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        start = raw.lstrip()[:1].decode("latin-1")
        raise BrokenAnswerError(
            "it sent an HTML page" if start == "<" else "it sent no JSON, or half of it" if start else "it sent nothing"
        ) from None


def answer_of(payload: Any, endpoint: Endpoint, thinking: bool) -> Answer:
    """What a body that is no refusal says. Raises BrokenAnswerError."""
    choices = payload.get("choices") if isinstance(payload, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    if not isinstance(choice, dict):
        raise BrokenAnswerError("it sent no choices")
    message = choice.get("message")
    message = message if isinstance(message, dict) else {}
    text, reasoning = _apart(message, endpoint, thinking)
    finish, filtered = _end(choice)
    usage = usage_of(payload.get("usage"), endpoint)
    said = text or reasoning or filtered or message.get("tool_calls")
    if finish == "stop" and not said and not (usage and usage.output):  # a model that says nothing draws its end
        raise BrokenAnswerError("it sent an empty answer")
    shared = False
    if usage is not None and not usage.thinking and reasoning and not endpoint.habits.hides:
        part = len(reasoning) / (len(reasoning) + len(text))
        usage, shared = _thinking(usage, round(usage.output * part)), True
    return Answer(finish, text, reasoning, usage, charged(payload.get("usage")), filtered, shared)


def _thinking(usage: Usage, tokens: int) -> Usage:
    return Usage(usage.prompt, usage.output, tokens, usage.cached, usage.written)


def _end(choice: Mapping[str, Any]) -> tuple[Finish, bool]:
    told = choice.get("finish_reason")
    reason = told.lower() if isinstance(told, str) else ""
    if reason in FILTERED:
        return "stop", True
    if reason not in ENDS:  # error, abort, insufficient_system_resource; none at all
        raise BrokenAnswerError(f"its answer has no end: {told!r}"[:LETTERS])
    return ENDS[reason], False


def _apart(message: Mapping[str, Any], endpoint: Endpoint, thinking: bool) -> tuple[str, str]:
    """(text, reasoning), wherever the thought is."""
    content, thought = message.get("content"), ""
    if isinstance(content, list):  # of parts, as Mistral has them
        content, thought = _parts(content)
    text = content if isinstance(content, str) else ""
    if not text and isinstance(message.get("refusal"), str):
        text = message["refusal"]
    told = (message.get("reasoning_content"), message.get("reasoning"), _details(message.get("reasoning_details")))
    reasoning = thought or next((each for each in told if isinstance(each, str) and each), "")
    if not reasoning:
        text, reasoning = unmarked(text, thinking, endpoint.opens and thinking)
    return _clean(text).strip(), _clean(reasoning).strip("\n")


def _parts(parts: Sequence[Any]) -> tuple[str, str]:
    text, reasoning = [], []
    for part in parts:
        if not isinstance(part, dict):
            continue
        inner = part.get("thinking", part.get("reasoning"))
        if isinstance(inner, list):
            inner = "".join(_parts(inner)[0:1])
        if isinstance(inner, str):
            reasoning.append(inner)
        elif isinstance(part.get("text"), str):
            (reasoning if part.get("thought") is True else text).append(part["text"])
    return "".join(text), "".join(reasoning)


def _details(details: Any) -> str:
    """OpenRouter's: texts and summaries; what is encrypted says nothing."""
    if not isinstance(details, list):
        return ""
    each = (part.get("text") or part.get("summary") for part in details if isinstance(part, dict))
    return "".join(part for part in each if isinstance(part, str))


def unmarked(text: str, thinking: bool, opens: bool) -> tuple[str, str]:
    """(text, reasoning) of an answer that has its thought between marks, or ends it with one that its prompt opened."""
    marks = next((each for each in MARKS if text.lstrip().startswith(each.open)), None)
    if marks is None and not thinking:
        return text, ""
    if marks is None:
        marks = next((each for each in MARKS if each.close in text and each.open not in text), None)
        if marks is None and not opens:
            return text, ""
        opens = True
    parser = Parser(opens, not opens, marks or MARKS[0])
    fed, rest = parser.feed(text), parser.flush()
    return fed[1] + rest[1], fed[0] + rest[0]


def _clean(text: str) -> str:
    """Without halves of characters, which no file can hold."""
    return text.encode("utf-8", "replace").decode("utf-8")


def usage_of(told: Any, endpoint: Endpoint) -> Usage | None:
    """None where it says nothing that can be used.

    xAI's and Gemini's completion_tokens leave thinking out, which they charge for; their totals do not.
    """
    if not isinstance(told, dict):
        return None
    prompt, output = _count(told, "prompt_tokens", "input_tokens"), _count(told, "completion_tokens", "output_tokens")
    if not prompt and not output:
        return None
    of_prompt, of_output = _inner(told, "prompt_tokens_details"), _inner(told, "completion_tokens_details")
    thinking = _count(of_output, "reasoning_tokens") or _count(told, "reasoning_tokens")
    more = max(0, _count(told, "total_tokens") - prompt - output)
    if endpoint.dialect in ("gemini", "xai"):
        thinking = thinking or more
        output += more or (thinking if endpoint.dialect == "xai" and "total_tokens" not in told else 0)
    elif thinking and (more == thinking or thinking > output):
        output += thinking
    cached = _count(told, "prompt_cache_hit_tokens") or _count(of_prompt, "cached_tokens")
    written = _count(of_prompt, "cache_write_tokens", "cache_creation_tokens")
    return Usage(prompt, output, min(thinking, output), min(cached, prompt), min(written, prompt))


def charged(told: Any) -> float | None:
    """Dollars, where an endpoint says them: OpenRouter's cost, xAI's ticks of 1e-10."""
    if not isinstance(told, dict):
        return None
    for name, unit in (("cost", 1.0), ("cost_in_usd_ticks", 1e-10)):
        value = told.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e15:
            return value * unit
    return None


def _count(told: Mapping[str, Any], *names: str) -> int:
    for name in names:
        value = told.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 40:
            return value
    return 0


def _inner(told: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    inner = told.get(name)
    return inner if isinstance(inner, dict) else {}


def refusal_of(status: int, headers: Mapping[str, str], raw: bytes, endpoint: Endpoint) -> Refusal | None:
    """None for an answer. A mistake may come with status 200 too."""
    try:
        payload = parse(raw)
    except BrokenAnswerError as error:
        if status == 200:
            return Refusal("again", f"{endpoint.where} sent no answer: {error}.")
        payload = None
    said, code = _said(payload)
    if status == 200:
        if not said:
            return None
        status = int(code) if re.fullmatch("[45][0-9][0-9]", code) else 500
    told = f"answers {status}" + (f": {said}" if said else " with an HTML page" if raw.lstrip()[:1] == b"<" else "")
    told = told if told.endswith((".", "!", "?")) else f"{told}."
    if 300 <= status < 400:
        return Refusal("all", f"{endpoint.where} {told} It moves elsewhere, where a key is not sent; mend the address.")
    if status == 401 or status == 403:
        key = f"the key in {endpoint.key_env}" if endpoint.key_env else "an endpoint that wants a key (key_env)"
        return Refusal("all", f"{endpoint.where} {told} Look at {key}.")
    if status == 402 or code in ("insufficient_quota", "billing_hard_limit_reached", "insufficient_balance"):
        return Refusal("all", f"{endpoint.where} {told} The account behind {endpoint.key_env or 'it'} is empty.")
    if status == 404:
        look = f"Look at model {endpoint.model!r} and the address.{_gone(endpoint)}"
        return Refusal("all", f"{endpoint.where} {told} {look}")
    if status in (400, 405, 413, 415, 422):
        return Refusal("this", f"{endpoint.where} {told}")
    wait = wait_of(headers)
    if wait is not None and wait > LONGEST_WAIT:
        return Refusal("all", f"{endpoint.where} {told} It asks us to wait for {min(wait, 1e9) / 60:,.0f} minutes.")
    return Refusal("again", f"{endpoint.where} {told}", wait)


def _gone(endpoint: Endpoint) -> str:
    if endpoint.ends is None:
        return ""
    then = f"; its successor is {endpoint.successor}" if endpoint.successor else ""
    return f" Its maker ends it on {endpoint.ends}{then}."


def _said(payload: Any) -> tuple[str, str]:
    """(what is wrong, its code), ("", "") where nothing is: OpenAI's, vLLM's, FastAPI's and Google's forms."""
    if isinstance(payload, list) and payload:  # Google's
        payload = payload[0]
    if not isinstance(payload, dict):
        return "", ""
    error = payload.get("error")
    if error is None and payload.get("choices") is None:
        error = payload if payload.get("message") else payload.get("detail")
    if not error:
        return "", ""
    said, code = error, ""
    if isinstance(error, dict):
        said = error.get("message") or error.get("detail") or error.get("type") or error
        code = next((str(error[name]) for name in ("code", "status", "type") if error.get(name)), "")
    if not isinstance(said, str):
        said = json.dumps(said)
    return " ".join(_clean(said).split())[:LETTERS] or "an error without words", code


def wait_of(headers: Mapping[str, str], now: datetime | None = None) -> float | None:
    """Seconds that Retry-After asks for: a number, or a date."""
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        told = headers.get(name)
        if told is None:
            continue
        try:
            seconds = float(told) * unit
        except ValueError:
            try:
                seconds = (parsedate_to_datetime(told) - (now or datetime.now(UTC))).total_seconds()
            except (TypeError, ValueError, OverflowError):
                continue
        if seconds == seconds:
            return max(seconds, 0.0)
    return None


__all__ = [
    "Answer", "BrokenAnswerError", "Refusal", "answer_of", "body", "charged", "parse", "refusal_of", "seed_of",
    "unmarked", "usage_of", "wait_of",
]  # fmt: skip
