"""Answers of a given form: JSON, a schema, an expression, a choice, a grammar; through xgrammar.

A schema or an expression comes from anybody, and compiling one can take all memory or forever (CVE-2025-48944 and its
kind). So a process of its own compiles, with little memory and CPU time, and is killed where these do not suffice; it
also walks a few hundred tokens through what it made, which finds grammars that are slow to follow. The engine loads the
result. What was compiled, or refused, is remembered up to a bound.

    grammars = Grammars(tokenizer, vocab)
    future = grammars.submit(grammar)         the engine steps on meanwhile; .result() raises UserError
    matcher = Matcher(future.result())
    matcher.mask(logits_V); matcher.accept(token); matcher.done
"""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from mull.text.pieces import byte_names
from mull.text.schema import check_expression, enforceable
from mull.text.tokenizer import Tokenizer
from mull.types import Grammar, UserError

SECONDS = 5  # of CPU time for one grammar
PATIENCE = 60.0  # seconds of a clock in which the process does nothing at all, though it was asked
MEMORY = 1 << 30  # bytes for one grammar
LARGEST = 1 << 26  # bytes of a compiled grammar
REMEMBERED, REMEMBERED_BYTES = 256, 1 << 28
EXPRESSION, EBNF = 4096, 1 << 16  # letters
CHOICES, CHOICE_BYTES = 1024, 1 << 16
BLANKS = 24  # in a row, between the parts of JSON: models are known to write nothing else for ever
WALK = 200  # tokens
ALLOWED, ALLOWED_EACH = 2.0, 0.005  # seconds of CPU time that an answer's form may take, and for each of its tokens
CONTROL = re.compile(rb"[\x00-\x09\x0b-\x1f]")  # JSON needs none; xgrammar lets them into texts of bounded length
NAMES = {
    "json": "JSON mode", "json_schema": "The JSON schema", "regex": "The regular expression", "choice": "The choice",
    "ebnf": "The grammar",
}  # fmt: skip


def check(grammar: Grammar) -> Grammar:
    """In the form that is compiled. Raises UserError for what is too large, or plainly wrong."""
    match grammar.kind:
        case "json":
            return Grammar("json_schema", '{"type": "object", "additionalProperties": true}')
        case "json_schema":
            return Grammar("json_schema", enforceable(grammar.text))
        case "regex":
            check_expression(grammar.text, EXPRESSION, NAMES["regex"])
            return grammar
        case "choice":
            return Grammar("ebnf", _choice(grammar.text))
        case "ebnf":
            if len(grammar.text) > EBNF:
                raise UserError(f"The grammar has more than {EBNF} letters.")
            return grammar
    raise UserError(f"There is no grammar of the kind {grammar.kind!r}; kinds are {', '.join(NAMES)}.")


def _choice(text: str) -> str:
    try:
        choices = json.loads(text)
    except ValueError:
        choices = None
    if not (isinstance(choices, list) and choices and all(isinstance(one, str) and one for one in choices)):
        raise UserError("A choice is a list of texts, none of them empty.")
    if len(choices) > CHOICES or len(text.encode(errors="replace")) > CHOICE_BYTES:
        raise UserError(f"A choice has at most {CHOICES} texts, of {CHOICE_BYTES} bytes together.")
    return "root ::= " + " | ".join(f'"{"".join(map(_escaped, one))}"' for one in dict.fromkeys(choices))


def _escaped(letter: str) -> str:
    return letter if letter.isalnum() or letter == " " else f"\\U{ord(letter):08x}"


def vocabulary(tokenizer: Tokenizer, size: int) -> list[bytes]:
    """What each token stands for; nothing for those that are no text, and for ids that pad a model's vocabulary."""
    inner = tokenizer.inner
    special = {tokenizer.added[token] for token in tokenizer.forgeable} | {*tokenizer.stop_ids}
    to_bytes = _speller(tokenizer)
    made = [b""] * size
    for token in range(min(size, tokenizer.vocab_size)):
        text = inner.id_to_token(token)
        if text is not None and token not in special:
            made[token] = to_bytes(text)
    for text, token in tokenizer.added.items():
        if token < size and token not in special:
            made[token] = text.encode()
    return made


