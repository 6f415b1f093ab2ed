"""The facts of a model or a run, as plain data: what `mull info` shows. No weights are read, and none allocated."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from mull.formats import gguf, safetensors
from mull.locate import is_run, judged, locate
from mull.model.config import ModelConfig
from mull.model.families import family_of, read_config
from mull.model.flops import cache_bytes, forward_flops, parameters
from mull.report.card import origin_of_folder, origin_of_gguf
from mull.report.summary import summarise
from mull.types import UserError


def describe(given: str | PathLike[str]) -> dict[str, Any]:
    """A run's stages, models, bill and its result's sizes; what an evaluation found; or the sizes of a model: of what
    `locate` takes, or of a bare config.json.

    Raises UserError for none of these.
    """
    path = Path(given)
    if not is_run(path):
        return {"kind": "model", **_model(locate(given, weights=False).folder)}
    report = str(path / "report.html") if (path / "report.html").exists() else None
    if others := judged(path):
        found = summarise(path)
        (folder, *more) = map(Path, others.values())
        sizes = _model(folder) if not more and folder.exists() else {}
        return sizes | {
            "kind": "evaluation", "path": str(path), "about": found["about"], "judged": others,
            "stages": found["stages"], "overall": found["overall"], "total": found["total"], "report": report,
        }  # fmt: skip
    found = summarise(path, exams=[])  # the exams are the report's; reading them takes long
    result = found["model"]["name"] if found["model"] else None
    return (_model(path / "models" / result) if result else {}) | {
        "kind": "run", "path": str(path), "name": found["name"], "about": found["about"],
        "stages": found["stages"], "models": [model["name"] for model in found["models"]], "result": result,
        "total": found["total"], "report": report,
    }  # fmt: skip


# bytes per parameter: of what is read row by row (embedding and head), and of everything else
FORMATS = {
    "f32": (4.0, 4.0),
    "bf16": (2.0, 2.0),
    "fp8": (2.0, 1 + 4 / 128**2),  # as DeepSeek publishes it: a scale per block of 128 x 128, tables in bf16
    "q8_0": (34 / 32, 34 / 32),  # ggml's: 32 numbers and a scale
    "q4_k": (144 / 256, 144 / 256),
}
LARGEST = 10**18
SERVED = {"f32": 4, "bf16": 2, "fp8": 2}  # format of the weights -> bytes per number of the cache beside them


def _model(path: Path) -> dict[str, Any]:
    cfg, header = _read(path)
    count = parameters(cfg)
    if max(count.total, count.mtp, cfg.max_length * cache_bytes(cfg)) > LARGEST:
        raise UserError(f"{path} announces a model of more than {LARGEST:.0e} parameters or bytes; there is none.")
    tables = cfg.vocab * cfg.width * (1 if cfg.tied else 2)
    sizes = {name: round(tables * table + (count.total - tables) * rest) for name, (table, rest) in FORMATS.items()}
    return {
        "path": str(path), "family": family_of(cfg), "total_params": count.total, "active_params": count.active,
        "mtp_params": count.mtp, "layers": cfg.layers, "width": cfg.width, "heads": cfg.heads, "experts": cfg.experts,
        "active_experts": cfg.active_experts if cfg.experts else 0, "vocab": cfg.vocab, "max_length": cfg.max_length,
        "flops_per_token": forward_flops(cfg, [1], 1), "cache_bytes_per_token": cache_bytes(cfg),
        "bytes": sizes, "serving": [_serving(cfg, sizes, *load) for load in ((1, cfg.max_length), (8, 4096))],
        "disk_bytes": _disk_bytes(path), "held": _held(path, header), "license": _license(path, header),
        "config": cfg.model_dump(mode="json"),
    }  # fmt: skip


def _read(path: Path) -> tuple[ModelConfig, gguf.Header | None]:
    """The configuration, and a GGUF file's header, which says more."""
    if not gguf.is_gguf(path):
        return read_config(path), None
    from mull.model.gguf import config_of  # imports torch

    header = gguf.read_header(path)
    return config_of(header), header


def _serving(cfg: ModelConfig, sizes: Mapping[str, int], rows: int, length: int) -> dict[str, Any]:
    """Bytes of weights and cache while `rows` conversations of `length` tokens are held. mull serves in f32."""
    length = min(length, cfg.max_length)
    held = {name: sizes[name] + rows * length * cache_bytes(cfg, element) for name, element in SERVED.items()}
    return {"rows": rows, "tokens": length, "bytes": held}


def _disk_bytes(path: Path) -> int:
    return sum(p.stat().st_size for p in ([path] if path.is_file() else path.iterdir()) if p.is_file())


def _held(path: Path, header: gguf.Header | None) -> dict[str, dict[str, int]]:
    """Number format -> how many tensors the files hold in it, and their bytes. Empty for a bare configuration."""
    if header:
        found = [(info.type, info.bytes) for info in header.tensors.values()]
    elif path.is_dir() and any((path / name).exists() for name in (safetensors.WHOLE, safetensors.INDEX)):
        found = [(info.dtype, info.bytes) for info in safetensors.read_folder(path).values()]
    else:
        found = []
    held: dict[str, dict[str, int]] = {}
    for kind, size in found:
        entry = held.setdefault(kind, {"tensors": 0, "bytes": 0})
        entry["tensors"] += 1
        entry["bytes"] += size
    return dict(sorted(held.items(), key=lambda item: -item[1]["bytes"]))


def _license(path: Path, header: gguf.Header | None) -> str:
    """As the file's metadata or the model card says it; empty where neither does."""
    if header:
        return origin_of_gguf(header.metadata).license
    return origin_of_folder(path).license if path.is_dir() else ""


__all__ = ["describe"]
