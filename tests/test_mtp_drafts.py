"""Tokens guessed by the model's own MTP layer: the same answers, in fewer steps where it has learnt to, and no longer
asked where it has not."""

from __future__ import annotations

import random
from functools import cache
from random import Random

import pytest
import torch
import torch.nn.functional as F
from company import alone, bits, run, traffic, under_traffic
from small import SHAPES, changed, chat, model_of, tokens_of

from mull.engine import draft
from mull.engine.cache import Pool, Rows, Window
from mull.engine.core import Core
from mull.engine.draft import Costs, NGrams, Outlook
from mull.model.transformer import Transformer
from mull.ops.attention import Documents
from mull.types import Completion, Request, Sampling

NAMES = ["moe", "gqa moe, half rotated, normed"]
PACKED = "dense, packed"
MODELS = SHAPES | {PACKED: SHAPES["llama"].model_copy(update={"mtp_layers": 1})}  # no family on disk has both
CYCLE = 270  # longer than an answer: nothing in it repeats itself


@pytest.fixture(autouse=True)
def by_the_layer_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without guesses from what an answer repeats."""
    monkeypatch.setattr(NGrams, "propose", lambda self, count: [])


@pytest.fixture
def undoubted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked for whether it pays or not: what pays depends on the clock."""
    monkeypatch.setattr(draft, "TRIAL", 1 << 30)


def counting(start: int, count: int) -> list[int]:
    return [5 + (start + i) % CYCLE for i in range(count)]


@cache
def taught(name: str, exact: bool = False) -> Transformer:
    """One that has learnt to count, and to look ahead at it."""
    model, draw = model_of(MODELS[name], seed=2, std=0.1), random.Random(0)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    documents = Documents([64] * 8)
    kept_T = documents.positions_T < 62
    for _ in range(60):
        tokens_T = torch.tensor([token for _ in range(8) for token in counting(draw.randrange(CYCLE), 64)])
        hidden_TD = model(tokens_T, documents)
        states = [hidden_TD, *model.predict_ahead(tokens_T, hidden_TD, documents)]
        losses = [F.cross_entropy(model.logits(state_TD)[kept_T], tokens_T.roll(-1 - ahead)[kept_T])
                  for ahead, state_TD in enumerate(states)]  # fmt: skip
        optimiser.zero_grad()
        torch.stack(losses).sum().backward()
        optimiser.step()
    return ready(model.eval().requires_grad_(False), name, exact)


def ready(model: Transformer, name: str, exact: bool) -> Transformer:
    model.exactly(exact)
    return model.packed() if name == PACKED else model


def counted(core: Core, temperature: float, answers: int = 3) -> dict[object, Completion]:
    for i in range(answers):
        sampling = Sampling(max_tokens=70, temperature=temperature, ignore_end=True, seed=1)
        core.add(i, Request(tuple(counting(50 * i, 9 + 7 * i)), sampling, (i,)))
    return run(core)


@pytest.mark.usefixtures("undoubted")
@pytest.mark.parametrize("learnt", [True, False], ids=["mostly right", "mostly wrong"])
@pytest.mark.parametrize("name", [*NAMES, PACKED])
def test_in_exact_mode_they_change_no_bit(name: str, learnt: bool) -> None:
    """Under company, chunks, shared pages and preemption."""
    draw = Random(name)
    asked = traffic(8, draw)
    model = taught(name, exact=True) if learnt else ready(model_of(MODELS[name], seed=2, std=0.1), name, exact=True)
    assert (model.mtp[0].project.packed is not None) == (name == PACKED)
    plain = [alone(request, Core(model, chat(), 8)) for request in asked]
    for rows, pages, chunk in ((8, None, 256), (5, 10, 7)):
        core = Core(model, chat(), rows, pages, chunk, drafts=True)
        ended = under_traffic(core, asked, draw)
        assert [bits(ended[i]) for i in range(len(asked))] == [bits(answer) for answer in plain]
        wrong = core.counts["drafted"] - core.counts["accepted"]
        assert core.counts["accepted"] > 0 if learnt else wrong > 0
        assert core.scheduler.pages.used == 0


@pytest.mark.usefixtures("undoubted")
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("name", [*NAMES, PACKED])
def test_who_learnt_to_look_ahead_takes_fewer_steps(name: str, temperature: float) -> None:
    model = taught(name, exact=True)
    plain, ahead = Core(model, chat(), 4), Core(model, chat(), 4, drafts=True)
    answers = counted(plain, temperature), counted(ahead, temperature)
    assert all(bits(answers[0][i]) == bits(answers[1][i]) for i in range(3))
    assert ahead.counts["accepted"] > 0.6 * ahead.counts["drafted"]
    assert ahead.counts["steps"] < 0.75 * plain.counts["steps"]


@pytest.mark.usefixtures("undoubted")
def test_chunks_prompts_in_the_cache_and_preemption_leave_no_holes() -> None:
    """Guesses are as good as without: nothing of what the layer must have seen is lacking."""
    for more in ({"chunk": 3, "prefill": 5}, {"pages": 14}):
        core = Core(taught("moe"), chat(), 4, drafts=True, **more)
        for _ in range(2):  # the second time the prompts are in the cache
            counted(core, 0.0)
        assert core.scheduler.preemptions or "chunk" in more
        assert core.counts["accepted"] > 0.9 * core.counts["drafted"] > 100


