"""The same model on a GPU: fp32 within rounding of the CPU, bf16 close, training and decoding that work."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small import SHAPES, chat, examples_of, model_of, tokens_of

from mull.data.batch import collate
from mull.engine.engine import LocalEngine
from mull.model.transformer import Transformer
from mull.ops.attention import Documents
from mull.ops.experts import routed, routed_plain
from mull.train.optim import OptimConfig
from mull.train.trainer import TrainConfig, Trainer
from mull.types import Request, Sampling

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
LENGTHS = [7, 1, 19, 12]


@pytest.fixture(autouse=True)
def exact_matmuls():
    """TF32 rounds fp32 products to 10 bits; here fp32 means fp32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


def states(model: Transformer, device: str) -> torch.Tensor:
    model.to(device)
    tokens = torch.tensor(tokens_of(sum(LENGTHS)), device=device)
    with torch.inference_mode():
        return model.logits(model(tokens, Documents(LENGTHS, device))).cpu()


@pytest.mark.parametrize("name", ["mla", "qwen2", "moe", "moe, groups", "moe, yarn", "gqa moe"])
def test_fp32_equals_the_cpu(name: str) -> None:
    model = model_of(SHAPES[name])
    torch.testing.assert_close(states(model, "cuda"), states(model, "cpu"), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("name", ["mla", "moe"])
def test_a_training_step_in_bf16_is_near_the_cpus(name: str) -> None:
    results = []
    for device in ("cpu", "cuda"):
        model = Transformer(SHAPES[name]).initialise(0).to(device).train()
        trainer = Trainer(model, TrainConfig(), 10)
        results.append([trainer.train_step([collate(examples_of(20, 31, seed=s), device)]) for s in range(4)])
    for cpu, cuda in zip(*results, strict=True):
        assert cuda["loss"] == pytest.approx(cpu["loss"], rel=0.01)
        assert cuda["grad_norm"] == pytest.approx(cpu["grad_norm"], rel=0.1)


def test_grouped_experts_equal_the_loop_in_bf16() -> None:
    g = torch.Generator().manual_seed(0)
    shapes = (64, 64), (8, 64, 64), (8, 64, 32)
    x, gate_up, down = (torch.randn(s, generator=g).to("cuda", torch.bfloat16) for s in shapes)
    expert = torch.stack([torch.randperm(8, generator=g)[:2] for _ in range(64)]).cuda()
    weight = torch.rand(64, 2, generator=g).cuda()
    fast, plain = (f(x, expert, weight, gate_up, down) for f in (routed, routed_plain))
    torch.testing.assert_close(fast, plain, atol=1.0, rtol=0.05)


def test_decoding_agrees_with_scoring() -> None:
    """Both in bf16 under the same autocast; the cache is bf16 too, so only closely."""
    engine = LocalEngine(model_of(SHAPES["moe"], std=0.1).to("cuda"), chat(), max_rows=4)
    asked = [Request(tuple(tokens_of(3 + i, i)), Sampling(max_tokens=12), (i,)) for i in range(7)]
    answers = engine.generate(asked)
    assert [a.tokens for a in answers] == [a.tokens for a in engine.generate(asked)]
    scores = engine.score([[*r.tokens, *a.tokens] for r, a in zip(asked, answers, strict=True)])
    for r, a, score in zip(asked, answers, scores, strict=True):
        assert list(a.logprobs) == pytest.approx(score[len(r.tokens) :], abs=0.1)


def test_fp32_decoding_agrees_with_the_trainer_as_closely_as_rl_asks() -> None:
    engine = LocalEngine(model_of(SHAPES["moe"], std=0.1).to("cuda"), chat(), max_rows=4, fp32=True)
    asked = [Request(tuple(tokens_of(3 + i, i)), Sampling(max_tokens=12), (i,)) for i in range(7)]
    answers = engine.generate(asked)
    scores = engine.score([[*r.tokens, *a.tokens] for r, a in zip(asked, answers, strict=True)])
    for r, a, score in zip(asked, answers, scores, strict=True):
        assert list(a.logprobs) == pytest.approx(score[len(r.tokens) :], abs=1e-3)


@pytest.mark.parametrize("optimiser", ["adamw", "muon"])
def test_training_goes_on_from_a_checkpoint(optimiser: str, tmp_path: Path) -> None:
    def trainer_of(seed: int) -> Trainer:
        model = Transformer(SHAPES["moe"]).initialise(seed).to("cuda").train()
        return Trainer(model, TrainConfig(optim=OptimConfig(name=optimiser)), 10)  # type: ignore[arg-type]

    def step(trainer: Trainer, seed: int) -> float:
        return trainer.train_step([collate(examples_of(20, 31, seed=seed), "cuda")])["loss"]

    first, second = trainer_of(0), trainer_of(1)
    for seed in range(2):
        step(first, seed)
    first.save(tmp_path, {})
    assert second.restore(tmp_path) == {}
    for seed in range(2, 5):
        assert step(second, seed) == pytest.approx(step(first, seed), rel=1e-2)
