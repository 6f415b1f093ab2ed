"""mull from Python: a model that answers, streams and scores. `mull.load` makes one; the command line uses the same."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from os import PathLike
from secrets import token_hex
from typing import Any, TypedDict, Unpack, cast, overload

from mull import dist
from mull.engine.engine import LocalEngine
from mull.ledger import Bill, price
from mull.locate import Located, locate
from mull.model.config import ModelConfig
from mull.model.flops import decoding_flops
from mull.model.weights import load_model
from mull.serve import effort
from mull.text.chat import Chat, Tools
from mull.text.tools import Call, known_of, parser_of
from mull.text.votes import majority
from mull.types import Completion, Delta, Grammar, Message, Request, Sampling, UserError

Turns = Sequence[Message | Mapping[str, Any]]  # a conversation; mappings are as OpenAI has them


class Options(TypedDict, total=False):
    """How to answer. Without any: greedy, thinking, at most 512 tokens. What each means: `mull.types.Sampling`."""

    max_tokens: int
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: Mapping[int, float]  # what is added to a token's logit
    seed: int
    stop: str | Sequence[str]  # texts that end the answer
    stop_tokens: Sequence[int]
    top_logprobs: int  # alternatives told with each token, in Completion.alternatives
    thinking: bool
    effort: str | None  # none, minimal, low, medium, high, xhigh, max: how long to think
    thinking_tokens: int | None  # the same as a number, which wins
    min_thinking_tokens: int
    closing: str  # phrase that ends a thought which exhausts its tokens
    grammar: Grammar | None  # what the answer must look like, behind its thought
    tools: Tools  # {type: "function", function: {name, description, parameters}}; Model.message finds the calls


class Model:
    """`config`, `chat` (tokenizer and template) and `engine` are what it is made of; `folder` is where it lies.

    With `exact` an answer and its log-probabilities have the same bits alone and in any list; slower for one question.
    """

    def __init__(self, located: Located, device: str = "auto", exact: bool = False):
        where = dist.device(device)
        if exact and where.type != "cpu":
            raise UserError(f"Exact answers have been checked on CPUs only, not on {where.type}; give the device cpu.")
        self.located, self.folder = located, located.folder
        self.chat = Chat.load(located.folder)
        model = load_model(located.folder, where, mtp=False).exactly(exact)
        model = model if exact else model.packed()  # exact answers have the trainer's bits
        self.engine = LocalEngine(model, self.chat)
        self.config: ModelConfig = self.engine.model.cfg

    @classmethod
    def load(cls, path: str | PathLike[str], device: str = "auto", exact: bool = False) -> Model:
        return cls(locate(path), device, exact)

    @overload
    def generate(self, prompt: str | Turns, **options: Unpack[Options]) -> Completion: ...
    @overload
    def generate(self, prompt: list[str] | list[list[Message]], **options: Unpack[Options]) -> list[Completion]: ...
    def generate(
        self, prompt: str | Turns | list[str] | list[list[Message]], **options: Unpack[Options]
    ) -> Completion | list[Completion]:
        """One answer to a question or a conversation; answers in order to a list of them.

        An answer is a function of the prompt, the options and its place in the list. Raises UserError for an empty
        prompt, one that is too long, and options out of range.
        """
        check(options)
        if _is_one(prompt):
            return self.engine.generate([self._request(cast("str | Turns", prompt), options, 0)])[0]
        many = cast("list[str | Turns]", prompt)
        return self.engine.generate([self._request(one, options, place) for place, one in enumerate(many)])

    def stream(self, prompt: str | Turns, **options: Unpack[Options]) -> Iterator[Delta]:
        """The same answer as it comes, thinking and text apart; the last Delta carries the Completion."""
        check(options)
        return self.engine.stream(self._request(prompt, options, 0))

    def vote(self, prompt: str | Turns, votes: int, **options: Unpack[Options]) -> tuple[Completion, float]:
        """Of `votes` answers the one that most of them agree with, and their share (`mull.text.votes`).

        Its seconds are those of all of them. Raises UserError at temperature 0, where all would be the same.
        """
        if votes < 1 or (votes > 1 and not options.get("temperature")):
            raise UserError("votes is a number from 1 on; answers differ at a temperature above 0 only.")
        request = self._request(prompt, options, 0)
        answers = self.engine.generate([replace(request, key=(0, at)) for at in range(votes)])
        best, share = majority(["" if a.finish == "length" else a.text for a in answers])
        return replace(answers[best], seconds=max(answer.seconds for answer in answers)), share

    def message(self, completion: Completion, tools: Tools = ()) -> Message:
        """The answer as a turn of the conversation, to go on from; the calls of `tools` in it are its `tool_calls`.

        Answer each with Message("tool", RESULT, tool_call_id=CALL["id"]).
        """
        parser = parser_of(self.chat, tools)
        said = [*parser.feed(completion.text), *parser.flush()]
        calls = tuple(
            {"id": f"call_{token_hex(8)}", "type": "function", "function": asdict(one)}
            for one in said if isinstance(one, Call)
        )  # fmt: skip
        text = "".join(one for one in said if isinstance(one, str)).strip()
        return Message("assistant", text, completion.reasoning or None, calls)

    @overload
    def score(self, ids: list[int]) -> list[float]: ...
    @overload
    def score(self, ids: list[list[int]]) -> list[list[float]]: ...
    def score(self, ids: list[int] | list[list[int]]) -> list[float] | list[list[float]]:
        """Log-probability of each token given those before it, for one row of token ids or several; the first is 0."""
        if ids and isinstance(ids[0], int):
            return self.engine.score([cast("list[int]", ids)])[0]
        return self.engine.score(cast("list[list[int]]", ids))

    def price(self, completion: Completion) -> Bill:
        """What an answer cost, at the rates of the model's run or else the default ones."""
        tokens = len(completion.tokens)
        flops = decoding_flops(self.config, completion.prompt_tokens, tokens)
        return price(self.located.rates, completion.seconds, tokens, flops)

    def _request(self, prompt: str | Turns, options: Options, place: int) -> Request:
        turns: Turns = [Message("user", prompt)] if isinstance(prompt, str) else prompt
        messages = tuple(_message(turn) for turn in turns)
        if not messages or (messages[-1].role != "tool" and not messages[-1].content.strip()):
            raise UserError("The prompt is empty.")
        tools, level = options.get("tools", ()), options.get("effort")
        known_of(tools)
        sampling = _sampling(options, self.config.vocab)
        sampling = replace(sampling, thinking=effort.thinks(sampling, level, {}))
        tokens = tuple(self.chat.encode(messages, sampling.thinking, tools or None))
        room = self.config.max_length - len(tokens)
        if level is not None and room > 0:
            sampling = effort.budgeted(sampling, level, room)
        return Request(tokens, sampling, (place,), messages)


