"""The local engine: lists of requests in, answers out. The same Transformer class as training, over a cache.

What draws is engine/core.py; here it is asked for whole answers, for one as it comes, and the model for scores.

T tokens  V vocabulary
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from mull.dist import precision, row_floor
from mull.engine.answer import Answer
from mull.engine.core import Core, check_tokens, nobody
from mull.engine.grammar import Grammars
from mull.engine.tokenlog import Drawn, TokenLog, identity
from mull.model.transformer import Transformer
from mull.ops.attention import Documents
from mull.text.chat import Chat
from mull.types import Completion, Delta, Request, UserError

PREFILL = 8192  # tokens of prompts in one step


class LocalEngine:
    """Engine (mull.types) over a model in this process. Not for several threads at once.

    With `fp32` it computes and caches in fp32 on CUDA too. With `routes` answers say which experts their tokens met.
    Where the model is exact (`Transformer.exactly`), an answer has the same tokens and the same log-probabilities, to
    the last bit, whatever else is asked and in whatever order, and so has the trainer.
    """

    def __init__(
        self, model: Transformer, chat: Chat, max_rows: int = 256, fp32: bool = False, routes: bool = False,
        say: Callable[[str], None] = nobody,
    ):  # fmt: skip
        self.model, self.chat, self.max_rows, self.fp32, self.say = model, chat, max_rows, fp32, say
        self.routes = routes and model.cfg.is_moe(model.cfg.layers - 1)
        self.model.eval()
        self.version = 0
        self.grammars = Grammars(chat.tokenizer, model.cfg.vocab)

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
        for index, completion in self._run(requests, log):
            answers[index] = completion
            if on_finish is not None:
                on_finish(index, completion)
        return [answer for answer in answers if answer is not None]

    def stream(self, request: Request) -> Iterator[Delta]:
        """The text as it comes, thinking and answer apart; the last Delta carries the completion."""
        core = self._core()
        core.add(0, request, listen=True)
        while core.busy:
            for answer in core.step():
                self._sound(answer)
                if (delta := answer.delta(self.version)) is not None:
                    yield delta

    def score(self, ids: Sequence[Sequence[int]]) -> list[list[float]]:
        """Log-probability of every token given those before it, at temperature 1; the first of a row scores 0."""
        if not ids:
            return []
        for row in ids:
            check_tokens(row, self.model.cfg, room=0)
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

    def _core(self) -> Core:
        """A new one for each call: what a call computes depends on nothing before it."""
        return Core(
            self.model, self.chat, self.max_rows, prefill=PREFILL, chunk=PREFILL, fp32=self.fp32, routes=self.routes,
            say=self.say, grammars=self.grammars,
        )  # fmt: skip

    def _run(self, requests: Sequence[Request], log: TokenLog | None) -> Iterator[tuple[int, Completion]]:
        """(index, completion) as requests finish."""
        core = self._core()
        for request in requests:
            core.check(request)
        known: Mapping[tuple[int, ...], Drawn] = {}
        earlier = 0.0
        if log is not None:
            assert len({request.key for request in requests}) == len(requests)
            known = log.begin(identity(self.model.state_dict(), requests))
            earlier = log.seconds
        began = time.perf_counter()
        for index, request in enumerate(requests):
            drawn = known.get(request.key)
            answer = core.add(index, request, drawn=drawn)
            if answer.finish is not None and drawn is not None:
                answer.seconds = drawn.seconds
                yield index, answer.completion(self.version)
        while core.busy:
            heard = core.step()
            seconds = time.perf_counter() - began
            if log is not None:
                going_on = [answer for answer in heard if answer.finish is None]
                log.follow(going_on, [answer for answer in heard if answer.finish is not None], seconds)
            for answer in heard:
                self._sound(answer)
                if answer.finish is not None:
                    answer.seconds = earlier + seconds
                    assert isinstance(answer.name, int)
                    yield answer.name, answer.completion(self.version)
        if core.strained:  # memory did not suffice
            self.max_rows = core.scheduler.rows

    @staticmethod
    def _sound(answer: Answer) -> None:
        if answer.error is not None:
            raise UserError(answer.error)
