"""What an unfinished set of answers has so far, on disk: a continued run reads it and draws on, instead of anew.

Drawing anew would end in the same tokens, since a draw is a function of (seed, key, position); it would only take the
time again. So whatever is missing or damaged here is drawn again, and nothing else happens.

A file of lines, each behind a checksum of it, so that what a kill or a disk did to a line is seen:

    7c9e01b2 ["of","5d0c..."]                                   a session begins: answers to this follow
    03fd77a0 [[4,2,0],16,[71,9],[-0.25,-1.5],[],2.125]          key, place of the first token, tokens,
                                                                log-probabilities, routes, seconds of all sessions

"Of" stands for everything that decides the bits: weights, requests, torch, threads. Answers of anything else are passed
over. A log-probability is a 32-bit number, written with the digits that bring it back: nothing is rounded.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from mull.types import Request

EVERY = 8  # steps between writes: so many tokens of each running answer a kill may cost
Key = tuple[int, ...]


@dataclass
class Drawn:
    """Tokens of one answer, their log-probabilities and routes, and how long they took."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    routes: list[int] = field(default_factory=list)
    seconds: float = 0.0

    def extend(self, at: int, tokens: list[int], logprobs: list[float], routes: list[int], seconds: float) -> None:
        """Take what goes on where this ends. Anything else lies behind a gap and is of no use."""
        if at == len(self.tokens) and len(tokens) == len(logprobs) and len(routes) in (0, len(tokens)):
            self.tokens += tokens
            self.logprobs += logprobs
            self.routes += routes
            self.seconds = seconds


class Answer(Protocol):
    """What is logged: lists that only grow."""

    tokens: list[int]
    logprobs: list[float]
    routes: list[int]

    @property
    def key(self) -> Key: ...


class TokenLog:
    """One file. For each set of answers `begin`, then `follow` after every step.

    Lines reach the system at once, the disk later: a killed process loses EVERY steps, a power cut perhaps more.
    Raises OSError where the file cannot be written.
    """

    def __init__(self, path: Path):
        self.path = path
        self.seconds = 0.0  # that earlier sessions spent on what began last
        self._written: dict[Key, int] = {}
        self._ended: list[Answer] = []
        self._steps = 0

    def begin(self, of: str) -> Mapping[Key, Drawn]:
        """What earlier sessions drew of the same (see `identity`)."""
        raw = self.path.read_bytes() if self.path.exists() else b""
        known = self._understand(raw, of)
        self._written = {key: len(drawn.tokens) for key, drawn in known.items()}
        self._ended, self._steps = [], 0
        self.path.parent.mkdir(parents=True, exist_ok=True)
        torn = raw and not raw.endswith(b"\n")
        self._append((b"\n" if torn else b"") + _line(["of", of]))
        return known

    def follow(self, running: Sequence[Answer], finished: Iterable[Answer], seconds: float) -> None:
        """Each running answer has another token, each finished one its last; `seconds` since `begin`."""
        self._ended += finished
        self._steps += 1
        if running and self._steps % EVERY:
            return
        lines = []
        for one in (*running, *self._ended):
            at = self._written.get(one.key, 0)
            new = [one.tokens[at:], one.logprobs[at:], one.routes[at:]]
            lines.append(_line([one.key, at, *new, round(self.seconds + seconds, 3)]))
            self._written[one.key] = len(one.tokens)
        self._append(b"".join(lines))
        self._ended = []

    def _append(self, lines: bytes) -> None:
        with self.path.open("ab") as file:
            file.write(lines)

    def _understand(self, raw: bytes, of: str) -> dict[Key, Drawn]:
        known: dict[Key, Drawn] = {}
        ours = False
        self.seconds = 0.0
        for line in raw.splitlines():
            match _said(line):
                case ["of", name]:
                    ours = name == of
                case [[*key], int(at), [*tokens], [*logprobs], [*routes], float(seconds)] if ours:
                    known.setdefault(tuple(key), Drawn()).extend(at, tokens, logprobs, routes, seconds)
                    self.seconds = max(self.seconds, seconds)
        return known


def identity(weights: Mapping[str, Tensor], requests: Sequence[Request]) -> str:
    """What decides the bits of answers, as 32 hexadecimal digits."""
    digest = hashlib.blake2b(f"{torch.__version__} {torch.get_num_threads()}".encode(), digest_size=16)
    for name, tensor in weights.items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    for request in requests:
        digest.update(repr((request.tokens, request.sampling, request.key)).encode())
    return digest.hexdigest()


def _line(what: list[Any]) -> bytes:
    text = json.dumps(what, separators=(",", ":")).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def _said(line: bytes) -> Any:
    """What a line says, or None for one that is not as it was written."""
    checksum, _, text = line.partition(b" ")
    try:
        return json.loads(text) if int(checksum, 16) == zlib.crc32(text) else None
    except ValueError:
        return None


__all__ = ["Drawn", "TokenLog", "identity"]
