"""What do the tests of the command line share? Two ways to run it, a finished study, small stores."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from batchscope.cli.app import run
from batchscope.records import StudyData
from batchscope.store.sqlite import open_store
from batchscope.testing.example_match import make_match_data
from batchscope.testing.example_noise import make_noise_run
from batchscope.testing.example_profiles import make_profile
from batchscope.testing.example_scaling import make_scaling_data
from batchscope.testing.example_sharpness import make_sharpness_data
from batchscope.testing.examples import fill
from batchscope.testing.store_advice import make_advice_data

SMALL = Path(__file__).parents[1] / "sweep" / "small_task.py"
COMMAND = str(Path(sys.executable).with_name("batchscope"))
ASKED = ("--batch-sizes", "16,64", "--seeds", "1")
ROW_KEYS = {
    "batch_size",
    "policy",
    "learning_rate",
    "tuning_trials",
    "seeds",
    "reached",
    "epochs_to_converge",
    "steps_to_goal",
    "examples_to_goal",
    "seconds_per_epoch",
    "seconds_to_converge",
    "seconds_to_goal",
    "min_validation_loss",
    "train_loss",
    "generalization_gap",
    "distance_from_init",
}


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


Here = Callable[..., Ended]


@pytest.fixture
def here(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Here:
    """Run a command line in this process, standing in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def here(*arguments: str) -> Ended:
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            run(list(arguments))
        printed = capfd.readouterr()
        assert isinstance(ended.value.code, int)
        return Ended(ended.value.code, printed.out, printed.err)

    return here


def really(*arguments: str, cwd: Path) -> Ended:
    """Run the installed command."""
    ended = subprocess.run([COMMAND, *arguments], cwd=cwd, capture_output=True, text=True, timeout=120)
    return Ended(ended.returncode, ended.stdout, ended.stderr)


def sentence(ended: Ended, code: int, *parts: str) -> None:
    """The command ended with this code, nothing on stdout, and one sentence that says all of this."""
    assert (ended.code, ended.out) == (code, "")
    said = [line for line in ended.err.splitlines() if line.startswith("batchscope: ")]
    assert len(said) == 1, ended.err
    assert "Traceback" not in ended.err
    for part in parts:
        assert part in said[0], said[0]


def data_of(store: Path) -> StudyData:
    with open_store(store, read_only=True) as opened:
        return opened.study_data(opened.studies()[0].id)


def task_file(folder: Path, text: str, name: str = "mine.py") -> str:
    """A task file that begins with the small task's names."""
    (folder / name).write_text(
        f"import dataclasses, os, sys, torch\nsys.path.insert(0, {str(SMALL.parent)!r})\n"
        f"import batchscope as bs, small_task\n{text}\n"
    )
    return str(folder / name)


@dataclass(frozen=True)
class Study:
    """A finished study: its store, what `--json` printed, and how the command ended."""

    store: Path
    answer: dict[str, Any]
    ended: Ended
    task: str


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """Of a task that prints wherever it can, run by the installed command with --json."""
    folder = tmp_path_factory.mktemp("study")
    task = task_file(
        folder, "print('loading')\nos.system('echo from a program')\n\ndef task():\n    return small_task.task()\n"
    )
    ended = really("study", task, *ASKED, "--store", "a.db", "--json", cwd=folder)
    assert ended.code == 0, ended.err
    return Study(folder / "a.db", json.loads(ended.out), ended, task)


@pytest.fixture
def profile_id(here: Here) -> str:
    """The id of the one profile in a store, beside a study, where `here` stands."""
    with open_store("batchscope.db") as store:
        fill(store)
        return store.save_profile(make_profile())


@pytest.fixture
def noise_id(here: Here) -> str:
    """The id of the one noise run in a store, where `here` stands."""
    with open_store("batchscope.db") as store:
        return store.save_noise_run(make_noise_run())


@pytest.fixture
def advice_id(here: Here) -> str:
    """The id of the one advice in a store, where `here` stands."""
    with open_store("batchscope.db") as store:
        return store.save_advice(make_advice_data())


@pytest.fixture
def scaling_id(here: Here) -> str:
    """The id of the one scaling in a store, where `here` stands."""
    with open_store("batchscope.db") as store:
        return store.save_scaling(make_scaling_data())


@pytest.fixture
def sharpness_id(here: Here) -> str:
    """The id of the one sharpness in a store, where `here` stands."""
    with open_store("batchscope.db") as store:
        return store.save_sharpness(make_sharpness_data())


@pytest.fixture
def match_id(here: Here) -> str:
    """The id of the one match in a store, where `here` stands."""
    with open_store("batchscope.db") as store:
        return store.save_match(make_match_data())


def only_study() -> str:
    """The id of the one study in that store."""
    with open_store("batchscope.db", read_only=True) as store:
        return store.studies()[0].id
