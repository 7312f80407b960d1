"""Does a study go on where it was stopped, wherever it ran, and use no trial of a changed task?"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import batchscope as bs
from batchscope.task import Task

from .conftest import SMALL, Ask, Copies
from .studies import Heard, data_of, facts, hearing, kinds, records


def test_a_task_in_memory_says_that_it_runs_alone_and_is_the_file_all_the_same(
    small: Task, ask: Ask, path: Path
) -> None:
    """The file's command afterwards finds every trial there."""
    result = ask(small, policy="held")
    assert any("came as an object" in note for note in result.notes)
    heard: Heard = []
    again = ask(f"{SMALL}:task", policy="held", listen=hearing(heard))
    assert kinds(heard, "started") == []
    assert again.rows == result.rows
    assert not any("came as an object" in note for note in again.notes)


def test_workers_give_the_records_of_this_process(ask: Ask, path: Path, finished: Copies) -> None:
    """How many work is a measurement, and the one thing in which the two may differ."""
    ask(f"{SMALL}:task")
    here, there = data_of(finished("both", path.with_name("here.db"))), data_of(path)
    there = dataclasses.replace(there, settings=dataclasses.replace(there.settings, workers=here.settings.workers))
    assert facts(there) == facts(here)


@pytest.mark.parametrize("moment", [1, 4, 9])
def test_after_ctrl_c_the_same_command_goes_on(
    small: Task, ask: Ask, path: Path, finished: Copies, moment: int
) -> None:
    """Stopped at the end of a trial, and inside one (at a line of it); nothing stored is run again."""
    truth = data_of(finished("both", path.with_name("truth.db")))
    stored: list[int] = []

    def stop(kind: str, details: dict[str, Any]) -> None:
        if kind == "finished":
            stored.append(details["trial"])
        if len(stored) == moment and kind == ("line" if moment % 2 else "finished"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ask(small, listen=stop, checkpoint_seconds=0.0)
    heard: Heard = []
    ask(small, listen=hearing(heard), checkpoint_seconds=0.0)
    assert not {details["trial"] for details in kinds(heard, "started")} & set(stored)
    assert facts(data_of(path)) == facts(truth)
    assert not path.with_name("a.db.checkpoints").exists()


def _other_model() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 3))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model": _other_model}, "the model's parameters"),
        ({"loss": lambda output, target: F.cross_entropy(output, target, label_smoothing=0.1)}, "loss"),
        ({"train": "flip"}, "the data"),
        ({"optimizer": lambda model, lr: torch.optim.SGD(model.parameters(), lr=lr, momentum=0.5)}, "the optimizer"),
        ({"goal": bs.Goal("loss", at_most=0.7)}, "the goal"),
    ],
    ids=["model", "loss", "data", "optimizer", "goal"],
)
def test_a_changed_task_is_noticed_and_served_no_stale_trial(
    small: Task,
    ask: Ask,
    path: Path,
    finished: Copies,
    change: dict[str, Any],
    named: str,
) -> None:
    finished("held", path)
    if change.get("train") == "flip":
        x, y = small.train
        change = {"train": (x, torch.cat([y[:1], y[1:-1], (y[-1:] + 1) % 3]))}  # one label of 256, not among the first
    heard: Heard = []
    result = ask(dataclasses.replace(small, **change), policy="held", listen=hearing(heard))
    assert kinds(heard, "stored") == []
    assert len(kinds(heard, "finished")) == 3
    (note,) = [n for n in result.notes if "is not the one of" in n]
    assert note.startswith("Task 'small' is not the one of 3 trials stored under that name, which are not used:")
    assert named in note
    assert note in [n["text"] for n in kinds(heard, "note")]
    heard.clear()
    ask(small, policy="held", listen=hearing(heard))  # and back: its own trials are still there
    assert kinds(heard, "started") == []


def test_a_choice_made_elsewhere_is_not_taken_for_one_made_here(
    small: Task, ask: Ask, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that was brought from another machine: its trials are not passed off as this one's."""
    with monkeypatch.context() as patch:
        patch.setattr("batchscope.training.device.device_name", lambda device: "another processor")
        ask(small, policy="held")
    heard: Heard = []
    ask(small, policy="held", listen=hearing(heard))
    assert len(kinds(heard, "finished")) == 3
    assert {t.conditions.device_name for t in records(data_of(path, 0))} == {"another processor"}
    assert "another processor" not in {t.conditions.device_name for t in records(data_of(path, 1))}
