"""Every published family with every option: the same logits as transformers' own class, or refused by name."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from parity import FAMILIES, cases, compare, prompt_of, raw_of, theirs_of, transformers
from small import SHAPES, changed

from mull.model import families
from mull.model.config import ModelConfig, Yarn
from mull.model.families import config_from_hf, config_to_hf, family_of, read_config
from mull.model.flops import parameters
from mull.model.layers import rotary_frequencies, rotary_magnitude, softmax_scale
from mull.model.weights import load_model
from mull.ops.attention import Documents
from mull.types import UserError


@pytest.mark.parametrize(("family", "option"), list(cases()), ids=lambda value: value)
def test_logits_equal_those_of_transformers(family: str, option: str) -> None:
    found = compare(family, option)
    assert found.spread > 0.5  # a comparison of noise with noise would pass too easily
    assert found.prompt <= 1e-4
    assert found.cached <= 1e-4
    assert found.greedy


@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_config_leaves_unsaid_has_the_value_of_transformers(family: str) -> None:
    """Or is refused. Every key is left out in turn; transformers says what it would compute with."""
    name = FAMILIES[family][0]
    raw = raw_of(family)
    refused: dict[str, str] = {}
    for key in raw:
        rest = {other: value for other, value in raw.items() if other != key}
        if key == "model_type":
            continue
        try:
            filled = getattr(transformers(), f"{name}Config")(**copy.deepcopy(rest)).to_dict()
            wanted = config_from_hf(filled, "config.json")
        except Exception:  # what it fills in is impossible beside the rest
            continue
        try:
            found = config_from_hf(copy.deepcopy(rest), "config.json")
        except UserError as error:
            refused[key] = str(error)
            continue
        unused = {"init_std": 0.1, "mtp_layers": 0}  # no answer is computed with these
        assert found.model_copy(update=unused) == wanted.model_copy(update=unused), key
    assert all(any(k in line for k in (key, *families.RENAMED.get(key, ()))) for key, line in refused.items())
    assert len(refused) < 12


@pytest.mark.parametrize("name", SHAPES)
def test_a_config_written_is_the_config_read(name: str) -> None:
    cfg = SHAPES[name]
    back = config_from_hf(json.loads(json.dumps(config_to_hf(cfg))), "config.json")
    assert config_to_hf(back) == config_to_hf(cfg)
    assert family_of(back) == family_of(cfg)
    assert parameters(back) == parameters(cfg)


SCALED = {"rope_type": "llama3", "factor": 8.0}
WINDOW = {"use_sliding_window": True, "sliding_window": 8}
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("llama", {"model_type": "mixtral"}, "'mixtral' is not supported"),
    ("llama", {"model_type": "qwen3_next"}, "not supported"),
    ("llama", {"model_type": "gpt_oss"}, "not supported"),
    ("deepseek_v3", {"model_type": "deepseek_v2"}, "deepseek_v3"),
    ("llama", {"hidden_act": "gelu"}, "hidden_act"),
    ("llama", {"mlp_bias": True}, "mlp_bias"),
    ("llama", {"rope_parameters": {"rope_type": "longrope", "factor": 8.0}}, "longrope"),
    ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 8.0}}, "dynamic"),
    ("llama", {"rope_parameters": {**SCALED, "low_freq_factor": None}}, "low_freq_factor"),
    ("llama", {"rope_parameters": {**SCALED, "low_freq_factor": 4.0, "high_freq_factor": 4.0}}, "high_freq_factor"),
    ("llama", {"rope_parameters": {"rope_type": "linear"}}, "factor"),
    ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary"),
    ("llama", {"num_key_value_heads": 3}, "kv_heads"),
    ("qwen2", {"layer_types": ["full_attention", "chunked_attention", "full_attention"], **WINDOW}, "layer_types"),
    ("qwen2", {"layer_types": ["full_attention"], **WINDOW}, "layer_types"),
    ("qwen2", {"layer_types": None, "max_window_layers": -1, **WINDOW}, "max_window_layers"),
    ("qwen3_moe", {"decoder_sparse_step": 2}, "decoder_sparse_step"),
    ("qwen3_moe", {"mlp_only_layers": [1]}, "mlp_only_layers"),
    ("qwen3_moe", {"mlp_only_layers": 1}, "mlp_only_layers"),
    ("qwen3_moe", {"num_experts_per_tok": 9}, "active_experts"),
    ("deepseek_v3", {"attention_bias": True}, "attention_bias"),
    ("deepseek_v3", {"rope_interleave": False}, "rope_interleave"),
    ("deepseek_v3", {"scoring_func": "softmax"}, "scoring_func"),
    ("deepseek_v3", {"topk_method": "greedy"}, "topk_method"),
    ("deepseek_v3", {"n_shared_experts": 0}, "shared_experts"),
    ("deepseek_v3", {"n_group": 3}, "groups"),
    ("deepseek_v3", {"kv_lora_rank": 0}, "kv_rank|kv_lora_rank"),
    ("glm4_moe_lite", {"mlp_layer_types": ["sparse", "dense", "sparse"]}, "mlp_layer_types"),
    ("glm4_moe", {"n_shared_experts": 0}, "shared_experts"),
    ("olmoe", {"num_attention_heads": 5}, "heads"),
    ("llama", {"num_hidden_layers": 10**9}, "layers"),
    ("llama", {"num_hidden_layers": "two"}, "num_hidden_layers = two is no whole number from 1"),
    ("llama", {"hidden_size": 2.5}, "width"),
    ("llama", {"rope_parameters": "yarn"}, "rope_parameters"),
    ("llama", {"rms_norm_eps": "small"}, "eps"),
    ("llama", {"rms_norm_eps": float("nan")}, "eps"),
]


@pytest.mark.parametrize(("family", "change", "said"), REFUSED, ids=str)
def test_what_mull_cannot_run_is_refused_by_name(family: str, change: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        config_from_hf({**raw_of(family), **change}, "config.json")
    assert "\n" not in str(caught.value)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=300, deadline=None)
@given(data=st.data(), family=st.sampled_from(sorted(FAMILIES)))
def test_any_json_is_a_configuration_or_a_user_error(data: st.DataObject, family: str) -> None:
    raw = raw_of(family)
    known = sorted({*raw, *families.RENAMED, "is_causal", "rope_scaling", "rope_theta", "partial_rotary_factor"})
    for key in data.draw(st.lists(st.sampled_from(known), min_size=1, max_size=3)):
        raw[key] = data.draw(json_values)
    try:
        cfg = config_from_hf(raw, "config.json")
    except UserError:
        return
    computes(cfg)


HOSTILE = (
    0, -1, 1, 2.5, 3, 10**4, 10**9, 10**18, 10**400, 1e-320, 1e308, float("nan"), float("inf"), "", "x", True, None,
    [], [1], {}, {"rope_type": "yarn", "factor": 1e308}, {"rope_type": "yarn", "factor": 4, "beta_fast": 1e-320},
    {"rope_type": "llama3", "factor": 4, "low_freq_factor": 1e308, "high_freq_factor": 1e-320}, {"type": ["yarn"]},
)  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_hostile_numbers_end_at_once(family: str) -> None:
    """Every key with every such value: a configuration that can be computed with, or one line; and no memory."""
    raw = raw_of(family)
    for key in [*raw, "rope_scaling", "rope_theta", "original_max_position_embeddings", "sliding_window"]:
        for value in HOSTILE:
            edited = {**raw, "use_sliding_window": True, key: value}
            if key == "rope_scaling":
                del edited["rope_parameters"]
            try:
                cfg = config_from_hf(edited, "config.json")
            except UserError as error:
                assert "\n" not in str(error)  # noqa: PT017 - either is right, but it must be one line
                continue
            computes(cfg)


def computes(cfg: ModelConfig) -> None:
    """What is computed from a configuration alone is finite."""
    assert 0 < parameters(cfg).total <= families.LARGEST
    frequencies = rotary_frequencies(cfg)
    assert len(frequencies) == cfg.rotary_dim // 2
    assert bool(frequencies.isfinite().all())
    assert 0 < softmax_scale(cfg) < float("inf")
    assert rotary_magnitude(cfg.yarn) < float("inf")


def stretched(**values: object) -> dict[str, Any]:
    return {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, **values}}


NEW_ROPE = ("rope_parameters",)  # what transformers 5 writes, and older ones do not
LLAMA3 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
GROUPED, DEEP = ("llama", "qwen2", "glm4_moe"), ("deepseek_v3", "glm4_moe_lite")
EDITED: list[tuple[tuple[str, ...], dict[str, Any], tuple[str, ...]]] = [  # families, what is written, what is left out
    (GROUPED, stretched(), ()),
    (GROUPED, stretched(), NEW_ROPE),
    (GROUPED, stretched(beta_fast=0, beta_slow=None), NEW_ROPE),
    (GROUPED, stretched(beta_fast=8.0, beta_slow=2.0), NEW_ROPE),
    (GROUPED, stretched(truncate=None), NEW_ROPE),
    (GROUPED, stretched(attention_factor=0.0), NEW_ROPE),
    (GROUPED, stretched(original_max_position_embeddings=None), NEW_ROPE),
    (GROUPED, stretched(mscale=0.8, mscale_all_dim=1.0), NEW_ROPE),
    (GROUPED, stretched(original_max_position_embeddings=10**6), NEW_ROPE),
    (GROUPED, {**stretched(), "original_max_position_embeddings": 16}, NEW_ROPE),
    (GROUPED, {"rope_scaling": LLAMA3, "original_max_position_embeddings": 32}, NEW_ROPE),
    (GROUPED, {"rope_scaling": {"type": "linear", "factor": 2.0}}, NEW_ROPE),
    (GROUPED, {"rope_scaling": {"type": "default", "rope_type": "linear", "factor": 2.0}}, NEW_ROPE),
    (GROUPED, {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 500.0}}}, ()),
    (GROUPED, {"rope_theta": 500000.0}, NEW_ROPE),
    (GROUPED, {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}, "rope_theta": 1000.0}, ()),
    (GROUPED, {"is_causal": False}, ()),
    (GROUPED, {"use_bidirectional_attention": True}, ()),
    (GROUPED, {"rms_norm_eps": 0.1}, ()),
    (GROUPED, {"pretraining_tp": 2}, ()),
    (("llama", "qwen2"), {"partial_rotary_factor": 0.5}, ()),
    (("glm4_moe",), {"partial_rotary_factor": 0.25}, NEW_ROPE),
    (("glm4_moe",), {}, NEW_ROPE),
    (("glm4_moe",), {}, ("routed_scaling_factor", "n_group", "topk_group", "norm_topk_prob", "rms_norm_eps")),
    (("qwen2",), {"layer_types": ["sliding_attention"] * 3, "sliding_window": 5}, ()),
    (("qwen2",), {"layer_types": ["sliding_attention"] * 3, "sliding_window": 5, "use_sliding_window": True}, ()),
    (("qwen2",), {"sliding_window": 5, "use_sliding_window": True, "max_window_layers": 0}, ("layer_types",)),
    (("qwen3_moe",), {"sliding_window": 5, "use_sliding_window": True, "layer_types": ["full_attention"] * 3}, ()),
    (("qwen3_moe",), {}, ("head_dim",)),
    (("qwen3_moe",), {"decoder_sparse_step": 0}, ()),
    (("olmoe",), {"clip_qkv": 0.0}, ()),
    (("olmoe",), {}, ("norm_topk_prob", "rms_norm_eps", "rope_parameters")),
    (DEEP, {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "mscale_all_dim": 1.0, "rope_theta": 1e4}}, ()),
    (DEEP, {"rope_parameters": {**LLAMA3, "mscale_all_dim": 1.0, "rope_theta": 1e4}}, ()),
    (DEEP, stretched(mscale=1.0, mscale_all_dim=1.0), NEW_ROPE),
    (DEEP, {"head_dim": 4}, ()),
    (DEEP, {"rope_interleave": None}, ()),
    (DEEP, {"norm_topk_prob": None}, ()),
    (DEEP, {"partial_rotary_factor": 0.5}, ()),
    (DEEP, {"mlp_layer_types": ["dense", "sparse", "sparse"]}, ()),
    (("glm4_moe_lite",), {"mlp_layer_types": ["sparse"] * 3}, ()),
]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint of each family, by transformers."""
    folders = {family: tmp_path_factory.mktemp(family) for family in FAMILIES}
    for family, folder in folders.items():
        theirs_of(family, "plain").save_pretrained(folder)
    return folders


