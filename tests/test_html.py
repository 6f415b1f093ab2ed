"""The page: one file, nothing fetched, nothing executed, and right for a run in any state."""

from __future__ import annotations

import json
import random
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_summary import CONFIG, SKILL, answered, make_run, write_exam, write_training

from mull.ledger import Rates
from mull.report import figures, svg, words
from mull.report.html import write_report
from mull.run import Run
from mull.tasks import TAUGHT
from mull.types import UserError

VOID = {"meta", "br", "link", "img", "input", "hr"}


class Page(HTMLParser):
    """Checks nesting while it reads; keeps tags, attributes and text."""

    def __init__(self, path: Path):
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(self.source)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, (tag, self.getpos())

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))

    def headings(self) -> list[str]:
        return re.findall(r"<h2>(.*?)</h2>", self.source)

    def drawings(self) -> list[str]:
        return re.findall(r"<svg.*?</svg>", self.source, re.DOTALL)


def page_of(folder: Path) -> Page:
    return Page(write_report(folder))


def numbers(text: str) -> str:
    return text.replace(words.THIN, " ")


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("html") / "run", n=20)


@pytest.fixture(scope="module")
def page(whole) -> Page:
    return page_of(whole)


def test_the_page_has_every_part_and_its_json(whole, page):
    assert page.headings() == [
        "How many problems it solves", "What made the difference", "How the answers came out", "Size and price",
        "How it learnt", "In its own words", "The bill", "Derive it again",
    ]  # fmt: skip
    report = json.loads((whole / "report.json").read_text(encoding="utf-8"))
    assert {"stages", "evals", "total", "model", "comparisons"} <= report.keys()
    assert not list(whole.glob("*.part"))


def test_the_headline_says_what_how_good_and_how_much(whole, page):
    report = json.loads((whole / "report.json").read_text(encoding="utf-8"))
    (row,) = [r for r in report["overall"] if (r["model"], r["label"], r["thinking"]) == ("rl", "held-out", True)]
    headline = numbers(re.findall(r"<h1>(.*?)</h1>", page.source)[0])
    assert headline.startswith("A 1.15 M-parameter mixture of experts")
    assert f"solves {100 * row['accuracy']:.1f} % of held-out problems" in headline
    assert f"(95 % interval {100 * row['ci95'][0]:.1f}–{100 * row['ci95'][1]:.1f})" in headline
    assert f"for {words.money(report['total']['usd'])}" in headline


def test_the_page_needs_nothing_from_outside_and_runs_nothing(page):
    assert not {tag for tag, _ in page.tags} & {"script", "link", "img", "iframe", "object", "embed", "base", "form"}
    for tag, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes), tag
        assert not {"src", "href", "style", "srcset"} & attributes.keys(), tag
    assert "url(" not in page.source
    assert "@import" not in page.source
    outside = set(re.findall(r"https?://[^\"' <]+", page.source))
    assert outside <= {"http://www.w3.org/2000/svg"}
    policy = next(a["content"] for t, a in page.tags if t == "meta" and a.get("http-equiv"))
    assert policy == "default-src 'none'; style-src 'unsafe-inline'"


def test_every_drawing_is_sound_and_can_be_heard(page):
    drawings = page.drawings()
    assert len(drawings) > 60
    for drawing in drawings:
        root = ElementTree.fromstring(drawing)
        assert root.get("role") == "img"
        assert len(root.get("aria-label", "")) > 10
        for element in root.iter():
            for name in ("x", "y", "width", "height", "cx", "cy", "d"):
                assert "nan" not in element.get(name, "") and "inf" not in element.get(name, "")
            if element.tag.endswith("rect"):
                assert float(element.get("width", "0")) >= 0


def test_a_model_has_one_colour_throughout(page):
    colours: dict[str, set[str]] = {}
    for colour, name in re.findall(r'<span class="model (m\d)">(\w+)</span>', page.source):
        colours.setdefault(name, set()).add(colour)
    assert set(colours) == {*SKILL, "pretrain"}
    assert all(len(found) == 1 for found in colours.values())
    assert len({next(iter(found)) for found in colours.values()}) == 5


def test_colours_have_contrast_in_both_lights(page):
    """At least 4.5 : 1 against the paper (WCAG 2.2, text): models' names are written in their colours."""
    blocks = re.findall(r":root \{(.*?)\}", page.source, re.DOTALL)
    assert len(blocks) >= 2
    for block in blocks[:2]:
        colour = dict(re.findall(r"--([\w-]+): (#\w{6})", block))
        for name in ("ink", "soft", "faint", "m0", "m1", "m2", "m3", "m4", "m5", "m6"):
            assert contrast(colour[name], colour["paper"]) >= 4.5, name


