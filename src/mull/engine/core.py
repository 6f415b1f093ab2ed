"""The engine at work for many at once: requests come and go while it steps. One thread; no clocks but for the bill.

    core.add("a", request)         raises UserError for a request that cannot be served
    for answer in core.step():     whoever got a token; `finish` or `error` is set where it was the last
    core.cancel("a")               its row and pages are free again before the next step
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from functools import partial
from typing import TypeVar

import torch

from mull.engine.answer import Answer
from mull.engine.decoder import Decoder, Said
from mull.engine.draft import Costs, Guesser, Outlook
from mull.engine.grammar import Compiled, Grammars, Matcher
from mull.engine.pages import PAGE, Pages
from mull.engine.sampler import BROKEN, draw
from mull.engine.scheduler import Job, Part, Scheduler
from mull.engine.thinking import MarkIds
from mull.engine.tokenlog import Drawn
from mull.model.config import ModelConfig
from mull.model.transformer import Transformer
from mull.text.chat import Chat
from mull.types import Request, UserError

T = TypeVar("T")
COUNTED = ("steps", "prompt_tokens", "cached_tokens", "generated_tokens", "drafted", "accepted")
STRAINED = 500  # steps
PAUSE = 0.05  # seconds to wait for a grammar where nothing else is to be done
FEW, MANY = 64, 1 << 24  # pages: so many to begin with, and as many as memory holds


def nobody(_: str) -> None:
    """Hears it."""


def out_of_memory(error: Exception) -> bool:
    """Whether a device or the machine had no more to give; torch has no exception of its own for CPUs."""
    said = str(error).lower()
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(
        sign in said for sign in ("not enough memory", "defaultcpuallocator", "cannot allocate memory", "bad_alloc")
    )


def afforded(work: Callable[[], T]) -> T | None:
    """What `work` returns, or None where memory does not suffice for it."""
    try:
        return work()
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        return None


def check_tokens(tokens: Sequence[int], cfg: ModelConfig, room: int) -> None:
    """Raises UserError for tokens that a model does not know, and where it has no room for so many more."""
    if not tokens:
        raise UserError("The prompt is empty.")
    if len(tokens) + room > cfg.max_length:
        raise UserError(f"The prompt has {len(tokens)} tokens; this model holds {cfg.max_length}, the answer included.")
    if max(tokens) >= cfg.vocab or min(tokens) < 0:
        raise UserError(f"The prompt has token ids outside this model's vocabulary of {cfg.vocab}.")


class Core:
    """At most `rows` answers at a time. The cache has `pages` pages, or as many as are needed. With `drafts` tokens are
    guessed ahead where that is seen to pay: the answers are the same, in exact mode to the bit.

    Where memory does not suffice for a step, rows are halved, and all begin again behind what they have.
    """

    def __init__(
        self, model: Transformer, chat: Chat, rows: int, pages: int | None = None, chunk: int = 256,
        prefill: int = 1024, fp32: bool = False, routes: bool = False, say: Callable[[str], None] = nobody,
        grammars: Grammars | None = None, drafts: bool = False,
    ):  # fmt: skip
        self.model, self.chat, self.say = model, chat, say
        self._pages = partial(Pages, pages or FEW, pages or MANY)
        ahead = drafts and len(model.mtp) > 0
        self._decoder = partial(Decoder, model, fp32=fp32, routes=routes, ahead=ahead)
        self.most, self.strained = rows, 0  # rows; steps until more of them are tried again
        self.scheduler = Scheduler(rows, self._pages(), chunk, prefill)
        self.decoder: Decoder | None = None
        self.marks = MarkIds(chat)
        self.grammars = grammars or Grammars(chat.tokenizer, model.cfg.vocab)
        self.compiling: list[tuple[Future[Compiled], Answer]] = []
        self.costs = Costs() if drafts else None
        self.outlook = Outlook(self.costs) if self.costs is not None and ahead else None
        self.answers: dict[Hashable, Answer] = {}
        self.counts = dict.fromkeys(COUNTED, 0)

    @property
    def busy(self) -> bool:
        return self.scheduler.busy or bool(self.compiling)

    def check(self, request: Request) -> int:
        """How many tokens an answer can have. Raises UserError where that is none, and where the prompt is none."""
        prompt, limit = request.tokens, self.model.cfg.max_length
        check_tokens(prompt, self.model.cfg, room=1)
        room = (self.scheduler.pages.limit - 1) * PAGE
        if len(prompt) >= room:
            raise UserError(f"The prompt has {len(prompt)} tokens; the cache holds {room}, the answer included.")
        return min(request.sampling.max_tokens, limit - len(prompt), room - len(prompt))

    def add(
        self, name: Hashable, request: Request, salt: str = "", drawn: Drawn | None = None, listen: bool = False
    ) -> Answer:
        """Queue a request, behind what is `drawn` of it already; that may be all, and its `finish` is set then."""
        assert name not in self.answers
        answer = Answer(name, request, self.chat, self.marks, self.check(request), salt, listen)
        if drawn is not None:
            answer.take_up(drawn.tokens, drawn.logprobs, drawn.routes)
        if answer.finish is not None:
            return answer
        if request.sampling.grammar is None:
            self.scheduler.add(answer.job)
        else:
            self.compiling.append((self.grammars.submit(request.sampling.grammar), answer))
        self.answers[name] = answer
        return answer

    def cancel(self, name: Hashable) -> Answer | None:
        """What it has so far, ended; None where there is no such request (any more)."""
        answer = self.answers.pop(name, None)
        if answer is not None:
            self._count(answer)
            self.compiling = [(future, one) for future, one in self.compiling if one is not answer]
            self.scheduler.leave(answer.job)
            answer.end("cancelled")
        return answer

    def _compiled(self) -> list[Answer]:
        """Those whose grammar is ready begin to wait for a row; who got an error instead is told."""
        failed: list[Answer] = []
        wait([future for future, _ in self.compiling], 0 if self.scheduler.busy else PAUSE, FIRST_COMPLETED)
        ready = [one for one in self.compiling if one[0].done()]
        self.compiling = [one for one in self.compiling if one not in ready]
        for future, answer in ready:
            try:
                answer.matcher = Matcher(future.result())
            except (UserError, OSError, RuntimeError) as error:  # a library's too: nobody else is concerned
                answer.error = str(error)
                del self.answers[answer.name]
                failed.append(answer)
            else:
                self.scheduler.add(answer.job)
        return failed

    def step(self) -> list[Answer]:
        """One pass of the model. Those who got a token, or an error."""
        failed = self._compiled() if self.compiling else []
        if self.costs is not None:
            self._guess()
        parts = self.scheduler.plan()
        if not parts:
            return failed
        began = time.perf_counter()
        said = afforded(partial(self._decode, parts))
        if said is None:
            return failed + self._halve()
        if self.costs is not None and len(said.logits_BV) == sum(part.count for part in parts):  # no prompts among them
            self.costs.tell(len(said.logits_BV), time.perf_counter() - began)
        self.counts["steps"] += 1
        self._recover()
        heard = self._draw([part for part in parts if part.draws], said)
        self.scheduler.computed(parts)
        for answer in heard:
            if answer.finish or answer.error:
                self._leave(answer)
        if any(answer.error == BROKEN for answer in heard):  # numbers that are none must be in nobody's sight
            self._anew()
        elif self.outlook is not None:
            self._look_ahead(self.outlook, parts, len(heard))
        return failed + heard

    def _decode(self, parts: Sequence[Part]) -> Said:
        if self.decoder is None:
            self.decoder = self._decoder(self.scheduler.pages, self.scheduler.rows)
        return self.decoder.step(parts)

    def _draw(self, parts: Sequence[Part], said: Said) -> list[Answer]:
        if not parts:
            return []
        answers = [self._of(part.job) for part in parts]
        sizes = [part.begin + part.count - len(part.job.tokens) + 1 for part in parts]
        wanted = [one for answer, size in zip(answers, sizes, strict=True) for one in answer.draws(size)]
        drawn = draw(said.logits_BV, wanted)
        at = 0
        for part, answer, size in zip(parts, answers, sizes, strict=True):
            draft, before = part.job.draft, len(answer.tokens)
            for row in range(at, at + size):
                if row in drawn.failed:
                    answer.error = drawn.failed[row]
                    break
                route = said.routes[row] if said.routes else None
                answer.hear(drawn.tokens[row], drawn.logprobs[row], drawn.alternatives[row], route)
                self.counts["generated_tokens"] += 1
                guess = draft[row - at] if row - at < len(draft) else None
                if answer.finish or guess != drawn.tokens[row]:
                    break
            at += size
            self.counts["drafted"] += len(draft)
            self._learn(answer, answer.tokens[before:])
        return answers

    def _learn(self, answer: Answer, tokens: list[int]) -> None:
        """What came of guesses, where there were any."""
        if answer.guesser is not None:
            answer.guesser.hear(tokens)
        if answer.ahead is not None and self.outlook is not None and tokens:
            self.outlook.heard(tokens[0] == answer.ahead)
        answer.ahead = None
        self.counts["accepted"] += max(0, len(tokens) - 1)

    def _guess(self) -> None:
        """Drafts for those who decode, where they are seen to pay."""
        assert self.costs is not None
        running = [job for job in self.scheduler.running if job.left == 1]
        ahead = self.outlook is not None and self.outlook.wanted
        for job in running:
            answer = self._of(job)
            if answer.guesser is None:
                answer.guesser = Guesser(self.costs, job.tokens)
            job.draft = answer.guesser.guess(len(running), answer.guessable(), answer.ahead if ahead else None)

    def _look_ahead(self, outlook: Outlook, parts: Sequence[Part], drew: int) -> None:
        """Guesses by the model's own MTP layer for the next step, where they pay. It follows those who joined while
        they do: of others it lacks what came before."""
        for part in parts:
            answer = self._of(part.job)
            answer.followed = outlook.on and (answer.foreseeable if part.joins else answer.followed)
        followed = [part for part in parts if self._of(part.job).followed and part.job.done > part.begin]
        began = time.perf_counter()
        if followed and afforded(partial(self._ahead, followed)) is None:
            self.outlook = None
        outlook.tell(drew, time.perf_counter() - began if followed else None)

    def _ahead(self, followed: Sequence[Part]) -> bool:
        """As they are drawn, with the randomness that the next token will have: likelier to be right than the
        likeliest."""
        assert self.decoder is not None
        drawing = [self._of(part.job) for part in followed if part.job.left == 1]
        guessed = [answer for answer in drawing if answer.guessable() > 0]
        logits_BV = self.decoder.ahead(followed, [answer.job for answer in guessed])
        if guessed:
            drawn = draw(logits_BV, [answer.draws(1)[0] for answer in guessed])
            for answer, token in zip(guessed, drawn.tokens, strict=True):
                answer.ahead = token if token >= 0 else None
        return True

    @staticmethod
    def _of(job: Job) -> Answer:
        assert isinstance(job.name, Answer)
        return job.name

    def _leave(self, answer: Answer) -> None:
        self.scheduler.leave(answer.job)
        del self.answers[answer.name]
        self._count(answer)

    def _count(self, answer: Answer) -> None:
        if answer.job.found is not None:
            self.counts["prompt_tokens"] += len(answer.request.tokens)
            self.counts["cached_tokens"] += answer.job.found

    def _halve(self) -> list[Answer]:
        """Half as many rows for some time, over an empty cache. An answer that does not fit alone gets an error."""
        self.strained = STRAINED
        running = self.scheduler.running
        rows, longest = len(running), max(len(job.tokens) for job in running)
        failed: list[Answer] = []
        if rows == 1:
            answer = self._of(running[0])
            answer.error = f"Memory does not suffice for one answer of more than {longest} tokens, prompt included."
            failed = [answer]
            self._leave(answer)
        else:
            self.scheduler.rows = rows // 2
            self.say(f"Memory does not suffice for {rows} answers at a time; going on with {rows // 2}.")
        self._anew()
        return failed

    def _recover(self) -> None:
        """Memory sufficed for another step: after some of them twice as many rows are tried again."""
        self.strained = max(0, self.strained - 1)
        if not self.strained and self.scheduler.rows < self.most:
            self.scheduler.rows, self.strained = min(self.most, 2 * self.scheduler.rows), STRAINED

    def _anew(self) -> None:
        """All begin again behind what they have."""
        self.scheduler.restart(self._pages())
        self.decoder = None

    def stats(self) -> dict[str, float]:
        """Gauges and counters for /metrics."""
        pages = self.scheduler.pages
        return {
            "rows": self.scheduler.rows, "running": len(self.scheduler.running), "waiting": len(self.scheduler.waiting),
            "pages_total": pages.limit - 1, "pages_used": pages.used, "pages_cached": pages.idle,
            "preemptions_total": self.scheduler.preemptions,
            **{f"{name}_total": count for name, count in self.counts.items()},
        }  # fmt: skip


__all__ = ["Core", "afforded", "check_tokens", "nobody", "out_of_memory"]
