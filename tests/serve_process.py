"""`mull serve` as a process of its own, with a real engine behind it, for tests of what only a process shows."""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from serving import saved

ASK = {"model": "tiny", "messages": [{"role": "user", "content": "What is 1 + 1?"}], "max_tokens": 8, "seed": 1}
LONG = {**ASK, "max_tokens": 900, "ignore_eos": True, "stream": True}


@dataclass
class Said:
    status: int
    body: bytes
    headers: dict[str, str]

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        return self.json["error"]["message"]


@dataclass
class Running:
    process: subprocess.Popen[str]
    port: int
    line: str
    db: Path
    log: Path
    tls: ssl.SSLContext | None = None
    opened: list[http.client.HTTPConnection] = field(default_factory=list)

    def connection(self) -> http.client.HTTPConnection:
        if self.tls is None:
            made = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        else:
            made = http.client.HTTPSConnection("127.0.0.1", self.port, timeout=60, context=self.tls)
        self.opened.append(made)
        return made

    def ask(
        self, body: Any = None, path: str = "/v1/chat/completions", key: str = "", method: str = "POST",
        **headers: str,
    ) -> Said:  # fmt: skip
        connection = self.connection()
        sent = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        given = {"content-type": "application/json", **({"authorization": f"Bearer {key}"} if key else {}), **headers}
        connection.request(method, path, sent, given)
        response = connection.getresponse()
        said = Said(response.status, response.read(), {name.lower(): value for name, value in response.getheaders()})
        connection.close()
        return said

    def get(self, path: str, key: str = "", **headers: str) -> Said:
        return self.ask(None, path, key, "GET", **headers)

    def stream(self, body: Any, key: str = "") -> http.client.HTTPResponse:
        """Begun: its first line has come."""
        connection = self.connection()
        headers = {"content-type": "application/json", **({"authorization": f"Bearer {key}"} if key else {})}
        connection.request("POST", "/v1/chat/completions", json.dumps(body).encode(), headers)
        response = connection.getresponse()
        assert response.status == 200, response.read()
        assert response.readline().startswith(b"data: ")
        return response

    def metric(self, name: str) -> float:
        found = re.search(rf"^{re.escape(name)} (\S+)$", self.get("/metrics").body.decode(), re.MULTILINE)
        assert found is not None, name
        return float(found[1])

    def engine(self) -> int:
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return next(int(pid) for pid in children if b"mull.engine.worker" in command_of(int(pid)))


def command_of(pid: int) -> bytes:
    """Nothing where there is no such process."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def eventually(true: Callable[[], Any], seconds: float = 20.0) -> Any:
    until = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < until, "it did not come about in time"
        time.sleep(0.02)
    return found


def raw(server: Running, sent: bytes, seconds: float = 10.0) -> bytes:
    """What comes back until the server closes."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=seconds) as connection:
        connection.sendall(sent)
        got = b""
        while piece := connection.recv(65536):
            got += piece
        return got


@pytest.fixture(scope="session", name="folder")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a tiny model."""
    return saved(tmp_path_factory.mktemp("models") / "tiny")


@contextmanager
def running(folder: Path, home: Path, *words: str, tls: ssl.SSLContext | None = None) -> Iterator[Running]:
    """`mull serve` with these words; ended in any case."""
    home.mkdir(exist_ok=True)
    db, log = home / "serve.db", home / "log.txt"
    command = [sys.executable, "-m", "mull.cli", "serve", str(folder), "--port", "0", "--db", str(db), *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with log.open("w") as err:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=err, text=True, env=environment)
    assert process.stdout is not None
    server: Running | None = None
    try:
        line = process.stdout.readline()
        found = re.search(r"https?://\S+:(\d+)", line)
        assert found, log.read_text()
        server = Running(process, int(found[1]), line, db, log, tls)
        yield server
    finally:
        for connection in server.opened if server else ():
            connection.close()
        process.kill()
        process.wait()
        process.stdout.close()


__all__ = ["ASK", "LONG", "Running", "Said", "command_of", "eventually", "raw", "running", "tiny_folder"]
