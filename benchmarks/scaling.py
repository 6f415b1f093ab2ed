"""How training scales: tokens/s against width, experts, sequence length and batch, one at a time around small-moe.

Every point is whole optimiser steps (AdamW, fp32 on a CPU) over sequences of equal length. A wider model has more heads
and wider experts and latents in proportion. Activations are what autograd keeps for the backward pass, counted by its
own hooks, so exact: bytes per token, parameters not included. `where` tells which operations a step's time goes to.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from measure import arguments, finish, gemm_peak, machine, prepare, summary, timed
from plot import Panel, draw
from torch.profiler import ProfilerActivity, profile

from mull.data.batch import Batch, Example, collate
from mull.model.config import PRESETS, ModelConfig
from mull.model.flops import parameters, training_flops
from mull.model.moe import Trace
from mull.model.transformer import Transformer
from mull.train.trainer import TrainConfig, Trainer

# what an operation's name begins with -> what it is; the first that fits
KINDS = {
    "matrix products": ("aten::mm", "aten::addmm", "aten::addmv", "aten::_grouped_mm", "mkldnn::_linear", "_Linear"),
    "attention": ("aten::bmm", "aten::baddbmm", "aten::_softmax", "aten::_scaled_dot", "aten::_flash", "_Attention"),
    "elementwise, norms": (
        "aten::mul", "aten::add", "aten::sub", "aten::div", "aten::exp", "aten::neg", "aten::sum", "aten::sqrt",
        "aten::pow", "aten::reciprocal", "aten::sigmoid", "aten::linalg_vector_norm", "_RMSNorm", "_SwiGLU",
    ),
    "moving rows": (
        "aten::index", "aten::copy_", "aten::cat", "aten::sort", "aten::scatter", "aten::gather", "aten::topk",
        "aten::bincount", "aten::_embedding_bag", "aten::embedding",
    ),
    "optimiser": ("aten::_fused_adamw", "aten::_foreach", "Optimizer"),
}  # fmt: skip


@dataclass(frozen=True)
class Point:
    cfg: ModelConfig
    length: int = 256
    batch: int = 16


def wider(cfg: ModelConfig, width: int) -> ModelConfig:
    factor = width / cfg.width
    names = ("heads", "ffn", "expert_ffn", "q_rank", "kv_rank")
    return cfg.model_copy(update={"width": width, **{name: round(getattr(cfg, name) * factor) for name in names}})


def axes(cfg: ModelConfig, divide: int) -> dict[str, dict[int, Point]]:
    """What is varied -> its values -> the points. `divide` makes sequences shorter, for a try."""
    length, batch = 256 // divide, 16
    widths = [cfg.width * n // 2 for n in (1, 2, 3, 4)]
    lengths = [length * n // 4 for n in (1, 2, 4, 8, 16)]
    return {
        "width": {n: Point(wider(cfg, n), length, batch) for n in widths},
        "experts": {n: Point(cfg.model_copy(update={"experts": n}), length, batch) for n in (8, 16, 32, 64, 128)},
        "sequence length": {n: Point(cfg, n, length * batch // n) for n in lengths},
        "batch": {n: Point(cfg, length, n) for n in (1, 2, 4, 8, 16, 32)},
    }


def batch_of(point: Point, device: torch.device) -> Batch:
    draw = random.Random(0)
    rows = [[draw.randrange(point.cfg.vocab) for _ in range(point.length)] for _ in range(point.batch)]
    return collate([Example(row, [1] * len(row)) for row in rows], device)


def kept_bytes(trainer: Trainer, batch: Batch) -> int:
    """Bytes of what the forward pass keeps for the backward pass, each storage once, parameters left out."""
    own = {p.untyped_storage().data_ptr() for p in [*trainer.model.parameters(), *trainer.model.buffers()]}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss, _ = trainer._objective(batch, len(batch.target_N), Trace())
    del loss  # alive until here: a storage that is free again may be another's, and be counted once for two
    return sum(kept.values())


def measured(point: Point, device: torch.device, repeats: int, peak: float) -> dict[str, float]:
    model = Transformer(point.cfg).initialise(0).to(device).train()
    batch = batch_of(point, device)
    trainer = Trainer(model, TrainConfig(), steps=10_000)
    kept = kept_bytes(trainer, batch) / batch.tokens
    seconds = timed(lambda: trainer.train_step([batch]), device, repeats, warm=1)
    flops = training_flops(point.cfg, batch.documents.lengths, len(batch.target_N))
    sizes = parameters(point.cfg)
    return {
        **summary(seconds, batch.tokens, flops, peak), "kept_per_token": kept, "total": sizes.total,
        "active": sizes.active,
    }  # fmt: skip


def where(point: Point, device: torch.device, steps: int = 3) -> dict[str, float]:
    """Share of a step's own CPU time by kind of operation; what no kind names is the rest."""
    trainer = Trainer(Transformer(point.cfg).initialise(0).to(device).train(), TrainConfig(), steps=10_000)
    batch = batch_of(point, device)
    trainer.train_step([batch])
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        for _ in range(steps):
            trainer.train_step([batch])
    spent: Counter[str] = Counter()
    for event in seen.key_averages():
        kind = next((k for k, names in KINDS.items() if event.key.startswith(names)), "the rest")
        spent[kind] += event.self_cpu_time_total
    total = sum(spent.values())
    return {kind: spent[kind] / total for kind in (*KINDS, "the rest")}


