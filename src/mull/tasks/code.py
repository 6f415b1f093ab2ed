"""HumanEval and MBPP: functions to write, judged by running them in the sandbox.

The answer's code is taken from its text (never from the thinking), run in a process of its own, and the set's own
tests are run in another (sandbox.py). Solved is what passes all of them.

HumanEval (arXiv 2107.03374): 164 prompts, each the beginning of a function. The imports and helpers before it are run
before the answer, and once more beside the tests, so that an answer cannot replace what the tests use.
MBPP (arXiv 2108.07732): 974 tasks with three asserts each, which the prompt shows, as in the paper. test is task_id
11 to 510, validation 511 to 600, train 601 to 974; 1 to 10 are the paper's examples and are not dealt. What a task's
test_setup_code builds is built from the answer's own classes, in its process. challenge_test_list is not used.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from mull.config import nearest
from mull.tasks import data, sandbox
from mull.tasks.base import Verdict, first_of, unfinished
from mull.types import Completion, Message, Outcome, Problem, UserError

MBPP_SPLITS = {"test": range(11, 511), "validation": range(511, 601), "train": range(601, 975)}
COMPLETE = "Complete this Python function. Answer with the whole function in one code block."
WRITE = "Answer with Python code in one code block. It must pass these tests:"
FENCE = re.compile(r"([ \t]*+)(`{3,}+|~{3,}+)[ \t]*+([\w+#.-]*+)[^`\n]*+")  # possessive, hence linear
PYTHON = ("", "python", "py", "python3")
DEFINED = re.compile(r"^(?:async[ \t]+def|def|class)[ \t]+(\w+)", re.MULTILINE)
ASSIGNED = re.compile(r"^(\w+)[ \t]*(?::[^=\n]*)?=(?!=)", re.MULTILINE)
IMPORTS = re.compile(r"^(?:import|from)[ \t].*", re.MULTILINE)
BEGINS = re.compile(
    r"^(?:(?:async[ \t]+def|def|class|import)[ \t]+\w|from[ \t]+\S+[ \t]+import\b|@\w|\w+[ \t]*=)", re.MULTILINE
)
PROSE = re.compile(r"^(?:`{3}|[A-Z][\w']*,?[ \t]+[a-z]|[*-][ \t]|#{2,}[ \t])", re.MULTILINE)  # begins no line of code
LONGEST = 1 << 20  # characters of an answer that are looked at; a program of that size is none
OUTCOMES: Mapping[sandbox.Status, Outcome] = {"passed": "solved", "failed": "wrong", "timeout": "timeout"}


class _Code:
    """What the two sets have in common: how an answer is run. `meta` says what with."""

    name: str

    def __init__(self, limits: sandbox.Limits | None = None) -> None:
        self.limits = limits or sandbox.Limits()

    def judge(self, problem: Problem, completion: Completion) -> Verdict:
        """Raises SandboxError where nothing can be run: that says nothing about the answer."""
        if cut := unfinished(completion):
            return Verdict(0.0, cut)
        meta = problem.meta
        code, sure = code_of(completion.text, meta["entry"])
        if not code.strip():
            return Verdict(0.0, "unparsed", {"tests": "the answer holds no code"})
        if len(code) > LONGEST:
            return Verdict(0.0, "unparsed" if not sure else "wrong", {"tests": "too long for a program"})
        ran = sandbox.run(self.program(meta, code), meta["tests"], meta["names"], meta["setup"], self.limits)
        outcome = OUTCOMES.get(ran.status, "wrong" if sure else "unparsed")
        return Verdict(float(outcome == "solved"), outcome, {"tests": ran.why or "passed"})

    def program(self, meta: Mapping[str, Any], code: str) -> list[str]:
        raise NotImplementedError

    def grade(self, problem: Problem, completion: Completion) -> tuple[float, Outcome]:
        verdict = self.judge(problem, completion)
        return verdict.reward, verdict.outcome

    def warning(self) -> str:
        """How the code of answers is shut in here, and what from that does not protect."""
        return sandbox.protection()

    def gold(self, problem: Problem) -> str:
        return f"```python\n{problem.answer}\n```"


class HumanEval(_Code):
    name = "humaneval"
    about = "HumanEval: 164 Python functions to complete, run against the set's tests"

    def problems(self, split: str, n: int, seed: int = 0, **size: Any) -> list[Problem]:
        _has(self.name, ["test"], split, size)
        return [_humaneval(row) for row in first_of(data.rows("humaneval"), n, seed)]

    def program(self, meta: Mapping[str, Any], code: str) -> list[str]:
        """What the prompt has before the function, then the answer; the prompt itself where the answer continues it."""
        if meta["entry"] in defined(code):
            return [meta["before"], code]
        return [meta["prompt"] + (code if code[:1] in " \t\n" else _indented(code))]


class Mbpp(_Code):
    name = "mbpp"
    about = "MBPP: 500 short Python functions to write, run against three asserts each"

    def problems(self, split: str, n: int, seed: int = 0, **size: Any) -> list[Problem]:
        _has(self.name, list(MBPP_SPLITS), split, size)
        rows = [row for row in data.rows("mbpp") if int(row["task_id"]) in MBPP_SPLITS[split]]
        return [_mbpp(row, split) for row in first_of(rows, n, seed)]

    def program(self, meta: Mapping[str, Any], code: str) -> list[str]:
        return [code, *meta["after"]]


def _has(name: str, splits: Sequence[str], split: str, size: Mapping[str, Any]) -> None:
    if split not in splits:
        raise UserError(f'{name} has the splits {", ".join(splits)}, and no "{split}".{nearest(split, splits)}')
    if size:
        raise UserError(f"{name} has no sizes, so no {', '.join(size)}.")


def _humaneval(row: Mapping[str, Any]) -> Problem:
    prompt, entry = row["prompt"], row["entry_point"]
    before = prompt[: prompt.rindex(f"def {entry}(")]
    asked = f"{COMPLETE}\n\n```python\n{prompt}```"
    meta = {
        "split": "test", "entry": entry, "prompt": prompt, "before": before, "setup": [before], "names": [entry],
        "tests": [f"{row['test']}\n\ncheck({entry})\n"],
    }  # fmt: skip
    return Problem("humaneval", row["task_id"], (Message("user", asked),), prompt + row["canonical_solution"], meta)


def _mbpp(row: Mapping[str, Any], split: str) -> Problem:
    code = row["code"].replace("\r\n", "\n")
    tests, after = list(row["test_list"]), row.get("test_setup_code", "")
    used = set(re.findall(r"\w+", "\n".join(tests)))
    names = [name for name in dict.fromkeys([*defined(code), *ASSIGNED.findall(after)]) if name in used]
    asked = f"{row['text'].strip()}\n\n{WRITE}\n\n```python\n" + "\n".join([*after.splitlines(), *tests]) + "\n```"
    meta = {
        "split": split, "entry": next(name for name in names if name in defined(code)), "names": names, "tests": tests,
        "setup": IMPORTS.findall(code), "after": [after] if after.strip() else [],
    }  # fmt: skip
    return Problem("mbpp", f"mbpp/{row['task_id']}", (Message("user", asked),), code, meta)


def code_of(text: str, entry: str) -> tuple[str, bool]:
    """The code in an answer, and whether it surely is code: in a block, or with the function in it.

    The last block of Python that defines `entry`, with the blocks before it that define what it uses; else the last
    block; else the text, without the words around the function where it has one.
    """
    blocks = _blocks(text)
    at = next((i for i in reversed(range(len(blocks))) if entry in defined(blocks[i])), None)
    if at is not None:
        helpers = [block for block in blocks[:at] if entry in defined(block) or not re.search(rf"\b{entry}\b", block)]
        return _with_helpers([*helpers, blocks[at]]), True  # what calls it before it is there is an example
    if blocks:
        return blocks[-1], True
    return (_without_prose(text), True) if entry in defined(text) else (text, False)


def _with_helpers(blocks: Sequence[str]) -> str:
    """The last block, and of those before it what it uses, directly or not, and does not define itself."""
    holders = {name: at for at, block in enumerate(blocks) for name in _bound(block)}  # the last one that has it
    taken, left = set[int](), [len(blocks) - 1]
    while left:
        at = left.pop()
        if at not in taken:
            taken.add(at)
            left += {holders[name] for name in re.findall(r"\w+", blocks[at]) if name in holders}
    return "\n".join(blocks[at] for at in sorted(taken))


def _bound(code: str) -> list[str]:
    """What code defines or imports at its outermost level."""
    return [*defined(code), *(name for line in IMPORTS.findall(code) for name in re.findall(r"\w+", line))]


def _without_prose(text: str) -> str:
    """From the first line that begins like code, to the first sentence behind it that stands at a line's beginning."""
    begins = BEGINS.search(text)
    code = text[begins.start() :] if begins else text
    ends = PROSE.search(code)
    return code[: ends.start()] if ends else code


