"""Penalties, biases, bans: against transformers' and a plain twin's."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mull.engine.logits import Tally, adjusted
from mull.types import Sampling

VOCAB = 40
TOKENS = st.lists(st.integers(0, VOCAB - 1), max_size=30)


def logits_of(seed: int) -> torch.Tensor:
    return torch.randn(VOCAB, generator=torch.Generator().manual_seed(seed)) * 3


def tally_of(prompt: list[int], answer: list[int]) -> Tally:
    tally = Tally(prompt)
    for token in answer:
        tally.hear(token)
    return tally


@settings(deadline=None)
@given(TOKENS, TOKENS, st.floats(0.5, 2), st.floats(-2, 2), st.floats(-2, 2), st.integers(0, 999))
def test_penalties_are_those_of_a_plain_twin(
    prompt: list[int], answer: list[int], repetition: float, presence: float, frequency: float, seed: int
) -> None:
    logits, count = logits_of(seed), Counter(answer)
    expected = logits.double().numpy().copy()
    for token in range(VOCAB):
        if token in prompt or token in answer:
            expected[token] *= repetition if expected[token] < 0 else 1 / repetition
        if token in answer:
            expected[token] -= presence + frequency * count[token]
    s = Sampling(repetition_penalty=repetition, presence_penalty=presence, frequency_penalty=frequency)
    np.testing.assert_allclose(adjusted(logits, s, tally_of(prompt, answer)).numpy(), expected, rtol=1e-5, atol=1e-5)


@settings(deadline=None)
@given(st.lists(st.integers(0, VOCAB - 1), min_size=1), st.floats(0.5, 2), st.integers(0, 999))
def test_repetition_is_that_of_transformers(seen: list[int], penalty: float, seed: int) -> None:
    from transformers import RepetitionPenaltyLogitsProcessor

    logits = logits_of(seed)
    theirs = RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([seen]), logits[None].clone())[0]
    half = len(seen) // 2
    ours = adjusted(logits, Sampling(repetition_penalty=penalty), tally_of(seen[:half], seen[half:]))
    torch.testing.assert_close(ours, theirs)


def test_a_bias_is_added_last_and_says_nothing_of_tokens_that_do_not_exist() -> None:
    logits = logits_of(0).abs()
    s = Sampling(repetition_penalty=2.0, logit_bias=((3, 100.0), (4, -1.5), (VOCAB, 5.0), (-1, 5.0)))
    made = adjusted(logits, s, tally_of([3], []))
    assert float(made[3]) == pytest.approx(float(logits[3]) / 2 + 100)
    assert float(made[4]) == pytest.approx(float(logits[4]) - 1.5)
    rest = [i for i in range(VOCAB) if i not in (3, 4)]
    assert torch.equal(made[rest], logits[rest])


def test_bans_are_absolute_and_the_row_itself_stays() -> None:
    logits = logits_of(0)
    kept = logits.clone()
    made = adjusted(logits, Sampling(logit_bias=((3, 100.0),)), banned=(3, 5, VOCAB))
    assert made.isneginf().nonzero()[:, 0].tolist() == [3, 5]
    assert torch.equal(logits, kept)


class Only:
    def __init__(self, *tokens: int):
        self.tokens = tokens

    def mask(self, logits_V: torch.Tensor) -> None:
        allowed = logits_V[list(self.tokens)].clone()
        logits_V[:] = -torch.inf
        logits_V[list(self.tokens)] = allowed


def test_a_grammar_forbids_all_but_what_is_exempt_and_allows_nothing_that_is_banned() -> None:
    logits = logits_of(0)
    made = adjusted(logits, Sampling(), banned=(8, 9), grammar=Only(7, 8), exempt=(2, 9))
    assert made.isfinite().nonzero()[:, 0].tolist() == [2, 7]
    assert float(made[2]) == float(logits[2])
