"""Checkpoints: whole or absent, checked when read, and never the reason that a run is lost."""

from __future__ import annotations

import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from small import SHAPES, examples_of, in_memory, model_of  # noqa: F401 - the fixture

from mull.data.batch import collate
from mull.train import checkpoint
from mull.train.optim import OptimConfig
from mull.train.trainer import TrainConfig, Trainer


def trainer_of(seed: int = 0, shape: str = "moe, tied", optimiser: str = "muon") -> Trainer:
    cfg = TrainConfig(optim=OptimConfig(name=optimiser))  # type: ignore[arg-type]
    return Trainer(model_of(SHAPES[shape], seed).train(), cfg, 10)


def trained(folder: Path, steps: int = 3, **kind) -> Trainer:
    """A checkpoint after every step."""
    trainer = trainer_of(**kind)
    for step in range(steps):
        trainer.train_step([collate(examples_of(9, 14, seed=step))])
        trainer.save(folder, {"cursor": step * 10})
    return trainer


def by_name(state: dict) -> list:
    return [state[key] for key in sorted(state)]


def same(a: Trainer, b: Trainer) -> bool:
    weights = zip(a.model.state_dict().values(), b.model.state_dict().values(), strict=True)
    states = [
        (x, y)
        for one, two in zip(a.optimisers, b.optimisers, strict=True)
        for p, q in zip(a.model.parameters(), b.model.parameters(), strict=True)
        for x, y in zip(by_name(one.state.get(p, {})), by_name(two.state.get(q, {})), strict=True)
    ]
    assert states
    return all(torch.equal(torch.as_tensor(x), torch.as_tensor(y)) for x, y in [*weights, *states])


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


@pytest.mark.parametrize("optimiser", ["adamw", "muon"])
@pytest.mark.parametrize("shape", ["moe, tied", "qwen2", "mla"])
def test_restoring_gives_back_everything(shape: str, optimiser: str, tmp_path: Path) -> None:
    kind = {"shape": shape, "optimiser": optimiser}
    trainer = trained(tmp_path, **kind)
    other = trainer_of(seed=5, **kind)
    assert other.restore(tmp_path) == {"cursor": 20}
    assert other.step == 3
    assert same(trainer, other)
    batch = collate(examples_of(9, 14, seed=99))
    trainer.train_step([batch])
    other.train_step([batch])
    assert same(trainer, other)


def test_only_the_newest_few_are_kept(tmp_path: Path) -> None:
    trained(tmp_path, steps=5)
    assert names(tmp_path) == ["step-00000004", "step-00000005"]
    assert checkpoint.newest(tmp_path) == tmp_path / "step-00000005"


def test_an_empty_folder_has_none(tmp_path: Path) -> None:
    assert checkpoint.newest(tmp_path / "none") is None
    assert trainer_of().restore(tmp_path) is None


