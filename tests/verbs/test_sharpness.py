"""Are a study's minima measured as asked, part by part, and is nothing measured twice?"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

import batchscope as bs
from batchscope.errors import CannotAnswer, UsageError
from batchscope.measure.full_loss import FullLoss
from batchscope.records import SharpnessResult, StudyResult
from batchscope.task import Task
from batchscope.training.weights import load_weights

CPU = torch.device("cpu")
OPTIONS: dict[str, Any] = {"draw": False, "examples": 256}


def small_task() -> Task:
    """Two classes, 300 examples, a hidden layer."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 5, generator=generator)
    y = (x[:, 0] * x[:, 1] > 0).long()
    return bs.Task(
        name="small",
        model=lambda: torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2)),
        loss=torch.nn.functional.cross_entropy,
        train=(x[:300], y[:300]),
        valid=(x[300:], y[300:]),
        optimizer=lambda model, lr: torch.optim.SGD(model.parameters(), lr=lr),
        lr=0.5,
        batch_size=10,
        goal=bs.Goal("loss", at_most=0.5),
        budget=6000,
    )


@pytest.fixture(scope="module")
def studied(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, StudyResult]:
    store = tmp_path_factory.mktemp("sharpness") / "s.db"
    how: dict[str, Any] = {"batch_sizes": [10, 100], "policy": "held", "seeds": 2, "draw": False}
    return store, bs.study(small_task(), **how, store=store, keep_weights=True)


def study_id(store: Path) -> str:
    with bs.open_store(store) as opened:
        return opened.studies()[-1].id


@pytest.fixture(scope="module")
def answered(studied: tuple[Path, StudyResult]) -> SharpnessResult:
    store, _ = studied
    return bs.sharpness(study_id(store), task=small_task(), store=store, **OPTIONS)


def test_every_reported_trial_is_a_point(answered: SharpnessResult) -> None:
    points = answered.data.points
    assert [(p.batch_size, p.policy) for p in points] == [(10, "held"), (10, "held"), (100, "held"), (100, "held")]
    assert all(p.largest_eigenvalue is not None and p.trace is not None and len(p.boxes) == 2 for p in points)
    assert all(p.distance > 0 and p.initial_norm > 0 and len(p.layers) == 4 for p in points)
    assert {c.number for c in answered.claims} == {6, 10}
    assert any("the model has 66 parameters, the subspace would have 100 dimensions" in n for n in answered.notes)


def test_a_point_is_what_its_weights_say(studied: tuple[Path, StudyResult], answered: SharpnessResult) -> None:
    """The loss, the distance and the validation loss, from the kept file by hand."""
    store, _ = studied
    task = small_task()
    files = {f.stem: f for f in Path(f"{store}.weights").glob("*.pt")}
    for point in answered.data.points:
        kept = load_weights(files[point.trial_key.split()[0]])
        assert kept is not None
        model = task.model()
        model.load_state_dict(kept.best.state)
        loss = FullLoss(task, model, task.train, CPU, examples=256)
        assert point.loss == pytest.approx(loss.value(loss.point()), rel=1e-12)
        away = sum(float((p.detach() - kept.initial[n]).square().sum()) for n, p in model.named_parameters()) ** 0.5
        assert point.distance == pytest.approx(away, rel=1e-6)
        with torch.no_grad():
            valid = float(torch.nn.functional.cross_entropy(model(task.valid[0]), task.valid[1]))
        assert point.validation["loss"] == pytest.approx(valid, rel=1e-5)


def test_pictures_go_from_the_small_batch_to_the_large(answered: SharpnessResult) -> None:
    data = answered.data
    assert [line.kind for line in data.lines] == ["straight", "curved", "slice", "slice"]
    straight, points = data.lines[0], {p.label: p for p in data.points}
    for place, label in zip((0.0, 1.0), straight.labels, strict=True):
        at = straight.places.index(place)
        assert straight.train["loss"][at] == pytest.approx(points[label].loss, rel=1e-6)
    assert [s.label for s in data.slices] == list(straight.labels)
    assert data.points[0].density is not None
    both = data.points[0].trace, data.points[0].trace_again  # two estimators of one trace
    assert both[0].low < both[1].high
    assert both[1].low < both[0].high
    examples, largest = data.sample_sizes[-1]
    assert (examples, largest.estimate) == (256, pytest.approx(data.points[0].largest_eigenvalue.estimate, rel=1e-3))


