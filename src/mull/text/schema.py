"""JSON schemas as the grammar engine can keep them: every answer is to satisfy the schema that was asked for.

xgrammar leaves out, with a warning or without, what it does not know. Here a schema is brought into a form that it
knows whole, or refused by a sentence that names the keyword and its place. The form may allow less than the schema
does, never more: objects with listed properties have no others unless the schema says so. (One hole is left: a key that
is written with \\u escapes passes for another one, where others are allowed.)
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import combinations
from typing import Any, NoReturn

from mull.types import UserError

BYTES = 1 << 16  # of a schema
DEPTH = 32
NODES = 4096
ONE_OF = 64  # alternatives, which are compared two by two
COMPARED = 1 << 19  # names and constants looked at for that, in all
PATTERN = 1024  # letters of an expression within a schema

KEYWORDS = {
    "object": (
        "properties", "required", "additionalProperties", "unevaluatedProperties", "patternProperties", "propertyNames",
        "minProperties", "maxProperties",
    ),
    "array": ("items", "prefixItems", "minItems", "maxItems"),
    "string": ("minLength", "maxLength", "pattern", "format"),
    "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
}  # fmt: skip
TYPE_OF = {word: kind for kind, words in KEYWORDS.items() for word in words}
TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")
WHOLE = ("$ref", "enum", "const", "anyOf", "oneOf", "allOf")  # each says everything; only a type beside enum and const
REFUSED = (
    "not", "if", "then", "else", "dependentRequired", "dependentSchemas", "dependencies", "uniqueItems", "contains",
    "minContains", "maxContains", "additionalItems", "unevaluatedItems", "$dynamicRef", "$recursiveRef",
)  # fmt: skip
COUNTS = ("minProperties", "maxProperties", "minItems", "maxItems", "minLength", "maxLength")
PYTHON = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None)}


def enforceable(text: str) -> str:
    """The schema of which every value satisfies `text`. Raises UserError where there is none, or it is too large."""
    if len(text.encode(errors="replace")) > BYTES:
        raise UserError(f"The JSON schema has more than {BYTES} bytes.")
    try:
        schema = json.loads(text, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise UserError(f"The JSON schema is no JSON: {str(error)[:100]}.") from None
    return json.dumps(_Schema(schema).made(), ensure_ascii=False)


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


class _Schema:
    def __init__(self, root: Any):
        self.root, self.nodes, self.compared = root, 0, 0
        self.listed: dict[int, set[str] | None] = {}  # constants by the identity of a schema: written as text once

    def made(self) -> Any:
        made = self.node(self.root, "", 0)
        if isinstance(self.root, Mapping) and isinstance(made, dict):
            for name in ("$defs", "definitions"):
                if name in self.root:
                    made[name] = self.each(self.root, name, "", 0)
        return made

    def node(self, schema: Any, at: str, depth: int) -> Any:
        self.nodes += 1
        if depth > DEPTH:
            raise UserError(f"The JSON schema is nested more than {DEPTH} deep.")
        if self.nodes > NODES:
            raise UserError(f"The JSON schema has more than {NODES} parts.")
        if isinstance(schema, bool):
            return schema
        if not isinstance(schema, Mapping):
            raise self.wrong(at, "a schema is an object, true or false")
        for word in REFUSED:
            if schema.get(word, False) is not False:
                raise self.wrong(at, f"{word!r} cannot be enforced")
        whole = [word for word in WHOLE if word in schema]
        if not whole:
            return self.plain(schema, at, depth)
        beside = [word for word in schema if word in TYPE_OF or (word == "type" and whole[0] not in ("enum", "const"))]
        if len(whole) > 1 or beside:
            raise self.wrong(at, f"{whole[0]!r} cannot be enforced together with {(whole[1:] + beside)[0]!r}")
        return self.whole(schema, whole[0], at, depth)

    def wrong(self, at: str, what: str) -> UserError:
        return UserError(f"The JSON schema cannot be used: at {at[:200] or 'its top'}, {what}.")

    def whole(self, schema: Mapping[str, Any], word: str, at: str, depth: int) -> dict[str, Any]:
        value, at = schema[word], f"{at}/{word}"
        if word == "$ref":
            return {"$ref": self.target(value, at)}
        if word == "const":
            value, word = [value], "enum"
        if not isinstance(value, list) or not value:
            raise self.wrong(at, "there must be a list that is not empty")
        if word == "enum":
            types = _types(schema)
            kept = [one for one in value if types is None or any(_is(one, kind) for kind in types)]
            if not kept:
                raise self.wrong(at, "no value has the type that is asked for")
            return {"enum": kept}
        if word == "allOf" and len(value) > 1:
            raise self.wrong(at, "more than one schema at a time cannot be enforced")
        made = [self.node(one, f"{at}/{i}", depth + 1) for i, one in enumerate(value)]
        if word == "oneOf" and len(value) > ONE_OF:
            raise self.wrong(at, f"there are more than {ONE_OF} alternatives; say anyOf")
        if word == "oneOf" and not all(self.disjoint(a, b) for a, b in combinations(value, 2)):
            raise self.wrong(at, "a value could satisfy several; say anyOf, or give each its own type or constant")
        return {"anyOf": made}

    def target(self, ref: Any, at: str) -> str:
        """A reference to the whole, or to a definition at the top."""
        path = ref.split("/") if isinstance(ref, str) else []
        found = ref == "#" or (
            len(path) == 3
            and path[0] == "#"
            and path[1] in ("$defs", "definitions")
            and isinstance(self.root, Mapping)
            and isinstance(self.root.get(path[1]), Mapping)
            and path[2] in self.root[path[1]]
        )
        if not found:
            raise self.wrong(at, f"{str(ref)[:100]!r} is no definition of this schema, like '#/$defs/NAME'")
        return ref

    def disjoint(self, a: Any, b: Any, within: bool = True) -> bool:
        """Whether it is plain that no value satisfies both: by type, constant, or a required property's constant."""
        a, b = self.meant(a), self.meant(b)
        if a is None or b is None:
            return False
        ours, theirs = self.constants(a), self.constants(b)
        self.compare(1 + min(len(ours or ()), len(theirs or ())))
        if ours and theirs:
            return ours.isdisjoint(theirs)
        kinds = [{"number" if kind == "integer" else kind for kind in _types(one) or ()} for one in (a, b)]
        if kinds[0] and kinds[1] and kinds[0].isdisjoint(kinds[1]):
            return True
        if kinds != [{"object"}, {"object"}]:
            return False
        here, there = a.get("properties"), b.get("properties")
        if not within or not (isinstance(here, Mapping) and isinstance(there, Mapping)):
            return False
        names = [_names(one.get("required")) for one in (a, b)]
        self.compare(len(names[0]) + len(names[1]))
        shared = {*names[0]} & {*names[1]}
        return any(self.disjoint(here.get(name), there.get(name), within=False) for name in shared)

    def compare(self, count: int) -> None:
        """Raises UserError where it becomes too much."""
        self.compared += count
        if self.compared > COMPARED:
            raise UserError("The JSON schema cannot be used: its 'oneOf' are too large to compare; say anyOf.")

    def constants(self, schema: Mapping[str, Any]) -> set[str] | None:
        if id(schema) not in self.listed:  # a part of the root, which stays
            self.listed[id(schema)] = _constants(schema)
        return self.listed[id(schema)]

    def meant(self, schema: Any) -> Mapping[str, Any] | None:
        """Behind a reference to a definition."""
        if isinstance(schema, Mapping) and "$ref" in schema and schema["$ref"] != "#":
            _, place, name = self.target(schema["$ref"], "").split("/")
            schema = self.root[place][name]
        return schema if isinstance(schema, Mapping) else None

    def plain(self, schema: Mapping[str, Any], at: str, depth: int) -> dict[str, Any]:
        """One that tells types and what belongs to them."""
        types = _types(schema)
        kinds = {TYPE_OF[word] for word in schema if word in TYPE_OF}
        if types is None and len(kinds) > 1:
            raise self.wrong(at, "it says no type, but has keywords of several")
        if types is not None and not all(kind in TYPES for kind in types):
            raise self.wrong(at, f"types are {', '.join(TYPES)}")
        types = types or list(kinds)
        if not types:
            return {}
        if len(types) > 1:
            return {"anyOf": [self.of_type(schema, kind, at, depth) for kind in types]}
        return self.of_type(schema, types[0], at, depth)

    def of_type(self, schema: Mapping[str, Any], kind: str, at: str, depth: int) -> dict[str, Any]:
        words = KEYWORDS.get("number" if kind == "integer" else kind, ())
        given = {word: schema[word] for word in words if word in schema}
        for word in COUNTS:
            if word in given and not (_is(given[word], "integer") and given[word] >= 0):
                raise self.wrong(f"{at}/{word}", "there must be a whole number of at least 0")
        if kind == "object":
            return {"type": kind, **self.object(given, at, depth)}
        if kind == "array":
            return {"type": kind, **self.array(given, at, depth)}
        if kind == "string":
            self.string(given, at)
        elif given:
            self.number(given, kind, at)
        return {"type": kind, **given}

    def object(self, given: dict[str, Any], at: str, depth: int) -> dict[str, Any]:
        if "unevaluatedProperties" in given:  # nothing beside it evaluates any, since that would be refused
            given.setdefault("additionalProperties", given["unevaluatedProperties"])
            del given["unevaluatedProperties"]
        others = given.setdefault("additionalProperties", not ("properties" in given or "patternProperties" in given))
        required = given.get("required", [])
        if not (isinstance(required, list) and all(isinstance(name, str) for name in required)):
            raise self.wrong(f"{at}/required", "there must be a list of names")
        special = [word for word in ("patternProperties", "propertyNames") if word in given]
        if special and len({*special, "properties", "required"} & given.keys()) > 1:
            raise self.wrong(at, f"{special[0]!r} cannot be enforced together with other rules about names")
        if given.get("minProperties", 0) > max(1, len(set(required))):
            raise self.wrong(at, "'minProperties' cannot be enforced; list the required ones")
        given.pop("minProperties", None) if required else None
        for word in ("properties", "patternProperties"):
            if word in given:
                given[word] = self.each(given, word, at, depth)
        for name in required:
            if name in given.get("properties", {}):
                continue
            if others is False:
                raise self.wrong(at, f"{name[:50]!r} is required, but no property of that name is allowed")
            given.setdefault("properties", {})[name] = {} if others is True else self.node(
                others, f"{at}/additionalProperties", depth + 1
            )  # fmt: skip
        for pattern in given.get("patternProperties", ()):
            self.pattern(pattern, f"{at}/patternProperties")
        for word in ("additionalProperties", "propertyNames"):
            if isinstance(given.get(word), Mapping):
                given[word] = self.node(given[word], f"{at}/{word}", depth + 1)
        return given

    def each(self, given: Mapping[str, Any], word: str, at: str, depth: int) -> dict[str, Any]:
        if not isinstance(given[word], Mapping):
            raise self.wrong(f"{at}/{word}", "there must be an object of schemas")
        return {name: self.node(one, f"{at}/{word}/{name}", depth + 1) for name, one in given[word].items()}

    def array(self, given: dict[str, Any], at: str, depth: int) -> dict[str, Any]:
        if "prefixItems" in given:
            if not isinstance(given["prefixItems"], list) or not given["prefixItems"]:
                raise self.wrong(f"{at}/prefixItems", "there must be a list of schemas that is not empty")
            given["prefixItems"] = [
                self.node(one, f"{at}/prefixItems/{i}", depth + 1) for i, one in enumerate(given["prefixItems"])
            ]
        given["items"] = self.node(given.get("items", "prefixItems" not in given), f"{at}/items", depth + 1)
        return given

    def string(self, given: dict[str, Any], at: str) -> None:
        if "pattern" in given:
            self.pattern(given["pattern"], f"{at}/pattern")
            given.pop("format", None)  # a remark, as JSON schema has it, where it is not enforced
        bounds = [word for word in ("minLength", "maxLength") if word in given]
        if bounds and "pattern" in given:
            raise self.wrong(at, f"'pattern' cannot be enforced together with {bounds[0]!r}; let the pattern say it")
        if bounds:
            given.pop("format", None)

    def pattern(self, pattern: Any, at: str) -> None:
        if not isinstance(pattern, str):
            raise self.wrong(at, "an expression is a text")
        check_expression(pattern, PATTERN, f"The JSON schema cannot be used: at {at}, the expression")

    def number(self, given: dict[str, Any], kind: str, at: str) -> None:
        for word, value in given.items():
            if not _is(value, "number"):
                raise self.wrong(f"{at}/{word}", "there must be a number")
        if "multipleOf" in given and (kind == "number" or len(given) > 1):
            raise self.wrong(at, "'multipleOf' can be enforced for integers alone, and without bounds")


