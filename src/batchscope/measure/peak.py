"""How much memory is in use, and how much was at most? One meter for the CPU, one for CUDA; both can be reset.

On the CPU, memory is the *resident size* of this process: pages that it really occupies, its libraries included. Linux
keeps the peak (VmHWM in /proc/self/status, proc(5)) and resets it when "5" is written to /proc/self/clear_refs; where
that is not possible the peak is that since the process began (getrusage), which never falls.

On CUDA, memory is what torch's allocator has *reserved*: it is what the next allocation competes with, and exceeds what
tensors take. The context (some hundred MiB outside the allocator) is not in it; limits leave it out likewise.
"""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import Protocol

import torch

STATUS = Path("/proc/self/status")
CLEAR_REFS = Path("/proc/self/clear_refs")
CGROUPS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
NO_LIMIT = 1 << 60  # a cgroup without a limit says "max", or a number near 2^63


class PeakMeter(Protocol):
    """Bytes in use on one device."""

    measured_as: str

    def now(self) -> int:
        """Bytes in use."""
        ...

    def peak(self) -> int:
        """The most bytes in use since the last reset."""
        ...

    def reset(self) -> None:
        """Begin anew from what is in use."""
        ...

    def retries(self) -> int:
        """How often the allocator had to free its cache and try again, since the process began."""
        ...


class ResidentMeter:
    """The CPU's: this process's resident size."""

    measured_as = (
        "peak resident size of the training process (data-loading processes not counted; glibc keeps freed blocks, and "
        "no small ones for each thread)"
    )

    def now(self) -> int:
        return _status("VmRSS") or self.peak()

    def peak(self) -> int:
        return _status("VmHWM") or _ru_maxrss()

    def reset(self) -> None:
        with contextlib.suppress(OSError):
            CLEAR_REFS.write_text("5")

    def retries(self) -> int:
        return 0


class CudaMeter:
    """CUDA's: what torch's allocator has reserved on one device."""

    measured_as = "peak memory reserved by torch's CUDA allocator (the CUDA context not counted)"

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def now(self) -> int:
        return torch.cuda.memory_reserved(self.device)

    def peak(self) -> int:
        return torch.cuda.max_memory_reserved(self.device)

    def reset(self) -> None:
        torch.cuda.reset_peak_memory_stats(self.device)

    def retries(self) -> int:
        return int(torch.cuda.memory_stats(self.device).get("num_alloc_retries", 0))


def peak_meter(device: torch.device) -> PeakMeter:
    """The meter of a device."""
    return CudaMeter(device) if device.type == "cuda" else ResidentMeter()


def _status(field: str) -> int | None:
    """A field of /proc/self/status in bytes; None where there is no such file."""
    try:
        lines = STATUS.read_text().splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:")), None)


def _ru_maxrss() -> int:
    """The peak since the process began; 0 where the system does not say (Windows)."""
    try:
        import resource
    except ImportError:
        return 0
    unit = 1 if sys.platform == "darwin" else 1024  # getrusage(2): bytes on macOS, KiB elsewhere
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def resident_bytes(pid: int) -> int | None:
    """Resident size of another process of ours; None where it is gone or the system does not say."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError, ValueError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


def physical_bytes() -> int:
    """Memory that this machine, or the container that we run in, has."""
    limits = [_cgroup_limit(path) for path in CGROUPS]
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([whole, *(limit for limit in limits if limit is not None)])


def available_bytes() -> int:
    """Memory that can be taken now without swapping; all there is where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return physical_bytes()
    found = next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), None)
    return physical_bytes() if found is None else min(found, physical_bytes())


def _cgroup_limit(path: Path) -> int | None:
    """A control group's limit in bytes, None where there is none."""
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() and int(text) < NO_LIMIT else None
