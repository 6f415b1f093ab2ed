"""Batch: what everything that learns consumes. Examples of any length laid end to end, no padding.

A position is *predicted* when the token after it belongs to the same example and its mask is set; only those positions
reach the vocabulary head, so prompts cost no logits.

T tokens of the stream  N predicted positions  V vocabulary
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mull.ops.attention import Documents


@dataclass(frozen=True, slots=True)
class Example:
    """Token ids and, per token, whether it is to be learnt; the first token is never predicted.

    RL adds, per token, the sampler's log-probability and route (0 where the mask is 0), and an advantage for the whole.
    """

    tokens: Sequence[int]
    mask: Sequence[int]
    logprobs: Sequence[float] | None = None
    advantage: float = 0.0
    routes: Sequence[int] | None = None

    def __post_init__(self) -> None:
        assert len(self.tokens) == len(self.mask)
        assert self.logprobs is None or len(self.logprobs) == len(self.tokens)


@dataclass
class Batch:
    tokens_T: Tensor
    documents: Documents
    mask_T: Tensor  # bool
    predict_N: Tensor  # positions whose next token is learnt
    target_N: Tensor  # those next tokens
    example_N: Tensor  # which example each belongs to
    logprob_N: Tensor | None = None  # the sampler's, fp32
    route_N: Tensor | None = None  # the experts that the sampler's forward pass met (model.moe.fingerprints), int64
    advantage_N: Tensor | None = None
    teacher_NV: Tensor | None = None  # a teacher's log-probabilities over the vocabulary
    extra: dict[str, float] = field(default_factory=dict)  # metrics of whoever made the batch

    @property
    def tokens(self) -> int:
        return self.documents.tokens

    def ahead(self, depth: int) -> tuple[Tensor, Tensor]:
        """(positions i, tokens i + depth) inside one example with token i + depth learnt; depth 1: predict, target."""
        later = self.mask_T.roll(-depth) & (self.documents.index_T == self.documents.index_T.roll(-depth))
        later[-depth:] = False
        at = later.nonzero()[:, 0]
        return at, self.tokens_T[at + depth]


def collate(examples: Sequence[Example], device: torch.device | str = "cpu") -> Batch:
    """Examples -> Batch. Raises ValueError where nothing would be learnt."""
    documents = Documents([len(e.tokens) for e in examples], device)
    tokens_T = torch.tensor([t for e in examples for t in e.tokens], device=device)
    mask_T = torch.tensor([m for e in examples for m in e.mask], dtype=torch.bool, device=device)
    mask_T &= documents.positions_T > 0
    target_at = mask_T.nonzero()[:, 0]
    if not len(target_at):
        raise ValueError("No token of this batch is to be learnt: every mask is zero.")
    batch = Batch(
        tokens_T, documents, mask_T, predict_N=target_at - 1, target_N=tokens_T[target_at],
        example_N=documents.index_T[target_at],
    )  # fmt: skip
    if examples[0].logprobs is not None:
        flat = [p for e in examples for p in (e.logprobs or ())]
        batch.logprob_N = torch.tensor(flat, dtype=torch.float32, device=device)[target_at]
        advantage = torch.tensor([e.advantage for e in examples], dtype=torch.float32, device=device)
        batch.advantage_N = advantage[batch.example_N]
    if any(e.routes is not None for e in examples):
        assert all(e.routes is not None for e in examples)
        batch.route_N = torch.tensor([r for e in examples for r in (e.routes or ())], device=device)[target_at]
    return batch


@dataclass
class Stream:
    """An endless, deterministic sequence of examples, cut into batches of at most `tokens` tokens.

    A step takes `accumulate` batches. `example(i)` must be a function of i alone. `cursor` is all the state there is:
    put `state()` into a checkpoint, set `cursor` from it, and the stream goes on where it was.
    """

    example: Callable[[int], Example]
    tokens: int
    device: torch.device | str = "cpu"
    cursor: int = 0
    accumulate: int = 1

    def take(self) -> list[Example]:
        """The next examples that fit; always at least one, so an example longer than a batch is a batch of its own."""
        taken: list[Example] = []
        used = 0
        while True:
            example = self.example(self.cursor)
            if taken and used + len(example.tokens) > self.tokens:
                return taken
            taken.append(example)
            used += len(example.tokens)
            self.cursor += 1

    def batches(self, _step: int = 0) -> list[Batch]:
        """The micro-batches of the next step, as the trainer asks for them."""
        return [collate(self.take(), self.device) for _ in range(self.accumulate)]

    def state(self) -> dict[str, int]:
        return {"cursor": self.cursor}
