"""What /metrics says, read back by Prometheus' own parser."""

from __future__ import annotations

import pytest
from prometheus_client.parser import text_string_to_metric_families

from mull.engine.host import Host
from mull.serve.gate import Spent
from mull.serve.metrics import COUNTERS, GAUGES, Metrics


def told(metrics: Metrics) -> dict[str, float]:
    """Samples by name and labels."""
    return {
        "".join([sample.name, *(f",{key}={value}" for key, value in sorted(sample.labels.items()))]): sample.value
        for family in text_string_to_metric_families(metrics.page().decode())
        for sample in family.samples
    }


def test_requests_are_counted_by_route_and_status():
    metrics = Metrics(Host({}))
    for status in (200, 200, 429):
        metrics.ended("/v1/messages", status, 0.3)
    found = told(metrics)
    assert found["mull_requests_total,route=/v1/messages,status=200"] == 2
    assert found["mull_requests_total,route=/v1/messages,status=429"] == 1
    assert found["mull_request_seconds_count,route=/v1/messages"] == 3
    assert found["mull_request_seconds_bucket,le=0.25,route=/v1/messages"] == 0
    assert found["mull_request_seconds_bucket,le=0.5,route=/v1/messages"] == 3


def test_times_are_of_the_first_token_and_of_those_behind_it():
    metrics = Metrics(Host({}))
    metrics.answered(Spent(10, 0, 22, 5, seconds=3.0, first_seconds=1.0), choices=2, usd=0.25)
    metrics.answered(Spent(10, 0, 0, 0, seconds=3.0), choices=1, usd=None)
    found = told(metrics)
    assert found["mull_time_to_first_token_seconds_sum"] == 1.0
    assert found["mull_time_to_first_token_seconds_count"] == 1
    assert found["mull_time_per_token_seconds_sum"] == pytest.approx(2.0 / 10)
    assert found["mull_thinking_tokens_total"] == 5
    assert found["mull_cost_usd_total"] == 0.25


def test_the_engine_is_read_when_somebody_asks(monkeypatch: pytest.MonkeyPatch):
    host = Host({}, rows=3, queue=4)
    metrics = Metrics(host)
    assert told(metrics)["mull_engine_up"] == 0
    host.alive, host.restarts = True, 2
    host.stats = {name: 1.0 + at for at, name in enumerate([*(name for name, _, _ in GAUGES), *COUNTERS])}
    found = told(metrics)
    assert (found["mull_engine_up"], found["mull_engine_restarts_total"], found["mull_open_limit"]) == (1, 2, 7)
    for name, ours, _ in GAUGES:
        assert found[f"mull_{ours}"] == host.stats[name]
    for name in COUNTERS:
        assert found[f"mull_{name}"] == host.stats[name]


def test_tokens_a_second_are_those_since_it_was_last_asked(monkeypatch: pytest.MonkeyPatch):
    now = [1000.0]
    monkeypatch.setattr("mull.serve.metrics.time.monotonic", lambda: now[0])
    host = Host({})
    metrics = Metrics(host)
    host.stats = {"generated_tokens_total": 50.0}
    now[0] += 10
    assert told(metrics)["mull_generated_tokens_per_second"] == 5.0
    host.stats = {"generated_tokens_total": 90.0}
    now[0] += 0.5
    assert told(metrics)["mull_generated_tokens_per_second"] == 5.0  # too short to tell
    now[0] += 3.5
    assert told(metrics)["mull_generated_tokens_per_second"] == 10.0
    host.stats = {"generated_tokens_total": 3.0}  # the engine began anew
    now[0] += 10
    assert told(metrics)["mull_generated_tokens_per_second"] == 0.0


def test_two_servers_in_a_process_do_not_mix():
    first, second = Metrics(Host({})), Metrics(Host({}))
    first.ended("/health", 200, 0.1)
    assert not any("route=/health" in name for name in told(second))
