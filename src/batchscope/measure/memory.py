"""How many bytes does training at this micro-batch size need? Run it in this process and read the peaks.

What runs is what a trial does, with all that a trial keeps: the data and the evaluation sets, a copy of the initial
weights, several whole training steps on the task's largest example (forward, backward, clip, optimiser step, and so
the optimiser's state), one whole evaluation, one checkpoint. Each of the three has a peak of its own.

The second step needs more than the first (the optimiser's state is there by then), and the allocator may need some
more before it has settled: steps go on until one has not raised the peak, LEAST_STEPS to MOST_STEPS of them.

A process that has trained at another size is no place to measure: blocks that were freed stay with it. Run this in a
fresh one (`sweep/probes.py`).
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from batchscope.measure.peak import PeakMeter, peak_meter
from batchscope.measure.samples import of_largest
from batchscope.measure.throughput import SLOWED, endless
from batchscope.records import Arm, Engine, MemoryParts, StopRule, TrialSpec
from batchscope.task import Batch, Task
from batchscope.training.batches import examples_in, make_source, nbytes, split
from batchscope.training.checkpoint import Checkpoint, Position
from batchscope.training.device import is_out_of_memory
from batchscope.training.loop import Evaluator
from batchscope.training.seeding import seed_everything
from batchscope.training.step import Step, evaluate, make_model, make_step

LEAST_STEPS, MOST_STEPS = 3, 8
SETTLED = 1.005  # a step that raises the peak by less has not raised it
COUNTED = 32  # examples on which the tensors saved for the backward pass are counted: one more, small, forward pass

Tell = Callable[[dict[str, Any]], None]


@dataclasses.dataclass
class Observed:
    """What a probe has seen so far, in bytes: filled in as it goes, so that a failure leaves what came before."""

    training_bytes: int | None = None
    evaluation_bytes: int | None = None
    checkpoint_bytes: int | None = None
    parts: MemoryParts | None = None
    saved_bytes_per_example: float | None = None
    steps: int = 0
    alloc_retries: int = 0
    error: str = ""  # "", "out_of_memory" or "crashed"
    reason: str = ""


def observe(
    task: Task,
    micro_batch_size: int,
    device: torch.device,
    *,
    engine: Engine | None = None,
    largest: int | None = None,
    limit_bytes: int | None = None,
    tell: Tell = lambda line: None,
) -> Observed:
    """Train, evaluate and save at this micro-batch size; returns the peaks. `tell` hears of every step and chunk.

    On CUDA `limit_bytes` bounds torch's allocator, which then reports out of memory; on the CPU nothing bounds it here.
    """
    seen = Observed()
    if device.type == "cuda" and limit_bytes is not None:
        total = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, limit_bytes / total), device.index)  # None: the current one
    try:
        _run(of_largest(task, largest), micro_batch_size, device, engine or Engine(), seen, tell)
    except Exception as error:  # whatever the task raises at this size is an answer; the traceback goes with this frame
        seen.error = "out_of_memory" if is_out_of_memory(error) else "crashed"
        seen.reason = f"{type(error).__name__}: {error}".split("\n")[0][:300]
    seen.alloc_retries = peak_meter(device).retries()
    return seen


def _run(task: Task, micro_batch_size: int, device: torch.device, engine: Engine, seen: Observed, tell: Tell) -> None:
    meter = peak_meter(device)
    tell({"phase": "data", "bytes": meter.now()})
    evaluator, source = Evaluator(task, device), make_source(task, 0, device)
    process = meter.now()
    seed_everything(0)
    model = make_model(task, device, engine)
    optimizer = task.optimizer(model, SLOWED * task.lr)
    initial = [p.detach().clone() for p in model.parameters()]
    step = make_step(task, model, optimizer, precision=task.precision, engine=engine)
    batches = endless(source, micro_batch_size)

    _train(step, batches, micro_batch_size, meter, seen, tell)
    seen.parts = _parts(seen.training_bytes or 0, process, model, optimizer, initial)
    meter.reset()
    tell({"phase": "evaluation", "bytes": meter.now()})
    evaluate(task, model, _told(evaluator.valid, tell, meter), task.precision)
    seen.evaluation_bytes = meter.peak()
    meter.reset()
    tell({"phase": "checkpoint", "bytes": meter.now()})
    _save(model, optimizer, micro_batch_size)
    seen.checkpoint_bytes = meter.peak()
    tell({"phase": "checkpoint", "bytes": meter.peak()})
    few = split(next(batches), COUNTED)[0]
    seen.saved_bytes_per_example = saved_bytes(task, model, few) / examples_in(few)


def _train(step: Step, batches: Iterator[Batch], size: int, meter: PeakMeter, seen: Observed, tell: Tell) -> None:
    """Whole steps until one has not raised the peak."""
    tell({"phase": "training", "step": 0, "bytes": meter.now()})
    for number in range(1, MOST_STEPS + 1):
        meter.reset()
        step(next(batches))
        before, seen.training_bytes = seen.training_bytes or 0, max(seen.training_bytes or 0, meter.peak())
        seen.steps = number
        tell({"phase": "training", "step": number, "bytes": seen.training_bytes, "examples": size, "steps": 1})
        if number >= LEAST_STEPS and seen.training_bytes <= SETTLED * before:
            return


def _told(batches: Iterable[Batch], tell: Tell, meter: PeakMeter) -> Iterator[Batch]:
    """The same chunks, each told of: a long evaluation is not a hang."""
    for batch in batches:
        yield batch
        tell({"phase": "evaluation", "bytes": meter.peak()})


def _parts(
    peak: int, process: int, model: torch.nn.Module, optimizer: torch.optim.Optimizer, initial: list[torch.Tensor]
) -> MemoryParts:
    """The peak told apart: tensors counted one by one, the rest is activations. Copies of weights count as weights."""
    held = [*model.parameters(), *model.buffers()]
    weights = sum(t.nbytes for t in held) + sum(t.nbytes for t in initial)
    gradients = sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
    state = sum(nbytes(list(s.values())) for s in optimizer.state.values())
    rest = max(0, peak - process - weights - gradients - state)
    return MemoryParts(peak - rest - weights - gradients - state, weights, gradients, state, rest)


def _save(model: torch.nn.Module, optimizer: torch.optim.Optimizer, batch_size: int) -> None:
    """A checkpoint as a trial writes it, to a folder that is removed again."""
    spec = TrialSpec(Arm(batch_size, 1.0), 0, StopRule(1, 1))
    with tempfile.TemporaryDirectory(prefix="batchscope-probe-") as folder:
        Checkpoint(Path(folder) / "probe.pt").save(spec, Position(), {"model": model, "optimizer": optimizer})


def saved_bytes(task: Task, model: torch.nn.Module, batch: Batch) -> int:
    """Bytes that autograd keeps between forward and backward (`saved_tensors_hooks`); weights are not counted.

    Tensors that begin at one address are one (a view is kept as what it looks at): the longest counts.
    """
    own = {t.data_ptr() for t in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in own:
            kept[tensor.data_ptr()] = max(tensor.nbytes, kept.get(tensor.data_ptr(), 0))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = task.batch_loss(model, batch)
    del loss
    return sum(kept.values())