@pytest.mark.parametrize(
    ("family", "change", "left_out"),
    [(family, change, left_out) for some, change, left_out in EDITED for family in some], ids=str,
)  # fmt: skip
def test_an_edited_config_computes_as_in_transformers_or_is_refused(
    family: str, change: dict[str, Any], left_out: tuple[str, ...], written: dict[str, Path], tmp_path: Path
) -> None:
    raw = json.loads((written[family] / "config.json").read_text())
    raw = {key: value for key, value in raw.items() if key not in left_out} | change
    (tmp_path / "config.json").write_text(json.dumps(raw))
    shutil.copyfile(written[family] / "model.safetensors", tmp_path / "model.safetensors")
    prompt_T = prompt_of()
    try:
        ours = load_model(tmp_path).eval()
    except UserError as error:
        assert "\n" not in str(error)  # noqa: PT017 - either is right, but it must be one line
        return
    theirs = transformers().AutoModelForCausalLM.from_pretrained(
        tmp_path, attn_implementation="eager", dtype=torch.float32
    )
    with torch.inference_mode():
        right = theirs.eval()(prompt_T[None], use_cache=False).logits[0]
        mine = ours.logits(ours(prompt_T, Documents([len(prompt_T)])))
    torch.testing.assert_close(mine, right, atol=1e-4, rtol=0)


