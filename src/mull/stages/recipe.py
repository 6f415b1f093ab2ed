"""A recipe: a TOML list of stages, run in order in one run directory. What is done is not done again.

Everything that can be wrong with a recipe is said before its first stage starts.
"""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from mull import dist
from mull.config import Config, apply_overrides, build, nearest, read_toml
from mull.ledger import Rates
from mull.model.config import PRESETS, ModelConfig
from mull.run import Run
from mull.stages import distill, evaluate, pretrain, rl, sft
from mull.stages.distill import DistillConfig
from mull.stages.evaluate import EvaluateConfig
from mull.stages.pretrain import PretrainConfig
from mull.stages.rl import RLConfig
from mull.stages.sft import SFTConfig
from mull.stages.stage import Context
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


class Recipe(Config):
    name: str
    about: str = ""
    seed: int = Field(0, ge=0)
    device: str = "auto"
    result: str = ""  # the model that `mull chat RUN` talks to; the last one made, if empty
    rates: Rates = Rates()
    model: ModelConfig = PRESETS["tiny-moe"]
    stage: list[AnyStage] = Field(min_length=1)


def bundled() -> dict[str, Path]:
    """The recipes that come with mull, by name."""
    folder = resources.files("mull") / "recipes"
    return {Path(str(item)).stem: Path(str(item)) for item in folder.iterdir() if str(item).endswith(".toml")}


def load(name: str, overrides: list[str]) -> Recipe:
    """A bundled recipe's name or a file, with key=value overrides. Raises UserError for anything that does not fit."""
    known = bundled()
    path = known.get(name) or Path(name)
    if not path.exists() and path.suffix != ".toml":
        raise UserError(f"There is no recipe {name!r}.{nearest(name, known)} Bundled: {', '.join(sorted(known))}.")
    recipe = build(Recipe, apply_overrides(read_toml(path), overrides), path.name)
    _check(recipe)
    return recipe


def _check(recipe: Recipe) -> None:
    """Names are unique, and every stage finds the models it needs among those made before it."""
    made: list[str] = []
    for stage in recipe.stage:
        for need in _needs(stage):
            if need not in made:
                raise UserError(
                    f"Stage {stage.name!r} needs the model {need!r}, which no stage before it makes."
                    f"{nearest(need, made)}"
                )
        if stage.name in made:
            raise UserError(f"Two stages are named {stage.name!r}; a stage's name is its model's: make it unique.")
        made.append(stage.name)
    if recipe.result and recipe.result not in made:
        raise UserError(f"The result {recipe.result!r} is made by no stage.{nearest(recipe.result, made)}")


def _needs(stage: AnyStage) -> list[str]:
    match stage:
        case SFTConfig():
            return [stage.init, *([stage.as_long_as, stage.speed_of] if stage.as_long_as else [])]
        case RLConfig():
            return [stage.init]
        case DistillConfig():
            return [stage.teacher, *stage.reuse]
        case EvaluateConfig():
            return [*stage.models, *(m for exam in stage.exams for m in exam.models)]
    return []


def main(recipe: Recipe, run: Run) -> None:
    """Run what is not done yet. The result's name is written as soon as that model exists."""
    device = dist.device(recipe.device)
    ctx = Context(run, recipe.seed, device, recipe.model)
    models = [s.name for s in recipe.stage if s.kind != "evaluate"]
    result = recipe.result or (models[-1] if models else "")
    for stage in recipe.stage:
        if not run.done(stage.name):
            STAGES[stage.kind](stage, ctx)
            run.finish(stage.name, kind=stage.kind)
        if stage.name == result:
            run.set_result(result)
