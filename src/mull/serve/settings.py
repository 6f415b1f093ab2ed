"""All that can be set of a server, in one place; each with what it is for. `mull serve MODEL limits.n=4` sets any.

Bounds are there because each is a way to take a server down that somebody has found: endless bodies and headers, a
schema that takes minutes to compile, clients that open a stream and never read it, a queue without end.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, model_validator

from mull.config import Config
from mull.serve.price import Price

LOOPBACK = ("127.0.0.1", "::1", "localhost")


class Limits(Config):
    """What one request may ask for. More is refused in one sentence."""

    body_bytes: int = Field(default=8 << 20, ge=1024)
    bodies_bytes: int = Field(default=64 << 20, ge=1024)  # of all requests under way together; more get 503
    body_values: int = Field(default=1 << 18, ge=64)  # in its lists and objects; a prompt in token ids has one for each
    depth: int = Field(default=100, ge=8)  # of the nesting of these
    header_bytes: int = Field(default=32 << 10, ge=1024)  # request line and headers together
    messages: int = Field(default=4096, ge=1)
    prompts: int = Field(default=128, ge=1)  # of one completion request
    prompt_tokens: int | None = Field(default=None, ge=1)  # None: as many as the model's length holds
    max_tokens: int | None = Field(default=None, ge=1)  # of an answer; None: up to the model's length
    n: int = Field(default=16, ge=1)
    votes: int = Field(default=64, ge=1)
    stop: int = Field(default=16, ge=0)  # stop strings
    stop_chars: int = Field(default=256, ge=1)  # of each
    stop_tokens: int = Field(default=64, ge=0)
    logit_bias: int = Field(default=1024, ge=0)  # entries
    top_logprobs: int = Field(default=20, ge=0)
    tools: int = Field(default=128, ge=0)
    tools_bytes: int = Field(default=256 << 10, ge=0)  # of their definitions together
    seconds: float = Field(default=600.0, gt=0)  # from the request's arrival to the last token; then 504, or cancelled
    read_seconds: float = Field(default=30.0, gt=0)  # within which headers, and then the body, have to arrive
    stall_seconds: float = Field(default=30.0, gt=0)  # a client that takes nothing of its answer so long is cut off


class Settings(Config):
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)  # 0: any that is free
    name: str | None = None  # what clients call the model; None: its own name
    device: str = "auto"
    exact: bool = False  # the same bits in any company; slower
    rows: int = Field(default=16, ge=1)  # answers drawn at a time
    queue: int = Field(default=64, ge=0)  # that wait behind them; more get 503 (or 429, where some of them find room)
    connections: int = Field(default=512, ge=1)  # open at a time
    drain_seconds: float = Field(default=30.0, ge=0)  # that answers under way have when the server is told to end
    open: bool = False  # anybody who reaches the server may ask, keys or not
    hosts: tuple[str, ...] = ()  # names it is reached by, besides its addresses (the Host header is held against them)
    origins: tuple[str, ...] = ()  # web pages elsewhere that may ask, e.g. https://chat.example.org
    tls_cert: Path | None = None
    tls_key: Path | None = None
    db: Path | None = None  # keys and usage; None: `mull keys` says where
    log_prompts: bool = False  # what is asked, into the log
    price: Price = Price()
    limits: Limits = Limits()
    engine: dict[str, int | float | str | bool] = {}  # options of the engine's process, as engine/worker.py has them

    @model_validator(mode="after")
    def _both(self) -> Settings:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("TLS needs both files: the certificate (--tls-cert) and its key (--tls-key).")
        return self

    @property
    def loopback(self) -> bool:
        """Whether only this machine reaches it."""
        return self.host in LOOPBACK or self.host.startswith("127.")


__all__ = ["LOOPBACK", "Limits", "Settings"]
