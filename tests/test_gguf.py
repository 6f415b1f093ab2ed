"""GGUF models, in and out: what is written comes back, llama.cpp and transformers compute the same, and what mull does
not know it refuses by name."""

from __future__ import annotations

import copy
import json
import math
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from hypothesis import given, settings
from hypothesis import strategies as st
from llamacpp import LlamaCpp, limit_to_speakable, prompts
from small import GQA, MLA, MOE, SHAPES, SOFTMAX, YARN, changed, chat, in_memory, model_of, tokens_of  # noqa: F401
from test_weights import MEASURE
from torch import Tensor

from mull.config import read_toml
from mull.data.batch import Example, collate
from mull.engine.engine import LocalEngine
from mull.formats.gguf import Header, TensorInfo, read_header
from mull.model.config import PRESETS, Llama3Rope, ModelConfig, Yarn
from mull.model.gguf import config_of, fill
from mull.model.gguf_write import _factors, architecture_of, write_gguf
from mull.model.layers import rotary_frequencies, rotary_magnitude, softmax_scale
from mull.model.transformer import Transformer
from mull.model.weights import load_model
from mull.text.chat import Chat
from mull.text.tokenizer import SMALLEST, Tokenizer
from mull.types import Request, Sampling, UserError

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
REFUSED: dict[str, tuple[ModelConfig, str]] = {
    "olmoe": (SHAPES["olmoe"], "the family olmoe cannot"),
    "glm4_moe": (SHAPES["gqa moe"], "the family glm4_moe cannot"),
    "windows": (SHAPES["qwen2, windowed"], "without a sliding window"),
    "qwen3 with biases": (changed(QWEN3, qkv_bias=True, o_bias=True), "has no biases"),
    "qwen3moe, not renormalised": (changed(QWEN3MOE, renormalise=False), "always renormalises"),
    "qwen3moe, dense layers": (changed(QWEN3MOE, dense_layers=1), "has no dense layers"),
    "qwen2 with llama3 rope": (changed(QWEN2, llama3_rope=LLAMA3), "has no Llama 3 rope scaling"),
    "yarn between pairs": (changed(LLAMA, yarn=NO_MSCALE.model_copy(update={"truncate": False})), "whole pairs only"),
    "yarn with other betas": (changed(LLAMA, yarn=NO_MSCALE.model_copy(update={"beta_slow": 2.0})), "beta_slow of 1"),
    "yarn that shrinks": (changed(LLAMA, yarn=NO_MSCALE.model_copy(update={"factor": 0.5})), "factors below 1"),
    "deepseek2, another eps": (changed(DEEPSEEK, eps=1e-5), "one eps for all norms"),
    "deepseek2, linear rope": (changed(DEEPSEEK, linear_rope=2.0), "scales attention too"),
    "deepseek2 of 27 layers": (changed(DEEPSEEK, layers=27), "of 27 layers has no q_rank"),
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


# what is written comes back


@pytest.mark.parametrize("name", WRITTEN)
def test_what_is_written_comes_back(name: str, tmp_path: Path) -> None:
    cfg = WRITTEN[name]
    model = model_of(cfg)
    path = written(tmp_path, model)
    back = load_model(path)
    assert same_bits(model, back)
    assert (back.head.weight is back.embed.weight) == cfg.tied
    left_out = {"init_std", "yarn"} | (set() if cfg.experts else {"active_experts", "shared_experts", "expert_ffn"})
    ours, theirs = (one.model_dump(exclude=left_out | {"kv_heads" if cfg.latent else ""}) for one in (cfg, back.cfg))
    if cfg.latent:
        ours.pop("head_dim"), theirs.pop("head_dim")
    else:
        for key in ("nope_dim", "rope_dim", "v_dim"):
            ours.pop(key), theirs.pop(key)
    assert ours == theirs
    assert torch.equal(rotary_frequencies(cfg), rotary_frequencies(back.cfg))
    assert math.isclose(softmax_scale(cfg), softmax_scale(back.cfg), rel_tol=1e-6)
    assert math.isclose(rotary_magnitude(cfg.yarn), rotary_magnitude(back.cfg.yarn), rel_tol=1e-6)


def test_published_yarn_comes_back_as_it_is_published(tmp_path: Path) -> None:
    for name in ("llama, yarn", "deepseek2, yarn", "deepseek2, yarn of DeepSeek-V2", "deepseek2, yarn, no mscale"):
        path = written(tmp_path, model_of(WRITTEN[name]))
        assert config_of(read_header(path)).yarn == WRITTEN[name].yarn


@pytest.mark.parametrize("name", ["moe", "moe, two mtp layers"])
def test_mtp_layers_are_left_out(name: str, tmp_path: Path) -> None:
    back = load_model(written(tmp_path, model_of(SHAPES[name])))
    assert back.cfg.mtp_layers == 0
    assert logprobs(back, tokens_of(9)).equal(logprobs(model_of(SHAPES[name]), tokens_of(9)))


@pytest.mark.parametrize("name", REFUSED)
def test_what_llama_cpp_computes_otherwise_is_not_written(name: str, tmp_path: Path) -> None:
    cfg, said = REFUSED[name]
    with pytest.raises(UserError, match=said):
        write_gguf(tmp_path / "none.gguf", Transformer(cfg), chat())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", ["f16", "bf16", "q8_0"])
def test_other_types_of_numbers(dtype: str, tmp_path: Path) -> None:
    """Matrices in the type that is asked for; norms, biases and routers, and rows that are no blocks, in their own."""
    model = model_of(changed(DEEPSEEK, v_dim=16, expert_ffn=32, ffn=64))
    path = written(tmp_path, model, dtype)
    tensors = read_header(path).tensors
    assert tensors["blk.0.attn_norm.weight"].type == "F32"
    assert tensors["blk.1.ffn_gate_inp.weight"].type == "F32"
    assert tensors["blk.1.exp_probs_b.bias"].type == "F32"
    assert tensors["blk.1.ffn_gate_exps.weight"].type == dtype.upper()
    assert tensors["blk.1.attn_q_b.weight"].type == ("F16" if dtype == "q8_0" else dtype.upper())  # rows of 24
    back, state = load_model(path).state_dict(), model.state_dict()
    error = {"f16": 2**-11, "bf16": 2**-8, "q8_0": 2**-7}[dtype]
    for name, tensor in state.items():
        assert (back[name] - tensor).abs().max() <= error * tensor.abs().max(), name
    kept = "blocks.1.ffn.router.weight", "norm.weight"
    assert all(torch.equal(back[name], state[name]) for name in kept)


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_text("mine")
    with pytest.raises(UserError, match="exists already"):
        write_gguf(path, Transformer(LLAMA), chat())
    assert path.read_text() == "mine"


@pytest.mark.parametrize(
    ("number", "dtype", "said"),
    [
        (1e5, "f16", "numbers that F16 cannot"),
        (1e8, "q8_0", "numbers that Q8_0 cannot"),
        (math.nan, "f32", "numbers that F32 cannot"),
    ],
)
def test_numbers_that_a_type_cannot_hold(number: float, dtype: Any, said: str, tmp_path: Path) -> None:
    model = model_of(LLAMA)
    with torch.no_grad():
        model.blocks[1].ffn.down.weight[0, 0] = number  # pyright: ignore
    with pytest.raises(UserError, match=rf"blk\.1\.ffn_down\.weight holds {said}"):
        write_gguf(tmp_path / "none.gguf", model, chat(), dtype)
    assert not list(tmp_path.iterdir())


def test_a_tokenizer_without_merges_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no merges"):
        write_gguf(tmp_path / "none.gguf", Transformer(LLAMA), Chat(Tokenizer.train([], SMALLEST)))


def test_a_failure_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gguf.GGUFWriter, "write_tensor_data", full)
    with pytest.raises(OSError, match="No space"):
        write_gguf(tmp_path / "none.gguf", Transformer(LLAMA), chat())
    assert not list(tmp_path.iterdir())


