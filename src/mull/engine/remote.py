"""The engine that asks an endpoint: lists of requests in, answers out, over any chat completions API.

Threads ask side by side, as many as the endpoint is given; the calling thread alone hands answers on. What the network
or the vendor gets wrong is tried again, later and later, as long as it says that it should be; what no other try mends
(a key, a model's name, an empty account) is said at once, before a thousand requests have failed of it. An answer that
never came is "cancelled", with the reason in `error`: nothing that can be scored.

A key goes from its environment variable into one header, and nowhere else.
"""

from __future__ import annotations

import json
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from random import Random
from typing import Any
from urllib.parse import urlsplit

import httpx2

from mull.endpoints import Endpoint
from mull.engine.dialects import Answer, BrokenAnswerError, Refusal, answer_of, body, parse, refusal_of
from mull.text.thoughts import MARKS, Parser
from mull.types import Completion, Delta, Request, UserError

CONNECT = 15.0  # seconds
LARGEST = 64 << 20  # bytes of an answer
FIRST, LAST = 1.0, 60.0  # seconds before the second try, and at most before any
UNREACHED = 2  # more tries of an address that has never answered
MISUNDERSTOOD = 3  # requests that are refused as they stand, before any is answered
LOST = 8  # requests given up in a row, after which the rest is not asked
MINUTE = 60.0
CLOSING = "</thought>"  # Gemini's, in front of the answer
NOT_ASKED = "It was not asked: the engine was stopped."


def silent(text: str) -> None:
    """For who wants to hear nothing."""


class Pace:
    """Holds requests back, so that no minute has more of them, or of their tokens, than the endpoint allows."""

    def __init__(self, requests: int | None, tokens: int | None, clock: Callable[[], float] = time.monotonic):
        self.requests, self.tokens, self.clock = requests, tokens, clock
        self._sent: deque[list[float]] = deque()  # [when, tokens] of the last minute
        self._until = 0.0
        self._lock = threading.Lock()

    def begin(self, tokens: int) -> tuple[float, list[float]]:
        """(0, the entry to settle) where a request of about so many tokens may go; else (seconds to wait, [])."""
        with self._lock:
            now = self.clock()
            if now < self._until:
                return self._until - now, []
            while self._sent and self._sent[0][0] <= now - MINUTE:
                self._sent.popleft()
            full = self.requests is not None and len(self._sent) >= self.requests
            heavy = self.tokens is not None and sum(each[1] for each in self._sent) + tokens > self.tokens
            if self._sent and (full or heavy):
                return self._sent[0][0] + MINUTE - now, []
            entry = [now, float(tokens)]
            self._sent.append(entry)
            return 0.0, entry

    def settle(self, entry: list[float], tokens: int) -> None:
        """What it really used."""
        with self._lock:
            entry[1] = float(tokens)

    def pause(self, seconds: float) -> None:
        """Nobody asks for so long."""
        with self._lock:
            self._until = max(self._until, self.clock() + seconds)


@dataclass
class _Run:
    """One call of `generate`."""

    client: httpx2.Client
    requests: Sequence[Request]
    bodies: Sequence[dict[str, Any]]
    left: queue.SimpleQueue[int]
    done: queue.SimpleQueue[tuple[int, Completion | UserError | None]] = field(default_factory=queue.SimpleQueue)
    halt: threading.Event = field(default_factory=threading.Event)  # nothing more is begun
    why: str = NOT_ASKED
    lost: int = 0  # requests given up since the last answer
    refused: int = 0  # requests that the endpoint does not understand
    working: int = 0  # threads


