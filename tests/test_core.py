"""The engine with many requests at once: the same answers whatever comes and goes, and every option kept to."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from random import Random

import pytest
import torch
from company import bits, run, traffic, under_traffic
from small import SHAPES, changed, chat, model_of, tokens_of

from mull.engine.answer import Answer
from mull.engine.core import Core
from mull.engine.draft import NGrams, Worth
from mull.engine.thinking import MarkIds
from mull.model.transformer import Transformer
from mull.types import Completion, Grammar, Message, Request, Sampling, UserError

STOP = chat().tokenizer.eos
PROMPT = tuple(chat().encode([Message("user", "What is 3 + 7?")]))
PLAIN = tuple(chat().encode([Message("user", "What is 3 + 7?")], thinking=False))


def core_of(name: str = "moe", exact: bool = False, rows: int = 8, **more: int) -> Core:
    model = model_of(SHAPES[name.removesuffix(", packed")], seed=2, std=0.1).exactly(exact)
    return Core(model.packed() if name.endswith(", packed") else model, chat(), rows, **more)


def one(request: Request, core: Core | None = None) -> Completion:
    core = core or core_of()
    core.add("it", request)
    return run(core)["it"]


@pytest.mark.parametrize("name", ["moe", "mla", "llama", "gqa moe", "qwen2, windowed", "olmoe", "llama, packed"])
def test_in_exact_mode_traffic_changes_no_bit(name: str) -> None:
    """Company, chunks, prompts found in the cache, sequences put back for want of pages: nothing of it matters."""
    draw = Random(name)
    asked = traffic(14, draw)
    alone = [one(request, core_of(name, exact=True)) for request in asked]
    put_back = 0
    for chunk, prefill, rows, pages in ((256, 1024, 8, None), (7, 13, 5, 24), (16, 40, 3, 12), (33, 64, 6, 10)):
        core = core_of(name, exact=True, rows=rows, chunk=chunk, prefill=prefill, pages=pages)
        ended = under_traffic(core, asked, draw)
        assert [bits(ended[i]) for i in range(len(asked))] == [bits(answer) for answer in alone]
        assert core.scheduler.pages.used == 0
        assert core.stats()["cached_tokens_total"] > 0
        put_back += core.scheduler.preemptions
    assert put_back


def test_what_a_prompt_shares_is_not_computed_again() -> None:
    core = core_of()
    first = one(Request(tuple(tokens_of(50)), Sampling(max_tokens=3)), core)
    again = one(Request(tuple(tokens_of(50)), Sampling(max_tokens=3)), core)
    other = one(Request((*tokens_of(40), 9, 9), Sampling(max_tokens=3)), core)
    core.add("it", Request(tuple(tokens_of(50)), Sampling(max_tokens=3)), salt="somebody else's")
    apart = run(core)["it"]
    assert [a.cached_tokens for a in (first, again, other, apart)] == [0, 48, 32, 0]
    assert first.tokens == again.tokens == apart.tokens


def test_an_answer_is_part_of_the_next_turns_prompt() -> None:
    core = core_of()
    request = Request(tuple(tokens_of(20)), Sampling(max_tokens=30, ignore_end=True))
    said = one(request, core)
    turn = one(Request((*request.tokens, *said.tokens, 7, 8, 9), Sampling(max_tokens=2)), core)
    assert turn.cached_tokens == 48  # full pages of the 49 that were computed


def test_who_is_cancelled_leaves_its_pages_and_what_it_had() -> None:
    core = core_of()
    core.add("a", Request(tuple(tokens_of(40)), Sampling(max_tokens=30, ignore_end=True)))
    core.add("b", Request(tuple(tokens_of(40, 1)), Sampling(max_tokens=3, ignore_end=True)))
    core.step()
    core.step()
    cancelled = core.cancel("a")
    assert cancelled is not None
    assert (len(cancelled.tokens), cancelled.finish) == (2, "cancelled")
    assert core.cancel("a") is None
    assert core.scheduler.pages.used == 3
    assert list(run(core)) == ["b"]
    assert core.scheduler.pages.used == 0


@pytest.mark.parametrize(("request_", "said"), [
    (Request(()), "empty"), (Request(tuple(tokens_of(128))), "128 tokens; this model holds 128"),
    (Request((7, 300)), "vocabulary of 300"), (Request((-1,)), "vocabulary"),
], ids=["empty", "full", "too large an id", "negative"])  # fmt: skip
def test_impossible_prompts_are_refused(request_: Request, said: str) -> None:
    with pytest.raises(UserError, match=said):
        core_of().add("it", request_)


def test_an_answer_gets_no_more_than_the_cache_holds() -> None:
    core = core_of(pages=5)
    assert len(one(Request(tuple(tokens_of(40)), Sampling(max_tokens=60, ignore_end=True)), core).tokens) == 24
    with pytest.raises(UserError, match="64 tokens; the cache holds 64"):
        core.add("it", Request(tuple(tokens_of(64))))


# guessed ahead


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drafts always, of up to three tokens, whether they pay or not; some of them wrong."""
    monkeypatch.setattr(Worth, "length", lambda self, rows, most: min(3, most))
    propose = NGrams.propose

    def guessed(grams: NGrams, count: int) -> list[int]:
        return [(token + 1) % 300 if len(grams.tokens) % 5 == i else token
                for i, token in enumerate(propose(grams, count) or [9] * count)]  # fmt: skip

    monkeypatch.setattr(NGrams, "propose", guessed)


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("name", ["moe", "llama", "qwen2, windowed"])
def test_in_exact_mode_drafts_change_no_bit(name: str) -> None:
    draw = Random(name)
    asked = traffic(14, draw)
    alone = [one(request, core_of(name, exact=True)) for request in asked]
    for rows, pages in ((8, None), (5, 10)):
        core = core_of(name, exact=True, rows=rows, pages=pages, chunk=30, drafts=True)
        ended = under_traffic(core, asked, draw)
        assert [bits(ended[i]) for i in range(len(asked))] == [bits(answer) for answer in alone]
        assert 0 < core.counts["accepted"] < core.counts["drafted"]
        assert core.scheduler.pages.used == 0


