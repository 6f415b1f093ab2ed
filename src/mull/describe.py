"""The facts of a model or a run, as plain data: what `mull info` shows. No weights are read."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any

from mull.locate import is_run, judged, locate
from mull.model.families import family_of, read_config
from mull.model.flops import cache_bytes, forward_flops, parameters
from mull.report.summary import summarise


def describe(given: str | PathLike[str]) -> dict[str, Any]:
    """A run's stages, models, bill and its result's sizes; what an evaluation found; or a model's sizes.

    Raises UserError for none of these.
    """
    path = Path(given)
    if not is_run(path):
        return {"kind": "model", **_model(locate(given).folder)}
    report = str(path / "report.html") if (path / "report.html").exists() else None
    if others := judged(path):
        found = summarise(path)
        (folder, *more) = map(Path, others.values())
        sizes = _model(folder) if not more and folder.is_dir() else {}
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


def _model(folder: Path) -> dict[str, Any]:
    cfg = read_config(folder)
    count = parameters(cfg)
    return {
        "path": str(folder), "family": family_of(cfg), "total_params": count.total, "active_params": count.active,
        "mtp_params": count.mtp, "vocab": cfg.vocab, "max_length": cfg.max_length,
        "flops_per_token": forward_flops(cfg, 1, 1, 1), "cache_bytes_per_token": cache_bytes(cfg),
        "disk_bytes": sum(p.stat().st_size for p in folder.iterdir() if p.is_file()),
        "config": cfg.model_dump(mode="json"),
    }  # fmt: skip


__all__ = ["describe"]
