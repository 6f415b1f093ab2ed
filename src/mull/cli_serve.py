"""The verbs of serving: serve, keys, usage. cli.py takes them in."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mull.cli_options import Device, Exact, Json, ModelArgument
from mull.types import UserError

if TYPE_CHECKING:
    import sqlite3

EXTRA = ("fastapi", "h11", "prometheus_client", "starlette", "uvicorn", "xgrammar")  # what mull[serve] brings

Db = Annotated[Path | None, typer.Option("--db", help="The file of keys and usage, if not the usual one.")]
Settings = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Any other setting: limits.n=4 origins=['https://a.b']")
]


def add_to(app: typer.Typer) -> None:
    app.command()(serve)
    app.add_typer(key_verbs, name="keys")
    app.command()(usage)


def serve(
    model: ModelArgument,
    overrides: Settings = None,
    host: Annotated[str, typer.Option(help="The address to listen at; 0.0.0.0 is all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes any that is free.")] = 8000,
    rows: Annotated[int, typer.Option(help="Answers drawn at a time.")] = 16,
    queue: Annotated[int, typer.Option(help="Answers that may wait behind them; more are refused.")] = 64,
    device: Device = "auto",
    exact: Exact = False,
    name: Annotated[str | None, typer.Option(help="What clients call the model.")] = None,
    anybody: Annotated[bool, typer.Option("--open", help="Anybody who reaches it may ask, without a key.")] = False,
    tls_cert: Annotated[Path | None, typer.Option(help="A certificate (PEM), for https.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its private key.")] = None,
    usd_per_hour: Annotated[float | None, typer.Option(help="What the machine costs; answers then say theirs.")] = None,
    db: Db = None,
    log_prompts: Annotated[bool, typer.Option("--log-prompts", help="Write what is asked into the log.")] = False,
) -> None:
    """Answer OpenAI's and Anthropic's clients, and a chat page.

    At http://127.0.0.1:8000. Nothing leaves the machine, and nobody else reaches it unless --host says so. Ctrl-C lets
    answers under way come to their end, and ends it.
    """
    given = {
        "host": host, "port": port, "rows": rows, "queue": queue, "device": device, "exact": exact, "name": name,
        "open": anybody, "tls_cert": tls_cert, "tls_key": tls_key, "db": db, "log_prompts": log_prompts,
        "price": {} if usd_per_hour is None else {"usd_per_hour": usd_per_hour},
    }  # fmt: skip
    _serve(model, {key: str(value) if isinstance(value, Path) else value for key, value in given.items()}, overrides)


def _serve(model: str, given: dict[str, Any], overrides: list[str] | None) -> None:
    from mull.config import apply_overrides, build

    try:
        from mull.serve.server import serve as run
        from mull.serve.settings import Settings as All
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in EXTRA:
            raise
        raise UserError(f'Serving needs the package {error.name}: pip install "mull[serve]" brings it.') from None
    run(model, build(All, apply_overrides(given, overrides or []), "serve"))


key_verbs = typer.Typer(help="API keys: make, list and revoke them.")


@key_verbs.callback(invoke_without_command=True)
def _alone(ctx: typer.Context) -> None:
    if ctx.invoked_subcommand is None:
        list_()


@key_verbs.command()
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Whose key it is.")],
    rpm: Annotated[int | None, typer.Option(help="Requests a minute.")] = None,
    tpm: Annotated[int | None, typer.Option(help="Tokens a minute, prompts included.")] = None,
    parallel: Annotated[int | None, typer.Option(help="Requests at a time.")] = None,
    usd_per_day: Annotated[float | None, typer.Option(help="Dollars a day; the server needs a price.")] = None,
    usd_per_month: Annotated[float | None, typer.Option(help="Dollars a month.")] = None,
    db: Db = None,
    as_json: Json = False,
) -> None:
    """Make a key and print it: it cannot be shown again. From the first key on, a server asks for one."""
    from mull.config import build
    from mull.console import print_json
    from mull.serve import keys

    given = {"rpm": rpm, "tpm": tpm, "parallel": parallel, "usd_per_day": usd_per_day, "usd_per_month": usd_per_month}
    allowance = build(keys.Allowance, given, "keys create")
    with closing(_open(db)) as store:
        token = keys.create(store, name, allowance)
    if as_json:
        print_json({"name": name, "key": token, **allowance.model_dump(exclude_none=True)})
    else:
        print(token)


@key_verbs.command(name="list")
def list_(db: Db = None, as_json: Json = False) -> None:
    """Names, what each may use, when it was last used. The keys themselves are not kept."""
    from mull.console import print_json, print_keys
    from mull.serve import keys

    with closing(_open(db)) as store:
        found = keys.listed(store)
    rows = [
        {"name": key.name, "ends_in": key.hint, "created": key.created, "used": key.used, "revoked": key.revoked}
        | key.allowance.model_dump(exclude_none=True)
        for key in found
    ]
    if as_json:
        print_json({"keys": rows})
    else:
        print_keys(rows)


@key_verbs.command()
def revoke(name: Annotated[str, typer.Argument(metavar="NAME")], db: Db = None) -> None:
    """Refuse a key from now on, by running servers too."""
    from mull.serve import keys

    with closing(_open(db)) as store:
        keys.revoke(store, name)


def usage(
    by: Annotated[str, typer.Option(help="day, key or model; several with commas between.")] = "day,key",
    db: Db = None,
    as_json: Json = False,
) -> None:
    """Tokens, thinking, seconds and money that answers took."""
    from mull.config import nearest
    from mull.console import print_json, print_usage
    from mull.serve import usage as books

    groups = [word.strip() for word in by.split(",")]
    for word in groups:
        if word not in books.GROUPS:
            raise UserError(f"--by takes day, key and model, not {word!r}.{nearest(word, books.GROUPS)}")
    with closing(_open(db)) as store:
        rows = books.summed(store, [word for word in books.GROUPS if word in groups])
    if as_json:
        print_json({"usage": rows})
    else:
        print_usage(rows)


def _open(db: Path | None) -> sqlite3.Connection:
    from mull.serve.store import connect, default_path

    return connect(db or default_path())


__all__ = ["add_to"]
