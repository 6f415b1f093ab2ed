"""Time from a GGUF file to the first token: mull, transformers (from_pretrained(gguf_file=...)), llama.cpp.

Each is a fresh process that reads weights, tokenizer and chat template of the same file from the page cache, encodes
the same question and generates one greedy token; the comparison stops where prompts differ. mull and transformers
unpack to fp32, and must give the same token. llama.cpp loads something smaller: it computes with the blocks as they
are, and with activations rounded to 8 bits, so its token may be another. What importing takes stands apart: a program
that is up already does not pay it.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sides import Side, alternate, arguments, need, quartiles, ratios, spread

from mull.locate import locate

QUESTION = "What is the capital of France?"
Work = Callable[[Path], tuple[list[int], int]]  # a file -> the prompt's ids, the first token


def mull() -> Work:
    from mull import dist
    from mull.engine.engine import LocalEngine
    from mull.model.weights import load_model
    from mull.text.chat import Chat
    from mull.types import Message, Request, Sampling

    dist.settle()

    def work(path: Path) -> tuple[list[int], int]:
        model, chat = load_model(path), Chat.load(path)
        loaded()
        ids = chat.encode([Message("user", QUESTION)])
        request = Request(tuple(ids), Sampling(max_tokens=1, temperature=0.0))
        return ids, LocalEngine(model, chat).generate([request])[0].tokens[0]

    return work


def transformers() -> Work:
    os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    def work(path: Path) -> tuple[list[int], int]:
        model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
        loaded()
        asked = [{"role": "user", "content": QUESTION}]
        ids = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=False)
        with torch.no_grad():
            return ids, int(model(torch.tensor([ids])).logits[0, -1].argmax())

    return work


def llama_cpp() -> Work:
    import xllamacpp

    def work(path: Path) -> tuple[list[int], int]:
        params = xllamacpp.CommonParams()
        params.model.path, params.n_ctx, params.verbosity = str(path), 2048, 0
        params.warmup = params.fit_params = False
        server = xllamacpp.Server(params)
        loaded()
        asked = {
            "messages": [{"role": "user", "content": QUESTION}],
            "max_tokens": 1,
            "temperature": 0,
            "logprobs": True,
        }
        answer = server.handle_chat_completions(asked)
        # it tells how many ids the prompt has, not which
        return [-1] * answer["usage"]["prompt_tokens"], answer["choices"][0]["logprobs"]["content"][0]["id"]

    return work


OURS: dict[str, Callable[[], Work]] = {"mull": mull}
THEIRS: dict[str, Callable[[], Work]] = {"transformers": transformers, "llama.cpp": llama_cpp}
PACKAGES = {"transformers": ("transformers", "accelerate"), "llama.cpp": ("xllamacpp",)}
CLOCK: list[float] = []


def loaded() -> None:
    """What follows is the first token."""
    CLOCK.append(time.perf_counter())


def one(begin: Callable[[], Work], path: Path) -> dict[str, Any]:
    began = time.perf_counter()
    work = begin()
    imported = time.perf_counter()
    prompt, token = work(path)
    done = time.perf_counter()
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    held = {kind: int(re.findall(rf"Rss{kind}:\s+(\d+)", status)[0]) / 1024 for kind in ("Anon", "File")}
    return {
        "import": imported - began, "load": CLOCK[0] - imported, "first": done - CLOCK[0], "token": token,
        "prompt": prompt, "anonymous_mb": held["Anon"], "mapped_mb": held["File"],
    }  # fmt: skip


def same_work(name: str, figures: dict[str, Any], reference: dict[str, Any]) -> None:
    ids, wanted = figures["prompt"], reference["prompt"]
    exact = name != "llama.cpp"
    if len(ids) != len(wanted) or (exact and (ids, figures["token"]) != (wanted, reference["token"])):
        raise SystemExit(f"{name} does other work than mull: its prompt or first token is another.")


def table(found: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    print(f"{'seconds (quartiles)':22}{'load':>24}{'first token':>24}{'import':>10}{'RssAnon':>10}{'mull is':>22}")
    report = {}
    total = {name: [figures["load"] + figures["first"] for figures in each] for name, each in found.items()}
    for name, each in found.items():
        load, first, imported = (quartiles([one[key] for one in each]) for key in ("load", "first", "import"))
        memory = statistics.median(one["anonymous_mb"] for one in each)
        against = ratios(total[name], total["mull"])
        runs = [{key: value for key, value in one.items() if key != "prompt"} for one in each]
        report[name] = {"load": load, "first": first, "import": imported, "mull_is": against, "runs": runs}
        print(
            f"{name:22}{spread(load, 2):>24}{spread(first, 2):>24}{imported[1]:>10.2f}{memory:>7,.0f} MB"
            f"{spread(against, 1) + ' x':>22}"
        )
    return report


def main() -> None:
    parser = arguments(str(__doc__).split("\n")[0], 5, list(THEIRS), list(OURS))
    parser.add_argument("--model", default="smollm2", help="a GGUF file, or the name of one")
    given = parser.parse_args()
    path = locate(given.model).folder
    if given.side:
        print(json.dumps(one((OURS | THEIRS)[given.side], path)))
        return
    peers = given.settings or list(THEIRS)
    need(*[package for name in peers for package in PACKAGES[name]])
    path.read_bytes()  # into the page cache
    names = [*OURS, *peers]
    found = alternate(
        __file__, {n: Side(["--side", n, "--model", str(path)]) for n in names}, given.rounds, given.under
    )
    for name, each in found.items():
        for figures in each:
            same_work(name, figures, found["mull"][0])
    report = {"benchmark": "loading", "file": path.name, "bytes": path.stat().st_size, "sides": table(found)}
    if given.json is not None:
        given.json.write_text(json.dumps(report, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
