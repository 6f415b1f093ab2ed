"""The engine over endpoints, against a server on this machine that speaks each dialect and fails in each way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from endpoint import CACHED, FAULTS, KEY, PROMPT, SAID, THOUGHT, THOUGHT_TOKENS, Vendor
from endpoint import serving as vending
from hypothesis import given
from hypothesis import strategies as st
from serving import TINY, serving
from small import chat, model_of

from mull.endpoints import Endpoint
from mull.engine.engine import LocalEngine
from mull.engine.remote import NOT_ASKED, Pace, RemoteEngine
from mull.types import Completion, Message, Request, Sampling, UserError

DIALECTS = ("plain", "openai", "deepseek", "gemini", "anthropic", "vllm", "vllm-bare", "openrouter", "xai", "mull")
SOON = 0.005  # seconds before the second try, here
PASSING = (
    "429", "429 soon", "408", "409", "500", "502 page", "503", "529", "page", "no choices", "null choice",
    "null content", "half", "no json", "nothing", "deep", "error in 200", "reset", "long", "short", "no end",
    "overloaded end", "error end",
)  # fmt: skip
LASTING = {  # what no other try mends, and words of the sentence that says so
    "402": "is empty", "403": "Country not supported", "404": "model 'thinker'", "quota": "current quota",
    "moved": "mend the address", "tomorrow": "1,440 minutes", "400": "at least one message", "422": "too large",
}  # fmt: skip


def ask(a: int, b: int, thinking: bool = True, key: tuple[int, ...] = (), **sampling: Any) -> Request:
    return Request((), Sampling(thinking=thinking, **sampling), key, (Message("user", f"What is {a} + {b}?"),))


def engine_of(vendor: Vendor, say: Callable[[str], None] = print, **more: Any) -> RemoteEngine:
    return RemoteEngine(vendor.endpoint(**more), say, SOON)


def one(vendor: Vendor, thinking: bool = True, **more: Any) -> tuple[Completion, RemoteEngine]:
    engine = engine_of(vendor, **more)
    return engine.generate([ask(1, 2, thinking)])[0], engine


def refused(vendor: Vendor, n: int = 1, **more: Any) -> str:
    with pytest.raises(UserError) as caught:
        engine_of(vendor, **more).generate([ask(1, i) for i in range(n)])
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("thinking", [True, False])
def test_each_dialect(dialect: str, thinking: bool) -> None:
    """Answer, thought and tokens are found wherever this vendor has them."""
    with vending(Vendor(dialect)) as vendor:
        answer, _ = one(vendor, (thinking and dialect != "xai") or dialect == "xai")
    thinks = ((thinking or dialect == "xai") and (thinking or dialect != "plain")) or dialect == "plain"
    hidden = dialect in ("openai", "anthropic")
    assert (answer.text, answer.finish, answer.error) == ("The sum is 3.", "stop", "")
    assert answer.reasoning == (THOUGHT if thinks and not hidden else "")
    assert answer.prompt_tokens == PROMPT
    assert answer.count == answer.output_tokens == SAID + (THOUGHT_TOKENS if thinks else 0)
    if dialect in ("openai", "deepseek", "gemini", "openrouter", "xai", "mull"):
        assert answer.thinking_tokens == (THOUGHT_TOKENS if thinks else 0)
    if dialect in ("openai", "deepseek", "openrouter", "xai"):
        assert answer.cached_tokens == CACHED
    assert answer.tokens == answer.logprobs == ()
    assert 0 < answer.seconds < 5


def test_thinking_that_is_not_counted_is_shared_out_by_letters_and_that_is_said() -> None:
    with vending(Vendor("vllm")) as vendor:
        answer, engine = one(vendor)
    assert 0 < answer.thinking_tokens < answer.output_tokens
    assert any("by letters" in note for note in engine.notes)


@pytest.mark.parametrize("fault", PASSING)
def test_what_passes_is_tried_again(fault: str) -> None:
    with vending(Vendor("deepseek", [fault])) as vendor:
        answer, _ = one(vendor)
    assert answer.text == "The sum is 3." and answer.error == "" and len(vendor.asked) == 2


def test_all_faults_are_tested_here() -> None:
    rest = {"hang", "dribble", "in thought", "cut", "MAX_TOKENS", "filtered", "tool", "refusal",
            "no usage", "odd usage", "half a character", "breaks"}  # fmt: skip
    assert {*PASSING, *LASTING, *rest} == {*FAULTS}


@pytest.mark.parametrize("fault", ["hang", "dribble"])
def test_an_endpoint_that_never_answers_is_left(fault: str) -> None:
    with vending(Vendor("plain", [fault])) as vendor:
        began = time.monotonic()
        answer, _ = one(vendor, timeout=0.3)
        assert answer.text == "The sum is 3." and time.monotonic() - began < 10


@pytest.mark.parametrize("fault", [name for name in PASSING if name != "429"])
def test_what_does_not_pass_is_infrastructure(fault: str) -> None:
    """One sentence says why; the answers that came are kept."""
    with vending(Vendor("deepseek", [""] + [fault] * 3)) as vendor:
        answers = engine_of(vendor, retries=2, concurrency=1).generate([ask(1, 2), ask(3, 4), ask(5, 6)])
    assert [answer.text for answer in answers] == ["The sum is 3.", "", "The sum is 11."]
    lost = answers[1]
    assert lost.finish == "cancelled" and lost.error.endswith((".", "?")) and "\n" not in lost.error
    assert "127.0.0.1" in lost.error and "thinker" in lost.error


def test_even_the_first_that_gets_no_answer_is_no_reason_to_give_up() -> None:
    with vending(Vendor("plain", ["503"] * 4)) as vendor:
        first, second = engine_of(vendor, concurrency=1).generate([ask(1, 2), ask(3, 4)])
    assert first.finish == "cancelled" and "overloaded" in first.error and second.text == "The sum is 7."


@pytest.mark.parametrize("fault", LASTING)
def test_what_no_try_mends_is_said_at_once(fault: str) -> None:
    with vending(Vendor("openai", always=fault)) as vendor:
        why = refused(vendor, 1000, concurrency=4)
        assert LASTING[fault] in why and "thinker" in why
        assert len(vendor.asked) <= 8


def test_one_prompt_that_is_refused_costs_no_other_answer() -> None:
    with vending(Vendor("plain", ["400"])) as vendor:
        answers = engine_of(vendor, concurrency=1).generate([ask(1, i) for i in range(5)])
    assert [answer.finish for answer in answers] == ["cancelled"] + ["stop"] * 4
    assert "at least one message" in answers[0].error and len(vendor.asked) == 5


def test_an_account_that_becomes_empty_ends_the_asking() -> None:
    heard: list[int] = []
    with vending(Vendor("deepseek", [""] * 3 + ["402"] * 100)) as vendor:
        engine = engine_of(vendor, concurrency=1)
        answers = engine.generate([ask(1, i) for i in range(50)], lambda i, _: heard.append(i))
    assert [answer.finish for answer in answers] == ["stop"] * 3 + ["cancelled"] * 47
    assert all("Insufficient Balance" in answer.error for answer in answers[3:])
    assert len(vendor.asked) == 4 and heard == [0, 1, 2, 3]


def test_an_endpoint_that_dies_is_not_asked_a_thousand_times() -> None:
    with vending(Vendor("plain", [""], always="500")) as vendor:
        answers = engine_of(vendor, concurrency=1, retries=1).generate([ask(1, i) for i in range(300)])
    assert len(vendor.asked) == 1 + 8 * 2 and answers[0].finish == "stop"
    assert {answer.error for answer in answers[1:]} == {answers[1].error}


def test_an_address_where_nothing_is() -> None:
    with vending(Vendor("plain")) as vendor:
        pass
    began = time.monotonic()
    assert "is it running" in refused(vendor, 20)
    assert time.monotonic() - began < 10


@pytest.mark.parametrize(("fault", "finish", "text", "reasoning"), [
    ("in thought", "length", "", THOUGHT), ("cut", "length", "The sum is 3.", THOUGHT),
    ("MAX_TOKENS", "length", "The sum is 3.", THOUGHT), ("filtered", "stop", "", THOUGHT),
    ("tool", "stop", "", THOUGHT), ("refusal", "stop", "I cannot help with that.", THOUGHT),
    ("half a character", "stop", "? The sum is 3.", THOUGHT),
])  # fmt: skip
def test_ends(fault: str, finish: str, text: str, reasoning: str) -> None:
    with vending(Vendor("deepseek", [fault])) as vendor:
        answer, engine = one(vendor)
    assert (answer.finish, answer.text, answer.reasoning, answer.error) == (finish, text, reasoning, "")
    assert len(vendor.asked) == 1
    assert any("filter" in note for note in engine.notes) == (fault == "filtered")


def test_a_thought_that_is_cut_off_where_the_prompt_opened_it_is_no_answer() -> None:
    with vending(Vendor("vllm-bare", thinks=False, answer=lambda _: "Let me see, 1 + 2 is 3, but")) as vendor:
        vendor.faults = ["cut"]
        answer, _ = one(vendor)
    assert (answer.finish, answer.text, answer.reasoning) == ("length", "", "Let me see, 1 + 2 is 3, but")


@pytest.mark.parametrize("fault", ["no usage", "odd usage"])
def test_an_endpoint_that_tells_no_usage_is_not_guessed_at(fault: str) -> None:
    with vending(Vendor("deepseek", [fault])) as vendor:
        answer, engine = one(vendor, usd_per_million={"input": 1, "output": 2}, priced="2026-11-24")
    assert answer.text == "The sum is 3." and answer.output_tokens == 0 and answer.usd is None
    assert engine.unpriced == 1 and any("how many tokens" in note for note in engine.notes)


def test_money() -> None:
    """Cached tokens at their own price, thinking at the answer's; what a vendor says it charged wins."""
    prices = {"usd_per_million": {"input": 1.0, "cached": 0.25, "output": 10.0}, "priced": "2026-11-24"}
    with vending(Vendor("openai")) as vendor:
        answer, engine = one(vendor, **prices)
    expected = ((PROMPT - CACHED) * 1.0 + CACHED * 0.25 + (SAID + THOUGHT_TOKENS) * 10.0) / 1e6
    assert answer.usd == pytest.approx(expected) and engine.usd == answer.usd and engine.unpriced == 0
    for dialect, charged in (("xai", 0.0025), ("openrouter", 0.0042)):
        with vending(Vendor(dialect)) as vendor:
            assert one(vendor, **prices)[0].usd == pytest.approx(charged)
    with vending(Vendor("openai")) as vendor:
        answer, engine = one(vendor)
    assert answer.usd is None and any("No price is known" in note for note in engine.notes)


