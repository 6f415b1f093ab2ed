"""One step of reinforcement learning, mull against TRL's GRPOTrainer: the same model, prompts, answers' lengths.

A Llama of 3.8M parameters over 99 characters answers 8 problems 8 times each at temperature 1; the reward is the share
of digits; one optimiser step follows. mull's side is its rl stage as a recipe runs it, TRL's its trainer as `train()`
runs it, set up as fast as it goes here: fp32, no gradient checkpointing, fused AdamW, no logging.

Lengths are prescribed, so that both sides do the same work: `equal` has 64 tokens in every answer, `tail` the quantiles
of a log-normal distribution with mean 64 and longest 512. mull takes each as its request's max_tokens; for TRL each row
is stopped at its length. Each side checks what it got and fails where that is not what was asked.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import tokenizers
import torch
from measure import finish, machine
from sides import KEEP_MEMORY, Side, alternate, arguments, need, quartiles, ratios, spread

from mull import dist
from mull.model.config import ModelConfig
from mull.model.transformer import Transformer
from mull.model.weights import save_model
from mull.run import Run
from mull.stages import rl
from mull.stages.stage import Context
from mull.tasks import TASKS
from mull.text.chat import Chat
from mull.text.tokenizer import SPECIALS, Tokenizer
from mull.train.losses import LossConfig
from mull.train.optim import OptimConfig
from mull.train.trainer import TrainConfig
from mull.types import Completion, Message, Outcome, Problem

CHARACTERS = "\n" + "".join(map(chr, range(ord(" "), ord("}"))))  # 94; with the five special tokens 99 ids
MODEL = ModelConfig(vocab=99, width=256, layers=5, heads=8, kv_heads=8, head_dim=32, ffn=640, max_length=1024)
GROUPS, SAMPLES, RATE = 8, 8, 1e-4
MEAN, LONGEST = 64, 512
# room for all answers and little more: TRL's default of half the memory takes seconds a step to clear
PAGES = {"page_size": 32, "num_blocks": 320, "max_batch_tokens": 2048}


def characters() -> Tokenizer:
    """One id per character, after the special tokens."""
    ids = {piece: i for i, piece in enumerate((*SPECIALS, *CHARACTERS))}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(ids, unk_token=SPECIALS[0]))
    inner.add_special_tokens([tokenizers.AddedToken(token, special=True, normalized=False) for token in SPECIALS])
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Split(tokenizers.Regex(r"[\s\S]"), "isolated")
    inner.decoder = tokenizers.decoders.Fuse()
    return Tokenizer(inner)


def long_tail(n: int, mean: int, longest: int) -> list[int]:
    """The n quantiles of a log-normal distribution, its width chosen so that they have this mean and this maximum."""
    normal = statistics.NormalDist()
    z = [normal.inv_cdf((i + 0.5) / n) for i in range(n)]
    low, high, lengths = 0.0, 20.0, [longest] * n
    for _ in range(60):
        width = (low + high) / 2
        lengths = [max(2, round(longest * math.exp(width * (each - z[-1])))) for each in z]
        low, high = (width, high) if sum(lengths) > mean * n else (low, width)
    lengths[-2] += mean * n - sum(lengths)  # a few tokens that rounding took
    return lengths


def lengths_of(step: int, given: argparse.Namespace) -> list[int]:
    """How long each answer of a step is to be; the same for whoever asks."""
    mean, longest, n = MEAN // given.scale, LONGEST // given.scale, GROUPS * SAMPLES
    if given.lengths == "equal":
        return [mean] * n
    lengths = long_tail(n, mean, longest)
    random.Random(step).shuffle(lengths)
    return lengths


def reward(tokens: Sequence[int]) -> float:
    """Share of digits. Of real numbers, so that a group hardly ever agrees and every answer teaches."""
    first = len(SPECIALS) + CHARACTERS.index("0")
    return sum(first <= token < first + 10 for token in tokens) / len(tokens)


class Digits:
    """A task whose prompts are all of one length, so that TRL need not pad them."""

    name, about = "digits", "say digits"

    def problems(self, split: str, n: int, seed: int = 0, **size: Any) -> list[Problem]:
        draw = random.Random(seed)
        asked = [f"{draw.randrange(100, 1000)} + {draw.randrange(100, 1000)} =" for _ in range(n)]
        return [Problem(self.name, str(i), (Message("user", text),), "") for i, text in enumerate(asked)]

    def grade(self, problem: Problem, completion: Completion) -> tuple[float, Outcome]:
        return reward(completion.tokens), "wrong"


class Clock:
    """When steps ended, and how long each spent generating."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.generating: list[float] = []

    def generation(self, work: Callable[[], Any]) -> Any:
        began = time.perf_counter()
        if not self.ends:
            self.ends.append(began)
        result = work()
        self.generating.append(time.perf_counter() - began)
        return result

    def end(self) -> None:
        self.ends.append(time.perf_counter())

    def figures(self, warm: int) -> dict[str, list[float]]:
        """Seconds of each step behind the first `warm`: from the end of the one before to its own."""
        return {"seconds": [b - a for a, b in pairwise(self.ends[warm:])], "generating": self.generating[warm:]}


