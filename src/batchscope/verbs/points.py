"""At which weights is sharpness measured? A study's reported trials whose weights were kept, or checkpoints.

Checked before any compute is spent: the weights are there, the task is the one that they were trained with.
"""

from __future__ import annotations

import dataclasses
import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from batchscope.errors import CannotAnswer, UsageError
from batchscope.records import POLICIES, PointSharpness, StudySettings, TrialRecord
from batchscope.store.base import Store
from batchscope.store.sqlite import open_store
from batchscope.sweep.flatness_jobs import read_state
from batchscope.sweep.keeping import weights_file
from batchscope.task import Task, load_task
from batchscope.training.checks import check_task
from batchscope.training.weights import load_weights

PLACES = ("best", "last")


@dataclasses.dataclass(frozen=True)
class Wanted:
    """One point: its label, where its weights are, and what is known of it."""

    label: str
    weights: dict[str, str]  # path, which
    initial: dict[str, str] | None
    about: PointSharpness
    mark: str  # that names the weights, and those that training began with: equal for equal ones


@dataclasses.dataclass(frozen=True)
class Asked:
    """A `sharpness` as asked for, checked; nothing has been measured."""

    task: Task
    reference: str | None
    fingerprint: str
    study_id: str | None
    wanted: tuple[Wanted, ...]
    notes: tuple[str, ...] = ()
    settings: StudySettings | None = None  # the study's


def asked_of(
    of: str | Path | Sequence[str | Path],
    store: str | Path,
    *,
    task: Any = None,
    initial: str | Path | None = None,
    at: str = "best",
    batch_sizes: Sequence[int] | None = None,
    policy: str = "both",
    seeds: int | None = None,
) -> Asked:
    """Everything that can be refused before anything is measured. The store is only read, and none is made."""
    if at not in PLACES:
        raise UsageError(f'expected at "best" or "last", got {at!r}: write --at best')
    if isinstance(of, Path) or not isinstance(of, str) or Path(of).is_file():
        files = [of] if isinstance(of, (str, Path)) else list(of)
        return _of_files([Path(f) for f in files], task, initial, at)
    if initial is not None:
        raise UsageError("expected --initial with checkpoints only: a study's trials know where they began")
    with open_store(store, read_only=True) as opened:
        return _of_study(opened, Path(store), of, task, at, batch_sizes, policy, seeds)


def _of_study(
    store: Store,
    path: Path,
    study: str,
    task: Any,
    at: str,
    batch_sizes: Sequence[int] | None,
    policy: str,
    seeds: int | None,
) -> Asked:
    study_id = store.resolve(study)
    settings = store.study(study_id)
    roles = {"held": ("held",), "tuned": ("tuned",), "both": POLICIES}.get(policy)
    if roles is None:
        raise UsageError(f'expected policy "held", "tuned" or "both", got {policy!r}')
    _check_selection(study_id, settings, batch_sizes, seeds)
    trials = [(role, t) for role in roles for t in store.trials(study_id, role)]
    trials = [(r, t) for r, t in trials if _asked_for(t, settings, batch_sizes, seeds)]
    if not trials:
        raise UsageError(f"expected trials of study {study_id}, none are as asked: see batchscope show {study_id}")
    kept = [(r, t, weights_file(path, t.spec, settings.fingerprint, t.conditions)) for r, t in trials]
    there = [(r, t, p) for r, t, p in kept if p.exists()]
    if not there:
        raise CannotAnswer(
            f"expected the weights of study {study_id}'s trials, none were kept: run the study's command again with "
            "--keep-weights, which trains its reported trials once more"
        )
    notes = []
    if len(there) < len(kept):
        notes.append(f"{len(kept) - len(there)} of {len(kept)} trials have no kept weights, and were left out.")
    usable = [(r, t, p) for r, t, p in there if t.result.outcome not in ("failed", "diverged")]
    if not usable:
        raise CannotAnswer(
            f"expected trials of study {study_id} that trained, all {len(there)} with kept weights diverged or failed: "
            "study a smaller learning rate"
        )
    if len(usable) < len(there):
        notes.append(f"{len(there) - len(usable)} trials diverged or failed, and were left out.")
    loaded, reference = _task_of(task, there[0][2])
    fingerprint = check_task(loaded).fingerprint
    if fingerprint != settings.fingerprint:
        raise CannotAnswer(
            f"task {loaded.name!r}: expected the task of study {study_id} ({settings.fingerprint}), got {fingerprint}: "
            "its file, its data or torch changed since; run the study again, or give --task the one that was studied"
        )
    usable.sort(key=lambda found: (POLICIES.index(found[0]), found[1].spec.arm.batch_size, found[1].spec.seed))
    wanted = tuple(_point(r, t, p, at) for r, t, p in usable)
    return Asked(loaded, reference, fingerprint, study_id, wanted, tuple(notes), settings)


