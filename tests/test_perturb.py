"""Problems with other numbers: the answer is right, or there is none."""

from __future__ import annotations

import re
from fractions import Fraction
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mull.tasks import find
from mull.tasks.mathematics import mathematics
from mull.tasks.names import HERS, HIS, renamed
from mull.tasks.perturb import Fresh, again, drawn, trace, traces, variants
from mull.tasks.steps import steps_of
from mull.types import Completion, UserError

SHARED = Path(__file__).parents[2] / "shared" / "data"
published = pytest.mark.skipif(not SHARED.is_dir(), reason="needs the published sets in ../shared/data")


@pytest.fixture
def shared(monkeypatch):
    monkeypatch.setenv("MULL_DATA", str(SHARED))


def traced(text: str, steps: str):
    found = steps_of(steps)
    return trace(text, found, found[-1].result)


SHOP = "Ann sells 30 cakes for $4 each and 12 pies for $2.50 each. How much does she earn?"
SOLD = "<<30*4=120>>, <<12*2.50=30>>, <<120+30=150>>"


def test_numbers_and_names_change_and_the_answer_with_them():
    found = traced(SHOP, SOLD)
    assert found is not None
    assert [one.written for one in found.mentions] == ["30", "$4", "12", "$2.50"]
    seen = set()
    for seed in range(50):
        made = drawn(found, Random(seed))
        assert made is not None
        text, answer = made
        head, _, rest = text.partition(" sells ")
        cakes, price, pies, other = (word.strip("$") for word in rest.split() if word.strip("$.")[:1].isdigit())
        assert answer == int(cakes) * int(price) + int(pies) * Fraction(other)
        assert head in HERS and head != "Ann"
        assert len(other.partition(".")[2]) == 2
        assert int(cakes) > int(pies) > int(price) > Fraction(other) > 1  # as they were
        seen.add(text)
    assert len(seen) > 40
    assert drawn(found, Random(3)) == drawn(found, Random(3))


def test_where_it_is_not_certain_what_a_number_is_there_is_no_variant():
    assert traced("Ann has 8 eggs and eats 3. How many are left?", "<<8-3=5>>")
    for text, steps in (
        ("Ann has 8 eggs and eats some. 5 are left. How many did she eat?", "<<8-3=5>>, <<8-5=3>>"),  # 3 is nowhere
        ("Ann has 8 eggs and 20 hens. She eats 3 eggs. How many are left?", "<<8-3=5>>"),  # 20 may matter
        ("Ann has eight eggs and eats three. How many are left?", "<<8-3=5>>"),  # no digits
        ("Ann has 8 eggs and eats 3. How many are left?", "<<8-3=4>>"),  # false
        ("Ann has 8 eggs and eats 3. How many are left?", "<<5=5>>"),  # says nothing
        ("Ann has 8 eggs in 3 boxes. How many in one?", "<<8/3=2.67>>"),  # rounded
        ("In 1998 Ann ate 50% of them at 3 p.m. on May 5. Left?", "<<1998-50=1948>>"),  # nothing may change
        ("Ann has 8 eggs.", ""),
    ):
        found = steps_of(steps)
        assert trace(text, found, found[-1].result if found else Fraction(8)) is None, text


def test_a_number_that_could_be_two_things_is_decided_by_neither():
    """4 is what Ann has, and what 2 + 2 comes to: only where both stay equal is the answer certain."""
    found = traced("Ann has 4 eggs. She gets 2 and 2 again. How many has she?", "<<2+2=4>>, <<4+4=8>>")
    assert found is not None
    assert again(found, {Fraction(2): Fraction(3)}) is None
    assert again(found, {Fraction(2): Fraction(3), Fraction(4): Fraction(6)}) == 12
    assert again(found, {}) == 8


def test_what_the_world_knows_stays():
    for text, steps, stays in (
        ("Ann runs 3 miles a day. She has 12 eggs, a dozen. Both in a week?", "<<3*7=21>>, <<21+12=33>>", "12 eggs, a"),
        ("Ann pays 50% of $30. How much?", "<<30*.5=15>>", "pays 50% of"),
        ("Ann eats 2 eggs, her sister twice as many as 9. Sum?", "<<9*2=18>>, <<18+2=20>>", "eats 2 eggs"),
        ("Ann worked from 2008 on, 6 hours a day, for $20 an hour. Pay?", "<<6*20=120>>", "from 2008 on"),
        ("Ann's 3rd book has 40 pages, chapter 7 has 8. How many others?", "<<40-8=32>>", "3rd book has "),
    ):  # fmt: skip
        found = traced(text, steps)
        assert found is not None, text
        for seed in range(10):
            made = drawn(found, Random(seed))
            assert made is None or stays in made[0], made


def test_results_stay_of_their_kind():
    found = traced("Ann shares 12 eggs among 4 hens. She gets 5 more. How many has each?", "<<12/4=3>>, <<3+5=8>>")
    assert found is not None
    assert again(found, {Fraction(12): Fraction(13)}) is None  # not whole
    assert again(found, {Fraction(12): Fraction(4), Fraction(4): Fraction(4)}) is None  # 1 would read "1 eggs"
    less = traced("Ann has 12 eggs and eats 4. How many are left?", "<<12-4=8>>")
    assert less is not None
    assert again(less, {Fraction(4): Fraction(13)}) is None  # below zero


