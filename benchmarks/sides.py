"""Several programs side by side: fresh processes in turn, so that the machine's moods fall on all alike.

A benchmark script is its own child: called with `--side NAME` it measures that side and prints one line of JSON, called
without it runs every side once per round and compares. A child's environment is its own too, since an allocator reads
its settings when a process begins.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

# glibc keeps large freed blocks, as mull.dist.settle asks it to; what a user of the peer may set as well
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(1 << 30), "MALLOC_TRIM_THRESHOLD_": str(1 << 30)}


@dataclass(frozen=True)
class Side:
    """One of those compared: what its process is told, by arguments and by environment."""

    arguments: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    python: str = sys.executable  # of another environment, where a peer needs one of its own


def arguments(about: str, rounds: int, peers: Sequence[str], ours: Sequence[str]) -> argparse.ArgumentParser:
    """What every comparison can be told; `--side` is for its own children."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--settings", nargs="+", choices=list(peers), help="of the peer, to choose the fastest of")
    parser.add_argument("--rounds", type=int, default=rounds, help="fresh processes of each side")
    parser.add_argument("--under", default="", help="a command to run each process under, e.g. 'taskset -c 0,1'")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--side", choices=[*ours, *peers], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser


def need(*packages: str) -> None:
    """Stops with one sentence where a peer is not installed."""
    lacking = [name for name in packages if find_spec(name) is None]
    if lacking:
        raise SystemExit(f"This comparison needs {' and '.join(lacking)}; install them with pip install 'mull[bench]'.")


def measure(script: str, side: Side, under: str = "") -> dict[str, Any]:
    """The figures that a fresh process prints as its last line. `under`: a command to run it with, such as taskset.

    Raises SystemExit with the end of what a failed process said.
    """
    command = [*shlex.split(under), side.python, script, *side.arguments]
    done = subprocess.run(command, env={**os.environ, **side.environment}, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{shlex.join(side.arguments)} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def alternate(script: str, sides: Mapping[str, Side], rounds: int, under: str = "") -> dict[str, list[dict[str, Any]]]:
    """Every side once per round, in turn; each side's figures in the order of the rounds."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
    for turn in range(rounds):
        for name, side in sides.items():
            found[name].append(measure(script, side, under))
            print(f"round {turn + 1} of {rounds}: {name}", file=sys.stderr, flush=True)
    return found


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """(lower quartile, median, upper quartile); of a single value, that value three times."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float, float]:
    """Quartiles of our figure over theirs, round by round: what the machine did to a whole round cancels."""
    return quartiles([a / b for a, b in zip(ours, theirs, strict=True)])


def spread(values: tuple[float, float, float], digits: int = 0) -> str:
    low, middle, high = values
    return f"{middle:,.{digits}f} ({low:,.{digits}f} - {high:,.{digits}f})"
