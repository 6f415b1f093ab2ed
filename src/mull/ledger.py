"""The bill: tokens, FLOPs, seconds, energy and money, per stage and in all.

Seconds are wall-clock while a stage runs. Energy is measured where the machine tells (Intel's and AMD's RAPL counters
under /sys/class/powercap; NVML through the optional package pynvml) and else watts times seconds, with the watts named
as assumed. Money is seconds at a stated price per hour. FLOPs are counted analytically by the caller (model/flops.py).

ledger.jsonl holds one line per stage and session, appended when the stage ends, is interrupted, and every ten seconds
in between (later lines of a session replace earlier ones), so that a kill loses little.
"""

from __future__ import annotations

import json
import math
import os
import resource
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import Field

from mull.config import Config

POWERCAP = Path("/sys/class/powercap")
ASSUMED_WATTS = 20.0  # two cores of a server under load, memory included
SAVE_EVERY = 10.0


class Rates(Config):
    usd_per_hour: float = Field(default=0.10, ge=0)  # a rented two-core machine; say what yours costs
    watts: float | None = Field(default=None, gt=0)  # None: measured where the machine tells, else ASSUMED_WATTS


@dataclass(frozen=True)
class Bill:
    seconds: float = 0.0
    tokens: int = 0
    flops: float = 0.0
    kwh: float = 0.0
    usd: float = 0.0

    def __add__(self, other: Bill) -> Bill:
        return Bill(
            self.seconds + other.seconds, self.tokens + other.tokens, self.flops + other.flops,
            self.kwh + other.kwh, self.usd + other.usd,
        )  # fmt: skip


def price(rates: Rates, seconds: float, tokens: int = 0, flops: float = 0.0) -> Bill:
    """What so many seconds cost at the stated rates; energy by the stated or assumed watts."""
    watts = rates.watts or ASSUMED_WATTS
    return Bill(seconds, tokens, flops, watts * seconds / 3.6e6, seconds / 3600 * rates.usd_per_hour)


def money(usd: float) -> str:
    """Dollars, to two digits that mean something: $12.34, $0.17, $0.0038."""
    if usd <= 0:
        return "$0"
    if usd >= 0.995:
        return f"${usd:,.2f}"
    digits = max(2, 1 - math.floor(math.log10(usd)))
    return f"${usd:.{digits}f}" if digits <= 9 else "<$0.000000001"


def peak_rss_bytes() -> int:
    """Largest resident memory of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class Meter:
    """Joules since it was made, from whatever counter there is."""

    def __init__(self, watts: float | None):
        self.began = time.perf_counter()
        self.watts = watts
        self.rapl = [] if watts else _rapl_zones()
        self.nvml = None if watts or self.rapl else _nvml()
        self.last = {zone: _read(zone / "energy_uj") for zone in self.rapl}
        self.measured = 0.0
        self.nvml_began = self.nvml() if self.nvml else 0.0
        if watts:
            self.source = f"stated {watts:g} W"
        elif self.rapl:
            self.source = "RAPL"
        elif self.nvml:
            self.source = "NVML (GPU alone)"
        else:
            self.source = f"assumed {ASSUMED_WATTS:g} W"

    def joules(self) -> float:
        for zone in self.rapl:
            now = _read(zone / "energy_uj")
            step = now - self.last[zone]
            if step < 0:  # the counter wrapped
                step += _read(zone / "max_energy_range_uj")
            self.measured += step / 1e6
            self.last[zone] = now
        if self.rapl:
            return self.measured
        if self.nvml:
            return self.nvml() - self.nvml_began
        return (self.watts or ASSUMED_WATTS) * (time.perf_counter() - self.began)


def _read(path: Path) -> int:
    return int(path.read_text())


def _rapl_zones() -> list[Path]:
    """Package zones whose counters this user may read (often root only)."""
    zones = []
    for zone in sorted(POWERCAP.glob("*-rapl:[0-9]")) if POWERCAP.is_dir() else []:
        try:
            _read(zone / "energy_uj")
            _read(zone / "max_energy_range_uj")
        except (OSError, ValueError):
            continue
        zones.append(zone)
    return zones


def _nvml() -> Any:
    """A function giving joules of the first GPU, or None."""
    try:
        import pynvml  # type: ignore[import-not-found]

        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(0)
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except Exception:  # the package, the driver, the device or the counter is missing: each has its own exception
        return None
    return lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000


@dataclass
class Entry:
    """One stage in one session."""

    name: str
    kind: str
    rates: Rates
    meter: Meter
    session: str = field(default_factory=lambda: uuid.uuid4().hex[:8])
    began: float = field(default_factory=lambda: time.perf_counter())
    tokens: int = 0
    flops: float = 0.0
    charged: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)  # judges are heard in other threads
    ledger: Ledger | None = None
    saved: float = field(default_factory=lambda: time.perf_counter())

    def add(self, tokens: int = 0, flops: float = 0.0, usd: float = 0.0) -> None:
        """`usd` is what others charge, besides this machine's time: it is on the record at once."""
        with self.lock:
            self.tokens += tokens
            self.flops += flops
            self.charged += usd
        if self.ledger is not None and (usd or time.perf_counter() - self.saved > SAVE_EVERY):
            self.saved = time.perf_counter()
            self.ledger.record(self)

    def bill(self) -> Bill:
        seconds = time.perf_counter() - self.began
        usd = seconds / 3600 * self.rates.usd_per_hour + self.charged
        return Bill(seconds, self.tokens, self.flops, self.meter.joules() / 3.6e6, usd)


class Ledger:
    """All entries of a run, earlier sessions' included. Raises nothing for a last line that a kill cut short."""

    def __init__(self, path: Path, rates: Rates):
        self.path, self.rates = path, rates
        self.rows: dict[tuple[str, str], dict[str, Any]] = {}  # (stage, session) -> its last line
        self.open: Entry | None = None
        self.energy_source = Meter(rates.watts).source
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
            try:
                row = json.loads(line)
                self.rows[row["name"], row["session"]] = row
            except (ValueError, KeyError, TypeError):
                continue

    @contextmanager
    def stage(self, name: str, kind: str) -> Iterator[Entry]:
        entry = Entry(name, kind, self.rates, Meter(self.rates.watts), ledger=self)
        self.open = entry
        try:
            yield entry
        finally:
            self.open = None
            self.record(entry)

    def record(self, entry: Entry) -> None:
        row = {"name": entry.name, "kind": entry.kind, "session": entry.session, **asdict(entry.bill())}
        self.rows[entry.name, entry.session] = row
        with self.path.open("a+b") as file:
            torn = file.seek(0, os.SEEK_END) > 0 and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n"
            file.write((("\n" if torn else "") + json.dumps(row) + "\n").encode())

    def price(self, seconds: float, tokens: int = 0, flops: float = 0.0) -> Bill:
        return price(self.rates, seconds, tokens, flops)

    def stages(self) -> list[dict[str, Any]]:
        """{name, kind, seconds, tokens, flops, kwh, usd}, summed over sessions, in order of first appearance."""
        sums: dict[str, dict[str, Any]] = {}
        for (name, _), row in self.rows.items():
            known = sums.setdefault(name, {"name": name, "kind": row["kind"], **asdict(Bill())})
            for key in asdict(Bill()):
                known[key] += row[key]
        return list(sums.values())

    def total(self) -> Bill:
        """Everything so far, the running entry included."""
        total = Bill()
        for (_, session), row in self.rows.items():
            if self.open is None or session != self.open.session:
                total += Bill(*(row[key] for key in asdict(Bill())))
        return total + self.open.bill() if self.open else total