@pytest.mark.parametrize("name", [*NAMES, "moe, yarn", "moe, two mtp layers"])
def test_over_the_cache_the_layer_sees_what_it_sees_in_training(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its states, step by step, are those of one pass over the whole answer."""
    told: list[tuple[torch.Tensor, torch.Tensor]] = []
    extend = Transformer.extend_ahead

    def heard(
        self: Transformer, next_T: torch.Tensor, hidden_TD: torch.Tensor, positions_T: torch.Tensor, window: Window
    ) -> torch.Tensor:
        states_TD = extend(self, next_T, hidden_TD, positions_T, window)
        told.append((positions_T, states_TD))
        return states_TD

    monkeypatch.setattr(Transformer, "extend_ahead", heard)
    model = model_of(SHAPES[name], seed=2, std=0.1)
    core = Core(model, chat(), 1, chunk=8, prefill=8, drafts=True)
    prompt = tokens_of(21)
    answer = alone(Request(tuple(prompt), Sampling(max_tokens=20, temperature=1.0, ignore_end=True)), core)
    ids = torch.tensor([*prompt, *answer.tokens])
    with torch.inference_mode():
        documents = Documents([len(ids)])
        whole_TD = model.predict_ahead(ids, model(ids, documents), documents)[0]
    seen = set()
    for positions_T, states_TD in told:
        torch.testing.assert_close(states_TD, whole_TD[positions_T], atol=1e-4, rtol=1e-4)
        seen |= set(positions_T.tolist())
    assert seen == set(range(max(seen) + 1))
    assert max(seen) >= len(ids) - 4


def test_models_without_such_layers_are_as_they_were() -> None:
    core = Core(model_of(changed(SHAPES["moe"], mtp_layers=0)), chat(), 2, drafts=True)
    counted(core, 1.0)
    assert core.outlook is None
    assert core.decoder is not None
    assert len(core.decoder.pool.store) == core.model.cfg.layers


def test_without_drafts_there_is_no_layer_more() -> None:
    core = Core(model_of(SHAPES["moe"]), chat(), 2)
    counted(core, 1.0)
    assert core.decoder is not None
    assert (len(core.decoder.pool.store), core.counts["drafted"]) == (core.model.cfg.layers, 0)


def test_the_layer_more_has_pages_and_no_rows() -> None:
    cfg = SHAPES["moe"]
    pool = Pool(cfg, torch.device("cpu"), torch.float32, more=1)
    pool.reserve(3)
    assert len(pool.store) == cfg.layers + 1
    assert pool.store[-1][0].shape == pool.store[0][0].shape
    assert len(Rows(pool).store) == cfg.layers


def test_guesses_that_are_wrong_are_soon_not_asked_for() -> None:
    """Of a model that has learnt nothing: a trial, then no more of it."""
    core = Core(model_of(SHAPES["moe"], seed=2, std=0.1), chat(), 4, drafts=True)
    for i in range(8):
        core.add(i, Request(tuple(tokens_of(9, i)), Sampling(max_tokens=100, temperature=1.0, ignore_end=True), (i,)))
    run(core)
    assert core.outlook is not None
    assert not core.outlook.on
    assert core.outlook.passes <= draft.TRIAL // 4 + 8
    assert core.counts["drafted"] <= draft.TRIAL + 8
    assert not any(answer.followed for answer in core.answers.values())


def test_penalties_are_not_looked_ahead_of() -> None:
    core = Core(model_of(SHAPES["moe"]), chat(), 2, drafts=True)
    alone(Request(tuple(tokens_of(9)), Sampling(max_tokens=20, frequency_penalty=1.0, ignore_end=True)), core)
    assert core.outlook is not None
    assert (core.outlook.passes, core.counts["drafted"]) == (0, 0)


def test_where_memory_does_not_suffice_it_goes_on_without(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = counted(Core(taught("moe", exact=True), chat(), 4), 1.0)
    core = Core(taught("moe", exact=True), chat(), 4, drafts=True)

    def starved(*_: object) -> torch.Tensor:
        raise MemoryError

    monkeypatch.setattr("mull.engine.decoder.Decoder.ahead", starved)
    assert {i: bits(a) for i, a in counted(core, 1.0).items()} == {i: bits(a) for i, a in plain.items()}
    assert core.outlook is None


# by simulation


def simulated(right: float, row: float, price: float, rows: int = 1, steps: int = 20_000) -> float:
    """Passes of so many steps: a step takes 1 and `row` for each row more, a pass `price`."""
    costs, draw = Costs(), random.Random(0)
    outlook = Outlook(costs)
    for _ in range(steps):
        on = outlook.on
        drafts = rows if on and outlook.wanted else 0
        costs.tell(rows + drafts, (1 + row * (rows + drafts)) * draw.uniform(0.95, 1.05))
        for _ in range(rows if on else 0):
            outlook.heard(draw.random() < right)
        outlook.tell(rows, price if on else None)
    return outlook.passes / steps


@pytest.mark.parametrize(("right", "row", "price", "rows"), [(0.7, 0.02, 0.2, 1), (0.9, 0.01, 0.3, 8)])
def test_it_stays_on_where_it_pays(right: float, row: float, price: float, rows: int) -> None:
    assert simulated(right, row, price, rows) == 1


@pytest.mark.parametrize(("right", "row", "price", "rows"), [
    (0.0, 0.0, 0.1, 1), (0.2, 0.02, 0.3, 1), (0.7, 1.0, 0.1, 16), (0.1, 0.01, 0.3, 8),
])  # fmt: skip
def test_it_is_hardly_paid_for_where_it_does_not(right: float, row: float, price: float, rows: int) -> None:
    assert simulated(right, row, price, rows) < 0.04
