"""What we write, transformers loads without a word and computes the same; what we read is what was written."""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoints import (
    loaded,
    peak_of,
    rewrite,
    save_large,
    shard,
    to_fp8,
)
from safetensors.torch import load_file, save_file
from small import GQA, MOE, SHAPES, changed, chat, in_memory, model_of, tokens_of  # noqa: F401

from mull.data.sources import seed_of
from mull.engine.engine import LocalEngine
from mull.model.config import ModelConfig
from mull.model.families import config_to_hf, places
from mull.model.source import skeleton
from mull.model.transformer import Transformer
from mull.model.weights import allocate, available_memory, load_model, save_model
from mull.ops.attention import Documents
from mull.types import Message, Request, Sampling, UserError


@pytest.mark.parametrize("name", SHAPES)
def test_transformers_computes_the_same_logits(name: str, tmp_path: Path, transformers) -> None:
    cfg = SHAPES[name]
    ours = model_of(cfg, seed=seed_of(name) % 1000)
    save_model(tmp_path / "m", ours, chat())
    theirs = loaded(transformers, tmp_path / "m")
    assert type(theirs).__name__ == json.loads((tmp_path / "m/config.json").read_text())["architectures"][0]
    ids = torch.tensor(tokens_of(60))
    with torch.inference_mode():
        mine = ours.logits(ours(ids, Documents([60])))
        right = theirs(ids[None]).logits[0]
    assert float(right.std()) > 0.5  # a comparison of noise with noise would pass too easily
    torch.testing.assert_close(mine, right, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["moe, groups", "llama", "moe, yarn"])
def test_greedy_decoding_equals_transformers_generate(name: str, tmp_path: Path, transformers) -> None:
    cfg = SHAPES[name]
    ours = model_of(cfg, seed=3)
    save_model(tmp_path / "m", ours, chat())
    theirs = loaded(transformers, tmp_path / "m")
    prompt = tokens_of(17, seed=4)
    (answer,) = LocalEngine(ours, chat()).generate([Request(tuple(prompt), Sampling(max_tokens=24, temperature=0.0))])
    generated = theirs.generate(
        torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long), max_new_tokens=24,
        do_sample=False,
    )  # fmt: skip
    assert list(answer.tokens) == generated[0, len(prompt) :].tolist()


def test_transformers_tokenizer_and_template_give_our_ids(tmp_path: Path, transformers) -> None:
    save_model(tmp_path / "m", model_of(MOE), chat())
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "m")
    talks = [
        [Message("user", "What is 7 + 81?")],
        [Message("system", "Be brief."), Message("user", "héllo 你好 🙂\n\n  x")],
        [Message("user", "a"), Message("assistant", "b"), Message("user", "  c\n")],
    ]
    for talk in talks:
        plain = [{"role": m.role, "content": m.content} for m in talk]
        for thinking in (True, False):
            ids = theirs.apply_chat_template(
                plain, add_generation_prompt=True, enable_thinking=thinking, return_dict=False
            )
            assert ids == chat().encode(talk, thinking)
    for text in ("12 + 34 = 46", "héllo\n\n wörld", "<think> no </think>"):
        assert theirs.decode(theirs(text).input_ids) == text


@pytest.mark.parametrize("name", SHAPES)
def test_reading_gives_back_what_was_written(name: str, tmp_path: Path) -> None:
    """Every tensor to the bit, MTP layers included, and the same configuration where it matters."""
    ours = model_of(SHAPES[name])
    save_model(tmp_path / "m", ours, chat())
    back = load_model(tmp_path / "m")
    theirs = back.state_dict()
    for key, tensor in ours.state_dict().items():
        assert torch.equal(tensor, theirs[key]), key
    assert config_to_hf(back.cfg) == config_to_hf(ours.cfg)
    ids = torch.tensor(tokens_of(20))
    with torch.inference_mode():
        assert torch.equal(back(ids, Documents([20])), ours(ids, Documents([20])))


@pytest.mark.parametrize("name", SHAPES)
def test_every_number_of_ours_has_one_place(name: str) -> None:
    cfg = SHAPES[name]
    covered = {key: torch.zeros(t.shape) for key, t in Transformer(cfg).state_dict().items()}
    names = set()
    for place in places(cfg):
        covered[place.ours][place.index] += 1
        assert place.theirs not in names
        names.add(place.theirs)
    if cfg.tied:
        covered.pop("head.weight")
    assert {key for key, times in covered.items() if not bool((times == 1).all())} == set()


def test_mtp_layers_have_their_published_names(tmp_path: Path) -> None:
    """transformers reads none of them, so the names are held here: DeepSeek-V3's, numbered behind the last layer."""
    ours = model_of(SHAPES["moe, two mtp layers"])
    save_model(tmp_path / "m", ours, chat())
    written = load_file(tmp_path / "m" / "mtp.safetensors")
    for depth, layer in enumerate(ours.mtp):
        prefix = f"model.layers.{ours.cfg.layers + depth}"
        for name, tensor in {
            "enorm": layer.embed_norm.weight, "hnorm": layer.hidden_norm.weight, "eh_proj": layer.project.weight,
            "shared_head.norm": layer.norm.weight, "self_attn.o_proj": layer.block.attention.o.weight,
            "mlp.experts.3.down_proj": layer.block.ffn.down[3],
        }.items():  # fmt: skip
            assert torch.equal(written[f"{prefix}.{name}.weight"], tensor), name
    answering = load_file(tmp_path / "m" / "model.safetensors")
    assert not any(name.startswith(f"model.layers.{ours.cfg.layers}") for name in answering)


