"""What OpenAI's clients send, understood: pydantic for the shape and the ranges, then an `Ask`.

All parameters of the API are known. What cannot be done is refused where leaving it out would mislead (pictures, tools
that run elsewhere), and accepted where it would not (user, store, metadata, service_tier). Parameters that nobody knows
are refused: they are misspelt more often than not.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, FailFast, Field, model_validator

from mull.serve import effort
from mull.serve.dialogue import Ask, Dialogue, a_seed
from mull.serve.errors import ApiError, refused
from mull.types import Grammar, Message, Sampling

T = TypeVar("T")


class _AtFirst(FailFast):
    """Ends the reading of a list or dict at its first mistake: a million mistakes take a minute to write down."""

    __hash__ = object.__hash__  # pyright: ignore[reportAssignmentType]  # parts of unions need one


AT_FIRST = _AtFirst()
Many = Annotated[list[T], AT_FIRST]
Tokens = Annotated[int, Field(ge=1, le=1 << 31)]
Seed = Annotated[int, Field(ge=-(1 << 63), lt=1 << 63)]
Penalty = Annotated[float, Field(ge=-2, le=2)]


class Shape(BaseModel):
    """Of a JSON object; what it may hold besides is nothing."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _suggest(cls, raw: Any) -> Any:
        known = [field.alias or name for name, field in cls.model_fields.items()]
        unknown = next((name for name in raw if name not in known), None) if isinstance(raw, Mapping) else None
        if unknown is not None:
            shown = str(unknown)[:60]
            near = difflib.get_close_matches(shown, known, 1)
            hint = f"; is {near[0]!r} meant?" if near else ""
            raise ValueError(f"There is no parameter {shown!r}{hint}")
        return raw


class Loose(BaseModel):
    """Of a JSON object that clients put things of their own into."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)


class Part(Loose):
    type: str
    text: str | None = None
    refusal: str | None = None


class FunctionCall(Loose):
    name: str
    arguments: str | dict[str, Any] = "{}"


class Called(Loose):
    """A call that the assistant made earlier."""

    id: str = ""
    type: Literal["function"] = "function"
    function: FunctionCall


class Turn(Loose):
    """A message."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Many[Part] | None = None
    name: str | None = None
    tool_calls: Many[Called] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None


class Function(Loose):
    name: str = Field(min_length=1, max_length=64, pattern="^[a-zA-Z0-9_.-]+$")
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Loose):
    type: Literal["function"]
    function: Function


class Named(Loose):
    name: str


class Chosen(Loose):
    type: Literal["function"] = "function"
    function: Named


class Schema(Loose):
    name: str = "answer"
    description: str | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: bool | None = None


class Format(Shape):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: Schema | None = None


class Structured(Shape):
    """What the answer must look like, as vLLM's clients say it."""

    json_: dict[str, Any] | str | None = Field(default=None, alias="json")
    json_object: bool | None = None
    regex: str | None = None
    choice: Many[str] | None = None
    grammar: str | None = None


class Switch(Loose):
    """DeepSeek's and Anthropic's way to turn thinking on and off."""

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: Tokens | None = None


class StreamOptions(Loose):
    include_usage: bool = False
    continuous_usage_stats: bool = False


