"""Checkpoints to read and to break, and what reading them takes of memory."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from small import GQA, MOE, SHAPES, changed, chat, in_memory, model_of, tokens_of  # noqa: F401

from mull.model.transformer import Transformer
from mull.model.weights import allocate, save_model
from mull.ops.fp8 import quantise


def loaded(transformers, folder: Path):
    """The checkpoint through AutoModelForCausalLM; nothing missing, unexpected or misshapen."""
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True, attn_implementation="eager"
    )
    assert {key: list(value) for key, value in info.items() if value} == {}
    return model.eval()


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """model.safetensors as another hand would have written it."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def shard(folder: Path, parts: int = 3) -> None:
    """model.safetensors and mtp.safetensors in ordinary shards and an index, as DeepSeek publishes them."""
    files = [folder / name for name in ("model.safetensors", "mtp.safetensors") if (folder / name).exists()]
    tensors = {name: tensor for file in files for name, tensor in load_file(file).items()}
    for file in files:
        file.unlink()
    index = {}
    for part in range(parts):
        name = f"model-{part + 1:05}-of-{parts:05}.safetensors"
        mine = {tensor: tensors[tensor] for tensor in sorted(tensors)[part::parts]}
        save_file(mine, folder / name)
        index |= dict.fromkeys(mine, name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))


def configure(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


BLOCKS = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [8, 8]}


def to_fp8(folder: Path, block: tuple[int, int] = (8, 8), scales: str = "fp32") -> dict[str, torch.Tensor]:
    """The directory's projections in FP8. Returns what they are worth."""
    worth: dict[str, torch.Tensor] = {}

    def change(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if "_proj" in name and name.endswith("weight")]:
            codes, scale = quantise(tensors[name], block)
            if scales == "bytes":
                scale = scale.log2().ceil().add(127).to(torch.uint8)
            spread = (scale if scales == "fp32" else 2.0 ** (scale.float() - 127)).repeat_interleave(block[0], 0)
            spread = spread.repeat_interleave(block[1], 1)[: codes.shape[0], : codes.shape[1]]
            worth[name] = codes.float() * spread
            tensors |= {name: codes, f"{name}_scale_inv": scale}

    rewrite(folder, change)
    configure(folder, quantization_config=BLOCKS | {"weight_block_size": list(block)})
    return worth


def same(left: Transformer, right: Transformer) -> bool:
    theirs = right.state_dict()
    return all(torch.equal(tensor, theirs[key]) for key, tensor in left.state_dict().items())


PEAK = """
import re, sys, threading, time
from pathlib import Path
from mull.export import export
from mull.ops.fp8 import quantise
from mull.model.weights import load_model

def anonymous():
    return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

folder = Path(sys.argv[1])
{then}  # with a small one first: what importing and starting take is not the weights'
folder, before, peak, over = Path(sys.argv[2]), anonymous(), 0, threading.Event()

def watch():
    global peak
    while not over.is_set():
        peak = max(peak, anonymous())
        time.sleep(0.0005)

thread = threading.Thread(target=watch)
thread.start()
kept = {then}
over.set()
thread.join()
print(max(peak, anonymous()) - before)
"""


def peak_of(then: str, small: Path, large: Path) -> int:
    """Bytes of anonymous memory that `then`, said of a `folder`, takes at most, in a process of its own."""
    words = [sys.executable, "-c", PEAK.replace("{then}", then), str(small), str(large)]
    return int(subprocess.run(words, capture_output=True, text=True, check=True).stdout)


LARGE = changed(MOE, width=512, ffn=4096, expert_ffn=1024, experts=8)  # 200 MB; its largest tensor has 8


def save_large(folder: Path) -> int:
    """Returns the bytes of its numbers."""
    large = allocate(LARGE)
    for tensor in large.state_dict().values():
        tensor.fill_(0.02)
    save_model(folder, large, chat())
    return sum(p.numel() * p.element_size() for p in large.parameters())
