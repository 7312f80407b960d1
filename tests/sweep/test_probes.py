"""Probes of tasks that misbehave: each ends in bounded time, with a name, and leaves no process."""

from __future__ import annotations

import os
import time
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from batchscope.measure.peak import resident_bytes
from batchscope.records import Conditions, MemoryProbe
from batchscope.sweep.jobs import TaskReference
from batchscope.sweep.probes import Prober
from batchscope.task import load_task
from batchscope.training.fingerprint import fingerprint

from .probed_task import BYTES_PER_EXAMPLE
from .processes import gone_within, workers_of

FILE = Path(__file__).with_name("probed_task.py")
MIB = 1 << 20
LIMIT = 600 * MIB
PROBES = {  # task: (micro-batch size, seconds of silence)
    "hungry": (64, 60.0),
    "too_hungry": (2048, 60.0),
    "slightly_too_hungry": (256, 60.0),
    "killed": (128, 60.0),
    "crashing": (128, 60.0),
    "hanging": (128, 8.0),
    "raising": (128, 60.0),
    "dying_loader": (128, 60.0),
}


def prober(function: str, limit: int = LIMIT, patience: float = 60.0) -> Prober:
    """A prober of one of the tasks."""
    name = f"{FILE}:{function}"
    found = TaskReference.here(name, fingerprint(load_task(name))[0])
    return Prober(found, Conditions(threads=1), limit, patience=patience)


@pytest.fixture(scope="module")
def child(tmp_path_factory: pytest.TempPathFactory) -> Generator[Path]:
    """Where the hanging task writes the process that it started."""
    path = tmp_path_factory.mktemp("child") / "pid"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BATCHSCOPE_TEST_CHILD", str(path))
        yield path


@pytest.fixture(scope="module")
def probes(child: Path) -> dict[str, MemoryProbe]:
    """Every probe once, two at a time: nothing here is a timing."""
    probers = {
        name: prober("hungry" if name.endswith("hungry") else name, patience=patience)
        for name, (_, patience) in PROBES.items()
    }
    with ThreadPoolExecutor(2) as pool:
        done = pool.map(lambda name: probers[name].probe(PROBES[name][0]), PROBES)
        return dict(zip(PROBES, done, strict=True))


def test_one_that_fits_tells_everything(probes: dict[str, MemoryProbe]) -> None:
    probe = probes["hungry"]
    assert (probe.outcome, probe.reason, probe.micro_batch_size) == ("fits", "", 64)
    assert probe.steps >= 3
    assert probe.parts is not None
    assert probe.peak_bytes is not None
    assert probe.training_bytes is not None
    assert probe.saved_bytes_per_example == pytest.approx(BYTES_PER_EXAMPLE, rel=0.01)
    parts = vars(probe.parts)
    assert sum(parts.values()) == probe.training_bytes <= probe.peak_bytes < LIMIT
    assert 2 < probe.parts.activations / (64 * BYTES_PER_EXAMPLE) < 8  # what is kept, its product, their gradients
    weights = 4 * (4 * 3 + 3 + 1)
    assert probe.parts.gradients == probe.parts.optimizer_state == weights
    assert probe.parts.weights == 2 * weights  # and the copy of the initial ones


def test_one_slightly_too_large_runs_on_and_tells_its_peak(probes: dict[str, MemoryProbe]) -> None:
    probe = probes["slightly_too_hungry"]
    assert probe.peak_bytes is not None
    if probe.peak_bytes <= LIMIT:  # a small libc or torch build
        pytest.skip("the process itself is smaller here than where the sizes were chosen")
    assert probe.outcome == "out_of_memory"
    assert "above the limit of 600 MiB" in probe.reason
    assert probe.steps >= 3


def test_one_far_too_large_is_ended_before_it_takes_the_machine(probes: dict[str, MemoryProbe]) -> None:
    probe = probes["too_hungry"]
    assert probe.outcome == "out_of_memory"
    assert probe.reason.startswith("it was ended in training step 1")
    assert probe.peak_bytes is not None
    assert LIMIT < probe.peak_bytes < 1.25 * LIMIT + 1024 * MIB  # what it can take between two looks


@pytest.mark.parametrize(
    ("task", "outcome", "words"),
    [
        ("killed", "out_of_memory", "SIGKILL (often the system's memory killer) in training step 1"),
        ("crashing", "crashed", "SIGSEGV in training step 1"),
        ("hanging", "timed_out", "no sign of life for 8 s in training step 1"),
        ("raising", "crashed", "IndexError: pop from empty list"),
        ("dying_loader", "crashed", "RuntimeError: DataLoader worker"),
    ],
)
def test_outcomes_have_names(probes: dict[str, MemoryProbe], task: str, outcome: str, words: str) -> None:
    probe = probes[task]
    assert probe.outcome == outcome
    assert words in probe.reason
    assert not probe.fits
    assert probe.seconds < 30


def test_nothing_is_left_running(probes: dict[str, MemoryProbe], child: Path) -> None:
    assert workers_of(os.getpid()) == []
    assert gone_within(2, int(child.read_text()))


def memory_groups() -> Path | None:
    """A folder of control groups in which one with a memory limit can be made, if there is one."""
    for root, controllers in ((Path("/sys/fs/cgroup/memory"), None), (Path("/sys/fs/cgroup"), "cgroup.controllers")):
        limit = root / ("memory.limit_in_bytes" if controllers is None else controllers)
        if limit.exists() and os.access(root, os.W_OK):
            return root
    return None


@pytest.fixture
def jail(monkeypatch: pytest.MonkeyPatch) -> Generator[Path]:
    """A control group of 700 MiB: above it the kernel's memory killer acts."""
    root = memory_groups()
    if root is None:
        pytest.skip("no control group can be made here")
    group = root / f"batchscope-test-{os.getpid()}"
    try:
        group.mkdir()
        for name in ("memory.limit_in_bytes", "memory.max"):
            if (group / name).exists():
                (group / name).write_text(str(700 * MIB))
    except OSError as error:
        pytest.skip(f"no memory limit can be set here: {error}")
    monkeypatch.setenv("BATCHSCOPE_TEST_CGROUP", str(group))
    yield group
    for _ in range(50):
        try:
            group.rmdir()
            return
        except OSError:
            time.sleep(0.1)


def test_the_kernels_memory_killer_is_out_of_memory(jail: Path) -> None:
    probe = prober("jailed", limit=8192 * MIB).probe(2048)
    assert probe.outcome == "out_of_memory"
    assert "SIGKILL (often the system's memory killer) in training step 1" in probe.reason


def test_resident_size_of_a_process_that_is_gone() -> None:
    assert resident_bytes(2**22 + 1) is None
    assert (resident_bytes(os.getpid()) or 0) > 50 * MIB
