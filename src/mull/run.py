"""A run is a directory that explains itself.

    config.json     the whole resolved configuration, and its fingerprint
    state.json      which stages are done, and facts decided once
    metrics.jsonl   one line per stage and step
    ledger.jsonl    the bill
    rollouts/       graded answers, one file per set
    models/NAME/    finished models, Hugging Face layout; result.json names the one to talk to
    stages/NAME/    training checkpoints
    tokens/NAME/    answers under way, where the recipe is exact (engine/tokenlog.py); gone when the stage is done
    tensorboard/    the metrics again, where the package is installed
    report.html, report.json

Opening a directory with the same configuration continues it. One with another configuration, or that is no run, is
refused untouched, and so is one that another live process has open. Small files are written beside and renamed; lines
that a kill cut short are dropped when the run is opened again.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from mull.config import fingerprint
from mull.ledger import Ledger, Rates, money, peak_rss_bytes
from mull.types import Rollout, UserError, sync

RESTORE = "; restore it or give another --out"
PLAIN_EVERY = 5.0  # seconds between lines where there is no terminal
MACHINE = "(machine)"  # in state.json, beside the stages; no stage can be named so

# Fields of metrics, rollouts and reports that tell of clocks and of the bill. All others are the same, to the last bit,
# in a run that was killed and continued as in one that was not.
CLOCKS = frozenset({
    "time", "seconds", "tokens_per_s", "seconds_per_answer", "latency_seconds", "usd", "usd_per_answer",
    "usd_per_answer_ci95", "usd_per_solved", "usd_per_solved_ci95", "charged_usd", "kwh", "kwh_per_solved",
    "peak_rss_bytes", "stages", "total",
})  # fmt: skip


def write_atomic(path: Path, text: str) -> None:
    """The old content or the new, whatever happens: written beside, synced and renamed."""
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    sync(part)
    part.replace(path)
    sync(path.parent)


class Run:
    def __init__(self, path: Path, rates: Rates, quiet: bool = False):
        self.path = path
        self.quiet = quiet
        self.console = Console(stderr=True, quiet=quiet, highlight=False)
        self.ledger = Ledger(path / "ledger.jsonl", rates)
        self._state = self._read_state()
        self._board: _Board | None = None
        self._lock: Any = None
        self._unsynced: set[Path] = set()
        self._stages: list[str] = []

    @classmethod
    def open(cls, path: Path, config: Mapping[str, Any], *, rates: Rates | None = None, quiet: bool = False) -> Run:
        """Create or continue the run in `path`. Raises UserError, with nothing changed, where it must not."""
        plain = json.loads(json.dumps(config, default=str))
        _admit(path, plain)
        path.mkdir(parents=True, exist_ok=True)
        lock = _lock(path)
        try:
            _admit(path, plain)  # again: another process may have begun a run here meanwhile
        except UserError:
            lock.close()
            raise
        if not (known := path / "config.json").exists():
            write_atomic(known, json.dumps({"fingerprint": fingerprint(plain), "config": plain}, indent=1))
        for name in ("metrics.jsonl", "ledger.jsonl"):
            _mend(path / name)
        run = cls(path, rates or Rates(), quiet)
        run._lock = lock
        run._stages = [stage.get("name", "") for stage in plain.get("stage", [])]
        return run

    def close(self) -> None:
        """Let another process have the directory."""
        if self._board:
            self._board.close()
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def place(self, stage: str) -> str:
        """'2/5 ' for the second of five stages; nothing for what the configuration does not name so."""
        return f"{self._stages.index(stage) + 1}/{len(self._stages)} " if stage in self._stages else ""

    def say(self, text: str) -> None:
        self.console.print(text, markup=False)

    # where things are

    def model_dir(self, name: str) -> Path:
        return self.path / "models" / name

    def rollouts_path(self, name: str) -> Path:
        return self.path / "rollouts" / f"{name}.jsonl"

    def tokens_dir(self, stage: str) -> Path:
        return self.path / "tokens" / stage

    def forget_tokens(self) -> None:
        """Of answers under way; the stage that drew them has all it needs."""
        shutil.rmtree(self.path / "tokens", ignore_errors=True)

    def stage_dir(self, name: str) -> Path:
        return self.path / "stages" / name

    # state

    def done(self, stage: str) -> bool:
        return bool(self._state.get(stage, {}).get("done"))

    def finish(self, stage: str, **facts: Any) -> None:
        self.sync()
        self.note(stage, done=True, **facts)

    def note(self, stage: str, **facts: Any) -> None:
        """Facts of a stage that a continued run must find as they were."""
        self._state.setdefault(stage, {}).update(facts)
        write_atomic(self.path / "state.json", json.dumps(self._state, indent=1))

    def facts(self, stage: str) -> dict[str, Any]:
        return dict(self._state.get(stage, {}))

    def note_peak(self) -> None:
        """Keep the largest memory any session of this run has needed, and how its energy is told."""
        peak = max(peak_rss_bytes(), self.facts(MACHINE).get("peak_rss_bytes", 0))
        self.note(MACHINE, peak_rss_bytes=peak, energy_source=self.ledger.energy_source)

    def set_result(self, model: str) -> None:
        write_atomic(self.path / "models" / "result.json", json.dumps({"model": model}))

    def _read_state(self) -> dict[str, Any]:
        path = self.path / "state.json"
        return read_json(path, RESTORE) if path.exists() else {}

    # metrics

    def log(self, stage: str, step: int, **metrics: Any) -> None:
        line = {"stage": stage, "step": step, "time": round(time.time(), 3)} | {
            k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in metrics.items()
        }
        self._append("metrics.jsonl", json.dumps(line) + "\n")
        self._tensorboard(stage, step, metrics)

    def metrics(self, stage: str | None = None) -> list[dict[str, Any]]:
        return [line for line in _lines(self.path / "metrics.jsonl") if stage in (None, line["stage"])]

    def rewind(self, stage: str, step: int) -> None:
        """Drop what was logged of `stage` after `step`: those steps are about to be done again."""
        _keep(self.path / "metrics.jsonl", lambda line: line["stage"] != stage or line["step"] <= step)

    def append_rollouts(self, name: str, step: int, rollouts: Sequence[Rollout]) -> None:
        """Add a step's answers to a growing file. Each says in its `version` which step it is of."""
        assert all(r.completion.version == step for r in rollouts)
        self._append(f"rollouts/{name}.jsonl", "".join(r.to_json() + "\n" for r in rollouts))

    def rewind_rollouts(self, name: str, steps: int) -> None:
        """Cut the growing file back to what it held after its first `steps` steps."""
        path = self.rollouts_path(name)
        if path.exists():
            os.truncate(path, _length_until(path, steps))

    def _append(self, name: str, text: str) -> None:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(text)
        self._unsynced.add(path)

    def sync(self) -> None:
        """What was logged, onto the disk. A checkpoint counts on the lines before it; else a power cut takes them."""
        for path in self._unsynced:
            sync(path)
        self._unsynced.clear()

    def _tensorboard(self, stage: str, step: int, metrics: Mapping[str, Any]) -> None:
        if self._board is None:
            self._board = _Board(self.path / "tensorboard")
        self._board.write(stage, step, {k: v for k, v in metrics.items() if isinstance(v, int | float)})

    # progress

    @contextmanager
    def progress(self, stage: str, total: int, unit: str = "step") -> Iterator[Progress]:
        shown = Progress(self, stage, total, unit)
        live = not self.quiet and self.console.is_terminal
        if live:
            with Live(console=self.console, get_renderable=shown.line, refresh_per_second=4):
                yield shown
            return
        yield shown
        if not self.quiet and shown.done:
            self.say(str(shown.line()))