# llama.cpp computes the same


@pytest.mark.parametrize("name", WRITTEN)
def test_llama_cpp_gives_the_same_probabilities(name: str, tmp_path: Path) -> None:
    """Every token's, at every step of a greedy continuation."""
    model = limit_to_speakable(model_of(WRITTEN[name], std=0.3))
    other = LlamaCpp(written(tmp_path, model))
    for prompt in prompts(2, length=30):
        said = other.greedy(prompt, 8, probabilities=300)
        assert len(said.tokens) == 8
        ours = logprobs(model, prompt + said.tokens)[len(prompt) - 1 :]
        for row, theirs in zip(ours, said.logprobs, strict=False):
            found = torch.tensor([theirs.get(i, -math.inf) for i in range(300)])
            seen = found > -20
            assert seen.sum() > 100
            assert (row - found)[seen].abs().max() < 5e-4


def decided(model: Transformer, count: int, length: int, rounding: float) -> dict[int, list[int]]:
    """Of prompts(3 * count), `count` greedy continuations that stay when all weights move by a share of `rounding`.

    Where an expert or a token leads by less, which one it is is up to the order of sums.
    """
    requests = [Request(tuple(prompt), Sampling(max_tokens=length, temperature=0.0)) for prompt in prompts(3 * count)]
    answers = [answer.tokens for answer in LocalEngine(model, chat()).generate(requests)]
    same = [True] * len(answers)
    for seed in range(3):
        moved, draw = copy.deepcopy(model), torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for weight in moved.parameters():
                weight.mul_(1 + rounding * (2 * torch.rand(weight.shape, generator=draw) - 1))
        others = LocalEngine(moved, chat()).generate(requests)
        same = [kept and answer == other.tokens for kept, answer, other in zip(same, answers, others, strict=True)]
    return dict([(i, list(answer)) for i, answer in enumerate(answers) if same[i]][:count])


