"""What `mull info` knows of a model: from a bare configuration, a model directory or a GGUF file, no weights read."""

from __future__ import annotations

import json
import struct
import time
from pathlib import Path
from typing import Any, Literal

import gguf
import numpy as np
import pytest
import torch
from conftest import Mull
from safetensors.torch import save_file
from small import GQA, MLA, MOE, changed, chat, model_of

from mull.describe import describe
from mull.export import export
from mull.formats import gguf as formats
from mull.model.config import ModelConfig
from mull.model.families import config_to_hf, places
from mull.model.weights import save_model
from mull.types import UserError

# https://huggingface.co/deepseek-ai/DeepSeek-V3/blob/main/config.json
V3: dict[str, Any] = {
    "architectures": ["DeepseekV3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "auto_map": {"AutoConfig": "configuration_deepseek.DeepseekV3Config"}, "bos_token_id": 0, "eos_token_id": 1,
    "ep_size": 1, "first_k_dense_replace": 3, "hidden_act": "silu", "hidden_size": 7168, "initializer_range": 0.02,
    "intermediate_size": 18432, "kv_lora_rank": 512, "max_position_embeddings": 163840, "model_type": "deepseek_v3",
    "moe_intermediate_size": 2048, "moe_layer_freq": 1, "n_group": 8, "n_routed_experts": 256, "n_shared_experts": 1,
    "norm_topk_prob": True, "num_attention_heads": 128, "num_experts_per_tok": 8, "num_hidden_layers": 61,
    "num_key_value_heads": 128, "num_nextn_predict_layers": 1, "q_lora_rank": 1536, "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64, "quantization_config": {
        "activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [128, 128]},
    "rms_norm_eps": 1e-06, "rope_scaling": {
        "beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 1.0, "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 4096, "type": "yarn"},
    "rope_theta": 10000, "routed_scaling_factor": 2.5, "scoring_func": "sigmoid", "tie_word_embeddings": False,
    "topk_group": 4, "topk_method": "noaux_tc", "torch_dtype": "bfloat16", "transformers_version": "4.33.1",
    "use_cache": True, "v_head_dim": 128, "vocab_size": 129280,
}  # fmt: skip


def bare(folder: Path, raw: dict[str, Any]) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(raw), encoding="utf-8")
    return path


def stored(folder: Path, cfg: ModelConfig, dtype: torch.dtype = torch.float32) -> Path:
    """A model directory of others' making: configuration and weights, no tokenizer."""
    state = model_of(cfg).state_dict()
    tensors = {p.theirs: state[p.ours][p.index].to(dtype).contiguous() for p in places(cfg) if not p.mtp}
    save_file(tensors, folder / "model.safetensors")
    bare(folder, config_to_hf(cfg))
    return folder


# sizes


def test_deepseek_v3_of_its_bare_configuration(mull: Mull, tmp_path: Path):
    said = mull("info", bare(tmp_path, V3))
    assert said.code == 0, said.err
    assert "671B in all, 37B active per token" in said.out
    assert "deepseek_v3, 61 layers of width 7168, 8 of 256 experts per token" in said.out
    facts = describe(tmp_path / "config.json")
    assert facts["cache_bytes_per_token"] == 61 * (512 + 64) * 4
    assert facts["held"] == {}
    # what lies on the hub, 688.6e9 bytes in 163 files, holds the MTP layer too
    with_mtp = facts["bytes"]["fp8"] + facts["mtp_params"]
    assert with_mtp == pytest.approx(688.6e9, rel=0.01)
    (alone, several) = facts["serving"]
    assert (alone["rows"], alone["tokens"], several["rows"], several["tokens"]) == (1, 163840, 8, 4096)
    assert alone["bytes"]["bf16"] == facts["bytes"]["bf16"] + 163840 * 61 * 576 * 2


