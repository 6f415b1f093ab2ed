"""The local engine: choose, run, record, hand out. The same Transformer class as training, over a cache.

A step decodes one token for every running sequence. New sequences are prefilled when rows are free: prompts padded to
one length on the right (a pad's cache entry is overwritten by the first generated tokens before anything can see it),
equal prompts once.

B running rows  t tokens per row  V vocabulary
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from mull.dist import precision, row_floor
from mull.engine.cache import Cache, SlotWindow
from mull.engine.sampler import sample, stream_of, uniform
from mull.engine.scheduler import Job, Scheduler
from mull.engine.tokenlog import Drawn, TokenLog, identity
from mull.model.moe import Trace, fingerprints
from mull.model.transformer import Transformer
from mull.ops.attention import Documents
from mull.ops.exact import whole
from mull.text.chat import Chat
from mull.types import Completion, Delta, Request, UserError

T = TypeVar("T")
STEP = 16  # more rows than this are a multiple of it


@dataclass
class _Made:
    """What one request has so far."""

    request: Request
    stream: int
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    routes: list[int] = field(default_factory=list)

    @property
    def key(self) -> tuple[int, ...]:
        return self.request.key


@dataclass(frozen=True)
class _Next:
    """What a forward pass says of the next token of B sequences."""

    logits_BV: Tensor
    route_B: Tensor | None  # which experts the token before it met (model.moe.fingerprints), where that is recorded


def _nobody(_: str) -> None:
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


class LocalEngine:
    """Engine (mull.types) over a model in this process. Not for several threads at once.

    With `fp32` it computes and caches in fp32 on CUDA too. With `routes` answers say which experts their tokens met.
    Where the model is exact (`Transformer.exactly`), an answer has the same tokens and the same log-probabilities, to
    the last bit, whatever else is asked and in whatever order, and so has the trainer.
    """

    def __init__(
        self, model: Transformer, chat: Chat, max_rows: int = 256, fp32: bool = False, routes: bool = False,
        say: Callable[[str], None] = _nobody,
    ):  # fmt: skip
        self.model, self.chat, self.max_rows, self.fp32, self.say = model, chat, max_rows, fp32, say
        self.routes = routes and model.cfg.is_moe(model.cfg.layers - 1)
        self.model.eval()
        self.version = 0

    def load(self, state: Mapping[str, Any], version: int) -> None:
        if not self.model.mtp:  # a trainer's may have such layers; here they would answer nothing
            state = {name: tensor for name, tensor in state.items() if not name.startswith("mtp.")}
        self.model.load_state_dict(state)
        self.version = version

    def generate(
        self,
        requests: Sequence[Request],
        on_finish: Callable[[int, Completion], None] | None = None,
        log: TokenLog | None = None,
    ) -> list[Completion]:
        """Answers in the order of the requests; `on_finish(index, answer)` as each comes to its end.

        With a log, whose file may be of a process that was killed over the same requests, answers go on from what it
        holds. Their keys must differ then. Where memory does not suffice, rows are halved until it does.

        Raises UserError for an empty prompt, one that leaves no room within the model's max_length, and where memory
        does not suffice for one answer.
        """
        answers: list[Completion | None] = [None] * len(requests)
        for index, completion in self._run(requests, log=log):
            answers[index] = completion
            if on_finish is not None:
                on_finish(index, completion)
        return [answer for answer in answers if answer is not None]

    def stream(self, request: Request) -> Iterator[Delta]:
        """The text as it comes, thinking and answer apart; the last Delta carries the completion."""
        parser = self.chat.parser(request.sampling.thinking, request.tokens)
        tokenizer = self.chat.tokenizer
        shown = ""
        for event in self._run([request], every_token=True):
            going_on = isinstance(event, _Made)
            tokens = event.tokens if going_on else event[1].tokens
            text = tokenizer.decode([token for token in tokens if token not in tokenizer.stop_ids])
            if going_on:
                text = text.rstrip("\ufffd")  # half a multi-byte character
            reasoning, content = parser.feed(text[len(shown) :])
            shown = text
            if not going_on:
                held = parser.flush()
                yield Delta(text=content + held[1], reasoning=reasoning + held[0], completion=event[1])
            elif reasoning or content:
                yield Delta(text=content, reasoning=reasoning)

    def score(self, ids: Sequence[Sequence[int]]) -> list[list[float]]:
        """Log-probability of every token given those before it, at temperature 1; the first of a row scores 0."""
        if not ids:
            return []
        for row in ids:
            self._check(row, room=0)
        rows = [*ids]
        if self.model.exact and (lacking := row_floor() - sum(map(len, ids))) > 0:
            rows.append([0] * lacking)  # too few tokens for the exact kernels: more, that nobody reads
        documents = Documents([len(row) for row in rows], self.model.device)
        tokens_T = torch.tensor([token for row in rows for token in row], device=self.model.device)
        with torch.inference_mode(), precision(self.model.device, self.fp32):
            hidden_TD = self.model(tokens_T, documents)
            logp_TV = self.model.logits(hidden_TD[:-1]).log_softmax(dim=-1)
        after_T = logp_TV.gather(1, tokens_T[1:, None])[:, 0]
        flat = torch.cat((after_T.new_zeros(1), after_T)).masked_fill(documents.positions_T == 0, 0.0)
        return [part.tolist() for part in flat.split([len(row) for row in rows])][: len(ids)]

    def _check(self, prompt: Sequence[int], room: int) -> None:
        limit = self.model.cfg.max_length
        if not prompt:
            raise UserError("The prompt is empty.")
        if len(prompt) + room > limit:
            raise UserError(f"The prompt has {len(prompt)} tokens; this model holds {limit}, the answer included.")
        if max(prompt) >= self.model.cfg.vocab or min(prompt) < 0:
            raise UserError(f"The prompt has token ids outside this model's vocabulary of {self.model.cfg.vocab}.")

    def _run(
        self, requests: Sequence[Request], every_token: bool = False, log: TokenLog | None = None
    ) -> Iterator[Any]:
        """Yields (index, completion) as requests finish; with every_token also the _Made after each token."""
        for r in requests:
            self._check(r.tokens, room=1)
        began, earlier = time.perf_counter(), 0.0
        made = [_Made(r, stream_of(r.sampling.seed, r.key)) for r in requests]
        known: Mapping[tuple[int, ...], Drawn] = {}
        if log is not None:
            assert len({r.key for r in requests}) == len(requests)
            known = log.begin(identity(self.model.state_dict(), requests))
            earlier = log.seconds
            began -= earlier
        scheduler = Scheduler(self.max_rows)
        for i, one in enumerate(made):
            if (stopped := self._take_up(i, one, known.get(one.key), scheduler)) is not None:
                yield i, self._completion(one, stopped, known[one.key].seconds)
        cache, last_B = self._empty()
        while scheduler.busy:
            ready = len(scheduler.running)
            groups = scheduler.admit()
            step = afforded(partial(self._step, cache, scheduler, ready, groups, last_B, made))
            if step is None:
                cache, last_B = self._halve(scheduler, made)
                continue
            stopped = self._note(*step, scheduler, made)
            if every_token:
                yield made[0]
            source, finished = scheduler.record(stopped)
            seconds = time.perf_counter() - began
            if log is not None:
                running, ended = scheduler.running, [sequence for sequence, _ in finished]
                log.follow([made[s.index] for s in running], [made[s.index] for s in ended], seconds - earlier)
            for sequence, stop in finished:
                yield sequence.index, self._completion(made[sequence.index], stop, seconds)
            going_on = afforded(partial(self._close_gaps, cache, scheduler, source, step[0]))
            if going_on is None:
                cache, last_B = self._halve(scheduler, made)
            else:
                last_B = going_on

    def _take_up(self, index: int, made: _Made, drawn: Drawn | None, scheduler: Scheduler) -> bool | None:
        """Queue a request, behind what is known of its answer; whether that stopped, where it is the whole answer."""
        prompt, sampling = made.request.tokens, made.request.sampling
        limit = min(sampling.max_tokens, self.model.cfg.max_length - len(prompt))
        if drawn is not None and drawn.tokens:
            made.tokens, made.logprobs, made.routes = drawn.tokens, drawn.logprobs, drawn.routes
            stop = made.tokens[-1] in self.chat.tokenizer.stop_ids
            if stop or len(made.tokens) >= limit:
                return stop
        scheduler.add([Job(index, (*prompt, *made.tokens), limit - len(made.tokens))])
        return None

    def _empty(self) -> tuple[Cache, Tensor]:
        """A cache without rows, and the newest token of each of them."""
        device = self.model.device
        half = device.type == "cuda" and not self.fp32
        dtype = torch.bfloat16 if half else self.model.embed.weight.dtype
        return Cache(self.model.cfg, device, dtype), torch.empty(0, dtype=torch.long, device=device)

    def _step(
        self, cache: Cache, scheduler: Scheduler, ready: int, groups: list[list[Job]], last_B: Tensor,
        made: list[_Made],
    ) -> tuple[Tensor, Tensor, list[int]]:  # fmt: skip
        """The next token, log-probability and route of every running sequence."""
        parts = [self._decode(cache, scheduler, ready, last_B)] if ready else []
        parts += [self._prefill(cache, scheduler, ready, groups)] if groups else []
        token_B, logprob_B = self._draw(torch.cat([part.logits_BV for part in parts]), scheduler, made)
        routes = [route for part in parts if part.route_B is not None for route in part.route_B.tolist()]
        return token_B, logprob_B, routes

    def _halve(self, scheduler: Scheduler, made: list[_Made]) -> tuple[Cache, Tensor]:
        """Half as many rows from now on. All begin again behind what they have, in an empty cache, which it returns."""
        rows = len(scheduler.running)
        if rows == 1:
            longest = scheduler.running[0].length
            raise UserError(f"Memory does not suffice for one answer of more than {longest} tokens, prompt included.")
        self.max_rows = scheduler.rows = rows // 2
        self.say(f"Memory does not suffice for {rows} answers at a time; going on with {rows // 2}.")
        for job in sorted(scheduler.cancel(), key=lambda job: job.index):
            prompt = (*made[job.index].request.tokens, *made[job.index].tokens)
            scheduler.add([Job(job.index, prompt, job.limit - job.made)])
        return self._empty()

    def _close_gaps(self, cache: Cache, scheduler: Scheduler, source: list[int], token_B: Tensor) -> Tensor:
        """Move cache rows as the scheduler moved its sequences; the newest token of each row that goes on."""
        source_B = torch.tensor(source, dtype=torch.long, device=token_B.device)
        moved_B = (source_B != torch.arange(len(source), device=token_B.device)).nonzero()[:, 0]
        if len(moved_B):
            cache.copy(source_B[moved_B], moved_B, max(s.length for s in scheduler.running))
        return token_B[source_B]

    def _decode(self, cache: Cache, scheduler: Scheduler, rows: int, last_B: Tensor) -> _Next:
        """One token further for the first `rows` rows."""
        lengths = [s.length for s in scheduler.running[:rows]]
        # Rows that no sequence has. The exact kernels want enough rows, and oneDNN compiles a kernel for each number of
        # them, which are to be few.
        idle = -rows % STEP if rows > STEP else 0
        if self.model.exact:
            idle = max(idle, row_floor() - rows)
        cache.reserve(rows, max(lengths))
        at_B = torch.tensor(lengths, device=last_B.device) - 1  # the newest token is not cached yet
        window = SlotWindow(cache, 0, at_B[:, None], whole(max(lengths)), idle)
        at_B, newest_B = (F.pad(x_B, (0, idle)) for x_B in (at_B, last_B))
        hidden_BD, trace = self._extend(newest_B, at_B, window)
        return self._next(hidden_BD, trace, slice(None), slice(rows))

    def _prefill(self, cache: Cache, scheduler: Scheduler, first: int, groups: list[list[Job]]) -> _Next:
        """Compute each group's prompt in the group's first row, then copy it to the others."""
        device = self.model.device
        prompts = [group[0].prompt for group in groups]
        longest = max(map(len, prompts))
        if self.model.exact:
            longest = max(longest, row_floor())
        cache.reserve(len(scheduler.running), longest + 1)
        sizes = [len(group) for group in groups]
        ids_Bt = torch.tensor([[*p, *[0] * (longest - len(p))] for p in prompts], device=device)
        at_Bt = torch.arange(longest, device=device).expand(len(groups), -1)
        # prompts go to consecutive rows first; spreading them to their groups' rows is a copy from the back
        window = SlotWindow(cache, first, at_Bt, whole(longest))
        hidden_TD, trace = self._extend(ids_Bt.flatten(), at_Bt.flatten(), window)
        owner = torch.repeat_interleave(torch.arange(len(groups)), torch.tensor(sizes)).to(device)
        if len(owner) > len(groups):
            cache.copy(first + owner, first + torch.arange(len(owner), device=device), longest)
        ends = torch.tensor([at * longest + len(p) - 1 for at, p in enumerate(prompts)], device=device)
        return self._next(hidden_TD, trace, ends, owner)

    def _extend(self, tokens_T: Tensor, at_T: Tensor, window: SlotWindow) -> tuple[Tensor, Trace | None]:
        trace = Trace() if self.routes else None
        with torch.inference_mode(), precision(tokens_T.device, self.fp32):
            return self.model.extend(tokens_T, at_T, window, trace), trace

    def _next(self, hidden_TD: Tensor, trace: Trace | None, ends: Tensor | slice, owner: Tensor | slice) -> _Next:
        """From the states at `ends`; `owner` tells for each sequence which of them is its own."""
        with torch.inference_mode():
            logits = self.model.logits(hidden_TD[ends])[owner]
            if trace is None:
                return _Next(logits, None)
            return _Next(logits, fingerprints(trace.chosen, self.model.cfg.experts)[ends][owner])

    def _draw(self, logits_BV: Tensor, scheduler: Scheduler, made: list[_Made]) -> tuple[Tensor, Tensor]:
        running = [made[s.index] for s in scheduler.running]
        device = logits_BV.device
        points = [uniform(m.stream, len(m.tokens)) if m.request.sampling.temperature > 0 else 0.0 for m in running]
        where = torch.tensor(points, dtype=torch.float64, device=device)
        heat = torch.tensor([m.request.sampling.temperature for m in running], device=device)
        cuts = {(m.request.sampling.top_p, m.request.sampling.top_k) for m in running}
        with torch.inference_mode():
            if len(cuts) == 1:
                return sample(logits_BV, where, heat, *cuts.pop())
            token_B = torch.empty(len(running), dtype=torch.long, device=device)
            logprob_B = torch.empty(len(running), device=device)
            for cut in sorted(cuts):
                rows = [i for i, m in enumerate(running) if (m.request.sampling.top_p, m.request.sampling.top_k) == cut]
                token_B[rows], logprob_B[rows] = sample(logits_BV[rows], where[rows], heat[rows], *cut)
            return token_B, logprob_B

    def _note(
        self, token_B: Tensor, logprob_B: Tensor, routes: list[int], scheduler: Scheduler, made: list[_Made]
    ) -> list[bool]:
        tokens, logprobs = token_B.tolist(), logprob_B.tolist()
        for sequence, token, logprob in zip(scheduler.running, tokens, logprobs, strict=True):
            one = made[sequence.index]
            one.tokens.append(token)
            one.logprobs.append(logprob)
        for sequence, route in zip(scheduler.running, routes, strict=False):  # empty where they are not recorded
            made[sequence.index].routes.append(route)
        stop = self.chat.tokenizer.stop_ids
        return [token in stop for token in tokens]

    def _completion(self, made: _Made, stop: bool, seconds: float) -> Completion:
        reasoning, text, _ = self.chat.parse(made.tokens, made.request.sampling.thinking, made.request.tokens)
        return Completion(
            tuple(made.tokens), tuple(made.logprobs), "stop" if stop else "length", text, reasoning,
            len(made.request.tokens), self.version, seconds, tuple(made.routes),
        )  # fmt: skip
