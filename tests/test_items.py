"""The page of an evaluation: its verdict with what speaks against it, its tables, and the browser of its items."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from browser import browser  # noqa: F401
from test_html import EVIL, Page, numbers

from mull.console import print_run
from mull.endpoints import Endpoint
from mull.ledger import Rates
from mull.report import items, words
from mull.report.html import write_report
from mull.report.items import browse
from mull.report.summary import read_exams, summarise
from mull.report.verdict import dominated, verdict
from mull.run import Run
from mull.types import Completion, Message, Outcome, Problem, Rollout, write_rollouts

PRICES = {"input": 0.55, "output": 2.19}
SKILL = {"small": 0.45, "large": 0.8, "far-away-with-a-long-name": 0.82}
ASKED = "Of {a} apples {b} are eaten.\nHow many are left?"


def rollout(task: str, i: int, model: str, outcome: Outcome, **more: Any) -> Rollout:
    """An answer to a problem of our own making; `more` goes to it, or to its completion."""
    problem = Problem(task, f"{task}/{i}", (Message("user", ASKED.format(a=i + 9, b=i % 7)),), str(i + 9 - i % 7))
    text = problem.answer if outcome == "solved" else "" if outcome == "truncated" else f"About {i}"
    finish = {"truncated": "length", "infrastructure": "cancelled"}.get(outcome, "stop")
    completion: dict[str, Any] = {
        "tokens": (1,) * (30 + i % 11), "logprobs": (0.0,) * (30 + i % 11), "finish": finish, "text": text,
        "reasoning": f"{i + 9} take away {i % 7}\nis what I look for. " * (1 + i % 3), "prompt_tokens": 20,
        "seconds": 0.4 + 0.01 * (i % 13), "thinking_tokens": 22,
    }  # fmt: skip
    completion |= {name: more.pop(name) for name in list(more) if name in Completion.__dataclass_fields__}
    found = {"problem": problem, "words": {"exact": f"reads {text!r}", "math-verify": outcome}} | more
    said = Completion(**completion)
    return Rollout(completion=said, reward=float(outcome == "solved"), outcome=outcome, model=model, **found)


def served(name: str, priced: bool = True) -> dict[str, Any]:
    one = {"name": name, "url": "https://models.example.org/v1", "model": name}
    prices = {"usd_per_million": PRICES, "priced": "2026-11-01", "source": "https://models.example.org/prices"}
    return Endpoint.model_validate(one | (prices if priced else {})).model_dump(mode="json")


def write(folder: Path, sets: list[list[Rollout]], endpoints: tuple[str, ...] = (), done: bool = True, **facts) -> Path:
    """A run directory as `mull eval` leaves it."""
    models = list(dict.fromkeys(rollouts[0].model for rollouts in sets))
    config = {
        "name": "eval", "about": f"{', '.join(models)}, to see what a page says", "rates": {"usd_per_hour": 0.2},
        "outside": {name: f"/models/{name}" for name in models if name not in endpoints},
        "endpoints": {name: served(name) for name in endpoints},
        "stage": [{"name": "exam", "kind": "evaluate", "models": models}],
    }  # fmt: skip
    run = Run.open(folder, config, rates=Rates(usd_per_hour=0.2, watts=30.0), quiet=True)
    with run.ledger.stage("exam", "evaluate") as entry:
        entry.began -= 90
        entry.add(usd=sum(r.completion.usd or 0.0 for rollouts in sets for r in rollouts))
        for rollouts in sets:
            first = rollouts[0]
            mode = "think" if first.thinking else "direct"
            path = run.rollouts_path(f"exam_{first.model}_{first.problem.task}_{mode}")
            path.parent.mkdir(exist_ok=True)
            usd = sum(r.completion.usd or 0.0 for r in rollouts) or 0.0008
            noted = {"label": "held-out", "split": "test", "seconds": 12.0, "usd": usd, "file": path.name,
                     "stage": "exam", "size": {}} | facts  # fmt: skip
            path.with_suffix(".json").write_text(json.dumps(noted), encoding="utf-8")
            write_rollouts(path, rollouts)
    if done:
        run.finish("exam", kind="evaluate")
    run.close()
    return folder


def some(task: str, model: str, n: int, right: float, thinking: bool = True, samples: int = 1, **more) -> list[Rollout]:
    """Solved at that rate; the rest comes out in every way there is."""
    rng = random.Random(f"{task} {model} {thinking}")
    others: list[Outcome] = ["wrong", "wrong", "truncated", "unparsed", "disagreed", "timeout", "infrastructure"]
    return [
        rollout(task, i, model, "solved" if rng.random() < right else rng.choice(others), sample=k, thinking=thinking,
                **more)
        for i in range(n) for k in range(samples)
    ]  # fmt: skip


def talk(model: str, n: int, right: float, **more) -> list[Rollout]:
    """A set of two turns."""
    found = []
    for r in some("changed", model, n, right, **more):
        said = Completion((1,) * 9, (0.0,) * 9, "stop", f"{model} says yes", f"{model} hesitates", seconds=0.2)
        asked = (Message("system", "Be brief."), Message("user", "Is it so?"), Message("assistant", said.text))
        asked += (Message("user", f"And now, {r.problem.id}, in capitals."),)
        problem = Problem("changed", r.problem.id, asked, "", {"turns": ["And now"]})
        found.append(Rollout(problem, r.completion, r.reward, r.outcome, model=model, earlier=(said,), words=r.words))
    return found


def make_evaluation(folder: Path, n: int = 40) -> Path:
    """Three targets, two of them priced by their tokens, three tasks, one of two turns."""
    far = "far-away-with-a-long-name"
    sets = []
    for model, skill in SKILL.items():
        usd = {"large": {"usd": 0.0021}, far: {"usd": 0.0034}}.get(model, {})
        sets += [some("gsm8k", model, n, skill, samples=2, **usd), some("aime24", model, 30, skill / 2, **usd)]
        sets.append(talk(model, n // 2, skill, **usd))
    return write(folder, sets, ("large", far))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return make_evaluation(tmp_path_factory.mktemp("items") / "eval")


@pytest.fixture(scope="module")
def page(folder) -> Page:
    return Page(write_report(folder))


def test_the_page_of_an_evaluation_has_every_part(page):
    assert page.headings() == [
        "What these problems can tell", "How many problems they solve", "One against another",
        "How the answers came out", "What the answers took", "Price and capability", "What others report",
        "Every item", "The bill", "Derive it again",
    ]  # fmt: skip


def test_the_page_needs_no_script_no_form_and_no_network(page):
    assert not {tag for tag, _ in page.tags} & {"script", "link", "img", "iframe", "object", "embed", "base", "form"}
    for tag, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes), tag
        assert not {"src", "href", "style", "srcset"} & attributes.keys(), tag
    assert "url(" not in page.source and "@import" not in page.source
    assert {a["type"] for tag, a in page.tags if tag == "input"} == {"radio", "checkbox"}


def test_every_figure_is_derived_from_the_directory(folder, page):
    assert write_report(folder).read_text(encoding="utf-8") == page.source
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert [target["name"] for target in report["targets"]] == list(SKILL)
    assert report["targets"][0]["usd_per_hour"] == 0.2 and report["targets"][1]["usd_per_million"]["output"] == 2.19
    text = numbers(page.text)
    for row in report["overall"]:
        assert f"{100 * row['accuracy']:.1f} %" in text
        assert words.money(1000 * row["usd_per_answer"]) in text
    said = [row["line"] for row in report["health"]]
    said += [report["verdict"]["headline"], *report["verdict"]["caveats"], *report["verdict"]["details"]]
    assert all(numbers(line) in text for line in said)


# the verdict


def verdict_of(tmp_path: Path, *sets: list[Rollout], **more: Any):
    return verdict(summarise(write(tmp_path / "eval", list(sets), **more)))


def drawn(model: str, outcomes: list[Outcome], **more: Any) -> list[Rollout]:
    return [rollout("sums", i, model, outcome, **more) for i, outcome in enumerate(outcomes)]


def test_one_target_is_told_by_its_share(tmp_path):
    found = verdict_of(tmp_path, drawn("a", ["solved"] * 30 + ["wrong"] * 20))
    assert numbers(found.headline) == "a solves 60.0 % of 50 problems of sums (95 % interval 46.2–72.4)."
    assert found.caveats == () and found.details == ()


def test_of_two_the_better_one_is_named_whoever_was_asked_first(tmp_path):
    better, worse = ["solved"] * 40 + ["wrong"] * 10, ["solved"] * 20 + ["wrong"] * 30
    for at, (one, other) in enumerate([(better, worse), (worse, better)]):
        found = verdict_of(tmp_path / str(at), drawn("a", one), drawn("b", other))
        first, second = ("a", "b") if at == 0 else ("b", "a")
        assert numbers(found.headline).startswith(
            f"{first} is better than {second}: 80.0 % against 40.0 % of the same 50 problems of sums, 40.0 points more "
        )
        assert "p < 0.001" in numbers(found.headline)


def test_what_cannot_be_told_says_what_could_be_and_what_it_takes(tmp_path):
    a: list[Outcome] = ["solved" if i % 2 else "wrong" for i in range(100)]
    b: list[Outcome] = ["wrong" if i % 2 or i > 90 else "solved" for i in range(100)]
    found = numbers(verdict_of(tmp_path, drawn("a", a), drawn("b", b)).headline)
    assert found.startswith("a cannot be told from b: 50.0 % against 46.0 % of the same 100 problems of sums")
    assert "So many problems show a difference of" in found
    assert "more would decide one of the size at hand." in found


def test_of_three_it_is_said_from_whom_the_first_can_be_told(tmp_path):
    def of(right: int) -> list[Outcome]:
        return ["solved"] * right + ["wrong"] * (60 - right)

    found = verdict_of(tmp_path, drawn("a", of(50)), drawn("b", of(48)), drawn("c", of(20)))
    assert "a solves the most" in found.headline
    assert found.headline.endswith("more than c, but it cannot be told from b.")
    assert len(found.details) == 3


def test_thinking_against_answering_at_once(tmp_path):
    at_once = drawn("a", ["wrong"] * 40 + ["solved"] * 10, thinking=False)
    found = verdict_of(tmp_path, drawn("a", ["solved"] * 45 + ["wrong"] * 5), at_once)
    assert found.headline.startswith("a (thinking) is better than a (at once)")


def test_undecided_answers_are_in_the_headline_with_the_bounds_they_leave(tmp_path):
    few = verdict_of(tmp_path / "few", drawn("a", ["solved"] * 50 + ["wrong"] * 49 + ["truncated"]))
    assert few.caveats == ()
    outcomes: list[Outcome] = ["solved"] * 50 + ["wrong"] * 30 + ["truncated"] * 15 + ["unparsed"] * 5
    many = verdict_of(tmp_path / "many", drawn("a", outcomes))
    (line,) = many.caveats
    assert "20.0 % were cut off or unreadable and count as not solved (50.0–70.0 % all undecided" in numbers(line)
    source = write_report(tmp_path / "many" / "eval").read_text(encoding="utf-8")
    assert line in source[source.index("<h1") : source.index("</h1>")]


def test_a_verdict_that_hangs_on_undecided_answers_says_so(tmp_path):
    a: list[Outcome] = ["solved"] * 80 + ["wrong"] * 20
    b: list[Outcome] = ["solved"] * 50 + ["wrong"] * 10 + ["truncated"] * 40
    found = verdict_of(tmp_path / "hangs", drawn("a", a), drawn("b", b))
    assert found.headline.startswith("a is better than b")
    assert found.caveats[-1] == "If all undecided answers of b were won, a would not be ahead of it."
    b = ["solved"] * 50 + ["wrong"] * 40 + ["truncated"] * 10
    assert len(verdict_of(tmp_path / "stands", drawn("a", a), drawn("b", b)).caveats) == 1


def test_failures_of_the_machinery_are_in_the_headline_and_never_scored(tmp_path):
    outcomes: list[Outcome] = ["solved"] * 48 + ["wrong"] * 48 + ["infrastructure"] * 4
    found = verdict_of(tmp_path, drawn("a", outcomes))
    assert "50.0 %" in numbers(found.headline)
    assert "4 of 100 failed for technical reasons and are left out (48.0–52.0 % all lost .. all won)" in numbers(
        found.caveats[0]
    )


def test_nothing_scored_few_problems_and_an_end_not_reached_are_said(tmp_path):
    found = verdict_of(tmp_path / "none", drawn("a", ["infrastructure"] * 5))
    assert found.headline == "a has no answer that could be scored."
    assert Page(write_report(tmp_path / "none" / "eval"))
    found = verdict_of(tmp_path / "few", drawn("a", ["solved"] * 5), done=False)
    assert found.caveats == (
        "5 problems are few: read the counts, not the shares.", "This evaluation has not come to its end yet.",
    )  # fmt: skip
    empty = write(tmp_path / "empty", [drawn("a", ["solved"])], done=False)
    for file in (empty / "rollouts").iterdir():
        file.unlink()
    assert "Nothing has been answered yet." in Page(write_report(empty)).text


def test_who_is_beaten_by_whom():
    def row(model: str, accuracy: float | None, usd: float) -> dict[str, Any]:
        return {"model": model, "thinking": True, "accuracy": accuracy, "usd_per_answer": usd}

    found = dominated([row("a", 0.9, 3.0), row("b", 0.9, 2.0), row("c", 0.5, 1.0), row("d", 0.5, 2.5),
                       row("twin", 0.5, 1.0), row("none", None, 0.0)])  # fmt: skip
    assert {name: [by for by, _ in beaten] for (name, _), beaten in found.items()} == {
        "a": ["b"], "b": [], "c": [], "d": ["b", "c", "twin"], "twin": [],
    }  # fmt: skip


# every item


def test_every_item_is_there_with_all_that_was_said(folder, page):
    found = browse(folder, read_exams(folder))
    assert found.total == len(found.items) == 40 + 30 + 20
    assert not found.cut
    assert page.source.count('<details class="item ') == 90
    (item,) = [item for item in found.items if item.id == "changed/3"]
    assert [role for role, _ in item.prompt] == ["system", "user", "user"]  # what models answered is their own
    assert item.title == "Is it so?"
    for column in item.columns:
        (given,) = column.answers
        model = found.targets[column.target][0]
        assert given.turns[0].answer.kept == f"{model} says yes"
        assert given.turns[0].thinking.kept == f"{model} hesitates"
        assert dict(given.words).keys() == {"exact", "math-verify"}
    costs = {found.targets[c.target][0]: (c.answers[0].usd, c.answers[0].charged) for c in item.columns}
    assert costs["large"] == (0.0021, True)
    assert costs["small"][0] > 0 and not costs["small"][1]
    assert {len(c.answers) for i in found.items if i.id.startswith("gsm8k") for c in i.columns} == {2}


def test_items_on_which_targets_differ_are_marked(tmp_path):
    sets = [drawn("a", ["solved", "solved", "wrong", "infrastructure"]),
            drawn("b", ["wrong", "solved", "truncated", "solved"])]  # fmt: skip
    folder = write(tmp_path / "eval", sets)
    found = browse(folder, read_exams(folder))
    assert [item.differ for item in found.items] == [True, False, False, False]
    assert found.items[2].classes == "t0 w0 w0-wrong w1 w1-truncated has-wrong has-truncated"


def test_what_a_model_wrote_is_shown_and_never_obeyed(tmp_path, capsys):
    answers = []
    for i, evil in enumerate(EVIL):
        problem = Problem("<i>task</i>", f"{evil} id", (Message("<b>user", f"{evil} question"),), f"{evil} gold")
        answers.append(rollout(
            "sums", i, "<b>model</b>", "wrong", problem=problem, text=f"{evil} answer", reasoning=f"{evil} chain",
            error=f"{evil} error", words={f"{evil} verifier": f"{evil} said"},
        ))  # fmt: skip
    folder = write(tmp_path / "eval", [drawn("a", ["solved"])])
    lines = [json.dumps(json.loads(r.to_json())) for r in answers]  # ASCII: a lone surrogate has no other form on disk
    (path,) = (folder / "rollouts").glob("*.jsonl")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    page = Page(write_report(folder))
    assert not {tag for tag, _ in page.tags} & {"script", "b>model", "i>task"}
    assert sum(tag == "h1" for tag, _ in page.tags) == 1
    assert sum(tag == "style" for tag, _ in page.tags) == 1
    assert all("onload" not in attributes for _, attributes in page.tags)
    for part in ("question", "gold", "answer", "chain", "error", "said", "verifier"):
        assert f"<script>alert(1)</script> {part}" in page.text, part
    assert "{{ 7 * 7 }}" in page.text and "<b>model</b>" in page.text and "<i>task</i>" in page.text
    assert not set("\u202e\x1b\x00\ud800") & set(page.source)
    print_run(folder, json.loads((folder / "report.json").read_text(encoding="utf-8")))
    assert "\x1b" not in capsys.readouterr().out


def test_the_page_is_bounded_and_says_what_it_leaves_out(tmp_path):
    sets = [drawn("a", ["solved"] * 60, reasoning="<" * 30_000), some("products", "a", 10, 0.5)]
    folder = write(tmp_path / "eval", sets)
    found = browse(folder, read_exams(folder), answers=30, size=300_000)
    assert found.total == 70 and len(found.items) == 30
    assert sum(item.id.startswith("products") for item in found.items) == 10  # of each task in turn
    assert found.most == 3000 and found.cut
    (thought,) = found.items[-1].columns[0].answers[0].turns
    assert "27,000 characters left out" in found.show(thought.thinking)
    assert sum(len(found.show(text)) for text in items._texts(found.items)) < 300_000


def test_many_answers_to_one_item_are_counted_and_some_shown(tmp_path):
    folder = write(tmp_path / "eval", [some("sums", "a", 4, 0.5, samples=20)])
    found = browse(folder, read_exams(folder))
    (column,) = found.items[0].columns
    assert len(column.answers) == items.SAMPLES and sum(n for _, n in column.outcomes) == 20
    assert f"{items.SAMPLES} of 20 answers shown." in Page(write_report(folder)).text


def test_a_long_conversation_is_cut_in_the_middle(tmp_path):
    told = tuple(Message("user", f"turn {i}") for i in range(60))
    folder = write(tmp_path / "eval", [[rollout("sums", 0, "a", "wrong", problem=Problem("sums", "x", told, "1"))]])
    (item,) = browse(folder, read_exams(folder)).items
    assert len(item.prompt) == items.MESSAGES and item.left_out == 60 - items.MESSAGES
    assert "[36 messages left out]" in Page(write_report(folder)).text


def test_filters_work_where_no_script_may(folder, page, browser):  # noqa: F811
    tab = browser.new_page(viewport={"width": 1280, "height": 900})
    try:
        tab.goto((folder / "report.html").as_uri())

        def seen() -> int:
            return tab.locator(".item:visible").count()

        found = browse(folder, read_exams(folder))
        assert seen() == 90
        tab.locator("label[for=task-0]").click()
        first = [item for item in found.items if item.task == 0]
        assert seen() == len(first) == 30
        tab.locator("label[for=out-truncated]").click()
        cut = [item for item in first if "has-truncated" in item.classes.split()]
        assert seen() == len(cut) > 0
        tab.locator("label[for=who-1]").click()
        theirs = [item for item in first if "w1-truncated" in item.classes.split()]
        assert 0 < seen() == len(theirs) < len(cut)
        tab.locator(".item:visible summary").first.click()
        opened = tab.locator(".item[open]")
        assert opened.locator(".side:visible").count() == 1
        for name in ("out-any", "who-any", "task-any"):
            tab.locator(f"label[for={name}]").click()
        assert opened.locator(".side:visible").count() == 3
        tab.locator("label[for=differ]").click()
        assert 0 < seen() == sum(item.differ for item in found.items) < 90
        tab.locator("#differ").focus()
        tab.keyboard.press("Space")
        assert seen() == 90
        tab.locator("#task-any").focus()
        tab.keyboard.press("ArrowRight")  # as with a mouse, so without one
        assert seen() == 30
    finally:
        tab.close()


@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_is_no_wider_than_what_it_is_looked_at_on(folder, page, browser, width):  # noqa: F811
    tab = browser.new_page(viewport={"width": width, "height": 900})
    try:
        tab.goto((folder / "report.html").as_uri())
        tab.locator(".item summary").first.click()
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
    finally:
        tab.close()


def test_the_terminal_says_how_far_the_problems_can_tell_then_the_verdict_then_the_rest(folder, page, capsys):
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    print_run(folder, report)
    said = " ".join(numbers(capsys.readouterr().out).split())
    found = verdict(report)
    parts = [report["health"][0]["line"], found.headline, *found.caveats, "26 wrong", "of it charged by endpoints"]
    places = [said.index(" ".join(numbers(part).split())) for part in [*parts, "Report:"]]
    assert places == sorted(places)
    assert "7 infrastructure" in said and "44.8 % (35.7–54.3)" in said
