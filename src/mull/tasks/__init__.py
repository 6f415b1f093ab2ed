"""Tasks: what is asked, and what counts as right. `TASKS` names them all; importing it loads nothing heavy."""

from __future__ import annotations

from mull.config import nearest
from mull.tasks.arithmetic import ChainSum, Gcd, Products
from mull.tasks.base import SPLITS, Split, Task, Worked
from mull.tasks.puzzle import puzzles
from mull.types import UserError

TAUGHT: dict[str, Worked] = {task.name: task for task in (ChainSum(), Products(), Gcd())}
TASKS: dict[str, Task] = {**TAUGHT, **puzzles()}


def find(name: str) -> Task:
    """Raises UserError with the nearest name."""
    if name in TASKS:
        return TASKS[name]
    hint = f" Did you mean 'gym/{name}'?" if f"gym/{name}" in TASKS else nearest(name, TASKS)
    raise UserError(f'There is no task "{name}".{hint} `mull tasks` lists them.')


__all__ = ["SPLITS", "TASKS", "TAUGHT", "Split", "Task", "Worked", "find"]
