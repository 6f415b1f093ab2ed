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

import re
from hashlib import blake2b
from typing import Any

from mull.tasks.apart import Apart, StoppedError
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
TAGGED = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)


class Gym(Apart):
    """The process that reasoning-gym lives in, shared by all sets."""

    def __init__(self) -> None:
        missing = "The gym/ tasks need reasoning-gym: pip install 'reasoning-gym>=0.1.25'."
        super().__init__("mull.tasks.gym", "reasoning_gym", missing)


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
        except StoppedError as stop:
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
        except StoppedError as stop:
            return 0.0, "timeout" if stop.timeout else "wrong"
        return score, "solved" if score >= 1.0 else "wrong"


def puzzles() -> dict[str, Puzzle]:
    """All sets by task name, sharing one process."""
    gym = Gym()
    return {f"gym/{name}": Puzzle(name, gym) for name in SETS}


__all__ = ["SETS", "Gym", "Puzzle", "puzzles"]
