"""The model card of an exported model: README.md as Hugging Face reads it.

Every value comes from a file: the configuration, the run's ledger and graded answers, the source's own card or GGUF
metadata. What none of them says is "not recorded"; nothing is made up, a licence least of all.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from mull.model.config import ModelConfig
from mull.model.families import family_of
from mull.model.flops import cache_bytes, parameters
from mull.report import words
from mull.report.summary import Row, summarise
from mull.run import read_json

LICENSE = re.compile(r"[\w.+-]{1,64}", re.ASCII)
REPOSITORY = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}", re.ASCII)
DATASET = re.compile(r"[\w.-]{1,96}(/[\w.-]{1,96})?", re.ASCII)
LANGUAGE = re.compile(r"[A-Za-z-]{2,12}")
CACHED = re.compile(r"models--([\w.-]+?)--([\w.-]+)", re.ASCII)  # how the hub's cache names a repository's folder
MOST_CARD = 2**16  # characters of a source's card that are looked at
BILL = ("seconds", "tokens", "flops", "kwh", "usd")


@dataclass(frozen=True)
class Origin:
    """What the source says of itself; empty where it says nothing."""

    license: str = ""
    base_model: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()
    language: tuple[str, ...] = ()
    itself: str = ""  # the repository that the source is, if it came from one


def origin_of_folder(folder: Path) -> Origin:
    """From the front matter of its README.md, and from where it lies."""
    said = _front_matter(folder / "README.md")
    place = next((found for part in folder.resolve().parts if (found := CACHED.fullmatch(part))), None)
    return Origin(
        license=_one(said.get("license"), LICENSE),
        base_model=_many(said.get("base_model"), REPOSITORY),
        datasets=_many(said.get("datasets"), DATASET),
        language=_many(said.get("language"), LANGUAGE),
        itself=f"{place[1]}/{place[2]}" if place else "",
    )


def origin_of_gguf(metadata: Mapping[str, Any]) -> Origin:
    """From the keys under `general.` (ggml's docs/gguf.md)."""

    def repositories(kind: str) -> tuple[str, ...]:
        urls = [metadata.get(f"general.{kind}.{i}.repo_url") for i in range(100)]
        return _many([str(url).removeprefix("https://huggingface.co/") for url in urls], REPOSITORY)

    return Origin(
        license=_one(metadata.get("general.license"), LICENSE),
        base_model=repositories("base_model"),
        datasets=repositories("dataset") + _many(metadata.get("general.datasets"), DATASET),
        language=_many(metadata.get("general.languages"), LANGUAGE),
    )


def gguf_of_origin(origin: Origin) -> dict[str, Any]:
    """The same keys, to be written."""
    base = (origin.itself,) if origin.itself else origin.base_model
    said: dict[str, Any] = {
        "license": origin.license, "languages": list(origin.language), "datasets": list(origin.datasets),
        "base_model.count": len(base),
        **{f"base_model.{i}.repo_url": f"https://huggingface.co/{name}" for i, name in enumerate(base)},
    }  # fmt: skip
    return {f"general.{key}": value for key, value in said.items() if value}


def _front_matter(path: Path) -> Mapping[str, Any]:
    """The YAML between the first two lines of three dashes; nothing where it is not there or not well-formed."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            text = file.read(MOST_CARD)
        front = re.match(r"---\s*\n(.*?)\n---\s*(\n|$)", text, re.DOTALL)
        said = yaml.safe_load(front[1]) if front else None
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return {}
    return said if isinstance(said, Mapping) else {}


def _one(value: object, pattern: re.Pattern[str]) -> str:
    return value if isinstance(value, str) and pattern.fullmatch(value) else ""


def _many(values: object, pattern: re.Pattern[str]) -> tuple[str, ...]:
    given = [values] if isinstance(values, str) else values if isinstance(values, Sequence) else []
    return tuple(dict.fromkeys(found for value in given[:100] if (found := _one(value, pattern))))


def write_card(path: Path, *about: Any, **more: Any) -> None:
    """`card` of the same arguments, into a file."""
    path.write_text(card(*about, **more), encoding="utf-8")


def card(
    name: str, cfg: ModelConfig, dtype: str, origin: Origin, *, run: Path | None = None, file: str = "",
    llama_cpp: bool = True, source: str = "",
) -> str:  # fmt: skip
    """The card of model `name`, of the run `run` if it has one. `file` is the GGUF file, if that is what it describes;
    `llama_cpp` says whether such a file can be made of the model; `source` is the file beside it with the source's own
    card, if it had one."""
    environment = Environment(
        loader=PackageLoader("mull", "report"), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["plain"] = _plain
    environment.filters["json"] = json.dumps  # JSON is YAML too
    context: dict[str, Any] = {
        "name": name, "cfg": cfg, "family": family_of(cfg), "size": parameters(cfg), "dtype": dtype, "origin": origin,
        "cache": cache_bytes(cfg, 2), "file": file, "llama_cpp": llama_cpp, "words": words,
        "source": source,
        "base": [origin.itself] if origin.itself else list(origin.base_model),
        "made": _made(run, name) if run else None,
    }  # fmt: skip
    return environment.get_template("card.md.jinja").render(context)


def _plain(text: object) -> str:
    """A text from a file, without what Markdown or HTML would take for its own."""
    return re.sub(r"[^\w .,:/+()=@-]", "_", str(text))


def _made(run: Path, name: str) -> Row:
    """How a run made a model: its stages and its ancestors', what they learnt from, and how it did in exams."""
    summary = summarise(run)
    config = read_json(run / "config.json").get("config", {})
    stages: dict[str, Row] = {stage["name"]: stage for stage in config.get("stage", [])}
    ancestors = _ancestors(stages, name)
    paid = [stage for stage in summary["stages"] if stage["name"] in ancestors]
    return {
        "run": summary["name"], "stages": paid, "total": summary["total"],
        "sum": {key: sum(stage[key] for stage in paid) for key in BILL},
        "exams": [row for row in summary["evals"] if row["model"] == name and row["accuracy"] is not None],
        "tasks": _named(stages, ancestors, ("tasks", "recite"), "task"),
        "files": _named(stages, ancestors, ("files",), "path"),
        "outside": [other for other in config.get("outside") or {} if other in ancestors],
    }  # fmt: skip


def _ancestors(stages: Mapping[str, Row], name: str) -> set[str]:
    """A model, and all whose weights or answers it was made from, by name; some may be from elsewhere."""
    found: set[str] = set()
    ahead = [name]
    while ahead:
        at = ahead.pop()
        if not at or at in found:
            continue
        found.add(at)
        stage = stages.get(at, {})
        ahead += [stage.get("init") or "", stage.get("teacher") or "", *(stage.get("reuse") or ())]
    return found


def _named(stages: Mapping[str, Row], among: set[str], keys: Sequence[str], field: str) -> list[str]:
    """What the stages `among` learnt from, by name: entries of the lists under `keys`."""
    entries = [entry for name in stages if name in among for key in keys for entry in stages[name].get(key) or ()]
    return list(dict.fromkeys(str(entry[field] if isinstance(entry, Mapping) else entry) for entry in entries))


__all__ = ["Origin", "card", "gguf_of_origin", "origin_of_folder", "origin_of_gguf", "write_card"]
