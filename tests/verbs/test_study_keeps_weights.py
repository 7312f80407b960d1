"""Does a study keep the weights of the trials that it reports, whenever it is asked to, and change nothing by it?"""

from __future__ import annotations

import dataclasses
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import torch

from batchscope.errors import UsageError
from batchscope.records import StudyData, TrialRecord, TrialSpec
from batchscope.store.owner import Owner
from batchscope.store.sqlite import open_store
from batchscope.sweep.keeping import weights_file, weights_folder
from batchscope.task import Task
from batchscope.training.batches import FixedBatches
from batchscope.training.step import evaluate, make_model
from batchscope.training.weights import KeptWeights, load_weights
from batchscope.verbs.price import price
from batchscope.verbs.request import prepare

from .conftest import SMALL, Ask, Copies
from .studies import Heard, data_of, facts, hearing, kinds

CPU = torch.device("cpu")


def file_of(path: Path, trial: TrialRecord, data: StudyData) -> Path:
    return weights_file(path, trial.spec, data.settings.fingerprint, data.settings.conditions)


def kept_of(path: Path) -> dict[str, KeptWeights]:
    """The weights of every reported trial, by its key; there are no other files."""
    data = data_of(path)
    files = {t.spec.key(): file_of(path, t, data) for t in (*data.held, *data.tuned)}
    assert set(weights_folder(path).iterdir()) == set(files.values())
    found = {key: load_weights(file) for key, file in files.items()}
    assert None not in found.values()
    return {key: kept for key, kept in found.items() if kept is not None}


def same(one: dict[str, KeptWeights], other: dict[str, KeptWeights]) -> bool:
    assert one.keys() == other.keys()

    def tensors(kept: KeptWeights) -> list[torch.Tensor]:
        return [t for state in (kept.initial, kept.best.state, kept.last.state) for t in state.values()]

    pairs = [(tensors(one[key]), tensors(other[key])) for key in one]
    return all(torch.equal(a, b) for of_one, of_other in pairs for a, b in zip(of_one, of_other, strict=True))


def reported(data: StudyData) -> set[TrialSpec]:
    return {t.spec for t in (*data.held, *data.tuned)}


def test_the_weights_of_reported_trials_are_kept_and_nothing_else_changes(
    small: Task, ask: Ask, path: Path, finished: Copies
) -> None:
    result = ask(small, keep_weights=True)
    data = data_of(path)
    assert facts(data) == facts(data_of(finished("both", path.with_name("plain.db"))))
    kept = kept_of(path)
    for trial in (*data.held, *data.tuned):
        mine = kept[trial.spec.key()]
        assert (mine.spec, mine.fingerprint, mine.task) == (trial.spec, data.settings.fingerprint, None)
        best = min(trial.result.trace, key=lambda e: e.validation["loss"])
        for at, line in ((mine.best, best), (mine.last, trial.result.trace[-1])):
            assert (at.step, at.examples) == (line.step, line.examples)
            model = make_model(small, CPU)
            model.load_state_dict(at.state)
            assert evaluate(small, model, FixedBatches(small, small.valid, None, CPU)) == line.validation
    heard: Heard = []
    assert ask(small, keep_weights=True, listen=hearing(heard)) == result
    assert kinds(heard, "started") == []


def test_stored_trials_are_trained_again_for_their_weights_also_by_workers(
    small: Task, ask: Ask, path: Path, finished: Copies
) -> None:
    """The same weights as of a study that kept them at once; and then nothing more."""
    at_once = path.with_name("at once.db")
    ask(small, policy="held", keep_weights=True, store=at_once)
    before = data_of(finished("held", path))
    heard: Heard = []
    result = ask(f"{SMALL}:task", policy="held", keep_weights=True, listen=hearing(heard))
    assert len(kinds(heard, "started")) == len(kinds(heard, "finished")) == len(reported(before))
    assert facts(data_of(path)) == facts(before)
    assert not any("are not kept" in note for note in result.notes)
    kept = kept_of(path)
    assert same(kept, kept_of(at_once))
    task = next(iter(kept.values())).task
    assert task is not None
    assert task["reference"] == f"{SMALL}:task"
    assert task["fingerprint"] == before.settings.fingerprint
    heard.clear()
    ask(small, policy="held", keep_weights=True, listen=hearing(heard))
    assert kinds(heard, "started") == []
    with open_store(path) as store:
        assert store.claim_machine(Owner.here("another"), 60.0) == "alone"  # it was given back