@pytest.mark.parametrize(("dtype", "rounding"), [("f32", 2**-20), ("f16", 2**-10)], ids=["f32", "f16"])
@pytest.mark.parametrize("cfg", [LLAMA, QWEN3MOE, DEEPSEEK, DEMO], ids=["llama", "qwen3moe", "deepseek2", "demo"])
def test_llama_cpp_gives_the_same_tokens_for_20_prompts(
    cfg: ModelConfig, dtype: str, rounding: float, tmp_path: Path
) -> None:
    """mull runs what it loads from the file; llama.cpp rounds activations to f16 where weights are."""
    path = written(tmp_path, limit_to_speakable(model_of(cfg, std=0.3)), dtype)
    kept = decided(load_model(path), 20, 12, rounding)
    assert len(kept) == 20
    other, asked = LlamaCpp(path), prompts(60)
    for i, tokens in kept.items():
        assert other.greedy(asked[i], 12).tokens == tokens


# transformers computes the same, where it reads an architecture's keys (no rope scaling, no biases but qwen2's)


@pytest.mark.parametrize("dtype", ["f32", "q8_0"])
@pytest.mark.parametrize(
    "cfg",
    [
        LLAMA, changed(LLAMA, tied=True), changed(LLAMA, head_dim=32), QWEN2,
        changed(QWEN3, head_dim=128), changed(QWEN3MOE, head_dim=128, expert_ffn=768),
    ],
    ids=["llama", "llama, tied", "llama, wide heads", "qwen2", "qwen3", "qwen3moe"],
)  # fmt: skip
def test_transformers_reads_the_same_model(cfg: ModelConfig, dtype: str, tmp_path: Path) -> None:
    pytest.importorskip("accelerate", reason="transformers reads no GGUF file without accelerate")
    from transformers import AutoModelForCausalLM

    path = written(tmp_path, model_of(cfg), dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name).eval()
    ids = tokens_of(40)
    with torch.no_grad():
        expected = theirs(torch.tensor([ids])).logits[0].log_softmax(dim=-1)
    assert (logprobs(load_model(path), ids) - expected).abs().max() < 2e-4


