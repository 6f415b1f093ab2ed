"""Overlap of a set with training text, against a search in plain Python, and over what runs keep."""

from __future__ import annotations

import gzip
import json
import os
import random
import re
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mull.report import overlap as module
from mull.report.overlap import Training, hashes, normalised, overlap, training
from mull.types import Completion, Message, Problem, Rollout, UserError, write_rollouts

DATA = Path(__file__).parents[1] / ".." / "shared" / "data"
LONG = "A farmer near the river has seventeen old goats and buys twelve younger goats at the market on every Friday"


def problem(text: str, name: str = "1", task: str = "own") -> Problem:
    return Problem(task, name, (Message("system", "Be brief."), Message("user", text)), "")


def found_in(folder: Path, text: str, *questions: str, name: str = "a.txt") -> dict:
    (folder / name).write_text(text, encoding="utf-8")
    return overlap([problem(q, str(i)) for i, q in enumerate(questions)], training([folder]))


def words_of(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower().replace("'", ""))


def slowly(question: str, text: str) -> tuple[float, bool]:
    """(share of grams, whole question) by plain search."""
    asked, read = words_of(question), words_of(text)
    n = min(13, len(asked))
    grams = {tuple(asked[i : i + n]) for i in range(len(asked) - n + 1)} if asked else set()
    there = {tuple(read[i : i + n]) for i in range(len(read) - n + 1)}
    whole = bool(asked) and any(read[i : i + len(asked)] == asked for i in range(len(read)))
    return (len(grams & there) / len(grams) if grams else 0.0), whole


def test_case_punctuation_and_where_lines_break_make_no_difference(tmp_path):
    spread = LONG.upper().replace(" ", ",\n ")
    found = found_in(tmp_path, f"Before. {spread}!\nBehind.", LONG + "?")
    (row,) = found["problems"]
    assert (row["found"], row["share"], row["file"]) == ("exact", 1.0, str(tmp_path / "a.txt"))
    assert (found["exact"], found["grams"], found["half"], found["template"]) == (1, 1, 1, 0)


def test_a_part_is_a_share_of_grams(tmp_path):
    part = " ".join(LONG.split()[:14])
    (row,) = found_in(tmp_path, part, LONG)["problems"]
    assert (row["found"], row["words"], row["grams"]) == ("grams", 20, 8)
    assert row["share"] == pytest.approx(2 / 8)
    (none,) = found_in(tmp_path, " ".join(LONG.split()[:12]), LONG)["problems"]
    assert (none["found"], none["share"], none["file"]) == ("none", 0.0, None)


def test_other_numbers_are_another_finding(tmp_path):
    asked = "Tom has 12 apples and gives 1,250 of them to his 3 friends at $4.50 each, how many are left?"
    text = asked.replace("12", "7").replace("1,250", "88").replace("4.50", "19")
    found = found_in(tmp_path, text, asked)
    (row,) = found["problems"]
    assert (row["found"], row["share"], row["template_share"]) == ("template", 0.0, 1.0)
    assert (found["template"], found["grams"]) == (1, 0)
    assert "1 more are in it with other numbers" in found["lines"][0]
    (same,) = found_in(tmp_path, asked, asked)["problems"]
    assert same["found"] == "exact"


def test_a_short_question_is_looked_for_whole_and_has_no_template(tmp_path):
    found = found_in(tmp_path, "what is 3 plus 4\nwhat is 5 plus 9", "What is 3 plus 4?", "What is 8 plus 8?")
    assert [row["found"] for row in found["problems"]] == ["exact", "none"]
    assert found["short"] == 2 and any("fewer than 13 words" in line for line in found["lines"])


def test_what_a_whole_set_says_is_not_what_a_problem_says(tmp_path):
    order = "Solve the following problem step by step and put the final answer at the very end in a box: "
    rng = random.Random(1)
    questions = [order + " ".join(rng.choices(LONG.split(), k=20)) for _ in range(12)]
    found = found_in(tmp_path, order, *questions)
    assert found["grams"] == 0 and found["ignored"] > 0
    assert found_in(tmp_path, order, *questions[:5])["grams"] == 5  # of few problems it is anyone's phrase


WORD = st.sampled_from(["a", "b", "c", "Don't", "x1", "7", "12"])
TEXT = st.lists(WORD, max_size=60).map(" ".join)


