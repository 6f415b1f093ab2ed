"""Forms are kept whatever a model would rather say, and nobody's schema takes the engine's time or memory."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import jsonschema_rs
import pytest
import tokenizers
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small import chat
from tokenizers import decoders, models, normalizers

from mull import hub
from mull.engine import grammar as module
from mull.engine.grammar import CHOICES, Grammars, Matcher, check, vocabulary
from mull.engine.sampler import Draw, draw, uniform
from mull.text.chat import Chat
from mull.text.tokenizer import Tokenizer
from mull.text.vocab import metadata_of, tokenizer_of
from mull.types import Grammar, Sampling, UserError

VOCAB = 320  # some more than the tokenizer has, as models are padded
LONGEST = 500


@pytest.fixture(scope="module")
def grammars() -> Iterator[Grammars]:
    pytest.importorskip("xgrammar")
    made = Grammars(chat().tokenizer, VOCAB, seconds=2)
    yield made
    made.close()


def spoken(grammars: Grammars, grammar: Grammar, seed: int, bias: float = 6.0) -> str | None:
    """What a model that says anything says; None where it came to no end. Ends and closing signs are likelier."""
    t = grammars.tokenizer
    matcher = Matcher(grammars.compile(grammar))
    generator = torch.Generator().manual_seed(seed)
    ends = [*t.stop_ids, *(i for i in range(t.vocab_size) if t.decode([i]) in ('"', "}", "]", ","))]
    said: list[int] = []
    for at in range(LONGEST):
        logits = torch.randn(1, grammars.vocab, generator=generator) * 2
        logits[:, ends] += bias
        drawn = draw(logits, [Draw(Sampling(), uniform(seed, at), grammar=matcher)])
        assert not drawn.failed, drawn.failed
        token = drawn.tokens[0]
        matcher.accept(token)
        if token in t.stop_ids:
            assert matcher.done
            return t.decode(said)
        assert not matcher.done and token < t.vocab_size and token not in t.added.values()
        said.append(token)
    return None


def read(answer: str) -> object:
    """3E1190 is a number of JSON, but none of Python."""
    return json.loads(answer, parse_float=lambda text: min(max(float(text), -1e308), 1e308))


def obj(**properties: object) -> dict:
    return {"type": "object", "properties": properties, "required": [*properties]}


TREE = {
    "$defs": {"tree": obj(value={"type": "integer"}, below={"type": "array", "items": {"$ref": "#/$defs/tree"}})},
    "$ref": "#/$defs/tree",
}
SCHEMAS: dict[str, object] = {
    "nested": obj(name={"type": "string"}, inner=obj(on={"type": "boolean"}, n={"type": "number"})),
    "enum": {"enum": ["red", "green", 7, None, {"a": [1, 2]}, 'q"\\ü']},
    "enum of a type": {"type": ["string", "null"], "enum": ["a", 5, None]},
    "const": obj(kind={"const": "x"}),
    "pattern": obj(code={"type": "string", "pattern": "^[A-Z]{2}-\\d{3}$"}),
    "pattern anywhere": {"type": "string", "pattern": "ab"},
    "lengths": {"type": "string", "minLength": 3, "maxLength": 6},
    "definition": {"$defs": {"p": obj(x={"type": "integer"})}, "type": "array", "items": {"$ref": "#/$defs/p"}},
    "recursive": TREE,
    "whole recursive": obj(next={"anyOf": [{"type": "null"}, {"$ref": "#"}]}),
    "integers": {"type": "array", "items": {"type": "integer", "minimum": -5, "exclusiveMaximum": 1234}, "minItems": 2},
    "numbers": {"type": "array", "items": {"type": "number", "minimum": 0.25, "maximum": 17.5}, "minItems": 1},
    "steps": {"type": "integer", "multipleOf": 7},
    "tuple": {"type": "array", "prefixItems": [{"type": "integer"}, {"type": "string"}], "minItems": 2},
    "few items": {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 3},
    "optional": {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "null"}}, "required": ["b"]},
    "any of": {"anyOf": [{"type": "integer"}, obj(a={"type": "string"}), {"type": "array", "items": {"type": "null"}}]},
    "one of": {"oneOf": [obj(k={"const": "a"}, v={"type": "integer"}), obj(k={"const": "b"}, v={"type": "string"})]},
    "all of one": {"allOf": [{"type": "boolean"}]},
    "named by type": {"properties": {"a": {"type": "string", "format": "date"}}, "required": ["a"]},
    "required without a schema": {"type": "object", "required": ["a"], "properties": {"b": {"type": "integer"}}}
    | {"additionalProperties": {"type": "boolean"}},
    "map": {"type": "object", "additionalProperties": {"type": "integer"}, "minProperties": 1},
    "names": {"type": "object", "propertyNames": {"pattern": "^[a-c]+$"}, "maxProperties": 2},
    "patterned": {"type": "object", "patternProperties": {"^x": {"type": "integer"}}, "additionalProperties": False},
    "free": {"type": "object"},
    "anything": {},
    "times": obj(at={"type": "string", "format": "date-time"}, id={"type": "string", "format": "uuid"}),
}  # fmt: skip


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_answer_satisfies_its_schema(grammars: Grammars, name: str) -> None:
    schema = SCHEMAS[name]
    validator = jsonschema_rs.validator_for(schema)
    answers = [spoken(grammars, Grammar("json_schema", json.dumps(schema)), seed) for seed in range(8)]
    ended = [answer for answer in answers if answer is not None]
    assert len(ended) >= 2
    for answer in ended:
        assert validator.is_valid(read(answer)), answer


LEAVES = st.sampled_from([
    {"type": "integer"}, {"type": "boolean"}, {"type": "null"}, {"type": ["integer", "string"], "maximum": 3},
    {"enum": ["a", "b", 3]}, {"type": "string", "maxLength": 3}, {"type": "string", "pattern": "^[xy]*$"},
    {"type": "number", "exclusiveMinimum": -1.5}, {"const": [1, {"z": None}]},
])  # fmt: skip
ANY = st.recursive(
    LEAVES,
    lambda inner: (
        st.dictionaries(st.sampled_from(["a", "b", 'ü"']), inner, min_size=1).map(lambda made: obj(**made))
        | st.builds(lambda items, least: {"type": "array", "items": items, "minItems": least}, inner, st.integers(0, 2))
        | st.lists(inner, min_size=1, max_size=3).map(lambda made: {"anyOf": made})
    ),
    max_leaves=6,
)  # fmt: skip


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(schema=ANY, seed=st.integers(0, 99))
def test_any_schema_is_satisfied(grammars: Grammars, schema: dict, seed: int) -> None:
    answer = spoken(grammars, Grammar("json_schema", json.dumps(schema)), seed)
    if answer is not None:
        assert jsonschema_rs.validator_for(schema).is_valid(read(answer)), answer


def test_json_is_an_object(grammars: Grammars) -> None:
    answers = [spoken(grammars, Grammar("json"), seed) for seed in range(10)]
    ended = [json.loads(answer) for answer in answers if answer is not None]
    assert len(ended) > 3 and all(isinstance(one, dict) for one in ended)


@pytest.mark.parametrize(
    "expression",
    [
        "[a-c]{3}",
        "(yes|no)( 👍)?",
        "\\d+(\\.\\d+)?",
        "a.c",
        ".{1,4}",
        "[^x]{2}",
        "\\w+\\s\\w+",
        "(ab)*",
        "\\{\\}",
        "ü+|[α-ω]",
    ],
)
def test_every_answer_matches_its_expression(grammars: Grammars, expression: str) -> None:
    answers = [spoken(grammars, Grammar("regex", expression), seed) for seed in range(6)]
    ended = [answer for answer in answers if answer is not None]
    assert ended
    for answer in ended:
        assert re.fullmatch(expression, answer, re.DOTALL), answer


WORDS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=6)


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(choices=st.lists(WORDS, min_size=1), seed=st.integers(0, 9))
def test_every_answer_is_one_of_the_choices(grammars: Grammars, choices: list[str], seed: int) -> None:
    assert spoken(grammars, Grammar("choice", json.dumps(choices)), seed) in choices


def test_a_grammar_of_ones_own(grammars: Grammars) -> None:
    answer = spoken(grammars, Grammar("ebnf", 'root ::= "(" root ")" | "x"'), 0)
    assert answer is not None and re.fullmatch(r"\(*x\)*", answer) and answer.count("(") == answer.count(")")


DOUBLING = "\n".join(f"r{i} ::= r{i + 1} r{i + 1}" for i in range(1, 60))
HOSTILE = {  # some compile, some do not; none takes long, and the next one is served
    "many paths": ("regex", "((((.{0,50}){0,50}){0,50}){0,50})x"),
    "a long one": ("regex", "a{1000000}"),
    "stars": ("regex", "((a*)*)*b"),
    "doubling": ("ebnf", f'root ::= r1 r1\n{DOUBLING}\nr60 ::= "a"'),
    "to the left": ("ebnf", 'root ::= root root | "a" | ""'),
    "brackets": ("regex", "(" * 2000 + "a" + ")" * 2000),
    "long texts": ("json_schema", '{"type":"string","minLength":1000000000}'),
    "many items": ("json_schema", '{"type":"array","minItems":1000000,"items":{"type":"array","minItems":1000000}}'),
    "a pattern's repetitions": ("json_schema", '{"type":"string","pattern":"((a{1000}){1000}){1000}"}'),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_forms_end_in_time_and_the_next_is_served(grammars: Grammars, name: str) -> None:
    kind, text = HOSTILE[name]
    grammar = Grammar(kind, text)  # type: ignore[arg-type]
    try:
        grammars.compile(grammar)
    except UserError as error:
        begun = time.perf_counter()
        with pytest.raises(UserError, match=re.escape(str(error))):  # remembered
            grammars.compile(grammar)
        assert time.perf_counter() - begun < 0.1
    assert spoken(grammars, Grammar("choice", '["a", "b"]'), 1) in ("a", "b")


REFUSED = {  # CVE-2025-48944: a bad pattern or type killed the server
    ("json_schema", '{"type":"string","pattern":"("}'): "parenthesis",
    ("json_schema", '{"type":"string","pattern":"a\\\\1"}'): "Backreference",
    ("json_schema", '{"type":"something"}'): "types are object",
    ("json_schema", '{"$ref":"#"}'): "no text satisfies it",
    ("json_schema", "{"): "no JSON",
    ("regex", "("): "parenthesis",
    ("regex", "(?=a)b"): "looks ahead",
    ("regex", "a" * 5000): "more than 4096 letters",
    ("ebnf", "root ::= x"): "not defined",
    ("ebnf", "x" * 70_000): "more than 65536 letters",
    ("choice", "[]"): "list of texts",
    ("choice", '["a", 3]'): "list of texts",
    ("choice", '["a", ""]'): "list of texts",
    ("choice", "nonsense"): "list of texts",
    ("choice", json.dumps([f"x{i}" for i in range(CHOICES + 1)])): "at most 1024",
}


@pytest.mark.parametrize(("form", "said"), REFUSED.items(), ids=[f"{kind} {text[:30]}" for kind, text in REFUSED])
def test_what_is_refused_is_told_in_a_sentence(grammars: Grammars, form: tuple, said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        grammars.compile(Grammar(*form))
    assert str(error.value).endswith(".") and "\n" not in str(error.value) and len(str(error.value)) < 400


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(UserError, match="kinds are json, json_schema"):
        check(Grammar("xml", "<a/>"))  # type: ignore[arg-type]


def test_the_engine_goes_on_while_a_grammar_is_compiled(grammars: Grammars) -> None:
    begun = time.perf_counter()
    future = grammars.submit(Grammar("regex", "(.{1,400}){1,400}"))
    assert time.perf_counter() - begun < 0.2
    assert future.result().size > 1000


def test_equal_forms_are_compiled_once_and_not_all_are_remembered(
    grammars: Grammars, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = grammars.compile(Grammar("choice", '["a"]'))
    assert grammars.compile(Grammar("choice", '["a"]')) is first
    monkeypatch.setattr("mull.engine.grammar.REMEMBERED", 4)
    for i in range(8):
        grammars.compile(Grammar("choice", f'["{i}"]'))
    assert len(grammars._known) <= 5
    monkeypatch.setattr("mull.engine.grammar.REMEMBERED_BYTES", 10)
    grammars.compile(Grammar("choice", '["z"]'))
    assert grammars.compile(Grammar("choice", '["a"]')) is not first


def test_a_process_that_was_killed_is_begun_again(grammars: Grammars) -> None:
    grammars.compile(Grammar("choice", '["before"]'))
    assert grammars._process is not None
    grammars._process._inner.kill()
    grammars._process._inner.wait()
    assert spoken(grammars, Grammar("choice", '["after"]'), 0) == "after"


def test_stop_tokens_come_only_where_the_form_may_end(grammars: Grammars) -> None:
    matcher = Matcher(grammars.compile(Grammar("regex", "a+")))
    t = grammars.tokenizer
    (a,) = t.encode("a")
    for allowed in ([a], [a, *t.stop_ids]):
        logits = torch.zeros(VOCAB)
        matcher.mask(logits)
        assert {*logits.isfinite().nonzero()[:, 0].tolist()} >= {*allowed}
        assert all(bool(logits[i].isfinite()) is (i in allowed) for i in t.stop_ids)
        assert not logits[t.vocab_size :].isfinite().any()
        matcher.accept(a)
    matcher.accept(t.stop_ids[0])
    assert matcher.done
    logits = torch.zeros(VOCAB)
    matcher.mask(logits)
    assert {*logits.isfinite().nonzero()[:, 0].tolist()} == {*t.stop_ids}
    matcher.accept(t.stop_ids[0])  # who goes on behind the end says no more


def test_without_xgrammar_the_user_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "xgrammar", None)
    made = Grammars(chat().tokenizer, VOCAB)
    with pytest.raises(UserError, match=r"pip install 'mull\[serve\]'"):
        made.compile(Grammar("json"))
    made.close()


def test_a_slow_machine_refuses_no_good_form(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long the process takes to begin and to answer: it is patience with one that does nothing that ends."""
    monkeypatch.setattr(module, "PATIENCE", 0.02)
    ticks = itertools.count()
    monkeypatch.setattr(module, "_ticks", lambda pid: next(ticks))
    made = Grammars(chat().tokenizer, VOCAB)
    try:
        assert spoken(made, Grammar("choice", '["a"]'), 1) == "a"
    finally:
        made.close()


