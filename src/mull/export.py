"""`mull export`: a model for other programs, with its card.

A directory for transformers is made tensor by tensor from the source's files, which stay mapped: nothing of the model's
size is in memory. Tensors whose type stays are copied byte for byte, so exporting what was loaded gives it back, FP8
codes and scales included; files that say how to speak with the model are copied too. For llama.cpp, and from GGUF, the
model is read first.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import Literal, cast

import torch

from mull.formats.gguf import is_gguf, read_header
from mull.formats.safetensors import SHARD, Planned, inside
from mull.locate import Located, locate
from mull.model.config import family_of
from mull.model.families import Place, places
from mull.model.source import SCALE, Source
from mull.model.weights import (
    DTYPES,
    beside,
    content,
    converted,
    dtype_config,
    load_model,
    plan_of,
    sync_all,
    write_config,
    write_json,
    write_weights,
)
from mull.report.card import gguf_of_origin, origin_of, write_card
from mull.text.chat import Chat
from mull.types import UserError, sync

GGUF_DTYPES = ("f32", "f16", "bf16", "q8_0")
# what a source says of how to speak with the model, and under which terms
COPIED = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "chat_template.jinja", "chat_template.json", "generation_config.json",
)  # fmt: skip
TERMS = ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*")
CARD, SOURCE_CARD = "README.md", "SOURCE.md"  # ours, and beside it the one that the source had
STRANGE = ("auto_map", "quantization_config", "compression_config", "dtype", "torch_dtype")  # written anew, or not


def export(
    model: str | PathLike[str], to: Literal["hf", "gguf"], out: Path, dtype: str | None = None, shard: int = SHARD
) -> Path:
    """Write `model`, which `locate` finds, into the new directory `out`; for gguf `out` may be a file NAME.gguf, whose
    card is NAME.md. Without `dtype` the numbers stay of the type they have; where `to` does not have that, they become
    f32, which holds them all. Returns the directory, or the GGUF file.

    Raises UserError, and leaves nothing behind, where `out` exists, `dtype` is none that `to` has, the model is
    damaged, its numbers do not fit into `dtype`, or writing fails.
    """
    out, located = Path(out), locate(model)
    _check(to, out, dtype)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        return _to_gguf(located, out, dtype) if to == "gguf" else _to_hf(located, out, dtype, shard)
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror or error}. Nothing of it was left there.") from None


def _check(to: str, out: Path, dtype: str | None) -> None:
    if not out.name:
        raise UserError(f"--out {out}: give the new directory a name.")
    dtypes = tuple(DTYPES) if to == "hf" else GGUF_DTYPES
    if dtype is not None and dtype not in dtypes:
        raise UserError(f"--dtype {dtype}: for {to} there are {', '.join(dtypes)}.")
    for path in (out, out.with_suffix(".md")) if to == "gguf" and is_gguf(out) else (out,):
        _check_free(path)


def _check_free(path: Path) -> None:
    """A link that leads nowhere is the user's too; an empty directory is no loss."""
    if os.path.lexists(path) and not (path.is_dir() and not any(path.iterdir())):
        raise UserError(f"{path} is there already, and nothing is overwritten; give another --out.")


def _to_hf(located: Located, out: Path, dtype: str | None, shard: int) -> Path:
    from mull.model.gguf_write import ARCHITECTURE, dtype_of

    with beside(out) as part:
        if is_gguf(located.folder):
            exact = dtype is None
            if dtype is None:
                own = dtype_of(read_header(located.folder))
                dtype = own if own in DTYPES else "f32"
            model, chat = load_model(located.folder), Chat.load(located.folder)
            cfg = model.cfg
            write_weights(part, places(cfg), plan_of(model, dtype, exact), shard)
            write_config(part, cfg, chat, dtype)
            chat.save(part)
        else:
            source = Source(located.folder)
            dtype, cfg = dtype or source.dtype, source.cfg
            write_weights(part, source.places, _copied(source, dtype), shard)
            _copy_texts(source, part, dtype)
        write_card(
            part / CARD, located.name, cfg, dtype, origin_of(located), run=located.run,
            llama_cpp=family_of(cfg) in ARCHITECTURE, source=_copy_card(located, part),
        )  # fmt: skip
        sync_all(part)
        part.rename(out)
    sync(out.parent)
    return out