def _blocks(text: str) -> list[str]:
    """The fenced blocks that may be Python, without the indentation of their fence, as in a list.

    One that is never closed goes to the end of the text.
    """
    blocks, lines, fence, language, indent = [], list[str](), "", "", ""
    for line in [*text.splitlines(), None]:
        found = FENCE.fullmatch(line) if line is not None else None
        if fence and (line is None or (found and _closes(found, fence, indent))):
            if language.lower() in PYTHON:
                blocks.append("\n".join(lines) + "\n")
            fence = ""
        elif fence:
            lines.append((line or "").removeprefix(indent))
        elif found:
            indent, fence, language = found[1], found[2], found[3]
            lines = []
    return blocks


def _closes(found: re.Match[str], fence: str, indent: str) -> bool:
    """As Markdown has it: at least as long, nothing behind, and not indented by four more, as in a docstring."""
    return found[2].startswith(fence) and not found[3] and len(found[1]) < len(indent) + 4


def defined(code: str) -> list[str]:
    """The names that code defines at its outermost level, as far as a glance tells."""
    return [*DEFINED.findall(code), *ASSIGNED.findall(code)]


def _indented(code: str) -> str:
    return "".join(f"    {line}\n" for line in code.splitlines())


__all__ = ["HumanEval", "Mbpp", "code_of"]
