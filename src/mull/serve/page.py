"""The web page at /: the files in page/, sent with headers that allow it nothing but its own server.

What models say is shown by page/markdown.js, as text. As a second wall the content security policy allows neither
scripts nor styles of others, nor any address but this server's, and no text to become markup (trusted types).
No file holds anything private, so they need no key; what the page asks the server for does.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

FOLDER = Path(__file__).parent / "page"
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # asked for again each time, and sent only where it changed
}


class Page:
    """`/` and `/page/...`; all else goes to `app`. The files are read once."""

    def __init__(self, app: ASGIApp):
        self.app = app
        self.files = {
            "/" if path.name == "index.html" else f"/page/{path.name}": (path.read_bytes(), TYPES[path.suffix])
            for path in FOLDER.iterdir()
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        asked = scope["type"] == "http" and scope["method"] in ("GET", "HEAD")
        found = self.files.get(scope["path"]) if asked else None
        answer = self.app if found is None else _reply(Request(scope), *found)
        await answer(scope, receive, send)


def _reply(request: Request, content: bytes, kind: str) -> Response:
    headers = {**HEADERS, "ETag": f'"{hashlib.sha256(content).hexdigest()[:32]}"'}
    if request.headers.get("if-none-match") == headers["ETag"]:
        return Response(status_code=304, headers=headers)
    return Response(content, headers=headers, media_type=kind)


__all__ = ["POLICY", "Page"]
