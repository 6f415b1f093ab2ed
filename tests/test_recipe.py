"""Recipes: what is checked before the first stage, what a run is known by, and how stages follow one another."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import content
from small import GQA, chat, model_of

from mull.config import build, fingerprint
from mull.locate import locate
from mull.model.config import PRESETS
from mull.model.gguf_write import write_gguf
from mull.run import Run
from mull.stages import recipe
from mull.stages.evaluate import EvaluateConfig
from mull.stages.recipe import Recipe
from mull.tasks import TASKS
from mull.text.chat import Chat
from mull.types import Message, Problem, UserError, read_rollouts


@pytest.fixture
def plain(tiny: Path) -> dict[str, Any]:
    return recipe.load(str(tiny), []).model_dump(mode="json")


def mistake(raw: dict[str, Any]) -> str:
    with pytest.raises(UserError) as caught:
        recipe.check(build(Recipe, raw, "x"))
    return str(caught.value)


def of(raw: dict[str, Any], name: str) -> dict[str, Any]:
    return next(stage for stage in raw["stage"] if stage["name"] == name)


# checks


def test_bundled_recipes_name_themselves_and_pass():
    for name in recipe.bundled():
        found = recipe.load(name, [])
        assert found.name == name
        assert found.about


@pytest.mark.parametrize("name", ["..", ".x", "-x", "", "a/b", "a b", "result.json", "a\n"])
def test_names_are_such_that_directories_may_have_them(plain: dict[str, Any], name: str):
    said = f"name: {name!r} is no name; use letters, digits and _.-, a letter, digit or _ first."
    assert said in mistake(plain | {"name": name})
    of(plain, "student")["name"] = name
    assert said in mistake(plain)
    of(plain, "exam")["models"] = ["taught"]
    plain["stage"] = [stage for stage in plain["stage"] if stage["name"] != name]
    plain["outside"] = {name: "."}
    assert said.removeprefix("name: ") in mistake(plain)


def test_the_second_way_of_distillation_has_a_name_of_its_own(plain: dict[str, Any]):
    said = "'student-own' has the name under which distill stage 'student' learns from its own answers; rename it."
    early = of(plain, "taught") | {"name": "student-own"}
    assert mistake(plain | {"stage": [plain["stage"][0], early, *plain["stage"][1:]]}).endswith(said)
    of(plain, "exam")["name"] = "student-own"
    assert mistake(plain).endswith(said)


@pytest.mark.parametrize("name", ["eval", ".hidden", "a model", "_"])
def test_a_model_of_any_name_may_be_examined(done: Path, tmp_path: Path, name: str):
    folder = shutil.copytree(done / "models" / "base", tmp_path / name)
    plan = recipe.examination([locate(folder)], ["gcd"], {}, seed=0, device="cpu", exact=False, n=1)
    assert len(plan.outside) == len(plan.stage) == 1


def test_an_evaluation_makes_no_model(plain: dict[str, Any]):
    plain["stage"].append({"kind": "sft", "name": "more", "init": "exam", "steps": 1, "tasks": [{"task": "gcd"}]})
    assert mistake(plain) == "Stage 'more' needs the model 'exam', which no stage before it makes."


def test_a_student_is_new_or_goes_on_from_a_model(plain: dict[str, Any]):
    of(plain, "student")["init"] = "taught"
    assert "stage.student: give either init, a model to go on from, or model, the shape of a new one." in mistake(plain)
    of(plain, "student")["model"] = None
    recipe.check(build(Recipe, plain, "x"))
    of(plain, "student")["init"] = "tought"
    assert mistake(plain).endswith("'tought', which no stage before it makes. Did you mean 'taught'?")


def test_an_exam_is_for_models_of_its_stage(plain: dict[str, Any]):
    of(plain, "exam")["exams"][0]["models"] = ["base"]
    assert "an exam is for 'base', which is not among models" in mistake(plain)


def test_two_exams_that_would_share_a_file_are_refused(plain: dict[str, Any]):
    exam = of(plain, "exam")
    first, more = exam["exams"][0], {"n": 9, "samples": 1}
    exam["exams"] = [first, first | more]
    said = "Stage 'exam': another set of answers has the name exam_taught_gcd_held-out_values=1,3_think already; exams"
    assert mistake(plain).startswith(said)
    for other in ({"label": "more"}, {"size": {"values": [1, 9]}}, {"task": "products", "size": {}}):
        exam["exams"] = [first, first | more | other]
        recipe.check(build(Recipe, plain, "x"))
    exam["exams"] = [first | {"models": ["taught"]}, first | more | {"models": ["student"]}]
    recipe.check(build(Recipe, plain, "x"))
    exam["exams"] = [first | {"thinking": [True]}, first | more | {"thinking": [False]}]
    recipe.check(build(Recipe, plain, "x"))
    plain["stage"].append(exam | {"name": "exam_taught", "models": ["student"], "exams": [first]})
    recipe.check(build(Recipe, plain, "x"))


def test_something_must_be_there_to_learn_from(plain: dict[str, Any], tmp_path: Path):
    base, student = of(plain, "base"), of(plain, "student")
    base["tasks"] = []
    assert mistake(plain) == "Stage 'base': there is nothing to learn from; give tasks, recite or files."
    base |= {"files": [str(tmp_path / "*.txt")], "length": 129}
    assert mistake(plain) == "Stage 'base': length = 129 is more than model.max_length = 128."
    base["length"] = 128
    assert f"Stage 'base': No text file matches '{tmp_path}/*.txt'." == mistake(plain)
    (tmp_path / "a.txt").write_text("once upon a time")
    recipe.check(build(Recipe, plain, "x"))
    student["tasks"] = []
    assert mistake(plain) == "Stage 'student': it needs tasks for fresh answers."
    student |= {"fresh": 0, "on_policy_steps": 0}
    recipe.check(build(Recipe, plain, "x"))
    student["reuse"] = []
    assert "there is nothing to learn from; give reuse, fresh or both." in mistake(plain)


def test_what_is_said_again_has_numbers(plain: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    class Riddles:
        def problems(self, split: str, n: int, seed: int = 0) -> list[Problem]:
            return [Problem("riddle", str(i), (Message("user", "What has keys?"),), "piano") for i in range(n)]

    monkeypatch.setitem(TASKS, "riddle", Riddles())  # type: ignore[arg-type]
    of(plain, "taught")["recite"] = [{"task": "riddle"}]
    said = "Stage 'taught': riddle asks questions without numbers, so there is nothing to say again."
    assert mistake(plain) == said


def test_a_model_from_outside_must_be_there(plain: dict[str, Any], done: Path, tmp_path: Path):
    plain["outside"] = {"old": str(tmp_path)}
    assert mistake(plain) == f"outside.old: {tmp_path} holds no config.json, so it is neither a model nor a run."
    plain["outside"] = {"old": str(done / "models" / "base")}
    of(plain, "taught")["init"] = "old"
    recipe.check(build(Recipe, plain, "x"))
    plain["outside"]["base"] = plain["outside"]["old"]
    assert "Two models are named 'base'" in mistake(plain)


@pytest.mark.parametrize(("stage", "loss"), [("base", "ce"), ("taught", "ce"), ("practised", "grpo"),
                                              ("student", "forward_kl")])  # fmt: skip
def test_a_stage_has_its_own_loss_whatever_else_its_train_table_says(tiny: Path, stage: str, loss: str):
    for change in ("optim.lr=1e-3", "loss.mask_gap=0.2", "checkpoint_every=7"):
        plan = recipe.load(str(tiny), [f"stage.{stage}.train.{change}"])
        [found] = [s for s in plan.stage if s.name == stage and s.kind != "evaluate"]
        assert found.train.loss.name == loss
        assert build(Recipe, plan.model_dump(mode="json"), "x") == plan


@pytest.mark.parametrize(("stage", "loss", "takes"), [
    ("base", "grpo", "ce"), ("taught", "forward_kl", "ce"), ("practised", "ce", "grpo"),
    ("student", "reverse_kl", "forward_kl or ce"),
])  # fmt: skip
def test_a_loss_that_a_stage_cannot_feed_is_refused(tiny: Path, stage: str, loss: str, takes: str):
    said = f"tiny.toml: stage.{stage}.train: this stage cannot feed the loss '{loss}'; it takes {takes}."
    with pytest.raises(UserError, match=re.escape(said)):
        recipe.load(str(tiny), [f"stage.{stage}.train.loss.name={loss}"])
    assert recipe.load(str(tiny), ["stage.student.train.loss.name=ce"])


# identity


def test_a_run_is_known_by_its_recipe_and_the_models_from_outside(tiny: Path, done: Path, tmp_path: Path):
    ours = recipe.load(str(tiny), [])
    opened = json.loads((done / "config.json").read_text())
    assert opened["config"] == recipe.identity(ours)
    assert opened["fingerprint"] == fingerprint(recipe.identity(ours))
    model = shutil.copytree(done / "models" / "base", tmp_path / "model")
    with_outside = ours.model_copy(update={"outside": {"old": str(model)}})
    before = recipe.identity(with_outside)
    assert recipe.identity(with_outside) == before
    weights = bytearray((model / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (model / "model.safetensors").write_bytes(weights)
    assert recipe.identity(with_outside)["weights"] != before["weights"]


def test_a_model_from_outside_is_whatever_a_model_can_be(
    tiny: Path, done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A run, one of its models, a GGUF file, a name; all become paths, by whose content a run is known."""
    monkeypatch.setenv("MULL_CACHE", str(tmp_path))
    here = tmp_path / "smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf"
    here.parent.mkdir()
    here.write_bytes(b"one")
    text = tiny.read_text().replace("[model]", f"""[outside]
run = "{done}"
one = "{done}:base"
file = "{here}"
name = "smollm2"

[model]""", 1)  # fmt: skip
    (tmp_path / "x.toml").write_text(text)
    plan = recipe.load(str(tmp_path / "x.toml"), [])
    made = done / "models"
    paths = {"run": made / "student", "one": made / "base", "file": here, "name": here}
    assert plan.outside == {name: str(path) for name, path in paths.items()}
    before = recipe.identity(plan)["weights"]
    here.write_bytes(b"two")
    after = recipe.identity(plan)["weights"]
    assert {name for name in before if before[name] != after[name]} == {"file", "name"}
    (tmp_path / "x.toml").write_text(text.replace('"smollm2"', '"smolm2"'))
    with pytest.raises(UserError, match=r"outside\.name: There is no model .* at smolm2\. Did you mean 'smollm2'\?"):
        recipe.load(str(tmp_path / "x.toml"), [])


