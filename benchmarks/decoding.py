"""Speed of decoding: the engine answering many prompts at once, as RL and evaluation use it.

Every answer runs to its full length (no stop token counts), so all measurements do the same work.
"""

from __future__ import annotations

import random

import torch
from measure import arguments, finish, gemm_peak, machine, prepare, show, summary, timed

from mull.engine.engine import LocalEngine
from mull.model.config import PRESETS
from mull.model.flops import decoding_flops
from mull.model.transformer import Transformer
from mull.text.chat import Chat
from mull.text.tokenizer import SMALLEST, Tokenizer
from mull.types import Request, Sampling


def main() -> None:
    parser = arguments(str(__doc__).split("\n")[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 64, 256], help="answers at a time")
    parser.add_argument("--prompt", type=int, default=40, help="tokens")
    parser.add_argument("--answer", type=int, default=96, help="tokens")
    given = parser.parse_args()
    device = prepare(given.device)
    cfg, draw = PRESETS[given.preset], random.Random(given.seed)
    peak = gemm_peak(device)
    chat = Chat(Tokenizer.train([], SMALLEST))
    chat.tokenizer.stop_ids = ()
    model = Transformer(cfg).initialise(given.seed).to(device)
    print(f"{given.preset}, {device}, {torch.get_num_threads()} threads, GEMM {peak / 1e9:,.0f} GF/s")
    found = []
    for rows in given.rows:
        engine = LocalEngine(model, chat, max_rows=rows)
        sampling = Sampling(max_tokens=given.answer, seed=given.seed)
        prompts = [tuple(draw.randrange(5, SMALLEST) for _ in range(given.prompt)) for _ in range(rows)]
        requests = [Request(prompt, sampling, (i,)) for i, prompt in enumerate(prompts)]
        seconds = timed(lambda e=engine, r=requests: e.generate(r), device, given.repeats, warm=1)
        flops = rows * decoding_flops(cfg, given.prompt, given.answer)
        found.append({"rows": rows, **summary(seconds, rows * given.answer, flops, peak)})
        show(f"decoding, {rows} rows of {given.prompt} + {given.answer} tokens", found[-1])
    finish(given.json, {"benchmark": "decoding", "preset": given.preset, **machine(device, peak), "runs": found})


if __name__ == "__main__":
    main()