@pytest.mark.parametrize("cfg", [GQA, MLA, changed(MOE, mtp_layers=0), changed(GQA, tied=True, qkv_bias=True)])
def test_bytes_are_those_that_the_weights_have(cfg: ModelConfig, tmp_path: Path):
    facts = describe(stored(tmp_path, cfg))
    (kind, held), *others = facts["held"].items()
    assert (kind, others) == ("F32", [])
    biases = 4 * cfg.experts * (cfg.layers - cfg.dense_layers) if cfg.experts else 0  # the router's: no parameters
    assert held["bytes"] == facts["bytes"]["f32"] + biases
    assert facts["bytes"]["f32"] == 4 * facts["total_params"]
    assert facts["family"] == json.loads((tmp_path / "config.json").read_text())["model_type"]


@pytest.mark.parametrize(("to", "dtype"), [("gguf", "q8_0"), ("hf", "fp8"), ("hf", "bf16"), ("gguf", "f32")])
@pytest.mark.parametrize("experts", [0, 4])
def test_bytes_by_format_are_those_of_exports(to: Literal["hf", "gguf"], dtype: str, experts: int, tmp_path: Path):
    """But for vectors and routers, which some formats keep wider."""
    cfg = changed(GQA, width=256, heads=4, kv_heads=4, head_dim=64, ffn=1024)
    if experts:
        cfg = changed(cfg, experts=experts, expert_ffn=512, shared_experts=0, score="softmax", qk_norm="head")
    save_model(tmp_path / "model", model_of(cfg), chat())
    wanted = describe(tmp_path / "model")["bytes"][dtype]
    facts = describe(export(tmp_path / "model", to, tmp_path / f"out.{to}", dtype))
    assert sum(one["bytes"] for one in facts["held"].values()) == pytest.approx(wanted, rel=0.01)


def test_what_a_directory_holds_is_told_by_format(mull: Mull, tmp_path: Path):
    facts = describe(stored(tmp_path, GQA, torch.bfloat16))
    assert list(facts["held"]) == ["BF16"]
    assert facts["held"]["BF16"]["bytes"] == facts["bytes"]["bf16"]
    said = mull("info", tmp_path)
    assert f"BF16 {facts['held']['BF16']['bytes'] / 1000:.3g}\u202fkB in" in said.out


@pytest.mark.parametrize(
    ("card", "license"),
    [
        ("---\nlicense: apache-2.0\n---\n# Model", "apache-2.0"),
        ("---\ntags:\n- x\nlicense: 'llama3.1'\n---\n", "llama3.1"),
        ("---\ntags: []\n---\nlicense: mit\n", ""),
        ("license: mit\n", ""),
        ("", ""),
    ],
)
def test_the_licence_is_the_model_cards(card: str, license: str, tmp_path: Path):
    stored(tmp_path, GQA)
    (tmp_path / "README.md").write_text(card, encoding="utf-8")
    assert describe(tmp_path)["license"] == license


