"""mull from Python: a model that answers, streams and scores. `mull.load` makes one; the command line uses the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from os import PathLike
from typing import Any, TypedDict, Unpack, cast, overload

from mull import dist
from mull.engine.engine import LocalEngine
from mull.ledger import Bill, price
from mull.locate import Located, locate
from mull.model.config import ModelConfig
from mull.model.flops import decoding_flops
from mull.model.weights import load_model
from mull.text.chat import Chat
from mull.types import Completion, Delta, Message, Request, Sampling, UserError

Turns = Sequence[Message | Mapping[str, Any]]  # a conversation; mappings are as OpenAI has them


class Options(TypedDict, total=False):
    """How to answer; `_sampling` holds the defaults: greedy, thinking, at most 512 tokens."""

    max_tokens: int
    temperature: float
    top_p: float
    top_k: int
    seed: int
    thinking: bool


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
        model = load_model(located.folder, where, mtp=False).exactly(exact).packed()
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
        sampling = _sampling(**options)
        if _is_one(prompt):
            return self.engine.generate([self._request(cast("str | Turns", prompt), sampling, 0)])[0]
        many = cast("list[str | Turns]", prompt)
        return self.engine.generate([self._request(one, sampling, place) for place, one in enumerate(many)])

    def stream(self, prompt: str | Turns, **options: Unpack[Options]) -> Iterator[Delta]:
        """The same answer as it comes, thinking and text apart; the last Delta carries the Completion."""
        return self.engine.stream(self._request(prompt, _sampling(**options), 0))

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

    def _request(self, prompt: str | Turns, sampling: Sampling, place: int) -> Request:
        turns: Turns = [Message("user", prompt)] if isinstance(prompt, str) else prompt
        messages = tuple(_message(turn) for turn in turns)
        if not messages or not messages[-1].content.strip():
            raise UserError("The prompt is empty.")
        tokens = tuple(self.chat.encode(messages, thinking=sampling.thinking))
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
        reasoning = turn.get("reasoning_content", turn.get("reasoning"))
        return Message(turn["role"], turn["content"] or "", reasoning, tuple(turn.get("tool_calls") or ()))
    except KeyError as error:
        raise UserError(f"A message lacks {error}; it has a role and a content.") from None


def _sampling(
    max_tokens: int = 512, temperature: float = 0.0, top_p: float = 1.0, top_k: int = 0, seed: int = 0,
    thinking: bool = True,
) -> Sampling:  # fmt: skip
    if max_tokens < 1:
        raise UserError(f"max_tokens must be at least 1, not {max_tokens}.")
    if not 0 <= temperature < float("inf"):
        raise UserError(f"temperature must be 0 (always the likeliest token) or more, not {temperature:g}.")
    if not 0 < top_p <= 1:
        raise UserError(f"top_p must be above 0 and at most 1, not {top_p:g}.")
    if top_k < 0:
        raise UserError(f"top_k must be 0 (all tokens) or more, not {top_k}.")
    return Sampling(max_tokens, temperature, top_p, top_k, thinking, seed)


__all__ = ["Model", "Options", "Turns"]
