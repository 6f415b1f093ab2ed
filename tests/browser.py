"""A real Chromium for the tests of the page, and a server that says exactly what a test wants, when it wants it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from mull.serve.page import Page

USAGE = {
    "prompt_tokens": 41, "completion_tokens": 10, "prompt_tokens_details": {"cached_tokens": 16},
    "completion_tokens_details": {"reasoning_tokens": 6}, "cost_usd": 0.00042,
}  # fmt: skip
FINISH = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}], "usage": USAGE}


class Stub:
    """Speaks as the server does. `say` is heard by the page at once; `end` ends the answer."""

    def __init__(self, url: str):
        self.url = url
        self.loop: Any = None
        self.reset()

    def reset(self) -> None:
        self.asked: list[dict[str, Any]] = []  # bodies of the requests for an answer
        self.left = threading.Event()  # the page went away in the midst of an answer
        self.key = ""  # that is asked for
        self.refusal: tuple[int, str, dict[str, str]] | None = None  # of the next request
        self.said: asyncio.Queue[Any] = asyncio.Queue()

    def say(self, **delta: str) -> None:
        self.put({"choices": [{"index": 0, "delta": delta, "finish_reason": None}]})

    def end(self) -> None:
        self.put(FINISH)
        self.put("[DONE]")
        self.put(None)

    def fail(self, message: str) -> None:
        self.put({"error": {"message": message}})
        self.put(None)

    def put(self, what: Any) -> None:
        self.loop.call_soon_threadsafe(self.said.put_nowait, what)

    def _refused(self, request: Request) -> Response | None:
        if self.key and request.headers.get("authorization") != f"Bearer {self.key}":
            return JSONResponse({"error": {"message": "This server wants an API key."}}, 401)
        if self.refusal is not None and request.method == "POST":
            (status, message, headers), self.refusal = self.refusal, None
            return JSONResponse({"error": {"message": message}}, status, headers)
        return None

    async def models(self, request: Request) -> Response:
        return self._refused(request) or JSONResponse(
            {"data": [{"id": "tiny"}, {"id": "tiny-2", "thinks": True}, {"id": "plain", "thinks": False}]}
        )

    async def chat(self, request: Request) -> Response:
        self.asked.append(json.loads(await request.body()))
        return self._refused(request) or StreamingResponse(self._frames(), media_type="text/event-stream")

    async def _frames(self) -> AsyncIterator[str]:
        try:
            while (what := await self.said.get()) is not None:
                yield f"data: {what if isinstance(what, str) else json.dumps(what)}\n\n"
        except (asyncio.CancelledError, GeneratorExit):
            self.left.set()
            raise

    def app(self) -> Page:
        routes = [Route("/v1/models", self.models), Route("/v1/chat/completions", self.chat, methods=["POST"])]
        return Page(Starlette(routes=routes))


@contextlib.contextmanager
def stubbed() -> Iterator[Stub]:
    door = socket.create_server(("127.0.0.1", 0))
    stub = Stub(f"http://127.0.0.1:{door.getsockname()[1]}/")
    server = uvicorn.Server(uvicorn.Config(stub.app(), log_level="warning", lifespan="off"))
    begun = threading.Event()

    async def run() -> None:
        stub.loop = asyncio.get_running_loop()
        begun.set()
        await server.serve([door])

    thread = threading.Thread(target=lambda: asyncio.run(run()), daemon=True)
    thread.start()
    begun.wait()
    try:
        yield stub
    finally:
        server.should_exit = True
        thread.join(10)
        door.close()


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    """Skips with a reason where there is none."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="there is no playwright: pip install 'mull[test]'")
    if (path := shutil.which("chromium") or shutil.which("chromium-browser")) is None:
        pytest.skip("there is no Chromium here: apt install chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


WATCH = """
addEventListener("securitypolicyviolation", (event) => console.error("violation", event.violatedDirective));
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def one_stub() -> Iterator[Stub]:
    with stubbed() as stub:
        yield stub


@pytest.fixture
def stub(one_stub: Stub) -> Stub:
    one_stub.reset()
    return one_stub


class Tab:
    """A page of a browser that has not been here before."""

    def __init__(self, browser: Any, url: str, **options: Any):
        self.context = browser.new_context(viewport=options.pop("viewport", {"width": 1100, "height": 800}), **options)
        self.context.add_init_script(WATCH)
        self.context.set_default_timeout(30_000)
        self.url, self.wrong, self.expected = url, [], ()
        self.page = self.more()

    def more(self) -> Any:
        page = self.context.new_page()
        page.on("console", lambda said: said.type in ("error", "warning") and self._note(said.text))
        page.on("pageerror", lambda error: self._note(str(error)))
        page.goto(self.url)
        page.locator(".greeting", has_text="Ask").wait_for()
        return page

    def _note(self, text: str) -> None:
        if not any(part in text for part in self.expected):
            self.wrong.append(text)

    def ask(self, text: str) -> None:
        self.page.fill("#text", text)
        self.page.press("#text", "Enter")

    def sees(self, text: str) -> None:
        self.page.locator("#log", has_text=text).wait_for()

    def until(self, expression: str) -> None:
        """Playwright's own way evaluates text within the page, which its policy forbids."""
        end = time.monotonic() + 30
        while not self.page.evaluate(expression):
            assert time.monotonic() < end, expression
            time.sleep(0.02)

    def texts(self, where: str) -> list[str]:
        return self.page.locator(where).all_inner_texts()

    def ends(self) -> None:
        """Until the answer has ended."""
        self.page.locator("#send:not(.stop)").wait_for()


@pytest.fixture
def tab(browser: Any, stub: Stub) -> Iterator[Tab]:
    tab = Tab(browser, stub.url)
    yield tab
    tab.context.close()
    assert tab.wrong == []


__all__ = ["Stub", "Tab", "browser", "one_stub", "stub", "tab"]
