"""Every stage on a real tiny model: what it leaves behind, and that being interrupted changes nothing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small import chat, in_memory, model_of  # noqa: F401 - the fixture

from mull.data.sources import Draw
from mull.engine.answer import Answer
from mull.engine.core import Core
from mull.engine.engine import LocalEngine
from mull.engine.tokenlog import EVERY
from mull.model.config import ModelConfig
from mull.model.families import read_config
from mull.model.transformer import Transformer
from mull.model.weights import load_model, save_model
from mull.run import Run
from mull.stages import distill, evaluate, pretrain, rl, sft
from mull.stages.distill import DistillConfig
from mull.stages.evaluate import EvaluateConfig, Exam
from mull.stages.pretrain import PretrainConfig
from mull.stages.rl import RLConfig
from mull.stages.sft import SFTConfig
from mull.stages.stage import Context
from mull.tasks import find
from mull.text.chat import Chat
from mull.train.losses import LossConfig
from mull.train.trainer import TrainConfig
from mull.types import Completion, Message, Problem, Request, Rollout, Sampling, UserError, read_rollouts

GCD = Draw(task="gcd", size={"values": [1, 3]})
STUDENT = ModelConfig(width=32, layers=1, heads=2, kv_heads=2, head_dim=16, ffn=64, max_length=128)
OFTEN = TrainConfig(checkpoint_every=2)
CONFIGS = {
    "pretrain": PretrainConfig(
        name="new", steps=5, batch_tokens=300, tokenizer_sample=30, tasks=[GCD], train=OFTEN
    ),
    "sft": SFTConfig(name="new", init="taught", steps=5, batch_tokens=200, accumulate=2, tasks=[GCD], train=OFTEN),
    "rl": RLConfig(
        name="new", init="taught", steps=5, problems=3, samples=4, refills=8, max_tokens=48, tasks=[GCD],
        train=TrainConfig(checkpoint_every=2, loss=LossConfig(name="grpo")),
    ),
    "distill": DistillConfig(
        name="new", teacher="taught", model=STUDENT, steps=5, batch_tokens=100, accumulate=2, fresh=12,
        max_tokens=48, on_policy_steps=3, on_policy_answers=4, tasks=[GCD],
        train=TrainConfig(checkpoint_every=2, loss=LossConfig(name="forward_kl")),
    ),
}  # fmt: skip
MAINS: dict[str, Callable] = {"pretrain": pretrain.main, "sft": sft.main, "rl": rl.main, "distill": distill.main}


class KilledError(Exception):
    pass


@pytest.fixture(scope="module")
def shape(done: Path) -> ModelConfig:
    return read_config(done / "models" / "base").model_copy(update={"mtp_layers": 1})


def stage(
    folder: Path, kind: str, done: Path, shape: ModelConfig, kill: tuple[str, int] | None = None, exact: bool = False
) -> Run:
    """Run the stage in a directory, killed behind the named step of the named stage where asked."""
    run = Run.open(folder, {"kind": kind}, quiet=True)
    log = run.log

    def watched(name: str, step: int, **metrics) -> None:
        log(name, step, **metrics)
        if (name, step) == kill:
            raise KilledError

    run.log = watched  # type: ignore[method-assign]
    outside = {"taught": str(done / "models" / "taught")}
    try:
        with suppress(KilledError):
            MAINS[kind](CONFIGS[kind], Context(run, 0, torch.device("cpu"), shape, outside, exact))
    finally:
        run.close()
    return run


def digest(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


@pytest.mark.parametrize(
    ("kind", "kills"),
    [
        ("pretrain", [("new", 1), ("new", 4)]),
        ("sft", [("new", 3)]),
        ("rl", [("new", 3)]),
        ("distill", [("new", 3), ("new-own", 1), ("new-own", 3)]),
    ],
)
def test_an_interrupted_stage_ends_in_the_same_bits(
    kind: str, kills: list[tuple[str, int]], done: Path, shape: ModelConfig, tmp_path: Path
) -> None:
    straight = stage(tmp_path / "straight", kind, done, shape)
    for kill in kills:
        stage(tmp_path / "broken", kind, done, shape, kill)
        assert not (tmp_path / "broken" / "models" / "new").exists()
    broken = stage(tmp_path / "broken", kind, done, shape)
    assert digest(straight.model_dir("new")) == digest(broken.model_dir("new"))
    steps = [line["step"] for line in broken.metrics("new")]
    assert steps == list(range(1, 6))
    assert all(line["seconds"] > 0 for line in broken.metrics("new"))
    losses = [[line["loss"] for line in run.metrics("new")] for run in (straight, broken)]
    assert losses[0] == losses[1]
    if kind in ("rl", "distill"):
        one, two = (run.rollouts_path("new") for run in (straight, broken))
        assert [(r.problem, r.completion.tokens, r.reward) for r in read_rollouts(one)] == [
            (r.problem, r.completion.tokens, r.reward) for r in read_rollouts(two)
        ]


class Drawing:
    """Counts what every engine draws; kills after so many steps, if told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.tokens, self.left, step = 0, 1_000_000, Core.step

        def counted(core: Core) -> list[Answer]:
            if not self.left:
                raise KilledError
            self.left -= 1
            heard = step(core)
            self.tokens += len(heard)
            return heard

        monkeypatch.setattr(Core, "step", counted)

    def fresh(self, left: int = 1_000_000) -> None:
        self.tokens, self.left = 0, left


