"""The nouns every room shares: what is asked, what is answered, how it was graded, and who answers.

Standard library only, no mull imports: anything may import this module, and this module imports nothing.
All values are plain data that goes to JSON and back unchanged; `Rollout` is the one file format between
journeys (rollouts.jsonl: evaluation, RL, distillation).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

Outcome = Literal["solved", "wrong", "unparsed", "truncated", "disagreed", "timeout", "infrastructure"]
OUTCOMES: tuple[Outcome, ...] = (
    "solved", "wrong", "unparsed", "truncated", "disagreed", "timeout", "infrastructure",
)  # fmt: skip
Finish = Literal["stop", "length", "cancelled"]


class UserError(ValueError):
    """Something the user can mend. The message is one helpful sentence; the command line prints it and exits with 2."""


@dataclass(frozen=True, slots=True)
class Message:
    role: str  # system, user, assistant, tool
    content: str
    reasoning: str | None = None  # what an assistant thought before `content`
    tool_calls: tuple[Mapping[str, Any], ...] = ()  # as OpenAI has them: {id, type, function: {name, arguments}}
    name: str | None = None
    tool_call_id: str | None = None  # of a tool's message: the call it answers


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing to solve. `meta` holds whatever the task needs for grading or slicing (sizes, source, split)."""

    task: str
    id: str
    messages: tuple[Message, ...]
    answer: str  # the gold answer, as text; "" where only the task's own grader knows
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Grammar:
    """What an answer must look like, once its thinking has ended."""

    kind: Literal["json", "json_schema", "regex", "choice", "ebnf"]
    text: str = ""  # the schema as JSON, the expression, the choices as a JSON list of texts, the grammar


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to draw tokens. temperature 0 is greedy; top_k 0, top_p 1 and min_p 0 keep everything.

    Penalties are as vLLM and OpenAI have them: presence and frequency are subtracted from the logits of tokens that
    the answer has so far; repetition divides (or multiplies, below 0) those of prompt and answer.
    """

    max_tokens: int = 256
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    thinking: bool = True
    seed: int = 0
    min_p: float = 0.0  # of the likeliest token's probability
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()  # (token, what is added to its logit)
    stop: tuple[str, ...] = ()  # texts that end the answer, and are no part of its text
    stop_tokens: tuple[int, ...] = ()  # ids that do, besides the model's own
    ignore_end: bool = False  # go on behind the model's own stop tokens
    top_logprobs: int = 0  # alternatives told with each token
    thinking_tokens: int | None = None  # budget: a thought is at most so long, the closing phrase included
    min_thinking_tokens: int = 0  # a thought is kept open so long
    closing: str = ""  # phrase that is put before the end of a thought that exhausts its budget
    grammar: Grammar | None = None
    verbatim: bool = False  # the text goes on behind the prompt's: no thought is looked for, and no blank taken away


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt for an engine. Local engines read `tokens`, remote ones `messages`.

    `key` names the draw, e.g. (step, prompt, sample): an engine's randomness is a function of
    (sampling.seed, *key, position) alone, so a request's tokens do not depend on what else is in the batch.
    """

    tokens: tuple[int, ...]
    sampling: Sampling = Sampling()
    key: tuple[int, ...] = ()
    messages: tuple[Message, ...] = ()


@dataclass(frozen=True, slots=True)
class Completion:
    """What an engine answered. `tokens` are the generated ids, the stop token included when `finish` is "stop"."""

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]  # the sampler's own, natural log, of the drawn tokens at the sampling temperature
    finish: Finish
    text: str = ""  # the answer, without the thinking
    reasoning: str = ""  # the thinking, without its markers
    prompt_tokens: int = 0
    version: int = 0  # of the weights that drew it
    seconds: float = 0.0  # from submission to the last token
    thinking_tokens: int = 0  # of the answer's tokens, those of the thought, its markers not counted
    routes: tuple[int, ...] = ()  # per token, the experts its logits came through (a fingerprint); not kept on disk
    # not kept on disk either:
    alternatives: tuple[tuple[tuple[int, float], ...], ...] = ()  # per token the likeliest (token, log-probability)
    cached_tokens: int = 0  # of the prompt, those that did not need to be computed
    stopped_by: str | int | None = None  # the stop text or token that ended it
    first_seconds: float = 0.0  # from submission to the first token
    # of an endpoint, which need not tell its tokens; on disk only where they say something:
    output_tokens: int = 0  # that it billed, thinking included
    usd: float | None = None  # what it charged
    error: str = ""  # why there is no answer

    @property
    def count(self) -> int:
        """Tokens of the answer, thinking included."""
        return len(self.tokens) or self.output_tokens


