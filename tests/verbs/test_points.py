"""Are weights told apart by all that decides what is measured of them, and is what cannot be measured refused?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import batchscope as bs
from batchscope.errors import CannotAnswer, UsageError
from batchscope.records import PointSharpness
from batchscope.task import Task
from batchscope.training.weights import load_weights
from batchscope.verbs.points import Wanted, pair_of

from .test_sharpness import small_task

OPTIONS: dict[str, Any] = {"draw": False, "examples": 64, "pictures": False}
STUDY: dict[str, Any] = {"batch_sizes": [10, 100], "policy": "held", "seeds": 1, "draw": False, "keep_weights": True}


def studied(task: Task, store: Path) -> str:
    bs.study(task, **STUDY, store=store)
    with bs.open_store(store) as opened:
        return opened.studies()[-1].id


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Four states of the model."""
    torch.manual_seed(0)
    found = [tmp_path / f"{name}.pt" for name in "abcd"]
    for file in found:
        torch.save(small_task().model().state_dict(), file)
    return found


def test_another_start_is_another_distance(files: list[Path], tmp_path: Path) -> None:
    """Though the weights and the question are the same, neither the answer nor a part of it is."""
    end, other, *starts = files
    how: dict[str, Any] = {**OPTIONS, "task": small_task(), "store": tmp_path / "s.db"}
    for initial in starts:
        for of in ([end, other], [end]):
            (point, *_) = bs.sharpness(of, initial=initial, **how).data.points
            parts = [torch.load(f, weights_only=True) for f in (end, initial)]
            away = sum(float((parts[0][n] - parts[1][n]).square().sum()) for n in parts[0]) ** 0.5
            assert point.distance == pytest.approx(away, rel=1e-6)
    assert bs.sharpness([end], **how).data.points[0].layers == ()


def test_a_kept_file_is_read_where_asked(tmp_path: Path) -> None:
    """A trial's file given as a checkpoint: at its best, or at its end."""
    store, task = tmp_path / "s.db", small_task()
    studied(task, store)
    kept_at = {f: load_weights(f) for f in Path(f"{store}.weights").glob("*.pt")}
    file, kept = next((f, k) for f, k in kept_at.items() if k is not None and k.best.step != k.last.step)
    for at, snapshot in (("best", kept.best), ("last", kept.last)):
        (point,) = bs.sharpness(file, task=task, at=at, store=store, **OPTIONS).data.points
        model = task.model()
        model.load_state_dict(snapshot.state)
        with torch.no_grad():
            valid = float(torch.nn.functional.cross_entropy(model(task.valid[0]), task.valid[1]))
        assert point.validation["loss"] == pytest.approx(valid, rel=1e-5)


def test_a_study_that_diverged_has_no_minima(tmp_path: Path) -> None:
    task = bs.Task(**{**vars(small_task()), "lr": 1e30})
    study_id = studied(task, tmp_path / "s.db")
    with pytest.raises(CannotAnswer, match="diverged or failed"):
        bs.sharpness(study_id, task=task, store=tmp_path / "s.db", **OPTIONS)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    store = tmp_path / "s.db"
    study_id = studied(small_task(), store)
    for file in Path(f"{store}.weights").glob("*.pt"):
        file.write_bytes(b"half")
    with pytest.raises(CannotAnswer, match="cannot be read: delete it"):
        bs.sharpness(study_id, store=store, **OPTIONS)


@pytest.mark.parametrize(
    ("asked", "says"),
    [({"batch_sizes": [10, 50]}, "write --batch-sizes 10,100"), ({"seeds": -1}, "a number of seeds from 1 up")],
)
def test_what_the_study_does_not_have_is_refused(asked: dict[str, Any], says: str, tmp_path: Path) -> None:
    study_id = studied(small_task(), tmp_path / "s.db")
    with pytest.raises(UsageError, match=says):
        bs.sharpness(study_id, task=small_task(), store=tmp_path / "s.db", **OPTIONS, **asked)


@pytest.mark.parametrize(
    ("of", "task", "says"),
    [([], small_task(), "an empty list"), (["a.pt"], Path("task.py"), "got PosixPath"), (["a.pt"], None, "--task")],
)
def test_what_is_no_question_is_refused(of: list[str], task: Any, says: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=says):
        bs.sharpness(of, task=task, store=tmp_path / "s.db", **OPTIONS)


def test_the_pair_is_of_one_seed_and_as_wide_as_can_be() -> None:
    """The first seed's large batch is missing, as where it diverged."""

    def wanted(size: int, seed: int, policy: str = "held") -> Wanted:
        about = PointSharpness(f"{policy} {size} {seed}", batch_size=size, policy=policy, seed=seed)
        return Wanted(about.label, {}, None, about, about.label)

    held = [wanted(10, 0), wanted(10, 1), wanted(10, 2), wanted(20, 0), wanted(40, 1), wanted(40, 2)]
    found = pair_of([*held, wanted(10, 0, "tuned"), wanted(80, 0, "tuned")])
    assert [w.label for w in found] == ["held 10 1", "held 40 1"]
    assert pair_of(held[:1]) == (held[0],)


def test_causes_of_files_are_refused_before_anything_is_measured(files: list[Path], tmp_path: Path) -> None:
    heard: list[str] = []
    how: dict[str, Any] = {**OPTIONS, "causes": True, "store": tmp_path / "s.db"}
    with pytest.raises(CannotAnswer, match="expected a study for --causes"):
        bs.sharpness(files[0], task=small_task(), listen=lambda kind, _: heard.append(kind), **how)
    assert heard == []


def test_how_files_are_measured_is_chosen_once(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No study says how; another choice would not find the parts that a stopped command left."""
    how: dict[str, Any] = {**OPTIONS, "task": small_task(), "initial": files[3], "store": tmp_path / "s.db"}
    (first,) = bs.sharpness(files[0], **how).data.points
    monkeypatch.setattr("batchscope.verbs.machine.choose", None)
    points = bs.sharpness(files[:2], **how).data.points
    assert points[0] == first
