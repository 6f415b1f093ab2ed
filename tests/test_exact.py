"""The exact mode: a token has the same bits wherever it is computed. Every comparison here is `==`, none is "close"."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from small import MOE, SHAPES, chat, model_of

from mull.data.batch import collate
from mull.data.sources import Draw, from_rollout
from mull.engine.engine import LocalEngine
from mull.model.config import PRESETS, ModelConfig
from mull.model.moe import Trace, fingerprints
from mull.model.transformer import Transformer
from mull.ops.attention import Documents, attend, attend_plain
from mull.ops.exact import KEYS, attend_window_exact
from mull.run import Run
from mull.stages import rl
from mull.stages.rl import INEXACT, RLConfig, limits
from mull.stages.stage import Context
from mull.train.losses import LossConfig
from mull.train.optim import OptimConfig
from mull.train.trainer import TrainConfig, Trainer
from mull.types import Completion, Message, Problem, Request, Rollout, Sampling, UserError

HEADS = [(4, 4, 32, 32), (4, 1, 24, 16), (8, 2, 16, 16), (1, 1, 80, 64), (3, 1, 40, 24)]


@pytest.fixture(params=[1, 2], ids=["one thread", "two threads"])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def requests(cfg: ModelConfig, n: int, seed: int = 0) -> list[Request]:
    """Prompts and answers of all lengths, some prompts equal; greedy, drawn, drawn hot."""
    draw = random.Random(seed)
    made: list[Request] = []
    for i in range(n):
        length = draw.randrange(1, 40)
        prompt = tuple(draw.randrange(min(cfg.vocab, 300)) for _ in range(length))
        if made and i % 3 == 0:
            prompt = made[-1].tokens
        heat = draw.choice([0.0, 1.0, 1.0])
        made.append(Request(prompt, Sampling(max_tokens=draw.randrange(1, 60), temperature=heat), (7, i)))
    return made


def answers(cfg: ModelConfig, asked: Sequence[Request], rows: int, exact: bool = True) -> list[Completion]:
    engine = LocalEngine(model_of(cfg, seed=2, std=0.1).exactly(exact), chat(), max_rows=rows, routes=True)
    return [replace(answer, seconds=0.0, first_seconds=0.0, cached_tokens=0) for answer in engine.generate(asked)]


@pytest.mark.parametrize("heads", HEADS, ids=str)
@pytest.mark.usefixtures("threads")
def test_a_query_over_a_cache_has_the_bits_of_its_whole_document(heads: tuple[int, int, int, int]) -> None:
    h, kv, width, value = heads
    generator = torch.Generator().manual_seed(1)
    lengths = [1, 3, KEYS, 70, 2 * KEYS + 1, 4 * KEYS + 40, 17]
    total = sum(lengths)
    q, k, v = (torch.randn(total, n, w, generator=generator) for n, w in ((h, width), (kv, width), (kv, value)))
    whole = attend(q, k, v, Documents(lengths), 0.2, exact=True)
    start = 0
    for length in lengths:
        mine = slice(start, start + length)
        start += length
        for window in {-(-length // KEYS) * KEYS, 512}:
            store = torch.randn(2, 3, window, kv, max(width, value), generator=generator)  # whatever was there before
            store[0, 1, :length, :, :width], store[1, 1, :length, :, :value] = k[mine], v[mine]
            keys, values = store[0, ..., :width].transpose(1, 2), store[1, ..., :value].transpose(1, 2)
            for at in {0, length // 2, length - 1}:
                query = torch.randn(3, h, 1, width, generator=generator)
                query[1, :, 0] = q[mine][at]
                unseen = (torch.arange(window) > at).expand(3, 1, 1, window)
                one = attend_window_exact(query, keys, values, unseen, 0.2)
                assert torch.equal(one[1, :, 0], whole[mine][at])


@pytest.mark.parametrize("heads", HEADS, ids=str)
def test_exact_attention_computes_attention_and_its_gradient(heads: tuple[int, int, int, int]) -> None:
    h, kv, width, value = heads
    documents = Documents([5, 1, 2 * KEYS + 30, 64, 63])
    both = []
    for form in (partial(attend, exact=True), attend_plain):
        torch.manual_seed(0)
        sizes = ((h, width), (kv, width), (kv, value))
        qkv = [torch.randn(documents.tokens, n, w).double().requires_grad_() for n, w in sizes]
        out = form(*qkv, documents=documents, scale=0.3)
        both.append([out, *torch.autograd.grad((out * torch.randn_like(out)).sum(), qkv)])
    for mine, plain in zip(*both, strict=True):
        torch.testing.assert_close(mine, plain, rtol=1e-5, atol=1e-5)  # attend_plain's softmax is fp32


@pytest.mark.parametrize("name", SHAPES)
def test_company_order_and_rows_change_no_bit_of_an_answer(name: str) -> None:
    cfg = SHAPES[name]
    asked = requests(cfg, 16)
    together = answers(cfg, asked, rows=16)
    assert answers(cfg, asked, rows=5) == together
    assert answers(cfg, asked[::-1], rows=9)[::-1] == together
    assert [answers(cfg, [one], rows=1)[0] for one in asked[:2]] == together[:2]
    assert sum(len(answer.tokens) for answer in together) > 200


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.usefixtures("threads")
def test_the_trainer_recomputes_the_bits_of_the_sampler(name: str) -> None:
    cfg = SHAPES[name]
    asked = requests(cfg, 24, seed=3)
    drawn = answers(cfg, asked, rows=10)
    model = model_of(cfg, seed=2, std=0.1).exactly()
    for part in (slice(0, 24), slice(5, 7)):  # packed among others, and nearly alone
        rolled = [rollout(one, answer) for one, answer in zip(asked[part], drawn[part], strict=True)]
        batch = collate([from_rollout(r) for r in rolled])
        trace = Trace()
        logp_NV = model.logits(model(batch.tokens_T, batch.documents, trace)[batch.predict_N]).log_softmax(dim=-1)
        assert logp_NV.requires_grad
        assert torch.equal(logp_NV.gather(1, batch.target_N[:, None])[:, 0], batch.logprob_N)
        if cfg.experts:
            assert torch.equal(fingerprints(trace.chosen, cfg.experts)[batch.predict_N], batch.route_N)
        else:
            assert batch.route_N is None
    assert scored(model, asked, drawn) == [answer.logprobs for answer in drawn]


def scored(model: Transformer, asked: Sequence[Request], drawn: Sequence[Completion]) -> list[tuple[float, ...]]:
    rows = LocalEngine(model, chat()).score([o.tokens + a.tokens for o, a in zip(asked, drawn, strict=True)])
    return [tuple(row[len(o.tokens) :]) for o, row in zip(asked, rows, strict=True)]


def rollout(request: Request, answer: Completion, advantage: float = 1.0) -> Rollout:
    problem = Problem("gcd", "x", (Message("user", "?"),), "1")
    return Rollout(problem, answer, 1.0, "solved", advantage, 0, "", True, request.tokens)


def test_without_it_there_are_differences_to_find() -> None:
    """Else the tests above would prove nothing: the fast kernels round a token by its company."""
    asked = requests(MOE, 24, seed=3)
    one, other = answers(MOE, asked, rows=24, exact=False), answers(MOE, asked, rows=3, exact=False)
    assert [a.logprobs for a in one] != [a.logprobs for a in other]


@pytest.mark.slow
@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.usefixtures("threads")
def test_models_of_a_real_width_too(name: str) -> None:
    test_shape = PRESETS[name].model_copy(update={"mtp_layers": 0})
    asked = requests(test_shape, 40, seed=5)
    drawn = answers(test_shape, asked, rows=17)
    assert answers(test_shape, asked[::-1], rows=40)[::-1] == drawn
    model = model_of(test_shape, seed=2, std=0.1).exactly()
    assert scored(model, asked, drawn) == [a.logprobs for a in drawn]


def step(model: Transformer, rolled: Sequence[Rollout], exact: bool = True) -> dict[str, float]:
    cfg = RLConfig(name="x", init="y", steps=1, tasks=[])
    train = TrainConfig(loss=LossConfig(name="grpo"))
    trainer = Trainer(model.exactly(exact), train, 1, limits=limits(cfg, exact, bool(model.cfg.experts)))
    metrics = trainer.train_step([collate([from_rollout(r) for r in rolled])])
    assert trainer.step == (trainer._broken(metrics) is None)
    return metrics


@pytest.mark.parametrize("name", ["moe", "mla", "llama", "gqa moe"])
def test_a_step_reports_no_drift_and_is_refused_for_a_single_bit(name: str) -> None:
    cfg = SHAPES[name]
    asked = requests(cfg, 8)
    drawn = answers(cfg, asked, rows=3)
    rolled = [rollout(o, a, (-1.0) ** i) for i, (o, a) in enumerate(zip(asked, drawn, strict=True))]
    metrics = step(model_of(cfg, seed=2, std=0.1), rolled)
    assert metrics["max_gap"] == metrics["k3"] == metrics["left_out"] == metrics.get("rerouted", 0.0) == 0.0
    nudged = list(rolled[0].completion.logprobs)
    nudged[-1] = float(torch.tensor(nudged[-1]).nextafter(torch.tensor(0.0)))
    off = [replace(rolled[0], completion=replace(rolled[0].completion, logprobs=tuple(nudged))), *rolled[1:]]
    assert 0 < step(model_of(cfg, seed=2, std=0.1), off)["max_gap"] < 1e-5
    if cfg.experts:
        routes = (1, *rolled[0].completion.routes[1:])
        off = [replace(rolled[0], completion=replace(rolled[0].completion, routes=routes)), *rolled[1:]]
        assert step(model_of(cfg, seed=2, std=0.1), off)["rerouted"] > 0


def test_a_whole_stage_never_drifts(done: Path, tmp_path: Path) -> None:
    run = Run.open(tmp_path / "r", {}, quiet=True)
    outside = {"taught": str(done / "models" / "taught")}
    ctx = Context(run, 0, torch.device("cpu"), ModelConfig(), outside, exact=True)
    train = TrainConfig(loss=LossConfig(name="grpo"), optim=OptimConfig(lr=3e-3))
    gcd = Draw(task="gcd", size={"values": [1, 3]})
    rl.main(
        RLConfig(
            name="new", init="taught", steps=4, problems=3, samples=4, refills=8, max_tokens=48, rows=7,
            micro_tokens=200, tasks=[gcd], train=train,
        ),
        ctx,
    )  # fmt: skip
    lines = run.metrics("new")
    run.close()
    assert len(lines) == 4
    assert {line[name] for line in lines for name in ("max_gap", "k3", "rerouted", "left_out")} == {0.0}
    assert lines[0]["grad_norm"] > 0


def test_a_broken_promise_says_what_to_do() -> None:
    wanted = limits(RLConfig(name="x", init="y", steps=1, tasks=[]), exact=True, mixture=True)
    assert {limit.most for limit in wanted.values()} == {0.0}
    assert "exactness=fast" in INEXACT


def test_routes_are_sets_of_experts_layer_by_layer() -> None:
    one = [torch.tensor([[0, 3], [1, 2]]), torch.tensor([[2, 1], [0, 3]])]
    turned = [torch.tensor([[3, 0], [2, 1]]), torch.tensor([[1, 2], [3, 0]])]
    swapped = one[::-1]
    assert torch.equal(fingerprints(one, 4), fingerprints(turned, 4))
    assert not torch.equal(fingerprints(one, 4), fingerprints(swapped, 4))
    assert len(set(fingerprints(one, 4).tolist())) == 2


def test_too_few_tokens_are_refused_by_an_assertion() -> None:
    model = model_of(MOE).exactly()
    with pytest.raises(AssertionError):
        model(torch.tensor([1, 2, 3]), Documents([3]))
    with pytest.raises(UserError):
        LocalEngine(model, chat()).score([[]])
