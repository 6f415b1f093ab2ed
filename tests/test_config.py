"""Configurations: overrides, validation, and the one line that says what is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field, ValidationError, model_validator

from mull.config import Config, apply_overrides, build, fingerprint, nearest, read_toml
from mull.types import UserError


class Walk(Config):
    kind: Literal["walk"] = "walk"
    name: str
    steps: int = Field(default=1, gt=0)


class Rest(Config):
    kind: Literal["rest"] = "rest"
    name: str
    hours: float = 1.0

    @model_validator(mode="after")
    def _short(self) -> Rest:
        if self.hours > 24:
            raise ValueError("a rest is shorter than a day")
        return self


class Trip(Config):
    about: str = ""
    pace: dict[str, int] = {}
    stage: list[Annotated[Walk | Rest, Field(discriminator="kind")]] = []


PLAIN: dict[str, Any] = {"stage": [{"kind": "walk", "name": "up"}, {"kind": "rest", "name": "top"}]}


def mistake(raw: dict[str, Any]) -> str:
    with pytest.raises(UserError) as caught:
        build(Trip, raw, "trip.toml")
    assert "\n" not in str(caught.value)
    return str(caught.value)


# overrides


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("about=5", 5),
        ("about=0.5", 0.5),
        ("about=true", True),
        ('about="5"', "5"),
        ("about=a b", "a b"),
        ("about=", ""),
        ("about=a=b", "a=b"),
        ("about=[1, 2]", [1, 2]),
        ("about={a = 1}", {"a": 1}),
    ],
)
def test_values_are_toml_or_else_text(override: str, value: Any):
    assert apply_overrides(PLAIN, [override])["about"] == value


def test_list_elements_are_chosen_by_name_or_number():
    changed = apply_overrides(PLAIN, ["stage.up.steps=3", "stage.1.hours=2", "pace.up=4"])
    assert changed["stage"] == [
        {"kind": "walk", "name": "up", "steps": 3},
        {"kind": "rest", "name": "top", "hours": 2},
    ]
    assert changed["pace"] == {"up": 4}
    assert "steps" not in PLAIN["stage"][0]  # what was given is not changed


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("about", "is no override"),
        ("=5", "is no override"),
        ("a..b=5", "is no override"),
        ("stage.upp.steps=3", "there is no element 'upp'; there are up, top. Did you mean 'up'?"),
        ("stage.2.steps=3", "there is no element '2'"),
        ("stage.up=3", "name a key of the list's element as well, e.g. stage.up.key=value."),
        ("about.x=1", None),
    ],
)
def test_what_cannot_be_set_is_said(override: str, said: str | None):
    if said is None:
        with pytest.raises(UserError, match="'about' is a plain value"):
            apply_overrides({**PLAIN, "about": "x"}, [override])
        return
    with pytest.raises(UserError) as caught:
        apply_overrides(PLAIN, [override])
    assert said in str(caught.value)


@settings(max_examples=50, deadline=None)
@given(st.text())
def test_any_text_is_a_value_or_a_mistake(text: str):
    assert "about" in apply_overrides({}, [f"about={text}"])


# validation


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"abuot": 1}, "trip.toml: abuot: there is no such key. Did you mean 'about'?"),
        ({"zzz": 1}, "trip.toml: zzz: there is no such key."),
        ({"stage": [{"kind": "walk", "name": "up", "stepz": 1}]},
         "trip.toml: stage.up.stepz: there is no such key. Did you mean 'steps'?"),
        ({"stage": [{"kind": "rest", "name": "top", "steps": 1}]}, "trip.toml: stage.top.steps: there is no such key."),
        ({"stage": [{"kind": "walk", "name": "up", "steps": "x"}]},
         "trip.toml: stage.up.steps: input should be a valid integer, unable to parse string as an integer, not 'x'."),
        ({"stage": [{"kind": "walk", "name": "up", "steps": 0}]},
         "trip.toml: stage.up.steps: input should be greater than 0, not 0."),
        ({"stage": [{"kind": "walk"}]}, "trip.toml: stage.0.name: this key is required."),
        ({"stage": [{"kind": "run", "name": "up"}]},
         "trip.toml: stage.up: there is no kind 'run'; kinds are 'walk', 'rest'."),
        ({"stage": [{"kind": "rest", "name": "top", "hours": 25}]},
         "trip.toml: stage.top: a rest is shorter than a day."),
        ({"abuot": 1, "zzz": 1}, "trip.toml: abuot: there is no such key. Did you mean 'about'? (and 1 more)"),
    ],
)  # fmt: skip
def test_the_first_mistake_is_one_line_with_its_place(changes: dict[str, Any], said: str):
    assert mistake({**PLAIN, **changes}) == said


def test_configurations_are_frozen():
    with pytest.raises(ValidationError):
        build(Trip, PLAIN, "trip.toml").about = "x"  # type: ignore[misc]


def test_fingerprints_depend_on_content_alone():
    assert fingerprint({"a": 1, "b": [2]}) == fingerprint({"b": [2], "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})
    assert fingerprint(build(Trip, PLAIN, "x")) == fingerprint(build(Trip, {**PLAIN, "about": ""}, "x"))
    assert fingerprint({"a": 1}) == "f9d86028c6e0d64e"  # run directories outlive releases


def test_nearest():
    assert nearest("stepz", ["steps", "kind"]) == " Did you mean 'steps'?"
    assert nearest("zzz", ["steps", "kind"]) == ""


# files


def test_files_that_cannot_be_read_are_named(tmp_path: Path):
    (tmp_path / "trip.toml").write_text("about = 'x'")
    assert read_toml(tmp_path / "trip.toml") == {"about": "x"}
    for name, text, said in (
        ("tripp.toml", None, "There is no file .*tripp.toml. Did you mean 'trip.toml'"),
        ("bad.toml", b"about = ", "bad.toml is not valid TOML"),
        ("latin.toml", b"about = '\xff'", "latin.toml cannot be read"),
    ):
        if text is not None:
            (tmp_path / name).write_bytes(text)
        with pytest.raises(UserError, match=said):
            read_toml(tmp_path / name)
    with pytest.raises(UserError, match="cannot be read"):
        read_toml(tmp_path)
