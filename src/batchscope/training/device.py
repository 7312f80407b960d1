"""Which device, set up how? Device choice, threads, determinism, the allocator, the clock, out of memory.

Everything that changes the bits or the speed of a step is set here, once per process, and described by
`conditions()`, which every record carries.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys
import time
from collections.abc import Callable

import torch

import batchscope
from batchscope.records import Conditions, Engine
from batchscope.training.engine import PLAIN

# glibc's malloc.h: parameters of mallopt
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4

_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"  # cuBLAS: deterministic only with a work space of fixed size


def pick_device() -> torch.device:
    """CUDA's current device where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def keep_freed_memory() -> str:
    """Make glibc keep large freed blocks for reuse, and name the setting for the record.

    By default glibc maps every block above 32 MiB afresh and gives it back at `free`, so that each training step
    at a large batch size pays page faults for all of its activations (a two-layer CNN at batch 2048 ran 2.5x slower
    for it). No mmap for single blocks and no trimming of the heap: pages stay. Elsewhere than on glibc nothing is done.
    """
    if not sys.platform.startswith("linux"):
        return "default"
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # musl
        return "default"
    kept = mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    return "glibc, no mmap, no trim" if kept else "default"


def set_up(
    threads: int, device: torch.device, precision: str = "fp32", engine: Engine = PLAIN, world_size: int = 1
) -> Conditions:
    """Fix threads, determinism and allocator for this process; returns the conditions it now works under.

    The engine's switches are set trial by trial (`training/engine.py`); here they are only written down.
    """
    torch.set_num_threads(threads)
    allocator = keep_freed_memory()
    deterministic = device.type == "cpu"
    if not deterministic:  # asked for, not promised: atomics in some CUDA kernels have no deterministic version
        os.environ.setdefault(_WORKSPACE, ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.benchmark = False
    return Conditions(
        device=device.type,
        device_name=device_name(device),
        precision=precision,
        threads=threads,
        world_size=world_size,
        deterministic=deterministic,
        allocator=allocator,
        platform=f"{platform.system()} {platform.machine()}",
        versions={
            "batchscope": batchscope.__version__,
            "torch": str(torch.__version__),
            "python": platform.python_version(),
        },
        engine=engine,
    )


def remember_settings() -> Callable[[], None]:
    """A function that puts back what `set_up` changes in this process: for a process that is not ours to set up.

    All but the allocator's setting, which glibc does not tell; it changes no result.
    """
    threads, workspace = torch.get_num_threads(), os.environ.get(_WORKSPACE)
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark = torch.backends.cudnn.benchmark

    def put_back() -> None:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        torch.backends.cudnn.benchmark = benchmark
        if workspace is None:
            os.environ.pop(_WORKSPACE, None)
        else:
            os.environ[_WORKSPACE] = workspace

    return put_back


def device_name(device: torch.device) -> str:
    """The card's or the processor's own name; "unknown" where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        with open("/proc/cpuinfo") as file:
            names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or "unknown"


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def devices_here() -> int:
    """How many replicas this machine can train at once: one for each card, or else for each processor core."""
    return torch.cuda.device_count() if torch.cuda.is_available() else cores()


def now(device: torch.device) -> float:
    """Seconds on a steady clock, after everything queued on the device has run. For window edges only."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception means that memory ran out, on any device."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(
        sign in text for sign in ("out of memory", "can't allocate memory", "alloc_failed", "defaultcpuallocator")
    )
