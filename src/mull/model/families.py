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

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mull.config import build, nearest
from mull.formats.bounded import CONFIG, read_object
from mull.formats.gguf import is_gguf, read_header
from mull.model.config import ModelConfig, family_of
from mull.model.flops import parameters
from mull.model.rope import rope_from_hf, rope_to_hf
from mull.types import UserError

LARGEST = 10**15  # parameters of a model

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
BIAS = {"qkv_bias": "attention_bias"}
SOFTMAX = {"experts": "num_experts", "active_experts": "num_experts_per_tok", "renormalise": "norm_topk_prob"}
UNSAID = {"rope_theta": 10000.0, "max_length": 2048, "eps": 1e-6, "tied": False, "shared_experts": 0, "qkv_bias": False}
NEEDED = (
    "vocab", "width", "layers", "heads", "ffn", "experts", "expert_ffn", "kv_rank", "nope_dim", "rope_dim", "v_dim",
)  # fmt: skip
NOT_LATENT = {"kv_rank": 0, "q_rank": 0}
NOT_MIXED = {"experts": 0, "active_experts": 1, "dense_layers": 0}
DENSE = NOT_LATENT | NOT_MIXED
CAUSAL = {"hidden_act": "silu", "is_causal": True, "use_bidirectional_attention": False}
MOST_LAYERS = 10_000

Raw = Mapping[str, Any]
Read = Callable[[Raw, int, str], dict[str, Any]]  # config.json, its layers, where it is -> our values
Write = Callable[[ModelConfig], dict[str, Any]]  # -> keys of config.json


@dataclass(frozen=True)
class Family:
    architecture: str
    names: Mapping[str, str]  # our field -> theirs
    fixed: Mapping[str, Any]  # keys of config.json that have one value here; any other is refused
    unsaid: Mapping[str, Any] = field(default_factory=dict)  # our field -> its value where config.json has no such key
    implied: Mapping[str, Any] = field(default_factory=dict)  # our field -> its value in every model of the family
    own: tuple[tuple[Read, Write], ...] = ()  # what it says in its own way
    any_kv_heads: bool = False  # as many as heads, if nothing is said
    o_bias: bool = False  # attention_bias is of the output too


# what some families say in their own way


def _bounded(raw: Raw, key: str, where: str, least: int, unsaid: int) -> int:
    value = raw.get(key, unsaid)
    if type(value) is not int or not least <= value <= MOST_LAYERS:
        raise UserError(f"{where}: {key} = {str(value)[:80]} is no whole number from {least} to {MOST_LAYERS}.")
    return value


def _kinds(raw: Raw, key: str, allowed: Sequence[str], layers: int, where: str) -> list[str]:
    kinds = raw[key]
    if not isinstance(kinds, list) or len(kinds) != layers or any(kind not in allowed for kind in kinds):
        raise UserError(f"{where}: {key} must name one of {', '.join(allowed)} for each of the {layers} layers.")
    return kinds


def _leading(dense: Sequence[int], key: str, where: str) -> dict[str, Any]:
    if list(dense) != list(range(len(dense))):
        raise UserError(f"{where}: {key} has dense layers behind mixtures, which is not supported.")
    return {"dense_layers": len(dense)}


def _read_dense(raw: Raw, layers: int, where: str) -> dict[str, Any]:
    return {"dense_layers": _bounded(raw, "first_k_dense_replace", where, 0, 0)} if FIRST in raw else {}


def _read_dense_list(raw: Raw, layers: int, where: str) -> dict[str, Any]:
    dense = raw.get("mlp_only_layers") or []
    if not isinstance(dense, list) or not all(type(layer) is int and 0 <= layer < layers for layer in dense):
        raise UserError(f"{where}: mlp_only_layers = {str(dense)[:80]} is no list of layers.")
    return _leading(sorted(set(dense)), "mlp_only_layers", where)