@settings(deadline=None, max_examples=150)
@given(st.lists(TEXT, min_size=1, max_size=8), TEXT, st.integers(0, 40), st.integers(20, 200))
def test_it_finds_what_a_plain_search_finds(tmp_path_factory, questions, noise, cut, piece):
    """Also where the text comes in many pieces."""
    text = f"{noise} {' '.join(questions[0].split()[:cut])} {questions[-1]} {noise}"
    folder = tmp_path_factory.mktemp("text")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "PIECE", piece)
        found = found_in(folder, text, *questions)
    for question, row in zip(questions, found["problems"], strict=True):
        share, whole = slowly(question, text)
        assert (row["found"] == "exact") == whole
        assert row["share"] == pytest.approx(1.0 if whole else share)


@settings(deadline=None)
@given(st.text(max_size=300), st.booleans())
def test_any_text_has_words(text, masked):
    again = hashes(normalised(text.encode("utf-8", "replace")), masked)
    assert len(again) <= len(text) + 1
    if text.isascii() and "\x00" not in text and not masked:
        assert len(again) == len(words_of(text.replace("`", "")))


def test_letters_beyond_ascii_are_words_too(tmp_path):
    asked = "Über die Brücke gehen zwölf Gänse, \u201csagt\u201d der Müller\u2019s Sohn \u2014 und dann noch dreizehn"
    text = asked.upper().replace("\u2014", "-").replace("\u201c", '"').replace("\u201d", '"').replace("\u2019", "'")
    assert found_in(tmp_path, text, asked)["exact"] == 1


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.jsonl.gz", "a.txt.gz", "a.csv"])
def test_formats(tmp_path, name):
    value = {"meta": {"deep": [1, {"text": "first\n" + LONG.replace(" ", "\n", 3)}]}, "ids": list(range(50))}
    text = json.dumps(value) + "\n" if "json" in name else f"1,{LONG}\n"
    data = text.encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    assert overlap([problem(LONG)], training([tmp_path]))["exact"] == 1
    assert overlap([problem(LONG)], training([tmp_path / name]))["exact"] == 1


def test_no_gram_reaches_from_one_text_into_the_next(tmp_path):
    a, b = " ".join(LONG.split()[:10]), " ".join(LONG.split()[10:])
    lines = "".join(json.dumps({"text": part}) + "\n" for part in (a, b))
    assert found_in(tmp_path, lines, LONG, name="a.jsonl")["grams"] == 0


def test_hostile_files_are_text_or_a_sentence(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b"[" * 100_000 + b"\n" + b"\xff\xfe\x00 nonsense\n" + LONG.encode() + b"\n{\n")
    (tmp_path / "b.txt").write_bytes(os.urandom(100_000) + b"x" * 3_000_000)
    assert overlap([problem(LONG), problem("")], training([tmp_path]))["exact"] == 1
    (tmp_path / "c.txt.gz").write_bytes(b"no gzip at all")
    broken = bytearray(gzip.compress(os.urandom(5000)))
    broken[2000:2100] = b"x" * 100
    (tmp_path / "d.txt.gz").write_bytes(broken)
    (tmp_path / "e.jsonl.gz").write_bytes(gzip.compress(b"word " * 1000)[:-9])
    found = overlap([problem(LONG)], training([tmp_path]))
    assert found["exact"] == 1
    assert [Path(what.partition(",")[0]).name for what in found["unread"]] == ["c.txt.gz", "d.txt.gz", "e.jsonl.gz"]
    assert any(line.startswith("Not read: ") for line in found["lines"])


def test_nothing_to_read_is_said(tmp_path):
    with pytest.raises(UserError, match="no training text at"):
        training([tmp_path / "nowhere"])
    assert "holds none of .txt" in training([tmp_path]).unknown[0]
    assert overlap([problem(LONG)], Training())["lines"] == [
        "Overlap with training text: no text is known to compare with."
    ]


# runs


def run_of(path: Path, stages: list[dict], outside: dict[str, str] | None = None) -> Path:
    (path / "rollouts").mkdir(parents=True)
    config = {"stage": stages, "outside": outside or {}}
    (path / "config.json").write_text(json.dumps({"fingerprint": "f", "config": config}), encoding="utf-8")
    return path


