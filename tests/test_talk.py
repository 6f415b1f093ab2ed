"""Talking with models that others published: no thinking where there is none, and a conversation that is remembered."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console
from small import GQA, changed, chat, model_of

from mull import hub
from mull.api import Model, Options
from mull.model.weights import save_model
from mull.talk import Conversation, as_plain
from mull.text.chat import Chat

PLAIN = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SHOWS_THOUGHTS = PLAIN.replace(
    "{{ m.content }}",
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}",
).replace("assistant\n{% endif %}", "assistant\n<think>{% endif %}")


def of(template: str) -> Callable[[Path], Model]:
    def make(folder: Path) -> Model:
        cfg = changed(GQA, max_length=1024)
        save_model(folder / "theirs", model_of(cfg), Chat(chat().tokenizer, template))
        return Model.load(folder / "theirs", "cpu")

    return make


def talk(model: Model, *lines: str, **options: object) -> tuple[Conversation, str]:
    """A conversation of these lines, and what was said on stderr."""
    left = iter(lines)

    def read(prompt: str) -> str:
        try:
            return next(left)
        except StopIteration:
            raise EOFError from None

    console = Console(width=200, highlight=False, record=True, file=open(os.devnull, "w"))  # noqa: SIM115, PTH123
    conversation = Conversation(
        model, Options(**{"max_tokens": 12, **options}), remember=True, read=read, console=console
    )  # type: ignore[typeddict-item]
    conversation.run()
    console.file.close()
    return conversation, console.export_text()


def test_a_model_that_does_not_think_just_answers(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    model = of(PLAIN)(tmp_path)
    answer = model.generate("hi", max_tokens=12)
    assert answer.reasoning == ""
    assert answer.text
    assert answer.tokens == model.generate("hi", max_tokens=12, thinking=False).tokens
    streamed = list(model.stream("hi", max_tokens=12))
    assert "".join(delta.reasoning for delta in streamed) == ""
    assert answer.text.startswith("".join(delta.text for delta in streamed).strip())
    _, said = talk(model, "hi", "/think on", "/think off")
    assert "This model's chat template knows no thinking; it answers at once." in said
    assert answer.text.startswith(capsys.readouterr().out.strip())


@pytest.mark.parametrize(
    ("template", "said"), [(PLAIN, "cut off: --max"), (SHOWS_THOUGHTS, "cut off, still thinking: --")]
)
def test_an_answer_that_is_cut_off_says_of_what(template: str, said: str, tmp_path: Path):
    assert said in talk(of(template)(tmp_path), "hi", max_tokens=2)[1]


def test_the_conversation_is_remembered_until_it_is_forgotten(tmp_path: Path):
    model = of(PLAIN)(tmp_path)
    conversation, said = talk(model, "one", "two", "three")
    assert [turn.role for turn in conversation.turns] == ["user", "assistant"] * 3
    assert [turn.content for turn in conversation.turns[::2]] == ["one", "two", "three"]
    assert "theirs: the conversation is remembered" in said
    assert talk(model, "one", "/reset")[0].turns == []
    assert talk(model, "one", "/remember off", "two")[0].turns == []


def test_the_template_is_shown_earlier_thoughts_and_decides(tmp_path: Path):
    model = of(SHOWS_THOUGHTS)(tmp_path)
    conversation, _ = talk(model, "one")
    (_, answer) = conversation.turns
    assert answer.reasoning
    shown = model.chat.tokenizer.decode(model.chat.encode([*conversation.turns, conversation.turns[0]]))
    assert f"<think>{answer.reasoning}</think>" in shown
    plain = Chat(model.chat.tokenizer, PLAIN)
    assert "<think>" not in plain.tokenizer.decode(plain.encode([*conversation.turns, conversation.turns[0]]))


def test_a_conversation_that_outgrows_the_model_is_one_line(tmp_path: Path):
    model = of(PLAIN)(tmp_path)
    conversation, said = talk(model, "long " * 1000, "short")
    assert "this model holds 1024, the answer included" in said
    assert [turn.content for turn in conversation.turns[::2]] == ["short"]


def test_how_long_it_thinks_is_said_and_shown(tmp_path: Path):
    model = of(SHOWS_THOUGHTS)(tmp_path)
    conversation, said = talk(model, "/effort none", "/effort low", "hi", "/effort much", max_tokens=12)
    assert "Answers at once." in said and "Thinks with low effort before it answers." in said
    answer = model.generate("hi", max_tokens=12, effort="low")
    assert f"{len(answer.tokens)} tokens ({answer.thinking_tokens} thinking)" in said
    assert "effort must be one of none, minimal, low" in said
    assert conversation.options["effort"] == "low"
    assert talk(model, "/effort low", "/think off")[0].options["effort"] is None
    assert as_plain(model, answer)["thinking_tokens"] == answer.thinking_tokens > 0
    _, said = talk(of(PLAIN)(tmp_path / "plain"), "/effort low")
    assert "This model's chat template knows no thinking" in said


@pytest.mark.slow
@pytest.mark.skipif(hub.resolve("smollm2") is None, reason="smollm2 has not been pulled: `mull pull smollm2`")
def test_smollm2_answers_without_a_network():
    nowhere = {"HF_ENDPOINT": "http://127.0.0.1:9", "PIP_INDEX_URL": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "1"}

    def mull(*words: str, given: str = "") -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "mull.cli", *words]
        return subprocess.run(
            command, input=given, capture_output=True, text=True, timeout=200, check=True, env=os.environ | nowhere
        )

    said = mull("ask", "smollm2", "What is the capital of France?", "--temperature", "0", "--max-tokens", "24")
    assert said.stdout == "The capital of France is Paris.\n"
    assert said.stderr.startswith("8 tokens  ")
    said = mull("chat", "smollm2", "--max-tokens", "24", given="What is the capital of France?\nAnd of Italy?\n")
    first, second = said.stdout.splitlines()
    assert (first, "Rome" in second) == ("The capital of France is Paris.", True)
    assert said.stderr.startswith("smollm2: the conversation is remembered.")