def _read_dense_kinds(raw: Raw, layers: int, where: str) -> dict[str, Any]:
    if raw.get("mlp_layer_types") is None:
        return {"dense_layers": min(_bounded(raw, FIRST, where, 0, 1), layers)}
    kinds = _kinds(raw, "mlp_layer_types", ("dense", "sparse"), layers, where)
    return _leading([at for at, kind in enumerate(kinds) if kind == "dense"], "mlp_layer_types", where)


def _write_dense_list(cfg: ModelConfig) -> dict[str, Any]:
    return {"mlp_only_layers": list(range(cfg.dense_layers))}


def _write_all_dense(cfg: ModelConfig) -> dict[str, Any]:
    """All layers dense: the family has no other way to say so."""
    return {} if cfg.experts else {FIRST: cfg.layers, "n_routed_experts": 1, "num_experts_per_tok": 1}


def _read_latent(raw: Raw, layers: int, where: str) -> dict[str, Any]:
    if raw["kv_lora_rank"] == 0:
        raise UserError(f"{where}: kv_lora_rank = 0 is no latent attention.")
    if raw.get("head_dim", raw["qk_rope_head_dim"]) != raw["qk_rope_head_dim"]:  # another name for it, here
        raise UserError(f"{where}: head_dim and qk_rope_head_dim say different things.")
    return {"q_rank": raw["q_lora_rank"] or 0} if "q_lora_rank" in raw else {}  # null: queries in one matrix


def _write_latent(cfg: ModelConfig) -> dict[str, Any]:
    return {"num_key_value_heads": cfg.heads, "q_lora_rank": cfg.q_rank or None}


def _read_head_norm(raw: Raw, layers: int, where: str) -> dict[str, Any]:
    return {"qk_norm": "head" if raw.get("use_qk_norm", False) else "none"}


def _write_head_norm(cfg: ModelConfig) -> dict[str, Any]:
    return {"use_qk_norm": cfg.qk_norm == "head"}


def _read_clip(raw: Raw, layers: int, where: str) -> dict[str, Any]:
    if raw.get("clip_qkv", 1) == 0:
        raise UserError(f"{where}: clip_qkv = 0 leaves nothing of queries, keys and values; null does not clip.")
    return {}


def _write_clip(cfg: ModelConfig) -> dict[str, Any]:
    return {"clip_qkv": cfg.clip_qkv or None}


def _read_window(raw: Raw, layers: int, where: str) -> dict[str, Any]:
    """In all layers: qwen3_moe."""
    window = raw.get("sliding_window", 4096) if raw.get("use_sliding_window", False) else None
    return {} if window is None else {"window": window, "windowed": tuple(range(layers))}


def _write_window(cfg: ModelConfig) -> dict[str, Any]:
    return {"use_sliding_window": bool(cfg.windowed), "sliding_window": cfg.window or None}


def _read_windows(raw: Raw, layers: int, where: str) -> dict[str, Any]:
    """In some layers: qwen2, qwen3."""
    window = _read_window(raw, layers, where).get("window")
    if raw.get("layer_types") is not None:
        kinds = _kinds(raw, "layer_types", WINDOW_KINDS, layers, where)
        windowed = [at for at, kind in enumerate(kinds) if kind == "sliding_attention"]
        if windowed and window is None:
            raise UserError(f"{where}: layer_types names sliding layers, but no sliding_window is in use.")
    else:
        windowed = range(min(_bounded(raw, "max_window_layers", where, 0, 28), layers), layers)
    return {"window": window, "windowed": tuple(windowed)} if window is not None and len(windowed) else {}


def _write_windows(cfg: ModelConfig) -> dict[str, Any]:
    return _write_window(cfg) | {
        "max_window_layers": min(cfg.windowed, default=cfg.layers),
        "layer_types": [WINDOW_KINDS[layer in cfg.windowed] for layer in range(cfg.layers)],
    }