@pytest.mark.parametrize("stored", [True, False])
def test_interrupted_they_are_the_same_bits(small: Task, ask: Ask, path: Path, finished: Copies, stored: bool) -> None:
    truth = path.with_name("truth.db")
    ask(small, policy="held", keep_weights=True, store=truth)
    if stored:
        finished("held", path)
    lines: list[str] = []

    def stop(kind: str, details: dict[str, Any]) -> None:
        if kind == "line":
            lines.append(kind)
            if len(lines) in (20, 90):
                raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            ask(small, policy="held", keep_weights=True, listen=stop, checkpoint_seconds=0.0)
    heard: Heard = []
    ask(small, policy="held", keep_weights=True, listen=hearing(heard), checkpoint_seconds=0.0)
    assert facts(data_of(path)) == facts(data_of(truth))
    assert same(kept_of(path), kept_of(truth))
    assert not path.with_name("a.db.checkpoints").exists()
    assert len(kinds(heard, "line")) < len(lines)


def test_weights_of_a_trial_that_ends_otherwise_here_are_not_kept_and_a_note_says_so(
    small: Task, ask: Ask, path: Path, finished: Copies
) -> None:
    trial, other = data_of(finished("held", path)).held
    with sqlite3.connect(path) as db:
        (number,) = db.execute(
            "SELECT trial_id FROM study_trials WHERE role = 'held' ORDER BY position LIMIT 1"
        ).fetchone()
        db.execute("UPDATE evaluations SET distance = distance * 2 WHERE trial_id = ? AND k = 3", (number,))
    db.close()
    before = data_of(path)
    assert facts(before) != facts(dataclasses.replace(before, held=(trial, other)))
    result = ask(small, policy="held", keep_weights=True)
    (note,) = [n for n in result.notes if "are not kept" in n]
    assert note.startswith(f"The weights of trial {trial.spec.key()} are not kept, for which it was trained again: it")
    assert list(weights_folder(path).iterdir()) == [file_of(path, other, before)]
    assert facts(data_of(path)) == facts(before)


def test_with_an_open_goal_the_run_that_sets_it_is_not_trained_twice(small: Task, ask: Ask, path: Path) -> None:
    """Nor where it was stored before, with an outcome that knew no goal."""
    open_goal = dataclasses.replace(small, goal=None)
    heard: Heard = []
    ask(open_goal, policy="held", listen=hearing(heard), store=path.with_name("plain.db"))
    plain = kinds(heard, "started")
    heard.clear()
    result = ask(open_goal, policy="held", keep_weights=True, listen=hearing(heard))
    assert len(kinds(heard, "started")) == len(plain) == 3
    again = ask(open_goal, policy="held", keep_weights=True, store=path.with_name("plain.db"))
    assert not any("are not kept" in note for note in (*result.notes, *again.notes))
    assert same(kept_of(path), kept_of(path.with_name("plain.db")))


def test_what_cannot_be_kept_is_refused_before_anything_runs(small: Task, ask: Ask, path: Path) -> None:
    with pytest.raises(UsageError, match="expected the trials whose weights are kept on this machine, got --on ray"):
        ask(f"{SMALL}:task", keep_weights=True, on="ray")
    with pytest.raises(UsageError, match="expected whole weights to keep, got shard=True on 2 devices"):
        prepare(dataclasses.replace(small, shard=True), batch_sizes=(16,), devices=2, keep_weights=True)
    assert not path.exists()


def test_a_dry_run_tells_the_disk_that_they_take(small: Task, ask: Ask, path: Path) -> None:
    asked: dict[str, Any] = {"batch_sizes": (16, 64), "seeds": 1, "policy": "held", "store": path}
    plan = price(small, **asked, keep_weights=True)
    parameters = sum(p.numel() for p in small.model().parameters())
    assert plan["weights_bytes"] == 3 * parameters * 4 * 2
    assert plan["sentences"][-1] == (
        "The weights of 2 trials are kept, as they begin, at their best and as they end: 0.0 MB."
    )
    assert price(small, **asked)["weights_bytes"] == 0
    assert len(price(small, **asked)["sentences"]) == 3
