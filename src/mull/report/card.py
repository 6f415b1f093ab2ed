"""The model card of an exported model: README.md as Hugging Face reads it.

Every value comes from a file: the configuration, the run's ledger and graded answers, the source's own card or GGUF
metadata. What none of them says is "not recorded"; nothing is made up, a licence least of all.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from mull.formats.gguf import is_gguf, read_header
from mull.locate import Located, locate, run_config
from mull.model.config import ModelConfig
from mull.model.families import family_of
from mull.model.flops import cache_bytes, parameters
from mull.report import words
from mull.report.summary import Row, summarise
from mull.types import UserError

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
    made_from: tuple[tuple[str, str], ...] = ()  # of a run's model: repositories or files, and the licence of each

    @property
    def base(self) -> tuple[str, ...]:
        """The repositories that a model made of this one is based on."""
        return (self.itself,) if self.itself else self.base_model


def origin_of(located: Located, depth: int = 8) -> Origin:
    """What a model's own files say of it; of a run's model, what those say that it was made from: the licence is what
    all of these have. Runs that were made from runs are followed to a `depth`. Raises UserError for a damaged file.
    """
    if is_gguf(located.folder):
        return origin_of_gguf(read_header(located.folder).metadata)
    if located.run is None:
        return origin_of_folder(located.folder)
    config = run_config(located.run)
    ancestors = _ancestors(_stages(config), located.name) if depth else set()
    paths = [Path(where) for name, where in (config.get("outside") or {}).items() if name in ancestors]
    found = [(path.name, _still_there(path, depth - 1)) for path in paths]
    licenses = {origin.license for _, origin in found}
    return Origin(
        license=licenses.pop() if len(licenses) == 1 else "",
        base_model=_unique(origin.base for _, origin in found),
        datasets=_unique(origin.datasets for _, origin in found),
        language=_unique(origin.language for _, origin in found),
        made_from=_unique(origin.made_from or ((origin.itself or name, origin.license),) for name, origin in found),
    )


def _still_there(path: Path, depth: int) -> Origin:
    """Of a model that a run began with: it may have gone since, and then says nothing."""
    try:
        return origin_of(locate(path), depth)
    except UserError:
        return Origin()


def _unique(many: Iterable[tuple[Any, ...]]) -> tuple[Any, ...]:
    return tuple(dict.fromkeys(chain.from_iterable(many)))


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
    names = [] if origin.base else [name for name, _ in origin.made_from]
    said: dict[str, Any] = {
        "license": origin.license, "languages": list(origin.language), "datasets": list(origin.datasets),
        "base_model.count": len(origin.base or names),
        **{f"base_model.{i}.repo_url": f"https://huggingface.co/{name}" for i, name in enumerate(origin.base)},
        **{f"base_model.{i}.name": name for i, name in enumerate(names)},
    }  # fmt: skip
    return {f"general.{key}": value for key, value in said.items() if value}


def _front_matter(path: Path) -> Mapping[str, Any]:
    """The YAML between the first two lines of three dashes; nothing where it is not there or not well-formed."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            text = file.read(MOST_CARD)
        first, *lines = text.split("\n")
        ends = [number for number, line in enumerate(lines) if line.rstrip() == "---"]
        said = yaml.safe_load("\n".join(lines[: ends[0]])) if first.rstrip() == "---" and ends else None
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
        "source": source, "base": list(origin.base),
        "made": _made(run, name) if run else None,
    }  # fmt: skip
    return environment.get_template("card.md.jinja").render(context)


def _plain(text: object) -> str:
    """A text from a file, without what Markdown or HTML would take for its own."""
    return re.sub(r"[^\w .,:/+()=@-]", "_", str(text))


def _made(run: Path, name: str) -> Row:
    """How a run made a model: its stages and its ancestors', what they learnt from, and how it did in exams."""
    summary = summarise(run)
    config = run_config(run)
    stages = _stages(config)
    ancestors = _ancestors(stages, name)
    paid = [stage for stage in summary["stages"] if stage["name"] in ancestors]
    return {
        "run": summary["name"], "stages": paid, "total": summary["total"],
        "sum": {key: sum(stage[key] for stage in paid) for key in BILL},
        "exams": [row for row in summary["evals"] if row["model"] == name and row["accuracy"] is not None],
        "tasks": _named(stages, ancestors, ("tasks", "recite"), "task"),
        "files": _named(stages, ancestors, ("files",), "path"),
    }  # fmt: skip


def _stages(config: Mapping[str, Any]) -> dict[str, Row]:
    return {stage["name"]: stage for stage in config.get("stage", [])}


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


__all__ = ["Origin", "card", "gguf_of_origin", "origin_of", "origin_of_folder", "origin_of_gguf", "write_card"]
