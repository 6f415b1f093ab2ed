"""What may be asked, of one request and of a key over time, and how a machine's time is shared."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mull.engine.host import Host
from mull.serve import keys
from mull.serve.dialogue import Ask
from mull.serve.errors import ApiError
from mull.serve.gate import Spent
from mull.serve.house import Guest, House
from mull.serve.keys import Allowance
from mull.serve.limits import Turnstile, check, check_spend
from mull.serve.metrics import Metrics
from mull.serve.price import Price, Shares
from mull.serve.settings import Limits, Settings
from mull.serve.store import connect
from mull.serve.usage import Entry, Used, spent, write
from mull.types import Message, Sampling, UserError

FEW = Limits(
    messages=2, n=2, votes=3, stop=2, stop_chars=5, stop_tokens=1, logit_bias=1, top_logprobs=2, tools=1,
    tools_bytes=200,
)  # fmt: skip
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


@dataclass
class Clock:
    now: float = 100.0

    def __call__(self) -> float:
        return self.now


# one request


@pytest.mark.parametrize(
    ("ask", "says"),
    [
        (Ask(messages=(Message("user", "?"),) * 3), "at most 2 for messages, not 3"),
        (Ask(n=3), "at most 2 for n, not 3"),
        (Ask(votes=4), "at most 3 for votes"),
        (Ask(sampling=Sampling(stop=("a", "b", "c"))), "at most 2 for stop strings, not 3"),
        (Ask(sampling=Sampling(stop=("abcdef",))), "at most 5 for characters in a stop string, not 6"),
        (Ask(sampling=Sampling(stop_tokens=(1, 2))), "at most 1 for stop tokens"),
        (Ask(sampling=Sampling(logit_bias=((1, 1.0), (2, 1.0)))), "at most 1 for entries of logit_bias"),
        (Ask(sampling=Sampling(top_logprobs=3)), "at most 2 for top_logprobs"),
        (Ask(tools=(TOOL, TOOL)), "at most 1 for tools, not 2"),
        (Ask(tools=({**TOOL, "note": "x" * 200},)), "tools have 295 bytes; this server takes 200"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_bound_is_one_sentence(ask: Ask, says: str):
    with pytest.raises(UserError, match=says) as raised:
        check(ask, FEW)
    assert "\n" not in str(raised.value) and str(raised.value).endswith(".")


def test_what_is_at_the_bounds_may_pass():
    sampling = Sampling(stop=("abcde", "b"), stop_tokens=(1,), logit_bias=((1, 1.0),), top_logprobs=2)
    check(Ask(messages=(Message("user", "?"),) * 2, n=2, votes=3, tools=(TOOL,), sampling=sampling), FEW)


# a key, over time


def denied(turnstile: Turnstile, allowance: Allowance) -> ApiError | None:
    try:
        turnstile.enter(1, allowance)
    except ApiError as error:
        return error
    return None


def test_requests_a_minute():
    clock = Clock()
    turnstile, three = Turnstile(clock), Allowance(rpm=3)
    assert [denied(turnstile, three) for _ in range(3)] == [None] * 3
    error = denied(turnstile, three)
    assert error is not None
    assert (error.status, error.code, error.retry_after) == (429, "rate_limit_exceeded", 20)
    clock.now += 19.9
    assert denied(turnstile, three) is not None
    clock.now += 0.1
    assert denied(turnstile, three) is None
    assert denied(turnstile, three) is not None


def test_a_quiet_hour_saves_no_more_than_a_minutes_worth():
    clock = Clock()
    turnstile, three = Turnstile(clock), Allowance(rpm=3)
    denied(turnstile, three)
    clock.now += 3600
    assert [denied(turnstile, three) is None for _ in range(4)] == [True, True, True, False]


def test_tokens_are_owed_when_they_are_known():
    clock = Clock()
    turnstile, most = Turnstile(clock), Allowance(tpm=100)
    assert denied(turnstile, most) is None
    turnstile.leave(1, 150)
    error = denied(turnstile, most)
    assert error is not None and error.retry_after == 31  # 50 owed and one to have
    clock.now += 31
    assert denied(turnstile, most) is None


def test_requests_at_a_time():
    turnstile, two = Turnstile(Clock()), Allowance(parallel=2)
    assert [denied(turnstile, two) is None for _ in range(3)] == [True, True, False]
    turnstile.leave(1)
    assert denied(turnstile, two) is None


def test_keys_do_not_share_what_they_may():
    turnstile, one = Turnstile(Clock()), Allowance(rpm=1)
    turnstile.enter(1, one)
    turnstile.enter(2, one)
    turnstile.enter(3, Allowance())


def test_a_refusal_takes_nothing():
    clock = Clock()
    turnstile, both = Turnstile(clock), Allowance(rpm=2, parallel=1)
    assert denied(turnstile, both) is None
    assert [denied(turnstile, both) is None for _ in range(5)] == [False] * 5
    turnstile.leave(1)
    assert denied(turnstile, both) is None


@given(st.integers(1, 50), st.lists(st.floats(0, 30), max_size=60))
def test_never_more_than_a_minutes_worth_and_what_flowed_in(rpm: int, pauses: list[float]):
    clock = Clock()
    turnstile, allowance = Turnstile(clock), Allowance(rpm=rpm)
    let_in = 0
    for pause in pauses:
        clock.now += pause
        let_in += denied(turnstile, allowance) is None
        assert let_in <= rpm + sum(pauses) * rpm / 60 + 1e-6


def test_retry_after_is_when_it_works():
    clock = Clock()
    turnstile, allowance = Turnstile(clock), Allowance(rpm=7, tpm=13)
    for _ in range(50):
        if (error := denied(turnstile, allowance)) is not None:
            assert error.retry_after is not None
            clock.now += error.retry_after
            assert denied(turnstile, allowance) is None
        turnstile.leave(1, 5)


MARCH = 1_772_323_200.0  # 2026-03-01 00:00 UTC


def test_money_a_day_and_a_month():
    since: list[str] = []

    def spent(day: str) -> float:
        since.append(day)
        return 1.0

    check_spend(Allowance(), spent, MARCH)
    check_spend(Allowance(usd_per_day=1.01, usd_per_month=1.01), spent, MARCH)
    assert since == ["2026-03-01", "2026-03-01"]
    with pytest.raises(ApiError, match=r"spent its \$1 a day") as day:
        check_spend(Allowance(usd_per_day=1), spent, MARCH + 86400 * 3 + 3600)
    assert (day.value.status, day.value.code, day.value.retry_after) == (429, "insufficient_quota", 82800)
    with pytest.raises(ApiError, match=r"spent its \$0.5 a month") as month:
        check_spend(Allowance(usd_per_month=0.5), spent, MARCH + 86400 * 30)
    assert since[-2:] == ["2026-03-04", "2026-03-01"]
    assert month.value.retry_after == 86400


def test_a_day_ends_at_midnight_and_a_month_with_its_last(tmp_path: Path):
    """What was spent in the last moment of February is February's."""
    db = connect(tmp_path / "serve.db")
    last = MARCH - 0.001
    write(db, [Entry(1, "m", Used(1, usd=1.0), last)])
    day, month = Allowance(usd_per_day=1), Allowance(usd_per_month=1)
    for allowance in (day, month):
        with pytest.raises(ApiError) as error:
            check_spend(allowance, lambda since: spent(db, 1, since), last)
        assert error.value.retry_after == 1
        check_spend(allowance, lambda since: spent(db, 1, since), MARCH)
    write(db, [Entry(1, "m", Used(1, usd=1.0), MARCH)])
    for allowance, until in ((day, MARCH + 86400), (month, MARCH + 31 * 86400)):
        for at in (MARCH, until - 0.001):
            with pytest.raises(ApiError) as error:
                check_spend(allowance, lambda since: spent(db, 1, since), at)
            assert error.value.retry_after == math.ceil(until - at)
        check_spend(allowance, lambda since: spent(db, 1, since), until)
    db.close()


