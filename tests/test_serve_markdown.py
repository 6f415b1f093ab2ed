"""Models' text in the page (markdown.js), and events as they arrive (stream.js), in a real browser.

What a model wrote is text, whatever it is; nothing of it gets lost; and it looks the same however it arrives.
"""

from __future__ import annotations

import random
import time
from typing import Any

from browser import Stub, Tab, browser, one_stub, stub, tab

__all__ = ["browser", "one_stub", "stub", "tab"]

HOSTILE = [
    "<script>window.hacked = 1</script>", "<img src=x onerror=window.hacked=1>", "<svg/onload=window.hacked=1>",
    "[click](javascript:window.hacked=1)", "[click](JaVaScRiPt:window.hacked=1)", "[a](vbscript:x)",
    "[a](data:text/html,<script>hacked</script>)", "![x](https://example.org/track.png)", "[a](blob:https://x)",
    "[a](//example.org)",
    "![x](javascript:window.hacked=1)", "<iframe srcdoc='<script>1</script>'></iframe>", "&lt;script&gt;", "> <blink>",
    "[x](https://example.org/\" onclick=\"window.hacked=1)", "[x](https://a.org 'onmouseover=hacked')", "- <marquee>",
    "<a href=\"javascript:window.hacked=1\">go</a>", "<style>*{display:none}</style>", "<form action=https://example.org>",
    "```html\n<script>window.hacked = 1</script>\n```", "`<img src=x onerror=hacked>`", "# <u>heading</u>",
    "| <b>a</b> |\n|---|\n| <i>x</i> |", "[<img src=x>](https://example.org)", "javascript:window.hacked=1",
    "https://example.org/<script>", "[a](\x01javascript:hacked)", "{{7*7}} ${7*7}",
    "```<img/src/onerror=hacked>\nx\n```",
    "</div></article><script>window.hacked=1</script>", "\u202e<script>\u2028window.hacked=1</script>",
]  # fmt: skip

TAGS = {
    "P", "STRONG", "EM", "DEL", "CODE", "PRE", "DIV", "SPAN", "A", "UL", "OL", "LI", "BLOCKQUOTE", "HR", "TABLE",
    "THEAD", "TBODY", "TR", "TH", "TD", "H3", "H4", "H5", "H6",
}  # fmt: skip

DRAW = """async ([texts, cuts]) => {
  const { render } = await import("/page/markdown.js");
  return texts.map((text, i) => {
    const box = document.createElement("div"), grown = document.createElement("div");
    render(box, text);
    for (const cut of cuts[i] ?? []) render(grown, text.slice(0, cut));
    render(grown, text);
    const all = [...box.querySelectorAll("*")];
    return {
      html: box.innerHTML, grown: grown.innerHTML, text: box.textContent, tags: all.map((one) => one.tagName),
      attributes: all.flatMap((one) => [...one.attributes].map((a) => [one.tagName, a.name, a.value])),
    };
  });
}"""


def drawn(tab: Tab, texts: list[str], cuts: list[list[int]] | None = None) -> list[dict[str, Any]]:
    return tab.page.evaluate(DRAW, [texts, cuts or []])


def harmless(found: dict[str, Any]) -> None:
    assert set(found["tags"]) <= TAGS
    for tag, name, value in found["attributes"]:
        assert name in {"A": ("href", "rel", "target"), "OL": ("start",)}.get(tag, ("class", "data-language"))
        if name == "href":
            assert value.startswith(("http://", "https://"))
        if name == "rel":
            assert "noopener" in value


def test_hostile_answers_are_text(tab: Tab, stub: Stub):
    for found in drawn(tab, HOSTILE):
        harmless(found)
    everything = "\n\n".join(HOSTILE)
    tab.ask(HOSTILE[0])
    stub.say(reasoning_content=everything)
    for at in range(0, len(everything), 7):
        stub.say(content=everything[at : at + 7])
    stub.end()
    tab.sees("go</a>")
    tab.ends()
    assert tab.page.locator("#log :is(script, img, iframe, style, form, object, embed, link)").count() == 0
    tab.page.reload()
    tab.sees("go</a>")
    assert tab.page.evaluate("window.hacked") is None
    assert tab.page.locator("#title").inner_text() == HOSTILE[0]


PIECES = [
    "word", "other", " ", "  ", "\n", "\n\n", "*", "**", "_", "`", "```", "~~", "$", "\\(", "\\)", "#", "## ", "- ",
    "1. ", "   - ", "> ", "|", "|--|\n", "[", "](", ")", "https://a.org/b", "http://", "<b>", "\\", "!", ":", "é",
    "你好", "🙂", "\t", "---",
]  # fmt: skip


def test_any_text_is_harmless_whole_and_the_same_however_it_arrives(tab: Tab):
    draw = random.Random(1)
    texts = ["".join(draw.choices(PIECES, k=draw.randrange(1, 30))) for _ in range(600)]
    cuts = [sorted(draw.sample(range(len(text) + 1), min(4, len(text)))) for text in texts]
    for text, found in zip(texts, drawn(tab, texts, cuts), strict=True):
        harmless(found)
        assert found["grown"] == found["html"], text
        for word in ("word", "other", "é", "你好", "🙂"):
            shown = found["text"].count(word) + sum(value.count(word) for *_, value in found["attributes"])
            assert shown >= text.count(word), text


