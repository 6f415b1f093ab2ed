"""Models that others serve: where, under which name, how they are asked, and what they charge.

models.toml beside this file has a table for each model that readers ask about, with dated prices and their source. A
user's own `./models.toml`, or the file that MULL_MODELS names, is laid over it key by key: `endpoint("o3")` is our
table with the user's changes, `endpoint("o3:low")` the same at another effort. reported.toml holds scores that others
published; they are shown beside ours as theirs, and never compared with.

A key is never part of a table: it names the environment variable that has it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_args
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from mull.config import Config, build, nearest, read_toml
from mull.types import UserError

FILE = "MULL_MODELS"
Dialect = Literal["plain", "openai", "deepseek", "gemini", "anthropic", "vllm", "mull", "openrouter", "xai"]
COMMON = frozenset({"temperature", "top_p", "stop", "seed", "presence_penalty", "frequency_penalty"})
OWN = COMMON | {"top_k", "min_p", "repetition_penalty"}  # of servers that one runs oneself


@dataclass(frozen=True)
class Habits:
    """How a vendor's chat completions are asked, where that differs from the plain. Paths have dots between keys."""

    takes: frozenset[str] = COMMON
    limit: str = "max_tokens"  # the name of the longest answer's length
    system: str = "system"  # the role of who sets the rules
    on: Mapping[str, Any] = field(default_factory=dict)  # what is sent to have it think
    off: Mapping[str, Any] = field(default_factory=dict)  # and to have it answer at once
    budget: str = ""  # where a budget of thinking tokens goes; "": it takes none
    effort: str = ""  # where an effort goes
    hottest: float = 2.0  # the highest temperature it takes
    hides: bool = False  # its thoughts are not told


_GOOGLE = "extra_body.google.thinking_config"
HABITS: dict[str, Habits] = {
    "plain": Habits(),
    "openai": Habits(
        limit="max_completion_tokens", system="developer", off={"reasoning_effort": "none"},
        effort="reasoning_effort", hides=True,
    ),
    "deepseek": Habits(
        takes=COMMON - {"seed"}, on={"thinking": {"type": "enabled"}}, off={"thinking": {"type": "disabled"}},
        effort="reasoning_effort",
    ),
    "gemini": Habits(
        takes=frozenset({"temperature", "top_p", "stop"}),
        on={"extra_body": {"google": {"thinking_config": {"include_thoughts": True}}}},
        off={"reasoning_effort": "none"}, budget=f"{_GOOGLE}.thinking_budget", effort=f"{_GOOGLE}.thinking_level",
    ),
    "anthropic": Habits(
        takes=frozenset({"temperature", "top_p", "stop"}), on={"thinking": {"type": "adaptive"}},
        off={"thinking": {"type": "disabled"}}, budget="thinking.budget_tokens", hottest=1.0, hides=True,
    ),
    "vllm": Habits(
        takes=OWN, on={"chat_template_kwargs": {"enable_thinking": True, "thinking": True}},
        off={"chat_template_kwargs": {"enable_thinking": False, "thinking": False}}, budget="thinking_token_budget",
    ),
    "mull": Habits(
        takes=OWN | {"min_thinking_tokens", "thinking_closing"},
        on={"chat_template_kwargs": {"enable_thinking": True}, "reasoning_effort": "max"},  # as long as it likes
        off={"chat_template_kwargs": {"enable_thinking": False}}, budget="thinking_token_budget",
        effort="reasoning_effort",
    ),
    "openrouter": Habits(
        takes=OWN, on={"reasoning": {"enabled": True}}, off={"reasoning": {"enabled": False}},
        budget="reasoning.max_tokens", effort="reasoning.effort",
    ),
    "xai": Habits(takes=frozenset({"temperature", "top_p", "seed"}), effort="reasoning_effort"),
}  # fmt: skip
HOSTS: dict[str, Dialect] = {
    "api.openai.com": "openai",
    "api.deepseek.com": "deepseek",
    "generativelanguage.googleapis.com": "gemini",
    "api.anthropic.com": "anthropic",
    "openrouter.ai": "openrouter",
    "api.x.ai": "xai",
}


@dataclass(frozen=True, slots=True)
class Usage:
    """What an endpoint says an answer used, in tokens."""

    prompt: int = 0  # cached and written ones among them
    output: int = 0  # thinking among them
    thinking: int = 0
    cached: int = 0  # of the prompt, read from the endpoint's cache
    written: int = 0  # of the prompt, written into it at a price of its own


