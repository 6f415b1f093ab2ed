"""Examples become a stream: nothing is lost, nothing is predicted across a border, order follows the cursor."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small import examples_of, tokens_of

from mull.data.batch import Example, Stream, collate


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=8), st.floats(0, 1), st.integers(0, 1000))
def test_every_learnt_token_is_predicted_from_the_one_before(lengths: list[int], learnt: float, seed: int) -> None:
    examples = examples_of(*lengths, seed=seed, learnt=learnt)
    if all(n == 1 for n in lengths):
        with pytest.raises(ValueError, match="learnt"):
            collate(examples)
        return
    batch = collate(examples)
    assert batch.tokens == sum(lengths)
    want, start = [], 0
    for k, example in enumerate(examples):
        want += [(start + i - 1, example.tokens[i], k) for i in range(1, len(example.tokens)) if example.mask[i]]
        start += len(example.tokens)
    got = zip(batch.predict_N.tolist(), batch.target_N.tolist(), batch.example_N.tolist(), strict=True)
    assert list(got) == want
    assert batch.tokens_T.tolist() == [t for e in examples for t in e.tokens]


def test_log_probabilities_and_advantages_stay_with_their_tokens() -> None:
    examples = [
        Example([5, 6, 7, 8], [0, 0, 1, 1], logprobs=[0.0, 0.0, -0.7, -0.8], advantage=0.5),
        Example([9, 10], [0, 1], logprobs=[0.0, -1.0], advantage=-0.25),
    ]
    batch = collate(examples)
    assert batch.target_N.tolist() == [7, 8, 10]
    assert batch.logprob_N is not None
    assert batch.advantage_N is not None
    assert batch.logprob_N.tolist() == pytest.approx([-0.7, -0.8, -1.0])
    assert batch.advantage_N.tolist() == [0.5, 0.5, -0.25]
    assert batch.logprob_N.dtype == torch.float32


def test_an_example_must_be_consistent() -> None:
    with pytest.raises(AssertionError):
        Example([1, 2], [1])
    with pytest.raises(AssertionError):
        Example([1, 2], [0, 1], logprobs=[0.0])


def source(i: int) -> Example:
    n = 3 + i * 7 % 11
    return Example(tokens_of(n, i), [1] * n)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 60), st.integers(1, 12))
def test_packing_is_in_order_and_within_the_limit(limit: int, batches: int) -> None:
    stream, at = Stream(source, limit), 0
    for _ in range(batches):
        taken = stream.take()
        assert taken == [source(at + i) for i in range(len(taken))]
        at += len(taken)
        used = sum(len(e.tokens) for e in taken)
        assert used <= limit or len(taken) == 1
        assert used + len(source(at).tokens) > limit  # not one more would have fitted
    assert stream.state() == {"cursor": at}


def test_a_stream_goes_on_from_its_cursor() -> None:
    straight = Stream(source, 40)
    first = [straight.take() for _ in range(5)]
    broken = Stream(source, 40)
    again = [broken.take() for _ in range(2)]
    resumed = Stream(source, 40, cursor=broken.state()["cursor"])
    again += [resumed.take() for _ in range(3)]
    assert again == first