class Prescribed:
    """An engine that gives each request the length prescribed for it, checks it, and tells the clock."""

    def __init__(self, engine: Any, clock: Clock, given: argparse.Namespace):
        self.engine, self.clock, self.given = engine, clock, given

    def generate(self, requests: Sequence[Any], *rest: Any, **named: Any) -> list[Completion]:
        lengths = lengths_of(requests[0].key[0], self.given)
        asked = [
            replace(r, sampling=replace(r.sampling, max_tokens=n)) for r, n in zip(requests, lengths, strict=True)
        ]
        answers = self.clock.generation(lambda: self.engine.generate(asked, *rest, **named))
        assert [len(answer.tokens) for answer in answers] == lengths
        return answers

    def load(self, state: Any, version: int) -> None:
        self.engine.load(state, version)
        self.clock.end()  # new weights with the engine: the step is done

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)


def ours(given: argparse.Namespace, exact: bool) -> dict[str, Any]:
    """mull's rl stage, as a recipe runs it."""
    dist.settle()
    TASKS[Digits.name] = Digits()  # type: ignore[assignment]
    clock = Clock()

    class Bench(Context):
        def engine(self, model: Transformer, chat: Chat, *rest: Any, **named: Any) -> Any:
            chat.tokenizer.stop_ids = ()
            return Prescribed(super().engine(model, chat, *rest, **named), clock, given)

    cfg = rl.RLConfig(
        name="bench", init="start", steps=given.warm + given.steps, tasks=[{"task": Digits.name}],  # type: ignore
        problems=GROUPS, samples=SAMPLES, refills=0, max_tokens=LONGEST,
        train=TrainConfig(loss=LossConfig(name="grpo"), optim=OptimConfig(lr=RATE, warmup=0.0, weight_decay=0.0)),
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        run = Run.open(Path(folder) / "run", {}, quiet=True)
        ctx = Bench(run, 0, torch.device("cpu"), MODEL, {"start": str(given.folder)}, exact=exact)
        rl.main(cfg, ctx)
        run.close()
    return clock.figures(given.warm)


def theirs(
    given: argparse.Namespace, attention: str = "sdpa", continuous: bool = False, parts: int = 1
) -> dict[str, Any]:
    """TRL's trainer over the same directory. `parts`: micro-batches of its one optimiser step."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    import datasets
    import transformers
    import trl

    datasets.disable_progress_bars()
    clock, chat = Clock(), Chat.load(given.folder)
    steps = given.warm + given.steps
    prompts = [chat.tokenizer.decode(chat.encode(p.messages)) for p in Digits().problems("train", GROUPS * steps)]
    model = transformers.AutoModelForCausalLM.from_pretrained(
        given.folder, dtype=torch.float32, attn_implementation=attention
    )
    asked: list[int] = []

    def score(completion_ids: list[list[int]], **_: Any) -> list[float]:
        assert [len(ids) for ids in completion_ids] == asked, "TRL's answers have other lengths"
        return [reward(ids) for ids in completion_ids]

    class Trainer(trl.GRPOTrainer):
        def _generate_single_turn(self, *rest: Any, **named: Any) -> Any:
            asked[:] = lengths_of(self.state.global_step, given)
            one_turn = functools.partial(super()._generate_single_turn, *rest, **named)
            return clock.generation(one_turn)

    class Ends(transformers.TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.end()

    with tempfile.TemporaryDirectory() as folder:
        args = trl.GRPOConfig(
            output_dir=folder, use_cpu=True, bf16=False, gradient_checkpointing=False, optim="adamw_torch_fused",
            learning_rate=RATE, beta=0.0, temperature=1.0, num_generations=SAMPLES, num_iterations=1,
            per_device_train_batch_size=GROUPS * SAMPLES // parts, gradient_accumulation_steps=parts, max_steps=steps,
            max_completion_length=LONGEST // given.scale if given.lengths == "tail" else MEAN // given.scale,
            use_transformers_continuous_batching=continuous, transformers_continuous_batching_config=PAGES,
            generation_kwargs={"suppress_tokens": list(chat.tokenizer.stop_ids)},  # they would end an answer early
            report_to=[], disable_tqdm=True, logging_strategy="no", save_strategy="no", seed=0,
        )  # fmt: skip
        trainer = Trainer(
            model, reward_funcs=score, args=args, train_dataset=datasets.Dataset.from_dict({"prompt": prompts}),
            processing_class=transformers.AutoTokenizer.from_pretrained(given.folder), callbacks=[Ends()],
        )  # fmt: skip
        if continuous:
            model.generate_batch = _batch_of_lengths(model, asked)
        else:
            model.generate = _rows_of_lengths(model, asked)
        trainer.train()
    return clock.figures(given.warm)


def _rows_of_lengths(model: Any, asked: list[int]) -> Callable[..., Any]:
    """`generate`, with a rule that ends each row at its length. What follows in a row is padding, of which TRL keeps
    the first as the answer's last token."""
    from transformers import StoppingCriteria, StoppingCriteriaList

    class AtLength(StoppingCriteria):
        eos_token_id = None  # transformers pads ended rows only where some rule has this attribute

        def __init__(self, prompt: int):
            longest = max(asked)
            self.ends = torch.tensor([prompt + (n if n == longest else n - 1) for n in asked])

        def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
            return input_ids.shape[1] >= self.ends

    generate = model.generate

    def wrapped(input_ids: torch.Tensor, generation_config: Any, **named: Any) -> Any:
        rules = StoppingCriteriaList([AtLength(input_ids.shape[1])])
        return generate(input_ids=input_ids, generation_config=generation_config, stopping_criteria=rules, **named)

    return wrapped


def _batch_of_lengths(model: Any, asked: list[int]) -> Callable[..., Any]:
    """`generate_batch`, each request with its own max_new_tokens."""

    def wrapped(inputs: list[list[int]], generation_config: Any, continuous_batching_config: Any, **_: Any) -> Any:
        with model.continuous_batching_context_manager(
            generation_config=generation_config, continuous_batching_config=continuous_batching_config
        ) as manager:
            ids = [
                manager.add_request(list(prompt), max_new_tokens=n, eos_token_id=-1)
                for prompt, n in zip(inputs, asked, strict=True)
            ]
            done: dict[str, Any] = {}
            while len(done) < len(ids):
                result = manager.get_result(timeout=1)
                if result is not None and result.is_finished():
                    done[result.request_id] = result
                elif result is None and not manager.is_running():
                    raise RuntimeError("continuous batching stopped by itself")
        return {i: done[i] for i in ids}

    return wrapped


Sides = dict[str, Callable[[argparse.Namespace], dict[str, Any]]]
OURS: Sides = {"mull": lambda given: ours(given, exact=False), "mull exact": lambda given: ours(given, exact=True)}
THEIRS: Sides = {
    "trl": theirs,
    "trl eager": lambda given: theirs(given, attention="eager"),
    "trl 8 parts": lambda given: theirs(given, parts=8),
    "trl continuous": lambda given: theirs(given, continuous=True),
    "trl continuous 8 parts": lambda given: theirs(given, continuous=True, parts=8),
}
STEPS = {"equal": 3, "tail": 2}  # measured in each process


def compare(given: argparse.Namespace, kind: str, folder: Path) -> dict[str, Any]:
    """One step of each of TRL's settings; then mull and the fastest of them, also with its allocator tuned, in turn."""
    given.lengths = kind
    shared = ["--folder", str(folder), "--lengths", kind, "--scale", str(given.scale)]
    measured = [*shared, "--warm", str(given.warm), "--steps", str(given.steps or STEPS[kind])]
    tries = [*shared, "--warm", "0", "--steps", "1"]

    def side(name: str, how: list[str] = measured, **environment: str) -> Side:
        return Side(["--side", name, *how], environment)

    lengths = lengths_of(given.warm, given)
    mean = statistics.mean(lengths)
    print(f"\n{kind}: {len(lengths)} answers of {min(lengths)} to {max(lengths)} tokens, {mean:g} on average")
    settings = given.settings or list(THEIRS)
    tried = {}
    if len(settings) > 1:
        tried = alternate(__file__, {name: side(name, tries) for name in settings}, 1, given.under)
    once = {name: statistics.median(one["seconds"]) for name, (one,) in tried.items()}
    for name, seconds in once.items():
        print(f"{name}, one first step: {seconds:.2f} s, {tried[name][0]['generating'][0]:.2f} generating")
    best = min(once, key=lambda name: once[name]) if once else settings[0]
    sides = {name: side(name) for name in OURS} | {best: side(best), f"{best}, malloc tuned": side(best, **KEEP_MEMORY)}
    found = alternate(__file__, sides, given.rounds, given.under)
    return {"lengths": sorted(lengths), "tried": once, "sides": table(found, len(lengths))}


def table(found: dict[str, list[dict[str, Any]]], rows: int) -> dict[str, Any]:
    print(f"{'':38}{'samples/s (quartiles)':>24}{'s/step':>9}{'generating':>12}{'mull is (quartiles)':>26}")
    report = {}
    ours = [statistics.median(one["seconds"]) for one in found["mull"]]
    for name, each in found.items():
        seconds = [s for one in each for s in one["seconds"]]
        generating = statistics.median(s for one in each for s in one["generating"])
        rate = quartiles([rows / s for s in seconds])
        against = ratios([statistics.median(one["seconds"]) for one in each], ours)
        report[name] = {"seconds": seconds, "generating": generating, "samples_per_s": rate, "mull_is": against}
        print(
            f"{name:38}{spread(rate, 1):>24}{statistics.median(seconds):>9.2f}{generating:>12.2f}"
            f"{spread(against, 2) + ' x':>26}",
            flush=True,
        )
    return report


def main() -> None:
    parser = arguments(str(__doc__).split("\n")[0], 3, list(THEIRS), list(OURS))
    parser.add_argument("--lengths", choices=list(STEPS), help="only these; otherwise both")
    parser.add_argument("--steps", type=int, help=f"measured steps of each process (default: {STEPS})")
    parser.add_argument("--warm", type=int, default=1, help="steps before them")
    parser.add_argument("--scale", type=int, default=1, choices=[1, 2, 4, 8], help="answers shorter by so much")
    given = parser.parse_args()
    if given.side:
        print(json.dumps((OURS | THEIRS)[given.side](given)))
        return
    need("trl", "datasets", "accelerate")
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        start = Path(folder) / "start"
        save_model(start, Transformer(MODEL).initialise(0), Chat(characters()))
        for kind in [given.lengths] if given.lengths else list(STEPS):
            found[kind] = compare(given, kind, start)
    finish(given.json, {"benchmark": "against_trl", **machine(torch.device("cpu"), 0.0), **found})


if __name__ == "__main__":
    main()
