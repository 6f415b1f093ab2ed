"""Those that serving.py compares: each a function that brings a model up and returns what answers prompts with it.

    speak = SPEAKERS["vllm eager"](place)   what importing and loading takes is not measured
    speak(prompts, 64)                      answers of 64 tokens to all prompts at once, greedy, whatever they end with

Prompts are token ids. Nothing here imports mull or a peer before it is asked for: vllm has an environment of its own.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Prompt = Sequence[int]


@dataclass
class Said:
    """An answer; seconds from the moment that all prompts were given."""

    count: int  # tokens
    first: float
    last: float
    token: int | None = None  # the first one, where it is told


Speak = Callable[[Sequence[Prompt], int], list[Said]]


@dataclass(frozen=True)
class Place:
    """Where the model is (`folder` for all but llama.cpp, which reads `gguf`), and what for."""

    folder: Path
    gguf: Path | None
    rows: int  # answers at a time, at most
    length: int  # tokens of prompt and answer together, at most
    threads: int
    leave: ExitStack  # closed in the end


def mull(place: Place, exact: bool = False, drafts: bool = False) -> Speak:
    """The engine in this process, loaded as the server's is."""
    from mull.engine import worker
    from mull.types import Request, Sampling

    options = {"model": str(place.folder), "device": "cpu", "exact": exact, "rows": place.rows, "drafts": drafts}

    def speak(prompts: Sequence[Prompt], new: int) -> list[Said]:
        sampling = Sampling(max_tokens=new, temperature=0.0, ignore_end=True)
        began, said = time.perf_counter(), [Said(0, 0.0, 0.0) for _ in prompts]
        answers = [core.add(i, Request(tuple(prompt), sampling, (i,))) for i, prompt in enumerate(prompts)]
        while core.busy:
            heard = core.step()
            now = time.perf_counter() - began
            for answer in heard:
                one = said[answer.name]
                one.first, one.last = one.first or now, now
        for one, answer in zip(said, answers, strict=True):
            one.count, one.token = len(answer.tokens), answer.tokens[0]
        return said

    core = worker.load(options)
    return speak


def transformers(place: Place, attention: str = "sdpa", experts: str = "eager") -> Speak:
    """All prompts as one batch; they must have one length."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        place.folder, dtype=torch.float32, attn_implementation=attention, experts_implementation=experts
    ).eval()
    model.generation_config.eos_token_id = None

    def speak(prompts: Sequence[Prompt], new: int) -> list[Said]:
        began = time.perf_counter()
        ids = torch.tensor([list(prompt) for prompt in prompts])
        with torch.inference_mode():
            out = model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, do_sample=False, pad_token_id=0
            )
        took = time.perf_counter() - began
        return [Said(len(row), took, took, int(row[0])) for row in out[:, ids.shape[1] :]]

    return speak


def vllm(place: Place, compiled: bool = True) -> Speak:
    os.environ |= {
        "HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_KVCACHE_SPACE": "4",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "OMP_NUM_THREADS": str(place.threads),
    }  # fmt: skip
    from vllm import LLM, SamplingParams  # pyright: ignore[reportMissingImports]

    model = LLM(
        str(place.folder), dtype="float32", max_model_len=place.length, max_num_seqs=place.rows,
        enforce_eager=not compiled, disable_log_stats=True,
    )  # fmt: skip

    def speak(prompts: Sequence[Prompt], new: int) -> list[Said]:
        sampling = SamplingParams(temperature=0, max_tokens=new, ignore_eos=True, detokenize=False)
        began = time.perf_counter()
        out = model.generate([{"prompt_token_ids": list(one)} for one in prompts], sampling, use_tqdm=False)
        took = time.perf_counter() - began
        tokens = [list(one.outputs[0].token_ids) for one in out]
        return [Said(len(row), took, took, row[0]) for row in tokens]

    return speak


def llama_cpp(place: Place, unified: bool = False, cache: bool = False, slots: int | None = None) -> Speak:
    """llama.cpp's own server, over HTTP: within this process it tells no tokens. Weights and activations of 8 bits."""
    import xllamacpp

    assert place.gguf is not None
    slots = slots or place.rows
    params = xllamacpp.CommonParams()
    params.model.path, params.verbosity = str(place.gguf), 0
    params.n_parallel, params.n_threads_http = slots, place.rows + 2
    params.n_ctx, params.kv_unified = slots * place.length, unified
    params.warmup = params.fit_params = False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = place.threads
    server = xllamacpp.Server(params)
    port = int(server.listening_address.rpartition(":")[2])
    options = {"temperature": 0, "ignore_eos": True, "cache_prompt": cache, "return_tokens": True, "stream": True}

    def speak(prompts: Sequence[Prompt], new: int, server: Any = server) -> list[Said]:  # which lives as long
        bodies = [{"prompt": list(prompt), "n_predict": new, **options} for prompt in prompts]
        return asyncio.run(_all(port, "/completion", bodies))

    return speak


