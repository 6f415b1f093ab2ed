"""llama.cpp (prebuilt, as xllamacpp) as an oracle: greedy tokens of GGUF files, with every token's log-probability.

Its server answers in text and leaves out tokens that end inside a character; `speakable` makes a model that never
chooses one. Keys and values are kept in fp32 and attention is plain, so that what differs is the order of sums alone.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from small import VOCAB, chat

from mull.model.transformer import Transformer

xllamacpp = pytest.importorskip("xllamacpp")


@dataclass(frozen=True)
class Said:
    tokens: list[int]
    logprobs: list[dict[int, float]]  # of each, over the vocabulary


class LlamaCpp:
    """Raises RuntimeError for a file that llama.cpp does not load."""

    def __init__(self, path: Path, context: int = 256):
        ask = xllamacpp.CommonParams()
        ask.model.path = str(path)
        ask.n_ctx, ask.n_parallel, ask.cache_ram_mib = context, 1, 0
        ask.cpuparams.n_threads = ask.cpuparams_batch.n_threads = 1
        ask.cache_type_k = ask.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        ask.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        ask.warmup = ask.fit_params = False
        ask.verbosity = 0
        self.server = xllamacpp.Server(ask)

    def greedy(self, prompt: list[int], count: int, probabilities: int = 1) -> Said:
        """Up to `count` tokens, the end of a turn included; `probabilities` of each are told, the likeliest first."""
        answer = self.server.handle_completions({
            "prompt": prompt, "n_predict": count, "temperature": 0, "n_probs": probabilities, "cache_prompt": False,
        })  # fmt: skip
        content = answer["choices"][0]["logprobs"]["content"]
        return Said(
            [one["id"] for one in content],
            [{other["id"]: other["logprob"] for other in one["top_logprobs"]} for one in content],
        )


def speakable() -> list[int]:
    """Ids whose text is whole characters, and that end nothing."""
    tokenizer = chat().tokenizer
    return [i for i in range(5, VOCAB) if tokenizer.decode([i]).isascii()]


def limit_to_speakable(model: Transformer) -> Transformer:
    """All other tokens get the logit 0, which is never the largest where logits spread."""
    silent = sorted(set(range(model.cfg.vocab)) - set(speakable()))
    with torch.no_grad():
        model.head.weight[silent] = 0
    return model


def prompts(count: int, length: int = 24) -> list[list[int]]:
    draw, ids = random.Random(0), speakable()
    return [draw.choices(ids, k=length + i % 9) for i in range(count)]
