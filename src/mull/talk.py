"""Talking with a model at a terminal: one question (`mull ask`) or a conversation (`mull chat`).

Answers go to stdout; the thinking (dim), the tally and everything else go to stderr, so that a pipe gets the answer.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from rich.console import Console
from rich.text import Text

from mull.api import Model, Options, check
from mull.console import error_console, print_json
from mull.ledger import money
from mull.report.words import flops
from mull.types import Completion, Delta, Message, UserError

HELP = """\
/think on|off     think before answering, or answer at once
/effort LEVEL     how long to think: none, minimal, low, medium, high, xhigh, max
/remember on|off  show the model the conversation so far, or each question alone
/reset            forget the conversation
/quit             leave (Ctrl-D does too; Ctrl-C stops an answer)"""


def ask(model: Model, prompt: str, options: Options, as_json: bool, votes: int = 1) -> None:
    if votes > 1:
        completion, share = model.vote(prompt, votes, **options)
        if as_json:
            print_json(as_plain(model, completion) | {"votes": votes, "share": share})
            return
        print(_plain(completion.text) if sys.stdout.isatty() else completion.text)
        console = error_console()
        console.print(Text(f"{round(share * votes)} of {votes} answers agree", style="cyan"), soft_wrap=True)
        tally(model, completion, console)
        return
    if as_json:
        completion = model.generate(prompt, **options)
        print_json(as_plain(model, completion))
        return
    console = error_console()
    completion = speak(model.stream(prompt, **options), console)
    tally(model, completion, console)


def as_plain(model: Model, completion: Completion) -> dict[str, object]:
    bill = model.price(completion)
    return {
        "text": completion.text, "reasoning": completion.reasoning, "finish": completion.finish,
        "tokens": len(completion.tokens), "thinking_tokens": completion.thinking_tokens,
        "prompt_tokens": completion.prompt_tokens,
        "seconds": round(completion.seconds, 6), "flops": bill.flops, "kwh": bill.kwh,
        "usd": bill.usd,
    }  # fmt: skip


def speak(deltas: Iterator[Delta], console: Console) -> Completion:
    """Show an answer as it comes."""
    completion = None
    thought = said = False
    for delta in deltas:
        if delta.reasoning:
            thought = True
            console.print(Text(_plain(delta.reasoning), style="dim"), end="", soft_wrap=True)
        text = delta.text if said else delta.text.lstrip()
        if text:
            if thought and not said:
                console.print()
            said = True
            sys.stdout.write(_plain(text) if sys.stdout.isatty() else text)
            sys.stdout.flush()
        completion = delta.completion or completion
    if said:
        sys.stdout.write("\n")
        sys.stdout.flush()
    elif thought:
        console.print()
    assert completion is not None
    return completion


def _plain(text: str) -> str:
    """Without what a terminal would take as a command: a model may write anything."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)


def tally(model: Model, completion: Completion, console: Console) -> None:
    """Tokens, seconds, cost; and why it ended, where that was not by itself."""
    tokens, seconds = len(completion.tokens), completion.seconds
    thought = f" ({completion.thinking_tokens} thinking)" if completion.thinking_tokens else ""
    parts = [f"{tokens} tokens{thought}", f"{seconds:.2f} s", f"{tokens / max(seconds, 1e-9):,.0f} tok/s"]
    bill = model.price(completion)
    parts += [flops(bill.flops), money(bill.usd)]
    if completion.finish == "length":
        thinking = ", still thinking" if completion.reasoning and not completion.text else ""
        parts.append(f"cut off{thinking}: --max-tokens or the model's length ({model.config.max_length}) is reached")
    console.print(Text("  ".join(parts), style="cyan"), soft_wrap=True)


@dataclass
class Conversation:
    """`mull chat`. `read` gives the user's next line, and raises EOFError at the end."""

    model: Model
    options: Options
    remember: bool
    read: Callable[[str], str] = input
    console: Console = field(default_factory=error_console)
    turns: list[Message] = field(default_factory=list)

    def run(self) -> None:
        """Until /quit, the end of the input, or Ctrl-C at the prompt."""
        way = "the conversation is remembered" if self.remember else "each question stands alone"
        self.say(f"{self.model.located.name}: {way}. /help lists the commands.")
        while True:
            try:
                line = self.read("> ").strip()
            except (EOFError, KeyboardInterrupt):
                self.console.print()
                return
            if line in ("/quit", "/exit"):
                return
            try:
                self.command(line) if line.startswith("/") else self.turn(line)
            except UserError as error:
                self.say(str(error))
            except KeyboardInterrupt:
                self.say("\nStopped.")

    def turn(self, line: str) -> None:
        if not line:
            return
        asked = [*self.turns, Message("user", line)]
        completion = speak(self.model.stream(asked, **self.options), self.console)
        tally(self.model, completion, self.console)
        if self.remember:
            said = Message("assistant", completion.text, completion.reasoning or None)
            self.turns = [*asked, said]  # whether the model sees its thoughts again is its template's to say

    def command(self, line: str) -> None:
        match line.split():
            case ["/help"]:
                self.say(HELP)
            case ["/reset"]:
                self.turns = []
                self.say("The conversation is forgotten.")
            case ["/think", "on"] | ["/effort", _] if not self.model.chat.thinks:
                raise UserError("This model's chat template knows no thinking; it answers at once.")
            case ["/think", "on" | "off" as way]:
                self.options["thinking"] = way == "on"
                self.options["effort"] = None
                self.say("Thinks before it answers." if way == "on" else "Answers at once.")
            case ["/effort", level]:
                check(Options(effort=level))
                self.options["effort"], self.options["thinking"] = level, True
                self.say("Answers at once." if level == "none" else f"Thinks with {level} effort before it answers.")
            case ["/remember", "on" | "off" as way]:
                self.remember, self.turns = way == "on", []
                self.say("Remembers from here on." if way == "on" else "Each question stands alone.")
            case _:
                raise UserError(f"There is no command {line!r}; /help lists them.")

    def say(self, text: str) -> None:
        self.console.print(Text(text, style="cyan"), soft_wrap=True)


__all__ = ["Conversation", "as_plain", "ask", "speak", "tally"]