def test_a_model_that_knows_no_thinking_is_judged_at_once(tmp_path: Path):
    """And its path stays as it is: files in the hub's cache are links to others, whose names say nothing."""
    plain = "{% for m in messages %}{{ m.content }}{% endfor %}"
    write_gguf(tmp_path / "blob", model_of(GQA), Chat(chat().tokenizer, plain))
    (tmp_path / "theirs.gguf").symlink_to(tmp_path / "blob")
    how = {"seed": 0, "device": "cpu", "exact": False, "n": 1}
    plan = recipe.examination([locate(tmp_path / "theirs.gguf")], ["gcd"], {}, thinking=[True, False], **how)
    assert plan.stage[0].exams[0].thinking == [False]
    assert plan.outside == {"theirs": str(tmp_path / "theirs.gguf")}
    write_gguf(tmp_path / "ours.gguf", model_of(GQA), chat())
    plan = recipe.examination([locate(tmp_path / "ours.gguf")], ["gcd"], {}, thinking=[True, False], **how)
    assert plan.stage[0].exams[0].thinking == [True, False]


def test_an_examination_is_a_recipe_of_one_stage(done: Path):
    plan = recipe.examination(
        [locate(f"{done}:taught")], ["gcd", "products"], {}, seed=3, device="cpu", exact=True, n=5, thinking=[True]
    )
    [stage] = plan.stage
    assert isinstance(stage, EvaluateConfig)
    assert plan.exactness == "exact"
    assert stage.models == ["taught"]
    assert [exam.task for exam in stage.exams] == ["gcd", "products"]
    assert (stage.n, plan.seed, plan.model.experts) == (5, 3, 4)


