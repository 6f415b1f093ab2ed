"""The numbers that make a model. Frozen; a family is a set of values plus a name map (families.py), never a class.

Zero means absent: `experts = 0` is a dense MLP, `kv_rank = 0` is grouped-query attention, `q_rank = 0` projects queries
in one matrix. The defaults are the house architecture, DeepSeek-V3's (arXiv 2412.19437), at toy size.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from mull.config import Config, nearest

WIDEST = 10_000_000  # no model is as large; beyond these, numbers of bytes do not fit into 64 bits
LONGEST = 10**12  # tokens


class Yarn(Config):
    """YaRN context extension (arXiv 2309.00071) with DeepSeek's softmax-scale correction."""

    factor: float = Field(ge=1e-3, le=1e6)
    original_length: int = Field(gt=0, le=LONGEST)
    beta_fast: float = Field(default=32.0, ge=1e-3, le=1e6)
    beta_slow: float = Field(default=1.0, ge=1e-3, le=1e6)
    mscale: float = Field(default=0.0, ge=0, le=100)
    mscale_all_dim: float = Field(default=0.0, ge=0, le=100)
    magnitude: float = Field(default=0.0, ge=0, le=100)  # of cos and sin; 0: derived from the others
    truncate: bool = True  # the ramp begins and ends at whole pairs


class Llama3Rope(Config):
    """Llama 3.1's context extension: slow pairs divided by `factor`, fast ones kept, a linear ramp between."""

    factor: float = Field(ge=1e-3, le=1e6)
    original_length: int = Field(gt=0, le=LONGEST)
    low_freq_factor: float = Field(default=1.0, ge=1e-3, le=1e6)
    high_freq_factor: float = Field(default=4.0, ge=1e-3, le=1e6)

    @model_validator(mode="after")
    def _consistent(self) -> Llama3Rope:
        if self.high_freq_factor <= self.low_freq_factor:
            raise ValueError("high_freq_factor must be above low_freq_factor")
        return self