class Drawing(Shape):
    """What chat and plain completion have in common: how to draw."""

    model: str | None = None
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=-1, le=1 << 31)  # -1 and 0 keep everything
    min_p: float | None = Field(default=None, ge=0, le=1)
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: float | None = Field(default=None, gt=0, le=10)
    logit_bias: Annotated[dict[str, float], AT_FIRST] | None = None
    seed: Seed | None = None
    n: int | None = Field(default=None, ge=1, le=128)
    stop: str | Many[str] | None = None
    stop_token_ids: Many[int] | None = None
    ignore_eos: bool | None = None
    max_tokens: Tokens | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    structured_outputs: Structured | None = None
    guided_json: dict[str, Any] | str | None = None
    guided_regex: str | None = None
    guided_choice: Many[str] | None = None
    guided_grammar: str | None = None
    cache_salt: str | None = Field(default=None, max_length=512)
    user: str | None = None

    def sampling(self, dialogue: Dialogue) -> Sampling:
        """Raises ApiError where it is another model that is asked for."""
        if self.model and self.model != dialogue.name:
            why = f"There is no model {self.model[:80]!r} here; this server has {dialogue.name!r}."
            raise ApiError(404, why, "model", "model_not_found")
        return Sampling(
            max_tokens=self.max_tokens or dialogue.max_length,
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            top_k=max(0, self.top_k or 0),
            min_p=self.min_p or 0.0,
            presence_penalty=self.presence_penalty or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
            repetition_penalty=self.repetition_penalty or 1.0,
            seed=a_seed() if self.seed is None else self.seed,
            logit_bias=self._biases(dialogue.chat.tokenizer.vocab_size),
            stop=self._stops(),
            stop_tokens=self._stop_tokens(dialogue.chat.tokenizer.vocab_size),
            ignore_end=bool(self.ignore_eos),
            grammar=self.grammar(),
        )

    def _stops(self) -> tuple[str, ...]:
        stops = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        if "" in stops:
            raise refused("stop: an empty text would stop every answer before it begins.", "stop")
        return stops

    def _stop_tokens(self, vocab: int) -> tuple[int, ...]:
        given = tuple(self.stop_token_ids or ())
        if (wrong := next((token for token in given if not 0 <= token < vocab), None)) is not None:
            why = f"stop_token_ids: {str(wrong)[:20]} is no token id; they are 0 to {vocab - 1}."
            raise refused(why, "stop_token_ids")
        return given

    def _biases(self, vocab: int) -> tuple[tuple[int, float], ...]:
        biases = []
        for token, bias in (self.logit_bias or {}).items():
            if not (token.isascii() and token.isdigit() and len(token) < 10 and int(token) < vocab):
                why = f"logit_bias: {token[:20]!r} is no token id; they are 0 to {vocab - 1}."
                raise refused(why, "logit_bias")
            if not -100 <= bias <= 100:
                raise refused(f"logit_bias: {bias:g} is out of range; biases are -100 to 100.", "logit_bias")
            biases.append((int(token), bias))
        return tuple(biases)

    def grammars(self) -> list[Grammar]:
        """All that is asked of the answer's form; more than one is too much."""
        s = self.structured_outputs or Structured()
        found = [_json(given) for given in (s.json_, self.guided_json) if given is not None]
        found += [Grammar("json")] if s.json_object else []
        found += [Grammar("regex", given) for given in (s.regex, self.guided_regex) if given is not None]
        found += [
            Grammar("choice", json.dumps(given, ensure_ascii=False))
            for given in (s.choice, self.guided_choice)
            if given is not None
        ]
        return found + [Grammar("ebnf", given) for given in (s.grammar, self.guided_grammar) if given is not None]

    def grammar(self) -> Grammar | None:
        found = self.grammars()
        if len(found) > 1:
            raise refused("An answer can have one form: give one of response_format, structured_outputs and guided_*.")
        return found[0] if found else None


