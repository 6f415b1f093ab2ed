"""What crosses between an answer's process and its judge: plain values, unchanged, and nothing else."""

import builtins
import collections
import contextlib
import math
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mull.tasks import jail

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.complex_numbers() | st.text(st.characters())
    | st.binary(),
    lambda part: st.lists(part) | st.tuples(part, part) | st.dictionaries(st.text() | st.integers(), part)
    | st.sets(st.integers() | st.text()) | st.frozensets(st.integers()),
    max_leaves=20,
)  # fmt: skip


@given(plain)
def test_plain_values_cross_unchanged(value):
    again = jail.load(jail.dump(value))
    assert type(again) is type(value)
    assert repr(again) == repr(value) or again == value


@given(st.binary(max_size=60) | st.text("nutfildcsyYmgINrTez;:-x0123456789abcdef", max_size=60).map(str.encode))
def test_whatever_comes_is_a_value_or_no_message(data):
    with contextlib.suppress(jail.UnplainError):
        jail.load(data)


def test_subclasses_cross_as_what_they_are_below():
    class Loud(int):
        def __eq__(self, other):
            return True

        __hash__ = int.__hash__

    values = [
        True,
        Loud(3),
        collections.OrderedDict(a=1),
        math.nan,
        -0.0,
        10**5000,
        "\ud800",
        Decimal("0.1"),
        Fraction(1, 3),
    ]
    again = jail.load(jail.dump(values))
    assert [type(value) for value in again] == [bool, int, dict, float, float, int, str, Decimal, Fraction]
    assert again[1] != 4
    assert math.copysign(1, again[4]) == -1


@pytest.mark.parametrize("value", [object(), print, builtins, NotImplemented, ...])
def test_what_is_not_plain_does_not_cross(value):
    with pytest.raises(jail.UnplainError):
        jail.dump([value])


@pytest.mark.parametrize(
    "data", [b"l1;" * 400_000, b"s-1;", b"m1;n", b"e1;l0;", b"g3;i1;i1;i0;", b"d;", b"lfffffff;n", b"T1;s4;eval", b""]
)
def test_what_no_dump_wrote_is_no_message(data):
    with pytest.raises(jail.UnplainError):
        jail.load(data)
