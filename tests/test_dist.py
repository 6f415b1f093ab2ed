"""Devices that exist, precision per device, and a process prepared without harm."""

from __future__ import annotations

import pytest
import torch

from mull.dist import device, precision, row_floor, settle
from mull.types import UserError


def test_auto_is_what_there_is() -> None:
    assert device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["gpu", "", "cuda:x", "meta", "cpu0"])
def test_devices_that_do_not_exist_are_refused(name: str) -> None:
    with pytest.raises(UserError, match="use auto"):
        device(name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_without_cuda_is_said() -> None:
    with pytest.raises(UserError, match="no CUDA device"):
        device("cuda")


def test_a_device_beyond_the_last_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert device("cuda:0") == torch.device("cuda:0")
    with pytest.raises(UserError, match=r"cuda:7.*last CUDA device here is cuda:0"):
        device("cuda:7")


def test_a_cpu_computes_in_fp32() -> None:
    with precision(torch.device("cpu")):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


@pytest.mark.gpu
def test_cuda_computes_in_bf16_unless_told_otherwise() -> None:
    x = torch.ones(2, 2, device="cuda")
    with precision(x.device):
        assert (x @ x).dtype == torch.bfloat16
    with precision(x.device, fp32=True):
        assert (x @ x).dtype == torch.float32


def test_settling_twice_changes_no_result() -> None:
    x = torch.randn(300, 300)
    before = x @ x
    settle()
    settle()
    assert torch.equal(x @ x, before)


@pytest.mark.parametrize(("threads", "rows"), [(1, 16), (2, 16), (4, 32)])
def test_more_threads_need_more_rows(threads: int, rows: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert row_floor() == rows
    finally:
        torch.set_num_threads(before)
