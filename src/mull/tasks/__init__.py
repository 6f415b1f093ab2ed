"""Tasks: what is asked, and what counts as right. `TASKS` names them all; importing it loads nothing heavy."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from mull.config import nearest
from mull.tasks.ambiguity import Ambiguity
from mull.tasks.arithmetic import ChainSum, Gcd, Products
from mull.tasks.base import SPLITS, Split, Task, Worked
from mull.tasks.changed import Changed
from mull.tasks.code import HumanEval, Mbpp
from mull.tasks.files import FileTask
from mull.tasks.ifeval import IFEval
from mull.tasks.mathematics import mathematics
from mull.tasks.perturb import Fresh
from mull.tasks.puzzle import puzzles
from mull.tasks.tables import SUFFIXES
from mull.tasks.turns import MTBench
from mull.types import UserError

TAUGHT: dict[str, Worked] = {task.name: task for task in (ChainSum(), Products(), Gcd())}
PUBLISHED: dict[str, Task] = dict(mathematics())
PUBLISHED |= {task.name: task for task in (Fresh(PUBLISHED[name]) for name in ("gsm8k", "svamp"))}
CHECKED: tuple[Task, ...] = (HumanEval(), Mbpp(), IFEval(), Changed(), Ambiguity(), MTBench())
TASKS: dict[str, Task] = {
    **TAUGHT, **PUBLISHED, **{task.name: task for task in CHECKED}, **puzzles(),
}  # fmt: skip


def find(name: str) -> Task:
    """A task by its name, or one of the user's own by the path of its file. Raises UserError with the nearest name."""
    if name in TASKS:
        return TASKS[name]
    if Path(name).suffix.lower() in (*SUFFIXES, ".py"):
        return _own(name)
    hint = f" Did you mean 'gym/{name}'?" if f"gym/{name}" in TASKS else nearest(name, TASKS)
    raise UserError(f'There is no task "{name}".{hint} `mull tasks` lists them.')


@cache
def _own(path: str) -> Task:
    """Once for each path: a script's process is shared by all who ask for it."""
    if not path.lower().endswith(".py"):
        return FileTask(path)
    from mull.tasks.script import ScriptTask  # here, because that module is also run as a program

    return ScriptTask(path)


__all__ = ["SPLITS", "TASKS", "TAUGHT", "Split", "Task", "Worked", "find"]
