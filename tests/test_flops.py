"""Analytic counts against torch's counter, which watches what is really multiplied."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from small import SHAPES, chat, examples_of, model_of, tokens_of
from torch.utils.flop_counter import FlopCounterMode

import mull.model.attention
import mull.model.moe
from mull.data.batch import collate
from mull.engine.cache import Pool
from mull.engine.engine import LocalEngine
from mull.engine.pages import PAGE
from mull.model.config import PRESETS
from mull.model.flops import cache_bytes, decoding_flops, forward_flops, parameters, training_flops
from mull.model.transformer import Transformer, count_parameters
from mull.ops.attention import attend_plain
from mull.ops.experts import routed_plain
from mull.train.trainer import TrainConfig, Trainer
from mull.types import Request, Sampling

# Documents of one length: a counter sees what kernels compute, padding included; we count what is needed.
LENGTH, COUNT = 24, 6


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[FlopCounterMode]:
    """The plain twins, whose every product is a matmul: the counter has no formula for the CPU's fused attention
    and counts a grouped product as if each token met every expert. It has none for oneDNN's x W^T either, nor for a
    product that is added to what is there."""

    def one_dnn(x: torch.Size, weight: torch.Size, *_, **__) -> int:
        return 2 * x[0] * weight[0] * weight[1]

    def added(_: torch.Size, a: torch.Size, b: torch.Size, *__, **___) -> int:
        return 2 * a[0] * a[1] * b[1]

    known = {torch.ops.mkldnn._linear_pointwise: one_dnn, torch.ops.aten.addmm_: added}
    monkeypatch.setattr(mull.model.attention, "attend", lambda *given: attend_plain(*given[:5], given[6]))
    monkeypatch.setattr(mull.model.moe, "routed", lambda *given: routed_plain(*given[:5]))
    with FlopCounterMode(display=False, custom_mapping=known) as counter:
        yield counter


def spare(cfg, lengths: list[int], layers: int = 0, absorbed: bool = False) -> int:
    """What a plain product of all pairs computes beyond those that are needed."""
    pair = 2 * cfg.kv_rank + cfg.rope_dim if absorbed and cfg.latent else cfg.qk_dim + cfg.value_dim
    idle = 0
    for layer in range(layers or cfg.layers):
        reach = cfg.window_of(layer)
        idle += sum(n * n - sum(min(at + 1, reach or n) for at in range(n)) for n in lengths)
    return idle * 2 * cfg.heads * pair


@pytest.mark.parametrize("name", SHAPES)
def test_forward(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg, lengths = SHAPES[name], [LENGTH] * COUNT
    model, batch = model_of(cfg), collate(examples_of(*lengths))
    with torch.no_grad(), counted(monkeypatch) as counter:
        model.logits(model(batch.tokens_T, batch.documents)[batch.predict_N])
    want = forward_flops(cfg, lengths, len(batch.predict_N)) + spare(cfg, lengths)
    assert counter.get_total_flops() == pytest.approx(want, rel=0.02)


@pytest.mark.parametrize("name", SHAPES)
def test_training(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole optimiser step. AdamW and clipping multiply no matrices."""
    cfg, lengths = SHAPES[name], [LENGTH] * COUNT
    model, batch = model_of(cfg), collate(examples_of(*lengths))
    trainer = Trainer(model.train(), TrainConfig(), 10)
    with counted(monkeypatch) as counter:
        trainer.train_step([batch])
    want = training_flops(cfg, lengths, len(batch.predict_N)) + 3 * spare(cfg, lengths, cfg.layers + cfg.mtp_layers)
    assert counter.get_total_flops() == pytest.approx(want, rel=0.02)


@pytest.mark.parametrize("name", ["mla", "moe", "llama", "gqa moe"])
@pytest.mark.parametrize("made", [1, 3, 14])
def test_decoding(name: str, made: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the engine itself, whose windows are whole pages; a prompt's pairs are computed whole, and counted."""
    cfg, prompt = SHAPES[name], tokens_of(10)
    monkeypatch.setattr("mull.engine.decoder.whole", lambda length: -(-length // PAGE) * PAGE)
    monkeypatch.setattr("mull.engine.cache.whole", lambda length: -(-length // PAGE) * PAGE)
    engine = LocalEngine(model_of(cfg), chat(), max_rows=1)
    with counted(monkeypatch) as counter:
        (answer,) = engine.generate([Request(tuple(prompt), Sampling(max_tokens=made))])
    assert len(answer.tokens) == made
    want = decoding_flops(cfg, len(prompt), made) + spare(cfg, [len(prompt)], absorbed=True)
    assert counter.get_total_flops() == pytest.approx(want, rel=0.07)


@pytest.mark.parametrize("name", [*SHAPES, *PRESETS])
def test_parameters_are_those_of_the_model(name: str) -> None:
    cfg = (SHAPES | PRESETS)[name]
    counted_ = parameters(cfg)
    assert counted_.total + counted_.mtp == count_parameters(Transformer(cfg))
    idle = (cfg.experts - cfg.active_experts) * 3 * cfg.width * cfg.expert_ffn
    mixtures = sum(cfg.is_moe(layer) for layer in range(cfg.layers))
    assert counted_.total - counted_.active == idle * mixtures


@pytest.mark.parametrize("name", ["mla", "llama"])
def test_cache_bytes_are_those_of_the_cache(name: str) -> None:
    cfg = SHAPES[name]
    pool = Pool(cfg, torch.device("cpu"), torch.float32)
    pool.reserve(12)
    stored = sum(t.numel() * t.element_size() for layer in pool.store for t in layer)
    assert stored == cache_bytes(cfg) * 12 * PAGE


def test_the_published_models_sizes() -> None:
    """DeepSeek-V3: 671 B parameters, 37 B active, 70 KB of cache per token in bf16."""
    cfg = PRESETS["tiny-moe"].model_copy(
        update={
            "vocab": 129280, "width": 7168, "layers": 61, "heads": 128, "q_rank": 1536, "kv_rank": 512, "nope_dim": 128,
            "rope_dim": 64, "v_dim": 128, "ffn": 18432, "dense_layers": 3, "experts": 256, "active_experts": 8,
            "shared_experts": 1, "expert_ffn": 2048, "groups": 8, "active_groups": 4,
        }
    )  # fmt: skip
    counted_ = parameters(cfg)
    assert counted_.total == pytest.approx(671e9, rel=0.002)
    assert counted_.active == pytest.approx(37.55e9, rel=0.002)
    assert cache_bytes(cfg, element=2) == 70272
