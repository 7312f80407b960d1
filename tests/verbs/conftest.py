"""What do the tests of a verb begin with? The small task as an object, one thread, quick timings, and a way to ask."""

import shutil
import sys
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest

import batchscope as bs
import batchscope.sweep.jobs as jobs
from batchscope.measure.throughput import StepClock
from batchscope.records import StudyResult
from batchscope.task import Task, load_task

SMALL = Path(__file__).parents[1] / "sweep" / "small_task.py"
Ask = Callable[..., StudyResult]
Copies = Callable[[str, Path], Path]


@pytest.fixture(autouse=True, scope="package")
def quick() -> Generator[None]:
    """In this process, seconds are not what these tests are about; and a busy machine must not choose the threads."""
    steps_for = StepClock.steps_for
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StepClock, "steps_for", lambda clock, size, seconds=0.0: steps_for(clock, size, 0.003))
        patch.setattr(jobs, "fastest_threads", lambda *_: (1, {1: 1.0}))
        patch.setattr(sys, "path", list(sys.path))  # loading a task file puts its folder there
        yield


@pytest.fixture
def small() -> Task:
    """The small task."""
    return load_task(str(SMALL))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the store of a test's study lies."""
    return tmp_path / "a.db"


@pytest.fixture
def ask(path: Path) -> Ask:
    """A small study in this process: two batch sizes, one seed, unless the test says otherwise."""

    def ask(task: Task | str, **asked: Any) -> StudyResult:
        settings: dict[str, Any] = {"batch_sizes": (16, 64), "seeds": 1, "store": path, "draw": False}
        return bs.study(task, **settings | asked)

    return ask


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Copies:
    """Copies of the store of a finished small study at (16, 64), one seed, by policy."""
    made: dict[str, Path] = {}

    def copy(policy: str, to: Path) -> Path:
        if policy not in made:
            made[policy] = tmp_path_factory.mktemp("finished") / "a.db"
            bs.study(
                load_task(str(SMALL)), batch_sizes=(16, 64), seeds=1, policy=policy, store=made[policy], draw=False
            )
        return Path(shutil.copy(made[policy], to))

    return copy
