"""The one loop: accumulation, exact resume, a stop before a broken loss is used, and that it learns at all."""

from __future__ import annotations

import math
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from small import MLA, MOE, SHAPES, examples_of, in_memory, model_of, tokens_of  # noqa: F401 - the fixture

from mull.data.batch import Batch, Example, Stream, collate
from mull.ledger import Ledger, Rates
from mull.model.flops import training_flops
from mull.model.transformer import Transformer
from mull.run import Run
from mull.train.losses import LossConfig
from mull.train.optim import OptimConfig
from mull.train.trainer import Limit, TrainConfig, Trainer
from mull.types import UserError


def trainer_of(shape: str = "moe", steps: int = 20, **cfg) -> Trainer:
    return Trainer(Transformer(SHAPES[shape]).initialise(0).train(), TrainConfig(**cfg), steps)


def lengths(seed: int) -> list[int]:
    return [5 + (seed * 7 + i * 13) % 20 for i in range(8)]


def source(i: int) -> Example:
    n = lengths(i // 8)[i % 8]
    return Example(tokens_of(n, i, 40), [1] * n)


def state_of(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: t.clone() for name, t in trainer.model.state_dict().items()}


@pytest.mark.parametrize("name", ["ce", "grpo", "forward_kl", "reverse_kl"])
def test_micro_batches_equal_one_batch(name: str) -> None:
    """Uneven micro-batches, partly masked: the same gradients, metrics and router biases as one large batch."""
    examples = examples_of(9, 30, 14, 4, 21, learnt=0.5)
    whole = collate(examples)
    g = torch.Generator().manual_seed(0)
    teacher = torch.randn(len(whole.target_N), MOE.vocab, generator=g).log_softmax(-1)
    logprob = -5.7 + 0.1 * torch.randn(len(whole.target_N), generator=g)
    advantage = torch.tensor([0.5, -0.5, 0.25, 1.0, -1.25])

    def batch(chosen: list[int]) -> Batch:
        part = collate([examples[i] for i in chosen])
        kept = torch.isin(whole.example_N, torch.tensor(chosen))
        part.teacher_NV, part.logprob_N = teacher[kept], logprob[kept]
        part.advantage_N = advantage[whole.example_N[kept]]
        return part

    results = []
    for parts in ([[0, 1, 2, 3, 4]], [[0, 1], [2], [3, 4]]):
        trainer = trainer_of(balance_weight=0.0, loss=LossConfig(name=name))  # type: ignore[arg-type]
        metrics = trainer.train_step([batch(p) for p in parts])
        grads = {key: p.grad.clone() for key, p in trainer.model.named_parameters() if p.grad is not None}
        results.append((metrics, grads, state_of(trainer)))
    (metrics, grads, after), (metrics2, grads2, after2) = results
    assert metrics == pytest.approx(metrics2, rel=1e-4, abs=1e-5)
    for key, grad in grads.items():
        torch.testing.assert_close(grads2[key], grad, atol=1e-6, rtol=1e-3, msg=key)
    assert torch.equal(after["blocks.1.ffn.router.bias"], after2["blocks.1.ffn.router.bias"])


@pytest.mark.parametrize("optimiser", ["adamw", "muon"])
def test_accumulated_batches_of_a_stream_equal_large_ones(optimiser: str) -> None:
    def same(i: int) -> Example:
        return Example(tokens_of(12, i, 40), [1] * 12)

    cfg, results = OptimConfig(name=optimiser), []  # type: ignore[arg-type]
    for stream in (Stream(same, 72), Stream(same, 24, accumulate=3)):
        trainer = trainer_of("llama", optim=cfg)
        losses = [trainer.train_step(stream.batches(step))["loss"] for step in range(4)]
        results.append((losses, stream.cursor, state_of(trainer)))
    (losses, cursor, after), (losses2, cursor2, after2) = results
    assert cursor == cursor2 == 24
    assert losses == pytest.approx(losses2, rel=1e-4)
    for key, tensor in after.items():
        torch.testing.assert_close(after2[key], tensor, atol=1e-4, rtol=1e-3, msg=key)


def test_sequence_balance_counts_micro_batches_by_their_learnt_tokens() -> None:
    """Equal shares: the balance loss of two halves is the mean of theirs, as for one batch of both."""
    examples = examples_of(12, 12, 12, 12)
    grads = []
    for parts in ([examples], [examples[:2], examples[2:]]):
        trainer = trainer_of(balance_weight=10.0, mtp_weight=0.0)
        trainer.train_step([collate(part) for part in parts])
        grads.append(trainer.model.get_parameter("blocks.1.ffn.router.weight").grad)
    torch.testing.assert_close(grads[0], grads[1], atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize("clip", [1e-3, 1e6])
def test_gradients_are_clipped_by_their_common_norm(clip: float) -> None:
    trainer = trainer_of(optim=OptimConfig(clip=clip))
    norm = trainer.train_step([collate(examples_of(20, 20))])["grad_norm"]
    after = math.sqrt(sum(float((p.grad**2).sum()) for p in trainer.model.parameters() if p.grad is not None))
    assert after == pytest.approx(min(norm, clip), rel=1e-3)


def test_metrics_are_means_per_predicted_token() -> None:
    trainer, batch = trainer_of("mla"), collate(examples_of(20, 20))
    with torch.no_grad():
        logits = trainer.model.logits(trainer.model(batch.tokens_T, batch.documents)[batch.predict_N])
        want = float(torch.nn.functional.cross_entropy(logits, batch.target_N))
    assert trainer.train_step([batch])["loss"] == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize("optimiser", ["adamw", "muon"])
def test_a_few_steps_learn_a_pattern(optimiser: str) -> None:
    cycle = Example([5 + i % 7 for i in range(40)], [1] * 40)
    trainer = trainer_of(steps=40, optim=OptimConfig(name=optimiser, lr=1e-2))  # type: ignore[arg-type]
    batch = collate([cycle] * 4)
    first, *_, last = (trainer.train_step([batch]) for _ in range(40))
    assert last["loss"] < 0.2 * first["loss"]
    assert last["mtp_loss_2"] < 0.5 * first["mtp_loss_2"]
    assert last["token_accuracy"] > 0.9


def fit(folder: Path, until: int, steps: int, **cfg) -> Trainer:
    """Train like a stage does, but stop dead behind step `until`."""

    class KilledError(Exception):
        pass

    trainer = trainer_of(steps=steps, checkpoint_every=2, **cfg)
    stream = Stream(source, 60)
    run = Run.open(folder, {"seed": 0}, quiet=True)
    try:
        if (found := trainer.restore(run.stage_dir("s"), run.say)) is not None:
            stream.cursor = found["cursor"]
        run.rewind("s", trainer.step)

        def after(step: int) -> None:
            if step == until < steps:
                raise KilledError

        with run.ledger.stage("s", "pretrain") as entry, suppress(KilledError):
            trainer.fit(run, "s", stream.batches, entry, after, stream.state)
    finally:
        run.close()
    return trainer


@pytest.mark.parametrize("optimiser", ["adamw", "muon"])
@pytest.mark.parametrize("killed", [1, 2, 5])
def test_interrupted_and_resumed_is_uninterrupted(optimiser: str, killed: int, tmp_path: Path) -> None:
    """Bit for bit: weights, router biases, optimiser states, and the metrics on disk but for their clocks."""
    cfg = {"optim": OptimConfig(name=optimiser, lr=1e-2)}  # type: ignore[arg-type]
    straight = fit(tmp_path / "a", 7, 7, **cfg)
    fit(tmp_path / "b", killed, 7, **cfg)
    broken = fit(tmp_path / "b", 7, 7, **cfg)
    assert straight.step == broken.step == 7
    for (name, a), b in zip(state_of(straight).items(), state_of(broken).values(), strict=True):
        assert torch.equal(a, b), name
    for one, two in zip(straight.optimisers, broken.optimisers, strict=True):
        for p, q in zip(straight.model.parameters(), broken.model.parameters(), strict=True):
            a, b = one.state.get(p, {}), two.state.get(q, {})
            assert a.keys() == b.keys()
            assert all(torch.equal(torch.as_tensor(a[key]), torch.as_tensor(b[key])) for key in a)

    def metrics(folder: Path) -> list[dict]:
        run = Run.open(folder, {"seed": 0}, quiet=True)
        lines = run.metrics("s")
        run.close()
        clocks = ("seconds", "time", "tokens_per_s", "at")
        return [{k: v for k, v in line.items() if k not in clocks} for line in lines]

    assert [line["step"] for line in metrics(tmp_path / "b")] == list(range(1, 8))
    assert metrics(tmp_path / "a") == metrics(tmp_path / "b")


def test_a_broken_loss_stops_before_it_is_used(tmp_path: Path) -> None:
    """The sentence names stage, step and the last good checkpoint; the weights are those of the step before."""
    trainer = trainer_of("mla", checkpoint_every=1)
    run = Run.open(tmp_path / "r", {"seed": 0}, quiet=True)
    kept: dict[str, torch.Tensor] = {}

    def batches(step: int) -> list[Batch]:
        if step == 2:
            kept.update(state_of(trainer))
            batch = collate(examples_of(12))
            with torch.no_grad():
                trainer.model.blocks[0].attention_norm.weight[3] = float("nan")
            return [batch]
        return [collate(examples_of(12, seed=step))]

    with (
        run.ledger.stage("s", "pretrain") as entry,
        pytest.raises(UserError, match=r"Stage s, step 3: the loss is nan.*step-00000002"),
    ):
        trainer.fit(run, "s", batches, entry)
    run.close()
    for name, tensor in state_of(trainer).items():
        if name != "blocks.0.attention_norm.weight":
            assert torch.equal(tensor, kept[name]), name


def test_without_a_checkpoint_the_sentence_says_so(tmp_path: Path) -> None:
    trainer = trainer_of("mla", optim=OptimConfig(lr=1e30))
    run = Run.open(tmp_path / "r", {"seed": 0}, quiet=True)
    with run.ledger.stage("s", "pretrain") as entry, pytest.raises(UserError, match=r"no checkpoint.*lower optim\.lr"):
        trainer.fit(run, "s", lambda step: [collate(examples_of(12, seed=step))], entry)
    run.close()


def test_a_step_beyond_a_limit_is_not_taken(tmp_path: Path) -> None:
    """Measured before the optimiser moves: weights, balance biases and metrics are those of the step before."""
    trainer = trainer_of("moe", checkpoint_every=1, loss=LossConfig(name="grpo"), optim=OptimConfig(lr=1e-9))
    trainer.limits = {"max_gap": Limit(0.01, "Look at the sampler.")}
    run = Run.open(tmp_path / "r", {"seed": 0}, quiet=True)
    kept: dict[str, torch.Tensor] = {}

    def batches(step: int) -> list[Batch]:
        kept.update(state_of(trainer))
        batch = collate(examples_of(12, seed=step))
        with torch.no_grad():
            hidden = trainer.model(batch.tokens_T, batch.documents)[batch.predict_N]
            logp = trainer.model.logits(hidden).log_softmax(-1).gather(1, batch.target_N[:, None])[:, 0]
        logp[4] -= 0.02 * (step == 2)
        batch.logprob_N, batch.advantage_N = logp, torch.ones_like(logp)
        return [batch]

    said = r"^Stage s, step 3: max_gap is 0\.02, more than 0\.01, .*step-00000002\. Look at the sampler\.$"
    with run.ledger.stage("s", "rl") as entry, pytest.raises(UserError, match=said):
        trainer.fit(run, "s", batches, entry)
    run.close()
    assert [line["step"] for line in run.metrics("s")] == [1, 2]
    for name, tensor in state_of(trainer).items():
        assert torch.equal(tensor, kept[name]), name


def test_the_bill_counts_tokens_and_flops(tmp_path: Path) -> None:
    trainer = trainer_of("mla", steps=2)
    run = Run.open(tmp_path / "r", {"seed": 0}, quiet=True)
    batch = collate(examples_of(12, 5, learnt=0.5))
    with Ledger(tmp_path / "l.jsonl", Rates()).stage("s", "pretrain") as entry:
        trainer.fit(run, "s", lambda step: [batch, batch], entry)
        assert entry.tokens == 2 * 2 * 17
        assert entry.flops == 4 * training_flops(MLA, [12, 5], len(batch.target_N))
    run.close()


def test_metrics_of_every_step_and_loads_of_some(tmp_path: Path) -> None:
    trainer = trainer_of("moe", steps=5, load_every=2)
    run = Run.open(tmp_path / "r", {"seed": 0}, quiet=True)
    with run.ledger.stage("s", "pretrain") as entry:
        trainer.fit(run, "s", lambda step: [collate(examples_of(12, seed=step))], entry)
    lines = run.metrics("s")
    run.close()
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5]
    assert ["expert_load" in line for line in lines] == [False, True, False, True, True]
    assert all(sum(row) == pytest.approx(1, abs=1e-3) for row in lines[1]["expert_load"])


def test_a_model_of_random_weights_knows_nothing() -> None:
    model, batch = model_of(MLA, std=0.001), collate(examples_of(50))
    trainer = Trainer(model.train(), TrainConfig(), 1)
    assert trainer.train_step([batch])["loss"] == pytest.approx(math.log(MLA.vocab), rel=0.02)