def damage(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    match how:
        case "truncated":
            path.write_bytes(content[: len(content) // 2])
        case "empty":
            path.write_bytes(b"")
        case "one bit":
            content[len(content) * 2 // 3] ^= 4
            path.write_bytes(content)
        case "gone":
            path.unlink()


@pytest.mark.parametrize("how", ["truncated", "empty", "one bit", "gone"])
@pytest.mark.parametrize("file", ["model.safetensors", "optim.safetensors", "state.json"])
def test_a_damaged_newest_falls_back_and_says_so(file: str, how: str, tmp_path: Path) -> None:
    trained(tmp_path)
    damage(tmp_path / "step-00000003" / file, how)
    said: list[str] = []
    other = trainer_of(seed=5)
    assert other.restore(tmp_path, said.append) == {"cursor": 10}
    assert other.step == 2
    assert len(said) == 1
    assert "step-00000003" in said[0]
    assert "damaged" in said[0]
    assert checkpoint.newest(tmp_path) == tmp_path / "step-00000002"


@pytest.mark.parametrize("file", ["model.safetensors", "optim.safetensors", "state.json"])
def test_cut_at_every_tenth_of_its_length_it_falls_back(file: str, tmp_path: Path) -> None:
    trainer, other = trained(tmp_path), trainer_of(seed=5)
    path = tmp_path / "step-00000003" / file
    whole = path.read_bytes()
    for tenth in range(10):
        path.write_bytes(whole[: len(whole) * tenth // 10])
        said: list[str] = []
        assert other.restore(tmp_path, said.append) == {"cursor": 10}, tenth
        assert other.step == 2
        assert len(said) == 1
        assert f"Checkpoint {path.parent} is damaged" in said[0]
    other.train_step([collate(examples_of(9, 14, seed=2))])  # the step that was lost, again
    assert same(trainer, other)
    other.save(tmp_path, {"cursor": 20})
    assert path.read_bytes() == whole


def test_all_damaged_is_none_and_each_is_named(tmp_path: Path) -> None:
    trained(tmp_path)
    for folder in tmp_path.iterdir():
        damage(folder / "model.safetensors", "one bit")
    said: list[str] = []
    assert trainer_of().restore(tmp_path, said.append) is None
    assert len(said) == 2


def test_state_that_is_json_but_no_state(tmp_path: Path) -> None:
    trained(tmp_path)
    for text in ("[]", "{}", "null", '{"sha256": 3}'):
        (tmp_path / "step-00000003" / "state.json").write_text(text)
        said: list[str] = []
        assert trainer_of().restore(tmp_path, said.append) == {"cursor": 10}, text
        assert len(said) == 1


def test_a_half_written_one_is_not_seen_and_cleared_by_the_next(tmp_path: Path) -> None:
    trainer = trained(tmp_path)
    part = tmp_path / ".part-00000004"
    part.mkdir()
    (part / "model.safetensors").write_bytes(b"half")
    assert checkpoint.newest(tmp_path) == tmp_path / "step-00000003"
    trainer.train_step([collate(examples_of(9))])
    trainer.save(tmp_path, {})
    assert names(tmp_path) == ["step-00000003", "step-00000004"]


def test_what_a_kill_left_is_cleared_when_a_run_goes_on(tmp_path: Path) -> None:
    """A checkpoint half written, and one half deleted."""
    trained(tmp_path)
    for name in (".part-00000004", "step-00000001"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(b"half")
    said: list[str] = []
    assert trainer_of().restore(tmp_path, said.append) == {"cursor": 20}
    assert names(tmp_path) == ["step-00000002", "step-00000003"]
    assert said == []


def test_the_last_sound_one_is_used_before_anything_is_cleared(tmp_path: Path) -> None:
    trained(tmp_path)
    shutil.copytree(tmp_path / "step-00000002", tmp_path / "step-00000001")
    for step in (2, 3):
        damage(tmp_path / f"step-0000000{step}" / "model.safetensors", "truncated")
    said: list[str] = []
    assert trainer_of().restore(tmp_path, said.append) == {"cursor": 10}
    assert len(said) == 2


def test_the_oldest_that_is_kept(tmp_path: Path) -> None:
    assert checkpoint.oldest(tmp_path) == 0
    trained(tmp_path, steps=3)
    assert checkpoint.oldest(tmp_path) == 2


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    trainer = trained(tmp_path)
    trainer.save(tmp_path, {"cursor": 77})
    assert trainer_of().restore(tmp_path) == {"cursor": 77}


@pytest.mark.parametrize("limit", [0, 1000, 100_000])
def test_a_disk_that_is_full_leaves_the_last_good(limit: int, tmp_path: Path) -> None:
    """The kernel's own limit on a file's size, hit in the first file and in later ones."""
    trainer = trained(tmp_path, steps=2)
    trainer.train_step([collate(examples_of(9))])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(OSError, match=r"too large|os error 27"):
            trainer.save(tmp_path, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert names(tmp_path) == ["step-00000001", "step-00000002"]
    said: list[str] = []
    assert trainer_of(seed=5).restore(tmp_path, said.append) == {"cursor": 10}
    assert said == []


@pytest.fixture(name="disk")
def filling(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """A file system of its own, of so many bytes; asked again, it grows."""
    place = tmp_path / "disk"
    place.mkdir()
    options: list[str] = []

    def sized(size: int) -> Path:
        words = ["mount", "-t", "tmpfs", "-o", f"size={size}{','.join(['', *options])}", "none", str(place)]
        if subprocess.run(words, capture_output=True).returncode:
            pytest.skip("no file system may be mounted here")
        options[:] = ["remount"]
        return place

    yield sized
    subprocess.run(["umount", str(place)], capture_output=True)


@pytest.mark.skipif(sys.platform != "linux", reason="needs tmpfs")
def test_a_full_file_system_leaves_the_last_good_and_goes_on_when_there_is_room(
    disk: Callable[[int], Path], tmp_path: Path
) -> None:
    """Really full: ENOSPC, wherever in a checkpoint it comes, and the same bits in the end."""
    whole = trained(tmp_path / "peace", steps=4)
    size = sum(p.stat().st_size for p in (tmp_path / "peace" / "step-00000004").iterdir())
    trainer, full = trainer_of(), []
    for share in range(5, 40):
        folder = disk(size * share // 10 // 4096 * 4096)
        other = trainer_of(seed=5)
        said: list[str] = []
        if other.restore(folder, said.append) is not None:
            assert other.step == trainer.step
            assert same(trainer, other)
        assert said == []
        assert not list(folder.glob(".part-*"))
        trainer.train_step([collate(examples_of(9, 14, seed=trainer.step))])
        try:
            trainer.save(folder, {"cursor": (trainer.step - 1) * 10})
        except OSError as error:
            full.append(str(error))
            trainer = trainer_of()  # the process ends, and the next one finds what there is
            trainer.restore(folder, said.append)
        if trainer.step == 4:
            break
    assert len(full) > 20
    assert all("o space left on device" in reason for reason in full)
    assert same(trainer, whole)
    assert {p.name: p.read_bytes() for p in (folder / "step-00000004").iterdir()} == {
        p.name: p.read_bytes() for p in (tmp_path / "peace" / "step-00000004").iterdir()
    }


def test_an_optimisers_state_goes_where_its_parameter_is(tmp_path: Path) -> None:
    """All of it, a count of steps too: CUDA's fused AdamW takes one on no other device. Here another device is meta."""
    model = torch.nn.Linear(3, 2)
    optimiser = torch.optim.AdamW(model.parameters(), fused=True)
    model(torch.ones(3)).sum().backward()
    optimiser.step()
    kept = checkpoint._flatten(model, [optimiser])
    elsewhere = torch.nn.Linear(3, 2, device="meta")
    other = torch.optim.AdamW(elsewhere.parameters())
    checkpoint._unflatten(elsewhere, [other], *kept)
    state = [value for p in elsewhere.parameters() for value in other.state[p].values()]
    assert len(state) == 6
    assert {value.device.type for value in state} == {"meta"}