class Progress:
    """One line: stage, step, loss or reward, tokens/s, money so far, time left."""

    def __init__(self, run: Run, stage: str, total: int, unit: str):
        self.run, self.stage, self.total, self.unit = run, stage, total, unit
        self.began = self.printed = time.perf_counter()
        self.first: int | None = None  # where this session started counting
        self.done = self.tokens = 0
        self.within = ""  # how far the step under way has come, where it is a long one
        self.shown: dict[str, float] = {}

    def update(self, step: int, tokens: int = 0, **shown: float) -> None:
        if self.first is None:
            self.first = step - 1
        self.done = step
        self.tokens += tokens
        self.within = ""
        self.shown |= shown
        self._print()

    def note(self, within: str, tokens: int = 0) -> None:
        """Something came of a step that is not done yet."""
        self.within = within
        self.tokens += tokens
        self._print()

    def _print(self) -> None:
        now = time.perf_counter()
        if not self.run.quiet and not self.run.console.is_terminal and now - self.printed > PLAIN_EVERY:
            self.printed = now
            self.run.say(str(self.line()))

    def line(self) -> Text:
        seconds = max(time.perf_counter() - self.began, 1e-9)
        parts = [f"{self.run.place(self.stage)}{self.stage:<12} {self.unit} {self.done}/{self.total}"]
        parts += [self.within] if self.within else []
        parts += [f"{name} {value:.3f}" for name, value in self.shown.items()]
        if self.tokens:
            parts.append(f"{self.tokens / seconds:,.0f} tok/s")
        parts.append(money(self.run.ledger.total().usd))
        session = self.done - (self.first or 0)
        if session and self.done < self.total:
            parts.append(f"{_clock(seconds / session * (self.total - self.done))} left")
        else:
            parts.append(_clock(seconds))
        return Text("  ".join(parts))


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"


