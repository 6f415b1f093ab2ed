"""IFEval: 541 prompts, each with one to three instructions whose following a program checks (arXiv 2311.07911).

A prompt is solved where the answer follows all its instructions: strict accuracy, prompt level, IFEval's headline. The
words say it for each instruction, and whether a loose reading accepts what the strict one does not: the same checks on
eight variants of the answer, without its first line, its last, and its asterisks. `accuracies` makes the four usual
figures of them. The set has no gold answers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import Any

from mull.config import nearest
from mull.tasks import data
from mull.tasks.base import Verdict, first_of, unfinished
from mull.tasks.instructions import TELLS_LANGUAGE, follows, known, needs_languages
from mull.types import Completion, Message, Outcome, Problem, UserError

FOLLOWED = "followed"
LOOSELY = "; followed when read loosely"


class IFEval:
    name = "ifeval"
    about = "IFEval: 541 prompts with instructions that a program can check (strict, prompt level)"

    def problems(self, split: str, n: int, seed: int = 0, **size: Any) -> list[Problem]:
        if split != "test":
            raise UserError(f'ifeval has only the split "test", not "{split}".{nearest(split, ["test"])}')
        if size:
            raise UserError(f"ifeval has no sizes, so no {', '.join(size)}.")
        problems = [problem_of(row) for row in first_of(data.rows("ifeval"), n, seed)]
        if any(item["id"] in TELLS_LANGUAGE for problem in problems for item in problem.meta["instructions"]):
            needs_languages()
        return problems

    def judge(self, problem: Problem, completion: Completion) -> Verdict:
        """The reward is the share of instructions followed."""
        if cut := unfinished(completion):
            return Verdict(0.0, cut)
        asked, text = problem.meta["instructions"], completion.text
        strict = [follows(item["id"], text, item["arguments"]) for item in asked]
        loose = [
            ok or any(obeys(item, variant) for variant in variants(text))
            for item, (ok, _) in zip(asked, strict, strict=True)
        ]
        said = [
            FOLLOWED if ok else f"{why}{LOOSELY if looser else ''}"
            for (ok, why), looser in zip(strict, loose, strict=True)
        ]
        share = sum(ok for ok, _ in strict) / len(strict)
        words = dict(zip(names(asked), said, strict=True)) | {"loose": FOLLOWED if all(loose) else "not followed"}
        return Verdict(share, "solved" if share == 1.0 else "wrong", words)

    def grade(self, problem: Problem, completion: Completion) -> tuple[float, Outcome]:
        verdict = self.judge(problem, completion)
        return verdict.reward, verdict.outcome


def problem_of(row: Mapping[str, Any]) -> Problem:
    """Raises UserError for a row with an instruction that is not known. Arguments that are null are not given."""
    instructions = [
        {"id": known(kind), "arguments": {name: value for name, value in arguments.items() if value is not None}}
        for kind, arguments in zip(row["instruction_id_list"], row["kwargs"], strict=True)
    ]
    message = Message("user", row["prompt"])
    return Problem("ifeval", str(row["key"]), (message,), "", {"split": "test", "instructions": instructions})


def names(asked: Sequence[Mapping[str, Any]]) -> list[str]:
    """The ids; one that is asked twice gets its number."""
    ids = [item["id"] for item in asked]
    return [kind if ids.index(kind) == i else f"{kind} ({ids[: i + 1].count(kind)})" for i, kind in enumerate(ids)]


def obeys(item: Mapping[str, Any], text: str) -> bool:
    return follows(item["id"], text, item["arguments"])[0]


def variants(text: str) -> Iterator[str]:
    """The original's eight: with and without the first line, the last line, and asterisks."""
    lines = text.split("\n")
    for first, last, stars in product((False, True), repeat=3):
        part = lines[first : len(lines) - last]
        cut = "\n".join(part).strip() if first or last else text
        yield cut.replace("*", "") if stars else cut


def accuracies(words: Sequence[Mapping[str, str]]) -> dict[str, float]:
    """The four usual figures, from the words of judged answers: strict and loose, by prompt and by instruction."""
    each = [[said for name, said in one.items() if name != "loose"] for one in words]
    strict = [[said == FOLLOWED for said in one] for one in each]
    loose = [[said == FOLLOWED or said.endswith(LOOSELY) for said in one] for one in each]
    flat = [(a, b) for one, other in zip(strict, loose, strict=True) for a, b in zip(one, other, strict=True)]
    prompts, instructions = max(len(each), 1), max(len(flat), 1)
    return {
        "prompt, strict": sum(map(all, strict)) / prompts,
        "prompt, loose": sum(map(all, loose)) / prompts,
        "instruction, strict": sum(a for a, _ in flat) / instructions,
        "instruction, loose": sum(b for _, b in flat) / instructions,
    }


__all__ = ["IFEval", "accuracies", "problem_of", "variants"]
