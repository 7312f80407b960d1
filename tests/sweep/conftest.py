"""What do the tests of a sweep share? Worker processes, which take seconds to start, and the folder they look in."""

import os
from collections.abc import Generator
from pathlib import Path

import pytest

from batchscope.sweep.executors.local import LocalExecutor

from .small_runs import workers


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Generator[Path]:
    """Where the odd task looks for what is to happen."""
    path = tmp_path_factory.mktemp("acts")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BATCHSCOPE_TEST_FOLDER", str(path))
        yield path


@pytest.fixture
def folder(shared_folder: Path) -> Generator[Path]:
    """That folder, empty, and emptied again."""
    yield shared_folder
    for name in os.listdir(shared_folder):
        (shared_folder / name).unlink()


@pytest.fixture(scope="session")
def pair(shared_folder: Path) -> Generator[LocalExecutor]:
    """Two workers that have loaded the odd task; whoever kills one finds another in its place."""
    with workers("odd") as executor:
        yield executor
