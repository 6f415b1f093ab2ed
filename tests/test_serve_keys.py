"""Keys and usage: what is stored, who may read it, and that nothing recorded is lost."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Mull

from mull.serve import keys, usage
from mull.serve.keys import Allowance
from mull.serve.store import connect, default_path
from mull.serve.usage import ANYBODY, Entry, Used, Writer
from mull.types import UserError

NOON = 1_790_000_000.0 // 86400 * 86400 + 43200


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "serve.db"


@pytest.fixture
def db(path: Path) -> Iterator[sqlite3.Connection]:
    opened = connect(path)
    yield opened
    opened.close()


# the file


def test_only_its_owner_reads_the_file_and_its_log(db: sqlite3.Connection, path: Path):
    keys.create(db, "alice")
    assert path.with_name("serve.db-wal").exists()
    for file in path.parent.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_the_file_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.delenv("MULL_STATE", raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert default_path() == tmp_path / "mull" / "serve.db"
    monkeypatch.setenv("MULL_STATE", str(tmp_path / "own"))
    assert default_path() == tmp_path / "own" / "serve.db"


def test_what_is_no_such_file_is_refused_untouched(tmp_path: Path):
    text = tmp_path / "notes.txt"
    text.write_text("these are my notes, all of them, and no database\n" * 100)
    other = tmp_path / "other.db"
    with sqlite3.connect(other) as theirs:
        theirs.execute("create table theirs (x)")
    theirs.close()
    before = text.read_bytes(), other.read_bytes()
    with pytest.raises(UserError, match=r"no file of keys and usage .*--db names another"):
        connect(text)
    with pytest.raises(UserError, match="another program's database"):
        connect(other)
    assert (text.read_bytes(), other.read_bytes()) == before
    with pytest.raises(UserError, match="cannot be opened"):
        connect(tmp_path)


def test_a_file_of_a_later_version_is_refused(db: sqlite3.Connection, path: Path):
    db.execute("pragma user_version = 9")
    with pytest.raises(UserError, match="of version 9 and this mull knows 1"):
        connect(path)


def test_many_may_make_it_at_once(path: Path):
    failures = []

    def make() -> None:
        try:
            connect(path).close()
        except UserError as error:
            failures.append(error)

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_connections_of_one_process_do_not_lose_each_others_locks(db: sqlite3.Connection, path: Path):
    """Else whoever else closes the file deletes the log under them, and what they write is in no file."""
    second = connect(path)
    code = "import sys; from mull.serve import keys, store; from pathlib import Path; "
    code += "db = store.connect(Path(sys.argv[1])); keys.create(db, sys.argv[2]); db.close()"
    for name in ("alice", "bob"):
        subprocess.run([sys.executable, "-c", code, str(path), name], check=True)
        assert [key.name for key in keys.listed(db)][-1] == name
        assert path.with_name("serve.db-wal").exists()
    keys.create(second, "carol")
    second.close()
    third = connect(path)
    assert [key.name for key in keys.listed(third)] == ["alice", "bob", "carol"]
    third.close()


# keys


def test_a_key_is_found_and_nowhere_in_the_file(db: sqlite3.Connection, path: Path):
    token = keys.create(db, "alice", Allowance(rpm=5, usd_per_day=0.5))
    found = keys.find(db, token)
    assert found is not None
    assert (found.name, found.hint, found.allowance) == ("alice", token[-4:], Allowance(rpm=5, usd_per_day=0.5))
    assert token.startswith("mull-") and len(token) == 48
    raw = b"".join(file.read_bytes() for file in path.parent.iterdir())
    assert b"alice" in raw
    assert token.encode() not in raw and token[5:30].encode() not in raw


def test_what_is_no_key_is_not_found(db: sqlite3.Connection):
    token = keys.create(db, "alice")
    for wrong in ("", "mull-", token[:-1], token + "a", token.upper(), "\udcff", "é" * 100, "x" * 100_000):
        assert keys.find(db, wrong) is None


def test_a_revoked_key_stays_known_and_its_name_is_free_again(db: sqlite3.Connection):
    first = keys.create(db, "alice")
    with pytest.raises(UserError, match="named 'alice' already"):
        keys.create(db, "alice")
    keys.revoke(db, "alice")
    old = keys.find(db, first)
    assert old is not None and old.revoked is not None
    second = keys.create(db, "alice")
    assert second != first
    assert [key.revoked is None for key in keys.listed(db)] == [False, True]


def test_revoking_the_last_key_leaves_the_door_locked(db: sqlite3.Connection):
    assert not keys.exist(db)
    keys.create(db, "alice")
    keys.revoke(db, "alice")
    assert keys.exist(db)


def test_only_keys_in_force_are_revoked(db: sqlite3.Connection):
    with pytest.raises(UserError, match="No key in force is named 'bob'; there is none"):
        keys.revoke(db, "bob")
    keys.create(db, "alice")
    with pytest.raises(UserError, match="there are alice"):
        keys.revoke(db, "bob")


@pytest.mark.parametrize("name", ["", "  ", "a" * 65, "two\nlines", "bell\a"])
def test_names_are_short_and_printable(db: sqlite3.Connection, name: str):
    with pytest.raises(UserError, match="1 to 64 printable characters"):
        keys.create(db, name)


# usage


def entry(key: int = 1, model: str = "m", at: float = NOON, **used: float) -> Entry:
    return Entry(key, model, Used(**{"prompt": 10, "completion": 4, **used}), at)  # type: ignore[arg-type]


def test_usage_is_summed_by_key_and_day(db: sqlite3.Connection):
    keys.create(db, "alice")
    usage.write(db, [entry(usd=0.25, thinking=3), entry(usd=0.5, cached=8, seconds=1.5)])
    usage.write(db, [entry(at=NOON + 86400), entry(ANYBODY, model="other")])
    rows = usage.summed(db)
    assert [(row["day"], row["key"], row["requests"]) for row in rows] == [
        (usage.day_of(NOON), "", 1), (usage.day_of(NOON), "alice", 2), (usage.day_of(NOON + 86400), "alice", 1),
    ]  # fmt: skip
    assert rows[1] == {
        "day": usage.day_of(NOON), "key": "alice", "requests": 2, "prompt": 20, "cached": 8, "completion": 8,
        "thinking": 3, "seconds": 1.5, "usd": 0.75,
    }  # fmt: skip
    assert [(row["model"], row["requests"]) for row in usage.summed(db, ["model"])] == [("m", 3), ("other", 1)]


def test_a_name_used_twice_is_two_keys(db: sqlite3.Connection):
    keys.create(db, "alice")
    keys.revoke(db, "alice")
    keys.create(db, "alice")
    usage.write(db, [entry(1), entry(2), entry(2)])
    assert [row["requests"] for row in usage.summed(db, ["key"])] == [1, 2]


def test_last_use_is_kept_with_usage(db: sqlite3.Connection):
    token = keys.create(db, "alice")
    usage.write(db, [entry(at=NOON)])
    found = keys.find(db, token)
    assert found is not None and found.used == NOON


def test_spent_counts_from_a_day_on(db: sqlite3.Connection):
    usage.write(db, [entry(usd=1.0, at=NOON - 86400), entry(usd=2.0), entry(2, usd=4.0), entry(usd=None)])
    assert usage.spent(db, 1, usage.day_of(NOON)) == 2.0
    assert usage.spent(db, 1, usage.day_of(NOON - 86400)) == 3.0
    assert usage.spent(db, 3, "2000-01-01") == 0.0


def test_days_are_of_utc():
    assert usage.day_of(0) == "1970-01-01"
    assert usage.day_of(86399.9) == "1970-01-01"
    assert usage.day_of(86400) == "1970-01-02"


def test_what_was_awaited_is_in_the_file(db: sqlite3.Connection, path: Path):
    async def work() -> None:
        writer = Writer(path)
        for count in range(1, 4):
            await writer.write(entry())
            assert usage.summed(db)[0]["requests"] == count  # by another connection
        await asyncio.gather(*(writer.write(entry(2)) for _ in range(200)))
        assert usage.summed(db, ["key"])[1]["requests"] == 200
        writer.close()

    asyncio.run(work())


def test_recording_takes_about_a_millisecond(path: Path):
    async def work() -> float:
        writer = Writer(path)
        await writer.write(entry())
        took = []
        for _ in range(50):
            began = time.perf_counter()
            await writer.write(entry())
            took.append(time.perf_counter() - began)
        writer.close()
        return min(took)

    assert asyncio.run(work()) < 2e-3


def test_who_goes_away_has_used_it_all_the_same(db: sqlite3.Connection, path: Path):
    async def work() -> None:
        writer = Writer(path)
        task = asyncio.create_task(writer.write(entry()))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        writer.close()

    asyncio.run(work())
    assert usage.summed(db)[0]["requests"] == 1


def test_what_cannot_be_written_is_kept_and_tried_again(
    db: sqlite3.Connection, path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    monkeypatch.setattr("mull.serve.store.BUSY_SECONDS", 0.01)
    monkeypatch.setattr(usage, "RETRY_SECONDS", 0.02)
    db.execute("begin immediate")  # as a disk that is full: nobody can write

    async def work() -> None:
        writer = Writer(path)
        await asyncio.wait_for(writer.write(entry()), 5)  # the answer goes out all the same
        db.execute("rollback")
        while not usage.summed(db):
            await asyncio.sleep(0.01)
        writer.close()

    asyncio.run(asyncio.wait_for(work(), 20))
    assert usage.summed(db)[0]["requests"] == 1
    assert "cannot be written" in capfd.readouterr().err


def test_a_full_disk_keeps_nobody_waiting(
    db: sqlite3.Connection, path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(usage, "RETRY_SECONDS", 0.02)

    async def work() -> None:
        writer = Writer(path)
        pages = db.execute("pragma page_count").fetchone()[0]
        writer.db.execute(f"pragma max_page_count = {pages}")  # SQLite says of it what it says of a disk
        for number in range(20):
            many = (writer.write(entry(model=f"{number} {one} {'m' * 200}")) for one in range(20))
            await asyncio.wait_for(asyncio.gather(*many), 20)
        assert "database or disk is full" in capfd.readouterr().err
        writer.db.execute(f"pragma max_page_count = {pages + 1000}")
        writer.close()

    asyncio.run(asyncio.wait_for(work(), 60))
    assert sum(row["requests"] for row in usage.summed(db)) == 400


@pytest.mark.parametrize("wrong", [{"prompt": 2**70}, {"seconds": float("nan")}, {"cached": object()}])
def test_an_entry_that_no_file_takes_spoils_nothing(
    db: sqlite3.Connection, path: Path, wrong: dict[str, Any], capfd: pytest.CaptureFixture[str]
):
    """The thread goes on, nobody waits for ever, and what came with it is written."""

    async def work() -> None:
        writer = Writer(path)
        await asyncio.wait_for(asyncio.gather(*(writer.write(one) for one in (entry(), entry(**wrong), entry()))), 20)
        await asyncio.wait_for(writer.write(entry()), 20)
        writer.close()

    asyncio.run(work())
    assert usage.summed(db)[0]["requests"] == 3
    assert "Usage of a request is lost" in capfd.readouterr().err


WRITES = """
import asyncio, sys
from pathlib import Path
from mull.serve.usage import Entry, Used, Writer

