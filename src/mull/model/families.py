"""Hugging Face layout: what our configurations and weights are called in the checkpoints that others read.

A family is a row of FAMILIES (how its config.json spells our numbers) and the one list of tensor places below. Nothing
here computes: a `Place` says which slice of which of our tensors a tensor on disk is, so writing is slicing and
reading is copying into the slice.

Which family a configuration belongs to follows from its values (config.family_of). GLM-4.7-Flash's `glm4_moe_lite` is
DeepSeek-V3's architecture under another name; it is read, and written as `deepseek_v3`. MTP layers follow the last
layer in the names, as DeepSeek publishes them.

What a config.json leaves unsaid has the value that transformers gives it; what it says and mull cannot run is refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mull.config import build, nearest
from mull.model.config import ModelConfig, family_of
from mull.types import UserError

LARGEST = 16 * 2**20  # bytes of a config.json

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
}
EXPERTS = {
    "experts": "n_routed_experts",
    "active_experts": "num_experts_per_tok",
    "shared_experts": "n_shared_experts",
    "expert_ffn": "moe_intermediate_size",
    "groups": "n_group",
    "active_groups": "topk_group",
    "router_scale": "routed_scaling_factor",
    "renormalise": "norm_topk_prob",
}
DEEP = {"dense_layers": "first_k_dense_replace", "mtp_layers": "num_nextn_predict_layers"}
LATENT = {
    "q_rank": "q_lora_rank",
    "kv_rank": "kv_lora_rank",
    "nope_dim": "qk_nope_head_dim",
    "rope_dim": "qk_rope_head_dim",
    "v_dim": "v_head_dim",
}
HEADS = {"head_dim": "head_dim"}
SOFTMAX = {"experts": "num_experts", "active_experts": "num_experts_per_tok", "renormalise": "norm_topk_prob"}
NO_SCALING = {"rope_theta": 10000.0, "max_length": 2048, "eps": 1e-6}
NOT_LATENT = {"kv_rank": 0, "q_rank": 0}
NOT_MIXED = {"experts": 0, "active_experts": 1}


@dataclass(frozen=True)
class Family:
    architecture: str
    names: Mapping[str, str]  # our field -> theirs
    fixed: Mapping[str, Any]  # keys of config.json that have one value here; any other is refused
    unsaid: Mapping[str, Any] = field(default_factory=dict)  # our field -> its value where config.json has no such key
    implied: Mapping[str, Any] = field(default_factory=dict)  # our field -> its value in every model of the family


SILU = {"hidden_act": "silu"}
DEEPSEEK = Family(
    "DeepseekV3ForCausalLM",
    COMMON | EXPERTS | DEEP | LATENT,
    SILU | {
        "attention_bias": False, "rope_interleave": True, "scoring_func": "sigmoid", "topk_method": "noaux_tc",
        "moe_layer_freq": 1,
    },
    unsaid={
        "active_experts": 8, "shared_experts": 1, "groups": 8, "active_groups": 4, "router_scale": 2.5,
        "renormalise": True, "dense_layers": 3, "q_rank": 1536, "max_length": 4096,
    },
    implied={"score": "sigmoid"},
)  # fmt: skip
FAMILIES: dict[str, Family] = {
    "deepseek_v3": DEEPSEEK,
    "glm4_moe_lite": Family(
        "Glm4MoeLiteForCausalLM",
        COMMON | EXPERTS | LATENT | {"mtp_layers": "num_nextn_predict_layers"},
        DEEPSEEK.fixed,
        unsaid={
            "active_experts": 4, "shared_experts": 1, "router_scale": 1.8, "renormalise": True, "q_rank": 768,
            "eps": 1e-5, "max_length": 202752,
        },
        implied={"score": "sigmoid"},
    ),
    "glm4_moe": Family(
        "Glm4MoeForCausalLM",
        COMMON | EXPERTS | DEEP | HEADS | {"qkv_bias": "attention_bias", "partial_rotary": "partial_rotary_factor"},
        SILU,
        unsaid={
            "active_experts": 8, "shared_experts": 1, "renormalise": True, "dense_layers": 1, "partial_rotary": 0.5,
            "eps": 1e-5, "max_length": 131072,
        },
        implied={"score": "sigmoid"} | NOT_LATENT,
    ),
    "olmoe": Family(
        "OlmoeForCausalLM",
        COMMON | SOFTMAX | {"qkv_bias": "attention_bias", "clip_qkv": "clip_qkv", "expert_ffn": "intermediate_size"},
        SILU,
        unsaid={"active_experts": 8, "renormalise": False, "eps": 1e-5, "max_length": 4096},
        implied={"score": "softmax", "qk_norm": "full", "shared_experts": 0, "dense_layers": 0} | NOT_LATENT,
    ),
    "qwen3_moe": Family(
        "Qwen3MoeForCausalLM",
        COMMON | SOFTMAX | HEADS | {"qkv_bias": "attention_bias", "expert_ffn": "moe_intermediate_size"},
        SILU | {"decoder_sparse_step": 1},
        unsaid={"active_experts": 8, "renormalise": False, "max_length": 32768},
        implied={"score": "softmax", "qk_norm": "head", "shared_experts": 0} | NOT_LATENT,
    ),
    "qwen3": Family(
        "Qwen3ForCausalLM",
        COMMON | HEADS | {"qkv_bias": "attention_bias"},
        SILU,
        unsaid={"head_dim": 128, "max_length": 32768},
        implied={"qk_norm": "head"} | NOT_LATENT | NOT_MIXED,
    ),
    "qwen2": Family(
        "Qwen2ForCausalLM",
        COMMON | HEADS,
        SILU,
        unsaid={"max_length": 32768},
        implied={"qkv_bias": True} | NOT_LATENT | NOT_MIXED,
    ),
    "llama": Family(
        "LlamaForCausalLM",
        COMMON | HEADS | {"qkv_bias": "attention_bias"},
        SILU | {"mlp_bias": False},
        implied=NOT_LATENT | NOT_MIXED,
    ),
}  # fmt: skip
ONE_BIAS = ("olmoe", "qwen3_moe", "qwen3", "llama")  # their attention_bias is of the output too
ALL_KEYS = ("llama", "olmoe", "deepseek_v3", "glm4_moe_lite")  # as many key heads as heads, if nothing is said
WINDOWS = ("qwen2", "qwen3", "qwen3_moe")
# what newer versions of transformers write for the published keys
RENAMED = {
    "num_local_experts": "num_experts",
    "num_mtp_layers": "num_nextn_predict_layers",
}  # fmt: skip
NULLABLE = ("head_dim", "num_key_value_heads", "clip_qkv")  # null is unsaid


def config_to_hf(cfg: ModelConfig) -> dict[str, Any]:
    """The content of config.json."""
    name = family_of(cfg)
    family = FAMILIES[name]
    raw: dict[str, Any] = {"architectures": [family.architecture], "model_type": name}
    raw |= {theirs: getattr(cfg, ours) for ours, theirs in family.names.items()}
    raw |= {**family.fixed, "torch_dtype": "float32", "use_cache": True}
    if cfg.latent:
        raw |= {"num_key_value_heads": cfg.heads, "q_lora_rank": cfg.q_rank or None}
    if name == "deepseek_v3" and not cfg.experts:  # all layers dense; the family has no other way to say so
        raw |= {"first_k_dense_replace": cfg.layers, "n_routed_experts": 1, "num_experts_per_tok": 1}
    if name == "glm4_moe":
        raw["use_qk_norm"] = cfg.qk_norm == "head"
    if name == "olmoe":
        raw["clip_qkv"] = cfg.clip_qkv or None
    if name == "qwen3_moe":
        raw["mlp_only_layers"] = list(range(cfg.dense_layers))
    if name in WINDOWS:
        raw |= {"use_sliding_window": bool(cfg.windowed), "sliding_window": cfg.window or None}
        if name != "qwen3_moe":
            raw["max_window_layers"] = min(cfg.windowed, default=cfg.layers)
            kinds = ("full_attention", "sliding_attention")
            raw["layer_types"] = [kinds[layer in cfg.windowed] for layer in range(cfg.layers)]
    return raw | {"rope_theta": cfg.rope_theta, "rope_scaling": _scaling_to_hf(cfg)}


def config_from_hf(raw: Mapping[str, Any], where: str) -> ModelConfig:
    """Raises UserError for a family, or a value of one, that mull cannot run; it never runs one wrongly."""
    name = str(raw.get("model_type"))
    if name not in FAMILIES:
        hint = nearest(name[:80], FAMILIES) or f" mull reads {', '.join(FAMILIES)}."
        raise UserError(f"{where}: the model family {name[:80]!r} is not supported.{hint}")
    family = FAMILIES[name]
    raw = {key: value for key, value in raw.items() if value is not None or key not in NULLABLE}
    for new, published in RENAMED.items():
        if new in raw and published in family.names.values():
            raw.setdefault(published, raw[new])
    for key, wanted in family.fixed.items():
        if raw.get(key, wanted) != wanted:
            raise UserError(f"{where}: {key} = {raw[key]!r} is not supported for {name}; only {wanted!r} is.")
    for theirs in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"):
        if theirs not in raw:
            raise UserError(f"{where} lacks {theirs!r}, without which there is no model.")
        _natural(raw, theirs, where, least=1)
    for theirs in ("experts", "expert_ffn", "kv_rank", "nope_dim", "rope_dim", "v_dim"):
        if theirs in family.names and family.names[theirs] not in raw:
            raise UserError(f"{where} lacks {family.names[theirs]!r}, which a model of the family {name} has.")
    if name not in ALL_KEYS and "num_key_value_heads" not in raw:
        raise UserError(f"{where} lacks 'num_key_value_heads', which a model of the family {name} has.")
    _natural(raw, "first_k_dense_replace", where, least=0)
    _natural(raw, "kv_lora_rank", where, least=1)
    said = {ours: raw[theirs] for ours, theirs in family.names.items() if theirs in raw}
    values = {**NO_SCALING, "tied": False, "shared_experts": 0, "qkv_bias": False, **family.unsaid, **said}
    values |= family.implied
    if name == "qwen2":
        values["qkv_bias"] = True
    values["o_bias"] = values["qkv_bias"] if name in ONE_BIAS else False
    if "kv_rank" in family.names or "kv_heads" not in said:
        values["kv_heads"] = values["heads"]
    if "kv_rank" in family.names:
        values["q_rank"] = values["q_rank"] or 0  # null: queries in one matrix
    elif "head_dim" not in values:
        values["head_dim"] = values["width"] // values["heads"]
    values |= _particular(name, raw, values, where)
    if values.get("dense_layers", 0) >= values["layers"]:
        values |= {"dense_layers": 0, **NOT_MIXED}
    return build(ModelConfig, values | _rope(raw, where), where)


def _particular(name: str, raw: Mapping[str, Any], values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """What one family says in its own way."""
    layers: int = values["layers"]
    own: dict[str, Any] = {}
    if name == "glm4_moe":
        own["qk_norm"] = "head" if raw.get("use_qk_norm", False) else "none"
    if name == "glm4_moe_lite":
        default = ["dense"] * raw.get("first_k_dense_replace", 1) + ["sparse"] * layers
        kinds = raw.get("mlp_layer_types") or default[:layers]
        own["dense_layers"] = _leading(kinds, "dense", "sparse", layers, "mlp_layer_types", where)
    if name == "qwen3_moe":
        dense = raw.get("mlp_only_layers") or []
        kinds = ["dense" if layer in dense else "sparse" for layer in range(layers)] if _list(dense) else dense
        own["dense_layers"] = _leading(kinds, "dense", "sparse", layers, "mlp_only_layers", where)
    if name in WINDOWS and raw.get("use_sliding_window", False) and raw.get("sliding_window", 4096) is not None:
        own["window"] = raw.get("sliding_window", 4096)
        kinds = raw.get("layer_types")
        if name == "qwen3_moe":
            own["windowed"] = tuple(range(layers))
        elif kinds is None:
            own["windowed"] = tuple(range(min(_natural(raw, "max_window_layers", where, 0, 28), layers), layers))
        else:
            _kinds(kinds, ("full_attention", "sliding_attention"), layers, "layer_types", where)
            own["windowed"] = tuple(at for at, kind in enumerate(kinds) if kind == "sliding_attention")
        if not own["windowed"]:
            del own["window"]
    return own


def _list(value: Any) -> bool:
    return isinstance(value, list)


def _kinds(kinds: Any, allowed: tuple[str, ...], layers: int, key: str, where: str) -> None:
    if not _list(kinds) or len(kinds) != layers or any(kind not in allowed for kind in kinds):
        raise UserError(f"{where}: {key} must name one of {', '.join(allowed)} for each of the {layers} layers.")


def _leading(kinds: Any, first: str, then: str, layers: int, key: str, where: str) -> int:
    """How many layers are of the kind `first`; they must be the first ones."""
    _kinds(kinds, (first, then), layers, key, where)
    count = kinds.count(first)
    if kinds[:count] != [first] * count:
        raise UserError(f"{where}: {key} has {first} layers behind others, which is not supported.")
    return count


def _natural(raw: Mapping[str, Any], key: str, where: str, least: int, unsaid: int | None = None) -> int:
    """The few numbers that are calculated with before the configuration is checked as a whole."""
    value = raw.get(key, least if unsaid is None else unsaid)
    if type(value) is not int or value < least:
        raise UserError(f"{where}: {key} = {value!r} is no whole number of at least {least}.")
    return value


def _table(raw: Mapping[str, Any], key: str, where: str) -> Mapping[str, Any]:
    table = raw.get(key) or {}
    if not isinstance(table, Mapping):
        raise UserError(f"{where}: {key} = {table!r} is no JSON object.")
    return table


# how positions are turned and stretched

YARN = {
    "factor": "factor", "original_length": "original_max_position_embeddings", "beta_fast": "beta_fast",
    "beta_slow": "beta_slow", "mscale": "mscale", "mscale_all_dim": "mscale_all_dim", "magnitude": "attention_factor",
    "truncate": "truncate",
}  # fmt: skip
LLAMA3 = {key: YARN[key] for key in ("factor", "original_length")} | {
    "low_freq_factor": "low_freq_factor", "high_freq_factor": "high_freq_factor",
}  # fmt: skip


def _rope(raw: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Our values for rope_theta and rope_scaling, or rope_parameters, which transformers writes since its version 5."""
    table = {**_table(raw, "rope_scaling", where), **_table(raw, "rope_parameters", where)}
    values: dict[str, Any] = {}
    for ours, theirs in (("rope_theta", "rope_theta"), ("partial_rotary", "partial_rotary_factor")):
        if (said := table.get(theirs, raw.get(theirs))) is not None:
            values[ours] = said
    kind = table.get("rope_type", table.get("type", "default"))
    if kind == "default":
        return values
    if kind not in ("linear", "llama3", "yarn"):
        raise UserError(f"{where}: rotary scaling of the type {kind!r} is not supported; linear, llama3 and yarn are.")
    if kind != "linear":
        table.setdefault("original_max_position_embeddings", raw.get("max_position_embeddings"))
    needed = ["factor"] if kind == "linear" else ["factor", "original_max_position_embeddings"]
    needed += ["low_freq_factor", "high_freq_factor"] if kind == "llama3" else []
    for key in needed:
        if table.get(key) is None:
            raise UserError(f"{where}: its {kind} scaling lacks {key!r}.")
    if kind == "linear":
        return values | {"linear_rope": table["factor"]}
    names = YARN if kind == "yarn" else LLAMA3
    scaling = {ours: table[theirs] for ours, theirs in names.items() if table.get(theirs) is not None}
    return values | {"yarn" if kind == "yarn" else "llama3_rope": scaling}


