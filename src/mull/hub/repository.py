"""Repositories ORG/NAME of the Hugging Face hub, or a mirror of it, into the cache that all readers of the hub share.

huggingface_hub says what there is, moves bytes and lays out its snapshots; its settings (HF_HOME, HF_ENDPOINT,
HF_HUB_OFFLINE, HF_TOKEN) hold. What it leaves to be wished is done here: it forgets the part of a file that a killed
process had, and takes the bytes that come for the ones that were published. So each file comes first into the cache's
`blobs/`, under a lasting `.incomplete` name, and is moved to its digest's name once it has that digest.
"""

from __future__ import annotations

import glob
import hashlib
import io
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from mull.formats.bounded import read_object, read_text
from mull.formats.safetensors import INDEX, MOST_JSON, PICKLES, WHOLE
from mull.hub.cache import Say, alone
from mull.types import UserError, sync

Approve = Callable[[Path], object]  # raises UserError against a configuration

_PART = r"\w[\w.-]*"
_REPO = re.compile(
    rf"(?P<id>{_PART}/{_PART})(?:@(?P<revision>{_PART}(?:/{_PART})*))?(?::(?P<file>{_PART}(?:/{_PART})*\.gguf))?",
    re.ASCII,
)
# of a repository's top folder: what a model directory is made of, and who may do what with it
WANTED = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "chat_template*", "*.safetensors", "*.safetensors.index.json", "README.md", "LICENSE*",
)  # fmt: skip
UNWANTED = ("consolidated*", "adapter*")  # the same weights in another layout; changes to another model's


@dataclass(frozen=True)
class Repo:
    """ORG/NAME[@REVISION][:FILE.gguf]"""

    id: str
    revision: str
    file: str

    @property
    def folder(self) -> Path:
        """Where every reader of the hub keeps it."""
        return Path(_hub().HF_HUB_CACHE) / f"models--{self.id.replace('/', '--')}"


def pulled() -> dict[str, Path]:
    """Every whole model and GGUF file in the cache, whoever fetched it, by the name that says it."""
    found: dict[str, Path] = {}
    for folder in sorted(Path(_hub().HF_HUB_CACHE).glob("models--*--*")):
        name = folder.name.removeprefix("models--").replace("--", "/", 1)
        if (repo := repo_of(name)) is None:
            continue
        if here := snapshot(repo):
            found[name] = here
        here = _kept(repo)
        found |= {f"{name}:{path.relative_to(here)}": path for path in sorted(here.rglob("*.gguf"))}
    return found


def repo_of(name: str) -> Repo | None:
    """What a name says, if it has the form of a repository's."""
    found = _REPO.fullmatch(name)
    return Repo(found["id"], found["revision"] or "main", found["file"] or "") if found else None


@dataclass(frozen=True)
class Blob:
    """A file of a repository. The cache keeps it by `digest`: SHA-256 of large files, git's SHA-1 of small ones."""

    name: str
    size: int
    digest: str

    def fits(self, path: Path) -> bool:
        if path.stat().st_size != self.size:
            return False
        git = b"blob %d\0" % self.size
        sums = hashlib.sha256() if len(self.digest) == 64 else hashlib.sha1(git, usedforsecurity=False)
        with path.open("rb") as file:
            return hashlib.file_digest(file, lambda: sums).hexdigest() == self.digest


def _hub() -> Any:
    """huggingface_hub's settings, as the user's environment makes them; its reports home are switched off."""
    from huggingface_hub import constants

    constants.HF_HUB_DISABLE_TELEMETRY = True
    return constants


def snapshot(repo: Repo) -> Path | None:
    """What is here of a repository, if that is a whole model, or the file asked for. Asks no network."""
    folder = _kept(repo)
    if repo.file:
        return folder / repo.file if (folder / repo.file).is_file() else None
    whole = (folder / "config.json").is_file() and ((folder / WHOLE).is_file() or _has_shards(folder))
    return folder if whole else None


def _kept(repo: Repo) -> Path:
    """Where the cache has the commit that a revision means, if it has it."""
    try:
        commit = read_text(repo.folder / "refs" / repo.revision, 256).strip()
    except (OSError, UserError):
        commit = repo.revision
    return repo.folder / "snapshots" / commit


def _has_shards(folder: Path) -> bool:
    try:
        index = read_object(folder / INDEX, MOST_JSON)
        return all((folder / str(name)).is_file() for name in set(index["weight_map"].values()))
    except FileNotFoundError:
        return False
    except (UserError, OSError, ValueError, KeyError, TypeError, AttributeError):
        return True  # its reader says what is wrong with it


