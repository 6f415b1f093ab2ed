"""Conversations <-> token ids, and the parser that takes thinking and answer apart.

A model directory carries a Jinja template (chat_template.jinja), as the field does. It is rendered in Jinja's immutable
sandbox with every message replaced by a placeholder; the structure around the placeholders is encoded with special
tokens, the messages' own text without. So nothing a user writes can end a turn or open a thought.

Thinking on: the prompt ends in <think>, the model writes its chain, </think>, the answer, <|im_end|>.
Thinking off: the prompt ends in <think></think>, the model writes the answer at once.
Earlier turns are shown without their thinking.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from mull.text.tokenizer import END_THINK, Tokenizer
from mull.types import Message, UserError

TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}"
    "{{- '<|im_start|>assistant\\n<think>' -}}"
    "{%- if enable_thinking is defined and not enable_thinking -%}{{- '</think>' -}}{%- endif -%}"
    "{%- endif -%}"
)
ROLES = ("system", "user", "assistant", "tool")


class Chat:
    """A tokenizer and a template. Raises UserError for a template that does not parse or render."""

    def __init__(self, tokenizer: Tokenizer, template: str | None = None):
        self.tokenizer = tokenizer
        self.template = TEMPLATE if template is None else template
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.globals["raise_exception"] = _refuse
        try:
            self._compiled = environment.from_string(self.template)
        except jinja2.TemplateError as error:
            raise UserError(f"The chat template is not valid Jinja: {error}.") from None
        self._structure: dict[Any, list[list[int]]] = {}

    @classmethod
    def load(cls, folder: Path) -> Chat:
        folder = Path(folder)
        path = folder / "chat_template.jinja"
        return cls(Tokenizer.load(folder), path.read_text(encoding="utf-8") if path.exists() else None)

    def save(self, folder: Path) -> None:
        self.tokenizer.save(folder)
        part = folder / "chat_template.jinja.part"
        part.write_text(self.template, encoding="utf-8")
        part.replace(folder / "chat_template.jinja")

    def encode(self, messages: Sequence[Message], thinking: bool = True) -> list[int]:
        """The prompt: all messages, and the opening of the assistant's turn. Raises UserError for an unknown role."""
        for message in messages:
            if message.role not in ROLES:
                raise UserError(f"There is no role {message.role!r}; roles are {', '.join(ROLES)}.")
        pieces = self._pieces(tuple(m.role for m in messages), thinking)
        ids = list(pieces[0])
        for message, after in zip(messages, pieces[1:], strict=True):
            ids += self.tokenizer.encode(message.content)
            ids += after
        return ids

    def _pieces(self, roles: tuple[str, ...], thinking: bool) -> list[list[int]]:
        """The ids between messages' texts, for this sequence of roles; rendered once and remembered."""
        key = (roles, thinking)
        if key not in self._structure:
            marks = [f"@{secrets.token_hex(8)}@" for _ in roles]
            shown = [{"role": role, "content": mark} for role, mark in zip(roles, marks, strict=True)]
            try:
                text = self._compiled.render(messages=shown, add_generation_prompt=True, enable_thinking=thinking)
            except jinja2.TemplateError as error:
                raise UserError(f"The chat template refuses this conversation: {error}.") from None
            except Exception as error:  # a template is a program, and may fail in any way
                raise UserError(f"The chat template breaks on this conversation: {error}.") from None
            either = "|".join(marks)
            if marks and re.findall(either, text) != marks:
                raise UserError(
                    "The chat template does not show every message once, in its place; mull cannot use it safely."
                )
            parts = re.split(either, text) if marks else [text]
            if len(self._structure) > 256:
                self._structure.clear()
            self._structure[key] = [self.tokenizer.encode(part, special=True) for part in parts]
        return self._structure[key]

    def example(self, messages: Sequence[Message], thinking: bool) -> tuple[list[int], list[int]]:
        """(ids, mask) of a conversation ending in the assistant's message; 1 on what the model is to produce itself.

        The ids begin with exactly `encode(messages[:-1], thinking)`.
        """
        assert messages[-1].role == "assistant"
        prompt = self.encode(messages[:-1], thinking)
        answer = self.answer(messages[-1], thinking)
        return prompt + answer, [0] * len(prompt) + [1] * len(answer)

    def answer(self, message: Message, thinking: bool) -> list[int]:
        """What the model would generate to say `message`."""
        t = self.tokenizer
        thought = [*t.encode(message.reasoning or ""), t.end_think] if thinking else []
        return [*thought, *t.encode(message.content), t.im_end]

    def parse(self, ids: Sequence[int], thinking: bool) -> tuple[str, str, bool]:
        """(reasoning, content, closed) of a completion; closed is False while it was still thinking."""
        t = self.tokenizer
        said = [i for i in ids if i not in t.stop_ids]
        if not thinking:
            return "", t.decode(said).strip(), True
        if t.end_think not in said:
            return t.decode(said).strip("\n"), "", False
        at = said.index(t.end_think)
        return t.decode(said[:at]).strip("\n"), t.decode(said[at + 1 :]).strip(), True


def _refuse(message: str) -> None:
    raise jinja2.TemplateError(message)


@dataclass
class Parser:
    """The same separation for text as it arrives, cut anywhere. Feed pieces; flush at the end.

    Text that may be the beginning of </think> is held back until it is known not to be.
    """

    thinking: bool = True
    _held: str = field(default="", repr=False)

    def feed(self, text: str) -> tuple[str, str]:
        """(new reasoning, new content)."""
        if not self.thinking:
            return "", text
        self._held += text
        at = self._held.find(END_THINK)
        if at >= 0:
            reasoning, content = self._held[:at], self._held[at + len(END_THINK) :]
            self.thinking, self._held = False, ""
            return reasoning, content
        keep = next((n for n in range(len(END_THINK) - 1, 0, -1) if self._held.endswith(END_THINK[:n])), 0)
        cut = len(self._held) - keep
        reasoning, self._held = self._held[:cut], self._held[cut:]
        return reasoning, ""

    def flush(self) -> tuple[str, str]:
        held, self._held = self._held, ""
        return held, ""
