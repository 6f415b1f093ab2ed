"""llama.cpp as an oracle of tokenisation: GGUF files that are hardly more than a vocabulary, and its server's ids."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path
from typing import Any

import gguf
import numpy as np


def write_vocabulary(path: Path, metadata: dict[str, Any], template: str | None = None) -> None:
    """A llama of one layer and no knowledge, with the tokenizer that `metadata` describes."""
    size = len(metadata["tokenizer.ggml.tokens"])
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(4096)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(32)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_dimension_count(32)
    for key, value in metadata.items():
        match value:
            case str():
                writer.add_string(key, value)
            case bool():
                writer.add_bool(key, value)
            case int():
                writer.add_uint32(key, value)
            case list():
                writer.add_array(key, value)
    if template is not None:
        writer.add_chat_template(template)
    shapes = {"token_embd": (size, 32), "output": (size, 32), "output_norm": (32,)}
    shapes |= {f"blk.0.{name}_norm": (32,) for name in ("attn", "ffn")}
    shapes |= {f"blk.0.attn_{name}": (32, 32) for name in ("q", "k", "v", "output")}
    shapes |= {f"blk.0.ffn_{name}": (32, 32) for name in ("gate", "up", "down")}
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", np.zeros(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class LlamaCpp:
    """llama.cpp's server over a file, for as long as this object lives."""

    def __init__(self, path: Path):
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.n_ctx, params.n_gpu_layers, params.n_parallel, params.cpuparams.n_threads = 256, 0, 1, 1
        params.warmup, params.verbosity = False, -1
        self.server = xllamacpp.Server(params)

    def ids(self, text: str, special: bool = False) -> list[int]:
        asked = {"content": text, "add_special": False, "parse_special": special}
        request = urllib.request.Request(
            f"{self.server.listening_address}/tokenize", json.dumps(asked).encode(),
            {"Content-Type": "application/json"},
        )  # fmt: skip
        with urllib.request.urlopen(request) as response:
            return json.load(response)["tokens"]