def _speller(tokenizer: Tokenizer) -> Callable[[str], bytes]:
    """From a token's name to its bytes. Raises UserError for vocabularies that have no such thing."""
    decoder = json.loads(tokenizer.inner.to_str()).get("decoder") or {}
    kinds = {step["type"] for step in (decoder.get("decoders") or [decoder]) if "type" in step}
    if "ByteLevel" in kinds:
        byte_of = byte_names()
        return lambda text: bytes(byte_of[c] for c in text) if all(c in byte_of for c in text) else text.encode()
    if kinds & {"Metaspace", "ByteFallback", "Replace"}:
        byte = re.compile(r"<0x([0-9A-F]{2})>")

        def spelt(text: str) -> bytes:
            found = byte.fullmatch(text)
            return bytes([int(found[1], 16)]) if found else text.replace("▁", " ").encode()

        return spelt
    raise UserError("This model's tokenizer does not say which bytes its tokens stand for, so no form can be enforced.")


def _xgrammar() -> Any:
    """Imported when it is needed: it takes seconds. Raises UserError where it is not installed."""
    try:
        import xgrammar
    except ImportError:
        raise UserError("Answers of a given form need xgrammar: pip install 'mull[serve]'") from None
    return xgrammar


@dataclass(frozen=True)
class Compiled:
    """A grammar for one vocabulary."""

    inner: Any
    info: Any
    size: int  # bytes
    never: tuple[int, ...] = ()  # tokens that have no place in it, whatever xgrammar says


def _info(xgrammar: Any, words: list[bytes], stop_ids: Sequence[int]) -> Any:
    stops = [token for token in stop_ids if token < len(words)]
    if not stops:
        raise UserError("This model's tokenizer has no token that ends an answer, so no form can be enforced.")
    return xgrammar.TokenizerInfo(words, xgrammar.VocabType.RAW, vocab_size=len(words), stop_token_ids=stops)


class Grammars:
    """Compiles for one model. `vocab` is the model's, which may be larger than the tokenizer's.

    `seconds` of CPU time are what one grammar gets.
    """

    def __init__(self, tokenizer: Tokenizer, vocab: int, seconds: int = SECONDS):
        self.tokenizer, self.vocab, self.seconds = tokenizer, vocab, seconds
        self._info: Any = None
        self._controls: tuple[int, ...] = ()
        self._known: OrderedDict[Grammar, Future[Compiled]] = OrderedDict()
        self._lock = threading.Lock()
        self._thread = ThreadPoolExecutor(1, "grammar")
        self._process: _Process | None = None

    def compile(self, grammar: Grammar) -> Compiled:
        """Raises UserError."""
        return self.submit(grammar).result()

    def submit(self, grammar: Grammar) -> Future[Compiled]:
        """The same, while the caller does something else. What is seen to be wrong at once is raised at once."""
        form = check(grammar)
        with self._lock:
            if (future := self._known.get(form)) is None:
                future = self._known[form] = self._thread.submit(self._make, form, NAMES[grammar.kind])
            self._known.move_to_end(form)
            self._forget()
        return future

    def _forget(self) -> None:
        done = [(form, future) for form, future in self._known.items() if future.done() and not future.cancelled()]
        sizes = {form: 0 if future.exception() else future.result().size for form, future in done}
        total = sum(sizes.values())
        for form, size in sizes.items():
            if len(self._known) <= REMEMBERED and total <= REMEMBERED_BYTES:
                break
            del self._known[form]
            total -= size

    def _make(self, form: Grammar, name: str) -> Compiled:
        xgrammar = _xgrammar()
        if self._info is None:
            words = vocabulary(self.tokenizer, self.vocab)
            self._info = _info(xgrammar, words, self.tokenizer.stop_ids)
            self._controls = tuple(token for token, word in enumerate(words) if CONTROL.search(word))
        try:
            if self._process is None or not self._process.alive:
                if self._process is not None:
                    self._process.end()
                self._process = _Process(self._info.serialize_json(), self.seconds)
            said = self._process.ask({"kind": form.kind, "text": form.text})
        except TimeoutError as error:  # the machine's fault, perhaps: it may be asked again
            with self._lock:
                self._known.pop(form, None)
            raise UserError(str(error)) from None
        if said is None:
            raise UserError(
                f"{name} needs more than {self.seconds} seconds or {MEMORY >> 20} MB to compile; make it simpler."
            )
        if "wrong" in said:
            raise UserError(f"{name} cannot be used: {said['wrong']}.")
        inner = xgrammar.CompiledGrammar.deserialize_json(said["compiled"], self._info)
        never = self._controls if form.kind == "json_schema" else ()
        return Compiled(inner, self._info, inner.memory_size_bytes, never)

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)
        if self._process is not None:
            self._process.end()


