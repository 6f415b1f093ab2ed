"""The documentation holds to the code: commands, links, configuration keys with their types and defaults, snippets."""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import pytest
import typer
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from mull.cli import app
from mull.config import Config, apply_overrides, build
from mull.data.sources import Draw
from mull.ledger import Rates
from mull.model.config import Llama3Rope, ModelConfig, Yarn
from mull.serve.price import Price
from mull.serve.settings import Limits, Settings
from mull.stages import recipe
from mull.stages.distill import DistillConfig
from mull.stages.evaluate import EvaluateConfig, Exam
from mull.stages.pretrain import PretrainConfig
from mull.stages.recipe import Recipe
from mull.stages.rl import RLConfig
from mull.stages.sft import SFTConfig
from mull.tasks import chains
from mull.train.losses import LossConfig
from mull.train.optim import OptimConfig
from mull.train.trainer import TrainConfig

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
REFERENCE = ROOT / "docs" / "recipes.md"
SECTIONS: dict[str, type[Config]] = {  # of the reference, by heading
    "The recipe": Recipe, "rates": Rates, "model": ModelConfig, "model.yarn": Yarn, "model.llama3_rope": Llama3Rope,
    "A mixture of problems": Draw,
    "pretrain": PretrainConfig, "sft": SFTConfig, "rl": RLConfig, "distill": DistillConfig, "evaluate": EvaluateConfig,
    "An exam": Exam, "train": TrainConfig, "train.loss": LossConfig, "train.optim": OptimConfig,
}  # fmt: skip
SERVING = ROOT / "docs" / "serve.md"
SERVED: dict[str, type[Config]] = {"The server": Settings, "limits": Limits, "price": Price}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
COMMANDS = typer.main.get_command(app)


def blocks(page: Path, language: str) -> list[str]:
    return [body for kind, body in FENCE.findall(page.read_text(encoding="utf-8")) if kind == language]


def prose(page: Path) -> str:
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def spans(page: Path) -> list[str]:
    return SPAN.findall(prose(page))


def command_lines(page: Path) -> Iterator[list[str]]:
    """The words after `mull` of each command in a shell block."""
    for body in blocks(page, "sh"):
        for line in body.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            at = next((i for i, word in enumerate(words) if Path(word).name == "mull"), None)
            if at is not None and all("=" in word for word in words[:at]):
                yield words[at + 1 :]


def verb(name: str) -> Any:
    assert name in COMMANDS.commands, f"there is no `mull {name}`"  # type: ignore[attr-defined]
    return COMMANDS.commands[name]  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", NAMES)
def test_every_command_shown_is_one(name: str) -> None:
    """Parsed by the real command line, defaults and types included; nothing is carried out."""
    for words in command_lines(ROOT / name):
        if words[-1:] == ["--help"] and len(words) == 2:
            verb(words[0])
        elif words[:1] and not words[0].startswith("-"):
            context = verb(words[0]).make_context(words[0], list(words[1:]))
            for key in context.params.get("overrides") or []:
                path, sign, _ = key.partition("=")
                assert sign, key
                assert path.split(".")[-1] in fields(), key
        else:
            assert set(words) <= {"--help", "-h", "--version"}, words


@pytest.mark.parametrize("name", NAMES)
def test_every_verb_and_option_in_the_text_exists(name: str) -> None:
    verbs = [v for one in COMMANDS.commands.values() for v in (one, *getattr(one, "commands", {}).values())]  # type: ignore[attr-defined]
    options = {opt for v in verbs for p in v.params for opt in [*p.opts, *p.secondary_opts]}
    for span in spans(ROOT / name):
        words = span.split()
        if words[0] == "mull" and len(words) > 1 and words[1].islower() and words[1].isalpha():
            mine = {opt for p in verb(words[1]).params for opt in [*p.opts, *p.secondary_opts]} | {"--help", "-h"}
            assert {w for w in words[2:] if w.startswith("-") and w != "-"} <= mine, span
        elif re.fullmatch(r"--[a-z-]+", words[0]):
            assert words[0] in options | {"--help", "--version"}, span


