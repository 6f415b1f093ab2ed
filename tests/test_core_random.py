"""Whatever is asked of it, in whatever company, the engine steps on: an answer ends, or has an error of its own."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from random import Random
from typing import Any

import pytest
from company import alone, bits, strained, traffic, under_traffic
from hypothesis import given, settings
from hypothesis import strategies as st
from small import SHAPES, changed, chat, model_of
from test_thoughts import NAMES, other

from mull.engine import draft
from mull.engine import grammar as forms
from mull.engine.core import Core
from mull.engine.grammar import Compiled, Grammars
from mull.model.transformer import Transformer
from mull.types import Grammar, Message, Request, Sampling

xgrammar = pytest.importorskip("xgrammar")
VOCAB = 320


class Here(Grammars):
    """Compiles in this process, which is known to be asked for nothing bad."""

    def _make(self, form: Grammar, name: str) -> Compiled:
        words = forms.vocabulary(self.tokenizer, self.vocab)
        info: Any = forms._info(xgrammar, words, self.tokenizer.stop_ids)
        compiler = xgrammar.GrammarCompiler(info, max_threads=1)
        form = forms.check(form)
        make = {"json_schema": compiler.compile_json_schema, "regex": compiler.compile_regex}
        inner = make.get(form.kind, compiler.compile_grammar)(form.text)
        return Compiled(inner, info, inner.memory_size_bytes)


@cache
def model() -> Transformer:
    return model_of(changed(SHAPES["llama"], vocab=VOCAB), seed=2, std=0.1)


@cache
def grammars(name: str) -> Here:
    return Here(other(name).tokenizer, VOCAB)


FORMS = [
    None, Grammar("json"), Grammar("regex", "é+"), Grammar("regex", "[a-c]+"), Grammar("regex", "(.|\n)*"),
    Grammar("choice", '["<think>", " é", "你"]'), Grammar("ebnf", 'root ::= "<" root | "\\n" root | "x"'),
    Grammar("json_schema", '{"type":"string"}'),
]  # fmt: skip
LIKELY = ["<", "think", ">", "</think>", "<think>", "[THINK]", "[/THINK]", "é", "你", "\n", " ", "a", "<|im_end|>"]
SAMPLINGS = st.builds(
    Sampling, max_tokens=st.integers(1, 14), temperature=st.sampled_from([0.0, 1.0]), thinking=st.booleans(),
    seed=st.integers(0, 9), stop=st.sampled_from([(), ("x",), ("\n",)]), ignore_end=st.booleans(),
    thinking_tokens=st.none() | st.integers(0, 4), min_thinking_tokens=st.integers(0, 4), verbatim=st.booleans(),
    closing=st.sampled_from(["", "so", "a</think>b", "<"]), grammar=st.sampled_from(FORMS),
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None, max_examples=25)
@given(asked=st.lists(st.tuples(SAMPLINGS, st.lists(st.sampled_from(LIKELY), max_size=3)), min_size=1, max_size=3))
def test_no_request_stops_the_engine(name: str, asked: list[tuple[Sampling, list[str]]]) -> None:
    them = other(name)
    core = Core(model(), them, 4, grammars=grammars(name))
    for i, (sampling, likely) in enumerate(asked):
        ids = [token for text in likely for token in them.tokenizer.encode(text, special=True)]
        bias = tuple((token, 60.0 + 10 * at) for at, token in enumerate(dict.fromkeys(ids)))
        prompt = tuple(them.encode([Message("user", "What?")], thinking=sampling.thinking))
        core.add(i, Request(prompt, replace(sampling, logit_bias=bias)))
    ended = set()
    while core.busy:
        ended |= {answer.name for answer in core.step() if answer.finish or answer.error}
    assert ended == {*range(len(asked))} and not core.answers


@pytest.mark.parametrize("name", ["answer opens", "magistral", "spelt"])
def test_half_a_character_or_a_mark_spelt_by_force_is_no_mistake_of_the_form(name: str) -> None:
    them = other(name)
    half, opens = them.tokenizer.encode("é")[0], them.tokenizer.encode(them.marks.open, special=True)[0]
    prompt = tuple(them.encode([Message("user", "What?")]))
    core = Core(model(), them, 4, grammars=grammars(name))
    bias = ((opens, 90.0), (half, 100.0))
    core.add("half", Request(prompt, Sampling(max_tokens=20, grammar=Grammar("regex", "é+"), logit_bias=bias)))
    core.add(
        "kept open", Request(prompt, Sampling(max_tokens=20, min_thinking_tokens=3, grammar=Grammar("regex", "[a-c]+")))
    )
    while core.busy:
        assert not [answer.error for answer in core.step() if answer.error]


# in exact mode: the same bits

EXACT = {
    "moe": SHAPES["moe"], "mla": SHAPES["mla"], "windowed": SHAPES["qwen2, windowed"],
    "packed, with an MTP layer": SHAPES["llama"].model_copy(update={"mtp_layers": 1}),  # as no family on disk has it
}  # fmt: skip


@cache
def exact(name: str) -> Transformer:
    """As a server's engine has it: what can be packed whole is packed."""
    return model_of(EXACT[name], seed=2, std=0.1).exactly().packed()


@cache
def plainly() -> Here:
    return Here(chat().tokenizer, EXACT["moe"].vocab)


@pytest.mark.parametrize("name", EXACT)
@settings(deadline=None, max_examples=3)
@given(seed=st.integers(0, 1 << 32))
def test_neither_forms_nor_strained_memory_change_a_bit(name: str, seed: int) -> None:
    """Under traffic, with guesses ahead that are tried whether they pay or not; rows are halved, and come back."""
    draw = Random(seed)
    asked = traffic(8, draw, FORMS)
    plain = [alone(request, Core(exact(name), chat(), 1, grammars=plainly())) for request in asked]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mull.engine.core.STRAINED", 8)
        patch.setattr(draft, "TRIAL", 1 << 30)
        for rows, pages, chunk in ((8, None, 256), (5, 12, 7)):
            said: list[str] = []
            core = Core(
                exact(name), chat(), rows, pages, chunk, say=said.append, grammars=plainly(), drafts=True
            )  # fmt: skip
            strained(core, draw)
            ended = under_traffic(core, asked, draw)
            assert [bits(ended[i]) for i in range(len(asked))] == [bits(answer) for answer in plain]
            assert any("Memory does not suffice" in line for line in said)
            assert core.scheduler.pages.used == 0