class RemoteEngine:
    """Engine (mull.types) over an endpoint. `say` is told, once each, what a reader of the scores must know.

    `usd` and `unpriced` are what its answers have cost so far, and how many told too little to know. Raises UserError
    where the endpoint's key is not in the environment.
    """

    def __init__(self, endpoint: Endpoint, say: Callable[[str], None] = silent, first_wait: float = FIRST):
        self.endpoint, self.say, self.first_wait = endpoint, say, first_wait
        self.notes: list[str] = []
        self.usd, self.unpriced, self.answered = 0.0, 0, 0
        self.stopped = False
        self.pace = Pace(endpoint.requests_per_minute, endpoint.tokens_per_minute)
        self._key = _key_of(endpoint)
        self._runs: list[_Run] = []
        self._lock = threading.Lock()
        self._luck = Random()
        self._outputs = 0  # tokens of all answers so far
        self._warn()

    def generate(
        self, requests: Sequence[Request], on_finish: Callable[[int, Completion], None] | None = None, log: Any = None
    ) -> list[Completion]:
        """Answers in the order of the requests; `on_finish(index, answer)` as each comes to its end, in this thread.

        A request that got no answer comes back "cancelled", and `on_finish` hears of it if it was asked at all. Raises
        UserError for what cannot be asked, and where the endpoint refuses all before it has answered any.
        """
        bodies = [body(self.endpoint, request, self._note) for request in requests]
        if not requests:
            return []
        left: queue.SimpleQueue[int] = queue.SimpleQueue()
        for index in range(len(requests)):
            left.put(index)
        run = _Run(self._client(), requests, bodies, left)
        with self._lock:
            self._runs.append(run)
            if self.stopped:
                run.halt.set()
        run.working = min(self.endpoint.concurrency, len(requests))
        threads = [threading.Thread(target=self._work, args=(run,), daemon=True) for _ in range(run.working)]
        for thread in threads:
            thread.start()
        answers: list[Completion | None] = [None] * len(requests)
        try:
            for _ in requests:
                index, answer = run.done.get()
                if isinstance(answer, UserError):
                    raise answer
                answers[index] = answer or _none(run.why)
                if on_finish is not None and answer is not None:
                    on_finish(index, answer)
            for thread in threads:
                thread.join()
        finally:  # whatever ends us, a key press too: threads begin nothing more
            run.halt.set()
            with self._lock:
                self._runs.remove(run)
        return [answer for answer in answers if answer is not None]

    def stream(self, request: Request) -> Iterator[Delta]:
        """The text as it comes, thinking and answer apart; the last Delta carries the completion.

        Raises UserError where the endpoint has not begun to answer after all tries.
        """
        asked = body(self.endpoint, request, self._note) | {"stream": True, "stream_options": {"include_usage": True}}
        with self._client() as client:
            yield from self._stream(_Run(client, [request], [asked], queue.SimpleQueue()))

    def _stream(self, run: _Run) -> Iterator[Delta]:
        request = run.requests[0]
        for attempt in range(self.endpoint.retries + 1):
            began = time.perf_counter()
            try:
                with self._post(run, 0) as response:
                    if response.status_code != 200 or "json" in response.headers.get("content-type", ""):
                        raw = _whole(response, began + self.endpoint.timeout)
                        refusal = self._refused(response, raw)
                        if refusal is None:
                            yield from self._at_once(raw, request, began)
                            return
                    else:
                        yield from self._streamed(response, request, began)
                        return
            except (httpx2.HTTPError, BrokenAnswerError) as error:
                refusal = self._trouble(error)
            if not self._again(run, attempt, refusal):
                raise UserError(self._hidden(refusal.why))
        raise AssertionError

    def score(self, ids: Sequence[Sequence[int]]) -> list[list[float]]:
        raise UserError(f"{self.endpoint.name} is an endpoint: it tells no probabilities of a text that it is given.")

    def load(self, state: Mapping[str, Any], version: int) -> None:
        raise UserError(f"{self.endpoint.name} is an endpoint: it takes no weights.")

    def stop(self) -> None:
        """Nothing more is asked, now and later; what runs comes to its end."""
        with self._lock:
            self.stopped = True
            for run in self._runs:
                run.halt.set()

    def _work(self, run: _Run) -> None:
        """One of the threads: request after request. The last closes what all of them used."""
        try:
            self._work_off(run)
        finally:
            with self._lock:
                run.working -= 1
                last = not run.working
            if last:
                run.client.close()

    def _work_off(self, run: _Run) -> None:
        while True:
            try:
                index = run.left.get_nowait()
            except queue.Empty:
                return
            try:
                run.done.put((index, None if run.halt.is_set() else self._ask(run, index)))
            except UserError as error:
                run.done.put((index, error))
            except Exception as error:  # a mistake of ours: said where it can be heard
                run.done.put((index, UserError(f"{self.endpoint.name}: {type(error).__name__}: {error}.")))

    def _ask(self, run: _Run, index: int) -> Completion | None:
        """With all the tries that it may take; None where the run was halted before the first.

        Raises UserError for what no try mends, before any answer has come.
        """
        refusal = None
        for attempt in range(self.endpoint.retries + 1):
            entry = self._enter(run, index)
            if entry is None:
                return None if refusal is None else _none(self._hidden(refusal.why))
            got = self._once(run, index)
            if isinstance(got, Completion):
                self.pace.settle(entry, got.prompt_tokens + got.count)
                run.lost = 0
                return got
            refusal = got
            self.pace.settle(entry, 0)
            if not self._again(run, attempt, refusal):
                break
        assert refusal is not None
        return self._given_up(run, refusal)

    def _given_up(self, run: _Run, refusal: Refusal) -> Completion:
        why = self._hidden(refusal.why)
        with self._lock:
            run.refused += refusal.kind == "this"
            run.lost += refusal.kind != "this"
            wrong = refusal.kind in ("all", "away") or run.refused >= min(MISUNDERSTOOD, len(run.requests))
            wrong &= not self.answered
            hopeless = refusal.kind == "all" or run.lost >= max(LOST, self.endpoint.concurrency)
            if (wrong or hopeless) and not run.halt.is_set():
                run.why = why
                run.halt.set()
        if wrong:
            raise UserError(why)
        return _none(why)

    def _again(self, run: _Run, attempt: int, refusal: Refusal) -> bool:
        """Whether to try again, once it has waited: longer each time, not all at once, as long as the endpoint says."""
        away = refusal.kind == "away" and not self.answered
        if refusal.kind not in ("again", "away") or attempt >= (UNREACHED if away else self.endpoint.retries):
            return False
        asked = refusal.wait or 0.0
        self.pace.pause(asked)
        return not run.halt.wait(max(min(LAST, self.first_wait * 2**attempt) * self._luck.uniform(0.5, 1.0), asked))

    def _enter(self, run: _Run, index: int) -> list[float] | None:
        """Waits for its turn; None where the run was halted meanwhile."""
        sampling = run.requests[index].sampling
        letters = sum(len(message.content) for message in run.requests[index].messages)
        usual = self._outputs // self.answered if self.answered else sampling.max_tokens
        expected = letters // 4 + min(usual, sampling.max_tokens)
        while not run.halt.is_set():
            wait, entry = self.pace.begin(expected)
            if not wait:
                return entry
            run.halt.wait(min(wait, 1.0))
        return None

    def _client(self) -> httpx2.Client:
        told = self.endpoint
        return httpx2.Client(
            timeout=httpx2.Timeout(told.timeout, connect=CONNECT, pool=None),
            limits=httpx2.Limits(max_connections=told.concurrency, max_keepalive_connections=None),
            headers={"user-agent": "mull", **({"authorization": f"Bearer {self._key}"} if self._key else {})},
            trust_env=not _is_here(told.url),  # a proxy knows nothing of what runs here
        )

    def _post(self, run: _Run, index: int) -> AbstractContextManager[httpx2.Response]:
        return run.client.stream("POST", f"{self.endpoint.url}/chat/completions", json=run.bodies[index])

    def _once(self, run: _Run, index: int) -> Completion | Refusal:
        began = time.perf_counter()
        try:
            with self._post(run, index) as response:
                raw = _whole(response, began + self.endpoint.timeout)
            refusal = self._refused(response, raw)
            if refusal is not None:
                return refusal
            answer = answer_of(parse(raw), self.endpoint, run.requests[index].sampling.thinking)
        except (httpx2.HTTPError, BrokenAnswerError) as error:
            return self._trouble(error)
        return self._completion(answer, time.perf_counter() - began)

    def _refused(self, response: httpx2.Response, raw: bytes) -> Refusal | None:
        if self._key:  # some endpoints repeat it
            raw = raw.replace(self._key.encode(), b"[key]")
        return refusal_of(response.status_code, response.headers, raw, self.endpoint)

    def _trouble(self, error: Exception) -> Refusal:
        where = self.endpoint.where
        match error:
            case BrokenAnswerError():
                return Refusal("again", f"{where} sent no answer: {error}.")
            case httpx2.ConnectError() | httpx2.ConnectTimeout():
                why = f"{error}" or f"nothing within {CONNECT:g} s"
                return Refusal("away", f"{where} cannot be reached ({why}); is it running, and is the address right?")
            case httpx2.TimeoutException():
                return Refusal("again", f"{where} sent no answer within {self.endpoint.timeout:g} s.")
        return Refusal("again", f"The connection to {where} broke ({type(error).__name__}).")

    def _completion(self, answer: Answer, seconds: float, first: float = 0.0) -> Completion:
        used = answer.usage
        usd = answer.usd if answer.usd is not None or used is None else self.endpoint.usd(used)
        with self._lock:
            self.answered += 1
            self.usd += usd or 0.0
            self.unpriced += usd is None
            self._outputs += used.output if used else 0
        name = self.endpoint.name
        if used is None:
            self._note(f"{name} does not say how many tokens its answers have; their cost is not known.")
        if answer.shared:
            self._note(f"{name} does not say how many of its tokens are thinking; they are shared out by letters.")
        if answer.filtered:
            self._note(f"{name}'s own filter cut answers off; what is left of them is graded.")
        return Completion(
            (), (), answer.finish, answer.text, answer.reasoning,
            prompt_tokens=used.prompt if used else 0, seconds=seconds,
            thinking_tokens=used.thinking if used else 0, cached_tokens=used.cached if used else 0,
            stopped_by="content_filter" if answer.filtered else None, first_seconds=first,
            output_tokens=used.output if used else 0, usd=usd,
        )  # fmt: skip

    def _hidden(self, text: str) -> str:
        """Without the key, which some endpoints repeat."""
        return text.replace(self._key, "[key]") if self._key else text

    def _note(self, text: str) -> None:
        with self._lock:
            new = text not in self.notes
            if new:
                self.notes.append(text)
        if new:
            self.say(text)

    def _warn(self) -> None:
        """Of what a reader of its prices must know."""
        told, today = self.endpoint, datetime.now(UTC).date()
        if told.ends is not None and told.ends <= today:
            self._note(f"{told.name} was to end on {told.ends}{_then(told)}.")
        if told.usd_per_million is None:
            self._note(f"No price is known for {told.name}; what its answers cost is not counted.")
        elif told.priced_until is not None and told.priced_until < today:
            self._note(f"The price of {told.name} held until {told.priced_until}; see {told.source}.")

    def _at_once(self, raw: bytes, request: Request, began: float) -> Iterator[Delta]:
        """An endpoint that does not stream."""
        answer = answer_of(parse(raw), self.endpoint, request.sampling.thinking)
        completion = self._completion(answer, time.perf_counter() - began)
        yield Delta(completion.text, completion.reasoning)
        yield Delta(completion=completion)

    def _streamed(self, response: httpx2.Response, request: Request, began: float) -> Iterator[Delta]:
        """Once it has begun to answer, what breaks off is told as an answer that was cancelled."""
        heard = _Heard(self.endpoint, request.sampling.thinking)
        first, error = 0.0, ""
        try:
            for line in response.iter_lines():
                if time.perf_counter() - began > self.endpoint.timeout:
                    raise BrokenAnswerError(f"it did not end within {self.endpoint.timeout:g} s")
                if not line.startswith("data:") or line[5:].strip() == "[DONE]":
                    continue
                text, reasoning = heard.hear(parse(line[5:].encode()))
                first = first or (time.perf_counter() - began if text or reasoning else 0.0)
                if text or reasoning:
                    yield Delta(text, reasoning)
            text, reasoning = heard.end()
            if text or reasoning:
                yield Delta(text, reasoning)
            answer = answer_of(heard.payload(), self.endpoint, request.sampling.thinking)
        except (httpx2.HTTPError, BrokenAnswerError) as broken:
            if not first:
                raise
            error = self._hidden(self._trouble(broken).why)
            yield Delta(completion=Completion(
                (), (), "cancelled", heard.text, heard.thought, first_seconds=first, error=error,
                seconds=time.perf_counter() - began,
            ))  # fmt: skip
            return
        yield Delta(completion=self._completion(answer, time.perf_counter() - began, first))