def rollout(question: str, said: str = "done") -> Rollout:
    return Rollout(problem(question), Completion((1,), (-0.1,), "stop", said, "thinking of it"), 1.0, "solved")


def test_of_a_run_the_training_rollouts_count_and_its_exams_do_not(tmp_path):
    run = run_of(tmp_path / "run", [{"kind": "rl", "name": "rl", "tasks": [{"task": "own"}]}])
    other = LONG.replace("goats", "sheep")
    write_rollouts(run / "rollouts" / "rl.jsonl", [rollout("Say it.", LONG)])
    write_rollouts(run / "rollouts" / "exam.jsonl", [rollout(other)])
    (run / "rollouts" / "exam.json").write_text("{}", encoding="utf-8")
    known = training([run])
    assert known == Training((run / "rollouts" / "rl.jsonl",), ("own",), ())
    found = overlap([problem(LONG, "1"), problem(other, "2")], known)
    assert [row["found"] for row in found["problems"]] == ["exact", "none"]
    assert any(line.startswith("own: the model was trained on problems of this task") for line in found["lines"])


def test_files_of_a_pretraining_stage_and_models_of_other_runs_are_followed(tmp_path):
    (tmp_path / "books").mkdir()
    (tmp_path / "books" / "one.txt").write_text(LONG, encoding="utf-8")
    first = run_of(tmp_path / "first", [
        {"kind": "pretrain", "files": [str(tmp_path / "books" / "*.txt"), str(tmp_path / "gone" / "*.txt")]},
        {"kind": "evaluate", "exams": [{"task": "gcd"}]},
    ])  # fmt: skip
    (first / "models" / "base").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    second = run_of(
        tmp_path / "second", [{"kind": "sft", "tasks": [{"task": "chain_sum"}], "recite": [{"task": "products"}]}],
        {"base": str(first / "models" / "base"), "big": str(tmp_path / "elsewhere")},
    )  # fmt: skip
    known = training([second, second])
    assert known.files == (tmp_path / "books" / "one.txt",)
    assert known.tasks == ("chain_sum", "products")
    assert len(known.unknown) == 2
    lines = overlap([problem(LONG)], known)["lines"]
    assert "Not known: what big was trained on." in lines and any("no longer there" in line for line in lines)


def test_a_gram_is_said_to_be_in_the_first_file_that_has_it(tmp_path):
    for name in ("b.txt", "a.txt", "c.txt"):
        (tmp_path / name).write_text("nothing here" if name == "a.txt" else LONG, encoding="utf-8")
    found = overlap([problem(LONG)], training([tmp_path]))
    assert found["problems"][0]["file"] == str(tmp_path / "b.txt")
    assert found["files"] == 3 and found["bytes"] == 2 * len(LONG) + len("nothing here")
    json.dumps(found)


def test_a_real_set_is_all_in_itself_and_not_in_shakespeare(tmp_path):
    source, plays = DATA / "math" / "gsm8k_test.jsonl", DATA / "text" / "tinyshakespeare.txt"
    if not source.exists():
        pytest.skip("no ../shared/data beside the repository")
    rows = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
    problems = [problem(row["question"], str(i)) for i, row in enumerate(rows)]
    assert overlap(problems, training([source]))["exact"] == len(problems)
    assert overlap(problems, training([plays]))["grams"] == 0


@pytest.mark.slow
def test_training_text_streams_by_fast_and_in_little_memory(tmp_path):
    """20 MB of processor seconds each, both passes, at any size; a gigabyte takes a minute."""
    rng = random.Random(1)
    vocabulary = ["".join(rng.choices("etaoinshrdlu", k=rng.randint(2, 9))) for _ in range(20000)]
    page = " ".join(rng.choices(vocabulary, k=200_000)).encode()
    with (tmp_path / "a.txt").open("wb") as out:
        for _ in range(40):
            out.write(page + b"\n")
        out.write(LONG.encode())
    problems = [problem(" ".join(rng.choices(vocabulary, k=40)), str(i)) for i in range(1300)]
    began = time.process_time()
    found = overlap([*problems, problem(LONG, "there")], training([tmp_path]))
    speed = found["bytes"] / 1e6 / (time.process_time() - began)
    assert found["problems"][-1]["found"] == "exact" and found["exact"] == 1
    assert speed > 20, f"{speed:.0f} MB/s"
