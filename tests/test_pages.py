"""Pages by themselves: counted right, found only behind the same tokens and salt, the oldest given up first."""

from __future__ import annotations

from collections import Counter
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from mull.engine.pages import EMPTY, PAGE, Pages, Place


def filled(pages: Pages, tokens: list[int], salt: str = "") -> list[int]:
    """What a sequence does: find, take, make known. The pages it holds then."""
    held, place = pages.find(tokens, salt)
    new = pages.take(-(-len(tokens) // PAGE) - len(held))
    assert new is not None
    known: Place = place
    for at in range(len(held), len(tokens) // PAGE):
        known = pages.know(new[at - len(held)], known, tokens[at * PAGE : (at + 1) * PAGE])
    return held + new


def test_a_beginning_is_found_and_shared() -> None:
    pages = Pages(20)
    prompt = list(range(50))
    first = filled(pages, prompt)
    second = filled(pages, [*prompt[:40], 9, 9, 9])
    assert first[:2] == second[:2]
    assert first[2] != second[2]
    pages.drop(first)
    assert pages.idle == 1  # the third; the others are held, and the last was never full
    third = filled(pages, prompt)
    assert third[:3] == first[:3]


def test_at_least_one_token_is_left_to_compute() -> None:
    pages = Pages(20)
    prompt = list(range(2 * PAGE))
    pages.drop(filled(pages, prompt))
    assert len(pages.find(prompt, "")[0]) == 1
    assert len(pages.find([*prompt, 7], "")[0]) == 2


def test_salts_share_nothing() -> None:
    pages = Pages(20)
    prompt = list(range(40))
    filled(pages, prompt, "anna")
    assert pages.find(prompt, "ben") == ([], "ben")
    assert len(pages.find(prompt, "anna")[0]) == 2


def test_a_page_is_found_only_behind_what_stood_before_it() -> None:
    pages = Pages(20)
    a, b = list(range(PAGE)), list(range(100, 100 + PAGE))
    filled(pages, [*a, *b, 1])
    assert pages.find([*b, *b, 1], "")[0] == []
    assert len(pages.find([*a, *a, 1], "")[0]) == 1


def test_the_oldest_is_given_up_first_and_ends_before_beginnings() -> None:
    pages = Pages(7)
    one, two = list(range(3 * PAGE)), list(range(100, 100 + 2 * PAGE))
    pages.drop(filled(pages, one))
    pages.drop(filled(pages, two))
    assert pages.idle == 5
    taken = pages.take(2)
    assert taken is not None
    assert len(pages.find([*one, 1], "")[0]) == 2  # one page was free, one given up: the third of the oldest
    assert len(pages.find([*two, 1], "")[0]) == 2


def test_there_are_more_before_anything_is_given_up() -> None:
    pages = Pages(4, limit=9)
    pages.drop(filled(pages, list(range(3 * PAGE))))
    assert (pages.free, pages.idle) == (8, 3)
    assert pages.take(5) is not None
    assert (pages.count, pages.idle, pages.free) == (9, 3, 3)
    assert pages.take(4) is None
    assert pages.take(3) is not None
    assert pages.free == 0


def test_forgetting() -> None:
    pages = Pages(9)
    held = filled(pages, list(range(40)))
    other = filled(pages, list(range(100, 140)))
    pages.drop(other)
    pages.forget()
    assert pages.find(list(range(40)), "")[0] == []
    assert pages.find(list(range(100, 140)), "")[0] == []
    pages.drop(held)
    assert (pages.free, pages.idle) == (8, 0)


@settings(deadline=None, max_examples=200)
@given(st.integers(2, 30), st.integers(0, 20), st.integers(0, 10**6))
def test_whatever_is_done_pages_are_counted_right(count: int, more: int, seed: int) -> None:
    draw, pages = Random(seed), Pages(count, count + more)
    holding: list[tuple[list[int], list[int]]] = []  # (pages, the tokens they hold)
    content: dict[int, list[int]] = {}  # what was last written to a page
    for _ in range(60):
        if holding and draw.random() < 0.4:
            pages.drop(holding.pop(draw.randrange(len(holding)))[0])
        elif draw.random() < 0.05:
            pages.forget()
        else:
            tokens = [draw.randrange(2) for _ in range(draw.randrange(1, 4)) for _ in range(PAGE)]
            salt = draw.choice("ab")
            tokens.append(draw.randrange(2))
            held, place = pages.find(tokens, salt)
            for at, page in enumerate(held):
                assert content[page] == [ord(salt), *tokens[: (at + 1) * PAGE]]
            new = pages.take(-(-len(tokens) // PAGE) - len(held))
            if new is None:
                pages.drop(held)
                continue
            assert EMPTY not in new
            for at, page in enumerate(new, len(held)):
                content[page] = [ord(salt), *tokens[: (at + 1) * PAGE]]
                if (at + 1) * PAGE <= len(tokens):
                    place = pages.know(page, place, tokens[at * PAGE : (at + 1) * PAGE])
            holding.append((held + new, tokens))
        held_by = Counter(page for held, _ in holding for page in held)
        assert pages.used == len(held_by)
        assert pages.used + pages.free == pages.limit - 1
        assert pages.count <= pages.limit