def test_a_gguf_file(mull: Mull, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "tiny.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_license("mit")
    writer.add_block_count(1)
    writer.add_context_length(256)
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(96)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(100)
    shapes = {"token_embd": (100, 64), "output": (100, 64)} | {f"blk.0.attn_{x}": (64, 64) for x in "qkv"}
    shapes |= {"blk.0.attn_output": (64, 64), "blk.0.ffn_gate": (96, 64), "blk.0.ffn_up": (96, 64)}
    for name, shape in shapes.items():
        numbers = np.ones(shape, dtype=np.float32)
        packed = gguf.quants.quantize(numbers, gguf.GGMLQuantizationType.Q8_0)
        writer.add_tensor(f"{name}.weight", packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("blk.0.ffn_down.weight", np.ones((64, 96), dtype=np.float16))
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(64, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    read: list[Path] = []
    reads = formats.read_header
    monkeypatch.setattr(formats, "read_header", lambda path: read.append(path) or reads(path))
    facts = describe(path)
    assert read == [path]  # once
    assert (facts["family"], facts["layers"], facts["vocab"], facts["license"]) == ("llama", 1, 100, "mit")
    assert {kind: one["tensors"] for kind, one in facts["held"].items()} == {"Q8_0": 8, "F16": 1, "F32": 3}
    parameters = 2 * 100 * 64 + 4 * 64 * 64 + 3 * 96 * 64 + 3 * 64
    assert facts["total_params"] == parameters
    assert facts["held"]["Q8_0"]["bytes"] == (parameters - 3 * 64 - 96 * 64) * 34 // 32
    assert facts["disk_bytes"] == path.stat().st_size
    assert "Q8_0 " in mull("info", path).out
    assert json.loads(mull("info", path, "--json").out)["held"] == facts["held"]


def test_no_weights_are_read(tmp_path: Path):
    """A file that claims 40 GB, all of it a hole: reading it would take minutes, allocating it fail."""
    cfg = changed(GQA, vocab=2**20, width=4096, layers=2, heads=32, kv_heads=8, head_dim=128, ffn=2**17, tied=True)
    bare(tmp_path, config_to_hf(cfg))
    shapes = {"model.embed_tokens.weight": [2**20, 4096]}
    header: dict[str, Any] = {}
    at = 0
    for name, shape in shapes.items():
        size = 4 * shape[0] * shape[1]
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    raw = json.dumps(header).encode()
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(raw)) + raw)
        file.truncate(8 + len(raw) + at)
    begun = time.monotonic()
    facts = describe(tmp_path)
    assert time.monotonic() - begun < 2
    assert facts["held"] == {"F32": {"tensors": 1, "bytes": at}}
    assert facts["total_params"] > 7e9


# what strangers write


HUGE = 10**400
LLAMA = config_to_hf(GQA)


@pytest.mark.parametrize(
    "change",
    [
        {"num_hidden_layers": 10**9}, {"num_hidden_layers": HUGE}, {"num_hidden_layers": "2"}, {"hidden_size": HUGE},
        {"hidden_size": None}, {"hidden_size": -1}, {"hidden_size": True}, {"hidden_size": [32]}, {"vocab_size": HUGE},
        {"vocab_size": 10**18}, {"head_dim": HUGE}, {"intermediate_size": HUGE}, {"max_position_embeddings": HUGE},
        {"max_position_embeddings": 10**17}, {"num_attention_heads": 0}, {"rope_theta": float("nan")},
        {"rope_theta": 1e999}, {"rope_scaling": [1]}, {"rope_scaling": {"rope_type": "yarn"}}, {"model_type": None},
        {"model_type": ["llama"]}, {"model_type": {"a": 1}}, {"hidden_act": {"a": 1}}, {"tie_word_embeddings": "maybe"},
    ],
    ids=lambda change: str(change)[:40],
)  # fmt: skip
def test_a_configuration_that_cannot_be_is_one_line(change: dict[str, Any], tmp_path: Path):
    begun = time.monotonic()
    with pytest.raises(UserError) as caught:
        describe(bare(tmp_path, LLAMA | change))
    assert "\n" not in str(caught.value)
    assert time.monotonic() - begun < 1


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b"[" * 10**5, b'{"a": ' * 10**5, b"\xff\xfe", b'{"hidden_size": 1' + b"0" * 5000],
    ids=range(8),
)
def test_what_is_no_json_object_is_one_line(refused: Any, content: bytes, tmp_path: Path):
    (tmp_path / "config.json").write_bytes(content)
    assert "config.json" in refused("info", tmp_path / "config.json")
    assert "config.json" in refused("info", tmp_path)


def test_what_is_no_gguf_file_is_one_line(refused: Any, tmp_path: Path):
    for content in (b"", b"GGUF", b"GGUF" + bytes(100), b"pickle"):
        (tmp_path / "x.gguf").write_bytes(content)
        assert "x.gguf" in refused("info", tmp_path / "x.gguf")
