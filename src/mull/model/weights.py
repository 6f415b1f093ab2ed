"""Model directories: config.json, safetensors in the Hugging Face layout, tokenizer, chat template.

The answering model is model.safetensors; MTP layers lie apart in mtp.safetensors, so that a reader without use for them
(transformers warns of tensors it does not know) never sees them. A directory is written beside, synced and renamed: it
is there whole or not at all.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mull.model.families import Place, config_to_hf, places, read_config
from mull.model.transformer import Transformer
from mull.text.chat import Chat
from mull.types import UserError, sync

FILES = {False: "model.safetensors", True: "mtp.safetensors"}  # by Place.mtp


def save_model(folder: Path, model: Transformer, chat: Chat) -> None:
    """Write or replace a model directory. Raises OSError where writing fails; what was there before then still is."""
    folder = Path(folder)
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True)
        _write(part, model, chat)
        for path in [*part.iterdir(), part]:
            sync(path)
        shutil.rmtree(folder, ignore_errors=True)
        part.rename(folder)
        sync(folder.parent)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(part, ignore_errors=True)
        raise error if isinstance(error, OSError) else OSError(str(error)) from None


def _write(folder: Path, model: Transformer, chat: Chat) -> None:
    state = model.state_dict()
    for mtp, name in FILES.items():
        tensors = {
            place.theirs: state[place.ours][place.index].detach().cpu().contiguous().clone()
            for place in places(model.cfg)
            if place.mtp == mtp
        }
        if tensors:
            save_file(tensors, folder / name, metadata={"format": "pt"})
    tokenizer = chat.tokenizer
    eos, pad = tokenizer.im_end, tokenizer.end_of_text
    config = config_to_hf(model.cfg) | {"bos_token_id": None, "eos_token_id": eos, "pad_token_id": pad}
    generation = {"eos_token_id": list(tokenizer.stop_ids), "pad_token_id": pad, "do_sample": False}
    for name, content in (("config.json", config), ("generation_config.json", generation)):
        (folder / name).write_text(json.dumps(content, indent=1), encoding="utf-8")
    chat.save(folder)


def load_model(folder: Path, device: torch.device | str = "cpu", mtp: bool = True) -> Transformer:
    """Read a model directory. Raises UserError for damaged files, and for missing or misshapen tensors, by name.

    MTP layers answer nothing: they are left out without `mtp`, and where the configuration announces them but the
    directory lacks them.
    """
    folder = Path(folder)
    cfg = read_config(folder)
    if cfg.mtp_layers and not (mtp and (folder / FILES[True]).exists()):
        cfg = cfg.model_copy(update={"mtp_layers": 0})
    model = Transformer(cfg)
    state = model.state_dict()
    missing: list[str] = []
    for mtp, name in FILES.items():
        wanted = {place.theirs: place for place in places(cfg) if place.mtp == mtp}
        if wanted:
            for theirs, tensor in _read(folder / name, wanted):
                _put(state, wanted.pop(theirs), tensor, folder / name)
            missing += wanted
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UserError(f"{folder} lacks the tensor {missing[0]}{more}; it is not whole.")
    return model.to(device)


def _read(path: Path, wanted: dict[str, Place]) -> Iterator[tuple[str, Tensor]]:
    if not path.exists():
        raise UserError(f"There is no file {path}; a model directory holds its weights there.")
    try:
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 - no mapping, only called like one
                if name in wanted:
                    yield name, file.get_tensor(name)
                elif not name.endswith("rotary_emb.inv_freq"):
                    raise UserError(f"{path} holds a tensor {name}, for which its config.json has no place.")
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is damaged or no safetensors file ({error}).") from None


def _put(state: dict[str, Tensor], place: Place, tensor: Tensor, path: Path) -> None:
    target = state[place.ours][place.index]
    if tensor.shape != target.shape:
        raise UserError(f"{path}: {place.theirs} has shape {list(tensor.shape)}, not {list(target.shape)}.")
    if not tensor.dtype.is_floating_point:
        raise UserError(f"{path}: {place.theirs} holds {tensor.dtype}, not floating-point numbers.")
    target.copy_(tensor)
