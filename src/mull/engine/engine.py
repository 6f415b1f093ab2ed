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
from typing import Any

import torch
from torch import Tensor

from mull.dist import precision
from mull.engine.cache import Cache, SlotWindow, rounded
from mull.engine.sampler import sample, stream_of, uniform
from mull.engine.scheduler import Job, Scheduler
from mull.model.transformer import Transformer
from mull.ops.attention import Documents
from mull.text.chat import Chat, Parser
from mull.types import Completion, Delta, Request, UserError


@dataclass
class _Made:
    """What one request has so far."""

    request: Request
    stream: int
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)


class LocalEngine:
    """Engine (mull.types) over a model in this process. Not for several threads at once.

    With `fp32` it computes and caches in fp32 on CUDA too.
    """

    def __init__(self, model: Transformer, chat: Chat, max_rows: int = 256, fp32: bool = False):
        self.model, self.chat, self.max_rows, self.fp32 = model, chat, max_rows, fp32
        self.model.eval()
        self.version = 0

    def load(self, state: Mapping[str, Any], version: int) -> None:
        if not self.model.mtp:  # a trainer's may have such layers; here they would answer nothing
            state = {name: tensor for name, tensor in state.items() if not name.startswith("mtp.")}
        self.model.load_state_dict(state)
        self.version = version

    def generate(
        self, requests: Sequence[Request], on_finish: Callable[[int, Completion], None] | None = None
    ) -> list[Completion]:
        """Answers in the order of the requests; `on_finish(index, answer)` as each comes to its end.

        Raises UserError for an empty prompt, or one that leaves no room within the model's max_length.
        """
        answers: list[Completion | None] = [None] * len(requests)
        for index, completion in self._run(requests):
            answers[index] = completion
            if on_finish is not None:
                on_finish(index, completion)
        return [answer for answer in answers if answer is not None]

    def stream(self, request: Request) -> Iterator[Delta]:
        """The text as it comes, thinking and answer apart; the last Delta carries the completion."""
        parser = Parser(request.sampling.thinking)
        shown, made = "", None
        for event in self._run([request], every_token=True):
            if isinstance(event, _Made):
                made = event
                text = self.chat.tokenizer.decode([t for t in made.tokens if t not in self.chat.tokenizer.stop_ids])
                text = text.rstrip("\ufffd")  # half a multi-byte character
                reasoning, content = parser.feed(text[len(shown) :])
                shown = text
                if reasoning or content:
                    yield Delta(text=content, reasoning=reasoning)
            else:
                reasoning, content = parser.flush()
                yield Delta(text=content, reasoning=reasoning, completion=event[1])

    def score(self, ids: Sequence[Sequence[int]]) -> list[list[float]]:
        """Log-probability of every token given those before it, at temperature 1; the first of a row scores 0."""
        if not ids:
            return []
        for row in ids:
            self._check(row, room=0)
        documents = Documents([len(row) for row in ids], self.model.device)
        tokens_T = torch.tensor([token for row in ids for token in row], device=self.model.device)
        with torch.inference_mode(), precision(self.model.device, self.fp32):
            hidden_TD = self.model(tokens_T, documents)
            logp_TV = self.model.logits(hidden_TD[:-1]).log_softmax(dim=-1)
        after_T = logp_TV.gather(1, tokens_T[1:, None])[:, 0]
        flat = torch.cat((after_T.new_zeros(1), after_T)).masked_fill(documents.positions_T == 0, 0.0)
        return [part.tolist() for part in flat.split([len(row) for row in ids])]

    def _check(self, prompt: Sequence[int], room: int) -> None:
        limit = self.model.cfg.max_length
        if not prompt:
            raise UserError("The prompt is empty.")
        if len(prompt) + room > limit:
            raise UserError(f"The prompt has {len(prompt)} tokens; this model holds {limit}, the answer included.")
        if max(prompt) >= self.model.cfg.vocab or min(prompt) < 0:
            raise UserError(f"The prompt has token ids outside this model's vocabulary of {self.model.cfg.vocab}.")

    def _run(self, requests: Sequence[Request], every_token: bool = False) -> Iterator[Any]:
        """Yields (index, completion) as requests finish; with every_token also the _Made after each token."""
        made = [_Made(r, stream_of(r.sampling.seed, r.key)) for r in requests]
        for r in requests:
            self._check(r.tokens, room=1)
        cfg, device = self.model.cfg, self.model.device
        scheduler = Scheduler(self.max_rows)
        scheduler.add([
            Job(i, r.tokens, min(r.sampling.max_tokens, cfg.max_length - len(r.tokens)))
            for i, r in enumerate(requests)
        ])  # fmt: skip
        half = device.type == "cuda" and not self.fp32
        dtype = torch.bfloat16 if half else self.model.embed.weight.dtype
        cache = Cache(cfg, device, dtype)
        began = time.perf_counter()
        last_B = torch.empty(0, dtype=torch.long, device=device)  # the newest token of each running row
        while scheduler.busy:
            ready = len(scheduler.running)
            groups = scheduler.admit()
            logits = [self._decode(cache, scheduler, ready, last_B)] if ready else []
            logits += [self._prefill(cache, scheduler, ready, groups)] if groups else []
            token_B, logprob_B = self._draw(torch.cat(logits), scheduler, made)
            stopped = self._note(token_B, logprob_B, scheduler, made)
            if every_token:
                yield made[0]
            source, finished = scheduler.record(stopped)
            for sequence, stop in finished:
                yield sequence.index, self._completion(made[sequence.index], stop, time.perf_counter() - began)
            last_B = self._close_gaps(cache, scheduler, source, token_B)

    def _close_gaps(self, cache: Cache, scheduler: Scheduler, source: list[int], token_B: Tensor) -> Tensor:
        """Move cache rows as the scheduler moved its sequences; the newest token of each row that goes on."""
        source_B = torch.tensor(source, dtype=torch.long, device=token_B.device)
        moved_B = (source_B != torch.arange(len(source), device=token_B.device)).nonzero()[:, 0]
        if len(moved_B):
            cache.copy(source_B[moved_B], moved_B, max(s.length for s in scheduler.running))
        return token_B[source_B]

    def _decode(self, cache: Cache, scheduler: Scheduler, rows: int, last_B: Tensor) -> Tensor:
        """One token further for the first `rows` rows: logits [B, V]."""
        lengths = [s.length for s in scheduler.running[:rows]]
        cache.reserve(rows, max(lengths))
        at_B = torch.tensor(lengths, device=last_B.device) - 1  # the newest token is not cached yet
        window = SlotWindow(cache, 0, at_B[:, None], rounded(max(lengths)))
        with torch.inference_mode(), precision(last_B.device, self.fp32):
            return self.model.logits(self.model.extend(last_B, at_B, window))

    def _prefill(self, cache: Cache, scheduler: Scheduler, first: int, groups: list[list[Job]]) -> Tensor:
        """Compute each group's prompt in the group's first row, then copy it to the others: logits [B, V]."""
        device = self.model.device
        prompts = [group[0].prompt for group in groups]
        longest = max(map(len, prompts))
        cache.reserve(len(scheduler.running), longest + 1)
        sizes = [len(group) for group in groups]
        ids_Bt = torch.tensor([[*p, *[0] * (longest - len(p))] for p in prompts], device=device)
        at_Bt = torch.arange(longest, device=device).expand(len(groups), -1)
        # prompts go to consecutive rows first; spreading them to their groups' rows is a copy from the back
        window = SlotWindow(cache, first, at_Bt, rounded(longest))
        with torch.inference_mode(), precision(device, self.fp32):
            hidden = self.model.extend(ids_Bt.flatten(), at_Bt.flatten(), window).unflatten(0, (len(groups), -1))
            ends = torch.tensor([len(p) - 1 for p in prompts], device=device)
            logits = self.model.logits(hidden[torch.arange(len(groups), device=device), ends])
            owner = torch.repeat_interleave(torch.arange(len(groups)), torch.tensor(sizes)).to(device)
            if len(owner) > len(groups):
                cache.copy(first + owner, first + torch.arange(len(owner), device=device), longest)
        return logits[owner]

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

    def _note(self, token_B: Tensor, logprob_B: Tensor, scheduler: Scheduler, made: list[_Made]) -> list[bool]:
        tokens, logprobs = token_B.tolist(), logprob_B.tolist()
        for sequence, token, logprob in zip(scheduler.running, tokens, logprobs, strict=True):
            one = made[sequence.index]
            one.tokens.append(token)
            one.logprobs.append(logprob)
        stop = self.chat.tokenizer.stop_ids
        return [token in stop for token in tokens]

    def _completion(self, made: _Made, stop: bool, seconds: float) -> Completion:
        reasoning, text, _ = self.chat.parse(made.tokens, made.request.sampling.thinking)
        return Completion(
            tuple(made.tokens), tuple(made.logprobs), "stop" if stop else "length", text, reasoning,
            len(made.request.tokens), self.version, seconds,
        )  # fmt: skip