def _nothing(*_: Any) -> dict[str, Any]:
    return {}


FIRST = "first_k_dense_replace"
WINDOW_KINDS = ("full_attention", "sliding_attention")
LATENTS, WINDOWS = (_read_latent, _write_latent), (_read_windows, _write_windows)

DEEPSEEK = Family(
    "DeepseekV3ForCausalLM",
    COMMON | EXPERTS | DEEP | LATENT,
    CAUSAL | {
        "attention_bias": False, "rope_interleave": True, "scoring_func": "sigmoid", "topk_method": "noaux_tc",
        "moe_layer_freq": 1,
    },
    unsaid={
        "active_experts": 8, "shared_experts": 1, "groups": 8, "active_groups": 4, "router_scale": 2.5,
        "renormalise": True, "dense_layers": 3, "q_rank": 1536, "max_length": 4096,
    },
    implied={"score": "sigmoid"}, any_kv_heads=True, own=(LATENTS, (_read_dense, _write_all_dense)),
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
        implied={"score": "sigmoid"}, any_kv_heads=True, own=(LATENTS, (_read_dense_kinds, _nothing)),
    ),
    "glm4_moe": Family(
        "Glm4MoeForCausalLM",
        COMMON | EXPERTS | DEEP | HEADS | BIAS | {"partial_rotary": "partial_rotary_factor"},
        CAUSAL,
        unsaid={
            "active_experts": 8, "shared_experts": 1, "renormalise": True, "dense_layers": 1, "partial_rotary": 0.5,
            "eps": 1e-5, "max_length": 131072,
        },
        implied={"score": "sigmoid"} | NOT_LATENT,
        own=((_read_dense, _nothing), (_read_head_norm, _write_head_norm)),
    ),
    "olmoe": Family(
        "OlmoeForCausalLM",
        COMMON | SOFTMAX | BIAS | {"clip_qkv": "clip_qkv", "expert_ffn": "intermediate_size"},
        CAUSAL,
        unsaid={"active_experts": 8, "renormalise": False, "eps": 1e-5, "max_length": 4096},
        implied={"score": "softmax", "qk_norm": "full", "shared_experts": 0, "dense_layers": 0} | NOT_LATENT,
        own=((_read_clip, _write_clip),), any_kv_heads=True, o_bias=True,
    ),
    "qwen3_moe": Family(
        "Qwen3MoeForCausalLM",
        COMMON | SOFTMAX | HEADS | BIAS | {"expert_ffn": "moe_intermediate_size"},
        CAUSAL | {"decoder_sparse_step": 1},
        unsaid={"active_experts": 8, "renormalise": False, "max_length": 32768},
        implied={"score": "softmax", "qk_norm": "head", "shared_experts": 0} | NOT_LATENT,
        own=((_read_dense_list, _write_dense_list), (_read_window, _write_window)), o_bias=True,
    ),
    "qwen3": Family(
        "Qwen3ForCausalLM",
        COMMON | HEADS | BIAS,
        CAUSAL,
        unsaid={"head_dim": 128, "max_length": 32768},
        implied={"qk_norm": "head"} | DENSE, own=(WINDOWS,), o_bias=True,
    ),
    "qwen2": Family(
        "Qwen2ForCausalLM",
        COMMON | HEADS,
        CAUSAL,
        unsaid={"max_length": 32768},
        implied={"qkv_bias": True} | DENSE, own=(WINDOWS,),
    ),
    "llama": Family(
        "LlamaForCausalLM", COMMON | HEADS | BIAS, CAUSAL | {"mlp_bias": False}, implied=DENSE, any_kv_heads=True,
        o_bias=True,
    ),
}  # fmt: skip
# what newer versions of transformers write for the published keys
RENAMED = {"num_local_experts": ("num_experts", "n_routed_experts"), "num_mtp_layers": ("num_nextn_predict_layers",)}
NULLABLE = ("head_dim", "num_key_value_heads", "clip_qkv")  # null is unsaid


