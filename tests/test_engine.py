"""The engine on real models: batching changes nothing, the cache changes nothing, log-probabilities are the model's."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch
from scipy.stats import chisquare
from small import SHAPES, chat, model_of, tokens_of

from mull.engine.engine import LocalEngine
from mull.model.transformer import Transformer
from mull.ops.attention import Documents
from mull.types import Completion, Request, Sampling, UserError


def engine_of(name: str, rows: int = 256) -> LocalEngine:
    return LocalEngine(model_of(SHAPES[name], seed=2, std=0.1), chat(), max_rows=rows)


def requests(count: int, temperature: float = 1.0, seed: int = 0) -> list[Request]:
    """Prompts of many lengths, some shared by neighbours, answers of many lengths."""
    return [
        Request(
            tuple(tokens_of(3 + (i // 2) * 7 % 40, i // 2)),
            Sampling(max_tokens=1 + i * 5 % 23, temperature=temperature, seed=seed),
            (4, i),
        )
        for i in range(count)
    ]  # fmt: skip


def drawn(answers: list[Completion]) -> list[tuple[tuple[int, ...], str]]:
    return [(a.tokens, a.finish) for a in answers]


@pytest.mark.parametrize("name", ["moe", "mla", "qwen2", "gqa moe", "moe, yarn"])
def test_batching_gives_the_tokens_of_one_by_one(name: str) -> None:
    """All at once, through few rows (so sequences join and leave), and alone: the same tokens."""
    asked = requests(14)
    alone = [engine_of(name).generate([r])[0] for r in asked]
    for rows in (256, 5, 2):
        together = engine_of(name, rows).generate(asked)
        assert drawn(together) == drawn(alone)
        for a, b in zip(together, alone, strict=True):
            assert a.logprobs == pytest.approx(b.logprobs, abs=1e-4)


def test_a_draw_does_not_depend_on_company_or_order() -> None:
    asked = requests(8)
    engine = engine_of("moe")
    straight, back = engine.generate(asked), engine.generate(asked[::-1])[::-1]
    with_others = engine.generate([*requests(5, 0.7, seed=9), *asked, *requests(3, 0.0)])[5:13]
    assert drawn(straight) == drawn(back) == drawn(with_others)


def test_the_key_and_the_seed_decide_the_draw() -> None:
    (first, *_) = requests(1)
    first = replace(first, sampling=replace(first.sampling, max_tokens=12))
    other_key, other_seed = replace(first, key=(4, 1)), replace(first, sampling=replace(first.sampling, seed=1))
    a, b, c, d = engine_of("moe").generate([first, other_key, other_seed, first])
    assert a.tokens == d.tokens
    assert len({a.tokens, b.tokens, c.tokens}) == 3


@pytest.mark.parametrize("name", ["moe", "moe, groups", "mla, values wider than keys", "llama", "gqa moe", "moe, yarn"])
def test_sampler_and_scorer_agree(name: str) -> None:
    """Decoding token by token over the cache against one pass over whole documents: what RL's update rests on."""
    engine = engine_of(name, rows=6)
    asked = requests(12)
    answers = engine.generate(asked)
    scores = engine.score([[*r.tokens, *a.tokens] for r, a in zip(asked, answers, strict=True)])
    for request, answer, score in zip(asked, answers, scores, strict=True):
        assert score[0] == 0.0
        assert answer.logprobs == pytest.approx(score[len(request.tokens) :], abs=1e-4)


@pytest.mark.parametrize("name", ["moe", "mla", "qwen2", "gqa moe"])
def test_greedy_equals_full_recomputation(name: str) -> None:
    engine = engine_of(name)
    prompt = tokens_of(9)
    (answer,) = engine.generate([Request(tuple(prompt), Sampling(max_tokens=30, temperature=0.0))])
    ids = list(prompt)
    stops = chat().tokenizer.stop_ids
    while len(ids) < len(prompt) + 30 and not (len(ids) > len(prompt) and ids[-1] in stops):
        with torch.inference_mode():
            hidden = engine.model(torch.tensor(ids), Documents([len(ids)]))
            ids.append(int(engine.model.logits(hidden[-1:]).argmax()))
    assert list(answer.tokens) == ids[len(prompt) :]


def test_scores_are_log_probabilities_of_each_row_alone() -> None:
    engine = engine_of("moe")
    rows = [tokens_of(n, n) for n in (1, 12, 5)]
    together = engine.score(rows)
    for row, score in zip(rows, together, strict=True):
        assert engine.score([row])[0] == pytest.approx(score, abs=1e-5)
        with torch.inference_mode():
            logp = engine.model.logits(engine.model(torch.tensor(row), Documents([len(row)]))).double().log_softmax(-1)
        want = [0.0] + [float(logp[i, token]) for i, token in enumerate(row[1:])]
        assert score == pytest.approx(want, abs=1e-4)
    assert engine.score([]) == []


def test_first_tokens_follow_the_models_distribution() -> None:
    """Through the whole engine: 4,000 samples of one prompt, grouped by probability, against the softmax."""
    engine = engine_of("moe")
    prompt = tuple(tokens_of(6))
    n = 4000
    answers = engine.generate([Request(prompt, Sampling(max_tokens=1), (i,)) for i in range(n)])
    with torch.inference_mode():
        p = engine.model.logits(engine.model(torch.tensor(prompt), Documents([6]))[-1]).double().softmax(-1)
    p = p / p.sum()
    counts = Counter(a.tokens[0] for a in answers)
    order = p.argsort(descending=True).tolist()
    bins = [order[i : i + 15] for i in range(0, len(order), 15)]
    seen = [sum(counts[t] for t in part) for part in bins]
    assert chisquare(seen, [float(p[part].sum()) * n for part in bins]).pvalue > 1e-4


