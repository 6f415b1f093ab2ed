"""Calls of tools are found in every form, however the text is cut; what is no whole call stays text."""

from __future__ import annotations

import json
import random
import time
from functools import cache
from itertools import combinations, groupby, pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small import chat

from mull.text.chat import Chat
from mull.text.tools import FORMS, LONGEST, Call, ToolParser, form_of, known_of, parser_of
from mull.types import UserError

TEMPLATES = Path(__file__).parents[2] / "shared" / "data" / "templates"


def tool(name: str, **properties: Any) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties}
    return {"type": "function", "function": {"name": name, "description": name, "parameters": parameters}}


TOOLS = [
    tool("weather", city={"type": "string"}, days={"type": "integer"}, on={"type": ["boolean", "null"]}),
    tool("run", code={"type": "string"}, opts={"type": "object"}, any={}),
    {"name": "now"},
]
KNOWN = known_of(TOOLS)


def joined(told: list[str | Call]) -> list[str | Call]:
    """Texts in a row are one."""
    made: list[str | Call] = []
    for kind, group in groupby(told, key=type):
        some = [*group]
        made += ["".join(map(str, some))] if kind is str else some
    return made


def read(form: str, pieces: list[str]) -> list[str | Call]:
    parser = ToolParser(FORMS[form], KNOWN)
    return joined([one for piece in pieces for one in parser.feed(piece)] + parser.flush())


def cut(text: str, *at: int) -> list[str]:
    return [text[a:b] for a, b in pairwise([0, *at, len(text)])]


def call(name: str, **arguments: Any) -> Call:
    return Call(name, json.dumps(arguments, ensure_ascii=False))


KOELN = call("weather", city="Köln", days=2)
NOW = Call("now", "{}")
HERMES = '<tool_call>\n{"name": "weather", "arguments": {"city": "Köln", "days": 2}}\n</tool_call>'
HERMES_NOW = '<tool_call>{"name": "now"}</tool_call>'
CODER = (
    "<tool_call>\n<function=weather>\n<parameter=city>\nKöln\n</parameter>\n<parameter=days>\n2\n</parameter>\n"
    "</function>\n</tool_call>"
)
GLM = (
    "<tool_call>weather\n<arg_key>city</arg_key>\n<arg_value>Köln</arg_value>\n<arg_key>days</arg_key>\n"
    "<arg_value>2</arg_value>\n</tool_call>"
)
BEGIN, END, ONE, SEP, ONE_END = (f"<｜tool▁{name}｜>" for name in (
    "calls▁begin", "calls▁end", "call▁begin", "sep", "call▁end"))  # fmt: skip
R1 = f'{ONE}function{SEP}weather\n```json\n{{"city": "Köln", "days": 2}}\n```{ONE_END}'
V31 = f'{ONE}weather{SEP}{{"city": "Köln", "days": 2}}{ONE_END}'
LLAMA = '{"name": "weather", "parameters": {"city": "Köln", "days": 2}}'
MARKED = '<tool_call>{"name": "run", "arguments": {"code": "</tool_call>\\n<tool_call>{\\"a\\"}"}}</tool_call>'
NESTED = '{"code": "if (a) { b = \\"}\\\\\\" }", "opts": {"a": [{"b": {}}, [], "]"], "c": -1.5e3, "d": null}}'
NESTED_CALL = Call("run", json.dumps(json.loads(NESTED)))