def config_to_hf(cfg: ModelConfig) -> dict[str, Any]:
    """The content of config.json."""
    name = family_of(cfg)
    family = FAMILIES[name]
    raw: dict[str, Any] = {"architectures": [family.architecture], "model_type": name}
    raw |= {theirs: getattr(cfg, ours) for ours, theirs in family.names.items()}
    raw |= {**family.fixed, "torch_dtype": "float32", "use_cache": True}
    for _, write in family.own:
        raw |= write(cfg)
    return raw | rope_to_hf(cfg)


def config_from_hf(raw: Raw, where: str) -> ModelConfig:
    """Raises UserError for a family, or a value of one, that mull cannot run; it never runs one wrongly."""
    name = str(raw.get("model_type"))[:80]
    if name not in FAMILIES:
        hint = nearest(name, FAMILIES) or f" mull reads {', '.join(FAMILIES)}."
        raise UserError(f"{where}: the model family {name!r} is not supported.{hint}")
    family = FAMILIES[name]
    raw = _published(raw, family)
    for key, wanted in family.fixed.items():
        if raw.get(key, wanted) != wanted:
            raise UserError(f"{where}: {key} = {str(raw[key])[:80]!r} is not supported for {name}; only {wanted!r} is.")
    needed = [family.names[ours] for ours in NEEDED if ours in family.names]
    for key in needed if family.any_kv_heads else [*needed, "num_key_value_heads"]:
        if key not in raw:
            raise UserError(f"{where} lacks {key!r}, which a model of the family {name} has.")
    layers = _bounded(raw, "num_hidden_layers", where, 1, 0)
    said = {ours: raw[theirs] for ours, theirs in family.names.items() if theirs in raw}
    for ours, value in said.items():
        if isinstance(value, bool) and ModelConfig.model_fields[ours].annotation is not bool:
            raise UserError(f"{where}: {family.names[ours]} = {value} is no number.")
    values = {**UNSAID, "kv_heads": said["heads"], **family.unsaid, **said, **family.implied}
    for read, _ in family.own:
        values |= read(raw, layers, where)
    if "kv_rank" in family.names:
        values["kv_heads"] = values["heads"]
    elif "head_dim" not in values:
        heads = _bounded(raw, "num_attention_heads", where, 1, 0)
        values["head_dim"] = values["width"] // heads if type(values["width"]) is int else values["width"]
    values["o_bias"] = family.o_bias and values["qkv_bias"]
    if values.get("dense_layers", 0) >= layers:
        values |= NOT_MIXED
    cfg = build(ModelConfig, values | rope_from_hf(raw, where), where)
    if (total := parameters(cfg).total) > LARGEST:
        raise UserError(f"{where} describes a model of {total:.1e} parameters; there is none that large.")
    return cfg


def _published(raw: Raw, family: Family) -> dict[str, Any]:
    """With the keys that are published, and without those that say nothing."""
    found = {key: value for key, value in raw.items() if value is not None or key not in NULLABLE}
    for new, olds in RENAMED.items():
        for old in olds:
            if new in found and old in family.names.values():
                found.setdefault(old, found[new])
    return found


def read_config(path: Path) -> ModelConfig:
    """The configuration of a model directory, a config.json or a GGUF file; no weights are read.

    Raises UserError where there is none, or none that mull can run.
    """
    path = Path(path)
    if is_gguf(path):
        from mull.model import gguf

        return gguf.config_of(read_header(path))
    where = path if path.suffix == ".json" else path / "config.json"
    return config_from_hf(read_raw(where), str(where))


def read_raw(path: Path) -> dict[str, Any]:
    """The content of a config.json."""
    try:
        return read_object(path, CONFIG)
    except FileNotFoundError:
        raise UserError(f"{path.parent} holds no {path.name}, so it is no model directory.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error}.") from None


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
