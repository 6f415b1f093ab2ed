"""mull from Python, on the tiny run's models."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small import GQA, changed, chat, model_of

import mull
from mull.api import Model, Options
from mull.locate import find_run, locate
from mull.model.weights import save_model
from mull.types import Completion, Delta, Grammar, Message, UserError

QUESTION = "Find the Greatest Common Divisor (GCD) of these numbers: 2, 3. Give only the GCD as your final answer."


@pytest.fixture(scope="module")
def model(done: Path) -> Model:
    return mull.load(f"{done}:taught")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A model whose every number was drawn; it says anything."""
    folder = tmp_path_factory.mktemp("drawn")
    save_model(folder, model_of(changed(GQA, max_length=2048)), chat())
    return Model.load(folder, "cpu")


def said(completion: Completion) -> tuple[object, ...]:
    return completion.tokens, completion.text, completion.reasoning, completion.finish


def test_importing_mull_loads_nothing():
    code = "import sys, mull; print(sorted({'torch', 'pydantic', 'rich'} & set(sys.modules)), mull.__version__)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == f"[] {mull.__version__}\n"


# generating


def test_a_text_gives_one_answer_and_a_list_gives_as_many(model: Model):
    one = model.generate(QUESTION, max_tokens=40)
    assert isinstance(one, Completion)
    assert one.finish == "stop"
    assert one.reasoning
    assert said(model.generate([Message("user", QUESTION)], max_tokens=40)) == said(one)
    assert said(model.generate([{"role": "user", "content": QUESTION}], max_tokens=40)) == said(one)
    many = model.generate([QUESTION, "hi", QUESTION], max_tokens=40)
    assert said(many[0]) == said(many[2]) == said(one)
    assert model.generate([[Message("user", QUESTION)]], max_tokens=40)[0].text == one.text
    assert model.generate([]) == []


def test_without_thinking_there_is_no_reasoning(model: Model):
    assert model.generate(QUESTION, thinking=False).reasoning == ""


def test_draws_depend_on_the_seed_and_the_place_in_the_list(model: Model):
    same = [model.generate("hi", temperature=1.0, max_tokens=30, seed=s).tokens for s in (1, 1, 2)]
    assert same[0] == same[1] != same[2]
    first, second = model.generate(["hi", "hi"], temperature=1.0, max_tokens=30, seed=1)
    assert first.tokens == same[0] != second.tokens


def test_a_stream_is_the_same_answer_in_pieces(model: Model):
    whole = model.generate(QUESTION, max_tokens=40)
    deltas = list(model.stream(QUESTION, max_tokens=40))
    assert all(isinstance(delta, Delta) for delta in deltas)
    assert "".join(delta.reasoning for delta in deltas) == whole.reasoning
    assert "".join(delta.text for delta in deltas) == whole.text
    assert [delta.completion is not None for delta in deltas] == [False] * (len(deltas) - 1) + [True]
    assert deltas[-1].completion is not None
    assert said(deltas[-1].completion) == said(whole)


def test_scores_are_the_log_probabilities_of_what_was_drawn(model: Model):
    answer = model.generate("hi", temperature=1.0, max_tokens=20)
    prompt = model.chat.encode([Message("user", "hi")])
    scores = model.score([*prompt, *answer.tokens])
    assert scores[0] == 0
    assert scores[len(prompt) :] == pytest.approx(list(answer.logprobs), abs=1e-4)
    rows = model.score([prompt, [*prompt, *answer.tokens]])
    assert rows[1] == pytest.approx(scores, abs=1e-4)
    assert model.score([]) == []


