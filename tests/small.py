"""Models small enough to build in milliseconds, one per way of being a model, and a tokenizer for them."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import torch

from mull.data.batch import Example
from mull.model.config import Llama3Rope, ModelConfig, Yarn
from mull.model.transformer import Transformer
from mull.text.chat import Chat
from mull.text.tokenizer import Tokenizer

VOCAB = 300
GQA = ModelConfig(vocab=VOCAB, width=32, layers=2, heads=4, kv_heads=2, head_dim=16, ffn=48, max_length=128)
MLA = ModelConfig(
    vocab=VOCAB, width=32, layers=2, heads=2, q_rank=24, kv_rank=16, nope_dim=8, rope_dim=8, v_dim=12, ffn=48,
    max_length=128,
)  # fmt: skip


def changed(cfg: ModelConfig, **changes: object) -> ModelConfig:
    """A copy with other values, checked like any configuration."""
    return ModelConfig(**{**cfg.model_dump(), **changes})


MOE = changed(MLA, layers=3, dense_layers=1, experts=8, active_experts=2, shared_experts=1, expert_ffn=16, mtp_layers=1)
MIXED = {"experts": 8, "active_experts": 2, "expert_ffn": 16}
SOFTMAX = MIXED | {"score": "softmax", "shared_experts": 0}
YARN = Yarn(factor=4.0, original_length=32, beta_fast=32.0, beta_slow=1.0, mscale=1.0, mscale_all_dim=1.0)

SHAPES: dict[str, ModelConfig] = {
    "mla": MLA,
    "mla, queries in one matrix": changed(MLA, q_rank=0),
    "mla, values wider than keys": changed(MLA, v_dim=24),
    "moe": MOE,
    "moe, no mtp, two dense": changed(MOE, mtp_layers=0, dense_layers=2),
    "moe, groups": changed(MOE, groups=4, active_groups=2, router_scale=2.5),
    "moe, two shared, not renormalised": changed(MOE, shared_experts=2, renormalise=False),
    "moe, tied": changed(MOE, tied=True),
    "moe, two mtp layers": changed(MOE, mtp_layers=2),
    "moe, yarn": changed(MOE, yarn=YARN),
    "yarn, no mscale": changed(MLA, yarn=YARN.model_copy(update={"mscale": 0.0, "mscale_all_dim": 0.0})),
    "yarn, mscales differ": changed(MLA, yarn=YARN.model_copy(update={"mscale": 0.7})),
    "llama": GQA,
    "llama, tied": changed(GQA, tied=True),
    "qwen2": changed(GQA, qkv_bias=True, tied=True),
    "gqa moe": changed(GQA, layers=3, dense_layers=1, experts=4, active_experts=2, shared_experts=1, expert_ffn=16),
    "gqa moe, half rotated, normed": changed(
        GQA, layers=3, dense_layers=1, **MIXED, qk_norm="head", qkv_bias=True, partial_rotary=0.5, mtp_layers=1
    ),
    "llama, biases, llama3": changed(
        GQA, qkv_bias=True, o_bias=True, llama3_rope=Llama3Rope(factor=4.0, original_length=32)
    ),
    "qwen2, windowed": changed(GQA, qkv_bias=True, window=7, windowed=(1,)),
    "qwen3": changed(GQA, qk_norm="head"),
    "qwen3 moe": changed(GQA, qk_norm="head", **SOFTMAX),
    "qwen3 moe, windowed": changed(GQA, qk_norm="head", **SOFTMAX, window=5, windowed=(0, 1), renormalise=False),
    "olmoe": changed(GQA, qk_norm="full", **SOFTMAX, head_dim=8, clip_qkv=2.0),
}


def model_of(cfg: ModelConfig, seed: int = 0, std: float = 0.2) -> Transformer:
    """A model whose every number is drawn, norms and biases too: nothing is hidden by ones and zeros."""
    model = Transformer(cfg.model_copy(update={"init_std": std})).initialise(seed)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if name.endswith("bias"):
                tensor.copy_(torch.empty(tensor.shape).normal_(0, 0.1, generator=generator))
            elif "norm" in name:
                tensor.copy_(torch.empty(tensor.shape).uniform_(0.5, 1.5, generator=generator))
    return model.eval()


def tokens_of(count: int, seed: int = 0, vocab: int = VOCAB) -> list[int]:
    draw = random.Random(seed)
    return [draw.randrange(5, vocab) for _ in range(count)]


def examples_of(*lengths: int, seed: int = 0, learnt: float = 1.0) -> list[Example]:
    """Examples of random tokens; each token is learnt with probability `learnt`, the last always."""
    draw = random.Random(seed)
    return [
        Example(tokens_of(n, seed * 1000 + i), [int(draw.random() < learnt) for _ in range(n - 1)] + [1])
        for i, n in enumerate(lengths)
    ]


TEXTS = [
    f"What is {a} + {b}? The answer is {a + b}.\nAnd then 'twas héllo, wörld 你好 🙂"
    for a in range(30)
    for b in (7, 81)
]


@cache
def chat() -> Chat:
    return Chat(Tokenizer.train(TEXTS, VOCAB))


@pytest.fixture(name="tmp_path")
def in_memory() -> Iterator[Path]:
    """Instead of pytest's, in memory where there is such a place: a checkpoint syncs, and a busy disk takes seconds."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        yield Path(folder)