def _copied(source: Source, dtype: str) -> Callable[[Place], list[Planned]]:
    """For write_weights: each tensor as it is, if `dtype` is the source's own, else converted. All are looked through
    for NaN and infinity on the way."""

    def plan(place: Place) -> list[Planned]:
        name, info = place.theirs, source.found[place.theirs]

        def numbers() -> torch.Tensor:
            return source.read(name, torch.empty(info.shape))

        def same(stored: str) -> Planned:
            def bytes_() -> memoryview:
                numbers()
                return content(source.raw(stored))

            return Planned(stored, source.found[stored].dtype, source.found[stored].shape, bytes_)

        if dtype == source.dtype and info.dtype != "F64":
            return [same(name), same(name + SCALE)] if info.dtype == "F8_E4M3" else [same(name)]
        return converted(name, info.shape, dtype, numbers)

    return plan


def _copy_texts(source: Source, part: Path, dtype: str) -> None:
    """config.json, true to the tensors beside it and without links to code that is not here; the rest as it is."""
    kept = {key: value for key, value in source.config.items() if key not in STRANGE}
    now = dtype_config(source.cfg, dtype)
    if dtype == source.dtype == "fp8":
        now["quantization_config"] = source.config["quantization_config"]
    write_json(part / "config.json", kept | now)
    terms = [path.name for pattern in TERMS for path in source.folder.glob(pattern)]
    for name in (*COPIED, *terms):
        if (source.folder / name).is_file():
            _copy(inside(source.folder, name), part / name)


def _copy(source: Path, to: Path) -> None:
    try:
        given = source.open("rb")
    except OSError as error:
        raise UserError(f"{source} cannot be read: {error.strerror}.") from None
    with given, to.open("xb") as copy:
        shutil.copyfileobj(given, copy)


def _copy_card(located: Located, part: Path) -> str:
    """What the source says of itself, kept beside our card. Returns the file's name, or nothing if it says nothing."""
    if not (located.folder / CARD).is_file():
        return ""
    _copy(inside(located.folder, CARD), part / SOURCE_CARD)
    return SOURCE_CARD


def _dtype_of_all(source: Source) -> str:
    """That of its matrices, but for routers, which GGUF files keep in f32; f32 where they have several."""
    matrices = [name for place in source.places if len(source.found[name := place.theirs].shape) > 1]
    kinds = {source.found[name].dtype for name in matrices if not name.endswith("mlp.gate.weight")}
    return source.dtype if len(kinds) == 1 else "f32"


def _to_gguf(located: Located, out: Path, dtype: str | None) -> Path:
    from mull.model.gguf_write import Dtype, dtype_of, write_gguf

    found, origin = located.folder, origin_of(located)
    if dtype is None:
        own = dtype_of(read_header(found)) if is_gguf(found) else _dtype_of_all(Source(found))
        dtype = own if own in GGUF_DTYPES else "f32"
    model, chat = load_model(found, mtp=False), Chat.load(found)
    alone = is_gguf(out)
    name = out.name if alone else f"{located.name}-{dtype}.gguf"
    said = {"general.name": located.name} | gguf_of_origin(origin)
    with beside(out) as part:
        file, card = part / name, part / CARD
        write_gguf(file, model, chat, cast(Dtype, dtype), said)
        source = "" if alone else _copy_card(located, part)
        write_card(card, located.name, model.cfg, dtype, origin, run=located.run, file=name, source=source)
        sync_all(part)
        if not alone:
            part.rename(out)
        else:
            for path, to in ((card, out.with_suffix(".md")), (file, out)):
                _check_free(to)  # again: a model is not written in a moment
                path.rename(to)
    sync(out.parent)
    return out if alone else out / name


__all__ = ["export"]
