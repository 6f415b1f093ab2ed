"""GGUF files as models: what llama.cpp's keys and tensors are called here, and reading them.

llama.cpp has an architecture for each family of ours (`llama`, `qwen2`, `qwen3`, `qwen3moe`, `deepseek2`). Which keys
one has, and what they do, follows llama.cpp's src/models/*.cpp and conversion/*.py. Every key is either read or known
to change no computation; a file with any other is refused by that key's name, as is a value that mull cannot run.

Tensors are the Hugging Face ones under other names, some in another order: `llama` keeps the rows of q and k so that
rotary pairs are neighbours, `deepseek2` keeps kv_b as two tensors, the keys' part transposed, and experts are stacked
as ours are. A `Slot` says which view of which of our tensors has a GGUF tensor's numbers in their order: reading is
unpacking into the view, and writing (gguf_write.py) is packing from it.

D width  H heads  K head width  N non-rotary width  V value width  C kv_rank  E experts  F expert width
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError
from torch import Tensor

from mull.config import build, nearest
from mull.formats.gguf import Header, shown
from mull.model.config import Llama3Rope, ModelConfig
from mull.model.layers import rotary_frequencies
from mull.model.source import mapped
from mull.model.transformer import Transformer
from mull.ops.quant import READABLE, dequantise
from mull.types import UserError

ARCHITECTURES = ("llama", "qwen2", "qwen3", "qwen3moe", "deepseek2")
IDLE = ("vocab_size", "rope.scaling.finetuned")  # keys that describe a file and compute nothing
SIGMOID = 2  # of llama.cpp's numbers for what an expert's score is
ROPE_FACTORS = "rope_freqs.weight"
BALANCE = "exp_probs_b.bias"


class _Keys:
    """The keys of a file's architecture, each taken once; `done` refuses what is left."""

    def __init__(self, header: Header):
        self.where = str(header.path)
        self.arch = name = str(header.metadata.get("general.architecture"))
        if name not in ARCHITECTURES:
            hint = nearest(name[:80], ARCHITECTURES) or f" mull reads {', '.join(ARCHITECTURES)}."
            raise UserError(f"{self.where}: the GGUF architecture {name[:80]!r} is not supported.{hint}")
        begin = f"{name}."
        self.left = {key.removeprefix(begin): value for key, value in header.metadata.items() if key.startswith(begin)}

    def fail(self, key: str, value: object, wanted: str) -> UserError:
        return UserError(f"{self.where}: {self.arch}.{key} = {shown(value)} is not supported; {wanted} is.")

    def take(self, key: str, default: Any = None) -> Any:
        """Raises UserError for a key that is missing and has no default; so do those below, and for other types."""
        value = self.left.pop(key, default)
        if value is None:
            raise UserError(f"{self.where} lacks the key {self.arch}.{key}, without which there is no model.")
        return value

    def natural(self, key: str, default: int | None = None) -> int:
        value = self.take(key, default)
        if type(value) is not int or value < 0:
            raise self.fail(key, value, "a whole number")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """GGUF keeps numbers in single precision; here is the shortest decimal that rounds to the same one."""
        value = self.take(key, default)
        if type(value) not in (int, float) or not abs(value) < 3e38:
            raise self.fail(key, value, "a number")
        return float(str(np.float32(value)))

    def flag(self, key: str, default: bool) -> bool:
        value = self.take(key, default)
        if type(value) is not bool:
            raise self.fail(key, value, "true or false")
        return value

    def only(self, key: str, *allowed: Any) -> None:
        """A key that may be absent, or have one of these values."""
        value = self.left.pop(key, allowed[0])
        if type(value) in (list, dict) or value not in allowed:
            raise self.fail(key, value, " or ".join(repr(one) for one in allowed))

    def done(self) -> None:
        for key in self.left:
            if key not in IDLE:
                raise UserError(f"{self.where}: the key {self.arch}.{shown(key)[1:-1]} is not supported.")


