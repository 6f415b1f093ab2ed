"""What goes wrong, as each protocol says it. Everything raised on the way to an answer becomes one `ApiError`: a
status, a sentence, and what clients of the protocol look at.
"""

from __future__ import annotations

import logging
from typing import Any, Literal

from mull.engine.host import BusyError, DiedError, NoRoomError, StoppedError
from mull.types import UserError

Api = Literal["openai", "anthropic"]
log = logging.getLogger("mull.serve")

OPENAI = {
    400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 404: "not_found_error",
    405: "invalid_request_error", 408: "timeout_error", 413: "invalid_request_error", 429: "rate_limit_error",
    500: "server_error", 503: "server_error", 504: "timeout_error",
}  # fmt: skip
ANTHROPIC = OPENAI | {413: "request_too_large", 500: "api_error", 503: "overloaded_error"}
DRAIN_RETRY = 5  # seconds after which another server may be up
START_RETRY = 2  # seconds in which an engine has mostly started again
BRANCHES = ("str", "int", "float", "bool", "constrained-str", "function-")  # pydantic's names for parts of a union


class ApiError(Exception):
    """`message` is one sentence for people; `param` names the parameter, `code` is for programs."""

    def __init__(
        self, status: int, message: str, param: str | None = None, code: str | None = None,
        retry_after: int | None = None,
    ):  # fmt: skip
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.retry_after = status, message, param, code, retry_after

    @property
    def headers(self) -> dict[str, str]:
        return {} if self.retry_after is None else {"retry-after": str(self.retry_after)}

    def body(self, api: Api, request_id: str) -> dict[str, Any]:
        """As the protocol's clients expect it."""
        if api == "anthropic":
            kind = ANTHROPIC.get(self.status, "invalid_request_error" if self.status < 500 else "api_error")
            return {"type": "error", "error": {"type": kind, "message": self.message}, "request_id": request_id}
        kind = OPENAI.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


class TooLongError(UserError):
    """The prompt leaves no room for an answer. Clients shorten the conversation when they see this one's code."""


class LateError(Exception):
    """The answer took longer than the server lets any take."""


def refused(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """A request that cannot be served as it is."""
    return ApiError(400, message, param, code)


def of(error: BaseException) -> ApiError:
    """What a client is told. Of our own mistakes nothing but that there was one: the rest is in the log."""
    match error:
        case ApiError():
            return error
        case TooLongError():
            return ApiError(400, str(error), "messages", "context_length_exceeded")
        case UserError():
            return ApiError(400, str(error))
        case NoRoomError():
            return ApiError(429, str(error), code="rate_limit_exceeded", retry_after=error.retry_after)
        case BusyError():
            return ApiError(503, str(error), code="overloaded", retry_after=error.retry_after)
        case StoppedError():
            return ApiError(503, str(error), code="shutting_down", retry_after=DRAIN_RETRY)
        case DiedError():
            # within a stream there are no headers: the sentence says it
            why = f"{error} Ask again in {START_RETRY} seconds."
            return ApiError(503, why, code="engine_restarted", retry_after=START_RETRY)
        case LateError():
            return ApiError(504, str(error), code="timeout")
    return ApiError(500, "Something went wrong inside the server; its log says what, under this request's id.")


def noted(error: BaseException, request_id: str) -> ApiError:
    """The same; of our own mistakes the log is told all."""
    known = of(error)
    if known.status == 500:
        log.error("%s failed", request_id, exc_info=error)
    return known


def of_validation(errors: list[Any]) -> ApiError:
    """One sentence from pydantic's list: the deepest mistake, which of a union's branches is the one that was meant."""
    first = max(errors, key=lambda error: len(error["loc"]))
    where = [str(part) for part in first["loc"] if not _names_a_branch(part)]
    where = where[1:] if where[:1] == ["body"] else where
    param = ".".join(where) or None
    if first["type"] == "json_invalid":
        return refused("The body is not JSON: " + str(first.get("ctx", {}).get("error", "it cannot be read")) + ".")
    if first["type"] in ("model_attributes_type", "missing") and param is None:
        return refused("The body must be a JSON object, sent with the header Content-Type: application/json.")
    said = first["msg"].removeprefix("Value error, ").removesuffix(".")
    if said.endswith("?"):
        return refused(f"{param}: {said}" if param else said, param)
    if first["type"] == "missing":
        return refused(f"{param} is missing.", param, "missing_required_parameter")
    given = first.get("input")
    shown = f" (given: {str(given)[:40]!r})" if isinstance(given, str | int | float | bool) else ""
    return refused(f"{param}: {said}{shown}." if param else f"{said}{shown}.", param)


def _names_a_branch(part: object) -> bool:
    return isinstance(part, str) and ("[" in part or part.startswith(BRANCHES) or part[:1].isupper())


__all__ = [
    "DRAIN_RETRY", "START_RETRY", "Api", "ApiError", "LateError", "TooLongError", "noted", "of", "of_validation",
    "refused",
]  # fmt: skip
