"""Hugging Face layout: what our configurations and weights are called in the checkpoints that others read.

A family is a row of FAMILIES (how its config.json spells our numbers) and the one list of tensor places below. Nothing
here computes: a `Place` says which slice of which of our tensors a tensor on disk is, so writing is slicing and
reading is copying into the slice.

Our models are `deepseek_v3` with latent attention; with grouped-query attention they are `llama`, `qwen2` (biases), or
`glm4_moe` (mixtures of experts). MTP layers follow the last layer in the names, as DeepSeek publishes them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mull.config import build, nearest
from mull.model.config import ModelConfig
from mull.types import UserError

# our field -> the name in config.json; every family shares these
COMMON = {
    "vocab": "vocab_size",
    "width": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "ffn": "intermediate_size",
    "eps": "rms_norm_eps",
    "tied": "tie_word_embeddings",
    "max_length": "max_position_embeddings",
    "init_std": "initializer_range",
    "rope_theta": "rope_theta",
}
EXPERTS = {
    "dense_layers": "first_k_dense_replace",
    "experts": "n_routed_experts",
    "active_experts": "num_experts_per_tok",
    "shared_experts": "n_shared_experts",
    "expert_ffn": "moe_intermediate_size",
    "groups": "n_group",
    "active_groups": "topk_group",
    "router_scale": "routed_scaling_factor",
    "renormalise": "norm_topk_prob",
    "mtp_layers": "num_nextn_predict_layers",
}
LATENT = {
    "q_rank": "q_lora_rank",
    "kv_rank": "kv_lora_rank",
    "nope_dim": "qk_nope_head_dim",
    "rope_dim": "qk_rope_head_dim",
    "v_dim": "v_head_dim",
}
HEADS = {"head_dim": "head_dim"}


@dataclass(frozen=True)
class Family:
    architecture: str
    names: Mapping[str, str]  # our field -> theirs
    fixed: Mapping[str, Any]  # keys of config.json that have one value here; any other is refused
    written: Mapping[str, Any]  # further keys to write, not read


FAMILIES: dict[str, Family] = {
    "deepseek_v3": Family(
        "DeepseekV3ForCausalLM",
        {**COMMON, **EXPERTS, **LATENT},
        {"attention_bias": False, "hidden_act": "silu", "rope_interleave": True},
        {"scoring_func": "sigmoid", "topk_method": "noaux_tc", "moe_layer_freq": 1},
    ),
    "glm4_moe": Family(
        "Glm4MoeForCausalLM",
        {**COMMON, **EXPERTS, **HEADS, "qkv_bias": "attention_bias"},
        {"use_qk_norm": False, "hidden_act": "silu", "partial_rotary_factor": 1.0},
        {},
    ),
    "llama": Family(
        "LlamaForCausalLM", {**COMMON, **HEADS}, {"attention_bias": False, "mlp_bias": False, "hidden_act": "silu"}, {}
    ),
    "qwen2": Family("Qwen2ForCausalLM", {**COMMON, **HEADS}, {"hidden_act": "silu", "use_sliding_window": False}, {}),
}


def family_of(cfg: ModelConfig) -> str:
    if cfg.latent:
        return "deepseek_v3"
    if cfg.experts:
        return "glm4_moe"
    return "qwen2" if cfg.qkv_bias else "llama"


def config_to_hf(cfg: ModelConfig) -> dict[str, Any]:
    """The content of config.json."""
    name = family_of(cfg)
    family = FAMILIES[name]
    raw: dict[str, Any] = {"architectures": [family.architecture], "model_type": name}
    raw |= {theirs: getattr(cfg, ours) for ours, theirs in family.names.items()}
    raw |= {**family.fixed, **family.written, "torch_dtype": "float32", "use_cache": True}
    if cfg.latent:
        raw["num_key_value_heads"] = cfg.heads
        raw["q_lora_rank"] = cfg.q_rank or None
    if "first_k_dense_replace" in raw and not cfg.experts:  # all layers dense; the family has no other way to say so
        raw |= {"first_k_dense_replace": cfg.layers, "n_routed_experts": 1, "num_experts_per_tok": 1}
    if cfg.yarn is not None:
        yarn = cfg.yarn
        raw["rope_scaling"] = {
            "type": "yarn", "rope_type": "yarn", "factor": yarn.factor,
            "original_max_position_embeddings": yarn.original_length, "beta_fast": yarn.beta_fast,
            "beta_slow": yarn.beta_slow, "mscale": yarn.mscale, "mscale_all_dim": yarn.mscale_all_dim,
        }  # fmt: skip
    return raw


def config_from_hf(raw: Mapping[str, Any], where: str) -> ModelConfig:
    """Raises UserError for a family, or a value of one, that mull cannot run; it never runs one wrongly."""
    name = str(raw.get("model_type"))
    if name not in FAMILIES:
        hint = nearest(name, FAMILIES) or f" mull reads {', '.join(FAMILIES)}."
        raise UserError(f"{where}: the model family {name!r} is not supported.{hint}")
    family = FAMILIES[name]
    for key, wanted in family.fixed.items():
        if raw.get(key, wanted) != wanted:
            raise UserError(f"{where}: {key} = {raw[key]!r} is not supported for {name}; only {wanted!r} is.")
    values = {ours: raw[theirs] for ours, theirs in family.names.items() if theirs in raw}
    for theirs in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"):
        if theirs not in raw:
            raise UserError(f"{where} lacks {theirs!r}, without which there is no model.")
        _natural(raw, theirs, where, least=1)
    _natural(raw, "first_k_dense_replace", where, least=0)
    rope = _table(raw, "rope_parameters", where)
    values["rope_theta"] = rope.get("rope_theta", raw.get("rope_theta", 10000.0))
    values["kv_heads"] = raw.get("num_key_value_heads") or values["heads"]
    values["qkv_bias"] = name == "qwen2" or values.get("qkv_bias", False)
    if name == "deepseek_v3":
        values |= {"q_rank": raw.get("q_lora_rank") or 0, "kv_heads": values["heads"]}
    elif "head_dim" not in values:
        values["head_dim"] = values["width"] // values["heads"]
    if values.get("dense_layers", 0) >= values["layers"]:
        values |= {"experts": 0, "dense_layers": 0, "active_experts": 1}
    values["yarn"] = _yarn(_table(raw, "rope_scaling", where) or rope, where)
    return build(ModelConfig, values, where)


def _natural(raw: Mapping[str, Any], key: str, where: str, least: int) -> None:
    """The few numbers that are calculated with before the configuration is checked as a whole."""
    value = raw.get(key, least)
    if type(value) is not int or value < least:
        raise UserError(f"{where}: {key} = {value!r} is no whole number of at least {least}.")


def _table(raw: Mapping[str, Any], key: str, where: str) -> Mapping[str, Any]:
    table = raw.get(key) or {}
    if not isinstance(table, Mapping):
        raise UserError(f"{where}: {key} = {table!r} is no JSON object.")
    return table


def _yarn(scaling: Mapping[str, Any], where: str) -> dict[str, Any] | None:
    """Yarn's values, unchecked."""
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind == "default":
        return None
    if kind != "yarn":
        raise UserError(f"{where}: rotary scaling of the type {kind!r} is not supported; yarn is.")
    for key in ("factor", "original_max_position_embeddings"):
        if key not in scaling:
            raise UserError(f"{where}: its yarn scaling lacks {key!r}.")
    return {
        "factor": scaling["factor"], "original_length": scaling["original_max_position_embeddings"],
        "beta_fast": scaling.get("beta_fast") or 32.0, "beta_slow": scaling.get("beta_slow") or 1.0,
        "mscale": scaling.get("mscale") or 0.0, "mscale_all_dim": scaling.get("mscale_all_dim") or 0.0,
    }  # fmt: skip