async def work():
    writer = Writer(Path(sys.argv[1]))
    count = 0
    while True:
        await asyncio.gather(*(writer.write(Entry(1, "m", Used(prompt=1), 0.0)) for _ in range(3)))
        count += 3
        print(count, flush=True)

asyncio.run(work())
"""


def test_nothing_recorded_is_lost_by_kill_9(path: Path):
    for number in range(3):
        process = subprocess.Popen([sys.executable, "-c", WRITES, str(path)], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        said = [process.stdout.readline() for _ in range(20 + 7 * number)]
        os.kill(process.pid, signal.SIGKILL)
        said += process.stdout.readlines()
        process.wait()
        process.stdout.close()
        promised = int([line for line in said if line.endswith("\n")][-1])
        db = connect(path)
        kept = usage.summed(db, ["key"])[0]["requests"]
        assert promised <= kept <= promised + 3
        db.execute("delete from usage")
        assert db.execute("pragma integrity_check").fetchone() == ("ok",)
        db.close()


# the verbs


def test_a_key_is_made_listed_and_revoked_by_the_command_line(path: Path, mull: Mull, refused: Callable[..., str]):
    assert mull("keys", "list", "--db", path).out.startswith("There are no keys; `mull keys create NAME` makes one.")
    made = json.loads(mull("keys", "create", "alice", "--rpm", 5, "--usd-per-day", 0.5, "--db", path, "--json").out)
    assert made["rpm"] == 5 and made["key"].startswith("mull-")
    token = mull("keys", "create", "bob", "--db", path).out.strip()
    assert token.startswith("mull-") and "\n" not in token
    listed = json.loads(mull("keys", "list", "--db", path, "--json").out)["keys"]
    assert [(key["name"], key["revoked"], key["ends_in"]) for key in listed] == [
        ("alice", None, made["key"][-4:]), ("bob", None, token[-4:]),
    ]  # fmt: skip
    shown = mull("keys", "list", "--db", path).out
    assert "5 requests a minute, 0.5 dollars a day" in shown and "in force" in shown
    assert made["key"] not in shown
    assert mull("keys", "revoke", "alice", "--db", path).code == 0
    assert "revoked" in mull("keys", "list", "--db", path).out
    assert "named 'bob' already" in refused("keys", "create", "bob", "--db", path)
    assert "there are bob" in refused("keys", "revoke", "alice", "--db", path)
    said = refused("keys", "create", "c", "--rpm", 0, "--db", path)
    assert said == "keys create: rpm: input should be greater than or equal to 1, not 0."
    assert refused("keys", "creat", "c").startswith("No such command 'creat'. Did you mean 'create'?")


def test_usage_is_told_by_what_one_asks_for(
    path: Path, db: sqlite3.Connection, mull: Mull, refused: Callable[..., str]
):
    assert mull("usage", "--db", path).out == "Nothing was asked yet.\n"
    usage.write(db, [entry(usd=0.25), entry(ANYBODY, at=NOON + 86400)])
    by_model = json.loads(mull("usage", "--by", "model", "--db", path, "--json").out)["usage"]
    assert [(row["model"], row["requests"], row["usd"]) for row in by_model] == [("m", 2, 0.25)]
    shown = mull("usage", "--db", path).out
    assert usage.day_of(NOON) in shown and "(no key)" in shown and "in all" in shown and "$0.25" in shown
    said = refused("usage", "--by", "dya", "--db", path)
    assert said == "--by takes day, key and model, not 'dya'. Did you mean 'day'?"