def test_an_answer_has_a_price(model: Model):
    answer = model.generate("hi", max_tokens=20)
    bill = model.price(answer)
    assert bill.usd == pytest.approx(answer.seconds / 3600 * 0.10)
    assert bill.tokens == len(answer.tokens)
    assert bill.flops > 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_tokens": 0}, "max_tokens must be at least 1"),
        ({"temperature": -1.0}, "temperature must be"),
        ({"temperature": float("inf")}, "temperature must be"),
        ({"top_p": 0.0}, "top_p must be above 0"),
        ({"top_k": -1}, "top_k must be 0"),
        ({"min_p": 1.5}, "min_p must be between 0 and 1, not 1.5"),
        ({"repetition_penalty": 0.0}, "repetition_penalty must be above 0"),
        ({"presence_penalty": 3}, "presence_penalty must be between -2 and 2"),
        ({"frequency_penalty": float("nan")}, "frequency_penalty must be between"),
        ({"top_logprobs": 21}, "top_logprobs must be between 0 and 20"),
        ({"thinking_tokens": -1}, "thinking_tokens must be 0"),
        ({"min_thinking_tokens": -1}, "min_thinking_tokens must be 0"),
        ({"max_tokens": 1.5}, "max_tokens must be at least 1, not 1.5"),
        ({"max_tokens": True}, "max_tokens must be at least 1, not True"),
        ({"seed": "x"}, "seed must be a whole number"),
        ({"thinking": 1}, "thinking must be True or False"),
        ({"closing": 1}, "closing must be text"),
        ({"grammar": {"type": "object"}}, "grammar must be a mull.types.Grammar"),
        ({"effort": "much"}, "effort must be one of none, minimal, low, medium, high, xhigh, max, not much"),
        ({"effort": 3}, "effort must be one of none, minimal"),
        ({"stop": ["a", ""]}, "stop must be a text that is not empty"),
        ({"stop": 5}, "stop must be a text"),
        ({"stop_tokens": [300]}, "stop_tokens must be token ids below 300"),
        ({"stop_tokens": 5}, "stop_tokens must be token ids"),
        ({"logit_bias": {300: 1.0}}, "logit_bias must be token ids below 300"),
        ({"logit_bias": {3: 101}}, "between -100 and 100"),
        ({"logit_bias": [3]}, "logit_bias must be token ids"),
        ({"tools": [{"name": ""}]}, "A tool is"),
        ({"temprature": 1.0}, "There is no option 'temprature'; is 'temperature' meant"),
        ({"zzz": 1}, "There is no option 'zzz'."),
    ],
)
def test_options_out_of_range_are_refused(drawn: Model, options: dict, said: str):
    with pytest.raises(UserError, match=said):
        drawn.generate("hi", **options)


def test_streams_say_what_whole_answers_say(drawn: Model):
    """To the letter: half characters, blanks, marks wherever a model puts them, stop texts."""
    for seed in range(9):
        heat = {"temperature": 1.3, "max_tokens": 40, "seed": seed, "stop": ["a", "1 "], "thinking": seed % 3 > 0}
        whole = drawn.generate("hi", **heat)  # type: ignore[arg-type]
        deltas = list(drawn.stream("hi", **heat))  # type: ignore[arg-type]
        assert "".join(delta.reasoning for delta in deltas) == whole.reasoning
        assert "".join(delta.text for delta in deltas) == whole.text
        assert deltas[-1].completion is not None and said(deltas[-1].completion) == said(whole)


def test_every_option_changes_what_is_drawn(drawn: Model):
    """Each of them, against the same answer without it."""
    heat: dict[str, object] = {"temperature": 1.5, "max_tokens": 30, "seed": 3}
    plain = drawn.generate("hi", **heat)  # type: ignore[arg-type]
    for option, value in (
        ("seed", 4), ("temperature", 0.0), ("top_p", 0.3), ("top_k", 1), ("min_p", 0.9), ("repetition_penalty", 5.0),
        ("presence_penalty", 2.0), ("frequency_penalty", 2.0), ("logit_bias", {plain.tokens[0]: -100}),
        ("thinking", False), ("effort", "none"), ("thinking_tokens", 1), ("max_tokens", 3),
        ("min_thinking_tokens", 25), ("stop_tokens", [plain.tokens[1]]),
    ):  # fmt: skip
        other = drawn.generate("hi", **{**heat, option: value})  # type: ignore[arg-type]
        assert other.tokens != plain.tokens, option


def test_an_answer_ends_at_a_stop_text_and_tells_alternatives(drawn: Model):
    whole = drawn.generate(QUESTION, max_tokens=40, thinking=False, top_logprobs=2)
    assert len(whole.alternatives) == len(whole.tokens)
    assert all(len(some) == 2 for some in whole.alternatives)
    stop = whole.text[0]
    cut = drawn.generate(QUESTION, max_tokens=40, thinking=False, stop=stop)
    assert (cut.text, cut.stopped_by, cut.finish) == ("", stop, "stop")


def test_a_thought_keeps_its_budget(drawn: Model):
    answer = drawn.generate(QUESTION, max_tokens=40, thinking_tokens=2, closing="!")
    assert answer.thinking_tokens <= 2
    assert answer.tokens[answer.thinking_tokens] == drawn.chat.tokenizer.end_think
    short = drawn.generate(QUESTION, max_tokens=40, effort="low", temperature=1.5)
    assert short.thinking_tokens <= 30


def test_an_answer_has_the_form_that_is_asked_for_behind_its_thought(drawn: Model):
    pytest.importorskip("xgrammar")
    either = Grammar("choice", '["yes", "no"]')
    answer = drawn.generate("hi", temperature=1.0, max_tokens=40, thinking_tokens=5, grammar=either)
    assert answer.text in ("yes", "no")
    assert answer.reasoning not in ("", "yes", "no")


WEATHER = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}


