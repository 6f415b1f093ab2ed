"""Speed of training: whole optimiser steps on packed documents, as pretraining runs them.

MFU counts what the model needs (model/flops.py: causal attention by its pairs, padding as nothing) against a matrix
product timed in the same process.
"""

from __future__ import annotations

import random

import torch
from measure import arguments, finish, gemm_peak, machine, prepare, show, summary, timed

from mull.data.batch import Batch, Example, collate
from mull.model.config import PRESETS, ModelConfig
from mull.model.flops import parameters, training_flops
from mull.model.transformer import Transformer
from mull.train.trainer import TrainConfig, Trainer


def batch_of(cfg: ModelConfig, tokens: int, length: int, draw: random.Random, device: torch.device) -> Batch:
    """Documents of about `length` tokens, as unequal as worked problems are."""
    examples, used = [], 0
    while True:
        n = max(2, round(draw.gauss(length, length / 4)))
        if examples and used + n > tokens:
            return collate(examples, device)
        examples.append(Example([draw.randrange(cfg.vocab) for _ in range(n)], [1] * n))
        used += n


def main() -> None:
    parser = arguments(str(__doc__).split("\n")[0])
    parser.add_argument("--tokens", type=int, default=4096, help="per step")
    parser.add_argument("--length", type=int, default=120, help="of a document, on average")
    given = parser.parse_args()
    device = prepare(given.device)
    cfg, draw = PRESETS[given.preset], random.Random(given.seed)
    peak = gemm_peak(device)
    model = Transformer(cfg).initialise(given.seed).to(device).train()
    trainer = Trainer(model, TrainConfig(), steps=10_000)
    batch = batch_of(cfg, given.tokens, given.length, draw, device)
    seconds = timed(lambda: trainer.train_step([batch]), device, given.repeats)
    flops = training_flops(cfg, batch.documents.lengths, len(batch.target_N))
    figures = summary(seconds, batch.tokens, flops, peak)
    sizes = parameters(cfg)
    print(
        f"{given.preset}: {sizes.total / 1e6:.2f} M parameters, {sizes.active / 1e6:.2f} M active; {device}, ", end=""
    )
    print(f"{torch.get_num_threads()} threads, GEMM {peak / 1e9:,.0f} GF/s")
    show(f"training, {batch.tokens} tokens a step in documents of about {given.length}", figures)
    finish(given.json, {"benchmark": "training", "preset": given.preset, **machine(device, peak), **figures})


if __name__ == "__main__":
    main()
