"""Writing GGUF: what is written comes back, llama.cpp computes the same, and what it computes otherwise is refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from gguf_files import (  # noqa: F401
    DEEPSEEK,
    DEMO,
    LLAMA,
    LLAMA3,
    NO_MSCALE,
    QUESTIONS,
    QWEN2,
    QWEN3,
    QWEN3MOE,
    WRITTEN,
    logprobs,
    published,
    same_bits,
    written,
)
from greedy import LlamaCpp, limit_to_speakable, prompts
from hypothesis import given, settings
from hypothesis import strategies as st
from small import SHAPES, changed, chat, in_memory, model_of, tokens_of  # noqa: F401

from mull.engine.engine import LocalEngine
from mull.formats.gguf import read_header
from mull.model.config import ModelConfig, Yarn
from mull.model.gguf import config_of
from mull.model.gguf_write import _factors, write_gguf
from mull.model.layers import rotary_frequencies, rotary_magnitude, softmax_scale
from mull.model.transformer import Transformer
from mull.model.weights import load_model
from mull.text.chat import Chat
from mull.text.tokenizer import SMALLEST, Tokenizer
from mull.types import Message, Request, Sampling, UserError

DEMO_RUN = Path(__file__).parents[1] / "runs/demo"
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


# what is written comes back


@pytest.mark.parametrize("name", WRITTEN)
def test_what_is_written_comes_back(name: str, tmp_path: Path) -> None:
    cfg = WRITTEN[name]
    model = model_of(cfg)
    path = written(tmp_path, model)
    back = load_model(path)
    assert same_bits(model, back)
    assert (back.head.weight is back.embed.weight) == cfg.tied
    unused = {"init_std", "yarn"} | ({"kv_heads", "head_dim"} if cfg.latent else {"nope_dim", "rope_dim", "v_dim"})
    unused |= set() if cfg.experts else {"active_experts", "shared_experts", "expert_ffn"}
    assert cfg.model_dump(exclude=unused) == back.cfg.model_dump(exclude=unused)
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


def test_both_templates_or_none_go_along(tmp_path: Path) -> None:
    both = Chat(chat().tokenizer, "a {{ messages }}", "tools {{ tools }}")
    write_gguf(tmp_path / "both.gguf", Transformer(LLAMA), both)
    back = Chat.load(tmp_path / "both.gguf")
    assert (back.template, back.tool_template) == (both.template, both.tool_template)
    both.template = both.tool_template = None  # as of a model that only continues text
    write_gguf(tmp_path / "none.gguf", Transformer(LLAMA), both)
    assert not [key for key in read_header(tmp_path / "none.gguf").metadata if "chat_template" in key]


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


@pytest.mark.parametrize(("dtype", "least"), [("f32", 20), ("f16", 18)], ids=["f32", "f16"])
@pytest.mark.parametrize("cfg", [LLAMA, QWEN3MOE, DEEPSEEK, DEMO], ids=["llama", "qwen3moe", "deepseek2", "demo"])
def test_llama_cpp_gives_the_same_tokens_for_20_prompts(
    cfg: ModelConfig, dtype: str, least: int, tmp_path: Path
) -> None:
    """mull runs what it loads from the file. Where weights are f16, llama.cpp rounds activations to it as well: one
    prompt in a hundred then meets two tokens or experts that lead equally. A wrong computation changes nearly all.
    """
    path = written(tmp_path, limit_to_speakable(model_of(cfg, std=0.1)), dtype)
    asked, sampling = prompts(20), Sampling(max_tokens=12, temperature=0.0)
    answers = LocalEngine(load_model(path), chat()).generate([Request(tuple(ids), sampling) for ids in asked])
    other = LlamaCpp(path)
    theirs = [other.greedy(ids, 12).tokens for ids in asked]
    assert [len(tokens) for tokens in theirs] == [12] * 20
    assert sum(list(answer.tokens) == tokens for answer, tokens in zip(answers, theirs, strict=True)) >= least


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["f32", "f16"])
@pytest.mark.skipif(not (DEMO_RUN / "models/rl").is_dir(), reason="needs a finished demo: make demo")
def test_the_demo_says_the_same_in_llama_cpp(dtype: Any, tmp_path: Path) -> None:
    """A trained model needs no choice of prompts."""
    speech, path = Chat.load(DEMO_RUN / "models/rl"), tmp_path / "demo.gguf"
    write_gguf(path, load_model(DEMO_RUN / "models/rl", mtp=False), speech, dtype)
    ask = "Solve the following multiplication: {} * {}. Give only the result as your final answer."
    asked = [speech.encode([Message("user", ask.format(a, b))]) for a in (12, 34, 7, 91) for b in (5, 23, 66, 8, 19)]
    sampling = Sampling(max_tokens=64, temperature=0.0)
    answers = LocalEngine(load_model(path), speech).generate([Request(tuple(ids), sampling) for ids in asked])
    other = LlamaCpp(path)
    for ids, answer in zip(asked, answers, strict=True):
        assert other.greedy(ids, 64).tokens == list(answer.tokens)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_smollm2_says_the_same_in_llama_cpp(smollm2: Path, tmp_path: Path) -> None:
    """Written in fp32: the same bits and prompts come back, and the same tokens out of llama.cpp. Of the original it
    makes others: it rounds activations to 8 bits where weights are blocks.
    """
    model, speech, path = load_model(smollm2), Chat.load(smollm2), tmp_path / "again.gguf"
    write_gguf(path, model, speech)
    back, again = load_model(path), Chat.load(path)
    assert same_bits(model, back)
    asked = [again.encode([Message("user", question)], thinking=False) for question in QUESTIONS]
    assert asked == [speech.encode([Message("user", question)], thinking=False) for question in QUESTIONS]
    sampling = Sampling(max_tokens=64, temperature=0.0)
    answers = LocalEngine(back, again).generate([Request(tuple(ids), sampling) for ids in asked])
    other = LlamaCpp(path, context=512)
    for ids, answer in zip(asked, answers, strict=True):
        assert other.greedy(ids, 64).tokens == list(answer.tokens)


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
