"""`mull serve` as its users meet it: how it begins, what it keeps of what was used, and how it ends, also by force."""

from __future__ import annotations

import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from serve_process import ASK, LONG, command_of, eventually, raw, running, tiny_folder  # noqa: F401
from serving import saved

from mull.serve import usage
from mull.serve.store import connect

# beginning


def test_a_port_in_use_is_one_line(folder: Path, refused: Callable[..., str], tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = refused("serve", folder, "--port", port, "--db", tmp_path / "db")
    assert said == f"Port {port} of 127.0.0.1 is in use; --port gives another, 0 any that is free."


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--host", "0.0.0.0"], "0.0.0.0 can be reached from other machines and there is no API key: make one with"),
        (["--host", "::"], ":: can be reached from other machines and there is no API key"),
        (["--host", "203.0.113.7", "--open"], "203.0.113.7 port 0 cannot be listened at"),
        (["limits.stops=3"], "limits.stops: there is no such key. Did you mean 'stop'?"),
        (["limits.n=0"], "limits.n: input should be greater than or equal to 1"),
        (["--tls-cert", "cert.pem"], "TLS needs both files"),
        (["--tls-cert", "none.pem", "--tls-key", "none.pem"], "none.pem and none.pem are no certificate and key"),
        (["--rows", "0"], "rows: input should be greater than or equal to 1"),
    ],
)
def test_what_cannot_be_is_one_line(
    folder: Path, refused: Callable[..., str], tmp_path: Path, words: list[str], says: str
):
    assert says in refused("serve", folder, "--port", 0, "--db", tmp_path / "db", *words)


def test_a_model_that_cannot_be_loaded_is_one_line(folder: Path, refused: Callable[..., str], tmp_path: Path):
    broken = saved(tmp_path / "broken")
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    said = refused("serve", broken, "--port", 0, "--db", tmp_path / "db")
    assert "model.safetensors" in said
    assert "nothere" in refused("serve", tmp_path / "nothere", "--port", 0)


def test_a_missing_package_is_one_line(folder: Path, tmp_path: Path):
    code = "import sys; sys.modules['uvicorn'] = None; from mull.cli import main; main()"
    words = [sys.executable, "-c", code, "serve", str(folder), "--db", str(tmp_path / "db")]
    said = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert said.returncode == 2
    assert said.stderr == 'Serving needs the package uvicorn: pip install "mull[serve]" brings it.\n'


# usage


def test_what_ended_is_in_the_books_after_kill_9_and_no_engine_is_left(folder: Path, tmp_path: Path):
    with running(folder, tmp_path) as server:
        for _ in range(3):
            assert server.ask(ASK).status == 200
        server.stream(LONG)
        engine = server.engine()
        os.kill(server.process.pid, signal.SIGKILL)
        eventually(lambda: b"mull.engine.worker" not in command_of(engine))
    db = connect(server.db)
    assert usage.summed(db, ["key"])[0]["requests"] == 3
    db.close()


# the engine


def test_the_engine_dies_and_comes_again(folder: Path, tmp_path: Path):
    with running(folder, tmp_path) as server:
        response = server.stream(LONG)
        before = server.engine()
        os.kill(before, signal.SIGKILL)
        rest = response.read().decode()
        assert "The engine stopped before this answer ended; it starts again. Ask again in 2 seconds." in rest
        said = eventually(lambda: (one := server.get("/ready")).status == 503 and one)
        assert said.json == {"status": "not ready", "why": "The engine is starting."}
        assert said.headers["retry-after"] == "2"
        assert server.get("/health").status == 200
        said = server.ask(ASK)
        if said.status != 200:  # it may have come up meanwhile
            assert (said.status, said.headers["retry-after"]) == (503, "2")
        eventually(lambda: server.get("/ready").status == 200)
        assert server.ask(ASK).status == 200
        assert server.engine() != before
        assert server.metric("mull_engine_restarts_total") == 1


def test_a_full_queue_says_so(folder: Path, tmp_path: Path):
    """vllm#2901: a queue without end."""
    with running(folder, tmp_path, "--rows", "1", "--queue", "1") as server:
        first = server.stream(LONG)
        second = server.connection()
        second.request("POST", "/v1/chat/completions", json.dumps(ASK), {"content-type": "application/json"})
        eventually(lambda: server.metric("mull_open") == 2)
        said = server.ask(ASK)
        assert (said.status, said.headers["retry-after"]) == (503, "1")
        assert said.error == "The queue is full: 1 requests are being answered and 1 wait."
        first.close()
        server.opened[0].close()
        assert second.getresponse().status == 200


# the end


def test_it_drains(folder: Path, tmp_path: Path):
    with running(folder, tmp_path) as server:
        response = server.stream(LONG)
        idle = server.connection()
        idle.request("GET", "/health")
        idle.getresponse().read()
        server.process.send_signal(signal.SIGTERM)
        said = eventually(lambda: (one := server.ask(ASK)).status == 503 and one)
        assert (said.error, said.headers["retry-after"]) == ("The server is shutting down.", "5")
        said = server.get("/ready")
        assert (said.status, said.headers["retry-after"]) == (503, "5")
        assert server.get("/health").status == 200
        rest = response.read()
        assert rest.rstrip().endswith(b"data: [DONE]")
        assert b'"finish_reason":"length"' in rest
        assert server.process.wait(20) == 0
    db = connect(server.db)
    assert usage.summed(db, ["key"])[0]["completion"] == 900
    db.close()


def test_answers_that_take_too_long_to_drain_are_told(folder: Path, tmp_path: Path):
    with running(folder, tmp_path, "drain_seconds=0.2") as server:
        response = server.stream({**LONG, "n": 8})
        server.process.send_signal(signal.SIGTERM)
        rest = response.read()
        assert b'"error":{"message":"The server is shutting down, before this answer ended."' in rest
        assert b"again" not in rest  # it does not come back
        assert server.process.wait(20) == 0


def test_a_second_signal_ends_it_at_once(folder: Path, tmp_path: Path):
    with running(folder, tmp_path) as server:
        server.stream({**LONG, "n": 8})
        engine = server.engine()
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        assert server.process.poll() is None
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(5) == 128 + signal.SIGTERM
        eventually(lambda: b"mull.engine.worker" not in command_of(engine))


def test_ctrl_c_is_130(folder: Path, tmp_path: Path):
    with running(folder, tmp_path) as server:
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(20) == 130
        assert server.log.read_text().endswith("Stopped.\n")


# TLS


def test_https(folder: Path, tmp_path: Path):
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2"]
    try:
        subprocess.run([*made, *names, "-keyout", key, "-out", cert], check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("there is no openssl to make a certificate with")
    context = ssl.create_default_context(cafile=str(cert))
    with running(folder, tmp_path, "--tls-cert", str(cert), "--tls-key", str(key), tls=context) as server:
        assert server.line.startswith("tiny at https://127.0.0.1:")
        assert server.ask(ASK).status == 200
        assert raw(server, b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n") == b""
