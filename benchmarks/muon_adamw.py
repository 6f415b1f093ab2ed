"""Muon against AdamW on the demo's model and data: how many steps, and how many minutes, to the same held-out loss.

The model of the recipe `demo` learns the mixture of its stage `sft` from random weights. Each optimiser takes the best
of three learning rates on the first seed, then that one on all seeds (a seed gives other weights and other problems).
Every 20 steps the loss on the same held-out problems is taken; "reached" means that its mean over three such records
in a row is as low as the last such mean of AdamW's run of that seed, at the end of its decay. Muon's curve is read
where it crosses that, mid-run, before its own decay: the comparison leans to AdamW.

Curves are kept in --out and not computed again. Seconds per step are measured apart, in fresh processes that take turns
(`--seconds`), so that the curves may run while the machine does something else.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import torch
from plot import Panel, draw
from sides import Side, alternate, measure, quartiles, spread

from mull import dist
from mull.data.batch import Batch, Example, Stream, collate
from mull.data.shards import mix
from mull.data.sources import Problems, conversations, recitals, seed_of
from mull.model.transformer import Transformer
from mull.stages import recipe
from mull.stages.sft import SFTConfig
from mull.tasks import TAUGHT
from mull.text.chat import ROLES, Chat
from mull.text.tokenizer import Tokenizer
from mull.train.losses import LossConfig, ce
from mull.train.optim import OptimConfig
from mull.train.trainer import TrainConfig, Trainer

RATES = {"adamw": (2e-3, 4e-3, 8e-3), "muon": (1.5e-3, 3e-3, 6e-3)}
EVERY, WINDOW = 20, 3  # steps between records of the held-out loss; records in a mean
HELD_OUT = 4  # batches


class Lesson:
    """The demo's model, tokenizer and mixture."""

    def __init__(self, tokens: int):
        demo = recipe.load("demo", [])
        sft = next(stage for stage in demo.stage if isinstance(stage, SFTConfig))
        self.model, self.sft, self.tokens = demo.model, sft, tokens
        problems = Problems(sft.tasks, seed_of(0, "tokenizer"))
        texts = list(ROLES)
        for problem in map(problems, range(2000)):
            solution = TAUGHT[problem.task].solution(problem)
            texts += [problem.messages[-1].content, solution.reasoning or "", solution.content]
        self.chat = Chat(Tokenizer.train(texts, self.model.vocab))

    def stream(self, seed: int) -> Stream:
        taught = conversations(self.sft.tasks, self.chat, seed_of(seed, "taught"), self.sft.direct)
        recited = recitals(self.sft.recite, self.chat, seed_of(seed, "recited"), spoken=True)
        weights = [self.sft.tasks_weight, self.sft.recite_weight]
        return Stream(mix([taught, recited], weights, seed_of(seed, "mix")), self.tokens)

    def held_out(self) -> list[Batch]:
        """Problems of the validation split, half of them answered without thinking; the same for every run."""
        problems = Problems(self.sft.tasks, seed_of("held out"), "validation")

        def example(i: int) -> Example:
            problem = problems(i)
            solution = TAUGHT[problem.task].solution(problem)
            return Example(*self.chat.example([*problem.messages, solution], thinking=i % 2 == 0))

        stream = Stream(example, self.tokens)
        return [collate(stream.take()) for _ in range(HELD_OUT)]


def loss_on(model: Transformer, batches: Sequence[Batch]) -> float:
    """Mean cross-entropy per token of the answers."""
    with torch.inference_mode():
        sums = [
            float(ce(model.logits(model(b.tokens_T, b.documents)[b.predict_N]), b, LossConfig())[0]) for b in batches
        ]
    return sum(sums) / sum(len(b.target_N) for b in batches)


def trainer_of(lesson: Lesson, optimiser: str, rate: float, seed: int, steps: int) -> Trainer:
    model = Transformer(lesson.model).initialise(seed_of(seed, "weights")).train()
    return Trainer(model, TrainConfig(optim=OptimConfig(name=optimiser, lr=rate)), steps)  # type: ignore[arg-type]


def curve(given: argparse.Namespace) -> dict[str, object]:
    """One run: its held-out loss over the steps."""
    dist.settle()
    lesson = Lesson(given.tokens)
    trainer = trainer_of(lesson, given.optimiser, given.rate, given.seed, given.steps)
    stream, held_out, points = lesson.stream(given.seed), lesson.held_out(), []
    for step in range(1, given.steps + 1):
        trainer.train_step(stream.batches())
        if step % EVERY == 0:
            points.append((step, loss_on(trainer.model, held_out)))
    return {"optimiser": given.optimiser, "rate": given.rate, "seed": given.seed, "points": points}


def seconds(given: argparse.Namespace) -> dict[str, float]:
    """Median seconds of a step, batches included."""
    from measure import timed

    dist.settle()
    lesson = Lesson(given.tokens)
    trainer, stream = trainer_of(lesson, given.optimiser, given.rate, 1, 10_000), lesson.stream(1)
    taken = timed(lambda: trainer.train_step(stream.batches()), torch.device("cpu"), given.repeats)
    return {"seconds": statistics.median(taken)}