def _is_one(prompt: object) -> bool:
    """A text, or a list of messages."""
    return isinstance(prompt, str) or (
        isinstance(prompt, Sequence) and bool(prompt) and isinstance(prompt[0], Message | Mapping)
    )


def _message(turn: Message | Mapping[str, Any]) -> Message:
    if isinstance(turn, Message):
        return turn
    try:
        reasoning, calls = turn.get("reasoning_content", turn.get("reasoning")), tuple(turn.get("tool_calls") or ())
        content = (turn.get("content") if calls else turn["content"]) or ""
        return Message(turn["role"], content, reasoning, calls, turn.get("name"), turn.get("tool_call_id"))
    except KeyError as error:
        raise UserError(f"A message lacks {error}; it has a role and a content.") from None


def _is(kind: type, value: object) -> bool:
    """Whole numbers are numbers, and truths are none."""
    return isinstance(value, kind | int if kind is float else kind) and (kind is bool or not isinstance(value, bool))


# (kind, what is allowed, in words)
BOUNDS: dict[str, tuple[type, Callable[[Any], bool], str]] = {
    "max_tokens": (int, lambda n: n >= 1, "at least 1"),
    "temperature": (float, lambda x: 0 <= x < math.inf, "0 (always the likeliest token) or more"),
    "top_p": (float, lambda x: 0 < x <= 1, "above 0 and at most 1"),
    "top_k": (int, lambda n: n >= 0, "0 (all tokens) or more"),
    "min_p": (float, lambda x: 0 <= x <= 1, "between 0 and 1"),
    "repetition_penalty": (float, lambda x: 0 < x < math.inf, "above 0 (1 is none)"),
    "presence_penalty": (float, lambda x: -2 <= x <= 2, "between -2 and 2"),
    "frequency_penalty": (float, lambda x: -2 <= x <= 2, "between -2 and 2"),
    "seed": (int, lambda _: True, "a whole number"),
    "top_logprobs": (int, lambda n: 0 <= n <= 20, "between 0 and 20"),
    "thinking": (bool, lambda _: True, "True or False"),
    "thinking_tokens": (int, lambda n: n >= 0, "0 (no thought) or more"),
    "min_thinking_tokens": (int, lambda n: n >= 0, "0 or more"),
    "closing": (str, lambda _: True, "text"),
    "grammar": (Grammar, lambda _: True, "a mull.types.Grammar"),
    "effort": (str, lambda level: level in effort.EFFORTS, "one of " + ", ".join(effort.EFFORTS)),
}
OPTIONAL = ("thinking_tokens", "grammar", "effort")


def check(options: Options) -> None:
    """Raises UserError for an option that there is not or that is out of range."""
    for name, value in options.items():
        if name not in Options.__annotations__:
            near = difflib.get_close_matches(name, Options.__annotations__, 1)
            raise UserError(f"There is no option {name!r}" + (f"; is {near[0]!r} meant?" if near else "."))
        if name not in BOUNDS or (value is None and name in OPTIONAL):
            continue
        kind, allowed, said = BOUNDS[name]
        if not (_is(kind, value) and allowed(value)):
            raise UserError(f"{name} must be {said}, not {value}.")


def _sampling(options: Options, vocab: int) -> Sampling:
    """Raises UserError for stops and biases that are none."""
    given = {name: value for name, value in options.items() if name not in ("tools", "effort")}
    stop, tokens, bias = options.get("stop", ()), options.get("stop_tokens", ()), options.get("logit_bias", {})
    texts = (stop,) if isinstance(stop, str) else tuple(stop) if isinstance(stop, Sequence) else (None,)
    if not all(isinstance(text, str) and text for text in texts):
        raise UserError(f"stop must be a text that is not empty, or several, not {stop!r}.")

    def is_token(token: object) -> bool:
        return _is(int, token) and 0 <= cast("int", token) < vocab

    if not (isinstance(tokens, Sequence) and all(map(is_token, tokens))):
        raise UserError(f"stop_tokens must be token ids below {vocab}, not {tokens}.")
    biases = bias.items() if isinstance(bias, Mapping) else ((None, None),)
    if not all(is_token(token) and _is(float, x) and abs(cast("float", x)) <= 100 for token, x in biases):
        raise UserError(f"logit_bias must be token ids below {vocab} with numbers between -100 and 100, not {bias}.")
    given |= {"stop": texts, "stop_tokens": tuple(tokens), "logit_bias": tuple(sorted(biases))}
    return Sampling(**{"max_tokens": 512, "temperature": 0.0, **given})


__all__ = ["BOUNDS", "Model", "Options", "Turns", "check"]
