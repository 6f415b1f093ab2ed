"""Weights of strangers: read to the number, or refused by name, at once and within memory."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from checkpoints import (
    BLOCKS,
    configure,
    rewrite,
    same,
    shard,
    to_fp8,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from small import GQA, MOE, SHAPES, changed, chat, in_memory, model_of, tokens_of  # noqa: F401

from mull.model.families import places
from mull.model.source import mapped, skeleton
from mull.model.weights import load_model, save_model
from mull.types import UserError


@pytest.mark.parametrize("name", ["moe, two mtp layers", "llama, tied", "qwen2"])
def test_shards_are_read_as_one_file_is(name: str, tmp_path: Path) -> None:
    ours = model_of(SHAPES[name])
    save_model(tmp_path / "m", ours, chat())
    shard(tmp_path / "m")
    back = load_model(tmp_path / "m")
    assert same(ours, back)
    assert len(back.mtp) == SHAPES[name].mtp_layers
    assert len(load_model(tmp_path / "m", mtp=False).mtp) == 0
    assert torch.equal(back.rotary.frequency, ours.rotary.frequency)
    assert (back.head.weight is back.embed.weight) is SHAPES[name].tied


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_floating_point_numbers_become_fp32(dtype: torch.dtype, saved: Path) -> None:
    before = load_model(saved, mtp=False)
    rewrite(saved, lambda tensors: tensors.update({name: tensor.to(dtype) for name, tensor in tensors.items()}))
    after = load_model(saved, mtp=False)
    for (key, old), new in zip(before.state_dict().items(), after.state_dict().values(), strict=True):
        assert new.dtype == torch.float32, key
        assert torch.equal(new, old.to(dtype).float()), key


@pytest.mark.parametrize("block", [(8, 8), (5, 7), (128, 128), (1, 32)], ids=str)
@pytest.mark.parametrize("scales", ["fp32", "bytes"])
def test_fp8_blocks_are_multiplied_out(block: tuple[int, int], scales: str, saved: Path) -> None:
    """Ragged edges, grids of one block, and scales as exponents in bytes."""
    worth = to_fp8(saved, block, scales)
    shard(saved)
    model = load_model(saved)
    state = model.state_dict()
    seen = [place for place in places(model.cfg) if place.theirs in worth]
    assert len(seen) == len(worth) > 30
    for place in seen:
        assert torch.equal(state[place.ours][place.index], worth[place.theirs]), place.theirs


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_weights_go_straight_to_a_gpu(saved: Path) -> None:
    to_fp8(saved)
    model = load_model(saved, "cuda")
    assert all(tensor.is_cuda for tensor in [*model.state_dict().values(), model.rotary.frequency])
    assert same(load_model(saved), model.cpu())


NORM, ROUTER = "model.layers.1.input_layernorm.weight", "model.layers.1.mlp.gate.weight"
DOWN = "model.layers.1.mlp.experts.3.down_proj.weight"


def poison(value: float, name: str) -> Callable[[Path], None]:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[name].view(-1)[-1] = value

    return lambda folder: rewrite(folder, change)


def poison_fp8(folder: Path) -> None:
    to_fp8(folder)
    rewrite(folder, lambda t: t[DOWN].view(torch.uint8).view(-1)[-1:].fill_(0x7F))


def fp8_norm(folder: Path) -> None:
    to_fp8(folder)
    rewrite(folder, lambda t: t.update({NORM: t[NORM].to(torch.float8_e4m3fn), f"{NORM}_scale_inv": torch.ones(4)}))


def drop(name: str) -> Callable[[Path], None]:
    return lambda folder: (to_fp8(folder), rewrite(folder, lambda t: t.pop(name)))[0]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (poison(float("nan"), NORM), f"{NORM} holds NaN or infinity"),
        (poison(float("inf"), ROUTER), f"{ROUTER} holds NaN or infinity"),
        (poison(float("-inf"), DOWN), f"{DOWN} holds NaN or infinity"),
        (poison_fp8, f"{DOWN} holds NaN or infinity"),
        (drop(DOWN + "_scale_inv"), f"{DOWN} is FP8 without the scales"),
        (fp8_norm, f"{NORM}_scale_inv is F32 .* need a matrix"),
        (lambda f: (to_fp8(f), rewrite(f, lambda t: t.update({f"{DOWN}_scale_inv": torch.ones(4, 2).half()}))), "F16"),
        (drop(DOWN), f"lacks the tensor {DOWN}"),
        (lambda f: (to_fp8(f), configure(f, quantization_config=None)), "weight_block_size"),
        (lambda f: configure(f, quantization_config={"quant_method": "gptq", "bits": 4}), "quantised by 'gptq'"),
        (lambda f: configure(f, quantization_config={"quant_method": "mxfp4"}), "quantised by 'mxfp4'"),
        (lambda f: configure(f, quantization_config={"bits": 4}), "quantised by None"),
        (lambda f: configure(f, compression_config={"quant_method": "sparse"}), "quantised by 'sparse'"),
        (lambda f: configure(f, quantization_config="awq"), "quantised by 'awq'"),
        (lambda f: configure(f, quantization_config=BLOCKS | {"weight_block_size": None}), "weight_block_size = None"),
        (lambda f: configure(f, quantization_config=BLOCKS | {"weight_block_size": [0, 8]}), "weight_block_size"),
        (lambda f: (to_fp8(f), configure(f, quantization_config=BLOCKS | {"weight_block_size": [4, 8]})), "need"),
        (lambda f: rewrite(f, lambda t: t.update({f"{DOWN}_scale_inv": torch.ones(1)})), "no place"),
        (lambda f: rewrite(f, lambda t: t.update({"lm_head.bias": torch.ones(300)})), "no place"),
        (lambda f: rewrite(f, lambda t: t.update({"model.layers.3.odd.weight": torch.ones(1)})), "no place"),
        (lambda f: rewrite(f, lambda t: t.update({"model.layers.4.embed_tokens.weight": torch.ones(1)})), "no place"),
        (lambda f: configure(f, num_hidden_layers=9999), r"lacks the tensor model\.layers"),
        (lambda f: configure(f, n_routed_experts=2**16), r"lacks the tensor .*experts\.8\."),
        (lambda f: configure(f, hidden_size=2**20), "has shape"),
        (lambda f: configure(f, vocab_size=2**23), "has shape"),
        (lambda f: configure(f, intermediate_size=2**20), "has shape"),
    ],
)  # fmt: skip
def test_hostile_and_broken_weights(change: Callable[[Path], object], said: str, saved: Path) -> None:
    """One line each, at once, and before memory is taken for what the configuration claims."""
    change(saved)
    begun = time.monotonic()
    with pytest.raises(UserError, match=said) as caught:
        load_model(saved)
    assert time.monotonic() - begun < 2
    assert "\n" not in str(caught.value)


def test_copies_in_published_mtp_layers_are_passed_over(saved: Path) -> None:
    """DeepSeek's and GLM's MTP layers repeat the embedding and the head; older tools wrote rotary tables."""
    before = load_model(saved)
    rewrite(saved, lambda t: t.update({
        "model.layers.3.embed_tokens.weight": t["model.embed_tokens.weight"].clone(),
        "model.layers.3.shared_head.head.weight": t["lm_head.weight"].clone(),
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4),
    }))  # fmt: skip
    shard(saved)
    assert same(before, load_model(saved))
    assert len(load_model(saved, mtp=False).mtp) == 0


def test_half_an_mtp_layer_is_refused(saved: Path) -> None:
    path = saved / "mtp.safetensors"
    tensors = load_file(path)
    del tensors["model.layers.3.eh_proj.weight"]
    save_file(tensors, path)
    with pytest.raises(UserError, match=r"lacks the tensor model\.layers\.3\.eh_proj\.weight"):
        load_model(saved)


def test_a_head_beside_a_tied_embedding_must_be_the_same(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    save_model(folder, model_of(SHAPES["llama, tied"]), chat())
    before = load_model(folder)
    rewrite(folder, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}))
    after = load_model(folder)
    assert same(before, after)
    assert after.head.weight is after.embed.weight
    rewrite(folder, lambda t: t["lm_head.weight"].view(-1)[-1:].add_(1e-3))
    with pytest.raises(UserError, match="tie_word_embeddings"):
        load_model(folder)
    rewrite(folder, lambda t: t.update({"lm_head.weight": t["lm_head.weight"].bfloat16()}))
    with pytest.raises(UserError, match="tie_word_embeddings"):
        load_model(folder)


def test_only_pickles(saved: Path) -> None:
    (saved / "model.safetensors").rename(saved / "pytorch_model.bin")
    (saved / "pytorch_model.bin").chmod(0)
    with pytest.raises(UserError, match="convert them to safetensors"):
        load_model(saved)


def test_a_file_larger_than_memory_is_mapped(tmp_path: Path) -> None:
    """Two maps of eight terabytes each, and not a byte of memory counted for them."""
    path = tmp_path / "large"
    path.write_bytes(b"ab")
    os.truncate(path, 2**43)
    maps = [mapped(path), mapped(path)]
    assert [raw[:3].tolist() for raw in maps] == [[97, 98, 0]] * 2
    assert len(maps[0]) == 2**43


@pytest.mark.parametrize("block", [(4, 8), (5, 7), (128, 128)])
@pytest.mark.parametrize("piece", [1, 7, 100, 1000])
def test_fp8_in_pieces_is_fp8_at_once(
    block: tuple[int, int], piece: int, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each piece is whole rows of blocks, whatever their height: else its scales would be those of other rows."""
    to_fp8(saved, block)
    at_once = load_model(saved)
    monkeypatch.setattr("mull.model.source.PIECE", piece)
    assert same(load_model(saved), at_once)


