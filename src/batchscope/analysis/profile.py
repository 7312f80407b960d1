"""What is the profile's answer, in numbers: rows, fits, knee, splits, and what a reader must know before trusting them?

`analyse_profile` reads the records of one profile and returns the `ProfileResult` that the terminal, the page and
`--json` show. It runs nothing and stores nothing, so the same store gives the same answer on any machine.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

from batchscope.analysis.memory import fit_memory
from batchscope.analysis.quantities import DRIFT_LIMIT
from batchscope.analysis.splits import fastest_split, largest_micro_batch, measured_splits
from batchscope.analysis.step_time import fit_step_time, holds, knee, rows_of
from batchscope.errors import BatchscopeError
from batchscope.records import (
    Measured,
    MemoryProfile,
    ProfileData,
    ProfileResult,
    Split,
    StepTimeFit,
    ThroughputRow,
    TimingPass,
    json_safe,
    to_plain,
)
from batchscope.records.hardware import OWN_LOOP

DATA = ("train_size", "own_batch_size", "batch_sizes", "memory_limit", "seed", "workers", "measured_at")
MEMORY_FIT_LIMIT = 0.10  # largest relative residual of an affine peak that still predicts (the target of predictions)


def analyse_profile(data: ProfileData) -> ProfileResult:
    """Everything that a profile's records say. Pure: equal data give an equal result."""
    timing, memory = data.timing, _with_fit(data.memory)
    probes = memory.probes if memory is not None else ()
    rows = rows_of(timing, data.units_per_example, data.flops, probes) if timing is not None else ()
    fit = fit_step_time(timing) if timing is not None else None
    bend = _knee(timing, memory)
    return ProfileResult(
        task=data.task,
        fingerprint=data.fingerprint,
        unit=data.unit,
        loop=timing.loop if timing is not None else OWN_LOOP,
        rows=rows,
        step_time=fit,
        knee=bend,
        splits=splits_of(data),
        memory=memory,
        flops=data.flops,
        energy_is=data.energy_is,
        conditions=data.conditions,
        data=data,
        notes=tuple(dict.fromkeys((*data.notes, *notes_of(data, rows, fit, memory)))),
    )


def _with_fit(memory: MemoryProfile | None) -> MemoryProfile | None:
    if memory is None or memory.fit is not None:
        return memory
    return dataclasses.replace(memory, fit=fit_memory(memory.probes))


def _knee(timing: TimingPass | None, memory: MemoryProfile | None) -> Measured:
    if timing is None:
        return Measured(None, None, None, 0, 0, "none: no batch size was timed")
    if memory is None:
        return knee(timing)
    return knee(timing, memory.largest_micro_batch_size or 0)


def splits_of(data: ProfileData) -> tuple[Split, ...]:
    """Every split that was timed, and the fastest that is predicted for the task's own batch size if none was."""
    measured = measured_splits(data.splits, data.timing)
    if any(s.batch_size == data.own_batch_size for s in measured):
        return measured
    try:
        return (*measured, fastest_split(data, data.own_batch_size))
    except BatchscopeError:  # nothing was timed, or nothing fits: the notes say so
        return measured


def notes_of(
    data: ProfileData, rows: Sequence[ThroughputRow], fit: StepTimeFit | None, memory: MemoryProfile | None
) -> list[str]:
    """What a reader must know before trusting the rows, one sentence each."""
    return [*_timing_notes(data, rows), *_fit_notes(fit, memory), *_memory_notes(data, rows, memory)]


