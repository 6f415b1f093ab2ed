"""The weights of a model directory: mapped into memory, and held against its configuration before any is read.

A tensor is copied from the map straight to where it belongs, a megabyte or so at a time: converted to fp32, FP8 blocks
times their scales, and looked through for numbers that are none while they are still in the processor's cache. Nothing
of the file's size is allocated beside the model itself.
"""

from __future__ import annotations

import math
import mmap
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mull.formats.safetensors import TensorInfo, read_folder
from mull.model.config import ModelConfig
from mull.model.families import Place, config_from_hf, places, read_raw
from mull.model.transformer import Transformer
from mull.ops.fp8 import BLOCK, dequantise, grid
from mull.types import UserError

FLOATS = {
    "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn,
}  # fmt: skip
SCALES = {"F32": torch.float32, "BF16": torch.bfloat16, "U8": torch.uint8, "F8_E8M0": torch.uint8}
NAMES = {"F32": "f32", "F64": "f32", "F16": "f16", "BF16": "bf16"}  # what --dtype calls them
EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
SCALE = "_scale_inv"  # behind the name of an FP8 tensor: that of its scales
PIECE = 2**20  # numbers copied at a time
COPIES = ("embed_tokens.weight", "shared_head.head.weight")  # which published MTP layers repeat from the model


