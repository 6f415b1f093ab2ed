"""The bill: sums over sessions, energy from whatever counter there is, and lines that a kill cut short."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest

from mull import ledger
from mull.ledger import ASSUMED_WATTS, Bill, Ledger, Meter, Rates, money, price


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Time stands still until a test moves it; and this machine's counters are not there."""
    now = [100.0]
    monkeypatch.setattr(ledger, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    monkeypatch.setattr(ledger, "POWERCAP", Path("/nonexistent"))
    monkeypatch.setattr(ledger, "_nvml", lambda: None)
    return now


def test_a_stage_is_billed_for_its_seconds(tmp_path: Path, clock: list[float]):
    book = Ledger(tmp_path / "ledger.jsonl", Rates(usd_per_hour=3.6, watts=100.0))
    with book.stage("base", "pretrain") as entry:
        entry.add(tokens=10, flops=1e9)
        clock[0] += 30.0
        assert book.total().usd == pytest.approx(0.03)  # the running stage counts
        entry.add(tokens=5)
        clock[0] += 6.0
    [row] = book.stages()
    assert row == {
        "name": "base", "kind": "pretrain", "seconds": 36.0, "tokens": 15, "flops": 1e9,
        "kwh": pytest.approx(100 * 36 / 3.6e6), "usd": pytest.approx(0.036),
    }  # fmt: skip
    assert book.total() == Bill(36.0, 15, 1e9, row["kwh"], row["usd"])


def test_sessions_of_a_stage_add_up_and_survive_on_disk(tmp_path: Path, clock: list[float]):
    path = tmp_path / "ledger.jsonl"
    for seconds in (10.0, 5.0):
        book = Ledger(path, Rates())
        with suppress(KeyboardInterrupt), book.stage("rl", "rl") as entry:
            clock[0] += seconds
            entry.add(tokens=7)
            raise KeyboardInterrupt
    again = Ledger(path, Rates())
    assert [(row["seconds"], row["tokens"]) for row in again.stages()] == [(15.0, 14)]
    assert again.total().seconds == 15.0


def test_a_long_stage_is_saved_in_between(tmp_path: Path, clock: list[float]):
    path = tmp_path / "ledger.jsonl"
    book = Ledger(path, Rates())
    with book.stage("base", "pretrain") as entry:
        entry.add(tokens=1)
        assert not path.exists()
        clock[0] += ledger.SAVE_EVERY + 1
        entry.add(tokens=1)
        assert Ledger(path, Rates()).total().tokens == 2  # what a kill would leave
        clock[0] += 1
    assert Ledger(path, Rates()).total().seconds == ledger.SAVE_EVERY + 2  # later lines replace earlier ones


def test_a_line_cut_short_is_left_out_and_the_next_starts_afresh(tmp_path: Path, clock: list[float]):
    path = tmp_path / "ledger.jsonl"
    row = {"name": "a", "kind": "sft", "session": "1"} | {"seconds": 1.0, "tokens": 1, "flops": 0, "kwh": 0, "usd": 0}
    path.write_text(json.dumps(row) + "\n" + json.dumps(row)[:20])
    book = Ledger(path, Rates())
    assert book.total().seconds == 1.0
    with book.stage("b", "sft"):
        clock[0] += 2.0
    assert [row["name"] for row in Ledger(path, Rates()).stages()] == ["a", "b"]


def test_energy_is_assumed_stated_or_measured(tmp_path: Path, clock: list[float], monkeypatch: pytest.MonkeyPatch):
    assumed, stated = Meter(None), Meter(7.0)
    clock[0] += 10.0
    assert (assumed.joules(), assumed.source) == (10 * ASSUMED_WATTS, f"assumed {ASSUMED_WATTS:g} W")
    assert (stated.joules(), stated.source) == (70.0, "stated 7 W")

    for zone, now in (("intel-rapl:0", 900), ("intel-rapl:1", 100)):
        (tmp_path / zone).mkdir()
        (tmp_path / zone / "energy_uj").write_text(f"{now}\n")
        (tmp_path / zone / "max_energy_range_uj").write_text("1000\n")
    (tmp_path / "intel-rapl:0:0").mkdir()  # a part of zone 0, and not readable: neither counted nor needed
    monkeypatch.setattr(ledger, "POWERCAP", tmp_path)
    measured = Meter(None)
    assert measured.source == "RAPL"
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("50")  # wrapped at 1000: 150 more
    (tmp_path / "intel-rapl:1" / "energy_uj").write_text("300")
    assert measured.joules() == pytest.approx(350e-6)
    assert measured.joules() == pytest.approx(350e-6)


def test_a_price(clock: list[float], tmp_path: Path):
    bill = price(Rates(usd_per_hour=0.1, watts=36.0), 3600.0, tokens=5, flops=2.0)
    assert bill == Bill(3600.0, 5, 2.0, pytest.approx(0.036), pytest.approx(0.1))
    assert Ledger(tmp_path / "x", Rates(usd_per_hour=0.1, watts=36.0)).price(3600.0, 5, 2.0) == bill
    assert bill + bill == Bill(7200.0, 10, 4.0, pytest.approx(0.072), pytest.approx(0.2))


@pytest.mark.parametrize(
    ("usd", "said"),
    [(0, "$0"), (-1, "$0"), (5e-5, "$0.000050"), (0.02149, "$0.021"), (1.0, "$1.00"), (12.345, "$12.35")],
)
def test_money_has_the_digits_that_mean_something(usd: float, said: str):
    assert money(usd) == said


def test_peak_memory_is_that_of_this_process():
    assert 1 << 24 < ledger.peak_rss_bytes() < 1 << 40
