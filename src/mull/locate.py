"""What a MODEL argument means: a run (its result is meant), RUN:NAME, a model directory, a GGUF file, or a name.

A path that exists wins over a name. Names are those of `mull.hub`: a named model is fetched when it is first meant, a
repository of the hub only by `mull pull`. So nothing but the first use of a named model ever waits for a network.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from mull import hub
from mull.config import build, nearest
from mull.formats.bounded import CONFIG, read_object
from mull.formats.gguf import is_gguf
from mull.formats.safetensors import INDEX, PICKLES, WHOLE, read_folder
from mull.ledger import Rates
from mull.types import UserError


@dataclass(frozen=True)
class Located:
    """A model directory or GGUF file, and the run it belongs to, whose rates price its answers."""

    folder: Path
    name: str
    run: Path | None
    rates: Rates


def locate(given: str | PathLike[str], weights: bool = True) -> Located:
    """Raises UserError, with the nearest name that exists, where there is no model; without `weights`, where there is
    not even a configuration: a bare config.json is enough.
    """
    path = Path(given)
    before, colon, name = str(given).rpartition(":")
    if colon and not path.exists() and Path(before).is_dir():
        return _of_run(find_run(before), name)
    if not path.exists():
        return _named(str(given))
    if path.is_file():
        return _of_file(path, weights)
    if is_run(path):
        return _of_run(path, "")
    if not (path / "config.json").exists():
        raise UserError(f"{path} holds no config.json, so it is neither a model nor a run.{_ggufs(path)}")
    if weights and not ((path / WHOLE).exists() or (path / INDEX).exists()):
        read_folder(path)  # says what is there instead
    run = path.resolve().parent.parent
    return _located(path, run if path.resolve().parent.name == "models" and is_run(run) else None)


def _named(name: str) -> Located:
    """A model that has been pulled, or that is worth the wait."""
    path = hub.resolve(name)
    if path is None and name in hub.NAMED:
        path = hub.pull(name, say=lambda line: print(line, file=sys.stderr, flush=True))
    repo = hub.repo_of(name)
    if path is not None:
        short = (path.stem if repo.file else repo.id.partition("/")[2]) if repo else name
        return Located(path, short, None, Rates())
    parent = Path(name).parent
    beside = [p.name for p in parent.glob("[!.]*") if p.is_dir() or is_gguf(p)] if parent.is_dir() else []
    if repo and not (parent.is_dir() and nearest(Path(name).name, beside)):
        raise UserError(f"{name} is neither a path nor a model that has been pulled; `mull pull {name}` fetches it.")
    raise UserError(f"There is no model or run at {name}.{nearest(Path(name).name, [*beside, *hub.NAMED])}")


def _of_file(path: Path, weights: bool) -> Located:
    match path.suffix.lower():
        case ".gguf":
            return Located(path, path.stem, None, Rates())
        case ".json" if not weights:
            return Located(path, path.resolve().parent.name, None, Rates())
        case suffix if suffix in PICKLES:
            raise UserError(f"{path} may be a pickle, which can run any code; mull opens safetensors and GGUF files.")
    raise UserError(f"{path} is a file; give the directory of a model or run, or a .gguf file.")


def _ggufs(folder: Path) -> str:
    files = sorted(path.name for path in folder.glob("*") if is_gguf(path))
    return f" Give one of its GGUF files: {', '.join(files[:8])}." if files else ""


def find_run(given: str | PathLike[str]) -> Path:
    """Raises UserError where there is no run."""
    path = Path(given)
    _must_be_folder(path, "run")
    if not is_run(path):
        raise UserError(f"{path} holds no run: `mull demo`, `mull run` or `mull eval` makes one.")
    return path


def is_run(path: Path) -> bool:
    """Models have a config.json too; a run's holds a fingerprint."""
    return "fingerprint" in _config(path)


def run_config(run: Path) -> dict[str, Any]:
    """The configuration that a run was opened with."""
    return dict(_config(run).get("config", {}))


def judged(run: Path) -> dict[str, str]:
    """Name and folder, or address, of the models from elsewhere that a run examines, where that is all it does."""
    config = run_config(run)
    kinds = {stage.get("kind") for stage in config.get("stage", [])}
    served = {name: f"{one['url']}#{one['model']}" for name, one in (config.get("endpoints") or {}).items()}
    return {**(config.get("outside") or {}), **served} if kinds == {"evaluate"} else {}


def _config(path: Path) -> dict[str, Any]:
    try:
        return read_object(path / "config.json", CONFIG)
    except (OSError, UserError):  # whoever needs it says what is wrong with it
        return {}


def _of_run(run: Path, name: str) -> Located:
    made = sorted(p.name for p in (run / "models").glob("[!.]*") if p.is_dir())
    if others := judged(run):
        names = ", ".join(f"{other} in {folder}" for other, folder in others.items())
        raise UserError(f"{run} is an evaluation and holds no model; it judged {names}.")
    if not name:
        result = run / "models" / "result.json"
        try:
            name = str(read_object(result, CONFIG)["model"])
        except FileNotFoundError:
            finished = f"finished so far: {', '.join(made)}, as {run}:NAME" if made else "no model is finished"
            raise UserError(f"{run} has not made its result yet ({finished}); the same command continues it.") from None
        except (OSError, UserError, KeyError) as error:
            raise UserError(f"{result} cannot be read ({error}); name a model: {run}:NAME.") from None
    if name not in made:
        raise UserError(
            f"{run} holds no model {name!r}; it holds {', '.join(made) or 'none'}.{nearest(name, made)}"
        )  # fmt: skip
    return _located(run / "models" / name, run)


def _located(folder: Path, run: Path | None) -> Located:
    rates = build(Rates, run_config(run).get("rates") or {}, f"{run}/config.json: rates") if run else Rates()
    return Located(folder, folder.resolve().name, run, rates)


def _must_be_folder(path: Path, what: str) -> None:
    if path.is_dir():
        return
    if path.exists():
        raise UserError(f"{path} is a file; give the directory of a {what}.")
    beside = [p.name for p in path.parent.glob("[!.]*") if p.is_dir()] if path.parent.is_dir() else []
    raise UserError(f"There is no {what} at {path}.{nearest(path.name, beside)}")


__all__ = ["Located", "find_run", "is_run", "judged", "locate", "run_config"]
