"""A recipe: a TOML list of stages, run in order in one run directory. What is done is not done again.

Everything that can be wrong with a recipe is said before its first stage starts.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from mull import dist
from mull.config import Config, apply_overrides, build, digest, nearest, read_toml
from mull.data.shards import read_texts
from mull.data.sources import NUMBER, Draw
from mull.endpoints import Endpoint, endpoint, knows
from mull.engine.remote import RemoteEngine
from mull.ledger import Rates
from mull.locate import Located, locate
from mull.model.config import PRESETS, ModelConfig
from mull.model.families import read_config
from mull.run import Run
from mull.stages import distill, evaluate, pretrain, rl, sft
from mull.stages.distill import DistillConfig
from mull.stages.evaluate import EvaluateConfig
from mull.stages.pretrain import PretrainConfig
from mull.stages.rl import RLConfig
from mull.stages.sft import SFTConfig
from mull.stages.stage import OWN, Context, Name
from mull.tasks import TAUGHT, Split, find
from mull.text.chat import Chat
from mull.text.tokenizer import SMALLEST
from mull.types import UserError

STAGES: dict[str, Any] = {
    "pretrain": pretrain.main,
    "sft": sft.main,
    "rl": rl.main,
    "distill": distill.main,
    "evaluate": evaluate.main,
}
AnyStage = Annotated[
    PretrainConfig | SFTConfig | RLConfig | DistillConfig | EvaluateConfig, Field(discriminator="kind")
]


PRESET = "tiny-moe"  # of a recipe that says nothing of its model's shape


class Recipe(Config):
    name: Name
    about: str = ""
    seed: int = Field(default=0, ge=0)
    device: str = "auto"
    exactness: Literal["fast", "exact"] = "fast"
    result: str = ""  # the model that `mull chat RUN` talks to; the last one made, if empty
    rates: Rates = Rates()
    model: ModelConfig = PRESETS[PRESET]
    outside: dict[Name, str] = {}  # models that no stage makes: name -> what `locate` takes
    endpoints: dict[Name, Endpoint] = {}  # models that others serve, for evaluate stages
    trained_on: list[str] = []  # texts that models learnt from, where known: exams are looked for in them
    stage: list[AnyStage] = Field(min_length=1)


def bundled() -> dict[str, Path]:
    """The recipes that come with mull, by name."""
    folder = Path(str(resources.files("mull"))) / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def load(name: str, overrides: list[str]) -> Recipe:
    """A bundled recipe's name or a file, with key=value overrides. Raises UserError for anything that does not fit."""
    known = bundled()
    path = known.get(name) or Path(name)
    if not path.exists() and path.suffix != ".toml":
        raise UserError(f"There is no recipe {name!r}.{nearest(name, known)} Bundled: {', '.join(sorted(known))}.")
    raw = {"model": {"preset": PRESET}} | read_toml(path)  # so that model.width=64 changes the preset
    recipe = build(Recipe, apply_overrides(raw, overrides), path.name)
    recipe = recipe.model_copy(update={"outside": _elsewhere(recipe)})
    check(recipe)
    return recipe


def _elsewhere(recipe: Recipe) -> dict[str, str]:
    """Paths of the models that no stage makes; those with a name of their own are fetched if they are not here."""
    found: dict[str, str] = {}
    for name, given in recipe.outside.items():
        try:
            found[name] = str(locate(given).folder)
        except UserError as error:
            raise UserError(f"outside.{name}: {error}") from None
    return found


def check(recipe: Recipe) -> None:
    """Everything a stage would stumble over later. Raises UserError."""
    dist.device(recipe.device)
    _elsewhere(recipe)
    for served in recipe.endpoints.values():
        RemoteEngine(served)  # its key is there
    _check_models(recipe)
    _check_sittings(recipe)
    for at, stage in enumerate(recipe.stage):
        try:
            _check_past(stage, recipe.stage[:at])
            _check_lessons(stage, recipe)
        except UserError as error:
            raise UserError(f"Stage {stage.name!r}: {error}") from None