@pytest.mark.parametrize("kind", ["rl", "distill"])
def test_in_exact_mode_answers_under_way_go_on(
    kind: str, done: Path, shape: ModelConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in the middle of them, several times: the same bits, and nothing drawn twice but the last few tokens."""
    drawing = Drawing(monkeypatch)
    straight = stage(tmp_path / "straight", kind, done, shape, exact=True)
    total, spent, lengths = drawing.tokens, 0, (20, 33, 40)
    for steps in lengths:
        drawing.fresh(steps)
        stage(tmp_path / "broken", kind, done, shape, exact=True)
        assert drawing.left == 0
        assert not (tmp_path / "broken" / "models" / "new").exists()
        spent += drawing.tokens
    drawing.fresh()
    broken = stage(tmp_path / "broken", kind, done, shape, exact=True)
    spent += drawing.tokens
    assert total <= spent <= total + len(lengths) * EVERY * 12
    assert digest(straight.model_dir("new")) == digest(broken.model_dir("new"))
    one, two = (read_rollouts(run.rollouts_path("new")) for run in (straight, broken))
    assert [replace(r, completion=replace(r.completion, seconds=0.0)) for r in one] == [
        replace(r, completion=replace(r.completion, seconds=0.0)) for r in two
    ]
    kept = {path.stem for path in broken.tokens_dir("new" if kind == "rl" else "new-own").iterdir()}
    assert kept == ({"2", "3", "4"} if kind == "rl" else {"2"})  # the older ones are in every checkpoint
    broken.forget_tokens()
    assert not (broken.path / "tokens").exists()


def test_in_fast_mode_there_is_no_log(done: Path, shape: ModelConfig, tmp_path: Path) -> None:
    run = stage(tmp_path / "r", "rl", done, shape)
    assert not (run.path / "tokens").exists()


def test_half_an_exam_goes_on_and_costs_what_both_halves_did(
    done: Path, shape: ModelConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = EvaluateConfig(name="exam", models=["taught"], exams=[Exam(task="gcd", size={"values": [1, 3]})], n=6,
                         samples=2, temperature=1.0, max_tokens=40, thinking=[True])  # fmt: skip

    def sit(folder: Path) -> tuple[list[Rollout], dict]:
        run = Run.open(folder, {}, quiet=True)
        try:
            outside = {"taught": str(done / "models" / "taught")}
            evaluate.main(cfg, Context(run, 0, torch.device("cpu"), shape, outside, exact=True))
        finally:
            run.close()
        (answers,) = (folder / "rollouts").glob("*.jsonl")
        return read_rollouts(answers), json.loads(answers.with_suffix(".json").read_text())

    drawing = Drawing(monkeypatch)
    whole, facts = sit(tmp_path / "whole")
    total = drawing.tokens
    drawing.fresh(EVERY + 2)
    with pytest.raises(KilledError):
        sit(tmp_path / "half")
    (log,) = (tmp_path / "half" / "tokens" / "exam").iterdir()
    _, *pieces = log.read_text().splitlines()
    earlier = max(float(piece.rpartition(",")[2].rstrip("]")) for piece in pieces)
    drawing.fresh()
    answers, costs = sit(tmp_path / "half")
    assert 0 < drawing.tokens <= total - EVERY * len(whole)
    clockless = [replace(r, completion=replace(r.completion, seconds=0.0)) for r in (*whole, *answers)]
    assert clockless[: len(whole)] == clockless[len(whole) :]
    assert costs["flops"] == facts["flops"]
    assert costs["seconds"] > earlier > 0
    assert costs["kwh"] > 20 * earlier / 3.6e6  # at least as much as 20 W take


@pytest.mark.parametrize("name", ["base", "taught", "practised", "student"])
def test_every_stage_leaves_a_model_that_speaks(name: str, done: Path) -> None:
    model, chat = load_model(done / "models" / name), Chat.load(done / "models" / name)
    assert model.cfg.vocab >= chat.tokenizer.vocab_size
    problem = find("gcd").problems("test", 1, values=[1, 3])[0]
    prompt = tuple(chat.encode(problem.messages))
    (answer,) = LocalEngine(model, chat).generate([Request(prompt, Sampling(max_tokens=5, temperature=0.0))])
    assert answer.tokens


def test_the_losses_fall(done: Path) -> None:
    lines = [json.loads(line) for line in (done / "metrics.jsonl").read_text().splitlines()]
    for name in ("base", "taught"):
        losses = [line["loss"] for line in lines if line.get("stage") == name]
        assert len(losses) == 60
        assert sum(losses[-5:]) < 0.6 * sum(losses[:5]), name


def test_reinforcement_learning_is_on_policy_and_keeps_its_answers(
    done: Path, shape: ModelConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samplers, engine = [], Context.engine

    def noted(ctx: Context, model: Transformer, *rest, **more) -> LocalEngine:
        samplers.append(model)
        return engine(ctx, model, *rest, **more)

    monkeypatch.setattr(Context, "engine", noted)
    run = stage(tmp_path / "r", "rl", done, shape)
    assert [len(model.mtp) for model in samplers] == [0]  # layers that answer nothing are not carried twice
    assert read_config(run.model_dir("new")).mtp_layers == 1
    cfg = CONFIGS["rl"]
    assert isinstance(cfg, RLConfig)
    for line in run.metrics("new"):
        assert line["max_gap"] < cfg.max_gap
        assert line["left_out"] == 0
        assert 0 <= line["reward"] <= 1
        assert 0 < line["groups"] <= cfg.problems
    kept = read_rollouts(run.rollouts_path("new"))
    assert len(kept) == sum(line["answers"] for line in run.metrics("new"))
    assert {r.completion.version for r in kept} == {
        0,
        1,
        2,
        3,
        4,
    }  # each step answers with the weights of the one before
    for begin in range(0, len(kept), 4):
        assert len({r.problem.id for r in kept[begin : begin + 4]}) == 1
        assert [r.sample for r in kept[begin : begin + 4]] == [0, 1, 2, 3]
        mean = sum(r.reward for r in kept[begin : begin + 4]) / 4
        assert [r.advantage for r in kept[begin : begin + 4]] == [r.reward - mean for r in kept[begin : begin + 4]]
    assert any(r.advantage for r in kept)
    problems = {r.problem.messages for r in kept}
    assert not problems & {p.messages for p in find("gcd").problems("test", 50, values=[1, 3])}


def test_only_reinforcement_learning_computes_in_fp32_on_every_device(
    done: Path, shape: ModelConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In bf16, which CUDA has elsewhere, sampler and trainer would differ by more than max_gap through rounding alone.
    Here bf16 is the CPU's; it stands for CUDA's."""

    def half(where: torch.device, fp32: bool = False):
        return nullcontext() if fp32 else torch.autocast(where.type, torch.bfloat16)

    for module in ("engine.engine", "train.trainer", "stages.distill"):
        monkeypatch.setattr(f"mull.{module}.precision", half)
    run = stage(tmp_path / "r", "rl", done, shape)
    assert max(line["max_gap"] for line in run.metrics("new")) < 1e-3
    assert len(run.metrics("new")) == 5


def test_evaluation_asks_everyone_the_same_held_out_questions(
    done: Path, shape: ModelConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run.open(tmp_path / "r", {})
    outside = {name: str(done / "models" / name) for name in ("taught", "student")}
    ctx = Context(run, 0, torch.device("cpu"), shape, outside)
    exam = Exam(task="gcd", size={"values": [1, 3]})
    cfg = EvaluateConfig(name="exam", models=["taught", "student"], exams=[exam], n=4, max_tokens=24)
    evaluate.main(cfg, ctx)
    files = sorted(run.rollouts_path("x").parent.glob("*.jsonl"))
    assert len(files) == 4
    (last,) = [f for f in files if "student" in f.name and "direct" in f.name]
    share = sum(r.outcome == "solved" for r in read_rollouts(last)) / 4
    assert f"exam 4/4  solved {share:.3f}  " in capsys.readouterr().err
    asked = [[r.problem.messages for r in read_rollouts(f)] for f in files]
    assert all(a == asked[0] for a in asked)
    trained = {p.messages for p in find("gcd").problems("train", 300, values=[1, 3])}
    assert not trained & set(asked[0])
    before = {f.name: f.stat().st_mtime_ns for f in files}
    evaluate.main(cfg, ctx)  # what is on disk is not asked again
    assert {f.name: f.stat().st_mtime_ns for f in files} == before
    run.close()


def test_time_is_matched_by_the_steps_that_count(shape: ModelConfig, tmp_path: Path) -> None:
    """Not by the clock of sessions whose work was lost; decided once."""
    run = Run.open(tmp_path / "r", {}, quiet=True)
    for name, seconds in (("rl", 900.0), ("sft", 3.0)):
        with run.ledger.stage(name, name) as entry:
            entry.began -= seconds
    for step in range(1, 5):
        run.log("rl", step, seconds=30.0)
    for step in range(1, 21):
        run.log("sft", step, seconds=0.5)
    cfg = SFTConfig(name="longer", init="sft", as_long_as="rl", speed_of="sft", tasks=[GCD])
    ctx = Context(run, 0, torch.device("cpu"), shape)
    assert sft._matching_steps(cfg, ctx) == 240
    run.log("rl", 5, seconds=30.0)
    assert sft._matching_steps(cfg, ctx) == 240
    with pytest.raises(UserError, match="does not say how long the steps of 'gone' took"):
        sft._matching_steps(cfg.model_copy(update={"name": "other", "as_long_as": "gone"}), ctx)
    run.close()


def test_a_missing_model_is_said_before_anything_runs(shape: ModelConfig, tmp_path: Path) -> None:
    run = Run.open(tmp_path / "r", {}, quiet=True)
    with pytest.raises(UserError, match="'taught'"):
        sft.main(CONFIGS["sft"], Context(run, 0, torch.device("cpu"), shape))  # type: ignore[arg-type]
    run.close()


def test_a_student_with_another_tokenizer_is_refused_before_the_teacher_answers(
    done: Path, shape: ModelConfig, tmp_path: Path
) -> None:
    save_model(tmp_path / "other", model_of(STUDENT), chat())
    outside = {"taught": str(done / "models" / "taught"), "other": str(tmp_path / "other")}
    run = Run.open(tmp_path / "r", {}, quiet=True)
    cfg = CONFIGS["distill"].model_copy(update={"model": None, "init": "other"})
    assert isinstance(cfg, DistillConfig)
    with pytest.raises(UserError, match="different tokenizers"):
        distill.main(cfg, Context(run, 0, torch.device("cpu"), shape, outside))
    assert not run.rollouts_path("new").exists()
    run.close()


def test_plain_cross_entropy_asks_the_teacher_for_no_probabilities(
    done: Path, shape: ModelConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distill, "scored", lambda *_: pytest.fail("the teacher ran"))
    plain = TrainConfig(loss=LossConfig(name="ce"))
    monkeypatch.setitem(
        CONFIGS, "distill", CONFIGS["distill"].model_copy(update={"on_policy_steps": 0, "train": plain})
    )
    assert len(stage(tmp_path / "r", "distill", done, shape).metrics("new")) == 5


def test_pretraining_on_files_alone(shape: ModelConfig, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("the cat sat on the mat\n" * 40)
    run = Run.open(tmp_path / "r", {}, quiet=True)
    cfg = PretrainConfig(name="new", steps=3, batch_tokens=200, files=[str(tmp_path / "*.txt")], length=50)
    pretrain.main(cfg, Context(run, 0, torch.device("cpu"), shape))
    assert load_model(run.model_dir("new")).cfg.mtp_layers == 1
    run.close()
    with pytest.raises(UserError, match="nothing to learn"):
        pretrain.main(PretrainConfig(name="b", steps=1), Context(run, 0, torch.device("cpu"), shape))


def test_text_that_changed_is_refused_when_a_stage_is_continued(shape: ModelConfig, tmp_path: Path) -> None:
    text = tmp_path / "a.txt"
    text.write_text("the cat sat on the mat\n" * 40)
    run = Run.open(tmp_path / "r", {}, quiet=True)
    cfg = PretrainConfig(name="new", steps=1, batch_tokens=200, files=[str(tmp_path / "*.txt")], length=50)
    ctx = Context(run, 0, torch.device("cpu"), shape)
    pretrain.main(cfg, ctx)
    pretrain.main(cfg, ctx)
    text.write_text("the dog sat on the mat\n" * 40)
    with pytest.raises(UserError, match=r"^Stage new: what .*\.txt holds has changed since this stage began; restore"):
        pretrain.main(cfg, ctx)
    text.write_text("the cat sat on the mat\n" * 40)
    pretrain.main(cfg, ctx)
    (tmp_path / "b.txt").write_text("more")
    with pytest.raises(UserError, match="has changed"):
        pretrain.main(cfg, ctx)
    run.close()


def graded(rewards: list[float], tokens: int = 4) -> list[Rollout]:
    """One group per four rewards."""
    problem = Problem("gcd", "1", (Message("user", "q"),), "1")
    completion = Completion(tuple([9] * tokens), tuple([-0.1] * tokens), "stop")
    return [Rollout(problem, completion, r, "solved" if r else "wrong", prompt=(7,)) for r in rewards]


def test_advantages_are_rewards_less_the_groups_mean_and_even_groups_are_dropped() -> None:
    cfg = CONFIGS["rl"]
    assert isinstance(cfg, RLConfig)
    every, chosen = rl._with_advantages(graded([1, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 0, 1]), cfg)
    assert [r.advantage for r in chosen] == [0.75, -0.25, -0.25, -0.25, 0.25, 0.25, -0.75, 0.25]
    assert [r.advantage for r in every] == [0.75, -0.25, -0.25, -0.25, *[0] * 8, 0.25, 0.25, -0.75, 0.25]


def test_our_own_failures_are_neither_rewarded_nor_blamed() -> None:
    cfg = CONFIGS["rl"]
    assert isinstance(cfg, RLConfig)
    group = graded([1, 0, 0, 0])
    group[3] = replace(group[3], outcome="infrastructure")
    every, chosen = rl._with_advantages(group, cfg)
    assert [r.advantage for r in chosen] == pytest.approx([2 / 3, -1 / 3, -1 / 3])
    assert every == [*chosen, group[3]]


def test_answers_near_the_limit_cost() -> None:
    cfg = CONFIGS["rl"].model_copy(update={"max_tokens": 40, "overlong": 10, "overlong_cost": 0.5})
    assert isinstance(cfg, RLConfig)
    assert [rl._overlong(n, cfg) for n in (5, 30, 35, 40)] == [0, 0, 0.25, 0.5]
    long, short = graded([1], tokens=40), graded([1], tokens=5)
    _, chosen = rl._with_advantages([*long, *short, *short, *short], cfg)  # equal rewards, but not equally short
    assert [r.advantage for r in chosen] == pytest.approx([-0.375, 0.125, 0.125, 0.125])


def test_micro_batches_hold_every_answer_once_within_their_tokens() -> None:
    answers = [r for n in (4, 30, 9, 50, 2, 11) for r in graded([1], tokens=n)]
    parts = rl._micro(answers, 40, least=0)
    assert sorted(len(r.completion.tokens) for part in parts for r in part) == [2, 4, 9, 11, 30, 50]
    for part in parts:
        assert len(part) == 1 or sum(1 + len(r.completion.tokens) for r in part) <= 40
    joined = rl._micro(answers, 40, least=100)
    assert [len(part) for part in joined] == [*map(len, parts[:-2]), len(parts[-2]) + len(parts[-1])]