@pytest.mark.usefixtures("eager")
def test_what_repeats_itself_takes_fewer_steps() -> None:
    request = Request(PLAIN, Sampling(max_tokens=60, temperature=0.0, thinking=False, ignore_end=True))
    plain, drafted = core_of(), core_of(drafts=True)
    assert one(request, plain).tokens == one(request, drafted).tokens
    assert drafted.counts["steps"] < plain.counts["steps"] * 0.8


def test_drafts_are_given_up_where_they_do_not_pay() -> None:
    core = core_of(drafts=True)
    for seed in range(4):
        core.add(seed, Request(PLAIN, Sampling(max_tokens=80, temperature=1.5, ignore_end=True, seed=seed)))
    run(core)
    assert core.counts["drafted"] < 0.3 * core.counts["generated_tokens"]


# how answers end


def text_of(request: Request) -> str:
    return one(request).text


def test_stop_texts_end_an_answer_and_are_no_part_of_it() -> None:
    free = Request(PLAIN, Sampling(max_tokens=60, temperature=1.0, thinking=False, ignore_end=True, seed=3))
    whole = text_of(free)
    stop = whole[20:23]
    answer = one(replace(free, sampling=replace(free.sampling, stop=(stop, "never this"))))
    assert answer.text == whole[: whole.index(stop)].strip()
    assert (answer.finish, answer.stopped_by) == ("stop", stop)
    assert len(answer.tokens) < 60


@pytest.mark.parametrize("stop", ["\n\n", "\n\nHuman:", " and", "\n"])
def test_stop_texts_may_begin_with_blanks(stop: str) -> None:
    """Though blanks at an answer's end are no part of it: what is told as it comes is what is told at the end."""
    text = "one\ntwo\n\nHuman: and then"
    ids = chat().tokenizer.encode(text)
    request = Request(PLAIN, Sampling(max_tokens=len(ids), thinking=False, stop=(stop,)))
    answer = Answer("it", request, chat(), MarkIds(chat()), len(ids), listen=True)
    deltas = []
    for token in ids:
        if answer.finish is None:
            answer.hear(token, 0.0)
            deltas.append(answer.delta())
    whole = answer.completion()
    assert whole.text == text[: text.index(stop)].strip()
    assert "".join(delta.text for delta in deltas if delta) == whole.text
    assert (whole.finish, whole.stopped_by) == ("stop", stop)


def test_nothing_but_blanks_ends_at_a_stop_of_blanks() -> None:
    blank = chat().tokenizer.encode("\n")[0]
    sampling = Sampling(max_tokens=40, thinking=False, stop=("\n\n",), logit_bias=((blank, 100.0),))
    answer = one(Request(PLAIN, sampling))
    assert (len(answer.tokens), answer.finish, answer.text) == (2, "stop", "")


def test_what_cannot_be_shown_is_told_in_parts() -> None:
    """A line from the engine's process must not become as long as an answer."""
    blank = chat().tokenizer.encode("\n")[0]
    core = core_of("llama")
    sampling = Sampling(max_tokens=110, logit_bias=((blank, 100.0),), thinking=False)
    core.add("it", Request(PLAIN[:8], sampling), listen=True)
    deltas = []
    while core.busy:
        deltas += [delta for answer in core.step() if (delta := answer.delta()) is not None]
    assert [len(delta.tokens) for delta in deltas] == [64, 46]


