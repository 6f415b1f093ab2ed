"""What is exported, transformers loads without a word and computes the same; what stays as it is stays to the bit."""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import loaded, peak_of, same, save_large, shard
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from small import MOE, SHAPES, chat, in_memory, model_of, tokens_of  # noqa: F401
from torch import Tensor

from mull.export import COPIED, export
from mull.formats.gguf import read_header
from mull.formats.safetensors import read_folder
from mull.model.source import EMBED
from mull.model.transformer import Transformer
from mull.model.weights import DTYPES, load_model, save_model, sync_all
from mull.ops.attention import Documents
from mull.report.card import Origin, origin_of_gguf
from mull.types import UserError

NARROW = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


def saved(folder: Path, name: str = "moe", seed: int = 0) -> Path:
    save_model(folder, model_of(SHAPES[name], seed), chat())
    return folder


def stored(folder: Path) -> dict[str, tuple[str, bytes]]:
    """Every tensor of a directory, whatever file it is in: its type and bytes."""
    return {
        name: (info.dtype, info.file.read_bytes()[info.offset : info.offset + info.bytes])
        for name, info in read_folder(folder).items()
    }


def logits(model: Transformer) -> Tensor:
    with torch.inference_mode():
        return model.logits(model(torch.tensor(tokens_of(60)), Documents([60])))