class _Heard:
    """A streamed answer, put together."""

    def __init__(self, endpoint: Endpoint, thinking: bool):
        self.endpoint = endpoint
        self.text, self.thought = "", ""
        self.flagged: str | None = None  # after a thought that was marked as one: what may be its closing mark
        self.finish: Any = None
        self.usage: Any = None
        self.parser = Parser(endpoint.opens and thinking, not (endpoint.opens and thinking), _marks(endpoint))

    def hear(self, event: Any) -> tuple[str, str]:
        """(new text, new reasoning). Raises BrokenAnswerError for a mistake that the endpoint tells of."""
        event = event if isinstance(event, dict) else {}
        if event.get("error"):
            refusal = refusal_of(200, {}, json.dumps(event).encode(), self.endpoint)
            raise BrokenAnswerError(refusal.why.rstrip(".") if refusal else "it broke off")
        self.usage = event.get("usage") or self.usage
        choices = event.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
        self.finish = choice.get("finish_reason") or self.finish
        delta = choice.get("delta")
        delta = delta if isinstance(delta, dict) else {}
        thought = next((each for name in ("reasoning_content", "reasoning")
                        if isinstance(each := delta.get(name), str) and each), "")  # fmt: skip
        said = delta.get("content")
        content = said if isinstance(said, str) else ""
        extra = delta.get("extra_content")
        if isinstance(extra, dict) and isinstance(extra.get("google"), dict) and extra["google"].get("thought") is True:
            thought, content = thought + content.removeprefix("<thought>"), ""
            self.flagged = ""
        elif self.flagged is not None and content:
            content = self.flagged + content
            partial = len(content) < len(CLOSING) and CLOSING.startswith(content)
            self.flagged, content = (content, "") if partial else (None, content.removeprefix(CLOSING))
        reasoning, text = self.parser.feed(content) if content else ("", "")
        return self._keep(text, thought + reasoning)

    def end(self) -> tuple[str, str]:
        reasoning, text = self.parser.flush()
        return self._keep(text + (self.flagged or ""), reasoning)

    def payload(self) -> dict[str, Any]:
        """As it would have come whole."""
        message = {"content": self.text, "reasoning_content": self.thought}
        return {"choices": [{"message": message, "finish_reason": self.finish}], "usage": self.usage}

    def _keep(self, text: str, reasoning: str) -> tuple[str, str]:
        self.text += text
        self.thought += reasoning
        return text, reasoning


