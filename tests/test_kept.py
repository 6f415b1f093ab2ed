"""Answers of an exam that was interrupted: those that came are known, those that failed are not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from mull.stages.kept import Kept
from mull.types import Completion, Message, Outcome, Problem, Rollout


def rollout(name: str, sample: int = 0, outcome: Outcome = "solved") -> Rollout:
    problem = Problem("t", name, (Message("user", "q"),), "1")
    return Rollout(problem, Completion((1,), (-0.5,), "stop", "1\u2028"), 1.0, outcome, sample=sample)


def test_what_was_kept_is_known(tmp_path: Path) -> None:
    kept = Kept(tmp_path / "deep" / "one.jsonl")
    assert (kept.known, kept.seconds) == ({}, 0.0)
    kept.keep(rollout("a"), 1.5)
    kept.keep(rollout("a", 1, "wrong"), 4.0)
    kept.keep(rollout("b"), 3.0)
    again = Kept(kept.path)
    assert again.known == {("a", 0): rollout("a"), ("a", 1): rollout("a", 1, "wrong"), ("b", 0): rollout("b")}
    assert again.seconds == 4.0
    again.forget()
    assert not kept.path.exists()
    again.forget()


def test_what_failed_is_tried_again(tmp_path: Path) -> None:
    kept = Kept(tmp_path / "one.jsonl")
    kept.keep(rollout("a", outcome="infrastructure"), 1.0)
    assert Kept(kept.path).known == {}
    kept.keep(rollout("a"), 2.0)
    assert Kept(kept.path).known == {("a", 0): rollout("a")}


def test_a_line_that_a_kill_cut_short_is_none(tmp_path: Path) -> None:
    kept = Kept(tmp_path / "one.jsonl")
    kept.keep(rollout("a"), 1.0)
    whole = kept.path.read_bytes()
    kept.keep(rollout("b"), 2.0)
    longer = kept.path.read_bytes()
    for end in range(len(whole), len(longer) - 1):
        kept.path.write_bytes(longer[:end])
        assert set(Kept(kept.path).known) == {("a", 0)}
    torn = Kept(kept.path)
    torn.keep(rollout("c"), 3.0)
    assert set(Kept(kept.path).known) == {("a", 0), ("c", 0)}


def test_an_answer_to_what_was_asked_otherwise_is_none(tmp_path: Path) -> None:
    kept = Kept(tmp_path / "one.jsonl")
    for name in "abcd":
        kept.keep(rollout(name), 1.0)
    again = Kept(kept.path)
    a, b, c, d = (rollout(name).problem for name in "abcd")
    again.hold([a, replace(b, messages=(Message("user", "another"),)), replace(c, answer="2")])
    assert set(again.known) == {("a", 0)}
    assert d.id == "d"
