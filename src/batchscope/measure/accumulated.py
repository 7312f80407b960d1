"""How long are the parts that a loop accumulates anyway? The sources `micro-batches` and `replicas`.

What a backward pass is about to add to `.grad` is seen by a hook at its accumulation, or, with data parallelism, in the
buckets that a communication hook gets: before processes average it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks

from batchscope.measure.gradients import AtAccumulation, Counts, Reading, Source, entries, norms, numbers, shape_of

Hook = Callable[[Any, dist.GradBucket], torch.futures.Future[torch.Tensor]]


class MicroBatches(Source):
    """The parts are the micro-batches of one step; with data parallelism, those of all processes.

    A hook at each parameter's accumulation sees what a backward pass is about to add to `.grad`, before processes
    average it.
    Processes count alike, as in DistributedDataParallel; the micro-batches of one process by their units.
    """

    def __init__(self, model: nn.Module, group: Any = None) -> None:
        super().__init__(model)
        self.group = group
        self.replicas = dist.get_world_size(group) if group is not None else 1
        self.name = "replicas" if self.replicas > 1 else "micro-batches"
        self._squares: dict[int, dict[int, torch.Tensor]] = {}  # forward passes so far -> parameter -> |a_i|^2
        self._again = False  # a second backward pass through one forward pass: norms of sums are not sums of norms

    def _hook(self) -> None:
        self._squares, self._again = {}, False
        for index, parameter in enumerate(self.parameters):
            if parameter.requires_grad:
                self._handles.append(AtAccumulation(parameter, before=self._seeing(index)))

    def _seeing(self, index: int) -> Callable[[torch.Tensor], None]:
        def see(gradient: torch.Tensor) -> None:
            found = self._squares.setdefault(len(self.examples), {})
            self._again |= index in found
            found[index] = norms([entries(gradient)])[0].square()

        return see

    def backward_passes(self) -> int:
        """How many backward passes there were since the source was armed."""
        return len(self._squares)

    def _read(self, counts: Counts) -> Reading | None:
        mean = self.mean_squared()
        weights, examples = self._shares(counts)
        if not weights or (self.replicas == 1 and len(weights) < 2):
            self.why_not = self._why_not()
            if self.replicas == 1:
                return None
        squares, shape = self._local(mean, weights, examples)
        if self.replicas == 1:
            return Reading(len(weights), shape[0] / shape[1], 1 / shape[1], squares / shape[0], mean)
        together = torch.cat([squares, mean.new_tensor(shape)])  # every process takes part, whatever it knows
        dist.all_reduce(together, group=self.group)
        together /= self.replicas
        part_size, batch_size = together[-2] / together[-1], self.replicas / together[-1]
        return Reading(len(weights) * self.replicas, part_size, batch_size, together[:-2] / together[-2], mean)

    def _local(
        self, mean: torch.Tensor, weights: Sequence[float], examples: Sequence[float]
    ) -> tuple[torch.Tensor, list[float]]:
        """This process's sum_i |a_i|^2 per parameter, sum_i w_i^2 and sum_i w_i^2 / m_i; nan if unknown."""
        if not weights:
            return torch.full_like(mean, math.nan), [math.nan, math.nan]
        zero = mean.new_zeros(())
        parts = [torch.stack([part.get(i, zero) for i in range(len(mean))]) for part in self._squares.values()]
        together, _, batch_size = shape_of(weights, examples)
        return torch.stack(parts).sum(0), [together, 1 / batch_size]

    def _shares(self, counts: Counts) -> tuple[list[float], list[float]]:
        """Weights and examples of this process's micro-batches; empty where they differ and were not told."""
        keys = sorted(self._squares)
        if self._again or not keys:
            return [], []
        examples = [float(sum(self.examples[a:b])) for a, b in itertools.pairwise([0, *keys])]
        if counts is not None:
            units = numbers(counts, len(keys))
            return [n / sum(units) for n in units], examples if all(examples) else units
        if len(set(examples)) > 1 or not examples[0]:
            return [], []
        return [1 / len(keys)] * len(keys), examples

    def _why_not(self) -> str:
        if self._again:
            return "several backward passes through one forward pass"
        if len(self._squares) < 2 and self.replicas == 1:
            return "one micro-batch a step"
        return "micro-batches of unlike or unknown size: give `step` the `counts`"


class Buckets(Source):
    """Replicas, by a communication hook of DistributedDataParallel: norms bucket by bucket, for all parameters at once.

    Such a hook cannot be removed from a model again; while nothing is measured it costs a comparison per bucket.
    """

    name = "replicas"

    def __init__(self, model: nn.Module, group: Any = None) -> None:
        super().__init__(model)
        self.group, self.names = group, ["all parameters"]
        self._squared: torch.Tensor | None = None
        self._passes = 0  # backward passes that averaged; only after the first does `.grad` hold this replica's alone

    def hook_around(self, inner: Hook | None = None) -> Hook:
        """For `ddp.register_comm_hook(None, ...)`: takes norms, then does what `inner` does.

        `inner` is the hook that would have been registered otherwise (compression, say); default: torch's own, which
        averages.
        """

        def hook(state: Any, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
            if self.armed:
                squared = norms([bucket.buffer()])[0].square()
                self._squared = squared if self._squared is None else self._squared + squared
                self._passes += bucket.is_last()
            return inner(state, bucket) if inner is not None else default_hooks.allreduce_hook(self.group, bucket)

        # DDP compares a hook's annotations with these types, and in this file annotations are strings
        hook.__annotations__ = {"bucket": dist.GradBucket, "return": torch.futures.Future[torch.Tensor]}
        return hook

    def _hook(self) -> None:
        self._squared, self._passes = None, 0

    def _read(self, counts: Counts) -> Reading | None:
        mean, replicas = self.mean_squared().sum(), dist.get_world_size(self.group)
        size = float(sum(self.examples if counts is None else map(float, counts)))
        known = self._squared is not None and self._passes == 1 and size > 0
        own = [self._squared, mean.new_tensor(1 / size)] if known else [mean.new_tensor(math.nan)] * 2
        together = torch.stack(own)
        dist.all_reduce(together, group=self.group)
        together /= replicas
        return Reading(replicas, 1 / together[1], replicas / together[1], together[:1], mean.reshape(1))
