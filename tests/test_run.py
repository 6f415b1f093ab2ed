"""A run is a directory: opened, continued, refused; its lines survive a kill; progress is one line."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import content

import mull.run
from mull.ledger import Rates
from mull.report.figures import durations
from mull.run import Run, write_atomic
from mull.types import Completion, Message, Problem, Rollout, UserError, read_rollouts

CONFIG = {"name": "x", "stage": [{"name": "base", "steps": 3}, {"name": "rl", "steps": 2}]}


def opened(path: Path, config: dict = CONFIG) -> Run:
    return Run.open(path, config, quiet=True)


def rollout(text: str, version: int = 0) -> Rollout:
    problem = Problem("gcd", "1", (Message("user", "2, 3"),), "1")
    return Rollout(problem, Completion((1,), (-0.5,), "stop", text, version=version), 1.0, "solved")


# opening


def test_a_run_is_made_and_continued(tmp_path: Path):
    path = tmp_path / "deep" / "run"
    with_facts = opened(path)
    with_facts.finish("base", kind="pretrain")
    with_facts.note("rl", steps=7)
    with_facts.close()
    again = opened(path)
    assert again.done("base")
    assert not again.done("rl")
    assert again.facts("rl") == {"steps": 7}
    assert json.loads((path / "config.json").read_text())["config"] == CONFIG
    assert not list(path.rglob("*.part"))
    again.close()


def test_another_configuration_is_refused_with_what_differs(tmp_path: Path):
    opened(tmp_path / "run").close()
    before = content(tmp_path)
    other = {"name": "y", "stage": [{"name": "base", "steps": 4}]}
    with pytest.raises(UserError) as caught:
        opened(tmp_path / "run", other)
    said = "name: x there, y now; stage.base.steps: 3 there, 4 now; stage.rl.name: rl there, absent now and 1 more"
    assert said in str(caught.value)
    assert content(tmp_path) == before


def test_what_is_no_run_is_refused(tmp_path: Path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="is a file"):
        opened(tmp_path / "file")
    with pytest.raises(UserError, match="is not empty and holds no run"):
        opened(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config.json cannot be read"):
        opened(tmp_path / "run")
    (tmp_path / "run" / "config.json").write_text("[]")
    with pytest.raises(UserError, match=r"config.json holds no JSON object"):
        opened(tmp_path / "run")


def test_a_run_is_for_one_process_at_a_time(tmp_path: Path):
    held = opened(tmp_path / "run")
    with pytest.raises(UserError, match="is in use by process"):
        opened(tmp_path / "run")
    held.close()
    opened(tmp_path / "run").close()


def test_a_directory_in_which_a_start_failed_is_free_again(tmp_path: Path):
    (tmp_path / "run.lock").touch()
    opened(tmp_path).close()


def test_a_kill_before_there_is_a_configuration_leaves_a_directory_that_is_continued(tmp_path: Path):
    (tmp_path / "run.lock").touch()
    (tmp_path / "config.json.part").write_text('{"finger')
    opened(tmp_path).close()
    assert json.loads((tmp_path / "config.json").read_text())["config"] == CONFIG
    assert not list(tmp_path.glob("*.part"))


def test_a_run_that_another_process_began_meanwhile_is_not_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Between the first look at the directory and the lock on it."""
    lock = mull.run._lock

    def late(path: Path):
        monkeypatch.setattr(mull.run, "_lock", lock)
        opened(path, {"name": "other"}).close()
        return lock(path)

    monkeypatch.setattr(mull.run, "_lock", late)
    with pytest.raises(UserError, match="holds a run of another configuration"):
        opened(tmp_path / "run")
    opened(tmp_path / "run", {"name": "other"}).close()  # and it is not in use


# lines


def test_metrics_are_lines_and_can_be_taken_back(tmp_path: Path):
    run = opened(tmp_path)
    for step in (1, 2, 3):
        run.log("base", step, loss=1.23456789, max_gap=2.34567891e-7, load=[0.5])
    run.log("rl", 1, reward=0.5)
    run.rewind("base", 1)
    assert [(line["stage"], line["step"]) for line in run.metrics()] == [("base", 1), ("rl", 1)]
    assert (run.metrics("base")[0]["loss"], run.metrics("base")[0]["max_gap"]) == (1.23457, 2.34568e-7)
    assert list((tmp_path / "tensorboard").iterdir())
    run.close()


def test_a_line_cut_short_is_dropped_when_the_run_is_opened_again(tmp_path: Path):
    run = opened(tmp_path)
    run.log("base", 1, loss=1.0)
    run.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "base", "st')
    (tmp_path / "ledger.jsonl").write_text('{"name"')
    again = opened(tmp_path)
    again.log("base", 2, loss=1.0)
    assert [line["step"] for line in again.metrics()] == [1, 2]
    assert (tmp_path / "metrics.jsonl").read_text().count("\n") == 2
    assert (tmp_path / "ledger.jsonl").read_text() == ""
    again.close()