def pull(repo: Repo, say: Say, approve: Approve) -> Path:
    """Its newest files, those fetched that are not here: a directory, or the GGUF file asked for."""
    constants = _hub()
    with alone(repo.id, say), _explained(repo):
        if constants.HF_HUB_OFFLINE and (here := snapshot(repo)):
            say(f"{repo.id} is in {here} (HF_HUB_OFFLINE is set: nobody was asked for a newer one).")
            return here
        commit, every = _listing(repo)
        blobs = _chosen(repo, every)
        config = [blob for blob in blobs if blob.name == "config.json"]
        if config:
            approve(_bring(repo, commit, config, say) / "config.json")
        waiting = [blob for blob in blobs if not (repo.folder / "blobs" / blob.digest).is_file()]
        _check_room(repo, waiting)
        if waiting:
            size = sum(blob.size for blob in waiting)
            say(f"{repo.id} at {commit[:12]}: {len(waiting)} files, {size / 1e6:,.1f} MB, from {constants.ENDPOINT}.")
        folder = _bring(repo, commit, blobs, say)
    path = folder / repo.file
    say(f"{repo.id} is in {path}; from now on it needs no network.")
    return path


def _listing(repo: Repo) -> tuple[str, list[Blob]]:
    """The commit that a revision means, and its files."""
    from huggingface_hub import HfApi

    endpoint = _hub().ENDPOINT
    try:
        api = HfApi(endpoint, library_name="mull")
        found = api.model_info(repo.id, revision=repo.revision, files_metadata=True, timeout=30)
        files = [
            Blob(one.rfilename, int(one.size), (one.lfs.sha256 if one.lfs else one.blob_id) or "")  # type: ignore[arg-type]
            for one in found.siblings or []
        ]
        commit = str(found.sha)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, OSError):  # an answer that says no is explained elsewhere
            raise
        raise UserError(f"{endpoint} does not answer as a hub of models does ({error}).") from None
    return commit, [blob for blob in files if re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", blob.digest)]


def _chosen(repo: Repo, every: Sequence[Blob]) -> list[Blob]:
    """The one GGUF file asked for, or what makes a model directory. Raises UserError where there is none."""
    names = [blob.name for blob in every]
    ggufs = [name for name in names if name.endswith(".gguf")]
    if repo.file:
        if repo.file not in names:
            raise UserError(f"{repo.id} holds no {repo.file}; its GGUF files: {', '.join(ggufs[:8]) or 'none'}.")
        return [blob for blob in every if blob.name == repo.file]
    chosen = [
        blob for blob in every
        if any(fnmatch(blob.name, wanted) for wanted in WANTED) and "/" not in blob.name
        and not any(fnmatch(blob.name, unwanted) for unwanted in UNWANTED)
    ]  # fmt: skip
    if not {WHOLE, INDEX} & {blob.name for blob in chosen}:
        if ggufs:
            raise UserError(f"{repo.id} holds GGUF files; choose one: {repo.id}:{ggufs[0]} ({len(ggufs)} in all).")
        if pickles := [name for name in names if name.endswith(PICKLES)]:
            raise UserError(
                f"{repo.id} holds its weights as {pickles[0]}: a pickle can run any code, so mull never opens one. "
                "Look for a revision with safetensors (often @refs/pr/1), or convert it elsewhere."
            )
        raise UserError(f"{repo.id} holds no {WHOLE}, no shards of it and no GGUF files: no weights that mull reads.")
    if "config.json" not in names:
        raise UserError(f"{repo.id} holds no config.json, so it is no model directory.")
    return chosen


def _check_room(repo: Repo, blobs: Sequence[Blob]) -> None:
    repo.folder.mkdir(parents=True, exist_ok=True)
    free, needed = shutil.disk_usage(repo.folder).free, sum(blob.size for blob in blobs)
    if needed > free:
        raise UserError(
            f"{repo.id} needs {needed / 1e9:,.1f} GB in {repo.folder}, which has {free / 1e9:,.1f} GB left; free some "
            "space, or set HF_HOME to a place that has it."
        )


def _bring(repo: Repo, commit: str, blobs: Sequence[Blob], say: Say) -> Path:
    """Fetch and check what is not here; huggingface_hub then finds all files there and lays out its snapshot."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import disable_progress_bars

    constants = _hub()
    for blob in sorted(blobs, key=lambda blob: blob.size):
        _fetch(repo, commit, blob, say)
    names = [glob.escape(blob.name) for blob in blobs]
    with disable_progress_bars():  # those of the files have been shown
        folder = snapshot_download(
            repo.id, revision=repo.revision, allow_patterns=names, cache_dir=constants.HF_HUB_CACHE,
            endpoint=constants.ENDPOINT, library_name="mull",
        )  # fmt: skip
    for blob in blobs:
        if (Path(folder) / blob.name).stat().st_size != blob.size:
            raise UserError(f"{repo.id} changed while it was pulled; the same command fetches what it is now.")
    return Path(folder)


class _Within(io.BufferedWriter):
    """A file to append to, as long as the one that was announced: a server may send without end."""

    def __init__(self, path: Path, blob: Blob):
        super().__init__(io.FileIO(path, "ab"))
        self.blob = blob

    def write(self, content: Any, /) -> int:
        if self.tell() + len(content) > self.blob.size:
            self.truncate(0)
            raise UserError(f"{self.blob.name} arrives with more than the {self.blob.size:,} bytes that the hub "
                            "announces; thrown away.")  # fmt: skip
        return super().write(content)


def _fetch(repo: Repo, commit: str, blob: Blob, say: Say) -> None:
    """One file into the cache. huggingface_hub throws away what a killed process had: here it stays and goes on."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    target = repo.folder / "blobs" / blob.digest
    if target.is_file() or blob.size > _hub().MAX_HTTP_DOWNLOAD_SIZE:  # which only huggingface_hub has a way for
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{blob.digest}.incomplete")
    with _Within(part, blob) as file:
        if (done := file.tell()) > blob.size:
            done = file.truncate(0)
            file.seek(0)
        if done:
            say(f"{blob.name}: {done / 1e6:,.1f} MB are here already; going on from there.")
        url = hf_hub_url(repo.id, blob.name, revision=commit, endpoint=_hub().ENDPOINT)
        headers = build_hf_headers(library_name="mull") | {"Accept-Encoding": "identity"}
        http_get(url, file, resume_size=done, headers=headers, expected_size=blob.size, displayed_filename=blob.name)
    if not blob.fits(part):
        part.unlink()
        raise UserError(f"{blob.name} of {repo.id} arrived with another digest than the published one; thrown away.")
    sync(part)
    part.replace(target)


@contextmanager
def _explained(repo: Repo) -> Iterator[None]:
    """What the network and the hub say, in one line."""
    import httpx2
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    hub = _hub().ENDPOINT
    try:
        yield
    except GatedRepoError:
        raise UserError(
            f"{repo.id} is gated: accept its terms at {hub}/{repo.id}, then log in (`hf auth login`, or HF_TOKEN)."
        ) from None
    except RevisionNotFoundError:
        raise UserError(f"{repo.id} has no revision {repo.revision!r}; give a branch, a tag or a commit.") from None
    except RepositoryNotFoundError:
        raise UserError(
            f"{hub} has no model {repo.id}, or it is private: check the name, or log in (`hf auth login`, or HF_TOKEN)."
        ) from None
    except (httpx2.UnsupportedProtocol, httpx2.InvalidURL):
        raise UserError(f"HF_ENDPOINT is {hub!r}, which is no http:// or https:// address of a hub.") from None
    except OfflineModeIsEnabled:
        raise UserError(f"HF_HUB_OFFLINE is set, and {repo.id} is not here. {_by_hand(repo)}") from None
    except HfHubHTTPError as error:
        raise UserError(f"{hub} answers {error.response.status_code} for {repo.id}; try again later.") from None
    except (httpx2.TransportError, LocalEntryNotFoundError) as error:
        raise UserError(
            f"The connection to {hub} fails ({type(error).__name__}); what has arrived is kept and the same command "
            f"goes on. {_by_hand(repo)}"
        ) from None
    except OSError as error:
        if error.errno is not None or not str(error).startswith("Consistency check failed"):
            raise
        raise UserError(f"{hub} sent less or more of a file of {repo.id} than it announced; try again.") from None


def _by_hand(repo: Repo) -> str:
    if here := snapshot(repo):
        return f"What was pulled before is in {here}, and needs no network."
    files = repo.file or "config.json, tokenizer.json, tokenizer_config.json and all *.safetensors with their index"
    what = "the file" if repo.file else "the folder"
    return f"Without a network: copy {files} from a machine that has them, and give {what}: `mull chat PATH`."


__all__ = ["Approve", "Repo", "pull", "pulled", "repo_of", "snapshot"]