def test_a_process_that_does_nothing_is_ended_and_the_form_may_be_asked_for_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = Grammars(chat().tokenizer, VOCAB)
    try:
        made.compile(Grammar("choice", '["a"]'))
        process = made._process
        assert process is not None
        os.kill(process._inner.pid, signal.SIGSTOP)
        with monkeypatch.context() as patch:
            patch.setattr(module, "PATIENCE", 0.1)
            with pytest.raises(UserError, match=r"did nothing for 0\.1 seconds"):
                made.compile(Grammar("choice", '["b"]'))
        assert spoken(made, Grammar("choice", '["b"]'), 1) == "b"
    finally:
        made.close()


def test_cpu_time_of_a_process_is_the_kernels() -> None:
    if not Path("/proc/self/stat").exists():
        pytest.skip("there is no /proc here")
    before, begun = module._ticks(os.getpid()), time.process_time()
    while time.process_time() < begun + 0.2:
        pass
    assert 10 <= module._ticks(os.getpid()) - before <= 200
    assert module._ticks(1 << 30) == 0


# Vocabularies


def test_bytes_of_tokens_are_what_they_decode_to() -> None:
    t = chat().tokenizer
    words = vocabulary(t, VOCAB)
    assert len(words) == VOCAB and words[t.vocab_size :] == [b""] * (VOCAB - t.vocab_size)
    assert [i for i in range(t.vocab_size) if not words[i]] == [*t.added.values()]
    for text in ("What is 7 + 81? 'twas héllo 你好 🙂", '{"a": [1, 2]}\n'):
        assert b"".join(words[i] for i in t.encode(text)) == text.encode()


