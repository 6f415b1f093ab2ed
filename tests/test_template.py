"""Chat templates: rendered as transformers renders them, and never for long, whatever they hold."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
import time
from functools import cache
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mull.text import sandbox
from mull.text.template import LONGEST, Template
from mull.types import UserError

TEMPLATES = Path(__file__).parents[2] / "shared" / "data" / "templates"
PUBLISHED = sorted(path.stem for path in TEMPLATES.glob("*.jinja"))
needs_templates = pytest.mark.skipif(not PUBLISHED, reason="the published templates in ../shared are not here")
ASKED = [{"role": "user", "content": "hi"}]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "search", "description": "Finds <b> & 'more'",
            "parameters": {
                "type": "object",
                "properties": {
                    "query": {"type": "string", "description": "what"},
                    "kind": {"type": ["string", "null"], "enum": ["a", "b"], "description": "which", "default": "a"},
                    "many": {"type": "array", "items": {"type": "number"}, "description": "  several "},
                    "deep": {"type": "object", "properties": {"x": {"type": "boolean"}}, "description": "é"},
                },
                "required": ["query"],
            },
            "return": {"type": "string", "description": "found"},
        },
    }
]  # fmt: skip


@cache
def compiled(name: str) -> Template:
    return Template((TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8"))


text = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=12)
usual = ["<think>\na\n</think>\n\nb", "/no_think x", "<tool_response>\ny</tool_response>"]
words = st.one_of(text, st.sampled_from(usual))
values = st.one_of(words, st.integers(), st.lists(words))
arguments = st.dictionaries(st.sampled_from(["query", "many"]), values, max_size=2)
calls = st.builds(
    lambda given, named: [{"type": "function", "id": "c", "function": {"name": named, "arguments": given}}],
    st.one_of(arguments, arguments.map(json.dumps)), st.sampled_from(["search", "other"]),
)  # fmt: skip
messages = st.lists(
    st.one_of(
        st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "assistant", "tool"]), "content": words}),
        st.fixed_dictionaries({"role": st.just("assistant"), "content": words, "reasoning_content": words}),
        st.fixed_dictionaries({"role": st.just("assistant"), "content": st.just(""), "tool_calls": calls}),
    ),
    min_size=1, max_size=6,
)  # fmt: skip
variables = st.fixed_dictionaries(
    {}, optional={"enable_thinking": st.booleans(), "thinking": st.booleans(), "documents": st.none()}
)


@needs_templates
@pytest.mark.parametrize("name", PUBLISHED)
@settings(deadline=None, max_examples=40)
@given(messages, st.sampled_from([None, TOOLS]), st.booleans(), variables)
def test_published_templates_render_as_transformers_renders_them(
    name: str, talk: list[dict[str, Any]], tools: Any, prompt: bool, given: dict[str, Any]
) -> None:
    """Any sequence of turns, sensible or not; where the template refuses one, so do we."""
    theirs = pytest.importorskip("transformers.utils.chat_template_utils").render_jinja_template
    given = {"bos_token": "<s>", "eos_token": "</s>", **given}
    # transformers shows a thought under both of its names
    ours = [{"thinking": m["reasoning_content"], **m} if "reasoning_content" in m else m for m in talk]
    try:
        want = theirs([talk], tools, chat_template=compiled(name).source, add_generation_prompt=prompt, **given)[0][0]
    except Exception:
        with pytest.raises(UserError, match=r"The chat template (refuses|breaks on) this conversation"):
            compiled(name).render(ours, prompt, tools, **given)
    else:
        assert compiled(name).render(ours, prompt, tools, **given) == want


SNIPPETS = [
    "{{ messages | tojson }}", "{{ messages | tojson(indent=2) }}",
    "{{ tools | tojson(separators=(',', ':'), sort_keys=true, ensure_ascii=true) }}",
    "{{ messages|join(', ', 'role') }}",
    "{% for m in messages %}{% if loop.index > 3 %}{% break %}{% endif %}{{ loop.last }}{{ loop.length }}{% endfor %}",
    "{% for m in messages %}{{ loop.previtem.role }}{{ loop.nextitem.role }}{{ loop.revindex0 }}{% endfor %}",
    "{% for m in messages if m.role == 'user' %}{{ m.content | trim | upper }}{% else %}none{% endfor %}",
    "{% for m in messages recursive %}{{ m.role }}{% if loop.depth < 3 %}{{ loop([m]) }}{% endif %}{% endfor %}",
    "{% set a = namespace(n=0) %}{% for m in messages %}{% set a.n = a.n + m.content|length %}{% endfor %}{{ a.n }}",
    "{% macro f(x, y=1) %}[{{ x }}{{ y }}{{ varargs }}{{ kwargs }}]{% endmacro %}{{ f(1) ~ f(2, 3, 4, z=5) }}",
    "{% macro f() %}<{{ caller() }}>{% endmacro %}{% call f() %}{{ messages[0].role }}{% endcall %}",
    "{% generation %}{% set a = 1 %}{{ a }}{% endgeneration %}{{ a is defined }}",
    "{% set x %}{{ messages[0].content }}{% endset %}{{ x * 3 }}{{ x[1:] }}{{ x[::-1] }}{{ x ~ none ~ 1.5 }}",
    "{{ messages[-1].content.split('\\n')[-1].strip() }}{{ 'a,b'.split(',') | list }}{{ '%s-%02d' % ('x', 7) }}",
    "{{ dict(a=1, b=[2, (3, none)]) }}{{ {'x': messages[0].role}.items() | list }}{{ range(3) | list }}",
    "{{ messages | selectattr('role', 'equalto', 'user') | list | length }}{{ [3, 1, 2] | sort | first }}",
    "{{ messages[0].missing }}{{ missing is defined }}{{ messages[0].get('content', 1) }}{{ 7 // 2 ** 2 % 3 }}",
    "{{ 'a' in messages[0].content and 'user' == messages[0]['role'] }}{{ ' x\ny' | indent(3) }}",
    "{{ [1, 1] | unique | list }}{{ -7 | abs }}{{ '7' | int + 1.5 }}{{ none | default('d', true) }}",
    "{{ raise_exception('no') if messages | length > 2 }}{{ messages[0].content | replace('a', 'bb') | e }}",
    "{%- if tools %}{{ tools[0].function.parameters.properties | dictsort }}{% endif -%}\n  {# x #}\n  y",
    "{{ strftime_now('%d %b %Y') }}{% filter upper %}abc{% endfilter %}{% with a = 1 %}{{ a }}{% endwith %}",
]


@pytest.mark.parametrize("source", SNIPPETS)
@settings(deadline=None, max_examples=20)
@given(messages, st.sampled_from([None, TOOLS]))
def test_every_construct_means_what_it_means_to_transformers(
    source: str, talk: list[dict[str, Any]], tools: Any
) -> None:
    theirs = pytest.importorskip("transformers.utils.chat_template_utils").render_jinja_template
    ours = [{"thinking": m["reasoning_content"], **m} if "reasoning_content" in m else m for m in talk]
    try:
        want = theirs([talk], tools, chat_template=source, add_generation_prompt=True)[0][0]
    except Exception:
        with pytest.raises(UserError):
            Template(source).render(ours, True, tools)
    else:
        assert Template(source).render(ours, True, tools) == want


GROWS = "{% set ns = namespace(x=BEGIN) %}{% for i in range(100) %}{% set ns.x = STEP %}{% endfor %}{{ ns.x }}"
ENDLESS = [
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{% for a in range(99999) %}{% for b in range(99999) if b < 0 %}{% endfor %}{% endfor %}",
    "{% for a in range(99999) %}{{ range(99999) | map('string') | list | length }}{% endfor %}",
    "{% generation %}{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}{% endgeneration %}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1, varargs, varargs) }}{% endif %}{{ varargs }}{% endmacro %}{{ f(50, 1) }}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1, a=kwargs, b=kwargs) }}{% endif %}{{ kwargs }}{% endmacro %}{{ f(50, a=1) }}",
    "{% macro m() %}{{ caller() }}{{ caller() }}{% endmacro %}" + "{% call m() %}" * 40 + "x" + "{% endcall %}" * 40,
    "{% set l = range(99999) | list %}" + "{% if -1 in l %}{% endif %}" * 2000,
    "{% set l = range(99999) | list %}" + "{% if l == l[:] %}{% endif %}" * 1500,
    "{% set l = range(99999) | list %}" + "{% if -1 is in(l) %}{% endif %}" * 1900,
    "{% set l = range(99999) | list %}{{ ([-1] * 90000) | select('in', l) | list | length }}",
    "{{ 'x' * 10**10 }}", "{{ [0] * 10**10 }}", "{{ 10**9 * 'x' }}", "{{ 10**10000 }}", "{{ 7 ** 99999 * 7 ** 99999 }}",
    "{{ 'x'.ljust(10**9) }}", "{{ 'x'.rjust(10**9) }}", "{{ 'x'.center(10**9) }}", "{{ 'x'.zfill(10**9) }}",
    "{{ 'x' | indent(10**9) }}", "{{ ('f' * 100000) | int(base=16) }}",
    "{{ [[['a' * 1000000] * 1000000] * 1000000] }}", "{{ '-'.join('x' * 9000000) }}",
    "{% set ns = namespace(x=[0] * 10000) %}{% for i in range(200) %}{% set ns.x = [ns.x] %}{% endfor %}"
    "{{ ns.x | tojson(indent=100) }}",
    "{{ ('x' * 9000000) | list }}", "{{ ('a,' * 9000000).split(',') }}", "{{ ('x' * 1000000) | tojson }}" * 40,
    "{% set s = 'é' * 5000000 %}" + "{% set a = s[1:] %}" * 2000,
    "{% for i in range(99999) %}" + "x" * 50000 + "{% endfor %}",
    "{% macro f() %}" + "x" * 50000 + "{% endmacro %}{% for i in range(99999) %}{{ f() }}{% endfor %}",
    *(
        GROWS.replace("BEGIN", begin).replace("STEP", step)
        for begin, step in (
            ("'x'", "ns.x + ns.x"), ("'x'", "ns.x ~ ns.x"), ("'xx'", "ns.x.replace('x', ns.x)"),
            ("'xx'", "ns.x | replace('x', ns.x)"), ("'x'", "ns.x.join([ns.x, ns.x, ns.x])"),
            ("'x'", "[ns.x, ns.x] | join(ns.x)"), ("'x'", "'%s%s' % (ns.x, ns.x)"), ("[1]", "[ns.x, ns.x]"),
            ("[1]", "ns.x + ns.x"), ("[1]", "{'a': ns.x, 'b': ns.x}"), ("(1,)", "(ns.x, ns.x)"),
            ("{}", "dict(a=ns.x, b=ns.x)"), ("9", "ns.x * ns.x"),
        )
    ),
]  # fmt: skip
REFUSED = [
    ("{{ ''.__class__.__mro__ }}", "reaches for '__class__'"), ("{{ [].__class__ }}", "reaches for"),
    ("{{ ''['__class__'] }}", "reaches for"), ("{{ messages | map(attribute='__class__') | list }}", "reaches for"),
    ("{{ raise_exception.__globals__ }}", "reaches for"), ("{{ range.__class__ }}", "reaches for"),
    ("{{ namespace.mro }}", "reaches for"), ("{{ messages.append(1) }}", "reaches for 'append'"),
    ("{{ messages[0].update({}) }}", "reaches for"), ("{{ (1).to_bytes(10**9) }}", "reaches for"),
    ("{{ '{:>999999999}'.format(1) }}", "reaches for 'format'"), ("{{ '{0.x}'.format_map }}", "reaches for"),
    ("{% set ns = namespace(__class__=1) %}", "names something '__class__'"),
    ("{{ [0] | tojson(indent=100000) }}", "an indent"),
    ("{{ [0] | tojson(separators=('x' * 999, ':')) }}", "separator"),
    ("{{ '\t'.expandtabs(tabsize=10**9) }}", "reaches for"),
    ("{{ '%1000000000d' % 1 }}", "width"), ("{{ '%*d' % (1000000000, 1) }}", "width"),
    ("{{ strftime_now('%Y' * 1000) }}", "date format"), ("{{ range(10**10) }}", "Range too big"),
    ("{{ lipsum() }}", "undefined"), ("{{ cycler.__init__ }}", "reaches for"), ("{{ 1 / 0 }}", "division by zero"),
    ("{{ ''|attr('__class__') }}", "the filter 'attr'"), ("{{ 'x'|center(10**9) }}", "the filter 'center'"),
    ("{{ [1]|batch(10**9, 'x') }}", "the filter 'batch'"), ("{{ 1|round(10**9, 'ceil') }}", "the filter 'round'"),
    ("{% filter center(10**9) %}x{% endfilter %}", "the filter 'center'"),
    ("{{ [1]|map('center', 10**9)|list }}", "No filter named 'center'"),
    ("{{ [1] | map(' turn') | list }}", "No filter named 'turn'"), ("{{ 'x' | indent(-10**9) * 10**9 }}", "not end"),
    ("{% include 'x' %}", "the tag 'include'"), ("{% extends '/etc/passwd' %}", "the tag 'extends'"),
    ("{% import 'os' as os %}", "the tag 'import'"), ("{% block a %}{{ self.a() }}{% endblock %}", "the tag 'block'"),
    ("{{ 1" + " == 1" * 9 + " }}", "eight things"), ("x" * (LONGEST + 1), "64,000"),
    ("{% for %}", "not valid Jinja"), ("{{ '", "not valid Jinja"), ("{% nonsense %}", "not valid Jinja"),
    ("{{ " + "(" * 20000 + "1" + ")" * 20000 + " }}", "recursion"), ("{{ " + "not " * 9000 + "1 }}", "recursion"),
    ("{% if 1 %}" * 3000 + "{% endif %}" * 3000, "recursion"), ("{{ a" + "|trim" * 9000 + " }}", "recursion"),
    ("{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}", "recursion"), ("{{ " + "9" * 5000 + " }}", "digits"),
    ("{{ raise_exception('a\nb' * 1000) }}", "refuses this conversation: a ba b"),
    ("{{ messages[0].content + 1 }}", "breaks on"), ("{{ missing.thing }}", "breaks on"),
]  # fmt: skip


@pytest.mark.parametrize(("source", "said"), REFUSED)
def test_templates_that_reach_too_far_are_refused_in_one_line(source: str, said: str) -> None:
    with pytest.raises(UserError, match="The chat template") as refused:
        Template(source).render(ASKED)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 700


def test_templates_without_end_come_to_one_within_seconds_and_in_bounded_memory() -> None:
    """Each in turn, in a process that may have 1.5 GB, with a tenth of the time after the first."""
    script = (
        "import json, resource, sys, time\n"
        "from mull.text import sandbox\n"
        "from mull.text.template import Template\n"
        "from mull.types import UserError\n"
        "resource.setrlimit(resource.RLIMIT_AS, (3 << 29, 3 << 29))\n"
        "for source in json.load(sys.stdin):\n"
        "    begun, said = time.process_time(), 'it ended'\n"
        "    try:\n"
        "        Template(source).render([{'role': 'user', 'content': 'hi'}])\n"
        "    except UserError as error:\n"
        "        said = str(error)\n"
        "    peak = int(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])\n"
        "    sandbox.SECONDS = 0.1\n"
        "    print(json.dumps([time.process_time() - begun, peak, said, source[:60]]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], input=json.dumps(ENDLESS), capture_output=True, text=True, check=True
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(lines) == len(ENDLESS)
    for seconds, peak, said, source in lines:
        assert "does not end" in said and "MemoryError" not in said, (source, said)  # it is stopped before
        assert seconds < 2, source
        assert peak < 512 << 10, source  # KiB


def test_a_starved_machine_is_no_endless_template(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hours pass between any two looks at the clock; the template itself takes no time."""
    hours = SimpleNamespace(monotonic=count(step=3600).__next__, thread_time=time.thread_time)
    monkeypatch.setattr(sandbox, "time", hours)
    assert Template("{% for m in messages %}{{ m.content | upper }}{% endfor %}").render(ASKED) == "HI"