# (form, what a model says, what that is)
CORPUS: list[tuple[str, str, list[str | Call]]] = [
    ("hermes", HERMES, [KOELN]),
    ("hermes", f"I look.\n\n{HERMES}\n{HERMES_NOW}\n", ["I look.", KOELN, NOW]),
    ("hermes", f"  {HERMES}  Done 🙂.\n", [KOELN, "Done 🙂.\n"]),
    ("hermes", f"a {HERMES} b {HERMES_NOW} c", ["a", KOELN, "  b", NOW, "  c"]),
    ("hermes", "just 你好 text\n", ["just 你好 text\n"]),
    ("hermes", " \n", [" \n"]),
    ("hermes", "", []),
    ("hermes", MARKED, [call("run", code='</tool_call>\n<tool_call>{"a"}')]),
    ("hermes", f'<tool_call>{{"name": "run", "arguments": {NESTED}}}</tool_call>', [NESTED_CALL]),
    ("hermes", f"<tool_call>{HERMES}", ["<tool_call>", KOELN]),
    ("hermes", f"<tool_<tool_call{HERMES}</tool_call>", ["<tool_<tool_call", KOELN, "</tool_call>"]),
    ("hermes", "<tool_call>", ["<tool_call>"]),
    ("hermes", "a <tool_c", ["a <tool_c"]),
    ("hermes", HERMES[:-13], [KOELN]),
    ("hermes", HERMES[:-5], [KOELN]),
    ("hermes", HERMES[:-15], [HERMES[:-15]]),
    ("hermes", HERMES[:40], [HERMES[:40]]),
    ("hermes", HERMES.replace("weather", "whether"), [HERMES.replace("weather", "whether")]),
    ("hermes", HERMES.replace("2}}", "2}") + HERMES_NOW, [HERMES.replace("2}}", "2}"), NOW]),
    ("hermes", HERMES.replace("2}}", "2}}}") + HERMES_NOW, [HERMES.replace("2}}", "2}}}"), NOW]),
    ("hermes", HERMES.replace("2}}", "NaN}}"), [HERMES.replace("2}}", "NaN}}")]),
    ("hermes", HERMES.replace("2}}", "1e999}}"), [HERMES.replace("2}}", "1e999}}")]),
    ("hermes", HERMES.replace("2}}", "]}"), [HERMES.replace("2}}", "]}")]),
    ("hermes", HERMES.replace('"Köln"', "'Köln'"), [HERMES.replace('"Köln"', "'Köln'")]),
    ("hermes", HERMES.replace("Köln", "a\nb"), [HERMES.replace("Köln", "a\nb")]),
    ("hermes", HERMES.replace('{"city": "Köln", "days": 2}', '"{\\"city\\": \\"Köln\\", \\"days\\": 2}"'), [KOELN]),
    ("hermes", '<tool_call>{"name": "now", "arguments": [1]}</tool_call>', [
        '<tool_call>{"name": "now", "arguments": [1]}</tool_call>']),
    ("hermes", HERMES.replace("Köln", "\\ud800"), [Call("weather", '{"city": "\\ud800", "days": 2}')]),
    ("hermes", "if a < b: <b> </tool_call>", ["if a < b: <b> </tool_call>"]),
    ("qwen3-coder", f"I look.\n{CODER}\n{CODER}", ["I look.", KOELN, KOELN]),
    ("qwen3-coder", CODER.removeprefix("<tool_call>\n") + "\nok", [KOELN, "\nok".strip()]),
    ("qwen3-coder", "<function=now></function>", [NOW]),
    ("qwen3-coder", CODER[:-26], [CODER[:-26]]),
    ("qwen3-coder", CODER[:-12], [KOELN]),
    ("qwen3-coder", CODER.replace(">\n2\n<", ">\ntwo\n<"), [call("weather", city="Köln", days="two")]),
    ("qwen3-coder", HERMES + CODER, [HERMES, KOELN]),
    (
        "qwen3-coder",
        "<tool_call>\n<function=run>\n<parameter=code>\ndef f():\n    return '</tool_call>'\n\n</parameter>\n"
        '<parameter=opts>\n{"a": [1, 2]}\n</parameter>\n<parameter=any>\nTrue\n</parameter>\n</function>\n</tool_call>',
        [call("run", code="def f():\n    return '</tool_call>'\n", opts={"a": [1, 2]}, any=True)],
    ),
    ("glm", f"{GLM}\n{GLM}", [KOELN, KOELN]),
    ("glm", GLM.replace("\n", ""), [KOELN]),
    ("glm", "<tool_call>now</tool_call>", [NOW]),
    ("glm", GLM[:-12], [GLM[:-12]]),
    ("glm", GLM[:-1], [GLM[:-1]]),
    ("glm", GLM.replace("weather", "x"), [GLM.replace("weather", "x")]),
    ("glm", f"<tool_call>weather\n<arg_key>city\n{GLM}", ["<tool_call>weather\n<arg_key>city", KOELN]),
    (
        "glm",
        "<tool_call>weather\n<arg_key>city</arg_key><arg_value>5 </arg_value><arg_key>on</arg_key>"
        "<arg_value>null</arg_value></tool_call>",
        [call("weather", city="5 ", on=None)],
    ),
    ("deepseek", f"{BEGIN}{R1}{END}", [KOELN]),
    ("deepseek", f"Let me see.\n\n{BEGIN}{R1}\n{R1}{END}", ["Let me see.", KOELN, KOELN]),
    ("deepseek", f"{BEGIN}{V31}{V31}{END}", [KOELN, KOELN]),
    ("deepseek", f"{BEGIN}{V31}", [KOELN]),
    ("deepseek", f"{BEGIN}{V31[:-30]}", [f"{BEGIN}{V31[:-30]}"]),
    ("deepseek", f"{BEGIN}{V31[: -len(ONE_END)]}", [KOELN]),
    ("deepseek", f"{BEGIN}{ONE}x{SEP}{{}}{ONE_END}{V31}{END}", [f"{BEGIN}{ONE}x{SEP}{{}}{ONE_END}", KOELN]),
    ("deepseek", f"{R1}{END} a {END}", [KOELN, f"a {END}"]),
    ("deepseek", R1.replace("```json\n", "").replace("\n```", ""), [KOELN]),
    ("deepseek", f"{ONE}function{SEP}run\n```json\n{NESTED}\n```{ONE_END}", [NESTED_CALL]),
    ("deepseek", f"{BEGIN} {BEGIN}{V31}", [BEGIN, KOELN]),
    ("llama", LLAMA, [KOELN]),
    ("llama", f"<|python_tag|>{LLAMA}; {LLAMA}", [KOELN, KOELN]),
    ("llama", f"\n{LLAMA}\n{LLAMA}\nyes", [KOELN, KOELN, "yes"]),
    ("llama", f"I look: <|python_tag|>{LLAMA}", ["I look:", KOELN]),
    ("llama", f"An example: {LLAMA}", [f"An example: {LLAMA}"]),
    ("llama", '{"answer": 42} is it', ['{"answer": 42} is it']),
    ("llama", '<|python_tag|>print("x")', ['<|python_tag|>print("x")']),
    ("llama", LLAMA[:-1], [LLAMA[:-1]]),
    ("llama", f"{LLAMA};", [KOELN, ";"]),
    ("llama", f'{{"name": "run", "parameters": {NESTED}}}', [NESTED_CALL]),
]  # fmt: skip


