"""The command line: verbs to functions. Nothing heavy is imported before a verb needs it.

What the user can mend is one line on stderr and exit code 2; Ctrl-C is 130; anything else is a bug and shows its
traceback.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer
from typer.core import TyperGroup

from mull import __version__, cli_eval, cli_serve
from mull.cli_options import (
    MODEL,
    Device,
    Exact,
    Json,
    MaxTokens,
    ModelArgument,
    NoThink,
    Out,
    Quiet,
    Seed,
    Temperature,
)  # fmt: skip
from mull.types import UserError

if TYPE_CHECKING:
    from mull.stages.recipe import Recipe

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
MENDABLE = (
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP
)  # fmt: skip


TARGET = "Models that are here, names that `mull models` lists, or URL#MODEL of an endpoint."
USAGE: type[Exception] = typer.BadParameter.__mro__[1]  # click's UsageError, for which typer has no name


class Verbs(TyperGroup):
    """Says what went wrong where the user can do something about it."""

    def make_context(self, info_name: str | None, args: list[str], *more: Any, **settings: Any) -> Any:
        try:
            return super().make_context(info_name, args or ["--help"], *more, **settings)
        except USAGE as error:
            _misused("mull", error)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except USAGE as error:
            _misused(f"mull {ctx.invoked_subcommand or ''}".strip(), error)
        except UserError as error:
            _fail(str(error))
        except KeyboardInterrupt:
            _fail("Stopped.", code=130)
        except OSError as error:
            if error.errno not in (*MENDABLE, *FULL):
                raise
            _fail(f"{error.filename or 'A file'}: {error.strerror}.")


def _fail(line: str, code: int = 2) -> NoReturn:
    print(" ".join(line.split()), file=sys.stderr)
    raise typer.Exit(code)


def _misused(command: str, error: Any) -> NoReturn:
    """Words that are none of a command's, in one line instead of click's four."""
    what = error.format_message().replace("Value error, ", "").strip().rstrip(".")
    _fail(f"{what}{'' if what.endswith('?') else '.'} `{command} --help` says what there is.")


app = typer.Typer(
    cls=Verbs, help="Own your reasoning model: train, teach, distill, judge and talk with it, with the bill attached.",
    add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)  # fmt: skip

Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Changes, e.g. stage.rl.steps=50 rates.watts=35.")
]
DemoOut = Annotated[Path, typer.Option("--out", help="The run's directory; the same command continues it.")]
Data = Annotated[Path | None, typer.Option(help="Folder of published sets' files; else MULL_DATA.")]
Size = Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="Of the problems, e.g. terms=[5,6].")]


def _version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_version, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def demo(overrides: Overrides = None, out: DemoOut = Path("runs/demo"), quiet: Quiet = False) -> None:
    """Make a reasoning model from nothing, distill it and judge it."""
    _run_recipe("demo", overrides or [], out, quiet)


@app.command()
def run(
    recipe: Annotated[str, typer.Argument(help="A bundled recipe's name (`mull recipes`) or a TOML file.")],
    overrides: Overrides = None,
    out: Out = None,
    quiet: Quiet = False,
) -> None:
    """Carry out a recipe: a list of stages, each kept when it is done."""
    _run_recipe(recipe, overrides or [], out, quiet)


def _run_recipe(name: str, overrides: list[str], out: Path | None, quiet: bool) -> None:
    from mull.console import print_run
    from mull.stages import recipe

    plan = recipe.load(name, overrides)
    folder = out or Path("runs") / plan.name
    report, code = _carry_out(plan, folder, quiet)
    print_run(folder, report)
    if code:
        raise typer.Exit(code)


def _carry_out(
    plan: Recipe, folder: Path, quiet: bool, max_usd: float | None = None
) -> tuple[dict[str, Any], int]:  # fmt: skip
    """Do what is not done yet and write the report; its content, and the exit code: 1 where answers never came."""
    import json

    from mull import dist
    from mull.report.html import write_report
    from mull.run import Run
    from mull.stages import recipe
    from mull.stages.evaluate import OverspentError, PausedError

    dist.settle()
    directory = Run.open(folder, recipe.identity(plan), rates=plan.rates, quiet=quiet)
    try:
        with _kept(folder):
            if recipe.finished(plan, directory):
                directory.say(f"{folder} is finished; give another --out to do it again.")
            code = 0
            try:
                recipe.main(plan, directory, max_usd)
            except OverspentError as error:
                directory.say(f"Stopped at --max-cost ${max_usd:g}, after {error}; a larger one goes on from there.")
            except PausedError as error:
                code = 1
                directory.say(f"Not all was answered ({error}). The same command asks for the rest.")
            write_report(folder)
    finally:
        directory.close()
    return json.loads((folder / "report.json").read_text(encoding="utf-8")), code


@contextmanager
def _kept(folder: Path) -> Iterator[None]:
    """Ctrl-C and a full disk leave a run that the same command continues: say so."""
    from mull.console import command

    again = command(*sys.argv[1:])
    try:
        yield
    except KeyboardInterrupt:
        _fail(f"Stopped. What is finished is kept in {folder}; continue with: {again}", code=130)
    except OSError as error:
        # safetensors puts the system's error into words of its own
        code = error.errno or next((code for code in FULL if f"(os error {code})" in str(error)), 0)
        if code not in FULL:
            raise
        _fail(f"{os.strerror(code)}: {folder} keeps everything up to the last good checkpoint; free some space and "
              f"continue with: {again}")  # fmt: skip


@app.command(name="eval")
def evaluate(
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help=TARGET)],
    task: Annotated[
        list[str],
        typer.Option("--task", metavar="TASK,...", help="Tasks (`mull tasks` lists them) or files of your own."),
    ],
    n: Annotated[int, typer.Option("--n", help="Problems per task.")] = 200,
    samples: Annotated[int, typer.Option("--samples", help="Answers per problem.")] = 1,
    out: Out = None,
    max_tokens: MaxTokens = 512,
    temperature: Annotated[float | None, typer.Option(help="0 for one answer per problem, 1 for several.")] = None,
    seed: Seed = 0,
    no_think: NoThink = False,
    both: Annotated[bool, typer.Option("--both", help="Thinking and at once, compared.")] = False,
    split: Annotated[str, typer.Option(help="test or validation.")] = "test",
    size: Size = None,
    data: Data = None,
    think_tokens: Annotated[
        str, typer.Option(metavar="N,...", help="Longest thought; then the answer is forced. Several are compared.")
    ] = "",
    judge: Annotated[str | None, typer.Option(metavar="MODEL", help="Who judges, where a task needs a model.")] = None,
    key_env: Annotated[str, typer.Option(metavar="NAME", help="Variable with the key of a URL#MODEL.")] = "",
    trained_on: Annotated[
        list[Path] | None, typer.Option(metavar="PATH", help="Run, folder or file that a model learnt from.")
    ] = None,
    max_cost: Annotated[float | None, typer.Option(metavar="USD", min=0, help="Stop where it would cost more.")] = None,
    usd_per_hour: Annotated[float | None, typer.Option(min=0, help="What this machine costs.")] = None,
    device: Device = "auto",
    exact: Exact = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Judge models on held-out problems, published sets or own files.

    What is interrupted goes on with the same command; only what is missing is asked.
    """
    from mull.config import apply_overrides, fingerprint
    from mull.console import print_json, print_run
    from mull.stages import recipe

    _use(data)
    tasks = [_task_name(name.strip()) for given in task for name in given.split(",") if name.strip()]
    if not tasks:
        raise UserError("--task names no task; `mull tasks` lists them.")
    targets = [recipe.target(name, key_env) for name in models]
    plan = recipe.examination(
        targets, tasks, apply_overrides({}, size or []), seed=seed, device=device, exact=exact,
        judge=recipe.target(judge, key_env) if judge else None, usd_per_hour=usd_per_hour,
        trained_on=trained_on or [],
        budgets=_numbers("--think-tokens", think_tokens), n=n, samples=samples, max_tokens=max_tokens, split=split,
        temperature=(0.0 if samples == 1 else 1.0) if temperature is None else temperature,
        thinking=[True, False] if both else [not no_think],
    )  # fmt: skip
    folder = out or Path("runs") / f"eval-{recipe.name_of(targets[0])}-{fingerprint(recipe.identity(plan))[:8]}"
    report, code = _carry_out(plan, folder, quiet, max_cost)
    if as_json:
        print_json({"out": str(folder), "evals": report["evals"], "overall": report["overall"]})
    else:
        print_run(folder, report)
    if code:
        raise typer.Exit(code)


