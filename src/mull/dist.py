"""Where the arithmetic happens. One process needs no launcher and no environment variables.

CPU computes in fp32 (this class of machine has no bf16 units); CUDA in bf16 under autocast, with fp32 weights, router
and log-probabilities, except where fp32 is asked for, as reinforcement learning does. `settle` prepares the process
once, from the command line, never at import.
"""

from __future__ import annotations

import ctypes
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch

from mull.types import UserError

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def device(name: str = "auto") -> torch.device:
    """auto, cpu, cuda or cuda:1 -> a device that exists. Raises UserError otherwise."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(name)
    except RuntimeError:
        raise UserError(f"device = {name!r} is no device; use auto, cpu or cuda.") from None
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device = {name!r}, but torch sees no CUDA device here; use auto or cpu.")
    if chosen.type == "cuda" and (chosen.index or 0) >= (count := torch.cuda.device_count()):
        raise UserError(f"device = {name!r}, but the last CUDA device here is cuda:{count - 1}; use auto or cuda.")
    if chosen.type not in ("cpu", "cuda"):
        raise UserError(f"device = {name!r} is not supported; use auto, cpu or cuda.")
    return chosen


def precision(where: torch.device, fp32: bool = False) -> AbstractContextManager[object]:
    """bf16 autocast on CUDA unless `fp32`, nothing on CPU. Trainer and engine share it: they compute the same thing."""
    return torch.autocast("cuda", torch.bfloat16) if where.type == "cuda" and not fp32 else nullcontext()


def unrounded(where: torch.device) -> AbstractContextManager[object]:
    """No autocast, whatever is around: for products that must not round to bf16."""
    return torch.autocast(where.type, enabled=False)


def row_floor() -> int:
    """Rows from which on each row of a CPU matrix product has the same bits whatever the number of rows.

    The kernels for fewer divide the work otherwise. Measured (torch 2.13, MKL on AVX2): from 4 rows on with one thread,
    from 12 on with two. With four threads the width summed over must be a multiple of 4, as those of all presets are.
    `tests/test_invariance.py` holds that this is enough.
    """
    return max(16, 8 * torch.get_num_threads())


def free_memory(where: torch.device) -> int:
    """Bytes that a device has left; where the system does not say, 4 GB."""
    if where.type == "cuda":
        return torch.cuda.mem_get_info(where)[0]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return 4 << 30
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:")), 4 << 30)


def settle() -> None:
    """Make glibc keep large freed blocks. It otherwise returns them to the kernel after every step and takes
    100,000 page faults to get them back: 14-23 % of a small model's training step on a CPU."""
    if sys.platform != "linux":
        return
    try:
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        libc.mallopt(_M_TRIM_THRESHOLD, 1 << 30)
    except (OSError, AttributeError):
        return  # another C library; only speed is lost
