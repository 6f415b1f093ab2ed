"""Training checkpoints: all of them or nothing, safetensors and JSON only.

A checkpoint is a folder step-00000120 with model.safetensors, optim.safetensors and state.json. It is written beside,
synced and renamed, so a kill or a full disk leaves the one before untouched. state.json holds the SHA-256 of the
two others; a folder that does not match is named and skipped, and the one before it is used.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mull.types import sync

KEEP = 2


def save(
    folder: Path, step: int, model: nn.Module, optimisers: Sequence[torch.optim.Optimizer], extra: dict[str, Any]
) -> Path:
    """Write step `step` and delete all but the newest KEEP. Raises OSError, with nothing lost, where writing fails."""
    final = folder / f"step-{step:08d}"
    part = folder / f".part-{step:08d}"
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True)
        tensors, scalars = _flatten(model, optimisers)
        save_file(_weights(model), part / "model.safetensors")
        save_file(tensors, part / "optim.safetensors")
        sums = {name: _sha256(part / name) for name in ("model.safetensors", "optim.safetensors")}
        state = {"step": step, "sha256": sums, "scalars": scalars, "extra": extra}
        (part / "state.json").write_text(json.dumps(state, indent=1), encoding="utf-8")
        for path in part.iterdir():
            sync(path)
        sync(part)
        shutil.rmtree(final, ignore_errors=True)
        part.rename(final)
        sync(folder)
    except (OSError, SafetensorError) as error:  # safetensors has an exception of its own for a full disk
        shutil.rmtree(part, ignore_errors=True)
        raise error if isinstance(error, OSError) else OSError(str(error)) from None
    _tidy(folder)
    return final


def newest(folder: Path) -> Path | None:
    """The newest checkpoint that reads back whole, or None."""
    return next((path for path in reversed(_all(folder)) if _damage(path) is None), None)


def restore(
    folder: Path, model: nn.Module, optimisers: Sequence[torch.optim.Optimizer], say: Callable[[str], None]
) -> tuple[int, dict[str, Any]] | None:
    """Load the newest sound checkpoint in place; (step, extra), or None. Damaged ones are named through `say`."""
    for path in reversed(_all(folder)):
        damage = _damage(path)
        if damage is not None:
            say(f"Checkpoint {path} is damaged ({damage}); falling back to the one before.")
            continue
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
        model.load_state_dict(load_file(path / "model.safetensors"))
        _unflatten(model, optimisers, load_file(path / "optim.safetensors"), state["scalars"])
        _tidy(folder, path)
        return int(state["step"]), dict(state["extra"])
    _tidy(folder)
    return None


def oldest(folder: Path) -> int:
    """The step of the oldest checkpoint kept, sound or not; 0 where there is none."""
    return min((int(path.name.removeprefix("step-")) for path in _all(folder)), default=0)


def _tidy(folder: Path, loaded: Path | None = None) -> None:
    """Delete all but the newest KEEP and the one `loaded`, and what a kill left half written or half deleted."""
    for path in [*_all(folder)[:-KEEP], *folder.glob(".part-*")]:
        if path != loaded:
            shutil.rmtree(path, ignore_errors=True)


def _all(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("step-*") if p.is_dir())


def _damage(path: Path) -> str | None:
    try:
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
        for name, want in state["sha256"].items():
            if _sha256(path / name) != want:
                return f"{name} does not match its checksum"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:  # JSON of any other shape
        return f"{type(error).__name__}: {error}"
    return None


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """The state dict; tied tensors are stored once per name, since safetensors refuses shared memory."""
    seen: set[int] = set()
    weights = {}
    for name, tensor in model.state_dict().items():
        weights[name] = tensor.clone() if tensor.data_ptr() in seen else tensor.contiguous()
        seen.add(tensor.data_ptr())
    return weights


def _named(model: nn.Module, optimiser: torch.optim.Optimizer) -> list[tuple[str, nn.Parameter]]:
    names = {id(p): name for name, p in model.named_parameters()}
    return [(names[id(p)], p) for group in optimiser.param_groups for p in group["params"]]


def _flatten(
    model: nn.Module, optimisers: Sequence[torch.optim.Optimizer]
) -> tuple[dict[str, Tensor], dict[str, float]]:
    tensors: dict[str, Tensor] = {}
    scalars: dict[str, float] = {}
    for index, optimiser in enumerate(optimisers):
        for name, parameter in _named(model, optimiser):
            for key, value in optimiser.state.get(parameter, {}).items():
                full = f"{index}/{name}/{key}"
                if isinstance(value, Tensor):
                    tensors[full] = value.contiguous()
                else:
                    scalars[full] = value
    return tensors, scalars


def _unflatten(
    model: nn.Module, optimisers: Sequence[torch.optim.Optimizer], tensors: dict[str, Tensor], scalars: dict[str, float]
) -> None:
    for index, optimiser in enumerate(optimisers):
        by_name = dict(_named(model, optimiser))
        for full, value in {**tensors, **scalars}.items():
            at, name, key = full.split("/")
            if int(at) != index:
                continue
            parameter = by_name[name]
            if isinstance(value, Tensor):  # of any shape: a fused AdamW counts its steps beside the parameter
                # a copy: in the file it lies as it comes, and how memory is aligned can decide how products round
                value = value.to(parameter.device, copy=True)
            optimiser.state[parameter][key] = value


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