@app.command()
def chat(
    model: ModelArgument,
    max_tokens: MaxTokens = 512,
    temperature: Temperature = 0.0,
    seed: Seed = 0,
    no_think: NoThink = False,
    remember: Annotated[
        bool | None, typer.Option(help="Show the model the conversation; models of a run are taught single questions.")
    ] = None,
    device: Device = "auto",
    exact: Exact = False,
) -> None:
    """Talk with a model: dim thinking, the answer, what it cost."""
    from contextlib import suppress

    from mull import dist
    from mull.api import Model, Options
    from mull.talk import Conversation

    with suppress(ImportError):
        import readline  # noqa: F401 - gives input() its line editing
    dist.settle()
    speaker = Model.load(model, device, exact)
    how = Options(max_tokens=max_tokens, temperature=temperature, seed=seed, thinking=not no_think)
    read = input if sys.stdin.isatty() else lambda _: input()
    keeps = speaker.located.run is None if remember is None else remember
    Conversation(speaker, how, keeps, read).run()


@app.command()
def ask(
    model: ModelArgument,
    prompt: Annotated[str, typer.Argument(help='The question; "-" reads it from stdin.')],
    max_tokens: MaxTokens = 512,
    temperature: Temperature = 0.0,
    seed: Seed = 0,
    no_think: NoThink = False,
    effort: Annotated[str | None, typer.Option(help="none, minimal, low, medium, high, xhigh or max thinking.")] = None,
    votes: Annotated[int, typer.Option(help="Draw so many answers; the one most agree with.", min=1)] = 1,
    device: Device = "auto",
    exact: Exact = False,
    as_json: Json = False,
) -> None:
    """Ask one question."""
    from mull import dist, talk
    from mull.api import Model, Options

    dist.settle()
    question = sys.stdin.read().strip() if prompt == "-" else prompt
    how = Options(max_tokens=max_tokens, temperature=temperature, seed=seed, thinking=not no_think, effort=effort)
    if votes > 1 and not temperature:  # else all answers would be the same
        how["temperature"] = 1.0
    talk.ask(Model.load(model, device, exact), question, how, as_json, votes)