def test_answers_come_in_the_order_of_requests_and_are_told_one_at_a_time() -> None:
    heard: dict[int, str] = {}
    inside = threading.Lock()

    def on_finish(index: int, answer: Completion) -> None:
        assert inside.acquire(blocking=False)
        assert threading.current_thread() is threading.main_thread()
        heard[index] = answer.text
        inside.release()

    with vending(Vendor("plain", ["500", "429 soon"], seconds=0.02)) as vendor:
        answers = engine_of(vendor, concurrency=8).generate([ask(i, i) for i in range(40)], on_finish)
    assert [answer.text for answer in answers] == [f"The sum is {2 * i}." for i in range(40)]
    assert heard == {i: answers[i].text for i in range(40)}
    assert 2 <= vendor.most <= 8


def test_no_requests_no_answers() -> None:
    with vending(Vendor("plain")) as vendor:
        assert engine_of(vendor).generate([]) == []


def test_stop_lets_what_runs_end_and_asks_no_more() -> None:
    heard: list[int] = []
    with vending(Vendor("plain", seconds=0.05)) as vendor:
        engine = engine_of(vendor, concurrency=2)

        def on_finish(index: int, answer: Completion) -> None:
            heard.append(index)
            engine.stop()

        answers = engine.generate([ask(1, i) for i in range(50)], on_finish)
        done = [answer for answer in answers if answer.finish == "stop"]
        assert 1 <= len(done) <= 4 and len(heard) == len(done) == len(vendor.asked)
        assert {answer.error for answer in answers if answer.finish == "cancelled"} == {NOT_ASKED}
        assert engine.generate([ask(1, 2)])[0].error == NOT_ASKED and len(vendor.asked) == len(done)