def test_nothing_is_computed_while_a_template_compiles() -> None:
    environment, ran = sandbox.Sandbox(), []
    environment.filters["upper"] = ran.append
    environment.compiled("{{ 'x' | upper }}")
    assert not ran


SHOWN = (
    "raise_exception", "range", "dict", "strftime_now", "messages[0].get", "messages[0].content.upper",
    "messages | map(attribute='role')",
)  # fmt: skip
WAYS = (
    "{{ IT }}", "{{ [IT] }}", "{{ 'a' ~ (IT) }}", "{{ (IT) | string }}", "{{ '%s' % (IT) }}", "{{ [[IT]] | join }}",
    "{% set ns = namespace(x=IT) %}{{ ns.x }}", "{{ {'a': IT} }}", "{{ dict(a=IT) }}", "{{ (IT,) | first | string }}",
    "{% macro f() %}{{ varargs }}{{ kwargs }}{% endmacro %}{{ f(IT, a=IT) }}",
)


@pytest.mark.parametrize("way", WAYS)
def test_nothing_says_where_it_lies_in_memory(way: str) -> None:
    for it in SHOWN:
        with pytest.raises(UserError, match="function"):
            Template(way.replace("IT", it)).render(ASKED)
    assert "0x" not in Template("{{ namespace }}{{ namespace() }}{% macro f() %}{% endmacro %}{{ f }}").render(ASKED)
    assert Template("{{ messages }}").render([{"role": "user", "content": "at 0x7f"}]).endswith("'at 0x7f'}]")


