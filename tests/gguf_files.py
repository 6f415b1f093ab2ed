"""Models of each of llama.cpp's architectures, and GGUF files of them to write, change and compare."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from small import GQA, MLA, MOE, SOFTMAX, YARN, changed, chat
from torch import Tensor

from mull import hub
from mull.config import read_toml
from mull.data.batch import Example, collate
from mull.formats.gguf import read_header
from mull.model.config import PRESETS, Llama3Rope, ModelConfig, Yarn
from mull.model.gguf_write import write_gguf
from mull.model.transformer import Transformer

LLAMA = changed(GQA, width=64, ffn=96)
QWEN2 = changed(LLAMA, qkv_bias=True)
QWEN3 = changed(LLAMA, qk_norm="head")
QWEN3MOE = changed(QWEN3, **(SOFTMAX | {"expert_ffn": 32, "active_experts": 3}))
DEEPSEEK = changed(MOE, width=64, mtp_layers=0)
DEMO = changed(  # the model of `make demo`, at the vocabulary of the tests
    ModelConfig(**read_toml(Path(__file__).parents[1] / "src/mull/recipes/demo.toml")["model"]), vocab=300
)
SMALL_MOE = changed(PRESETS["small-moe"], vocab=300)
MAGNIFIED = Yarn(factor=4.0, original_length=32, magnitude=1.2)
NO_MSCALE = Yarn(factor=4.0, original_length=32)
LLAMA3 = Llama3Rope(factor=8.0, original_length=64)

WRITTEN: dict[str, ModelConfig] = {
    "llama": LLAMA,
    "llama, tied": changed(LLAMA, tied=True),
    "llama, biases": changed(LLAMA, qkv_bias=True, o_bias=True),
    "llama, wide heads, eps and theta": changed(LLAMA, head_dim=32, eps=1e-5, rope_theta=5e5),
    "llama, llama3 rope": changed(LLAMA, head_dim=32, llama3_rope=LLAMA3),
    "llama, linear rope": changed(LLAMA, linear_rope=4.0),
    "llama, yarn": changed(LLAMA, yarn=NO_MSCALE),
    "llama, yarn, magnitude": changed(LLAMA, yarn=MAGNIFIED),
    "llama, yarn, mscales": changed(LLAMA, yarn=Yarn(factor=4.0, original_length=32, mscale=1.0, mscale_all_dim=0.5)),
    "qwen2": QWEN2,
    "qwen2, tied, yarn": changed(QWEN2, tied=True, yarn=NO_MSCALE),
    "qwen3": QWEN3,
    "qwen3, one key head, tied": changed(QWEN3, kv_heads=1, tied=True),
    "qwen3moe": QWEN3MOE,
    "qwen3moe, tied, yarn": changed(QWEN3MOE, tied=True, yarn=NO_MSCALE),
    "deepseek2": DEEPSEEK,
    "deepseek2, tied": changed(DEEPSEEK, tied=True),
    "deepseek2, dense": changed(MLA, width=64),
    "deepseek2, queries in one matrix": changed(DEEPSEEK, q_rank=0),
    "deepseek2, values wider than keys": changed(DEEPSEEK, v_dim=24),
    "deepseek2, groups": changed(DEEPSEEK, groups=4, active_groups=2, router_scale=2.5),
    "deepseek2, two shared, not renormalised": changed(DEEPSEEK, shared_experts=2, renormalise=False),
    "deepseek2, yarn": changed(DEEPSEEK, yarn=YARN),
    "deepseek2, yarn of DeepSeek-V2": changed(
        DEEPSEEK, yarn=Yarn(factor=40.0, original_length=32, mscale=0.707, mscale_all_dim=0.707)
    ),
    "deepseek2, yarn, no mscale": changed(DEEPSEEK, yarn=NO_MSCALE),
    "deepseek2, yarn, mscales differ": changed(DEEPSEEK, yarn=YARN.model_copy(update={"mscale": 0.7})),
    "deepseek2, yarn, magnitude": changed(DEEPSEEK, yarn=MAGNIFIED),
    "the demo's model": DEMO,
    "small-moe": SMALL_MOE,
}


def written(folder: Path, model: Transformer, dtype: Any = "f32") -> Path:
    path = folder / f"{dtype}.gguf"
    path.unlink(missing_ok=True)
    write_gguf(path, model, chat(), dtype)
    return path


def same_bits(one: Transformer, other: Transformer) -> bool:
    ones, others = one.state_dict(), other.state_dict()
    bits = {name: tensor.view(torch.int32) for name, tensor in others.items()}
    return ones.keys() == others.keys() and all(torch.equal(ones[name].view(torch.int32), bits[name]) for name in ones)


def logprobs(model: Transformer, ids: list[int]) -> Tensor:
    batch = collate([Example(ids, [1] * len(ids))])
    with torch.no_grad():
        return model.logits(model(batch.tokens_T, batch.documents)).log_softmax(dim=-1)


def rewritten(path: Path, change: Callable[[dict[str, Any], dict[str, Any]], None]) -> Path:
    """A copy whose metadata and tensors ({name: array, or (kind, bytes)}) `change` has changed in place."""
    header, raw = read_header(path), np.fromfile(path, np.uint8)
    metadata = dict(header.metadata)
    tensors: dict[str, Any] = {
        name: raw[info.offset : info.offset + info.bytes].view(np.float32).reshape(info.shape).copy()
        for name, info in header.tensors.items()
    }
    change(metadata, tensors)
    out = path.with_name("rewritten.gguf")
    writer = gguf.GGUFWriter(out, metadata.pop("general.architecture"))
    for key, value in metadata.items():
        kind = gguf.GGUFValueType.get_type(value) if not isinstance(value, int) or isinstance(value, bool) else None
        writer.add_key_value(key, value, kind or gguf.GGUFValueType.UINT32)
    for name, value in tensors.items():
        if isinstance(value, tuple):
            writer.add_tensor(name, value[1], raw_dtype=value[0])
        else:
            writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


QUESTIONS = (
    "What is the capital of France?", "Write a haiku about the sea.", "Explain why the sky is blue.",
    "Who wrote Hamlet?", "List three prime numbers.", "Translate 'good morning' into Spanish.", "What is 12 * 34?",
    "How do I boil an egg?",
    "Describe a cat in one sentence.", "What is photosynthesis?", "Name the planets of the solar system.",
    "Give me a recipe for pancakes.", "What does HTTP stand for?", "Tell me a joke.", "What is a binary tree?",
    "Summarise the plot of Romeo and Juliet.", "How far is the moon?", "What is the largest ocean?",
    "Write a Python function that adds two numbers.", "Why do leaves fall in autumn?",
)  # fmt: skip


@pytest.fixture(name="smollm2", scope="module")
def published() -> Path:
    path = hub.resolve("smollm2")
    if path is None:
        pytest.skip("needs SmolLM2 in mull's cache: mull pull smollm2")
    return path