def _timing_notes(data: ProfileData, rows: Sequence[ThroughputRow]) -> list[str]:
    timing, notes = data.timing, []
    if timing is None or not rows:
        return ["No seconds per step were measured: no throughput, no knee and no splits are given."]
    if timing.drift > DRIFT_LIMIT:
        notes.append(
            f"The reference step drifted by {100 * timing.drift:.0f} % during the timing pass: seconds are corrected "
            "by it, and their interval may be too narrow."
        )
    waiting = [r.micro_batch_size for r in rows if r.bound_by == "data"]
    if waiting:
        notes.append(
            f"At batch size {_listed(waiting)} steps wait for data more than for anything else: their throughput is "
            "the loader's, and says nothing about the device."
        )
    ceiling = largest_micro_batch(data) if data.memory is not None else None
    below = [r for r in rows if ceiling is None or r.micro_batch_size <= ceiling]
    if len(below) > 1 and max(below, key=lambda r: r.examples_per_second.estimate or 0.0) is below[-1]:
        limited = below[-1].micro_batch_size >= min(data.train_size, ceiling or data.train_size)
        beyond = "no larger one can be used here" if limited else "the knee may lie beyond it"
        notes.append(f"Throughput still rises at the largest size measured, {below[-1].micro_batch_size:,}: {beyond}.")
    return notes


def _fit_notes(fit: StepTimeFit | None, memory: MemoryProfile | None) -> list[str]:
    notes = []
    if fit is not None and fit.residuals and not holds(fit):
        worst = max(fit.residuals, key=abs)
        size = fit.batch_sizes[fit.residuals.index(worst)]
        notes.append(
            f"The fitted step time is {100 * abs(worst):.0f} % off at batch size {size:,}: use the measured sizes, not "
            "the fit."
        )
    if memory is not None and memory.fit is not None and memory.fit.largest_residual > MEMORY_FIT_LIMIT:
        notes.append(
            f"Peak memory is up to {100 * memory.fit.largest_residual:.0f} % off the fitted line: use the measured "
            "sizes, not the line."
        )
    return notes


def _memory_notes(data: ProfileData, rows: Sequence[ThroughputRow], memory: MemoryProfile | None) -> list[str]:
    if memory is None:
        if any(note.startswith("Memory was not measured") for note in data.notes):
            return []
        foreign = data.timing is not None and data.timing.loop != OWN_LOOP
        why = "a meter in somebody else's loop runs no probes" if foreign else "no probes were run"
        return [f"Memory was not measured ({why}): the knee and the splits hold if their micro-batches fit."]
    largest = memory.largest_micro_batch_size
    if largest is None:
        return [memory.reason] if memory.reason else []
    notes = []
    if memory.binding == "probes":
        notes.append(f"The largest micro-batch size may be larger: {memory.reason}")
    if above := [r.micro_batch_size for r in rows if r.micro_batch_size > largest]:
        notes.append(
            f"Batch size {_listed(above)} was timed above the largest that fits the memory limit, {largest:,}: the "
            "knee leaves it out, and training it takes accumulation."
        )
    return notes


def _listed(sizes: Iterable[int]) -> str:
    return ", ".join(f"{b:,}" for b in sizes)


def profile_to_json(result: ProfileResult) -> dict[str, Any]:
    """The contract of `profile --json`: numbers that JSON cannot hold (nan, inf) become null."""
    data, flops = result.data, result.flops
    per_size = {str(r.micro_batch_size): r for r in result.rows}
    answer: dict[str, Any] = {
        "task": result.task,
        "fingerprint": result.fingerprint,
        "unit": result.unit,
        "units_per_example": data.units_per_example,
        "loop": result.loop,
        "rows": to_plain(result.rows),
        "step_time": to_plain(result.step_time),
        "knee": result.knee.to_json(),
        "splits": to_plain(result.splits),
        "memory": to_plain(result.memory),
        "flops": None
        if flops is None
        else {
            **to_plain(flops),
            "utilization": {b: to_plain(r.flops_utilization) for b, r in per_size.items()},
        },
        "energy": {
            "measured_as": result.energy_is,
            "joules_per_example": {b: to_plain(r.joules_per_example) for b, r in per_size.items()},
        },
        "conditions": to_plain(result.conditions),
        "spent": {"examples": data.examples, "steps": data.steps, "seconds": data.seconds},
        "notes": list(result.notes),
        "report": result.report,
        "data": {
            "timing": to_plain(data.timing),
            "splits": to_plain(data.splits),
            **{name: to_plain(getattr(data, name)) for name in DATA},
        },
    }
    return json_safe(answer)