class ModelConfig(Config):
    vocab: int = Field(default=512, gt=0, le=WIDEST)
    width: int = Field(default=128, gt=0, le=WIDEST)
    layers: int = Field(default=4, gt=0, le=10_000)
    heads: int = Field(default=4, gt=0, le=10_000)
    # grouped-query attention (used when kv_rank is 0)
    kv_heads: int = Field(default=4, gt=0, le=10_000)
    head_dim: int = Field(default=32, gt=0, le=65_536)
    qkv_bias: bool = False
    o_bias: bool = False
    qk_norm: Literal["none", "head", "full"] = "none"  # of queries and keys, per head or over all at once
    clip_qkv: float = Field(default=0.0, ge=0)  # queries, keys and values are kept within +-clip_qkv; 0: as they are
    partial_rotary: float = Field(default=1.0, gt=0, le=1)  # this share of each head, its first part, is rotated
    window: int = Field(default=0, ge=0, le=LONGEST)  # layers in `windowed` see so many tokens, the newest included
    windowed: tuple[int, ...] = ()
    # multi-head latent attention (used when kv_rank is set)
    q_rank: int = Field(default=0, ge=0, le=WIDEST)
    kv_rank: int = Field(default=0, ge=0, le=WIDEST)
    nope_dim: int = Field(default=16, ge=0, le=65_536)
    rope_dim: int = Field(default=16, ge=0, le=65_536)
    v_dim: int = Field(default=32, gt=0, le=65_536)
    # feed-forward: `dense_layers` first layers are one SwiGLU of width `ffn`, the others mixtures
    ffn: int = Field(default=256, gt=0, le=WIDEST)
    dense_layers: int = Field(default=0, ge=0, le=10_000)
    experts: int = Field(default=0, ge=0, le=100_000)
    active_experts: int = Field(default=2, gt=0)
    shared_experts: int = Field(default=1, ge=0, le=10_000)
    expert_ffn: int = Field(default=64, gt=0, le=WIDEST)
    groups: int = Field(default=1, gt=0)
    active_groups: int = Field(default=1, gt=0)
    score: Literal["sigmoid", "softmax"] = "sigmoid"  # softmax routers have no balancing bias on disk
    router_scale: float = 1.0
    renormalise: bool = True
    # the rest
    mtp_layers: int = Field(default=0, ge=0, le=100)
    rope_theta: float = Field(default=10000.0, gt=1, le=1e15)
    yarn: Yarn | None = None
    llama3_rope: Llama3Rope | None = None
    linear_rope: float = Field(default=1.0, ge=1e-3, le=1e6)  # positions are divided by it
    eps: float = Field(default=1e-6, gt=0)
    tied: bool = False
    max_length: int = Field(default=2048, gt=0, le=LONGEST)
    init_std: float = Field(default=0.02, gt=0)

    @model_validator(mode="before")
    @classmethod
    def _from_preset(cls, raw: Any) -> Any:
        """A table with the key `preset` starts from that one of PRESETS."""
        if not isinstance(raw, Mapping) or "preset" not in raw:
            return raw
        values = dict(raw)
        name = str(values.pop("preset"))
        if name not in PRESETS:
            raise ValueError(f"there is no preset {name!r}; there are {', '.join(PRESETS)}.{nearest(name, PRESETS)}")
        return PRESETS[name].model_dump() | values

    @model_validator(mode="after")
    def _consistent(self) -> ModelConfig:
        if not self.kv_rank and self.heads % self.kv_heads:
            raise ValueError(f"heads ({self.heads}) must be a multiple of kv_heads ({self.kv_heads})")
        if self.rotary_dim % 2 or not self.rotary_dim:
            raise ValueError("the rotary width (rope_dim, or partial_rotary of head_dim without kv_rank) must be even")
        if (self.yarn is not None) + (self.llama3_rope is not None) + (self.linear_rope != 1) > 1:
            raise ValueError("only one of yarn, llama3_rope and linear_rope can be set")
        if self.windowed and not self.window:
            raise ValueError("windowed layers need a window")
        if any(not 0 <= layer < self.layers for layer in self.windowed):
            raise ValueError(f"windowed names layers that do not exist; there are {self.layers}, the first is 0")
        if self.experts:
            if self.dense_layers >= self.layers:
                raise ValueError("a mixture needs fewer dense_layers than layers; experts = 0 makes all of them dense")
            if self.active_experts > self.experts:
                raise ValueError(f"active_experts ({self.active_experts}) is more than experts ({self.experts})")
            if self.experts % self.groups:
                raise ValueError(f"experts ({self.experts}) must be a multiple of groups ({self.groups})")
            if self.active_groups > self.groups:
                raise ValueError(f"active_groups ({self.active_groups}) is more than groups ({self.groups})")
            if self.groups > 1 and self.experts // self.groups < 2:
                raise ValueError("a group is ranked by its two best experts, so it needs at least two")
            if self.active_experts > self.experts // self.groups * self.active_groups:
                raise ValueError("the active groups hold fewer experts than active_experts")
        _belongs(self, family_of(self))
        return self

    @property
    def latent(self) -> bool:
        return self.kv_rank > 0

    @property
    def rope_interleaved(self) -> bool:
        """Rotary pairs are neighbours in DeepSeek's latent attention, half a head apart in Llama's and Qwen's."""
        return self.latent

    @property
    def qk_dim(self) -> int:
        """Width of one query or key head."""
        return self.nope_dim + self.rope_dim if self.latent else self.head_dim

    @property
    def value_dim(self) -> int:
        return self.v_dim if self.latent else self.head_dim

    @property
    def rotary_dim(self) -> int:
        return self.rope_dim if self.latent else int(self.head_dim * self.partial_rotary)

    def window_of(self, layer: int) -> int:
        """How many tokens a layer sees, the newest included; 0 is all. MTP layers see all."""
        return self.window if layer in self.windowed else 0

    def is_moe(self, layer: int) -> bool:
        """MTP layers (index >= layers) are of the last layer's kind."""
        return self.experts > 0 and min(layer, self.layers - 1) >= self.dense_layers