def _check_models(recipe: Recipe) -> None:
    """Names are unique, and every stage finds the models it needs among those made before it."""
    made = list(recipe.outside)
    taken = {*made, *recipe.endpoints}
    if twice := recipe.outside.keys() & recipe.endpoints.keys():
        raise UserError(f"Two models are named {min(twice)!r}; each needs a name of its own.")
    logged = {stage.name + OWN for stage in recipe.stage if stage.kind == "distill"}
    for stage in recipe.stage:
        served = recipe.endpoints if stage.kind == "evaluate" else {}
        for need in _needs(stage):
            if need not in made and need not in served:
                raise UserError(
                    f"Stage {stage.name!r} needs the model {need!r}, which no stage before it makes."
                    f"{nearest(need, made)}"
                )
        if stage.name in taken:
            raise UserError(f"Two models are named {stage.name!r}; a stage's name is its model's: make it unique.")
        taken.add(stage.name)
        if stage.name in logged:
            raise UserError(
                f"Stage {stage.name!r} has the name under which distill stage {stage.name.removesuffix(OWN)!r} learns "
                "from its own answers; rename it."
            )
        if stage.kind != "evaluate":
            made.append(stage.name)
    own = [name for name in made if name not in recipe.outside]
    if recipe.result and recipe.result not in own:
        raise UserError(f"The result {recipe.result!r} is made by no stage.{nearest(recipe.result, own)}")


def _check_sittings(recipe: Recipe) -> None:
    """No two sets of answers share a file: the second would never be asked."""
    taken = {stage.name for stage in recipe.stage if stage.kind != "evaluate"}
    for stage in recipe.stage:
        for sitting in evaluate.sittings(stage) if isinstance(stage, EvaluateConfig) else []:
            if sitting.name in taken:
                raise UserError(
                    f"Stage {stage.name!r}: another set of answers has the name {sitting.name} already; exams of one "
                    "task, size, model and mode need labels of their own."
                )
            taken.add(sitting.name)


def _needs(stage: AnyStage) -> list[str]:
    match stage:
        case SFTConfig():
            return [stage.init]
        case RLConfig():
            return [stage.init]
        case DistillConfig():
            return [stage.teacher, *([stage.init] if stage.init else [])]
        case EvaluateConfig():
            return [*stage.models, *(m for exam in stage.exams for m in exam.models), *filter(None, [stage.judge])]
    return []


def _check_past(stage: AnyStage, before: Sequence[AnyStage]) -> None:
    """What it reads of earlier stages besides their models is kept by them."""
    if isinstance(stage, SFTConfig) and stage.as_long_as:
        timed = [other.name for other in before if other.kind != "evaluate"]
        for key, name in (("as_long_as", stage.as_long_as), ("speed_of", stage.speed_of)):
            if name not in timed:
                raise UserError(f"{key} = {name!r} is no stage before it that trains.{nearest(name, timed)}")
    if isinstance(stage, DistillConfig):
        keep = [other.name for other in before if _keeps_answers(other)]
        for name in stage.reuse:
            if name not in keep:
                raise UserError(
                    f"reuse = {name!r} is no stage before it that keeps graded answers; rl does unless keep = false, "
                    f"distill if fresh is set.{nearest(name, keep)}"
                )


def _keeps_answers(stage: AnyStage) -> bool:
    match stage:
        case RLConfig():
            return stage.keep
        case DistillConfig():
            return stage.fresh > 0
    return False


