"""`scale`: what do more devices buy? Seconds per step at each device count that exists, and a prediction of the rest.

    1. check the task, and which of the device counts asked for exist here
    2. time steps and all-reduces on all of them, interleaved, alone on the machine; the store keeps the pass
    3. join it with the steps to goal of the store's newest study of this task, where there is one
    4. analyse, put into words, draw

Nothing is trained to a goal, so the price is in seconds, not in reference runs. The same question is answered from the
store, unless `again` asks for a new measurement.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from batchscope.analysis.scaling_answer import analyse_scaling
from batchscope.errors import CannotAnswer, UsageError
from batchscope.measure.coupling import batch_norms
from batchscope.measure.scaling import needs_others
from batchscope.measure.throughput import ROUNDS, WINDOW_SECONDS
from batchscope.records import (
    Conditions,
    Engine,
    Network,
    ScalingData,
    ScalingPass,
    ScalingQuestion,
    ScalingResult,
    from_plain,
)
from batchscope.report.scaling_html import write_scaling
from batchscope.report.scaling_words import worded
from batchscope.report.words import list_of
from batchscope.report.words import seconds as spelled
from batchscope.store.base import Store
from batchscope.store.sqlite import open_store
from batchscope.sweep.executors.group import GroupExecutor
from batchscope.sweep.jobs import Job, TaskReference, place
from batchscope.sweep.plan import default_batch_sizes
from batchscope.sweep.runner import Listener
from batchscope.task import Task, load_task
from batchscope.training.checks import CheckedTask, check_batch_sizes, check_task
from batchscope.training.device import devices_here, pick_device, remember_settings, set_up
from batchscope.training.seeding import drawing_from
from batchscope.verbs.machine import call, check_devices, chosen, is_here, machine
from batchscope.verbs.price import seconds_per_example
from batchscope.verbs.report import default_path, drawn, study_beside

MOST_SECONDS = 240.0  # of the pass: after that no further round begins, down to the five that intervals need
LARGEST = 1024  # device count that is predicted for
MOST_DEVICES = 1 << 20
MESSAGES_SECONDS = 10.0  # of the bare all-reduces of one device count (measured on two cores: 3)
START_SECONDS = 5.0  # to start a process and load torch and the task (measured on two cores: 3 to 4)
SCALING_BYTES = 50_000  # of a pass in the store (measured: 10,000 to 30,000)


@dataclasses.dataclass(frozen=True)
class Asked:
    """A `scale` as asked for, checked against the task; nothing has been run."""

    task: Task
    reference: str
    checked: CheckedTask
    question: ScalingQuestion
    here: tuple[int, ...]  # the device counts that are measured


def scale(
    task: Task | str,
    *,
    devices: Sequence[int] | int | None = None,
    batch_sizes: Sequence[int] | None = None,
    network: tuple[float, float] | None = None,
    largest: int = LARGEST,
    seed: int = 0,
    again: bool = False,
    store: str | Path = "batchscope.db",
    report: str | Path | None = None,
    draw: bool = True,
    listen: Listener | None = None,
) -> ScalingResult:
    """Measure seconds per step against batch size and device count, and predict what is not here.

    Args:
        task: a reference, as in `study`; several devices are processes of their own, which load it.
        devices: device counts; those that exist here are measured, the others predicted. Default: 1, 2, 4, ... up to
            what exists. On the CPU a device is a process with one thread on a core of its own.
        batch_sizes: global, in examples; default: those of the store's newest study of the task, else as a study's.
        network: (seconds of latency, bytes per second) of a link to predict for, instead of the one measured here.
        largest: device count up to which is predicted, by powers of two.
        seed: of the question, so that it can be asked again.
        again: measure anew where the store has the answer already.
        store, report, draw, listen: as in `study`.

    Returns: rows, fits, predictions, the best batch size by device count and claims 8 and 9, as in `--json`. Raises
    BatchscopeError with one sentence.
    """
    hear: Listener = listen or (lambda kind, details: None)
    with drawing_from(0), open_store(store) as opened:  # drawing_from: a notebook keeps its random numbers
        asked = ask(task, devices, batch_sizes, network, largest, seed, opened)
        opened.remember_task(asked.task.name, asked.checked.fingerprint, asked.checked.components)
        data, scaling_id = found_or_measured(opened, asked, hear, again)
        study_id = study_beside(opened, data.fingerprint)
        study = None if study_id is None else opened.study_data(study_id)
    result = worded(analyse_scaling(dataclasses.replace(data, study_id=study_id), study))
    if draw:
        path = report or default_path(store, f"{asked.task.name}-scaling", scaling_id)
        result = drawn(result, path, write_scaling, hear)
    return result


def found_or_measured(store: Store, asked: Asked, hear: Listener, again: bool = False) -> tuple[ScalingData, str]:
    """(pass, its id): the store's, or measured now, alone on the machine; kept under the question asked now."""
    data = _stored(store, asked) if not again else None
    if data is None:
        with machine(store, hear, alone=True) as beat:
            data = _measured(store, asked, hear, beat)
    return data, store.save_scaling(data)