def _marks(endpoint: Endpoint) -> Any:
    wanted = "<thought>" if endpoint.dialect == "gemini" else "<think>"
    return next(marks for marks in MARKS if marks.open == wanted)


def _whole(response: httpx2.Response, until: float) -> bytes:
    """A body that is neither endless nor takes for ever. Raises BrokenAnswerError."""
    parts, size = [], 0
    for part in response.iter_bytes():
        size += len(part)
        parts.append(part)
        if size > LARGEST:
            raise BrokenAnswerError(f"it sent more than {LARGEST >> 20} MB")
        if time.perf_counter() > until:
            raise BrokenAnswerError("it did not end in time")
    return b"".join(parts)


def _none(why: str) -> Completion:
    return Completion((), (), "cancelled", error=why)


def _is_here(url: str) -> bool:
    return urlsplit(url).hostname in ("localhost", "127.0.0.1", "::1")


def _key_of(endpoint: Endpoint) -> str:
    if not endpoint.key_env:
        return ""
    key = os.environ.get(endpoint.key_env, "").strip()
    if not key:
        raise UserError(f"{endpoint.name} wants a key; put it into the environment variable {endpoint.key_env}.")
    if not key.isascii() or not key.isprintable() or " " in key:
        raise UserError(f"{endpoint.key_env} holds no key: keys have no blanks or letters beyond ASCII.")
    return key


def _then(endpoint: Endpoint) -> str:
    return f"; its successor is {endpoint.successor}" if endpoint.successor else ""


__all__ = ["NOT_ASKED", "Pace", "RemoteEngine"]