def test_asked_again_measures_nothing(
    studied: tuple[Path, StudyResult], answered: SharpnessResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, _ = studied
    monkeypatch.setattr("batchscope.verbs.sharpness.do_all", None)
    again = bs.sharpness(study_id(store), task=small_task(), store=store, **OPTIONS)
    assert again.data == answered.data


def test_causal_runs_stand_beside_the_trials_that_they_left(
    studied: tuple[Path, StudyResult], answered: SharpnessResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also after a whole way, which can be the whole budget."""
    monkeypatch.setattr("batchscope.verbs.causes.SHARES", (1.0,))
    store, _ = studied
    result = bs.sharpness(study_id(store), task=small_task(), store=store, **OPTIONS, causes=True)
    assert result.data.points == answered.data.points
    assert len(result.data.continued) == 2 * (2 + 1)
    assert [(r.batch_size, r.kind, r.share, r.seeds) for r in result.causes] == [
        (10, "uninterrupted", 0.0, 2),
        (10, "warm start", 1.0, 2),
        (100, "uninterrupted", 0.0, 2),
        (100, "warm start", 1.0, 2),
        (100, "noise injected", 0.0, 2),
    ]
    trials = {(p.batch_size, p.seed): p for p in result.data.points}
    for run in result.data.continued:
        before = run.from_epochs * 300
        if run.kind == "warm start":
            assert before == pytest.approx(run.share * trials[run.from_batch_size, run.seed].examples)
        assert run.point.policy == "held"
        assert run.point.examples == pytest.approx(before + run.epochs_after * 300)
        assert 0 <= run.epochs_after * 300 <= 6000  # a whole budget after it
        assert run.reached_loss == pytest.approx(run.point.validation["loss"], rel=1e-5)
    assert any(run.point.examples > 6000 for run in result.data.continued)
    for row in result.causes:
        told = ["largest eigenvalue", "lowest validation loss"]
        assert row.kind == "uninterrupted" or [m for m in row.ratios if not m.startswith("sharpness")] == told
        assert all(m.low is not None and "df" in m.interval for m in row.ratios.values())


def test_what_was_measured_before_a_stop_is_kept(
    studied: tuple[Path, StudyResult], answered: SharpnessResult, tmp_path: Path
) -> None:
    """Stopped after two points, the same command measures the others only, and says the same."""
    store, done = studied[0], []

    def stop(kind: str, details: dict[str, Any]) -> None:
        if kind == "measured":
            done.append(details["label"])
            if len(done) == 2:
                raise KeyboardInterrupt

    asked: dict[str, Any] = {**OPTIONS, "seed": 1, "pictures": False}
    with pytest.raises(KeyboardInterrupt):
        bs.sharpness(study_id(store), task=small_task(), store=store, **asked, listen=stop)
    later: list[str] = []

    def listen(kind: str, details: dict[str, Any]) -> None:
        if kind == "measured":
            later.append(details["label"])

    result = bs.sharpness(study_id(store), task=small_task(), store=store, **asked, listen=listen)
    assert len(later) == 2
    assert not set(later) & set(done)
    assert len(result.data.points) == 4


def test_checkpoints(studied: tuple[Path, StudyResult], tmp_path: Path) -> None:
    task, torch_states = small_task(), []
    for k in range(2):
        torch.manual_seed(k)
        torch.save(task.model().state_dict(), tmp_path / f"c{k}.pt")
        torch_states.append(tmp_path / f"c{k}.pt")
    asked = {**OPTIONS, "pictures": False, "store": tmp_path / "s.db"}
    result = bs.sharpness(torch_states, task=task, initial=tmp_path / "c0.pt", **asked)
    assert [p.label for p in result.data.points] == ["c0", "c1"]
    assert result.data.points[0].distance == 0
    assert result.data.points[1].distance > 0


def test_what_cannot_be_measured_is_one_sentence(studied: tuple[Path, StudyResult], tmp_path: Path) -> None:
    store, _ = studied
    with pytest.raises(UsageError, match="expected the task that the weights belong to"):
        bs.sharpness(study_id(store), store=store, **OPTIONS)
    with pytest.raises(UsageError, match="expected a checkpoint at"):
        bs.sharpness([tmp_path / "none.pt"], task=small_task(), store=store, **OPTIONS)
    with pytest.raises(UsageError, match="half-widths between 0 and 1"):
        bs.sharpness(study_id(store), task=small_task(), store=store, draw=False, epsilons=[-1.0])
    other = dataclasses.replace(small_task(), batch_size=20)
    with pytest.raises(CannotAnswer, match="expected the task of study"):
        bs.sharpness(study_id(store), task=dataclasses.replace(other, model=lambda: torch.nn.Linear(5, 2)), store=store)
    plain = tmp_path / "plain.db"
    bs.study(small_task(), batch_sizes=[10, 100], policy="held", seeds=1, draw=False, store=plain)
    with pytest.raises(CannotAnswer, match="--keep-weights"):
        bs.sharpness(study_id(plain), task=small_task(), store=plain, **OPTIONS)


def test_landscape_of_two_modules() -> None:
    task = small_task()
    torch.manual_seed(0)
    found = bs.landscape(task, task.model(), task.model(), examples=64, planes=False)
    assert [line.kind for line in found.lines] == ["straight", "curved", "slice", "slice"]
    assert found.slices == ()