@pytest.mark.parametrize("at", range(len(CORPUS)), ids=lambda at: f"{CORPUS[at][0]}-{at}")
def test_every_cut_of_what_a_model_says_gives_the_same(at: int) -> None:
    """Whole, in two at every position, in three at every pair of them, and character by character."""
    form, text, want = CORPUS[at]
    assert read(form, [text]) == want
    assert read(form, [*text]) == want
    places = range(len(text) + 1)
    for one in places:
        assert read(form, cut(text, one)) == want, text[:one]
    pairs = [*combinations(places, 2)]
    for pair in pairs if len(text) < 60 else random.Random(at).sample(pairs, 300):
        assert read(form, cut(text, *pair)) == want, cut(text, *pair)


SNIPS = {
    form: sorted(
        {*said, *"{}\"'<>\\\n a1", *FORMS[form].opens, "known", '"name"', "\\u00e9", "你", "🙂", "</tool_call>"}
    )
    for form, said in {
        "hermes": (HERMES, HERMES[:30], HERMES[30:], '{"name": "now", "arguments": {'),
        "qwen3-coder": (CODER, CODER[:40], CODER[40:], "<parameter=a>", "</parameter>", "</function>"),
        "glm": (GLM, GLM[:40], GLM[40:], "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"),
        "deepseek": (R1, V31, R1[:40], V31[20:], BEGIN, END, ONE, SEP, ONE_END, "```json", "```"),
        "llama": (LLAMA, LLAMA[:20], LLAMA[20:], ";", "<|python_tag|>"),
    }.items()
}


def blankless(text: str) -> str:
    return "".join(text.split())