def config_of(header: Header) -> ModelConfig:
    """The configuration of a GGUF file whose tensors are all there, in the shapes it calls for; no weights are read.

    Raises UserError for an architecture, key, value or tensor that mull cannot run, by its name.
    """
    keys, tensors, where = _Keys(header), header.tensors, str(header.path)
    if "token_embd.weight" not in tensors:
        raise UserError(f"{where} lacks the tensor token_embd.weight; it holds no weights, or not all.")
    values: dict[str, Any] = {
        "vocab": tensors["token_embd.weight"].shape[0],
        "width": keys.natural("embedding_length"),
        "layers": keys.natural("block_count"),
        "heads": keys.natural("attention.head_count"),
        "ffn": keys.natural("feed_forward_length"),
        "max_length": keys.natural("context_length"),
        "eps": keys.number("attention.layer_norm_rms_epsilon"),
        "rope_theta": keys.number("rope.freq_base", 10000.0),
        "tied": "output.weight" not in tensors,
    }
    if not values["heads"] or values["layers"] > len(tensors):
        raise UserError(
            f"{where} announces {values['layers']} layers of {values['heads']} heads and has {len(tensors)} tensors; "
            "it is not whole."
        )
    values |= _latent(keys, values["heads"]) if keys.arch == "deepseek2" else _grouped(keys, values, tensors)
    values |= _experts(keys, values["layers"])
    values |= _scaling(keys, values["max_length"])
    keys.only("attention.sliding_window", 0)
    keys.only("attention.causal", True)
    keys.only("tensor_data_layout", "reference")
    keys.only("nextn_predict_layers", 0)
    keys.done()
    cfg = build(ModelConfig, values, where)
    if keys.arch == "llama" and ROPE_FACTORS in tensors:
        cfg = build(ModelConfig, values | _llama3(cfg, header), where)
    _whole(cfg, header)
    return cfg