# files of others


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


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One written file of each architecture, to be read only."""
    folder, found = tmp_path_factory.mktemp("gguf"), {}
    for cfg in (LLAMA, QWEN2, QWEN3, QWEN3MOE, DEEPSEEK):
        name = architecture_of(cfg)
        found[name] = folder / f"{name}.gguf"
        write_gguf(found[name], model_of(cfg), chat())
    return found


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_0", "Q8_0", "BF16", "F16"])
@pytest.mark.parametrize("cfg", [LLAMA, QWEN3MOE, DEEPSEEK], ids=["llama", "qwen3moe", "deepseek2"])
def test_blocks_are_put_where_plain_numbers_are(kind: str, cfg: ModelConfig, tmp_path: Path) -> None:
    """Rows that are permuted, transposed, stacked and cut in two: the same model as from what the library unpacks."""
    latent = ("q_rank", "kv_rank", "nope_dim", "rope_dim", "v_dim") if cfg.latent else ()
    sizes = dict.fromkeys((*latent, "expert_ffn"), 32)
    path = written(tmp_path, model_of(changed(cfg, **sizes, ffn=64)))

    def pack(metadata: dict[str, Any], tensors: dict[str, Any]) -> None:
        for name, array in tensors.items():
            if array.ndim > 1:
                tensors[name] = (Kind[kind], gguf.quantize(array, Kind[kind]))

    def pack_and_unpack(metadata: dict[str, Any], tensors: dict[str, Any]) -> None:
        for name, array in tensors.items():
            if array.ndim > 1:
                tensors[name] = gguf.dequantize(gguf.quantize(array, Kind[kind]), Kind[kind]).reshape(array.shape)

    packed = load_model(rewritten(path, pack))
    assert same_bits(packed, load_model(rewritten(path, pack_and_unpack)))
    assert not same_bits(packed, load_model(path))


def test_key_and_value_parts_in_one_tensor(files: dict[str, Path]) -> None:
    """As files of before 2025 have it."""

    def join(metadata: dict[str, Any], tensors: dict[str, Any]) -> None:
        for layer in range(DEEPSEEK.layers):
            keys, values = (tensors.pop(f"blk.{layer}.attn_{name}_b.weight") for name in "kv")
            joined = np.concatenate((keys.transpose(0, 2, 1), values), axis=1)
            tensors[f"blk.{layer}.attn_kv_b.weight"] = joined.reshape(-1, DEEPSEEK.kv_rank)
        for name in ("key", "value"):
            metadata[f"deepseek2.attention.{name}_length"] = metadata.pop(f"deepseek2.attention.{name}_length_mla")
        metadata["deepseek2.attention.head_count_kv"] = DEEPSEEK.heads

    whole = load_model(files["deepseek2"])
    assert same_bits(whole, load_model(rewritten(files["deepseek2"], join)))


def test_a_balancing_bias_that_is_not_there_is_zero(files: dict[str, Path]) -> None:
    def drop(metadata: dict[str, Any], tensors: dict[str, Any]) -> None:
        for layer in (1, 2):
            del tensors[f"blk.{layer}.exp_probs_b.bias"]

    whole, state = load_model(files["deepseek2"]), load_model(rewritten(files["deepseek2"], drop)).state_dict()
    for name, tensor in whole.state_dict().items():
        assert torch.equal(state[name], torch.zeros_like(tensor) if name.endswith("router.bias") else tensor)


@pytest.mark.parametrize(
    ("factor", "length", "high", "theta", "width"),
    [(8.0, 8192, 4.0, 5e5, 128), (32.0, 8192, 4.0, 5e5, 64), (4.0, 32, 4.0, 1e4, 16), (16.0, 131072, 2.0, 1e6, 128)],
)
def test_published_llama3_scaling_is_recovered(
    factor: float, length: int, high: float, theta: float, width: int, tmp_path: Path
) -> None:
    rope = Llama3Rope(factor=factor, original_length=length, high_freq_factor=high)
    cfg = changed(LLAMA, head_dim=width, rope_theta=theta, llama3_rope=rope)
    path = written(tmp_path, Transformer(cfg))
    assert config_of(read_header(path)).llama3_rope == rope


@settings(max_examples=25, deadline=None)
@given(
    factor=st.floats(1.5, 64), length=st.integers(64, 2**18), high=st.floats(1.5, 16), theta=st.floats(1e3, 1e7),
    pairs=st.integers(4, 64),
)  # fmt: skip
def test_any_llama3_scaling_is_computed_or_refused(
    factor: float, length: int, high: float, theta: float, pairs: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    factor, high, theta = (float(f"{value:.3g}") for value in (factor, high, theta))
    rope = Llama3Rope(factor=factor, original_length=length, high_freq_factor=high)
    cfg = changed(LLAMA, head_dim=2 * pairs, rope_theta=theta, llama3_rope=rope, layers=1)
    path = written(tmp_path_factory.getbasetemp(), Transformer(cfg))
    try:
        found = config_of(read_header(path))
    except UserError as error:
        assert "rope_freqs" in str(error)  # noqa: PT017 - either is right
        return
    torch.testing.assert_close(rotary_frequencies(found), rotary_frequencies(cfg), rtol=3e-6, atol=0)


def test_other_rope_factors_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path, Transformer(changed(LLAMA, llama3_rope=LLAMA3)))

    def bend(metadata: dict[str, Any], tensors: dict[str, Any]) -> None:
        tensors["rope_freqs.weight"] = np.linspace(1, 3, 8, dtype=np.float32) ** 2

    def none(metadata: dict[str, Any], tensors: dict[str, Any]) -> None:
        tensors["rope_freqs.weight"][:] = 1

    with pytest.raises(UserError, match="not those of Llama 3"):
        config_of(read_header(rewritten(path, bend)))
    assert config_of(read_header(rewritten(path, none))).llama3_rope is None


@settings(max_examples=100, deadline=None)
@given(
    factor=st.floats(1.1, 64), mscale=st.sampled_from([0.0, 0.5, 0.707, 1.0]),
    all_dim=st.sampled_from([0.0, 0.5, 0.707, 1.0]), magnitude=st.sampled_from([0.0, 0.8, 1.0, 1.5]),
)  # fmt: skip
def test_any_yarn_means_the_same_in_llama_cpp_s_terms(
    factor: float, mscale: float, all_dim: float, magnitude: float
) -> None:
    """Its own formulas (llama-context.cpp, deepseek2.cpp) on what is written give our scales of rotation and logits."""
    yarn = Yarn(factor=factor, original_length=32, mscale=mscale, mscale_all_dim=all_dim, magnitude=magnitude)
    cfg = changed(DEEPSEEK, yarn=yarn)
    given_, weight = _factors(cfg, yarn)
    log = 0.1 * math.log(factor)
    turned = given_ * (1.0 if weight else 1 + log)
    assert math.isclose(turned, rotary_magnitude(yarn), rel_tol=1e-6)
    assert math.isclose((turned * (1 + weight * log)) ** 2 * cfg.qk_dim**-0.5, softmax_scale(cfg), rel_tol=1e-6)


# what mull does not run is refused by name

KEYS: dict[str, tuple[str, str, Any, str]] = {  # architecture, key, value, what is said
    "another architecture": ("llama", "general.architecture", "gemma3", "'gemma3' is not supported"),
    "a typo": ("llama", "general.architecture", "lama", "Did you mean 'llama'"),
    "no architecture": ("llama", "general.architecture", None, "architecture 'None' is not supported"),
    "no width": ("llama", "llama.embedding_length", None, "lacks the key llama.embedding_length"),
    "a width in words": ("llama", "llama.embedding_length", "wide", "embedding_length = 'wide' is not supported"),
    "a negative width": ("llama", "llama.embedding_length", -64, "embedding_length = -64"),
    "widths of each layer": ("llama", "llama.feed_forward_length", [96, 96], "= .* a whole number is"),
    "no heads": ("llama", "llama.attention.head_count", 0, "of 0 heads"),
    "a million layers": ("llama", "llama.block_count", 10**6, "announces 1000000 layers"),
    "one more layer": ("llama", "llama.block_count", 3, "lacks the tensor blk.2.attn_norm.weight"),
    "one layer less": ("llama", "llama.block_count", 1, "'blk.1.attn_norm.weight', for which"),
    "eps of no number": ("llama", "llama.attention.layer_norm_rms_epsilon", math.nan, "rms_epsilon = nan"),
    "theta beyond fp32": ("llama", "llama.rope.freq_base", 1e300, "freq_base = 1e\\+300"),
    "part of a head turned": ("llama", "llama.rope.dimension_count", 8, "dimension_count = 8 is not supported; 16 is"),
    "values narrower than keys": ("llama", "llama.attention.value_length", 8, "value_length = 8"),
    "a window": ("qwen2", "qwen2.attention.sliding_window", 4096, "sliding_window = 4096"),
    "no causal mask": ("qwen2", "qwen2.attention.causal", False, "causal = False"),
    "longrope": ("llama", "llama.rope.scaling.type", "longrope", "type = 'longrope'"),
    "an attention factor": ("llama", "llama.rope.scaling.attn_factor", 1.2, "attn_factor = 1.2"),
    "capped logits": ("llama", "llama.final_logit_softcapping", 30.0, "the key llama.final_logit_softcapping"),
    "an unknown key": ("llama", "llama.attention.sinks", 4, "the key llama.attention.sinks is not supported"),
    "mtp": ("deepseek2", "deepseek2.nextn_predict_layers", 1, "nextn_predict_layers = 1"),
    "experts of llama": ("llama", "llama.expert_count", 8, "expert_count = 8 is not supported; 0"),
    "softmax in deepseek2": ("deepseek2", "deepseek2.expert_gating_func", 1, "expert_gating_func = 1 .*sigmoid"),
    "no gating in deepseek2": ("deepseek2", "deepseek2.expert_gating_func", None, "expert_gating_func = 1"),
    "sigmoid in qwen3moe": ("qwen3moe", "qwen3moe.expert_gating_func", 2, "expert_gating_func = 2 .*softmax"),
    "more experts used than there are": ("qwen3moe", "qwen3moe.expert_used_count", 9, "active_experts"),
    "more experts": ("qwen3moe", "qwen3moe.expert_count", 16, r"has shape \[8, 64\], not \[16, 64\]"),
    "wider experts": ("qwen3moe", "qwen3moe.expert_feed_forward_length", 64, "ffn_gate_exps.weight has shape"),
    "other latents": ("deepseek2", "deepseek2.attention.kv_lora_rank", 8, "key_length = 24 is not supported; 16 is"),
    "heads narrower than what turns": ("deepseek2", "deepseek2.attention.key_length_mla", 4, "nope_dim"),
    "another kind of layout": ("llama", "llama.tensor_data_layout", "Meta AI original pth", "tensor_data_layout"),
}  # fmt: skip


@pytest.mark.parametrize("case", KEYS)
def test_keys_that_mull_does_not_know(case: str, files: dict[str, Path]) -> None:
    arch, key, value, said = KEYS[case]
    header = read_header(files[arch])
    metadata = {name: old for name, old in header.metadata.items() if name != key}
    if value is not None:
        metadata[key] = value
    config_of(header)
    with pytest.raises(UserError, match=said) as error:
        config_of(replace(header, metadata=metadata))
    assert "\n" not in str(error.value)


YARNED = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 32}


@pytest.mark.parametrize(
    ("arch", "keys", "said"),
    [
        ("llama", {"rope.scaling.factor": 0.5}, "factor = 0.5"),
        ("llama", {"rope.scaling.yarn_beta_fast": 8.0}, "yarn_beta_fast = 8.0 is not supported; 32.0 is"),
        ("llama", {"rope.scaling.yarn_ext_factor": 0.5}, "yarn_ext_factor = 0.5"),
        ("llama", {"rope.scaling.yarn_log_multiplier": 0.1}, "yarn_log_multiplier = 0.1"),
        ("deepseek2", {"rope.scaling.type": "linear"}, "type = 'linear'"),
    ],
)
def test_scaling_that_mull_does_not_know(arch: str, keys: dict[str, Any], said: str, files: dict[str, Path]) -> None:
    header = read_header(files[arch])
    known = header.metadata | {f"{arch}.{key}": value for key, value in YARNED.items()}
    assert config_of(replace(header, metadata=known)).yarn is not None
    with pytest.raises(UserError, match=said):
        config_of(replace(header, metadata=known | {f"{arch}.{key}": value for key, value in keys.items()}))


def test_a_factor_without_a_type_is_linear(files: dict[str, Path]) -> None:
    header = read_header(files["qwen2"])
    for key in ("rope.scaling.factor", "rope.scale_linear"):
        assert config_of(replace(header, metadata=header.metadata | {f"qwen2.{key}": 4.0})).linear_rope == 4
    none = {"qwen2.rope.scaling.factor": 4.0, "qwen2.rope.scaling.type": "none"}
    assert config_of(replace(header, metadata=header.metadata | none)).linear_rope == 1


def without(header: Header, name: str) -> Header:
    return replace(header, tensors={other: info for other, info in header.tensors.items() if other != name})


@pytest.mark.parametrize("arch", ["llama", "qwen3moe", "deepseek2"])
def test_every_tensor_is_needed(arch: str, files: dict[str, Path]) -> None:
    """But the output, without which the embeddings serve, and what balances experts."""
    header = read_header(files[arch])
    for name in header.tensors:
        if name == "output.weight":
            assert config_of(without(header, name)).tied
        elif not name.endswith("exp_probs_b.bias"):
            with pytest.raises(UserError, match=r"lacks the tensor|has shape|place"):
                config_of(without(header, name))


def test_shapes_and_surplus(files: dict[str, Path]) -> None:
    header = read_header(files["llama"])
    more = TensorInfo((4,), "F32", 0, 16)
    with pytest.raises(UserError, match=r"'blk\.0\.attn_sinks.weight', for which"):
        config_of(replace(header, tensors={**header.tensors, "blk.0.attn_sinks.weight": more}))
    for name, info in header.tensors.items():
        wrong = replace(info, shape=(*info.shape[:-1], info.shape[-1] + 1))
        with pytest.raises(UserError, match="has shape"):
            config_of(replace(header, tensors={**header.tensors, name: wrong}))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_none(bad: float, files: dict[str, Path]) -> None:
    def spoil(metadata: dict[str, Any], tensors: dict[str, Any]) -> None:
        tensors["blk.1.ffn_up.weight"][-1, -1] = bad

    with pytest.raises(UserError, match=r"blk\.1\.ffn_up\.weight holds numbers that are infinite or none"):
        load_model(rewritten(files["qwen2"], spoil))


def test_types_that_mull_does_not_read(files: dict[str, Path]) -> None:
    def pack(metadata: dict[str, Any], tensors: dict[str, Any]) -> None:
        tensors["output.weight"] = (Kind.Q5_1, gguf.quantize(tensors["output.weight"], Kind.Q5_1))

    path = rewritten(files["qwen2"], pack)
    assert config_of(read_header(path)).vocab == QWEN2.vocab  # what it is can still be said
    with pytest.raises(UserError, match=r"output\.weight is of the type Q5_1, which is not supported; F32, F16"):
        load_model(path)


def test_a_file_that_shrinks(files: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "short.gguf"
    path.write_bytes(files["llama"].read_bytes())
    header = read_header(path)
    os.truncate(path, path.stat().st_size - 4096)
    with pytest.raises(UserError, match="cut short"):
        fill(Transformer(LLAMA), path, header)


# memory


def test_loading_needs_no_second_copy(files: dict[str, Path], tmp_path: Path) -> None:
    cfg = changed(DEEPSEEK, width=512, ffn=4096, expert_ffn=1024, layers=4, tied=True)
    path = written(tmp_path, Transformer(cfg).initialise(0), "q8_0")
    command = [sys.executable, "-c", MEASURE, str(files["deepseek2"]), str(path)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    found = json.loads(done.stdout)
    assert found["size"] > 150e6
    assert found["peak"] <= 1.15 * found["size"], found