def ask(
    task: Task | str,
    devices: Sequence[int] | int | None,
    batch_sizes: Sequence[int] | None,
    network: tuple[float, float] | None,
    largest: int,
    seed: int,
    store: Store | None = None,
) -> Asked:
    """Everything that can be refused before anything is run."""
    if not isinstance(task, str):
        kind = f"a {type(task).__name__} object"
        raise UsageError(
            f"expected a reference to the task, got {kind}, which no other process can load: put the task into a file "
            'and write "path.py:function"'
        )
    if not isinstance(largest, int) or isinstance(largest, bool) or not 1 <= largest <= MOST_DEVICES:
        raise UsageError(f"expected a largest device count from 1 to {MOST_DEVICES:,}, got {largest!r}: write 1024")
    if not isinstance(seed, int) or not 0 <= seed < 10**12:
        raise UsageError(f"expected a seed from 0 up, got {seed!r}: write --seed 0")
    most = devices_here()
    counts = _counts(devices, most)
    here = tuple(n for n in counts if n <= most)
    check_devices(task, max(here))
    loaded = load_task(task)
    if needs_others(loaded):
        raise CannotAnswer(
            f"task {loaded.name!r}: expected whole weights and batch norm per replica, to time a device by itself: "
            "leave shard and batch_norm out of the task that is scaled"
        )
    checked = check_task(loaded)
    sizes = batch_sizes
    if sizes is None:
        sizes = _of_the_study(store, checked.fingerprint) or default_batch_sizes(loaded.train_size)
    sizes = check_batch_sizes(loaded, sizes)
    question = ScalingQuestion(counts, sizes, _link(network), largest, seed)
    return Asked(loaded, task, checked, question, here)


def _counts(devices: Sequence[int] | int | None, most: int) -> tuple[int, ...]:
    """Ascending; one device is always among them, since everything is compared with it."""
    if devices is None:
        return tuple(2**k for k in range(most.bit_length()))
    for n in devices if isinstance(devices, Sequence) else [devices]:
        if not isinstance(n, int) or isinstance(n, bool) or not 1 <= n <= MOST_DEVICES:
            raise UsageError(f"expected device counts from 1 to {MOST_DEVICES:,}, got {n!r}: write --devices 1,2,4")
    return tuple(sorted({1, *(devices if isinstance(devices, Sequence) else [devices])}))


def _link(network: tuple[float, float] | None) -> Network | None:
    if network is None:
        return None
    if not isinstance(network, Sequence) or len(network) != 2:
        raise UsageError(f"expected a latency and a bandwidth, got {network!r}: write network=(5e-6, 25e9)")
    latency, bandwidth = network
    if not (0 < latency < 10 and 1 < bandwidth < 1e15):
        raise UsageError(
            f"expected a latency in seconds and a bandwidth in bytes per second, got {latency:g} and {bandwidth:g}: "
            "write --network 5us,25GB/s"
        )
    return Network(float(latency), float(bandwidth))


def _of_the_study(store: Store | None, fingerprint: str) -> tuple[int, ...] | None:
    """The batch sizes whose steps to goal are known, so that both halves of the product are."""
    study_id = study_beside(store, fingerprint) if store is not None else None
    return None if store is None or study_id is None else store.study(study_id).batch_sizes


def _stored(store: Store, asked: Asked) -> ScalingData | None:
    """The newest pass that holds what is asked, measured on a machine like this; its link and largest may differ."""
    for _, data in store.scalings(asked.checked.fingerprint):
        counts = tuple(p.conditions.world_size for p in data.timing.passes)
        before, now = data.question, asked.question
        same = (before.batch_sizes, before.seed, counts) == (now.batch_sizes, now.seed, asked.here)
        if same and is_here(data.conditions):
            return data if before == now else dataclasses.replace(data, question=now)
    return None