def check_expression(text: str, letters: int, said: str) -> None:
    """Raises UserError for a regular expression that is too long, or says what the grammar engine would ignore."""
    if len(text) > letters:
        raise UserError(f"{said} has more than {letters} letters.")
    if any(sign in text for sign in ("(?=", "(?!", "(?<=", "(?<!")):
        raise UserError(f"{said} looks ahead or behind, which cannot be enforced.")


def _types(schema: Mapping[str, Any]) -> list[str] | None:
    given = schema.get("type")
    return [str(kind) for kind in given] if isinstance(given, list) else None if given is None else [str(given)]


def _is(value: Any, kind: str) -> bool:
    if kind in ("number", "integer"):
        whole = isinstance(value, int) or (kind == "number" and isinstance(value, float))
        return whole and not isinstance(value, bool)
    return kind in PYTHON and isinstance(value, PYTHON[kind])


def _names(value: Any) -> list[str]:
    return [one for one in value if isinstance(one, str)] if isinstance(value, list) else []


def _constants(schema: Mapping[str, Any]) -> set[str] | None:
    """The values it allows, as JSON, where it lists them. 1 and 1.0 are one value there."""
    listed = [schema["const"]] if "const" in schema else schema.get("enum")
    if not isinstance(listed, list):
        return None
    whole = (int(one) if isinstance(one, float) and one.is_integer() else one for one in listed)
    return {json.dumps(one, sort_keys=True) for one in whole}


__all__ = ["check_expression", "enforceable"]