def test_a_mistake_in_on_finish_ends_the_asking() -> None:
    def on_finish(index: int, answer: Completion) -> None:
        raise RuntimeError("ours")

    with vending(Vendor("plain", seconds=0.02)) as vendor:
        with pytest.raises(RuntimeError, match="ours"):
            engine_of(vendor, concurrency=2).generate([ask(1, i) for i in range(50)], on_finish)
        time.sleep(0.1)
        assert len(vendor.asked) <= 6


def test_who_is_told_to_wait_waits_and_so_do_all() -> None:
    with vending(Vendor("plain", ["429"])) as vendor:
        engine_of(vendor, concurrency=1).generate([ask(1, i) for i in range(3)])
        assert vendor.when[1] - vendor.when[0] >= 0.2
    with vending(Vendor("plain", ["429"], seconds=0.1)) as vendor:
        engine_of(vendor, concurrency=4).generate([ask(1, i) for i in range(12)])
        assert not [at for at in vendor.when[4:] if at - vendor.when[0] < 0.15]


def test_nobody_waits_until_tomorrow() -> None:
    with vending(Vendor("plain", ["", "tomorrow"])) as vendor:
        answers = engine_of(vendor, concurrency=1).generate([ask(1, i) for i in range(9)])
    assert all("Daily limit" in answer.error for answer in answers[1:]) and len(vendor.asked) == 2