def test_stop_texts_do_not_end_a_thought() -> None:
    sampling = Sampling(max_tokens=60, temperature=1.0, ignore_end=True, seed=3, thinking_tokens=30)
    thought = one(Request(PROMPT, sampling)).reasoning
    answer = one(Request(PROMPT, replace(sampling, stop=(thought[5:8],))))
    assert answer.reasoning == thought


def test_stop_tokens_of_a_request() -> None:
    free = Request(PLAIN, Sampling(max_tokens=40, temperature=1.0, thinking=False, seed=5, ignore_end=True))
    token = one(free).tokens[11]
    answer = one(replace(free, sampling=replace(free.sampling, stop_tokens=(token,))))
    assert (answer.finish, answer.stopped_by, answer.tokens[-1]) == ("stop", token, token)
    assert len(answer.tokens) <= 12


def ending(model: Transformer) -> Transformer:
    """One that ends its answers now and then."""
    with torch.no_grad():
        model.head.weight[STOP] = model.head.weight.mean(0)
    return model


def test_the_models_own_end_can_be_ignored() -> None:
    asked = [Request(PLAIN, Sampling(max_tokens=90, temperature=1.2, thinking=False), (i,)) for i in range(8)]
    for ignore in (False, True):
        core = Core(ending(model_of(SHAPES["moe"], std=0.1)), chat(), 8)
        for i, request in enumerate(asked):
            core.add(i, replace(request, sampling=replace(request.sampling, ignore_end=ignore)))
        ended = [answer.finish for answer in run(core).values()]
        assert set(ended) == {"length"} if ignore else "stop" in ended


# how tokens are drawn


def test_alternatives_are_told_with_each_token() -> None:
    answer = one(Request(PROMPT, Sampling(max_tokens=9, temperature=0.0, top_logprobs=3)))
    assert len(answer.alternatives) == len(answer.tokens)
    for token, logprob, others in zip(answer.tokens, answer.logprobs, answer.alternatives, strict=True):
        assert others[0] == (token, logprob)
        assert len(others) == 3
        assert sorted(others, key=lambda pair: -pair[1]) == list(others)


def test_penalties_and_biases_reach_the_draw() -> None:
    same = one(Request(PLAIN, Sampling(max_tokens=40, temperature=0.0, thinking=False, ignore_end=True)))
    assert len(set(same.tokens)) < 30  # it repeats itself
    for sampling in (Sampling(frequency_penalty=2.0), Sampling(presence_penalty=2.0), Sampling(repetition_penalty=9.0)):
        less = replace(sampling, max_tokens=40, temperature=0.0, thinking=False, ignore_end=True)
        assert len(set(one(Request(PLAIN, less)).tokens)) > len(set(same.tokens))
    biased = Sampling(max_tokens=5, temperature=1.0, thinking=False, logit_bias=((17, 100.0),))
    assert one(Request(PLAIN, biased)).tokens == (17,) * 5


@pytest.mark.parametrize("budget", [0, 1, 7, 20])
@pytest.mark.parametrize("closing", ["", "So it is."])
def test_a_budget_is_kept_to_the_token(budget: int, closing: str) -> None:
    sampling = Sampling(max_tokens=40, temperature=1.0, thinking_tokens=budget, closing=closing, seed=1)
    answer = one(Request(PROMPT, sampling))
    assert answer.thinking_tokens == budget
    assert answer.tokens[budget] == chat().tokenizer.end_think
    if budget == 20:
        assert answer.reasoning.endswith(closing)


def test_a_thought_is_kept_open() -> None:
    model = model_of(SHAPES["moe"], std=0.1)
    with torch.no_grad():
        model.head.weight[chat().tokenizer.end_think] *= 3
    for least in (0, 25):
        core = Core(model, chat(), 8)
        for seed in range(6):
            sampling = Sampling(max_tokens=60, temperature=1.5, min_thinking_tokens=least, seed=seed)
            core.add(seed, Request(PROMPT, sampling))
        shortest = min(answer.thinking_tokens for answer in run(core).values())
        assert shortest >= 25 if least else shortest < 25


def test_forms_begin_when_the_thought_has_ended() -> None:
    number = {"type": "object", "properties": {"a": {"type": "integer"}}}
    schema = number | {"required": ["a"], "additionalProperties": False}
    core = core_of()
    forms = {
        "regex": Grammar("regex", "[a-c]{3,6}"), "choice": Grammar("choice", '["yes", "no"]'),
        "schema": Grammar("json_schema", json.dumps(schema)),
    }  # fmt: skip
    for name, form in forms.items():
        for thinking, prompt in ((True, PROMPT), (False, PLAIN)):
            sampling = Sampling(max_tokens=100, temperature=1.0, thinking=thinking, grammar=form, thinking_tokens=9)
            core.add((name, thinking), Request(prompt, sampling), listen=True)
    core.add("free", Request(PLAIN, Sampling(max_tokens=9)))
    ended = run(core)
    for thinking in (True, False):
        assert re.fullmatch("[a-c]{3,6}", ended["regex", thinking].text)
        assert ended["choice", thinking].text in ("yes", "no")
        assert set(json.loads(ended["schema", thinking].text)) == {"a"}
        assert (ended["regex", thinking].thinking_tokens == 9) == thinking
    assert len(ended["free"].tokens) > 0


