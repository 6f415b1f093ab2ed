"""Stop texts: wherever an answer is cut, the same text is shown, and nothing of a stop."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mull.text.stops import StopTexts


def shown(stops: list[str], pieces: list[str]) -> tuple[str, str | None]:
    finder = StopTexts(stops)
    text = "".join(finder.feed(piece) for piece in pieces)
    return text + finder.flush(), finder.hit


@pytest.mark.parametrize(
    ("stops", "text", "want"),
    [
        (["END"], "all is well END and more", ("all is well ", "END")),
        (["END"], "all is well EN", ("all is well EN", None)),
        (["aab"], "aaab", ("a", "aab")),
        (["b", "abc"], "xabc", ("xa", "b")),  # complete first
        (["bc", "abc"], "xabc", ("x", "abc")),  # complete at once: the longer
        (["\n\n"], "one\ntwo\n\nthree", ("one\ntwo", "\n\n")),
        ([], "anything", ("anything", None)),
        ([""], "anything", ("anything", None)),
        (["ö🙂"], "sö🙂", ("s", "ö🙂")),
    ],
)
def test_every_cut_shows_the_same(stops: list[str], text: str, want: tuple[str, str | None]) -> None:
    assert shown(stops, [text]) == want
    assert shown(stops, [*text]) == want
    for cut in range(len(text) + 1):
        assert shown(stops, [text[:cut], text[cut:]]) == want


@given(st.lists(st.text("ab", min_size=1, max_size=4), max_size=3), st.text("abc", max_size=30), st.data())
def test_random_stops_and_cuts(stops: list[str], text: str, data: st.DataObject) -> None:
    """One character after another is the definition: the first moment at which the text ends with a stop."""
    end = next((n for n in range(1, len(text) + 1) if any(text[:n].endswith(stop) for stop in stops)), None)
    hit = None if end is None else max((stop for stop in stops if text[:end].endswith(stop)), key=len)
    want = (text if end is None else text[: end - len(hit or "")], hit)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=5)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert shown(stops, pieces) == want