# running


@pytest.fixture
def copy(done: Path, tmp_path: Path, tiny: Path) -> Iterator[Run]:
    """The finished run, open, in a place of its own."""
    shutil.copytree(done, tmp_path / "run")
    plan = recipe.load(str(tiny), [])
    run = Run.open(tmp_path / "run", recipe.identity(plan), rates=plan.rates, quiet=True)
    yield run
    run.close()


def test_a_finished_run_is_left_as_it_is(copy: Run, tiny: Path):
    plan = recipe.load(str(tiny), [])
    assert recipe.finished(plan, copy)
    before = content(copy.path)
    recipe.main(plan, copy)
    assert content(copy.path) == before


def test_a_stage_that_is_not_done_is_done_again_alone(copy: Run, tiny: Path):
    plan = recipe.load(str(tiny), [])
    before = content(copy.path / "models")
    copy.note("student", done=False)
    shutil.rmtree(copy.model_dir("student"))
    copy.note("exam", done=False)
    assert not recipe.finished(plan, copy)
    recipe.main(plan, copy)
    assert recipe.finished(plan, copy)
    assert content(copy.path / "models") == before


def test_a_set_of_answers_on_disk_is_not_asked_again(copy: Run, tiny: Path):
    plan = recipe.load(str(tiny), [])
    sets = sorted(copy.rollouts_path("x").parent.glob("exam_*.jsonl"))
    assert len(sets) == 4
    kept = {path: path.stat().st_mtime_ns for path in sets[1:]}
    answers = [r.completion.tokens for r in read_rollouts(sets[0])]
    sets[0].unlink()
    copy.note("exam", done=False)
    recipe.main(plan, copy)
    assert [r.completion.tokens for r in read_rollouts(sets[0])] == answers
    assert {path: path.stat().st_mtime_ns for path in sets[1:]} == kept