def test_calls_of_tools_are_found_in_an_answer_and_answered(drawn: Model):
    prompt = drawn.chat.encode([Message("user", "hi")], tools=[WEATHER])
    answer = drawn.generate("hi", max_tokens=5, tools=[WEATHER])
    assert answer.prompt_tokens == len(prompt) > 100
    call = '<tool_call>{"name": "weather", "arguments": {"city": "Köln"}}</tool_call>'
    turn = drawn.message(Completion((), (), "stop", f"I look.\n{call}", "hm"), [WEATHER])
    assert (turn.role, turn.content, turn.reasoning) == ("assistant", "I look.", "hm")
    (made,) = turn.tool_calls
    assert made["function"] == {"name": "weather", "arguments": '{"city": "Köln"}'}
    assert drawn.message(Completion((), (), "stop", call), ()).content == call
    talk = [Message("user", "hi"), turn, Message("tool", "", tool_call_id=made["id"])]
    assert drawn.generate(talk, max_tokens=5, tools=[WEATHER]).tokens
    plain = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": None, "tool_calls": [made]},
             {"role": "tool", "content": "", "tool_call_id": made["id"]}]  # fmt: skip
    assert drawn.generate(plain, max_tokens=5, tools=[WEATHER]).tokens


def test_prompts_that_make_no_sense_are_refused(model: Model):
    for prompt, why in (
        ("", "empty"),
        ([Message("user", " ")], "empty"),
        ("1 " * 200, "this model holds 128"),
        ([Message("robot", "hi")], "There is no role 'robot'"),
        ([{"role": "user"}], "A message lacks 'content'"),
    ):
        with pytest.raises(UserError, match=why):
            model.generate(prompt)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="outside this model's vocabulary of 300"):
        model.score([300])


def test_an_exact_model_repeats_itself_to_the_last_bit_in_any_list(done: Path):
    model = mull.load(f"{done}:taught", exact=True)
    prompts = [QUESTION, "What is 2 + 2?", "gcd of 12 and 18?"]
    together = model.generate(prompts, max_tokens=30)
    for prompt, answer in zip(prompts, together, strict=True):
        alone = model.generate(prompt, max_tokens=30)
        assert (alone.tokens, alone.logprobs) == (answer.tokens, answer.logprobs)
        ids = [*model.chat.encode([Message("user", prompt)]), *answer.tokens]
        assert tuple(model.score(ids)[-len(answer.tokens) :]) == answer.logprobs


# loading


def test_a_run_stands_for_its_result(done: Path):
    assert mull.load(done).folder == done / "models" / "student"
    assert mull.load(str(done / "models" / "taught")).config.experts == 4


def test_what_a_model_argument_may_be(done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    result = locate(done)
    assert (result.name, result.run) == ("student", done)
    assert locate(f"{done}:base").folder == locate(done / "models" / "base").folder
    assert locate(done / "models" / "base").run == done.resolve()
    shutil.copytree(done / "models" / "base", tmp_path / "alone")
    assert locate(tmp_path / "alone").run is None
    monkeypatch.chdir(tmp_path / "alone")
    assert locate(".").name == "alone"
    for wrong, why in (
        (f"{done}:bas", "Did you mean 'base'?"),
        (done / "report.json", "is a file; give the directory of a model or run"),
        (tmp_path, "neither a model nor a run"),
        (tmp_path / "alon", "There is no model or run at .*alon. Did you mean 'alone'?"),
        (tmp_path / "no" / "where", "There is no model or run at"),
        (f"{tmp_path}:base", "holds no run"),
    ):
        with pytest.raises(UserError, match=why):
            locate(wrong)
    with pytest.raises(UserError, match="holds no run"):
        find_run(tmp_path / "alone")


def test_a_run_with_a_broken_result_says_so(done: Path, tmp_path: Path):
    run = shutil.copytree(done, tmp_path / "run")
    (run / "models" / "result.json").write_text("{")
    with pytest.raises(UserError, match=r"result.json cannot be read .*; name a model"):
        locate(run)


@pytest.mark.gpu
def test_a_gpu_gives_nearly_the_same_scores(done: Path, model: Model):
    assert torch.cuda.is_available()
    prompt = model.chat.encode([Message("user", QUESTION)])
    there = mull.load(f"{done}:taught", device="cuda")
    assert there.score(prompt) == pytest.approx(model.score(prompt), abs=0.1)  # bf16
    assert there.generate(QUESTION, max_tokens=40).tokens


def test_votes_are_those_of_answers_drawn_apart(model: Model) -> None:
    options: Options = {"temperature": 1.0, "max_tokens": 40, "thinking": False}
    answer, share = model.vote(QUESTION, 7, **options)
    alone, _ = model.vote(QUESTION, 1, **options)
    assert alone.tokens == model.generate(QUESTION, **options).tokens
    assert share in [n / 7 for n in range(8)]
    assert answer.text
    with pytest.raises(UserError, match="temperature above 0"):
        model.vote(QUESTION, 3)