def _check_lessons(stage: AnyStage, recipe: Recipe) -> None:
    """Its tasks exist in the sizes asked for, its files are there, and it has something to learn from at all."""
    match stage:
        case PretrainConfig():
            if not (stage.tasks or stage.recite or stage.files):
                raise UserError("there is nothing to learn from; give tasks, recite or files.")
            shape = stage.model or recipe.model
            if shape.vocab < SMALLEST:
                raise UserError(f"model.vocab = {shape.vocab} is too small; bytes and specials are {SMALLEST}.")
            if stage.files and stage.length > shape.max_length:
                raise UserError(f"length = {stage.length} is more than model.max_length = {shape.max_length}.")
            for pattern in stage.files:
                next(iter(read_texts([pattern])), None)
            _check_draws(stage.tasks, "train", taught=True)
            _check_draws(stage.recite, "train", recited=True)
        case SFTConfig():
            _check_draws(stage.tasks, "train", taught=True, needed="to learn from")
            _check_draws(stage.recite, "train", recited=True)
        case RLConfig():
            _check_draws(stage.tasks, "train", needed="to practise on")
        case DistillConfig():
            if not stage.reuse and not stage.fresh:
                raise UserError("there is nothing to learn from; give reuse, fresh or both.")
            _check_draws(stage.tasks, "train", needed="for fresh answers" if _draws_afresh(stage) else "")
        case EvaluateConfig():
            evaluate.check(stage)
            _check_draws(stage.exams, stage.split)


def _draws_afresh(stage: DistillConfig) -> bool:
    return bool(stage.fresh or stage.on_policy_steps)


def _check_draws(
    draws: Sequence[Draw], split: Split, taught: bool = False, recited: bool = False, needed: str = ""
) -> None:
    if needed and not draws:
        raise UserError(f"it needs tasks {needed}.")
    for draw in draws:
        task = find(draw.task)
        if taught and draw.task not in TAUGHT:
            raise UserError(f"{draw.task} has no written solutions to learn from; taught are {', '.join(TAUGHT)}.")
        # seconds for some of reasoning-gym's, which beats a failure after an hour
        for problem in task.problems(split, 1, **draw.size):
            if recited and not NUMBER.search(problem.messages[-1].content):
                raise UserError(f"{draw.task} asks questions without numbers, so there is nothing to say again.")


def identity(recipe: Recipe) -> dict[str, Any]:
    """What a run directory is known by: the recipe, and all files of the models that come from elsewhere."""
    plain = recipe.model_dump(mode="json")
    if recipe.outside:
        plain["weights"] = {
            name: digest([path] if path.is_file() else sorted(one for one in path.iterdir() if one.is_file()))
            for name, path in ((name, Path(where)) for name, where in recipe.outside.items())
        }
    if files := {task: path for task in _exam_tasks(recipe) if (path := Path(task)).is_file()}:
        plain["tasks"] = {task: digest([path]) for task, path in files.items()}
    return plain


def _exam_tasks(recipe: Recipe) -> list[str]:
    return [exam.task for stage in recipe.stage if isinstance(stage, EvaluateConfig) for exam in stage.exams]


Target = Located | Endpoint


def target(given: str, key_env: str = "") -> Target:
    """What `mull eval` can judge: an endpoint's address with its model's name, URL#MODEL; one that models.toml knows;
    or a model that is here. A path that exists wins over a name. Raises UserError."""
    if given.startswith(("http://", "https://")):
        url, _, model = given.partition("#")
        if not model:
            raise UserError(f"{url} needs the name of its model behind it: {url}#MODEL.")
        return Endpoint.of_url(url, model, key_env)
    if not Path(given).exists() and knows(given):
        return endpoint(given)
    return locate(given)


