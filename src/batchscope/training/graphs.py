"""How is a whole training step replayed as one CUDA graph? Without Python between its kernels.

A step of a small model takes longer to launch than to compute: each of its hundred kernels costs the host some
microseconds. A CUDA graph is a recording of the launches, with every address and every number in them fixed, that is
launched as one (torch's notes on CUDA semantics, "CUDA Graphs").

    the first WARM_UP full batches     trained on, eagerly, on a side stream: libraries choose their kernels, the
                                       optimiser makes its state
    at the next full batch             zero, forward, backward, clip and step are captured, which computes nothing
    from this batch on                 a full batch is copied to where the graph reads its input, and the graph replayed
    the short last batch of an epoch   trained on eagerly, between replays, on the same weights and the same state

What makes replays right:

- *Weights, statistics, optimiser state* are changed in place, by replays and eager steps alike. A step that puts
  another tensor in such a place is not captured (`_Holdings` looks): replays would go on reading the old one.
- *Gradients* are made by each replay in the graph's own memory, and read by nothing else. An eager step in between
  drops `.grad` and makes its own; that frees nothing that a replay needs, since a graph's memory pool is handed
  out to no one but further captures, and lives as long as the graph. After a replay, `.grad` is not to be read.
- *Learning rates.* Schedules go on writing plain numbers into the optimiser, in the host's double precision, and
  checkpoints hold these. Only while it is captured does the optimiser see tensors in their place, which are filled
  before a replay when a number has changed. All other numbers (momentum, betas, weight decay) are fixed by the
  capture: once a schedule changes one of them, steps are eager.
- *Accumulation.* Micro-batches are captured in the same graph, with the weights that their sizes give. Where units
  are counted in the data (tokens), the weights change with every batch, and nothing is captured.
- *Random numbers* of the device go on from replay to replay (torch registers its generator with the graph). Those of
  the host would be the same at every replay: a step that draws any is not captured.

Whatever else Python does in a step happens once, at the capture. A module that counts steps in an attribute is found
out; what is kept elsewhere cannot be seen. Where nothing can be captured all steps are eager, `GraphedStep.reason`
says why, and the training is as if it had not been tried.
"""

from __future__ import annotations

import contextlib
import random
import warnings
from collections.abc import Callable, Generator, Hashable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from batchscope.task import Batch, Task
from batchscope.training.batches import examples_in, mapped, tensors_in

Step = Callable[[Batch], None]

WARM_UP = 3  # eager steps before a capture: torch.cuda.make_graphed_callables' num_warmup_iters
MOST_SHAPES = 32  # captured or on the way to it; batches of any further shape are trained on eagerly (a guess)


class Recorder(Protocol):
    """What runs, watches and captures a function's work on the device."""

    def run(self, function: Callable[[], None]) -> None:
        """Run it eagerly where it will be captured; what is queued before and after keeps its order."""
        ...

    def waits(self, function: Callable[[], None]) -> bool:
        """Run it likewise; whether the host waited for the device meanwhile, which cannot be captured."""
        ...

    def capture(self, function: Callable[[], None]) -> Callable[[], None]:
        """Record its work without doing it; returns what does it. Raises where it cannot be recorded."""
        ...


def recorder_for(device: torch.device) -> Recorder | None:
    """The recorder of a device; None where there are no graphs."""
    return CudaRecorder(device) if device.type == "cuda" else None


def refusal(task: Task, optimizer: torch.optim.Optimizer, micro_batch_size: int | None) -> str:
    """Why steps of this training cannot be captured, in a sentence; empty where nothing is known against it."""
    if micro_batch_size is not None and (task.unit == "tokens" or task.count is not None):
        return "micro-batches are weighted by units counted in every batch, which a captured step cannot do"
    groups = optimizer.param_groups
    if type(optimizer) is not torch.optim.SGD and not all("capturable" in group for group in groups):
        return (
            "a captured step needs an optimiser that keeps its state on the device (torch.optim.SGD, or one with "
            f"`capturable`), got {type(optimizer).__name__}"
        )
    if any(isinstance(group["lr"], torch.Tensor) for group in groups):
        return "a captured step needs learning rates as numbers, got a tensor: it has a tensor of its own for them"
    return ""


@dataclass
class _Shape:
    """One shape of batch: how far it is on the way to a graph."""

    warmed: int = 0  # batches of it that were trained on eagerly
    graph: _Graph | None = None


