"""What is measured at one set of weights? Everything that says how flat it is there, and how far it is from the start.

One order for all points: distance, evaluation as in training, then f: box, eigenvalues, trace, adaptive, batches. What
cannot be measured is left out and noted, and the rest goes on.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from batchscope.errors import CannotAnswer
from batchscope.measure.distance import layer_distances, total_distance
from batchscope.measure.full_loss import CHUNK, FullLoss
from batchscope.measure.hessian import density, eigenvalues, hutch_plus_plus, trace
from batchscope.measure.repeatable import probe
from batchscope.measure.sharpness import (
    EPSILONS,
    ITERATIONS,
    SUBSPACE,
    adaptive_eigenvalue,
    adaptive_sharpness,
    batch_sharpness,
    box_sharpness,
    random_columns,
)
from batchscope.records import BoxSharpness, Density, PointSharpness
from batchscope.task import Task, data_size
from batchscope.training.batches import FixedBatches
from batchscope.training.step import evaluate, make_model

EXAMPLES = 8192  # of the training data that f is the mean over, unless asked otherwise (a guess)
CONVERGED_EXAMPLES = 1024  # on so few the box is also searched to convergence
DENSITY_EXAMPLES = 2048  # that the spectral density is of: each start takes 40 products (a guess)
DRAWS = 64  # batches of the batch sharpness
TRACE_ERROR = 0.05  # relative standard error of the trace that is aimed at
TELL_SECONDS = 0.5

Tell = Callable[[dict[str, Any]], None]
State = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Probes:
    """How points are measured: the same for all of one question, else they do not compare."""

    examples: int | None = EXAMPLES
    chunk: int = CHUNK
    double: bool = False
    epsilons: tuple[float, ...] = EPSILONS
    seed: int = 0
    pictured: bool = False  # also the spectral density, Hutch++, and the box to convergence on a subset


class Counting:
    """Tells how many examples have gone by, and what they are for, at most every TELL_SECONDS."""

    def __init__(self, label: str, tell: Tell) -> None:
        self.label, self.what, self.tell = label, "", tell
        self.examples, self._told = 0, -math.inf

    def begin(self, what: str) -> None:
        """What the examples from now on are for."""
        self.what = what

    def __call__(self, examples: int) -> None:
        self.examples += examples
        if time.monotonic() - self._told > TELL_SECONDS:
            self._told = time.monotonic()
            line = {"phase": "sharpness", "label": self.label, "what": self.what, "examples": self.examples}
            self.tell(line)


def loss_at(
    task: Task, state: State, device: torch.device, data: Any, probes: Probes, count: Callable[[int], None]
) -> FullLoss:
    """f over a part of the task's data, with the model at a state."""
    how: Any = {"examples": probes.examples, "chunk": probes.chunk, "double": probes.double, "tell": count}
    return FullLoss(task, loaded(task, state, device), data, device, **how)


def loaded(task: Task, state: State, device: torch.device) -> torch.nn.Module:
    """The task's model with these weights; CannotAnswer where they are another model's."""
    model = make_model(task, device)
    try:
        model.load_state_dict(dict(state))
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise CannotAnswer(
            f"task {task.name!r}: expected weights of its own model, got others ({reason}): give the task that they "
            "were trained with"
        ) from error
    return model


def measure_point(
    loss: FullLoss,
    state: State,
    initial: State | None,
    about: PointSharpness,
    probes: Probes,
    count: Counting,
) -> PointSharpness:
    """Everything about one set of weights.

    Args:
        loss: f, with its model at these weights; `state`: the same with buffers.
        initial: the weights that training began with; None: no distance.
        about: what is known of the point already (label, batch size, learning rate, ...).
        count: hears what is measured; the same that `loss` tells.
    """
    started, x = time.monotonic(), loss.point()
    point = replace(_as_trained(loss, state, about, count), initial_norm=math.nan, distance=math.nan)
    if initial is not None:
        x0 = loss.point_of(initial)
        norm = float(torch.linalg.vector_norm(x0))
        layers, away = layer_distances(loss, x, x0), total_distance(x, x0)
        point = replace(point, layers=layers, distance=away, initial_norm=norm)
    count.begin("loss")
    metrics = loss.metrics(x)
    value = metrics.pop("loss")
    point = replace(point, loss=value, metrics=metrics, notes=(*point.notes, *probe(loss)))
    if not math.isfinite(value):
        note = "the loss is not finite there: nothing else was measured"
        return replace(point, notes=(*point.notes, note), seconds=time.monotonic() - started)
    loss.move(x)
    _, gradient = loss.gradient(x)
    point = replace(point, gradient_norm=float(torch.linalg.vector_norm(gradient)))
    for name, measure in _MEASURES.items():
        count.begin(name)
        try:
            point = measure(loss, x, point, probes)
        except CannotAnswer as error:
            point = replace(point, notes=(*point.notes, f"{name}: {error}"))
    return replace(point, seconds=time.monotonic() - started)