def examination(
    targets: Sequence[Target], tasks: Sequence[str], size: Mapping[str, Any], *, seed: int, device: str, exact: bool,
    judge: Target | None = None, usd_per_hour: float | None = None, trained_on: Sequence[Path] = (),
    budgets: Sequence[int] = (), **options: Any,
) -> Recipe:  # fmt: skip
    """The recipe of `mull eval`: one stage that judges models from elsewhere. `options` are EvaluateConfig's.

    A model whose chat template knows no thinking is judged at once only, an endpoint that cannot but think thinking.
    """
    names = [name_of(one) for one in targets]
    if len(set(names)) < len(names):
        raise UserError(f"Two models are named {max(names, key=names.count)}; judge them one at a time.")
    everyone = dict(zip(names, targets, strict=True)) | ({name_of(judge): judge} if judge else {})
    here = {name: one for name, one in everyone.items() if isinstance(one, Located)}
    stage = {"kind": "evaluate", "name": "eval" if "eval" not in everyone else "exam", "models": names} | options
    stage["judge"] = name_of(judge) if judge else ""
    wanted = options.get("thinking", [True, False])
    groups: dict[tuple[bool, ...], list[str]] = {}
    for name in names:
        modes = _modes(everyone[name])
        groups.setdefault(tuple(mode for mode in wanted if mode in modes) or modes[:1], []).append(name)
    stage["exams"] = [
        {"task": task, "size": dict(size), "models": models, "thinking": list(modes)} | budget
        for task in tasks for modes, models in groups.items() for budget in _budgets(budgets, modes)
    ]  # fmt: skip
    rates = next((one.rates for one in here.values()), Rates())
    raw = {
        "name": "eval", "about": f"{', '.join(names)} on {', '.join(tasks)}", "seed": seed, "device": device,
        "exactness": "exact" if exact else "fast",
        "rates": rates if usd_per_hour is None else rates.model_copy(update={"usd_per_hour": usd_per_hour}),
        "outside": {name: str(one.folder.absolute()) for name, one in here.items()},
        "endpoints": {name: one for name, one in everyone.items() if isinstance(one, Endpoint)},
        "trained_on": _training(trained_on, here.values()), "stage": [stage],
    }  # fmt: skip
    if here:
        raw["model"] = read_config(next(iter(here.values())).folder)
    recipe = build(Recipe, raw, "mull eval")
    check(recipe)
    return recipe


def _budgets(budgets: Sequence[int], modes: Sequence[bool]) -> list[dict[str, Any]]:
    """What an exam says of its budget; several budgets are as many exams of those that think."""
    if len(budgets) < 2 or not any(modes):
        return [{"thinking_tokens": budgets[0]}] if budgets and any(modes) else [{}]
    return [{"thinking_tokens": most, "label": f"{most:,} thinking tokens"} for most in budgets]


def _modes(one: Target) -> tuple[bool, ...]:
    """Whether it can think, and answer at once."""
    if isinstance(one, Endpoint):
        return one.modes
    return (True, False) if Chat.load(one.folder).thinks else (False,)


def _training(given: Sequence[Path], here: Iterable[Located]) -> list[str]:
    """What is named, and the runs that made the models that are here."""
    if missing := next((path for path in given if not path.exists()), None):
        raise UserError(f"--trained-on {missing}: there is no such file or folder.")
    runs = [one.run for one in here if one.run is not None]
    return list(dict.fromkeys(str(path.absolute()) for path in (*given, *runs)))


def name_of(one: Target) -> str:
    """As files and reports have it."""
    return re.sub(r"[^A-Za-z0-9_.-]", "-", one.name).lstrip(".-") or "model"


def finished(recipe: Recipe, run: Run) -> bool:
    return all(run.done(stage.name) for stage in recipe.stage)


def main(recipe: Recipe, run: Run, max_usd: float | None = None) -> None:
    """Run what is not done yet. The result's name is written as soon as that model exists.

    Raises OverspentError where an evaluation comes to cost more than `max_usd`.
    """
    device = dist.device(recipe.device)
    exact = recipe.exactness == "exact"
    ctx = Context(run, recipe.seed, device, recipe.model, recipe.outside, exact, recipe.endpoints, max_usd)
    if ctx.exact and device.type != "cpu":
        run.say("exactness = exact has been checked on CPUs only; rl stops at the first bit that differs.")
    models = [s.name for s in recipe.stage if s.kind != "evaluate"]
    result = recipe.result or (models[-1] if models else "")
    for stage in recipe.stage:
        if not run.done(stage.name):
            STAGES[stage.kind](stage, ctx)
            run.note_peak()
            run.forget_tokens()
            run.finish(stage.name, kind=stage.kind)
        if stage.name == result:
            run.set_result(result)
