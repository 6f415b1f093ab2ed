"""The web page in a real browser. Each test also asserts that nothing broke the page's policy or was an error there."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import Stub, Tab, browser, one_stub, stub, tab
from serving import serving
from small import in_memory
from starlette.testclient import TestClient

from mull.serve.page import FOLDER, POLICY, Page

__all__ = ["browser", "in_memory", "one_stub", "stub", "tab"]


def answered(tab: Tab, stub: Stub, question: str, answer: str) -> None:
    tab.ask(question)
    stub.say(content=answer)
    stub.end()
    tab.sees(answer)
    tab.ends()


# ---- the files


def test_every_file_is_sent_under_the_policy():
    async def elsewhere(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError(scope["path"])

    client = TestClient(Page(elsewhere))
    for path in ["/", *(f"/page/{file.name}" for file in FOLDER.iterdir() if file.name != "index.html")]:
        found = client.get(path)
        assert found.status_code == 200 and found.headers["content-security-policy"] == POLICY
        assert found.headers["x-content-type-options"] == "nosniff" and found.headers["cache-control"] == "no-cache"
        assert client.get(path, headers={"if-none-match": found.headers["etag"]}).status_code == 304
    for path in ("/page/../page.py", "/page/none.js", "/page/", "/page/index.html"):
        with pytest.raises(AssertionError):
            client.get(path)
    with pytest.raises(AssertionError):
        client.post("/")


def test_nothing_comes_from_elsewhere_and_no_text_becomes_markup():
    source = "\n".join(path.read_text(encoding="utf-8") for path in FOLDER.iterdir())
    for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function", " style="):
        assert word not in source
    assert {part.split("/")[0] for part in source.split("://")[1:] if part[0].isalnum()} == {"www.w3.org"}
    assert "on" + "load=" not in source and "<script>" not in source


# ---- an answer


def test_thoughts_open_while_it_thinks_and_fold_when_it_answers(tab: Tab, stub: Stub):
    tab.ask("What is 3 + 4?")
    tab.page.locator(".waiting").wait_for()
    stub.say(reasoning_content="Three and ")
    stub.say(reasoning_content="four make seven.")
    tab.sees("Three and four make seven.")
    assert tab.page.locator("details.thought[open]").count() == 1
    assert tab.page.locator("summary").inner_text().startswith("Thinking")
    assert tab.page.get_attribute("#log", "aria-busy") == "true"
    stub.say(content="It is **7**")
    tab.page.locator(".answer strong").wait_for()
    assert tab.page.locator("details.thought[open]").count() == 0
    stub.say(content=".")
    stub.end()
    tab.ends()
    assert tab.page.locator(".answer .said").inner_html() == "<p>It is <strong>7</strong>.</p>"
    summary = tab.page.locator("summary").inner_text()
    assert summary.startswith("Thought for ") and summary.endswith(" s · 6 tokens")
    took = tab.page.locator(".took")
    assert took.inner_text().startswith("10 tokens · ") and took.inner_text().endswith(" s · $0.00042")
    assert "tokens/s" in took.inner_text()
    assert "41 tokens of prompt, 16 of them cached" in (took.get_attribute("title") or "")
    assert tab.page.get_attribute("#log", "aria-busy") == "false"
    tab.page.click("summary")
    assert tab.page.locator(".thoughts").inner_text() == "Three and four make seven."


def test_thoughts_that_were_opened_by_hand_stay_open(tab: Tab, stub: Stub):
    tab.ask("?")
    stub.say(reasoning_content="hmm")
    tab.sees("hmm")
    tab.page.click("summary")
    tab.page.click("summary")
    stub.say(content="7")
    stub.end()
    tab.ends()
    assert tab.page.locator("details.thought[open]").count() == 1


def test_what_is_asked_for_is_what_was_chosen(tab: Tab, stub: Stub):
    tab.page.select_option("#effort", "high")
    tab.page.click("#open-settings")
    for field, value in {"system": "Be brief.", "temperature": "0.5", "seed": "7", "tokens": "99"}.items():
        tab.page.fill(f"#set-{field}", value)
    tab.page.select_option("#set-model", "tiny-2")
    tab.page.press("#set-seed", "Enter")
    answered(tab, stub, "first", "one")
    answered(tab, stub, "second", "two")
    said = [("system", "Be brief."), ("user", "first"), ("assistant", "one"), ("user", "second")]
    messages = [{"role": role, "content": content} for role, content in said]
    wanted = {"model": "tiny-2", "reasoning_effort": "high", "temperature": 0.5, "seed": 7, "max_tokens": 99}
    options = {"include_usage": True, "continuous_usage_stats": True}
    assert stub.asked[1] == {**wanted, "messages": messages, "stream": True, "stream_options": options}
    tab.page.reload()
    assert tab.page.input_value("#effort") == "high"


def test_a_model_that_does_not_think_is_not_asked_how_much(tab: Tab, stub: Stub):
    tab.page.select_option("#effort", "high")
    tab.page.click("#open-settings")
    tab.page.select_option("#set-model", "plain")
    tab.page.get_by_role("button", name="Done").click()
    tab.page.locator("#effort").wait_for(state="hidden")
    answered(tab, stub, "?", "Yes.")
    assert stub.asked[0]["model"] == "plain" and "reasoning_effort" not in stub.asked[0]


def test_keys_send_break_lines_and_stop(tab: Tab, stub: Stub):
    tab.page.click("#text")
    tab.page.keyboard.type("one")
    tab.page.keyboard.press("Shift+Enter")
    tab.page.keyboard.type("two")
    assert stub.asked == []
    tab.page.keyboard.press("Enter")
    stub.say(content="an answer without end")
    tab.sees("an answer without end")
    assert stub.asked[0]["messages"] == [{"role": "user", "content": "one\ntwo"}]
    tab.page.keyboard.press("Escape")
    tab.ends()
    assert stub.left.wait(20), "the server still draws"
    assert tab.texts(".answer .said") == ["an answer without end"]
    assert tab.page.locator(".took").inner_text().startswith("stopped")


def test_the_button_stops_before_the_first_token(tab: Tab, stub: Stub):
    tab.ask("?")
    tab.page.locator("#send.stop").click()
    tab.ends()
    assert stub.left.wait(20)
    assert tab.page.locator(".answer").count() == 0
    tab.page.get_by_role("button", name="Answer it").click()
    stub.say(content="now")
    stub.end()
    tab.sees("now")
    tab.ends()


def test_the_last_answer_is_drawn_again_and_the_last_message_edited(tab: Tab, stub: Stub):
    answered(tab, stub, "q1", "a1")
    answered(tab, stub, "q2", "a2")
    tab.page.get_by_role("button", name="Answer again").click()
    stub.say(content="a2 anew")
    stub.end()
    tab.sees("a2 anew")
    tab.ends()
    assert [message["content"] for message in stub.asked[2]["messages"]] == ["q1", "a1", "q2"]
    assert tab.texts(".said") == ["q1", "a1", "q2", "a2 anew"]
    tab.page.locator(".user").last.hover()
    assert tab.page.get_by_role("button", name="Edit the message").count() == 1
    tab.page.get_by_role("button", name="Edit the message").click()
    assert tab.page.input_value("#text") == "q2"
    tab.page.keyboard.press("Escape")
    assert tab.page.input_value("#text") == "" and not tab.page.is_visible("#editing")
    tab.page.get_by_role("button", name="Edit the message").click()
    answered(tab, stub, "q2 better", "a3")
    assert tab.texts(".said") == ["q1", "a1", "q2 better", "a3"]
    assert [message["content"] for message in stub.asked[3]["messages"]] == ["q1", "a1", "q2 better"]


def test_copies(tab: Tab, stub: Stub):
    tab.context.grant_permissions(["clipboard-read", "clipboard-write"])
    tab.ask("?")
    stub.say(content="So:\n```py\nx = 1\n```")
    stub.end()
    tab.ends()
    tab.page.get_by_role("button", name="Copy the code").click()
    tab.page.get_by_role("button", name="Copied").wait_for()
    assert tab.page.evaluate("navigator.clipboard.readText()") == "x = 1"
    tab.page.get_by_role("button", name="Copy the answer").click()
    tab.until("navigator.clipboard.readText().then((text) => text.startsWith('So:'))")


# ---- what goes wrong


def test_an_error_is_told_in_the_servers_words_and_tried_again(tab: Tab, stub: Stub):
    tab.expected = ("status of 503",)
    stub.refusal = (503, "The queue is full: 16 requests are being answered and 64 wait.", {"Retry-After": "2"})
    tab.ask("?")
    tab.sees("The queue is full: 16 requests are being answered and 64 wait. Try again in 2 s.")
    tab.page.get_by_role("button", name="Try again").click()
    stub.say(content="Here.")
    stub.end()
    tab.sees("Here.")
    tab.ends()
    assert tab.page.locator(".trouble").count() == 0
    assert stub.asked[0]["messages"] == stub.asked[1]["messages"]


def test_half_an_answer_stays_with_the_reason(tab: Tab, stub: Stub):
    tab.ask("?")
    stub.say(content="Half of it")
    stub.fail("The engine stopped before this answer ended; it starts again.")
    tab.sees("The engine stopped before this answer ended")
    assert tab.texts(".answer .said") == ["Half of it"]
    tab.page.reload()
    tab.sees("The engine stopped before this answer ended")
    tab.page.get_by_role("button", name="Try again").click()
    stub.say(content="All of it")
    stub.end()
    tab.sees("All of it")
    tab.ends()
    assert tab.texts(".said") == ["?", "All of it"] and tab.page.locator(".trouble").count() == 0
    assert len(stub.asked[1]["messages"]) == 1


def test_a_connection_that_breaks_and_a_server_that_is_gone_are_told(tab: Tab, stub: Stub):
    tab.expected = ("ERR_INTERNET_DISCONNECTED",)
    tab.ask("?")
    stub.say(content="Half")
    stub.put(None)
    tab.sees("The connection broke before the answer ended.")
    tab.context.set_offline(True)
    tab.page.get_by_role("button", name="Try again").click()
    tab.sees("The server cannot be reached.")
    tab.context.set_offline(False)


@pytest.mark.parametrize("remember", [False, True])
def test_a_server_that_wants_a_key_is_given_it(browser: Any, stub: Stub, remember: bool):
    stub.key = "mull-secret"
    tab = Tab(browser, stub.url)
    tab.wrong.clear()  # that the first request was refused
    tab.page.locator("#settings[open]").wait_for()
    assert "asks for an API key" in tab.page.locator("#settings-why").inner_text()
    tab.page.fill("#set-key", "mull-secret")
    tab.page.locator("#set-remember").set_checked(remember)
    tab.page.keyboard.press("Enter")
    tab.page.get_by_text("Ask tiny", exact=True).wait_for()
    answered(tab, stub, "?", "Welcome.")
    kept = tab.page.evaluate("[sessionStorage.getItem('mull.key'), localStorage.getItem('mull.key')]")
    assert kept == ([None, "mull-secret"] if remember else ["mull-secret", None])
    assert "mull-secret" not in tab.page.content()
    tab.context.close()
    assert tab.wrong == []


def test_without_storage_it_still_answers(browser: Any, stub: Stub):
    tab = Tab(browser, stub.url)
    tab.context.add_init_script("Storage.prototype.setItem = () => { throw new Error('QuotaExceeded') }")
    tab.page.reload()
    tab.page.get_by_text("Ask tiny", exact=True).wait_for()
    answered(tab, stub, "?", "Yes.")
    assert tab.wrong == []
    tab.context.close()


# ---- conversations


def test_history_survives_a_reload(tab: Tab, stub: Stub):
    tab.ask("first question")
    stub.say(reasoning_content="a thought")
    stub.say(content="first answer")
    stub.end()
    tab.ends()
    tab.page.get_by_role("button", name="New conversation").click()
    answered(tab, stub, "second question", "second answer")
    tab.page.reload()
    tab.sees("second answer")
    assert tab.texts("#chats .name") == ["second question", "first question"]
    tab.page.get_by_role("button", name="first question", exact=True).click()
    tab.sees("first answer")
    assert tab.page.locator("summary").inner_text().startswith("Thought")
    assert tab.page.locator(".took").inner_text().startswith("10 tokens")
    assert stub.asked[1]["messages"] == [{"role": "user", "content": "second question"}]


def test_an_answer_goes_on_while_another_conversation_is_read(tab: Tab, stub: Stub):
    answered(tab, stub, "first", "one")
    tab.page.get_by_role("button", name="New conversation").click()
    tab.ask("second")
    stub.say(content="the beg")
    tab.sees("the beg")
    tab.page.get_by_role("button", name="first", exact=True).click()
    tab.sees("one")
    stub.say(content="inning")
    stub.end()
    tab.ends()
    assert tab.texts(".answer .said") == ["one"]
    tab.page.get_by_role("button", name="second", exact=True).click()
    tab.sees("the beginning")


def test_conversations_are_renamed_exported_deleted_and_brought_back(tab: Tab, stub: Stub):
    answered(tab, stub, "a question", "an answer")
    tab.page.locator("#chats li").hover()
    tab.page.get_by_role("button", name="Rename “a question”").click()
    tab.page.keyboard.type("On <b>questions</b>")
    tab.page.keyboard.press("Enter")
    assert tab.texts("#chats .name") == ["On <b>questions</b>"]
    assert tab.page.locator("#title").inner_text() == "On <b>questions</b>"
    with tab.page.expect_download() as found:
        tab.page.get_by_role("button", name="Export").first.click()
    assert found.value.suggested_filename == "on-b-questions-b.json"
    exported = json.loads(Path(found.value.path()).read_text(encoding="utf-8"))
    assert [message["content"] for message in exported["messages"]] == ["a question", "an answer"]
    tab.page.locator("#chats li").hover()
    tab.page.get_by_role("button", name="Delete").click()
    assert tab.page.locator("#chats li").count() == 0 and tab.page.locator(".turn").count() == 0
    tab.page.get_by_role("button", name="Undo").click()
    tab.sees("an answer")
    tab.page.locator("#chats li").hover()
    tab.page.get_by_role("button", name="Delete").click()
    tab.page.reload()
    assert tab.page.evaluate("Object.keys(localStorage).filter((name) => name.startsWith('mull.chat.'))") == []


def test_what_the_browser_kept_may_be_damaged(tab: Tab, stub: Stub):
    answered(tab, stub, "q", "a")
    for i, value in enumerate(["{", "null", "[]", '{"id": 1}', '{"id": "x", "title": "t", "messages": [null]}']):
        tab.page.evaluate("([i, value]) => localStorage.setItem(`mull.chat.${i}`, value)", [i, value])
    tab.page.evaluate("localStorage.setItem('mull.settings', '[')")
    tab.page.reload()
    tab.sees("a")
    assert tab.texts("#chats .name") == ["q"]


# ---- looks

LONG = "w" * 300 + " " + "https://example.org/" + "x" * 300
TABLE = "|" + " column |" * 30 + "\n|" + "--|" * 30 + "\n|" + f" {'cell' * 9} |" * 30
WIDE = f"{LONG}\n\n```\n{LONG}\n```\n\n{TABLE}\n\n`{LONG}`\n\n$${LONG}$$"
SCREENS = {
    "light": {},
    "dark": {"color_scheme": "dark"},
    "phone": {"viewport": {"width": 360, "height": 740}, "is_mobile": True, "has_touch": True},
}  # fmt: skip

OVER = """() => {
  const parts = document.querySelectorAll("html, body, main, #scroll, #log, .turn, .foot, #composer, header");
  return [...parts].filter((one) => one.scrollWidth > one.clientWidth + 1).map((one) => one.id || one.tagName);
}"""

CONTRAST = """() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const linear = (v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  const light = (colour) => {
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].map((v) => linear(v / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (one) => {
    const colour = one ? getComputedStyle(one).backgroundColor : "white";
    return /, 0\\)$/.test(colour) ? behind(one.parentElement) : colour;
  };
  const words = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const found = [];
  while (words.nextNode()) {
    const one = words.currentNode.parentElement;
    if (!words.currentNode.data.trim() || !one.checkVisibility()) continue;
    const [a, b] = [light(getComputedStyle(one).color), light(behind(one))];
    found.push([(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), words.currentNode.data.slice(0, 30)]);
  }
  return found;
}"""


@pytest.mark.parametrize("screen", SCREENS)
def test_it_fits_and_can_be_read(browser: Any, stub: Stub, screen: str, tmp_path: Path):
    tab = Tab(browser, stub.url, **SCREENS[screen])
    assert tab.page.evaluate(OVER) == []
    tab.ask(LONG)
    stub.say(reasoning_content=LONG)
    stub.say(content=WIDE)
    stub.end()
    tab.ends()
    tab.page.click("summary")
    assert tab.page.evaluate(OVER) == []
    contrast = tab.page.evaluate(CONTRAST)
    assert len(contrast) > 15 and min(contrast)[0] >= 4.5, min(contrast)
    if screen == "phone":
        assert not tab.page.is_visible("#chats")
        tab.page.click("#menu")
        tab.page.locator("#chats li").wait_for()
        tab.page.keyboard.press("Escape")
        assert tab.page.evaluate("document.activeElement.id") == "menu"
    tab.page.click("#open-settings")
    inside = tab.page.locator("#settings").bounding_box()
    assert inside["x"] >= 0 and inside["x"] + inside["width"] <= tab.page.viewport_size["width"]
    tab.page.screenshot(path=tmp_path / f"{screen}.png")
    tab.context.close()
    assert tab.wrong == []


def test_colours_follow_the_system_until_they_are_chosen(browser: Any, stub: Stub):
    tab = Tab(browser, stub.url, color_scheme="dark")
    paper = "getComputedStyle(document.body).backgroundColor"
    dark = tab.page.evaluate(paper)
    tab.page.get_by_role("button", name="Light colours").click()
    light = tab.page.evaluate(paper)
    assert light != dark
    tab.page.reload()
    assert tab.page.evaluate(paper) == light
    tab.page.get_by_role("button", name="Dark colours").click()
    tab.page.emulate_media(color_scheme="light")
    assert tab.page.evaluate(paper) == light
    tab.context.close()
    assert tab.wrong == []


def test_everything_has_a_name_and_nothing_moves_for_those_who_want_it_so(browser: Any, stub: Stub):
    tab = Tab(browser, stub.url, reduced_motion="reduce")
    tab.ask("?")
    stub.say(reasoning_content="hm")
    tab.sees("hm")
    assert tab.page.evaluate("document.getAnimations().length") == 0
    stub.say(content="```py\nx\n```")
    stub.end()
    tab.ends()
    nameless = """() => [...document.querySelectorAll("button, input, select, textarea, summary")]
      .filter((one) => !(one.ariaLabel || one.labels?.length || one.textContent.trim())).map((one) => one.outerHTML)"""
    assert tab.page.evaluate(nameless) == []
    tab.page.keyboard.press("Tab")
    tab.context.close()
    assert tab.wrong == []


# ---- the real server


@pytest.fixture(scope="module")
def real() -> Iterator[Any]:
    with serving(options={"drafts": False}) as server:  # an endless answer that repeats itself must not end at once
        yield server


def test_it_talks_with_the_real_server(browser: Any, real: Any):
    tab = Tab(browser, real.url)
    tab.page.get_by_text("Ask tiny", exact=True).wait_for()
    tab.page.click("#open-settings")
    tab.page.fill("#set-tokens", "30")
    tab.page.fill("#set-seed", "3")
    tab.page.keyboard.press("Enter")
    tab.ask("What is 3 + 4?")
    tab.ends()
    assert "token" in tab.page.locator(".took").inner_text()
    said = "[...document.querySelectorAll('.thoughts, .said')].map((one) => one.textContent)"
    first = tab.page.evaluate(said)
    tab.page.get_by_role("button", name="Answer again").click()
    tab.ends()
    assert tab.page.evaluate(said) == first and any(first[1:])
    tab.context.close()
    assert tab.wrong == []


def test_stopping_frees_the_real_server(browser: Any, real: Any):
    tab = Tab(browser, real.url)

    def endless(route: Any) -> None:
        route.continue_(post_data=json.dumps(json.loads(route.request.post_data) | {"ignore_eos": True}))

    tab.page.route("**/chat/completions", endless)
    tab.ask("?")
    tab.until("document.querySelector('#log .answer')?.innerText.length > 20")
    assert len(real.host.tickets) == 1
    tab.page.keyboard.press("Escape")
    tab.ends()
    until = time.monotonic() + 20
    while real.host.tickets and time.monotonic() < until:
        time.sleep(0.02)
    assert not real.host.tickets
    tab.context.close()
    assert tab.wrong == []
