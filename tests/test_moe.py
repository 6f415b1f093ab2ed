"""The router, its balance, and the mixture as one layer."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from small import MOE, SHAPES, examples_of, model_of

from mull.data.batch import collate
from mull.model.config import ModelConfig
from mull.model.moe import MoE, Router, Trace, sequence_balance
from mull.ops.attention import Documents
from mull.train.trainer import TrainConfig, Trainer


def router_of(cfg: ModelConfig, seed: int = 0) -> Router:
    router, g = Router(cfg), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        router.weight.normal_(0, 0.3, generator=g)
        router.bias.normal_(0, 0.2, generator=g)
    return router


def choice_of(scores: list[float], bias: list[float], cfg: ModelConfig) -> tuple[list[int], list[float]]:
    """The published rule, token by token, in plain Python."""
    choice = [s + b for s, b in zip(scores, bias, strict=True)]
    size = cfg.experts // cfg.groups
    rank = [sum(sorted(choice[g * size : (g + 1) * size])[-2:]) for g in range(cfg.groups)]
    kept = sorted(range(cfg.groups), key=lambda g: -rank[g])[: cfg.active_groups]
    allowed = [e for e in range(cfg.experts) if e // size in kept]
    best = sorted(allowed, key=lambda e: -choice[e])[: cfg.active_experts]
    weights = [scores[e] for e in best]
    total = sum(weights) + 1e-20 if cfg.renormalise else 1.0
    return best, [w / total * cfg.router_scale for w in weights]


@settings(deadline=None, max_examples=30)
@given(
    st.sampled_from([(8, 1, 1, 2), (8, 4, 2, 2), (8, 4, 2, 4), (8, 2, 1, 3), (12, 3, 3, 5)]), st.booleans(),
    st.integers(0, 10_000),
)  # fmt: skip
def test_routing_is_the_published_rule(sizes: tuple[int, int, int, int], renormalise: bool, seed: int) -> None:
    experts, groups, active_groups, active = sizes
    cfg = MOE.model_copy(
        update={
            "experts": experts, "groups": groups, "active_groups": active_groups, "active_experts": active,
            "renormalise": renormalise, "router_scale": 2.5,
        }
    )  # fmt: skip
    router = router_of(cfg, seed)
    x = torch.randn(9, cfg.width, generator=torch.Generator().manual_seed(seed))
    expert_TK, weight_TK, score_TE = router(x)
    torch.testing.assert_close(score_TE, (x @ router.weight.T).sigmoid())
    for token in range(9):
        best, weights = choice_of(score_TE[token].tolist(), router.bias.tolist(), cfg)
        got = dict(zip(expert_TK[token].tolist(), weight_TK[token].tolist(), strict=True))
        assert got == pytest.approx(dict(zip(best, weights, strict=True)), rel=1e-4)


def test_the_bias_chooses_but_does_not_weigh() -> None:
    cfg = MOE
    router, x = router_of(cfg), torch.randn(20, cfg.width)
    router.bias.zero_()
    router.bias[3] = 10.0
    expert_TK, weight_TK, score_TE = router(x)
    assert bool((expert_TK == 3).any(dim=1).all())
    assert float(weight_TK.detach().max()) < 1.0
    weight_TK.sum().backward()
    assert router.weight.grad is not None
    assert not router.bias.requires_grad
    torch.testing.assert_close(weight_TK.sum(dim=1), torch.ones(20))
    assert score_TE.dtype == torch.float32


def test_the_bias_stays_fp32_and_in_the_state_dict() -> None:
    assert MoE(MOE).state_dict()["router.bias"].dtype == torch.float32


def balance_plain(score_TE: torch.Tensor, expert_TK: torch.Tensor, lengths: list[int]) -> float:
    """Equations 17-20 of the DeepSeek-V3 report, one document after another."""
    total, start, experts, chosen = 0.0, 0, score_TE.shape[1], expert_TK.shape[1]
    for n in lengths:
        scores, picked = score_TE[start : start + n], expert_TK[start : start + n]
        for e in range(experts):
            f = experts / (chosen * n) * float((picked == e).sum())
            p = float((scores[:, e] / scores.sum(dim=1)).mean())
            total += f * p
        start += n
    return total / len(lengths)


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=5), st.integers(0, 1000))
def test_sequence_balance_is_the_published_sum(lengths: list[int], seed: int) -> None:
    router = router_of(MOE, seed)
    x = torch.randn(sum(lengths), MOE.width, generator=torch.Generator().manual_seed(seed))
    expert_TK, _, score_TE = router(x)
    got = sequence_balance(score_TE, expert_TK, Documents(lengths))
    assert float(got.detach()) == pytest.approx(balance_plain(score_TE.detach(), expert_TK, lengths), rel=1e-4)


def test_sequence_balance_is_one_when_even_and_falls_as_training_evens_out() -> None:
    even = torch.full((8, 8), 0.5)
    picked = torch.stack((torch.arange(8), (torch.arange(8) + 1) % 8), dim=1)
    assert float(sequence_balance(even, picked, Documents([8]))) == pytest.approx(1.0)
    piled = torch.zeros(8, 2, dtype=torch.long)
    piled[:, 1] = 1
    peaked = torch.full((8, 8), 0.1)
    peaked[:, :2] = 0.9
    assert float(sequence_balance(peaked, piled, Documents([8]))) > 2


def test_balance_has_a_gradient_against_the_crowd() -> None:
    """Lowering the loss lowers the score of the expert that all tokens chose."""
    score = torch.full((6, 4), 0.5, requires_grad=True)
    picked = torch.zeros(6, 1, dtype=torch.long)
    sequence_balance(score, picked, Documents([6])).backward()
    assert score.grad is not None
    assert bool((score.grad[:, 0] > 0).all())
    assert bool((score.grad[:, 1:] < 0).all())


def test_bias_moves_against_the_load_and_evens_it_out() -> None:
    """One step moves each bias by exactly the speed, down where overloaded; many steps even out a skewed router."""
    model = model_of(MOE.model_copy(update={"mtp_layers": 0}))
    moes = [m for m in model.modules() if isinstance(m, MoE)]
    with torch.no_grad():
        for moe in moes:
            moe.router.bias.zero_()
            moe.router.bias[0] = 0.5
    trainer = Trainer(model, TrainConfig(balance_speed=0.01), 100)
    trainer.optimisers = []  # only the balance moves
    batch = collate(examples_of(40, 40, 40))
    before = [moe.router.bias.clone() for moe in moes]
    first = trainer.train_step([batch])["load_max"]
    for moe, old, load in zip(moes, before, trainer.last_load, strict=True):
        moved = moe.router.bias - old
        mean = 1 / MOE.experts
        torch.testing.assert_close(moved, 0.01 * (mean - load).sign(), atol=1e-6, rtol=0)
        assert float(load.sum()) == pytest.approx(1.0)
    for _ in range(80):
        last = trainer.train_step([batch])["load_max"]
    assert first > 3
    assert last < 1.6


def test_the_trace_counts_every_choice() -> None:
    model, trace = model_of(SHAPES["moe, groups"]), Trace()
    batch = collate(examples_of(11, 5))
    hidden = model(batch.tokens_T, batch.documents, trace)
    model.predict_ahead(batch.tokens_T, hidden, batch.documents, trace)
    assert len(trace.load) == len(trace.balance) == len(trace.chosen) == 3  # two mixtures and the MTP layer's
    for load, chosen in zip(trace.load, trace.chosen, strict=True):
        assert int(load.sum()) == 16 * 2
        assert load.tolist() == [int((chosen == e).sum()) for e in range(8)]


@pytest.mark.parametrize(
    "wrong",
    [
        {"active_experts": 9}, {"groups": 3}, {"groups": 2, "active_groups": 3}, {"groups": 8, "active_groups": 4},
        {"groups": 4, "active_groups": 1, "active_experts": 3}, {"rope_dim": 7}, {"kv_rank": 0, "kv_heads": 3},
        {"kv_rank": 0, "experts": 0}, {"kv_rank": 0, "dense_layers": 3},  # with MTP layers, that no such family has
    ],
    ids=str,
)  # fmt: skip
def test_impossible_configurations_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValidationError):
        ModelConfig(**{**MOE.model_dump(), "kv_heads": 2, **wrong})


def test_under_autocast_router_and_head_still_multiply_in_fp32() -> None:
    """Equal to the last bit, gradients too; a product that is left to autocast is not."""
    model = model_of(MOE).train()
    router = next(m for m in model.modules() if isinstance(m, Router))
    x = torch.randn(40, MOE.width, generator=torch.Generator().manual_seed(0))

    def results(cast: bool) -> list[torch.Tensor]:
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=cast):
            expert, weight, score = router(x)
            logits = model.logits(x)
            assert ((x @ x.T).dtype == torch.bfloat16) == cast
        (weight.sum() + score.square().sum() + logits.square().sum()).backward()
        assert router.weight.grad is not None
        assert model.head.weight.grad is not None
        return [expert, weight, score, logits, router.weight.grad.clone(), model.head.weight.grad.clone()]

    for a, b in zip(results(False), results(True), strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)