@pytest.mark.parametrize("text", ["", "[1, 2]", "{", "null", '{"model_type": "deepseek_v3"}', "[" * 100_000, "\xff"])
def test_a_broken_config_is_a_user_error(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text, encoding="latin-1")
    for given_ in (tmp_path, tmp_path / "config.json"):
        with pytest.raises(UserError, match=r"config\.json"):
            read_config(given_)


def test_a_config_of_gigabytes_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(2**34)
    with pytest.raises(UserError, match="no such file is that large"):
        read_config(tmp_path)


def test_no_config_no_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no model directory"):
        read_config(tmp_path)


@pytest.mark.parametrize(
    ("shape", "change", "said"),
    [
        ("llama", {"windowed": (0,), "window": 4}, "windowed"),
        ("llama", {"o_bias": True}, "qkv_bias and o_bias"),
        ("llama", {"windowed": (0,)}, "need a window"),
        ("qwen3", {"windowed": (7,), "window": 4}, "do not exist"),
        ("qwen3", {"partial_rotary": 0.5}, "partial_rotary"),
        ("qwen3 moe", {"shared_experts": 1}, "shared_experts"),
        ("qwen3 moe", {"windowed": (0,), "window": 4}, "all layers or none"),
        ("olmoe", {"head_dim": 16}, "times head_dim"),
        ("mla", {"qk_norm": "head"}, "qk_norm"),
        ("moe", {"score": "softmax"}, "score"),
        ("moe", {"dense_layers": 3}, "dense_layers"),
        ("llama", {"linear_rope": 2.0, "yarn": Yarn(factor=2.0, original_length=32)}, "only one of"),
    ],
)
def test_shapes_that_no_family_keeps_are_refused(shape: str, change: dict[str, Any], said: str) -> None:
    """Before training starts: a model that cannot be written would be lost."""
    with pytest.raises(ValueError, match=said):
        changed(SHAPES[shape], **change)


