"""Model directories: config.json, safetensors in the Hugging Face layout, tokenizer, chat template. GGUF files, read.

The answering model is model.safetensors, or shards and their index; MTP layers lie apart in mtp.safetensors, so that a
reader without use for them (transformers warns of tensors it does not know) never sees them. A directory is written
beside, synced and renamed: it is there whole or not at all.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from glob import escape
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from mull.formats.gguf import is_gguf
from mull.formats.safetensors import MTP, SHARD, Planned, write_file, write_folder
from mull.model.config import ModelConfig
from mull.model.families import Place, config_to_hf, places
from mull.model.layers import Rotary
from mull.model.source import FLOATS, SCALE, Source, skeleton
from mull.model.transformer import Transformer
from mull.ops.fp8 import BLOCK, block_scales, grid, quantise
from mull.text.chat import Chat
from mull.types import UserError, sync

DTYPES = {"f32": "F32", "f16": "F16", "bf16": "BF16", "fp8": "F8_E4M3"}  # --dtype -> most of the tensors
MATRICES = ("_proj.weight", "_proj_with_mqa.weight")  # of attention and feed-forward
PART = ".part"  # behind the name of a directory that is still being written
WIDE = ("lm_head.weight", "mlp.gate.weight", "eh_proj.weight")  # matrices that FP8 leaves as they are


def load_model(path: Path, device: torch.device | str = "cpu", mtp: bool = True) -> Transformer:
    """Read a model directory or a .gguf file, into fp32. Raises UserError, by name, for what is damaged or not there.

    MTP layers answer nothing: they are left out without `mtp`, and where the configuration announces them but the
    files lack them.
    """
    path = Path(path)
    if is_gguf(path):
        return _load_gguf(path, device)
    source = Source(path)
    cfg = source.cfg if mtp else source.cfg.model_copy(update={"mtp_layers": 0})
    model = allocate(cfg, device)
    state = model.state_dict()
    for place in source.places:
        if mtp or not place.mtp:
            source.read(place.theirs, state[place.ours][place.index])
    return model


def _load_gguf(path: Path, device: torch.device | str) -> Transformer:
    from mull.formats.gguf import read_header
    from mull.model.gguf import config_of, fill

    header = read_header(path)
    model = allocate(config_of(header), device)
    fill(model, path, header)
    return model


def allocate(cfg: ModelConfig, device: torch.device | str = "cpu") -> Transformer:
    """A model with room for numbers that are still to be read; what no file holds, the rotary table, is there.

    Raises UserError where there is not so much memory.
    """
    model = skeleton(cfg)
    needed = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))  # tied ones once
    there = available_memory() if torch.device(device).type == "cpu" else None
    if there is not None and needed > there:
        raise UserError(f"This model takes {_size(needed)} of memory in fp32; {_size(there)} are free here.")
    try:
        for module in model.modules():  # as to_empty would, which loads torch's symbolic shapes: half a second
            own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
            for name, tensor in own:
                empty = torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
                setattr(module, name, nn.Parameter(empty) if isinstance(tensor, nn.Parameter) else empty)
    except RuntimeError:  # the CPU's allocator has no error of its own; torch.OutOfMemoryError is one too
        raise UserError(f"This model takes {_size(needed)} of memory in fp32, which {device} does not have.") from None
    if cfg.tied:
        model.head.weight = model.embed.weight
    model.rotary = Rotary(cfg).to(device)
    return model


def available_memory() -> int | None:
    """Bytes that a process can still fill, swap included; None where nothing says so but Linux."""
    try:
        found = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        return sum(int(found[key].removesuffix("kB")) * 1024 for key in ("MemAvailable", "SwapFree"))
    except (OSError, ValueError, KeyError):
        return None


def _size(count: int) -> str:
    return f"{count / 1e9:,.1f} GB"


def save_model(folder: Path, model: Transformer, chat: Chat) -> None:
    """Write or replace a model directory of a run, and remove what a killed process left of the same.

    Raises OSError where writing fails; what was there before then still is.
    """
    folder = Path(folder)
    for left in folder.parent.glob(f".{escape(folder.name)}.????????{PART}"):
        shutil.rmtree(left, ignore_errors=True)
    with beside(folder) as part:
        write_weights(part, places(model.cfg), plan_of(model, "f32"))
        write_config(part, model.cfg, chat, "f32")
        chat.save(part)
        sync_all(part)
        shutil.rmtree(folder, ignore_errors=True)
        part.rename(folder)
    sync(folder.parent)


@contextmanager
def beside(folder: Path) -> Iterator[Path]:
    """An empty directory to be renamed to `folder`. It is in one beside, with a name that nothing else has; only a kill
    leaves anything of that behind."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(PART, f".{folder.name}.", folder.parent, ignore_cleanup_errors=True) as place:
        part = Path(place, folder.name)
        part.mkdir()
        yield part