def test_stop_tokens_end_an_answer_and_are_part_of_it() -> None:
    engine = engine_of("mla")
    stop = chat().tokenizer.eos
    with torch.no_grad():
        engine.model.head.weight.zero_()
        engine.model.norm.weight.fill_(1.0)
        engine.model.head.weight[stop] = 0.05  # drawn now and then
    answers = engine.generate([Request((7, 8), Sampling(max_tokens=60, temperature=1.0, seed=i)) for i in range(300)])
    assert {a.finish for a in answers} <= {"stop", "length"}
    for a in answers:
        at = [i for i, t in enumerate(a.tokens) if t in chat().tokenizer.stop_ids]
        assert at == ([len(a.tokens) - 1] if a.finish == "stop" else [])
        assert (len(a.tokens) == 60) or a.finish == "stop"
    assert sum(a.finish == "stop" for a in answers) > 30


@pytest.mark.parametrize("room", [1, 2, 7])
def test_a_prompt_near_max_length_gets_the_room_that_is_left(room: int) -> None:
    engine = engine_of("moe")
    limit = engine.model.cfg.max_length
    prompt = tuple(tokens_of(limit - room))
    short = Request(tuple(tokens_of(4)), Sampling(max_tokens=9, temperature=0.0))
    long, other = engine.generate([Request(prompt, Sampling(max_tokens=50, temperature=0.0)), short])
    assert len(long.tokens) == room
    assert long.finish == "length"
    assert drawn([other]) == drawn(engine.generate([short]))


@pytest.mark.parametrize(
    ("prompt", "said"),
    [((), "empty"), (tuple([7] * 128), "128 tokens"), ((7, 300), "vocabulary of 300"), ((-1,), "vocabulary")],
    ids=["empty", "full", "too large an id", "negative"],
)
def test_impossible_prompts_are_refused_before_anything_runs(prompt: tuple[int, ...], said: str) -> None:
    with pytest.raises(UserError, match=said):
        engine_of("mla").generate([*requests(2), Request(prompt)])


def test_no_requests_no_answers() -> None:
    assert engine_of("mla").generate([]) == []


def test_finished_answers_are_told_as_they_come() -> None:
    told: list[int] = []
    asked = requests(9)
    answers = engine_of("mla", 4).generate(asked, lambda i, a: told.append(i))
    assert sorted(told) == list(range(9))
    assert [a.prompt_tokens for a in answers] == [len(r.tokens) for r in asked]
    assert told != sorted(told)  # short answers overtake


def test_new_weights_change_answers_and_stamp_the_version() -> None:
    engine, other = engine_of("moe"), model_of(SHAPES["moe"], seed=8, std=0.1)
    asked = requests(6)
    before = engine.generate(asked)
    engine.load(other.state_dict(), 7)
    after = engine.generate(asked)
    assert drawn(after) == drawn(LocalEngine(other, chat()).generate(asked))
    assert drawn(after) != drawn(before)
    assert {a.version for a in before} == {0}
    assert {a.version for a in after} == {7}


def test_loading_copies_so_that_training_on_does_not_reach_the_engine() -> None:
    trained = model_of(SHAPES["moe"], seed=8, std=0.1)
    engine = engine_of("moe")
    engine.load(trained.state_dict(), 1)
    before = drawn(engine.generate(requests(4)))
    with torch.no_grad():
        for p in trained.parameters():
            p.add_(0.3)
    assert drawn(engine.generate(requests(4))) == before


@pytest.mark.parametrize("thinking", [True, False])
@pytest.mark.parametrize("seed", [0, 1, 2, 7, 17])
def test_a_stream_is_the_same_answer_in_pieces(thinking: bool, seed: int) -> None:
    """Random bytes from a random model: multi-byte characters come in halves, and no piece may be lost or repeated."""
    engine = engine_of("moe")
    request = Request(tuple(tokens_of(5)), Sampling(max_tokens=60, temperature=1.5, thinking=thinking, seed=seed))
    with torch.no_grad():  # so that thoughts do end
        engine.model.head.weight[chat().tokenizer.end_think] *= 1.5
    (whole,) = engine.generate([request])
    *pieces, last = engine.stream(request)
    assert last.completion is not None
    assert last.completion.tokens == whole.tokens
    assert all(piece.completion is None for piece in pieces)
    every = [*pieces, last]
    assert "".join(p.reasoning for p in every).strip("\n") == whole.reasoning
    assert "".join(p.text for p in every).strip() == whole.text
    assert all(p.text or p.reasoning for p in pieces)


def test_a_broken_off_stream_leaves_the_engine_usable() -> None:
    engine = engine_of("mla")
    for _ in zip(range(3), engine.stream(Request((7, 8), Sampling(max_tokens=40))), strict=False):
        pass
    assert len(engine.generate(requests(2))) == 2


def test_the_engine_reads_no_mtp_layers() -> None:
    """The answering model is the same with and without them."""
    model = model_of(SHAPES["moe"], seed=2, std=0.1)
    bare = Transformer(model.cfg.model_copy(update={"mtp_layers": 0}))
    engine = LocalEngine(bare, chat())
    engine.load(model.state_dict(), 0)
    assert drawn(engine.generate(requests(4))) == drawn(engine_of("moe").generate(requests(4)))
