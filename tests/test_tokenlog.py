"""The token log: what was drawn is read back and gone on from, whatever a kill or a disk did to the file."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from zlib import crc32

import pytest
import torch
from small import SHAPES, chat, in_memory, model_of, tokens_of  # noqa: F401 - the fixture

from mull.engine.answer import Answer
from mull.engine.core import Core
from mull.engine.engine import LocalEngine
from mull.engine.tokenlog import EVERY, Drawn, TokenLog, identity
from mull.types import Completion, Request, Sampling


class KilledError(Exception):
    pass


def engine_of(shape: str = "moe", seed: int = 2) -> LocalEngine:
    model = model_of(SHAPES[shape], seed, std=0.1).exactly()
    return LocalEngine(model, chat(), max_rows=5, routes=True)


def requests(count: int = 12) -> list[Request]:
    """Prompts that neighbours share, answers of many lengths."""
    return [
        Request(tuple(tokens_of(3 + i // 3 * 5, i // 3)), Sampling(max_tokens=3 + i * 11 % 31), (4, i // 3, i % 3))
        for i in range(count)
    ]


def interrupted(engine: LocalEngine, log: TokenLog, steps: int) -> None:
    """Let it draw so many steps, and no more."""
    left = [steps]

    def limited(core: Core) -> list[Answer]:
        if not left[0]:
            raise KilledError
        left[0] -= 1
        return step(core)

    step = Core.step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Core, "step", limited)
        with pytest.raises(KilledError):
            engine.generate(requests(), log=log)


def bits(answers: Sequence[Completion]) -> list[tuple]:
    return [(a.tokens, a.logprobs, a.routes, a.finish, a.text, a.prompt_tokens) for a in answers]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens each step draws."""
    told: list[int] = []
    step = Core.step

    def counted(core: Core) -> list[Answer]:
        heard = step(core)
        told.append(len(heard))
        return heard

    monkeypatch.setattr(Core, "step", counted)
    return told


@pytest.mark.parametrize("shape", ["moe", "qwen2", "gqa moe"])
def test_interrupted_answers_go_on_to_the_same_bits_and_nothing_is_drawn_twice(
    shape: str, tmp_path: Path, drawn: list[int]
) -> None:
    whole = engine_of(shape).generate(requests())
    total = sum(len(a.tokens) for a in whole)
    assert shape == "qwen2" or all(len(a.routes) == len(a.tokens) for a in whole)
    log = TokenLog(tmp_path / "deep" / "log")
    for steps in (1, EVERY, 9, 25):
        interrupted(engine_of(shape), log, steps)
    engine = engine_of(shape)
    known = sum(len(one.tokens) for one in log.begin(identity(engine.model.state_dict(), requests())).values())
    drawn.clear()
    told: list[int] = []
    assert bits(engine.generate(requests(), lambda index, _: told.append(index), log)) == bits(whole)
    assert sorted(told) == list(range(12))
    assert sum(drawn) == total - known
    assert known > 50
    drawn.clear()
    assert bits(engine_of(shape).generate(requests(), log=log)) == bits(whole)
    assert drawn == []


def test_a_kill_costs_a_few_tokens_of_each_answer(tmp_path: Path) -> None:
    log = TokenLog(tmp_path / "log")
    interrupted(engine_of(), log, 22)
    known = log.begin(identity(engine_of().model.state_dict(), requests()))
    whole = {r.key: a for r, a in zip(requests(), engine_of().generate(requests()), strict=True)}
    assert all(list(whole[key].tokens[: len(one.tokens)]) == one.tokens for key, one in known.items())
    drawn = sum(len(one.tokens) for one in known.values())
    assert 22 * 4 - 5 * EVERY <= drawn <= 22 * 5


@dataclass
class Row:
    """An answer as the engine hands it over."""

    key: tuple[int, ...]
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    routes: list[int] = field(default_factory=list)


@pytest.fixture
def written(tmp_path: Path) -> tuple[Path, dict[tuple[int, ...], Row]]:
    """A log of two sessions, and what it tells."""
    draw, path = random.Random(3), tmp_path / "log"
    rows = {(0, i): Row((0, i)) for i in range(3)}
    for session in (0.5, 0.25):
        log = TokenLog(path)
        log.begin("these")
        for step in range(2 * EVERY):
            for row in rows.values():
                row.tokens.append(draw.randrange(300))
                row.logprobs.append(float(torch.tensor(draw.gauss(-1, 1))))  # a 32-bit number
                row.routes.append(draw.randrange(1 << 62))
            log.follow(list(rows.values()), [], session * step)
    return path, rows


