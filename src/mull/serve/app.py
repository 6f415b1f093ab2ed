"""The application: every protocol over one dialogue, behind one door.

    app = build(dialogue, gate=..., limits=...)      the caller starts the dialogue's host, and runs it

The door is plain ASGI: it gives each request its id, asks the gate, bounds the body, and answers what goes wrong in the
protocol's own words.
"""

from __future__ import annotations

import json

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mull.engine.host import BusyError, DiedError
from mull.serve import anthropic, completions, models, openai, responses
from mull.serve.bodies import Bodies, again
from mull.serve.dialogue import Dialogue, a_name
from mull.serve.errors import Api, ApiError, LateError, noted, of, of_validation
from mull.serve.gate import Gate, Open, Visit, visit_of
from mull.serve.page import Page
from mull.serve.settings import Limits
from mull.serve.sse import GoneError
from mull.types import UserError

PROTOCOLS = (models.routes, openai.routes, completions.routes, responses.routes, anthropic.routes)  # of a dialogue
WITH_BODY = ("POST", "PUT", "PATCH")


def build(dialogue: Dialogue, gate: Gate | None = None, limits: Limits | None = None) -> FastAPI:
    """Without a gate anybody may ask. The pages of FastAPI's documentation fetch from elsewhere, so there are none."""
    app = FastAPI(title="mull", docs_url=None, redoc_url=None)
    for routes in PROTOCOLS:
        app.include_router(routes(dialogue))
    for kind in (ApiError, UserError, BusyError, DiedError, LateError, HTTPException, RequestValidationError):
        app.add_exception_handler(kind, _say)
    app.add_exception_handler(GoneError, _nobody)
    app.add_middleware(Door, dialogue=dialogue, gate=gate or Open(), limits=limits or Limits())
    app.add_middleware(Page)  # before the door: its files need no key
    return app


def api_of(scope: Scope) -> Api:
    """Models are asked for by clients of both: Anthropic's name the version that they speak."""
    path, versions = scope["path"], (name == b"anthropic-version" for name, _ in scope["headers"])
    theirs = path.startswith("/v1/messages") or (path.startswith("/v1/models") and any(versions))
    return "anthropic" if theirs else "openai"


async def _say(request: Request, error: Exception) -> Response:
    return told(_known(request, error), visit_of(request.scope))


async def _nobody(request: Request, error: Exception) -> Response:
    return Response(status_code=499)  # nginx's number for it; the client has gone


def _known(request: Request, error: Exception) -> ApiError:
    if isinstance(error, RequestValidationError):
        return of_validation(list(error.errors()))
    if not isinstance(error, HTTPException):
        return of(error)
    if error.status_code == 404:
        return ApiError(404, f"There is no {request.url.path[:80]} here.")
    if error.status_code == 405:
        return ApiError(405, f"{request.url.path[:80]} is not asked with {request.method}.")
    return ApiError(error.status_code, "The body cannot be read; it must be JSON in UTF-8.")


def told(error: ApiError, visit: Visit) -> Response:
    body = json.dumps(error.body(visit.api, visit.id)).encode()
    return Response(body, error.status, error.headers, "application/json")


class Door:
    """Every request comes through here, and every answer leaves."""

    def __init__(self, app: ASGIApp, dialogue: Dialogue, gate: Gate, limits: Limits):
        self.app, self.dialogue, self.gate = app, dialogue, gate
        self.bodies = Bodies(limits)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        api = api_of(scope)
        visit = Visit(a_name("req_"), api, self.dialogue, self.gate)
        scope.setdefault("state", {})["visit"] = visit
        name = b"request-id" if api == "anthropic" else b"x-request-id"
        begun, body = False, b""

        async def named(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                message = {**message, "headers": [*message["headers"], (name, visit.id.encode())]}
            await send(message)

        try:
            visit.who = await self.gate.admit(scope, api, _size(scope))
            if scope["method"] in WITH_BODY:
                body = await self.bodies.read(receive, _size(scope))
                receive = again(body, receive)
            await self.app(scope, receive, named)
        except Exception as error:
            known = noted(error, visit.id)
            if begun:
                raise  # the connection is closed: what was said so far is no answer
            await told(known, visit)(scope, receive, named)
        finally:
            self.bodies.let_go(len(body))


def _size(scope: Scope) -> int:
    """What the client says its body has."""
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit() and len(value) < 20:
            return int(value)
    return 0


__all__ = ["PROTOCOLS", "Door", "api_of", "build", "told"]
