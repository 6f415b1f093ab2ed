"""Every loss against its formula written out, and what must hold of it whatever the numbers."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mull.data.batch import Batch, Example, collate
from mull.train.losses import LOSSES, MAXIMA, LossConfig

V = 7


def batch_of(groups: list[int], seed: int = 0) -> Batch:
    """Answers of these lengths behind one prompt token, with advantages and sampler log-probabilities to be set."""
    g = torch.Generator().manual_seed(seed)
    examples = []
    for n in groups:
        tokens = torch.randint(0, V, (n + 1,), generator=g).tolist()
        examples.append(Example(tokens, [0] + [1] * n, logprobs=[0.0] * (n + 1), advantage=0.0))
    batch = collate(examples)
    batch.advantage_N = torch.randn(len(groups), generator=g)[batch.example_N]
    batch.teacher_NV = torch.randn(len(batch.target_N), V, generator=g).log_softmax(-1)
    return batch


def logits_of(batch: Batch, seed: int = 1) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(len(batch.target_N), V, generator=g, dtype=torch.float32).mul(2).requires_grad_()


def logp_of(logits: Tensor, batch: Batch, temperature: float = 1.0) -> Tensor:
    rows = torch.arange(len(batch.target_N))
    exact = logits.detach().double() / temperature
    return (exact - exact.exp().sum(-1, keepdim=True).log())[rows, batch.target_N]


sizes = st.lists(st.integers(1, 6), min_size=1, max_size=5)


@settings(deadline=None, max_examples=30)
@given(sizes, st.integers(0, 100))
def test_cross_entropy(groups: list[int], seed: int) -> None:
    batch = batch_of(groups, seed)
    logits = logits_of(batch, seed)
    total, metrics = LOSSES["ce"](logits, batch, LossConfig())
    assert float(total.detach()) == pytest.approx(-float(logp_of(logits, batch).sum()), rel=1e-4)
    assert int(metrics["token_accuracy"]) == int((logits.argmax(-1) == batch.target_N).sum())


@settings(deadline=None, max_examples=30)
@given(sizes, st.integers(0, 100), st.floats(0, 1))
def test_forward_kl(groups: list[int], seed: int, weight: float) -> None:
    batch = batch_of(groups, seed)
    logits = logits_of(batch, seed)
    assert batch.teacher_NV is not None
    total, metrics = LOSSES["forward_kl"](logits, batch, LossConfig(name="forward_kl", kl_weight=weight))
    student, teacher = logits.detach().double().log_softmax(-1), batch.teacher_NV.double()
    kl = float((teacher.exp() * (teacher - student)).sum())
    want = weight * kl - (1 - weight) * float(logp_of(logits, batch).sum())
    assert float(total.detach()) == pytest.approx(want, rel=1e-4, abs=1e-4)
    assert float(metrics["kl"]) == pytest.approx(kl, rel=1e-4)
    assert kl >= 0


@settings(deadline=None, max_examples=30)
@given(sizes, st.integers(0, 100))
def test_reverse_kl(groups: list[int], seed: int) -> None:
    batch = batch_of(groups, seed)
    logits = logits_of(batch, seed)
    assert batch.teacher_NV is not None
    total, _ = LOSSES["reverse_kl"](logits, batch, LossConfig(name="reverse_kl"))
    student, teacher = logits.detach().double().log_softmax(-1), batch.teacher_NV.double()
    want = float((student.exp() * (student - teacher)).sum())
    assert float(total.detach()) == pytest.approx(want, rel=1e-4)
    assert want >= 0


@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl"])
def test_a_student_that_agrees_with_its_teacher_stays(name: str) -> None:
    batch = batch_of([3, 4])
    assert batch.teacher_NV is not None
    logits = (batch.teacher_NV + 1.5).requires_grad_()  # a constant per row is no difference
    total, _ = LOSSES[name](logits, batch, LossConfig(name=name))  # type: ignore[arg-type]
    total.backward()
    assert float(total.detach()) == pytest.approx(0.0, abs=1e-5)
    assert logits.grad is not None
    assert float(logits.grad.abs().max()) < 1e-5


@settings(deadline=None, max_examples=30)
@given(sizes, st.integers(0, 100), st.sampled_from([0.7, 1.0, 1.3]))
def test_grpo_on_policy_is_reinforce_with_a_baseline(groups: list[int], seed: int, temperature: float) -> None:
    """Where the sampler's log-probabilities are the trainer's: the gradient is that of -sum A log pi, all weights 1."""
    batch = batch_of(groups, seed)
    logits = logits_of(batch, seed)
    assert batch.advantage_N is not None
    batch.logprob_N = logp_of(logits, batch, temperature).float()
    cfg = LossConfig(name="grpo", temperature=temperature)
    total, metrics = LOSSES["grpo"](logits, batch, cfg)
    (got,) = torch.autograd.grad(total, logits)
    p = (logits.detach().double() / temperature).softmax(-1)
    hot = torch.nn.functional.one_hot(batch.target_N, V)
    want = batch.advantage_N.double()[:, None] * (p - hot) / temperature
    torch.testing.assert_close(got.double(), want, atol=1e-4, rtol=1e-4)
    assert float(metrics["max_gap"]) < 1e-5
    assert float(metrics["k3"]) == pytest.approx(0, abs=1e-5)
    assert int(metrics["left_out"]) == 0
    entropy = float(-(p * p.log()).sum())
    assert float(metrics["entropy"]) == pytest.approx(entropy, rel=1e-4)


@settings(deadline=None, max_examples=40)
@given(sizes, st.integers(0, 100), st.floats(0.1, 3.0), st.floats(0.05, 2.0), st.floats(1.0, 6.0))
def test_grpo_off_policy_is_the_formula(
    groups: list[int], seed: int, noise: float, mask_gap: float, cap: float
) -> None:
    """Token by token in plain Python: truncated weights, and losing answers that drifted left out whole."""
    batch = batch_of(groups, seed)
    logits = logits_of(batch, seed)
    logp = logp_of(logits, batch)
    batch.logprob_N = logp.float() + noise * torch.randn(len(logp), generator=torch.Generator().manual_seed(seed))
    assert batch.advantage_N is not None
    total, metrics = LOSSES["grpo"](logits, batch, LossConfig(name="grpo", mask_gap=mask_gap, ratio_cap=cap))
    gaps = (batch.logprob_N.double() - logp).tolist()
    want, left_out, k3 = 0.0, 0, 0.0
    for n, (gap, example) in enumerate(zip(gaps, batch.example_N.tolist(), strict=True)):
        of_answer = [g for g, e in zip(gaps, batch.example_N.tolist(), strict=True) if e == example]
        advantage = float(batch.advantage_N[n])
        mean = sum(of_answer) / len(of_answer)
        if abs(mean - mask_gap) < 1e-4:
            return  # on the edge, rounding decides
        k3 += math.exp(-gap) - 1 + gap
        if advantage < 0 and mean > mask_gap:
            left_out += 1
            continue
        want -= min(math.exp(-gap), cap) * advantage * float(logp[n])
    assert float(total.detach()) == pytest.approx(want, rel=1e-3, abs=1e-3)
    assert int(metrics["left_out"]) == left_out
    assert float(metrics["k3"]) == pytest.approx(k3, rel=1e-3, abs=1e-3)
    assert float(metrics["k3"]) >= -1e-5
    assert float(metrics["max_gap"]) == pytest.approx(max(map(abs, gaps)), rel=1e-3)


def test_grpo_pulls_up_what_won_and_pushes_down_what_lost() -> None:
    batch = batch_of([2, 2])
    logits = logits_of(batch)
    batch.logprob_N = logp_of(logits, batch).float()
    batch.advantage_N = torch.tensor([0.5, 0.5, -0.5, -0.5])
    total, _ = LOSSES["grpo"](logits, batch, LossConfig(name="grpo"))
    (grad,) = torch.autograd.grad(total, logits)
    moved = logp_of(logits - 0.1 * grad, batch) - logp_of(logits, batch)
    assert bool((moved[:2] > 0).all())
    assert bool((moved[2:] < 0).all())


def test_every_name_has_a_loss_and_every_maximum_a_metric() -> None:
    assert set(LOSSES) == set(LossConfig.model_fields["name"].annotation.__args__)  # type: ignore[union-attr]
    batch = batch_of([2])
    batch.logprob_N = torch.zeros(2)
    reported = set()
    for name, loss in LOSSES.items():
        total, metrics = loss(logits_of(batch), batch, LossConfig(name=name))  # type: ignore[arg-type]
        assert total.shape == ()
        assert not any(value.requires_grad for value in metrics.values())
        reported |= set(metrics)
    assert reported >= MAXIMA
