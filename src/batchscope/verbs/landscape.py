"""`landscape`: what does the loss look like between two sets of weights, and around each? Nothing is stored."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from batchscope.errors import CannotAnswer, UsageError
from batchscope.measure.landscape import pictures
from batchscope.measure.point import EXAMPLES, loss_at
from batchscope.measure.repeatable import probe
from batchscope.records import Landscape
from batchscope.sweep.flatness_jobs import read_state
from batchscope.task import Task, load_task
from batchscope.training.device import pick_device
from batchscope.training.seeding import drawing_from
from batchscope.verbs.sharpness import probes_of

Weights = str | Path | Mapping[str, Any] | torch.nn.Module


def landscape(
    task: Task | str,
    a: Weights,
    b: Weights | None = None,
    *,
    labels: tuple[str, str] = ("a", "b"),
    examples: int | None = EXAMPLES,
    double: bool = False,
    planes: bool = True,
    seed: int = 0,
) -> Landscape:
    """Lines between two sets of weights, and filter-normalised slices around each.

    Args:
        task: as in `study`.
        a, b: a module, a state_dict, or a file with one (a trial's kept weights: those at the lowest validation loss).
        labels: what they are called; at 0 and at 1 of the lines.
        examples: of the training data that the loss is the mean over; None: all. Validation data count as many at most.
        double: compute in float64.
        planes: also the planes around each, the dearest part.
        seed: of the slices' directions, the same for both.

    Returns: `lines` (straight and curved between a and b, from -1 to 2; a slice through each, from -1 to 1) with loss
    and metrics of both data sets, and `slices`. With batch norm all values are train-mode losses over fixed chunks,
    along the whole line. A model without filters has no slices, and a note says so. Raises BatchscopeError with one
    sentence.
    """
    loaded = load_task(task) if isinstance(task, str) else task
    if not isinstance(loaded, Task):
        raise UsageError(
            f"expected a task reference or a bs.Task, got {type(loaded).__name__}: write landscape('digits')"
        )
    if len(set(labels)) < 2:
        raise UsageError(f"expected two different labels, got {labels}: write labels=('small', 'large')")
    states = [_state(w) for w in (a, b) if w is not None]
    device, probes = pick_device(), probes_of(examples, double=double, seed=seed)
    with drawing_from(0):
        train = loss_at(loaded, states[0], device, loaded.train, probes, lambda n: None)
        valid = loss_at(loaded, states[0], device, loaded.valid, probes, lambda n: None)
        points = [train.point_of(state) for state in states]
        repeatable = probe(train)
        lines, slices, notes = pictures(train, valid, points, labels[: len(points)], planes=planes, seed=seed)
    if not lines:
        raise CannotAnswer(notes[0])
    return Landscape(tuple(lines), tuple(slices), train.examples, tuple(train.normed), (*repeatable, *notes))


def _state(weights: Weights) -> Mapping[str, torch.Tensor]:
    if isinstance(weights, torch.nn.Module):
        return weights.state_dict()
    return weights if isinstance(weights, Mapping) else read_state(weights)