UNKEPT = ("routes", "alternatives", "cached_tokens", "stopped_by", "first_seconds")
UNSAID = {"thinking_tokens": 0, "output_tokens": 0, "usd": None, "error": ""}  # left out where they are this


@dataclass(frozen=True, slots=True)
class Rollout:
    """Problem + completion + grade (+ advantage, in RL). One JSON line on disk."""

    problem: Problem
    completion: Completion
    reward: float
    outcome: Outcome
    advantage: float = 0.0
    sample: int = 0  # which of the K answers to this problem
    model: str = ""
    thinking: bool = True
    prompt: tuple[int, ...] = ()  # the prompt's token ids, as the engine saw them
    earlier: tuple[Completion, ...] = ()  # answers to the turns before the last; `problem.messages` has their words
    words: Mapping[str, str] = field(default_factory=dict)  # what each verifier said

    def to_json(self) -> str:
        raw = asdict(self)
        for completion in (raw["completion"], *raw["earlier"]):
            for name in (*UNKEPT, *(name for name, none in UNSAID.items() if completion[name] == none)):
                del completion[name]
        for name in ("earlier", "words"):
            if not raw[name]:
                del raw[name]
        return json.dumps(raw, ensure_ascii=False, separators=(",", ":"))

    @classmethod
    def from_json(cls, line: str) -> Rollout:
        """Raises AttributeError, KeyError, TypeError or json.JSONDecodeError for a line that is no rollout."""
        raw = json.loads(line)
        problem, completion = raw.pop("problem"), _completion(raw.pop("completion"))
        messages = tuple(
            Message(**{**m, "tool_calls": tuple(m.get("tool_calls", ()))}) for m in problem.pop("messages")
        )
        raw["prompt"] = tuple(raw.get("prompt", ()))
        raw["earlier"] = tuple(map(_completion, raw.get("earlier", ())))
        return cls(problem=Problem(messages=messages, **problem), completion=completion, **raw)


def _completion(raw: dict[str, Any]) -> Completion:
    lists: dict[str, Any] = {name: tuple(raw[name]) for name in ("tokens", "logprobs")}
    return Completion(**{**raw, **lists})


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of a streamed completion. The last one carries `completion`."""

    text: str = ""
    reasoning: str = ""
    completion: Completion | None = None
    tokens: tuple[int, ...] = ()  # those that came since the last Delta: text that may become a marker is held back
    logprobs: tuple[float, ...] = ()
    alternatives: tuple[tuple[tuple[int, float], ...], ...] = ()


class Engine(Protocol):
    """Everything that speaks. Local and remote engines are interchangeable."""

    def generate(
        self, requests: Sequence[Request], on_finish: Callable[[int, Completion], None] | None = None, log: Any = None
    ) -> list[Completion]:
        """Answers in the order of the requests; `on_finish(index, answer)` as each comes to its end.

        `log` keeps what is drawn, for a process that is killed (engine/tokenlog.py); who draws elsewhere ignores it.
        """
        ...

    def stream(self, request: Request) -> Iterator[Delta]: ...

    def score(self, ids: Sequence[Sequence[int]]) -> list[list[float]]:
        """Log-probability of every token given those before it; the first token of a row scores 0."""
        ...

    def load(self, state: Mapping[str, Any], version: int) -> None:
        """Take new weights (a state dict) in place; `version` is stamped on later completions."""
        ...


def sync(path: Path) -> None:
    """A file or directory onto the disk: else a rename may survive a power cut that its content does not."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_rollouts(path: Path, rollouts: Iterable[Rollout]) -> None:
    """Whole file or nothing: written beside, synced and renamed."""
    part = path.with_suffix(path.suffix + ".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    with part.open("w", encoding="utf-8") as out:
        out.writelines(rollout.to_json() + "\n" for rollout in rollouts)
    sync(part)
    part.replace(path)
    sync(path.parent)


def read_rollouts(path: Path) -> list[Rollout]:
    """Raises UserError naming the line that is no rollout."""
    rollouts = []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                rollouts.append(Rollout.from_json(line))
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                raise UserError(f"{path}, line {number}: not a rollout ({error}).") from None
    return rollouts


__all__ = [
    "OUTCOMES", "Completion", "Delta", "Engine", "Finish", "Grammar", "Message", "Outcome", "Problem", "Request",
    "Rollout", "Sampling", "UserError", "read_rollouts", "sync", "write_rollouts",
]  # fmt: skip