# how many places


@pytest.fixture(name="house")
def house_of_eight_places(tmp_path: Path) -> Iterator[House]:
    host = Host({}, rows=4, queue=4)
    house = House(Settings(rows=4, queue=4), tmp_path / "serve.db", "m", Metrics(host), lambda line: None)
    yield house
    house.close()


def comes(house: House, name: str, choices: int = 1, asks: int = 1) -> Guest:
    """Raises ApiError."""
    key = next(key for key in keys.listed(house.db) if key.name == name)
    guest = Guest(name, "", key.id, key.allowance)
    for _ in range(asks):
        house.allow(guest, Ask(n=choices))
    return guest


def test_one_keys_requests_leave_others_half_of_the_places(house: House):
    keys.create(house.db, "a")
    alone = [comes(house, "a") for _ in range(8)]  # there is nobody to leave any to
    keys.create(house.db, "b")
    with pytest.raises(ApiError, match="has 8 of the 8 places") as error:
        comes(house, "a")
    assert (error.value.status, error.value.retry_after) == (429, 1)
    for guest in alone:
        asyncio.run(house.settle(guest, Spent()))
    guests = [comes(house, "a", 2), comes(house, "a", asks=2)]
    for choices, asks in ((1, 1), (2, 1)):
        with pytest.raises(ApiError):
            comes(house, "a", choices, asks)
    comes(house, "b", 4)
    asyncio.run(house.settle(guests.pop(), Spent()))
    with pytest.raises(ApiError):  # the third of its prompts is too much: none of them keeps its place
        comes(house, "a", asks=3)
    comes(house, "a", 2)