def test_cut_at_every_byte_of_its_last_line_a_metrics_file_is_mended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(mull.run.time, "time", lambda: 1.5)
    monkeypatch.setattr(mull.run, "_Board", lambda folder: SimpleNamespace(write=lambda *_: None, close=lambda: None))
    path = tmp_path / "metrics.jsonl"
    run = opened(tmp_path)
    for step in (1, 2, 3):
        run.log("base", step, loss=1 / step, load=[0.5, 0.25], note="ü")
    run.close()
    whole = path.read_bytes()
    begin = whole[:-1].rfind(b"\n") + 1
    for length in range(begin, len(whole) + 1):
        path.write_bytes(whole[:length])
        again = opened(tmp_path)
        left = [1, 2, 3] if length == len(whole) else [1, 2]
        assert [line["step"] for line in again.metrics("base")] == left, length
        again.rewind("base", 2)  # the last checkpoint was of step 2
        again.log("base", 3, loss=1 / 3, load=[0.5, 0.25], note="ü")
        again.close()
        assert path.read_bytes() == whole, length


def test_a_clock_set_back_reorders_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    now = iter(range(10**9, 0, -3600))  # an hour back with every look at it
    monkeypatch.setattr(mull.run.time, "time", lambda: next(now))
    run = Run.open(tmp_path, CONFIG)
    with run.ledger.stage("base", "pretrain") as entry, run.progress("base", 3) as progress:
        for step in (1, 2, 3):
            run.log("base", step, loss=1.0)
            entry.add(tokens=5)
            progress.update(step, tokens=5)
        assert re.search(r"step 3/3 .* tok/s  \S+  \d:\d\d$", str(progress.line()))
    run.close()
    again = opened(tmp_path)
    again.rewind("base", 2)
    again.log("base", 3, loss=1.0)
    assert [line["step"] for line in again.metrics("base")] == [1, 2, 3]
    stamps = [line["time"] for line in again.metrics("base")]
    assert stamps == sorted(stamps, reverse=True)
    assert len(set(stamps)) == 3
    [row] = again.ledger.stages()
    assert 0 < row["seconds"] < 60
    assert 0 < row["usd"] < 1
    assert durations(again.metrics()) == {"base": 0.0}
    again.close()


def test_rollouts_grow_step_by_step_and_can_be_taken_back(tmp_path: Path):
    run = opened(tmp_path)
    for step in range(3):
        run.append_rollouts("rl", step, [rollout(f"{step}a", step), rollout(f"{step}b", step)])
    with run.rollouts_path("rl").open("a") as file:
        file.write('{"cut": ')  # a kill in the middle of step 3
    run.close()
    again = opened(tmp_path)
    again.rewind_rollouts("rl", 3)
    assert len(read_rollouts(run.rollouts_path("rl"))) == 6
    again.rewind_rollouts("rl", 2)
    assert [r.completion.text for r in read_rollouts(run.rollouts_path("rl"))] == ["0a", "0b", "1a", "1b"]
    again.append_rollouts("rl", 2, [rollout("2", 2)])
    again.rewind_rollouts("rl", 0)
    assert read_rollouts(run.rollouts_path("rl")) == []
    again.close()


def test_files_are_written_whole_or_not_at_all(tmp_path: Path):
    path = tmp_path / "state.json"
    write_atomic(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomic(path, "\ud800")
    assert path.read_text() == "old"


def test_what_a_long_step_has_come_to_is_in_the_line(tmp_path: Path):
    run = opened(tmp_path)
    with run.progress("rl", 3, unit="exam") as progress:
        progress.note("answer 7/500", tokens=70)
        assert str(progress.line()).startswith("2/2 rl           exam 0/3  answer 7/500  ")
        progress.update(1)
        assert "answer" not in str(progress.line())
    run.close()


def test_the_largest_memory_of_all_sessions_is_kept(tmp_path: Path):
    run = opened(tmp_path)
    run.note("(machine)", peak_rss_bytes=1 << 50)
    run.note_peak()
    assert run.facts("(machine)")["peak_rss_bytes"] == 1 << 50
    run.close()


# progress


def test_progress_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = Run.open(tmp_path, CONFIG, rates=Rates(usd_per_hour=1e6))
    with run.ledger.stage("base", "pretrain"), run.progress("base", 4) as progress:
        for step in (3, 4):  # continued at step 2
            progress.update(step, tokens=100, loss=1.5)
        line = str(progress.line())
    assert line.startswith("1/2 base         step 4/4  loss 1.500  ")
    assert "tok/s" in line
    assert "$" in line
    run.close()
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1


def test_the_time_left_counts_this_session_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    now = [0.0]
    monkeypatch.setattr(mull.run, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    run = opened(tmp_path)
    with run.progress("base", 100) as progress:
        now[0] += 10.0
        progress.update(51)  # the first of this session
        assert "8:10 left" in str(progress.line())
    run.close()