def table(found: Mapping[str, Mapping[int, Mapping[str, float]]]) -> str:
    """Markdown, as docs/scaling.md shows it."""
    lines = ["| varied | | parameters, active (M) | tokens/s | MFU | activations, KiB a token |", "|---" * 6 + "|"]
    for name, points in found.items():
        for value, f in points.items():
            sizes = f"{f['total'] / 1e6:.2f}, {f['active'] / 1e6:.2f}"
            lines.append(
                f"| {name} | {value} | {sizes} | {f['tokens_per_s']:,.0f} | {100 * f['mfu']:.0f} % "
                f"| {f['kept_per_token'] / 1024:.0f} |"
            )
    return "\n".join(lines)


def plotted(path: Path, found: Mapping[str, Mapping[int, Mapping[str, float]]]) -> None:
    panels = [
        Panel(f"tokens/s against {name}", name, {"": [(n, f["tokens_per_s"]) for n, f in points.items()]}, log_x=True)
        for name, points in found.items()
    ]
    draw(path, panels, "Training speed in tokens per second against width, experts, sequence length and batch.")


def main() -> None:
    parser = arguments(str(__doc__).split("\n")[0])
    parser.set_defaults(preset="small-moe", repeats=5)
    parser.add_argument("--divide", type=int, default=1, help="sequences shorter by this factor, for a try")
    parser.add_argument("--only", nargs="+", help="of width, experts, 'sequence length' and batch")
    parser.add_argument("--svg", type=Path, help="also draw the curves")
    given = parser.parse_args()
    device = prepare(given.device)
    cfg = PRESETS[given.preset].model_copy(update={"mtp_layers": 0})
    peak = gemm_peak(device)
    chosen = {name: points for name, points in axes(cfg, given.divide).items() if name in (given.only or [name])}
    known: dict[Point, dict[str, float]] = {}
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for name, points in chosen.items():
        for value, point in points.items():
            if point not in known:
                known[point] = measured(point, device, given.repeats, peak)
            found.setdefault(name, {})[value] = known[point]
    print(table(found))
    ends = {f"{name} {max(points)}": points[max(points)] for name, points in chosen.items()}
    points = {given.preset: Point(cfg, 256 // given.divide)} | ends
    shares = {label: where(point, device) for label, point in points.items()}
    print(f"\n| share of a step | {' | '.join(shares)} |\n|{'---|' * (len(shares) + 1)}")
    for kind in (*KINDS, "the rest"):
        print(f"| {kind} | {' | '.join(f'{100 * share[kind]:.0f} %' for share in shares.values())} |")
    if given.svg:
        plotted(given.svg, found)
    finish(
        given.json,
        {"benchmark": "scaling", "preset": given.preset, **machine(device, peak), "points": found, "where": shares},
    )


if __name__ == "__main__":
    main()