def test_a_form_that_is_none_is_an_error_of_its_own() -> None:
    core = core_of()
    core.add("good", Request(PLAIN, Sampling(max_tokens=4)))
    core.add("bad", Request(PLAIN, Sampling(grammar=Grammar("ebnf", "root ::= nothing_that_is_there"))))
    told: list[Answer] = []
    while core.busy:
        told += core.step()
    assert {answer.name for answer in told if answer.error} == {"bad"}
    assert any(answer.name == "good" and answer.finish for answer in told)
    assert not core.answers


def test_broken_logits_are_one_answers_error() -> None:
    """A model whose head is damaged for whoever met a certain token."""
    model = model_of(SHAPES["mla"], std=0.1)
    with torch.no_grad():
        model.embed.weight[50] = torch.inf
    core = Core(model, chat(), 4)
    core.add("good", Request((7, 8, 9), Sampling(max_tokens=5, temperature=0.0, logit_bias=((50, -100.0),))))
    core.add("bad", Request((7, 50), Sampling(max_tokens=5)))
    told: list[Answer] = []
    while core.busy:
        told += core.step()
    (bad,) = [answer for answer in told if answer.error]
    assert bad.name == "bad"
    assert "no finite number" in str(bad.error)
    assert len(core.answers) == core.scheduler.pages.used == 0


def test_a_draw_that_fails_costs_others_nothing() -> None:
    core = core_of()
    one(Request(tuple(tokens_of(50)), Sampling(max_tokens=2)), core)
    everything = tuple((token, -float("inf")) for token in range(300))
    core.add("bad", Request(PLAIN, Sampling(logit_bias=everything)))
    core.add("good", Request(tuple(tokens_of(50)), Sampling(max_tokens=9, ignore_end=True)))
    told: list[Answer] = []
    while core.busy:
        told += core.step()
    assert {answer.name for answer in told if answer.error} == {"bad"}
    assert one(Request(tuple(tokens_of(50)), Sampling(max_tokens=2)), core).cached_tokens == 48


def test_rows_come_back_when_memory_has_sufficed_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mull.engine.core.STRAINED", 10)
    core = core_of(rows=8)
    for i in range(8):
        core.add(i, Request(tuple(tokens_of(9, i)), Sampling(max_tokens=30, ignore_end=True)))
    core.step()
    monkeypatch.setattr(core.decoder, "step", lambda *_: (_ for _ in ()).throw(MemoryError()))
    core.step()
    assert core.stats()["rows"] == 4
    assert len(run(core)) == 8
    assert core.stats()["rows"] == 8


def test_one_long_answer_does_not_keep_all_rows_long() -> None:
    core = Core(model_of(changed(SHAPES["llama"], max_length=4096), std=0.1), chat(), 8)
    one(Request(tuple(tokens_of(3000)), Sampling(max_tokens=3, ignore_end=True)), core)
    assert core.decoder is not None
    assert core.decoder.rows.length > 3000
    short = [Request(tuple(tokens_of(20, i)), Sampling(max_tokens=12, ignore_end=True)) for i in range(6)]
    for i, request in enumerate(short):
        core.add(i, request)
    ended = run(core)
    assert core.decoder.rows.length <= 512
    fresh = Core(core.model, chat(), 8)
    assert [ended[i].tokens for i in range(6)] == [one(request, fresh).tokens for request in short]


# told as it comes


def test_deltas_together_are_the_answer() -> None:
    core = core_of()
    sampling = Sampling(max_tokens=60, temperature=1.5, thinking_tokens=20, seed=4, top_logprobs=1, ignore_end=True)
    core.add("it", Request(PROMPT, sampling), listen=True)
    deltas = []
    while core.busy:
        deltas += [delta for answer in core.step() if (delta := answer.delta(version=3)) is not None]
    *pieces, last = deltas
    whole = last.completion
    assert whole is not None
    assert all(piece.completion is None for piece in pieces)
    assert len(pieces) > 5
    assert "".join(d.text for d in deltas) == whole.text
    assert "".join(d.reasoning for d in deltas) == whole.reasoning
    for field in ("tokens", "logprobs", "alternatives"):
        assert sum((getattr(d, field) for d in deltas), ()) == getattr(whole, field)
    assert whole.version == 3
    assert 0 < whole.first_seconds <= whole.seconds
