"""Which models there are: the one that is served, as OpenAI's clients have it and as Anthropic's.

Both ask at the same address. Anthropic's say with every request which version of their API they speak.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter
from fastapi.requests import Request

from mull.serve.dialogue import Dialogue
from mull.serve.errors import Api, ApiError
from mull.serve.gate import visit_of


def routes(dialogue: Dialogue) -> APIRouter:
    router, born = APIRouter(), int(time.time())
    cards: dict[Api, dict[str, Any]] = {
        "openai": {
            "id": dialogue.name, "object": "model", "created": born, "owned_by": "mull",
            "max_model_len": dialogue.max_length, "thinks": dialogue.chat.thinks,
        },
        "anthropic": {
            "id": dialogue.name, "type": "model", "display_name": dialogue.name, "lifecycle": "active", "line": None,
            "created_at": f"{datetime.fromtimestamp(born, UTC):%Y-%m-%dT%H:%M:%SZ}", "deprecated_at": None,
            "retires_at": None, "max_input_tokens": dialogue.max_length, "max_tokens": dialogue.max_length,
            "capabilities": None,
        },
    }  # fmt: skip

    @router.get("/v1/models")
    async def models(request: Request, after_id: str | None = None, before_id: str | None = None) -> dict[str, Any]:
        """Beyond the one there is no other page."""
        api = visit_of(request.scope).api
        if api == "openai":
            return {"object": "list", "data": [cards[api]]}
        data = [cards[api]] if after_id is before_id is None else []
        end = dialogue.name if data else None
        return {"data": data, "first_id": end, "last_id": end, "has_more": False}

    @router.get("/v1/models/{model:path}")
    async def model(model: str, request: Request) -> dict[str, Any]:
        if model != dialogue.name:
            why = f"There is no model {model[:80]!r} here; this server has {dialogue.name!r}."
            raise ApiError(404, why, "model", "model_not_found")
        return cards[visit_of(request.scope).api]

    return router


__all__ = ["routes"]