def sync_all(folder: Path) -> None:
    for path in [*folder.iterdir(), folder]:
        sync(path)


def write_weights(
    folder: Path, every: Iterable[Place], plan: Callable[[Place], Iterable[Planned]], shard: int = SHARD
) -> None:
    """The tensors of all places, each as `plan` has it; those of MTP layers apart. Raises OSError."""
    here = list(every)
    write_folder(folder, [planned for place in here if not place.mtp for planned in plan(place)], shard)
    if apart := [planned for place in here if place.mtp for planned in plan(place)]:
        write_file(folder / MTP, apart)


def plan_of(model: Transformer, dtype: str, exact: bool = False) -> Callable[[Place], list[Planned]]:
    """For write_weights: a model's tensors, on their way to disk converted to `dtype`, one of DTYPES; those that would
    lose by that to f32, if all are to be `exact`."""
    state = model.state_dict()

    def plan(place: Place) -> list[Planned]:
        tensor = state[place.ours][place.index].detach()
        loses = exact and not torch.equal(tensor.to(FLOATS[DTYPES[dtype]]).float(), tensor)
        return converted(
            place.theirs, tuple(tensor.shape), "f32" if loses else dtype, lambda: tensor.cpu().float()
        )  # fmt: skip

    return plan


def converted(name: str, shape: tuple[int, ...], dtype: str, numbers: Callable[[], Tensor]) -> list[Planned]:
    """A tensor in `dtype`: with fp8, matrices within layers as codes and scales, all else BF16, as DeepSeek has it.

    The router's bias is fp32 always, which transformers holds to also: it is added to scores that nearly tie.
    """
    kind = DTYPES[dtype]
    if name.endswith("e_score_correction_bias"):
        kind = "F32"
    elif dtype == "fp8" and not _in_blocks(name):
        kind = "BF16"
    if kind != "F8_E4M3":
        return [Planned(name, kind, shape, lambda: content(_narrowed(numbers(), kind, name)))]
    return [
        Planned(name, kind, shape, lambda: content(quantise(numbers())[0])),
        Planned(name + SCALE, "F32", grid(shape), lambda: content(block_scales(numbers()))),
    ]


def _in_blocks(name: str) -> bool:
    return (".self_attn." in name or ".mlp." in name) and name.endswith(MATRICES)


def _narrowed(numbers: Tensor, kind: str, name: str) -> Tensor:
    narrow = numbers.to(FLOATS[kind])
    if kind == "F16" and not math.isfinite(narrow.abs().max()) and math.isfinite(numbers.abs().max()):
        raise UserError(f"{name} holds numbers beyond 65504, the largest of f16; bf16 and f32 can hold them.")
    return narrow


def content(tensor: Tensor) -> memoryview:
    """A tensor's bytes, as they lie in memory."""
    return tensor.contiguous().view(torch.uint8).numpy().data


def write_config(folder: Path, cfg: ModelConfig, chat: Chat, dtype: str) -> None:
    """config.json and generation_config.json."""
    tokenizer = chat.tokenizer
    ends = {"bos_token_id": tokenizer.bos, "eos_token_id": tokenizer.eos, "pad_token_id": tokenizer.pad}
    config = config_to_hf(cfg) | ends | dtype_config(cfg, dtype)
    generation = ends | {"eos_token_id": list(tokenizer.stop_ids), "do_sample": False}
    write_json(folder / "config.json", config)
    write_json(folder / "generation_config.json", generation)


def dtype_config(cfg: ModelConfig, dtype: str) -> dict[str, Any]:
    """What config.json says of the tensors beside it."""
    wide = {"f32": "float32", "f16": "float16", "bf16": "bfloat16", "fp8": "bfloat16"}[dtype]
    if dtype != "fp8":
        return {"torch_dtype": wide}
    kept = [place.theirs.removesuffix(".weight") for place in places(cfg) if place.theirs.endswith(WIDE)]
    return {
        "torch_dtype": wide,
        "quantization_config": {
            "quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": list(BLOCK),
            "modules_to_not_convert": kept,
        },
    }  # fmt: skip


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1), encoding="utf-8")


__all__ = [
    "DTYPES", "allocate", "available_memory", "beside", "content", "converted", "dtype_config", "load_model", "plan_of",
    "save_model", "sync_all", "write_config", "write_json", "write_weights",
]  # fmt: skip