def same(known: dict | object, rows: dict[tuple[int, ...], Row]) -> bool:
    assert isinstance(known, dict)
    return known.keys() == rows.keys() and all(
        (one.tokens, one.logprobs, one.routes) == (row.tokens, row.logprobs, row.routes)
        for one, row in zip(known.values(), rows.values(), strict=True)
    )


def part(known: dict | object, rows: dict[tuple[int, ...], Row]) -> bool:
    """Nothing but beginnings of what was drawn."""
    assert isinstance(known, dict)
    return all(
        (one.tokens, one.logprobs, one.routes)
        == (rows[key].tokens[: (n := len(one.tokens))], rows[key].logprobs[:n], rows[key].routes[:n])
        for key, one in known.items()
    )


def test_what_is_written_is_read_back_to_the_last_bit(written: tuple[Path, dict]) -> None:
    path, rows = written
    log = TokenLog(path)
    assert same(log.begin("these"), rows)
    assert log.seconds == 0.5 * (2 * EVERY - 1) + 0.25 * (2 * EVERY - 1)  # of both sessions


def test_cut_anywhere_it_tells_the_beginning_and_is_gone_on_with(written: tuple[Path, dict], tmp_path: Path) -> None:
    path, rows = written
    raw = path.read_bytes()
    told = []
    for length in range(len(raw)):
        (tmp_path / "cut").write_bytes(raw[:length])
        log = TokenLog(tmp_path / "cut")
        known = log.begin("these")
        assert part(known, rows), length
        told.append(sum(len(one.tokens) for one in known.values()))
        log.follow(list(rows.values()), [], 1.0)  # one step is not yet written
        log.follow([], list(rows.values()), 1.0)
        assert same(TokenLog(tmp_path / "cut").begin("these"), rows), length
    assert told == sorted(told)
    assert told[-1] > told[0] == 0


def test_a_damaged_line_is_dropped_with_what_it_leads_to(written: tuple[Path, dict], tmp_path: Path) -> None:
    path, rows = written
    raw, draw = path.read_bytes(), random.Random(0)
    for at in range(0, len(raw), 7):
        damaged = bytearray(raw)
        damaged[at] ^= 1 << draw.randrange(8)
        (tmp_path / "bad").write_bytes(damaged)
        assert part(TokenLog(tmp_path / "bad").begin("these"), rows), at
    lines = raw.splitlines(keepends=True)
    (tmp_path / "bad").write_bytes(b"".join(lines[:2] + lines[4:]))  # whole lines gone
    assert part(TokenLog(tmp_path / "bad").begin("these"), rows)


def sealed(text: str) -> bytes:
    return f"{crc32(text.encode()):08x} {text}\n".encode()


@pytest.mark.parametrize("noise", [
    b"", b"\n\n", b"\0" * 500, b"\xff\xfe\x00hello\n", b"00000000 {}\n", b"no log at all\n",
    *map(sealed, ("5", "[]", "null", '{"of": 1}', '["of"]', "[[0, 0], 0, [1], [-1.0], []]",
                 "[1, 0, [1], [2.0], [], 1.0]")),
], ids=range(13))  # fmt: skip
def test_what_is_no_log_is_passed_over(noise: bytes, written: tuple[Path, dict]) -> None:
    path, rows = written
    path.write_bytes(noise + b"\n" + path.read_bytes())
    assert same(TokenLog(path).begin("these"), rows)
    path.write_bytes(noise)
    assert TokenLog(path).begin("these") == {}


def test_answers_of_other_weights_or_other_requests_are_passed_over(tmp_path: Path, drawn: list[int]) -> None:
    log = TokenLog(tmp_path / "log")
    engine_of(seed=9).generate(requests(), log=log)
    engine_of().generate(requests(6), log=log)
    drawn.clear()
    answers = engine_of().generate(requests(), log=log)
    assert sum(drawn) == sum(len(a.tokens) for a in answers)
    assert bits(answers) == bits(engine_of().generate(requests()))
    weights = [one.model.state_dict() for one in (engine_of(), engine_of(seed=9))]
    assert len({identity(state, requests(n)) for state in weights for n in (4, 5, 12)}) == 6


def test_pieces_behind_a_gap_are_not_taken() -> None:
    one = Drawn()
    one.extend(0, [1, 2], [-1.0, -2.0], [], 0.5)
    one.extend(3, [4], [-4.0], [], 0.6)
    one.extend(2, [3], [-3.0, -3.5], [], 0.7)
    assert (one.tokens, one.logprobs, one.seconds) == ([1, 2], [-1.0, -2.0], 0.5)
    one.extend(2, [3], [-3.0], [], 0.8)
    assert (one.tokens, one.seconds) == ([1, 2, 3], 0.8)