def test_families() -> None:
    assert {name: family_of(cfg) for name, cfg in SHAPES.items() if "," not in name} == {
        "mla": "deepseek_v3", "moe": "deepseek_v3", "llama": "llama", "qwen2": "qwen2", "gqa moe": "glm4_moe",
        "qwen3": "qwen3", "qwen3 moe": "qwen3_moe", "olmoe": "olmoe",
    }  # fmt: skip


def test_deepseek_v3_counts() -> None:
    """671B and 37B, as published (arXiv 2412.19437)."""
    raw = {
        "model_type": "deepseek_v3", "vocab_size": 129280, "hidden_size": 7168, "num_hidden_layers": 61,
        "num_attention_heads": 128, "num_key_value_heads": 128, "intermediate_size": 18432,
        "moe_intermediate_size": 2048, "n_routed_experts": 256, "num_experts_per_tok": 8, "n_shared_experts": 1,
        "n_group": 8, "topk_group": 4, "routed_scaling_factor": 2.5, "norm_topk_prob": True,
        "first_k_dense_replace": 3, "num_nextn_predict_layers": 1, "q_lora_rank": 1536, "kv_lora_rank": 512,
        "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "rms_norm_eps": 1e-6,
        "rope_theta": 10000, "max_position_embeddings": 163840, "scoring_func": "sigmoid", "topk_method": "noaux_tc",
        "rope_scaling": {
            "type": "yarn", "factor": 40, "original_max_position_embeddings": 4096, "beta_fast": 32, "beta_slow": 1,
            "mscale": 1.0, "mscale_all_dim": 1.0,
        },
    }  # fmt: skip
    count = parameters(config_from_hf(raw, "config.json"))
    assert round(count.total / 1e9) == 671
    assert count.active // 10**9 == 37


