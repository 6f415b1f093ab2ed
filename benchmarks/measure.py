"""What both benchmarks share: clocks that wait for the device, the machine's matrix peak, and one way to report."""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from mull import dist
from mull.types import UserError


def arguments(about: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--preset", default="tiny-moe", help="a name in mull.model.config.PRESETS")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--repeats", type=int, default=7, help="measurements; the median counts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    return parser


def prepare(name: str) -> torch.device:
    """The device; stops with one sentence where it does not exist."""
    dist.settle()
    try:
        return dist.device(name)
    except UserError as error:
        raise SystemExit(str(error)) from None


def timed(work: Callable[[], object], device: torch.device, repeats: int, warm: int = 2) -> list[float]:
    """Seconds of each repetition, after `warm` that do not count."""
    seconds = []
    for i in range(warm + max(repeats, 5)):
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if i >= warm:
            seconds.append(time.perf_counter() - began)
    return seconds


def gemm_peak(device: torch.device) -> float:
    """FLOPs per second of a square product in the precision that training uses there: the roof of every MFU here."""
    size, dtype = (8192, torch.bfloat16) if device.type == "cuda" else (1024, torch.float32)
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / min(timed(lambda: a @ b, device, 15, warm=3))


def summary(seconds: list[float], tokens: int, flops: float, peak: float) -> dict[str, float]:
    """Medians, with the spread beside them: how far the quartiles lie apart, relative to the median."""
    middle = statistics.median(seconds)
    low, _, high = statistics.quantiles(seconds, n=4)
    return {
        "tokens_per_s": tokens / middle, "seconds": middle, "fastest": min(seconds), "slowest": max(seconds),
        "spread": (high - low) / middle, "mfu": flops / middle / peak, "repeats": len(seconds),
    }  # fmt: skip


def machine(device: torch.device, peak: float) -> dict[str, Any]:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "device": device.type, "name": name, "threads": torch.get_num_threads(), "torch": torch.__version__,
        "gemm_gflops": peak / 1e9,
    }  # fmt: skip


def show(what: str, figures: dict[str, float]) -> None:
    print(
        f"{what}: {figures['tokens_per_s']:,.0f} tokens/s (median of {figures['repeats']:.0f}, quartiles "
        f"{100 * figures['spread']:.0f} % apart), MFU {100 * figures['mfu']:.1f} %",
        flush=True,
    )


def finish(path: Path | None, result: dict[str, Any]) -> None:
    if path is not None:
        path.write_text(json.dumps(result, indent=1), encoding="utf-8")
