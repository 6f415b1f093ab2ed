"""From a request of any protocol to events of any protocol: prompts are encoded, answers drawn, thoughts, text and tool
calls told apart. Protocols (openai.py, responses.py, anthropic.py) translate; what they share stands here.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from mull.engine.host import Host
from mull.text.chat import Chat
from mull.types import Completion, Message, Sampling

Finish = Literal["stop", "length", "tool_calls", "cancelled"]


@dataclass(frozen=True)
class Ask:
    """What a protocol understood of a request. `prompt` (token ids) is instead of messages, for plain completion."""

    messages: tuple[Message, ...] = ()
    prompt: tuple[int, ...] = ()
    sampling: Sampling = field(default_factory=Sampling)
    n: int = 1
    votes: int = 1  # draw so many, answer with the one most of them agree with (text/votes.py)
    effort: str | None = None  # none|minimal|low|medium|high|xhigh|max; sampling.thinking_tokens given wins
    tools: tuple[Mapping[str, Any], ...] = ()  # {type: function, function: {name, description, parameters}}
    tool_choice: str = "auto"  # auto, none, required, or the name of a function
    template: Mapping[str, Any] = field(default_factory=dict)  # chat_template_kwargs: enable_thinking, thinking
    salt: str = ""  # of the prefix cache: the key's identity, and what the client adds


@dataclass(frozen=True)
class Event:
    """Something of choice `index`. Exactly one of the parts is set; the last event of a choice has `finish`."""

    index: int
    reasoning: str = ""
    text: str = ""
    tool: ToolCall | None = None
    finish: Finish | None = None
    completion: Completion | None = None  # with finish
    # of the tokens behind reasoning or text, where asked: (token, log-probability, alternatives)
    logprobs: tuple[tuple[int, float, tuple[tuple[int, float], ...]], ...] = ()


@dataclass(frozen=True)
class ToolCall:
    """A whole call: `arguments` is JSON text, as the model wrote it."""

    id: str
    name: str
    arguments: str


class Dialogue:
    """Answers of one model. `name` is what clients call it."""

    def __init__(self, host: Host, chat: Chat, name: str, max_length: int):
        self.host, self.chat, self.name, self.max_length = host, chat, name, max_length

    def encode(self, ask: Ask) -> tuple[int, ...]:
        """The prompt. Raises UserError."""
        raise NotImplementedError

    def answer(self, ask: Ask) -> AsyncIterator[Event]:
        """Events of all choices as they come; broken off, it cancels what is under way.

        Raises UserError, BusyError, DiedError.
        """
        raise NotImplementedError


def usage(completions: Sequence[Completion]) -> dict[str, int]:
    """prompt, cached, completion and reasoning tokens of the choices of one request; the prompt counts once."""
    raise NotImplementedError


__all__ = ["Ask", "Dialogue", "Event", "Finish", "ToolCall", "usage"]
