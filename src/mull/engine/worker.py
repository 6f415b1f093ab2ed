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

from mull.engine import wire
from mull.types import UserError


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
    inbox: queue.Queue[dict[str, Any] | None] = queue.Queue()
    threading.Thread(target=_read, args=(os.fdopen(os.dup(0), "rb"), inbox), daemon=True).start()
    out.write(wire.dumps({"ready": {"pid": os.getpid()}}))
    out.flush()
    _serve(core, inbox, out)


def load(options: dict[str, Any]) -> Any:
    from mull import dist
    from mull.engine.core import Core
    from mull.model.weights import load_model
    from mull.text.chat import Chat

    dist.settle()
    folder = Path(options["model"])
    model = load_model(folder, dist.device(options.get("device", "auto")), mtp=False)
    model.exactly(bool(options.get("exact"))).packed()
    return Core(model, Chat.load(folder), rows=options.get("rows", 16), pages=options.get("pages"))


def _read(source: BinaryIO, inbox: queue.Queue[dict[str, Any] | None]) -> None:
    for line in source:
        inbox.put(json.loads(line))
    inbox.put(None)  # whoever asked is gone


def _serve(core: Any, inbox: queue.Queue[dict[str, Any] | None], out: BinaryIO) -> None:
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


def _take(core: Any, message: dict[str, Any], out: BinaryIO) -> None:
    if "cancel" in message:
        core.cancel(message["cancel"])
        return
    name = message["add"]
    try:
        core.add(name, wire.request_from(message["request"]), message.get("salt", ""), listen=True)
    except UserError as error:
        out.write(wire.dumps({"refused": name, "why": str(error)}))
        out.flush()


if __name__ == "__main__":
    main(sys.argv[1])
