"""The verbs around evaluation: what can be judged, and two evaluations side by side. cli.py takes them in."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from mull.cli_options import Json

RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="An evaluation, or RUN:NAME for one of its models.")]


def add_to(app: typer.Typer) -> None:
    app.command()(models)
    app.command()(compare)


def models(as_json: Json = False) -> None:
    """List the endpoints that eval knows by name, with dated prices.

    Your own ./models.toml, or the file that MULL_MODELS names, adds to them.
    """
    from mull.console import print_endpoints, print_json
    from mull.endpoints import endpoints

    known = list(endpoints().values())
    if as_json:
        print_json({"models": [one.model_dump(mode="json") | {"key": _has_key(one)} for one in known]})
    else:
        print_endpoints([one.model_dump() | {"key": _has_key(one)} for one in known])


def _has_key(one: Any) -> bool:
    return not one.key_env or bool(os.environ.get(one.key_env))


def compare(a: RunArgument, b: RunArgument, as_json: Json = False) -> None:
    """Say which of two evaluations did better, from their files alone."""
    from mull.console import print_json, print_lines
    from mull.report.compare import compare as compared

    found = compared(Path(a), Path(b))
    if as_json:
        print_json(found)
    else:
        print_lines(found["lines"])
