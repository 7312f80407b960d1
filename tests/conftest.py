"""One thread for every test, so that bits agree with the workers' and two cores are enough; long files first."""

import os
from collections.abc import Generator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

torch.set_num_threads(1)

TESTS = Path(__file__).parent
LONGEST = (  # they start processes, each of which imports torch; by what they took, longest first
    "sweep/test_kill_storm.py",
    "test_examples.py",
    "sweep/test_launched.py",
    "sweep/test_on_workers.py",
    "sweep/test_probes.py",
    "integrations/test_transformers_noise.py",  # of no length where the frameworks are not installed
    "integrations/test_lightning_noise.py",
    "integrations/test_accelerate_noise.py",
    "cli/test_interrupt.py",
    "cli/test_study_command.py",
    "verbs/test_study_at_once.py",
    "verbs/test_study_on_devices.py",
    "sweep/test_local.py",
    "report/test_charts.py",
    "report/test_html.py",
    "verbs/test_profile.py",
    "cli/test_stores.py",
    "verbs/test_study_resumed.py",
    "sweep/test_worker.py",
)
LONG = (  # the longest of them: marked "long", which `make test` leaves to `make test-frameworks`
    "sweep/test_on_workers.py",
    "sweep/test_probes.py",
    "cli/test_interrupt.py",
    "cli/test_stores.py",
    "verbs/test_study_at_once.py",
    "verbs/test_study_resumed.py",
    "verbs/test_ceiling.py",
    "verbs/test_profile.py",
    "measure/test_scaling.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the longest files, and begin with them: two processes that take file after file then end together."""
    long = {TESTS / name for name in LONG}
    for item in items:
        if item.path in long:
            item.add_marker("long")
    order = {TESTS / name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path, len(order)))


@pytest.fixture
def one_core() -> Generator[None]:
    """A test whose commands have one core, hence one worker process: how many train is not what it is about.

    The tests that run beside it, in xdist's other process, take another core.
    """
    cores = sorted(os.sched_getaffinity(0))
    number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    os.sched_setaffinity(0, {cores[number % len(cores)]})
    yield
    os.sched_setaffinity(0, cores)
