"""Conversations <-> token ids, and the parser that takes thinking and answer apart.

A model carries its chat template: ours, or the one it was published with (text/template.py). A message's text never
becomes structure: before it is shown to the template, a random mark goes behind each character that could begin a
special token; where the written text has such a token with a mark inside, it is cut there and encoded in pieces. So
nothing a user or a tool writes can end a turn or open a thought, and a conversation without such text has exactly the
ids that transformers' apply_chat_template gives it. (A template that itself writes half of a special token in front of
a message's text could be completed by it; none that is known does.)

An assistant's own messages are marked too, but for <think> and </think>: published templates look for them there, to
leave earlier thoughts out. Our own template shows earlier turns without their thinking.

A thought is opened by the prompt's end (ours, R1, QwQ) or by the answer's beginning (Qwen3), as the template has it;
models that do not think (SmolLM2) just answer (text/thoughts.py).

Tools are shown as the template shows them, and described in a system message where it knows none (text/offer.py).
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

from mull.formats.bounded import read_text
from mull.formats.gguf import is_gguf, read_header
from mull.run import write_atomic
from mull.text.offer import Habits, calls_for, described, habits_of
from mull.text.pieces import Pieces, spelling
from mull.text.template import Plain, Template
from mull.text.thoughts import Listener, Parser, Verbatim, marks_of
from mull.text.tokenizer import Tokenizer, beginnings, read_json
from mull.text.tools import form_of
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
TEMPLATE_BYTES = 1 << 20  # of a template's file
ROLES = ("system", "user", "assistant", "tool")

Sign = Callable[[str], str]  # marks a text where it could begin a special token
Tools = Sequence[Mapping[str, Any]]  # JSON schemas, as templates expect them


class Chat:
    """A tokenizer and a template; `tool_template` is another one for conversations with tools, where there is one.

    Without a template, conversations have our own form if the tokenizer is one of ours, and else none: `template` is
    None then, and encoding raises UserError. A template that does not parse raises it here.
    """

    def __init__(self, tokenizer: Tokenizer, template: str | None = None, tool_template: str | None = None):
        self.tokenizer = tokenizer
        self.template = TEMPLATE if template is None and tokenizer.house else template
        self.tool_template = tool_template
        self.house = tokenizer.house and self.template == TEMPLATE
        self._compiled = None if self.template is None else Template(self.template)
        self._for_tools = self._compiled if tool_template is None else Template(tool_template)
        self.marks = marks_of(self.template or "", tokenizer.added)
        self._said = beginnings(
            token for token in tokenizer.forgeable if token not in (self.marks.open, self.marks.close)
        )
        self._variables: dict[str, Any] = {  # bos_token and its like, as templates know them
            name: text.get("content") if isinstance(text, Mapping) else text
            for name, text in tokenizer.config.items()
            if name.endswith("_token") and isinstance(text, str | Mapping)
        }
        self._opens: dict[bool, bool] = {}
        self._known_habits: dict[bool, Habits] = {}

    @property
    def thinks(self) -> bool:
        """Whether its template knows thoughts."""
        return self.marks.close in (self.template or "")

    @classmethod
    def load(cls, path: Path) -> Chat:
        """That of a model directory or a .gguf file. Raises UserError for damage."""
        path = Path(path)
        if is_gguf(path):
            from mull.text.vocab import tokenizer_of

            metadata = read_header(path).metadata
            given = (metadata.get(f"tokenizer.chat_template{kind}") for kind in ("", ".tool_use"))
            return cls(tokenizer_of(metadata, str(path)), *(_text(template, path) for template in given))
        tokenizer = Tokenizer.load(path)
        return cls(tokenizer, *_templates(path, tokenizer.config))

    def save(self, folder: Path) -> None:
        self.tokenizer.save(folder)
        for name, template in (
            ("chat_template.jinja", self.template),
            ("additional_chat_templates/tool_use.jinja", self.tool_template),
        ):
            if template is not None:
                (folder / name).parent.mkdir(exist_ok=True)
                write_atomic(folder / name, template)

    def encode(self, messages: Sequence[Message], thinking: bool = True, tools: Tools | None = None) -> list[int]:
        """The prompt: all messages, and the opening of the assistant's turn.

        Raises UserError for an unknown role, a conversation that the template refuses, and a model without a template.
        """
        return self._ids(*self._write(messages, thinking, tools))

    def _write(
        self, messages: Sequence[Message], thinking: bool, tools: Tools | None = None, prompt: bool = True
    ) -> tuple[str, list[int]]:  # fmt: skip
        """The conversation as text, and where it is to be cut because a message would read as structure."""
        compiled = self._for_tools if tools else self._compiled
        if compiled is None:
            raise UserError("This model has no chat template: it continues text, but holds no conversations.")
        mark = _probe()

        def sign(text: str) -> str:
            return self.tokenizer.opening.sub(lambda found: found[0] + mark, text)

        def sign_own(text: str) -> str:
            return self._said.sub(lambda found: found[0] + mark, text)

        called = any(message.tool_calls for message in messages)
        habits = self._habits(bool(tools)) if tools or called else Habits()
        own = sign if self.house else sign_own
        shown = [_plain(message, sign, own, habits) for message in messages]
        offered = _signed(tools, sign) if tools else None
        if offered and self.tool_template is None and not habits.tools:
            shown, offered = described(shown, offered, form_of(self).example, habits), None
        text = self._render(compiled, shown, offered, thinking, prompt)
        pieces = text.split(mark)
        if len(pieces) == 1:
            return text, []
        text, at, cuts = "".join(pieces), 0, []
        for piece in pieces[:-1]:
            at += len(piece)
            if at and self.tokenizer.forgery.match(text, at - 1):
                cuts.append(at)
        return text, cuts

    def _render(
        self, compiled: Template, shown: Sequence[Plain], tools: Sequence[Plain] | None, thinking: bool, prompt: bool
    ) -> str:
        return compiled.render(  # enable_thinking is Qwen's and GLM's name for it, thinking DeepSeek's and Kimi's
            shown, prompt, tools=tools, enable_thinking=thinking, thinking=thinking, **self._variables
        )

    def _habits(self, tools: bool) -> Habits:
        """Of the template for conversations with tools, or of the other."""
        compiled = self._for_tools if tools else self._compiled
        if compiled is not None and tools not in self._known_habits:
            self._known_habits[tools] = habits_of(
                lambda messages, tools: self._render(compiled, messages, tools, True, True), _probe()
            )
        return self._known_habits[tools]

    def _ids(self, text: str, cuts: Sequence[int], begin: int = 0) -> list[int]:
        if not cuts:
            return self.tokenizer.encode(text[begin:] if begin else text, special=True)
        ends = [begin, *(cut for cut in cuts if cut > begin), len(text)]
        return self.tokenizer.join([text[a:b] for a, b in pairwise(ends)])

    def opens(self, thinking: bool) -> bool:
        """Whether the prompt ends within a thought, so that the answer begins with the thinking.

        Where the template refuses the shortest conversation, or there is none, it does not.
        """
        if thinking not in self._opens:
            try:
                text, _ = self._write([Message("user", "?")], thinking)
            except UserError:
                text = ""
            self._opens[thinking] = text.rstrip().endswith(self.marks.open)
        return self._opens[thinking]

    def example(self, messages: Sequence[Message], thinking: bool) -> tuple[list[int], list[int]]:
        """(ids, mask) of a conversation ending in the assistant's message; 1 on what the model is to produce itself.

        The ids begin with exactly `encode(messages[:-1], thinking)`.
        """
        assert messages[-1].role == "assistant"
        prompt = self.encode(messages[:-1], thinking)
        answer = self.answer(messages[-1], thinking, messages[:-1])
        return prompt + answer, [0] * len(prompt) + [1] * len(answer)

    def answer(self, message: Message, thinking: bool, before: Sequence[Message] = ()) -> list[int]:
        """What the model would generate to say `message` after `before`, up to the token that ends its turn."""
        t = self.tokenizer
        message = message if thinking else replace(message, reasoning=None)
        if self.house:
            assert t.end_think is not None and t.eos is not None
            thought = [*t.encode(message.reasoning or ""), t.end_think] if thinking else []
            return [*thought, *t.encode(message.content), t.eos]
        before = before or [Message("user", "?")]
        prompt, _ = self._write(before, thinking)
        text, cuts = self._write([*before, message], thinking, prompt=False)
        if not (text.startswith(prompt) and self._tells(message, thinking, before)):
            text, cuts = self._turn(message, thinking, before, prompt)
        ids = self._ids(text, cuts, len(prompt))
        end = next((at for at, i in enumerate(ids) if i in t.stop_ids), None)
        if end is None:
            if not t.stop_ids:
                raise UserError("This model's files name no token that ends a turn, so it cannot be taught one.")
            # GLM's turns end where the user's next one begins
            beyond = t.encode(self._behind(before, thinking, Message("user", "?")), special=True)
            ids, end = [*ids, next((i for i in beyond if i in t.stop_ids), t.stop_ids[0])], len(ids)
        said = message.content.rpartition(self.marks.close)[2].strip()
        if t.decode(t.encode(said)) not in t.decode(ids[: end + 1]):
            raise UserError(
                f"This model's chat template leaves out the answer {said[:60]!r}, or ends the turn before it, at "
                f"{t.decode(ids[end : end + 1])!r}; it cannot be taught it."
            )
        return ids[: end + 1]

    def _tells(self, message: Message, thinking: bool, before: Sequence[Message]) -> bool:
        """Whether the template writes out what the message's author thought."""
        probe = _probe()
        told = replace(message, reasoning=probe)
        return not message.reasoning or probe in self._write([*before, told], thinking, prompt=False)[0]

    def _behind(self, before: Sequence[Message], thinking: bool, *after: Message) -> str:
        """What the template writes behind an assistant's words."""
        probe = _probe()
        text, _ = self._write([*before, Message("assistant", probe), *after], thinking, prompt=False)
        return text.rpartition(probe)[2]

    def _turn(
        self, message: Message, thinking: bool, before: Sequence[Message], prompt: str
    ) -> tuple[str, list[int]]:  # fmt: skip
        """Prompt and turn, thought included: spaced as the prompt's own <think> is, or else as Qwen3 does."""
        opened = prompt.rstrip().endswith(self.marks.open)
        gap = prompt[len(prompt.rstrip()) :] if opened else "\n"
        reasoning = message.reasoning or ""
        told = opened or bool(thinking and reasoning)
        text, cuts = prompt, []
        for part, ours in (
            ("" if opened or not told else self.marks.open + gap, True),
            (reasoning if told else "", False),
            (gap + self.marks.close + 2 * gap if told else "", True),
            (message.content, False),
            (self._behind(before, thinking), True),
        ):
            if not ours:
                cuts += [len(text) + found.end() for found in self.tokenizer.forgery.finditer(part)]
            text += part
        return text, cuts

    def _within(self, thinking: bool, prompt: Sequence[int]) -> bool:
        """Whether an answer to `prompt` begins within a thought; R1's template opens none after a tool's result."""
        if self.house or not prompt:
            return self.opens(thinking)
        return self.tokenizer.decode(prompt[-8:]).rstrip().endswith(self.marks.open)

    def parse(self, ids: Sequence[int], thinking: bool, prompt: Sequence[int] = ()) -> tuple[str, str, bool]:
        """(reasoning, content, closed) of a completion; closed is False while it was still thinking."""
        t = self.tokenizer
        said = [i for i in ids if i not in t.stop_ids]
        opens, closes = self._mark_ids
        if opens is None or closes is None:  # this vocabulary spells them out
            parser = self.parser(thinking, prompt)
            parts = [parser.feed(t.decode(said)), parser.flush()]
            reasoning, content = ("".join(part) for part in zip(*parts, strict=True))
            return reasoning.strip("\n"), content.strip(), not parser.thinking
        thought = self._within(thinking, prompt)
        if (thinking or thought) and opens in said:
            at = said.index(opens)
            if not t.decode(said[:at]).strip():
                thought, said = True, said[at + 1 :]
        if not thought:
            return "", t.decode(said).strip(), True
        if closes not in said:
            return t.decode(said).strip("\n"), "", False
        at = said.index(closes)
        return t.decode(said[:at]).strip("\n"), t.decode(said[at + 1 :]).strip(), True

    def parser(self, thinking: bool, prompt: Sequence[int] = ()) -> Parser:
        """The same for text as it arrives."""
        opened = self._within(thinking, prompt)
        return Parser(opened, thinking and not opened, self.marks)

    def verbatim(self) -> Verbatim:
        """For tokens that go on behind a prompt which is no conversation."""
        return Verbatim(self._spelling(), self.tokenizer.stop_ids)

    def listener(self, thinking: bool, prompt: Sequence[int] = ()) -> Listener:
        """The same for tokens as they arrive."""
        opened = self._within(thinking, prompt)
        stops = self.tokenizer.stop_ids
        return Listener(self._spelling, stops, self.marks, self._mark_ids, opened, thinking and not opened)

    @property
    def _mark_ids(self) -> tuple[int | None, int | None]:
        """The tokens that open and close a thought, where there are such."""
        return self.tokenizer.added.get(self.marks.open), self.tokenizer.added.get(self.marks.close)

    @cached_property
    def _spelling(self) -> Callable[[], Pieces]:
        return spelling(self.tokenizer)


