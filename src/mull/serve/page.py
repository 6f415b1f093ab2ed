"""The web page at /: files beside this module, sent with headers that allow it nothing but its own server.

What models say is shown by page/markdown.js, as text. As a second wall the content security policy allows neither
scripts nor styles of others, nor any address but this server's, and no text to become markup (trusted types).
No file holds anything private, so they need no key; what the page asks the server for does.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

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


def routes() -> list[Route]:
    """`/` and `/page/...`; the files are read once."""
    found = []
    for path in sorted(FOLDER.iterdir()):
        where = "/" if path.name == "index.html" else f"/page/{path.name}"
        found.append(Route(where, _sender(path.read_bytes(), TYPES[path.suffix]), include_in_schema=False))
    return found


def _sender(content: bytes, kind: str):
    etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    headers = {**HEADERS, "ETag": etag}

    async def send(request: Request) -> Response:
        if request.headers.get("if-none-match") == etag:
            return Response(status_code=304, headers=headers)
        return Response(content, headers=headers, media_type=kind)

    return send


__all__ = ["POLICY", "routes"]
