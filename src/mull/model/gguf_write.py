"""Writing GGUF files that llama.cpp runs, and that come back as the same model.

What llama.cpp would compute otherwise than mull is refused by name, not written: families it has under other rules,
values its architectures have no key for. Tensors are packed one at a time, so that no second copy of the model exists.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import gguf
import torch
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType

from mull.formats.gguf import Header
from mull.model.config import ModelConfig, Yarn, family_of
from mull.model.gguf import ROPE_FACTORS, SIGMOID, Slot, slots
from mull.model.layers import rotary_frequencies, rotary_magnitude, softmax_scale
from mull.model.transformer import Transformer
from mull.ops.quant import quantise
from mull.text.chat import Chat
from mull.text.vocab import metadata_of
from mull.types import UserError, sync

Dtype = Literal["f32", "f16", "bf16", "q8_0"]
ARCHITECTURE = {
    "llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "qwen3_moe": "qwen3moe", "deepseek_v3": "deepseek2",
}  # fmt: skip
FILE_TYPES = {
    "f32": LlamaFileType.ALL_F32, "f16": LlamaFileType.MOSTLY_F16, "bf16": LlamaFileType.MOSTLY_BF16,
    "q8_0": LlamaFileType.MOSTLY_Q8_0,
}  # fmt: skip


def write_gguf(
    path: Path, model: Transformer, chat: Chat, dtype: Dtype = "f32", said: Mapping[str, Any] | None = None
) -> None:
    """Write `model` with its tokenizer and chat template. MTP layers are left out: llama.cpp does not run these.
    `said` is what else the file says of it, such as "general.license".

    Norms, biases and routers stay in fp32, and rows that are no whole blocks of q8_0 in f16, as llama.cpp's own
    converter has it. Raises UserError for a file that exists, for a model that llama.cpp would run otherwise than
    mull, and for numbers that `dtype` cannot hold; OSError where writing fails. Then nothing is left behind.
    """
    path = Path(path)
    if path.exists():
        raise UserError(f"{path} exists already; choose another name, or remove it.")
    arch = architecture_of(model.cfg)
    vocabulary = metadata_of(chat.tokenizer, model.cfg.vocab)
    if not vocabulary["tokenizer.ggml.merges"]:
        raise UserError("This model's tokenizer has no merges; llama.cpp reads none without.")
    part = path.with_name(f".{path.name}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = GGUFWriter(part, arch)
    try:
        _add(writer, "general.type", "model")
        _add(writer, "general.file_type", int(FILE_TYPES[dtype]))
        _add(writer, "general.quantization_version", gguf.GGML_QUANT_VERSION)
        for key, value in ({"general.name": path.stem} | dict(said or {})).items():
            _add(writer, key, value)
        for key, value in _keys(model.cfg).items():
            _add(writer, f"{arch}.{key}", value)
        for key, value in vocabulary.items():
            _add(writer, key, value)
        for key, template in (("chat_template", chat.template), ("chat_template.tool_use", chat.tool_template)):
            if template is not None:
                _add(writer, f"tokenizer.{key}", template)
        _write_tensors(writer, model, arch, dtype)
        writer.close()
        sync(part)
        part.rename(path)
        sync(path.parent)
    finally:
        writer.close()
        part.unlink(missing_ok=True)


def architecture_of(cfg: ModelConfig) -> str:
    """llama.cpp's name for such a model. Raises UserError where it has none that computes the same."""
    family = family_of(cfg)
    if family not in ARCHITECTURE:
        raise UserError(f"A model of the family {family} cannot be written as GGUF; {', '.join(ARCHITECTURE)} can.")
    arch = ARCHITECTURE[family]
    for problem in _differences(cfg, arch):
        raise UserError(f"This {family} model cannot be written as GGUF, where {arch} {problem}.")
    return arch


def _differences(cfg: ModelConfig, arch: str) -> Iterator[str]:
    """What llama.cpp's architecture does that this model does not."""
    if cfg.windowed:
        yield "attends without a sliding window"
    if cfg.yarn is not None and not cfg.yarn.truncate:
        yield "begins YaRN's ramp at whole pairs only (truncate)"
    if cfg.yarn is not None and cfg.yarn.factor < 1:
        yield "has no YaRN factors below 1"
    if cfg.yarn is not None and (cfg.yarn.beta_fast, cfg.yarn.beta_slow) != (32, 1):
        yield "has a beta_fast of 32 and a beta_slow of 1 whatever its keys say"
    if cfg.llama3_rope is not None and arch != "llama":
        yield "has no Llama 3 rope scaling"
    if arch in ("qwen3", "qwen3moe") and cfg.qkv_bias:
        yield "has no biases"
    if arch == "qwen3moe" and not cfg.renormalise:
        yield "always renormalises the experts' weights"
    if arch == "qwen3moe" and cfg.dense_layers:
        yield "has no dense layers"
    if arch != "deepseek2":
        return
    if cfg.eps != 1e-6:
        yield f"has one eps for all norms, and this model has 1e-6 in the latents' norms and {cfg.eps:g} elsewhere"
    if cfg.linear_rope != 1:
        yield "scales attention too where rope is scaled linearly"
    if cfg.q_rank and (cfg.layers in (26, 27) or (cfg.layers, cfg.vocab) == (48, 128256)):
        yield f"of {cfg.layers} layers has no q_rank"