class GraphedStep:
    """Trains on one batch, by replay where that can be.

    Args:
        step: the whole eager step, from zeroing the gradients to the optimiser's step, which has taken none yet.
        batch_size: examples of a full batch, and only full batches are captured; None: batches of every shape are.
        reason: why nothing shall be captured, where that is known already.

    Attributes:
        reason: why steps are eager, in a sentence; empty as long as they need not be.
        replays: how many steps were replayed.
    """

    def __init__(
        self,
        step: Step,
        model: torch.nn.Module,
        optimizer: torch.optim.Optimizer,
        batch_size: int | None = None,
        reason: str = "",
    ) -> None:
        self.reason, self.replays = reason, 0
        self._step, self._model, self._optimizer, self._batch_size = step, model, optimizer, batch_size
        self._shapes: dict[Hashable, _Shape] = {}
        device = next(model.parameters()).device
        recorder = recorder_for(device)
        if recorder is None:
            self.reason = reason or f"steps are replayed on CUDA only, the model is on the {device.type}"
        else:
            self._recorder = recorder
        if not self.reason:
            keep_state_on_device(optimizer)
            self._rates = _Rates(optimizer, device)

    def __call__(self, batch: Batch) -> None:
        """One optimiser step on the batch."""
        shape = None if self.reason else self._shape(batch)
        if shape is None:
            return self._step(batch)
        if shape.warmed < WARM_UP:
            return self._warm_up(shape, batch)
        if shape.graph is None:
            self._capture(shape, batch)
        elif shape.graph.fixed != fixed_numbers(self._optimizer):
            self._give_up("a schedule changes more than the learning rate, which a captured step holds fixed")
        if shape.graph is None:
            return self._step(batch)
        self._rates.follow()
        self.replays += 1
        return shape.graph.replay(batch)

    def _shape(self, batch: Batch) -> _Shape | None:
        """How far batches of this shape are; None where they are not to be captured."""
        key = layout(batch)
        shape = self._shapes.get(key)
        if shape is None and len(self._shapes) < MOST_SHAPES:
            if key != layout(batch):
                return self._give_up("batches hold other things than tensors, numbers and text, which cannot be copied")
            if self._batch_size in (None, examples_in(batch)):
                shape = self._shapes[key] = _Shape()
        return shape

    def _warm_up(self, shape: _Shape, batch: Batch) -> None:
        """Train eagerly where the capture will be; the last time, watch for what a graph cannot hold."""
        shape.warmed += 1
        if shape.warmed < WARM_UP:
            return self._recorder.run(lambda: self._step(batch))
        before = _host_generators()
        if self._recorder.waits(lambda: self._step(batch)):
            self._give_up("the step waits for the device (.item(), print, or indexing by a mask, say)")
        elif _host_generators() != before:
            self._give_up("the step draws random numbers on the host, which a replay would repeat")
        return None

    def _capture(self, shape: _Shape, batch: Batch) -> None:
        """Make the graph; where that fails, model and optimiser hold what they held before."""
        holdings = _Holdings(self._model, self._optimizer)
        try:
            shape.graph = _Graph(self._step, self._recorder, self._optimizer, self._rates, batch)
            changed = holdings.changed()
        except Exception as error:  # whatever the model, the loss or CUDA makes of it
            changed = f"{type(error).__name__}: {error}".split("\n")[0][:300]
        if changed:
            holdings.put_back()
            self._give_up(f"the step could not be captured: {changed}")

    def _give_up(self, reason: str) -> None:
        """Eager steps from now on."""
        self.reason = reason
        for shape in self._shapes.values():
            shape.graph = None


class _Graph:
    """One captured step, with the tensors that it reads its batch from."""

    def __init__(
        self, step: Step, recorder: Recorder, optimizer: torch.optim.Optimizer, rates: _Rates, batch: Batch
    ) -> None:
        inputs = mapped(batch, torch.clone)
        self.fixed, self.inputs = fixed_numbers(optimizer), list(tensors_in(inputs))

        def whole() -> None:
            with rates.as_tensors():
                step(inputs)

        self.launch = recorder.capture(whole)

    def replay(self, batch: Batch) -> None:
        """The step on this batch."""
        for ours, theirs in zip(self.inputs, tensors_in(batch), strict=True):
            ours.copy_(theirs, non_blocking=True)
        self.launch()


class _Rates:
    """The learning rates of an optimiser's groups as tensors on the device, for captured steps to read."""

    def __init__(self, optimizer: torch.optim.Optimizer, device: torch.device) -> None:
        self.optimizer = optimizer
        self.tensors = [torch.zeros((), dtype=torch.float32, device=device) for _ in optimizer.param_groups]
        self.numbers: list[float] = []

    def follow(self) -> None:
        """Write the optimiser's present rates into the tensors."""
        numbers = [group["lr"] for group in self.optimizer.param_groups]
        if numbers != self.numbers:
            self.numbers = numbers
            for tensor, number in zip(self.tensors, numbers, strict=True):
                tensor.fill_(number)

    @contextlib.contextmanager
    def as_tensors(self) -> Generator[None]:
        """Inside, the optimiser steps by the tensors.

        SGD multiplies by a number that it takes out of the tensor, unless it is fused: inside, it is.
        """
        groups = self.optimizer.param_groups
        fused = {"fused": True, "foreach": False} if type(self.optimizer) is torch.optim.SGD else {}
        before = [{key: group[key] for key in ("lr", *fused)} for group in groups]
        try:
            for group, tensor in zip(groups, self.tensors, strict=True):
                group.update({"lr": tensor, **fused})
            yield
        finally:
            for group, values in zip(groups, before, strict=True):
                group.update(values)


