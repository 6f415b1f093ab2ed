"""reasoning-gym's sets as tasks: `gym/countdown`, `gym/sudoku`, ... (the optional package reasoning-gym).

Problems are made, and answers scored, by reasoning-gym itself in a process of its own (gym.py says why), started when
the first problem is made or graded. An answer counts as solved where the set's own scorer gives at least 1; the reward
is its score, partial credit included. Some sets have no gold answer, only a scorer, so strings are never compared here.
An answer that keeps the scorer busy for more than a few seconds is a `timeout`; one that kills it is `wrong`.

A problem carries its entry (gold answer and metadata) in `meta`, so rollouts read from disk grade as they did.

Known of the sets: `game_of_life_halting` accepts every answer (its scorer compares the truth of two non-empty strings).
futoshiki, knight_swap, zebra_puzzles, sokoban and puzzle24 take 0.1 to 0.5 s per candidate, and a held-out problem is
one candidate in ten. `composite` is left out: it is a mixture of the others.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from hashlib import blake2b
from typing import Any

from mull.tasks.base import Split, unfinished
from mull.types import Completion, Message, Outcome, Problem, UserError

# named here, so that listing them and finding one costs no import of reasoning-gym
NAMES = """
ab acre advanced_geometry aiw arc_1d arc_agi base_conversion basic_arithmetic bf binary_alternation
binary_matrix bitwise_arithmetic boxnet caesar_cipher calendar_arithmetic chain_sum circuit_logic codeio
coin_flip color_cube_rotation complex_arithmetic count_bits count_primes countdown course_schedule cryptarithm
decimal_arithmetic decimal_chain_sum dice emoji_mystery family_relationships figlet_font fraction_simplification
futoshiki game_of_life game_of_life_halting gcd graph_color group_anagrams gsm_symbolic intermediate_integration
isomorphic_strings jugs kakurasu knight_swap knights_knaves largest_island lcm leg_counting letter_counting
letter_jumble list_functions mahjong_puzzle manipulate_matrix maze mini_sudoku modulo_grid n_queens
needle_haystack number_filtering number_format number_sequence number_sorting palindrome_generation
palindrome_partitioning path_star polynomial_equations polynomial_multiplication pool_matrix power_function
prime_factorization products propositional_logic puzzle24 quantum_lock ransom_note rearc rectangle_count
rotate_matrix rotten_oranges rubiks_cube rush_hour self_reference sentence_reordering shortest_path
simple_equations simple_geometry simple_integration sokoban spell_backward spiral_matrix string_insertion
string_manipulation string_splitting string_synthesis sudoku survo syllogism time_intervals tower_of_hanoi
tsumego word_ladder word_sequence_reversal word_sorting zebra_puzzles
"""
SETS = tuple(NAMES.split())
PASSED_ON = (
    "HOME",
    "LANG",
    "LD_LIBRARY_PATH",
    "PATH",
    "PYTHONPATH",
    "TMPDIR",
)  # of the environment: no tokens, no keys
TAGGED = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


class GymStoppedError(Exception):
    """The process ended in the middle of a request; `timeout` where its alarm ended it."""

    def __init__(self, timeout: bool) -> None:
        self.timeout = timeout


class Gym:
    """A handle on the process, shared by all sets. Starts it when needed, anew where it died or after a fork.

    One request at a time: threads take turns.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._end: Callable[[], object] = lambda: None
        self._owner = 0  # pid of the process that started it: a fork must not read its parent's replies

    def ask(self, request: dict[str, Any]) -> list[Any]:
        """The items of the reply. Raises UserError as the other side did, GymStoppedError if the request ended it."""
        with self._lock:
            try:
                if self._process is None or self._owner != os.getpid() or self._process.poll() is not None:
                    self._start()
                return self._exchange(json.dumps(request))
            except UserError:
                raise
            except BaseException:  # Ctrl-C included: a reply left unread would answer the next request
                self._end()
                self._process = None
                raise

    def _exchange(self, request: str) -> list[Any]:
        process, items = self._process, []
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(BrokenPipeError, json.JSONDecodeError):  # it ended, perhaps in the middle of a line
            process.stdin.write(request + "\n")
            process.stdin.flush()
            for line in process.stdout:
                match json.loads(line):
                    case {"item": item}:
                        items.append(item)
                    case {"error": error}:
                        raise UserError(error)
                    case {"end": _}:
                        return items
        raise GymStoppedError(timeout=process.wait() == -signal.SIGALRM)

    def _start(self) -> None:
        if importlib.util.find_spec("reasoning_gym") is None:
            raise UserError("The gym/ tasks need reasoning-gym: pip install 'reasoning-gym>=0.1.25'.")
        environment = {key: os.environ[key] for key in PASSED_ON if key in os.environ}
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-W", "ignore", "-m", "mull.tasks.gym"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            encoding="utf-8",
            env=environment | {"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )
        self._owner = os.getpid()
        self._end = weakref.finalize(self, end, self._process)  # at our own exit, at the latest
        assert self._process.stdout is not None
        if not self._process.stdout.readline():
            self._end()
            raise UserError("reasoning-gym does not start; `python -c 'import reasoning_gym'` says why.")


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


class Puzzle:
    """One set of reasoning-gym as a Task."""

    def __init__(self, name: str, gym: Gym) -> None:
        self.name = f"gym/{name}"
        self.about = f"reasoning-gym's {name.replace('_', ' ')}"
        self._set = name
        self._gym = gym

    def problems(self, split: Split, n: int, seed: int = 0, **size: Any) -> list[Problem]:
        """`size` overrides fields of the set's own configuration, such as min_digits."""
        request = {"make": self._set, "config": size, "split": split, "n": n, "seed": seed}
        try:
            items = self._gym.ask(request)
        except GymStoppedError as stop:
            why = "one problem took minutes to make" if stop.timeout else "reasoning-gym stopped while making a problem"
            raise UserError(f"{self.name}: {why}; other sizes may do better, or its installation is broken.") from None
        return [self._problem(item, f"{split}/{seed}/{i}", split, size) for i, item in enumerate(items)]

    def _problem(self, item: dict[str, Any], place: str, split: Split, size: dict[str, Any]) -> Problem:
        question = item["question"]
        return Problem(
            task=self.name,
            id=f"{place}/{blake2b(question.encode(), digest_size=4).hexdigest()}",
            messages=(Message("user", question),),
            answer=item["answer"],
            meta={"split": split, "config": size, "entry": item["entry"]},
        )

    def grade(self, problem: Problem, completion: Completion) -> tuple[float, Outcome]:
        """The answer is the whole text, or what stands in the last <answer></answer>, reasoning-gym's own form."""
        if cut := unfinished(completion):
            return 0.0, cut
        tagged = TAGGED.findall(completion.text)
        answer = (tagged[-1] if tagged else completion.text).strip()
        if not answer:
            return 0.0, "unparsed"
        request = {"score": self._set, "answer": answer, "question": problem.messages[-1].content}
        try:
            [score] = self._gym.ask({**request, "config": problem.meta["config"], "entry": problem.meta["entry"]})
        except GymStoppedError as stop:
            return 0.0, "timeout" if stop.timeout else "wrong"
        return score, "solved" if score >= 1.0 else "wrong"


def puzzles() -> dict[str, Puzzle]:
    """All sets by task name, sharing one process."""
    gym = Gym()
    return {f"gym/{name}": Puzzle(name, gym) for name in SETS}


__all__ = ["SETS", "Gym", "Puzzle", "puzzles"]