class _Process:
    """Whoever compiles. It is asked one thing at a time, by lines of JSON. Raises TimeoutError."""

    def __init__(self, info: str, seconds: int):
        self._inner = subprocess.Popen(
            [sys.executable, "-m", "mull.engine.grammar", str(seconds)], env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        weakref.finalize(self, _ended, self._inner)  # whoever has it may not know that it is a process
        if self._ask(info.encode()) is None:
            raise TimeoutError("The process that compiles grammars does not start; is there enough memory?")

    @property
    def alive(self) -> bool:
        return self._inner.poll() is None

    def ask(self, question: dict[str, str]) -> dict[str, str] | None:
        """None where it died of it."""
        line = self._ask(json.dumps(question).encode())
        return json.loads(line) if line is not None else None

    def _ask(self, line: bytes) -> bytes | None:
        assert self._inner.stdin is not None and self._inner.stdout is not None
        answered, late = threading.Event(), threading.Event()
        threading.Thread(target=self._watch, args=(answered, late), daemon=True).start()
        try:
            self._inner.stdin.write(line + b"\n")
            self._inner.stdin.flush()
            answer = self._inner.stdout.readline(2 * LARGEST)
        except OSError:
            answer = b""
        finally:
            answered.set()
        if answer.endswith(b"\n"):
            return answer
        self.end()
        if late.is_set():
            why = f"The process that compiles grammars did nothing for {PATIENCE:g} seconds; the machine is too busy."
            raise TimeoutError(why)
        return None

    def _watch(self, answered: threading.Event, late: threading.Event) -> None:
        """Ends a process that does nothing. One that is slow is the machine's fault; what it may use is bounded."""
        used = _ticks(self._inner.pid)
        while not answered.wait(PATIENCE):
            if (now := _ticks(self._inner.pid)) == used:
                late.set()
                self._inner.kill()
                return
            used = now

    def end(self) -> None:
        _ended(self._inner)


def _ticks(pid: int) -> int:
    """CPU time that a process has used, in the kernel's hundredths of a second; always 0 where there is no /proc."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()  # a name may hold anything
    except OSError:
        return 0
    return int(fields[11]) + int(fields[12])


def _ended(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.communicate()


class Matcher:
    """How far one answer has come. Not for several answers."""

    def __init__(self, compiled: Compiled):
        xgrammar = _xgrammar()
        self._apply = xgrammar.apply_token_bitmask_inplace
        self._inner = xgrammar.GrammarMatcher(compiled.inner)
        self._bits = xgrammar.allocate_token_bitmask(1, compiled.info.vocab_size)
        self._stops: list[int] = compiled.info.stop_token_ids
        self._never = list(compiled.never)
        self._seconds, self._count = 0.0, 0
        self.error: str | None = None

    @property
    def done(self) -> bool:
        """Whether the answer is complete, and its end was heard."""
        return self._inner.is_terminated()

    def mask(self, logits_V: Tensor) -> None:
        """-inf for every token that cannot come next, in place; stop tokens can where the answer may end."""
        begun = time.thread_time()
        self._mask(logits_V)
        self._seconds += time.thread_time() - begun

    def _mask(self, logits_V: Tensor) -> None:
        if self.done:
            kept = logits_V[self._stops].clone()
            logits_V.fill_(-float("inf"))
            logits_V[self._stops] = kept
        elif self._inner.fill_next_token_bitmask(self._bits):
            self._apply(logits_V[None], self._bits.to(logits_V.device))
            logits_V[self._never] = -float("inf")

    def accept(self, token: int) -> str | None:
        """The token that came next; what is wrong where the form cannot be kept from here on."""
        begun = time.thread_time()
        if not self.done and not self._inner.accept_token(token):
            self.error = f"The answer left its form at token {token}."
        self._seconds += time.thread_time() - begun
        self._count += 1
        if self._seconds > ALLOWED + ALLOWED_EACH * self._count:
            self.error = "The answer's form takes too long to keep; make it simpler, and a grammar unambiguous."
        return self.error


def main(seconds: int) -> None:
    """The process that compiles: a vocabulary, then grammars, one a line."""
    import resource

    out = os.fdopen(os.dup(1), "wb")
    with tempfile.TemporaryFile() as said:  # xgrammar's warnings tell what it leaves out
        os.dup2(said.fileno(), 2)
        os.dup2(said.fileno(), 1)
        xgrammar = _xgrammar()
        info = xgrammar.TokenizerInfo.deserialize_json(sys.stdin.readline())
        compiler = xgrammar.GrammarCompiler(info, max_threads=1, cache_enabled=False)
        status = Path("/proc/self/status")
        if status.exists() and (found := re.search(r"VmSize:\s+(\d+) kB", status.read_text())):
            most = (int(found[1]) << 10) + MEMORY
            resource.setrlimit(resource.RLIMIT_AS, (most, most))
        out.write(b"{}\n")
        out.flush()
        for line in sys.stdin:
            used = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
            resource.setrlimit(resource.RLIMIT_CPU, (int(used) + seconds + 1, resource.RLIM_INFINITY))
            out.write(json.dumps(_answer(xgrammar, compiler, info, json.loads(line), said)).encode() + b"\n")
            out.flush()


def _answer(xgrammar: Any, compiler: Any, info: Any, question: dict[str, str], said: Any) -> dict[str, str]:
    said.seek(0)
    said.truncate()
    text = question["text"]
    try:
        match question["kind"]:
            case "json_schema":
                made = compiler.compile_json_schema(text, max_whitespace_cnt=BLANKS)
            case "regex":
                made = compiler.compile_regex(text)
            case _:
                made = compiler.compile_grammar(text)
        said.seek(0)
        if warned := re.search(r"Warning: (.*)", said.read().decode(errors="replace")):
            return {"wrong": _plainly(warned[1])}
        _walk(xgrammar, made, info)
        whole = made.serialize_json()
        return {"compiled": whole} if len(whole) < LARGEST else {"wrong": "what is compiled from it is too large"}
    except MemoryError:
        return {"wrong": "it needs too much memory"}
    except Exception as error:
        return {"wrong": _plainly(str(error))}


def _plainly(said: str) -> str:
    """What a C++ library says, without the place in its source."""
    said = re.sub(r"^\[[^]]*\]\s*\S+:\d+:\s*", "", said.strip())
    return (said.splitlines() or ["it is not understood"])[0][:200].rstrip(".")


def _walk(xgrammar: Any, made: Any, info: Any) -> None:
    """Follow it for a while. Raises ValueError where it leads nowhere."""
    draw = random.Random(0)
    matcher, bits = xgrammar.GrammarMatcher(made), xgrammar.allocate_token_bitmask(1, info.vocab_size)
    for _ in range(WALK):
        matcher.fill_next_token_bitmask(bits)
        words = bits[0].numpy().view("uint8")
        at = words.nonzero()[0]
        if not len(at):
            raise ValueError("no text satisfies it, or none that this vocabulary can write")
        byte = int(draw.choice(at))
        token = 8 * byte + draw.choice([bit for bit in range(8) if words[byte] >> bit & 1])
        if not matcher.accept_token(token) or matcher.is_terminated():
            return


__all__ = ["Compiled", "Grammars", "Matcher", "check", "vocabulary"]

if __name__ == "__main__":
    main(int(sys.argv[1]))