PUBLISHED: dict[str, tuple[str, dict[str, Any]]] = {  # total parameters as their publishers say them: config.json
    "Llama-3.2-1B 1.23": ("llama", {
        "vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
        "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64, "tie_word_embeddings": True,
        "rope_theta": 500000.0, "rope_scaling": {
            "factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0, "original_max_position_embeddings": 8192,
            "rope_type": "llama3",
        },
    }),
    "DeepSeek-R1-Distill-Qwen-1.5B 1.78": ("qwen2", {
        "vocab_size": 151936, "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28,
        "num_attention_heads": 12, "num_key_value_heads": 2, "max_window_layers": 21, "sliding_window": 4096,
        "use_sliding_window": False, "use_mrope": False, "tie_word_embeddings": False,
    }),
    "Qwen3-0.6B 0.6": ("qwen3", {
        "vocab_size": 151936, "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28,
        "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": True,
        "attention_bias": False, "max_window_layers": 28, "sliding_window": None, "use_sliding_window": False,
    }),
    "Qwen3-30B-A3B 30.5": ("qwen3_moe", {
        "vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 6144, "moe_intermediate_size": 768,
        "num_hidden_layers": 48, "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128,
        "num_experts": 128, "num_experts_per_tok": 8, "norm_topk_prob": True, "decoder_sparse_step": 1,
        "mlp_only_layers": [], "tie_word_embeddings": False,
    }),
    "OLMoE-1B-7B 6.9": ("olmoe", {
        "vocab_size": 50304, "hidden_size": 2048, "intermediate_size": 1024, "num_hidden_layers": 16,
        "num_attention_heads": 16, "num_key_value_heads": 16, "num_experts": 64, "num_experts_per_tok": 8,
        "norm_topk_prob": False, "clip_qkv": None, "rope_scaling": None, "tie_word_embeddings": False,
    }),
    "GLM-4.5-Air 106": ("glm4_moe", {
        "vocab_size": 151552, "hidden_size": 4096, "intermediate_size": 10944, "moe_intermediate_size": 1408,
        "num_hidden_layers": 46, "num_attention_heads": 96, "num_key_value_heads": 8, "head_dim": 128,
        "n_routed_experts": 128, "num_experts_per_tok": 8, "n_shared_experts": 1, "first_k_dense_replace": 1,
        "attention_bias": True, "use_qk_norm": False, "partial_rotary_factor": 0.5, "num_nextn_predict_layers": 1,
        "n_group": 1, "topk_group": 1, "routed_scaling_factor": 1.0, "norm_topk_prob": True,
    }),
}  # fmt: skip


@pytest.mark.parametrize("model", PUBLISHED)
def test_published_models_have_their_published_sizes(model: str) -> None:
    family, raw = PUBLISHED[model]
    cfg = config_from_hf({"model_type": family, **raw}, "config.json")
    assert family_of(cfg) == family
    assert parameters(cfg).total / 1e9 == pytest.approx(float(model.split()[-1]), rel=0.01)  # they are rounded


def test_frequencies_of_yarn_without_rounding_differ() -> None:
    """What tests/parity.py compares is not the same thing twice."""
    rounded = Yarn(factor=4.0, original_length=1024)
    assert not rotary_frequencies(changed(SHAPES["mla"], yarn=rounded)).equal(
        rotary_frequencies(changed(SHAPES["mla"], yarn=rounded.model_copy(update={"truncate": False})))
    )
    assert isinstance(SHAPES["mla"], ModelConfig)
