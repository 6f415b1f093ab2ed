"""What we write, transformers loads without a word and computes the same; what we read is what was written."""

from __future__ import annotations

import atexit
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from small import GQA, MOE, SHAPES, changed, chat, in_memory, model_of, tokens_of  # noqa: F401

from mull.data.sources import seed_of
from mull.engine.engine import LocalEngine
from mull.model.config import ModelConfig
from mull.model.families import config_to_hf, places
from mull.model.source import mapped, skeleton
from mull.model.transformer import Transformer
from mull.model.weights import allocate, available_memory, load_model, save_model
from mull.ops.attention import Documents
from mull.ops.fp8 import quantise
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


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """model.safetensors as another hand would have written it."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def shard(folder: Path, parts: int = 3) -> None:
    """model.safetensors and mtp.safetensors in ordinary shards and an index, as DeepSeek publishes them."""
    files = [folder / name for name in ("model.safetensors", "mtp.safetensors") if (folder / name).exists()]
    tensors = {name: tensor for file in files for name, tensor in load_file(file).items()}
    for file in files:
        file.unlink()
    index = {}
    for part in range(parts):
        name = f"model-{part + 1:05}-of-{parts:05}.safetensors"
        mine = {tensor: tensors[tensor] for tensor in sorted(tensors)[part::parts]}
        save_file(mine, folder / name)
        index |= dict.fromkeys(mine, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))


def configure(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def same(left: Transformer, right: Transformer) -> bool:
    theirs = right.state_dict()
    return all(torch.equal(tensor, theirs[key]) for key, tensor in left.state_dict().items())


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


BLOCKS = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [8, 8]}


def to_fp8(folder: Path, block: tuple[int, int] = (8, 8), scales: str = "fp32") -> dict[str, torch.Tensor]:
    """The directory's projections in FP8. Returns what they are worth."""
    worth: dict[str, torch.Tensor] = {}

    def change(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if "_proj" in name and name.endswith("weight")]:
            codes, scale = quantise(tensors[name], block)
            if scales == "bytes":
                scale = scale.log2().ceil().add(127).to(torch.uint8)
            spread = (scale if scales == "fp32" else 2.0 ** (scale.float() - 127)).repeat_interleave(block[0], 0)
            spread = spread.repeat_interleave(block[1], 1)[: codes.shape[0], : codes.shape[1]]
            worth[name] = codes.float() * spread
            tensors |= {name: codes, f"{name}_scale_inv": scale}

    rewrite(folder, change)
    configure(folder, quantization_config=BLOCKS | {"weight_block_size": list(block)})
    return worth


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


PEAK = """
import re, sys, threading, time
from pathlib import Path
from mull.export import export
from mull.model.weights import load_model

def anonymous():
    return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

folder = Path(sys.argv[1])
{then}  # with a small one first: what importing and starting take is not the weights'
folder, before, peak, over = Path(sys.argv[2]), anonymous(), 0, threading.Event()

def watch():
    global peak
    while not over.is_set():
        peak = max(peak, anonymous())
        time.sleep(0.0005)

thread = threading.Thread(target=watch)
thread.start()
kept = {then}
over.set()
thread.join()
print(max(peak, anonymous()) - before)
"""


def peak_of(then: str, small: Path, large: Path) -> int:
    """Bytes of anonymous memory that `then`, said of a `folder`, takes at most, in a process of its own."""
    words = [sys.executable, "-c", PEAK.replace("{then}", then), str(small), str(large)]
    return int(subprocess.run(words, capture_output=True, text=True, check=True).stdout)


LARGE = changed(MOE, width=512, ffn=4096, expert_ffn=1024, experts=8)  # 200 MB; its largest tensor has 8


def save_large(folder: Path) -> int:
    """Returns the bytes of its numbers."""
    large = allocate(LARGE)
    for tensor in large.state_dict().values():
        tensor.fill_(0.02)
    save_model(folder, large, chat())
    return sum(p.numel() * p.element_size() for p in large.parameters())


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
