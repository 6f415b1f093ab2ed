"""Checkpoints that transformers writes, run by both: the largest difference of logits, family by family and option by
option. `tests/test_families.py` asserts it; `python tests/parity.py` prints the table.

Every number of a checkpoint is drawn, norms, biases and the routers' correction included: ones and zeros hide mistakes.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from mull.engine.decoder import Decoder
from mull.engine.pages import Pages
from mull.engine.scheduler import Job, Scheduler
from mull.model.transformer import Transformer
from mull.model.weights import load_model
from mull.ops.attention import Documents

VOCAB, PROMPT, NEW = 300, 40, 16
Options = dict[str, Any]

BASE: Options = {
    "vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 48, "max_position_embeddings": 128, "bos_token_id": None, "eos_token_id": None,
    "pad_token_id": None, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
}  # fmt: skip
MIXED: Options = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}
ROUTED: Options = MIXED | {"n_routed_experts": 8, "n_shared_experts": 1, "n_group": 1, "topk_group": 1}
LATENT: Options = ROUTED | {
    "num_key_value_heads": 4, "q_lora_rank": 24, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8,
    "v_head_dim": 12,
}  # fmt: skip


def rope(kind: str, **values: object) -> Options:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, "factor": 4.0, **values}}


YARN = rope("yarn", original_max_position_embeddings=32)
LLAMA3 = rope("llama3", original_max_position_embeddings=32, low_freq_factor=1.0, high_freq_factor=4.0)
LINEAR = rope("linear")
TIED: Options = {"tie_word_embeddings": True}
BIASED: Options = {"attention_bias": True}
WINDOWED: Options = {"use_sliding_window": True, "sliding_window": 7}
ROPES: dict[str, Options] = {"yarn": YARN, "llama3 rope": LLAMA3, "linear rope": LINEAR}
DEEP_YARN = rope("yarn", original_max_position_embeddings=32, mscale=1.0, mscale_all_dim=1.0)

FAMILIES: dict[str, tuple[str, Options, dict[str, Options]]] = {  # transformers' class, base, options
    "llama": ("Llama", BASE, ROPES | {
        "tied": TIED, "biases": BIASED, "wide heads": {"head_dim": 16}, "one key head": {"num_key_value_heads": 1},
        "no grouping": {"num_key_value_heads": 4}, "theta 5e5": {"rope_theta": 500000.0},
    }),
    "qwen2": ("Qwen2", BASE, ROPES | {
        "tied": TIED, "some layers windowed": WINDOWED | {"max_window_layers": 1},
        "window of the prompt's length": WINDOWED | {"max_window_layers": 0, "sliding_window": PROMPT},
        "window of two": WINDOWED | {"max_window_layers": 0, "sliding_window": 2},
    }),
    "qwen3": ("Qwen3", BASE | {"head_dim": 16}, ROPES | {
        "tied": TIED, "biases": BIASED, "some layers windowed": WINDOWED | {"max_window_layers": 2},
        "alternate windows": WINDOWED | {
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    }),
    "qwen3_moe": ("Qwen3Moe", BASE | MIXED | {"num_experts": 8, "head_dim": 16}, ROPES | {
        "tied": TIED, "biases": BIASED, "renormalised": {"norm_topk_prob": True}, "windowed": WINDOWED,
        "a dense layer": {"mlp_only_layers": [0]}, "one expert": {"num_experts_per_tok": 1},
        "all experts": {"num_experts_per_tok": 8},
    }),
    "olmoe": ("Olmoe", BASE | {"num_experts": 8, "num_experts_per_tok": 2}, ROPES | {
        "tied": TIED, "biases": BIASED, "renormalised": {"norm_topk_prob": True}, "clipped": {"clip_qkv": 0.5},
        "no grouping": {"num_key_value_heads": 4},
    }),
    "glm4_moe": ("Glm4Moe", BASE | ROUTED | {"first_k_dense_replace": 1, "head_dim": 16}, {
        "tied": TIED, "biases": BIASED, "normed": {"use_qk_norm": True}, "not renormalised": {"norm_topk_prob": False},
        "groups": {"n_group": 4, "topk_group": 2}, "scaled": {"routed_scaling_factor": 2.5},
        "two shared": {"n_shared_experts": 2}, "whole rotation": {"partial_rotary_factor": 1.0},
        "no dense layer": {"first_k_dense_replace": 0}, "yarn": rope(
            "yarn", original_max_position_embeddings=32, partial_rotary_factor=0.5),
    }),
    "deepseek_v3": ("DeepseekV3", BASE | LATENT | {"first_k_dense_replace": 1}, {
        "tied": TIED, "queries in one matrix": {"q_lora_rank": None}, "groups": {"n_group": 4, "topk_group": 2},
        "not renormalised": {"norm_topk_prob": False}, "two shared": {"n_shared_experts": 2},
        "all layers dense": {"first_k_dense_replace": 3}, "no dense layer": {"first_k_dense_replace": 0},
        "scaled": {"routed_scaling_factor": 1.5}, "yarn": YARN, "yarn, mscales": DEEP_YARN,
        "yarn, mscales differ": rope("yarn", original_max_position_embeddings=32, mscale=0.7, mscale_all_dim=1.0),
        "yarn, magnitude": rope("yarn", original_max_position_embeddings=32, attention_factor=1.3),
        "yarn, not truncated": rope("yarn", original_max_position_embeddings=1024, truncate=False),
        "llama3 rope": LLAMA3, "linear rope": LINEAR,
    }),
    "glm4_moe_lite": ("Glm4MoeLite", BASE | LATENT, {
        "tied": TIED, "groups": {"n_group": 4, "topk_group": 2}, "yarn, mscales": DEEP_YARN,
        "two dense layers": {"mlp_layer_types": ["dense", "dense", "sparse"]},
        "queries in one matrix": {"q_lora_rank": None},
    }),
}  # fmt: skip


def raw_of(family: str, option: str = "plain") -> Options:
    """The config.json that transformers writes."""
    name, base, options = FAMILIES[family]
    return getattr(transformers(), f"{name}Config")(**base | options.get(option, {})).to_dict()


def cases() -> Iterator[tuple[str, str]]:
    for family, (_, _, options) in FAMILIES.items():
        yield family, "plain"
        yield from ((family, option) for option in options)


@dataclass(frozen=True)
class Parity:
    family: str
    option: str
    prompt: float  # largest difference of logits, prompt at once
    cached: float  # the same token by token, both over a cache
    greedy: bool  # the same continuation
    spread: float  # standard deviation of the logits: differences are to be seen beside it


@cache
def transformers() -> Any:
    os.environ["HF_HUB_OFFLINE"] = "1"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the import itself
        import transformers as library
    library.utils.logging.set_verbosity_error()
    library.utils.logging.disable_progress_bar()
    return library


def theirs_of(family: str, option: str) -> Any:
    """A model of transformers' own class whose every number is drawn."""
    name, base, options = FAMILIES[family]
    config = getattr(transformers(), f"{name}Config")(**base | options.get(option, {}))
    config._attn_implementation = "eager"
    model = getattr(transformers(), f"{name}ForCausalLM")(config).eval()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for key, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if "inv_freq" in key:
                continue
            if "norm" in key:
                tensor.uniform_(0.5, 1.5, generator=generator)
            else:
                tensor.normal_(0, 0.1 if "bias" in key else 0.2, generator=generator)
    model.tie_weights()
    return model