@pytest.mark.parametrize("name", NAMES)
def test_every_link_leads_somewhere(name: str) -> None:
    page = ROOT / name
    for target in LINK.findall(prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        there = page if not path else (page.parent / path).resolve()
        assert there.exists(), f"{name} links to {target}"
        if anchor:
            headings = HEADING.findall(FENCE.sub("", there.read_text(encoding="utf-8")))
            assert anchor in {slug(heading) for heading in headings}, f"{name} links to {target}"


def slug(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


@pytest.mark.parametrize("name", NAMES)
def test_every_source_file_named_exists(name: str) -> None:
    for span in spans(ROOT / name):
        if re.fullmatch(r"(src|tests|docs|benchmarks)/[\w./-]+\.\w+", span) and "NAME" not in span:
            assert (ROOT / span).exists(), f"{name} names {span}"


@pytest.mark.parametrize("name", NAMES[1:])
def test_lines_are_short(name: str) -> None:
    for number, line in enumerate((ROOT / name).read_text(encoding="utf-8").splitlines(), 1):
        assert len(line) <= 120, f"{name}, line {number}"


# the reference of recipes


def fields() -> set[str]:
    classes = [*SECTIONS.values(), *SERVED.values()]
    return {field for cls in classes for field in cls.model_fields} | {"stage", "preset"}


def kind_of(field: FieldInfo) -> str:
    """A field's type and bounds, as the reference writes them; those that only keep absurd numbers out, it does not."""
    bounds = {"gt": "> {}", "ge": ">= {}", "lt": "< {}", "le": "<= {}"}
    said = [(text, getattr(m, name)) for m in field.metadata for name, text in bounds.items() if hasattr(m, name)]
    limits = [text.format(value) for text, value in said if value < 100]
    least = [f"at least {m.min_length}" for m in field.metadata if hasattr(m, "min_length")]
    return " ".join([spelt(field.annotation), ", ".join(limits + least)]).strip()


def spelt(annotation: Any) -> str:
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return spelt(args[0])
    if origin is Literal:
        return " or ".join(f'"{value}"' for value in args)
    if origin in (Union, UnionType):
        named = [spelt(arg) for arg in args if arg is not NoneType]
        return "stage" if len(named) > 1 else named[0]
    if origin is list:
        return f"list of {spelt(args[0])}s"
    if origin is tuple:
        return f"list of {spelt(args[0])}s" if args[-1] is Ellipsis else f"{len(args)} {spelt(args[0])}s"
    if origin is dict or (isinstance(annotation, type) and issubclass(annotation, Config)):
        return "table"
    return {int: "integer", float: "number", str: "text", Path: "text", bool: "boolean"}[annotation]


def default_of(field: FieldInfo) -> str:
    """As TOML; tables other than empty ones have sections of their own."""
    value = field.default
    if value is PydanticUndefined:
        return "required"
    if value is None:
        return "none"
    if isinstance(value, Config):
        changed = value.model_dump(exclude_defaults=True)
        return " ".join(f"`{k} = {toml(v)}`" for k, v in flat(changed)) if 0 < len(changed) < 3 else "see there"
    return f"`{toml(value)}`"


def flat(value: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, item in value.items():
        if isinstance(item, dict):
            yield from flat(item, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", item


def toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(toml, value))}]"
    return "{}" if value == {} else str(value)


def sections(page: Path) -> dict[str, str]:
    parts = re.split(r"^##+ (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.mark.parametrize(
    ("page", "heading", "cls"),
    [*((REFERENCE, *pair) for pair in SECTIONS.items()), *((SERVING, *pair) for pair in SERVED.items())],
)
def test_the_reference_names_every_key_with_its_type_and_default(page: Path, heading: str, cls: type[Config]) -> None:
    """And no other key."""
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \| (.+?) \| .+ \|$", sections(page)[heading], re.MULTILINE)
    written = {key: (kind, default) for key, kind, default in rows}
    assert len(written) == len(rows), "a key stands there twice"
    inherited = Draw.model_fields.keys() if heading == "An exam" else ()
    wanted = {
        key: (kind_of(field), default_of(field))
        for key, field in cls.model_fields.items()
        if key not in inherited
    }
    assert written == wanted


def test_every_dotted_key_in_the_reference_exists() -> None:
    for span in spans(REFERENCE):
        path = span.split("=")[0].strip()
        if re.fullmatch(r"(stage|model|rates|train)(\.\w+)+", path):
            assert path.split(".")[-1] in fields(), span


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_shown_is_valid(name: str) -> None:
    """Fragments are completed by a stage that judges nothing in particular."""
    judge = {"kind": "evaluate", "name": "exam", "models": ["x"], "exams": [{"task": "gcd"}]}
    for body in blocks(ROOT / name, "toml"):
        raw = {"name": "shown", "stage": [judge]} | tomllib.loads(body)
        build(Recipe, raw, f"{name}: {body}")


def test_overrides_of_the_demo_that_are_shown_are_valid(tmp_path: Path) -> None:
    for page in PAGES:
        for words in command_lines(page):
            if words[:1] == ["demo"]:
                context = verb("demo").make_context("demo", list(words[1:]))
                recipe.load("demo", context.params["overrides"] or [])


def test_the_way_to_read_an_override_that_the_reference_shows() -> None:
    raw = {"stage": [{"name": "rl", "steps": 1}], "rates": {}}
    changed = apply_overrides(raw, ["stage.rl.steps=5", "stage.0.problems=4", "rates.watts=35", "name=mine"])
    assert changed["stage"][0] == {"name": "rl", "steps": 5, "problems": 4}
    assert changed["rates"] == {"watts": 35}
    assert changed["name"] == "mine"


# what a reader would paste


SNIPPETS = [name for name in NAMES if blocks(ROOT / name, "python")]


@pytest.mark.parametrize("name", [name for name in SNIPPETS if name != "docs/serve.md"])
def test_python_snippets_run(
    name: str, done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Beside a finished run, in a directory of their own, one after another."""
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "demo").symlink_to(done, target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "snippet"}
    for body in blocks(ROOT / name, "python"):
        exec(compile(body, name, "exec"), names)  # noqa: S102 - our own pages
    capsys.readouterr()


def test_what_clients_are_shown_runs(capsys: pytest.CaptureFixture[str]) -> None:
    """By a tiny model, whose answers say nothing."""
    from serving import serving

    with serving() as server:
        names: dict[str, Any] = {"__name__": "snippet"}
        for body in blocks(SERVING, "python"):
            body = body.replace("http://127.0.0.1:8000", server.url).replace('"smollm2"', f'"{server.dialogue.name}"')
            exec(compile(body, str(SERVING), "exec"), names)  # noqa: S102 - our own page
    capsys.readouterr()


CHAIN = re.compile(r"`([^`\n]+)`[^`\n]*\n(?:[^`\n]+\n)?\n((?:    .+\n)+)")  # a problem, and what is indented below it


def test_the_chains_shown_are_those_that_are_written():
    """Left of two spaces stands the chain, right of them what is said about it."""
    page = (ROOT / "docs" / "tasks.md").read_text(encoding="utf-8")
    shown = {problem: [line.split("  ")[0] for line in lines.replace("\n    ", "\n").strip().splitlines()]
             for problem, lines in CHAIN.findall(page)}  # fmt: skip
    assert shown == {
        "514 - 544 + 386": chains.chain_sum([514, 544, 386], [1, -1, 1]).splitlines(),
        "5 - 7": chains.chain_sum([5, 7], [1, -1]).splitlines(),
        "123 * 45": chains.products(123, 45).splitlines(),
        "112, 987": chains.gcd(112, 987).splitlines(),
    }
