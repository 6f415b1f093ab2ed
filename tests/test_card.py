"""A model card says what files say: its front matter is YAML, its figures are the run's, the unknown is called so."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from small import GQA, MOE, SHAPES, in_memory  # noqa: F401
from test_summary import make_run

from mull.model.flops import parameters
from mull.report import words
from mull.report.card import Origin, card, origin_of_folder, origin_of_gguf
from mull.report.summary import summarise

NOTHING = Origin()


def front(text: str) -> dict[str, Any]:
    before, matter, body = text.split("---\n", 2)
    assert before == ""
    assert body.startswith("# ")
    return yaml.safe_load(matter)


def table(text: str, title: str) -> list[list[str]]:
    """The cells of a section's table, without its head."""
    section = text.split(f"## {title}\n")[1].split("\n## ")[0]
    rows = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("|")]
    assert len({len(row) for row in rows}) == 1, rows
    return [[cell.strip() for cell in row] for row in rows[2:]]


@pytest.mark.parametrize("name", SHAPES)
def test_architecture(name: str) -> None:
    cfg = SHAPES[name]
    text = card("m", cfg, "bf16", NOTHING)
    said = dict(table(text, "Architecture"))
    assert int(said["parameters"].replace(",", "")) == parameters(cfg).total
    assert int(said["active per token"].replace(",", "")) == parameters(cfg).active
    assert said["longest text"] == f"{cfg.max_length} tokens"
    assert ("experts" in said) == bool(cfg.experts)
    assert ("multi-token prediction" in said) == bool(cfg.mtp_layers)
    assert ("sliding window" in said) == bool(cfg.windowed)
    tags = front(text)["tags"]
    assert tags[:2] == ["mull", said["family"]]
    assert ("mixture-of-experts" in tags) == bool(cfg.experts)


def test_what_no_file_says_is_not_recorded() -> None:
    text = card("m", MOE, "f32", NOTHING)
    assert front(text).keys() == {"library_name", "pipeline_tag", "tags"}
    assert dict(table(text, "Data and licence")) == dict.fromkeys(
        ("licence", "base model", "data sets", "languages"), "not recorded"
    )
    assert "Training bill: not recorded." in text
    assert "## Evaluation\n\nNot recorded." in text
    assert "None" not in text
    assert "Undefined" not in text


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("card") / "run")


def test_the_bill_and_the_exams_are_the_runs(run: Path) -> None:
    text, summary = card("rl", MOE, "f32", NOTHING, run=run), summarise(run)
    paid = {stage["name"]: stage for stage in summary["stages"]}
    bill = table(text, "Training")
    assert [row[0] for row in bill] == ["pretrain", "sft", "rl", "sum"]  # not sft_longer, the student or the exam
    for name, kind, tokens, _, clock, energy, usd in bill[:-1]:
        stage = paid[name]
        assert (kind, tokens, clock) == (stage["kind"], words.count(stage["tokens"]), words.clock(stage["seconds"]))
        assert (energy, usd) == (words.energy(stage["kwh"]), words.money(stage["usd"]))
    assert bill[-1][6] == words.money(sum(paid[name]["usd"] for name in ("pretrain", "sft", "rl")))
    assert words.money(summary["total"]["usd"]) in text
    exams = [row for row in summary["evals"] if row["model"] == "rl"]
    assert len(exams) == 12
    assert table(text, "Evaluation") == [
        [
            row["task"], row["label"], "after thinking" if row["thinking"] else "at once", str(row["n"]),
            words.percent(row["accuracy"]), words.interval(row["ci95"]),
        ]
        for row in exams
    ]  # fmt: skip
    assert dict(table(text, "Data and licence"))["base model"] == "none: trained from nothing"


def test_a_student_has_its_teachers_bill_too(run: Path) -> None:
    bill = table(card("student", GQA, "f32", NOTHING, run=run), "Training")
    assert [row[0] for row in bill] == ["pretrain", "sft", "rl", "student", "sum"]


SOURCE = """---
license: apache-2.0
base_model:
- org/base
- not a repository
datasets: [org/data, mnli]
language: [en, de]
tags: [x]
---
# A model
"""


