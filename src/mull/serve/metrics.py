"""What Prometheus is told at /metrics: requests by route and status, times, and what the engine says of itself.

Gauges and counters of the engine are read when somebody asks; a counter of it begins anew when its process does, which
Prometheus takes for what it is. No label holds anything a client made up.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

from mull.engine.host import Host
from mull.serve.gate import Spent

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500)
PER_TOKEN = (0.002, 0.005, 0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1, 2.5)
RATE_SECONDS = 1.0  # at least so long is a rate taken over

# of Host.stats: its name there, ours, and what it is
GAUGES = (
    ("running", "running", "Answers being drawn: the size of the batch."),
    ("waiting", "waiting", "Answers that wait for a place in it."),
    ("pages_total", "pages", "Pages of the key-value cache."),
    ("pages_used", "pages_used", "Pages that answers under way hold."),
    ("pages_cached", "pages_cached", "Pages that hold prompts for later requests, given up when needed."),
)
COUNTERS = {
    "prompt_tokens_total": "Tokens of prompts.",
    "cached_tokens_total": "Tokens of prompts that did not need to be computed.",
    "generated_tokens_total": "Tokens drawn, the thinking included.",
    "preemptions_total": "Times that an answer gave its pages to others and was computed again.",
    "steps_total": "Steps of the engine.",
    "drafted_total": "Tokens guessed ahead.",
    "accepted_total": "Tokens guessed ahead that were right.",
}


class Metrics:
    """One server's; a registry of its own, so that two in a process do not mix."""

    def __init__(self, host: Host):
        self.registry = CollectorRegistry(auto_describe=False)
        self.registry.register(_Engine(host))  # type: ignore[arg-type]
        r = self.registry
        self.requests = Counter("mull_requests", "Requests that have ended.", ("route", "status"), registry=r)
        self.seconds = Histogram(
            "mull_request_seconds", "From arrival to the last byte.", ("route",), registry=r, buckets=SECONDS
        )
        self.first = Histogram(
            "mull_time_to_first_token_seconds", "From arrival, the wait included.", registry=r, buckets=SECONDS
        )
        self.per_token = Histogram(
            "mull_time_per_token_seconds", "Of a choice, behind its first token.", registry=r, buckets=PER_TOKEN
        )
        self.thinking = Counter("mull_thinking_tokens", "Tokens of thoughts.", registry=r)
        self.usd = Counter("mull_cost_usd", "What answers cost, where a price is set.", registry=r)

    def ended(self, route: str, status: int, seconds: float) -> None:
        """`route` is one the server has, or "other"."""
        self.requests.labels(route, str(status)).inc()
        self.seconds.labels(route).observe(seconds)

    def answered(self, spent: Spent, choices: int, usd: float | None) -> None:
        tokens = spent.completion_tokens / choices
        if tokens:
            self.first.observe(spent.first_seconds)
        if tokens > 1:
            self.per_token.observe((spent.seconds - spent.first_seconds) / (tokens - 1))
        self.thinking.inc(spent.reasoning_tokens)
        self.usd.inc(usd or 0.0)

    def page(self) -> bytes:
        return generate_latest(self.registry)


class _Engine:
    """Reads the host when asked."""

    def __init__(self, host: Host):
        self.host = host
        self.rate = 0.0
        self.counted: tuple[float, float] = (time.monotonic(), 0.0)

    def collect(self) -> Iterator[Any]:
        host = self.host
        yield _gauge("mull_engine_up", "Whether the engine answers.", host.alive)
        yield _gauge("mull_open", "Answers asked of the engine and not ended, waiting ones too.", len(host.tickets))
        yield _gauge("mull_open_limit", "So many may be open; more are refused.", host.rows + host.queue)
        yield _counter("mull_engine_restarts", "Times the engine was started again.", host.restarts)
        yield _gauge("mull_generated_tokens_per_second", "Since this was last asked.", self._rate())
        for name, ours, about in GAUGES:
            if name in host.stats:
                yield _gauge(f"mull_{ours}", about, host.stats[name])
        for name, about in COUNTERS.items():
            if name in host.stats:
                yield _counter(f"mull_{name.removesuffix('_total')}", about, host.stats[name])

    def _rate(self) -> float:
        now, total = time.monotonic(), self.host.stats.get("generated_tokens_total", 0.0)
        before, counted = self.counted
        if now - before >= RATE_SECONDS:
            self.rate = max(0.0, total - counted) / (now - before)
            self.counted = now, total
        return self.rate


def _gauge(name: str, about: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, about, value=float(value))


def _counter(name: str, about: str, value: float) -> CounterMetricFamily:
    return CounterMetricFamily(name, about, value=float(value))


__all__ = ["CONTENT_TYPE", "Metrics"]