LINK = 'rel="noopener noreferrer nofollow" target="_blank"'
PYTHON = '<div class="code" data-language="py"><pre><code>x\n  y</code></pre></div>'
MATH = '<span class="math">%s</span>'
HEAD = '<div class="table"><table><thead><tr><th>a</th><th class="center">b</th></tr></thead>'
ROW = '<tbody><tr><td>1</td><td class="center"><code>x</code></td></tr></tbody></table></div>'
MARKDOWN = {
    "# One\n### Three ###": "<h3>One</h3><h5>Three</h5>",
    "a **b *c* d**": "<p>a <strong>b <em>c</em> d</strong></p>",
    "_e_ __f__ ~~g~~": "<p><em>e</em> <strong>f</strong> <del>g</del></p>",
    "snake_case_name 2 * 3 * 4 \\*no\\*": "<p>snake_case_name 2 * 3 * 4 *no*</p>",
    "`a` ``b`c`` `*x*`": "<p><code>a</code> <code>b`c</code> <code>*x*</code></p>",
    "$a_1 * b_2 * c$ costs $5 and $6": f"<p>{MATH % '$a_1 * b_2 * c$'} costs $5 and $6</p>",
    "\\[ x_1 \\]\nand \\(y_2 * z\\)": "<p>" + MATH % "\\[ x_1 \\]" + "\nand " + MATH % "\\(y_2 * z\\)" + "</p>",
    "one\ntwo\n\nthree": "<p>one\ntwo</p><p>three</p>",
    "- a\n- b\n  - c\n- d": "<ul><li>a</li><li>b<ul><li>c</li></ul></li><li>d</li></ul>",
    "3. a\n4. b": '<ol start="3"><li>a</li><li>b</li></ol>',
    "1. a\n\n   more\n2. b": "<ol><li><p>a</p><p>more</p></li><li><p>b</p></li></ol>",
    "1. a\n   ```py\n   x\n     y\n   ```": f"<ol><li><p>a</p>{PYTHON}</li></ol>",
    "```\na <b>\n\n# c": '<div class="code" data-language="text"><pre><code>a &lt;b&gt;\n\n# c</code></pre></div>',
    "> a\n> - b": "<blockquote><p>a</p><ul><li>b</li></ul></blockquote>",
    "a | b\n--|:-:\n1 | `x`\n2": HEAD + ROW + "<p>2</p>",
    "a\n***\nb": "<p>a</p><hr><p>b</p>",
    "**not closed": "<p>**not closed</p>",
    "see https://a.org/x_y_z.": f'<p>see <a href="https://a.org/x_y_z" {LINK}>https://a.org/x_y_z</a>.</p>',
    "[a *b*](https://a.org/(c))": f'<p><a href="https://a.org/(c)" {LINK}>a <em>b</em></a></p>',
}


def test_markdown_looks_as_it_is_meant(tab: Tab):
    for text, found in zip(MARKDOWN, drawn(tab, list(MARKDOWN)), strict=True):
        assert found["html"] == MARKDOWN[text], text


HARD = {
    "[": 50_000, "**a ": 12_000, "`": 50_000, "`a": 25_000, "$a ": 17_000, "> ": 25_000, "- ": 25_000, "\\(": 25_000,
    "[a](https://": 4_000, "_a ": 17_000, "|": 50_000, "1. ": 17_000, "a\n": 25_000, "- a\n": 8_000, "https://": 6_000,
    "|a\n|-|\n": 7_000, "*a **b ": 7_000,
}  # fmt: skip


def test_text_of_brackets_and_stars_is_shown_in_no_time(tab: Tab):
    took = {}
    for piece, times in HARD.items():
        began = time.perf_counter()
        drawn(tab, [piece * times])
        took[piece] = time.perf_counter() - began
    assert max(took.values()) < 8, took  # what is quadratic takes minutes


def test_events_are_the_same_however_bytes_are_cut(tab: Tab):
    stream = 'data: {"a": "né🙂"}\r\n\r\n: still at it\n\ndata: one\ndata: two\n\n'
    stream += "event: x\ndata:three\r\rdata: [DONE]\n\n"
    found = tab.page.evaluate(
        """async (text) => {
          const { events } = await import("/page/stream.js");
          const bytes = new TextEncoder().encode(text), all = [];
          for (let cut = 0; cut <= bytes.length; cut++) {
            const parts = [bytes.slice(0, cut), bytes.slice(cut)];
            const body = new ReadableStream({ pull: (to) => (parts.length ? to.enqueue(parts.shift()) : to.close()) });
            const got = [];
            for await (const data of events(body)) got.push(data);
            all.push(got);
          }
          return all;
        }""",
        stream,
    )
    assert len(found) == len(stream.encode()) + 1
    assert all(one == ['{"a": "né🙂"}', "one\ntwo", "three", "[DONE]"] for one in found)