@pytest.mark.parametrize("form", FORMS)
@settings(deadline=None, max_examples=200)
@given(st.data())
def test_any_text_is_the_same_however_it_is_cut_and_none_of_it_is_lost(form: str, data: st.DataObject) -> None:
    parts = data.draw(st.lists(st.sampled_from(SNIPS[form]), max_size=8))
    text = "".join(parts)
    whole = read(form, [text])
    at = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=5)))
    assert whole == read(form, parts) == read(form, cut(text, *at)) == read(form, [*text])
    for one in whole:
        if isinstance(one, Call):
            assert one.name in KNOWN
            assert isinstance(json.loads(one.arguments), dict)
    rest = blankless(text)  # blanks around calls are dropped, nothing else
    for said in (blankless(one) for one in whole if isinstance(one, str)):
        assert said in rest
        rest = rest[rest.index(said) + len(said) :]
    if not any(isinstance(one, Call) for one in whole):
        assert "".join(one for one in whole if isinstance(one, str)) == text


json_texts = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3), max_leaves=8,
)  # fmt: skip


@settings(deadline=None, max_examples=200)
@given(st.dictionaries(st.text(), json_texts, max_size=3), st.booleans(), st.sampled_from([None, 1]))
def test_any_arguments_come_back(arguments: dict[str, Any], ascii_only: bool, indent: int | None) -> None:
    text = json.dumps(arguments, ensure_ascii=ascii_only, indent=indent)
    for form, said in (
        ("hermes", f'<tool_call>\n{{"name": "run", "arguments": {text}}}\n</tool_call>'),
        ("llama", f'{{"name": "run", "parameters": {text}}}'),
        ("deepseek", f"{BEGIN}{ONE}run{SEP}{text}{ONE_END}{END}"),
        ("deepseek", f"{BEGIN}{ONE}function{SEP}run\n```json\n{text}\n```{ONE_END}{END}"),
    ):
        (found,) = read(form, [*said])
        assert isinstance(found, Call)
        assert (found.name, json.loads(found.arguments)) == ("run", arguments)
        found.arguments.encode()


@pytest.mark.parametrize("form", FORMS)
def test_text_is_not_held_back_longer_than_it_may_be_a_call(form: str) -> None:
    parser = ToolParser(FORMS[form], KNOWN)
    shown = ""
    for char in "if a < b and <c> or <tool then":
        shown += "".join(one for one in parser.feed(char) if isinstance(one, str))
    assert shown == "if a < b and <c> or <tool then"


def test_a_call_is_told_as_soon_as_it_is_whole() -> None:
    for form, text in (("hermes", HERMES), ("glm", GLM), ("deepseek", R1), ("llama", LLAMA)):
        parser = ToolParser(FORMS[form], KNOWN)
        told = [parser.feed(char) for char in text]
        assert told[-1] == [KOELN], form


BOMBS = [
    "<tool_call>", '<tool_call>{"', '<tool_call>{"a":"', '<tool_call>{"a":[', "{", "[", '{"a":', '"', "\\", '{"\\',
    "<", "<tool_call", " ", "\n", "a", "<function=", "<function=run>", "<function=run><parameter=", "<parameter=code>",
    "<function=run><parameter=code>", "<arg_key>", "<tool_call>run<arg_key>a</arg_key>", "<arg_value>",
    "<tool_call>run<arg_key>a</arg_key><arg_value>", BEGIN, ONE, f"{ONE}run{SEP}", f"{ONE}run{SEP}{{", SEP,
    "<|python_tag|>", '<|python_tag|>{"a":"', ";", '{"a":1};', '{"name":"now"};', "1", "```json",
    f"{ONE}function{SEP}now\n", '<tool_call>{",":[",', "<tool_call>{\"a\":\"\\\"",
]  # fmt: skip