def _scaling_to_hf(cfg: ModelConfig) -> dict[str, Any] | None:
    if cfg.linear_rope != 1:
        return {"type": "linear", "rope_type": "linear", "factor": cfg.linear_rope}
    kind, names, scaling = ("yarn", YARN, cfg.yarn) if cfg.yarn is not None else ("llama3", LLAMA3, cfg.llama3_rope)
    if scaling is None:
        return None
    said = {theirs: getattr(scaling, ours) for ours, theirs in names.items()}
    for unset in ("mscale", "mscale_all_dim", "attention_factor"):
        if said.get(unset) == 0:
            del said[unset]
    return {"type": kind, "rope_type": kind, **said}


def read_config(path: Path) -> ModelConfig:
    """The configuration of a model directory, a config.json or a GGUF file; no weights are read.

    Raises UserError where there is none, or none that mull can run.
    """
    path = Path(path)
    if path.suffix == ".gguf":
        from mull.formats.gguf import read_header
        from mull.model import gguf

        return gguf.config_of(read_header(path))
    where = path if path.suffix == ".json" else path / "config.json"
    return config_from_hf(read_raw(where), str(where))


def read_raw(path: Path) -> dict[str, Any]:
    """The content of a config.json."""
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)
        if len(content) > LARGEST:
            raise UserError(f"{path} has more than {LARGEST:,} bytes; no config.json is that large.")
        raw = json.loads(content)
    except FileNotFoundError:
        raise UserError(f"{path.parent} holds no {path.name}, so it is no model directory.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read: {error}.") from None
    if not isinstance(raw, dict):
        raise UserError(f"{path} holds no JSON object.")
    return raw


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
    if cfg.score == "sigmoid":
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
    names = [f"{n}_proj.weight" for n in "qkvo"]
    names += [f"{n}_proj.bias" for n in "qkv" if cfg.qkv_bias] + ["o_proj.bias"] * cfg.o_bias
    names += [f"{n}_norm.weight" for n in "qk" if cfg.qk_norm != "none"]
    return [(name, name.replace("_proj", "")) for name in names]


def _halves(ffn: int) -> tuple[tuple[str, tuple[slice]], ...]:
    return ("gate_proj", (slice(0, ffn),)), ("up_proj", (slice(ffn, 2 * ffn),))


def _swiglu(theirs: str, ours: str, ffn: int) -> Iterator[Part]:
    for name, index in _halves(ffn):
        yield f"{theirs}.{name}.weight", f"{ours}.gate_up.weight", index
    yield f"{theirs}.down_proj.weight", f"{ours}.down.weight", ()


__all__ = ["FAMILIES", "Place", "config_from_hf", "config_to_hf", "family_of", "places", "read_config", "read_raw"]