def read_config(folder: Path) -> ModelConfig:
    """The configuration of a model directory. Raises UserError where there is none, or none that mull can run."""
    path = Path(folder) / "config.json"
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{folder} holds no config.json, so it is no model directory.") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}.") from None
    if not isinstance(raw, dict):
        raise UserError(f"{path} holds no JSON object.")
    return config_from_hf(raw, str(path))


@dataclass(frozen=True)
class Place:
    """A tensor on disk, and the slice of ours that it is. `mtp` marks those of the multi-token-prediction layers."""

    theirs: str
    ours: str
    index: tuple[int | slice, ...] = ()
    mtp: bool = False


def places(cfg: ModelConfig) -> Iterator[Place]:
    """Every tensor of a checkpoint, in the order they are written."""
    yield Place("model.embed_tokens.weight", "embed.weight")
    for layer in range(cfg.layers):
        for theirs, ours, index in _block(cfg, layer):
            yield Place(f"model.layers.{layer}.{theirs}", f"blocks.{layer}.{ours}", index)
    yield Place("model.norm.weight", "norm.weight")
    if not cfg.tied:
        yield Place("lm_head.weight", "head.weight")
    for depth in range(cfg.mtp_layers):
        theirs, ours = f"model.layers.{cfg.layers + depth}", f"mtp.{depth}"
        for name, mine in (
            ("enorm", "embed_norm"), ("hnorm", "hidden_norm"), ("eh_proj", "project"), ("shared_head.norm", "norm"),
        ):  # fmt: skip
            yield Place(f"{theirs}.{name}.weight", f"{ours}.{mine}.weight", mtp=True)
        for name, mine, index in _block(cfg, cfg.layers + depth):
            yield Place(f"{theirs}.{name}", f"{ours}.block.{mine}", index, mtp=True)