def test_one_large_request_and_a_key_with_a_bound_of_its_own_may_have_more(house: House):
    for name, allowance in (("a", None), ("b", Allowance(parallel=7))):
        keys.create(house.db, name, allowance)
    comes(house, "a", 8)
    for _ in range(7):
        comes(house, "b")
    with pytest.raises(ApiError, match="7 requests under way"):
        comes(house, "b")


# what it costs


def test_without_a_price_nothing_is_said_of_money():
    assert Price().usd(1000, 0, 1000, 10.0) is None
    assert Price(usd_per_hour=0).usd(1000, 0, 1000, 10.0) == 0.0


def test_hours_and_tokens_add_up():
    price = Price(usd_per_hour=3.6, usd_per_million_input=2, usd_per_million_output=10, usd_per_million_cached=0.5)
    assert price.usd(1_000_000, 400_000, 100_000, 10.0) == pytest.approx(0.01 + 1.2 + 0.2 + 1.0)
    assert Price(usd_per_million_input=2).usd(1_000_000, 400_000, 100_000, 10.0) == pytest.approx(2.0)


@given(st.lists(st.tuples(st.floats(0, 10), st.integers(1, 4), st.booleans()), max_size=40))
def test_shares_add_up_to_the_time_in_which_the_machine_was_busy(steps: list[tuple[float, int, bool]]):
    clock = Clock()
    shares = Shares(clock)
    here: list[tuple[float, int]] = []
    busy = paid = 0.0
    for pause, weight, enters in steps:
        clock.now += pause
        busy += pause if here else 0.0
        if enters or not here:
            here.append((shares.enter(weight), weight))
        else:
            share = shares.leave(*here.pop(0))
            assert share >= 0
            paid += share
    paid += sum(shares.leave(*one) for one in here)
    assert paid == pytest.approx(busy, abs=1e-6)


def test_who_is_alone_pays_for_all_of_its_time():
    clock = Clock()
    shares = Shares(clock)
    clock.now += 5
    first = shares.enter()
    clock.now += 2
    second = shares.enter(3)
    clock.now += 4
    assert shares.leave(second, 3) == pytest.approx(3)
    clock.now += 1
    assert shares.leave(first) == pytest.approx(2 + 1 + 1)


# settings


def test_a_server_is_of_this_machine_unless_told_otherwise():
    assert Settings().loopback and Settings(host="127.3.2.1").loopback and Settings(host="::1").loopback
    assert not Settings(host="0.0.0.0").loopback and not Settings(host="192.168.1.5").loopback


def test_tls_needs_both_files(tmp_path):
    with pytest.raises(ValueError, match="needs both files"):
        Settings(tls_cert=tmp_path / "c.pem")
