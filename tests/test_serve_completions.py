"""OpenAI's older Completions through its own package: text that goes on where the prompt ends."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import openai
import pytest
from serving import Lesson, Server, serving, taught


@pytest.fixture(scope="module", name="server")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = taught(tmp_path_factory.mktemp("model") / "tiny", Lesson("add", "It is 12. 你好 🙂", "7 and 5"))
    with serving(folder, options={"exact": True}) as server:
        yield server


@pytest.fixture(scope="module", name="go_on")
def going_on(server: Server) -> Iterator[Any]:
    with server.openai() as client:
        yield partial(client.completions.create, model="tiny", temperature=0)


def test_text_goes_on_behind_its_prompt(go_on: Any, server: Server) -> None:
    template = server.dialogue.chat
    prompt = "<|im_start|>user\nadd<|im_end|>\n<|im_start|>assistant\n<think>"
    answer = go_on(prompt=prompt, max_tokens=60)
    assert answer.choices[0].text == "7 and 5</think>It is 12. 你好 🙂"
    assert answer.choices[0].finish_reason == "stop"
    by_ids = go_on(prompt=template.tokenizer.encode(prompt, special=True), max_tokens=60)
    assert by_ids.choices[0].text == answer.choices[0].text
    stream = go_on(prompt=prompt, max_tokens=60, stream=True, stream_options={"include_usage": True})
    chunks = [*stream]
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == answer.choices[0].text
    assert chunks[-1].usage.completion_tokens == answer.usage.completion_tokens
    cut = go_on(prompt=prompt + "7", max_tokens=60, stop=" 5")
    assert cut.choices[0].text == " and"  # the blank is the text's


def test_several_prompts_have_their_choices_in_order(go_on: Any) -> None:
    answer = go_on(prompt=["a", "b"], n=2, max_tokens=4, temperature=2, seed=5)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    for at, prompt in enumerate("ab"):
        alone = go_on(prompt=prompt, n=2, max_tokens=4, temperature=2, seed=5)
        assert [c.text for c in alone.choices] == [c.text for c in answer.choices[2 * at : 2 * at + 2]]
    assert answer.usage.completion_tokens == 16
    assert answer.usage.prompt_tokens == 2


def test_texts_are_echoed_and_scored(go_on: Any) -> None:
    assert go_on(prompt="ab", echo=True, max_tokens=2).choices[0].text.startswith("ab")
    scored = go_on(prompt="ab", max_tokens=4, logprobs=2).choices[0].logprobs
    assert [len(part) for part in (scored.tokens, scored.token_logprobs, scored.top_logprobs)] == [4, 4, 4]
    assert len(go_on(prompt="ab").choices[0].text) > 0
    assert go_on(prompt="", max_tokens=1).usage.completion_tokens == 1


@pytest.mark.parametrize(("options", "why"), [
    ({"suffix": "x"}, "suffix"),
    ({"best_of": 3}, "best_of"),
    ({"echo": True, "logprobs": 1}, "echo"),
    ({"prompt": []}, "empty"),
    ({"prompt": [5, 999]}, "vocabulary"),
    ({"prompt": ["a"] * 1000}, "128 prompts"),
    ({"prompt": {"a": 1}}, "prompt"),
])  # fmt: skip
def test_what_text_completion_cannot_do_is_refused(go_on: Any, options: dict[str, Any], why: str) -> None:
    with pytest.raises(openai.BadRequestError, match=why):
        go_on(**{"prompt": "a", **options})