def test_an_answer_that_never_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mull.engine.remote.LARGEST", 100)
    with vending(Vendor("plain")) as vendor:
        answer, _ = one(vendor)
    assert answer.finish == "cancelled" and "more than" in answer.error


def test_a_proxy_is_not_asked_for_what_runs_here(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with vending(Vendor("plain")) as vendor:
        assert one(vendor)[0].text == "The sum is 3."


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@given(
    requests=st.none() | st.integers(1, 5), tokens=st.none() | st.integers(10, 100),
    sizes=st.lists(st.integers(1, 60), min_size=1, max_size=30),
)  # fmt: skip
def test_no_minute_has_more_than_allowed(requests: int | None, tokens: int | None, sizes: list[int]) -> None:
    """One request alone may be larger than a minute's tokens: else it could never be asked."""
    clock, sent = Clock(), list[tuple[float, int]]()
    pace = Pace(requests, tokens, clock)
    for size in sizes:
        while (wait := pace.begin(size)[0]) > 0:
            clock.now += wait
        sent.append((clock.now, size))
    for at, _ in sent:
        minute = [size for when, size in sent if at - 60 < when <= at]
        assert requests is None or len(minute) <= requests
        assert tokens is None or sum(minute) <= tokens or len(minute) == 1


def test_a_request_that_used_less_than_expected_makes_room() -> None:
    clock = Clock()
    pace = Pace(None, 100, clock)
    _, entry = pace.begin(90)
    assert pace.begin(20)[0] == 60.0
    pace.settle(entry, 10)
    assert pace.begin(20)[0] == 0.0
    pace.pause(5)
    assert pace.begin(1)[0] == 5.0


def test_requests_per_minute_hold_the_engine_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mull.engine.remote.MINUTE", 0.3)
    with vending(Vendor("plain")) as vendor:
        began = time.monotonic()
        engine_of(vendor, requests_per_minute=2).generate([ask(1, i) for i in range(5)])
        assert time.monotonic() - began >= 0.6


def test_the_key_goes_into_the_header_and_nowhere_else(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SOME_API_KEY", KEY)
    with vending(Vendor("openai", key=KEY)) as vendor:
        answer, engine = one(vendor, key_env="SOME_API_KEY")
        assert answer.text == "The sum is 3."
        assert vendor.headers[0]["authorization"] == f"Bearer {KEY}" and KEY not in str(vendor.asked)
        assert KEY not in repr(engine) + repr(engine.endpoint) + engine.endpoint.model_dump_json() + str(engine.notes)
    with vending(Vendor("openai", key="another")) as vendor:  # it repeats the key that it refuses
        why = refused(vendor, 100, key_env="SOME_API_KEY")
        assert "401" in why and "SOME_API_KEY" in why and KEY not in why and "[key]" in why
    assert KEY not in "".join(capsys.readouterr())


@pytest.mark.parametrize(("value", "words"), [
    (None, "environment variable SOME_API_KEY"), (" \n", "environment variable SOME_API_KEY"),
    ("two words", "holds no key"), ("schlüssel", "holds no key"),
])  # fmt: skip
def test_a_key_that_is_missing_or_none(value: str | None, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SOME_API_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("SOME_API_KEY", value)
    with pytest.raises(UserError, match=words):
        RemoteEngine(Endpoint.of_url("http://127.0.0.1:1/v1", "m", "SOME_API_KEY"))


def test_what_reads_the_weights_is_refused() -> None:
    engine = RemoteEngine(Endpoint.of_url("http://127.0.0.1:1/v1", "m"))
    with pytest.raises(UserError, match="no probabilities"):
        engine.score([[1, 2]])
    with pytest.raises(UserError, match="no weights"):
        engine.load({}, 1)


def test_a_price_or_a_model_that_is_over_is_said() -> None:
    given = {"usd_per_million": {"input": 1, "output": 1}, "priced": "2025-01-01", "priced_until": "2025-02-01",
             "ends": "2025-03-01", "successor": "newer"}  # fmt: skip
    notes = RemoteEngine(Endpoint.of_url("http://127.0.0.1:1/v1", "m", **given)).notes
    assert any("2025-02-01" in note for note in notes)
    assert any("2025-03-01" in note and "newer" in note for note in notes)


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_stream_says_what_the_whole_says(dialect: str) -> None:
    with vending(Vendor(dialect)) as vendor:
        *pieces, last = engine_of(vendor).stream(ask(1, 2))
        whole, _ = one(vendor)
    assert last.completion is not None
    said = (last.completion.text, last.completion.reasoning, last.completion.output_tokens, last.completion.finish)
    assert said == (whole.text, whole.reasoning, whole.output_tokens, whole.finish)
    assert "".join(piece.text for piece in pieces).strip() == whole.text
    assert "".join(piece.reasoning for piece in pieces).strip() == whole.reasoning
    assert 0 < last.completion.first_seconds <= last.completion.seconds and len(pieces) > 1


def test_a_stream_that_fails() -> None:
    with vending(Vendor("deepseek", ["503", "page"])) as vendor:
        *_, last = engine_of(vendor).stream(ask(1, 2))
        assert last.completion is not None and last.completion.text == "The sum is 3."
        vendor.faults = ["breaks"]
        *_, last = engine_of(vendor).stream(ask(1, 2))
        assert last.completion is not None and last.completion.finish == "cancelled" and last.completion.error
        vendor.faults = ["404"]
        with pytest.raises(UserError, match="model 'thinker'"):
            list(engine_of(vendor).stream(ask(1, 2)))


def test_against_our_own_server() -> None:
    """A real engine behind it; the same seed and key draw the same, another draw another."""
    with serving() as server:
        endpoint = Endpoint.of_url(f"{server.url}/v1", "tiny", dialect="mull", concurrency=4)
        engine = RemoteEngine(endpoint, first_wait=SOON)
        asked = [ask(1, i, max_tokens=24, key=(0, i, k)) for i in range(3) for k in range(2)]
        answers, again = engine.generate(asked), engine.generate(asked)
        *_, last = engine.stream(asked[0])
        missing = Endpoint.of_url(f"{server.url}/v1", "huge", dialect="mull")
        with pytest.raises(UserError, match="huge"):
            RemoteEngine(missing, first_wait=SOON).generate(asked)
        budgeted = engine.generate([ask(1, 2, max_tokens=24, thinking_tokens=4)])[0]
        direct = engine.generate([ask(1, 2, thinking=False, max_tokens=24)])[0]
        greedy = engine.generate([ask(1, 2, temperature=0.0, max_tokens=24)])[0]
    request = ask(1, 2, temperature=0.0, max_tokens=24)
    ids = tuple(chat().encode(request.messages))
    here = LocalEngine(model_of(TINY), chat()).generate([replace(request, tokens=ids)])[0]
    assert (greedy.text, greedy.reasoning, greedy.finish) == (here.text.strip(), here.reasoning, here.finish)
    assert (greedy.count, greedy.thinking_tokens) == (here.count, here.thinking_tokens)
    assert all(answer.finish in ("stop", "length") and 0 < answer.count <= 24 for answer in answers)
    assert [(a.text, a.reasoning) for a in answers] == [(a.text, a.reasoning) for a in again]
    assert len({(a.text, a.reasoning) for a in answers}) > 3
    assert last.completion is not None and last.completion.reasoning == answers[0].reasoning
    assert budgeted.thinking_tokens <= 4 and direct.reasoning == "" and direct.thinking_tokens == 0


INTERRUPTED = """
import sys
from mull.endpoints import Endpoint
from mull.engine.engine import LocalEngine
from mull.engine.remote import RemoteEngine
from mull.types import Message, Request
engine = RemoteEngine(Endpoint.of_url(sys.argv[1], "m"))
print("asking", flush=True)
engine.generate([Request((), messages=(Message("user", "1 + 1"),))] * 20)
"""


def test_a_key_press_ends_it_promptly(tmp_path: Path) -> None:
    with vending(Vendor("plain", always="hang")) as vendor:
        command = [sys.executable, "-c", INTERRUPTED, vendor.url]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ)
        assert process.stdout is not None and process.stdout.readline() == "asking\n"
        until = time.monotonic() + 20
        while not vendor.asked and time.monotonic() < until:
            time.sleep(0.01)
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=20)
    assert time.monotonic() - began < 10 and "KeyboardInterrupt" in said  # the endpoint hangs for 30