def _as_trained(loss: FullLoss, state: State, about: PointSharpness, count: Counting) -> PointSharpness:
    """Validation and test metrics in eval mode, as in a trial's trace."""
    task = loss.task
    model = loaded(task, state, loss.device)
    count.begin("validation")
    found = {}
    for name, data in (("validation", task.valid), ("test", task.test)):
        if data is not None:
            found[name] = evaluate(task, model, FixedBatches(task, data, None, loss.device), task.precision)
            count(data_size(data))
    return replace(about, **found)


def _boxes(loss: FullLoss, x: torch.Tensor, point: PointSharpness, probes: Probes) -> PointSharpness:
    columns = random_columns(loss, probes.seed)
    notes = point.notes
    if columns is None:
        notes = (*notes, f"the box in a random subspace was left out: {_no_subspace(loss)}")
    spaces = [None] if columns is None else [None, columns]
    boxes = [box_sharpness(loss, x, epsilon, columns=space) for space in spaces for epsilon in probes.epsilons]
    return replace(point, boxes=tuple(boxes), notes=notes, subset_boxes=_on_subset(loss, x, probes))


def _no_subspace(loss: FullLoss) -> str:
    """Why `random_columns` gave none."""
    if loss.size < SUBSPACE:
        return f"the model has {loss.size} parameters, the subspace would have {SUBSPACE} dimensions"
    return "its columns would not fit into memory"


def _on_subset(loss: FullLoss, x: torch.Tensor, probes: Probes) -> tuple[BoxSharpness, ...]:
    """The largest box on few examples: after ITERATIONS, and at convergence."""
    if not probes.pictured:
        return ()
    few = loss.on(CONVERGED_EXAMPLES)
    return tuple(box_sharpness(few, x, max(probes.epsilons), iterations=k) for k in (ITERATIONS, None))


def _eigenvalues(loss: FullLoss, x: torch.Tensor, point: PointSharpness, probes: Probes) -> PointSharpness:
    largest, smallest = eigenvalues(loss, x, seed=probes.seed)
    return replace(point, largest_eigenvalue=largest, smallest_eigenvalue=smallest)


def _trace(loss: FullLoss, x: torch.Tensor, point: PointSharpness, probes: Probes) -> PointSharpness:
    found = trace(loss, x, seed=probes.seed, relative_error=TRACE_ERROR, most=16)
    again = hutch_plus_plus(loss, x, seed=probes.seed) if probes.pictured else None
    return replace(point, trace=found, trace_again=again)


def _adaptive(loss: FullLoss, x: torch.Tensor, point: PointSharpness, probes: Probes) -> PointSharpness:
    found = adaptive_sharpness(loss, x)
    return replace(point, adaptive_sharpness=found, adaptive_eigenvalue=adaptive_eigenvalue(loss, x, seed=probes.seed))


def _batches(loss: FullLoss, x: torch.Tensor, point: PointSharpness, probes: Probes) -> PointSharpness:
    if point.batch_size is None:
        return point
    return replace(point, batch_sharpness=batch_sharpness(loss, x, point.batch_size, draws=DRAWS, seed=probes.seed))


def _density(loss: FullLoss, x: torch.Tensor, point: PointSharpness, probes: Probes) -> PointSharpness:
    if not probes.pictured:
        return point
    found = density(loss.on(DENSITY_EXAMPLES), x, seed=probes.seed)
    return replace(point, density=Density(tuple(n for n, _ in found), tuple(w for _, w in found)))


_MEASURES = {
    "box": _boxes,
    "eigenvalues": _eigenvalues,
    "trace": _trace,
    "adaptive": _adaptive,
    "batches": _batches,
    "density": _density,
}