@app.command()
def info(
    model: Annotated[str, typer.Argument(metavar="MODEL", help=f"{MODEL[:-1]}; or a bare config.json.")],
    as_json: Json = False,
) -> None:
    """Sizes of a model; what a run has done, made and cost.

    No weights are read. Of a model, also what it takes to serve.
    """
    from mull.console import print_info, print_json
    from mull.describe import describe

    described = describe(model)
    if as_json:
        print_json(described)
    else:
        print_info(described)


@app.command()
def pull(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="smollm2, or ORG/NAME[@REVISION][:FILE.gguf] of the hub.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Fetch a published model, once; without NAME, list what is here.

    Prints where it is. Files are checked; what was cut off goes on where it stopped.
    """
    from mull import hub
    from mull.console import print_json, print_names
    from mull.model.families import read_config

    if name is None:
        here = {found: str(path) for found, path in hub.pulled().items()}
        if as_json:
            print_json({"models": here})
        else:
            print_names("Models that need no network", list(here.items()), "path")
        return
    path = hub.pull(name, say=lambda line: print(line, file=sys.stderr, flush=True), approve=read_config)
    if as_json:
        print_json({"name": name, "path": str(path)})
    else:
        print(path)


@app.command()
def export(
    model: ModelArgument,
    to: Annotated[Literal["hf", "gguf"], typer.Option("--to", help="For transformers, or for llama.cpp.")],
    dtype: Annotated[
        str | None, typer.Option("--dtype", metavar="DTYPE", help="f32, f16, bf16, q8_0 (gguf) or fp8 (hf).")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="A new directory; NAME-hf or NAME-gguf if none.")] = None,
) -> None:
    """Write a model for other programs, with a model card.

    Prints where it is. Nothing is overwritten.
    """
    from mull.export import export as write
    from mull.locate import locate

    print(write(model, to, out or Path(f"{locate(model).name}-{to}"), dtype))


@app.command()
def report(run: Annotated[str, typer.Argument(metavar="RUN", help="A run's directory.")]) -> None:
    """Write report.html and report.json of a run again."""
    from mull.locate import find_run
    from mull.report.html import write_report

    print(write_report(find_run(run)))


@app.command()
def tasks(
    name: Annotated[str | None, typer.Argument(help="Show examples of this task; or `check`.")] = None,
    checked: Annotated[
        str | None, typer.Argument(metavar="[TASK]", help="Behind `check`: a task, or a file of your own.")
    ] = None,
    n: Annotated[int, typer.Option("--n", help="How many.")] = 3,
    size: Size = None,
    data: Data = None,
    as_json: Json = False,
) -> None:
    """List the tasks, or show problems of one with their answers.

    `mull tasks check my.jsonl` says how a file of your own was understood, and grades its answers and near misses.
    """
    from mull.config import apply_overrides
    from mull.console import print_json, print_names, print_problem
    from mull.tasks import TASKS, TAUGHT, find

    _use(data)
    if name == "check" or checked is not None:
        _check_task(name, checked, apply_overrides({}, size or []), as_json)
        return
    if name is None:
        listed = [(task.name, task.about) for task in TASKS.values()]
        if as_json:
            print_json({"tasks": [{"name": found, "about": about} for found, about in listed]})
        else:
            print_names(f"{len(listed)} tasks; {', '.join(TAUGHT)} come with worked solutions", listed)
        return
    split = "train" if name in TAUGHT or name.startswith("gym/") else "test"
    problems = find(name).problems(split, n, **apply_overrides({}, size or []))
    shown = [(problem, TAUGHT[name].solution(problem) if name in TAUGHT else None) for problem in problems]
    if as_json:
        print_json({"problems": [
            {"question": p.messages[-1].content, "answer": p.answer, "solution": s.reasoning if s else None}
            for p, s in shown
        ]})  # fmt: skip
        return
    for problem, solution in shown:
        print_problem(problem, solution)


def _task_name(given: str) -> str:
    """A file is one task however its path is written: ./my.jsonl is my.jsonl."""
    return os.path.normpath(given) if os.path.sep in given and Path(given).is_file() else given


def _numbers(option: str, text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not all(part.isascii() and part.isdigit() and len(part) < 10 for part in parts):
        raise UserError(f"{option} takes whole numbers, comma between, not {text!r}.")
    return list(dict.fromkeys(map(int, parts)))


def _check_task(verb: str | None, task: str | None, size: dict[str, Any], as_json: bool) -> None:
    from dataclasses import asdict

    from mull.console import print_json, print_lines
    from mull.tasks import find
    from mull.tasks.check import check, lines

    if verb != "check" or task is None:
        raise UserError("Give one task, or `mull tasks check TASK`.")
    found = check(find(task), **size)
    if as_json:
        print_json(asdict(found))
    else:
        print_lines(lines(found))


def _use(data: Path | None) -> None:
    """Where the files of published sets are: a setting of this process, as the variable is."""
    if data is None:
        return
    if not data.is_dir():
        raise UserError(f"--data {data}: there is no such folder.")
    os.environ["MULL_DATA"] = str(data)


@app.command()
def recipes(as_json: Json = False) -> None:
    """List the bundled recipes."""
    from mull.config import read_toml
    from mull.console import print_json, print_names
    from mull.stages.recipe import bundled

    listed = [(name, path, str(read_toml(path).get("about", ""))) for name, path in sorted(bundled().items())]
    if as_json:
        print_json({"recipes": [{"name": name, "about": about, "file": str(path)} for name, path, about in listed]})
    else:
        print_names("Recipes", [(name, about) for name, _, about in listed])


cli_eval.add_to(app)
cli_serve.add_to(app)


def main() -> None:
    app(prog_name="mull")


if __name__ == "__main__":
    main()
