"""`sharpness --dry-run`: what would be measured, and how long would it take? Nothing is measured but a few chunks."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

from batchscope.measure.full_loss import FullLoss
from batchscope.measure.point import EXAMPLES, loss_at
from batchscope.report.words import seconds as spelled
from batchscope.sweep.flatness_jobs import read_state
from batchscope.training.device import cores, pick_device
from batchscope.training.seeding import drawing_from
from batchscope.verbs.points import Wanted, asked_of
from batchscope.verbs.sharpness import probes_of

PASSES = 200  # of f and its gradient that a point is worth (counted on digits and the MLP: 150 to 260)
PICTURE_PASSES = 150  # the same for lines, slices and the curve in the number of examples
POINT_BYTES = 6_000  # of a point in the store (measured: 3,000 to 6,000)
TIMED_EXAMPLES = 1024


def price_sharpness(of: Any, *, store: str | Path = "batchscope.db", **asked: Any) -> dict[str, Any]:
    """The plan of `sharpness(of, **asked)` as plain data."""
    how: dict[str, Any] = {"at": "best", "policy": "both", "examples": EXAMPLES, "pictures": True} | asked
    which: dict[str, Any] = {
        name: how.get(name) for name in ("task", "initial", "at", "batch_sizes", "policy", "seeds")
    }
    given = {name: how[name] for name in ("epsilons", "double", "seed") if name in how}
    probes = probes_of(how["examples"], **given)
    with drawing_from(0):
        request = asked_of(of, store, **which)
        few = dataclasses.replace(probes, examples=TIMED_EXAMPLES)
        state = read_state(**request.wanted[0].weights)
        loss = loss_at(request.task, state, pick_device(), request.task.train, few, lambda examples: None)
        per_example = _seconds(loss)
    examples = min(probes.examples or request.task.train_size, request.task.train_size)
    pictured = PICTURE_PASSES if how["pictures"] else 0
    workers = min(cores(), len(request.wanted)) if request.reference is not None else 1
    seconds = per_example * examples * (PASSES * len(request.wanted) / workers + pictured)
    sizes = sorted({w.about.batch_size for w in request.wanted if w.about.batch_size is not None})
    return {
        "task": request.task.name,
        "points": len(request.wanted),
        "batch_sizes": sizes,
        "examples": examples,
        "at_most": {"seconds": seconds, "bytes": POINT_BYTES * len(request.wanted)},
        "sentences": [
            f"{request.task.name}: {_points(request.wanted)}, over {examples:,} training examples each.",
            f"About {spelled(seconds)}, and {POINT_BYTES * len(request.wanted) / 1e6:.2g} MB"
            + ("; the runs that --causes trains come on top." if how.get("causes") else ". Nothing is trained."),
            *request.notes,
        ],
    }


def _seconds(loss: FullLoss) -> float:
    """Of the gradient, for one example."""
    x = loss.point()
    loss.gradient(x)
    start = time.perf_counter()
    loss.gradient(x)
    return (time.perf_counter() - start) / loss.examples


def _points(wanted: tuple[Wanted, ...]) -> str:
    return f"{len(wanted)} set{'s' * (len(wanted) > 1)} of weights"