def slowest(form: str, bombs: list[str], size: int) -> float:
    """Seconds for a text of `size` characters, at once and in pieces."""
    times = []
    for bomb in bombs:
        text = bomb * (size // len(bomb))
        begun = time.process_time()
        whole = read(form, [text])
        pieces = read(form, [text[at : at + 50] for at in range(0, len(text), 50)])
        times.append(time.process_time() - begun)
        assert whole == pieces, bomb
    return max(times)


@pytest.mark.parametrize("form", FORMS)
def test_hostile_texts_take_no_time(form: str) -> None:
    assert slowest(form, BOMBS, 10_000) < 0.5


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_hostile_megabytes_take_time_in_proportion(form: str) -> None:
    assert slowest(form, BOMBS, 1_000_000) < 4


@pytest.mark.parametrize(
    ("form", "begun", "end"),
    [
        ("hermes", '<tool_call>{"name": "run", "arguments": {"code": "', '"}}</tool_call>'),
        ("llama", '{"name": "run", "parameters": {"code": "', '"}}'),
        ("qwen3-coder", "<function=run><parameter=code>", "</parameter></function>"),
        ("glm", "<tool_call>run<arg_key>code</arg_key><arg_value>", "</arg_value></tool_call>"),
        ("deepseek", f'{ONE}run{SEP}{{"code": "', f'"}}{ONE_END}'),
    ],
)
def test_a_call_may_be_long_but_not_endless(form: str, begun: str, end: str) -> None:
    for size, whole in ((LONGEST - 1000, True), (LONGEST + 1000, False)):
        text = begun + "x" * size + end
        want: list[str | Call] = [call("run", code="x" * size)] if whole else [text]
        assert read(form, [text]) == want
        assert read(form, [text[at : at + 1000] for at in range(0, len(text), 1000)]) == want


@pytest.mark.parametrize("depth", [60, 70, 100_000])
def test_arguments_may_be_nested_but_not_endlessly(depth: int) -> None:
    text = '<tool_call>{"name": "run", "arguments": {"any": ' + "[" * depth + "]" * depth + "}}</tool_call>"
    told = read("hermes", [text])
    assert isinstance(told[0], Call) is (depth == 60)
    assert depth == 60 or told == [text]


# What is offered


@cache
def published(name: str) -> Chat:
    path = TEMPLATES / f"{name}.jinja"
    if not path.exists():
        pytest.skip("the published templates in ../shared are not here")
    return Chat(chat().tokenizer, path.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("Qwen-Qwen3-0.6B", "hermes"), ("Qwen-Qwen2.5-7B-Instruct", "hermes"), ("Qwen-QwQ-32B", "hermes"),
        ("NousResearch-Hermes-3-Llama-3.1-8B-tool_use", "hermes"), ("GLM-4.6", "glm"),
        ("deepseek-ai-DeepSeek-V3.1", "deepseek"), ("deepseek-ai-DeepSeek-R1-Distill-Qwen-32B", "deepseek"),
        ("llama-cpp-deepseek-r1", "deepseek"), ("meta-llama-Llama-3.2-3B-Instruct", "llama"),
        ("HuggingFaceTB-SmolLM3-3B", "hermes"),
    ],
)  # fmt: skip
def test_the_template_shows_the_form(name: str, form: str) -> None:
    assert form_of(published(name)) is FORMS[form]


def test_a_template_for_tools_shows_it_before_the_other() -> None:
    both = Chat(chat().tokenizer, "<arg_key>{{ messages }}", "<tool_call><function={{ tools }}")
    assert form_of(both) is FORMS["qwen3-coder"]
    assert form_of(chat()) is FORMS["hermes"]


def test_without_tools_all_is_text() -> None:
    parser = parser_of(chat(), [])
    assert joined([*parser.feed(" a<tool_c"), *parser.feed(f"{HERMES} "), *parser.flush()]) == [f" a<tool_c{HERMES} "]
    assert parser_of(chat(), TOOLS).feed(HERMES) == [KOELN]


@pytest.mark.parametrize(
    "tools",
    [[{}], ["x"], [{"function": 3}], [{"function": {"name": ""}}], [{"name": 3}], [TOOLS[0], TOOLS[0]]],
)
def test_what_is_no_tool_is_refused(tools: list[Any]) -> None:
    with pytest.raises(UserError, match="A tool is"):
        parser_of(chat(), tools)


@pytest.mark.parametrize("schema", [3, None, {"type": 5}, {"type": [3, {}]}, {"enum": 5}, {"type": {}, "enum": "x"}])
def test_schemas_that_make_no_sense_do_no_harm(schema: Any) -> None:
    odd = {"name": "f", "parameters": {"properties": {"a": schema}}}
    for parameters in ({"properties": 3}, {"properties": {"a": schema}}, schema):
        parser = ToolParser(FORMS["glm"], known_of([odd | {"parameters": parameters}]))
        told = parser.feed("<tool_call>f<arg_key>a</arg_key><arg_value>5</arg_value></tool_call>")
        assert told == [call("f", a=5)]
