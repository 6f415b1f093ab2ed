"""A model behind HTTP, from the first signal to the last: `serve("smollm2", Settings())`.

The engine is a process of its own; this one speaks HTTP and computes nothing. If this one dies, however it does, the
engine reads the end of its input and ends too.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import signal
import socket
import ssl
import sys
import time
from pathlib import Path

from mull.engine.host import Host
from mull.locate import Located, locate
from mull.model.families import read_config
from mull.serve import keys
from mull.serve.app import build
from mull.serve.dialogue import Dialogue
from mull.serve.house import House
from mull.serve.metrics import Metrics
from mull.serve.porch import Porch
from mull.serve.settings import Settings
from mull.serve.store import connect, default_path
from mull.serve.wires import Server
from mull.text.chat import Chat
from mull.types import UserError

WEIGHTS = ("*.safetensors", "*.gguf", "*.json")
SAMPLE = 64 << 10  # bytes at each end of a file that its fingerprint covers


def serve(model: str, settings: Settings) -> None:
    """Until a signal ends it. Raises UserError where it cannot begin, KeyboardInterrupt where Ctrl-C ended it."""
    found = locate(model)
    settings = _priced(settings, found)
    path = settings.db or default_path()
    with_keys = _admissible(settings, path)
    door = _bind(settings)
    try:
        asyncio.run(_run(found, settings, path, door, with_keys))
    finally:
        door.close()


def _priced(settings: Settings, found: Located) -> Settings:
    """A model of a run has its run's price per hour, if no other is given."""
    if settings.price.known or found.run is None:
        return settings
    return settings.model_copy(update={"price": settings.price.model_copy(
        update={"usd_per_hour": found.rates.usd_per_hour}
    )})  # fmt: skip


def _admissible(settings: Settings, path: Path) -> bool:
    """Whether there are keys. Raises UserError where the whole network could use the model unasked."""
    db = connect(path)
    with_keys = keys.exist(db)
    bounded = any(
        key.allowance.usd_per_day or key.allowance.usd_per_month for key in keys.listed(db) if key.revoked is None
    )
    db.close()
    if not settings.loopback and not settings.open and not with_keys:
        raise UserError(
            f"{settings.host} can be reached from other machines and there is no API key: make one with "
            "`mull keys create NAME`, or say --open to let anybody ask."
        )
    if bounded and not settings.price.known:
        _say("Some keys may spend so much money, but no price is set (--usd-per-hour), so nothing costs any.")
    return with_keys


def _bind(settings: Settings) -> socket.socket:
    host, port = settings.host, settings.port
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise UserError(f"Port {port} of {host} is in use; --port gives another, 0 any that is free.") from None
        raise UserError(f"{host} port {port} cannot be listened at: {error.strerror or error}.") from None


def fingerprint(folder: Path, exact: bool) -> str:
    """Names weights and mode: of each file its name, size, beginning and end."""
    sums = hashlib.sha256()
    files = [folder] if folder.is_file() else sorted(one for kind in WEIGHTS for one in folder.glob(kind))
    for one in files:
        with one.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            sums.update(f"{one.name} {size}\n".encode())
            for start in (0, max(0, size - SAMPLE)):
                file.seek(start)
                sums.update(file.read(SAMPLE))
    return f"{sums.hexdigest()[:12]}-{'exact' if exact else 'fast'}"


async def _run(found: Located, settings: Settings, path: Path, door: socket.socket, with_keys: bool) -> None:
    """HTTP is up at once and says that the model is being loaded until it is."""
    host = Host(
        {"model": str(found.folder), "device": settings.device, "exact": settings.exact, "warm": True}
        | settings.engine,
        settings.rows, settings.queue,
    )  # fmt: skip
    name = settings.name or found.name
    dialogue = Dialogue(
        host, Chat.load(found.folder), name, read_config(found.folder).max_length,
        fingerprint(found.folder, settings.exact), settings.limits,
    )  # fmt: skip
    metrics = Metrics(host)
    house = House(settings, path, name, metrics, _log)
    app = build(dialogue, house, settings.limits)
    porch = Porch(app, house, host, metrics, lambda: len(server.server_state.connections), _log)

    server = Server(porch, settings, house.drain, host.stop, host.kill)
    _load_tls(server)
    serving = asyncio.create_task(server.serve([door]))
    loading = asyncio.create_task(host.start())
    try:
        await asyncio.wait({serving, loading}, return_when=asyncio.FIRST_COMPLETED)
        if loading.done():
            loading.result()  # raises where the model cannot be loaded
            print(_start_line(settings, door, name, with_keys), flush=True)
        await serving
    finally:
        loading.cancel()
        server.end()
        await host.stop()
        await asyncio.gather(serving, loading, return_exceptions=True)
        house.close()
    if server.told == signal.SIGINT:
        raise KeyboardInterrupt


def _load_tls(server: Server) -> None:
    try:
        server.config.load()
    except (OSError, ssl.SSLError) as error:
        files = f"{server.config.ssl_certfile} and {server.config.ssl_keyfile}"
        raise UserError(f"{files} are no certificate and key that can be used: {error}.") from None


def _start_line(settings: Settings, door: socket.socket, name: str, with_keys: bool) -> str:
    host, port = door.getsockname()[:2]
    url = f"{'https' if settings.tls_cert else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"
    mode = "exact" if settings.exact else "fast"
    asked = "anybody may ask" if settings.open or not with_keys else "asking needs an API key"
    return f"{name} at {url} ({mode}; {settings.rows} answers at a time, {settings.queue} may wait; {asked})"


def _log(line: str) -> None:
    _say(f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} {line}")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


__all__ = ["fingerprint", "serve"]
