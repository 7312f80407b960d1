"""Does the peak rise with what is allocated, fall after a reset, and say what the system says?"""

from __future__ import annotations

import mmap
import os
import resource
import sys
from pathlib import Path

import pytest
import torch

from batchscope.measure import peak
from batchscope.measure.peak import CudaMeter, ResidentMeter, available_bytes, peak_meter, physical_bytes
from toys import CPU

MIB = 1 << 20


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_keeps_what_was_freed_until_it_is_reset() -> None:
    meter = peak_meter(CPU)
    meter.reset()
    before = meter.now()
    with mmap.mmap(-1, 64 * MIB) as held:  # not through malloc, which may still have as much from before
        for page in range(0, 64 * MIB, mmap.PAGESIZE):
            held[page] = 1
        assert meter.now() - before == pytest.approx(64 * MIB, rel=0.1)
    high = meter.peak()
    assert high - before == pytest.approx(64 * MIB, rel=0.1)
    meter.reset()
    assert meter.peak() <= high
    assert meter.peak() == pytest.approx(meter.now(), rel=0.02)


def test_without_proc_the_peak_is_the_processes_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peak, "STATUS", Path("/nowhere/status"))
    monkeypatch.setattr(peak, "CLEAR_REFS", Path("/nowhere/clear_refs"))
    meter = ResidentMeter()
    meter.reset()
    unit = 1 if sys.platform == "darwin" else 1024
    assert meter.now() == meter.peak() == unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def test_a_containers_limit_is_the_machines_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(peak, "CGROUPS", (limit, tmp_path / "none"))
    for text, expected in (("max\n", whole), (str(2**63 - 4096), whole), (f"{100 * MIB}\n", 100 * MIB)):
        limit.write_text(text)
        assert physical_bytes() == expected
    assert available_bytes() == 100 * MIB


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_meter_follows_the_allocator() -> None:
    device = torch.device("cuda")
    meter = CudaMeter(device)
    torch.cuda.empty_cache()
    meter.reset()
    before = meter.now()
    held = torch.ones(64 * MIB // 4, device=device)
    assert meter.peak() - before >= 64 * MIB
    del held
    torch.cuda.empty_cache()
    assert meter.now() == before