def _probe() -> str:
    """Text that no message holds, and that no filter for case, blanks or JSON changes."""
    return f"@{secrets.randbits(64)}@"


def _plain(message: Message, sign: Sign, sign_own: Sign, habits: Habits) -> dict[str, Any]:
    """A message as templates see it. Raises UserError for an unknown role."""
    if message.role not in ROLES:
        raise UserError(f"There is no role {message.role!r}; roles are {', '.join(ROLES)}.")
    own = message.role == "assistant"
    shown: dict[str, Any] = {"role": message.role, "content": (sign_own if own else sign)(message.content)}
    if message.reasoning is not None:
        shown["reasoning_content"] = shown["thinking"] = sign(message.reasoning)
    if message.tool_calls:
        shown["tool_calls"] = _signed(calls_for(message.tool_calls, habits.as_text), sign)
        if habits.as_none and not message.content:
            shown["content"] = None
    for name in ("name", "tool_call_id"):
        if (said := getattr(message, name)) is not None:
            shown[name] = sign(said)
    return shown


def _signed(value: Any, sign: Sign) -> Any:
    """A copy of plain data with its texts marked. Raises UserError for what JSON does not know."""
    if isinstance(value, str):
        return sign(value)
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, Mapping):
        return {_signed(key, sign): _signed(item, sign) for key, item in value.items()}
    if isinstance(value, Sequence):
        return [_signed(item, sign) for item in value]
    raise UserError(f"Tools and tool calls are plain data, as in JSON; {type(value).__name__} is none.")


def _templates(folder: Path, config: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """(template, that for conversations with tools): in files of their own, or within the configuration."""
    given: dict[str, Any] = {}
    named = config.get("chat_template")
    if isinstance(named, list):
        given = {str(one.get("name")): one.get("template") for one in named if isinstance(one, Mapping)}
    elif named is not None:
        given["default"] = named
    if (text := read_json(folder / "chat_template.json").get("chat_template")) is not None:
        given["default"] = text
    for name, file in (
        ("default", folder / "chat_template.jinja"),
        ("tool_use", folder / "additional_chat_templates" / "tool_use.jinja"),
    ):
        if file.exists():
            try:
                given[name] = read_text(file, TEMPLATE_BYTES)
            except OSError as error:
                raise UserError(f"{file} cannot be read: {error}.") from None
    return _text(given.get("default"), folder), _text(given.get("tool_use"), folder)


def _text(template: object, where: Path) -> str | None:
    if template is None or isinstance(template, str):
        return template
    raise UserError(f"{where}: its chat template is no text.")