def mull_http(place: Place, shared: bool = True) -> Speak:
    """`mull serve`, and its clients here. Not `shared`: no request may use what another computed."""
    log = place.folder.parent / "serve.log"
    with log.open("w") as out:
        server = subprocess.Popen(
            [sys.executable, "-m", "mull.cli", "serve", str(place.folder), "--port", "0", "--device", "cpu",
             "--rows", str(place.rows), "--queue", "1024", "--db", str(place.folder / "usage.db"),
             "engine.drafts=false"],
            stdout=out, stderr=out, stdin=subprocess.DEVNULL,
            env={**os.environ, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": str(place.threads)},
        )  # fmt: skip
    place.leave.callback(_end, server)
    port = _port(server, log)
    salts = iter(range(1 << 40))

    def speak(prompts: Sequence[Prompt], new: int) -> list[Said]:
        options = {"max_tokens": new, "temperature": 0, "ignore_eos": True, "stream": True, "model": place.folder.name}
        options["stream_options"] = {"include_usage": True}
        bodies = [{"prompt": list(prompt), **options} for prompt in prompts]
        for body in bodies:
            body |= {} if shared else {"cache_salt": str(next(salts))}
        return asyncio.run(_all(port, "/v1/completions", bodies))

    return speak


def _port(server: subprocess.Popen[bytes], log: Path) -> int:
    """Which the server says when it is up."""
    while server.poll() is None:
        if found := re.search(r"http://127\.0\.0\.1:(\d+)", log.read_text()):
            return int(found[1])
        time.sleep(0.05)
    raise SystemExit(f"mull serve did not begin:\n{log.read_text()}")


def _end(server: subprocess.Popen[bytes]) -> None:
    server.terminate()
    server.wait(60)


async def _all(port: int, path: str, bodies: Sequence[Mapping[str, Any]]) -> list[Said]:
    texts = [json.dumps(body).encode() for body in bodies]
    began = time.perf_counter()
    return await asyncio.gather(*(_ask(port, path, text, began) for text in texts))


async def _ask(port: int, path: str, body: bytes, began: float) -> Said:
    """As little as a client can do: on two cores what it does is missing elsewhere."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 24)
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body)
    first, begun, frame = 0.0, b"", b""
    status = await reader.readline()
    async for line in reader:
        if line.startswith(b"data: ") and b"[DONE]" not in line:
            first, begun, frame = first or time.perf_counter() - began, begun or line[6:], line[6:]
        elif b" 200 " not in status:
            frame += line
    took = time.perf_counter() - began
    writer.close()
    if b" 200 " not in status:
        raise RuntimeError(f"{path}: {status!r} {frame[-300:]!r}")
    last = json.loads(frame)
    tokens = json.loads(begun).get("tokens")
    count = last["usage"]["completion_tokens"] if "usage" in last else last["tokens_predicted"]
    return Said(count, first, took, tokens[0] if tokens else None)


SPEAKERS: dict[str, Callable[[Place], Speak]] = {
    "mull": mull,
    "mull exact": lambda place: mull(place, exact=True),
    "mull drafts": lambda place: mull(place, drafts=True),
    "mull http": mull_http,
    "mull http, nothing shared": lambda place: mull_http(place, shared=False),
    "transformers sdpa": transformers,
    "transformers eager": lambda place: transformers(place, "eager"),
    "transformers sdpa, grouped experts": lambda place: transformers(place, experts="grouped_mm"),
    "vllm compiled": vllm,
    "vllm eager": lambda place: vllm(place, compiled=False),
    "llama.cpp": llama_cpp,
    "llama.cpp unified": lambda place: llama_cpp(place, unified=True),
    **{
        f"llama.cpp {slots} slot{'s' * (slots > 1)}": (lambda place, n=slots: llama_cpp(place, cache=True, slots=n))
        for slots in (1, 4, 16, 64)
    },
    "llama.cpp 64 slots, unified": lambda place: llama_cpp(place, unified=True, cache=True),
}


__all__ = ["SPEAKERS", "Place", "Prompt", "Said", "Speak"]
