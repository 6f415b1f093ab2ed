"""Kill runs with SIGKILL, again and again, and count the bits in which they end otherwise than runs left alone.

A tiny recipe of all kinds of stages is carried out once in peace. Then again in other directories, each killed several
times: at a random moment, or at a place, the n-th thing that it does to the disk (creating, writing, syncing, renaming
or removing a file; of writing, half is done). The same command follows each kill, until it finishes. Every file is then
compared, with clocks and the bill set to one value in both (mull.run.CLOCKS), and the report drawn anew from those.

Prints a table and exits with 1 where a bit differs.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain, cycle, repeat
from pathlib import Path
from typing import IO, Any, NoReturn

TASK = '{ task = "gcd", size = { values = [1, 3] } }'  # few enough to be learnt in a hundred steps
SHAPES = {
    "mixture, latent": """
vocab = 300\nwidth = 32\nlayers = 2\nheads = 2\nq_rank = 16\nkv_rank = 16\nnope_dim = 8\nrope_dim = 8\nv_dim = 16
ffn = 64\ndense_layers = 1\nexperts = 4\nactive_experts = 2\nshared_experts = 1\nexpert_ffn = 32\nmtp_layers = 1
max_length = 128""",
    "dense, grouped": """
vocab = 300\nwidth = 32\nlayers = 2\nheads = 4\nkv_heads = 2\nhead_dim = 16\nffn = 64\nmax_length = 128""",
}
HEAD = 'name = "kills"\nexactness = "{mode}"\n[model]{shape}\n'
SKILLED = """
[[stage]]
kind = "pretrain"\nname = "base"\nsteps = 60\nbatch_tokens = 512\ntokenizer_sample = 50\ntasks = [{task}]
train = {{ optim = {{ lr = 1e-2 }} }}
[[stage]]
kind = "sft"\nname = "skilled"\ninit = "base"\nsteps = 60\nbatch_tokens = 512\ntasks = [{task}]
train = {{ optim = {{ lr = 1e-2 }} }}
"""  # what practises and teaches below: random weights solve nothing, and nothing is learnt from that
STAGES = """
[outside]
skilled = "{skilled}"
[[stage]]
kind = "pretrain"\nname = "base"\nsteps = 3\nbatch_tokens = 200\ntokenizer_sample = 20\ntasks = [{task}]
recite = [{task}]\nfiles = ["{text}"]\nlength = 60\ntrain = {{ checkpoint_every = 1 }}
[[stage]]
kind = "sft"\nname = "taught"\ninit = "base"\nsteps = 4\nbatch_tokens = 100\naccumulate = 2\ntasks = [{task}]
train = {{ checkpoint_every = 2, optim = {{ name = "muon" }} }}
[[stage]]
kind = "rl"\nname = "practised"\ninit = "skilled"\nsteps = 5\nproblems = 2\nsamples = 4\nrefills = 8\nrows = 5
max_tokens = 40\ntasks = [{task}]\ntrain = {{ checkpoint_every = 2 }}
[[stage]]
kind = "distill"\nname = "student"\nteacher = "practised"\nreuse = ["practised"]\nsteps = 3\nbatch_tokens = 100
fresh = 8\nmax_tokens = 40\non_policy_steps = 3\non_policy_answers = 4\ntasks = [{task}]
model = {{ width = 16, layers = 1, heads = 2, kv_heads = 2, head_dim = 8, ffn = 32, max_length = 128 }}
train = {{ checkpoint_every = 2 }}
[[stage]]
kind = "evaluate"\nname = "exam"\nmodels = ["practised", "student"]\nn = 4\nmax_tokens = 32\nexams = [{task}]
"""
ALONE = {"run.lock", "tensorboard"}  # what is not compared: a process's number, files named by the clock


# a session: one process of a run, and what strikes it


@dataclass(frozen=True)
class Strike:
    """When a session is killed: `after` so many seconds, or `at` its n-th dealing with the disk, or never."""

    after: float | None = None
    at: int | None = None


class Watch:
    """Counts what this process does to the disk, notes it, and kills the process group at the n-th."""

    def __init__(self, folder: Path, at: int | None, notes: Path):
        self.folder, self.at, self.count = str(folder), at, 0
        self.notes = os.open(notes, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)

    def due(self, what: str, path: object) -> bool:
        if self.folder not in (text := os.fspath(path) if isinstance(path, str | os.PathLike) else ""):
            return False
        self.count += 1
        os.write(self.notes, f"{what} {os.path.relpath(text, self.folder)}\n".encode())
        return self.count == self.at

    def install(self) -> None:
        """An audit hook for what Python tells of; stand-ins for writing, syncing and libraries in other languages."""
        import io

        import numpy as np

        from mull.train import checkpoint

        sys.addaudithook(self._audit)
        plain = io.open
        io.open = lambda *a, **k: self._writable(plain(*a, **k))  # type: ignore[assignment]
        sync = os.fsync
        os.fsync = lambda handle: self._sync(sync, handle)
        for module, name, place in ((checkpoint, "save_file", 1), (np, "save", 0)):
            setattr(module, name, self._halved(getattr(module, name), place))

    def _audit(self, event: str, words: tuple[Any, ...]) -> None:
        changes = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate"}
        creates = event == "open" and isinstance(words[2], int) and words[2] & (os.O_WRONLY | os.O_RDWR)
        if event not in changes and not creates:
            return
        path = words[0]
        if event in ("os.remove", "os.rmdir") and words[1] >= 0:  # named from within an open folder
            path = Path(f"/proc/self/fd/{words[1]}").readlink() / path
        if self.due(event, path):
            die()

    def _writable(self, file: IO[Any]) -> IO[Any]:
        if not file.writable():
            return file
        write = file.write

        def half(content: Any) -> int:
            if self.due("write", file.name):
                write(content[: len(content) // 2])
                file.flush()
                die()
            return write(content)

        file.write = half  # type: ignore[method-assign]
        return file

    def _sync(self, sync: Callable[[int], None], handle: int) -> None:
        if self.due("sync", Path(f"/proc/self/fd/{handle}").readlink()):
            die()
        sync(handle)

    def _halved(self, save: Callable[..., None], place: int) -> Callable[..., None]:
        def saved(*words: Any, **more: Any) -> None:
            save(*words, **more)
            path = Path(words[place])
            if self.due("write", path):
                os.truncate(path, path.stat().st_size // 2)
                die()

        return saved


def die() -> NoReturn:
    os.killpg(0, signal.SIGKILL)
    raise AssertionError


class Nursery:
    """A process with everything imported, from which sessions are forked: torch takes seconds to import.

    Each nursery has hash seeds of its own, so that what depends on the order of a set is seen.
    """

    def __init__(self) -> None:
        words = [sys.executable, __file__, "--nursery"]
        environment = os.environ | {"PYTHONHASHSEED": "random"}
        self.process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def session(self, recipe: Path, folder: Path, strike: Strike) -> tuple[bool, list[str]]:
        """Whether it came to its end, and what it had done to the disk by then. Stops the script where it failed."""
        stdin, stdout = self.process.stdin, self.process.stdout
        assert stdin is not None
        assert stdout is not None
        notes = folder.with_suffix(".notes")
        notes.write_text("", encoding="utf-8")  # a kill may come before the child has any
        said = {"recipe": str(recipe), "out": str(folder), "at": strike.at, "notes": str(notes)}
        stdin.write(json.dumps(said) + "\n")
        stdin.flush()
        child = int(stdout.readline())
        if strike.after is not None:
            time.sleep(strike.after)
            with suppress(ProcessLookupError):  # it was faster
                os.killpg(child, signal.SIGKILL)
        code = int(stdout.readline())
        if code not in (0, -signal.SIGKILL):
            raise SystemExit(f"A session ended with {code}: {notes.with_suffix('.said').read_text()}")
        return code == 0, notes.read_text().splitlines()

    def close(self) -> None:
        self.process.communicate("")


def nursery() -> None:
    """Serve sessions: a line of JSON in; out, the number of the process, and its exit code when it is over."""
    import mull.report.html
    import mull.stages.recipe
    import mull.train.trainer

    assert mull.report.html and mull.stages.recipe and mull.train.trainer
    with suppress(ImportError):
        import tensorboard.summary.writer.event_file_writer  # noqa: F401
    for line in sys.stdin:
        job = json.loads(line)
        child = os.fork()
        if not child:
            _carry_out(job)
        os.setpgid(child, child)
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def _carry_out(job: dict[str, Any]) -> NoReturn:
    """In the child: `mull run`, watched."""
    from mull import cli

    os.setpgid(0, 0)
    said = os.open(Path(job["notes"]).with_suffix(".said"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(said, 1)
    os.dup2(said, 2)
    Watch(Path(job["out"]), job["at"], Path(job["notes"])).install()
    code = 1
    try:
        cli.app(["run", job["recipe"], "--out", job["out"], "--quiet"], prog_name="mull")
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


# comparing


def still(folder: Path, into: Path, peaceful: Path) -> dict[str, bytes]:
    """Every file of a run with its clocks stopped, and the report that follows from those: name -> content."""
    from mull.report.html import write_report
    from mull.run import CLOCKS

    shutil.rmtree(into, ignore_errors=True)
    found = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = str(path.relative_to(folder))
        if ALONE.isdisjoint(path.relative_to(folder).parts):
            source = peaceful / name if name == "ledger.jsonl" else path  # the bill, all of it
            (into / name).parent.mkdir(parents=True, exist_ok=True)
            (into / name).write_bytes(_stopped(source, CLOCKS))
    (into / "report.json").rename(into / "report-as-written.json")
    write_report(into)
    for path in into.rglob("*"):
        if path.is_file():
            found[str(path.relative_to(into))] = path.read_bytes()
    return found


def _stopped(path: Path, clocks: frozenset[str]) -> bytes:
    if path.suffix not in (".json", ".jsonl") or path.name.startswith("tokenizer"):
        return path.read_bytes()
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines() if path.suffix == ".jsonl" else [text]
    return "".join(json.dumps(_without(json.loads(line), clocks), sort_keys=True) + "\n" for line in lines).encode()


def _without(value: Any, clocks: frozenset[str]) -> Any:
    if isinstance(value, dict):
        return {key: 1.0 if key in clocks else _without(item, clocks) for key, item in value.items()}
    return [_without(item, clocks) for item in value] if isinstance(value, list) else value


def differing(one: dict[str, bytes], two: dict[str, bytes]) -> dict[str, int]:
    """Bits that differ, by file; those of a file that only one has all count."""
    found = {}
    for name in sorted(one.keys() | two.keys()):
        a, b = one.get(name, b""), two.get(name, b"")
        if a != b:
            length = max(len(a), len(b))
            wrong = int.from_bytes(a.ljust(length, b"\0")) ^ int.from_bytes(b.ljust(length, b"\0"))
            found[name] = wrong.bit_count() + 8 * abs(len(a) - len(b))
    return found


# the whole


@dataclass
class Case:
    """One recipe: how it went in peace, and how under kills."""

    name: str
    recipe: Path
    folder: Path
    seconds: float = 0.0
    dealings: list[str] = field(default_factory=list)
    ends: dict[str, bytes] = field(default_factory=dict)
    runs: int = 0
    kills: Counter[str] = field(default_factory=Counter)  # "by time", "by place"
    where: Counter[str] = field(default_factory=Counter)
    wrong: int = 0

    def in_peace(self, nursery: Nursery) -> None:
        began = time.perf_counter()
        whole, self.dealings = nursery.session(self.recipe, self.folder / "peace", Strike())
        assert whole
        self.seconds = time.perf_counter() - began
        self.ends = still(self.folder / "peace", self.folder / "still", self.folder / "peace")

    def under(self, strikes: Iterator[Strike], nurseries: list[Nursery]) -> None:
        """One run, killed by each of the strikes that comes before its end; sessions take turns in the nurseries."""
        out = self.folder / f"run-{self.runs}"
        self.runs += 1
        turns, before = cycle(nurseries), self.kills.total()
        for strike in chain(strikes, repeat(Strike())):
            whole, dealings = next(turns).session(self.recipe, out, strike)
            if whole:
                break
            self.kills["by place" if strike.at else "by time"] += 1
            self.where[_kind(dealings[-1]) if dealings else "nothing yet"] += 1
        wrong = differing(self.ends, still(out, self.folder / "still", self.folder / "peace"))
        killed = self.kills.total() - before
        print(f"{self.name}, run {self.runs}: {killed} kills, {sum(wrong.values())} differing bits", flush=True)
        for name, bits in wrong.items():
            print(f"  {name}: {bits}", flush=True)
        self.wrong += sum(wrong.values())
        shutil.rmtree(out)


def _kind(dealing: str) -> str:
    """A dealing with the disk -> which kind of file it was about."""
    parts = Path(dealing.partition(" ")[2]).parts
    names = [part.lstrip(".").removesuffix(".part") for part in parts]
    if not names:
        return "the directory"
    if names[0] in ("stages", "models") and len(names) > 2:
        return f"{names[0]} {names[-1]}"
    return names[0]


def strikes(case: Case, draw: random.Random) -> Iterator[Strike]:
    """One to four kills of a run, in places and moments that spread over all of it."""
    marks = sorted(draw.random() for _ in range(draw.randint(1, 4)))
    for before, mark in zip([0.0, *marks], marks, strict=False):
        share = mark - before  # of a whole run: how far this session may come
        if draw.random() < 0.5:
            yield Strike(after=share * case.seconds)
        else:
            yield Strike(at=1 + int(share * len(case.dealings)))


def cases(folder: Path, only: list[str], known: Path | None, nursery: Nursery) -> list[Case]:
    """The recipes; and the models that they start from, unless one is known."""
    text = folder / "text.txt"
    text.write_text("the cat sat on the mat\n" * 30)
    found = []
    for name, shape in SHAPES.items():
        for mode in ("fast", "exact"):
            title = f"{name}, {mode}"
            if only and title not in only:
                continue
            place = folder / title.replace(", ", "-")
            place.mkdir()
            head = HEAD.format(mode=mode, shape=shape)
            skilled = known or folder / name.replace(", ", "-") / "models" / "skilled"
            if not skilled.exists():
                recipe = place / "skilled.toml"
                recipe.write_text(head + SKILLED.format(task=TASK))
                nursery.session(recipe, skilled.parents[1], Strike())
            recipe = place / "recipe.toml"
            stages = STAGES.format(task=TASK, skilled=skilled, text=text)
            recipe.write_text(head + stages)
            found.append(Case(title, recipe, place))
    return found


def table(found: list[Case]) -> None:
    print(f"{'recipe':<26}{'runs':>6}{'kills':>7}{'by time':>9}{'by place':>10}{'bits':>12}{'differing':>11}")
    for case in found:
        bits = 8 * sum(map(len, case.ends.values()))
        kills = case.kills.total()
        print(f"{case.name:<26}{case.runs:>6}{kills:>7}{case.kills['by time']:>9}{case.kills['by place']:>10}"
              f"{bits:>12,}{case.wrong:>11}")  # fmt: skip
    where: Counter[str] = sum((case.where for case in found), Counter())
    print("the last that was done to the disk before a kill: "
          + ", ".join(f"{name} {count}" for name, count in where.most_common()))  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=str(__doc__).split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--every", type=int, help="instead: at every so many places, a run each")
    parser.add_argument("--only", action="append", default=[], help="recipes of the table, 'dense, grouped, fast'")
    parser.add_argument("--skilled", type=Path, help="a model directory to start from, instead of making one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--nursery", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.nursery:
        nursery()
        return
    memory = Path("/dev/shm")  # syncing to a disk takes most of the time
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None, prefix="kills-") as name:
        folder, nurseries = Path(name), [Nursery() for _ in range(2)]
        found = cases(folder, given.only, given.skilled, nurseries[0])
        for case in found:
            case.in_peace(nurseries[0])
            print(f"{case.name}: {case.seconds:.1f} s in peace, {len(case.dealings)} places", flush=True)
        draw = random.Random(given.seed)
        if given.every:
            for case in found:
                for at in range(1, len(case.dealings) + 1, given.every):
                    case.under(iter([Strike(at=at)]), nurseries)
        while not given.every and sum(case.kills.total() for case in found) < given.kills:
            case = min(found, key=lambda one: one.kills.total())
            case.under(strikes(case, draw), nurseries)
        for one in nurseries:
            one.close()
        table(found)
    wrong = sum(case.wrong for case in found)
    print(f"{sum(case.kills.total() for case in found)} kills, {wrong} differing bits")
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