def test_names_go_with_their_pronouns_and_are_exchanged_everywhere():
    text = "Alice and Bob met Mr. Smith in May. Alice's dog likes Bob. James's cat does not."
    for seed in range(20):
        first, second, third = (renamed(text, Random(seed)).split()[i].removesuffix("'s") for i in (0, 2, 12))
        assert first in HERS and second in HIS and third in HIS and third.endswith("s")
        said = renamed(text, Random(seed))
        assert said.count(first) == 2 and said.count(second) == 2
        assert "Mr. Smith in May" in said and "Alice" not in said and "Bob " not in said
    assert not set(HERS) & set(HIS)


@pytest.mark.parametrize("spelt", ["danny", "DANNY", "Danny"])
def test_a_name_is_exchanged_however_it_is_spelt(spelt):
    """SVAMP's questions often have it in small letters: the variant would ask about somebody who is not in it."""
    for seed in range(20):
        said = renamed(f"Danny had 9 caps. Mike lost some. How many has {spelt} now? The jack is old.", Random(seed))
        assert "danny" not in said.lower()
        name, asked = said.split()[0], said.split()[10]
        assert asked.lower() == name.lower()
        assert (asked.isupper(), asked.islower()) == (spelt.isupper(), spelt.islower())
        assert said.endswith("The jack is old.")  # never a name here
    for seed in range(300):
        assert not renamed("Mike collects caps. How many has danny?", Random(seed)).startswith("Danny")


@published
@pytest.mark.parametrize("name", ["svamp", pytest.param("gsm8k", marks=pytest.mark.slow)])
def test_nobody_of_a_published_problem_is_left_in_its_variant(name, shared):
    """A person who is neither known nor in the variant any more; however the name is spelt."""
    of = mathematics()[name]
    originals = {problem.id: problem.messages[-1].content for problem in of.problems("test", 2000)}
    for variant in variants(of, list(of.problems("test", 2000)), 5):
        before, after = originals[variant.meta["of"]], variant.messages[-1].content
        for person in {*HERS, *HIS} & set(re.findall("[A-Z][a-z]+", before)):
            assert not re.search(rf"\b{person}\b", after, re.IGNORECASE), (variant.id, person)


@given(st.text(max_size=60), st.integers(0, 3))
def test_any_text_is_traced_or_not(text, seed):
    found = trace(text, steps_of("<<2+3=5>>"), Fraction(5))
    if found:
        drawn(found, Random(seed))


@published
@pytest.mark.parametrize(("name", "at_least"), [("gsm8k", 500), ("svamp", 750)])
def test_every_traced_problem_comes_to_its_gold_with_its_own_numbers(name, at_least, shared):
    found = traces(name)
    made = {}
    for at, one in found.items():
        assert again(one, {}) == one.gold
        if variant := drawn(one, Random(at)):
            made[at] = variant
            assert variant[1] != one.gold
            assert variant[1] > 0 or one.gold <= 0
            assert variant[1].denominator == 1 or one.gold.denominator != 1
            assert variant[0] != one.text
            assert not set("{}") & set(variant[0])
    assert len(made) >= at_least, f"{len(made)} of {name}"


@published
def test_a_fresh_set_is_a_task(shared):
    of = mathematics()["svamp"]
    task = Fresh(of)
    assert task.name == "svamp-fresh"
    problems = task.problems("test", 20, seed=1)
    assert len(problems) == 20
    assert task.problems("test", 5, seed=1) == problems[:5]
    originals = {problem.id: problem for problem in of.problems("test", 1000)}
    for problem in problems:
        original = originals[problem.meta["of"]]
        assert problem.task == task.name
        assert problem.messages != original.messages
        assert problem.answer != original.answer
        assert problem.messages[0].content.rpartition("\n")[2] == original.messages[0].content.rpartition("\n")[2]
        assert task.grade(problem, Completion((), (), "stop", task.gold(problem))) == (1.0, "solved")
        assert task.grade(problem, Completion((), (), "stop", f"\\boxed{{{original.answer}}}")) == (0.0, "wrong")
    assert task.problems("test", 20, seed=2) != problems


@published
def test_by_one_seed_a_set_and_its_variants_deal_the_same_problems(shared):
    """Else, of a hundred out of a thousand, hardly ten would be asked in both ways: no pairs to compare."""
    of = mathematics()["svamp"]
    first = {problem.id for problem in of.problems("test", 100, seed=7)}
    made = {problem.meta["of"] for problem in Fresh(of).problems("test", 100, seed=7)}
    everywhere = {problem.meta["of"] for problem in Fresh(of).problems("test", 1000, seed=7)}
    assert first & everywhere <= made


@published
def test_gsm8k_has_variants_of_either_split(shared):
    of = mathematics()["gsm8k"]
    for split in ("test", "train"):
        problems = of.problems(split, 60)
        made = variants(of, problems, seed=5)
        assert 15 < len(made) < 60
        assert {problem.meta["of"] for problem in made} < {problem.id for problem in problems}
        assert variants(of, problems, seed=5) == made


@published
def test_a_set_that_cannot_be_worked_out_again_says_so(shared):
    with pytest.raises(UserError, match="math500 has no fresh variants"):
        Fresh(mathematics()["math500"]).problems("test", 5)


def test_generated_families_draw_others():
    task = find("chain_sum")
    problems = task.problems("test", 10)
    made = variants(task, problems)
    assert [problem.meta["of"] for problem in made] == [problem.id for problem in problems]
    assert not {problem.messages for problem in made} & {problem.messages for problem in problems}