def agree(theirs, ours: Transformer) -> None:
    with torch.inference_mode():
        right = theirs(torch.tensor([tokens_of(60)])).logits[0]
    assert float(right.std()) > 0.5
    torch.testing.assert_close(logits(ours), right, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", SHAPES)
def test_every_family_loads_in_transformers(name: str, tmp_path: Path, transformers) -> None:
    source = saved(tmp_path / "m", name)
    out = export(source, "hf", tmp_path / "out")
    assert out == tmp_path / "out"
    agree(loaded(transformers, out), load_model(source))
    assert stored(out) == stored(source)
    config = json.loads((out / "config.json").read_text())
    assert config["torch_dtype"] == "float32"
    assert "quantization_config" not in config


@pytest.mark.parametrize("name", ["moe, two mtp layers", "gqa moe", "llama, tied", "qwen2"])
@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_narrow_numbers(name: str, dtype: str, tmp_path: Path, transformers) -> None:
    """All numbers rounded once, but for the router's bias; transformers and mull read the same from them."""
    source = saved(tmp_path / "m", name)
    out = export(source, "hf", tmp_path / "out", dtype)
    before = load_model(source).state_dict()
    after = load_model(out)
    for key, tensor in after.state_dict().items():
        exact = key.endswith("router.bias")
        assert torch.equal(tensor, before[key] if exact else before[key].to(NARROW[dtype]).float()), key
    agree(loaded(transformers, out), after)
    config = json.loads((out / "config.json").read_text())
    assert config["torch_dtype"] == {"f16": "float16", "bf16": "bfloat16"}[dtype]


@pytest.mark.parametrize("name", ["moe", "llama", "qwen3 moe"])
def test_fp8_is_as_deepseek_publishes_it(
    name: str,
    tmp_path: Path,
    transformers,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """transformers multiplies it out to the same numbers. It asks for accelerate, which that does not use."""
    out = export(saved(tmp_path / "m", name), "hf", tmp_path / "out", "fp8")
    kinds = {tensor: kind for tensor, (kind, _) in stored(out).items()}
    for tensor, kind in kinds.items():
        if tensor.endswith("_scale_inv") or tensor.endswith("correction_bias"):
            assert kind == "F32", tensor
        elif "_proj" in tensor and tensor.endswith("weight") and "eh_proj" not in tensor:
            assert kind == "F8_E4M3", tensor
            assert f"{tensor}_scale_inv" in kinds
        else:
            assert kind == "BF16", tensor
    config = json.loads((out / "config.json").read_text())
    kept = {
        tensor.removesuffix(".weight") for tensor in kinds if tensor.endswith(("lm_head.weight", "mlp.gate.weight"))
    }
    kept |= {tensor.removesuffix(".weight") for tensor in kinds if tensor.endswith("eh_proj.weight")}
    assert set(config["quantization_config"].pop("modules_to_not_convert")) == kept
    assert config["quantization_config"] == {
        "quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [128, 128],
    }  # fmt: skip
    before, after = load_model(tmp_path / "m").state_dict(), load_model(out)
    for key, tensor in after.state_dict().items():
        bound = before[key].abs() / 16 + before[key].abs().max() / 448 / 1024
        assert bool(((tensor - before[key]).abs() <= bound * 1.001).all()), key
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import transformers.quantizers.quantizer_finegrained_fp8 as theirs
    monkeypatch.setattr(theirs, "is_accelerate_available", lambda: True)
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        out, dtype=torch.float32, output_loading_info=True, attn_implementation="eager",
        quantization_config=transformers.FineGrainedFP8Config(dequantize=True),
    )  # fmt: skip
    assert {key: list(value) for key, value in info.items() if value} == {}
    agree(model.float().eval(), after)


def raw_numbers(seed: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Any finite bits of a type, subnormal ones and negative zeros among them."""
    generator = torch.Generator().manual_seed(seed)
    integer = {1: torch.uint8, 2: torch.int16, 4: torch.int32}[dtype.itemsize]
    info = torch.iinfo(integer)
    bits = torch.randint(info.min, info.max, shape, generator=generator, dtype=torch.int64).to(integer)
    drawn = bits.view(dtype)
    return torch.where(drawn.float().isfinite(), drawn.float(), 0.0).to(dtype)


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([*NARROW, "fp8"]))
def test_exporting_what_was_loaded_gives_the_same_bytes(seed: int, dtype: str) -> None:
    """In the type it has, named or not, whatever bits the weights are: F32 with BF16 and F16 among it, FP8 codes with
    any scales; only which file a tensor is in may change."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as place:
        folder = saved(Path(place) / "m", "moe")
        tensors = load_file(folder / "model.safetensors") | load_file(folder / "mtp.safetensors")
        drawn: dict[str, Tensor] = {}
        for number, (name, tensor) in enumerate(tensors.items()):
            matrix = dtype == "fp8" and "_proj" in name and "eh_proj" not in name
            kind = torch.float8_e4m3fn if matrix else NARROW.get(dtype, torch.bfloat16)
            drawn[name] = raw_numbers(seed + number, tuple(tensor.shape), kind)
            if matrix:
                drawn[f"{name}_scale_inv"] = torch.rand(1, 1) * 1e-3
        save_file(drawn, folder / "model.safetensors")
        (folder / "mtp.safetensors").unlink()
        config = json.loads((folder / "config.json").read_text())
        if dtype == "fp8":
            config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [64, 64], "note": "kept"}
        (folder / "config.json").write_text(json.dumps(config))
        shard(folder, parts=4)
        for given_, out in ((dtype, "named"), (None, "unnamed")):
            export(folder, "hf", folder.parent / out, given_)
            assert stored(folder.parent / out) == stored(folder)
            written = json.loads((folder.parent / out / "config.json").read_text())
            assert written.get("quantization_config") == config.get("quantization_config")
            assert same(load_model(folder), load_model(folder.parent / out))


def test_shards_and_mtp_layers_apart(tmp_path: Path, transformers) -> None:
    source = saved(tmp_path / "m", "moe, two mtp layers")
    out = export(source, "hf", tmp_path / "out", shard=50_000)
    files = sorted(path.name for path in out.glob("*.safetensors"))
    assert len(files) > 4
    assert "mtp.safetensors" in files
    assert "model.safetensors" not in files
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == set(files) - {"mtp.safetensors"}
    assert all(name.startswith(("model.layers.3.", "model.layers.4.")) for name in load_file(out / "mtp.safetensors"))
    for name in set(index["weight_map"].values()):
        assert sum(t.nbytes for t in load_file(out / name).values()) <= 50_000
    assert stored(out) == stored(source)
    agree(loaded(transformers, out), load_model(out))


def test_what_says_how_to_speak_is_copied(tmp_path: Path) -> None:
    """Tokenizer, template, generation settings and licence to the byte; config.json but for what is no longer true."""
    source = saved(tmp_path / "m")
    (source / "LICENSE").write_text("Do as you please.")
    (source / "USE_POLICY.md").write_text("But kindly.")
    (source / "README.md").write_text("---\nlicense: mit\n---\n# A model of its own\n")
    (source / "pytorch_model.bin").write_bytes(b"never opened")
    path = source / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_map": {"AutoModel": "x.Y"}, "mine": 3}))
    out = export(source, "hf", tmp_path / "out", "bf16")
    for name in [name for name in COPIED if (source / name).exists()] + ["LICENSE", "USE_POLICY.md"]:
        assert (out / name).read_bytes() == (source / name).read_bytes(), name
    config = json.loads((out / "config.json").read_text())
    assert config["mine"] == 3
    assert "auto_map" not in config
    assert {path.name for path in out.iterdir()} == {
        "README.md", "SOURCE.md", "LICENSE", "USE_POLICY.md", "chat_template.jinja", "config.json",
        "generation_config.json", "model.safetensors", "mtp.safetensors", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    assert (out / "SOURCE.md").read_bytes() == (source / "README.md").read_bytes()
    assert 'license: "mit"' in (out / "README.md").read_text()
    assert "[SOURCE.md](SOURCE.md)" in (out / "README.md").read_text()


@pytest.mark.parametrize("name", ["LICENSE", "README.md", "special_tokens_map.json"])
def test_a_link_out_of_the_folder_is_not_copied(name: str, tmp_path: Path) -> None:
    """An export could be published: a stranger's directory must not put the reader's own files into it."""
    source = saved(tmp_path / "m")
    (tmp_path / "secret").write_text("mine")
    (source / name).symlink_to(tmp_path / "secret")
    with pytest.raises(UserError, match="link out of its folder"):
        export(source, "hf", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m", "secret"]


@pytest.mark.parametrize(
    ("to", "out", "dtype", "said"),
    [
        ("hf", "m", None, "there already"),
        ("hf", "/", None, "give the new directory a name"),
        ("hf", "m/config.json", None, "there already"),
        ("gguf", "m", None, "there already"),
        ("hf", "new", "q8_0", "for hf there are f32, f16, bf16, fp8"),
        ("gguf", "new.gguf", "fp8", "for gguf there are f32, f16, bf16, q8_0"),
        ("hf", "new", "int4", "for hf there are"),
        ("gguf", "there.gguf", None, "there already"),
    ],
)
def test_nothing_is_overwritten_and_no_type_invented(
    to: str, out: str, dtype: str | None, said: str, tmp_path: Path
) -> None:
    source = saved(tmp_path / "m")
    (tmp_path / "there.md").write_text("a card")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=said):
        export(source, to, tmp_path / out, dtype)  # pyright: ignore[reportArgumentType]
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(("to", "link"), [("hf", "d"), ("gguf", "d"), ("gguf", "d.gguf"), ("gguf", "d.md")])
def test_a_link_that_leads_nowhere_is_not_replaced(to: str, link: str, tmp_path: Path) -> None:
    source = saved(tmp_path / "m")
    (tmp_path / link).symlink_to("later")
    out = tmp_path / ("d.gguf" if link == "d.md" else link)
    with pytest.raises(UserError, match="there already"):
        export(source, to, out)  # pyright: ignore[reportArgumentType]
    assert (tmp_path / link).readlink() == Path("later")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([link, "m"])


@pytest.mark.parametrize(("to", "out"), [("hf", "d"), ("gguf", "d"), ("gguf", "d.gguf"), ("gguf", "D.GGUF")])
def test_the_users_own_parts_are_left_alone(to: str, out: str, tmp_path: Path) -> None:
    """However they are named; and nothing but the export itself is left beside them."""
    source = saved(tmp_path / "m")
    mine = tmp_path / f".{out}.part"
    mine.mkdir()
    (mine / "work").write_text("of years")
    export(source, to, tmp_path / out)  # pyright: ignore[reportArgumentType]
    assert (mine / "work").read_text() == "of years"
    made = [out, f"{out[:-5]}.md"] if "." in out else [out]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["m", mine.name, *made])


@pytest.mark.parametrize(("to", "out"), [("hf", "d"), ("gguf", "d.gguf")])
def test_two_exports_to_one_place_do_not_mix(
    to: str, out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the first is at its last step the second begins and ends; the first is then refused, and loses nothing."""
    source, written = saved(tmp_path / "m"), []

    def last_step(folder: Path) -> None:
        sync_all(folder)
        if not written:
            written.append(True)
            export(source, to, tmp_path / out)  # pyright: ignore[reportArgumentType]
            written.append(content_of(tmp_path))

    monkeypatch.setattr("mull.export.sync_all", last_step)
    with pytest.raises(UserError, match=r"there already|cannot be written: Directory not empty"):
        export(source, to, tmp_path / out)  # pyright: ignore[reportArgumentType]
    del written[1]["parts"]
    left = content_of(tmp_path)
    del left["parts"]
    assert left == written[1]


def content_of(folder: Path) -> dict[str, object]:
    files = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    seen: dict[str, object] = {name: raw for name, raw in files.items() if not name.startswith(".")}
    return seen | {"parts": len(files) - len(seen)}


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    export(saved(tmp_path / "m"), "hf", tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").exists()


def poisoned(folder: Path) -> Path:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][3] = float("nan")
    save_file(tensors, folder / "model.safetensors")
    return folder


def too_large(folder: Path) -> Path:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][3] = 1e5
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize(
    ("change", "dtype", "said"),
    [
        (poisoned, None, "model.norm.weight holds NaN"),
        (poisoned, "bf16", "model.norm.weight holds NaN"),
        (too_large, "f16", "model.norm.weight holds numbers beyond 65504"),
    ],
)
def test_broken_numbers_leave_nothing(
    change: Callable[[Path], Path], dtype: str | None, said: str, tmp_path: Path
) -> None:
    source = change(saved(tmp_path / "m"))
    with pytest.raises(UserError, match=said):
        export(source, "hf", tmp_path / "out", dtype)
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


@pytest.mark.parametrize(("to", "out"), [("hf", "out"), ("gguf", "out"), ("gguf", "out.gguf")])
def test_a_full_disk_leaves_nothing(to: str, out: str, tmp_path: Path) -> None:
    """The kernel's own limit on the size of a file stands in for the disk's end."""
    source = saved(tmp_path / "m")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(UserError, match=r"cannot be written: .*Nothing of it was left") as caught:
            export(source, to, tmp_path / out)  # pyright: ignore[reportArgumentType]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


@pytest.mark.parametrize("to", ["hf", "gguf"])
def test_there_and_back_through_gguf(to: str, tmp_path: Path, transformers) -> None:
    """A directory to GGUF, and that to either format: the same numbers in f32, MTP layers aside."""
    source = saved(tmp_path / "m")
    first = export(source, "gguf", tmp_path / "first.gguf")
    assert (tmp_path / "first.md").read_text().startswith("---\n")
    back = export(first, to, tmp_path / "second")  # pyright: ignore[reportArgumentType]
    assert back == (tmp_path / "second" if to == "hf" else tmp_path / "second" / "first-f32.gguf")
    assert (tmp_path / "second" / "README.md").exists()
    right = load_model(source, mtp=False).state_dict()
    for key, tensor in load_model(back).state_dict().items():
        assert torch.equal(tensor, right[key]), key
    if to == "hf":
        agree(loaded(transformers, back), load_model(source))
        ids = transformers.AutoTokenizer.from_pretrained(back)("12 + 34 = 46").input_ids
        assert ids == chat().tokenizer.encode("12 + 34 = 46")


def test_a_gguf_file_says_whose_it_is(tmp_path: Path) -> None:
    """Licence, base model, languages and data sets go with the weights, there and back."""
    source = saved(tmp_path / "mine")
    (source / "README.md").write_text(
        "---\nlicense: mit\nbase_model: [a/b, c/d]\nlanguage: en\ndatasets: [e/f]\n---\n# A model of its own\n"
    )
    metadata = read_header(export(source, "gguf", tmp_path / "out.gguf")).metadata
    assert origin_of_gguf(metadata) == Origin("mit", ("a/b", "c/d"), ("e/f",), ("en",))
    assert metadata["general.name"] == "mine"
    bare = read_header(export(saved(tmp_path / "bare"), "gguf", tmp_path / "bare.gguf")).metadata
    assert origin_of_gguf(bare) == Origin()
    assert "general.license" not in bare


TAUGHT = """
name = "taught"
[outside]
small = "{}"
[[stage]]
name = "taught"
kind = "sft"
init = "small"
steps = 1
batch_tokens = 128
tasks = [{{ task = "gcd", size = {{ values = [1, 3] }} }}]
"""


def test_a_licence_goes_through_runs(tmp_path: Path, mull: Callable[..., Any]) -> None:
    """A published GGUF file is taught, the result is taught again, by its run's name: both say whose they are."""
    source = saved(tmp_path / "m", "llama")
    (source / "README.md").write_text("---\nlicense: apache-2.0\nlanguage: en\n---\n")
    begin = export(source, "gguf", tmp_path / "Published-1.gguf")
    for number in (1, 2):
        (tmp_path / "recipe.toml").write_text(TAUGHT.format(begin))
        begin = tmp_path / f"run{number}"
        assert mull("run", tmp_path / "recipe.toml", "--out", begin, "--quiet").code == 0
        card = (export(begin, "hf", tmp_path / f"hf{number}") / "README.md").read_text()
        assert 'license: "apache-2.0"' in card.split("---")[1]
        assert "| licence | apache-2.0 |" in card
        assert "| base model | Published-1.gguf (apache-2.0) |" in card
        metadata = read_header(export(begin, "gguf", tmp_path / f"{number}.gguf")).metadata
        assert metadata["general.license"] == "apache-2.0"
        assert metadata["general.languages"] == ["en"]
        assert metadata["general.base_model.0.name"] == "Published-1.gguf"
    (tmp_path / "Published-1.gguf").unlink()
    card = (export(begin, "hf", tmp_path / "later") / "README.md").read_text()
    assert "license:" not in card.split("---")[1]
    assert "| base model | Published-1.gguf (licence not recorded) |" in card


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16", "q8_0"])
def test_a_gguf_file_keeps_its_type(dtype: str, tmp_path: Path) -> None:
    """Exported without --dtype a GGUF file has the same tensors, to the bit, and a directory of it the same numbers."""
    first = export(saved(tmp_path / "m"), "gguf", tmp_path / "a.gguf", dtype)
    again = export(first, "gguf", tmp_path / "b" / "B.GGUF")
    before, after = (read_header(path) for path in (first, again))
    assert {info.type for info in before.tensors.values()} >= {"F32", dtype.upper()}
    for name, info in before.tensors.items():
        other = after.tensors[name]
        assert other.type == info.type, name
        raws = [f.read_bytes()[i.offset : i.offset + i.bytes] for f, i in ((first, info), (again, other))]
        assert raws[0] == raws[1], name
    folder = export(again, "hf", tmp_path / "hf")
    assert same(load_model(folder), load_model(first))
    wide = {"f16": "float16", "bf16": "bfloat16"}.get(dtype, "float32")
    assert json.loads((folder / "config.json").read_text())["torch_dtype"] == wide
    matrices = {kind for name, (kind, _) in stored(folder).items() if "_proj" in name}
    assert matrices == {{"f16": "F16", "bf16": "BF16"}.get(dtype, "F32")}
    assert export(folder, "gguf", tmp_path / "back").name == f"hf-{dtype if dtype != 'q8_0' else 'f32'}.gguf"


def test_types_of_gguf(tmp_path: Path) -> None:
    """Without --dtype a bf16 directory makes a bf16 file; an FP8 one, f32, which alone holds all of its numbers."""
    source = saved(tmp_path / "m")
    for dtype, kept in (("bf16", "bf16"), ("fp8", "f32")):
        folder = export(source, "hf", tmp_path / dtype, dtype)
        assert export(folder, "gguf", tmp_path / f"{dtype}-gguf").name == f"{dtype}-{kept}.gguf"
    path = tmp_path / "bf16" / "model.safetensors"
    tensors = load_file(path)
    for name, kept in (("model.layers.1.mlp.gate.weight", "bf16"), ("model.norm.weight", "bf16"), (EMBED, "f32")):
        tensors[name] = tensors[name].float()
        save_file(tensors, path)
        assert export(tmp_path / "bf16", "gguf", tmp_path / name).name == f"bf16-{kept}.gguf", name
    assert set(DTYPES) == {"f32", "f16", "bf16", "fp8"}


@pytest.mark.slow
def test_the_cards_own_lines_run(tmp_path: Path) -> None:
    """What the card tells its reader to type, typed in that folder."""
    out = export(saved(tmp_path / "m", "llama"), "hf", tmp_path / "out")
    (lines,) = re.findall(r"```python\n(.*?)```", (out / "README.md").read_text(), re.DOTALL)
    done = subprocess.run(
        [sys.executable, "-c", lines], cwd=out, capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "1"}
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("<|im_start|>user\nWhat is 12 * 34?")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bf16", "fp8", "f16"])
def test_an_export_takes_a_tensors_memory_not_the_models(dtype: str, tmp_path: Path) -> None:
    save_large(tmp_path / "large")
    then = f"export(folder, 'hf', folder.with_name(folder.name + '-out'), '{dtype}')"
    assert peak_of(then, saved(tmp_path / "small"), tmp_path / "large") < 40e6