class _Board:
    """TensorBoard event files through the package's own writer; nothing at all where it is not installed."""

    def __init__(self, folder: Path):
        try:
            from tensorboard.compat.proto.event_pb2 import Event  # type: ignore[attr-defined]
            from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[attr-defined]
            from tensorboard.summary.writer.event_file_writer import EventFileWriter
        except ImportError:
            self.writer = None
            return
        self.event, self.summary = Event, Summary
        self.writer = EventFileWriter(str(folder))

    def write(self, stage: str, step: int, metrics: Mapping[str, float]) -> None:
        if self.writer is None:
            return
        values = [self.summary.Value(tag=f"{stage}/{name}", simple_value=float(v)) for name, v in metrics.items()]
        self.writer.add_event(self.event(wall_time=time.time(), step=step, summary=self.summary(value=values)))

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()
            self.writer = None


def _lock(path: Path) -> Any:
    """An open file holding an exclusive lock; the kernel lets go of it however this process ends."""
    file = (path / "run.lock").open("a+", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.seek(0)
        owner = file.read().strip() or "another process"
        file.close()
        raise UserError(f"{path} is in use by {owner}; wait for it or give another --out.") from None
    file.truncate(0)
    file.write(f"process {os.getpid()}")
    file.flush()
    return file


def _admit(path: Path, config: Mapping[str, Any]) -> None:
    """Raises UserError where `path` can hold no run of this configuration."""
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is a file; give a directory for the run.")
    if (known := path / "config.json").exists():
        _same(path, read_json(known, RESTORE).get("config", {}), config)
        return
    begun = {"run.lock", "config.json.part", "config.json"}  # no more than that is there where a kill came at once
    if path.exists() and any(p.name not in begun for p in path.iterdir()):
        raise UserError(f"{path} is not empty and holds no run; give a new or empty directory.")


def _same(path: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    if fingerprint(old) == fingerprint(new):
        return
    before, after = _flat(old), _flat(new)
    keys = [k for k in sorted(before.keys() | after.keys()) if before.get(k) != after.get(k)]
    named = "; ".join(f"{k}: {before.get(k, 'absent')} there, {after.get(k, 'absent')} now" for k in keys[:3])
    more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
    raise UserError(f"{path} holds a run of another configuration ({named}{more}); give another --out or delete it.")


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, Mapping):
        pairs: Sequence[tuple[Any, Any]] = list(value.items())
    elif isinstance(value, list):
        pairs = [(v.get("name", i) if isinstance(v, Mapping) else i, v) for i, v in enumerate(value)]
    else:
        return {prefix: value}
    return {k: v for key, item in pairs for k, v in _flat(item, f"{prefix}.{key}" if prefix else str(key)).items()}


def read_json(path: Path, advice: str = "") -> dict[str, Any]:
    """The object in a JSON file. Raises UserError, ending in `advice`, where there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}){advice}.") from None
    if not isinstance(found, dict):
        raise UserError(f"{path} holds no JSON object{advice}.")
    return found


def _lines(path: Path) -> list[dict[str, Any]]:
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(line))
        except ValueError:
            continue  # cut short by a kill
    return lines


def _keep(path: Path, wanted: Any) -> None:
    lines = _lines(path)
    kept = [line for line in lines if wanted(line)]
    if len(kept) < len(lines):
        write_atomic(path, "".join(json.dumps(line) + "\n" for line in kept))


def _length_until(path: Path, steps: int) -> int:
    """Bytes of the answers that came before step number `steps`, up to a line that a kill cut short."""
    length = 0
    with path.open("rb") as file:
        for line in file:
            try:
                version = json.loads(line)["completion"]["version"]
            except (ValueError, KeyError, TypeError):
                break
            if version >= steps or not line.endswith(b"\n"):
                break
            length += len(line)
    return length


def _mend(path: Path) -> None:
    """Drop a last line without its line break: a kill came between."""
    if not path.exists():
        return
    raw = path.read_bytes()
    if raw and not raw.endswith(b"\n"):
        os.truncate(path, raw.rfind(b"\n") + 1)


__all__ = ["MACHINE", "Progress", "Run", "read_json", "write_atomic"]