def test_a_model_directory_without_its_mtp_layers_still_answers(saved: Path) -> None:
    assert load_model(saved).cfg.mtp_layers == 1
    bare = load_model(saved, mtp=False)
    (saved / "mtp.safetensors").unlink()
    for model in (bare, load_model(saved)):
        assert model.cfg.mtp_layers == 0
        assert len(model.mtp) == 0


def test_damaged_weights_are_named(saved: Path) -> None:
    path = saved / "model.safetensors"
    whole = load_file(path)
    name = "model.layers.1.mlp.experts.3.up_proj.weight"
    for change, said in (
        ({k: v for k, v in whole.items() if k != name}, name),
        ({**whole, name: whole[name][:, :-1].contiguous()}, name),
        ({**whole, "model.layers.9.odd": torch.zeros(1)}, "model.layers.9.odd"),
        ({**whole, name: torch.zeros(whole[name].shape, dtype=torch.int32)}, "I32"),
    ):
        save_file(change, path)
        with pytest.raises(UserError, match=said):
            load_model(saved)
    save_file(whole, path)
    content = path.read_bytes()
    for cut in (0, 7, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:cut])
        with pytest.raises(UserError, match=r"model\.safetensors"):
            load_model(saved)
    path.unlink()
    with pytest.raises(UserError, match=r"model\.safetensors"):
        load_model(saved)


def test_a_failed_save_leaves_the_old_model(saved: Path) -> None:
    """The kernel's own limit on the size of a file stands in for a full disk."""
    before = {p: p.read_bytes() for p in saved.parent.rglob("*") if p.is_file()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            save_model(saved, model_of(MOE, seed=9), chat())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {p: p.read_bytes() for p in saved.parent.rglob("*") if p.is_file()} == before
    assert list(saved.parent.iterdir()) == [saved]


def test_a_save_removes_what_a_killed_one_left_and_nothing_else(saved: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from mull.model.weights import beside\n"
        "with beside(Path(sys.argv[1])) as part: (part / 'half').touch(); os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(saved)]).returncode == 9
    (left,) = (p for p in saved.parent.iterdir() if p != saved)
    mine = {saved.with_name(name) for name in (".m.part", ".m.parts", "m.part", f".m2{left.name[2:]}")}
    for path in mine:
        path.mkdir()
    save_model(saved, model_of(MOE), chat())
    assert set(saved.parent.iterdir()) == {saved, *mine}


def test_a_model_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, done = tmp_path / "m", []
    monkeypatch.setattr(os, "fsync", lambda handle: done.append((os.fstat(handle).st_ino, folder.exists())))
    save_model(folder, model_of(MOE), chat())
    assert {inode for inode, named in done if not named} == {p.stat().st_ino for p in [*folder.iterdir(), folder]}
    assert done[-1] == (tmp_path.stat().st_ino, True)


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param("one file of fp32", marks=pytest.mark.slow),
        "shards of bf16",
        pytest.param("shards of fp8", marks=pytest.mark.slow),
    ],
)
def test_reading_takes_the_models_memory_and_little_more(kind: str, saved: Path, tmp_path: Path) -> None:
    folder = tmp_path / "large"
    size = save_large(folder)
    if kind == "shards of fp8":
        to_fp8(folder, (128, 128))
    elif kind == "shards of bf16":
        rewrite(folder, lambda t: t.update({name: tensor.bfloat16() for name, tensor in t.items()}))
    if kind != "one file of fp32":
        shard(folder)
    assert size > 180e6
    assert 0.9 < peak_of("load_model(folder)", saved, folder) / size < 1.15


HUGE = changed(GQA, vocab=2**20, width=2**15)  # two matrices of 137 GB


def save_hollow(folder: Path, cfg: ModelConfig) -> None:
    """A model directory whose numbers are all zeros that no disk holds."""
    save_model(folder, model_of(GQA), chat())
    (folder / "config.json").write_text(json.dumps(config_to_hf(cfg)))
    state, header, at = skeleton(cfg).state_dict(), {}, 0
    for place in places(cfg):
        tensor = state[place.ours][place.index]
        header[place.theirs] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [at, at + tensor.nbytes]}
        at += tensor.nbytes
    raw = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(len(raw).to_bytes(8, "little") + raw)
    os.truncate(folder / "model.safetensors", 8 + len(raw) + at)


@pytest.mark.skipif((available_memory() or 2**60) > 250e9, reason="this machine is too large, or does not say")
def test_a_model_that_does_not_fit_is_one_line(tmp_path: Path, refused: Callable[..., str]) -> None:
    """The file is mapped, whatever its size: what is missing is memory for the model."""
    save_hollow(tmp_path / "m", HUGE)
    said = r"This model takes 27\d\.\d GB of memory in fp32; \d+\.\d GB are free here\."
    assert re.fullmatch(said, refused("ask", tmp_path / "m", "Who are you?"))


@pytest.mark.skipif(Path("/proc/sys/vm/overcommit_memory").read_text() != "0\n", reason="memory may be promised twice")
def test_an_allocator_that_fails_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mull.model.weights.available_memory", lambda: None)
    with pytest.raises(UserError, match=r"takes 27\d\.\d GB of memory in fp32, which cpu does not have"):
        allocate(HUGE)