def test_a_short_template_of_many_parts_compiles_within_seconds() -> None:
    begun = time.process_time()
    Template("{{a.b.c(d)}}" * (LONGEST // 12))
    assert time.process_time() - begun < 3


def test_a_long_conversation_is_no_endless_template() -> None:
    """A megabyte in a thousand messages, through a loop that looks at every one of them."""
    talk = [{"role": "user", "content": "word " * 200} for _ in range(1000)]
    source = "{% for m in messages %}{{ m.role + m.content | trim }}{{ messages[loop.index:] | length }}{% endfor %}"
    assert len(Template(source).render(talk)) > 1_000_000


def test_a_stopped_rendering_leaves_the_next_one_whole_and_threads_do_not_mix() -> None:
    template = Template("{% if messages[0].content == 'x' %}{{ 'y' * 10**9 }}{% endif %}{{ messages[0].content }}")
    results: dict[int, str] = {}

    def work(i: int) -> None:
        try:
            results[i] = template.render([{"role": "user", "content": "x" if i % 2 else str(i)}])
        except UserError:
            results[i] = "refused"

    threads = [threading.Thread(target=work, args=(i,)) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {i: "refused" if i % 2 else str(i) for i in range(16)}


@settings(deadline=None, max_examples=150)
@given(
    st.lists(
        st.sampled_from([
            "{{", "}}", "{%", "%}", " for ", " in ", "messages", "if ", "x", "endfor", "endif", " set ", "=", "'", '"',
            "(", ")", "[", "]", "|", "tojson", "list", ".", "content", "~", "*", "99", "-", "macro f()", "endmacro",
            "f()", "#}", "{#", "\n", "namespace", "loop", ":", ",", "{", "}", "None", "is defined", "raw", "endraw",
        ]),
        max_size=30,
    ).map("".join)
)  # fmt: skip
def test_whatever_a_template_holds_it_renders_or_is_a_user_error(source: str) -> None:
    begun = time.monotonic()
    with contextlib.suppress(UserError):
        assert isinstance(Template(source).render(ASKED), str)
    assert time.monotonic() - begun < 5