def test_a_sources_card_is_heard(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(SOURCE)
    origin = origin_of_folder(tmp_path)
    assert origin == Origin("apache-2.0", ("org/base",), ("org/data", "mnli"), ("en", "de"))
    matter = front(card("m", GQA, "fp8", origin))
    assert matter["license"] == "apache-2.0"
    assert matter["base_model"] == ["org/base"]
    assert matter["datasets"] == ["org/data", "mnli"]
    assert matter["language"] == ["en", "de"]


def test_a_repository_of_the_cache_is_the_base_itself(tmp_path: Path) -> None:
    folder = tmp_path / "models--org--name-1.5" / "snapshots" / "0123abcd"
    folder.mkdir(parents=True)
    (folder / "README.md").write_text(SOURCE)
    assert front(card("m", GQA, "bf16", origin_of_folder(folder)))["base_model"] == ["org/name-1.5"]


def test_a_gguf_files_keys_are_heard() -> None:
    origin = origin_of_gguf({
        "general.license": "apache-2.0", "general.languages": ["en"], "general.base_model.count": 1,
        "general.base_model.0.repo_url": "https://huggingface.co/HuggingFaceTB/SmolLM2-135M", "general.datasets": 3,
        "general.dataset.0.repo_url": "https://elsewhere.example/x",
    })  # fmt: skip
    assert origin == Origin("apache-2.0", ("HuggingFaceTB/SmolLM2-135M",), (), ("en",))
    text = card("m", GQA, "q8_0", origin, file="m.gguf")
    assert front(text)["library_name"] == "gguf"
    assert 'llama-cli -m "m.gguf"' in text
    assert "transformers" not in text


@pytest.mark.parametrize(
    "text",
    [
        "", "---\n", "---\n[\n---\n", "---\n- a\n---\n", "---\nlicense: [mit]\n---\n", "---\nlicense: 3\n---\n",
        '---\nlicense: "mit\\nbase_model: a/b"\n---\n', "---\nlicense: <script>\n---\n", "license: mit\n---\n",
        "---\nlicense: !!python/object/apply:os.system [true]\n---\n", "---\nlicense: " + "m" * 100 + "\n---\n",
        "---\nlicense: mit\n", "---\n" + "[" * 30_000 + "\n---\n",
        "---" + "\n" * 60_000, "---\n" + "\n--- x" * 10_000, "---" + " \n" * 30_000,
    ],
    ids=range(16),
)  # fmt: skip
def test_a_card_that_says_nothing_clear_says_nothing(text: str, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(text)
    begun = time.monotonic()
    assert origin_of_folder(tmp_path) == NOTHING
    assert time.monotonic() - begun < 2


def test_a_card_that_refers_to_itself_without_end(tmp_path: Path) -> None:
    """Nine lists of nine references each: a thousand million licences, if one counted."""
    lists = ["a: &a [mit, mit]"] + [f"{b}: &{b} [{', '.join(['*' + a] * 9)}]" for a, b in zip("abcdefghi", "bcdefghij")]  # noqa: B905
    (tmp_path / "README.md").write_text("---\n" + "\n".join(lists) + "\nlicense: *j\ndatasets: *j\n---\n")
    assert origin_of_folder(tmp_path) == NOTHING


PIECES = st.sampled_from(["```", "`", "<a", "<img src=x>", "|", "\n", "\n#", "\n---\n", "~~~", '"', "{{", "[x](y)"])
NAMES = st.lists(PIECES | st.text(max_size=8), min_size=1, max_size=6).map("".join).filter(bool)


@settings(max_examples=60, deadline=None)
@given(NAMES, NAMES)
def test_any_name_leaves_the_card_a_card(name: str, file: str) -> None:
    """No name breaks a table, ends a code block or opens a tag."""
    text = card(name, MOE, "f32", NOTHING, file=file)
    assert front(text)["pipeline_tag"] == "text-generation"
    assert text.count("```") == 2
    assert text.count("`") % 2 == 0
    assert not re.search(r"<\w|\]\(", text)
    assert re.findall(r"^#.*", text, re.MULTILINE)[0][2:] == text.split("---\n", 2)[2].splitlines()[0][2:]
    assert len(re.findall(r"^#", text, re.MULTILINE)) == 7
    table(text, "Architecture")