def test_a_model_from_outside_is_no_result(plain: dict[str, Any], done: Path):
    outside = {"outside": {"elsewhere": str(done / "models" / "taught")}, "result": "elsewhere"}
    assert "The result 'elsewhere' is made by no stage." in mistake(plain | outside)


def test_the_last_model_is_the_result_unless_one_is_named(done: Path, copy: Run, tiny: Path):
    assert json.loads((done / "models" / "result.json").read_text()) == {"model": "student"}
    recipe.main(recipe.load(str(tiny), ["result=taught"]), copy)
    assert json.loads((copy.path / "models" / "result.json").read_text()) == {"model": "taught"}


def test_a_model_that_went_missing_is_named(copy: Run, tiny: Path):
    copy.note("exam", done=False)
    for path in copy.rollouts_path("x").parent.glob("exam_*"):
        path.unlink()
    shutil.rmtree(copy.model_dir("student"))
    with pytest.raises(UserError, match="No stage has made the model 'student'; there are base, practised, taught"):
        recipe.main(recipe.load(str(tiny), []), copy)


def test_a_sampler_apart_from_the_trainer_stops_the_run(
    refused: Callable[..., str], tiny: Path, done: Path, tmp_path: Path
):
    rl = tiny.read_text(encoding="utf-8").split("[[stage]]")[3].replace("steps = 2", "steps = 2\nmax_gap = 1e-12")
    head = f'name = "apart"\n[outside]\ntaught = "{done / "models" / "taught"}"\n[[stage]]'
    (tmp_path / "apart.toml").write_text(head + rl, encoding="utf-8")
    line = refused("run", tmp_path / "apart.toml", "--out", tmp_path / "run", "--quiet")
    assert re.match(r"Stage practised, step 1: max_gap is [\d.e-]+, more than 1e-12, so training stopped", line)
    assert "there is no checkpoint of this stage yet" in line
    assert "Both compute in fp32" in line
    assert "larger max_gap" in line
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


# what a stage reads of earlier ones


@pytest.mark.parametrize(("change", "said"), [
    ({"reuse": ["taught"]}, "Stage 'student': reuse = 'taught' is no stage before it that keeps graded answers; rl "),
    ({"reuse": ["old"]}, "reuse = 'old' is no stage before it that keeps graded answers"),
    ({"reuse": ["practiced"]}, "Did you mean 'practised'?"),
])  # fmt: skip
def test_reuse_is_of_stages_that_keep_their_answers(plain: dict[str, Any], done: Path, change: dict, said: str):
    plain["outside"] = {"old": str(done / "models" / "base")}
    recipe.check(build(Recipe, plain, "x"))
    of(plain, "student").update(change)
    assert said in mistake(plain)


def test_reuse_of_reinforcement_learning_that_kept_nothing(plain: dict[str, Any]):
    of(plain, "practised")["keep"] = False
    assert "reuse = 'practised' is no stage before it that keeps graded answers" in mistake(plain)


@pytest.mark.parametrize(("key", "name"), [("as_long_as", "old"), ("speed_of", "exam"), ("as_long_as", "student"),
                                           ("speed_of", "bass")])  # fmt: skip
