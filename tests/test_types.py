"""The shared nouns go to JSON and back unchanged; a file that is no rollouts is named by its line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mull.types import OUTCOMES, Completion, Message, Problem, Rollout, UserError, read_rollouts, write_rollouts

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
numbers = st.floats(allow_nan=False, allow_infinity=False)
messages = st.builds(
    Message, text, text, st.none() | text, st.lists(st.dictionaries(text, text, max_size=2), max_size=2).map(tuple)
)
problems = st.builds(
    Problem, text, text, st.lists(messages, max_size=3).map(tuple), text,
    st.dictionaries(text, st.one_of(text, st.integers(), st.booleans(), st.lists(st.integers(), max_size=2))),
)  # fmt: skip
completions = st.builds(
    Completion, st.lists(st.integers(0, 2**31), max_size=4).map(tuple), st.lists(numbers, max_size=4).map(tuple),
    st.sampled_from(["stop", "length", "cancelled"]), text, text, st.integers(0, 9), st.integers(0, 9), numbers,
)  # fmt: skip
rollouts = st.builds(
    Rollout, problems, completions, numbers, st.sampled_from(OUTCOMES), numbers, st.integers(0, 9), text, st.booleans(),
    st.lists(st.integers(0, 999), max_size=4).map(tuple),
)  # fmt: skip


@settings(deadline=None, max_examples=100)
@given(rollouts)
def test_a_rollout_is_one_line_and_comes_back_equal(rollout: Rollout) -> None:
    line = rollout.to_json()
    assert "\n" not in line
    assert Rollout.from_json(line) == rollout


@settings(deadline=None, max_examples=20)
@given(st.lists(rollouts, max_size=4))
def test_files_of_rollouts(tmp_path_factory: pytest.TempPathFactory, some: list[Rollout]) -> None:
    path = tmp_path_factory.mktemp("r") / "deep" / "rollouts.jsonl"
    write_rollouts(path, some)
    assert read_rollouts(path) == some
    assert [p.name for p in path.parent.iterdir()] == ["rollouts.jsonl"]


def one() -> Rollout:
    return Rollout(Problem("t", "1", (Message("user", "q"),), "a"), Completion((1,), (-0.5,), "stop"), 1.0, "solved")


NO_ROLLOUTS = ["{", "[]", "3", "null", '{"problem": {}}', "", '"x"', '{"problem": 1, "completion": 2}']


@pytest.mark.parametrize("line", NO_ROLLOUTS)
def test_a_line_that_is_no_rollout_is_named(line: str, tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text(f"{one().to_json()}\n{line}\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"r\.jsonl, line 2"):
        read_rollouts(path)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    write_rollouts(path, [one()])

    def broken():
        yield one()
        raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        write_rollouts(path, broken())
    assert read_rollouts(path) == [one()]


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, done = tmp_path / "r.jsonl", []
    monkeypatch.setattr(os, "fsync", lambda handle: done.append((os.fstat(handle).st_ino, path.exists())))
    write_rollouts(path, [one()])
    assert done == [(path.stat().st_ino, False), (tmp_path.stat().st_ino, True)]