def _check_selection(
    study_id: str, settings: StudySettings, batch_sizes: Sequence[int] | None, seeds: int | None
) -> None:
    """Raise UsageError for batch sizes that the study does not have, and for less than one seed."""
    if other := [b for b in batch_sizes or () if b not in settings.batch_sizes]:
        known = ",".join(map(str, settings.batch_sizes))
        raise UsageError(f"expected batch sizes of study {study_id}, got {other[0]}: write --batch-sizes {known}")
    if seeds is not None and (not isinstance(seeds, int) or isinstance(seeds, bool) or seeds < 1):
        raise UsageError(f"expected a number of seeds from 1 up, got {seeds!r}: write --seeds 1")


def _asked_for(
    trial: TrialRecord, settings: StudySettings, batch_sizes: Sequence[int] | None, seeds: int | None
) -> bool:
    sizes = settings.batch_sizes if batch_sizes is None else tuple(batch_sizes)
    known = settings.seeds if seeds is None else settings.seeds[:seeds]
    return trial.spec.arm.batch_size in sizes and trial.spec.seed in known


def _task_of(task: Any, kept: Path | None) -> tuple[Task, str | None]:
    """(task, its reference): the one given, else the one that the weights in this file were kept with."""
    if isinstance(task, Task):
        return task, None
    if isinstance(task, str):
        return load_task(task), task
    if task is not None:
        raise UsageError(
            f"expected a task reference or a bs.Task, got {type(task).__name__}: write task='path.py:function'"
        )
    if kept is None:
        raise UsageError("expected the task that the checkpoints belong to: write --task path.py:function")
    if (content := load_weights(kept)) is None:
        raise CannotAnswer(
            f"expected a trial's weights at {kept}, the file cannot be read: delete it, and run the study again with "
            "--keep-weights"
        )
    if (found := content.task) is None:
        raise UsageError(
            "expected the task that the weights belong to, as the study was of a Task object: write "
            "--task path.py:function, or task=..."
        )
    here = found["reference"]
    file, _, function = here.partition(".py")
    if here.endswith(".py") or ".py:" in here:
        here = str(Path(found["folder"], f"{file}.py")) + function
    sys.path.extend(p for p in found["path"] if p not in sys.path)  # a task of a package beside where the study was run
    return load_task(here), here


def _point(role: str, trial: TrialRecord, path: Path, at: str) -> Wanted:
    spec, result = trial.spec, trial.result
    seen = min(result.trace, key=lambda e: e.validation["loss"]) if at == "best" else result.trace[-1]
    label = f"{role} B={spec.arm.batch_size:,} seed {spec.seed}"
    mark = f"{path.stem} {at}"
    about = PointSharpness(
        label=label,
        batch_size=spec.arm.batch_size,
        policy=role,
        seed=spec.seed,
        learning_rate=spec.arm.learning_rate,
        trial_key=mark,
        step=seen.step,
        examples=seen.examples,
    )
    where = str(path)
    return Wanted(label, {"path": where, "which": at}, {"path": where, "which": "initial"}, about, mark)


def _of_files(files: Sequence[Path], task: Any, initial: str | Path | None, at: str) -> Asked:
    if not files:
        raise UsageError("expected a study or checkpoints, got an empty list: give at least one file")
    loaded, reference = _task_of(task, None)
    names = [f.stem for f in files]
    if len(set(names)) < len(names):
        names = [str(f) for f in files]
    if len(set(names)) < len(names):
        raise UsageError(f"expected different checkpoints, got {', '.join(names)}: give each once")
    first = None if initial is None else {"path": str(Path(initial).resolve()), "which": "initial"}
    began = ""
    if first is not None:
        read_state(**first)
        began = f" from {_digest(Path(first['path']))}"
    wanted = []
    for name, file in zip(names, files, strict=True):
        read_state(file, at)
        mark = f"{_digest(file)} {at}{began}"
        where = {"path": str(file.resolve()), "which": at}
        wanted.append(Wanted(name, where, first, PointSharpness(label=name, trial_key=mark), mark))
    return Asked(loaded, reference, check_task(loaded).fingerprint, None, tuple(wanted))


def _digest(file: Path) -> str:
    """Of a file's bytes."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()[:16]


def pair_of(wanted: Sequence[Wanted]) -> tuple[Wanted, ...]:
    """The two that are drawn: the smallest and the largest batch size of the first policy; the first two files.

    Both of one seed: the first of those whose batch sizes lie farthest apart.
    """
    first = wanted[0].about
    if first.batch_size is None:
        return tuple(wanted[:2])
    by_seed: dict[int | None, list[Wanted]] = {}
    for w in wanted:
        if w.about.policy == first.policy:
            by_seed.setdefault(w.about.seed, []).append(w)
    pairs = [(min(ws, key=_size), max(ws, key=_size)) for ws in by_seed.values()]
    small, large = max(pairs, key=lambda pair: _size(pair[1]) / _size(pair[0]))
    return (small, large) if small != large else (small,)


def _size(wanted: Wanted) -> int:
    return wanted.about.batch_size or 1
