"""Set-up describes itself; out of memory is told apart; and on a GPU, the same trial, resumed or not."""

import os
import platform
import sys

import numpy as np
import pytest
import torch

from batchscope.records import Engine
from batchscope.training.checkpoint import Checkpoint
from batchscope.training.device import (
    cores,
    device_name,
    is_out_of_memory,
    keep_freed_memory,
    now,
    pick_device,
    remember_settings,
    set_up,
)
from batchscope.training.loop import train
from batchscope.training.seeding import torch_drawing_from
from toys import CPU, SIZE, mlp_with_state, toy, trial


def test_set_up_fixes_threads_and_says_so():
    before = torch.get_num_threads()
    try:
        conditions = set_up(2, CPU, "bf16")
        assert torch.get_num_threads() == conditions.threads == 2
    finally:
        torch.set_num_threads(before)
    assert (conditions.device, conditions.precision, conditions.deterministic) == ("cpu", "bf16", True)
    assert conditions.device_name == device_name(CPU) != ""
    assert conditions.allocator == keep_freed_memory()
    if sys.platform.startswith("linux") and platform.libc_ver()[0] == "glibc":
        assert conditions.allocator == "glibc, no mmap, no trim"
    assert conditions.versions["python"] == platform.python_version()
    assert cores() >= 1
    assert now(CPU) <= now(CPU)
    assert pick_device().type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_set_up_writes_the_engine_down():
    before = torch.get_num_threads()
    try:
        assert set_up(1, CPU).engine == Engine()
        assert set_up(1, CPU, engine=Engine(channels_last=True)).engine == Engine(channels_last=True)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("workspace", [None, ":16:8"])
def test_what_set_up_changes_can_be_put_back(monkeypatch, workspace):
    """As on a GPU, which need not be there: determinism is a setting of the process."""
    name = "CUBLAS_WORKSPACE_CONFIG"
    monkeypatch.delenv(name, raising=False)
    if workspace is not None:
        monkeypatch.setenv(name, workspace)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "made up")
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)

    def settings():
        warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
        determinism = torch.are_deterministic_algorithms_enabled(), warn_only, torch.backends.cudnn.benchmark
        return torch.get_num_threads(), *determinism, os.environ.get(name)

    before, put_back = settings(), remember_settings()
    try:
        assert not set_up(2, torch.device("cuda")).deterministic
        assert settings() == (2, True, True, False, workspace or ":4096:8")
    finally:
        put_back()
    assert settings() == before == (1, False, False, True, workspace)


def test_out_of_memory_is_told_from_other_errors():
    with pytest.raises((RuntimeError, MemoryError)) as refused:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(refused.value)
    with pytest.raises(MemoryError) as refused:
        np.empty(2**60, dtype=np.uint8)
    assert is_out_of_memory(refused.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"))
    assert is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"))
    for other in (RuntimeError("shape mismatch"), ValueError("out of memory of my last holiday"), KeyError("memory")):
        assert not is_out_of_memory(other)


class Stopped(BaseException):
    """What a kill does."""


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.filterwarnings("default")  # torch warns where a kernel has no deterministic version
def test_a_trial_on_the_gpu_trains_and_resumes(tmp_path):
    device = torch.device("cuda")
    conditions = set_up(1, device)
    assert (conditions.device, conditions.deterministic) == ("cuda", False)
    assert conditions.device_name == torch.cuda.get_device_name()
    task, spec = toy(model=mlp_with_state), trial(8, budget=3 * SIZE, cadence=16)
    straight = train(task, spec, device=device)
    assert straight.outcome == "not_reached", straight.reason
    assert straight.trace[-1].validation["loss"] < straight.trace[0].validation["loss"]
    on_cpu = train(task, spec, device=CPU)
    assert straight.trace[0].validation["loss"] == pytest.approx(on_cpu.trace[0].validation["loss"], rel=1e-4)
    lines = []

    def stop(line):
        lines.append(line)
        if len(lines) == 4:
            raise Stopped

    path = tmp_path / "a.pt"
    with pytest.raises(Stopped):
        train(task, spec, device=device, checkpoint=Checkpoint(path, seconds=0), on_evaluation=stop)
    torch.cuda.manual_seed(99)
    resumed = train(task, spec, device=device, checkpoint=Checkpoint(path, seconds=0))
    for got, expected in zip(resumed.trace, straight.trace, strict=True):
        assert (got.step, got.examples) == (expected.step, expected.examples)
        assert got.validation["loss"] == pytest.approx(expected.validation["loss"], rel=1e-5)  # dropout's mask included


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_out_of_memory_and_generators_on_the_gpu():
    device = torch.device("cuda")
    with pytest.raises(RuntimeError) as refused:
        torch.empty(2**50, dtype=torch.uint8, device=device)
    assert is_out_of_memory(refused.value)
    torch.cuda.manual_seed(1)
    expected = torch.rand(3, device=device)
    torch.cuda.manual_seed(1)
    with torch_drawing_from(5, device):
        noise = torch.rand(3, device=device)
    with torch_drawing_from(5, device):
        assert torch.equal(torch.rand(3, device=device), noise)
    assert torch.equal(torch.rand(3, device=device), expected)
