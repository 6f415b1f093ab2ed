"""A server that really runs: uvicorn in a thread of this process, the engine in a process of its own, a tiny model.

    with serving() as server:
        server.openai().chat.completions.create(...)
"""

from __future__ import annotations

import asyncio
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import uvicorn
from fastapi import FastAPI
from small import GQA, changed, chat, model_of

from mull.data.batch import Example, collate
from mull.engine.host import Host
from mull.model.families import read_config
from mull.model.weights import save_model
from mull.serve.app import build
from mull.serve.dialogue import Dialogue
from mull.serve.gate import Gate
from mull.serve.settings import Limits, Settings
from mull.serve.wires import protocol_of
from mull.text.chat import Chat
from mull.types import Message

TINY = changed(GQA, max_length=1024)


@dataclass
class Server:
    url: str
    dialogue: Dialogue
    loop: asyncio.AbstractEventLoop

    @property
    def host(self) -> Host:
        return self.dialogue.host

    def openai(self, key: str = "none") -> Any:
        """The real client; it does not try again by itself."""
        import openai

        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=60)

    def anthropic(self, key: str = "none") -> Any:
        import anthropic

        return anthropic.Anthropic(base_url=self.url, api_key=key, max_retries=0, timeout=60)


def saved(folder: Path, cfg: Any = TINY, seed: int = 0, template: Chat | None = None) -> Path:
    """A model directory."""
    save_model(folder, model_of(cfg, seed), template or chat())
    return folder


@dataclass
class Lesson:
    """What to answer to a question, at temperature 0."""

    question: str
    answer: str
    reasoning: str = ""
    tools: tuple[Any, ...] = ()
    ways: tuple[bool, ...] = (True, False)  # with thinking, and without


def taught(folder: Path, *lessons: Lesson) -> Path:
    """A model that knows its lessons by heart; takes a second for every hundred tokens of them."""
    template, examples = chat(), []
    for lesson in lessons:
        before = [Message("user", lesson.question)]
        said = Message("assistant", lesson.answer, lesson.reasoning)
        for thinking in lesson.ways:
            prompt = template.encode(before, thinking, lesson.tools or None)
            answer = template.answer(said, thinking, before)
            examples.append(Example([*prompt, *answer], [0] * len(prompt) + [1] * len(answer)))
    model = model_of(changed(TINY, width=64, ffn=128), std=0.05).train()
    batch = collate(examples)
    optimiser = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.0)
    for _ in range(400):
        logits_NV = model.logits(model(batch.tokens_T, batch.documents)[batch.predict_N])
        loss = F.cross_entropy(logits_NV, batch.target_N)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if loss.item() < 0.004:
            break
    save_model(folder, model.eval(), template)
    return folder


@contextmanager
def serving(
    folder: Path | None = None, gate: Gate | None = None, limits: Limits | None = None, rows: int = 16,
    queue: int = 64, options: dict[str, Any] | None = None,
    app: Callable[[Dialogue], FastAPI] | None = None, buffer: int | None = None,
) -> Iterator[Server]:  # fmt: skip
    """`options` go to the engine's process; `app` makes another application than build().

    `buffer` is how many bytes the kernel keeps of what a client does not read.
    """
    with tempfile.TemporaryDirectory() as made:
        folder = folder or saved(Path(made) / "tiny")
        template = Chat.load(folder)
        host = Host({"model": str(folder), "device": "cpu", **(options or {})}, rows, queue)
        dialogue = Dialogue(host, template, "tiny", read_config(folder).max_length, "tiny-fast", limits)
        built = app(dialogue) if app else build(dialogue, gate, limits)
        door = socket.create_server(("127.0.0.1", 0))
        if buffer is not None:
            door.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
        http = protocol_of(Settings(limits=limits or Limits()))
        server = uvicorn.Server(uvicorn.Config(built, log_level="warning", lifespan="off", http=http))
        ready = threading.Event()
        found: list[Any] = []

        async def run() -> None:
            try:
                await host.start()
                found.append(asyncio.get_running_loop())
            except BaseException as error:
                found.append(error)
                raise
            finally:
                ready.set()
            try:
                await server.serve([door])
            finally:
                await host.stop()

        thread = threading.Thread(target=lambda: asyncio.run(run()), daemon=True)
        thread.start()
        ready.wait()
        if isinstance(found[0], BaseException):
            raise found[0]
        try:
            yield Server(f"http://127.0.0.1:{door.getsockname()[1]}", dialogue, found[0])
        finally:
            server.should_exit = True
            thread.join(20)
            door.close()


__all__ = ["TINY", "Lesson", "Server", "saved", "serving", "taught"]
