"""How long to think: what a request says about it, in the words of any protocol, becomes a budget in tokens.

    none      no thought
    minimal   at most 256 tokens       high      at most 16,384
    low       at most 1,024            xhigh     at most 32,768
    medium    at most 4,096            max       as many as it likes

Whatever the effort, a thought leaves a quarter of the room for the answer (`max` does not): a thought without an answer
is what users complain of most. A budget in tokens, given in so many words, is kept as it is. What explicitly turns
thinking on or off wins over effort. A model that does not think ignores all of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mull.types import Sampling, UserError

BUDGETS = {"minimal": 256, "low": 1024, "medium": 4096, "high": 16384, "xhigh": 32768}
EFFORTS = ("none", *BUDGETS, "max")
SWITCHES = ("enable_thinking", "thinking")  # Qwen's and GLM's name, DeepSeek's and Granite's
SHARE = 4  # of the room, one part is the answer's


def switched(template: Mapping[str, Any]) -> bool | None:
    """What chat_template_kwargs say about thinking. Raises UserError for anything else in it: a template is no API."""
    if unknown := next((name for name in template if name not in SWITCHES), None):
        raise UserError(f"chat_template_kwargs may hold {' and '.join(SWITCHES)} only, not {str(unknown)[:40]!r}.")
    given = set(template.values())
    if any(not isinstance(value, bool) for value in given):
        raise UserError(f"{' and '.join(SWITCHES)} of chat_template_kwargs are true or false.")
    if len(given) > 1:
        raise UserError("chat_template_kwargs turns thinking on and off at once.")
    return given.pop() if given else None


def thinks(sampling: Sampling, effort: str | None, template: Mapping[str, Any]) -> bool:
    """Whether an answer begins with a thought, where the model can. Raises UserError for an effort that is none."""
    if effort is not None and effort not in EFFORTS:
        raise UserError(f"There is no effort {effort[:40]!r}; efforts are {', '.join(EFFORTS)}.")
    explicit = switched(template)
    if explicit is not None:
        return explicit
    return sampling.thinking and effort != "none"


def budgeted(sampling: Sampling, effort: str | None, room: int) -> Sampling:
    """The same with its budget, and max_tokens within `room`: what the model's length leaves behind the prompt."""
    limit = min(sampling.max_tokens, room)
    if not sampling.thinking:
        return replace(sampling, max_tokens=limit, thinking_tokens=None, min_thinking_tokens=0)
    if sampling.thinking_tokens is not None or effort == "max":
        return replace(sampling, max_tokens=limit)
    budget = limit - max(1, limit // SHARE)
    budget = min(budget, BUDGETS.get(effort or "", budget))
    return replace(sampling, max_tokens=limit, thinking_tokens=max(budget, sampling.min_thinking_tokens))


__all__ = ["BUDGETS", "EFFORTS", "budgeted", "switched", "thinks"]