def test_a_vocabulary_of_a_gguf_file_has_the_same_bytes() -> None:
    t = chat().tokenizer
    again = tokenizer_of(metadata_of(t, VOCAB), "here")
    text = 'So {"a": 12} is wör 你好 🙂'
    assert b"".join(vocabulary(again, VOCAB)[i] for i in again.encode(text)) == text.encode()
    assert not any(vocabulary(again, VOCAB)[i] for i in again.stop_ids)


def sentencepiece() -> Tokenizer:
    """A small vocabulary of Llama 2's kind: blanks are letters, what is unknown is spelt in bytes."""
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b", "▁a", "▁b", "ab", "ö"]
    inner = tokenizers.Tokenizer(
        models.BPE({word: i for i, word in enumerate(words)}, [("▁", "a"), ("▁", "b"), ("a", "b")], byte_fallback=True)
    )
    inner.normalizer = normalizers.Replace(" ", "▁")
    inner.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    inner.add_special_tokens(["<s>", "</s>"])
    return Tokenizer(inner, {"eos_token": "</s>"})


def test_a_vocabulary_of_sentencepieces_kind_has_bytes_and_keeps_forms() -> None:
    t = sentencepiece()
    text = "ab a bö 你"
    assert b"".join(vocabulary(t, 300)[i] for i in t.encode(text)) == text.encode()
    made = Grammars(t, 300)
    try:
        assert spoken(made, Grammar("choice", '["a bö 你", "b ab"]'), 3) in ("a bö 你", "b ab")
        answers = [spoken(made, Grammar("json_schema", json.dumps(SCHEMAS["few items"])), seed) for seed in range(4)]
        assert all(answer is None or 1 <= len(json.loads(answer)) <= 3 for answer in answers)
    finally:
        made.close()