def smoothed(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """Means of WINDOW records in a row, at the step of the last."""
    windows = zip(*(islice(points, k, None) for k in range(WINDOW)), strict=False)
    return [(window[-1][0], statistics.mean(loss for _, loss in window)) for window in windows]


def reached(points: Sequence[tuple[int, float]], loss: float) -> int | None:
    return next((step for step, value in smoothed(points) if value <= loss), None)


class Study:
    """All runs, from --out where they are already."""

    def __init__(self, given: argparse.Namespace):
        self.given = given
        given.out.mkdir(parents=True, exist_ok=True)

    def points(self, optimiser: str, rate: float, seed: int) -> list[tuple[int, float]]:
        path = self.given.out / f"{optimiser}-{rate:g}-{seed}-{self.given.steps}.json"
        if not path.exists():
            found = measure(__file__, Side(self.arguments(optimiser, rate, seed)))
            path.write_text(json.dumps(found), encoding="utf-8")
            print(f"{path.stem}: {smoothed(found['points'])[-1][1]:.4f}", flush=True)
        return json.loads(path.read_text(encoding="utf-8"))["points"]

    def arguments(self, optimiser: str, rate: float, seed: int, *more: str) -> list[str]:
        sizes = ["--steps", str(self.given.steps), "--tokens", str(self.given.tokens)]
        return ["--optimiser", optimiser, "--rate", f"{rate:g}", "--seed", str(seed), *sizes, *more]

    def best(self, optimiser: str) -> float:
        first = self.given.seeds[0]
        ends = {rate: smoothed(self.points(optimiser, rate, first))[-1][1] for rate in self.given.rates[optimiser]}
        for rate, loss in ends.items():
            print(f"{optimiser} {rate:g}: held-out loss {loss:.4f} after {self.given.steps} steps (seed {first})")
        return min(ends, key=lambda rate: ends[rate])

    def seconds(self, rates: dict[str, float]) -> dict[str, float]:
        """Per step, in turns."""
        sides = {
            name: Side(self.arguments(name, rate, 1, "--repeats", str(self.given.repeats)))
            for name, rate in rates.items()
        }
        found = alternate(__file__, sides, self.given.rounds, self.given.under)
        for name, each in found.items():
            print(f"{name}: {spread(quartiles([one['seconds'] for one in each]), 3)} s/step")
        return {name: statistics.median(one["seconds"] for one in each) for name, each in found.items()}

    def report(self) -> dict[str, object]:
        rates = {name: self.best(name) for name in RATES}
        curves = {name: [self.points(name, rate, seed) for seed in self.given.seeds] for name, rate in rates.items()}
        each = self.seconds(rates)
        rows = []
        print(f"\n{'seed':>4}{'AdamW ends at':>15}{'Muon there':>12}{'steps':>8}{'minutes':>18}{'Muon ends at':>14}")
        for seed, adam, muon in zip(self.given.seeds, curves["adamw"], curves["muon"], strict=True):
            loss, end = smoothed(adam)[-1][1], smoothed(muon)[-1][1]
            at, whole = reached(muon, loss), self.given.steps
            rows.append({"seed": seed, "adamw_loss": loss, "muon_steps": at, "muon_loss": end})
            minutes = f"{whole * each['adamw'] / 60:.2f} -> " + (f"{at * each['muon'] / 60:.2f}" if at else "never")
            share = f"{at / whole:.2f} x" if at else "never"
            print(f"{seed:>4}{loss:>15.4f}{at or '-':>12}{share:>8}{minutes:>18}{end:>14.4f}")
        if self.given.svg:
            lines = {
                f"{ {'adamw': 'AdamW', 'muon': 'Muon'}[name]}, seed {seed}": points
                for name, runs in curves.items()
                for seed, points in zip(self.given.seeds, runs, strict=True)
            }
            panel = Panel("held-out loss, three seeds each", "steps of 4,096 tokens", lines, dots=False)
            draw(self.given.svg, [panel], "Held-out loss of the demo's model over training, Muon below AdamW.", 1)
        return {"benchmark": "muon_adamw", "rates": rates, "seconds": each, "rows": rows, "curves": curves}


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/muon_adamw"), help="where finished curves are kept")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--tokens", type=int, default=4096, help="per step")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--rounds", type=int, default=5, help="of measuring seconds per step")
    parser.add_argument("--under", default="", help="a command to measure seconds under, e.g. 'taskset -c 0,1'")
    parser.add_argument("--svg", type=Path, help="also draw the curves")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--optimiser", choices=list(RATES), help=argparse.SUPPRESS)
    parser.add_argument("--rate", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--repeats", type=int, default=0, help=argparse.SUPPRESS)
    given = parser.parse_args()
    given.rates = RATES
    if given.optimiser:
        print(json.dumps(seconds(given) if given.repeats else curve(given)))
        return
    found = Study(given).report()
    if given.json:
        given.json.write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
