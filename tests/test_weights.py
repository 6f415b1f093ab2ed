"""What we write, transformers loads without a word and computes the same; what we read is what was written."""

from __future__ import annotations

import json
import os
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from small import MOE, SHAPES, chat, model_of, tokens_of

from mull.data.sources import seed_of
from mull.engine.engine import LocalEngine
from mull.model.families import config_from_hf, config_to_hf, family_of, places, read_config
from mull.model.transformer import Transformer
from mull.model.weights import load_model, save_model
from mull.ops.attention import Documents
from mull.types import Message, Request, Sampling, UserError


@pytest.fixture(scope="module")
def transformers():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("TRANSFORMERS_VERBOSITY", "warning")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the import itself
            import transformers as library
        library.utils.logging.disable_progress_bar()
        yield library


def loaded(transformers, folder: Path):
    """The checkpoint through AutoModelForCausalLM; nothing missing, unexpected or misshapen."""
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True, attn_implementation="eager"
    )
    assert {key: list(value) for key, value in info.items() if value} == {}
    return model.eval()


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


def test_families() -> None:
    assert {name: family_of(SHAPES[name]) for name in ("mla", "moe", "llama", "qwen2", "gqa moe")} == {
        "mla": "deepseek_v3", "moe": "deepseek_v3", "llama": "llama", "qwen2": "qwen2", "gqa moe": "glm4_moe",
    }  # fmt: skip


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_model(tmp_path / "m", model_of(MOE), chat())
    return tmp_path / "m"


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


def test_a_failed_save_leaves_the_old_model(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {p.name: p.read_bytes() for p in saved.iterdir()}
    blocker = saved.with_name(f".{saved.name}.part")
    blocker.write_text("a file where the folder should be")
    with pytest.raises(OSError, match="part"):
        save_model(saved, model_of(MOE, seed=9), chat())
    assert {p.name: p.read_bytes() for p in saved.iterdir()} == before


def test_a_model_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, done = tmp_path / "m", []
    monkeypatch.setattr(os, "fsync", lambda handle: done.append((os.fstat(handle).st_ino, folder.exists())))
    save_model(folder, model_of(MOE), chat())
    assert {inode for inode, named in done if not named} == {p.stat().st_ino for p in [*folder.iterdir(), folder]}
    assert done[-1] == (tmp_path.stat().st_ino, True)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model_type": "mixtral"}, "mixtral"),
        ({"model_type": "deepseek_v2"}, "deepseek_v3"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"attention_bias": True}, "attention_bias"),
        ({"rope_interleave": False}, "rope_interleave"),
        ({"rope_scaling": {"rope_type": "longrope", "factor": 8.0}}, "longrope"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "low_freq_factor"),
        ({"hidden_size": None}, "width|hidden_size"),
        ({"num_experts_per_tok": 100}, "active_experts"),
        ({"num_hidden_layers": "two"}, "num_hidden_layers = 'two' is no whole number"),
        ({"num_hidden_layers": 2.5}, "num_hidden_layers"),
        ({"num_attention_heads": 0}, "num_attention_heads"),
        ({"first_k_dense_replace": None}, "first_k_dense_replace"),
        ({"rope_scaling": "yarn"}, "rope_scaling"),
        (
            {"rope_scaling": {"rope_type": "yarn", "original_max_position_embeddings": 32}},
            "yarn scaling lacks 'factor'",
        ),
        ({"rope_scaling": {"type": "yarn", "factor": "x", "original_max_position_embeddings": 32}}, "yarn.factor"),
    ],
    ids=str,
)
def test_what_mull_cannot_run_is_refused(change: dict, said: str) -> None:
    with pytest.raises(UserError, match=said):
        config_from_hf({**config_to_hf(MOE), **change}, "config.json")


@pytest.mark.parametrize("text", ["", "[1, 2]", "{", "null", '{"model_type": "deepseek_v3"}'])
def test_a_broken_config_is_a_user_error(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError, match=r"config\.json"):
        read_config(tmp_path)


def test_no_config_no_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no model directory"):
        read_config(tmp_path)