Part = tuple[str, str, tuple[int | slice, ...]]  # theirs, ours, index, within one block


def _block(cfg: ModelConfig, layer: int) -> Iterator[Part]:
    yield "input_layernorm.weight", "attention_norm.weight", ()
    yield "post_attention_layernorm.weight", "ffn_norm.weight", ()
    for theirs, ours in _attention(cfg):
        yield f"self_attn.{theirs}", f"attention.{ours}", ()
    if not cfg.is_moe(layer):
        yield from _swiglu("mlp", "ffn", cfg.ffn)
        return
    yield "mlp.gate.weight", "ffn.router.weight", ()
    yield "mlp.gate.e_score_correction_bias", "ffn.router.bias", ()
    for e in range(cfg.experts):
        for theirs, index in _halves(cfg.expert_ffn):
            yield f"mlp.experts.{e}.{theirs}.weight", "ffn.gate_up", (e, *index)
        yield f"mlp.experts.{e}.down_proj.weight", "ffn.down", (e,)
    if cfg.shared_experts:
        yield from _swiglu("mlp.shared_experts", "ffn.shared", cfg.expert_ffn * cfg.shared_experts)


def _attention(cfg: ModelConfig) -> list[tuple[str, str]]:
    if cfg.latent:
        pairs = {"kv_a_proj_with_mqa": "kv_a", "kv_a_layernorm": "kv_norm", "kv_b_proj": "kv_b", "o_proj": "o"}
        queries = {"q_a_proj": "q_a", "q_a_layernorm": "q_norm", "q_b_proj": "q_b"} if cfg.q_rank else {"q_proj": "q"}
        return [(f"{theirs}.weight", f"{ours}.weight") for theirs, ours in (queries | pairs).items()]
    names = [(f"{n}_proj.weight", f"{n}.weight") for n in "qkvo"]
    return names + ([(f"{n}_proj.bias", f"{n}.bias") for n in "qkv"] if cfg.qkv_bias else [])


def _halves(ffn: int) -> tuple[tuple[str, tuple[slice]], ...]:
    return ("gate_proj", (slice(0, ffn),)), ("up_proj", (slice(ffn, 2 * ffn),))


def _swiglu(theirs: str, ours: str, ffn: int) -> Iterator[Part]:
    for name, index in _halves(ffn):
        yield f"{theirs}.{name}.weight", f"{ours}.gate_up.weight", index
    yield f"{theirs}.down_proj.weight", f"{ours}.down.weight", ()


__all__ = ["FAMILIES", "Place", "config_from_hf", "config_to_hf", "family_of", "places", "read_config"]