def test_time_is_matched_with_stages_that_train(plain: dict[str, Any], done: Path, key: str, name: str):
    plain["outside"] = {"old": str(done / "models" / "base")}
    longer = {"kind": "sft", "name": "longer", "init": "base", "as_long_as": "practised", "speed_of": "taught"}
    exam = of(plain, "exam") | {"models": ["taught"]}
    plain["stage"] = [*plain["stage"][:3], exam, longer | {"tasks": of(plain, "taught")["tasks"]}, of(plain, "student")]
    recipe.check(build(Recipe, plain, "x"))
    of(plain, "longer")[key] = name
    hint = " Did you mean 'base'?" if name == "bass" else ""
    assert mistake(plain) == f"Stage 'longer': {key} = {name!r} is no stage before it that trains.{hint}"


# a run that only judges


def test_an_evaluation_is_no_run_with_a_model(mull: Callable[..., Any], refused: Callable[..., str], done: Path,
                                              tmp_path: Path):  # fmt: skip
    words = ["eval", f"{done}:taught", "--task", "gcd,products", "--n", 3, "--max-tokens", 8, "--both", "--quiet"]
    judged = mull(*words, "--out", tmp_path / "e")
    assert judged.code == 0, judged
    assert "Talk with it" not in judged.out
    found = json.loads(mull("info", tmp_path / "e", "--json").out)
    assert (found["kind"], found["judged"]) == ("evaluation", {"taught": str(done / "models" / "taught")})
    report = json.loads((tmp_path / "e" / "report.json").read_text())
    assert report["model"]["name"] == "taught"  # the one it judged
    assert [model["name"] for model in report["models"]] == ["taught"]
    assert found["overall"] == report["overall"]
    shown = mull("info", tmp_path / "e")
    assert shown.code == 0
    assert f"oftaughtin{done / 'models' / 'taught'}" in "".join(shown.out.split())  # long paths are folded
    assert re.search(r"taught thinking, held-out +\d.* of 6 problems of gcd, products", shown.out)
    assert re.search(r"taught direct, held-out ", shown.out)
    for line in (refused("chat", tmp_path / "e"), refused("ask", f"{tmp_path / 'e'}:taught", "x")):
        assert line.endswith(f"is an evaluation and holds no model; it judged taught in {done / 'models' / 'taught'}.")


# the model's shape


@pytest.fixture
def shapeless(tiny: Path, tmp_path: Path) -> Path:
    """The recipe without its [model]."""
    before, _, after = tiny.read_text(encoding="utf-8").partition("[model]")
    path = tmp_path / "shapeless.toml"
    path.write_text(before + "[[stage]]" + after.partition("[[stage]]")[2], encoding="utf-8")
    return path


def test_without_a_shape_a_recipe_and_its_overrides_start_from_the_preset(shapeless: Path):
    tiny_moe = PRESETS["tiny-moe"]
    assert recipe.load(str(shapeless), []).model == tiny_moe
    assert recipe.load(str(shapeless), ["model.width=64"]).model == tiny_moe.model_copy(update={"width": 64})
    other = recipe.load(str(shapeless), ["model.preset=small-moe", "model.tied=false"]).model
    assert other == PRESETS["small-moe"].model_copy(update={"tied": False})


def test_a_model_table_may_start_from_a_preset(plain: dict[str, Any], tiny: Path):
    table = {"preset": "tiny-moe", "width": 64, "max_length": 256}
    plain["model"] = table
    of(plain, "base")["model"] = table | {"preset": "small-moe"}
    of(plain, "student")["model"] = table | {"preset": "tiny-dense", "width": 32}
    found = build(Recipe, plain, "x")
    assert found.model == PRESETS["tiny-moe"].model_copy(update={"width": 64, "max_length": 256})
    base, *_, student = [s.model for s in found.stage if s.kind in ("pretrain", "distill")]
    assert base == PRESETS["small-moe"].model_copy(update={"width": 64, "max_length": 256})
    assert student == PRESETS["tiny-dense"].model_copy(update={"width": 32, "max_length": 256})
    assert build(Recipe, found.model_dump(mode="json"), "x") == found
    with pytest.raises(UserError) as caught:
        recipe.load(str(tiny), ["model.preset=tiny-mo"])
    assert str(caught.value) == (
        "tiny.toml: model: there is no preset 'tiny-mo'; there are tiny-moe, tiny-dense, small-moe. "
        "Did you mean 'tiny-moe'?"
    )
    plain["model"] = table | {"widht": 3}
    assert "x: model.widht: there is no such key. Did you mean 'width'?" in mistake(plain)