@pytest.mark.parametrize("name", ["missing", "empty", "folder"])
def test_what_cannot_be_mapped_is_named(name: str, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=f"{name} cannot be read: "):
        mapped(tmp_path / name)


def test_tensors_that_are_not_aligned_are_read(saved: Path) -> None:
    """The format allows a header of any length, so its numbers may begin anywhere."""
    path, before = saved / "model.safetensors", load_model(saved)
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    path.write_bytes((length + 1).to_bytes(8, "little") + raw[8 : 8 + length] + b" " + raw[8 + length :])
    assert same(load_model(saved), before)


def test_sizes_beyond_all_bounds_are_one_line(saved: Path, refused: Callable[..., str]) -> None:
    for key in ("vocab_size", "hidden_size", "intermediate_size", "moe_intermediate_size", "num_attention_heads"):
        before = (saved / "config.json").read_text()
        configure(saved, **{key: 10**18})
        assert str(saved) in refused("ask", saved, "Who are you?"), key
        (saved / "config.json").write_text(before)


def test_a_skeleton_of_such_sizes_is_one_line() -> None:
    with pytest.raises(UserError, match="beyond what any machine can hold"):
        skeleton(GQA.model_copy(update={"vocab": 2**40, "width": 2**40}))
    with pytest.raises(UserError, match="beyond what any machine can hold"):
        skeleton(GQA.model_copy(update={"vocab": 2**80}))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2**31), st.integers(0, 255)), min_size=1, max_size=3), st.booleans())
def test_shards_with_changed_bytes_load_or_are_refused(changes: list[tuple[int, int]], of_index: bool) -> None:
    """Headers, index and numbers alike: never another error than a UserError, never a model with NaN in it."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as place:
        folder = Path(place) / "m"
        shutil.copytree(sharded(), folder)
        name = "model.safetensors.index.json" if of_index else "model-00002-of-00003.safetensors"
        content = bytearray((folder / name).read_bytes())
        headers = len(content) if of_index else 8 + int.from_bytes(content[:8], "little")
        for at, byte in changes:
            content[at % (headers if at % 2 else len(content))] = byte
        (folder / name).write_bytes(content)
        try:
            model = load_model(folder)
        except UserError:
            return
        assert all(bool(tensor.isfinite().all()) for tensor in model.state_dict().values())


@cache
def sharded() -> Path:
    """A directory of three shards that stays for the process' life."""
    place = tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None)
    atexit.register(place.cleanup)
    folder = Path(place.name) / "m"
    save_model(folder, model_of(MOE), chat())
    shard(folder)
    return folder
