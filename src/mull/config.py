"""Typed, frozen configurations from TOML plus dotted overrides. An unknown key is an error with the nearest valid name.

Every configuration in mull is a subclass of `Config` and stands beside the code that reads it. What cannot be
understood raises UserError with one line: where, what is wrong, what would be right.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from mull.types import UserError

C = TypeVar("C", bound="Config")


class Config(BaseModel):
    """Base of all configurations: frozen, and closed to unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def nearest(name: str, names: Iterable[str]) -> str:
    """' Did you mean ...?' with the nearest of `names`, or nothing."""
    close = difflib.get_close_matches(name, list(names), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def read_toml(path: Path) -> dict[str, Any]:
    """Raises UserError for a missing file, naming the nearest that exists, and for TOML that does not parse."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        beside = [p.name for p in path.parent.glob("*.toml")] if path.parent.is_dir() else []
        raise UserError(f"There is no file {path}.{nearest(path.name, beside)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}.") from None
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"{path} is not valid TOML: {error}.") from None


def apply_overrides(raw: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A copy of `raw` with each "a.b=value" set. Values are read as TOML, or else as plain text.

    An element of a list of tables is chosen by its `name` or its number: "stage.sft.steps=5", "stage.0.steps=5".
    Keys that do not exist yet are set all the same; validation then says whether they may.
    """
    result = json.loads(json.dumps(raw, default=str))
    for override in overrides:
        path, sign, text = override.partition("=")
        keys = path.strip().split(".")
        if not sign or not all(keys):
            raise UserError(f"{override!r} is no override; write key=value, with dots between nested keys.")
        _set(result, keys, _value(text.strip()), path.strip())
    return result


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _set(table: Any, keys: list[str], value: Any, path: str) -> None:
    for key in keys[:-1]:
        table = _element(table, key, path) if isinstance(table, list) else table.setdefault(key, {})
        if not isinstance(table, dict | list):
            raise UserError(f"{path}: {key!r} is a plain value; nothing can be set inside it.")
    if isinstance(table, list):
        raise UserError(f"{path}: name a key of the list's element as well, e.g. {path}.key=value.")
    table[keys[-1]] = value


def _element(items: list[Any], key: str, path: str) -> Any:
    if key.isdigit() and int(key) < len(items):
        return items[int(key)]
    names = [item.get("name", "") for item in items if isinstance(item, dict)]
    if key in names:
        return items[names.index(key)]
    raise UserError(f"{path}: there is no element {key!r}; there are {', '.join(n for n in names if n)}."
                    f"{nearest(key, names)}")  # fmt: skip


def build(cls: type[C], raw: Mapping[str, Any], where: str) -> C:
    """Validate. The first thing wrong becomes one UserError line that starts with `where` and the dotted key."""
    try:
        return cls.model_validate(raw)
    except ValidationError as error:
        raise UserError(_explain(cls, raw, error, where)) from None


def _explain(cls: type[Config], raw: Mapping[str, Any], error: ValidationError, where: str) -> str:
    problems = error.errors(include_url=False)
    first = problems[0]
    place = _spelt(first["loc"], raw)
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    match first["type"]:
        case "extra_forbidden":
            what = f"there is no such key.{nearest(str(first['loc'][-1]), _siblings(cls, first['loc']))}"
        case "missing":
            what = "this key is required."
        case "union_tag_invalid":
            context = first.get("ctx", {})
            what = f"there is no kind {context.get('tag')!r}; kinds are {context.get('expected_tags')}."
        case "value_error":
            said = str(first["msg"]).removeprefix("Value error, ")
            what = said if said.endswith((".", "?")) else f"{said}."
        case _:
            what = f"{first['msg'][0].lower()}{first['msg'][1:]}, not {first['input']!r}."
    return f"{where}: {place}: {what}{more}" if place else f"{where}: {what}{more}"


def _spelt(loc: Sequence[str | int], raw: Any) -> str:
    """The dotted key as a user would write it: list elements by name, a union's tag left out."""
    parts: list[str] = []
    here: Any = raw
    for key in loc:
        if isinstance(here, list) and isinstance(key, int) and key < len(here):
            here = here[key]
            parts.append(str(here.get("name", key)) if isinstance(here, dict) else str(key))
        elif isinstance(here, Mapping) and key in here:
            here = here[key]
            parts.append(str(key))
        elif not (isinstance(here, Mapping) and key == here.get("kind")):
            parts.append(str(key))
    return ".".join(parts)


def _siblings(cls: type[Config], loc: Sequence[str | int]) -> list[str]:
    """Valid names at the place of an unknown key: walk the models along `loc`."""
    models: list[type[BaseModel]] = [cls]
    for key in loc[:-1]:
        found: list[type[BaseModel]] = []
        for model in models:
            if key in model.model_fields:
                found += _models(model.model_fields[str(key)].annotation)
            elif "kind" in model.model_fields and model.model_fields["kind"].default == key:
                found.append(model)
        models = found or models
    return [name for model in models for name in model.model_fields]


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models(part)]


def digest(paths: Iterable[Path]) -> str:
    """Sixteen hex digits of the names and contents of files, in the order given."""
    sums = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            sums.update(path.name.encode() + hashlib.file_digest(file, "sha256").digest())
    return sums.hexdigest()[:16]


def fingerprint(config: Config | Mapping[str, Any]) -> str:
    """Sixteen hex digits of the canonical JSON: equal for equal configurations, whatever their order."""
    plain = config.model_dump(mode="json") if isinstance(config, Config) else config
    return hashlib.sha256(json.dumps(plain, sort_keys=True, default=str).encode()).hexdigest()[:16]