class Rate(Config):
    """Dollars per million tokens; where no price for cached or written ones is given, they cost what others do."""

    input: float = Field(ge=0)
    output: float = Field(ge=0)
    cached: float | None = Field(default=None, ge=0)
    written: float | None = Field(default=None, ge=0)

    def of(self, used: Usage) -> float:
        cached = min(used.cached, used.prompt)
        written = min(used.written, used.prompt - cached)
        rest = used.prompt - cached - written
        each = self.input if self.cached is None else self.cached, self.input if self.written is None else self.written
        return (rest * self.input + cached * each[0] + written * each[1] + used.output * self.output) / 1e6


class Long(Rate):
    above: int = Field(gt=0)  # tokens of the prompt; then this rate holds for the whole request


class Peak(Config):
    """When all costs `factor` times as much: hours in UTC, from - to, on days from 0, Monday."""

    factor: float = Field(gt=0)
    hours: list[tuple[int, int]]
    days: list[int] = [0, 1, 2, 3, 4]

    def holds(self, when: datetime) -> bool:
        utc = when.astimezone(UTC)
        return utc.weekday() in self.days and any(start <= utc.hour < end for start, end in self.hours)


class Prices(Rate):
    long: Long | None = None
    peak: Peak | None = None

    def at(self, used: Usage, when: datetime) -> float:
        rate = self.long if self.long is not None and used.prompt > self.long.above else self
        return rate.of(used) * (self.peak.factor if self.peak is not None and self.peak.holds(when) else 1.0)