class ChatRequest(Drawing):
    messages: Many[Turn] = Field(min_length=1)
    max_completion_tokens: Tokens | None = None  # thinking included, as max_tokens; this one wins
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    response_format: Format | None = None
    tools: Many[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | Chosen | None = None
    parallel_tool_calls: bool | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    thinking: Switch | None = None
    thinking_token_budget: int | None = Field(default=None, ge=-1, le=1 << 31)  # -1: none
    min_thinking_tokens: int | None = Field(default=None, ge=0, le=1 << 31)
    thinking_closing: str | None = Field(default=None, max_length=1024)
    chat_template_kwargs: dict[str, Any] | None = None
    include_reasoning: bool = True
    votes: int | None = Field(default=None, ge=1, le=128)
    # known, and of no consequence here
    store: bool | None = None
    metadata: dict[str, Any] | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_options: dict[str, Any] | None = None
    prompt_cache_retention: str | None = None
    verbosity: str | None = None
    prediction: dict[str, Any] | None = None
    # known, and refused
    modalities: Many[str] | None = None
    audio: dict[str, Any] | None = None
    moderation: dict[str, Any] | None = None
    web_search_options: dict[str, Any] | None = None
    functions: Many[dict[str, Any]] | None = None
    function_call: Any = None

    def ask(self, dialogue: Dialogue) -> Ask:
        """Raises ApiError and UserError."""
        self._refuse()
        drawn = self.sampling(dialogue)
        tools = tuple(tool.model_dump(exclude_none=True) for tool in self.tools or ())
        choice = self._tool_choice()
        if drawn.grammar is not None and tools and choice != "none":
            why = "An answer of a given form cannot call tools: give response_format or tools, or tool_choice none."
            raise refused(why, "response_format")
        sampling = replace(
            drawn, max_tokens=self.max_completion_tokens or drawn.max_tokens, top_logprobs=self.top_logprobs or 0,
            thinking_tokens=self._budget(), min_thinking_tokens=self.min_thinking_tokens or 0,
            closing=self.thinking_closing or "",
        )  # fmt: skip
        return Ask(
            messages=messages_of(self.messages), sampling=sampling, n=self.n or 1, votes=self.votes or 1,
            effort=self.reasoning_effort, tools=tools, tool_choice=choice,
            parallel=self.parallel_tool_calls is not False, template=self._template(),
            salt=self.cache_salt or "", logprobs=bool(self.logprobs),
        )  # fmt: skip

    def _refuse(self) -> None:
        if self.audio is not None or (self.modalities and self.modalities != ["text"]):
            raise refused("This model answers in text only; leave modalities and audio out.", "modalities")
        if self.functions or self.function_call:
            raise refused("functions and function_call are gone from the API; use tools and tool_choice.", "functions")
        if self.web_search_options is not None:
            raise refused("This server searches no web; leave web_search_options out.", "web_search_options")
        if self.moderation is not None:
            raise refused("This server moderates nothing; leave moderation out.", "moderation")
        if self.top_logprobs is not None and not self.logprobs:
            raise refused("top_logprobs needs logprobs: true.", "top_logprobs")

    def _budget(self) -> int | None:
        budget = self.thinking_token_budget
        if budget is None and self.thinking is not None:
            budget = self.thinking.budget_tokens
        if budget is None or budget < 0:
            return None
        if (self.min_thinking_tokens or 0) > budget:
            why = f"min_thinking_tokens ({self.min_thinking_tokens}) is more than the budget of {budget} tokens."
            raise refused(why, "min_thinking_tokens")
        return budget

    def _template(self) -> dict[str, Any]:
        template = self.chat_template_kwargs or {}
        if effort.switched(template) is None and self.thinking is not None and self.thinking.type != "adaptive":
            return {"enable_thinking": self.thinking.type == "enabled"}
        return template

    def _tool_choice(self) -> str:
        names = [tool.function.name for tool in self.tools or ()]
        if len(set(names)) < len(names):
            raise refused("Two tools have the same name.", "tools")
        if self.tool_choice is None or isinstance(self.tool_choice, str):
            if self.tool_choice == "required" and not names:
                raise refused("tool_choice required needs tools.", "tool_choice")
            return self.tool_choice or "auto"
        if (name := self.tool_choice.function.name) not in names:
            raise refused(f"tool_choice names {name[:64]!r}, which is not among the tools.", "tool_choice")
        return name

    def grammars(self) -> list[Grammar]:
        form = self.response_format
        found = super().grammars()
        if form is None or form.type == "text":
            return found
        if form.type == "json_object":
            return [*found, Grammar("json")]
        if form.json_schema is None or form.json_schema.schema_ is None:
            raise refused("response_format json_schema needs json_schema: {schema: ...}.", "response_format")
        return [*found, _json(form.json_schema.schema_)]


def _json(schema: Mapping[str, Any] | str) -> Grammar:
    if isinstance(schema, Mapping):
        return Grammar("json_schema", json.dumps(schema, ensure_ascii=False))
    try:
        json.loads(schema)
    except (ValueError, RecursionError):
        raise refused("The JSON schema is not JSON.", "guided_json") from None
    return Grammar("json_schema", schema)


def messages_of(turns: Sequence[Turn]) -> tuple[Message, ...]:
    """Raises ApiError for what is no text, and for a tool's message that answers no call."""
    messages = []
    for at, turn in enumerate(turns):
        if turn.role == "tool" and not turn.tool_call_id:
            raise refused("A tool's message needs the tool_call_id that it answers.", f"messages.{at}.tool_call_id")
        if turn.tool_calls and turn.role != "assistant":
            raise refused("Only an assistant's message has tool_calls.", f"messages.{at}.tool_calls")
        calls = tuple(
            {"id": call.id, "type": "function", "function": call.function.model_dump()}
            for call in turn.tool_calls or ()
        )
        if turn.content is None and not calls and turn.refusal is None:
            raise refused(f"messages.{at}: a message needs content.", f"messages.{at}.content")
        role = "system" if turn.role == "developer" else turn.role
        reasoning = turn.reasoning if turn.reasoning_content is None else turn.reasoning_content
        content = text_of(turn.content, f"messages.{at}.content") or turn.refusal or ""
        messages.append(Message(role, content, reasoning, calls, turn.name, turn.tool_call_id))
    return tuple(messages)


def text_of(content: str | Sequence[Part] | None, where: str) -> str:
    """Content in parts is their text."""
    if content is None or isinstance(content, str):
        return content or ""
    texts = []
    for part in content:
        if part.type in ("text", "refusal") and (text := part.text or part.refusal) is not None:
            texts.append(text)
        elif part.type in ("text", "refusal"):
            texts.append("")
        else:
            raise refused(f"{where}: this model reads text only, not {part.type[:40]!r}.", where)
    return "\n".join(texts)


__all__ = [
    "AT_FIRST", "ChatRequest", "Drawing", "Loose", "Many", "Part", "Seed", "Shape", "StreamOptions", "Tokens",
    "messages_of", "text_of",
]  # fmt: skip