class _Holdings:
    """Which tensors and numbers the model and the optimiser hold.

    A captured step may change a tensor's values, but neither put another in its place nor change a number: replays
    would see neither.
    """

    def __init__(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        modules, state = list(model.modules()), optimizer.state
        attributes: list[dict[Any, Any]] = [vars(m) for m in modules]
        tensors: list[Any] = [d for m in modules for d in (m._parameters, m._buffers)]
        self.attributes = [(holder, dict(holder)) for holder in attributes]
        self.tensors = [(holder, dict(holder)) for holder in [*tensors, state, *state.values()]]

    def changed(self) -> str:
        """What is not as it was, in words; empty where all is."""
        for holder, before in (*self.attributes, *self.tensors):
            for key, value in holder.items():
                old = before.get(key)
                if isinstance(value, (int, float)) and value is not old and value != old:
                    return f"it changes a number that Python holds, {key!r}"
        for holder, before in self.tensors:
            if holder.keys() != before.keys() or any(value is not before[key] for key, value in holder.items()):
                return "it replaces a tensor of the model's or the optimiser's state instead of changing it in place"
        return ""

    def put_back(self) -> None:
        """Everything as it was, but gradients, which the next step drops."""
        for holder, before in (*self.attributes, *self.tensors):
            holder.clear()
            holder.update(before)


def keep_state_on_device(optimizer: torch.optim.Optimizer) -> None:
    """Let the optimiser's own counters live on the device, where captured steps can count; before its first step."""
    for group in optimizer.param_groups:
        if "capturable" in group and all(p.device.type == "cuda" for p in group["params"]):
            group["capturable"] = True


def fixed_numbers(optimizer: torch.optim.Optimizer) -> list[tuple[str, Any]]:
    """All numbers of the optimiser's groups but the learning rates."""
    return [
        (key, value)
        for group in optimizer.param_groups
        for key, value in group.items()
        if key != "lr" and isinstance(value, (int, float, tuple))
    ]


def layout(batch: Batch) -> Hashable:
    """What batches must share for a graph: kinds, shapes and types of tensors, and the values of all the rest.

    An object of another kind has no layout: it is equal to none, its own included.
    """
    if isinstance(batch, torch.Tensor):
        return batch.shape, batch.dtype
    if isinstance(batch, Mapping):
        return type(batch), *((key, layout(value)) for key, value in batch.items())
    if isinstance(batch, (tuple, list)):
        return type(batch), *map(layout, batch)
    return (type(batch), batch) if isinstance(batch, (int, float, str, bytes, type(None))) else object()


def _host_generators() -> tuple[Any, ...]:
    """The states of the host's three global generators, comparable."""
    kind, keys, *rest = np.random.get_state()
    return torch.get_rng_state().numpy().tobytes(), random.getstate(), np.asarray(keys).tobytes(), tuple(rest), kind


class CudaRecorder:
    """Captures on a CUDA stream of its own, on which the warm-up runs too: libraries set up their work per stream.

    Graphs share one memory pool: they run one after the other, and nothing in it outlives a replay.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.stream = device, torch.cuda.Stream(device)
        self.pool = torch.cuda.graph_pool_handle()

    def run(self, function: Callable[[], None]) -> None:
        """On the side stream, which waits for the current one and is waited for."""
        current = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            function()
        current.wait_stream(self.stream)

    def waits(self, function: Callable[[], None]) -> bool:
        """By torch's own watch, which warns of every synchronisation that it knows of; other warnings are passed on."""
        mode = torch.cuda.get_sync_debug_mode()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                self.run(function)
            finally:
                torch.cuda.set_sync_debug_mode(mode)
        found = [w for w in caught if "synchronizing CUDA operation" in str(w.message)]
        for other in caught:
            if other not in found and "Synchronization debug mode" not in str(other.message):
                warnings.warn_explicit(other.message, other.category, other.filename, other.lineno)
        return bool(found)

    def capture(self, function: Callable[[], None]) -> Callable[[], None]:
        """Other threads (a loader's, that pins memory) may go on calling CUDA meanwhile: mode "thread_local"."""
        graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream(self.device)
        generator = torch.cuda.default_generators[self.stream.device_index]
        drawn = generator.clone_state()
        try:
            with torch.cuda.graph(graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"):
                function()
        except Exception:
            self._clean_up(graph, current, generator, drawn)
            raise
        return graph.replay

    def _clean_up(
        self, graph: torch.cuda.CUDAGraph, stream: torch.cuda.Stream, generator: torch.Generator, drawn: torch.Generator
    ) -> None:
        """After an invalid capture: torch leaves its stream current, its allocator and generator waiting for the end.

        (CUDAGraph::capture_end throws before it gets to them; torch's issue 171263.) The generator is
        given the state that it had; the allocator is told that the capture is over, where it was not.
        """
        torch.cuda.set_stream(stream)
        graph.reset()
        generator.graphsafe_set_state(drawn)
        end = getattr(torch._C, "_cuda_endAllocateToPool", None)
        if end is not None:
            with contextlib.suppress(RuntimeError):  # it was over
                end(self.stream.device_index, self.pool)