def _grouped(keys: _Keys, values: Mapping[str, Any], tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Grouped-query attention. Whether it has biases, its tensors say."""
    head_dim = keys.natural("attention.key_length", values["width"] // values["heads"])
    keys.only("attention.value_length", head_dim)
    keys.only("rope.dimension_count", head_dim)
    return {
        "kv_rank": 0,
        "kv_heads": keys.natural("attention.head_count_kv", values["heads"]),
        "head_dim": head_dim,
        "qk_norm": "head" if keys.arch in ("qwen3", "qwen3moe") else "none",
        "qkv_bias": "blk.0.attn_q.bias" in tensors,
        "o_bias": "blk.0.attn_output.bias" in tensors,
    }


def _latent(keys: _Keys, heads: int) -> dict[str, Any]:
    """Latent attention. Files of before 2025 say the heads' widths in key_length, later ones those of what is cached.

    The norms of the latents keep eps 1e-6 whatever the file's eps is: so do the models that are published.
    """
    rank, rope = keys.natural("attention.kv_lora_rank"), keys.natural("rope.dimension_count")
    if "attention.key_length_mla" in keys.left:
        width, value = keys.natural("attention.key_length_mla"), keys.natural("attention.value_length_mla")
        keys.only("attention.key_length", rank + rope)
        keys.only("attention.value_length", rank)
        keys.only("attention.head_count_kv", 1)
    else:
        width, value = keys.natural("attention.key_length"), keys.natural("attention.value_length")
        keys.only("attention.head_count_kv", heads)
    return {
        "q_rank": keys.natural("attention.q_lora_rank", 0),
        "kv_rank": rank,
        "kv_heads": heads,
        "nope_dim": width - rope,
        "rope_dim": rope,
        "v_dim": value,
    }


def _experts(keys: _Keys, layers: int) -> dict[str, Any]:
    latent = keys.arch == "deepseek2"
    experts = keys.natural("expert_count", 0)
    dense = keys.natural("leading_dense_block_count", 0)
    width = keys.natural("expert_feed_forward_length", 0)
    shared, used = keys.natural("expert_shared_count", 0), keys.natural("expert_used_count", 0)
    scale = keys.number("expert_weights_scale", 1.0) or 1.0
    renormalise = keys.flag("expert_weights_norm", not latent)
    groups, used_groups = keys.natural("expert_group_count", 0), keys.natural("expert_group_used_count", 0)
    gating = keys.natural("expert_gating_func", 1)  # softmax, where a file does not say
    if not experts or dense >= layers:
        return {"experts": 0, "active_experts": 1}
    if keys.arch not in ("qwen3moe", "deepseek2"):
        raise keys.fail("expert_count", experts, "0 (no mixture of experts)")
    if gating != (SIGMOID if latent else 1):
        raise keys.fail("expert_gating_func", gating, f"{SIGMOID} (sigmoid)" if latent else "1 (softmax)")
    return {
        "experts": experts,
        "dense_layers": dense,
        "active_experts": used,
        "shared_experts": shared,
        "expert_ffn": width,
        "groups": groups or 1,
        "active_groups": used_groups or 1,
        "router_scale": scale,
        "renormalise": renormalise,
        "score": "sigmoid" if latent else "softmax",
    }


def _scaling(keys: _Keys, length: int) -> dict[str, Any]:
    """How positions are stretched. A file that does not say how, but by how much, means linearly."""
    kind = keys.take("rope.scaling.type", "linear")
    factor = keys.number("rope.scaling.factor", keys.number("rope.scale_linear", 1.0)) or 1.0
    length = keys.natural("rope.scaling.original_context_length", length)
    weight = keys.number("rope.scaling.yarn_log_multiplier", 0.0)
    if kind != "yarn":
        if kind not in ("none", "linear"):
            raise keys.fail("rope.scaling.type", kind, "'none', 'linear' or 'yarn'")
        keys.only("rope.scaling.attn_factor", 1.0)
        if kind == "linear" and factor != 1 and keys.arch == "deepseek2":  # llama.cpp scales its logits as well
            raise keys.fail("rope.scaling.type", kind, "'none' or 'yarn'")
        return {} if kind == "none" else {"linear_rope": factor}
    if factor < 1:
        raise keys.fail("rope.scaling.factor", factor, "a factor of at least 1")
    if weight and keys.arch != "deepseek2":
        raise keys.fail("rope.scaling.yarn_log_multiplier", weight, "0")
    keys.only("rope.scaling.yarn_ext_factor", 1.0, -1.0)
    keys.only("rope.scaling.yarn_attn_factor", 1.0)
    keys.only("rope.scaling.yarn_beta_fast", 32.0)  # llama.cpp has these values whatever a file says
    keys.only("rope.scaling.yarn_beta_slow", 1.0)
    yarn: dict[str, Any] = {"factor": factor, "original_length": length}
    given = keys.number("rope.scaling.attn_factor", 1.0)
    return {"yarn": yarn | _magnitudes(factor, given, float(f"{10 * weight:.9g}"), keys.arch)}


def _magnitudes(factor: float, given: float, weight: float, arch: str) -> dict[str, float]:
    """What llama.cpp multiplies cos and sin with, and in deepseek2 the logits, in Yarn's terms.

    With s(w) = 1 + 0.1 w ln(factor): cos and sin times m, which is `given`, times s(1) where there is no weight; the
    logits of deepseek2 times (m s(weight))^2, those of the others as they are. Our Yarn has s(mscale_all_dim)^2.
    """
    log = 0.1 * math.log(factor)
    magnitude = given * (1.0 if weight else 1 + log)
    all_dim = (magnitude * (1 + weight * log) - 1) / log if arch == "deepseek2" and log else 0.0
    if weight and given == 1:
        return {"mscale": weight, "mscale_all_dim": weight}
    if abs(magnitude - 1 - log) < 1e-6 and abs(all_dim) < 1e-6:  # what Yarn derives
        return {}
    return {"magnitude": float(f"{magnitude:.7g}"), "mscale_all_dim": float(f"{all_dim:.6f}")}


def _llama3(cfg: ModelConfig, header: Header) -> dict[str, Any]:
    """Llama 3's context extension, recovered from what it divides each rotary pair's frequency by.

    Its two frequency bounds and its length say the same when all three are doubled, so the lower one may be taken as 1.
    Then the share that is kept, where it is neither all nor nothing, is a line over the frequencies, and the line has
    the other two numbers. Where it has too few points, the values of the published models are tried.
    """
    info, pairs = header.tensors[ROPE_FACTORS], cfg.rotary_dim // 2
    if info.type != "F32" or info.shape != (pairs,):
        raise UserError(f"{header.path}: {ROPE_FACTORS} is {info.type} {list(info.shape)}, not F32 [{pairs}].")
    divisors = np.fromfile(header.path, "<f4", pairs, offset=info.offset).astype(np.float64)
    if np.all(divisors == 1):
        return {}
    plain = rotary_frequencies(cfg).double().numpy()
    if np.all(np.isfinite(divisors) & (divisors >= 1)):
        for rope in _candidates(plain, divisors):
            found = rotary_frequencies(cfg.model_copy(update={"llama3_rope": rope})).double().numpy()
            if np.allclose(found, plain / divisors, rtol=2e-6, atol=0):
                return {"llama3_rope": rope.model_dump()}
    raise UserError(f"{header.path}: the factors in {ROPE_FACTORS} are not those of Llama 3's context extension.")


def _candidates(plain: np.ndarray, divisors: np.ndarray) -> Iterator[Llama3Rope]:
    factor = float(str(np.float32(divisors.max())))
    inside = (divisors > 1 + 1e-5) & (divisors < factor * (1 - 1e-5))
    tried = [(4.0, 2**power) for power in range(4, 21)]
    if inside.sum() >= 2 and np.ptp(plain[inside]) > 0:
        kept = (1 / divisors[inside] - 1 / factor) / (1 - 1 / factor)
        slope, offset = (float(value) for value in np.polyfit(plain[inside], kept, 1))
        if not (offset < -1e-6 and slope > 0):
            return
        high = float(f"{1 - 1 / offset:.4g}")
        length = 2 * math.pi * slope * (high - 1)
        tried = [(high, max(1, round(length))), (high, 2 ** round(math.log2(max(length, 1))))]
    for high, length in tried:
        with contextlib.suppress(ValidationError):  # numbers beyond what a configuration may have: no candidate
            yield Llama3Rope(factor=factor, original_length=length, high_freq_factor=high)


def _all(ours: Tensor) -> Tensor:
    return ours


@dataclass(frozen=True)
class Slot:
    """A GGUF tensor, and the view of ours that has its numbers in its order."""

    theirs: str
    shape: tuple[int, ...]  # rows first
    ours: str  # a key of the state dict
    view: Callable[[Tensor], Tensor] = _all


def slots(cfg: ModelConfig, arch: str, split_kv_b: bool = True) -> Iterator[Slot]:
    """Every tensor of a GGUF file, in the order they are written. MTP layers have no place in one."""
    yield Slot("token_embd.weight", (cfg.vocab, cfg.width), "embed.weight")
    for layer in range(cfg.layers):
        attention = _latent_slots(cfg, split_kv_b) if cfg.latent else _grouped_slots(cfg, arch)
        for slot in (*attention, *_ffn_slots(cfg, layer)):
            yield Slot(f"blk.{layer}.{slot.theirs}", slot.shape, f"blocks.{layer}.{slot.ours}", slot.view)
    yield Slot("output_norm.weight", (cfg.width,), "norm.weight")
    if not cfg.tied:
        yield Slot("output.weight", (cfg.vocab, cfg.width), "head.weight")


def _pairs(heads: int) -> Callable[[Tensor], Tensor]:
    """Rotary pairs half a head apart as neighbours: [H K, ..] as [H, K/2, 2, ..]."""
    return lambda ours: ours.unflatten(0, (heads, 2, -1)).transpose(1, 2)


def _grouped_slots(cfg: ModelConfig, arch: str) -> Iterator[Slot]:
    yield Slot("attn_norm.weight", (cfg.width,), "attention_norm.weight")
    for name, heads in (("q", cfg.heads), ("k", cfg.kv_heads), ("v", cfg.kv_heads)):
        view = _pairs(heads) if arch == "llama" and name != "v" else _all
        yield Slot(f"attn_{name}.weight", (heads * cfg.head_dim, cfg.width), f"attention.{name}.weight", view)
        if cfg.qkv_bias:
            yield Slot(f"attn_{name}.bias", (heads * cfg.head_dim,), f"attention.{name}.bias", view)
    yield Slot("attn_output.weight", (cfg.width, cfg.heads * cfg.head_dim), "attention.o.weight")
    if cfg.o_bias:
        yield Slot("attn_output.bias", (cfg.width,), "attention.o.bias")
    if cfg.qk_norm == "head":
        for name in "qk":
            yield Slot(f"attn_{name}_norm.weight", (cfg.head_dim,), f"attention.{name}_norm.weight")


def _latent_slots(cfg: ModelConfig, split_kv_b: bool) -> Iterator[Slot]:
    queries = cfg.heads * cfg.qk_dim
    yield Slot("attn_norm.weight", (cfg.width,), "attention_norm.weight")
    if cfg.q_rank:
        yield Slot("attn_q_a.weight", (cfg.q_rank, cfg.width), "attention.q_a.weight")
        yield Slot("attn_q_a_norm.weight", (cfg.q_rank,), "attention.q_norm.weight")
        yield Slot("attn_q_b.weight", (queries, cfg.q_rank), "attention.q_b.weight")
    else:
        yield Slot("attn_q.weight", (queries, cfg.width), "attention.q.weight")
    yield Slot("attn_kv_a_mqa.weight", (cfg.kv_rank + cfg.rope_dim, cfg.width), "attention.kv_a.weight")
    yield Slot("attn_kv_a_norm.weight", (cfg.kv_rank,), "attention.kv_norm.weight")
    kv_b = "attention.kv_b.weight"
    if split_kv_b:
        keys, values = (cfg.heads, cfg.kv_rank, cfg.nope_dim), (cfg.heads, cfg.v_dim, cfg.kv_rank)
        yield Slot("attn_k_b.weight", keys, kv_b, lambda w: w.unflatten(0, (cfg.heads, -1))[:, : cfg.nope_dim].mT)
        yield Slot("attn_v_b.weight", values, kv_b, lambda w: w.unflatten(0, (cfg.heads, -1))[:, cfg.nope_dim :])
    else:
        yield Slot("attn_kv_b.weight", (cfg.heads * (cfg.nope_dim + cfg.v_dim), cfg.kv_rank), kv_b)
    yield Slot("attn_output.weight", (cfg.width, cfg.heads * cfg.v_dim), "attention.o.weight")


def _ffn_slots(cfg: ModelConfig, layer: int) -> Iterator[Slot]:
    width, experts, ffn = cfg.width, cfg.experts, cfg.expert_ffn
    yield Slot("ffn_norm.weight", (width,), "ffn_norm.weight")
    if not cfg.is_moe(layer):
        yield from _swiglu_slots("", "ffn", width, cfg.ffn)
        return
    yield Slot("ffn_gate_inp.weight", (experts, width), "ffn.router.weight")
    if cfg.score == "sigmoid":
        yield Slot(BALANCE, (experts,), "ffn.router.bias")
    yield Slot("ffn_gate_exps.weight", (experts, ffn, width), "ffn.gate_up", lambda w: w[:, :ffn])
    yield Slot("ffn_up_exps.weight", (experts, ffn, width), "ffn.gate_up", lambda w: w[:, ffn:])
    yield Slot("ffn_down_exps.weight", (experts, width, ffn), "ffn.down")
    if cfg.shared_experts:
        yield from _swiglu_slots("_shexp", "ffn.shared", width, ffn * cfg.shared_experts)


def _swiglu_slots(kind: str, ours: str, width: int, ffn: int) -> Iterator[Slot]:
    yield Slot(f"ffn_gate{kind}.weight", (ffn, width), f"{ours}.gate_up.weight", lambda w: w[:ffn])
    yield Slot(f"ffn_up{kind}.weight", (ffn, width), f"{ours}.gate_up.weight", lambda w: w[ffn:])
    yield Slot(f"ffn_down{kind}.weight", (width, ffn), f"{ours}.down.weight")


def _slots_of(cfg: ModelConfig, header: Header) -> Iterator[Slot]:
    return slots(cfg, header.metadata["general.architecture"], "blk.0.attn_kv_b.weight" not in header.tensors)


def _whole(cfg: ModelConfig, header: Header) -> None:
    """Raises UserError for a tensor that is missing, misshapen, or has no place."""
    left = dict(header.tensors)
    if header.metadata["general.architecture"] == "llama":
        left.pop(ROPE_FACTORS, None)
    for slot in _slots_of(cfg, header):
        info = left.pop(slot.theirs, None)
        if info is None and not slot.theirs.endswith(BALANCE):
            raise UserError(f"{header.path} lacks the tensor {slot.theirs}; it is not whole.")
        if info is not None and info.shape != slot.shape:
            raise UserError(f"{header.path}: {slot.theirs} has shape {list(info.shape)}, not {list(slot.shape)}.")
    if left:
        raise UserError(f"{header.path} holds a tensor {shown(next(iter(left)))}, for which its keys have no place.")


def fill(model: Transformer, path: Path, header: Header) -> None:
    """Unpack the weights of a GGUF file into `model`, whose configuration is `config_of(header)`.

    Raises UserError for a tensor whose type mull does not read, or that holds NaN or infinity.
    """
    raw = mapped(path)
    if len(raw) < max(info.offset + info.bytes for info in header.tensors.values()):
        raise UserError(f"{path} has been cut short.")
    state = model.state_dict()
    for slot in _slots_of(model.cfg, header):
        if slot.theirs not in header.tensors:  # how experts are balanced; nothing says they are not
            state[slot.ours].zero_()
            continue
        info = header.tensors[slot.theirs]
        if info.type not in READABLE:
            raise UserError(
                f"{path}: {slot.theirs} is of the type {info.type}, which is not supported; {', '.join(READABLE)} are."
            )
        if not dequantise(info.type, raw[info.offset : info.offset + info.bytes], slot.view(state[slot.ours])):
            raise UserError(f"{path}: {slot.theirs} holds numbers that are infinite or none (NaN).")


__all__ = ["ARCHITECTURES", "Slot", "config_of", "fill", "slots"]