def contrast(a: str, b: str) -> float:
    light = sorted((luminance(a), luminance(b)))
    return (light[1] + 0.05) / (light[0] + 0.05)


def luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_the_bill_names_its_assumptions(page):
    text = numbers(page.text)
    assert "Money is time at $0.20 an hour. Energy: stated 30 W." in text
    assert "Memory at most" in text


def test_the_same_directory_gives_the_same_bytes(whole, page):
    assert write_report(whole).read_text(encoding="utf-8") == page.source


EVIL = (
    "<script>alert(1)</script>",
    '"><svg onload=alert(1)>',
    "</pre></details><h1>Solved!</h1>",
    "{{ 7 * 7 }}{% for x in y %}",
    "<style>*{display:none}</style>",
    "\u202edesrever \x1b[31m \x00 \ud800",
)


def test_what_a_model_wrote_is_shown_and_never_obeyed(tmp_path):
    run = Run.open(tmp_path / "run", {"name": "<script>name</script>"}, quiet=True)
    rng = random.Random(2)
    answers = []
    for problem, evil in zip(TAUGHT["gcd"].problems("test", len(EVIL), 3), EVIL, strict=True):
        asked = replace(problem.messages[0], content=f"{evil} question")
        problem = replace(problem, messages=(asked,), answer=f"{evil} gold", id=f"{evil} id")
        found = replace(answered(TAUGHT["gcd"].problems("test", 1, 3)[0], "<b>rl</b>", True, 1.0, rng), problem=problem)
        said = replace(found.completion, text=f"{evil} answer", reasoning=f"{evil} chain")
        answers.append(replace(found, completion=said, outcome="wrong"))
    answers = [replace(r, problem=replace(r.problem, task="<i>task</i>")) for r in answers]
    lines = [json.dumps(json.loads(r.to_json())) for r in answers]  # ASCII: a lone surrogate has no other form on disk
    folder = tmp_path / "run" / "rollouts"
    folder.mkdir()
    facts = {"label": "<u>label</u>", "split": "test", "seconds": 1.0, "usd": 0.1, "file": "x.jsonl"}
    (folder / "x.json").write_text(json.dumps(facts), encoding="utf-8")
    (folder / "x.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    run.close()
    page = page_of(tmp_path / "run")
    assert not {tag for tag, _ in page.tags} & {"script", "b", "u"}
    assert sum(tag == "h1" for tag, _ in page.tags) == 1
    assert sum(tag == "style" for tag, _ in page.tags) == 1
    assert all("onload" not in attributes for _, attributes in page.tags)
    assert "<script>alert(1)</script> answer" in page.text
    assert "{{ 7 * 7 }}" in page.text
    assert not set("\u202e\x1b\x00\ud800") & set(page.source)
    assert "<i>task</i>" in page.text


def test_long_chains_are_cut_in_the_middle_and_say_so():
    cut = words.shown("a" * 5000 + "b" * 5000, 300)
    assert len(cut) < 400
    assert cut.startswith("aaa") and cut.endswith("bbb")
    assert "9,700 characters left out" in cut


@settings(deadline=None)
@given(st.text())
def test_shown_text_can_always_be_written(text):
    shown = words.shown(text, 50)
    assert shown.encode("utf-8").decode("utf-8") == shown
    assert all(c in "\n\t" or c.isprintable() or c.isspace() for c in shown)


def test_a_run_without_exams_shows_how_it_learnt(tmp_path):
    run = Run.open(tmp_path / "run", CONFIG, rates=Rates(watts=30.0), quiet=True)
    write_training(run, 0.02)
    run.close()
    page = page_of(tmp_path / "run")
    assert page.headings() == ["Size and price", "How it learnt", "The bill", "Derive it again"]
    assert "has not been examined yet." in page.text


def test_a_run_in_its_first_stage_says_so(tmp_path):
    run = Run.open(tmp_path / "run", CONFIG, rates=Rates(watts=30.0), quiet=True)
    with run.ledger.stage("pretrain", "pretrain"):
        run.log("pretrain", 1, loss=6.0, expert_load=[[0.5, 0.5]])
        page = page_of(run.path)
    run.close()
    assert page.headings() == ["How it learnt", "Derive it again"]  # the bill comes with the first saved entry
    assert "A run in its first moments." in page.text
    later = page_of(run.path)
    assert later.headings() == ["How it learnt", "The bill", "Derive it again"]
    assert "A run in progress: 0 of 1 stages begun are done" in later.text
    assert later.text.count("not finished") == 1


def test_a_run_without_anything_is_still_a_page(tmp_path):
    run = Run.open(tmp_path / "run", {"name": "empty"}, quiet=True)
    run.close()
    page = page_of(run.path)
    assert page.headings() == ["Derive it again"]
    assert "Nothing has been trained or examined here yet." in page.text


def test_an_evaluation_alone_is_a_page(tmp_path):
    run = Run.open(tmp_path / "run", {"name": "eval", "outside": {"mine": "nowhere"}}, quiet=True)
    rng = random.Random(2)
    with run.ledger.stage("eval", "evaluate"):
        for model, skill in (("mine", 0.4), ("yours", 0.6)):
            problems = TAUGHT["gcd"].problems("test", 30, 3)
            write_exam(run, [answered(p, model, True, skill, rng, k) for p in problems for k in range(4)], "held-out")
    run.close()
    page = page_of(run.path)
    assert page.headings() == [
        "How many problems it solves", "What made the difference", "How the answers came out", "Size and price",
        "In its own words", "The bill", "Derive it again",
    ]  # fmt: skip
    assert "maj@4" in page.text
    assert "30 problems × 4 answers" in page.text


def test_a_directory_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no run"):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_broken_and_missing_metrics_leave_gaps_not_errors():
    colours = figures.Colours(("a",))
    assert figures.losses([], colours) is None
    assert figures.expert_load([], colours) is None
    assert figures.over_steps([], "m0", "Reward") is None
    assert figures.frontier([], colours) is None
    odd = [{"stage": "a", "step": 1, "time": 1.0, "loss": float("nan")}]
    assert figures.losses(odd, colours) is None
    one = [{"stage": "a", "step": 1, "time": 1.0, "loss": 2.0, "expert_load": [[1.0]]}]
    for drawing in (figures.losses(one, colours), figures.expert_load(one, colours)):
        assert drawing is not None
        ElementTree.fromstring(drawing)


def test_bands_fill_the_axis_and_short_stages_stay_legible():
    rows = [{"stage": s, "step": i, "time": t + i * d, "loss": 1.0}
            for s, t, d in (("long", 0.0, 100.0), ("short", 2000.0, 0.1)) for i in range(1, 11)]  # fmt: skip
    found = figures.bands(rows, 40, 900)
    assert [band.stage for band in found] == ["long", "short"]
    assert found[0].left == 40 and found[-1].right == pytest.approx(900)
    assert found[1].left == pytest.approx(found[0].right)
    assert found[1].right - found[1].left == pytest.approx(84)


def test_a_pause_between_sessions_is_not_training_time():
    rows = [{"stage": "a", "step": i, "time": i + (86400.0 if i > 5 else 0.0), "loss": 1.0} for i in range(1, 11)]
    assert figures.durations(rows) == {"a": pytest.approx(10.0)}


def test_models_of_equal_accuracy_have_names_that_can_be_read():
    row = {"accuracy": 0.8, "ci95": [0.75, 0.85], "usd_per_solved": 1e-6, "thinking": True}
    drawing = figures.frontier([row | {"model": name} for name in "abc"], figures.Colours(("a", "b", "c")))
    assert drawing is not None
    named = [e for e in ElementTree.fromstring(drawing).iter() if e.get("class", "").startswith("name")]
    heights = sorted(float(element.get("y", "nan")) for element in named)
    assert len(heights) == 3
    assert all(b - a >= 12.9 for a, b in pairwise(heights))


@settings(deadline=None)
@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_ticks_are_round_few_and_inside(low, span):
    marks = svg.ticks(low, low + span)
    assert 1 <= len(marks) <= 8
    assert all(low - span * 1e-6 - 1e-9 <= mark <= low + span * (1 + 1e-6) + 1e-9 for mark in marks)


@pytest.mark.parametrize(("usd", "written"), [
    (0, "$0"), (12.345, "$12.35"), (0.17, "$0.17"), (0.0038, "$0.0038"), (1.9e-7, "$0.00000019"), (1234.5, "$1,234.50"),
])  # fmt: skip
def test_money_has_two_digits_that_mean_something(usd, written):
    assert words.money(usd) == written


@pytest.mark.parametrize(("n", "written"), [
    (0, "0"), (999, "999"), (999.6, "1 k"), (1234, "1.23 k"), (709_000, "709 k"), (1_150_000, "1.15 M"),
    (2.5e12, "2.5 T"),
])  # fmt: skip
def test_counts_have_three_digits(n, written):
    assert numbers(words.count(n)) == written


@pytest.mark.parametrize(("share", "written"), [(0.0612, "+6.1"), (-0.2, "−20.0"), (0.0, "0.0"), (-0.0001, "0.0")])
def test_differences_are_signed_points(share, written):
    assert words.points(share) == written
