"""`sharpness`: how flat, and how far from the start, are the minima that a study's trials found?

    1. find the kept weights of the study's reported trials (or the checkpoints given), and the task they belong to
    2. measure every point, as many at once as there are workers; each is stored when it is done
    3. draw between and around the smallest and the largest batch size's minimum
    4. with `causes`, train on from small-batch weights with large batches and the other way round, and with noise added
    5. analyse, put into words, draw

What was finished is stored part by part: a command that was stopped goes on where it was, and one that is repeated
measures nothing.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from batchscope.analysis.flatness import analyse_sharpness
from batchscope.errors import UsageError
from batchscope.measure.point import DRAWS, EXAMPLES, TRACE_ERROR, Probes
from batchscope.measure.sharpness import EPSILONS, ITERATIONS, RADIUS, SUBSPACE
from batchscope.records import (
    Conditions,
    Continued,
    Engine,
    Line,
    Measured,
    PointSharpness,
    SharpnessData,
    SharpnessQuestion,
    SharpnessResult,
    Slice,
    from_plain,
    to_plain,
)
from batchscope.report.flatness_html import write_flatness
from batchscope.report.flatness_words import worded
from batchscope.store.base import Store
from batchscope.store.sqlite import open_store
from batchscope.sweep.executors.base import Executor
from batchscope.sweep.jobs import Job, TaskReference, place
from batchscope.sweep.many import do_all
from batchscope.sweep.runner import Listener
from batchscope.training.seeding import drawing_from
from batchscope.verbs.causes import cause_jobs
from batchscope.verbs.machine import executor_for, is_here, kept_choice, machine
from batchscope.verbs.points import Asked, Wanted, asked_of, pair_of
from batchscope.verbs.report import default_path, drawn


def sharpness(
    of: str | Path | Sequence[str | Path],
    *,
    task: Any = None,
    initial: str | Path | None = None,
    at: str = "best",
    batch_sizes: Sequence[int] | None = None,
    policy: str = "both",
    seeds: int | None = None,
    examples: int | None = EXAMPLES,
    epsilons: Sequence[float] = EPSILONS,
    double: bool = False,
    pictures: bool = True,
    causes: bool = False,
    seed: int = 0,
    again: bool = False,
    store: str | Path = "batchscope.db",
    report: str | Path | None = None,
    draw: bool = True,
    listen: Listener | None = None,
) -> SharpnessResult:
    """Measure how flat the loss is at stored weights, and how far they are from where training began.

    Args:
        of: a study's id or its beginning, run with `keep_weights`; or checkpoints: files with a state_dict.
        task: the task, as in `study`; needed for checkpoints. A study's is found where the study was run.
        initial: a checkpoint of the weights that training began with, for the distance of checkpoints.
        at: "best", the weights at the lowest validation loss, or "last", where the trials ended; of a file with both.
        batch_sizes, policy, seeds: which of the study's trials; default: all that were reported.
        examples: of the training data that the loss is the mean over, the same for every point; None: all.
        epsilons: half-widths of Keskar's box.
        double: compute in float64 throughout; else in the model's precision, summed in float64.
        pictures: also the lines, slices and spectra of the smallest and the largest batch size.
        causes: also train on from small-batch weights with large batches, the other way round, and with noise injected.
        seed: of what the estimators draw.
        again: measure anew what the store knows.
        store, report, draw, listen: as in `study`.

    Returns: rows, claims 10 and 6 by each measure, distances, as in `--json`. Raises BatchscopeError with one sentence.
    """
    hear: Listener = listen or (lambda kind, details: None)
    probes = probes_of(examples, epsilons, double=double, seed=seed)
    which: dict[str, Any] = {"task": task, "initial": initial, "at": at, "batch_sizes": batch_sizes}
    with drawing_from(0):  # a notebook keeps its random numbers
        asked = asked_of(of, store, **which, policy=policy, seeds=seeds)
        question = SharpnessQuestion(
            study_id=asked.study_id,
            labels=tuple(w.label for w in asked.wanted),
            at=at,
            examples=examples,
            epsilons=probes.epsilons,
            pictures=pictures,
            causes=causes,
            seed=seed,
        )
        with open_store(store) as opened:
            data = _found(opened, asked, question, double) if not again else None
            if data is None:
                data = _measured(opened, asked, question, probes, hear, again)
            sharpness_id = opened.save_sharpness(data)
            study = None if asked.study_id is None else opened.study_data(asked.study_id)
    result = worded(analyse_sharpness(data, study))
    if draw:
        path = report or default_path(store, f"{data.task}-sharpness", sharpness_id)
        result = drawn(result, path, write_flatness, hear)
    return result


def probes_of(
    examples: int | None, epsilons: Sequence[float] = EPSILONS, *, double: bool = False, seed: int = 0
) -> Probes:
    """Checked; raises UsageError."""
    if examples is not None and (not isinstance(examples, int) or isinstance(examples, bool) or examples < 2):
        raise UsageError(f"expected a number of examples from 2 up, got {examples!r}: write --examples 8192, or all")
    if not epsilons or not all(isinstance(e, (int, float)) and 0 < e < 1 for e in epsilons):
        raise UsageError(f"expected half-widths between 0 and 1, got {list(epsilons)}: write --epsilons 1e-3,5e-4")
    if not isinstance(seed, int) or not 0 <= seed < 10**12:
        raise UsageError(f"expected a seed from 0 up, got {seed!r}: write --seed 0")
    return Probes(examples=examples, epsilons=tuple(map(float, epsilons)), double=double, seed=seed)


def _found(store: Store, asked: Asked, question: SharpnessQuestion, double: bool) -> SharpnessData | None:
    """The newest stored answer to the same question, at the same weights, under the conditions of this machine."""
    marks = {w.label: w.mark for w in asked.wanted}
    for _, data in store.sharpnesses(asked.fingerprint):
        same = data.question == question and data.double == double
        if same and {p.label: p.trial_key for p in data.points} == marks and is_here(data.conditions):
            return data
    return None


def _measured(
    store: Store, asked: Asked, question: SharpnessQuestion, probes: Probes, hear: Listener, again: bool
) -> SharpnessData:
    """All parts that the store lacks, in workers."""
    started = time.monotonic()
    why = cause_jobs(store, asked, probes) if question.causes else {}  # refused before anything is measured
    with executor_for(asked.reference or asked.task) as executor:
        if asked.reference is not None:
            executor.serve(TaskReference.here(asked.reference, asked.fingerprint))
        with machine(store, hear):
            workers, conditions = _choice(store, asked, executor, hear)
        executor.open_slots(workers, conditions)
        parts = _Parts(store, asked.fingerprint, executor, conditions, hear, again)
        pair = pair_of(asked.wanted) if question.pictures else ()
        points = parts.do("points", _point_jobs(asked.wanted, pair, probes))
        pictures = parts.do("pictures", _picture_jobs(pair, probes)) if pair else {}
        causes = parts.do("causes", why) if why else {}
    drawn_of = next(iter(pictures.values()), {})
    facts = next(iter(points.values()))["facts"]
    return SharpnessData(
        task=asked.task.name,
        fingerprint=asked.fingerprint,
        question=question,
        conditions=conditions,
        points=tuple(from_plain(PointSharpness, points[w.label]["point"]) for w in asked.wanted),
        parameters=facts["parameters"],
        examples=facts["examples"],
        chunk=facts["chunk"],
        normed=tuple(facts["normed"]),
        double=probes.double,
        lines=from_plain(tuple[Line, ...], drawn_of.get("lines", [])),
        slices=from_plain(tuple[Slice, ...], drawn_of.get("slices", [])),
        sample_sizes=from_plain(tuple[tuple[int, Measured], ...], drawn_of.get("sample_sizes", [])),
        continued=tuple(from_plain(Continued, found) for found in causes.values()),
        settings={
            "box iterations": ITERATIONS,
            "subspace dimensions": SUBSPACE,
            "adaptive radius": RADIUS,
            "batch sharpness draws": DRAWS,
            "trace relative error": TRACE_ERROR,
        },
        study_id=asked.study_id,
        notes=(*asked.notes, *drawn_of.get("notes", [])),
        seconds=time.monotonic() - started,
        measured_at=datetime.now(UTC).isoformat(),
    )


def _choice(store: Store, asked: Asked, executor: Executor, hear: Listener) -> tuple[int, Conditions]:
    """Workers and conditions, without an engine, as f is computed by no compiled step."""
    sizes = [asked.task.batch_size]
    workers, conditions = kept_choice(store, asked.task, asked.fingerprint, executor, sizes, hear)
    return workers, dataclasses.replace(conditions, engine=Engine())


def _digest(made: Any) -> str:
    """The key of a part."""
    return hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()[:32]


class _Parts:
    """Jobs whose results are stored one by one, under a name that all that decides them makes."""

    def __init__(
        self,
        store: Store,
        fingerprint: str,
        executor: Executor,
        conditions: Conditions,
        hear: Listener,
        again: bool,
    ) -> None:
        self.store, self.fingerprint, self.executor, self.hear = store, fingerprint, executor, hear
        self.conditions, self.made = conditions, datetime.now(UTC).isoformat() if again else ""

    def do(self, what: str, jobs: Mapping[str, tuple[str, dict[str, Any], str]]) -> dict[str, Any]:
        """Results by name; `jobs`: name -> (kind, details, mark of the weights)."""
        keys = {name: self._key(kind, details, mark) for name, (kind, details, mark) in jobs.items()}
        done = {name: found for name, key in keys.items() if (found := self.store.part(key)) is not None}
        left = {
            name: Job(name, kind, {**place(self.conditions), **details})
            for name, (kind, details, _) in jobs.items()
            if name not in done
        }
        if left:
            self.hear("phase", {"roles": {f"measuring {what}": len(left)}, "trials": 0})

        def keep(name: str, found: Any) -> None:
            self.store.save_part(keys[name], self.fingerprint, jobs[name][0], found)
            done[name] = found
            self.hear("measured", {"label": name, "done": len(done), "of": len(jobs)})

        do_all(self.executor, left, keep, lambda name, line: self.hear("progress", line))
        return {name: done[name] for name in jobs}

    def _key(self, kind: str, details: Mapping[str, Any], mark: str) -> str:
        """Paths do not count, the weights' mark does."""
        plain = {k: v for k, v in details.items() if k not in ("weights", "initial")}
        return _digest([self.fingerprint, to_plain(self.conditions), kind, plain, mark, self.made])


def _point_jobs(
    wanted: Sequence[Wanted], pictured: Sequence[Wanted], probes: Probes
) -> dict[str, tuple[str, dict[str, Any], str]]:
    jobs = {}
    for w in wanted:
        how = dataclasses.replace(probes, pictured=w in pictured)
        details = {"weights": w.weights, "initial": w.initial, "about": to_plain(w.about), "probes": to_plain(how)}
        jobs[w.label] = ("point", details, w.mark)
    return jobs


def _picture_jobs(pair: Sequence[Wanted], probes: Probes) -> dict[str, tuple[str, dict[str, Any], str]]:
    labels = [w.label for w in pair]
    details = {"weights": [w.weights for w in pair], "labels": labels, "probes": to_plain(probes)}
    return {"lines and slices": ("pictures", details, " ".join(w.mark for w in pair))}