class Source:
    """`config` is what config.json says; `cfg` what that means, MTP layers left out where the files lack them. Raises
    UserError for whatever is damaged, missing, left over, misshapen or of a kind that mull does not read; by name."""

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        self.found = read_folder(self.folder)
        where = self.folder / "config.json"
        self.config = read_raw(where)
        self.cfg = _present(config_from_hf(self.config, str(where)), self.found)
        self.places = list(self._whole())
        self.block = _block(self.config, where)
        self._maps: dict[Path, Tensor] = {}
        self._check()

    @cached_property
    def dtype(self) -> str:
        """fp8 if anything is, else what most numbers are: f32, f16 or bf16."""
        sizes: Counter[str] = Counter()
        for place in self.places:
            sizes[self.found[place.theirs].dtype] += math.prod(self.found[place.theirs].shape)
        return "fp8" if "F8_E4M3" in sizes else NAMES[sizes.most_common(1)[0][0]]

    def raw(self, name: str) -> Tensor:
        """A tensor as it is in its file; not to be written to."""
        info = self.found[name]
        if info.file not in self._maps:
            self._maps[info.file] = mapped(info.file)
        raw = self._maps[info.file][info.offset : info.offset + info.bytes]
        dtype = (FLOATS | SCALES)[info.dtype]
        if raw.storage_offset() % dtype.itemsize:  # some who write these files align nothing
            raw = raw.clone()
        return raw.view(dtype).view(info.shape)

    def read(self, name: str, out: Tensor) -> Tensor:
        """A tensor's numbers into `out`, fp32 and on any device. Raises UserError for NaN and infinity."""
        raw, scale = self.raw(name), self.scale(name)
        height, _ = self.block or (1, 1)
        rows = max(PIECE * len(out) // out.numel(), 1)
        rows += -rows % height  # whole blocks
        for begin in range(0, len(out), rows):
            part, target = raw[begin : begin + rows], out[begin : begin + rows]
            piece = target if target.device.type == "cpu" else torch.empty(target.shape)
            if scale is None:
                piece.copy_(part)
            else:
                dequantise(part, scale[begin // height :], piece, self.block or BLOCK)
            low, high = piece.aminmax()
            if not math.isfinite(low) or not math.isfinite(high):
                raise UserError(f"{self.found[name].file}: {name} holds NaN or infinity; these weights are broken.")
            if piece is not target:
                target.copy_(piece)
        return out

    def scale(self, name: str) -> Tensor | None:
        """The factors of an FP8 tensor's blocks, fp32; None for other tensors. A byte b means 2^(b - 127)."""
        if self.found[name].dtype != "F8_E4M3":
            return None
        raw = self.raw(name + SCALE)
        return torch.pow(2.0, raw.double() - 127).float() if raw.dtype == torch.uint8 else raw.float()

    def _whole(self) -> Iterator[Place]:
        """All places; the first that the files lack ends it, so that a configuration may claim what it likes."""
        for place in places(self.cfg):
            if place.theirs not in self.found:
                raise UserError(f"{self.folder} lacks the tensor {place.theirs}; it is not whole.")
            yield place

    def _check(self) -> None:
        state = skeleton(self.cfg).state_dict()
        left = dict(self.found)
        for place in self.places:
            info = left.pop(place.theirs)
            self._check_tensor(place.theirs, info, state[place.ours][place.index].shape, left)
        for name, info in left.items():
            if name == HEAD and self.cfg.tied:
                self._check_tied(info)
            elif not _ignored(name, self.cfg):
                raise UserError(f"{info.file} holds a tensor {name}, for which its config.json has no place.")

    def _check_tensor(self, name: str, info: TensorInfo, shape: torch.Size, left: dict[str, TensorInfo]) -> None:
        if info.shape != tuple(shape):
            raise UserError(f"{info.file}: {name} has shape {list(info.shape)}, not {list(shape)}.")
        if info.dtype not in FLOATS:
            raise UserError(f"{info.file}: {name} holds {info.dtype}; mull reads weights of {', '.join(FLOATS)}.")
        if info.dtype != "F8_E4M3":
            return
        scale = left.pop(name + SCALE, None)
        if scale is None:
            raise UserError(f"{info.file}: {name} is FP8 without the scales of its blocks, {name + SCALE}.")
        if self.block is None:
            raise UserError(
                f"{info.file} holds FP8 weights, but {self.folder}/config.json does not say in "
                "quantization_config.weight_block_size how large their blocks are."
            )
        needed = list(grid(info.shape, self.block)) if len(shape) == 2 else "a matrix"
        if scale.dtype not in SCALES or list(scale.shape) != needed:
            raise UserError(
                f"{scale.file}: {name + SCALE} is {scale.dtype} {list(scale.shape)}; blocks of "
                f"{self.block[0]}x{self.block[1]} in {list(shape)} need {needed}, of {', '.join(SCALES)}."
            )

    def _check_tied(self, head: TensorInfo) -> None:
        """A head beside the embedding it is said to be: fine if they are the same."""
        embed = self.found[EMBED]
        alike = (head.shape, head.dtype) == (embed.shape, embed.dtype)
        if not alike or not torch.equal(self.raw(HEAD), self.raw(EMBED)):
            raise UserError(f"{head.file}: {HEAD} is not {EMBED}, but tie_word_embeddings in config.json says it is.")


def skeleton(cfg: ModelConfig) -> Transformer:
    """The model without numbers: shapes alone, on torch's meta device. Raises UserError for sizes beyond all bounds."""
    try:
        with torch.device("meta"):
            return Transformer(cfg)
    except (RuntimeError, TypeError, OverflowError):  # bytes, or numbers, that 64 bits do not hold
        raise UserError("The sizes in this model's configuration are beyond what any machine can hold.") from None


def _present(cfg: ModelConfig, found: Mapping[str, TensorInfo]) -> ModelConfig:
    """Without MTP layers, if the files have none: they answer nothing, and some who publish a model leave them out."""
    first = f"model.layers.{cfg.layers}."
    if cfg.mtp_layers and not any(name.startswith(first) for name in found):
        return cfg.model_copy(update={"mtp_layers": 0})
    return cfg


def _ignored(name: str, cfg: ModelConfig) -> bool:
    """Tensors without a place that are no sign of anything: what older tools wrote, and copies in MTP layers."""
    layer, _, rest = name.removeprefix("model.layers.").partition(".")
    repeated = layer.isdecimal() and cfg.layers <= int(layer) < cfg.layers + cfg.mtp_layers and rest in COPIES
    return repeated or name.endswith("rotary_emb.inv_freq")


def _block(config: Mapping[str, Any], where: Path) -> tuple[int, int] | None:
    """Height and width of FP8 blocks; None where nothing is quantised. Raises UserError for other ways to quantise."""
    how = config.get("quantization_config") or config.get("compression_config")
    if not how:
        return None
    method = how.get("quant_method") if isinstance(how, Mapping) else how
    if method != "fp8":
        raise UserError(f"{where.parent} is quantised by {method!r}; mull reads plain weights, and fp8 in blocks.")
    block = how.get("weight_block_size")
    if not isinstance(block, list) or len(block) != 2 or not all(type(n) is int and 0 < n < 2**16 for n in block):
        raise UserError(f"{where}: weight_block_size = {block!r} is no height and width of FP8 blocks.")
    return block[0], block[1]


def mapped(path: Path) -> Tensor:
    """A file's bytes, [its size] uint8, read where they are looked at; not to be written to, which ends the process.

    A map that could be written to would count as memory, and a model larger than that could not be read. NumPy is the
    way to it because torch makes no tensor of a read-only buffer without a warning. Raises UserError.
    """
    try:
        with path.open("rb") as file:
            return torch.from_dlpack(np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8))
    except (OSError, ValueError) as error:  # the latter of an empty file
        raise UserError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}.") from None


__all__ = ["FLOATS", "SCALE", "Source", "mapped", "skeleton"]