def test_a_vocabulary_without_bytes_is_refused() -> None:
    inner = tokenizers.Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1, "##b": 2}, unk_token="[UNK]"))
    inner.decoder = decoders.WordPiece()
    with pytest.raises(UserError, match="does not say which bytes"):
        vocabulary(Tokenizer(inner, {}), 3)


@pytest.mark.slow
def test_a_published_model_keeps_forms() -> None:
    try:
        folder = hub.resolve("smollm2")
    except UserError as error:
        pytest.skip(str(error))
    t = Chat.load(folder).tokenizer
    made = Grammars(t, 49_152)
    try:
        for name in ("nested", "recursive", "pattern", "lengths"):
            begun = time.perf_counter()
            answer = spoken(made, Grammar("json_schema", json.dumps(SCHEMAS[name])), 1, bias=9.0)
            assert time.perf_counter() - begun < 60
            if answer is not None:
                assert jsonschema_rs.validator_for(SCHEMAS[name]).is_valid(read(answer)), answer
    finally:
        made.close()


def test_a_form_that_takes_too_long_to_keep_ends_its_answer(
    grammars: Grammars, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mull.engine.grammar.ALLOWED", 0.0)
    monkeypatch.setattr("mull.engine.grammar.ALLOWED_EACH", 0.0)
    matcher = Matcher(grammars.compile(Grammar("regex", "a+")))
    matcher.mask(torch.zeros(VOCAB))
    said = matcher.accept(grammars.tokenizer.encode("a")[0])
    assert said is not None and "too long to keep" in said and said.endswith(".")


def test_a_token_outside_the_form_is_told(grammars: Grammars) -> None:
    matcher = Matcher(grammars.compile(Grammar("regex", "a+")))
    assert matcher.accept(grammars.tokenizer.encode("a")[0]) is None
    assert "left its form" in str(matcher.accept(grammars.tokenizer.encode("b")[0]))