def _keys(cfg: ModelConfig) -> dict[str, Any]:
    """The keys of the architecture."""
    keys: dict[str, Any] = {
        "vocab_size": cfg.vocab,
        "context_length": cfg.max_length,
        "embedding_length": cfg.width,
        "block_count": cfg.layers,
        "feed_forward_length": cfg.ffn,
        "attention.head_count": cfg.heads,
        "attention.layer_norm_rms_epsilon": cfg.eps,
        "rope.freq_base": cfg.rope_theta,
        "rope.dimension_count": cfg.rotary_dim,
    }
    if cfg.latent:  # llama.cpp attends over the latents: one key head, whose value is a part of it
        keys |= {
            "attention.head_count_kv": 1,
            "attention.key_length": cfg.kv_rank + cfg.rope_dim,
            "attention.value_length": cfg.kv_rank,
            "attention.key_length_mla": cfg.qk_dim,
            "attention.value_length_mla": cfg.v_dim,
            "attention.q_lora_rank": cfg.q_rank,
            "attention.kv_lora_rank": cfg.kv_rank,
            "leading_dense_block_count": cfg.dense_layers if cfg.experts else cfg.layers,
            "expert_feed_forward_length": cfg.expert_ffn,
            "expert_shared_count": cfg.shared_experts if cfg.experts else 0,
        }
    else:
        keys |= {f"attention.{name}_length": cfg.head_dim for name in ("key", "value")}
        keys["attention.head_count_kv"] = cfg.kv_heads
    if cfg.experts:
        keys |= {
            "expert_count": cfg.experts,
            "expert_used_count": cfg.active_experts,
            "expert_feed_forward_length": cfg.expert_ffn,
            "expert_weights_scale": cfg.router_scale,
            "expert_weights_norm": cfg.renormalise,
            "expert_gating_func": SIGMOID if cfg.score == "sigmoid" else 1,
        }
    if cfg.experts and cfg.groups > 1:
        keys |= {"expert_group_count": cfg.groups, "expert_group_used_count": cfg.active_groups}
    return keys | _scaling(cfg)


def _scaling(cfg: ModelConfig) -> dict[str, Any]:
    if cfg.linear_rope != 1:
        return {"rope.scaling.type": "linear", "rope.scaling.factor": cfg.linear_rope}
    if cfg.yarn is None:
        return {}
    keys: dict[str, Any] = {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": cfg.yarn.factor,
        "rope.scaling.original_context_length": cfg.yarn.original_length,
    }
    given, weight = _factors(cfg, cfg.yarn)
    if weight:
        keys["rope.scaling.yarn_log_multiplier"] = 0.1 * weight
    if abs(given - 1) > 1e-9:
        keys["rope.scaling.attn_factor"] = given
    return keys


def _factors(cfg: ModelConfig, yarn: Yarn) -> tuple[float, float]:
    """attn_factor and yarn_log_multiplier / 0.1: the two equations of gguf._magnitudes, solved the other way round."""
    log = 0.1 * math.log(yarn.factor)
    magnitude = rotary_magnitude(yarn)
    if not cfg.latent or not log:
        return magnitude / (1 + log), 0.0
    logits = math.sqrt(softmax_scale(cfg) * cfg.qk_dim**0.5)  # one of the two equal factors
    weight = (logits / magnitude - 1) / log
    return (magnitude, weight) if abs(weight) > 1e-9 else (magnitude / (1 + log), 0.0)


def _add(writer: GGUFWriter, key: str, value: Any) -> None:
    match value:
        case bool():
            writer.add_bool(key, value)
        case int():
            writer.add_uint32(key, value)
        case float():
            writer.add_float32(key, value)
        case str():
            writer.add_string(key, value)
        case _:
            writer.add_array(key, value)


def _write_tensors(writer: GGUFWriter, model: Transformer, arch: str, dtype: Dtype) -> None:
    state = model.state_dict()
    factors = _rope_factors(model.cfg)
    if factors is not None:
        writer.add_tensor_info(ROPE_FACTORS, factors.shape, factors.numpy().dtype, factors.nbytes)
    planned = [(slot, _kind(slot, dtype)) for slot in slots(model.cfg, arch)]
    for slot, kind in planned:
        type_ = GGMLQuantizationType[kind]
        numbers, size = gguf.GGML_QUANT_SIZES[type_]
        nbytes = math.prod(slot.shape) // numbers * size
        writer.add_tensor_info(slot.theirs, slot.shape, torch.empty(0).numpy().dtype, nbytes, type_)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    if factors is not None:
        writer.write_tensor_data(factors.numpy())
    for slot, kind in planned:
        packed = quantise(kind, slot.view(state[slot.ours]).detach().float().cpu())
        if packed is None:
            raise UserError(
                f"{slot.theirs} holds numbers that {kind} cannot: they are too large, infinite or none (NaN)."
            )
        writer.write_tensor_data(packed.numpy())


def _kind(slot: Slot, dtype: Dtype) -> str:
    if len(slot.shape) == 1 or slot.theirs.endswith("ffn_gate_inp.weight"):
        return "F32"
    if dtype == "q8_0" and slot.shape[-1] % 32:
        return "F16"
    return dtype.upper()


def dtype_of(header: Header) -> Dtype:
    """In which a file's tensors stay as they are: that of its matrices, else f32, which holds the numbers of all."""

    def stays(dtype: Dtype) -> bool:
        kinds = ((info.type, _kind(Slot(name, info.shape, ""), dtype)) for name, info in header.tensors.items())
        return all(kind in (type_, "F32") for type_, kind in kinds)

    for dtype in ("q8_0", "f16", "bf16"):
        if stays(dtype):
            return dtype
    return "f32"


def _rope_factors(cfg: ModelConfig) -> torch.Tensor | None:
    """What Llama 3's context extension divides the frequency of each rotary pair by."""
    if cfg.llama3_rope is None:
        return None
    plain = rotary_frequencies(cfg.model_copy(update={"llama3_rope": None}))
    return (plain.double() / rotary_frequencies(cfg).double()).float()


__all__ = ["architecture_of", "dtype_of", "write_gguf"]
