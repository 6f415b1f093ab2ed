"""What is done to a row of logits before a token is drawn: penalties, biases, bans, grammar. In this order.

Repetition comes first, on the model's own logits (Keskar et al. 2019, arXiv 1909.05858, as transformers has it), then
frequency and presence (as OpenAI's and vLLM's), then `logit_bias`, so that a bias of 100 is 100.

V vocabulary
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from mull.types import Sampling


class Mask(Protocol):
    """What keeps an answer to a form: `Matcher` (engine/grammar.py)."""

    def mask(self, logits_V: Tensor) -> None:
        """-inf, in place, for every token that cannot come next."""
        ...


class Tally:
    """Which tokens a prompt holds, and how often an answer has each so far. Hearing one more costs nothing."""

    def __init__(self, prompt: Iterable[int] = ()):
        self._ids, self._counts = array("q"), array("q")  # a prompt's tokens count 0 until the answer has them
        self._place: dict[int, int] = {}
        for token in prompt:
            self._at(token)

    def _at(self, token: int) -> int:
        if (place := self._place.get(token)) is None:
            place = self._place[token] = len(self._ids)
            self._ids.append(token)
            self._counts.append(0)
        return place

    def hear(self, token: int) -> None:
        self._counts[self._at(token)] += 1

    def of(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """(ids, how often the answer has each), no id twice."""
        ids, counts = (torch.from_numpy(np.array(numbers)) for numbers in (self._ids, self._counts))
        return ids.to(device), counts.to(device)


def penalised(sampling: Sampling) -> bool:
    """Whether a `Tally` is needed."""
    return sampling.repetition_penalty != 1.0 or bool(sampling.presence_penalty or sampling.frequency_penalty)


def adjusted(
    logits_V: Tensor, sampling: Sampling, tally: Tally | None = None, banned: Sequence[int] = (),
    grammar: Mask | None = None, exempt: Sequence[int] = (),
) -> Tensor:  # fmt: skip
    """A copy of a row, adjusted. What is in `exempt` the grammar cannot forbid: a thought may begin before it does.

    Biases and bans of ids outside the vocabulary say nothing.
    """
    logits_V = logits_V.clone()
    if penalised(sampling):
        assert tally is not None
        _penalise(logits_V, sampling, tally)
    if sampling.logit_bias:
        known = [(token, bias) for token, bias in sampling.logit_bias if 0 <= token < len(logits_V)]
        ids_N = torch.tensor([token for token, _ in known], dtype=torch.long, device=logits_V.device)
        logits_V.index_add_(0, ids_N, logits_V.new_tensor([bias for _, bias in known]))
    if banned:
        logits_V[[token for token in banned if 0 <= token < len(logits_V)]] = -torch.inf
    if grammar is not None:
        kept = logits_V[list(exempt)] if exempt else None
        grammar.mask(logits_V)
        if kept is not None:
            logits_V[list(exempt)] = kept
    return logits_V


def _penalise(logits_V: Tensor, sampling: Sampling, tally: Tally) -> None:
    """In place."""
    ids_N, count_N = tally.of(logits_V.device)
    logit_N = logits_V[ids_N]
    factor = sampling.repetition_penalty
    if factor != 1.0:
        logit_N = torch.where(logit_N > 0, logit_N / factor, logit_N * factor)
    logit_N = logit_N - sampling.frequency_penalty * count_N - sampling.presence_penalty * (count_N > 0)
    logits_V[ids_N] = logit_N


__all__ = ["Mask", "Tally", "adjusted", "penalised"]
