"""What does a worker measure of stored weights? One point, or the pictures of two.

point      everything about one set of weights (`measure/point.py`)
pictures   lines and slices between and around two, and the largest eigenvalue against the number of examples
continued  training that goes on otherwise than it began, and the point where it ends
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from batchscope.errors import CannotAnswer, UsageError
from batchscope.measure.full_loss import FullLoss
from batchscope.measure.hessian import eigenvalues
from batchscope.measure.landscape import pictures
from batchscope.measure.point import Counting, Probes, loss_at, measure_point
from batchscope.records import Continued, Evaluation, Measured, PointSharpness, TrialSpec, from_plain, to_plain
from batchscope.task import Task
from batchscope.training.continued import continue_from, early_states

OnLine = Callable[[dict[str, Any]], None]
State = Mapping[str, torch.Tensor]

SLICE_SEED = 0  # of the directions: the same two for every point
EXTRA_STATE = "_extra_state"  # how torch ends the names of what is no tensor
LEAST_SAMPLE = 256  # of the curve in the number of examples, which doubles from there


def read_state(path: str | Path, which: str = "best") -> State:
    """The weights in a file: a trial's kept ones ("best", "last" or "initial"), or a state_dict that a user saved.

    Also a dict with the state_dict under "state_dict" (Lightning) or "model". Raises UsageError for anything else.
    """
    try:
        content = torch.load(path, weights_only=True, map_location="cpu")
    except FileNotFoundError as error:
        raise UsageError(f"expected a checkpoint at {path}, there is no such file: check the path") from error
    except Exception as error:  # a damaged file can make the unpickler fail in any way
        reason = str(error).split("\n")[0][:120]
        raise UsageError(
            f"expected a checkpoint at {path}, it cannot be read ({reason}): save it with "
            "torch.save(model.state_dict(), path)"
        ) from error
    for name in (which, "state_dict", "model"):
        inner = content.get(name) if isinstance(content, Mapping) else None
        if isinstance(inner, Mapping):
            snapshot = name == which and isinstance(inner.get("state"), Mapping)
            content = inner["state"] if snapshot else inner
            break
    if not isinstance(content, Mapping) or not all(map(_is_of_state, content.items())):
        raise UsageError(
            f"expected a state_dict at {path}, got a {type(content).__name__}: save it with "
            "torch.save(model.state_dict(), path)"
        )
    return content


def _is_of_state(entry: tuple[Any, Any]) -> bool:
    """Whether it can be in a state_dict: a tensor, or what a module's `get_extra_state` gave."""
    name, value = entry
    return isinstance(value, torch.Tensor) or str(name).endswith(EXTRA_STATE)


def do_point(task: Task, device: torch.device, details: dict[str, Any], on_line: OnLine) -> Any:
    """`weights`: {"path", "which"}; `initial`: the same or None; `about`: PointSharpness; `probes`: Probes."""
    initial = details["initial"]
    return _point(
        task,
        read_state(**details["weights"]),
        None if initial is None else read_state(**initial),
        device,
        from_plain(PointSharpness, details["about"]),
        from_plain(Probes, details["probes"]),
        on_line,
    )


def _point(
    task: Task,
    state: State,
    initial: State | None,
    device: torch.device,
    about: PointSharpness,
    probes: Probes,
    on_line: OnLine,
) -> Any:
    """The point, and what is known of f."""
    count = Counting(about.label, on_line)
    loss = loss_at(task, state, device, task.train, probes, count)
    facts = {"parameters": loss.size, "examples": loss.examples, "chunk": loss.chunk, "normed": loss.normed}
    return {"point": to_plain(measure_point(loss, state, initial, about, probes, count)), "facts": facts}


def do_pictures(task: Task, device: torch.device, details: dict[str, Any], on_line: OnLine) -> Any:
    """`weights`: one or two of {"path", "which"}; `labels`: theirs; `probes`: Probes."""
    states = [read_state(**where) for where in details["weights"]]
    labels, probes = tuple(details["labels"]), from_plain(Probes, details["probes"])
    count = Counting(" and ".join(labels), on_line)
    train = loss_at(task, states[0], device, task.train, probes, count)
    valid = loss_at(task, states[0], device, task.valid, probes, count)
    points = [train.point_of(state) for state in states]
    lines, slices, notes = pictures(train, valid, points, labels, seed=SLICE_SEED, begin=count.begin)
    count.begin("eigenvalue against examples")
    sizes: list[tuple[int, Measured]] = []
    try:
        sizes = sample_sizes(train, points[0])
    except CannotAnswer as error:
        notes.append(f"{count.what}: {error}")
    return {"lines": to_plain(lines), "slices": to_plain(slices), "sample_sizes": to_plain(sizes), "notes": notes}


def do_continued(task: Task, device: torch.device, details: dict[str, Any], on_line: OnLine) -> Any:
    """`how`: "warm start" or "noise injected"; `first`, `then`: specifications; `patience`: in epochs.

    `epochs` of the first, `share`: of its way to its lowest validation loss; `at`: as asked ("best" or "last").
    """
    first, then = (from_plain(TrialSpec, details[name]) for name in ("first", "then"))
    warm, label = details["how"] == "warm start", details["label"]

    def tell(line: Evaluation) -> None:
        on_line({"phase": "sharpness", "label": label, "what": "training", "examples": line.examples})

    (start, early) = early_states(task, first if warm else then, (0.0, details["epochs"]), device=device)
    ended = continue_from(
        task,
        early.state,
        batch_size=then.arm.batch_size,
        lr=then.arm.learning_rate,
        examples=then.stop.budget_examples,
        seed=then.seed,
        device=device,
        cadence=then.stop.cadence_examples,
        precision=then.arm.precision,
        patience_epochs=details["patience"],
        noise_of=None if warm else first.arm.batch_size,
        tell=tell,
    )
    found = ended.best if details["at"] == "best" else ended.last
    about = PointSharpness(
        label=label,
        batch_size=then.arm.batch_size,
        policy=details["policy"],
        seed=then.seed,
        learning_rate=then.arm.learning_rate,
        step=early.step + found.step,
        examples=early.examples + found.examples,
        notes=ended.notes,
    )
    probes = from_plain(Probes, details["probes"])
    point = _point(task, found.state, start.state, device, about, probes, on_line)["point"]
    losses = [e.validation["loss"] for e in ended.result.trace]
    run = Continued(
        kind=details["how"],
        batch_size=then.arm.batch_size,
        from_batch_size=first.arm.batch_size,
        from_epochs=details["epochs"],
        seed=then.seed,
        point=from_plain(PointSharpness, point),
        reached_loss=min((v for v in losses if math.isfinite(v)), default=math.inf),
        share=details["share"],
        epochs_after=found.examples / task.train_size,
    )
    return to_plain(run)


def sample_sizes(loss: FullLoss, x: torch.Tensor) -> list[tuple[int, Measured]]:
    """(examples, largest eigenvalue over the first so many), doubling: how much a subset says too much."""
    counts = [LEAST_SAMPLE << k for k in range(64) if LEAST_SAMPLE << k < loss.examples]
    parts = [*(loss.on(count) for count in counts), loss]
    return [(few.examples, eigenvalues(few, x, both=False)[0]) for few in parts]