def prompt_of() -> torch.Tensor:
    return torch.randint(0, VOCAB, (PROMPT,), generator=torch.Generator().manual_seed(1))


def cached_logits(model: Transformer, tokens_T: torch.Tensor) -> torch.Tensor:
    """Logits after each token, fed one by one to the engine's decoder."""
    first, *rest = tokens_T.tolist()
    scheduler = Scheduler(1, Pages(64))
    decoder, job = Decoder(model, scheduler.pages, 1), Job("it", [first])
    scheduler.add(job)
    out = []
    for token in (*rest, 0):
        parts = scheduler.plan()
        out.append(decoder.step(parts).logits_BV)
        job.tokens.append(token)
        scheduler.computed(parts)
    return torch.cat(out)


def compare(family: str, option: str) -> Parity:
    theirs, prompt_T = theirs_of(family, option), prompt_of()
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        theirs.save_pretrained(folder)
        ours = load_model(Path(folder)).eval()
        right = theirs(prompt_T[None], use_cache=False).logits[0]
        full = ours.logits(ours(prompt_T, Documents([PROMPT])))
        continued, logits, past, feed = [], [], None, prompt_T[None]
        for _ in range(NEW):  # theirs, over a cache
            step = theirs(feed, past_key_values=past, use_cache=True)
            past = step.past_key_values
            logits.append(step.logits[0])
            feed = step.logits[:, -1:].argmax(dim=-1)
            continued.append(int(feed))
        both_T = torch.cat((prompt_T, torch.tensor(continued[:-1])))
        mine = cached_logits(ours, both_T)
        cached = (mine - torch.cat(logits)).abs().max()
        greedy = mine[PROMPT - 1 :].argmax(dim=-1).tolist() == continued
    return Parity(family, option, float((full - right).abs().max()), float(cached), greedy, float(right.std()))


def main() -> None:
    found = []
    for case in cases():
        found.append(compare(*case))
        row = found[-1]
        print(f"{row.family:14} {row.option:30} prompt {row.prompt:.1e}  cached {row.cached:.1e}  "
              f"{'same' if row.greedy else 'OTHER'} continuation  logits' spread {row.spread:.2f}")  # fmt: skip
    if len(sys.argv) > 1:
        content = {"transformers": transformers().__version__, "rows": [asdict(row) for row in found]}
        Path(sys.argv[1]).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