def family_of(cfg: ModelConfig) -> str:
    """The published family whose layout keeps such a model: a key of families.FAMILIES."""
    if cfg.latent:
        return "deepseek_v3"
    if cfg.experts:
        return "glm4_moe" if cfg.score == "sigmoid" else "olmoe" if cfg.qk_norm == "full" else "qwen3_moe"
    if cfg.qk_norm != "none":
        return "qwen3"
    return "qwen2" if cfg.qkv_bias and not cfg.o_bias else "llama"


_PLAIN = {"clip_qkv": (0.0,), "partial_rotary": (1.0,)}
_SOFTMAX = {"shared_experts": (0,), "router_scale": (1.0,), "groups": (1,), "mtp_layers": (0,)}
# what a family has no other way to say than these values
_FIXED: dict[str, dict[str, tuple[Any, ...]]] = {
    "deepseek_v3": _PLAIN | {
        "score": ("sigmoid",), "qk_norm": ("none",), "qkv_bias": (False,), "o_bias": (False,), "windowed": ((),),
    },
    "glm4_moe": {"qk_norm": ("none", "head"), "o_bias": (False,), "clip_qkv": (0.0,), "windowed": ((),)},
    "olmoe": _SOFTMAX | {"partial_rotary": (1.0,), "dense_layers": (0,), "windowed": ((),)},
    "qwen3_moe": _SOFTMAX | _PLAIN | {"qk_norm": ("head",)},
    "qwen3": _PLAIN | {"qk_norm": ("head",), "mtp_layers": (0,)},
    "qwen2": _PLAIN | {"mtp_layers": (0,)},
    "llama": _PLAIN | {"windowed": ((),), "mtp_layers": (0,)},
}  # fmt: skip


def _belongs(cfg: ModelConfig, family: str) -> None:
    """Raises ValueError for a model that its family's layout cannot keep: training would make what nobody can load."""
    for key, allowed in _FIXED[family].items():
        if getattr(cfg, key) not in allowed:
            wanted = " or ".join(repr(value) for value in allowed)
            raise ValueError(f"{key} must be {wanted} in a model of the family {family}, as this is by its other keys")
    if family in ("llama", "qwen3", "qwen3_moe", "olmoe") and cfg.qkv_bias != cfg.o_bias:
        raise ValueError(f"qkv_bias and o_bias are one in the family {family}; set both or neither")
    if family in ("deepseek_v3", "glm4_moe") and cfg.experts and not cfg.shared_experts:
        raise ValueError(f"a mixture of the family {family} needs shared_experts of at least 1")
    if family == "olmoe" and cfg.heads * cfg.head_dim != cfg.width:
        raise ValueError("heads times head_dim must be the width in a model of the family olmoe")
    if family == "qwen3_moe" and cfg.windowed not in ((), tuple(range(cfg.layers))):
        raise ValueError("all layers or none are windowed in a model of the family qwen3_moe")


PRESETS: dict[str, ModelConfig] = {
    "tiny-moe": ModelConfig(
        vocab=512, width=128, layers=4, heads=4, q_rank=96, kv_rank=64, nope_dim=16, rope_dim=16, v_dim=32,
        ffn=256, dense_layers=1, experts=8, active_experts=2, shared_experts=1, expert_ffn=64, mtp_layers=1,
    ),
    "tiny-dense": ModelConfig(vocab=512, width=128, layers=4, heads=4, kv_heads=2, head_dim=32, ffn=256),
    "small-moe": ModelConfig(
        vocab=4096, width=256, layers=4, heads=8, q_rank=96, kv_rank=64, nope_dim=32, rope_dim=16, v_dim=32,
        ffn=640, dense_layers=0, experts=16, active_experts=4, shared_experts=1, expert_ffn=128, tied=True,
    ),
}  # fmt: skip