def _measured(store: Store, asked: Asked, hear: Listener, beat: Any) -> ScalingData:
    """One pass over the device counts that exist."""
    started, task, question = time.monotonic(), asked.task, asked.question
    conditions = _conditions(store, asked)
    spent = {"examples": 0, "steps": 0}
    hear("phase", {"roles": {f"timing on {list_of(asked.here)} devices": 1}, "trials": 0})

    def on_line(line: dict[str, Any]) -> None:
        for name in spent:
            spent[name] += line.get(name, 0)
        beat()

    with GroupExecutor(TaskReference.here(asked.reference, asked.checked.fingerprint), max(asked.here)) as executor:
        details = {
            **place(conditions),
            "devices": max(asked.here),
            "counts": list(asked.here),
            "batch_sizes": list(question.batch_sizes),
            "options": {"rounds": ROUNDS, "most_seconds": MOST_SECONDS, "ceiling": _ceiling(store, asked)},
        }
        timing = from_plain(ScalingPass, call(executor, Job("scaling", "scaling", details), beat, on_line=on_line))
    return ScalingData(
        task=task.name,
        fingerprint=asked.checked.fingerprint,
        train_size=task.train_size,
        own_batch_size=task.batch_size,
        own_learning_rate=float(task.lr),
        question=question,
        conditions=conditions,
        timing=timing,
        study_id=study_beside(store, asked.checked.fingerprint),
        unit=task.unit,
        coupled=bool(batch_norms(task.model().train())),
        seconds=time.monotonic() - started,
        measured_at=datetime.now(UTC).isoformat(),
        examples=spent["examples"],
        steps=spent["steps"],
    )


def _ceiling(store: Store, asked: Asked) -> int | None:
    """The largest micro-batch that fits on a device, where a profile of the store knows it."""
    for _, profile in store.profiles(asked.checked.fingerprint):
        if profile.memory is not None and profile.memory.binding == "memory" and is_here(profile.conditions):
            return profile.memory.largest_micro_batch_size
    return None


def _conditions(store: Store, asked: Asked) -> Conditions:
    """One thread a device on the CPU; the switches of the engine as the store knows them, none that several forbid."""
    device, known = pick_device(), chosen(store, asked.checked.fingerprint)
    engine = dataclasses.replace(known[1].engine, graphed=False) if known is not None else Engine()
    threads = known[1].threads if known is not None and device.type == "cuda" else 1
    put_back = remember_settings()
    try:
        return set_up(threads, device, asked.task.precision, engine)
    finally:
        put_back()


def price_scaling(task: Task | str, *, store: str | Path = "batchscope.db", **asked: Any) -> dict[str, Any]:
    """The plan of `scale(task, **asked)` as plain data; only a few steps of the task's own batch size are timed."""
    question: dict[str, Any] = dict.fromkeys(("devices", "batch_sizes", "network"))
    question |= {"largest": LARGEST, "seed": 0} | asked
    with drawing_from(0):
        if Path(store).exists():
            with open_store(store, read_only=True) as opened:
                request = ask(task, **question, store=opened)
        else:
            request = ask(task, **question)
        per_example = seconds_per_example(request.task)
    sizes, counts = request.question.batch_sizes, request.here
    windows = 3 * sum(max(WINDOW_SECONDS, per_example * size) for size in sizes) * len(counts)
    messages = MESSAGES_SECONDS * sum(n > 1 for n in counts)
    seconds = START_SECONDS * max(counts) + min(ROUNDS * windows, MOST_SECONDS) + 2 * windows + messages
    predicted = [n for n in request.question.device_counts if n not in counts]
    powers = f"powers of two up to {request.question.largest:,}"
    beyond = f"{list_of(predicted)} and {powers}" if predicted else powers
    return {
        "task": request.task.name,
        "batch_sizes": list(sizes),
        "measured": list(counts),
        "predicted": predicted,
        "rounds": ROUNDS,
        "at_most": {"seconds": seconds, "bytes": SCALING_BYTES},
        "sentences": [
            f"{request.task.name}: {len(sizes)} batch sizes ({sizes[0]} to {sizes[-1]}) on {list_of(counts)} devices, "
            f"{ROUNDS} rounds, with the gradients averaged and without; {beyond} are predicted.",
            f"About {spelled(seconds)} at most, alone on the machine, and {SCALING_BYTES / 1e6:.2g} MB. Nothing is "
            "trained to a goal, so there is no price in reference runs.",
        ],
    }