class Endpoint(Config):
    """One model behind one address that speaks chat completions."""

    name: str
    url: str  # up to, and without, /chat/completions
    model: str = Field(min_length=1)
    key_env: str = ""  # the environment variable that has the key; "": it wants none
    dialect: Dialect = "plain"
    about: str = ""
    on: dict[str, Any] | None = None  # sent to have it think; None: as its dialect has it
    off: dict[str, Any] | None = None  # sent to have it answer at once
    always: bool = False  # it cannot but think
    effort: str | None = None  # where an effort goes, with dots between keys
    efforts: list[str] = []  # those it knows
    budget: str | None = None  # where a budget of thinking tokens goes; "": nowhere
    opens: bool = False  # its answers begin within a thought that its prompt opened: R1, served without a parser
    refuses: list[str] = []  # parameters that it does not take, or ignores
    refuses_thinking: list[str] = []  # and while it thinks
    extra: dict[str, Any] = {}  # whatever else is sent
    usd_per_million: Prices | None = None
    priced: date | None = None  # when `source` said so
    priced_until: date | None = None  # the last day of an announced price
    source: str = ""
    ends: date | None = None  # when its maker shuts it down
    successor: str = ""
    context: int | None = Field(default=None, gt=0)
    max_output: int | None = Field(default=None, gt=0)
    concurrency: int = Field(default=8, gt=0, le=512)
    requests_per_minute: int | None = Field(default=None, gt=0)
    tokens_per_minute: int | None = Field(default=None, gt=0)
    timeout: float = Field(default=1800.0, gt=0)  # seconds an answer may take; reasoning takes minutes
    retries: int = Field(default=8, ge=0)

    @field_validator("url")
    @classmethod
    def _an_address(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{url!r} is no http:// or https:// address")
        if parts.username or parts.password or parts.query:
            raise ValueError("an address holds no key or password; name the variable that has it as key_env")
        url = url.rstrip("/").removesuffix("/chat/completions")
        return url if urlsplit(url).path or parts.hostname in HOSTS else f"{url}/v1"

    @field_validator("key_env")
    @classmethod
    def _a_name(cls, name: str) -> str:
        if name and not re.fullmatch("[A-Z][A-Z0-9_]{0,63}", name):
            raise ValueError("this is the name of an environment variable, such as OPENAI_API_KEY, not the key itself")
        return name

    @model_validator(mode="after")
    def _priced(self) -> Endpoint:
        if self.usd_per_million is not None and self.priced is None:
            raise ValueError("prices change: say when these held, as priced = 2026-11-24")
        return self

    @classmethod
    def of_url(cls, url: str, model: str, key_env: str = "", dialect: Dialect | None = None, **more: Any) -> Endpoint:
        """Any endpoint; its dialect is its host's, or plain. Raises UserError for what is no address."""
        host = urlsplit(url).hostname or url
        given = {"name": f"{model}@{host}", "url": url, "model": model, "key_env": key_env, **more}
        return build(cls, {**given, "dialect": dialect or HOSTS.get(host, "plain")}, f"endpoint at {host}")

    @property
    def habits(self) -> Habits:
        return HABITS[self.dialect]

    def switch(self, thinking: bool) -> Mapping[str, Any]:
        """What is sent to have it think, or answer at once."""
        given, usual = (self.on, self.habits.on) if thinking else (self.off, self.habits.off)
        return usual if given is None else given

    @property
    def modes(self) -> tuple[bool, ...]:
        """Whether it can be asked to think and not to; only as it is, where it has no switch or always thinks."""
        return (True,) if self.always or self.switch(True) == self.switch(False) else (True, False)

    @property
    def where(self) -> str:
        """For sentences."""
        return f"{self.name} at {urlsplit(self.url).netloc}"

    def at_effort(self, effort: str) -> Endpoint:
        """The same, told how hard to think. Raises UserError for an effort that it does not know."""
        path = self.habits.effort if self.effort is None else self.effort
        if not path:
            raise UserError(f"{self.name} takes no effort.")
        if self.efforts and effort not in self.efforts:
            known = ", ".join(self.efforts)
            raise UserError(f"{self.name} knows no effort {effort!r}; it knows {known}.{nearest(effort, self.efforts)}")
        return self.model_copy(update={"name": f"{self.name}:{effort}", "on": put(self.switch(True), path, effort)})

    def usd(self, used: Usage, when: datetime | None = None) -> float | None:
        """None where no price is known."""
        return None if self.usd_per_million is None else self.usd_per_million.at(used, when or datetime.now(UTC))


class Reported(Config):
    """A score that somebody published; ours are not compared with it."""

    model: str
    set: str  # as mull names the set
    score: float = Field(ge=0, le=1)
    what: str  # pass@1 of 64 answers at temperature 0.6, ...
    by: str
    when: date
    url: str


class _Scores(Config):
    reported: list[Reported]


def put(table: Mapping[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy of `table` with `value` at the dotted `path`."""
    copy = json.loads(json.dumps(table))
    here = copy
    *before, last = path.split(".")
    for key in before:
        here = here.setdefault(key, {})
    here[last] = value
    return copy


def endpoints() -> dict[str, Endpoint]:
    """All that are known by name, ours and the user's. Raises UserError for a mistake in the user's file."""
    file = Path(os.environ.get(FILE) or "models.toml")
    mine = read_toml(file) if os.environ.get(FILE) or file.is_file() else {}
    tables = dict(_ours())
    for name, table in mine.items():
        if not isinstance(table, dict):
            raise UserError(f"{file}: {name!r} is no table; a model is written as [{name}], and what it has below.")
        tables[name] = {**tables.get(name, {}), **table}
    return {
        name: build(Endpoint, {**table, "name": name}, f"{file if name in mine else 'models.toml'}: {name}")
        for name, table in tables.items()
    }


def endpoint(name: str) -> Endpoint:
    """By its name, or NAME:EFFORT. Raises UserError with the nearest name."""
    known = endpoints()
    if name in known:
        return known[name]
    before, colon, effort = name.rpartition(":")
    if colon and before in known:
        return known[before].at_effort(effort)
    raise UserError(f"There is no endpoint {name!r} in models.toml.{nearest(name, known)}")


def knows(name: str) -> bool:
    """Whether a name, its effort aside, is that of an endpoint."""
    known = endpoints()
    return name in known or name.rpartition(":")[0] in known


def reported(task: str = "") -> list[Reported]:
    """What others published for a set; for all, without one."""
    scores = build(_Scores, read_toml(_beside("reported.toml")), "reported.toml").reported
    return [score for score in scores if not task or score.set == task]


@cache
def _ours() -> dict[str, Any]:
    return read_toml(_beside("models.toml"))


def _beside(name: str) -> Path:
    return Path(str(resources.files("mull") / name))


DIALECTS: tuple[str, ...] = get_args(Dialect)

__all__ = [
    "DIALECTS", "FILE", "HABITS", "Dialect", "Endpoint", "Habits", "Prices", "Reported", "Usage", "endpoint",
    "endpoints", "knows", "put", "reported",
]  # fmt: skip
