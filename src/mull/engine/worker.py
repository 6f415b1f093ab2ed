"""The engine's own process: reads requests from stdin, steps, writes what came of it to stdout (engine/wire.py).

    python -m mull.engine.worker '{"model": "runs/demo", "device": "auto", "exact": false, ...}'

A process of its own, so that HTTP stays live while it computes, and that its death is an event and not the end.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
from pathlib import Path
from typing import Any, BinaryIO

import torch

from mull import dist
from mull.engine import wire
from mull.engine.cache import token_bytes
from mull.engine.core import Core
from mull.engine.pages import PAGE
from mull.model.transformer import Transformer
from mull.model.weights import load_model
from mull.text.chat import Chat
from mull.types import Grammar, Request, Sampling, UserError

OPTIONS = ("model", "device", "exact", "rows", "cache_gb", "pages", "drafts", "warm")
SHARE = 0.25  # of free memory for the cache


def main(argument: str) -> None:
    options: dict[str, Any] = json.loads(argument)
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever prints to stdout in here must not break the line protocol
    try:
        core = load(options)
    except UserError as error:
        out.write(wire.dumps({"failed": str(error)}))
        out.flush()
        return
    if options.get("warm"):  # a library that takes seconds to import: not while somebody waits for his form
        core.grammars.submit(Grammar("json"))
    inbox: queue.Queue[dict[str, Any] | None] = queue.Queue()
    threading.Thread(target=_read, args=(os.fdopen(os.dup(0), "rb"), inbox), daemon=True).start()
    out.write(wire.dumps({"ready": {"pid": os.getpid()}}))
    out.flush()
    _serve(core, inbox, out)


def load(options: dict[str, Any]) -> Core:
    """Options: `model`; `device`, `exact`, `rows`, `cache_gb` (of memory), or `pages`, for the cache, `drafts`, `warm`.

    Raises UserError where it cannot be loaded, or does not know an option.
    """
    for name in options:
        if name not in OPTIONS:
            raise UserError(f"The engine has no option {name!r}; it has {', '.join(OPTIONS)}.")
    dist.settle()
    folder, rows = Path(options["model"]), int(options.get("rows", 16))
    drafts = bool(options.get("drafts", True))
    model = load_model(folder, dist.device(options.get("device", "auto")), mtp=drafts)
    model.exactly(bool(options.get("exact"))).packed()
    pages = options.get("pages") or _pages(model, rows, options.get("cache_gb"))
    core = Core(model, Chat.load(folder), rows, int(pages), drafts=drafts, say=_to_log)
    core.add("first", Request((0,), Sampling(max_tokens=1)), salt="first")  # who asks first should not wait longer
    while core.busy:
        for answer in core.step():
            if answer.error is not None:
                raise UserError(answer.error)
    core.counts = dict.fromkeys(core.counts, 0)  # nobody asked for it
    return core


def _to_log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _pages(model: Transformer, rows: int, gigabytes: float | None) -> int:
    """For twice what all rows can hold, so that prompts stay known; within the memory that is given or is there."""
    given = float(gigabytes) * 1e9 if gigabytes else dist.free_memory(model.device) * SHARE
    most = given / (PAGE * token_bytes(model.cfg, torch.float32, more=bool(model.mtp)))
    wanted = 2 * rows * -(-model.cfg.max_length // PAGE)
    if most < 2:
        raise UserError(f"{given / 1e9:.2g} GB do not suffice for a cache; give engine.cache_gb more.")
    return min(int(most), wanted) + 1


def _read(source: BinaryIO, inbox: queue.Queue[dict[str, Any] | None]) -> None:
    for line in source:
        inbox.put(json.loads(line))
    inbox.put(None)  # whoever asked is gone


def _serve(core: Core, inbox: queue.Queue[dict[str, Any] | None], out: BinaryIO) -> None:
    while True:
        while not inbox.empty() or not core.busy:
            message = inbox.get()
            if message is None or "quit" in message:
                return
            _take(core, message, out)
        told = []
        for answer in core.step():
            if answer.error is not None:
                out.write(wire.dumps({"refused": answer.name, "why": answer.error}))
            elif (delta := answer.delta()) is not None:
                told.append([answer.name, wire.delta_to(delta)])
        out.write(wire.dumps({"step": told, "stats": core.stats()}))
        out.flush()


def _take(core: Core, message: dict[str, Any], out: BinaryIO) -> None:
    if "cancel" in message:
        core.cancel(message["cancel"])
        if not core.busy:  # no step is going to tell that all is free again
            out.write(wire.dumps({"step": [], "stats": core.stats()}))
            out.flush()
        return
    name = message["add"]
    try:
        core.add(name, wire.request_from(message["request"]), message.get("salt", ""), listen=True)
    except UserError as error:
        out.write(wire.dumps({"refused": name, "why": str(error)}))
        out.flush()


if __name__ == "__main__":
    main(sys.argv[1])
