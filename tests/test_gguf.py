"""GGUF models of others: what transformers reads, however numbers are packed and wherever they lie. What mull does not
run is refused by name."""

from __future__ import annotations

import math
import os
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from checkpoints import peak_of
from gguf import GGMLQuantizationType as Kind
from gguf_files import (  # noqa: F401
    DEEPSEEK,
    LLAMA,
    LLAMA3,
    QUESTIONS,
    QWEN2,
    QWEN3,
    QWEN3MOE,
    logprobs,
    published,
    rewritten,
    same_bits,
    written,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from small import changed, chat, in_memory, model_of, tokens_of  # noqa: F401

from mull.engine.engine import LocalEngine
from mull.formats.gguf import Header, TensorInfo, read_header
from mull.model.config import Llama3Rope, ModelConfig
from mull.model.families import places
from mull.model.gguf import config_of, fill
from mull.model.gguf_write import architecture_of, write_gguf
from mull.model.layers import rotary_frequencies
from mull.model.transformer import Transformer
from mull.model.weights import load_model
from mull.text.chat import Chat
from mull.types import Message, Request, Sampling, UserError

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
    "a norm in words": ("qwen3moe", "qwen3moe.expert_weights_norm", "yes", "expert_weights_norm = 'yes'"),
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


# whatever else a file says

VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 70), st.sampled_from([2**16, 2**31, 2**40, 2**64 - 1]), st.floats(),
    st.text(max_size=8), st.lists(st.integers(0, 99), max_size=3),
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_any_values_are_computed_or_refused(data: st.DataObject, files: dict[str, Path]) -> None:
    """At once, and without an allocation of the size that is claimed."""
    header = read_header(files[data.draw(st.sampled_from(sorted(files)))])
    known = [key for key in header.metadata if not key.startswith("tokenizer.")]
    arch = header.metadata["general.architecture"]
    more = [
        f"{arch}.{key}" for key in (*YARNED, "expert_weights_scale", "attention.sliding_window", "expert_group_count")
    ]
    changes = {data.draw(st.sampled_from(known + more)): data.draw(VALUES) for _ in range(data.draw(st.integers(1, 3)))}
    metadata = {key: value for key, value in (header.metadata | changes).items() if value is not None}
    try:
        cfg = config_of(replace(header, metadata=metadata))
    except UserError as error:
        assert "\n" not in str(error)  # noqa: PT017 - either is right
        return
    assert cfg.vocab == 300


def test_rope_factors_beyond_a_configurations_bounds_are_refused(files: dict[str, Path]) -> None:
    def put(metadata: dict[str, Any], tensors: dict[str, Any]) -> None:
        tensors["rope_freqs.weight"] = np.array([1] * 7 + [1_000_001], np.float32)

    with pytest.raises(UserError, match="not those of Llama 3"):
        config_of(read_header(rewritten(files["llama"], put)))


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_rope_factors_are_computed_or_refused(data: st.DataObject, files: dict[str, Path]) -> None:
    numbers = st.floats(width=32) | st.floats(1, 64, width=32)
    factors = data.draw(st.lists(numbers, min_size=8, max_size=8))

    def put(metadata: dict[str, Any], tensors: dict[str, Any]) -> None:
        tensors["rope_freqs.weight"] = np.array(factors, np.float32)

    header = read_header(rewritten(files["llama"], put))
    try:
        rope = config_of(header).llama3_rope
    except UserError:
        return
    wanted = rotary_frequencies(LLAMA) / torch.tensor(factors)
    torch.testing.assert_close(rotary_frequencies(changed(LLAMA, llama3_rope=rope)), wanted, rtol=3e-6, atol=0)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_files_with_changed_bytes_load_or_are_refused(data: st.DataObject, files: dict[str, Path]) -> None:
    """Header and numbers alike: never another error than a UserError, never a model with NaN in it."""
    source = files[data.draw(st.sampled_from(sorted(files)))]
    content = bytearray(source.read_bytes())
    header = content.index(b"token_embd.weight") + 20_000 if data.draw(st.booleans()) else len(content)
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, header - 1))] = data.draw(st.integers(0, 255))
    path = source.with_name("changed.gguf")
    path.write_bytes(content)
    try:
        model = load_model(path)
    except UserError as error:
        assert "\n" not in str(error)  # noqa: PT017 - either is right
        return
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())


# memory


LARGE = changed(DEEPSEEK, width=512, ffn=4096, expert_ffn=1024, layers=4, tied=True)  # 160 MB; the largest tensor 17


def test_memory_of_reading_and_writing(files: dict[str, Path], tmp_path: Path) -> None:
    """Reading takes the model and little more; an export reads, then packs tensor by tensor."""
    large = Transformer(LARGE).initialise(0)
    size = sum(p.numel() * p.element_size() for p in large.parameters())
    path = written(tmp_path, large, "q8_0")
    assert 0.9 < peak_of("load_model(folder)", files["deepseek2"], path) / size < 1.15
    again = 'export(folder, "gguf", folder.with_name("again-" + folder.name), "f16")'
    assert 0.9 < peak_of(again, files["deepseek2"], path) / size < 1.3


# a published model: SmolLM2-135M-Instruct in Q4_1, if `mull pull smollm2` has brought it


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_smollm2_says_what_it_says_in_transformers(smollm2: Path) -> None:
    pytest.importorskip("accelerate", reason="transformers reads no GGUF file without accelerate")
    from transformers import AutoModelForCausalLM

    model, speech = load_model(smollm2), Chat.load(smollm2)
    asked = [speech.encode([Message("user", question)], thinking=False) for question in QUESTIONS]
    sampling = Sampling(max_tokens=64, temperature=0.0)
    answers = LocalEngine(model, speech).generate([Request(tuple(ids), sampling) for ids in asked])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = AutoModelForCausalLM.from_pretrained(smollm2.parent, gguf_file=smollm2.name, dtype=torch.float32)
    state = theirs.state_dict()
    for place in places(model.cfg):
        assert torch.equal(model.state_dict()[place.ours][place.index], state[place.theirs])
    for ids, answer in zip(asked, answers, strict=True):
        said = theirs.generate(
            torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long), max_new_tokens=64,
            do_sample=False,
        )  # fmt: skip
        assert said[0, len(ids) :].tolist() == list(answer.tokens)
