"""What of a JSON schema can be promised: the form that comes out allows nothing that the schema forbids."""

from __future__ import annotations

import contextlib
import json
import time
from typing import Any

import jsonschema_rs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mull.text.schema import enforceable
from mull.types import UserError


def made(schema: Any) -> Any:
    return json.loads(enforceable(json.dumps(schema)))


def obj(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": [*properties]}


REFUSED = {
    "not": ({"not": {"type": "integer"}}, "'not'"),
    "if": ({"type": "object", "if": {}, "then": {}}, "'if'"),
    "unique": ({"type": "array", "uniqueItems": True}, "'uniqueItems'"),
    "deep down": (obj(a={"type": "array", "items": {"dependentRequired": {}}}), "at /properties/a/items"),
    "contains": ({"type": "array", "contains": {"type": "string"}}, "'contains'"),
    "all of": ({"allOf": [{"type": "integer"}, {"minimum": 5}]}, "more than one schema at a time"),
    "two at once": ({"type": "integer", "anyOf": [{"minimum": 5}]}, "'anyOf' cannot be enforced together with 'type'"),
    "beside a reference": ({"$defs": {"n": {}}, "$ref": "#/$defs/n", "minimum": 3}, "together with 'minimum'"),
    "elsewhere": ({"$ref": "https://example.com/x.json"}, "no definition of this schema"),
    "dangling": ({"$ref": "#/$defs/x"}, "no definition of this schema"),
    "no reference": ({"$ref": 7}, "no definition of this schema"),
    "overlapping": ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "say anyOf"),
    "overlapping objects": ({"oneOf": [obj(a={"const": 1}), obj(a={"const": 1.0})]}, "say anyOf"),
    "pattern and length": ({"type": "string", "pattern": "a", "maxLength": 3}, "let the pattern say it"),
    "half steps": ({"type": "number", "multipleOf": 0.5}, "integers alone"),
    "steps from": ({"type": "integer", "multipleOf": 3, "minimum": 4}, "without bounds"),
    "no such type": ({"type": "date"}, "types are object"),
    "of no type": ({"minLength": 3, "minimum": 3}, "keywords of several"),
    "names twice": ({"properties": {"b": {}}, "propertyNames": {"pattern": "a"}}, "rules about names"),
    "impossible": ({"type": "object", "required": ["z"], "additionalProperties": False}, "'z' is required"),
    "counting": ({"type": "object", "minProperties": 3}, "'minProperties'"),
    "empty": ({"enum": []}, "not empty"),
    "of another type": ({"enum": [1], "type": "string"}, "no value has the type"),
    "no schema": ([1], "a schema is an object"),
    "no schema within": (obj(a=3), "at /properties/a"),
    "no count": ({"type": "string", "minLength": -1}, "at least 0"),
    "no number": ({"type": "integer", "minimum": "3"}, "must be a number"),
    "no names": ({"type": "object", "required": "a"}, "list of names"),
    "no expression": ({"type": "string", "pattern": 3}, "an expression is a text"),
    "ahead": ({"type": "string", "pattern": "(?=a)b"}, "looks ahead"),
    "a long expression": ({"type": "string", "pattern": "a" * 2000}, "more than 1024 letters"),
    "no properties": ({"type": "object", "properties": [1]}, "an object of schemas"),
    "no list": ({"type": "array", "prefixItems": {}}, "a list of schemas"),
    "too large": ({"const": "x" * 70_000}, "more than 65536 bytes"),
    "too wide": ({"anyOf": [{}] * 5000}, "more than 4096 parts"),
    "too many to compare": ({"oneOf": [{"const": i} for i in range(100)]}, "more than 64 alternatives"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_kept_is_refused_by_name(name: str) -> None:
    schema, said = REFUSED[name]
    with pytest.raises(UserError, match=said.replace("(", r"\(")) as error:
        made(schema)
    assert str(error.value).endswith(".") and len(str(error.value)) < 400


@pytest.mark.parametrize("text", ["", "{", "nonsense", '{"a": NaN}', "[" * 10_000 + "]" * 10_000])
def test_what_is_no_json_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="no JSON"):
        enforceable(text)


def test_depth_is_bounded() -> None:
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(40):
        schema = {"type": "array", "items": schema}
    with pytest.raises(UserError, match="more than 32 deep"):
        made(schema)


def const(value: int) -> dict[str, int]:
    return {"const": value}


def test_many_references_to_long_lists_are_compared() -> None:
    longs = {"A": {"enum": [*range(10000, 11000)]}, "B": {"enum": [*range(20000, 21000)]}}
    schema = {
        "$defs": longs,
        **obj(**{str(i): {"oneOf": [{"$ref": "#/$defs/A"}, {"$ref": "#/$defs/B"}]} for i in range(9)}),
    }
    assert made(schema)["properties"]["8"] == {"anyOf": [{"$ref": "#/$defs/A"}, {"$ref": "#/$defs/B"}]}


def test_hostile_schemas_take_no_time() -> None:
    begun = time.process_time()
    for schema in (
        {"oneOf": [obj(**{f"k{i}": {"const": j} for i in range(40)}) for j in range(60)]},
        {"anyOf": [{"type": ["integer"] * 100, "minimum": 3}] * 1000},
        {"enum": [[[]]] * 20_000},
        {"const": 10**4000},
        {"$defs": {"A": {"enum": [*range(10000, 19000)]}}, "oneOf": [{"$ref": "#/$defs/A"}, *map(const, range(63))]},
        obj(**{str(i): {"oneOf": [{"$ref": "#/$defs/A"}, {"$ref": "#/$defs/B"}]} for i in range(300)})
        | {"$defs": {"A": {"enum": [*range(10000, 13000)]}, "B": {"enum": [*range(20000, 23000)]}}},
        obj(**{str(i): {"oneOf": [{"$ref": f"#/$defs/{j}"} for j in range(64)]} for i in range(40)})
        | {"$defs": {str(j): obj(**{f"k{k}": {} for k in range(20)}, z={"const": j}) for j in range(64)}},
    ):
        try:
            made(schema)
        except UserError:
            continue
    assert time.process_time() - begun < 2


def test_remarks_are_left_out_and_what_is_missing_is_said() -> None:
    given = {"title": "T", "description": "d", "$schema": "x", "x-own": 1, "default": 3, "uniqueItems": False}
    assert made({**given, "type": "integer", "examples": [1]}) == {"type": "integer"}
    assert made({"minLength": 2}) == {"type": "string", "minLength": 2}
    assert made({"type": "object"}) == {"type": "object", "additionalProperties": True}
    assert made({"type": "array"}) == {"type": "array", "items": True}
    assert made(obj(a={})) == {**obj(a={}), "additionalProperties": False}
    assert made({"type": ["integer", "null"], "minimum": 3}) == {
        "anyOf": [{"type": "integer", "minimum": 3}, {"type": "null"}]
    }
    assert made({"type": "string", "pattern": "a", "format": "date"}) == {"type": "string", "pattern": "a"}
    assert made({"const": None}) == {"enum": [None]}
    assert made({"type": "object", "required": ["a"]})["properties"] == {"a": {}}


def test_the_classes_of_pydantic_are_known() -> None:
    from typing import Literal

    from pydantic import BaseModel, Field

    class Cat(BaseModel):
        kind: Literal["cat"]
        lives: int = Field(ge=1, le=9)

    class Dog(BaseModel):
        kind: Literal["dog"]
        name: str | None = None

    class Owner(BaseModel):
        """Who has them."""

        pet: Cat | Dog = Field(discriminator="kind")
        others: list[Cat] = Field(default_factory=list, max_length=3)
        notes: dict[str, float] = {}

    form = made(Owner.model_json_schema())
    assert {*form["$defs"]} == {"Cat", "Dog"}
    value = {"pet": {"kind": "dog", "name": None}, "others": [], "notes": {"a": 1.5}}
    assert jsonschema_rs.validator_for(form).is_valid(value)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 9) | st.sampled_from(["", "a", "ab", "2020-01-01", 1.5, 4.0]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abz"), inner, max_size=3),
    max_leaves=6,
)
TYPE = st.sampled_from(["object", "array", "string", "number", "integer", "boolean", "null"])
PARTS: dict[str, st.SearchStrategy[Any]] = {
    "type": TYPE | st.lists(TYPE, min_size=1, max_size=3),
    "minLength": st.integers(0, 2), "maxLength": st.integers(0, 2), "pattern": st.sampled_from(["^a", "b$"]),
    "format": st.just("date"), "minimum": st.integers(-1, 5), "exclusiveMaximum": st.integers(-1, 5),
    "multipleOf": st.sampled_from([2, 3]), "minItems": st.integers(0, 2), "maxItems": st.integers(0, 2),
    "uniqueItems": st.booleans(), "required": st.lists(st.sampled_from("abz"), max_size=2, unique=True),
    "minProperties": st.integers(0, 2), "maxProperties": st.integers(0, 2),
    "enum": st.lists(VALUES, min_size=1, max_size=3), "const": VALUES,
}  # fmt: skip
SCHEMAS = st.recursive(
    st.booleans() | st.fixed_dictionaries({}, optional=PARTS),
    lambda inner: st.fixed_dictionaries(
        {"type": TYPE},
        optional={
            "properties": st.dictionaries(st.sampled_from("abz"), inner, max_size=2), "items": inner,
            "additionalProperties": inner, "unevaluatedProperties": inner,
            "prefixItems": st.lists(inner, min_size=1, max_size=2),
            "required": PARTS["required"], "minItems": PARTS["minItems"],
        },
    )
    | st.sampled_from(["anyOf", "oneOf", "allOf"]).flatmap(
        lambda word: st.fixed_dictionaries({word: st.lists(inner, min_size=1, max_size=3)})
    )
    | st.fixed_dictionaries({"anyOf": st.lists(inner, min_size=1, max_size=2), "type": TYPE}),
    max_leaves=5,
)  # fmt: skip


@settings(deadline=None, max_examples=500)
@given(SCHEMAS, st.lists(VALUES, max_size=8))
def test_the_form_allows_nothing_that_the_schema_forbids(schema: Any, values: list[Any]) -> None:
    try:
        form = made(schema)
    except UserError:
        return
    try:
        jsonschema_rs.validator_for(schema)
    except (jsonschema_rs.ValidationError, ValueError):
        return  # no schema, to be exact
    asked, kept = (jsonschema_rs.validator_for(one) for one in (schema, form))
    for value in values:
        assert asked.is_valid(value) or not kept.is_valid(value)


@settings(deadline=None, max_examples=300)
@given(VALUES, st.text(max_size=20))
def test_anything_at_all_is_a_form_or_a_sentence(value: Any, text: str) -> None:
    for given_ in (json.dumps(value), text, json.dumps({"type": value, "properties": value, "$ref": text})):
        with contextlib.suppress(UserError):
            json.loads(enforceable(given_))
